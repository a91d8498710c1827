"""The contract of a measurement y = A x + n, and the composition of two.

A is linear, x an image (B, 1, H, W) in its own scale (HU for CT), n independent of x. What a measurement adds to A x
besides noise, such as the constant of an affine scale, belongs into y. :class:`~ldctlib.pipelines.Prior` converts to
a model's range.
"""

from __future__ import annotations

from copy import copy

from torch import Tensor

from ldctlib.errors import ShapeError
from ldctlib.operators.noise import Noise, as_noise
from ldctlib.operators.solvers import conjugate_gradient


class Operator:
    """A linear map with its noise. A subclass gives :meth:`A` and :meth:`A_adjoint`, and what it knows in closed form.

    noise : a standard deviation in y's units, or a :class:`~ldctlib.operators.noise.CorrelatedNoise`.
    iterations : of the conjugate gradients that stand in for closed forms.
    singular_values : the non-zero ones, in the coordinates of the noise; a number where all are equal, None where they
        are unknown. Coordinate k of y is then that of a unit vector of image space, times the singular value.
    full_row_rank : every y is the measurement of some image.
    """

    iterations = 50
    singular_values: float | Tensor | None = None
    full_row_rank = False

    def __init__(self, noise: float | Noise = 0.0):
        self.noise = as_noise(noise)

    @property
    def noise_sd(self) -> float:
        """Standard deviation of n, rms over y, in y's units."""
        return self.noise.sd

    def with_noise(self, noise: float | Noise) -> Operator:
        """The same map with another noise."""
        other = copy(self)
        other.noise = as_noise(noise)
        return other

    def A(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) -> the measurement of each image, without noise."""
        raise TypeError(f"{type(self).__name__} defines no A")

    def A_adjoint(self, y: Tensor) -> Tensor:
        """The transpose of :meth:`A`: <A x, y> = <x, A_adjoint y>."""
        raise TypeError(f"{type(self).__name__} defines no A_adjoint")

    def A_dagger(self, y: Tensor) -> Tensor:
        """The pseudo-inverse A⁺ y, the shortest of all x with the least ‖A x - y‖: A A⁺ A = A."""
        return conjugate_gradient(lambda x: self.A_adjoint(self.A(x)), self.A_adjoint(y), self.iterations)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        """argmin over x of γ/2 ‖A x - y‖² + 1/2 ‖x - z‖²: solves (I + γ AᵀA) x = z + γ Aᵀy, from x = z."""
        if isinstance(self.singular_values, float):  # AᵀA = s² P with the projection P = A⁺A, so the inverse is known
            return z + gamma / (1 + gamma * self.singular_values**2) * self.A_adjoint(y - self.A(z))
        return z + conjugate_gradient(
            lambda x: x + gamma * self.A_adjoint(self.A(x)), gamma * self.A_adjoint(y - self.A(z)), self.iterations
        )


class EqualSingularValues(Operator):
    """A map whose non-zero singular values are all one number s, so A⁺ = Aᵀ / s². With full row rank A Aᵀ = s² I."""

    singular_values: float = 1.0
    full_row_rank = True

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.A_adjoint(y) / self.singular_values**2


class Composition(Operator):
    """x -> outer(inner(x)); its noise is the outer one's."""

    def __init__(self, outer: Operator, inner: Operator):
        super().__init__(outer.noise)
        self.outer, self.inner = outer, inner
        equal = isinstance(outer.singular_values, float) and isinstance(inner.singular_values, float)
        if equal and inner.full_row_rank:  # then B A Aᵀ Bᵀ = s² B Bᵀ; the mean of a masked image has no such s
            self.singular_values = outer.singular_values * inner.singular_values
            self.full_row_rank = outer.full_row_rank

    def A(self, x: Tensor) -> Tensor:
        return self.outer.A(self.inner.A(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.inner.A_adjoint(self.outer.A_adjoint(y))

    def A_dagger(self, y: Tensor) -> Tensor:
        if self.singular_values is not None:
            return self.inner.A_dagger(self.outer.A_dagger(y))
        return super().A_dagger(y)


def check_divides(r: int, shape) -> None:
    """ShapeError unless r divides the height and width of images of ``shape``."""
    h, w = shape[-2:]
    if h % r or w % r:
        raise ShapeError(
            f"images of {h} x {w} pixels have no means over {r} x {r}: crop or pad them to multiples of {r}"
        )
