"""One contract for every operator: adjoint, pseudo-inverse, prox, composition."""

from __future__ import annotations

import pytest
import torch

from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.projector import projector
from ldctlib.errors import ParameterError
from ldctlib.operators import Composition, CTProjection, Identity, Operator, conjugate_gradient
from ldctlib.units import Range, hu_to_mu

SIZE = 32
HU = Range(-1000.0, 1000.0)


class Blur(Operator):
    """A circular blur whose spectrum has zeros: closed forms in Fourier space, none of them given to the operator."""

    def __init__(self, noise_sd: float = 0.1):
        super().__init__(noise_sd)
        f = torch.fft.fftfreq(SIZE, dtype=torch.float64)
        radius = torch.hypot(f[:, None], f[None, :])
        self.response = (1 - radius / 0.35).clamp(min=0)

    def A(self, x):
        return torch.fft.ifft2(torch.fft.fft2(x.double()) * self.response).real.to(x.dtype)

    A_adjoint = A


def few_views() -> CTProjection:
    geometry = ParallelGeometry.for_image(SIZE, 2.0, n_views=12)
    return CTProjection(projector(geometry), HU, noise_sd=0.01, iterations=300)


OPERATORS = {
    "identity": Identity,
    "blur": Blur,
    "few views": few_views,
    "few views of a blur": lambda: Composition(few_views(), Blur()),
}


@pytest.fixture(params=OPERATORS)
def operator(request) -> Operator:
    return OPERATORS[request.param]()


def images(seed: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def test_the_adjoint_is_the_transpose(operator):
    x = images(0)
    y = torch.randn(operator.A(x).shape, generator=torch.Generator().manual_seed(1))
    left = (operator.A(x).double() * y.double()).sum()
    right = (x.double() * operator.A_adjoint(y).double()).sum()
    assert abs(left - right) < 1e-5 * operator.A(x).norm() * y.norm()
    torch.testing.assert_close(
        operator.A(2 * x + 3 * images(2)), 2 * operator.A(x) + 3 * operator.A(images(2)), rtol=1e-4, atol=1e-4
    )


def test_the_pseudo_inverse_measures_what_was_measured(operator):
    """A A⁺ A = A; conjugate gradients in float32 leave .0013 of the worst-conditioned one, FBP leaves a third."""
    operator.iterations = 300
    y = operator.A(images(3))
    assert (operator.A(operator.A_dagger(y)) - y).norm() < 3e-3 * y.norm()


def test_the_prox_is_where_its_gradient_vanishes(operator):
    z, gamma = images(4), 0.7
    y = operator.A(images(5)) + 0.1
    x = operator.prox_l2(z, y, gamma)
    gradient = gamma * operator.A_adjoint(operator.A(x) - y) + (x - z)
    assert gradient.norm() < 1e-4 * (operator.A_adjoint(y).norm() * gamma + z.norm())


def test_the_blur_against_its_closed_forms():
    blur = Blur()
    y = blur.A(images(6))
    response = blur.response
    inverse = torch.where(response > 0, 1 / response.clamp(min=1e-9), 0)
    exact = torch.fft.ifft2(torch.fft.fft2(y.double()) * inverse).real
    blur.iterations = 500
    strong = torch.fft.fft2(blur.A_dagger(y).double() - exact).abs()[..., response > 0.2].max()
    assert strong < 1e-2 * torch.fft.fft2(exact).abs().max()
    z, gamma = images(7), 3.0
    solved = (torch.fft.fft2(z.double()) + gamma * response * torch.fft.fft2(y.double())) / (1 + gamma * response**2)
    torch.testing.assert_close(blur.prox_l2(z, y, gamma).double(), torch.fft.ifft2(solved).real, rtol=1e-3, atol=1e-4)


def test_filtered_backprojection_is_no_pseudo_inverse():
    operator = few_views()
    y = operator.A(images(3))
    fbp = operator.projector.fbp(y, "ramp") / operator.mu_per_unit
    assert (operator.A(fbp) - y).norm() > 0.1 * y.norm()


def test_line_integrals_of_hu_are_linear_in_the_model_range_plus_a_constant():
    operator, hu = few_views(), 300 * images(8)
    lines = operator.projector.A(hu_to_mu(hu))
    torch.testing.assert_close(operator.A(HU.to_model(hu)), operator.to_y(lines), rtol=1e-4, atol=1e-4)


def test_conjugate_gradients_solve_each_image_by_itself():
    """A batch of a hard and an easy system gives what each gives alone."""
    matrix = torch.diag(torch.linspace(1, 50, 20, dtype=torch.float64))
    b = torch.randn(2, 1, 1, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    b[1] = 0
    x = conjugate_gradient(lambda v: v @ matrix, b, 40)
    torch.testing.assert_close(x[0], b[0] @ torch.linalg.inv(matrix), rtol=1e-5, atol=1e-8)
    assert not x[1].any()


def test_noise_is_a_standard_deviation():
    with pytest.raises(ParameterError, match="noise_sd"):
        Identity(-1.0)
    with pytest.raises(TypeError, match="defines no A"):
        Operator().A(images(0))
    assert Composition(Identity(0.3), Blur(0.1)).noise_sd == 0.3
