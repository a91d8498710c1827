"""Does a generator obey its noise condition? Strength and dose response of the noise in generated images.

A generated image has no noise-free partner. Its noise is measured inside one tissue, after a Gaussian high-pass whose
gain for the expected spectrum is known; or in the difference of two images of one condition and anatomy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldctlib.ct.noise_model import NoiseModel
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import check_images, gaussian_blur, gaussian_taps
from ldctlib.metrics.statistics import paired_bootstrap

HIGHPASS_MM, ERODE_MM = 1.5, 3.0
LEAST_PIXELS = 50
"""Of an eroded mask that a standard deviation is measured in."""


class NoiseSD(NamedTuple):
    """Noise in every image's mask."""

    sd_hu: Tensor  # (B,) float64, NaN where fewer than LEAST_PIXELS are left
    condition_hu: Tensor  # (B,) root mean square of the conditioned map there; NaN without a map
    pixels: Tensor  # (B,) int64 pixels of the eroded mask

    @property
    def ratio(self) -> Tensor:
        """Measured over conditioned: 1 for a generator that obeys."""
        return self.sd_hu / self.condition_hu


class DoseResponse(NamedTuple):
    """How noise follows the dose."""

    slope: float  # of log sd over log dose: -1/2 for quantum noise
    low: float  # interval of the slope; NaN for a few images
    high: float
    spearman: float  # mean over images of the rank correlation: -1 where every higher dose has less noise


def noise_sd(
    images_hu: Tensor,
    masks: Tensor,
    *,
    pixel_mm: float,
    noise: NoiseModel | None = None,
    other_hu: Tensor | None = None,
    map_hu: Tensor | None = None,
    highpass_mm: float | None = HIGHPASS_MM,
    erode_mm: float = ERODE_MM,
) -> NoiseSD:
    """Standard deviation of the noise of images (B, 1, H, W) inside masks.

    masks : bool of the images' shape, one even tissue each, without vessels and fat
    noise : its spectrum, of any strength, for the gain of the high-pass
    other_hu : images of the same conditions and another seed: then the noise is the difference over √2
    map_hu : the conditioned map of standard deviations, for :attr:`NoiseSD.ratio`
    highpass_mm : standard deviation of the Gaussian that is subtracted, blurred inside the mask alone; None removes the
        mask's mean alone, which does for differences
    erode_mm : pixels that are nearer to the mask's border are not measured in

    Texture that passes the filter counts as noise. On phantoms of 1.5 mm pixels it adds up to 7 % in the liver and 5 %
    in the spleen at 12 HU of noise (full dose), 2 % at a quarter of the dose; in muscle with its streaks of fat 80 %,
    so that muscle needs a difference. Gaussians below a millimetre miss less texture, and more of the noise.
    """
    residual = _residual(images_hu, masks, pixel_mm, noise, other_hu, highpass_mm)
    inner = _eroded(masks, erode_mm / pixel_mm).to(residual.device)
    count = inner.flatten(1).sum(dim=1)

    def mean(values: Tensor) -> Tensor:
        total = torch.where(inner, values, 0.0).flatten(1).sum(dim=1)
        return torch.where(count >= LEAST_PIXELS, total / count, torch.nan)

    variance = mean(residual.square()) - mean(residual).square()
    condition = torch.full_like(variance, torch.nan)
    if map_hu is not None:
        if map_hu.shape != images_hu.shape:
            raise ShapeError(f"the map must have the images' shape {tuple(images_hu.shape)}, got {tuple(map_hu.shape)}")
        condition = mean(map_hu.to(residual).square()).sqrt()
    gain = 1.0 if highpass_mm is None else _gain(noise, highpass_mm, images_hu.shape[-2:])
    return NoiseSD(variance.sqrt() / gain, condition, count)


def dose_response(doses, sds, *, level: float = 0.95, seed: int = 0) -> DoseResponse:
    """Slope of log sd over log dose by least squares, and the rank correlation, image by image.

    doses : (D,) fractions of full dose, two different ones at least
    sds : (D,), or (n, D) of n images; images with a NaN are left out. Their mean has a bootstrap interval
    """
    from scipy.stats import spearmanr

    doses, sds = np.asarray(doses, float), np.atleast_2d(np.asarray(sds, float))
    if doses.ndim != 1 or sds.ndim != 2 or sds.shape[1] != len(doses) or len(np.unique(doses)) < 2:
        raise ShapeError(f"needs sds (n, D) at D doses, two different ones at least; got {sds.shape}, {doses.shape}")
    sds = sds[~np.isnan(sds).any(axis=1)]
    if not len(sds) or not (sds > 0).all() or not (doses > 0).all():
        raise ParameterError("a dose response needs doses and standard deviations above 0, of one image at least")
    x = np.log(doses) - np.log(doses).mean()
    slopes = np.log(sds) @ x / (x @ x)
    slope, low, high = paired_bootstrap(slopes, np.arange(len(slopes)), level=level, seed=seed)
    return DoseResponse(slope, low, high, float(np.mean([spearmanr(doses, row).statistic for row in sds])))


def _residual(images_hu, masks, pixel_mm, noise, other_hu, highpass_mm) -> Tensor:
    """What the high-pass leaves of the images, or of half their difference in variance, (B, 1, H, W) float64."""
    check_images(images_hu, *([] if other_hu is None else [other_hu]))
    if masks.shape != images_hu.shape or masks.dtype != torch.bool:
        raise ShapeError(f"masks are bool of the images' shape {tuple(images_hu.shape)}, got {tuple(masks.shape)}")
    if not 0 < pixel_mm < math.inf or (highpass_mm is not None and not highpass_mm > 0):
        raise ParameterError(f"pixel_mm and highpass_mm must be > 0, got {pixel_mm} and {highpass_mm}")
    if noise is None and highpass_mm is not None:
        raise ParameterError("the high-pass takes part of the noise: give its spectrum (noise=) or highpass_mm=None")
    if noise is not None and not math.isclose(noise.pixel_mm, pixel_mm, rel_tol=0.01):
        raise ParameterError(f"the noise's pixels of {noise.pixel_mm:g} mm are not the images' of {pixel_mm:g} mm")
    x = images_hu.float() if other_hu is None else (images_hu.float() - other_hu.float()) / math.sqrt(2)
    if highpass_mm is not None:
        weight, sigma = masks.to(x), highpass_mm / pixel_mm
        x = x - gaussian_blur(x * weight, sigma) / gaussian_blur(weight, sigma).clamp(min=1e-6)
    return x.double()


def _gain(noise: NoiseModel, highpass_mm: float, shape) -> float:
    """Standard deviation of the noise after the high-pass over that before, with the filter's own taps."""
    sigma = highpass_mm / noise.pixel_mm
    radius = max(1, int(4 * sigma + 0.5))
    taps, offsets = gaussian_taps(sigma, radius).numpy(), np.arange(-radius, radius + 1)
    lines = (np.cos(2 * np.pi * np.outer(np.fft.fftfreq(n), offsets)) @ taps for n in shape)
    power = noise.psd(*shape)
    return math.sqrt((power * (1 - np.outer(*lines)) ** 2).sum() / power.sum())


def _eroded(masks: Tensor, margin_px: float) -> Tensor:
    """Pixels of the masks whose distance from what is outside them, or outside the image, is above ``margin_px``."""
    from scipy import ndimage

    padded = np.pad(masks[:, 0].cpu().numpy(), ((0, 0), (1, 1), (1, 1)))
    inner = [ndimage.distance_transform_edt(mask)[1:-1, 1:-1] > margin_px for mask in padded]
    return torch.from_numpy(np.stack(inner))[:, None]
