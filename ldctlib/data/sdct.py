"""CT slices with anatomy masks at random doses: a stream of phantoms, and arrays of one's own in the same form.

Every sample is a function of (seed, n) alone, as in :mod:`ldctlib.data.patches`: {"image_hu" (1, S, S) float32 in HU,
"mask" (S, S) uint8 of :data:`~ldctlib.data.anatomy_masks.CLASSES`, "dose", "noise_sd_hu", "pixel_mm"}; what is not
known is NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.data.anatomy_masks import TABLES, check_anatomy
from ldctlib.data.banks import scanner_noise
from ldctlib.data.captions import captioned_slices
from ldctlib.data.collection import Collection
from ldctlib.data.stream import BankStream, Endless
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import check_images, gaussian_blur
from ldctlib.units import AIR_HU


@dataclass(frozen=True)
class LabelledConfig:
    """What is drawn for every image with its mask."""

    seed: int = 0
    size: int = 128  # pixels a side of an image
    draw_size: int = 192  # of the slices in the bank
    n_slices: int = 600
    n_noises: int = 32
    noise_size: int = 256  # pixels a side of the noise in the bank, at least ``size``
    refresh: int = 24_000  # samples between two drawings of the bank
    doses: tuple[float, float] = (0.05, 1.0)  # log-uniform, a share of full dose
    full_dose_noise_sd_hu: tuple[float, float] = (6.0, 16.0)  # log-uniform: scanners, patients and kernels differ
    shown: tuple[float, float] = (0.7, 1.15)  # side of what an image shows, in sides of the slice
    edge_blur_px: tuple[float, float] = (0.3, 0.8)  # of a scanner's kernel
    shift_hu: float = 15.0  # of the whole image, up to
    scale_hu: float = 0.05  # the same of its contrast
    anatomies: tuple[str, ...] = ("abdomen", "thorax")

    embedded = "phantom slices with anatomy masks, simulated noise"

    def __post_init__(self):
        for name in ("doses", "full_dose_noise_sd_hu", "shown", "edge_blur_px"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ParameterError(f"{name} is a pair (low, high) above 0, got {(low, high)}")

    def open(self, collection: Collection | None = None) -> LabelledSlices:
        """The stream of phantoms; scans have no masks (:class:`ArraySlices` takes images that have some)."""
        if collection is not None:
            raise ParameterError("masks are a phantom's: give scans with masks as arrays, data.sdct.ArraySlices")
        return LabelledSlices(self)

    def tiny(self, multiple: int = 1) -> LabelledConfig:
        """Few small slices that are drawn at once, to see that a training starts."""
        size = 32 + -32 % multiple
        return replace(self, size=size, draw_size=64, n_slices=2, n_noises=1, noise_size=max(64, size))


class LabelledSlices(BankStream):
    """Phantom slices, warped a little, with a scanner's blur and noise: an endless stream of samples as above.

    The noise has the standard deviation "noise_sd_hu" = full dose's / sqrt(dose) over the image.
    """

    bank_key, sample_key = 0xBA2B, 0x5A3F

    def draw_bank(self, rng: np.random.Generator) -> None:
        c = self.config
        self._slices = captioned_slices(rng, c.n_slices, c.draw_size, c.anatomies)
        bodies = [drawn.hu.astype(np.float32) for drawn in self._slices[:: max(1, c.n_slices // 16)]]
        noises = scanner_noise(rng, c.n_noises, size=max(c.noise_size, c.size), bodies=bodies)[0]
        self._noises = torch.from_numpy(noises.astype(np.float16))

    def sample(self, n: int, rng: np.random.Generator) -> dict[str, Tensor]:
        c = self.config
        drawn = self._slices[rng.integers(len(self._slices))]
        image = torch.from_numpy(drawn.hu.astype(np.float32))[None, None]
        mask = torch.from_numpy(TABLES["phantom"][drawn.labels])
        image, mask, shown = warp(image, mask, c.size, c.shown, rng)
        image = gaussian_blur(image, float(rng.uniform(*c.edge_blur_px)))[0]
        image = image * float(1 + c.scale_hu * rng.uniform(-1, 1)) + float(c.shift_hu * rng.uniform(-1, 1))
        dose, full_sd = (float(np.exp(rng.uniform(*np.log(span)))) for span in (c.doses, c.full_dose_noise_sd_hu))
        sd = full_sd / math.sqrt(dose)
        pixel_mm = drawn.pixel_mm * c.draw_size * shown / c.size
        return _sample(image + sd * self._noise(rng), mask, dose, sd, pixel_mm)

    def _noise(self, rng: np.random.Generator) -> Tensor:
        """A square of a noise image of the bank, also a larger one on the same grid, as (1, S, S) of unit deviation."""
        size, whole = self.config.size, self._noises.shape[-1]
        side = int(rng.integers(size, whole + 1)) if rng.random() < 0.5 else size
        top, left = (int(k) for k in rng.integers(0, whole - side + 1, 2))
        noise = self._noises[rng.integers(len(self._noises)), top : top + side, left : left + side].float()[None, None]
        if side != size:
            noise = F.interpolate(noise, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return torch.rot90(noise / noise.std(), int(rng.integers(4)), (2, 3))[0]


def warp(
    image: Tensor, mask: Tensor, size: int, shown: tuple[float, float], rng: np.random.Generator
) -> tuple[Tensor, Tensor, float]:
    """Another patient in another position: image (1, 1, H, W) in HU and mask (H, W), turned by up to 8 degrees, moved,
    stretched and bent smoothly alike, on ``size`` x ``size`` pixels. Left stays left: organs have their sides.

    shown : side of what is shown in sides of the image, uniform between both. It is returned as the third.
    """
    side = float(rng.uniform(*shown))
    angle, stretch = math.radians(float(rng.uniform(-8, 8))), float(np.exp(rng.uniform(-0.08, 0.08)))
    moved = abs(1 - side) * rng.uniform(-1, 1, 2)
    a, b = side * math.cos(angle), side * math.sin(angle)
    theta = torch.tensor([[a * stretch, -b * stretch, moved[0]], [b / stretch, a / stretch, moved[1]]])
    grid = F.affine_grid(theta[None].float(), [1, 1, size, size], align_corners=False)
    bend = torch.from_numpy(rng.normal(0, 0.02, (1, 2, 5, 5)).astype(np.float32))
    bend = F.interpolate(bend, (size, size), mode="bicubic", align_corners=True)
    grid = grid + bend.permute(0, 2, 3, 1)
    # what lies outside the image is air
    image = F.grid_sample(image - AIR_HU, grid, mode="bilinear", align_corners=False) + AIR_HU
    mask = F.grid_sample(mask[None, None].float(), grid, mode="nearest", align_corners=False)
    return image, mask[0, 0].to(torch.uint8), side


def _sample(image: Tensor, mask: Tensor, dose: float, noise_sd_hu: float, pixel_mm: float) -> dict[str, Tensor]:
    told = {"dose": dose, "noise_sd_hu": noise_sd_hu, "pixel_mm": pixel_mm}
    return {"image_hu": image, "mask": mask} | {k: torch.tensor(v, dtype=torch.float32) for k, v in told.items()}


class ArraySlices(Endless):
    """Images (N, 1, S, S) in HU with masks (N, 1, S, S) as an endless stream of samples as above.

    synthetic : a second pair of images and masks, drawn with probability ``share``, as real and synthetic data are
    mixed (NA-Diff, Table 6).
    augment : warp each anew and change its HU a little, as :class:`LabelledSlices` does.
    """

    def __init__(
        self,
        images_hu: Tensor,
        masks: Tensor,
        *,
        synthetic: tuple[Tensor, Tensor] | None = None,
        share: float = 0.5,
        augment: bool = True,
        seed: int = 0,
    ):
        self._parts = [(images_hu, masks)] if synthetic is None else [(images_hu, masks), synthetic]
        for images, of in self._parts:
            check_images(images)
            check_anatomy(of)
            if of.shape != images.shape or images.shape[-1] != images.shape[-2]:
                shapes = f"{tuple(images.shape)} and {tuple(of.shape)}"
                raise ShapeError(f"images and masks must be square and of one shape, got {shapes}")
        if not 0 <= share <= 1:
            raise ParameterError(f"share lies in [0, 1], got {share}")
        self._share, self._augment, self._seed = share if synthetic is not None else 0.0, augment, seed

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self._seed, 0x5A40, n])
        images, masks = self._parts[int(rng.random() < self._share)]
        i = int(rng.integers(len(images)))
        image, mask = images[i, None].float(), masks[i, 0].to(torch.uint8)
        if self._augment:
            image, mask, _ = warp(image, mask, image.shape[-1], (0.85, 1.05), rng)
            image = image * float(rng.uniform(0.95, 1.05)) + float(rng.uniform(-15, 15))
        return _sample(image[0], mask, math.nan, math.nan, math.nan)
