"""Rebinning between a fan scan and a parallel scan (Kak & Slaney, section 3.4), by cubic interpolation.

A fan ray (beta, gamma) is the parallel ray theta = beta + gamma, s = R sin(gamma). The two relations separate: s
depends on gamma alone, and at fixed gamma the angle is only shifted. So each direction is two sparse matrices of four
weights a sample, one along the detector and one along the angle, and the adjoints are their transposes.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ldctlib.ct.geometry import FanGeometry, ParallelGeometry
from ldctlib.ct.gridding import sparse_csr


def _keys(distance: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel (Keys 1981, a = -1/2) at distances of up to two samples."""
    d = distance
    return np.where(d <= 1, (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2)


def _cubic_taps(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights (..., 4) of cubic convolution at fractional positions."""
    base = np.floor(position)
    t = (position - base)[..., None]
    d = np.concatenate([1 + t, t, 1 - t, 2 - t], axis=-1)
    return base.astype(np.int64)[..., None] + np.arange(-1, 3), _keys(d)


class FanRebinner:
    """Fan sinograms (B, V, bins) <-> sinograms of :attr:`parallel` (B, views over pi, finer bins)."""

    def __init__(self, fan: FanGeometry, device):
        self.device = device
        bin_mm = fan.source_to_iso_mm * fan.bin_rad / 2
        reach = fan.source_to_iso_mm * math.sin(fan.fan_half_angle_rad)
        # Enough views that interpolating between them costs nothing, however few the fan scan has.
        n_views = max(math.ceil(fan.n_views / 2), math.ceil(1.4 * fan.size))
        n_bins = 2 * math.ceil(reach / bin_mm) + 8
        self.parallel = parallel = ParallelGeometry(fan.size, fan.pixel_mm, n_views, n_bins, bin_mm)
        gamma = (np.arange(fan.n_bins) - (fan.n_bins - 1) / 2 + fan.offset_bins) * fan.bin_rad
        s = (np.arange(parallel.n_bins) - (parallel.n_bins - 1) / 2) * bin_mm
        of_s = np.arcsin(s / fan.source_to_iso_mm)

        def along_detector(positions, n_source):
            index, weights = _cubic_taps(positions)
            inside = (index >= 0) & (index < n_source)
            rows = np.broadcast_to(np.arange(len(positions))[:, None], index.shape)
            columns, shape = np.clip(index, 0, n_source - 1), (len(positions), n_source)
            return sparse_csr(rows, columns, weights * inside, shape, device)

        s_position = fan.source_to_iso_mm * np.sin(gamma) / bin_mm
        s_centre, gamma_centre = (parallel.n_bins - 1) / 2, (fan.n_bins - 1) / 2 - fan.offset_bins
        # p(theta + pi, s) = p(theta, -s): the second half turn reads the mirrored detector.
        self._s_to_gamma = [along_detector(s_centre + sign * s_position, parallel.n_bins) for sign in (1, -1)]
        self._gamma_to_s = [along_detector(gamma_centre + sign * of_s / fan.bin_rad, fan.n_bins) for sign in (1, -1)]

        def along_angle(n_target, n_source, shift):
            position = (np.arange(n_target)[:, None] / n_target + shift[None] / (2 * math.pi)) * n_source
            index, weights = _cubic_taps(position)
            column = (index % n_source) * fan.n_bins + np.arange(fan.n_bins)[None, :, None]
            rows = np.broadcast_to(np.arange(n_target * fan.n_bins).reshape(n_target, fan.n_bins, 1), column.shape)
            return sparse_csr(rows, column, weights, (n_target * fan.n_bins, n_source * fan.n_bins), device)

        self._theta_to_beta = along_angle(fan.n_views, 2 * n_views, gamma)
        self._beta_to_theta = along_angle(2 * n_views, fan.n_views, -gamma)
        self._n_bins, self._bin_mm = fan.n_bins, fan.source_to_iso_mm * fan.bin_rad
        self._view_rad = 2 * math.pi / fan.n_views
        # noise a parallel sample carries for a fan ray's: both describe the same noise a unit of (s, theta)
        cosine = np.sqrt(1 - (s / fan.source_to_iso_mm) ** 2)
        density = self._bin_mm * cosine * (math.pi / fan.n_views) / (bin_mm * math.pi / n_views)
        self.variance_gain = torch.from_numpy(density.astype(np.float32)).to(device)

    def detector_response(self, f_per_mm: torch.Tensor) -> torch.Tensor:
        """What cubic interpolation along the detector passes on at a frequency: the kernel's Fourier transform."""
        return self._response(f_per_mm * self._bin_mm)

    def view_power(self, f_per_rad: torch.Tensor) -> torch.Tensor:
        """The share of the power that interpolating between views passes on at frequencies along the angle, aliases of
        the parallel scan's views included: periodic."""
        period = 2 * self.parallel.n_views * self._view_rad / (2 * math.pi)  # parallel views for a fan's
        grid = torch.linspace(0, period, 401, dtype=torch.float64)
        power = sum(self._response(grid + k * period).square() for k in range(-3, 3))
        return torch.from_numpy(np.interp(np.asarray(f_per_rad) * self._view_rad % period, grid, power))

    @staticmethod
    def _response(f_per_sample: torch.Tensor) -> torch.Tensor:
        t = np.linspace(-2, 2, 801)
        phase = 2 * math.pi * np.asarray(f_per_sample)[:, None] * t[None]
        return torch.from_numpy((_keys(np.abs(t)) * np.cos(phase)).sum(1) * (t[1] - t[0]))

    def to_fan(self, p: torch.Tensor) -> torch.Tensor:
        turn = torch.cat([self._detector(m, 0, p) for m in self._s_to_gamma], dim=1)
        return self._angle(self._theta_to_beta, 0, turn)

    def to_fan_adjoint(self, fan: torch.Tensor) -> torch.Tensor:
        halves = self._angle(self._theta_to_beta, 1, fan).split(self.parallel.n_views, dim=1)
        return sum(self._detector(m, 1, half) for m, half in zip(self._s_to_gamma, halves, strict=True))

    def to_parallel(self, fan: torch.Tensor) -> torch.Tensor:
        """Each parallel ray is the mean of its two conjugate fan rays."""
        halves = self._angle(self._beta_to_theta, 0, fan).split(self.parallel.n_views, dim=1)
        return 0.5 * sum(self._detector(m, 0, half) for m, half in zip(self._gamma_to_s, halves, strict=True))

    def to_parallel_adjoint(self, p: torch.Tensor) -> torch.Tensor:
        turn = torch.cat([self._detector(m, 1, 0.5 * p) for m in self._gamma_to_s], dim=1)
        return self._angle(self._beta_to_theta, 1, turn)

    @staticmethod
    def _detector(pair, which, x):
        return torch.stack([(pair[which] @ image.T).T for image in x])

    def _angle(self, pair, which, x):
        return torch.stack([(pair[which] @ image.reshape(-1, 1)).reshape(-1, self._n_bins) for image in x])
