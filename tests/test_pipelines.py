"""Pipelines: what is trained is what is sampled; grids, conditions and steps against the same written by hand.

On tiny networks of random weights: what these can get wrong does not depend on training.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldctlib import checkpoints
from ldctlib.diffusion import samplers
from ldctlib.diffusion.process import Process, image_generators, q_sample
from ldctlib.errors import CheckpointError, ParameterError, ShapeError
from ldctlib.models.conditioned_unet import ConditionedUNet
from ldctlib.models.nafnet import NAFNet
from ldctlib.pipelines import Conditioning, DiffusionPipeline, LatentGrid, PipelineSpec, PixelGrid
from ldctlib.units import Range

RANGE, OTHER = Range(-1000.0, 1000.0), Range(-360.0, 440.0)
AUTOENCODER = dict(
    width=8,
    channel_mult=[1, 2],
    latent_channels=3,
    blocks=1,
    attention_at=[2],
    stem=2,
    shortcut=True,
    norm_groups=4,
    latent_scale=1.7,
)
SMALL = dict(model_channels=8, channel_mult=[1, 2], num_res_blocks=1, norm_groups=4)
LATENT = dict(in_channels=3, attention_at=[2], num_heads=1, context_channels=3, context_dim=8, **SMALL)
PIXELS = dict(in_channels=1, attention_at=[], concat_channels=1, **SMALL)
NAFNET = dict(width=8, shuffle=2, encoder=[1], middle=1, decoder=[1], patch=16)
V = dict(schedule="cosine", T=1000, prediction="v")
RESIDUAL = V | dict(residual=True, residual_std=0.2)
SPECS = {
    "latent": PipelineSpec(V, "autoencoder", conditions={"concat": ["ldct"], "context": ["ldct"]}),
    "estimate": PipelineSpec(RESIDUAL, "autoencoder", "nafnet", {"concat": ["ldct", "estimate"]}),
    "pixels": PipelineSpec(RESIDUAL, conditions={"concat": ["ldct"]}),
    "prior": PipelineSpec(V),
}
NETWORKS = {
    "latent": ("unet", LATENT | dict(concat_channels=3)),
    "estimate": ("conditioned_unet", dict(unet=LATENT, gain=5.0)),
    "pixels": ("unet", PIXELS),
    "prior": ("unet", PIXELS | dict(concat_channels=0)),
}


def write(path: Path, model: str, config: dict, *, seed: int = 0, hu_range=RANGE, **fields) -> Path:
    """A checkpoint of random weights; a U-Net's own would predict exactly 0."""
    torch.manual_seed(seed)
    network = checkpoints.model_class(model)(**config)
    with torch.no_grad():
        for p in network.parameters():
            if model != "autoencoder":
                p.add_(0.05 * torch.randn(p.shape))
    trained_on = dict.fromkeys(checkpoints.PROVENANCE, 0)
    return checkpoints.save(
        path,
        network,
        model=model,
        config=config,
        hu_range=hu_range,
        trained_on=trained_on,
        dtype=torch.float32,
        **fields,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pipelines")
    write(out / "autoencoder.safetensors", "autoencoder", AUTOENCODER)
    write(out / "nafnet.safetensors", "nafnet", NAFNET, seed=3, hu_range=OTHER)
    for i, (name, spec) in enumerate(SPECS.items()):
        model, config = NETWORKS[name]
        uses = {other: checkpoints.load(out / f"{other}.safetensors").sha256 for other in spec.uses}
        write(out / f"{name}.safetensors", model, config, seed=10 + i, pipeline=spec.to_dict(), uses=uses)
    return out


def load(folder: Path, name: str) -> DiffusionPipeline:
    return DiffusionPipeline.from_checkpoint(folder / f"{name}.safetensors")


def image(*size: int, seed: int = 0) -> torch.Tensor:
    shape = size if len(size) == 4 else (1, 1, *size)
    return 40 + 60 * torch.randn(shape, generator=seeded(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------- training and sampling


@pytest.mark.parametrize("name", SPECS)
def test_a_batch_has_the_same_conditions_in_training_and_in_sampling(folder, name, monkeypatch):
    """Built from a recipe's spec and from a checkpoint: bit for bit the same inputs of the network."""
    sampling = load(folder, name)
    model, config = NETWORKS[name]
    network = checkpoints.model_class(model)(**config)
    used = {other: checkpoints.load(folder / f"{other}.safetensors") for other in SPECS[name].uses}
    training = DiffusionPipeline(network, SPECS[name], RANGE, used)
    seen = []

    def spy(x_t, t, **inputs):
        seen.append(inputs)
        return torch.zeros_like(x_t)

    x = image(4, 1, 32, 32)
    training.loss(spy, {"target_hu": 0.9 * x, "ldct_hu": x}, seeded(1))
    monkeypatch.setattr(sampling, "network", spy)
    list(sampling.steps(x, steps=1, generator=seeded(2)))
    assert len(seen) == 2 and set(seen[0]) == set(network.conditions) == set(seen[1])
    assert all(torch.equal(seen[0][key], seen[1][key]) for key in seen[0])


@pytest.mark.parametrize("name", SPECS)
def test_the_loss_is_the_process_s_on_the_grid(folder, name):
    """x0 is a posterior sample of the target, the estimate what sampling starts from; one generator makes all draws."""
    pipeline = load(folder, name)
    x = image(2, 1, 24, 32)
    batch = {"target_hu": 0.5 * x, "ldct_hu": x}
    drawn = seeded(4)
    x0 = pipeline.grid.encode(batch["target_hu"], drawn)
    conditions = pipeline.condition(x)
    estimate = conditions.estimate if pipeline.process.residual else None
    expected = pipeline.process.loss(
        lambda x_t, t: pipeline.network(x_t, t, **conditions.inputs), x0, estimate, generator=drawn
    )
    assert torch.equal(pipeline.loss(pipeline.network, batch, seeded(4)), expected)
    if isinstance(pipeline.grid, LatentGrid):
        posterior = pipeline.grid.autoencoder.encode(RANGE.to_model(batch["target_hu"]))
        torch.testing.assert_close(x0, 1.7 * posterior.sample(seeded(4)))


def test_several_draws_share_a_code_and_lie_far_apart_in_time(folder):
    pipeline, seen = load(folder, "estimate"), []

    def spy(x_t, t, concat):
        seen.append((t, concat))
        return torch.zeros_like(x_t)

    x = image(2, 1, 16, 16)
    for draws in (1, 3):
        pipeline.loss(spy, {"target_hu": x, "ldct_hu": x}, seeded(0), noise_draws=draws)
    assert torch.equal(seen[1][1], seen[0][1].repeat(3, 1, 1, 1))
    t = seen[1][0]
    assert all(abs(int(t[i] - t[i + 2])) % 1000 in (333, 334, 666, 667) for i in range(4))


def test_nothing_but_the_network_is_trained(folder):
    pipeline = load(folder, "estimate")
    x = image(2, 1, 16, 16)
    pipeline.loss(pipeline.network, {"target_hu": 0.9 * x, "ldct_hu": x}, seeded(0)).backward()
    frozen = (pipeline.grid.autoencoder, pipeline.condition.estimator.network)
    assert all(p.grad is None and not p.requires_grad for network in frozen for p in network.parameters())
    assert any(p.grad is not None and bool(p.grad.abs().sum()) for p in pipeline.network.parameters())


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize("start", [None, 1000, 400])
def test_steps_are_those_of_a_sampler_bound_by_hand(folder, start):
    x = image(40, 24)
    pipeline = load(folder, "latent")
    with torch.no_grad():
        found = list(pipeline.steps(x, steps=4, start=start, generator=seeded(7)))
        # 40 and 24 are multiples of 4 x 2 already
        c = 1.7 * pipeline.grid.autoencoder.encode(RANGE.to_model(x)).mean
        assert c.shape == (1, 3, 10, 6)
        schedule = pipeline.process.schedule
        eps = Process(schedule, "v").predictor(lambda z, t: pipeline.network(z, t, concat=c, context=c))
        noise = torch.randn(c.shape, generator=seeded(7))
        z = noise if start != 400 else q_sample(schedule, c, 400, noise)
        times = schedule.times(4, start=start)
        by_hand = samplers.final(samplers.ddim(eps, z, schedule, times))
        assert [step.t for step in found] == list(times) and torch.equal(found[0].x_t, z)
        torch.testing.assert_close(found[-1].x0_hat, by_hand, rtol=1e-5, atol=1e-6)
        decoded = RANGE.from_model(pipeline.grid.autoencoder.decode(by_hand / 1.7, (40, 24)))
        torch.testing.assert_close(pipeline.decode(by_hand, (40, 24)), decoded, rtol=1e-5, atol=1e-3)


def test_pixel_steps_see_the_image_itself(folder):
    """Sampling x0 by a residual process is sampling (x0 - c) / residual_std without, from the noise at the start."""
    pipeline, x = load(folder, "pixels"), image(20, 14)
    c = RANGE.to_model(x)
    assert torch.equal(pipeline.encode(x), c)  # both sides are even already
    torch.testing.assert_close(pipeline.decode(c, (20, 13)), x[..., :13], rtol=0, atol=1e-3)
    with torch.no_grad():
        schedule = pipeline.process.schedule
        # from t = 800: at T, where alpha_bar is 2e-9, float32 itself leaves only three digits of x0
        found = list(pipeline.steps(x, steps=5, start=800, generator=seeded(3)))
        eps = Process(schedule, "v").predictor(lambda z, t: pipeline.network(z, t, concat=c))
        start = schedule.scales(800, c)[1] * torch.randn(c.shape, generator=seeded(3))
        by_hand = list(samplers.ddim(eps, start, schedule, schedule.times(5, start=800)))
    for a, b in zip(found, by_hand, strict=True):
        torch.testing.assert_close(a.x0_hat, 0.2 * b.x0_hat + c, rtol=1e-4, atol=1e-4)


def test_an_estimate_is_the_base_of_the_residual(folder):
    """The code of the regression network's output, made in that one's own range."""
    pipeline, x = load(folder, "estimate"), image(2, 1, 24, 16)
    estimator = checkpoints.build(folder / "nafnet.safetensors")
    with torch.no_grad():
        conditions = pipeline.condition(x)
        first = OTHER.from_model(estimator(OTHER.to_model(x)))
        torch.testing.assert_close(conditions.estimate, pipeline.encode(first), rtol=1e-4, atol=1e-4)
        code, estimate = conditions.inputs["concat"].chunk(2, dim=1)
        assert torch.equal(estimate, conditions.estimate) and torch.equal(code, pipeline.encode(x))
        z_t = torch.randn(conditions.estimate.shape, generator=seeded(2))
        whole = pipeline.network(z_t, 500, **conditions.inputs)
        for changed in (torch.cat([code + 0.1, estimate], 1), torch.cat([code, estimate + 0.1], 1)):
            assert float((pipeline.network(z_t, 500, concat=changed) - whole).abs().max()) > 1e-4


def test_the_estimate_is_made_once_for_all_steps(folder, monkeypatch):
    passes, forward = [], NAFNet.forward
    monkeypatch.setattr(NAFNet, "forward", lambda self, x: passes.append(len(x)) or forward(self, x))
    steps = list(load(folder, "estimate").steps(image(2, 1, 16, 16), steps=3, generator=seeded(0)))
    assert passes == [2] and len(steps) == 3


def test_samples_share_their_conditions(folder):
    pipeline, x = load(folder, "estimate"), image(2, 1, 24, 16)
    with torch.no_grad():
        one = samplers.final(pipeline.steps(x.repeat_interleave(3, dim=0), steps=3, generator=seeded(1)))
        three = samplers.final(pipeline.steps(x, steps=3, num_samples=3, generator=seeded(1)))
    torch.testing.assert_close(three, one, rtol=1e-4, atol=1e-4)
    assert float((three[0] - three[1]).abs().max()) > 1e-2


@pytest.mark.parametrize("name", SPECS)
def test_an_image_of_a_batch_is_what_it_is_alone(folder, name):
    pipeline, x = load(folder, name), image(3, 1, 16, 24)
    options = dict(sampler="ddpm", times=(900, 500, 700, 200))
    with torch.no_grad():
        batch = samplers.final(pipeline.steps(x, generator=image_generators(seeded(1), 3), **options))
        alone = samplers.final(pipeline.steps(x[:1], generator=seeded(1), **options))
    torch.testing.assert_close(batch[:1], alone, rtol=1e-4, atol=1e-4)


def test_a_conditioned_unet_is_its_three_maps():
    torch.manual_seed(0)
    network = ConditionedUNet(LATENT, gain=5.0)
    assert network.factor == 2 and network.in_channels == 3
    x_t, code, estimate = torch.randn(3, 2, 3, 8, 8)
    both = torch.cat([code, estimate], dim=1)
    assert not network(x_t, 500, both).any()  # as every U-Net begins
    maps = torch.randn(2, 9, 8, 8)
    network.unet.forward = lambda *arguments, **given: maps
    a, b, c = maps.split(3, dim=1)
    torch.testing.assert_close(network(x_t, 500, both), a + b * 5.0 * (code - estimate) + c * x_t)
    with pytest.raises(ShapeError, match="code and estimate"):
        network(x_t, 500, code)
    with pytest.raises(ParameterError, match="leave it out"):
        ConditionedUNet(LATENT | dict(concat_channels=3))


# ---------------------------------------------------------------- grids and named errors


def test_latents_of_another_size_are_padded_and_cropped(folder):
    grid = load(folder, "latent").grid
    x = image(37, 26)
    assert grid.encode(x).shape == (1, 3, 10, 8)  # 40 and 32: multiples of 4 x 2
    assert grid.decode(grid.encode(x), (37, 26)).shape == x.shape
    assert not torch.equal(grid.encode(x, seeded(0)), grid.encode(x))


def test_codes_are_float32_under_autocast(folder):
    """bf16 keeps 8 bits: a code of 1000 HU would be rounded to 4 HU."""
    grid, x = load(folder, "latent").grid, image(16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = grid.encode(x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, grid.encode(x))


def test_another_network_than_the_one_trained_with_is_refused(folder, tmp_path):
    for name in ("estimate", "autoencoder"):
        (tmp_path / f"{name}.safetensors").write_bytes((folder / f"{name}.safetensors").read_bytes())
    other = write(tmp_path / "nafnet.safetensors", "nafnet", NAFNET, seed=4, hu_range=OTHER)
    with pytest.raises(CheckpointError, match="is the nafnet with the hash"):
        load(tmp_path, "estimate")
    wanted = checkpoints.load(folder / "nafnet.safetensors").sha256
    (tmp_path / f"nafnet@{wanted[:12]}.safetensors").write_bytes((folder / "nafnet.safetensors").read_bytes())
    x = image(16, 16)
    assert torch.equal(load(tmp_path, "estimate").condition(x).estimate, load(folder, "estimate").condition(x).estimate)
    assert other.is_file()


def test_what_does_not_fit_together_is_named(folder):
    with pytest.raises(CheckpointError, match="no diffusion model"):
        load(folder, "nafnet")
    with pytest.raises(ParameterError, match="made of ldct, estimate"):
        Conditioning(PixelGrid(RANGE), {"concat": ["truth"]})
    torch.manual_seed(0)
    unet = checkpoints.model_class("unet")(**PIXELS)
    with pytest.raises(CheckpointError, match="UNet takes concat, and the pipeline has none"):
        DiffusionPipeline(unet, SPECS["prior"], RANGE, {})
    with pytest.raises(CheckpointError, match="needs the HU range"):
        DiffusionPipeline(unet, SPECS["pixels"], None, {})
    used = {"autoencoder": checkpoints.load(folder / "autoencoder.safetensors")}
    with pytest.raises(CheckpointError, match="3 channels and this U-Net takes 1"):
        DiffusionPipeline(unet, PipelineSpec(V, "autoencoder", conditions={"concat": ["ldct"]}), RANGE, used)
    with pytest.raises(ParameterError, match="sampler is one of"):
        list(load(folder, "pixels").steps(image(8, 8), sampler="euler"))
