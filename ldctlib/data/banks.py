"""What training patches are cut from: slices of phantoms or scans, and images of scanner noise."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol

import numpy as np
import torch

from ldctlib.ct.dose import Scanner, noise_only
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.kernels import Kernel, edge_blur_px
from ldctlib.ct.projector import projector
from ldctlib.data.collection import Collection
from ldctlib.data.scan import NO_HU
from ldctlib.errors import ScanError
from ldctlib.phantom.patient import Patient, PhantomSlice
from ldctlib.units import hu_to_mu

PIXELS_MM = (0.62, 0.68, 0.74, 0.80, 0.86, 0.94)
"""Pixel sizes of the noise bank: a few values, so that the projectors stay cached."""


THICKNESS_MM = (1.0, 1.0, 3.0)
"""Of slices: two in three are thin."""

PHOTONS = (2e4, 5e5)
"""A ray, log-uniform between the two."""


def random_kernel(rng: np.random.Generator) -> Kernel:
    """A reconstruction kernel between a soft one and a sharp one that reaches past the pixel's Nyquist frequency."""
    if rng.random() < 0.45:
        return Kernel(0.0, rng.uniform(0.5, 1.15), tilt=rng.uniform(0, 0.15))
    return Kernel(rng.uniform(0.1, 0.65), rng.uniform(0.75, 1.25), tilt=rng.uniform(0, 0.25))


def random_scanner(rng: np.random.Generator, *, photons: tuple[float, float]) -> Scanner:
    """A scanner with photons a ray between two numbers, log-uniform, most with a bow-tie filter."""
    n = float(np.exp(rng.uniform(*np.log(photons))))
    bowtie_mm = float(rng.uniform(130, 200)) if rng.random() < 0.7 else None
    return Scanner(n, bowtie_radius_mm=bowtie_mm, modulation=float(rng.uniform(0, 0.5)))


def scanner_noise(
    rng: np.random.Generator, count: int, *, size: int = 512, bodies=None, photons=PHOTONS
) -> tuple[np.ndarray, ...]:
    """``count`` noise images of unit standard deviation at their centre, float32 (count, size, size), and for each
    the blur in pixels that its kernel gives to edges (:func:`edge_blur_px`).

    Photon noise of a body's sinogram, detector bins of half a pixel (three in four) or one, reconstructed alone:
    log(noisy) - log(clean) through FBP, which keeps streaks and everything else that varies over the image.
    ``bodies`` (n, H, W) in HU lends the attenuation; by default the bank draws phantoms of its own. With few
    ``photons`` a ray (between two numbers) bone and shoulders leave dark streaks.
    """
    if bodies is None:
        bodies = PhantomSlices()(rng, max(4, count // 16), size=256)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    out, blur = np.empty((count, size, size), np.float32), np.empty(count, np.float32)
    yy, xx = np.mgrid[:size, :size] - (size - 1) / 2
    centre = np.hypot(yy, xx) < 0.22 * size
    # one geometry at a time: its matrices are built once and used for all of its share
    plans = sorted((float(rng.choice(PIXELS_MM)), 2.0 if rng.random() < 0.75 else 1.0) for _ in range(count))
    for i, (pixel_mm, bins_per_pixel) in enumerate(plans):
        geometry = ParallelGeometry.for_image(size, pixel_mm, bins_per_pixel=bins_per_pixel, n_views=600)
        body = torch.from_numpy(bodies[rng.integers(len(bodies))]).float()[None, None]
        body = torch.rot90(body, int(rng.integers(4)), (2, 3))
        line = projector(geometry.on_grid(body.shape[-1])).A(hu_to_mu(body)).clamp(min=0)
        scanner = random_scanner(rng, photons=photons)
        kernel = random_kernel(rng)
        blur[i] = edge_blur_px(kernel, pixel_mm)
        noise = noise_only(line, geometry, scanner, kernel=kernel, generator=generator)[0, 0].numpy()
        out[i] = noise / max(float(noise[centre].std()), 1e-6)
    return out, blur


class Slices(Protocol):
    """Where a bank's slices come from; ``sharp`` if their edges still lack the blur of a scanner's kernel."""

    sharp: bool

    def __call__(self, rng: np.random.Generator, count: int, *, size: int) -> Sequence[np.ndarray]: ...


def patients_in_turn(rng: np.random.Generator, anatomies: Sequence[str]) -> Iterator[Patient]:
    """Random patients without end, the anatomies in turn."""
    for anatomy in cycle(anatomies):
        yield Patient.random(int(rng.integers(2**31)), anatomy=anatomy)


def random_slice(
    rng: np.random.Generator, patient: Patient, *, thickness_mm: Sequence[float] = THICKNESS_MM, **grid
) -> PhantomSlice:
    """A slice of a patient at any height, as thick as one of some numbers. ``grid`` is of ``Patient.slice``."""
    thickness = float(rng.choice(thickness_mm))
    low, high = patient.z_range_mm
    return patient.slice(rng.uniform(low + 3, high - 3), thickness_mm=thickness, **grid)


@dataclass(frozen=True)
class PhantomSlices:
    """Noise-free slices in HU, float32 (count, size, size), four to a random patient, thin and thick; the anatomies
    in turn."""

    anatomies: tuple[str, ...] = ("abdomen",)
    thickness_mm: tuple[float, ...] = THICKNESS_MM
    sharp = True

    def __call__(self, rng: np.random.Generator, count: int, *, size: int = 512) -> np.ndarray:
        out, patients = np.empty((count, size, size), np.float32), patients_in_turn(rng, self.anatomies)
        for i in range(count):
            if i % 4 == 0:
                patient = next(patients)
            out[i] = random_slice(rng, patient, thickness_mm=self.thickness_mm, size=size).hu[0, 0].numpy()
        return out


@dataclass(frozen=True)
class ScanSlices:
    """Slices of a collection's full-dose scans, which have their scanner's edges and noise already."""

    collection: Collection
    sharp = False

    def __call__(self, rng: np.random.Generator, count: int, *, size: int = 512) -> list[np.ndarray]:
        return [images[0] for images in draw_scans(self.collection, rng, count, lambda case: (case.load_full(),))]


def draw_scans(collection, rng, count, load) -> list[tuple[np.ndarray, ...]]:
    """``count`` slices from random cases, at most sixteen from one reading of a case."""
    out: list[tuple[np.ndarray, ...]] = []
    while len(out) < count:
        scans = load(collection.cases[rng.integers(len(collection))])
        if scans[0].scale != "HU":
            raise ScanError(f"{collection.name}: training needs scans in HU, this one is {scans[0].scale}")
        for scan in scans:
            if NO_HU in scan.notes:
                warnings.warn(f"{', '.join(map(str, scan.source_files))}: {NO_HU}", stacklevel=2)
        depth = len(scans[0].values)
        chosen = rng.permutation(depth)[: min(16, count - len(out))]
        out += [tuple(scan.values[i].numpy().astype(np.float32) for scan in scans) for i in chosen]
    return out
