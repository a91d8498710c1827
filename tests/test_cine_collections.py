"""Collections of cine cardiac MR in their published layouts: patients, phases, labels, scale, spacing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ldctlib.data.collection import open_collection
from ldctlib.data.mr_patches import MRPatchConfig
from ldctlib.data.nifti import read_nifti, write_nifti
from ldctlib.errors import ScanError

nib = pytest.importorskip("nibabel")

# a short-axis stack is oblique: its third axis is nearest to the patient's left-right axis
OBLIQUE = np.array([[0.2, 0.3, -8.0, 40.0], [1.2, 0.1, 3.0, -60.0], [0.1, -1.25, -2.0, 90.0], [0, 0, 0, 1]])
SHAPE = (20, 16, 5)  # columns, rows, slices


def volume(seed: int, *frames: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, (*SHAPE, *frames)).astype(np.float32)


def labelled(left: int, ids=(1, 2, 3)) -> np.ndarray:
    """Labels with ``left`` voxels of the left ventricle, some of the other two; ``ids`` of the three."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[:left, 0, 2], labels[:3, 1, 2], labels[:2, 2, 2] = ids
    return labels


def save(path: Path, values: np.ndarray, affine=OBLIQUE, unit="mm") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)


def acdc(root: Path) -> None:
    folder = root / "database" / "training" / "patient007"
    for frame, left in ((1, 9), (13, 5)):
        save(folder / f"patient007_frame{frame:02d}.nii.gz", volume(frame))
        save(folder / f"patient007_frame{frame:02d}_gt.nii.gz", labelled(left, ids=(3, 2, 1)))
    save(folder / "patient007_4d.nii.gz", volume(3, 4))
    (folder / "Info.cfg").write_text("ED: 1\nES: 13\nGroup: DCM\nHeight: 180.0\nNbFrame: 30\nWeight: 80.0\n")


def mms(root: Path, *, table: bool = True) -> None:
    folder = root / "Training" / "Labeled" / "A0S9V9"
    frames = volume(4, 6)
    labels = np.zeros((*SHAPE, 6), np.uint8)
    labels[..., 4], labels[..., 1] = labelled(9), labelled(5)  # ED is not the first
    save(folder / "A0S9V9_sa.nii.gz", frames)
    save(folder / "A0S9V9_sa_gt.nii.gz", labels)
    if table:
        rows = (
            ",External code,VendorName,Vendor,Centre,ED,ES,Age\n0,A0S9V9,Siemens,A,1,4,1,50\n1,B1C2D3,Philips,B,2,,,\n"
        )
        (root / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv").write_text(rows)


def mms2(root: Path) -> None:
    folder = root / "dataset" / "001"
    for seed, phase in enumerate(("ED", "ES")):
        save(folder / f"001_SA_{phase}.nii.gz", volume(seed))
        save(folder / f"001_SA_{phase}_gt.nii.gz", labelled(9 - 4 * seed))
    save(folder / "001_SA_CINE.nii.gz", volume(7, 4))


def cmrxmotion(root: Path) -> None:
    for grade in (1, 3):
        folder = root / "data" / f"P001-{grade}"
        for seed, phase in enumerate(("ED", "ES")):
            save(folder / f"P001-{grade}-{phase}.nii.gz", volume(10 * grade + seed))
            if grade == 1:
                save(folder / f"P001-{grade}-{phase}-label.nii.gz", labelled(9 - 4 * seed))


@pytest.mark.parametrize(
    ("write", "layout", "patient", "variants"),
    (
        (acdc, "acdc", "patient007", ["ED", "ES"]),
        (mms, "mms", "A0S9V9", ["ED", "ES"]),
        (mms2, "mms2", "001", ["SA/ED", "SA/ES"]),
        (cmrxmotion, "cmrxmotion", "P001", ["1/ED", "1/ES", "3/ED", "3/ES"]),
    ),
)
@pytest.mark.parametrize("asked", ("auto", None))
def test_a_published_layout(tmp_path, write, layout, patient, variants, asked):
    write(tmp_path)
    collection = open_collection(tmp_path, layout=asked or layout)
    assert (collection.layout, collection.patients) == (layout, (patient,))
    assert [case.variant for case in collection] == variants
    assert not len(collection.pairs())
    ed, es = (case.load_labels() for case in collection.cases[:2])
    assert ed.shape == (5, 16, 20) and ed.dtype == torch.uint8
    # M&Ms' convention whatever the collection's: 1 left ventricle, 9 voxels in end diastole and 5 in end systole
    assert [int((ed == i).sum()) for i in (1, 2, 3)] == [9, 3, 2]
    assert [int((es == i).sum()) for i in (1, 2, 3)] == [5, 3, 2]
    scan = collection.cases[0].load_full()
    assert scan.scale == "arbitrary" and not scan.notes and collection.cases[0].anatomy == "heart"
    # the stack is read as it lies on disk, though its third axis is nearest to the patient's left
    assert scan.values.shape == ed.shape and collection.cases[0].n_slices == 5
    assert scan.spacing_mm == pytest.approx(tuple(np.linalg.norm(OBLIQUE[:3, :3], axis=0)[::-1]))
    assert np.diff(scan.positions_mm) == pytest.approx(scan.spacing_mm[0])


def test_frames_of_a_file_with_all_phases(tmp_path):
    """By the table, or without it by the labels; the voxels are that frame's."""
    mms(tmp_path / "with")
    mms(tmp_path / "without", table=False)
    stored = volume(4, 6)
    for root in ("with", "without"):
        ed, es = open_collection(tmp_path / root).cases
        for case, frame in ((ed, 4), (es, 1)):
            assert np.array_equal(case.load_full().values.numpy(), stored[..., frame].transpose(2, 1, 0))
    (tmp_path / "without/Training/Labeled/A0S9V9/A0S9V9_sa_gt.nii.gz").unlink()
    (case,) = open_collection(tmp_path / "without").cases
    assert case.variant == "frame 0"
    with pytest.raises(ScanError, match="no labels"):
        case.load_labels()
    with pytest.raises(ScanError, match="no frame 6"):
        read_nifti(tmp_path / "without/Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz", frame=6)


def test_acdc_without_its_info(tmp_path):
    acdc(tmp_path)
    (tmp_path / "database/training/patient007/Info.cfg").unlink()
    assert [case.variant for case in open_collection(tmp_path)] == ["ED", "ES"]


def test_what_is_no_label_is_refused(tmp_path):
    mms2(tmp_path)
    save(tmp_path / "dataset/001/001_SA_ED_gt.nii.gz", volume(1))
    with pytest.raises(ScanError, match="001_SA_ED_gt.nii.gz does not hold the labels"):
        open_collection(tmp_path).cases[0].load_labels()


def test_other_scans_in_the_same_folder_are_not_lost(tmp_path):
    acdc(tmp_path)
    save(tmp_path / "liver" / "volume-3.nii", volume(1) - 500, np.diag([0.7, 0.7, 3, 1]))
    collection = open_collection(tmp_path)
    assert collection.layout == "acdc+folder" and len(collection) == 3
    with pytest.raises(ScanError, match="nothing in the layout 'cmrxmotion'"):
        open_collection(tmp_path, layout="cmrxmotion")


@pytest.mark.parametrize(
    ("affine", "unit", "said"),
    ((np.eye(4), None, True), (np.eye(4), "mm", False), (np.diag([1.5, 1.5, 8, 1]), None, False)),
)
def test_a_header_without_spacing_says_so(tmp_path, affine, unit, said):
    """1, 1, 1 in no unit is what remains where a conversion has lost the geometry."""
    save(tmp_path / "A0S9V9_sa.nii.gz", volume(1), affine, unit)
    (case,) = open_collection(tmp_path).cases
    scan = case.load_full()
    assert bool(scan.notes) == said and (scan.spacing_mm is None) == said == (case.spacing_mm is None)
    if said:
        assert "no spacing" in scan.notes[0] and "unknown" in scan.notes[0]
        hu = read_nifti(tmp_path / "A0S9V9_sa.nii.gz")
        assert hu.spacing_mm == (1, 1, 1) and "taken as 1 mm" in hu.notes[0]


def test_a_derived_volume_lies_as_its_source(tmp_path):
    cmrxmotion(tmp_path)
    mms(tmp_path)
    for case in (open_collection(tmp_path, layout=name).cases[0] for name in ("cmrxmotion", "mms")):
        scan = case.load_full()
        written = write_nifti(scan, 2 * scan.values, tmp_path / "out.nii.gz", description="doubled")
        again = read_nifti(written, scale="arbitrary", as_stored=True)
        assert torch.equal(again.values, 2 * scan.values) and np.allclose(nib.load(written).affine, OBLIQUE, atol=1e-5)


def test_patches_of_a_collection_in_arbitrary_units(tmp_path):
    """Volumes are divided by their 99.5th percentile; a collection in HU is refused."""
    cmrxmotion(tmp_path / "cine")
    config = MRPatchConfig(seed=1, patch=16, size=16, n_slices=8, n_photographs=2, photograph_share=0.0)
    dataset = config.open(open_collection(tmp_path / "cine"))
    samples = torch.stack([dataset[n]["target"] for n in range(60)])
    assert samples.shape == (60, 1, 16, 16) and samples.min() >= 0
    # uniform intensities times a brightness of .7 to 1.2: a mean of .5 * .95
    assert float(samples.mean()) == pytest.approx(0.475, abs=0.03) and float(samples.max()) < 1.25
    assert torch.equal(config.open(open_collection(tmp_path / "cine"))[7]["target"], samples[7])
    save(tmp_path / "ct" / "volume-3.nii", volume(1) - 500, np.diag([0.7, 0.7, 3, 1]))
    with pytest.raises(ScanError, match="in HU"):
        config.open(open_collection(tmp_path / "ct"))[0]


def test_real_mms_volumes():
    root = os.environ.get("LDCT_REAL_DATA")
    if not root:
        pytest.skip("set LDCT_REAL_DATA to the folder of real scans")
    collection = open_collection(Path(root) / "mr" / "mnms_vendor_a")
    assert collection.layout == "mms" and collection.patients == ("A1D9Z7", "A1E9Q1", "A2C0I1")
    for case in collection:
        scan, labels = case.load_full(), case.load_labels()
        assert case.variant == "ED" and scan.scale == "arbitrary" and scan.spacing_mm is None and scan.notes
        assert scan.values.shape == labels.shape and scan.values.shape[1:] == (192, 192)
        blood, muscle = (float(scan.values[labels == i].mean()) for i in (1, 2))
        assert blood > 1.2 * muscle  # bright blood: the labels lie where the image is
