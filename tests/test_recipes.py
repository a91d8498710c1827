"""Recipes: stages follow one another, calls may be short, provenance adds up."""

from __future__ import annotations

import pytest
import torch

from ldctlib import checkpoints, recipes
from ldctlib.data.patches import PatchConfig
from ldctlib.errors import ParameterError
from ldctlib.training import TrainConfig

PATCHES = PatchConfig(seed=1, patch=32, size=96, slices=4, photographs=2, noises=2)


def tiny(profile: str) -> recipes.Recipe:
    common = dict(batch_size=2, log_every=1, checkpoint_every=1)
    return recipes.Recipe(
        model="nafnet",
        config=dict(width=4, encoder=[1], middle=1, decoder=[1], patch=32),
        stages=(recipes.Stage("stable", TrainConfig(steps=3, lr=1e-3, schedule="constant", **common), PATCHES),
                recipes.Stage("decay", TrainConfig(steps=2, lr=1e-3, **common), PATCHES)))


@pytest.fixture(autouse=True)
def only_tiny(monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny)


def finish(out, **options) -> list[tuple[str, int]]:
    return [(stage, log.step) for stage, log in recipes.run("tiny", out=out, device="cpu", progress=False, **options)]


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
    assert whole.trained_on["steps"] == 5 and whole.trained_on["stages"] == {"stable": 3, "decay": 2}
    assert whole.trained_on["keep"] == 0.25 and whole.range == recipes.DENOISER_RANGE


def test_one_stage_alone(tmp_path):
    with pytest.raises(ParameterError, match="stable"):
        finish(tmp_path, stage="polish")
    with pytest.raises(ParameterError, match="start from"):
        finish(tmp_path / "empty", stage="decay")
    finish(tmp_path, stage="stable")
    start = tmp_path / "tiny-stable.safetensors"
    assert checkpoints.load(start).trained_on["steps"] == 3
    assert finish(tmp_path / "other", stage="decay", init_from=start) == [("decay", 1), ("decay", 2)]


def test_loss_of_a_perfect_and_of_an_idle_network():
    """The truth costs nothing; the input itself costs its noise's variance over variance + 15 HU squared."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.full((4, 1, 32, 32), 40.0)
    ldct = clean + 30 * torch.randn(clean.shape, generator=generator)
    batch = {"clean_hu": clean, "ldct_hu": ldct, "sd_hu": torch.full((4,), 30.0)}
    loss = recipes.denoising_loss(recipes.DENOISER_RANGE)
    truth = recipes.DENOISER_RANGE.to_model(clean)
    assert float(loss(lambda x: truth, batch, generator)) == 0
    # 4,096 samples of a squared Gaussian: 2.2 % standard error
    assert abs(float(loss(lambda x: x, batch, generator)) / (900 / 1125) - 1) < 0.08
