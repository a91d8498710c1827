"""CT projections: few views, a limited arc, low dose."""

from __future__ import annotations

import torch
from torch import Tensor

from ldctlib.ct.projector import Projector
from ldctlib.errors import ParameterError
from ldctlib.operators.noise import Noise
from ldctlib.operators.operator import Operator
from ldctlib.units import MU_WATER_PER_MM, mu_to_hu


class CTProjection(Operator):
    """Line integrals of an image in HU.

    HU -> attenuation -> line integrals is affine: :meth:`A` is its linear part, and :meth:`to_y` takes the constant out
    of measured line integrals. Filtered backprojection is no pseudo-inverse (A A⁺ A ≠ A) and has its own name
    (:meth:`fbp`): A⁺ and the prox are solved by conjugate gradients with the exact adjoint. Few views and limited arcs
    are the projector's geometry.

    noise : standard deviation of the line integrals, dimensionless; of all rays.
    ray_sd : (1, 1, views, bins), the standard deviation of each ray. y and A are then divided by it, so that a ray
        behind the hips counts less than one beside the arm, and ``noise`` is 1.
    """

    def __init__(
        self, projector: Projector, noise: float | Noise = 0.0, *, ray_sd: Tensor | None = None, iterations: int = 50
    ):
        if ray_sd is not None and (tuple(ray_sd.shape[-2:]) != projector.sinogram_shape or not (ray_sd > 0).all()):
            raise ParameterError(f"ray_sd is positive, {projector.sinogram_shape}; got {tuple(ray_sd.shape)}")
        super().__init__(1.0 if ray_sd is not None else noise)
        self.projector, self.iterations, self.ray_sd = projector, iterations, ray_sd
        self.mu_per_hu = MU_WATER_PER_MM / 1000
        size = projector.geometry.size
        self.water = projector.A(torch.full((1, 1, size, size), MU_WATER_PER_MM, device=projector.device))

    def _weighted(self, rays: Tensor) -> Tensor:
        return rays if self.ray_sd is None else rays / self.ray_sd

    def A(self, x: Tensor) -> Tensor:
        return self._weighted(self.projector.A(x * self.mu_per_hu))

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.projector.A_adjoint(self._weighted(y)) * self.mu_per_hu

    def to_y(self, line_integrals: Tensor) -> Tensor:
        """Measured line integrals (B, 1, views, bins) without those of 0 HU everywhere, and weighted."""
        return self._weighted(line_integrals - self.water)

    def fbp(self, y: Tensor, kernel="ramp") -> Tensor:
        """Filtered backprojection of y, (B, 1, H, W) in HU; air outside the field of view."""
        rays = y if self.ray_sd is None else y * self.ray_sd
        return mu_to_hu(self.projector.fbp(rays + self.water, kernel))
