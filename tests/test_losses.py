"""Ramps, KL in closed form, perceptual distances by hand, and the autoencoder's objective term by term."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as exact_kl
from torch.nn import functional as F

from ldctlib import losses
from ldctlib.errors import CheckpointError, ParameterError, ShapeError
from ldctlib.losses import AutoencoderLoss, EncoderFeatures, Ramp, VGG16Features
from ldctlib.models.autoencoder import Autoencoder, Posterior


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def small_autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(width=8, channel_mult=(1, 2), blocks=1, attention_at=(2,), norm_groups=4)


# ---------------------------------------------------------------- ramps


def test_ramp():
    ramp = Ramp(final=0.8, start=100, end=300)
    assert [ramp(s) for s in (0, 99, 100, 150, 200, 300, 10_000)] == pytest.approx([0, 0, 0, 0.2, 0.4, 0.8, 0.8])
    assert Ramp(0.5)(0) == 0.5  # constant from the first step
    switch = Ramp(0.5, 10, 10)
    assert (switch(9), switch(10)) == (0, 0.5)
    from_the_start = Ramp(1.0, 0, 300)  # section 3.2
    assert (from_the_start(0), from_the_start(30)) == (0, pytest.approx(0.1))


@pytest.mark.parametrize("bad", [(1.0, 5, 4), (1.0, -1, 4), (-1.0, 0, 1), (float("nan"), 0, 1)])
def test_ramp_refuses(bad):
    with pytest.raises(ParameterError, match="Ramp"):
        Ramp(*bad)


# ---------------------------------------------------------------- KL


def test_kl_closed_forms():
    zero = torch.zeros(2, 3, 4, 4)
    assert torch.equal(losses.kl_divergence(zero, zero), torch.zeros(2))
    # one latent at mean 2, variance e: (4 + e - 1 - 1) / 2
    mean, logvar = torch.full((1, 1), 2.0), torch.ones(1, 1)
    assert losses.kl_divergence(mean, logvar).item() == pytest.approx((2 + math.e) / 2)
    mean, logvar = normal(3, 2, 4, 5), normal(3, 2, 4, 5, seed=2)
    exact = exact_kl(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(losses.kl_divergence(mean, logvar), exact)
    # summed, not averaged: twice the latent, twice the nats
    torch.testing.assert_close(losses.kl_divergence(torch.cat([mean] * 2, 1), torch.cat([logvar] * 2, 1)), 2 * exact)


def test_kl_gradient_pulls_to_the_standard_normal():
    mean, logvar = normal(1, 6).requires_grad_(), normal(1, 6, seed=3).requires_grad_()
    losses.kl_divergence(mean, logvar).sum().backward()
    torch.testing.assert_close(mean.grad, mean.detach())
    torch.testing.assert_close(logvar.grad, (logvar.detach().exp() - 1) / 2)


def test_kl_is_float32_whatever_autocast_made():
    mean = torch.full((1, 1000), 0.1, dtype=torch.bfloat16)
    value = losses.kl_divergence(mean, torch.zeros_like(mean))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(500 * float(mean[0, 0]) ** 2, rel=1e-5)


# ---------------------------------------------------------------- perceptual


def vgg_weights() -> dict[str, torch.Tensor]:
    """Random weights in the published layout, down to relu3_3, He-scaled so that deep maps do not fade."""
    widths = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
    weights = {}
    for i, (c, d) in widths.items():
        weights[f"features.{i}.weight"] = normal(d, c, 3, 3, seed=i) * math.sqrt(2 / (9 * c))
        weights[f"features.{i}.bias"] = normal(d, seed=i + 100) * 0.1
    return weights


LAYERS = ("relu1_2", "relu2_2", "relu3_3")


@pytest.fixture(scope="module")
def vgg() -> VGG16Features:
    return VGG16Features(vgg_weights(), layers=LAYERS, low=-1.0, high=3.0)


def test_vgg_features_by_hand(vgg):
    x, w = normal(2, 1, 16, 20), vgg_weights()
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    h = ((x + 1) / 4 - mean) / std
    maps = []
    for block in ((0, 2), (5, 7), (10, 12, 14)):
        if block[0]:
            h = F.max_pool2d(h, 2)
        for i in block:
            h = F.conv2d(h, w[f"features.{i}.weight"], w[f"features.{i}.bias"], padding=1).clamp_min(0)
        maps.append(h)
    for ours, by_hand in zip(vgg(x), maps, strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=1e-5, atol=1e-5)  # float32 sums of 2304 products
    torch.testing.assert_close(vgg(x.expand(-1, 3, -1, -1))[2], maps[2], rtol=1e-5, atol=1e-5)


def test_perceptual_distance_by_hand(vgg):
    x_hat, x = normal(2, 1, 16, 16).requires_grad_(), normal(2, 1, 16, 16, seed=4).requires_grad_()
    value = losses.perceptual_distance(vgg, x_hat, x)
    expected = sum((a - b).abs().mean() for a, b in zip(vgg(x_hat), vgg(x), strict=True))
    torch.testing.assert_close(value, expected)
    value.backward()
    assert x_hat.grad.abs().min() >= 0 and x_hat.grad.abs().max() > 0
    assert x.grad is None  # the reference is a constant
    assert losses.perceptual_distance(vgg, x, x) == 0
    assert not any(p.requires_grad for p in vgg.parameters())


def test_vgg_stays_frozen_in_eval(vgg):
    assert not vgg.train().training
    assert not vgg.network.training


def test_vgg_refuses(vgg, tmp_path, monkeypatch):
    with pytest.raises(ParameterError, match="relu9_9"):
        VGG16Features(vgg_weights(), layers=("relu9_9",))
    with pytest.raises(ParameterError, match="high > low"):
        VGG16Features(vgg_weights(), low=1, high=1)
    with pytest.raises(CheckpointError, match="vgg16"):
        VGG16Features(vgg_weights(), layers=("relu4_3",))  # deeper than these weights go
    with pytest.raises(ShapeError, match="16 pixels"):
        vgg(normal(1, 1, 8, 8))
    with pytest.raises(ShapeError, match="1 or 3"):
        vgg(normal(1, 2, 16, 16))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # an empty cache
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(CheckpointError, match="EncoderFeatures"):
        losses.vgg16_features()


def test_vgg_weights_come_from_torchs_cache_by_torchvisions_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(vgg_weights(), folder / "vgg16-397923af.pth")
    features = losses.vgg16_features(layers=("relu1_2",))
    assert torch.equal(features.network[2].weight, vgg_weights()["features.2.weight"])


def test_encoder_features_are_a_frozen_named_copy():
    autoencoder = small_autoencoder()
    features = EncoderFeatures(autoencoder)
    assert features.stand_in and features.name == "simple_autoencoder_encoder"
    assert not VGG16Features.stand_in
    x, x_hat = normal(1, 1, 10, 9), normal(1, 1, 10, 9, seed=5)
    before = losses.perceptual_distance(features, x_hat, x)
    expected = sum(
        (a - b).abs().mean() for a, b in zip(autoencoder.features(x_hat), autoencoder.features(x), strict=True)
    )
    torch.testing.assert_close(before, expected)
    with torch.no_grad():
        for p in autoencoder.parameters():
            p.add_(1)  # training on does not move the copy
    assert torch.equal(losses.perceptual_distance(features, x_hat, x), before)
    assert not features.train().training
    assert not any(p.requires_grad for p in features.parameters())
    x_hat.requires_grad_()
    losses.perceptual_distance(features, x_hat, x).backward()
    assert x_hat.grad.abs().max() > 0


# ---------------------------------------------------------------- the objective


def test_autoencoder_loss_term_by_term():
    features = EncoderFeatures(small_autoencoder())
    objective = AutoencoderLoss(kl=Ramp(1e-3, 10, 20), perceptual=Ramp(0.2, 0, 40), features=features)
    x_hat, x = normal(2, 1, 8, 8), normal(2, 1, 8, 8, seed=4)
    posterior = Posterior(normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=6))
    terms = objective(x_hat, x, posterior, step=15)
    mse, l1 = ((x_hat - x) ** 2).mean(), (x_hat - x).abs().mean()
    kl = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - posterior.logvar - 1).sum() / (2 * 64)
    perceptual = losses.perceptual_distance(features, x_hat, x)
    expected = {"mse": mse, "l1": l1, "kl": kl, "perceptual": perceptual}
    expected["loss"] = mse + 0.5 * l1 + 0.5e-3 * kl + 0.2 * 15 / 40 * perceptual
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)


def test_autoencoder_loss_is_pixels_only_before_the_ramps():
    calls = []
    features = EncoderFeatures(small_autoencoder())
    features.register_forward_hook(lambda *_: calls.append(1))
    objective = AutoencoderLoss(kl=Ramp(1.0, 5, 9), perceptual=Ramp(1.0, 5, 9), features=features)
    x_hat, x = normal(2, 1, 8, 8), normal(2, 1, 8, 8, seed=4)
    posterior = Posterior(normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=6))
    terms = objective(x_hat, x, posterior, step=5)
    torch.testing.assert_close(terms["loss"], F.mse_loss(x_hat, x) + 0.5 * F.l1_loss(x_hat, x))
    assert "perceptual" not in terms and not calls  # not even computed
    assert terms["kl"] > 0  # watched from the start
    assert "perceptual" in objective(x_hat, x, posterior, step=6)


def test_kl_weight_is_that_of_a_loss_summed_over_the_image():
    """Latent diffusion sums squares and KL over the image: ours is that objective over the pixel count."""
    objective = AutoencoderLoss(kl=Ramp(1e-6), l1=0.0)
    gradients = []
    for size in (8, 16):
        x_hat, x = normal(1, 1, size, size).requires_grad_(), torch.zeros(1, 1, size, size)
        mean = normal(1, 3, size // 4, size // 4, seed=2).requires_grad_()
        logvar = torch.zeros_like(mean)
        ours = objective(x_hat, x, Posterior(mean, logvar), 0)["loss"]
        summed = (x_hat - x).square().sum() + 1e-6 * losses.kl_divergence(mean, logvar).sum()
        torch.testing.assert_close(ours, summed / size**2)
        ours.backward()
        gradients.append((x_hat.grad / x_hat.detach()).mean() / (mean.grad / mean.detach()).mean())
    # pixels pull 2 per unit, latents 1e-6 per unit, in images of either size
    torch.testing.assert_close(torch.stack(gradients), torch.full((2,), 2e6))


def test_autoencoder_loss_refuses():
    with pytest.raises(ParameterError, match="go together"):
        AutoencoderLoss(perceptual=Ramp(1.0))
    with pytest.raises(ParameterError, match="go together"):
        AutoencoderLoss(features=EncoderFeatures(small_autoencoder()))
    with pytest.raises(ShapeError, match="differ"):
        AutoencoderLoss()(normal(1, 1, 8, 8), normal(2, 1, 8, 8), Posterior(*[normal(1, 3, 4, 4)] * 2), 0)


# ---------------------------------------------------------------- the shim

SHIM_SCRIPT = """
import sys, torch
from ldctlib import compat as shim
mode = sys.argv[1]
if mode == "loads":
    shim._extension_loads = lambda folder: True
needed = shim.torchvision_shim()
has_nms = hasattr(torch.ops.torchvision, "nms")
if mode == "loads":
    assert not needed and not shim._SHIM_LIBRARIES and not has_nms  # inert: it defined nothing
else:
    assert has_nms  # by the extension itself or by the shim
    import torchvision
    with torch.device("meta"):
        torchvision.models.vgg16(weights=None)
    assert shim.torchvision_shim() == needed  # a second call changes nothing
"""


@pytest.mark.parametrize("mode", ["as it is", "loads"])
def test_torchvision_shim(mode):
    done = subprocess.run([sys.executable, "-c", SHIM_SCRIPT, mode], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
