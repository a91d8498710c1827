"""Resolution: the modulation transfer function (MTF) across a known edge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import check_images


@dataclass(frozen=True)
class MTF:
    """Modulation transfer function across an edge."""

    frequency: np.ndarray  # cycles/mm
    mtf: np.ndarray  # 1 at frequency 0
    distance_mm: np.ndarray  # positions of the edge-spread function
    esf: np.ndarray  # HU

    def at(self, level: float) -> float:
        """Lowest frequency in cycles/mm at which the MTF falls to ``level``; NaN if it never does."""
        below = np.flatnonzero(self.mtf <= level)
        if not len(below) or below[0] == 0:
            return float("nan")
        j = below[0]
        (f0, f1), (m0, m1) = self.frequency[j - 1 : j + 1], self.mtf[j - 1 : j + 1]
        return float(f0 + (m0 - level) / (m0 - m1) * (f1 - f0))


def mtf_edge(
    image_hu: Tensor, pixel_mm: float, *, circle=None, line=None, half_width_mm: float | None = None, bin_px=0.1
) -> MTF:
    """MTF across a known edge of one image ``(1, 1, H, W)``: slanted (ISO 12233) or circular (Richard 2012).

    ``circle=(row, column, radius)`` or ``line=(row, column, angle)``, in pixels; a line passes through (row, column)
    with its normal at ``angle`` radians from the row axis, and should be slanted against the pixel grid. Pixels within
    ``half_width_mm`` (default 8 pixels) of the edge are binned by distance into the edge-spread function (ESF); the
    ESF's derivative, its outer half tapered, gives the MTF, corrected for the bin's width and the finite difference.
    """
    check_images(image_hu)
    if len(image_hu) != 1:
        raise ShapeError(f"mtf_edge takes one image (1, 1, H, W), got {tuple(image_hu.shape)}")
    if (circle is None) == (line is None):
        raise ParameterError("give exactly one of circle=(row, column, radius) or line=(row, column, angle)")
    if not (pixel_mm > 0 and 0 < bin_px <= 0.5):
        raise ParameterError(f"need pixel_mm > 0 and 0 < bin_px <= 0.5, got {pixel_mm} and {bin_px}")
    image = image_hu[0, 0].detach().cpu().double().numpy()
    rows, columns = np.indices(image.shape)
    if circle is not None:
        distance = np.hypot(rows - circle[0], columns - circle[1]) - circle[2]
    else:
        distance = (rows - line[0]) * np.cos(line[2]) + (columns - line[1]) * np.sin(line[2])
    half = 8.0 if half_width_mm is None else half_width_mm / pixel_mm
    bins = 2 * int(round(half / bin_px))
    index = np.floor(distance / bin_px).astype(int) + bins // 2
    near = (index >= 0) & (index < bins)
    count = np.bincount(index[near], minlength=bins)
    if (count == 0).mean() > 0.2:
        raise ParameterError("too few pixels near the edge: is it inside the image and slanted?")
    centres = (np.arange(bins) + 0.5) * bin_px - half
    esf = np.bincount(index[near], weights=image[near], minlength=bins) / np.maximum(count, 1)
    esf = np.interp(centres, centres[count > 0], esf[count > 0])
    # Tapered against noise far from the edge, flat in the middle: a Hann would narrow wide spread functions.
    ramp = np.clip(2 * (1 - np.abs(centres[1:] + centres[:-1]) / 2 / half), 0, 1)
    lsf = np.diff(esf) * np.sin(np.pi / 2 * ramp) ** 2
    spectrum = np.abs(np.fft.rfft(lsf, 8 * bins))
    if not spectrum[0] > 1e-9 * max(1.0, np.abs(esf).max()):
        raise ParameterError("no contrast across the given edge")
    f_px = np.fft.rfftfreq(8 * bins, bin_px)
    keep = f_px <= 1.0  # the sampling is finer than the pixel: meaningful beyond its Nyquist frequency of 0.5
    # binning averages over bin_px, the difference divides by bin_px: a sinc each
    mtf = spectrum[keep] / spectrum[0] / np.sinc(f_px[keep] * bin_px) ** 2
    return MTF(f_px[keep] / pixel_mm, mtf, centres * pixel_mm, esf)
