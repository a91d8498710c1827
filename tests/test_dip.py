"""Deep image prior: the published layout, what is fitted first, falling back, averaging, stopping; A inside the loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from ldctlib import methods
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.methods.dip import SUPER_RESOLUTION, deep_image_prior, skip_network
from ldctlib.models.skip import SkipNetwork
from ldctlib.operators import Identity, Operator
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
    shares = []
    for y in (image, noise):
        errors = [step.residual_rms for step in fit(y, iterations=80, image_range=Range(-2.0, 3.0))]
        shares.append(min(errors[-10:]) / float(y.std()))
    of_image, of_noise = shares
    assert of_image < 0.5 * of_noise


def test_the_distance_to_the_truth_falls_and_rises_again():
    """Early stopping has something to find: the best of a noisy fit lies before its end, and above the noisy image."""
    truth = smooth()
    y = truth + 0.15 * torch.randn(truth.shape, generator=seeded(6))
    network = skip_network("cpu", seeded(0), width=32, scales=2)
    options = dict(image_range=Range(-1.0, 2.0), network=network, iterations=350, input_noise=0.0)
    distances, fits = zip(*((float((s.x - truth).norm()), s.residual_rms) for s in fit(y, **options)), strict=True)
    best = min(range(len(distances)), key=distances.__getitem__)
    assert 10 < best < 300
    assert distances[best] < 0.5 * (y - truth).norm()
    assert min(distances[-20:]) > 1.3 * distances[best]
    assert fits[-1] < 0.7 * fits[best]
