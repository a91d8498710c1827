"""LiTS: its layout, slices with masks to fine-tune generators on, and to test them on."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ldctlib import checkpoints, recipes
from ldctlib.benchmark import synthesis
from ldctlib.benchmark.synthesis import Cases
from ldctlib.data.anatomy_masks import BODY, LIVER, anatomy
from ldctlib.data.collection import open_collection
from ldctlib.data.encoded import FORMAT
from ldctlib.data.six_dose import SixDoseConfig
from ldctlib.data.splits import split
from ldctlib.errors import ParameterError, ScanError
from ldctlib.recipes.running import Source
from tests.test_synthesis import place_autoencoder

nib = pytest.importorskip("nibabel")

SIDE, DEPTH = 64, 10
STRAIGHT = np.diag([-0.8, -0.8, 3.0, 1.0])  # L P S, as DICOM
OBLIQUE = np.array([[0.79, 0.06, 0, 5], [0.06, -0.79, 0.1, 9], [0, 0.03, -3, 40], [0, 0, 0, 1]], float)  # R P I


def patient(number: int) -> tuple[np.ndarray, np.ndarray]:
    """HU and ids (x, y, z): a body with a liver of 100 + its slice's number in slices 3 to 7, and a tumour in it."""
    x, y, z = np.mgrid[:SIDE, :SIDE, :DEPTH]
    rng = np.random.default_rng(number)
    hu = np.where(np.hypot((x - 31.5) / 28, (y - 31.5) / 20) < 1, 0.0, -1000.0) + rng.normal(0, 5, x.shape)
    ids = ((np.hypot(x - 20, y - 28) < 8) & (z >= 3) & (z <= 7)).astype(np.uint8)
    ids[18:22, 26:30, 5] = 2
    return np.where(ids == 1, 100.0 + z, np.where(ids == 2, 40.0, hu)).astype(np.int16), ids


def write(path: Path, values: np.ndarray, affine=STRAIGHT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)


def write_lits(root: Path, numbers, volumes="Training Batch 1/volume-{}.nii", masks="segmentation-{}.nii.gz") -> Path:
    for number in numbers:
        hu, ids = patient(number)
        write(root / volumes.format(number), hu)
        write(root / masks.format(number), ids)
    return root


@pytest.fixture(scope="module")
def lits(tmp_path_factory) -> Path:
    """Five patients, who are trained on and tested."""
    return write_lits(tmp_path_factory.mktemp("data") / "LiTS", range(5))


# ---------------------------------------------------------------- the layout


@pytest.mark.parametrize(
    ("volumes", "masks"),
    [
        ("Training Batch 1/volume-{}.nii", "Training Batch 1/segmentation-{}.nii"),
        (
            "media/nas/CT/LITS/Training Batch 2/volume-{}.nii.gz",
            "media/nas/CT/LITS/Training Batch 2/segmentation-{}.nii",
        ),
        ("volume_pt1/volume-{}.nii", "segmentations/segmentation-{}.nii"),
    ],
)
def test_packagings(tmp_path, volumes, masks):
    collection = open_collection(write_lits(tmp_path, (0, 28), volumes, masks))
    assert collection.layout == "lits" and collection.patients == ("volume-0", "volume-28")
    assert len(collection.labelled()) == 2 and not len(collection.pairs())
    for number, case in zip((0, 28), collection, strict=True):
        hu, ids = patient(number)
        assert torch.equal(case.load_full().values, torch.from_numpy(hu.transpose(2, 1, 0).astype(np.float32)))
        assert torch.equal(case.load_labels(), torch.from_numpy(ids.transpose(2, 1, 0).copy()))
        assert (case.anatomy, case.n_slices, case.spacing_mm) == ("abdomen", DEPTH, pytest.approx((3, 0.8, 0.8)))


def test_volumes_without_any_segmentation_are_a_folder_of_scans(tmp_path):
    write(tmp_path / "volume-0.nii", patient(0)[0])
    assert open_collection(tmp_path).layout == "folder"
    with pytest.raises(ScanError, match="nothing in the layout 'lits'"):
        open_collection(tmp_path, layout="lits")
    write(tmp_path / "segmentation-1.nii", patient(1)[1])
    (case,) = open_collection(tmp_path)
    assert case.patient == "volume-0" and case.labels is None


def test_one_file_of_a_number(tmp_path):
    write_lits(tmp_path, [0], masks="a/segmentation-{}.nii")
    write(tmp_path / "b/segmentation-0.nii.gz", patient(0)[1])
    with pytest.raises(ScanError, match="keep one"):
        open_collection(tmp_path)


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE], ids=["straight", "oblique and flipped"])
def test_labels_lie_on_the_scan(tmp_path, affine):
    """Whichever way both are stored, and where the labels alone are stored from head to feet."""
    hu, ids = patient(0)
    write(tmp_path / "volume-0.nii", hu, affine)
    write(tmp_path / "segmentation-0.nii", ids, affine)
    (case,) = open_collection(tmp_path)
    full, labels = case.load_full().values, case.load_labels()
    assert set(full[labels == 2].tolist()) == {40} and set(full[labels == 1].tolist()) == {103, 104, 105, 106, 107}
    downwards = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, DEPTH - 1], [0, 0, 0, 1]])
    write(tmp_path / "segmentation-0.nii", ids[:, :, ::-1], downwards)
    assert torch.equal(open_collection(tmp_path).cases[0].load_labels(), labels)
    downwards[2, 3] += 50
    write(tmp_path / "segmentation-0.nii", ids[:, :, ::-1], downwards)
    with pytest.raises(ScanError, match="place them differently"):
        open_collection(tmp_path).cases[0].load_labels()


def test_labels_of_another_scan_are_refused(tmp_path):
    hu, ids = patient(0)
    write(tmp_path / "volume-0.nii", hu)
    write(tmp_path / "segmentation-0.nii", ids[:, :, 1:])
    with pytest.raises(ScanError, match=r"\(9, 64, 64\) voxels and .* \(10, 64, 64\)"):
        open_collection(tmp_path).cases[0].load_labels()
    write(tmp_path / "segmentation-0.nii", ids + 1)
    with pytest.raises(ScanError, match="labels 0 to 2"):
        open_collection(tmp_path).cases[0].load_labels()


# ---------------------------------------------------------------- slices and masks


def test_tumour_is_liver_and_the_body_is_what_is_no_air():
    hu, ids = (torch.from_numpy(t.transpose(2, 1, 0).astype(np.float32)) for t in patient(0))
    mask = anatomy(ids, "lits", hu)
    assert torch.equal(mask == LIVER, ids > 0) and torch.equal(mask == BODY, (hu > -500) & (ids == 0))


def test_samples_show_liver_and_their_mask_lies_on_it(lits):
    stream = SixDoseConfig(size=32, refresh=20, n_slices=2, in_turn=True).open(open_collection(lits))
    seen = [stream[n] for n in range(20)]
    for sample in seen:
        assert list(sample) == ["image_hu", "mask"] and sample["mask"].dtype == torch.uint8
        assert sample["image_hu"].shape == sample["mask"].shape == (1, 32, 32)
        assert 90 < sample["image_hu"][sample["mask"] == LIVER].median() < 110
    again = SixDoseConfig(size=32, refresh=20, n_slices=2, in_turn=True).open(open_collection(lits))
    assert torch.equal(again[7]["image_hu"], seen[7]["image_hu"])
    hu = torch.cat([case.load_full().values[3:8] for case in open_collection(lits)])  # averaged over 2 x 2
    means = hu.unflatten(2, (32, 2)).unflatten(1, (32, 2)).mean(dim=(2, 4))
    assert all((means - sample["image_hu"]).abs().amax((1, 2)).min() < 1e-3 for sample in seen)
    first = torch.stack([sample["image_hu"] for sample in seen[:5]])
    assert len(first.unique(dim=0)) == 5  # of one reading, none twice


def test_a_folder_without_pairs_and_labels_is_refused(tmp_path):
    write(tmp_path / "volume-0.nii", patient(0)[0])
    with pytest.raises(ScanError, match="no case with both doses or labels"):
        SixDoseConfig().open(open_collection(tmp_path))
    write(tmp_path / "segmentation-0.nii", np.zeros_like(patient(0)[1]))
    with pytest.raises(ScanError, match="volume-0: no slice is labelled as liver"):
        SixDoseConfig().open(open_collection(tmp_path))[0]


# ---------------------------------------------------------------- recipes and the benchmark


def test_sources_say_what_is_learned(lits):
    collection = open_collection(lits)
    source = Source.open(lits, recipes.recipe("na_diff_d"))
    assert "mask of its labels" in source.described["target"] and source.output == "full dose"
    assert list(source.collection.patients) == split(collection)["train"] and source.n_slices == DEPTH * len(
        source.collection
    )
    assert "simulated noise" in Source.open(lits, recipes.recipe("nafnet")).described["target"]


@pytest.fixture(scope="module")
def tuned(lits, tmp_path_factory) -> dict[str, Path]:
    """Two steps of NA-Diff-D from a checkpoint, and of Seg-Diff."""
    out = tmp_path_factory.mktemp("tuned")
    (out / "dry-run").mkdir()
    for folder in (out, out / "dry-run"):
        place_autoencoder(folder)
    chosen = recipes.recipe("na_diff_d", "workshop")
    start = recipes.running.save(out / "start.safetensors", chosen.saved.build(5), "na_diff_d", chosen, "workshop")
    how = dict(out=out, data=lits, device="cpu", progress=False, dry_run=True)
    for name, more in (("na_diff_d", dict(init_from=start, options=dict(n_images=2))), ("seg_diff", {})):
        assert [log.step for _, log in recipes.run(name, "workshop", **how, **more)] == [1, 2]
    return {name: out / "dry-run" / f"{name}.safetensors" for name in ("na_diff_d", "seg_diff")}


def test_fine_tuning_encodes_what_labels_allow(tuned):
    for name, keys in (("na_diff_d", {"mean", "logvar", "anatomy", "anatomy_map"}), ("seg_diff", {"image", "mask"})):
        told = checkpoints.load(tuned[name]).trained_on
        assert "mask of its labels" in told["target"] and told["collection"] == "LiTS (lits)"
        files = [checkpoints.read_tensors(f, kind=FORMAT)[0] for f in tuned[name].parent.glob("encoded-*.safetensors")]
        assert keys in [set(tensors) for tensors in files]


def test_the_paper_s_profile_on_published_models(lits, tmp_path, tiny_vae, clip_folder):
    how = dict(out=tmp_path, device="cpu", progress=False, dry_run=True)
    options = dict(vae=str(tiny_vae), clip=str(clip_folder))
    for name in ("na_natural", "na_diff_b"):
        list(recipes.run(name, "paper", **how, options=options))
    list(recipes.run("na_diff_d", "paper", **how, data=lits, options=options | dict(n_images=3000)))
    made = checkpoints.load(tmp_path / "dry-run" / "na_diff_d.safetensors")
    assert made.trained_on["options"]["n_images"] == 3000 and "volume-" in made.trained_on["cases"][0]


def test_recipes_that_need_noise_are_refused(lits, tmp_path):
    for name, words in (
        ("na_diff_e", "is a noise map"),
        ("na_diff_spatial", "is a noise map"),
        ("na_natural", "photographs"),
    ):
        place_autoencoder(tmp_path)
        start = tmp_path / "any.safetensors"
        with pytest.raises(ParameterError, match=words):
            list(recipes.run(name, "workshop", out=tmp_path, data=lits, init_from=start, device="cpu", progress=False))
    with pytest.raises(ParameterError, match="phantoms alone have"):
        list(recipes.run("na_autoencoder", "workshop", out=tmp_path, data=lits, device="cpu", progress=False))


def test_cases_are_slices_of_all_patients_in_about_equal_numbers(lits):
    collection = open_collection(lits)
    cases = Cases.of_collection(collection, 12, seed=3, size=32)
    assert [int((cases.patients == p).sum()) for p in collection.patients] == [3, 3, 2, 2, 2]
    assert len(cases) == 12 and bool((cases.masks == LIVER).flatten(1).any(dim=1).all())
    assert cases.pixel_mm == pytest.approx(1.6) and cases.noise_map_hu is None and cases.doses is None
    assert len(Cases.of_collection(collection, 500, seed=3, size=32)) == 25
    with pytest.raises(ScanError, match="no labelled scan"):
        Cases.of_collection(collection.subset([]), 12, seed=3)


def test_the_benchmark_from_the_command_line(lits, tuned, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(synthesis, "liver_slices", partial(_small, synthesis.liver_slices))
    monkeypatch.setattr(synthesis, "segment", lambda images: torch.full_like(images, LIVER, dtype=torch.uint8))
    monkeypatch.setattr(synthesis, "quality", lambda images: torch.full((len(images),), 2.0))
    monkeypatch.setattr(synthesis, "seen", lambda images: None)
    monkeypatch.setattr(synthesis, "distances", lambda *sets: {})
    who = split(open_collection(lits))
    names = ",".join(f"{name}:path={file}" for name, file in tuned.items())
    told = ["synthesis", "--data", str(lits), "--slices", "3", "--steps", "2", "--json", str(tmp_path / "r.json")]
    monkeypatch.setattr(sys, "argv", [*told, "--generators", names])
    assert synthesis.main() == 0, capsys.readouterr().err
    result = synthesis.SynthesisResult.from_json(tmp_path / "r.json")
    others = ["real, other patients"] if who["val"] else []
    assert list(result.scores) == ["the cases' scans", *others, "round trip", "na_diff_d", "seg_diff"]
    assert "Dice, liver" in result.scores["seg_diff"]
    assert not {"Dice, five organs", "noise / asked for"} & set(result.scores["seg_diff"])
    assert result.notes["n"].startswith(f"3 images of {len(who['test'])} patients")


def _small(draw, case, rng, count, size):
    return draw(case, rng, count, 64)


def test_generators_that_need_noise_are_refused_by_name(lits):
    cases = Cases.of_collection(open_collection(lits), 2, seed=0, size=64)
    with pytest.raises(ParameterError, match="^na_diff_a, na_diff_f: conditioned on a noise map.*na_diff_d"):
        synthesis.run(["na_diff_a", "na_diff_d", "na_diff_f"], cases)
