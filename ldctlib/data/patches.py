"""Training pairs: aligned patches of a clean slice and the same slice with scanner noise.

Slices and noise come from two banks that are drawn anew now and then, so that the network and not the simulator sets
the pace. Every sample is a function of (seed, n) alone: training resumes exactly, and several processes share one
stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from ldctlib.ct.dose import Scanner, noise_only
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.phantom import Patient
from ldctlib.ct.projector import Kernel, projector
from ldctlib.data.cases import Collection
from ldctlib.data.natural import random_hu
from ldctlib.errors import ParameterError, ScanError, ShapeError
from ldctlib.units import hu_to_mu

PIXELS_MM = (0.62, 0.68, 0.74, 0.80, 0.86, 0.94)
"""Pixel sizes of the noise bank: a few values, so that the projectors stay cached."""

ENDLESS = 2**40  # samples

BORDER = 4  # pixels around a patch, for the blur that edges get


def random_kernel(rng: np.random.Generator) -> Kernel:
    """A reconstruction kernel between a soft one and a sharp one that reaches past the pixel's Nyquist frequency."""
    if rng.random() < 0.45:
        return Kernel(0.0, rng.uniform(0.5, 1.15), tilt=rng.uniform(0, 0.15))
    return Kernel(rng.uniform(0.1, 0.65), rng.uniform(0.75, 1.25), tilt=rng.uniform(0, 0.25))


def phantom_slices(rng: np.random.Generator, count: int, *, size: int = 512) -> np.ndarray:
    """``count`` noise-free slices in HU, float32 (count, size, size), four to a patient, thin and thick."""
    out = np.empty((count, size, size), np.float32)
    for i in range(count):
        if i % 4 == 0:
            patient = Patient.random(int(rng.integers(2**31)))
            low, high = patient.z_range_mm
        thickness = rng.choice((1.0, 1.0, 3.0))
        z = rng.uniform(low + 3, high - 3)
        out[i] = patient.slice(z, size=size, thickness_mm=thickness).hu[0, 0].numpy()
    return out


def edge_blur_px(kernel: Kernel, pixel_mm: float, aperture_mm: float = 0.3) -> float:
    """Standard deviation, in pixels, of the Gaussian that blurs edges about as a scan with this kernel does.

    A Gaussian's MTF falls to a half at 0.187 / sigma; the kernel's half is matched, and the focal spot's and
    detector's aperture is added in quadrature.
    """
    f = torch.linspace(0, 2, 2001)
    half = float(f[(kernel(f) < 0.5).nonzero()[0, 0]]) if bool((kernel(f) < 0.5).any()) else 2.0
    return math.hypot(0.187 / half, aperture_mm / math.sqrt(12) * 1.5) / pixel_mm


def scanner_noise(
    rng: np.random.Generator, count: int, *, size: int = 512, bodies=None
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` noise images of unit standard deviation at their centre, float32 (count, size, size), and for each
    the blur in pixels that its kernel gives to edges (:func:`edge_blur_px`).

    Photon noise of a body's sinogram, detector bins of half a pixel (three in four) or one, reconstructed alone:
    log(noisy) - log(clean) through FBP, which keeps streaks and everything else that varies over the image.
    ``bodies`` (n, H, W) in HU lends the attenuation; by default the bank draws phantoms of its own.
    """
    if bodies is None:
        bodies = phantom_slices(rng, max(4, count // 16), size=256)
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
        scanner = Scanner(
            photons=float(np.exp(rng.uniform(np.log(2e4), np.log(5e5)))),
            bowtie_radius_mm=float(rng.uniform(130, 200)) if rng.random() < 0.7 else None,
            modulation=float(rng.uniform(0, 0.5)),
        )
        kernel = random_kernel(rng)
        blur[i] = edge_blur_px(kernel, pixel_mm)
        noise = noise_only(line, geometry, scanner, kernel=kernel, generator=generator)[0, 0].numpy()
        out[i] = noise / max(float(noise[centre].std()), 1e-6)
    return out, blur


@dataclass(frozen=True)
class PatchConfig:
    """What is drawn for every patch."""

    seed: int = 0
    patch: int = 64  # pixels a side
    size: int = 512  # pixels a side of the slices and noise images in the banks
    slices: int = 256  # phantom slices in the bank
    photographs: int = 128
    noises: int = 160
    refresh: int = 64_000  # samples between two drawings of the banks
    photograph_share: float = 0.4
    sd_low_hu: float = 6.0
    sd_high_hu: float = 130.0
    blur: tuple[float, float] = (0.4, 1.1)  # of the kernel's own edge blur; below 1, phantoms keep finer detail
    mix: float = 0.25  # share of samples whose noise adds two of the bank's, for spectra in between
    full_sd_hu: tuple[float, float] | None = None  # where given, samples hold a full-dose image with this noise too

    def __post_init__(self):
        if not 0 < self.sd_low_hu < self.sd_high_hu:
            raise ParameterError(f"the noise range must rise, got {self.sd_low_hu} to {self.sd_high_hu} HU")
        if self.patch < 16 or self.patch > 512:
            raise ParameterError(f"patch must lie between 16 and 512 pixels, got {self.patch}")
        if self.full_sd_hu is not None and not 0 < self.full_sd_hu[0] < self.full_sd_hu[1]:
            raise ParameterError(f"full_sd_hu is a rising pair of HU above 0, got {self.full_sd_hu}")


def _sample(n: int, ldct, clean, full, config: PatchConfig) -> dict[str, torch.Tensor]:
    """What both datasets give; the stated noise has a floor, because a loss divides by it."""
    sd = max(float((ldct - clean).std()), 0.5 * config.sd_low_hu)
    sample = {
        "ldct_hu": torch.from_numpy(ldct[None]),
        "clean_hu": torch.from_numpy(clean[None]),
        "sd_hu": torch.tensor(sd, dtype=torch.float32),
        "n": torch.tensor(n),
    }
    if config.full_sd_hu is not None:
        sample["full_hu"] = torch.from_numpy(full[None])
    return sample


class NoisePatches(Dataset):
    """``dataset[n]`` -> {"ldct_hu", "clean_hu" (1, P, P) float32, "sd_hu", "n" scalars}: an endless stream.

    With ``config.full_sd_hu`` also "full_hu", the same object as a full-dose scan shows it, with noise of its own that
    is independent of the low dose's; slices that are scans are that already.
    """

    def __init__(self, config: PatchConfig = PatchConfig(), *, draw_slices=phantom_slices):
        """``draw_slices(rng, count, size=...)`` gives the slices of a bank: phantoms, or :func:`scan_slices`."""
        self.config, self._draw_slices = config, draw_slices
        self._generation = None

    def __len__(self) -> int:
        return ENDLESS

    def _banks(self, n: int):
        generation = n // self.config.refresh
        if generation != self._generation:
            rng = np.random.default_rng([self.config.seed, 0xBA27, generation])
            self._slices = [
                image.astype(np.float16) for image in self._draw_slices(rng, self.config.slices, size=self.config.size)
            ]
            self._photographs = [
                random_hu(rng, min_size=max(128, self.config.patch + 2 * BORDER)).astype(np.float16)
                for _ in range(self.config.photographs)
            ]
            bodies = [image.astype(np.float32) for image in self._slices[:: max(1, self.config.slices // 32)]]
            noises, self._blur = scanner_noise(rng, self.config.noises, size=self.config.size, bodies=bodies)
            self._noises = noises.astype(np.float16)
            self._generation = generation

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        self._banks(n)
        c = self.config
        rng = np.random.default_rng([c.seed, 0x5A3B, n])
        if rng.random() < c.photograph_share:
            clean, sharp = self._crop(self._photographs[rng.integers(len(self._photographs))], rng, border=BORDER), True
        else:
            clean = self._body_crop(self._slices[rng.integers(len(self._slices))], rng)
            sharp = self._draw_slices is phantom_slices  # a scan has its scanner's edges already
        noise, blur = self._noise(rng)
        if rng.random() < c.mix:
            weight = rng.uniform(0, 1)
            noise = math.sqrt(weight) * noise + math.sqrt(1 - weight) * self._noise(rng)[0]
        sigma_px = blur * rng.uniform(*c.blur)
        clean = self._blurred(clean, sigma_px if sharp else 0.0)
        sd = float(np.exp(rng.uniform(np.log(c.sd_low_hu), np.log(c.sd_high_hu))))
        ldct = clean + sd * noise
        if rng.random() < 0.5:
            ldct = np.maximum(ldct, -1024.0)  # scanners store nothing below
        full = clean
        if c.full_sd_hu is not None and self._draw_slices is phantom_slices:
            full = clean + float(np.exp(rng.uniform(*np.log(c.full_sd_hu)))) * self._noise(rng)[0]
        return _sample(n, ldct, clean, full, c)

    def _noise(self, rng):
        i = rng.integers(len(self._noises))
        return self._crop(self._noises[i], rng, margin=0.12), float(self._blur[i])

    @staticmethod
    def _blurred(image, sigma_px):
        """The scanner's edges: the target is the noise-free image of the same kernel, not the object."""
        from scipy.ndimage import gaussian_filter

        if sigma_px > 0.15:
            image = gaussian_filter(image, sigma_px, truncate=BORDER / sigma_px if sigma_px > 1 else 4.0)
        return np.ascontiguousarray(image[BORDER:-BORDER, BORDER:-BORDER])

    def _body_crop(self, image, rng):
        if min(image.shape) < self.config.patch + 2 * BORDER:  # whole slices
            image = np.pad(image, BORDER, mode="edge")
        return _body_crops([image], self.config.patch + 2 * BORDER, rng)[0]

    def _crop(self, image, rng, margin: float = 0.0, border: int = 0):
        return _crops([image], self.config.patch + 2 * border, rng, margin)[0]


class PairedPatches(Dataset):
    """The same stream from a collection of real pairs: "clean_hu" is then the full-dose scan with its own noise.

    A bank of ``config.slices`` slice pairs is drawn anew every ``config.refresh`` samples.
    """

    def __init__(self, collection: Collection, config: PatchConfig = PatchConfig()):
        self.config, self._collection = config, collection.pairs()
        if not len(self._collection):
            raise ScanError(
                f"{collection.name} holds no case with both doses: give pairs, or use scan_slices to "
                "train on full-dose scans with simulated noise"
            )
        self._generation = None

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        c = self.config
        if n // c.refresh != self._generation:
            self._generation = n // c.refresh
            rng = np.random.default_rng([c.seed, 0xBA28, self._generation])
            self._bank = _draw_scans(self._collection, rng, c.slices, lambda case: case.load_pair())
        rng = np.random.default_rng([c.seed, 0x5A3C, n])
        full, low = _body_crops(self._bank[rng.integers(len(self._bank))], c.patch, rng)
        return _sample(n, low, full, full, c)


def scan_slices(collection: Collection):
    """``draw_slices`` for :class:`NoisePatches` from the full-dose scans of a collection."""

    def draw(rng: np.random.Generator, count: int, *, size: int = 512) -> list[np.ndarray]:
        return [images[0] for images in _draw_scans(collection, rng, count, lambda case: (case.load_full(),))]

    return draw


def _draw_scans(collection, rng, count, load) -> list[tuple[np.ndarray, ...]]:
    """``count`` slices from random cases, at most sixteen from one reading of a case."""
    out: list[tuple[np.ndarray, ...]] = []
    while len(out) < count:
        scans = load(collection.cases[rng.integers(len(collection))])
        if scans[0].scale != "HU":
            raise ScanError(f"{collection.name}: training needs scans in HU, this one is {scans[0].scale}")
        depth = len(scans[0].values)
        chosen = rng.permutation(depth)[: min(16, count - len(out))]
        out += [tuple(scan.values[i].numpy().astype(np.float32) for scan in scans) for i in chosen]
    return out


def _crops(images, p: int, rng, margin: float = 0.0) -> list[np.ndarray]:
    """The same turned and mirrored square of each image, as float32; ``margin`` is the share of the image to keep off
    at its edge (a field of view is round)."""
    h, w = images[0].shape
    dy, dx = int(margin * h), int(margin * w)
    if h - 2 * dy < p or w - 2 * dx < p:
        raise ShapeError(f"a slice of {h} x {w} pixels is too small for patches of {p}: use smaller patches")
    y, x = rng.integers(dy, h - p - dy + 1), rng.integers(dx, w - p - dx + 1)
    flips = [axis for axis in (0, 1) if rng.random() < 0.5]
    turn = rng.random() < 0.5
    out = []
    for image in images:
        patch = np.flip(image[y : y + p, x : x + p].astype(np.float32), flips)
        out.append(np.ascontiguousarray(patch.T if turn else patch))
    return out


def _body_crops(images, p: int, rng) -> list[np.ndarray]:
    """Crops that are not all air: nine in ten have soft tissue at their centre."""
    for _ in range(6):
        patches = _crops(images, p, rng)
        if patches[0][p // 2, p // 2] > -300 or rng.random() < 0.1:
            break
    return patches
