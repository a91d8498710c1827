"""The projector: line integrals, their adjoint, and filtered backprojection, in torch.

``Projector(geometry)`` maps attenuation images (B, 1, N, N) in 1/mm to sinograms (B, 1, views, bins) of
dimensionless line integrals, and back. It is linear, differentiable, and runs where its input lives. Parallel beam
goes through :class:`~ldctlib.ct.gridding.Gridder`; fan beam is rebinned to and from a finer parallel scan
(:mod:`ldctlib.ct.rebinning`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from ldctlib.ct.geometry import FanGeometry, Geometry, ParallelGeometry
from ldctlib.ct.gridding import Gridder, fast_length
from ldctlib.ct.kernels import Kernel, find_kernel
from ldctlib.ct.rebinning import FanRebinner
from ldctlib.errors import GeometryError, ParameterError, ShapeError


class _Linear(torch.autograd.Function):
    """A linear map whose gradient is its adjoint, so that autograd never walks through the sparse product."""

    @staticmethod
    def forward(ctx, x, apply, adjoint):
        ctx.maps = apply, adjoint
        return apply(x)

    @staticmethod
    def backward(ctx, gradient):
        apply, adjoint = ctx.maps
        return _Linear.apply(gradient, adjoint, apply), None, None


class Projector:
    """Line integrals of an image: ``A``, ``A_adjoint``, and filtered backprojection.

    Use :func:`projector`, which keeps built projectors in memory, keyed by the geometry's values.
    """

    def __init__(self, geometry: Geometry, device: torch.device | str = "cpu"):
        self.geometry, self.device = geometry, torch.device(device)
        if isinstance(geometry, FanGeometry):
            self._rebin = FanRebinner(geometry, self.device)
            self._parallel = self._rebin.parallel
            bin_width = geometry.source_to_iso_mm * geometry.bin_rad
        else:
            self._parallel, self._rebin = geometry, None
            bin_width = geometry.bin_mm
        g = self._parallel
        # The detector's half plus the image's corner, so that the circular convolution theorem does not wrap.
        reach = g.n_bins / 2 + abs(g.offset_bins) + g.size * g.pixel_mm * math.sqrt(0.5) / g.bin_mm
        self._length = fast_length(max(reach, g.n_bins))
        n_frequencies = self._length // 2 + 1
        length_mm = self._length * g.bin_mm
        self._gridder = Gridder(g.size, g.pixel_mm, g.angles_rad, n_frequencies, length_mm, self.device)
        k = torch.arange(n_frequencies, dtype=torch.float64) / length_mm
        first_bin_mm = (-(g.n_bins - 1) / 2 + g.offset_bins) * g.bin_mm
        shift = torch.exp(2j * math.pi * k * first_bin_mm)
        averaging = torch.sinc(k * bin_width)  # a bin measures the mean over its width
        weight = torch.full((n_frequencies,), 2.0, dtype=torch.float64)
        weight[0] = weight[-1] = 1.0
        self._shift = shift.to(torch.complex64).to(self.device)
        self._forward_filter = (shift * averaging * (g.pixel_mm**2 / g.bin_mm)).to(torch.complex64).to(self.device)
        self._irfft_weight = (weight / self._length).float().to(self.device)
        half_diagonal = torch.arange(g.size, device=self.device) - (g.size - 1) / 2
        radius = torch.hypot(half_diagonal[:, None], half_diagonal[None, :]) * g.pixel_mm
        self._seen = radius <= geometry.fov_radius_mm
        self._ramps: dict[Kernel, torch.Tensor] = {}

    @property
    def sinogram_shape(self) -> tuple[int, int]:
        return self.geometry.n_views, self.geometry.n_bins

    def A(self, image_mu: torch.Tensor) -> torch.Tensor:
        """Attenuation (B, 1, N, N) in 1/mm -> line integrals (B, 1, views, bins)."""
        self._expect(image_mu, (self.geometry.size,) * 2, "an image")
        return _Linear.apply(image_mu, self._forward, self._backward)

    def A_adjoint(self, sinogram: torch.Tensor) -> torch.Tensor:
        """The exact transpose of :meth:`A` (unfiltered backprojection)."""
        self._expect(sinogram, self.sinogram_shape, "a sinogram")
        return _Linear.apply(sinogram, self._backward, self._forward)

    def fbp(self, sinogram: torch.Tensor, kernel: str | Kernel = "ramp") -> torch.Tensor:
        """Filtered backprojection: line integrals -> attenuation in 1/mm; 0 outside the field of view."""
        self._expect(sinogram, self.sinogram_shape, "a sinogram")
        which = find_kernel(kernel)
        return _Linear.apply(sinogram, lambda p: self._fbp(p, which), lambda x: self._fbp_adjoint(x, which))

    def _forward(self, image):
        g = self._parallel
        lines = self._gridder.lines(image[:, 0]) * self._gridder.in_band * self._forward_filter
        sinogram = torch.fft.irfft(lines, n=self._length)[..., : g.n_bins]
        return (self._rebin.to_fan(sinogram) if self._rebin else sinogram)[:, None]

    def _backward(self, sinogram):
        p = sinogram[:, 0]
        if self._rebin:
            p = self._rebin.to_fan_adjoint(p)
        lines = torch.fft.rfft(p, n=self._length) * self._irfft_weight
        lines = lines * self._forward_filter.conj() * self._gridder.in_band
        return self._gridder.adjoint(lines)[:, None]

    def _ramp(self, which: Kernel) -> torch.Tensor:
        """rfft of the ramp's spatial kernel (Kak & Slaney, Eq. 3.61) times the window.

        Sampling |f| in frequency instead would give every slice a DC bias.
        """
        if which not in self._ramps:
            g = self._parallel
            n = fast_length(2 * g.n_bins)
            index = torch.arange(n, dtype=torch.float64)
            index = torch.minimum(index, n - index)
            spatial = torch.where(index % 2 == 1, -1 / (math.pi * index.clamp(min=1) * g.bin_mm) ** 2, 0.0)
            spatial[0] = 1 / (4 * g.bin_mm**2)
            response = torch.fft.rfft(spatial).real * g.bin_mm
            f = torch.arange(n // 2 + 1, dtype=torch.float64) / (n * g.bin_mm)
            self._ramps[which] = (response * which(f)).float().to(self.device)
        return self._ramps[which]

    @staticmethod
    def _filter(sinogram, response):
        """Convolve along the detector, zero-padded to the length of the ``response`` (of an rfft)."""
        n = 2 * (response.numel() - 1)
        return torch.fft.irfft(torch.fft.rfft(sinogram, n=n) * response, n=n)[..., : sinogram.shape[-1]]

    def _smear(self, p):
        """Sum over the views of a parallel sinogram (B, views, bins), each smeared back over the image."""
        lines = torch.fft.rfft(p, n=self._length) * self._irfft_weight * self._shift.conj()
        return self._gridder.adjoint(lines) * self._seen

    def fbp_variance(self, variance: torch.Tensor, kernel: str | Kernel = "ramp") -> torch.Tensor:
        """Variance of :meth:`fbp` at each pixel (1/mm^2) from the variances of independent rays.

        q = p * h has variance var(p) * h^2; the views add up independently. A fan beam's rays are first averaged with
        their conjugates and interpolated, along the detector and between views, which passes on less of the high
        frequencies; between views the less, the farther a pixel lies from the axis.
        """
        self._expect(variance, self.sinogram_shape, "a sinogram")
        v, ramp = variance[:, 0], self._ramp(find_kernel(kernel))
        n = 2 * (ramp.numel() - 1)
        if self._rebin:
            v = self._rebin.to_parallel(v) * self._rebin.variance_gain
            f = torch.arange(ramp.numel(), dtype=torch.float64) / (n * self._parallel.bin_mm)
            ramp = ramp * self._rebin.detector_response(f).to(ramp)
        squared = torch.fft.rfft(torch.fft.irfft(ramp, n=n).square())
        out = self._smear(self._filter(v, squared))[:, None] * self._parallel.view_rad**2
        return out * self._off_axis(f, ramp).to(out) if self._rebin else out

    def _off_axis(self, f: torch.Tensor, ramp: torch.Tensor) -> torch.Tensor:
        """What interpolating between views leaves of the variance, (N, N), as the mean over the views.

        At r from the axis and a to the ray's direction the ray moves by r sin(a) a radian, so that the interpolation's
        kernel smooths the filter by that much, up to aliases: ramp(f) W(f r sin(a)). The views' weights are taken as
        equal.
        """
        n, power = self.geometry.size, ramp.double().cpu().square()
        moved = torch.linspace(0, n * self.geometry.pixel_mm * math.sqrt(0.5), 60, dtype=torch.float64)
        left = (power * self._rebin.view_power(moved[:, None] * f)).sum(dim=1) / power.sum()
        angle = (np.arange(90) + 0.5) * math.pi / 180
        mean = np.interp(moved.numpy()[:, None] * np.sin(angle), moved.numpy(), left.numpy()).mean(axis=1)
        axis = (np.arange(n) - (n - 1) / 2) * self.geometry.pixel_mm
        return torch.from_numpy(np.interp(np.hypot(axis[:, None], axis), moved.numpy(), mean))

    def _fbp(self, sinogram, which):
        p = sinogram[:, 0]
        if self._rebin:
            p = self._rebin.to_parallel(p)
        return (self._smear(self._filter(p, self._ramp(which))) * self._parallel.view_rad)[:, None]

    def _fbp_adjoint(self, image, which):
        lines = self._gridder.lines(image[:, 0] * self._seen) * (self._shift * self._parallel.view_rad)
        p = self._filter(torch.fft.irfft(lines, n=self._length)[..., : self._parallel.n_bins], self._ramp(which))
        return (self._rebin.to_parallel_adjoint(p) if self._rebin else p)[:, None]

    def _expect(self, x, shape, what):
        if x.dim() != 4 or x.shape[1] != 1 or tuple(x.shape[2:]) != tuple(shape):
            wanted = f"(B, 1, {shape[0]}, {shape[1]})"
            raise ShapeError(f"this projector takes {what} of shape {wanted}, got {tuple(x.shape)}")
        if x.dtype != torch.float32:
            raise ShapeError(f"the projector computes in float32, got {x.dtype}: convert with .float()")
        if x.device != self.device:
            where = f"on {self.device}, its input on {x.device}"
            raise ParameterError(f"this projector lives {where}: ask projector(geometry, device) for one there")


@lru_cache(maxsize=6)
def _cached(geometry: Geometry, device: str) -> Projector:
    return Projector(geometry, device)


def projector(geometry: Geometry, device: torch.device | str = "cpu") -> Projector:
    """The projector of a geometry, built once and kept (the six last used, by the geometry's values)."""
    if not isinstance(geometry, ParallelGeometry | FanGeometry):
        raise GeometryError(f"a ParallelGeometry or FanGeometry is needed, got {type(geometry).__name__}")
    # "cuda" and "cuda:0" are one device: a tensor knows its full name, which inputs are compared with
    return _cached(geometry, str(torch.empty(0, device=device).device))
