"""Denoising, super-resolution and inpainting as operators: all non-zero singular values are equal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.operators.noise import CorrelatedNoise, Noise, as_noise
from ldctlib.operators.operator import EqualSingularValues, check_divides


class Identity(EqualSingularValues):
    """The image itself, as in denoising."""

    def A(self, x: Tensor) -> Tensor:
        return x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y


class BlockMean(EqualSingularValues):
    """Means over r x r pixels, as in super-resolution by r. Its singular values are 1/r, and A⁺ repeats each mean.

    A and A_dagger raise ShapeError for an image whose sides r does not divide.
    """

    def __init__(self, r: int, noise: float | Noise = 0.0):
        super().__init__(noise)
        if not (isinstance(r, int) and r >= 1):
            raise ParameterError(f"r is how many pixels a side become one, a whole number from 1 on, got {r!r}")
        self.r, self.singular_values = r, 1.0 / r

    def A(self, x: Tensor) -> Tensor:
        check_divides(self.r, x.shape)
        return F.avg_pool2d(x, self.r)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.A_dagger(y) / self.r**2

    def A_dagger(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.r, dim=-2).repeat_interleave(self.r, dim=-1)


class Mask(EqualSingularValues):
    """The pixels where ``seen`` is true, 0 elsewhere, as in inpainting. Its noise is white.

    seen : bool (H, W) or (1, 1, H, W).
    """

    full_row_rank = False

    def __init__(self, seen: Tensor, noise: float = 0.0):
        super().__init__(noise)
        if isinstance(as_noise(noise), CorrelatedNoise):
            raise ParameterError("the noise of a masked image is not stationary: give a standard deviation")
        if seen.dtype != torch.bool or seen.ndim < 2:
            raise ShapeError(f"the mask is a bool tensor (H, W), got {seen.dtype} {tuple(seen.shape)}")
        self.seen = seen

    def A(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != self.seen.shape[-2:]:
            raise ShapeError(f"the mask has {tuple(self.seen.shape[-2:])} pixels, the image {tuple(x.shape[-2:])}")
        return x * self.seen.to(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.A(y)
