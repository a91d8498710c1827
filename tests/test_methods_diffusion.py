"""Diffusion models and the autoencoder's round trip as denoisers: sizes, seeds, batches, evaluations, named errors.

On tiny networks of random weights, found under the names of the shipped ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldctlib import checkpoints, methods
from ldctlib.diffusion import samplers
from ldctlib.errors import CheckpointError, ParameterError
from ldctlib.image import gaussian_blur, in_squares
from ldctlib.models.unet import UNet
from ldctlib.pipelines import DiffusionPipeline, PipelineSpec
from tests.test_pipelines import AUTOENCODER, LATENT, PIXELS, SPECS, V, image, seeded, write

SAMPLED = ["man", "man_fast", "man_simple", "man_paper", "ddpm"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints")
    autoencoders = ("autoencoder_perceptual", "autoencoder_simple")
    both, context, none = {"concat": ["ldct"], "context": ["ldct"]}, {"context": ["ldct"]}, {}
    models = ("man", 0, both), ("man_simple", 1, both), ("prior", 1, none), ("man_paper", 0, context)
    for i, (name, seed, conditions) in enumerate(models):
        autoencoder = autoencoders[seed]
        path = write(out / f"{autoencoder}.safetensors", "autoencoder", AUTOENCODER, seed=seed)
        given = dict(concat_channels=3) if "concat" in conditions else {}
        given |= {} if conditions else dict(context_channels=None, context_dim=None)
        write(
            out / f"{name}.safetensors",
            "unet",
            LATENT | given,
            seed=10 + i,
            pipeline=PipelineSpec(V, autoencoder, conditions=conditions).to_dict(),
            uses={autoencoder: checkpoints.load(path).sha256},
        )
    write(out / "ddpm.safetensors", "unet", PIXELS, seed=20, pipeline=SPECS["pixels"].to_dict())
    return out


@pytest.fixture(autouse=True)
def found(folder, monkeypatch):
    monkeypatch.setenv("LDCT_CHECKPOINTS", str(folder))


@pytest.mark.parametrize("size", [(70, 53), (64, 32), (9, 130), (1, 1)])
@pytest.mark.parametrize("name", ["man", "ddpm", "round_trip"])
def test_any_size(name, size):
    options = {} if name == "round_trip" else {"steps": 2}
    x = image(*size)
    out = methods.load(name, **options)(x)
    assert out.shape == x.shape and out.dtype == torch.float32 and torch.isfinite(out).all()


@pytest.mark.parametrize("name", ["round_trip", "man", "ddpm"])
def test_an_image_does_not_depend_on_its_batch(name):
    """However many go through the network at a time, and however many come with it."""
    x = image(5, 1, 34, 42)
    options = {} if name == "round_trip" else dict(steps=3, sampler="ddpm")
    whole, cut = (methods.load(name, batch=n, **options)(x, generator=seeded(3)) for n in (5, 2))
    torch.testing.assert_close(whole, cut, rtol=1e-4, atol=2e-2)
    alone = methods.load(name, **options)(x[:1], generator=seeded(3))
    torch.testing.assert_close(whole[:1], alone, rtol=1e-4, atol=2e-2)


@pytest.mark.parametrize("name", SAMPLED)
def test_the_generator_alone_decides(name):
    denoise, x = methods.load(name, steps=2), image(2, 1, 32, 40)
    one, again, other = (denoise(x, generator=seeded(s)) for s in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other)
    state = torch.get_rng_state()
    assert torch.equal(denoise(x), denoise(x))  # and none is a fixed one
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["man", "ddpm"])
def test_the_output_is_blended(name):
    """out = x - (1 - residual_noise)(removed - its local mean); 0 and 12 pixels by default."""
    x = image(48, 48)

    def run(**options):
        return methods.load(name, steps=2, **options)(x, generator=seeded(1))

    clean = run(preserve_mean_px=0)
    removed = x - clean
    torch.testing.assert_close(run(residual_noise=0.4, preserve_mean_px=0), x - 0.6 * removed, rtol=1e-4, atol=1e-2)
    preserved = removed - gaussian_blur(removed, 12.0)
    torch.testing.assert_close(run(), x - preserved, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(run(residual_noise="balanced"), x - 0.75 * preserved, rtol=1e-4, atol=1e-2)


def test_a_denoiser_is_its_pipeline_decoded(folder):
    x = image(24, 40)
    pipeline = DiffusionPipeline.from_checkpoint(folder / "man.safetensors")
    with torch.no_grad():
        x0 = samplers.final(pipeline.steps(x, steps=4, start=500, generator=seeded(7)))
    out = methods.load("man", steps=4, start=500, temperature=1.0, preserve_mean_px=0)(x, generator=seeded(7))
    torch.testing.assert_close(out, pipeline.decode(x0, (24, 40)), rtol=1e-4, atol=1e-2)


def test_samples_are_averaged():
    x, generator = image(32, 32), seeded(3)
    one = methods.load("man", steps=2, preserve_mean_px=0)
    both = [one(x, generator=generator) for _ in range(2)]
    mean = methods.load("man", steps=2, preserve_mean_px=0, num_samples=2)(x, generator=seeded(3))
    assert not torch.equal(*both)
    torch.testing.assert_close(mean, (both[0] + both[1]) / 2, rtol=1e-5, atol=1e-2)


def test_at_temperature_zero_draws_agree_and_in_between_they_differ_less():
    x = image(32, 32)

    def spread(temperature: float) -> float:
        one = methods.load("man", steps=4, preserve_mean_px=0, temperature=temperature)
        return torch.cat([one(x, generator=seeded(i)) for i in range(4)]).std(0).mean().item()

    assert spread(0.0) == 0 < spread(0.5) < spread(1.0)


@pytest.mark.parametrize("shape", [(64, 64), (100, 70), (64, 200), (65, 130), (40, 300)])
def test_squares_meet_without_a_seam(shape):
    x, sizes = torch.randn(2, 1, *shape, generator=seeded(1)), []

    def twice(part):
        sizes.append(tuple(part.shape[-2:]))
        return 2 * part

    torch.testing.assert_close(in_squares(x, 64, twice), 2 * x)
    assert all(max(size) <= 64 for size in sizes) and (len(sizes) == 1) == (max(shape) <= 64)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 7])
def test_squares_of_any_side_cover_the_image(side):
    x = torch.randn(1, 1, 11, 8, generator=seeded(2))
    torch.testing.assert_close(in_squares(x, side, lambda part: part), x)


def test_large_images_are_denoised_in_squares():
    x = image(48, 32)
    parts = methods.load("man", steps=2, preserve_mean_px=0, side=32)(x, generator=seeded(3))
    whole = methods.load("man", steps=2, preserve_mean_px=0)
    generator = seeded(3)
    first = whole(x[..., :32, :], generator=generator)
    torch.testing.assert_close(parts[..., :16, :], first[..., :16, :], rtol=1e-4, atol=1e-2)  # before the next begins
    assert not torch.allclose(parts[..., -8:, :], whole(x, generator=seeded(3))[..., -8:, :], atol=1e-2)


@pytest.mark.parametrize("name", SAMPLED)
def test_evaluations_are_as_many_as_the_table_says(name, monkeypatch):
    calls, forward = [], UNet.forward

    def counted(self, *arguments, **options):
        calls.append(len(arguments[0]))
        return forward(self, *arguments, **options)

    denoise = methods.load(name)
    monkeypatch.setattr(UNet, "forward", counted)
    denoise(image(16, 16))
    assert len(calls) == methods.METHODS[name].evaluations == methods.table().evaluations[name]


@pytest.mark.parametrize(("options", "first"), [({}, 300), ({"start": 120}, 120)])
def test_a_prior_begins_with_the_noised_image(folder, options, first):
    """Without conditions all that it knows of the image is where the chain begins."""
    path = folder / "prior.safetensors"
    pipeline, x = DiffusionPipeline.from_checkpoint(path), image(32, 32)
    with torch.no_grad():
        steps = list(pipeline.steps(x, start=first, steps=3, generator=seeded(4)))
    assert [step.t for step in steps] == [first, first * 2 // 3, first // 3]
    options |= dict(steps=3, temperature=1.0, preserve_mean_px=0)
    out = methods.load("man", path=path, **options)(x, generator=seeded(4))
    torch.testing.assert_close(out, pipeline.decode(steps[-1].x0_hat, (32, 32)), rtol=1e-4, atol=1e-2)
    with pytest.raises(ParameterError, match="nothing of the image is left"):
        methods.load("man", path=path, start=1000)


def test_checkpoints_of_another_kind_are_refused(folder):
    with pytest.raises(CheckpointError, match="no diffusion model"):
        methods.load("ddpm", path=folder / "autoencoder_simple.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(sampler="euler"), "ddim, ddpm, dpm_solver_pp_2m"),
        (dict(steps=1001), "1 … 1000 steps, got 1001"),
        (dict(steps=0), "got 0"),
        (dict(steps=30, start=20), "from time 20"),
        (dict(start=2000), "1 … 1000"),
        (dict(spacing="quadratic"), "spacing"),
        (dict(num_samples=0), "num_samples, batch and side"),
        (dict(side=0), "num_samples, batch and side"),
        (dict(temperature=-1.0), "temperature is at least 0"),
        (dict(temperature=float("nan")), "temperature is at least 0"),
        (dict(residual_noise=1.0), "residual_noise"),
        (dict(residual_noise="strong"), "smooth, balanced, fine"),
        (dict(colour="red"), "options"),
        (dict(sampler="dpm_solver_pp_2m", eta=0.5), "options"),
    ],
)
@pytest.mark.parametrize("name", ["man", "ddpm"])
def test_bad_options_are_named_when_loading(name, options, message):
    with pytest.raises(ParameterError, match=message):
        methods.load(name, **options)
