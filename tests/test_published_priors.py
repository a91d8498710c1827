"""Published priors of three channels on grey images: the exact argument on a Gaussian prior, loading, refusing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from ldctlib.diffusion import samplers, schedule
from ldctlib.diffusion.process import q_sample
from ldctlib.errors import CheckpointError, ParameterError
from ldctlib.models.unet import RELEASED_CT_MR, UNet
from ldctlib.pipelines import DiffusionPipeline, PipelineSpec, published
from ldctlib.pipelines.published import GreyOfThree, published_prior
from ldctlib.units import Range

LINEAR = schedule.linear()
HU = Range(-1000.0, 1000.0)
SD = 0.3
TINY = dict(in_channels=3, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_at=(2,), norm_groups=4)


class GreyPrior(nn.Module):
    """The exact predictor of three equal channels x0 ~ N(0, SD²), times from 0 and between whole ones.

    ``share`` is the variance of the noise in the mean of the channels, in that of one channel: a third where it is
    independent, 1 where it is one noise in all three.
    """

    in_channels, factor, conditions = 3, 1, ()

    def __init__(self, share: float):
        super().__init__()
        self.share, self.asked = share, []

    def forward(self, x, t):
        self.asked.append((x, t))
        ratio = ((1 - LINEAR.alpha_bar[1:]) / LINEAR.alpha_bar[1:]).log().numpy()
        log_ratio = torch.from_numpy(np.interp(t.double().numpy(), np.arange(len(ratio)), ratio))[:, None, None, None]
        alpha_bar = 1 / (1 + log_ratio.exp())
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        mean = x.double().mean(1, keepdim=True)
        x0 = signal * SD**2 * mean / (signal**2 * SD**2 + self.share * noise**2)
        return ((x - signal * x0) / noise).to(x.dtype)


PRIORS = {"independent": 1 / 3, "replicated": 1.0}


def grey_images(count: int = 2, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- the argument


@pytest.mark.parametrize("channel_noise", PRIORS)
@pytest.mark.parametrize("t", [1, 2, 30, 400, 900])
def test_the_grey_prediction_is_the_exact_one_of_one_channel(channel_noise, t):
    """E[eps | x_t] of a scalar x0 ~ N(0, SD²), whatever noise the three-channel network was trained with."""
    grey = GreyOfThree(GreyPrior(PRIORS[channel_noise]), LINEAR, channel_noise)
    x_t = grey_images()
    alpha_bar = LINEAR.at(t)
    exact = math.sqrt(1 - alpha_bar) * x_t / (alpha_bar * SD**2 + 1 - alpha_bar)
    torch.testing.assert_close(grey(x_t, torch.full((2,), t)), exact, rtol=1e-3, atol=1e-5)


def test_the_network_is_asked_what_it_was_trained_with():
    """At t' the three channels hold √ᾱ' x0 plus noise that is independent between them and has variance 1 − ᾱ'."""
    network = GreyPrior(1 / 3)
    grey = GreyOfThree(network, LINEAR)
    t, size = 250, 200
    x0 = 0.5 * grey_images(1, size, seed=1)
    grey(q_sample(LINEAR, x0, t, grey_images(1, size, seed=2)), torch.tensor([t]))
    ((x, asked),) = network.asked
    alpha_bar = LINEAR.at(t)
    shifted = alpha_bar / (alpha_bar + 3 * (1 - alpha_bar))
    # the time whose ᾱ is the shifted one, counted from 0
    before = int(asked) + 1
    assert LINEAR.at(before) > shifted > LINEAR.at(before + 1)
    eps = ((x - math.sqrt(shifted) * x0) / math.sqrt(1 - shifted))[0].flatten(1)
    # covariances of 40,000 pixels scatter by 1/200 each
    torch.testing.assert_close(torch.cov(eps), torch.eye(3, dtype=eps.dtype), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("trained", "used", "times_the_variance"),
    [
        ("independent", "independent", 1.0),
        ("replicated", "replicated", 1.0),
        ("independent", "replicated", 3.0),
        ("replicated", "independent", 1 / 3),
    ],
)
def test_the_variance_that_a_chain_draws(trained, used, times_the_variance):
    """The flow is linear, so its image of 1 squared is the variance. The wrong noise draws three times it, or a third.

    In v = x / √ᾱ over ρ = √(1/ᾱ − 1), dv/dρ = ρ s v / (SD² + ρ² s) with s = 1 for the right noise, 1/3 and 3 for the
    wrong ones, so v(0) = SD ρ_T / √(SD² + s ρ_T²).
    """
    grey = GreyOfThree(GreyPrior(PRIORS[trained]), LINEAR, used)
    x_T = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    drawn = samplers.final(samplers.ddim(grey, x_T, LINEAR, LINEAR.times(500)))
    # 500 steps of order 1 end 1 % low
    assert float(drawn) ** 2 == pytest.approx(times_the_variance * SD**2, rel=0.04)


def test_a_result_depends_on_its_image_alone():
    torch.manual_seed(3)
    network = UNet(**TINY)
    nn.init.normal_(network.out[-1].weight)
    grey = GreyOfThree(network.double(), LINEAR)
    x_t, t = grey_images(3), torch.tensor([7, 300, 1000])
    together = grey(x_t, t)
    assert together.shape == x_t.shape and together.std() > 0.1
    torch.testing.assert_close(together[1:2], grey(x_t[1:2], 300))
    assert torch.isfinite(grey(x_t, 1)).all()
    assert set(grey.state_dict()) == {f"network.{name}" for name in network.state_dict()}


def test_replicated_copies_and_averages():
    torch.manual_seed(4)
    network = UNet(**TINY, learn_sigma=True)
    nn.init.normal_(network.out[-1].weight)
    grey = GreyOfThree(network.double(), LINEAR, "replicated")
    x_t, t = grey_images(), torch.tensor([1, 500])
    expected = network(x_t.repeat(1, 3, 1, 1), t - 1)[:, :3].mean(1, keepdim=True)
    torch.testing.assert_close(grey(x_t, t), expected)


# ---------------------------------------------------------------- loading


@pytest.fixture
def tiny_layouts(monkeypatch):
    """Layouts of the published kinds, small."""
    monkeypatch.setitem(published.LAYOUTS, "released", TINY)
    other = TINY | dict(num_head_channels=8, resblock_updown=True, learn_sigma=True)
    monkeypatch.setitem(published.LAYOUTS, "guided_diffusion_256", other)


def tiny_weights(layout: str, seed: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = UNet(**published.LAYOUTS[layout]).state_dict()
    return {name: 0.2 * torch.randn(w.shape, generator=generator) for name, w in shapes.items()}


def test_the_released_layout_places_its_612_tensors(tmp_path):
    with torch.device("meta"):
        shapes = {name: w.shape for name, w in UNet(**RELEASED_CT_MR).state_dict().items()}
    assert len(shapes) == 612 and sum(map(math.prod, shapes.values())) == 41_123_331
    state = {name: torch.full(shape, k / 2**14) for k, (name, shape) in enumerate(shapes.items())}
    torch.save({name: w.half() for name, w in state.items()}, tmp_path / "CT.pt")
    pipeline = published_prior(tmp_path / "CT.pt", hu_range=HU)
    placed = pipeline.network.network.state_dict()
    assert placed.keys() == state.keys()
    assert all(torch.equal(placed[name], w) for name, w in state.items())
    assert pipeline.network.factor == pipeline.grid.multiple == 32 and pipeline.network.in_channels == 1
    spec = dict(schedule="linear", T=1000, prediction="eps")
    assert pipeline.process.to_spec() == spec and pipeline.grid.hu_range == HU


@pytest.mark.parametrize("layout", published.LAYOUTS)
def test_a_published_prior_is_a_pipeline(layout, tiny_layouts, tmp_path):
    """Its predictor is the network's; it samples as ours do, at a size that it pads."""
    state = tiny_weights(layout)
    torch.save(state, tmp_path / "prior.pt")
    pipeline = published_prior(tmp_path / "prior.pt", layout=layout, hu_range=HU)
    network = UNet(**published.LAYOUTS[layout])
    network.load_state_dict(state)
    by_hand = DiffusionPipeline(
        GreyOfThree(network.eval(), LINEAR), PipelineSpec(dict(schedule="linear", T=1000, prediction="eps")), HU, {}
    )
    ldct = 300 * grey_images(2, 9).float()
    draw = dict(steps=2, start=50, generator=torch.Generator().manual_seed(6))
    out = pipeline.decode(samplers.final(pipeline.steps(ldct, **draw)), ldct.shape[-2:])
    draw["generator"].manual_seed(6)
    # channels last sums in another order
    torch.testing.assert_close(
        out, by_hand.decode(samplers.final(by_hand.steps(ldct, **draw)), (9, 9)), rtol=0, atol=0.01
    )
    assert out.shape == ldct.shape and (out - ldct).abs().max() > 1


def test_what_does_not_fit_is_named(tiny_layouts, tmp_path):
    path = tmp_path / "prior.pt"

    def refused(state, match):
        torch.save(state, path)
        with pytest.raises(CheckpointError, match=match):
            published_prior(path, hu_range=HU)

    state = tiny_weights("released")
    key = "middle_block.1.qkv.weight"
    refused({n: w for n, w in state.items() if n != key}, f"missing keys: {key}$")
    refused(state | {"label_emb.weight": torch.zeros(3)}, r"unexpected keys: label_emb\.weight$")
    refused(state | {key: torch.zeros(1, 2, 3)}, rf"wrong shapes: {key} \(1, 2, 3\) for \(48, 16, 1\)$")
    refused(tiny_weights("guided_diffusion_256"), r"missing keys: .*0\.op\.bias.*unexpected keys: .*wrong shapes: out")
    refused({"state": state}, "no state dict")
    with pytest.raises(CheckpointError, match="no such file"):
        published_prior(tmp_path / "nothing.pt", hu_range=HU)


def test_what_must_be_stated(tmp_path):
    path = tmp_path / "CT.pt"
    with pytest.raises(TypeError, match="hu_range"):
        published_prior(path)
    with pytest.raises(ParameterError, match="hu_range"):
        published_prior(path, hu_range=None)
    with pytest.raises(ParameterError, match=r"\[-1, 1\]"):
        published_prior(path, hu_range=Range(0.0, 1.0, 0.0, 1.0))
    with pytest.raises(ParameterError, match="released"):
        published_prior(path, hu_range=HU, layout="ct")
    with pytest.raises(ParameterError, match="replicated"):
        GreyOfThree(GreyPrior(1.0), LINEAR, "tripled")
    with torch.device("meta"):
        ours = UNet(norm_groups=8)
    with pytest.raises(ParameterError, match="takes 1 and no condition"):
        GreyOfThree(ours, LINEAR)
