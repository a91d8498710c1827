"""MAN, the pixel DDPM and the round trip as denoisers: sizes, seeds, conditions, counted evaluations, named errors.

On tiny networks of random weights: what these can get wrong does not depend on training.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldctlib import checkpoints, methods
from ldctlib.diffusion import samplers
from ldctlib.diffusion.process import noise_predictor, q_sample
from ldctlib.errors import CheckpointError, ParameterError, ShapeError
from ldctlib.image import gaussian_blur
from ldctlib.methods.diffusion import Conditional, Latent
from ldctlib.models.conditioned_unet import ConditionedUNet
from ldctlib.models.nafnet import NAFNet
from ldctlib.models.unet import UNet
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
LATENT = dict(
    in_channels=3,
    model_channels=8,
    channel_mult=[1, 2],
    num_res_blocks=1,
    attention_at=[2],
    num_heads=1,
    concat_channels=3,
    context_channels=3,
    context_dim=8,
    norm_groups=4,
)
PIXELS = dict(
    in_channels=1,
    model_channels=8,
    channel_mult=[1, 2],
    num_res_blocks=1,
    attention_at=[],
    concat_channels=1,
    norm_groups=4,
)
TOLD = dict(unet={k: v for k, v in LATENT.items() if k != "concat_channels"}, gain=5.0)
NAFNET = dict(width=8, shuffle=2, encoder=[1], middle=1, decoder=[1], patch=16)
COSINE = dict(name="cosine", T=1000, prediction="v")
CENTRED = COSINE | dict(centred=True, spread=0.2)
DIFFUSION = [name for name, m in methods.METHODS.items() if m.family.endswith("diffusion")]
CPU = torch.device("cpu")


def write(path: Path, model: str, config: dict, *, schedule=None, seed: int = 0, units=RANGE, **notes) -> Path:
    """A checkpoint of random weights; a U-Net's own would predict exactly 0."""
    torch.manual_seed(seed)
    network = checkpoints.model_class(model)(**config)
    with torch.no_grad():
        for p in network.parameters():
            if model != "autoencoder":
                p.add_(0.05 * torch.randn(p.shape))
    trained_on = dict.fromkeys(checkpoints.PROVENANCE, 0) | notes
    return checkpoints.save(
        path,
        network,
        model=model,
        config=config,
        units=units,
        schedule=schedule,
        trained_on=trained_on,
        quality={},
        dtype=torch.float32,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Checkpoints of every diffusion method, where methods.load finds them."""
    out = tmp_path_factory.mktemp("checkpoints")
    for i, (name, own) in enumerate((("man", "autoencoder_perceptual"), ("man_simple", "autoencoder_simple"))):
        path = write(out / f"{own}.safetensors", "autoencoder", AUTOENCODER, seed=i)
        write(
            out / f"{name}.safetensors",
            "unet",
            LATENT,
            schedule=COSINE,
            seed=10 + i,
            keep=0.25,
            condition="simulated: a code",
            uses={own: checkpoints.load(path).sha256},
        )
    write(out / "ddpm.safetensors", "unet", PIXELS, schedule=COSINE, seed=20, keep=0.25)
    return out


@pytest.fixture(autouse=True)
def shipped(folder, monkeypatch):
    monkeypatch.setenv("LDCT_CHECKPOINTS", str(folder))


def image(*size: int, seed: int = 0) -> torch.Tensor:
    shape = size if len(size) == 4 else (1, 1, *size)
    return 40 + 60 * torch.randn(shape, generator=seeded(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- the denoiser's contract


@pytest.mark.parametrize("size", [(70, 53), (64, 32), (9, 130), (1, 1)])
@pytest.mark.parametrize("name", ["man", "ddpm", "round_trip"])
def test_any_size(name, size):
    options = {} if name == "round_trip" else {"steps": 2}
    x = image(*size)
    out = methods.load(name, **options)(x)
    assert out.shape == x.shape and out.dtype == torch.float32 and torch.isfinite(out).all()


def test_a_batch_is_what_its_images_are():
    """One by one, whatever number goes through the network at a time."""
    x = image(5, 1, 34, 42)
    for batch in (1, 2, 5):
        out = methods.load("round_trip", batch=batch)(x)
        for i in range(5):
            torch.testing.assert_close(out[i : i + 1], methods.load("round_trip")(x[i : i + 1]), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("name", DIFFUSION)
def test_the_generator_alone_decides(name):
    denoise, x = methods.load(name, steps=2), image(2, 1, 32, 40)
    one, again, other = (denoise(x, generator=seeded(s)) for s in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other)
    state = torch.get_rng_state()
    assert torch.equal(denoise(x), denoise(x))  # and none is a fixed one
    assert torch.equal(torch.get_rng_state(), state)
    ancestral = methods.load(name, sampler="ddpm", steps=3)
    assert torch.equal(ancestral(x, generator=seeded(5)), ancestral(x, generator=seeded(5)))


@pytest.mark.parametrize("name", ["man", "ddpm"])
def test_keep_and_mean(name):
    """out = x - (1 - keep)(removed - its local mean)."""
    x = image(48, 48)

    def run(**options):
        return methods.load(name, steps=2, **options)(x, generator=seeded(1))

    clean = run(keep=0.0, mean_px=0.0)
    removed = x - clean
    torch.testing.assert_close(run(keep=0.4, mean_px=0.0), x - 0.6 * removed, rtol=1e-4, atol=1e-2)
    back = x - 0.75 * (removed - gaussian_blur(removed, 12.0))
    torch.testing.assert_close(run(), back, rtol=1e-4, atol=1e-2)  # the checkpoint's share, and 12 px


def test_samples_are_averaged():
    x, generator = image(32, 32), seeded(3)
    one = methods.load("man", steps=2, keep=0.0, mean_px=0.0)
    both = [one(x, generator=generator) for _ in range(2)]
    mean = methods.load("man", steps=2, keep=0.0, mean_px=0.0, samples=2)(x, generator=seeded(3))
    assert not torch.equal(*both)
    torch.testing.assert_close(mean, (both[0] + both[1]) / 2, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("name", DIFFUSION)
def test_evaluations_are_as_many_as_the_table_says(name, monkeypatch):
    calls, forward = [], UNet.forward

    def counted(self, *arguments, **options):
        calls.append(len(arguments[0]))
        return forward(self, *arguments, **options)

    denoise = methods.load(name)
    monkeypatch.setattr(UNet, "forward", counted)
    denoise(image(16, 16))
    assert len(calls) == methods.METHODS[name].evaluations == methods.table().evaluations[name]
    assert name != "man_fast" or len(calls) <= 4


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize("start", [None, 1000, 400])
def test_steps_are_those_of_a_sampler_bound_by_hand(folder, start):
    x = image(40, 24)
    model = Latent(folder / "man.safetensors", CPU)
    with torch.no_grad():
        found = list(model.steps(x, steps=4, start=start, generator=seeded(7)))
        autoencoder, unet = model.autoencoder, model.unet
        # 40 and 24 are multiples of 4 x 2 already
        c = AUTOENCODER["latent_scale"] * autoencoder.encode(RANGE.to_model(x)).mean
        assert c.shape == (1, 3, 10, 6)
        eps = noise_predictor(lambda z, t: unet(z, t, concat=c, context=c), model.schedule, "v")
        noise = torch.randn(c.shape, generator=seeded(7))
        z = noise if start != 400 else q_sample(model.schedule, c, 400, noise)
        times = model.schedule.times(4, start=start)
        by_hand = samplers.final(samplers.ddim(eps, z, model.schedule, times))
        assert [step.t for step in found] == list(times) and torch.equal(found[0].x_t, z)
        torch.testing.assert_close(found[-1].x0_hat, by_hand, rtol=1e-5, atol=1e-6)
        decoded = RANGE.from_model(autoencoder.decode(by_hand / AUTOENCODER["latent_scale"], (40, 24)))
        torch.testing.assert_close(model.decode(by_hand, (40, 24)), decoded, rtol=1e-5, atol=1e-3)
        whole = methods.load("man", steps=4, start=start, keep=0.0, mean_px=0.0)(x, generator=seeded(7))
    torch.testing.assert_close(whole, decoded, rtol=1e-4, atol=1e-2)


def test_an_estimate_is_the_centre(folder, tmp_path, monkeypatch):
    """The regression network runs once an image; the U-Net is told both codes, and both matter."""
    uses = dict(checkpoints.load(folder / "man.safetensors").trained_on["uses"])
    estimator = write(tmp_path / "nafnet.safetensors", "nafnet", NAFNET, seed=3, units=OTHER)
    uses["nafnet"] = checkpoints.load(estimator).sha256
    path = write(tmp_path / "own.safetensors", "conditioned_unet", TOLD, schedule=CENTRED, uses=uses)
    passes, forward = [], NAFNet.forward
    monkeypatch.setattr(NAFNet, "forward", lambda self, x: passes.append(len(x)) or forward(self, x))
    model, x = Latent(path, CPU), image(2, 1, 24, 16)
    with torch.no_grad():
        steps = list(model.steps(x, steps=3, generator=seeded(1)))
        assert passes == [1, 1] and len(steps) == 3  # slice by slice, not step by step
        told = model.condition(x)
        first = OTHER.from_model(forward(checkpoints.build(estimator), OTHER.to_model(x)))
        torch.testing.assert_close(model.estimate(x), first, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(told.centre, model.encode(first), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(told.given["centre"], model.encode(first) * model.spread, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(told.given["code"], model.encode(x) * model.spread)
        z_t, t = torch.randn(told.centre.shape, generator=seeded(2)), 500
        whole = model.unet(z_t, t, **told.given)
        for name in told.given:
            other = model.unet(z_t, t, **told.given | {name: told.given[name] + 0.1})
            assert float((other - whole).abs().max()) > 1e-4
    write(tmp_path / "nafnet.safetensors", "nafnet", NAFNET, seed=4, units=OTHER)
    with pytest.raises(CheckpointError, match="another nafnet.*told something else"):
        Latent(path, CPU)
    estimator.rename(folder / "nafnet.safetensors")  # the wrong one beside it, and the right one shipped: that one
    write(tmp_path / "nafnet.safetensors", "nafnet", NAFNET, seed=4, units=OTHER)
    write(folder / "nafnet.safetensors", "nafnet", NAFNET, seed=3, units=OTHER)
    with torch.no_grad():
        torch.testing.assert_close(Latent(path, CPU).estimate(x), first, rtol=1e-4, atol=1e-2)
    (folder / "nafnet.safetensors").unlink()


def test_draws_share_a_condition(folder):
    model, x = Latent(folder / "man.safetensors", CPU), image(2, 1, 24, 16)
    with torch.no_grad():
        one = list(model.steps(x.repeat_interleave(3, dim=0), steps=3, generator=seeded(1)))[-1].x0_hat
        three = list(model.steps(x, steps=3, draws=3, generator=seeded(1)))[-1].x0_hat
    torch.testing.assert_close(three, one, rtol=1e-4, atol=1e-4)
    assert float((three[0] - three[1]).abs().max()) > 1e-2


def test_a_conditioned_unet_is_its_three_maps():
    torch.manual_seed(0)
    network = ConditionedUNet(**TOLD)
    assert network.factor == 2 and network.in_channels == 3
    x_t, code, centre = torch.randn(3, 2, 3, 8, 8)
    assert not network(x_t, 500, code, centre).any()  # as every U-Net begins
    maps = torch.randn(2, 9, 8, 8)
    network.unet.forward = lambda *arguments, **given: maps
    plain, of_removed, of_x_t = maps.split(3, dim=1)
    expected = plain + of_removed * 5.0 * (code - centre) + of_x_t * x_t
    torch.testing.assert_close(network(x_t, 500, code, centre), expected)
    with pytest.raises(ShapeError, match="one shape"):
        network(x_t, 500, code[:, :2], centre)
    with pytest.raises(ParameterError, match="leave it out"):
        ConditionedUNet(LATENT)


def test_pixel_steps_see_the_image_itself(folder):
    x = image(20, 14)
    model = Conditional(folder / "ddpm.safetensors", CPU)
    with torch.no_grad():
        c = RANGE.to_model(x)
        assert torch.equal(model.encode(x), c)  # both sides are even already
        torch.testing.assert_close(model.decode(c, (20, 13)), x[..., :13], rtol=0, atol=1e-3)
        eps = noise_predictor(lambda z, t: model.unet(z, t, concat=c), model.schedule, "v")
        times = model.schedule.times(3)
        by_hand = samplers.final(
            samplers.dpm_solver_pp_2m(eps, torch.randn(c.shape, generator=seeded(2)), model.schedule, times)
        )
        found = samplers.final(model.steps(x, steps=3, sampler="dpm_solver_pp_2m", generator=seeded(2)))
    torch.testing.assert_close(found, by_hand, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- conditions and named errors


def test_centring_and_spread_are_the_same_diffusion_of_the_difference(folder, tmp_path):
    """Sampling x0 with a centred network is sampling (x0 - c) / spread without, from the noised c."""
    plain = Conditional(folder / "ddpm.safetensors", CPU)
    write(tmp_path / "own.safetensors", "unet", PIXELS, schedule=CENTRED, seed=20)
    near = Conditional(tmp_path / "own.safetensors", CPU)
    x = image(20, 14)
    with torch.no_grad():
        c, spread = plain.encode(x), near.spread
        torch.testing.assert_close(near.encode(x) * spread, c, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(near.decode(near.encode(x), (20, 14)), x, rtol=0, atol=1e-3)
        # from t = 800: at T, where alpha_bar is 2e-9, float32 itself leaves only three digits of x0
        found = list(near.steps(x, steps=5, start=800, generator=seeded(3)))
        times = near.schedule.times(5, start=800)
        start = near.schedule.scales(800, c)[1] * torch.randn(c.shape, generator=seeded(3))
        by_hand = list(samplers.ddim(plain.predictor(plain.condition(x)), start, plain.schedule, times))
    for a, b in zip(found, by_hand, strict=True):
        torch.testing.assert_close(a.x0_hat, b.x0_hat + near.encode(x), rtol=1e-4, atol=1e-4)


def test_start_has_no_condition_and_begins_mid_chain(folder, tmp_path, monkeypatch):
    seen, forward = [], UNet.forward

    def spy(self, x_t, t, **given):
        seen.append((x_t, int(t[0]), given))
        return forward(self, x_t, t, **given)

    monkeypatch.setattr(UNet, "forward", spy)
    x = image(32, 32)
    alone = {k: v for k, v in LATENT.items() if not k.startswith(("concat", "context"))}
    path = write(
        tmp_path / "prior.safetensors",
        "unet",
        alone,
        schedule=COSINE,
        seed=10,
        keep=0.25,
        condition="start: none",
        uses=checkpoints.load(folder / "man.safetensors").trained_on["uses"],
    )
    with pytest.raises(ParameterError, match="nothing of the image left"):
        methods.load("man", path=path, start=1000)
    for options, first in (({}, 300), ({"start": 120}, 120)):
        seen.clear()
        methods.load("man", path=path, condition="start", steps=3, **options)(x, generator=seeded(4))
        assert [t for _, t, _ in seen] == [first, first * 2 // 3, first // 3]
        assert not any(given for _, _, given in seen)
        model = Latent(path, CPU)
        with torch.no_grad():
            z = model.encode(x)
        started = q_sample(model.schedule, z, first, torch.randn(z.shape, generator=seeded(4)))
        torch.testing.assert_close(seen[0][0], started, rtol=1e-5, atol=1e-6)


def test_a_condition_that_was_not_trained_for_is_refused(folder, tmp_path):
    with pytest.raises(ParameterError, match=r"condition='simulated'.*python -m ldctlib.recipes man --data"):
        methods.load("man", condition="paired")
    with pytest.raises(ParameterError, match=r"condition='simulated'.*python -m ldctlib.recipes man_start"):
        methods.load("man", condition="start")
    with pytest.raises(ParameterError, match="simulated, paired, start"):
        methods.load("man", condition="none")
    uses = checkpoints.load(folder / "man.safetensors").trained_on["uses"]
    paired = write(
        tmp_path / "own.safetensors",
        "unet",
        LATENT,
        schedule=COSINE,
        uses=uses,
        keep=0.0,
        condition="paired: the low-dose scan",
    )
    assert methods.load("man", path=paired, steps=1)(image(8, 8)).shape == (1, 1, 8, 8)  # its own is the default
    assert methods.load("man", path=paired, steps=1, condition="paired") is not None
    with pytest.raises(ParameterError, match="condition='paired'"):
        methods.load("man", path=paired, condition="simulated")


def test_another_autoencoder_is_refused(folder):
    with pytest.raises(CheckpointError, match="another autoencoder"):
        methods.load("man", autoencoder=folder / "autoencoder_simple.safetensors")
    assert methods.load("man", autoencoder=folder / "autoencoder_perceptual.safetensors") is not None


def test_checkpoints_of_another_kind_are_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="no noise schedule"):
        methods.load("ddpm", path=folder / "autoencoder_simple.safetensors")
    with pytest.raises(CheckpointError, match="names no autoencoder"):
        methods.load("man", path=folder / "ddpm.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(sampler="euler"), "ddim, ddpm, dpm_solver_pp_2m"),
        (dict(steps=1001), "1 … 1000 steps, got 1001"),
        (dict(steps=0), "got 0"),
        (dict(steps=30, start=20), "from time 20"),
        (dict(start=2000), "1 … 1000"),
        (dict(spacing="quadratic"), "spacing"),
        (dict(samples=0), "samples and batch"),
        (dict(keep=1.0), "keep"),
        (dict(colour="red"), "options"),
        (dict(sampler="dpm_solver_pp_2m", eta=0.5), "options"),
    ],
)
@pytest.mark.parametrize("name", ["man", "ddpm"])
def test_bad_options_are_named_when_loading(name, options, message):
    with pytest.raises(ParameterError, match=message):
        methods.load(name, **options)
