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


def largest_eigenvalue(apply: Callable[[Tensor], Tensor], start: Tensor, iterations: int = 20) -> float:
    """Of a symmetric positive semi-definite map, by power iteration from ``start``: the ‖A‖² of AᵀA."""
    v, value = start, 0.0
    for _ in range(iterations):
        v = apply(v / v.norm())
        value = float(v.norm())
    return value


def total_variation(operator, y: Tensor, start: Tensor, weight: float, iterations: int = 60) -> Tensor:
    """argmin over x of 1/2 ‖A x - y‖² + weight TV(x), by FISTA (Beck & Teboulle 2009) from ``start``, (B, 1, H, W).

    The proximal map is scikit-image's, of the isotropic total variation (Chambolle 2004).
    """
    from skimage.restoration import denoise_tv_chambolle

    step = 1 / largest_eigenvalue(lambda x: operator.A_adjoint(operator.A(x)), torch.ones_like(start[:1]))
    x, z, momentum = start, start, 1.0
    for _ in range(iterations):
        gradient = operator.A_adjoint(operator.A(z) - y)
        moved = (z - step * gradient)[:, 0].cpu().numpy()
        smooth = [denoise_tv_chambolle(image, weight=step * weight, max_num_iter=30) for image in moved]
        before, x = x, torch.stack([torch.from_numpy(image) for image in smooth])[:, None].to(start)
        momentum, last = (1 + (1 + 4 * momentum**2) ** 0.5) / 2, momentum
        z = x + (last - 1) / momentum * (x - before)
    return x
