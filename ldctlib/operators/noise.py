"""The noise n of a measurement, in coordinates of y in which it is independent.

A sampler weighs each coordinate by its own noise. White noise is independent in the pixels of y, stationary noise in
the coefficients of y's Fourier transform. Both transforms are orthonormal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldctlib.errors import ParameterError, ShapeError


class WhiteNoise:
    """Noise of one standard deviation, independent in every element of y."""

    def __init__(self, sd: float):
        if not sd >= 0:
            raise ParameterError(f"noise_sd is a standard deviation in y's units, got {sd}")
        self.sd = float(sd)

    @property
    def variance(self) -> Tensor:
        """Of each coordinate: one number for all."""
        return torch.tensor(self.sd**2, dtype=torch.float64)

    def to_coordinates(self, y: Tensor) -> Tensor:
        return y

    def from_coordinates(self, c: Tensor) -> Tensor:
        return c

    def scaled(self, factor: float) -> WhiteNoise:
        """The noise of ``factor`` times the measurement."""
        return WhiteNoise(self.sd * abs(factor))


class CorrelatedNoise:
    """Stationary noise of images (B, 1, H, W), independent in Fourier space.

    variance : (..., H, W // 2 + 1), one for all images or (B, 1, ...) one for each: of the coefficients of an
        orthonormal ``rfft2``. Its mean over the whole Fourier plane is the variance of a pixel. :meth:`from_psd` makes
        it from a noise power spectrum.
    size : (H, W).
    """

    def __init__(self, variance: Tensor, size: Sequence[int]):
        self.size = tuple(size)
        if tuple(variance.shape[-2:]) != (self.size[0], self.size[1] // 2 + 1) or not bool((variance >= 0).all()):
            raise ShapeError(
                f"noise of {self.size} pixels has variances >= 0 for {(self.size[0], self.size[1] // 2 + 1)} "
                f"frequencies, got {tuple(variance.shape)}"
            )
        self.variance = variance.double()

    @classmethod
    def from_psd(cls, psd, pixel_mm: float) -> CorrelatedNoise:
        """From noise power spectra (..., H, W) in units² mm² on the grid of an unshifted FFT (``NoiseModel.psd``)."""
        psd = torch.as_tensor(psd, dtype=torch.float64)
        return cls(psd[..., : psd.shape[-1] // 2 + 1] / pixel_mm**2, psd.shape[-2:])

    @property
    def sd(self) -> float:
        """Standard deviation of a pixel."""
        return float(self._full().mean().sqrt())

    def _full(self) -> Tensor:
        """(..., H, W): the half plane and its mirror."""
        rest = self.variance[..., 1 : (self.size[1] + 1) // 2]
        mirrored = torch.cat([rest[..., :1, :], rest[..., 1:, :].flip(-2)], dim=-2).flip(-1)
        return torch.cat([self.variance, mirrored], dim=-1)

    def to_coordinates(self, y: Tensor) -> Tensor:
        if tuple(y.shape[-2:]) != self.size:
            raise ShapeError(f"the noise's spectrum is for {self.size} pixels, the measurement has {tuple(y.shape)}")
        return torch.fft.rfft2(y, norm="ortho")

    def from_coordinates(self, c: Tensor) -> Tensor:
        return torch.fft.irfft2(c, s=self.size, norm="ortho")

    def scaled(self, factor: float) -> CorrelatedNoise:
        """The noise of ``factor`` times the measurement."""
        return CorrelatedNoise(self.variance * factor**2, self.size)

    def block_mean(self, r: int) -> CorrelatedNoise:
        """The noise of means over r x r pixels: weighted by the mean's response, then aliased r x r times."""
        h, w = self.size
        power = self._full() * (_mean_response(h, r)[:, None] * _mean_response(w, r)[None, :])
        folded = power.reshape(*power.shape[:-2], r, h // r, r, w // r).sum(dim=(-4, -2)) / r**2
        return CorrelatedNoise(folded[..., : (w // r) // 2 + 1], (h // r, w // r))


def _mean_response(n: int, r: int) -> Tensor:
    """|DFT|² of a mean over r of n samples."""
    if n % r:
        raise ShapeError(f"{n} pixels are not divisible by {r}")
    kernel = torch.zeros(n, dtype=torch.float64)
    kernel[:r] = 1 / r
    return torch.fft.fft(kernel).abs().square()


Noise = WhiteNoise | CorrelatedNoise


def as_noise(noise: float | Noise) -> Noise:
    """A standard deviation as white noise; any other noise as it is."""
    return WhiteNoise(noise) if isinstance(noise, int | float) else noise
