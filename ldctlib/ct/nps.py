"""Noise power spectra, measured in squares of soft tissue (Siewerdsen et al. 2002; ICRU 87)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import check_images, gaussian_blur

TISSUE_HU = (-150.0, 250.0)
Corners = list[tuple[int, int, int]]
"""Squares by their upper left pixels: (image, row, column)."""


def soft_tissue(reference_hu: Tensor) -> Tensor:
    """Pixels of (B, 1, H, W) that lie in [-150, 250] HU when smoothed by 2 px, as bool."""
    smooth = gaussian_blur(reference_hu.float(), 2.0)
    return (smooth >= TISSUE_HU[0]) & (smooth <= TISSUE_HU[1])


def soft_tissue_rois(reference_hu: Tensor, size=64, *, fraction: float = 0.9, step: int | None = None) -> Corners:
    """Corners of squares that hold soft tissue, on a grid of half a square's side.

    A square counts if at least ``fraction`` of its pixels are :func:`soft_tissue`. May be empty.
    """
    check_images(reference_hu)
    if not 4 <= size <= min(reference_hu.shape[-2:]):
        raise ShapeError(f"ROI of {size} pixels does not fit into {tuple(reference_hu.shape[-2:])}")
    step = size // 2 if step is None else step
    share = F.avg_pool2d(soft_tissue(reference_hu).double(), size, stride=step)[:, 0]
    return [(b, r * step, c * step) for b, r, c in (share >= fraction - 1e-9).nonzero().tolist()]


def cut_rois(image: Tensor, corners: Corners, size: int = 64) -> Tensor:
    """The squares of ``image`` at ``corners`` as ``(N, size, size)``."""
    if not corners:
        raise ParameterError("no region of interest: no square is soft tissue; use a smaller size")
    return torch.stack([image[b, 0, r : r + size, c : c + size] for b, r, c in corners])


def trend_removed(rois: Tensor, detrend: str) -> Tensor:
    """ROIs (N, n, n) minus each one's least-squares "mean", "plane" or "quadratic" ("none": as they are)."""
    if detrend == "none":
        return rois
    n = rois.shape[-1]
    axis = torch.arange(n, dtype=rois.dtype, device=rois.device) - (n - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    one = torch.ones_like(x)
    bases = {"mean": [one], "plane": [one, x, y], "quadratic": [one, x, y, x * x, x * y, y * y]}
    if detrend not in bases:
        raise ParameterError(f"unknown detrend {detrend!r}: use one of {['none', *bases]}")
    basis, _ = torch.linalg.qr(torch.stack(bases[detrend]).reshape(len(bases[detrend]), -1).T)
    flat = rois.flatten(1)
    return (flat - (flat @ basis) @ basis.T).view_as(rois)


def periodograms(rois: Tensor, pixel_mm: float, taper: str = "hann") -> Tensor:
    """Δ² / n² · |DFT(w ROI)|² / <w²> of each of (N, n, n) squares, in HU² mm², zero frequency first."""
    n = rois.shape[-1]
    line = torch.hann_window(n, periodic=True, dtype=rois.dtype) if taper == "hann" else rois.new_ones(n)
    window = line[:, None] * line
    return torch.fft.fft2(rois * window).abs().square() * (pixel_mm**2 / (n * n) / window.square().mean())


def rings(n: int) -> np.ndarray:
    """The radial bin, 1 / (n Δ) wide, of every frequency of an n × n DFT, zero frequency first."""
    index = np.fft.fftfreq(n) * n
    return np.rint(np.hypot(index[:, None], index)).astype(int)


@dataclass(frozen=True)
class NPS:
    """A noise power spectrum in HU² mm², averaged over ROIs."""

    frequency: np.ndarray  # (K,) centres of the radial bins, cycles/mm
    radial: np.ndarray  # (K,) mean of the 2-D spectrum in each ring
    two_d: np.ndarray  # (N, N), zero frequency at the centre
    pixel_mm: float
    n_rois: int

    @property
    def variance(self) -> float:
        """The 2-D spectrum's integral in HU²: Parseval's theorem makes it the noise's variance."""
        return float(self.two_d.sum() / (self.two_d.shape[0] * self.pixel_mm) ** 2)


def nps(noise: Tensor, pixel_mm: float, *, roi=64, corners: Corners | None = None, taper="hann", detrend="mean") -> NPS:
    """NPS of noise: ROIs ``(N, n, n)``, or an image ``(B, 1, H, W)`` cut at ``corners`` (default: all squares).

    S(u, v) = Δ² / N² · <|DFT(w (noise - trend))|²> / <w²>  (Siewerdsen et al. 2002; ICRU 87), Δ in mm.
    ``taper`` is "hann" or "none", ``detrend`` "none", "mean", "plane" or "quadratic", both per ROI. Radial
    bins are 1 / (N Δ) wide; those beyond the axes' Nyquist frequency hold the corners only.
    """
    if not pixel_mm > 0:
        raise ParameterError(f"pixel_mm must be > 0, got {pixel_mm}")
    if taper not in ("hann", "none"):
        raise ParameterError(f"unknown taper {taper!r}: use 'hann' or 'none'")
    if noise.ndim == 4:
        check_images(noise)
        if corners is None:
            b, _, h, w = noise.shape
            rows, columns = range(0, h - roi + 1, roi), range(0, w - roi + 1, roi)
            corners = [(i, r, c) for i in range(b) for r in rows for c in columns]
        noise = cut_rois(noise, corners, roi)
    if noise.ndim != 3 or noise.shape[-1] != noise.shape[-2] or noise.shape[-1] < 4:
        raise ShapeError(f"noise must be ROIs (N, n, n) or an image (B, 1, H, W), got {tuple(noise.shape)}")
    rois = trend_removed(noise.detach().cpu().double(), detrend)
    n = rois.shape[-1]
    two_d = torch.fft.fftshift(periodograms(rois, pixel_mm, taper).mean(dim=0)).numpy()
    ring = np.fft.fftshift(rings(n))
    count = np.bincount(ring.ravel())
    radial = np.bincount(ring.ravel(), weights=two_d.ravel()) / count
    frequency = np.arange(len(count)) / (n * pixel_mm)
    return NPS(frequency, radial, two_d, float(pixel_mm), len(rois))


BAND_EDGES = np.arange(14) * 0.06
"""Edges of the 13 bands, 1/mm."""
BAND_CENTRES = (BAND_EDGES[:-1] + BAND_EDGES[1:]) / 2
BAND_ROI = 64
"""Side in pixels of the squares that the bands are measured in."""


def band_nps(noise_hu: Tensor, tissue_hu: Tensor, pixel_mm: float) -> np.ndarray:
    """Radial NPS of noise (B, 1, H, W) in the 13 bands, over its peak, where ``tissue_hu`` is soft tissue.

    ``tissue_hu`` is (1, 1, H, W), or (B, 1, H, W) for noise of different slices. Raises ShapeError, and
    ParameterError where no square of 64 pixels is soft tissue.
    """
    if noise_hu.shape[-2:] != tissue_hu.shape[-2:] or len(tissue_hu) not in (1, len(noise_hu)):
        raise ShapeError(f"noise {tuple(noise_hu.shape)} and tissue {tuple(tissue_hu.shape)} do not match")
    corners = soft_tissue_rois(tissue_hu, BAND_ROI)
    curves = []
    for i in range(len(noise_hu)):
        own = [(i, r, c) for b, r, c in corners if len(tissue_hu) == 1 or b == i]
        if not own:
            raise ParameterError(f"image {i} has no square of {BAND_ROI} pixels of soft tissue")
        two_d = nps(noise_hu, pixel_mm, corners=own, roi=BAND_ROI).two_d
        axis = np.fft.fftshift(np.fft.fftfreq(BAND_ROI, pixel_mm))
        band = np.digitize(np.hypot(axis[:, None], axis[None, :]), BAND_EDGES) - 1
        curve = np.array([two_d[band == k].mean() for k in range(len(BAND_CENTRES))])
        curves.append(curve / curve[2:].mean())
    mean = np.mean(curves, axis=0)
    return mean / mean.max()
