"""Conjugate gradients, in place of closed forms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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
