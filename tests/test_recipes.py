"""Recipes: stages follow one another, calls may be short, provenance adds up; what a training draws from."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ldctlib import checkpoints, recipes
from ldctlib.data.patches import PatchConfig
from ldctlib.errors import CheckpointError, LdctError, ParameterError, WriteError
from ldctlib.losses.regression import weighted_mse
from ldctlib.recipes import Network, Recipe, Stage, regression, running
from ldctlib.training import Optimizer, TrainConfig, Update

PATCHES = PatchConfig(seed=1, patch=32, size=96, n_slices=4, n_photographs=2, n_noises=2)
SMALL_NAFNET = dict(width=4, encoder=[1], middle=1, decoder=[1], patch=32)
COMMON = dict(batch_size=2, log_every=1, checkpoint_every=1)
TINY = Recipe(
    {"nafnet": Network("nafnet", SMALL_NAFNET)},
    (
        Stage("stable", TrainConfig(steps=3, lr=1e-3, schedule="constant", **COMMON), PATCHES),
        Stage("decay", TrainConfig(steps=2, lr=1e-3, **COMMON), PATCHES),
    ),
    regression.updates,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def only_tiny(monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "tiny", dict.fromkeys(("workshop", "train", "paper"), TINY))


def finish(out, name="tiny", **options) -> list[tuple[str, int]]:
    return [(stage, log.step) for stage, log in recipes.run(name, out=out, device="cpu", progress=False, **options)]


def test_whole_and_in_short_calls(tmp_path):
    assert finish(tmp_path / "whole") == [("stable", 1), ("stable", 2), ("stable", 3), ("decay", 1), ("decay", 2)]
    for _ in range(20):  # max_seconds = 0 ends each call after one step
        finish(tmp_path / "short", max_seconds=1e-9)
        finish(tmp_path / "short", max_seconds=0.5)
        if (tmp_path / "short" / "tiny.safetensors").is_file():
            break
    finish(tmp_path / "short")
    whole, short = (checkpoints.load(tmp_path / name / "tiny.safetensors") for name in ("whole", "short"))
    assert all(torch.equal(whole.state_dict[k], short.state_dict[k]) for k in whole.state_dict)
    assert whole.trained_on["steps"] == 5 and [(s["name"], s["steps"]) for s in whole.stages] == [
        ("stable", 3),
        ("decay", 2),
    ]
    assert all(s["data"]["patch"] == 32 and s["seed"] == 0 for s in whole.stages)
    assert (whole.output, whole.range, whole.recipe) == ("truth", recipes.HU_RANGE, "tiny")


def test_one_process_trains_a_recipe_in_a_folder(tmp_path):
    started = recipes.run("tiny", out=tmp_path, progress=False)
    next(started)
    with pytest.raises(WriteError, match="another process is at .*tiny"):
        next(recipes.run("tiny", out=tmp_path, progress=False))
    started.close()  # as a stopped process does
    assert list(recipes.run("tiny", out=tmp_path, progress=False)) and not list(tmp_path.glob(".*"))


def test_one_stage_alone(tmp_path):
    with pytest.raises(ParameterError, match="stable"):
        finish(tmp_path, stage="polish")
    with pytest.raises(ParameterError, match="start from"):
        finish(tmp_path / "empty", stage="decay")
    finish(tmp_path, stage="stable")
    start = tmp_path / "tiny-stable.safetensors"
    assert checkpoints.load(start).trained_on["steps"] == 3
    assert finish(tmp_path / "other", stage="decay", init_from=start) == [("decay", 1), ("decay", 2)]


def test_unknown_names_are_named():
    with pytest.raises(ParameterError, match="did you mean 'nafnet'"):
        recipes.recipe("nafnett")
    with pytest.raises(LdctError, match="profile"):
        recipes.recipe("nafnet", "quick")


def test_loss_of_a_perfect_and_of_an_idle_network():
    """The truth costs nothing; the input itself costs its noise's variance over variance + 15 HU squared."""
    generator = torch.Generator().manual_seed(0)
    target = torch.full((4, 1, 32, 32), 40.0)
    ldct = target + 30 * torch.randn(target.shape, generator=generator)
    batch = {"target_hu": target, "ldct_hu": ldct, "noise_sd_hu": torch.full((4,), 30.0)}
    loss = weighted_mse(recipes.HU_RANGE)
    truth = recipes.HU_RANGE.to_model(target)
    assert float(loss(lambda x: truth, batch, generator, 0)) == 0
    # 4,096 samples of a squared Gaussian: 2.2 % standard error
    assert abs(float(loss(lambda x: x, batch, generator, 0)) / (900 / 1125) - 1) < 0.08


# ---------------------------------------------------------------- every recipe


@pytest.mark.parametrize("name", [name for name in recipes.RECIPES if name != "tiny"])
def test_recipes_are_complete(name):
    """At every profile the networks can be built and fit what they need, which comes before them."""
    for profile in ("workshop", "train", "paper"):
        recipe = recipes.recipe(name, profile)
        order = running.training_order(profile=profile)
        assert recipe.paper or recipe.pipeline is None
        with torch.device("meta"):  # the paper's networks are big
            network = checkpoints.model_class(recipe.saved.model)(**recipe.saved.config)
        if recipe.pipeline is not None:
            assert set(recipe.pipeline.conditions) == set(network.conditions)
            if recipe.pipeline.autoencoder in recipes.RECIPES:
                autoencoder = recipes.recipe(recipe.pipeline.autoencoder, profile).saved
                assert autoencoder.config["latent_channels"] == network.in_channels
        for other in running.needs(name, profile):
            assert order.index(other) < order.index(name)
        for stage in recipe.stages:
            assert stage.train.warmup_steps <= stage.train.steps


def test_published_numbers_of_man():
    """Section 3.2: Adam at 1e-4 and a constant rate, batches of 16, 600 epochs, 512² pixels."""
    for name in ("autoencoder_simple", "autoencoder_perceptual", "man", "man_simple", "man_paper"):
        (stage,) = recipes.recipe(name, "paper").stages
        assert (stage.train.schedule, stage.train.lr, stage.train.batch_size) == ("constant", 1e-4, 16)
        assert stage.epochs == 600 and stage.data.patch == 512


NOT_SHIPPED = ("tiny", "man_start", "nafnet_start", "vqgan_start", "redcnn_start", "esaunet_start")
NOT_SHIPPED += ("wgan_vgg_redcnn", "dugan_redcnn")
NOT_SHIPPED += ("transunet",)  # it is trained on arrays, to compare data
NOT_SHIPPED += ("na_natural",)  # of photographs: the variants start from it
NOT_SHIPPED += ("fast_ddpm_non_uniform",)  # .1 dB more than fast_ddpm: not worth its 2 MB
NOT_SHIPPED += ("na_base", "na_diff_f_sum")  # controlnet holds the first; the other is not trained yet


@pytest.mark.parametrize("name", [name for name in recipes.RECIPES if name not in NOT_SHIPPED])
def test_shipped_checkpoints_say_where_they_come_from(name):
    checkpoint, recipe = checkpoints.load(checkpoints.find(name)), recipes.recipe(name)
    assert checkpoint.recipe == name and checkpoint.trained_on["profile"] == "train"
    assert checkpoint.trained_on["steps"] > 0 and "phantom" in checkpoint.trained_on["collection"]
    expected = recipe.saved.model, recipe.output, recipe.intensity_range or recipe.hu_range
    assert (checkpoint.model, checkpoint.output, checkpoint.range) == expected
    measured = ("latent_scale", "latent_mean", "latent_std")
    config = {k: v for k, v in checkpoint.config.items() if k not in measured}
    assert config == recipe.saved.config
    assert checkpoint.pipeline == (recipe.pipeline and recipe.pipeline.to_dict())
    assert checkpoint.path.stat().st_size < recipe.budget_mib * 2**20
    for needed, sha256 in checkpoint.uses.items():
        checkpoints.find(needed, sha256=sha256)
    if name in ("nafnet", "redcnn", "man", "man_paper", "ddpm"):
        assert checkpoint.quality, "the header holds no measured quality"


def test_the_graph_names_who_is_trained_again():
    lines = dict(line.split(": ", 1) for line in recipes.graph().splitlines())
    assert lines["man"] == "needs autoencoder_perceptual, nafnet"
    assert lines["nafnet"] == "needs nafnet_start; train again after it: man, man_simple"
    assert list(lines).index("autoencoder_simple") < list(lines).index("autoencoder_perceptual")


def test_recipes_that_need_one_another_are_refused(monkeypatch):
    for a, b in (("one", "two"), ("two", "one")):
        stages = tuple(replace(s, needs=(b,)) for s in TINY.stages)
        monkeypatch.setitem(recipes.RECIPES, a, {"train": replace(TINY, stages=stages)})
    with pytest.raises(ParameterError, match="one -> two -> one"):
        running.training_order(["one"])


# ---------------------------------------------------------------- other data, other starts


def write_scans(root, patients=6, size=64):
    """Full-dose and low-dose NumPy volumes of discs."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    disc = np.where(np.hypot(x, y) < 0.42 * size, 40.0, -1000.0)
    for patient in range(patients):
        for dose, sd in (("full", 10), ("low", 20)):
            folder = root / f"own{patient}" / dose
            folder.mkdir(parents=True)
            np.save(folder / "scan.npy", (disc + rng.normal(0, sd, (3, size, size))).astype(np.float32))
    return root


def test_the_state_of_other_data_is_refused(tmp_path):
    """Finished or half-way, a state in the folder is taken up by its own data and recipe only."""
    scans = write_scans(tmp_path / "scans")
    start = tmp_path / "start.safetensors"
    finish(tmp_path / "out")
    start.write_bytes((tmp_path / "out" / "tiny-stable.safetensors").read_bytes())
    before = (tmp_path / "out" / "tiny.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="state of another run.*collection"):
        finish(tmp_path / "out", data=scans, stage="decay", init_from=start)
    assert (tmp_path / "out" / "tiny.safetensors").read_bytes() == before
    finish(tmp_path / "half", max_seconds=1e-9, stage="stable")
    with pytest.raises(CheckpointError, match="state of another run"):
        finish(tmp_path / "half", data=scans, stage="stable", init_from=start)
    assert finish(tmp_path / "own", data=scans, stage="decay", init_from=start) == [("decay", 1), ("decay", 2)]
    mine = checkpoints.load(tmp_path / "own" / "tiny.safetensors")
    assert mine.trained_on["collection"].startswith("scans") and mine.output == "full dose"
    assert set(mine.trained_on["cases"]) < {f"own{i}" for i in range(6)}


def test_other_starting_weights_are_another_run(tmp_path):
    finish(tmp_path / "a", stage="stable")
    start = tmp_path / "a" / "tiny-stable.safetensors"
    finish(tmp_path / "b", stage="stable", init_from=start, max_seconds=1e-9)
    with pytest.raises(CheckpointError, match="state of another run"):
        finish(tmp_path / "b", stage="stable")


def test_a_recipe_may_start_from_another_one_s_result(tmp_path, monkeypatch):
    """Named prefixes keep their own initialisation, and what was initialised anew is returned by name."""
    finish(tmp_path)
    network = Network("nafnet", SMALL_NAFNET, start="tiny", reinitialise=("ending.", "intro.bias"))
    model = network.build(5)
    fresh = {name: t.clone() for name, t in model.state_dict().items()}
    anew = network.place(model, checkpoints.load(tmp_path / "tiny.safetensors"))
    assert anew == ["intro.bias", "ending.weight", "ending.bias"]
    trained = checkpoints.load(tmp_path / "tiny.safetensors").state_dict
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name in anew else trained[name])
    with pytest.raises(CheckpointError, match="wrong shapes: ending.bias"):
        wide = replace(network, config=SMALL_NAFNET | dict(shuffle=4), reinitialise=("intro",))
        wide.place(wide.build(5), checkpoints.load(tmp_path / "tiny.safetensors"))
    monkeypatch.setitem(recipes.RECIPES, "next", {"train": replace(TINY, networks={"nafnet": network})})
    assert running.needs("next") == ("tiny",) and running.training_order(["next", "tiny"]) == ["tiny", "next"]
    assert finish(tmp_path, name="next")[-1] == ("decay", 2)


# ---------------------------------------------------------------- several networks


def gan_updates(context):
    """A critic that tells targets from estimates, twice a step and from the second step on; a generator it teaches."""
    to_model = context.recipe.hu_range.to_model

    def critic_loss(networks, batch, generator, step):
        real, fake = to_model(batch["target_hu"]), networks["generator"](to_model(batch["ldct_hu"])).detach()
        return networks["critic"](fake).mean() - networks["critic"](real).mean()

    def generator_loss(networks, batch, generator, step):
        fake = networks["generator"](to_model(batch["ldct_hu"]))
        error = (fake - to_model(batch["target_hu"])).square().mean()
        return {"loss": error - 1e-3 * networks["critic"](fake).mean(), "mse": error}

    adam = Optimizer(lr=1e-3, betas=(0.0, 0.9))
    return [Update("critic", critic_loss, adam, repeat=2, start=1), Update("generator", generator_loss, adam)]


class Critic(nn.Sequential):
    def __init__(self, width: int):
        super().__init__(nn.Conv2d(1, width, 3), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 3))


def test_a_gan_as_a_recipe_is_stopped_and_resumed_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setitem(checkpoints.MODELS, "critic", f"{__name__}:Critic")
    networks = {"generator": Network("nafnet", SMALL_NAFNET), "critic": Network("critic", dict(width=4))}
    stage = Stage("adversarial", TrainConfig(steps=4, **COMMON), PATCHES)
    monkeypatch.setitem(recipes.RECIPES, "gan", {"train": Recipe(networks, (stage,), gan_updates)})
    assert [step for _, step in finish(tmp_path / "whole", name="gan")] == [1, 2, 3, 4]
    for _ in range(4):
        finish(tmp_path / "parts", name="gan", max_seconds=1e-9)
    whole, parts = (checkpoints.load(tmp_path / name / "gan.safetensors") for name in ("whole", "parts"))
    assert whole.model == "nafnet" and whole.trained_on["steps"] == parts.trained_on["steps"] == 4
    assert all(torch.equal(whole.state_dict[k], parts.state_dict[k]) for k in whole.state_dict)


# ---------------------------------------------------------------- dry runs


def test_a_dry_run_lies_apart_and_says_so(tmp_path):
    """It neither takes part in a training nor can be taken for its result."""
    finish(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for _ in range(2):  # again: there is nothing to resume
        assert finish(tmp_path, dry_run=True) == [("stable", 1), ("stable", 2), ("decay", 1), ("decay", 2)]
    made = checkpoints.load(tmp_path / "dry-run" / "tiny.safetensors")
    assert made.trained_on["profile"] == "train (dry run)" and made.trained_on["steps"] == 4
    assert not list((tmp_path / "dry-run").glob("*.state"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", ["clip", "prior_mr", "vqgan_semantic", "dugan", "dndp_low"])
def test_a_dry_run_s_images_fit_their_networks(name):
    """Every kind of data has a small form, with sides that the stage's networks take."""
    for profile in ("workshop", "train", "paper"):
        chosen = recipes.recipe(name, profile)
        for stage, small in zip(chosen.stages, running.dry(chosen, narrow=True).stages, strict=True):
            assert small.data.n_slices <= 4 and small.train.steps == 2
            assert getattr(small.data, "patch", 0) % stage.sides == 0
            assert small.data.size >= getattr(small.data, "patch", 0)


@pytest.mark.parametrize(("processes", "batch"), [(1, 2), (4, 8), (8, 16)])
def test_a_dry_run_takes_batches_that_divide_as_the_training_s_do(monkeypatch, processes, batch):
    """Of 4 micro-batches of 4: eight processes are too many, which the dry run has to find out."""
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    (stage,) = running.dry(recipes.recipe("man", "paper"), narrow=True).stages
    assert (stage.train.batch_size, stage.train.accumulation, stage.train.steps) == (
        batch,
        4 if processes == 8 else 2,
        2,
    )
    assert math.prod((stage.data.patch, stage.data.n_slices)) <= 64 * 4
