"""Recipes: stages follow one another, calls may be short, provenance adds up; what a training draws from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldctlib import checkpoints, recipes
from ldctlib.data.case import Case, Source
from ldctlib.data.collection import open_collection, phantom_collection
from ldctlib.data.patches import PatchConfig
from ldctlib.errors import ParameterError
from ldctlib.recipes import regression, running
from ldctlib.training import TrainConfig

PATCHES = PatchConfig(seed=1, patch=32, size=96, slices=4, photographs=2, noises=2)


def tiny(profile: str) -> recipes.Recipe:
    common = dict(batch_size=2, log_every=1, checkpoint_every=1)
    return recipes.Recipe(
        model="nafnet",
        loss=regression.loss,
        notes=regression.TARGET,
        config=dict(width=4, encoder=[1], middle=1, decoder=[1], patch=32),
        stages=(
            recipes.Stage("stable", TrainConfig(steps=3, lr=1e-3, schedule="constant", **common), PATCHES),
            recipes.Stage("decay", TrainConfig(steps=2, lr=1e-3, **common), PATCHES),
        ),
    )


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
    assert whole.trained_on["keep"] == 0.25 and whole.range == recipes.HU_RANGE


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
    loss = regression.denoising_loss(recipes.HU_RANGE)
    truth = recipes.HU_RANGE.to_model(clean)
    assert float(loss(lambda x: truth, batch, generator)) == 0
    # 4,096 samples of a squared Gaussian: 2.2 % standard error
    assert abs(float(loss(lambda x: x, batch, generator)) / (900 / 1125) - 1) < 0.08


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


@pytest.mark.parametrize(("processes", "batch"), [(1, 2), (4, 8), (8, 16)])
def test_a_dry_run_fits_the_processes_that_the_training_fits(monkeypatch, processes, batch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    stage = recipes.recipe("man", "paper").stages[0]  # 4 micro-batches of 4: eight processes are too many
    dry = running._dry(stage).train
    assert (dry.batch_size, dry.accumulation, dry.steps) == (batch, 4 if processes == 8 else 2, 2)


# ---------------------------------------------------------------- collections


def test_slices_of_a_case_are_counted_from_headers(tmp_path, monkeypatch):
    (tmp_path / "np" / "full").mkdir(parents=True)
    np.save(tmp_path / "np" / "full" / "volume.npy", np.zeros((5, 6, 7), np.float32))
    np.save(tmp_path / "np" / "full" / "slice.npy", np.zeros((6, 7), np.float32))
    assert {case.patient: case.n_slices for case in open_collection(tmp_path / "np")} == {"volume": 5, "slice": 1}

    def unread():
        raise AssertionError("pixels were read")

    files = tuple(tmp_path / f"{k}.dcm" for k in range(7))
    assert Case("a", full=Source(unread, files)).n_slices == 7
    assert Case("b", full=None, low=Source(unread, files[:4])).n_slices == 4
    assert phantom_collection(1, slices=2, size=32).cases[0].n_slices == 2  # no file: drawn


@pytest.mark.parametrize("axis", (0, 1, 2))
def test_slices_of_a_volume_run_from_feet_to_head(tmp_path, axis):
    nib = pytest.importorskip("nibabel")
    affine = np.diag([0.7, 0.7, 0.7, 1.0])
    affine[:3, :3] = np.roll(affine[:3, :3], axis + 1, axis=1)  # column ``axis`` points to the head
    nib.save(nib.Nifti1Image(np.full((3, 4, 5), -1000.0, np.float32), affine), path := tmp_path / "p.nii.gz")
    (case,) = open_collection(tmp_path)
    assert case.n_slices == (3, 4, 5)[axis] == len(case.load_full().values)
    path.write_bytes(b"damaged")
    with pytest.raises(Exception, match="p.nii.gz"):
        _ = case.n_slices
