"""Photographs as a CT would show them: an endless stream of images at several doses and their noise maps.

A photograph's grey values are a density of water from 0 to 1, a pixel is 1 mm, and a parallel beam goes through it
(NA-Diff, section 3.2 and Eq. 1): with r the line integrals of the density, N ~ Poisson(d I0 exp(-μ r)) photons are
counted and r is measured as -log(max(N, 1) / (d I0)) / μ. Every sample is a function of (seed, n) alone, as in
:mod:`ldctlib.data.patches`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.ct.dose import Scanner, acquire
from ldctlib.ct.dose_scaling import dose_list
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.kernels import Kernel
from ldctlib.ct.noise_maps import std_map
from ldctlib.ct.projector import projector
from ldctlib.data.collection import Collection
from ldctlib.data.dicom_read import files_below
from ldctlib.data.natural import photographs, read_photograph
from ldctlib.data.patches import crops
from ldctlib.data.six_dose import DOSES
from ldctlib.data.stream import BankStream
from ldctlib.errors import ParameterError, ScanError
from ldctlib.image import check_images
from ldctlib.units import SOFT_TISSUE

MU_PER_MM, PHOTONS, VIEWS = 0.02, 1e5, 180
"""Of density 1; of a ray at full dose; over half a turn, one a degree."""

BATCH = 8  # photographs that are scanned at once


class _LinearHann(Kernel):
    """A Hann window up to 1/2 per mm, times the transfer of linear interpolation between detector bins of 1 mm."""

    def __call__(self, f_per_mm: Tensor) -> Tensor:
        return super().__call__(f_per_mm) * torch.sinc(f_per_mm).square()


KERNEL = _LinearHann(0.0, 0.5)
"""The projector's backprojection is band-limited: the blur of linear interpolation goes into the filter."""


def measure(p: Tensor, geometry: ParallelGeometry, doses, *, generator: torch.Generator | None = None) -> list[Tensor]:
    """Line integrals μ r, (B, 1, views, bins), as measured at each dose (Eq. 1, without its division by μ).

    All doses are made of the same random numbers: each has its own counts, but the noise of one is about that of
    another times the root of the inverse ratio of doses, as where one measured realisation is scaled to other doses.
    With counts that are thinned from one another, the correlation would be the root of the ratio, .22 of 5 and 100 %.
    """
    scanner = Scanner(PHOTONS, electronic_sd=0.0)
    measured = acquire(p, scanner, geometry, doses, common_random_numbers=True, generator=generator)
    # a ray without any count reads as one with a single count
    return [q.clamp(max=math.log(dose * PHOTONS)) for q, dose in zip(measured, doses, strict=True)]


def emulate(density: Tensor, doses, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Water densities (B, 1, N, N) from 0 to 1 as reconstructed without noise, (B, 1, N, N), and the noise alone at
    each dose, (doses, B, 1, N, N), both in units of the density.

    Backprojection is linear: noise is reconstructed by itself, and the image once for all doses.
    """
    doses = dose_list(doses)
    check_images(density)
    low, high = float(density.min()), float(density.max())
    if low < -0.01 or high > 1.01:
        raise ParameterError(f"densities of water go from 0 to 1, these from {low:g} to {high:g}: divide grey values")
    geometry = ParallelGeometry.for_image(density.shape[-1], 1.0, n_views=VIEWS)
    project = projector(geometry, density.device)
    p = project.A(MU_PER_MM * density).clamp(min=0)
    noise = [q - p for q in measure(p, geometry, doses, generator=generator)]
    images = project.fbp(torch.cat([p, *noise]), KERNEL) / MU_PER_MM
    images = images.view(len(doses) + 1, *density.shape)
    return images[0], images[1:]


@dataclass(frozen=True)
class EmulationConfig:
    """What is drawn for every image."""

    seed: int = 0
    size: int = 256  # pixels a side
    doses: tuple[float, ...] = DOSES
    n_photographs: int = 256  # parts of photographs in the bank, each at every dose
    refresh: int = 12_000  # samples between two drawings of the bank
    least_part: float = 0.5  # of a photograph's shorter side, so far as it has the pixels
    map_size: int = 5  # of the noise map's window
    folder: str | None = None  # of photographs (png, jpg, jpeg, with subfolders); None: scikit-image's own

    def __post_init__(self):
        dose_list(self.doses)
        if not 0 < self.least_part <= 1:
            raise ParameterError(f"least_part is a share in (0, 1], got {self.least_part}")
        if self.size < 32:
            raise ParameterError(f"size must be at least 32 pixels, got {self.size}")

    @property
    def embedded(self) -> str:
        """What the stream is made of."""
        source = "scikit-image's photographs" if self.folder is None else "a folder of photographs"
        return f"{source} as water densities in a simulated scanner"

    def open(self, collection: Collection | None = None) -> EmulatedPhotographs:
        """The stream; scans of patients have no place in it."""
        if collection is not None:
            raise ParameterError("photographs are emulated, not scans: name them by `folder`, without a collection")
        return EmulatedPhotographs(self)

    def tiny(self, multiple: int = 1) -> EmulationConfig:
        """Small images from a bank that is drawn at once, to see that a training starts."""
        return replace(self, size=64 + -64 % multiple, n_photographs=2)


class EmulatedPhotographs(BankStream):
    """``dataset[n]`` -> {"image_hu", "clean_hu", "noise_map_hu" (1, S, S) float32, "dose" scalar}: an endless stream.

    Densities 0 to 1 fill the soft-tissue window, [-160, 240] HU. "clean_hu" is the reconstruction without noise,
    "image_hu" the one at the dose, "noise_map_hu" the local standard deviation of their difference
    (:func:`~ldctlib.ct.noise_maps.std_map`).
    """

    bank_key, sample_key = 0xBA2B, 0x5A3F

    def __init__(self, config: EmulationConfig = EmulationConfig()):
        super().__init__(config)
        self._files = None if config.folder is None else photograph_files(config.folder)

    def density(self, rng: np.random.Generator) -> Tensor:
        """A square part of a random photograph, turned and scaled, as a density (1, S, S) from 0 to 1."""
        if self._files is None:
            photograph = photographs()[rng.integers(len(photographs()))]
        else:
            photograph = read_photograph(self._files[rng.integers(len(self._files))])
        shorter, size = min(photograph.shape), self.config.size
        least = min(shorter, max(size, round(self.config.least_part * shorter)))  # enlarged only where it is small
        part = torch.from_numpy(crops([photograph], int(rng.integers(least, shorter + 1)), rng)[0])[None, None]
        part = F.interpolate(part, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return part[0].clamp(0, 1)

    def draw_bank(self, rng: np.random.Generator) -> None:
        c = self.config
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        self._clean = np.empty((c.n_photographs, c.size, c.size), np.float16)
        self._noise = np.empty((c.n_photographs, len(c.doses), c.size, c.size), np.float16)
        for start in range(0, c.n_photographs, BATCH):
            part = slice(start, min(start + BATCH, c.n_photographs))
            densities = torch.stack([self.density(rng) for _ in range(part.stop - start)])
            clean, noise = emulate(densities, c.doses, generator=generator)
            self._clean[part] = (SOFT_TISSUE.low + SOFT_TISSUE.width * clean[:, 0]).numpy()
            self._noise[part] = (SOFT_TISSUE.width * noise[:, :, 0]).transpose(0, 1).numpy()

    def sample(self, n: int, rng: np.random.Generator) -> dict[str, Tensor]:
        c = self.config
        i, j = rng.integers(len(self._clean)), rng.integers(len(c.doses))
        images = crops([self._clean[i], self._noise[i, j]], c.size, rng)  # turned and mirrored together
        clean, noise = (torch.from_numpy(image)[None] for image in images)
        return {
            "image_hu": clean + noise,
            "clean_hu": clean,
            "noise_map_hu": std_map(noise[None], c.map_size)[0],
            "dose": torch.tensor(c.doses[j], dtype=torch.float32),
        }


def photograph_files(folder: str) -> tuple[Path, ...]:
    """The image files in a folder and below it, in order; raises ScanError where there is none."""
    kinds = {".png", ".jpg", ".jpeg"}
    files = tuple(path for path in files_below(Path(folder)) if path.suffix.lower() in kinds)
    if not files:
        raise ScanError(f"{folder} holds no photographs (png, jpg, jpeg): give their folder, or leave it out")
    return files
