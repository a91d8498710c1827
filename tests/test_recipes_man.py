"""MAN's recipes: each finds what it needs, says what it used, and learns on codes that mean what they should.

The networks are tiny and the steps few; what is checked is what a training would get wrong in silence.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ldctlib import checkpoints, methods, recipes
from ldctlib.data.patches import NoisePatches
from ldctlib.errors import CheckpointError
from ldctlib.recipes import Context, Network, man, running

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = dict(model_channels=8, channel_mult=[1, 2], num_res_blocks=1, norm_groups=4)
LATENT = dict(in_channels=4, attention_at=[2], num_heads=1, **SMALL)
NETWORKS = {
    "autoencoder": dict(
        width=8,
        channel_mult=[1, 2],
        latent_channels=4,
        blocks=1,
        attention_at=[2],
        stem=2,
        shortcut=True,
        norm_groups=4,
    ),
    "conditioned_unet": dict(unet=LATENT | dict(context_channels=4, context_dim=8), gain=5.0),
    "unet": dict(in_channels=1, attention_at=[], concat_channels=1, **SMALL),
}
BANKS = dict(patch=32, size=96, n_slices=4, n_photographs=2, n_noises=2)
FAMILY = ("autoencoder_simple", "autoencoder_perceptual", "man")

pytestmark = pytest.mark.usefixtures("one_thread")


def shrunk(name: str) -> recipes.Recipe:
    """The workshop's recipe with networks, banks and numbers of steps that take no time."""
    recipe = recipes.recipe(name, "workshop")
    networks = {key: replace(n, config=NETWORKS[n.model]) for key, n in recipe.networks.items()}
    quick = dict(steps=4, warmup_steps=0, batch_size=2, log_every=1, checkpoint_every=100, precision="float32")
    stages = [replace(s, train=replace(s.train, **quick), data=replace(s.data, **BANKS)) for s in recipe.stages]
    return replace(recipe, networks=networks, stages=tuple(stages))


@pytest.fixture(scope="module")
def tiny():
    """Every recipe of MAN's in its tiny form."""
    with pytest.MonkeyPatch.context() as patch:
        for name, recipe in {name: shrunk(name) for name in (*FAMILY, "man_simple", "ddpm")}.items():
            patch.setitem(recipes.RECIPES, name, {**recipes.RECIPES[name], "workshop": recipe})
        yield


def finish(name: str, out: Path, **options) -> list[tuple[str, int]]:
    profile = options.pop("profile", "workshop")
    logs = recipes.run(name, profile, out=out, device="cpu", progress=False, **options)
    return [(stage, log.step) for stage, log in logs]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """A folder with autoencoder_simple, autoencoder_perceptual, man and ddpm, trained one after another."""
    out = tmp_path_factory.mktemp("family")
    torch.set_num_threads(1)
    for name in (*FAMILY, "ddpm"):
        assert finish(name, out)[-1] == (recipes.recipe(name, "workshop").stages[-1].name, 4)
    return out


# ---------------------------------------------------------------- one after another


def test_each_uses_what_was_trained_before_it(trained):
    loaded = {name: checkpoints.load(trained / f"{name}.safetensors") for name in (*FAMILY, "ddpm")}
    assert loaded["autoencoder_simple"].uses == loaded["ddpm"].uses == {}
    assert loaded["autoencoder_perceptual"].uses == {"autoencoder_simple": loaded["autoencoder_simple"].sha256}
    assert loaded["man"].uses == {
        "autoencoder_perceptual": loaded["autoencoder_perceptual"].sha256,
        "nafnet": checkpoints.load(checkpoints.find("nafnet")).sha256,
    }
    for name, c in loaded.items():
        recipe = recipes.recipe(name, "workshop")
        assert (c.recipe, c.trained_on["profile"], c.trained_on["steps"], c.output) == (name, "workshop", 8, "truth")
        assert c.pipeline == (recipe.pipeline and recipe.pipeline.to_dict()) and c.hu_range == recipe.hu_range
    # what it sees has the noise of a full-dose scan
    assert loaded["autoencoder_simple"].stages[0]["data"]["full_dose_noise_sd_hu"] == list(man.FULL_DOSE_NOISE_SD_HU)


def test_what_is_trained_denoises(trained):
    x = 60 * torch.randn(1, 1, 32, 40, generator=torch.Generator().manual_seed(0))
    for name in ("man", "ddpm"):
        out = methods.load(name, path=trained / f"{name}.safetensors", steps=2)(x)
        assert out.shape == x.shape and torch.isfinite(out).all()


def test_what_is_missing_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "__file__", str(tmp_path / "ldctlib" / "checkpoints.py"))  # nothing ships
    monkeypatch.delenv("LDCT_CHECKPOINTS", raising=False)
    with pytest.raises(CheckpointError, match="'autoencoder_perceptual'.*recipes autoencoder_perceptual"):
        finish("man", tmp_path / "out")
    with pytest.raises(CheckpointError, match="'autoencoder_simple'"):
        finish("autoencoder_perceptual", tmp_path / "out")  # its first stage, on pixels alone, does without


def test_latents_of_another_size_are_refused(trained, tmp_path, monkeypatch):
    """Such as the shipped autoencoder's under the paper's U-Net."""
    wide = Network("conditioned_unet", dict(unet=LATENT | dict(in_channels=5), gain=5.0))
    recipe = replace(recipes.recipe("man", "workshop"), networks={"unet": wide})
    monkeypatch.setitem(recipes.RECIPES, "man", {"workshop": recipe})
    shutil.copy(trained / "autoencoder_perceptual.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match="4 channels and this U-Net takes 5.*autoencoder_perceptual"):
        finish("man", tmp_path)


@pytest.mark.parametrize("name", FAMILY[:2])
def test_scaled_codes_have_unit_variance(trained, name):
    c = checkpoints.load(trained / f"{name}.safetensors")
    model = checkpoints.build(c)
    assert model.latent_scale == c.config["latent_scale"] != 1
    # samples that the scale was not fitted to, of the same objects
    fresh = NoisePatches(recipes.recipe(name, "workshop").stages[-1].data)
    x = torch.stack([fresh[n]["full_dose_hu"] for n in range(2000, 2128)])
    with torch.no_grad():
        z = model.scale(model.encode(c.range.to_model(x)).sample(torch.Generator().manual_seed(1)))
    # weights are stored in half precision; 64 and 128 patches of 4 slices and 2 photographs
    assert abs(float(z.std()) - 1) < 0.1


def test_stopped_and_continued_equals_uninterrupted(trained, tmp_path):
    """A latent recipe draws codes, times and noises: each a function of the step alone."""
    shutil.copy(trained / "autoencoder_perceptual.safetensors", tmp_path)
    assert finish("man", tmp_path, max_seconds=1e-9) == [("stable", 1)]
    assert [step for _, step in finish("man", tmp_path, stage="stable")] == [2, 3, 4]
    finish("man", tmp_path, stage="decay", max_seconds=1e-9)
    assert checkpoints.load(tmp_path / "man.safetensors").trained_on["steps"] == 5
    assert finish("man", tmp_path)[-1] == ("decay", 4)
    whole, parts = (checkpoints.load(folder / "man.safetensors") for folder in (trained, tmp_path))
    assert all(torch.equal(whole.state_dict[k], parts.state_dict[k]) for k in whole.state_dict)
    assert whole.trained_on["steps"] == parts.trained_on["steps"] == 8


def test_a_stage_does_not_go_on_with_another_network(trained, tmp_path):
    shutil.copy(trained / "autoencoder_perceptual.safetensors", tmp_path)
    finish("man", tmp_path, stage="stable")
    shutil.copy(trained / "autoencoder_simple.safetensors", tmp_path / "autoencoder_perceptual.safetensors")
    with pytest.raises(CheckpointError, match="another autoencoder_perceptual than there is now"):
        finish("man", tmp_path, stage="decay")


# ---------------------------------------------------------------- the autoencoders' losses


def loss_of(recipe, stage, trained):
    """The stage's loss, with what it needs."""
    needed = {name: checkpoints.load(trained / f"{name}.safetensors") for name in recipe.needs(stage)}
    return recipe.updates(Context(recipe, stage, {}, needed, torch.device("cpu")))


@pytest.mark.parametrize("steps", (40, 1000))
def test_weights_rise_over_the_first_half_of_the_stage(trained, steps):
    """Section 3.2: from 0 to the final weights."""
    recipe = recipes.recipe("autoencoder_perceptual", "workshop")
    pixels, ramp = (replace(s, train=replace(s.train, steps=steps, batch_size=2)) for s in recipe.stages)
    model = checkpoints.build(trained / "autoencoder_perceptual.safetensors")
    x = 100 * torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def weights(stage, step):
        """Of KL and perceptual distance: what is left of the loss."""
        with torch.no_grad():
            batch = {"full_dose_hu": x, "target_hu": 0.9 * x}
            terms = loss_of(recipe, stage, trained)(model, batch, torch.Generator().manual_seed(1), step)
        rest = float(terms["loss"] - terms["mse"] - 0.5 * terms["l1"])
        return rest, float(terms["kl"]), float(terms.get("perceptual", 0.0))

    assert weights(pixels, 0)[0] == pytest.approx(0, abs=1e-7)  # the first stage: neither
    final_kl, final = ramp.options["kl"], ramp.options["perceptual"]
    for step, share in ((0, 0.0), (steps // 8, 0.25), (steps // 4, 0.5), (steps // 2, 1.0), (steps - 1, 1.0)):
        rest, kl, perceptual = weights(ramp, step)
        assert (perceptual == 0) == (share == 0)
        assert rest == pytest.approx(share * (final_kl * kl + final * perceptual), rel=1e-3, abs=1e-7)
        assert share == 0 or final * perceptual > 10 * 1e-7  # large enough to be told from rounding


def test_the_simple_autoencoder_has_a_fixed_kl_weight_and_no_features(trained):
    """And learns the image as it is, noise and all."""
    recipe = recipes.recipe("autoencoder_simple", "workshop")
    to_model = recipe.hu_range.to_model
    model = checkpoints.build(trained / "autoencoder_simple.safetensors")
    clean, noise = 100 * torch.randn(2, 2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = {"full_dose_hu": clean + 0.2 * noise, "target_hu": clean}
    for stage in recipe.stages:
        for step in (0, 3):
            with torch.no_grad():
                terms = loss_of(recipe, stage, trained)(model, batch, torch.Generator().manual_seed(1), step)
                x_hat, _ = model(to_model(batch["full_dose_hu"]), generator=torch.Generator().manual_seed(1))
            expected = terms["mse"] + 0.5 * terms["l1"] + stage.options["kl"] * terms["kl"]
            assert "perceptual" not in terms and float(terms["loss"]) == pytest.approx(float(expected), rel=1e-6)
            assert float(terms["mse"]) == pytest.approx(
                float((x_hat - to_model(batch["full_dose_hu"])).square().mean()), rel=1e-6
            )


# ---------------------------------------------------------------- the paper's profile


def write_collection(folder: Path, *, pairs: bool = False, patients=6, slices=2, pixels=72) -> None:
    """LDCT-and-Projection-data's layout: DICOM slices of discs with noise."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    rng = np.random.default_rng(0)
    row, column = np.mgrid[:pixels, :pixels] - (pixels - 1) / 2
    for patient in range(1, 1 + patients):
        for dose, sd in (("Full", 10), ("Low", 20))[: 1 + pairs]:
            series = folder / f"L{patient:03d}" / "12-23-2021-NA-NA-50920" / f"1.000000-{dose} Dose Images-{patient}"
            series.mkdir(parents=True)
            uid = generate_uid()
            for k in range(slices):
                ds = Dataset()
                ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = CTImageStorage, generate_uid(), uid
                ds.Modality, ds.PatientID, ds.Rows, ds.Columns = "CT", f"L{patient:03d}", pixels, pixels
                ds.PixelSpacing, ds.ImageOrientationPatient = [0.7, 0.7], [1, 0, 0, 0, 1, 0]
                ds.ImagePositionPatient, ds.SliceThickness = [0, 0, 1.0 * k], "1"
                ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
                ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
                ds.RescaleSlope, ds.RescaleIntercept = "1", "-1024"
                disc = np.where(np.hypot(row, column) < 0.45 * pixels, 1064 + rng.normal(0, sd, row.shape), 24)
                ds.add_new("PixelData", "OW", disc.round().clip(0).astype("<u2").tobytes())
                ds.file_meta = FileMetaDataset()
                ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
                ds.save_as(series / f"1-{k + 1:03d}.dcm", enforce_file_format=True)


@pytest.mark.parametrize("pairs", (False, True))
def test_steps_are_counted_from_epochs_of_the_training_patients(tmp_path, pairs):
    write_collection(tmp_path / "LDCT", pairs=pairs, patients=12, slices=9, pixels=24)
    source = running.Source.open(tmp_path / "LDCT", recipes.recipe("man"))
    training = len(source.described["cases"])
    assert 0 < training < 12 and source.n_slices == training * 9 and source.output == "full dose"
    (stage,) = recipes.recipe("autoencoder_simple", "paper").stages
    counted = running.steps_from_epochs(stage, source.n_slices).train
    assert counted.steps == 600 * (training * 9 // 16) > 600 and counted.batch_size == 16
    dataset = stage.data.open(source.collection)
    assert type(dataset).__name__ == ("PairedPatches" if pairs else "NoisePatches")
    assert running.steps_from_epochs(stage, None) == stage  # without a collection an epoch means nothing


def test_dry_run_of_the_paper_profile_on_two_processes(tmp_path):
    """Two steps on scans in the real layout; then the latent model on what that made."""
    write_collection(tmp_path / "LDCT-and-Projection-data")
    made = tmp_path / "out" / "dry-run"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "TQDM_DISABLE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    for name in ("autoencoder_simple", "man"):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            "-m",
            "ldctlib.recipes",
            name,
            "--profile",
            "paper",
            "--dry-run",
            "--device",
            "cpu",
            "--data",
            str(tmp_path / "LDCT-and-Projection-data"),
            "--out",
            str(tmp_path / "out"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        steps = [line for line in done.stdout.splitlines() if line.startswith(f"{name} ")]
        assert len(steps) == 2 and "2/2" in steps[1], done.stdout  # one process prints
        c = checkpoints.load(made / f"{name}.safetensors")
        assert c.trained_on["profile"] == "paper (dry run)" and c.trained_on["steps"] == 2
        assert "LDCT-and-Projection-data" in c.trained_on["collection"]
        assert set(c.trained_on["cases"]) <= {f"L{n:03d}" for n in range(1, 7)}
        if name == "autoencoder_simple":
            # the paper's VGG-16 is a download of half a gigabyte: the simple autoencoder stands in its place
            shutil.copy(made / f"{name}.safetensors", made / "autoencoder_perceptual.safetensors")
            simple = c
    assert c.uses == {"autoencoder_perceptual": simple.sha256}
    assert c.pipeline["process"] == {"schedule": "cosine", "T": 1000, "prediction": "eps"}
    assert c.pipeline["conditions"] == {"context": ["ldct"]} and c.output == "full dose"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dry-run"]
