"""What a denoiser may know of an image's noise: its strength, its spectrum, how it varies over the image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ldctlib.ct.nps import cut_rois, nps, soft_tissue_rois
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import gaussian_blur


@dataclass(frozen=True)
class NoiseModel:
    """Noise of one image: standard deviation, radial NPS, and a map of the local standard deviation.

    The NPS (HU² mm² at cycles/mm) is scaled so that its 2-D integral is ``sd_hu`` squared.
    """

    sd_hu: float  # rms over the soft tissue it was measured in
    frequency_per_mm: np.ndarray  # (K,)
    radial_nps: np.ndarray  # (K,)
    pixel_mm: float
    map_hu: Tensor | None  # (1, 1, H, W) local standard deviation, or None where it is taken as constant
    source: str  # "image" or "pair"

    def psd(self, height: int, width: int) -> np.ndarray:
        """The NPS on the grid of an unshifted 2-D FFT, (height, width), in HU² mm²."""
        fy, fx = np.fft.fftfreq(height, self.pixel_mm), np.fft.fftfreq(width, self.pixel_mm)
        f = np.hypot(fy[:, None], fx[None, :])
        values = np.interp(f, self.frequency_per_mm, self.radial_nps)
        # a coarse radial curve loses some power between its bins: hold the integral to the variance
        return values * (self.sd_hu**2 / (values.mean() / self.pixel_mm**2))

    def sample(self, shape: tuple[int, int, int, int], *, generator: torch.Generator | None = None) -> Tensor:
        """Gaussian noise with this spectrum and, where the map fits, this variation; (B, 1, H, W) in HU."""
        b, c, h, w = shape
        amplitude = torch.from_numpy(np.sqrt(self.psd(h, w)) / self.pixel_mm).float()
        white = torch.randn(shape, generator=generator)
        noise = torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real
        if self.map_hu is not None and tuple(self.map_hu.shape[-2:]) == (h, w):
            noise = noise * (self.map_hu / self.sd_hu)
        return noise

    def scaled(self, sd_hu: float) -> NoiseModel:
        """The same texture at another strength."""
        ratio = sd_hu / self.sd_hu
        map_hu = None if self.map_hu is None else self.map_hu * ratio
        return replace(self, sd_hu=sd_hu, radial_nps=self.radial_nps * ratio**2, map_hu=map_hu)


def _from_rois(rois: Tensor, pixel_mm: float, source: str) -> NoiseModel:
    spectrum = nps(rois, pixel_mm, detrend="plane")
    return NoiseModel(math.sqrt(spectrum.variance), spectrum.frequency, spectrum.radial, pixel_mm, None, source)


def noise_from_pair(
    ldct_hu: Tensor, ndct_hu: Tensor, pixel_mm: float, *, dose: float | None = None, roi: int = 64
) -> NoiseModel:
    """Noise from a low-dose image and its full-dose partner, (B, 1, H, W) HU each, aligned.

    The difference of a *nested* pair lacks the noise they share: with ``dose`` (the fraction) its variance
    (1 - dose) of the low-dose image's is scaled up to the whole. Without it, the difference is taken as it is.
    """
    if ldct_hu.shape != ndct_hu.shape:
        raise ShapeError(f"a pair has one shape, got {tuple(ldct_hu.shape)} and {tuple(ndct_hu.shape)}")
    corners = _tissue(ndct_hu, roi)
    model = _from_rois(cut_rois(ldct_hu - ndct_hu, corners, roi), pixel_mm, "pair")
    if dose is None:
        return model
    if not 0 < dose < 1:
        raise ParameterError(f"dose is the low-dose fraction in (0, 1), got {dose}")
    return model.scaled(model.sd_hu / math.sqrt(1 - dose))


def noise_from_image(image_hu: Tensor, pixel_mm: float, *, roi: int | None = None) -> NoiseModel:
    """Noise from an image alone, (B, 1, H, W) HU: the spectrum of the squares with the least structure.

    Squares of soft tissue (32 pixels, on images below 512² down to 16) are ranked by how much of their variance
    survives a Gaussian of 2 pixels; the lowest tenth (four at least) is averaged. Some anatomy remains in the lowest
    frequencies. The map follows the local mean of the high-passed magnitude, clipped so that edges count little.
    """
    side = min(image_hu.shape[-2:])
    roi = min(max(16, min(32, side // 16)) if roi is None else roi, side)
    candidates, high = _tissue(image_hu, roi), image_hu - gaussian_blur(image_hu, 1.0)
    parts = (image_hu, gaussian_blur(image_hu, 2.0), high)
    rois, smooth, detail = (cut_rois(part, candidates, roi).double() for part in parts)
    structure = smooth.var(dim=(1, 2)) / detail.var(dim=(1, 2)).clamp(min=1e-6)
    quiet = structure.argsort()[: max(4, len(candidates) // 10)]
    model = _from_rois(rois[quiet], pixel_mm, "image")
    limit = float(2 * detail[quiet].abs().mean())
    local = gaussian_blur(high.abs().clamp(max=limit), 12.0)[:1]
    map_hu = local * (model.sd_hu / max(float(detail[quiet].abs().clamp(max=limit).mean()), 1e-6))
    return replace(model, map_hu=map_hu)


def _tissue(image_hu: Tensor, roi: int) -> list[tuple[int, int, int]]:
    """Squares of soft tissue; where none is whole, those with the most of it."""
    for fraction in (0.9, 0.6, 0.3):
        if corners := soft_tissue_rois(image_hu, min(roi, *image_hu.shape[-2:]), fraction=fraction):
            return corners
    raise ParameterError("no soft tissue (-150 to 250 HU) is found in the image to measure noise in; is it in HU?")
