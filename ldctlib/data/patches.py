"""Training pairs: aligned patches of a clean slice and the same slice with scanner noise.

Slices and noise come from two banks (:mod:`ldctlib.data.stream`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import Dataset

from ldctlib.ct.kernels import edge_blur_px
from ldctlib.data.banks import (
    PHOTONS,
    PIXELS_MM,
    THICKNESS_MM,
    PhantomSlices,
    ScanSlices,
    Slices,
    draw_scans,
    random_kernel,
    scanner_noise,
)
from ldctlib.data.collection import Collection
from ldctlib.data.natural import random_hu
from ldctlib.data.stream import BankStream
from ldctlib.errors import ParameterError, ScanError, ShapeError

BORDER = 4
"""Margin in pixels that is cut off after the edge blur, so that its border effect is not seen."""


@dataclass(frozen=True)
class PatchConfig:
    """What is drawn for every patch."""

    seed: int = 0
    patch: int = 64  # pixels a side
    size: int = 512  # pixels a side of the slices and noise images in the banks
    n_slices: int = 256  # phantom slices in the bank
    n_photographs: int = 128
    n_noises: int = 160
    refresh: int = 64_000  # samples between two drawings of the banks
    photograph_share: float = 0.4
    noise_sd_hu: tuple[float, float] | None = (6.0, 130.0)  # of the low-dose image, log-uniform; None: no such image
    edge_blur_range: tuple[float, float] = (0.4, 1.1)  # of the kernel's own edge blur; below 1 keeps finer detail
    mix_probability: float = 0.25  # of noise that adds two of the bank's, for spectra in between
    full_dose_noise_sd_hu: tuple[float, float] | None = None  # adds "full_dose_hu", an image with this noise
    anatomies: tuple[str, ...] = ("abdomen",)  # of the phantoms, in turn
    thickness_mm: tuple[float, ...] = THICKNESS_MM  # of their slices, each as often
    photons: tuple[float, float] = PHOTONS  # few make streaks behind bone
    block_mean: int = 1  # of clean images alone: a pixel of the patch is the mean of so many a side

    def __post_init__(self):
        for name in ("noise_sd_hu", "full_dose_noise_sd_hu"):
            pair = getattr(self, name)
            if pair is not None and not 0 < pair[0] < pair[1]:
                raise ParameterError(f"{name} is a rising pair of HU above 0, got {pair}")
        if self.noise_sd_hu is None and self.full_dose_noise_sd_hu is not None:
            raise ParameterError("without noise_sd_hu no noise is simulated: leave out full_dose_noise_sd_hu")
        if self.block_mean < 1 or (self.block_mean > 1 and self.noise_sd_hu is not None):
            raise ParameterError(f"block_mean is 1, or more with noise_sd_hu=None; got {self.block_mean}")
        if self.patch < 16 or self.patch * self.block_mean > 512:
            raise ParameterError(f"patch must lie between 16 and {512 // self.block_mean} pixels, got {self.patch}")

    @property
    def embedded(self) -> str:
        """What the stream without a collection is made of."""
        noise = "no noise" if self.noise_sd_hu is None else "simulated noise"
        return f"phantom and scikit-image's photographs, {noise}"

    def open(self, collection: Collection | None = None) -> Dataset:
        """The stream of phantoms and photographs, of a collection's pairs, or of its full-dose scans."""
        if collection is None:
            return NoisePatches(self)
        if len(collection.pairs()) and self.noise_sd_hu is not None:
            return PairedPatches(collection, self)
        return NoisePatches(self, slices=ScanSlices(collection))

    def tiny(self, multiple: int = 1) -> PatchConfig:
        """Small patches from banks that are drawn at once, to see that a training starts."""
        patch = max(16, 64 // self.block_mean)
        patch += -patch % multiple
        return replace(self, patch=patch, size=max(128, 11 * patch // 8), n_slices=4, n_photographs=2, n_noises=2)


def _sample(ldct, target, full_dose, config: PatchConfig) -> dict[str, torch.Tensor]:
    """What both datasets give; the stated noise has a floor, because a loss divides by it."""
    sd = max(float((ldct - target).std()), 0.5 * config.noise_sd_hu[0])
    sample = {
        "ldct_hu": torch.from_numpy(ldct[None]),
        "target_hu": torch.from_numpy(target[None]),
        "noise_sd_hu": torch.tensor(sd, dtype=torch.float32),
    }
    if config.full_dose_noise_sd_hu is not None:
        sample["full_dose_hu"] = torch.from_numpy(full_dose[None])
    return sample


class NoisePatches(BankStream):
    """``dataset[n]`` -> {"ldct_hu", "target_hu" (1, P, P) float32 in HU, "noise_sd_hu" scalar}: an endless stream.

    Without ``config.noise_sd_hu`` it is {"target_hu"} alone, as an unconditional model learns from.
    The target is noise-free. With ``config.full_dose_noise_sd_hu`` also "full_dose_hu", the same object as a full-dose
    scan shows it, with noise of its own that is independent of the low dose's; slices that are scans are that already.
    """

    bank_key, sample_key = 0xBA27, 0x5A3B

    def __init__(self, config: PatchConfig = PatchConfig(), *, slices: Slices | None = None):
        super().__init__(config)
        self._draw_slices = slices or PhantomSlices(config.anatomies, config.thickness_mm)

    def draw_bank(self, rng: np.random.Generator) -> None:
        c = self.config
        self._slices = [image.astype(np.float16) for image in self._draw_slices(rng, c.n_slices, size=c.size)]
        side = max(128, c.patch * c.block_mean + 2 * BORDER)
        photographs = (random_hu(rng, min_size=side) for _ in range(c.n_photographs))
        self._photographs = [image.astype(np.float16) for image in photographs]
        if c.noise_sd_hu is not None:
            bodies = [image.astype(np.float32) for image in self._slices[:: max(1, c.n_slices // 32)]]
            noises, self._blur = scanner_noise(rng, c.n_noises, size=c.size, bodies=bodies, photons=c.photons)
            self._noises = noises.astype(np.float16)

    def sample(self, n: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        c = self.config
        side = c.patch * c.block_mean + 2 * BORDER
        if rng.random() < c.photograph_share:
            image, sharp = self._photographs[rng.integers(len(self._photographs))], True
            clean = crops([image], side, rng)[0]
        else:
            image, sharp = self._slices[rng.integers(len(self._slices))], self._draw_slices.sharp
            if min(image.shape) < side:  # whole slices
                image = np.pad(image, BORDER, mode="edge")
            clean = _body_crops([image], side, rng)[0]
        if c.noise_sd_hu is None:
            blur = edge_blur_px(random_kernel(rng), float(rng.choice(PIXELS_MM)))
            clean = self._blurred(clean, blur * rng.uniform(*c.edge_blur_range) if sharp else 0.0)
            blocks = clean.reshape(c.patch, c.block_mean, c.patch, c.block_mean)
            return {"target_hu": torch.from_numpy(blocks.mean((1, 3))[None])}
        noise, blur = self._noise(rng)
        if rng.random() < c.mix_probability:
            weight = rng.uniform(0, 1)
            noise = math.sqrt(weight) * noise + math.sqrt(1 - weight) * self._noise(rng)[0]
        sigma_px = blur * rng.uniform(*c.edge_blur_range)
        clean = self._blurred(clean, sigma_px if sharp else 0.0)
        sd = float(np.exp(rng.uniform(*np.log(c.noise_sd_hu))))
        ldct = clean + sd * noise
        if rng.random() < 0.5:
            ldct = np.maximum(ldct, -1024.0)  # scanners store nothing below
        full_dose = clean
        if c.full_dose_noise_sd_hu is not None and self._draw_slices.sharp:
            full_dose = clean + float(np.exp(rng.uniform(*np.log(c.full_dose_noise_sd_hu)))) * self._noise(rng)[0]
        return _sample(ldct, clean, full_dose, c)

    def _noise(self, rng):
        i = rng.integers(len(self._noises))
        return crops([self._noises[i]], self.config.patch, rng, margin=0.12)[0], float(self._blur[i])

    @staticmethod
    def _blurred(image, sigma_px):
        """The scanner's edges: the target is the noise-free image of the same kernel, not the object."""
        from scipy.ndimage import gaussian_filter

        if sigma_px > 0.15:
            image = gaussian_filter(image, sigma_px, truncate=BORDER / sigma_px if sigma_px > 1 else 4.0)
        return np.ascontiguousarray(image[BORDER:-BORDER, BORDER:-BORDER])


class PairedPatches(BankStream):
    """The same stream from a collection of real pairs: the target is then the full-dose scan with its own noise.

    A bank of ``config.n_slices`` slice pairs is drawn anew every ``config.refresh`` samples.
    """

    bank_key, sample_key = 0xBA28, 0x5A3C

    def __init__(self, collection: Collection, config: PatchConfig = PatchConfig()):
        super().__init__(config)
        self._collection = collection.pairs()
        if not len(self._collection):
            raise ScanError(f"{collection.name} holds no case with both doses: give pairs, or simulate with ScanSlices")

    def draw_bank(self, rng: np.random.Generator) -> None:
        self._bank = draw_scans(self._collection, rng, self.config.n_slices, lambda case: case.load_pair())

    def sample(self, n: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        c = self.config
        full, low = _body_crops(self._bank[rng.integers(len(self._bank))], c.patch, rng)
        return _sample(low, full, full, c)


def crops(images, p: int, rng, margin: float = 0.0) -> list[np.ndarray]:
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
        patches = crops(images, p, rng)
        if patches[0][p // 2, p // 2] > -300 or rng.random() < 0.1:
            break
    return patches
