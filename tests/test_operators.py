"""One contract for every operator: adjoint, pseudo-inverse, prox, composition."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.projector import projector
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.operators import (
    BlockMean,
    Composition,
    CorrelatedNoise,
    CTProjection,
    Identity,
    Mask,
    Operator,
    WhiteNoise,
    conjugate_gradient,
)
from ldctlib.units import hu_to_mu

SIZE = 32
SEEN = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(11)) > 0.3


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


def few_views(turn_rad: float = math.pi) -> CTProjection:
    """Twelve views; in units of the image, where a pixel is 1000 / MU_WATER, the projector is of order one."""
    geometry = replace(ParallelGeometry.for_image(SIZE, 2.0, n_views=12), turn_rad=turn_rad)
    return CTProjection(projector(geometry), 0.01, iterations=300)


OPERATORS = {
    "identity": Identity,
    "means over 4 x 4": lambda: BlockMean(4),
    "seen pixels": lambda: Mask(SEEN),
    "means of the seen": lambda: Composition(BlockMean(2), Mask(SEEN)),
    "seen means": lambda: Composition(Mask(SEEN[:16, :16]), BlockMean(2)),
    "means of means": lambda: Composition(BlockMean(2), BlockMean(4)),
    "blur": Blur,
    "few views": few_views,
    "a limited arc": lambda: few_views(2.0),
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
    fbp = operator.fbp(y)
    assert (operator.A(fbp) - y).norm() > 0.1 * y.norm()


def test_line_integrals_of_hu_are_linear_in_the_model_range_plus_a_constant():
    operator, hu = few_views(), 300 * images(8)
    lines = operator.projector.A(hu_to_mu(hu))
    torch.testing.assert_close(operator.A(hu), operator.to_y(lines), rtol=1e-4, atol=1e-4)


def test_conjugate_gradients_solve_each_image_by_itself():
    """A batch of a hard and an easy system gives what each gives alone."""
    matrix = torch.diag(torch.linspace(1, 50, 20, dtype=torch.float64))
    b = torch.randn(2, 1, 1, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    b[1] = 0
    x = conjugate_gradient(lambda v: v @ matrix, b, 40)
    torch.testing.assert_close(x[0], b[0] @ torch.linalg.inv(matrix), rtol=1e-5, atol=1e-8)
    assert not x[1].any()


@pytest.mark.parametrize("name", ["identity", "means over 4 x 4", "seen pixels", "seen means", "means of means"])
def test_singular_values_that_are_known_are_those_of_the_matrix(name):
    operator = OPERATORS[name]()
    basis = torch.eye(SIZE * SIZE).reshape(-1, 1, SIZE, SIZE)
    singular = torch.linalg.svdvals(operator.A(basis).flatten(1))
    nonzero = singular[singular > 1e-4]
    torch.testing.assert_close(nonzero, torch.full_like(nonzero, operator.singular_values), rtol=1e-4, atol=1e-6)
    assert operator.full_row_rank == (len(nonzero) == operator.A(basis[:1]).numel())


def test_means_of_a_masked_image_have_no_single_singular_value():
    assert OPERATORS["means of the seen"]().singular_values is None


def test_sizes_and_masks_that_do_not_fit_are_named():
    with pytest.raises(ShapeError, match="32 x 32 pixels have no means over 3 x 3"):
        BlockMean(3).A(images(0))
    with pytest.raises(ParameterError, match="whole number"):
        BlockMean(0)
    with pytest.raises(ShapeError, match="bool"):
        Mask(torch.ones(4, 4))
    with pytest.raises(ShapeError, match="16"):
        Mask(SEEN[:16, :16]).A(images(0))
    with pytest.raises(ParameterError, match="not stationary"):
        Mask(SEEN, coloured(5.0))
    with pytest.raises(ShapeError, match="spectrum"):
        coloured(5.0).filter(images(0)[..., :16], torch.ones_like)
    with pytest.raises(ShapeError, match="not divisible by 5"):
        coloured(5.0).block_mean(5)


def coloured(sd: float, shape=(SIZE, SIZE)) -> CorrelatedNoise:
    f = torch.hypot(torch.fft.fftfreq(shape[0])[:, None], torch.fft.fftfreq(shape[1])[None]).double()
    power = f * torch.exp(-((f / 0.3) ** 2)) + 0.01
    return CorrelatedNoise.from_psd(sd**2 * power / power.mean(), 1.0)


@pytest.mark.parametrize("shape", [(32, 32), (24, 36), (15, 21)])
def test_correlated_noise_is_independent_in_its_coordinates(shape):
    """Its coordinates are orthonormal, its standard deviation is that of what they draw, odd sizes included."""
    noise = coloured(5.0, shape)
    white = torch.randn(400, 1, *shape, generator=torch.Generator().manual_seed(1))
    drawn = noise.filter(white, lambda sd: sd)
    assert abs(float(drawn.std()) / noise.sd - 1) < 0.01 and abs(noise.sd - 5.0) < 1e-6
    torch.testing.assert_close(noise.filter(white, torch.ones_like), white, rtol=0, atol=1e-5)
    assert noise.scaled(-2.0).sd == pytest.approx(10.0) and WhiteNoise(5.0).scaled(0.1).sd == 0.5


def test_noise_that_varies_is_as_strong_as_it_says_everywhere():
    """Filtering white noise by its own standard deviation draws it; a constant strength is that of stationary noise."""
    noise, strength = coloured(5.0, (64, 64)), torch.linspace(0.5, 2.0, 64).expand(1, 1, 64, 64)
    white = torch.randn(600, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    drawn = noise.varying(strength).filter(white, lambda sd: sd)
    columns = (drawn.std(dim=(0, 1, 2)) / (5.0 * strength[0, 0, 0]))[4:-4]
    assert float((columns - 1).abs().max()) < 0.04  # five strengths interpolate; a column's own error is .4 %
    same = noise.varying(torch.full((1, 1, 64, 64), 2.0)).filter(white[:2], lambda sd: sd)
    torch.testing.assert_close(same, noise.scaled(2.0).filter(white[:2], lambda sd: sd), rtol=1e-3, atol=1e-3)
    assert noise.varying(strength).largest_sd == pytest.approx(2 * noise.largest_sd, rel=1e-4)
    with pytest.raises(ShapeError, match="strength is above 0"):
        noise.varying(torch.zeros(1, 1, 64, 64))


@pytest.mark.parametrize("shape", [(32, 32), (24, 48)])
def test_means_of_correlated_noise_have_the_folded_spectrum(shape):
    noise, r = coloured(5.0, shape), 4
    white = torch.randn(3000, 1, *shape, generator=torch.Generator().manual_seed(2))
    drawn = noise.filter(white, lambda sd: sd)
    means = BlockMean(r).A(drawn)
    folded = noise.block_mean(r)
    measured = torch.fft.rfft2(means, norm="ortho").abs().square().mean(dim=(0, 1)).double()
    assert float((measured / folded.variance - 1).abs().max()) < 0.12  # 5 standard errors of 3000 real draws
    assert abs(float(means.std()) / folded.sd - 1) < 0.02


def test_noise_is_a_standard_deviation():
    with pytest.raises(ParameterError, match="noise_sd"):
        Identity(-1.0)
    with pytest.raises(TypeError, match="defines no A"):
        Operator().A(images(0))
    assert Composition(Identity(0.3), Blur(0.1)).noise_sd == 0.3
