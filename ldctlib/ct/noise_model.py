"""What a denoiser may know of an image's noise: its strength, its spectrum, how it varies over the image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.ct.kernels import Kernel
from ldctlib.ct.nps import cut_rois, nps, periodograms, rings, soft_tissue, soft_tissue_rois, trend_removed
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import check_images, gaussian_blur


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


@dataclass(frozen=True)
class _Family:
    """Spectra that noise and anatomy may have, as means over the radial bins: arrays (kernels, K) of any scale."""

    cells: np.ndarray  # (K,) frequencies of the DFT in each bin
    noise: np.ndarray
    anatomy: np.ndarray
    doubt: np.ndarray  # (kernels,) how far a kernel's tilt is from a clinical one's, squared standard deviations


@lru_cache(maxsize=8)
def _family(size: int, pixel_mm: float) -> _Family:
    """FBP noise f W(f)² and anatomy f^-2.5 W(f)² under many kernels W, as pixels sample (alias) them; and white noise.

    One W shapes both, since the kernel that colours the noise blurs the anatomy.
    """
    half = np.arange(size // 2 + 1)
    y, x = (index.ravel() for index in np.meshgrid(half, half))
    alias = np.arange(-1, 2)[:, None, None]
    f = np.hypot(y / size + alias, x / size + alias.transpose(1, 0, 2)).reshape(9, -1) / pixel_mm
    f = torch.from_numpy(f).clamp(min=0.3 / (size * pixel_mm))  # what a square sees of the ramp's zero
    mirrored = [np.where((index > 0) & (2 * index < size), 2, 1) for index in (y, x)]
    ring, weight = np.rint(np.hypot(y, x)).astype(int), mirrored[0] * mirrored[1]
    mean = np.zeros((ring.max() + 1, len(ring)))
    mean[ring, np.arange(len(ring))] = weight
    cells = mean.sum(axis=1)
    mean /= cells[:, None]
    cutoffs, flat, tilts = np.geomspace(0.35, 1.6, 20), (0.0, 0.2, 0.4, 0.6), (0.0, 0.08, 0.16, 0.24, 0.32)
    kernels = [Kernel(share * c, c, tilt) for c in cutoffs.tolist() for share in flat for tilt in tilts]
    transfer = torch.stack([kernel(f).square() for kernel in kernels] + [torch.ones_like(f)])
    noise = (transfer * f).sum(dim=1).numpy() @ mean.T
    noise[-1] = 1.0
    anatomy = (transfer * f**-2.5).sum(dim=1).numpy() @ mean.T
    doubt = np.array([((kernel.tilt - 0.12) / 0.06) ** 2 for kernel in kernels] + [0.0])
    return _Family(cells, noise, anatomy, doubt)


def _separate(
    power: np.ndarray, noise: np.ndarray, anatomy: np.ndarray, weight: np.ndarray, *, negative: bool = False
) -> tuple[np.ndarray, ...]:
    """Amplitudes c > 0, a >= 0 of ``power`` = c noise + a anatomy along the last axis, and the information on log c.

    Iteratively reweighted least squares: a periodogram's standard deviation is its mean. With ``negative`` the solution
    for c may rest on a < 0, so that the mean of c over squares is not too low where there is no anatomy.
    """
    power, noise, anatomy = np.broadcast_arrays(power, noise, anatomy)
    floor = 0.03 * noise.max(axis=-1, keepdims=True)  # what is far below the peak, rounding and interpolation may rule
    c, a = power.sum(axis=-1) / noise.sum(axis=-1), 0.5 * power[..., 0] / anatomy[..., 0]
    for _ in range(5):
        w = weight / (c[..., None] * (noise + floor) + a[..., None] * anatomy + 1e-12) ** 2
        nn, na, aa = (w * noise**2).sum(-1), (w * noise * anatomy).sum(-1), (w * anatomy**2).sum(-1)
        pn, pa = (w * power * noise).sum(-1), (w * power * anatomy).sum(-1)
        determinant = nn * aa - na**2
        c, a = (pn * aa - pa * na) / determinant, (pa * nn - pn * na) / determinant
        alone = pn / nn
        c = np.maximum(c if negative else np.where(a < 0, alone, c), 0.01 * alone)
        a = np.maximum(a, 0)
    return c, a, (nn - na**2 / aa) * c**2


def _spectra(power: np.ndarray, family: _Family) -> tuple[np.ndarray, np.ndarray]:
    """Noise and anatomy (K,) in the mean ``power`` of quiet squares: an average over the family by goodness of fit.

    Where noise prevails the curve then follows the measurement; elsewhere, at low frequencies, it keeps the kernel's.
    """
    weight = np.minimum(family.cells, 60) / 60
    weight[:2], weight[2] = 0, 0.5 * weight[2]  # trends were removed, and squares chosen, by the lowest bins
    c, a, _ = _separate(power[2:], family.noise[:, 2:], family.anatomy[:, 2:], np.maximum(weight[2:], 1e-6))
    noise, anatomy = c[:, None] * family.noise, a[:, None] * family.anatomy
    floor = 0.05 * power[2:].max() + 1e-3
    misfit = np.log((noise + anatomy + floor) / (power + floor))
    cost = (weight * np.minimum(np.abs(misfit), 0.5) ** 2).sum(axis=1) / 0.1**2 + family.doubt
    share = np.exp(-0.5 * (cost - cost.min()))
    share /= share.sum()
    noise, anatomy = share @ noise, share @ anatomy
    gap = np.log((power + 0.1 * floor) / (noise + anatomy + 0.1 * floor)).clip(-1, 1)
    trust = weight * (noise / (noise + anatomy + 1e-12)) ** 4
    k = np.arange(len(power))
    near = np.exp(-0.5 * (k[:, None] - k) ** 2)
    noise = noise * np.exp(near @ (trust * gap) / (near @ trust + 0.1))
    return np.maximum(noise, 1e-3 * noise.max() + 1e-12), share @ family.anatomy


def noise_from_image(image_hu: Tensor, pixel_mm: float, *, roi: int | None = None) -> NoiseModel:
    """Noise from an image alone, (B, 1, H, W) HU: its strength, spectrum and local map (rms over the batch).

    Anatomy falls steeply with frequency and noise rises, so each square of soft tissue is taken for a sum of both.
    The squares with the least power at the lowest frequency show the noise's spectrum: a family of FBP spectra,
    f W(f)² beside anatomy's f^-2.5 W(f)² for one kernel W, is fitted to their median and followed where noise
    prevails; at the lowest frequencies the kernel's curve continues it. With that shape every square gives a local
    variance, which a Gaussian of 12 mm joins to the map, with less weight for squares of much anatomy.

    roi : side of the squares in pixels, 8 at least; by default 18 mm, and 12 pixels at least.

    Raises ParameterError where no soft tissue is found, and ShapeError for images below 8 pixels.
    """
    check_images(image_hu)
    if not 0 < pixel_mm < math.inf:
        raise ParameterError(f"pixel_mm must be > 0, got {pixel_mm}")
    image_hu, side = image_hu.detach().cpu().float(), min(image_hu.shape[-2:])
    roi = min(max(12, 2 * round(9 / pixel_mm)) if roi is None else roi, side)
    if roi < 8:
        raise ShapeError(f"noise is measured in squares of 8 pixels or more, got {roi} in {tuple(image_hu.shape)}")
    step = roi // 4
    corners = _tissue(image_hu, roi, step)
    family = _family(roi, float(pixel_mm))
    power = periodograms(trend_removed(cut_rois(image_hu, corners, roi), "plane"), 1.0).flatten(1).numpy()
    ring = np.eye(len(family.cells), dtype=np.float32)[rings(roi).ravel()]
    power = (power @ ring / ring.sum(axis=0)).astype(float)  # (squares, K), a pixel's variance per unit frequency

    place = tuple((torch.tensor(corners) // torch.tensor([1, step, step])).T)
    grid = torch.zeros(len(image_hu), 1, *((n - roi) // step + 1 for n in image_hu.shape[-2:]), dtype=torch.float64)

    def joined(values: np.ndarray, weight: np.ndarray) -> Tensor:
        total, count = grid.clone(), grid.clone()
        total[place[0], 0, place[1], place[2]] = torch.from_numpy(values * weight)
        count[place[0], 0, place[1], place[2]] = torch.from_numpy(weight)
        sigma, least = max(1.5, 12.0 / (pixel_mm * step)), 1e-4 * weight.mean()
        far = np.average(values, weights=weight)
        return (gaussian_blur(total, sigma) + least * far) / (gaussian_blur(count, sigma) + least)

    def at_squares(values: Tensor) -> np.ndarray:
        return values[place[0], 0, place[1], place[2]].numpy()

    # of a gamma distribution with the bin's independent frequencies (two a cell for symmetry, two for the taper)
    median = np.maximum(1 - 4 / (9 * np.maximum(family.cells, 4)), 0) ** 3
    level = np.ones(len(power))
    for _ in range(2):
        lowest = np.average(power[:, 1:3], axis=1, weights=family.cells[1:3]) / level
        limit = np.sort(lowest)[min(len(lowest) - 1, max(24, len(lowest) // 20))]
        noise, anatomy = _spectra(np.median((power / level[:, None])[lowest <= 1.6 * limit], axis=0) / median, family)
        low, high = np.quantile(lowest, (0.05, 0.95))
        mean = (power / level[:, None]).mean(axis=0)
        if high < 6 * low and mean[1:3].max() < 2 * mean[3:].max():  # no more scatter than noise has: a flat image
            noise = mean + 1e-12
            c, weight = (power[:, 2:] / noise[2:]) @ family.cells[2:] / family.cells[2:].sum(), np.ones(len(power))
        else:
            c, a, information = _separate(power[:, 2:], noise[2:], anatomy[2:], family.cells[2:], negative=True)
            weight = information / (1 + a * anatomy[4] / (c * noise[4])) ** 2
        local = 1 / joined(1 / c, weight)  # the harmonic mean starts from below
        for _ in range(3):  # edges that are left in c count little
            local = joined(c, weight / (1 + (4 * np.maximum(c / at_squares(local) - 1, 0)) ** 2))
        level = at_squares(local)
    local = local * float((noise * family.cells).sum() / roi**2)

    tissue = soft_tissue(image_hu)
    local = F.interpolate(local, scale_factor=step, mode="bilinear", align_corners=False)
    before = (roi - step) // 2
    right, bottom = (n - m - before for n, m in zip(image_hu.shape[:-3:-1], local.shape[:-3:-1], strict=True))
    local = F.pad(local, (before, right, before, bottom), mode="replicate")
    variance = float(local[tissue].mean())
    radial = noise * (variance / float((noise * family.cells).sum() / roi**2)) * pixel_mm**2
    frequency = np.arange(len(radial)) / (roi * pixel_mm)
    map_hu = local.mean(dim=0, keepdim=True).sqrt().float()
    return NoiseModel(math.sqrt(variance), frequency, radial, pixel_mm, map_hu, "image")


def _tissue(image_hu: Tensor, roi: int, step: int | None = None) -> list[tuple[int, int, int]]:
    """Squares of soft tissue; where none is whole, those with the most of it."""
    for fraction in (0.9, 0.6, 0.3):
        if corners := soft_tissue_rois(image_hu, min(roi, *image_hu.shape[-2:]), fraction=fraction, step=step):
            return corners
    raise ParameterError("no soft tissue (-150 to 250 HU) is found in the image to measure noise in; is it in HU?")
