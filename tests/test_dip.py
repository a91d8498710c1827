"""Deep image prior: the published layout, what is fitted first, falling back, averaging, stopping, operators."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from ldctlib import methods
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.projector import projector
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.methods.dip import SUPER_RESOLUTION, deep_image_prior, skip_network
from ldctlib.models.skip import SkipNetwork
from ldctlib.operators import CTProjection, Identity, Operator
from ldctlib.units import Range

SIZE = 33
UNIT = Range(0.0, 1.0, 0.0, 1.0)
NARROW = dict(width=8, scales=3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(h: int = SIZE, w: int = SIZE) -> torch.Tensor:
    """A disc with a soft rim on a ramp, within [.2, .8]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    return (0.35 + 0.15 * x + 0.3 * torch.sigmoid(12 * (0.6 - torch.hypot(x, y))))[None, None]


def fit(y, operator=None, shape=None, *, seed: int = 0, **options):
    options = dict(network=skip_network("cpu", seeded(seed), **NARROW), image_range=UNIT, iterations=5) | options
    return deep_image_prior(y, operator or Identity(), shape or y.shape[-2:], generator=seeded(seed), **options)


class BlockMean(Operator):
    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def A(self, x):
        return F.avg_pool2d(x, self.factor)


# ---------------------------------------------------------------- the network


def test_the_published_layout_counted_by_hand():
    """Convolutions have biases; a normalisation has two numbers a channel. 2,217,831 for colour is the published."""

    def conv(a, b, k):
        return a * b * k * k + b + 2 * b

    def scale(inputs):
        down = conv(inputs, 128, 3) + conv(128, 128, 3)
        return conv(inputs, 4, 1) + down + 2 * 132 + conv(132, 128, 3) + conv(128, 128, 1)

    for channels, published in ((3, 2_217_831), (1, 2_217_573)):
        with torch.device("meta"):
            network = SkipNetwork(out_channels=channels)
        count = sum(p.numel() for p in network.parameters())
        assert count == published == scale(32) + 4 * scale(128) + 128 * channels + channels


def test_the_network_against_its_formula():
    """One scale: down, up, crop, join, in functional form."""
    network = skip_network("cpu", seeded(1), in_channels=3, width=5, skip_channels=2, scales=1)
    z = torch.randn(1, 3, 7, 9, generator=seeded(2))
    p = dict(network.named_parameters())

    def layer(x, at, kernel, stride=1):
        x = F.pad(x, (kernel // 2,) * 4, mode="reflect") if kernel > 1 else x
        x = F.conv2d(x, p[f"{at}.0.weight"], p[f"{at}.0.bias"], stride)
        return F.leaky_relu(F.batch_norm(x, None, None, training=True), 0.2)

    deep = layer(layer(z, "scales.down.0", 3, 2), "scales.down.1", 3)
    assert deep.shape[-2:] == (4, 5)
    deep = F.interpolate(deep, size=(8, 10), mode="bilinear", align_corners=False)[..., :7, :9]
    x = F.batch_norm(torch.cat([layer(z, "scales.skip", 1), deep], 1), None, None, training=True)
    x = layer(layer(x, "scales.up.1", 3), "scales.up.2", 1)
    expected = F.conv2d(x, p["out.weight"], p["out.bias"]).sigmoid()
    torch.testing.assert_close(network(z), expected, rtol=1e-4, atol=1e-5)


def test_weights_are_drawn_from_the_generator_alone():
    before = torch.get_rng_state()
    first, second, other = (skip_network("cpu", seeded(s), **NARROW).state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[n], second[n]) for n in first)
    weight = first["scales.up.1.0.weight"]
    assert not torch.equal(weight, other["scales.up.1.0.weight"])
    bound = weight[0].numel() ** -0.5
    # of 864 uniform numbers the largest is within 2 % of the bound but once in 3e7
    assert 0.98 * bound < weight.abs().max() <= bound


# ---------------------------------------------------------------- the prior


def test_an_image_is_fitted_sooner_than_noise():
    """The method's claim: as far along, the fit of an image has less error left than that of noise of its variance."""
    image = smooth()
    noise = torch.randn(image.shape, generator=seeded(5)) * image.std() + image.mean()
    left = []
    for y in (image, noise):
        errors = [step.residual_rms for step in fit(y, iterations=40, image_range=Range(-2.0, 3.0))]
        left.append(min(errors[-10:]) / float(y.std()))
    assert left[0] < 0.5 * left[1]


def test_the_distance_to_the_truth_falls_and_rises_again():
    """Early stopping has something to find: the best of a noisy fit lies long before its end, which is noisy again."""
    truth = smooth()
    y = truth + 0.15 * torch.randn(truth.shape, generator=seeded(6))
    network = skip_network("cpu", seeded(), width=16, scales=2)
    options = dict(image_range=Range(-1.0, 2.0), network=network, iterations=100, input_noise=0.0)
    left, fits = zip(*((float((s.x - truth).norm()), s.residual_rms) for s in fit(y, **options)), strict=True)
    best = min(range(len(left)), key=left.__getitem__)
    assert 3 < best < 60
    assert left[best] < 0.5 * (y - truth).norm()
    assert min(left[-10:]) > 1.5 * left[best]
    assert fits[-1] < 0.7 * fits[best]


def test_a_bad_step_is_taken_back():
    """Weights that lose more than 5 dB, or are not finite, give way to those before; the average leaves them out."""
    y, network = smooth(), skip_network("cpu", seeded(), **NARROW)
    bad, steps = {8: 30.0, 12: math.nan}, []
    for step in fit(y, network=network, iterations=16, input_noise=0.0):
        steps.append(step)
        if step.i - 1 in bad:
            before = steps[-2]
            assert step.fell_back and not step.fit_psnr >= before.fit_psnr - 5
            assert torch.equal(step.x_average, before.x_average)
        if step.i - 2 in bad:
            assert not step.fell_back
            torch.testing.assert_close(step.x, steps[-3].x)  # the weights before the bad step give the image before it
        if step.i in bad:
            network.out.bias.data.fill_(bad[step.i])
    assert [s.i for s in steps if s.fell_back] == [9, 13]
    assert steps[-1].fit_psnr > steps[8].fit_psnr - 1 and torch.isfinite(steps[-1].x_average).all()


def test_without_backtracking_a_bad_step_stays():
    network = skip_network("cpu", seeded(), **NARROW)
    for step in fit(smooth(), network=network, iterations=4, backtrack_db=None):
        if step.i == 1:
            network.out.bias.data.fill_(30.0)
        assert not step.fell_back
    assert step.x.min() > 0.99


def test_the_average_equals_its_closed_form():
    """ema^n x_0 + (1 - ema) times the sum over k of ema^(n - k) x_k."""
    ema = 0.8
    steps = list(fit(smooth(), iterations=7, ema=ema))
    for n, step in enumerate(steps):
        expected = ema**n * steps[0].x + (1 - ema) * sum(ema ** (n - k) * steps[k].x for k in range(1, n + 1))
        torch.testing.assert_close(step.x_average, expected)
        rms = (step.x - smooth()).square().mean().sqrt()
        assert step.residual_rms == pytest.approx(float(rms), rel=1e-5)
        peak = smooth().max() - smooth().min()
        assert step.fit_psnr == pytest.approx(float(20 * torch.log10(peak / rms)), rel=1e-5)


def test_the_operator_is_inside_the_loss():
    """From block means alone: A f(z) comes near y, and the image nearer to the truth than y enlarged."""
    truth, operator = smooth(36, 40), BlockMean(4)
    y, network = operator.A(truth), skip_network("cpu", seeded(), width=16, scales=2)
    *_, step = fit(y, operator, (36, 40), network=network, **SUPER_RESOLUTION[4] | dict(iterations=80))
    assert step.x.shape == truth.shape
    assert step.residual_rms == pytest.approx(float((operator.A(step.x) - y).square().mean().sqrt()), rel=1e-4)
    assert step.residual_rms < 0.2 * y.std()
    assert (step.x - truth).norm() < (F.interpolate(y, scale_factor=4) - truth).norm()


def test_projections_can_be_fitted():
    """Autograd passes the projector; the image is in the operator's range."""
    operator = CTProjection(projector(ParallelGeometry.for_image(SIZE, 2.0, n_views=8)), Range(-1000.0, 1000.0))
    y = operator.A(smooth())
    first, *_, last = fit(y, operator, (SIZE, SIZE), iterations=25, input_noise=0.0)
    assert last.residual_rms < 0.4 * first.residual_rms
    assert (last.x - smooth()).norm() < 0.6 * (first.x - smooth()).norm()


def test_the_range_is_covered_and_nothing_is_clipped():
    """Values outside the stated range are not reached, those inside are, in the data's own unit."""
    y = 1000 * smooth() - 700
    for step in fit(y, iterations=30, image_range=Range(-500.0, 300.0)):
        assert -500 < step.x.min() and step.x.max() < 300
    assert step.residual_rms < 0.3 * y.std()
    *_, last = fit(y, iterations=3, image_range=Range(0.0, 300.0))
    assert last.x.min() > 0 > y.min()


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (33, 34), (47, 35)])
def test_any_size(size):
    steps = list(fit(smooth(*size), iterations=2, network=skip_network("cpu", seeded(), width=4)))
    assert all(s.x.shape == s.x_average.shape == (1, 1, *size) and torch.isfinite(s.x).all() for s in steps)


# ---------------------------------------------------------------- the method


def test_images_do_not_depend_on_their_batch_and_seeds_decide():
    denoise = methods.load("dip", width=4, iterations=3)
    pair = 100 * torch.cat([smooth(), smooth().flip(3) + 0.1])
    both, first = denoise(pair, generator=seeded(7)), denoise(pair[:1], generator=seeded(7))
    assert torch.equal(both[:1], first)
    assert torch.equal(both, denoise(pair, generator=seeded(7)))
    assert not torch.allclose(first, denoise(pair[:1], generator=seeded(8)))
    assert torch.equal(denoise(pair[:1]), denoise(pair[:1], generator=seeded(0)))  # as for every method
    assert not torch.allclose(both[1:], denoise(pair[1:], generator=seeded(7)))  # each image has its own stream


def test_a_constant_image_is_an_image():
    out = methods.load("dip", width=4, iterations=2)(torch.full((1, 1, SIZE, SIZE), 30.0))
    assert 29 < out.min() and out.max() < 31


def test_the_discrepancy_principle_stops_where_the_residual_is_the_noise():
    """A noise model of that strength ends the fit early; the fixed count goes on."""
    from dataclasses import dataclass

    @dataclass
    class Known:
        sd_hu: float
        map_hu: torch.Tensor | None = None

    y = 1000 * smooth() + 40 * torch.randn(1, 1, SIZE, SIZE, generator=seeded(9))
    options = dict(width=8, ema=0.0, input_noise=0.0)
    stopped = methods.load("dip", stop="discrepancy", iterations=200, **options)
    for known in (Known(80.0), Known(1.0, torch.full((1, 1, SIZE, SIZE), 80.0)), Known(80.0, torch.ones(1, 1, 4, 4))):
        rms = float((stopped(y, noise=known) - y).square().mean().sqrt())
        assert 50 < rms <= 80
    short = methods.load("dip", stop="discrepancy", iterations=2, **options)(y, noise=Known(80.0))
    assert torch.equal(short, methods.load("dip", iterations=2, **options)(y))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(iterations=0), "iterations"),
        (dict(iterations=2.5), "iterations"),
        (dict(input_noise=-0.1), "input_noise"),
        (dict(learning_rate=0.0), "learning_rate"),
        (dict(ema=1.0), "ema"),
        (dict(backtrack_db=-5.0), "backtrack_db"),
    ],
)
def test_bad_options_are_named_at_once(options, match):
    with pytest.raises(ParameterError, match=match):
        fit(smooth(), **options)
    with pytest.raises(ParameterError, match=match):
        methods.load("dip", **options)


def test_what_cannot_be_fitted_is_said_at_once():
    with pytest.raises(ParameterError, match="discrepancy"):
        methods.load("dip", stop="variance")
    with pytest.raises(ParameterError, match="width"):
        methods.load("dip", width=0)
    with pytest.raises(ParameterError, match="options"):
        methods.load("dip", steps=3)
    with pytest.raises(ShapeError, match="one image"):
        fit(torch.cat([smooth(), smooth()]))
    with pytest.raises(ShapeError, match=r"\(H, W\)"):
        fit(smooth(), shape=(33,))
    with pytest.raises(ShapeError, match=r"\(1, 1, 8, 8\), and y is"):
        fit(smooth(), BlockMean(4), (33, 33))
    with pytest.raises(ShapeError, match="at least 9 pixels"):
        skip_network("cpu", seeded(), **NARROW)(torch.zeros(1, 32, 8, 8))


def test_the_published_options_are_the_defaults():
    method = methods.METHODS["dip"]
    assert (method.family, method.scale, method.evaluations) == ("optimisation", "HU", 3000)
    defaults = method.load.__kwdefaults__
    published = dict(iterations=3000, width=128, input_noise=1 / 30, learning_rate=0.01, ema=0.99, backtrack_db=5.0)
    assert published.items() <= defaults.items()
    assert published.items() - {("width", 128)} <= deep_image_prior.__kwdefaults__.items()
    assert SUPER_RESOLUTION[4]["iterations"] == 2000 and SUPER_RESOLUTION[8]["iterations"] == 4000
