"""CT projections of images in a model's range."""

from __future__ import annotations

import torch
from torch import Tensor

from ldctlib.ct.projector import Projector
from ldctlib.operators.operator import Operator
from ldctlib.units import Range, hu_to_mu


class CTProjection(Operator):
    """Line integrals of an image in a model's range.

    Model range -> HU -> attenuation -> line integrals is affine. :meth:`A` is its linear part; :meth:`to_y` takes the
    constant out of measured line integrals. Filtered backprojection is no pseudo-inverse (A A⁺ A ≠ A): A⁺ and the prox
    are solved by conjugate gradients with the exact adjoint.

    noise_sd : of the line integrals, dimensionless.
    """

    def __init__(self, projector: Projector, hu_range: Range, noise_sd: float = 0.0, iterations: int = 50):
        super().__init__(noise_sd)
        self.projector, self.iterations = projector, iterations
        self.mu_per_unit = hu_to_mu(hu_range.from_model(1.0)) - hu_to_mu(hu_range.from_model(0.0))
        size = projector.geometry.size
        zero = torch.full((1, 1, size, size), hu_to_mu(hu_range.from_model(0.0)), device=projector.device)
        self.offset = projector.A(zero)

    def A(self, x: Tensor) -> Tensor:
        return self.projector.A(x * self.mu_per_unit)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.projector.A_adjoint(y) * self.mu_per_unit

    def to_y(self, line_integrals: Tensor) -> Tensor:
        """Measured line integrals (B, 1, views, bins) without the constant of the affine scale."""
        return line_integrals - self.offset
