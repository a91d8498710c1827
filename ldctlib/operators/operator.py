"""The contract of a measurement y = A x + n, and the composition of two.

A is linear. What a measurement adds to A x besides noise, such as the constant of an affine scale, belongs into y.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldctlib.errors import ParameterError


class Operator:
    """A linear map with its noise. A subclass gives :meth:`A` and :meth:`A_adjoint`, and what it knows in closed form.

    noise_sd : standard deviation of n, in y's units.
    iterations : of the conjugate gradients that stand in for closed forms.
    """

    iterations = 50

    def __init__(self, noise_sd: float = 0.0):
        if not noise_sd >= 0:
            raise ParameterError(f"noise_sd is a standard deviation in y's units, got {noise_sd}")
        self.noise_sd = float(noise_sd)

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
        return z + conjugate_gradient(
            lambda x: x + gamma * self.A_adjoint(self.A(x)), gamma * self.A_adjoint(y - self.A(z)), self.iterations
        )


class Composition(Operator):
    """x -> outer(inner(x)); its noise is the outer one's."""

    def __init__(self, outer: Operator, inner: Operator):
        super().__init__(outer.noise_sd)
        self.outer, self.inner = outer, inner

    def A(self, x: Tensor) -> Tensor:
        return self.outer.A(self.inner.A(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.inner.A_adjoint(self.outer.A_adjoint(y))


class Identity(Operator):
    """The image itself, as in denoising."""

    def A(self, x: Tensor) -> Tensor:
        return x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y

    def A_dagger(self, y: Tensor) -> Tensor:
        return y

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        return (z + gamma * y) / (1 + gamma)


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 1e-6
) -> Tensor:
    """Solve apply(x) = b from x = 0 for each image of a batch (Hestenes & Stiefel 1952).

    apply : a symmetric positive semi-definite linear map. For a singular one and b in its range the result is the
        shortest solution. Ends early when every residual is below ``tolerance`` times its b.
    """

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u.double() * v.double()).flatten(1).sum(1)

    def scaled(factor: Tensor, v: Tensor) -> Tensor:
        return factor.to(v.dtype).reshape(-1, *(1,) * (v.ndim - 1)) * v

    x, r = torch.zeros_like(b), b
    p, rr = r, dot(r, r)
    enough = tolerance**2 * rr
    for _ in range(iterations):
        if bool((rr <= enough).all()):
            break
        q = apply(p)
        alpha = rr / dot(p, q).clamp(min=torch.finfo(torch.float64).tiny)
        x, r = x + scaled(alpha, p), r - scaled(alpha, q)
        before, rr = rr, dot(r, r)
        p = r + scaled(rr / before.clamp(min=torch.finfo(torch.float64).tiny), p)
    return x
