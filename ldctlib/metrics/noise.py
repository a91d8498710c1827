"""Noise: how strong it is, and how far two noise power spectra are from each other."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ldctlib.ct.nps import NPS, Corners, cut_rois, soft_tissue_rois, trend_removed
from ldctlib.errors import ParameterError


def nps_distance(a: NPS, b: NPS, *, magnitude: bool = False) -> float:
    """How far two radial NPS are from each other, on ``b``'s frequencies from its first bin to Nyquist.

    Shape (default): ∫ |a/∫a - b/∫b| df, the L1 distance of the curves scaled to unit area: 0 equal, 2 disjoint; an
    overall factor does not matter. ``magnitude=True``: mean over f of |10 log10((a + c) / (b + c))| in dB with c = b's
    peak / 1000, so that bands without noise do not dominate; a factor of 2 everywhere is 3 dB.
    """
    band = slice(1, b.two_d.shape[0] // 2 + 1)
    f, sb = b.frequency[band], b.radial[band]
    if a.frequency[-1] < f[-1] / 1.5:
        raise ParameterError(f"pixels of {a.pixel_mm:g} and {b.pixel_mm:g} mm share too few frequencies to compare")
    sa = np.interp(f, a.frequency, a.radial)
    if not (sa.sum() > 0 and sb.sum() > 0):
        raise ParameterError("an NPS without any power cannot be compared")
    if magnitude:
        floor = sb.max() * 1e-3
        return float(np.abs(10 * np.log10((sa + floor) / (sb + floor))).mean())
    return float(np.abs(sa / sa.sum() - sb / sb.sum()).sum())


def noise_std(noise: Tensor, corners: Corners | None = None, size: int = 64, *, detrend: str = "plane") -> float:
    """Noise's std in HU: root of the mean variance of the ROIs at ``corners`` (default: all soft tissue)
    after removal of each one's trend. For an image with anatomy use small ROIs (``size=16``)."""
    corners = soft_tissue_rois(noise, size) if corners is None else corners
    rois = trend_removed(cut_rois(noise, corners, size).double(), detrend)
    return float(rois.square().mean().sqrt())
