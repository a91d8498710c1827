"""Off-centre ellipses with analytic line integrals: the projector's oracle."""

from __future__ import annotations

import numpy as np
import torch

from ldctlib.ct.geometry import Geometry, ParallelGeometry

# centre x, centre y, half axes (mm), angle (rad), attenuation (1/mm)
ELLIPSES = (
    (30.0, -45.0, 90.0, 60.0, 0.4, 0.020),
    (-70.0, 40.0, 40.0, 25.0, 1.1, 0.010),
    (60.0, 70.0, 15.0, 22.0, 0.2, 0.015),
)


def raster(geometry: Geometry, ellipses=ELLIPSES, oversample: int = 8) -> torch.Tensor:
    """Area-weighted raster (1, 1, N, N) in 1/mm."""
    n = geometry.size
    axis = (np.arange(n * oversample) - (n * oversample - 1) / 2) * geometry.pixel_mm / oversample
    x, y = axis[None, :], axis[:, None]
    image = np.zeros((n * oversample, n * oversample), np.float32)
    for cx, cy, a, b, phi, mu in ellipses:
        u = (x - cx) * np.cos(phi) + (y - cy) * np.sin(phi)
        v = -(x - cx) * np.sin(phi) + (y - cy) * np.cos(phi)
        image += np.float32(mu) * ((u / a) ** 2 + (v / b) ** 2 <= 1)
    return torch.from_numpy(image.reshape(n, oversample, n, oversample).mean((1, 3)))[None, None]


def line_integral(theta, s, ellipses=ELLIPSES):
    """Analytic line integrals of parallel rays (theta, s): Kak & Slaney, Eq. 3.7."""
    total = 0.0
    for cx, cy, a, b, phi, mu in ellipses:
        squared = (a * np.cos(theta - phi)) ** 2 + (b * np.sin(theta - phi)) ** 2
        distance = s - (cx * np.cos(theta) + cy * np.sin(theta))
        total = total + 2 * mu * a * b * np.sqrt(np.clip(squared - distance**2, 0, None)) / squared
    return total


def sinogram(geometry: Geometry, ellipses=ELLIPSES, oversample: int = 8) -> np.ndarray:
    """Detector-averaged analytic sinogram (views, bins)."""
    within = (np.arange(oversample) - (oversample - 1) / 2) / oversample
    bins = (np.arange(geometry.n_bins) - (geometry.n_bins - 1) / 2 + geometry.offset_bins)[:, None] + within
    views = np.asarray(geometry.angles_rad)[:, None, None]
    if isinstance(geometry, ParallelGeometry):
        return line_integral(views, bins * geometry.bin_mm, ellipses).mean(-1)
    gamma = bins * geometry.bin_rad
    return line_integral(views + gamma, geometry.source_to_iso_mm * np.sin(gamma), ellipses).mean(-1)
