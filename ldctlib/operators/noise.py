"""The noise n of a measurement, in coordinates of y in which it is independent.

A sampler weighs each coordinate by its own noise: ``noise.filter(y, function)`` multiplies every coordinate of y by a
function of the standard deviation of its noise. White noise is independent in the pixels of y, stationary noise in the
coefficients of y's Fourier transform. Noise whose strength varies over the image is independent in neither; it is
filtered as if it were stationary around each pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor

from ldctlib.errors import ParameterError, ShapeError

Function = Callable[[Tensor], Tensor]


class WhiteNoise:
    """Noise of one standard deviation, independent in every element of y."""

    def __init__(self, sd: float):
        if not sd >= 0:
            raise ParameterError(f"noise_sd is a standard deviation in y's units, got {sd}")
        self.sd = float(sd)

    @property
    def largest_sd(self) -> float:
        """Standard deviation of the noisiest coordinate."""
        return self.sd

    def filter(self, y: Tensor, function: Function) -> Tensor:
        """y with each coordinate times ``function`` of its noise's standard deviation."""
        return function(torch.tensor(self.sd).to(y)) * y

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
        self.levels: Sequence[float] = (1.0,)  # strengths that filters are made for, and the share of each at a pixel
        self.shares: Sequence[Tensor] | None = None

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

    @property
    def largest_sd(self) -> float:
        """Standard deviation of the noisiest coordinate, wherever the noise is strongest."""
        return float(self.variance.max().sqrt()) * max(1.0, *self.levels)

    def filter(self, y: Tensor, function: Function) -> Tensor:
        """y with each Fourier coefficient times ``function`` of its noise's standard deviation."""
        if tuple(y.shape[-2:]) != self.size:
            raise ShapeError(f"the noise's spectrum is for {self.size} pixels, the measurement has {tuple(y.shape)}")
        sd, coordinates = self.variance.sqrt().to(y), torch.fft.rfft2(y, norm="ortho")

        def filtered(level: float) -> Tensor:
            return torch.fft.irfft2(function(level * sd) * coordinates, s=self.size, norm="ortho")

        if self.shares is None:
            return filtered(1.0)
        return sum(share.to(y) * filtered(level) for share, level in zip(self.shares, self.levels, strict=True))

    def scaled(self, factor: float) -> CorrelatedNoise:
        """The noise of ``factor`` times the measurement."""
        other = copy(self)
        other.variance = self.variance * factor**2
        return other

    def varying(self, strength: Tensor, count: int = 4) -> CorrelatedNoise:
        """The noise with its standard deviation times ``strength`` (B or 1, 1, H, W), which is smooth and above 0.

        A filter is made for ``count`` strengths between the least and the most, and interpolated between them.
        """
        if tuple(strength.shape[-2:]) != self.size or not bool((strength > 0).all()):
            raise ShapeError(f"strength is above 0 at each of {self.size} pixels, got {tuple(strength.shape)}")
        low, high = float(strength.min()), float(strength.max())
        levels = torch.linspace(math.log(low), math.log(high * (1 + 1e-6)), count, dtype=torch.float64)
        place = (strength.double().log() - levels[0]) / (levels[1] - levels[0])
        other = copy(self)
        other.levels = levels.exp().tolist()
        other.shares = [(1 - (place - i).abs()).clamp(min=0) for i in range(count)]
        return other

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
