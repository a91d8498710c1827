"""The prior of cine cardiac MR: its training stream, and a checkpoint that says its scale and its range."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ldctlib import checkpoints, recipes
from ldctlib.data.mr_patches import MRPatchConfig
from ldctlib.data.natural import random_intensity
from ldctlib.errors import CheckpointError, ParameterError
from ldctlib.pipelines import DiffusionPipeline
from ldctlib.recipes import running
from ldctlib.units import Range

CONFIG = MRPatchConfig(seed=3, patch=32, size=64, n_slices=6, n_photographs=3, refresh=300)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset():
    return CONFIG.open()


def test_a_sample_depends_on_its_number_alone(dataset):
    first = {n: dataset[n]["target"] for n in (7, 8, 301)}
    again = CONFIG.open()
    assert all(torch.equal(again[n]["target"], first[n]) for n in (301, 8, 7))
    assert not torch.equal(first[7], first[8])
    assert first[7].shape == (1, 32, 32) and first[7].dtype == torch.float32


def test_samples_are_intensities_of_about_0_to_1(dataset):
    samples = torch.stack([dataset[n]["target"] for n in range(200)])
    assert samples.min() >= 0 and 0.1 < float(samples.mean()) < 0.6
    # volumes' 99.5th percentile is 1, times a brightness of at most 1.2; single coils reach further
    assert float(samples.quantile(0.99)) < 1.5


@pytest.mark.parametrize("wrong", (dict(patch=8), dict(patch=96), dict(pixel_mm=(2.0, 1.0)), dict(brightness=(0, 1))))
def test_bad_configurations_are_refused(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        replace(CONFIG, **wrong)


def test_photographs_in_arbitrary_units():
    import numpy as np

    rng = np.random.default_rng(1)
    for _ in range(4):
        image = random_intensity(rng, min_size=64)
        assert min(image.shape) >= 64 and image.dtype == np.float32 and 0 <= image.min() and image.max() <= 1.5
        assert np.ptp(np.percentile(image, (1, 99))) < 1.01


@pytest.mark.parametrize("profile", ("workshop", "train", "paper"))
def test_the_recipe_is_of_images_in_arbitrary_units(profile):
    recipe = recipes.recipe("prior_mr", profile)
    assert (recipe.scale, recipe.hu_range, recipe.intensity_range) == ("arbitrary", None, Range(0.0, 1.0))
    network = recipe.saved
    with torch.device("meta"):
        unet = checkpoints.model_class(network.model)(**network.config)
    assert all(stage.data.patch % unet.factor == 0 for stage in recipe.stages)
    size_mib = 2 * sum(p.numel() for p in unet.parameters()) / 2**20
    assert profile == "paper" or size_mib < 4


def test_a_trained_prior_says_its_scale_and_samples_in_it(tmp_path):
    """Two steps of every stage; what comes out is a pipeline in the images' own unit."""
    logs = list(recipes.run("prior_mr", "workshop", out=tmp_path, dry_run=True, progress=False))
    assert [name for name, log in logs if log.finished] == ["stable", "decay"]
    path = tmp_path / "dry-run" / "prior_mr.safetensors"
    checkpoint = checkpoints.load(path)
    assert (checkpoint.scale, checkpoint.hu_range, checkpoint.range) == ("arbitrary", None, Range(0.0, 1.0))
    assert "cardiac MR" in checkpoint.trained_on["collection"]
    assert [stage["data"]["patch"] for stage in checkpoint.stages] == [64, 64]
    pipeline = DiffusionPipeline.from_checkpoint(path)
    assert pipeline.scale == "arbitrary"
    x = torch.linspace(0, 1, 40 * 44).reshape(1, 1, 40, 44)
    grid = pipeline.encode(x)
    assert float(grid[0, 0, 0, 0]) == -1 and torch.allclose(pipeline.decode(grid, (40, 44)), x, atol=1e-6)
    with pytest.raises(ParameterError, match="arbitrary units"):
        _ = pipeline.grid.hu_range
    generator = torch.Generator().manual_seed(0)
    loss = pipeline.loss(pipeline.network, {"target": x[..., :40]}, generator)
    assert torch.isfinite(loss)
    with pytest.raises(KeyError):  # a batch in HU is not taken for one
        pipeline.loss(pipeline.network, {"target_hu": x[..., :40]}, generator)


def test_images_have_one_scale(tmp_path):
    told = dict(collection="c", cases="1", seed=0, steps=1, profile="train", code_revision="x")
    both = dict(hu_range=Range(-1000, 1000), intensity_range=Range(0, 1), trained_on=told)
    with pytest.raises(CheckpointError, match="not in both"):
        checkpoints.save(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, model="unet", config={}, **both)


def test_a_header_from_before_other_units_is_read(tmp_path):
    """Format 2 as it was written before there was an intensity range."""
    told = dict(collection="c", cases="1", seed=0, steps=1, profile="train", code_revision="x")
    path = tmp_path / "a.safetensors"
    checkpoints.save(path, {"w": torch.zeros(1)}, model="unet", config={}, hu_range=Range(-360, 440), trained_on=told)
    tensors, fields = checkpoints.read_tensors(path, kind=checkpoints.FORMAT)
    del fields["intensity_range"], fields["sha256"]
    fields.pop("format", None)
    checkpoints.write_tensors(path, tensors, kind=checkpoints.FORMAT, fields=fields)
    read = checkpoints.load(path)
    assert (read.scale, read.range, read.intensity_range) == ("HU", Range(-360, 440), None)


def test_the_source_of_scans_in_arbitrary_units(tmp_path):
    """Real MR has no doses: what is trained on is the scan itself."""
    nib = pytest.importorskip("nibabel")
    import numpy as np

    for i in range(8):
        values = np.random.default_rng(i).integers(0, 900, (24, 24, 4)).astype(np.float32)
        image = nib.Nifti1Image(values, np.diag([1.4, 1.4, 8, 1]))
        nib.save(image, tmp_path / f"A{i}B{i}C{i}_sa.nii.gz")
    source = running.Source.open(tmp_path, recipes.recipe("prior_mr"))
    assert source.output is None and source.described["target"] == "scan with its own noise"
    assert 0 < len(source.described["cases"]) < 8 and source.n_slices == 4 * len(source.described["cases"])
