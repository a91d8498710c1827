"""Dn-Dp: the MAP step, its chain against the exact recursion of a Gaussian prior, the cascade, and the denoiser."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ldctlib import methods, recipes
from ldctlib.data.patches import NoisePatches, PatchConfig
from ldctlib.diffusion import cascade as dndp
from ldctlib.diffusion.cascade import DNDP_ABDOMEN, DNDP_TIMES, AdaptiveWeight, cascade, map_chain, map_step
from ldctlib.diffusion.process import LEVEL_SCALE, Process
from ldctlib.diffusion.samplers import Step, final
from ldctlib.diffusion.schedule import sr3
from ldctlib.errors import CheckpointError, ParameterError
from ldctlib.models.unet import UNet
from ldctlib.pipelines import Conditioning, DiffusionPipeline, PipelineSpec, PixelGrid
from ldctlib.pipelines.conditioning import LOW_RESOLUTION, MEANS, with_low_resolution_noise
from ldctlib.units import Range
from tests.test_pipelines import image, seeded, write

SCHEDULE = sr3()
MEAN, VARIANCE = np.array([-0.6, 0.05, 0.3]), np.array([0.01, 0.2, 1.1])
"""Of a Gaussian prior of three independent channels."""

pytestmark = pytest.mark.usefixtures("one_thread")


def gaussian_eps(x_t, t):
    """E[eps | x_t] of the prior."""
    signal, noise = SCHEDULE.scales(t, x_t)
    mean, variance = (torch.from_numpy(v).to(x_t).reshape(3, 1, 1) for v in (MEAN, VARIANCE))
    return noise / (signal**2 * variance + noise**2) * (x_t - signal * mean)


# ---------------------------------------------------------------- the sampler


def test_published_times_and_schedule():
    published = [0, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200, 220, 240, 260, 280, 300, 320, 340, 360, 380, 400]
    published += [420, 440, 460, 480, 500, 1000, 1500, 1999]
    assert [t - 1 for t in reversed(DNDP_TIMES)] == published and len(published) == 29
    betas = 1 - SCHEDULE.alpha_bar[1:] / SCHEDULE.alpha_bar[:-1]
    expected = torch.linspace(1e-6, 1e-2, 2000, dtype=torch.float64)
    torch.testing.assert_close(betas, expected, rtol=0, atol=1e-12)
    # what the adapted weight says of its √ᾱ_t
    assert all(sqrt(SCHEDULE.at(t)) > 0.9975 for t in DNDP_TIMES[-DNDP_ABDOMEN.rerun :])


def test_the_map_step_is_the_minimiser():
    """Of the quadratic, by its gradient, with one weight and with a map; the limits are its two sides."""
    y, mean = (torch.randn(2, 1, 5, 4, generator=seeded(s), dtype=torch.float64) for s in (0, 1))
    for weight in (torch.tensor(0.7).double(), torch.rand(2, 1, 5, 4, generator=seeded(2), dtype=torch.float64) * 9):
        x = map_step(y, mean, weight).requires_grad_(True)
        (0.5 * (x - y).square() + 0.5 * weight * (x - mean).square()).sum().backward()
        torch.testing.assert_close(x.grad, torch.zeros_like(x), rtol=0, atol=1e-12)
    assert torch.equal(map_step(y, mean, 0.0), y)
    torch.testing.assert_close(map_step(y, mean, 1e12), mean, rtol=0, atol=1e-9)


def response(monkeypatch, y: torch.Tensor, lit: int | None, **options) -> torch.Tensor:
    """The last x0_hat when of all noises that are drawn only the ``lit``-th is 1 and the others are 0."""
    drawn = []

    def noise(x, generator=None):
        drawn.append(len(drawn))
        return torch.full_like(x, float(drawn[-1] == lit))

    monkeypatch.setattr(dndp, "noise_like", noise)
    result = final(map_chain(gaussian_eps, y, SCHEDULE, **options))
    response.drawn = len(drawn)
    return result.flatten().numpy()


@pytest.mark.parametrize(("lambda0", "times"), [(0.0075, DNDP_TIMES), (0.2, DNDP_TIMES), (0.05, DNDP_TIMES[-9:])])
def test_the_chain_is_the_exact_recursion_of_a_gaussian_prior(lambda0, times, monkeypatch):
    """Mean and variance of the result, with the step written as the posterior of Ho et al.'s Eq. 7.

    A chain that starts below T starts from y, noised to its first time.
    """
    y = torch.tensor([0.2, -0.1, 0.9], dtype=torch.float64).reshape(1, 3, 1, 1)
    options = dict(lambda0=lambda0, times=times)
    centre = response(monkeypatch, y, None, **options)
    assert response.drawn == len(times)  # the start's, and y's at every time after the first
    slopes = [response(monkeypatch, y, k, **options) - centre for k in range(len(times))]

    a_t = 0.0 if times[0] == 2000 else SCHEDULE.at(times[0])
    m, v = sqrt(a_t) * y.flatten().numpy(), np.full(3, 1 - a_t)  # of x_t
    for t, s in zip(times, (*times[1:], 0), strict=True):
        a_t, a_s = SCHEDULE.at(t), SCHEDULE.at(s)
        slope = sqrt(a_t) * VARIANCE / (a_t * VARIANCE + 1 - a_t)  # of E[x0 | x_t]
        offset = MEAN - slope * sqrt(a_t) * MEAN
        if s == 0:
            m, v = slope * m + offset, slope**2 * v
            break
        beta = 1 - a_t / a_s
        of_x0, of_x = sqrt(a_s) * beta / (1 - a_t), sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t)
        weight = lambda0 * sqrt(a_t) / sqrt((1 - a_s) / (1 - a_t) * beta)
        mu = of_x0 * (slope * m + offset) + of_x * m
        m = (sqrt(a_s) * y.flatten().numpy() + weight * mu) / (1 + weight)
        v = (1 - a_s + (weight * (of_x0 * slope + of_x)) ** 2 * v) / (1 + weight) ** 2
    np.testing.assert_allclose(centre, m, rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.square(slopes).sum(0), v, rtol=1e-6)


def test_the_last_steps_are_run_again_with_the_adapted_weight(monkeypatch):
    """29 evaluations and 3; the second run starts where the first did, and its weight is a map of what was removed."""
    monkeypatch.setattr(dndp, "noise_like", lambda x, generator=None: torch.zeros_like(x))
    y = 0.3 * torch.randn(2, 3, 6, 5, generator=seeded(4), dtype=torch.float64)
    lambda0, adaptive = 0.0075, AdaptiveWeight(1.5, -0.01, 0.3, rerun=3)
    steps = list(map_chain(gaussian_eps, y, SCHEDULE, lambda0=lambda0, adaptive=adaptive))
    assert [s.t for s in steps] == [*DNDP_TIMES, *DNDP_TIMES[-3:]] and [s.i for s in steps] == list(range(32))
    plain = list(map_chain(gaussian_eps, y, SCHEDULE, lambda0=lambda0))
    assert len(plain) == 29 and all(torch.equal(a.x_t, b.x_t) for a, b in zip(plain, steps, strict=False))
    assert torch.equal(steps[29].x_t, steps[26].x_t)

    removed = (y - steps[28].x0_hat).abs()
    level = 1.5 * removed.reshape(2, -1).std(dim=1) - 0.01
    weight = level.reshape(2, 1, 1, 1) / lambda0 * 0.3 * removed
    a_t, a_s = SCHEDULE.at(41), SCHEDULE.at(21)
    beta = 1 - a_t / a_s
    mean = (sqrt(a_s) * beta * steps[29].x0_hat + sqrt(a_t / a_s) * (1 - a_s) * steps[29].x_t) / (1 - a_t)
    weight = weight / sqrt((1 - a_s) / (1 - a_t) * beta)
    torch.testing.assert_close(steps[30].x_t, (sqrt(a_s) * y + weight * mean) / (1 + weight), rtol=0, atol=1e-10)


def test_the_adapted_weight_is_never_negative():
    """In an image whose noise a std(n̂) + b says is none, the prior has no say instead of a negative one."""
    y = torch.full((1, 1, 4, 4), 0.3)
    assert torch.equal(DNDP_ABDOMEN(y, y + 0.001, 0.0075), torch.zeros_like(y))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(lambda0=0.0), "lambda0"),
        (dict(lambda0=0.1, times=(1, 2)), "falling"),
        (dict(lambda0=0.1, times=(2001, 1)), "times lie in"),
        (dict(lambda0=0.1, times=(20, 1), adaptive=AdaptiveWeight(1, 0, 1, rerun=3)), "run again"),
    ],
)
def test_wrong_arguments_of_the_chain_are_named(options, named):
    with pytest.raises(ParameterError, match=named):
        next(map_chain(gaussian_eps, torch.zeros(1, 3, 2, 2), SCHEDULE, **options))


def test_the_cascade_hands_on_the_mean_of_its_samples():
    given, values = [], iter([1.0, 2.0, 6.0, 10.0, 20.0, 60.0])

    def stage(mean):
        given.append(mean)
        for t in (2, 1):
            x = torch.full((1, 1, 2, 2), next(values) if t == 1 else -99.0)
            yield Step(0, t, x, x, x)

    *steps, last = cascade(stage, stage, num_samples=3)
    assert given[:3] == [None] * 3 and all(float(m.mean()) == 3.0 for m in given[3:])
    assert [s.i for s in steps] == list(range(12)) and [s.t for s in steps] == [2, 1] * 6
    assert (last.i, last.t) == (12, 0) and torch.equal(last.x0_hat, torch.full((1, 1, 2, 2), 30.0))
    with pytest.raises(ParameterError, match="at least"):
        next(cascade(num_samples=3))


# ---------------------------------------------------------------- what the networks are given


def test_a_network_is_told_the_level_where_the_process_says_so():
    """The same number in the loss and in the sampler; the spec holds it; others are told the time."""
    seen = []

    def network(x_t, t):
        seen.append(t)
        return torch.zeros_like(x_t)

    process = Process(SCHEDULE, level_input=True)
    assert process.to_spec() == {"schedule": "sr3", "T": 2000, "prediction": "eps", "level_input": True}
    assert (
        Process.from_spec(process.to_spec()).level_input
        and not Process.from_spec({"schedule": "sr3"} | {"T": 9, "prediction": "v"}).level_input
    )
    t = torch.tensor([1, 41, 2000])
    process.predictor(network)(torch.zeros(3, 1, 4, 4), t)
    torch.testing.assert_close(seen[0], (LEVEL_SCALE * SCHEDULE.alpha_bar[t].sqrt()).float(), rtol=1e-6, atol=0)
    x0 = torch.zeros(3, 1, 64, 64)
    process.loss(lambda x_t, level: network(x_t, level) + x_t.std((1, 2, 3), keepdim=True), x0, generator=seeded(1))
    spread = torch.empty(3)
    process.loss(lambda x_t, level: (spread.copy_(x_t.std((1, 2, 3))), network(x_t, level))[1], x0, generator=seeded(1))
    # of pure noise the standard deviation is √(1 - ᾱ_t): it fits the level that the network was told
    torch.testing.assert_close((1 - (seen[-1] / LEVEL_SCALE) ** 2).sqrt(), spread, rtol=0.05, atol=1e-3)
    residual = Process(SCHEDULE, residual=True, level_input=True)
    residual.predictor(network, torch.zeros(3, 1, 4, 4))(torch.zeros(3, 1, 4, 4), t)
    assert torch.equal(seen[-1], seen[0])
    Process(SCHEDULE).predictor(network)(torch.zeros(3, 1, 4, 4), t)
    assert torch.equal(seen[-1], t)


def test_super_resolution_is_given_the_same_in_training_and_in_sampling():
    """From the clean image itself, and from a low resolution that is handed over enlarged."""
    grid = PixelGrid(Range(-1000.0, 1000.0), 8)
    condition = Conditioning(grid, {"concat": ["low_resolution"]})
    x = image(2, 1, 48, 64)
    trained = condition(x).inputs["concat"]
    sampled = condition(MEANS.A_dagger(F.avg_pool2d(x, LOW_RESOLUTION))).inputs["concat"]
    assert trained.shape == (2, 1, 48, 64)
    torch.testing.assert_close(trained, sampled, rtol=0, atol=1e-6)
    ramp = torch.arange(64.0).expand(1, 1, 64, 64) * 10  # cubic interpolation continues a line inside
    inside = condition(ramp).inputs["concat"][..., 12:-12, 12:-12]
    torch.testing.assert_close(inside, grid.encode(ramp)[..., 12:-12, 12:-12], rtol=0, atol=1e-6)
    for wrong in ((grid, ["low_resolution", "ldct"]), (PixelGrid(grid.hu_range, 2), ["low_resolution"])):
        with pytest.raises(ParameterError, match="low resolution alone"):
            Conditioning(wrong[0], {"concat": wrong[1]})


def test_noise_of_the_low_resolution():
    """Its standard deviation is uniform from 0 to the most; what lies within a block does not change."""
    x = image(400, 1, 16, 16)
    noisy = with_low_resolution_noise(x, 12.0, seeded(3))
    change = noisy - x
    low = F.avg_pool2d(change, LOW_RESOLUTION)
    torch.testing.assert_close(change, MEANS.A_dagger(low), rtol=0, atol=1e-4)
    # E[sd²] = 12² / 3 = 48; 400 images of one level each: its standard error is 48 · .89 / √400 and some
    assert abs(float(low.square().mean()) - 48.0) < 4 * 2.6
    assert float(low.flatten(1).std(1).max()) < 12 * 1.8
    generator = seeded(3)
    before = generator.get_state()
    assert with_low_resolution_noise(x, 0.0, generator) is x and torch.equal(generator.get_state(), before)


def test_patches_of_block_means():
    """The same crop of the same slice, each pixel the mean of a block."""

    class RandomSlices:
        sharp = True

        def __call__(self, rng, count, *, size):
            return [100 * rng.normal(size=(size, size)) for _ in range(count)]

    small = dict(seed=3, size=96, n_slices=3, n_photographs=0, photograph_share=0.0, noise_sd_hu=None)
    fine = NoisePatches(PatchConfig(patch=64, **small), slices=RandomSlices())
    coarse = NoisePatches(PatchConfig(patch=16, block_mean=4, **small), slices=RandomSlices())
    for n in range(4):
        expected = F.avg_pool2d(fine[n]["target_hu"], 4)
        assert expected.std() > 1
        torch.testing.assert_close(coarse[n]["target_hu"], expected, rtol=0, atol=1e-3)
    for wrong in (dict(block_mean=0, noise_sd_hu=None), dict(block_mean=4), dict(block_mean=4, patch=200)):
        with pytest.raises(ParameterError, match="block_mean|patch"):
            PatchConfig(**{"noise_sd_hu": None} | wrong if "patch" in wrong else wrong)


def test_published_numbers_of_the_recipes():
    for name, batch, steps, prediction in (("dndp_low", 16, 200_000, "eps"), ("dndp_high", 8, 100_000, "v")):
        recipe = recipes.recipe(name, "paper")
        (stage,) = recipe.stages
        assert (stage.train.batch_size, stage.train.steps, stage.train.lr) == (batch, steps, 1e-4)
        process = Process.from_spec(recipe.pipeline.process)
        assert (process.schedule.name, process.schedule.T, process.prediction) == ("sr3", 2000, prediction)
        assert process.level_input and stage.data.noise_sd_hu is None
        assert recipe.saved.config["channel_mult"] == [1, 2, 4, 8, 8]
        assert stage.data.patch * stage.data.block_mean == 512


def test_x0_and_eps_mixed_as_published_are_v():
    """√ᾱ (x_t - √(1 - ᾱ) eps) + (1 - ᾱ) x0 is x0 of v = √ᾱ eps - √(1 - ᾱ) x0, for any pair of outputs."""
    x, eps, x0 = (torch.randn(1, 1, 8, 8, generator=seeded(s), dtype=torch.float64) for s in range(3))
    for t in (1, 500, 2000):
        signal, noise = SCHEDULE.scales(t, x)
        mixed = signal * (x - noise * eps) + noise**2 * x0
        predicted = Process(SCHEDULE, "v").predictor(lambda *_: signal * eps - noise * x0)(x, torch.tensor([t]))  # noqa: B023
        torch.testing.assert_close((x - noise * predicted) / signal, mixed, rtol=0, atol=1e-9)


# ---------------------------------------------------------------- the denoiser

TINY = dict(in_channels=1, model_channels=8, num_res_blocks=1, norm_groups=4, attention_at=[])
TOLD = dict(schedule="sr3", T=2000, level_input=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dndp")
    low, high = (
        PipelineSpec(TOLD | dict(prediction="eps")),
        PipelineSpec(TOLD | dict(prediction="v"), conditions={"concat": ["low_resolution"]}),
    )
    write(out / "dndp_low.safetensors", "unet", TINY | dict(channel_mult=[1, 1]), pipeline=low.to_dict())
    config = TINY | dict(channel_mult=[1, 1, 1], concat_channels=1)
    write(out / "dndp_high.safetensors", "unet", config, seed=1, pipeline=high.to_dict())
    return out


@pytest.fixture(autouse=True)
def found(folder, monkeypatch):
    monkeypatch.setenv("LDCT_CHECKPOINTS", str(folder))


QUICK = dict(num_samples=2, steps=5)


@pytest.mark.parametrize("single_stage", [False, True])
def test_any_size_and_the_generator_alone_decides(single_stage):
    denoise = methods.load("dndp", single_stage=single_stage, **QUICK)
    for size in ((9, 70), (1, 1)):
        x = image(*size)
        out = denoise(x)
        assert out.shape == x.shape and out.dtype == torch.float32 and torch.isfinite(out).all()
    x = image(20, 33)
    one, again, other = (denoise(x, generator=seeded(s)) for s in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other)
    both = denoise(torch.cat([x, image(20, 33, seed=9)]), generator=seeded(5))
    torch.testing.assert_close(both[:1], one, rtol=0, atol=1e-3)  # the blend's blur rounds otherwise in a batch


def test_both_stages_written_by_hand(folder):
    """Block means denoised by the first; the second given their mean, enlarged; its samples' mean is the result."""
    x = image(32, 64)
    denoised = methods.load("dndp", preserve_mean_px=0, **QUICK)(x, generator=seeded(8))
    low, high = (DiffusionPipeline.from_checkpoint(folder / f"dndp_{s}.safetensors") for s in ("low", "high"))
    generator, times = seeded(8), DNDP_TIMES[-5:]
    y, options = low.encode(F.avg_pool2d(x, 4)), dict(generator=generator, lambda0=0.0005)
    eps = low.process.predictor(lambda x_t, t: low.network(x_t, t))
    first = torch.stack([final(map_chain(eps, y, SCHEDULE, times, **options)) for _ in range(2)]).mean(0)
    up = F.interpolate(first, scale_factor=4, mode="bicubic", antialias=True)
    eps = high.process.predictor(lambda x_t, t: high.network(x_t, t, concat=up))
    options = dict(generator=generator, lambda0=0.0075, adaptive=DNDP_ABDOMEN)
    chains = [final(map_chain(eps, high.encode(x), SCHEDULE, times, **options)) for _ in range(2)]
    torch.testing.assert_close(denoised, high.decode(torch.stack(chains).mean(0), (32, 64)), rtol=1e-4, atol=2e-2)


def test_evaluations_are_as_many_as_the_table_says(monkeypatch):
    calls, forward = [], UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, *a, **o: (calls.append(len(a[0])), forward(self, *a, **o))[1])
    methods.load("dndp", num_samples=1)(image(8, 8))
    assert 10 * sum(calls) == methods.METHODS["dndp"].evaluations == 10 * (29 + 29 + 3)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(num_samples=0), "num_samples"),
        (dict(lambda0=-1.0), "lambda0"),
        (dict(lambda0_low=0.0), "lambda0_low"),
        (dict(rerun=30), "again"),
        (dict(steps=0), "steps"),
        (dict(steps=30), "steps"),
        (dict(steps=2), "again"),
        (dict(lambda1=3.0), "options"),
    ],
)
def test_wrong_options_are_named_before_an_image_comes(options, named):
    with pytest.raises(ParameterError, match=named):
        methods.load("dndp", **options)


def test_a_stage_that_does_not_fit_is_refused(folder, tmp_path):
    for options in (dict(low="dndp_high"), dict(path=folder / "dndp_low.safetensors")):
        with pytest.raises(CheckpointError, match="this stage of Dn-Dp takes a model that is"):
            methods.load("dndp", **options)
    spec = PipelineSpec(TOLD | dict(prediction="eps", residual_std=0.5))
    path = write(tmp_path / "unit.safetensors", "unet", TINY | dict(channel_mult=[1, 1]), pipeline=spec.to_dict())
    with pytest.raises(CheckpointError, match="residual_std"):
        methods.load("dndp", low_path=path)
