"""Collections in the layouts that they are distributed in, pairing, and splits by patient."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ldctlib.data.case import Case, Source
from ldctlib.data.collection import Collection, open_collection, phantom_collection
from ldctlib.data.dicom_read import read_series
from ldctlib.data.layouts import MAYO_PATIENTS
from ldctlib.data.pairing import match_slices
from ldctlib.data.scan import Scan
from ldctlib.data.splits import SPLITS_FOLDER, check_disjoint, split
from ldctlib.errors import ParameterError, ScanError


def write_series(
    folder: Path, names, value: int, *, patient="Anonymous", description="", positions=None, shift=0.0, **changes
) -> None:
    """One CT slice per name: a disc of ``value`` HU in air, with its z as one more HU; ``changes`` set elements, and
    those that are None are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.mgrid[:24, :24] - 11.5
    series, positions = generate_uid(), positions or [3.0 * k for k in range(len(names))]
    for number, (name, z) in enumerate(zip(names, positions, strict=True), start=1):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2", series
        ds.Modality, ds.PatientID, ds.SeriesDescription = "CT", patient, description
        ds.ImageType, ds.SliceThickness = ["ORIGINAL", "PRIMARY", "AXIAL"], "3"
        ds.Rows, ds.Columns = 24, 24
        ds.PixelSpacing, ds.ImageOrientationPatient = [0.7, 0.7], [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [shift, 0, z]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept, ds.InstanceNumber = "1", "-1024", number
        for keyword, value_of in changes.items():
            setattr(ds, keyword, value_of) if value_of is not None else delattr(ds, keyword)
        pixels = np.where(np.hypot(row, column) < 9, 1024 + value + z, 24).astype("<u2")
        ds.add_new("PixelData", "OW", pixels.tobytes())
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.save_as(folder / name, enforce_file_format=True)


def centre_hu(scan: Scan) -> list[float]:
    return scan.values[:, 12, 12].tolist()


def check_pair(case: Case, full=40, low=60, z=(0, 3, 6)) -> None:
    loaded_full, loaded_low = case.load_pair()
    assert centre_hu(loaded_full) == [full + k for k in z] and centre_hu(loaded_low) == [low + k for k in z]


def write_volume(path: Path, values) -> None:
    """A small volume as NIfTI or NumPy; ``values`` is the seed of a scan's, or the array."""
    if isinstance(values, int):
        values = np.random.default_rng(values).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        nib = pytest.importorskip("nibabel")
        nib.save(nib.Nifti1Image(values, np.diag([0.7, 0.7, 3, 1])), path)


LABELS = np.arange(120).reshape(6, 5, 4) // 30
THREE = ("a.dcm", "b.dcm", "c.dcm")


# --- layouts -------------------------------------------------------------------------------------------


def test_tcia_layout(tmp_path):
    root = tmp_path / "manifest-1" / "LDCT-and-Projection-data"
    names = ("1-001.dcm", "1-002.dcm", "1-003.dcm")
    write_series(root / "L241/12-23-2021-NA-NA-50920/1.000000-Full Dose Images-70970", names, 40)
    write_series(root / "L241/12-23-2021-NA-NA-50920/1.000000-Low Dose Images-31092", names, 60)
    # the two doses in two studies, other letter case, zeros left out
    write_series(root / "c30/01-13-2022-NA-NA-73373/1.000000-Full dose images-62126", ("1-1.dcm", "1-2.dcm"), 40)
    write_series(root / "c30/01-19-2022-NA-NA-73373/2.000000-low dose images-50353", ("1-1.dcm", "1-2.dcm"), 60)
    write_series(root / "N005/12-23-2021-NA-NA-00001/1.000000-Full Dose Images-00002", names, 40)
    (root / "N005/12-23-2021-NA-NA-00001/1.000000-Full Dose Projections-3").mkdir()
    (root / "N005/12-23-2021-NA-NA-00001/1.000000-Full Dose Projections-3/1-1.dcm").write_bytes(b"raw")
    (tmp_path / "metadata.csv").write_text("x")
    for start in (tmp_path, root):
        collection = open_collection(start)
        assert collection.layout == "tcia" and collection.patients == ("C030", "L241", "N005")
        chest, abdomen, head = collection
        assert (chest.dose, abdomen.dose, head.dose) == (0.10, 0.25, 0.25)
        assert (chest.anatomy, abdomen.anatomy, head.anatomy) == ("chest", "abdomen", "head")
        check_pair(abdomen)
        check_pair(chest, z=(0, 3))
        assert head.low is None and len(head.full.files) == 3
        with pytest.raises(ScanError, match="N005 has no low-dose"):
            head.load_pair()
    assert open_collection(root / "L241").patients == ("L241",)
    assert abdomen.spacing_mm == (3.0, 0.7, 0.7)
    assert [case.patient for case in collection.pairs()] == ["C030", "L241"]


@pytest.mark.parametrize(
    "pattern",
    [
        "{patient}/{dose}_{variant}",
        "{dose}_{variant}/{patient}/{dose}_{variant}",
        "Training_Image_Data/1mm B30/{dose}_{variant}/{patient}/{dose}_{variant}",
    ],
)
def test_mayo_packagings(tmp_path, pattern):
    for patient in ("L067", "L096"):
        for dose, code, value in (("full", "FD", 40), ("quarter", "QD", 60)):
            for variant, more in (("1mm", 0), ("3mm", 100)):
                names = [f"{patient}_{code}_{variant[0]}_1.CT.0001.{k:04d}.2015.12.22.20.IMA" for k in range(3)]
                folder = pattern.format(patient=patient, dose=dose, variant=variant)
                write_series(tmp_path / folder, names, value + more)
    collection = open_collection(tmp_path)
    assert collection.layout == "mayo2016"
    assert [(case.patient, case.variant) for case in collection] == [
        ("L067", "1mm"),
        ("L067", "3mm"),
        ("L096", "1mm"),
        ("L096", "3mm"),
    ]
    assert {case.dose for case in collection} == {0.25}
    check_pair(collection.cases[0])
    check_pair(collection.cases[3], 140, 160)


def test_mayo_sorted_folders_and_file_names(tmp_path):
    for dose, value in (("full", 40), ("quarter", 60)):
        write_series(tmp_path / "L096" / dose, ("000020.IMA", "000021.IMA", "000022.IMA"), value)
    names = [f".CT.0002.{k:04d}.2015.12.22.20.19.52.894480.358591878.IMA" for k in range(3)]
    write_series(tmp_path / "L506_1mm", [f"L506_FD_1_1{name}" for name in names], 40)
    write_series(tmp_path / "L506_1mm", [f"L506_QD_1_1{name}" for name in names], 60)
    write_series(tmp_path / "L506_1mm", [f"L506_QD_3_SHARP_1{name}" for name in names], 80)
    collection = open_collection(tmp_path)
    assert [(case.patient, case.variant) for case in collection] == [
        ("L096", ""),
        ("L506", "1mm"),
        ("L506", "3mm_sharp"),
    ]
    check_pair(collection.cases[0])
    check_pair(collection.cases[1])
    assert collection.cases[2].full is None  # as the challenge's test patients are
    with pytest.raises(ScanError, match="no full-dose"):
        collection.cases[2].load_pair()


def test_any_folder_of_dicom(tmp_path):
    write_series(tmp_path / "ana/full", THREE, 40, patient="A")
    write_series(tmp_path / "ana/low", THREE, 60, patient="A")
    write_series(tmp_path / "ben/first", THREE, 40, patient="B", description="thin")
    write_series(tmp_path / "ben2/second", THREE, 50, patient="B", description="thin")
    write_series(tmp_path / "carl", THREE, 40)  # its patient is "Anonymous"
    collection = open_collection(tmp_path)
    assert collection.layout == "folder"
    # two folders of patient B are one patient, whatever they are called
    assert [case.patient for case in collection] == ["A", "B", "B", "carl"]
    check_pair(collection.cases[0])
    assert all(case.low is None and case.dose is None for case in collection.cases[1:])
    write_series(tmp_path / "ana/low", ("x.dcm", "y.dcm"), 70, patient="A")
    with pytest.raises(ScanError, match="two scans that could be the low dose"):
        open_collection(tmp_path)


def test_tcia_series_in_folders_named_by_uid(tmp_path):
    write_series(tmp_path / "1.3.6.1/1.4", THREE, 40, patient="L004", description="Full Dose Images")
    write_series(tmp_path / "1.3.6.1/1.5", THREE, 60, patient="L004", description="Low Dose Images")
    (case,) = open_collection(tmp_path)
    assert (case.patient, case.dose, case.anatomy) == ("L004", 0.25, "abdomen")
    check_pair(case)


def test_folders_of_nifti_and_numpy(tmp_path):
    image = np.full((6, 5, 4), 40, np.float32)
    for folder in ("full", "low"):
        (tmp_path / "np" / folder).mkdir(parents=True)
        for name in ("p1.npy", "p2.npy"):
            np.save(tmp_path / "np" / folder / name, image[:3] + (folder == "low"))
    collection = open_collection(tmp_path / "np")
    assert collection.patients == ("p1", "p2") and len(collection.pairs()) == 2
    full, low = collection.cases[0].load_pair()
    assert torch.equal(low.values - full.values, torch.ones(3, 5, 4))

    lits, acdc = tmp_path / "lits", tmp_path / "acdc"
    for path in (
        lits / "Training Batch 1/volume-0.nii",
        lits / "Training Batch 1/segmentation-0.nii",
        lits / "Training Batch 2/volume-28.nii",
        lits / "Training Batch 2/segmentation-28.nii",
        acdc / "training/patient001/patient001_frame01.nii.gz",
        acdc / "training/patient001/patient001_4d.nii.gz",
        acdc / "training/patient001/patient001_frame01_gt.nii.gz",
        acdc / "training/patient001/patient001_frame12.nii.gz",
        acdc / "training/patient002/patient002_frame01.nii.gz",
    ):
        write_volume(path, LABELS.astype(np.uint8) if "_gt" in path.name else image)
    assert open_collection(lits).patients == ("volume-0", "volume-28") and len(open_collection(lits)) == 2
    assert open_collection(acdc).patients == ("patient001", "patient002") and len(open_collection(acdc)) == 3
    assert open_collection(lits).cases[0].spacing_mm == pytest.approx((3, 0.7, 0.7))


@pytest.mark.parametrize(
    ("scans", "labels", "patients"),
    [
        pytest.param(
            ["imagesTr/liver_0.nii.gz", "imagesTr/liver_1.nii.gz", "imagesTs/liver_2.nii.gz"],
            ["labelsTr/liver_0.nii.gz", "labelsTr/liver_1.nii.gz"],
            ["liver_0", "liver_1", "liver_2"],
            id="Medical Segmentation Decathlon",
        ),
        pytest.param(
            ["Dataset003_Liver/imagesTr/liver_0_0000.nii.gz", "Dataset003_Liver/imagesTr/liver_0_0001.nii.gz"],
            ["Dataset003_Liver/labelsTr/liver_0.nii.gz", "Dataset003_Liver/labelsTs/liver_1.nii.gz"],
            ["liver_0"],  # channels are no patients of their own
            id="nnU-Net",
        ),
        pytest.param(
            ["Totalsegmentator_dataset/s0000/ct.nii.gz", "Totalsegmentator_dataset/s0001/ct.nii.gz"],
            ["Totalsegmentator_dataset/s0000/segmentations/liver.nii.gz"],
            ["s0000", "s0001"],
            id="TotalSegmentator",
        ),
        pytest.param(
            ["BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1c.nii.gz"],
            ["BraTS-GLI-00000-000/BraTS-GLI-00000-000-seg.nii.gz"],
            ["BraTS-GLI-00000-000"],
            id="BraTS",
        ),
        pytest.param(["img/img0001.nii.gz"], ["label/label0001.nii.gz"], ["img0001"], id="BTCV"),
        pytest.param(
            ["case_0/imaging.nii.gz"],
            ["case_0/segmentation.nii.gz", "case_0/instances/kidney_instance-1_annotation-1.nii.gz"],
            ["case_0"],
            id="KiTS",
        ),
        pytest.param(
            ["a/ct.nii.gz", "scans/b.npy"], ["a/liver.nii.gz", "livers/b.npy", "c/x.nii.gz"], ["a", "b"], id="by values"
        ),
    ],
)
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_label_maps_are_no_scans(tmp_path, scans, labels, patients, kind):
    for seed, name in enumerate(scans):
        write_volume(tmp_path / name, seed)
    for name in labels:
        write_volume(tmp_path / name, LABELS.astype(kind))
    collection = open_collection(tmp_path)
    assert sorted(case.full.files[0] for case in collection) == sorted(tmp_path / name for name in scans)
    assert list(collection.patients) == patients
    for name in scans:
        (tmp_path / name).unlink()
    with pytest.raises(ScanError, match="label maps are none"):
        open_collection(tmp_path)


def test_masks_in_dicom_are_no_scans(tmp_path):
    for folder in ("PATIENT_DICOM", "MASKS_DICOM/liver", "LABELLED_DICOM", "Ground truth/full"):
        write_series(tmp_path / "3Dircadb1.1" / folder, THREE, 40)
    shutil.copy(get_testdata_file("liver_1frame.dcm", download=False), tmp_path / "segmentation object.dcm")
    assert [case.full.files[0].parent.name for case in open_collection(tmp_path)] == ["full", "PATIENT_DICOM"]


def test_what_looks_like_labels_and_is_a_scan(tmp_path):
    """Few values without zero, many values, fractions, and whatever a folder calls a full dose."""
    rng = np.random.default_rng(0)
    write_volume(tmp_path / "water.npy", np.full((3, 5, 5), 40))
    write_volume(tmp_path / "eight_bits.npy", rng.integers(0, 256, (3, 50, 50)))
    write_volume(tmp_path / "share.npy", rng.random((3, 50, 50)))
    write_volume(tmp_path / "full" / "zero.npy", np.zeros((3, 5, 5)))
    assert open_collection(tmp_path).patients == ("eight_bits", "share", "water", "zero")


@pytest.mark.parametrize(
    ("names", "patients"),
    [
        (["full/P1_full.nii.gz", "low/P1_low.nii.gz", "full/P2_full.nii.gz", "low/P2_low.nii.gz"], ["P1", "P2"]),
        (["P1_full.nii.gz", "P1_low.nii.gz", "full-P2.nii.gz", "low-P2.nii.gz"], ["P1", "P2"]),
        (["P1_FD.nii.gz", "P1_QD.nii.gz", "QD_P2.npy", "FD_P2.npy"], ["P1", "P2"]),
        (["ndct/P1-ndct.nii.gz", "ldct/P1-ldct.nii.gz"], ["P1"]),
        (["P1_1mm_full-dose.nii", "P1_1mm_low-dose.nii.gz", "P1_3mm_FullDose.nii", "P1_3mm_LowDose.nii"], ["P1"] * 2),
        (["full_1mm/P1.nii", "low_1mm/P1.nii", "full_3mm/P1.nii", "low_3mm/P1.nii"], ["P1", "P1"]),
        (["P1/full.npy", "P1/low.npy", "P2/full/first.nii", "P2/quarter/second.nii"], ["P1", "P2"]),
        (["P1_full/x.nii", "P1_low/x.nii", "L506_1mm_full.nii", "L506_1mm_low.nii"], ["L506", "P1"]),
        (["full/P1_full/x.nii", "low/P1_low/x.nii"], ["P1"]),
    ],
)
def test_marks_of_the_dose_make_pairs(tmp_path, names, patients):
    for name in names:
        write_volume(tmp_path / name, 0)
    collection = open_collection(tmp_path)
    assert len(collection.pairs()) == len(collection) == len(names) // 2  # nobody is left alone
    assert sorted(case.patient for case in collection) == patients
    assert {case.dose for case in collection} <= {None, 0.25}
    for case in collection:
        role = [("full", "fd", "ndct"), ("low", "quarter", "qd", "ldct")]
        for source, words in zip((case.full, case.low), role, strict=True):
            assert any(word in str(source.files[0].relative_to(tmp_path)).lower() for word in words)


def test_a_word_that_is_no_mark_of_a_dose(tmp_path):
    write_series(tmp_path / "low contrast", THREE, 40)
    write_volume(tmp_path / "full body.nii", 0)
    write_volume(tmp_path / "low_back.nii", 0)
    collection = open_collection(tmp_path)
    assert collection.patients == ("full body", "low contrast", "low_back") and all(case.full for case in collection)
    # where such a mark is meant, as its partner shows, a low dose without partner is no full dose either
    for name in ("P1_full.nii", "P1_low.nii", "P2_low.nii"):
        write_volume(tmp_path / name, 0)
    cases = {case.patient: case for case in open_collection(tmp_path)}
    assert cases["P1"].full and cases["P1"].low and cases["P2"].full is None


@pytest.mark.parametrize(
    "dose", [("full", "low"), ("full_dose", "quarter_dose"), ("Full Dose", "Low Dose"), ("FD", "LD")]
)
def test_mayo_data_as_people_sort_it(tmp_path, dose):
    for patient in ("L067", "L096"):
        for folder, value in zip(dose, (40, 60), strict=True):
            write_series(tmp_path / patient / folder, THREE, value)
    collection = open_collection(tmp_path)
    assert collection.layout == "mayo2016" and collection.patients == ("L067", "L096")
    for case in collection:
        assert (case.dose, case.anatomy) == (0.25, "abdomen")
        check_pair(case)


def test_thicknesses_in_folders_of_their_own_are_scans_of_their_own(tmp_path):
    for more, thickness in ((0, "1mm"), (100, "3mm_D45f")):
        for dose, value in (("full", 40), ("quarter", 60)):
            write_series(tmp_path / "L067" / thickness / dose, THREE, value + more)
            write_series(tmp_path / "P1" / thickness / dose, THREE, value + more)
    collection = open_collection(tmp_path)
    assert [(case.patient, case.variant) for case in collection] == [
        ("L067", "1mm"),
        ("L067", "3mm_d45f"),
        ("P1", "1mm"),
        ("P1", "3mm_D45f"),
    ]
    for case, more in zip(collection, (0, 100, 0, 100), strict=True):
        check_pair(case, 40 + more, 60 + more)


def test_a_layout_that_fits_a_part_loses_nothing_of_the_rest(tmp_path):
    for patient in ("L067", "P01", "P02"):
        write_series(tmp_path / patient / "full", THREE, 40)
        write_series(tmp_path / patient / "quarter", THREE, 60)
    write_series(tmp_path / "C001/study/1.000000-Full dose images-1", THREE, 40)
    write_series(tmp_path / "C001/study/1.000000-Full Dose Projections-2", THREE, 99)  # known to be no image
    write_series(tmp_path / "L067/full_DICOM-CT-PD", THREE, 99)
    write_series(tmp_path / "L200/low", THREE, 60)  # not one of the challenge's: nothing says how low
    write_volume(tmp_path / "L067" / "more.nii", 0)
    collection = open_collection(tmp_path)
    assert collection.layout == "tcia+mayo2016+folder"
    assert [(case.patient, bool(case.full), bool(case.low), case.dose) for case in collection] == [
        ("C001", True, False, 0.10),
        ("L067", True, True, 0.25),
        ("L067", True, False, 0.25),
        ("L200", False, True, None),
        ("P01", True, True, 0.25),
        ("P02", True, True, 0.25),
    ]
    assert [len(open_collection(tmp_path, layout=name)) for name in ("tcia", "mayo2016")] == [1, 2]


def test_what_systems_leave_in_folders_is_passed_over(tmp_path):
    for dose, value in (("full", 40), ("low", 60)):
        write_series(tmp_path / "L067" / dose, THREE, value)
        write_series(tmp_path / "P1" / dose, THREE, value)
        for name in (".DS_Store", "._a.dcm", "Thumbs.db", "desktop.ini", "DICOMDIR", ".cache/x.dcm", "__MACOSX/y"):
            for patient in ("L067", "P1"):
                path = tmp_path / patient / dose / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "L067" / "full" / "README").write_text("no suffix, as many DICOM files")
    collection = open_collection(tmp_path)
    assert collection.patients == ("L067", "P1")
    for case in collection:
        check_pair(case)


def test_a_folder_that_cannot_be_opened_is_an_error(tmp_path, monkeypatch):
    write_series(tmp_path / "a", THREE, 40)
    write_series(tmp_path / "b", THREE, 40)
    listed = os.scandir

    def refuses(folder):  # as file rights do, which do not bind every user who runs this
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(ScanError, match="b cannot be opened"):
        open_collection(tmp_path)
    monkeypatch.undo()
    (tmp_path / "c.dcm").symlink_to(tmp_path / "gone.dcm")
    with pytest.raises(ScanError, match="c.dcm cannot be opened"):
        open_collection(tmp_path)


def test_links_to_folders_are_followed_once(tmp_path):
    write_series(tmp_path / "elsewhere" / "P1", THREE, 40)
    (tmp_path / "chosen").mkdir()
    for name in ("P1", "P1 again"):
        (tmp_path / "chosen" / name).symlink_to(tmp_path / "elsewhere" / "P1")
    (tmp_path / "elsewhere" / "P1" / "up").symlink_to(tmp_path / "elsewhere")
    assert [len(case.full.files) for case in open_collection(tmp_path / "chosen")] == [3]


def test_the_embedded_collections():
    (sample,) = open_collection("sample")
    assert sample.load_full().values.shape == (1, 128, 128) and sample.low is None
    assert len(open_collection("phantom").patients) == 40
    collection = phantom_collection(2, slices=2, size=64, first_seed=5)
    assert collection.patients == ("abdomen-00005", "abdomen-00006")
    one, again = (collection.cases[0].load_full() for _ in range(2))
    assert one.values.shape == (2, 64, 64) and torch.equal(one.values, again.values)
    assert not torch.equal(one.values, collection.cases[1].load_full().values)
    assert one.spacing_mm[0] == pytest.approx(one.positions_mm[1] - one.positions_mm[0])
    assert np.allclose(one.affine @ [31.5, 31.5, 1, 1], [0, 0, one.positions_mm[1], 1])


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(ParameterError, match="phantom, sample"):
        open_collection(tmp_path / "absent")
    with pytest.raises(ParameterError, match="auto, tcia, mayo2016, acdc, mms, mms2, cmrxmotion, lits, folder"):
        open_collection(tmp_path, layout="nifti")
    (tmp_path / "readme.txt").write_text("nothing here")
    for layout in ("auto", "tcia", "mayo2016", "folder"):
        with pytest.raises(ScanError):
            open_collection(tmp_path, layout=layout)
    with pytest.raises(ParameterError):
        phantom_collection(0)


# --- pairing -------------------------------------------------------------------------------------------


def test_slices_are_paired_by_position(tmp_path):
    write_series(tmp_path / "p/full", THREE, 40, positions=[6.0, 0.0, 3.0])
    write_series(tmp_path / "p/low", ("x.dcm", "y.dcm", "z.dcm"), 60, positions=[9.04, 3.04, 6.04])
    (case,) = open_collection(tmp_path)
    full, low = case.load_pair()
    assert full.positions_mm == (3.0, 6.0) and low.positions_mm == (3.04, 6.04)
    assert centre_hu(full) == [43, 46] and centre_hu(low) == [63, 66]
    assert any("2 slice(s)" in note for note in full.notes)


def test_pairs_that_are_none_are_refused(tmp_path):
    write_series(tmp_path / "far/full", THREE, 40)
    write_series(tmp_path / "far/low", THREE, 60, positions=[100.0, 103.0, 106.0])
    write_series(tmp_path / "shifted/full", THREE, 40)
    write_series(tmp_path / "shifted/low", THREE, 60, shift=0.7)
    write_series(tmp_path / "other/full", THREE, 40)
    write_series(tmp_path / "other/low", THREE, -990)  # another body: all air
    far, other, shifted = (open_collection(tmp_path / name).cases[0] for name in ("far", "other", "shifted"))
    with pytest.raises(ScanError, match="no slice of the two doses"):
        far.load_pair()
    with pytest.raises(ScanError, match="shifted by 0.70 mm"):
        shifted.load_pair()
    with pytest.raises(ScanError, match="different anatomy"):
        other.load_pair()
    scan = far.load_full()
    with pytest.raises(ScanError, match="not scans of one grid"):
        match_slices(scan, Scan(torch.zeros(3, 8, 8), "HU", scan.spacing_mm))


NO_POSITION = {"ImagePositionPatient": None}


def test_without_positions_slices_are_paired_by_their_numbers(tmp_path):
    write_series(tmp_path / "p/full", [f"IM{k:04d}.dcm" for k in range(1, 13)], 40, **NO_POSITION)
    write_series(tmp_path / "p/low", [f"IM{k}.dcm" for k in range(1, 13)], 60, **NO_POSITION)  # sorts otherwise
    (case,) = open_collection(tmp_path)
    check_pair(case, z=range(0, 36, 3))
    with pytest.raises(ScanError, match="IM0001.dcm lacks ImagePosition"):
        read_series(tmp_path / "p/full")


@pytest.mark.parametrize("kept", [(1, 0, 2), (0, 2)])
def test_without_positions_or_numbers_slices_are_paired_by_equal_names_alone(tmp_path, kept):
    unknown = NO_POSITION | {"InstanceNumber": None}
    names = ("3_FD.dcm", "20_FD.dcm", "100_FD.dcm")
    write_series(tmp_path / "p/full", names, 40, **unknown)
    low = [names[k].replace("FD", "QD") for k in kept]
    write_series(tmp_path / "p/low", low, 60, positions=[3.0 * k for k in kept], **unknown)
    (case,) = open_collection(tmp_path)
    if len(kept) == 3:
        check_pair(case, z=(6, 3, 0))  # in the order of names: 100, 20, 3
    else:
        with pytest.raises(ScanError, match="patient p: slices without positions cannot be paired"):
            case.load_pair()


def test_volumes_without_positions_are_paired_where_names_and_depths_agree(tmp_path):
    for name, seed in (("a/full.npy", 0), ("a/low.npy", 0), ("b/full/x.npy", 0), ("b/low/y.npy", 0)):
        write_volume(tmp_path / name, seed)
    a, b = open_collection(tmp_path)
    assert torch.equal(*(scan.values for scan in a.load_pair()))
    with pytest.raises(ScanError, match="patient b: slices without positions"):
        b.load_pair()
    scan = a.load_full()
    with pytest.raises(ScanError, match="slices without positions"):
        match_slices(scan, scan.select([0, 1]))


# --- splits --------------------------------------------------------------------------------------------


def patients(names) -> Collection:
    return Collection("x", "folder", tuple(Case(patient=name, full=None) for name in names))


def test_a_split_is_by_patient_and_adding_patients_moves_nobody():
    names = [f"P{k:04d}" for k in range(2000)]
    twice = Collection("x", "folder", patients(names).cases * 2)  # two scans of each patient
    result = split(twice, ratios=(0.7, 0.1, 0.2), seed=1)
    assert sorted(sum(result.values(), [])) == names  # everyone once
    # binomial: sd of the share of 2000 is 1.0 % at 0.7, so 4 % is four of them
    shares = [len(result[subset]) / 2000 for subset in ("train", "val", "test")]
    assert np.allclose(shares, (0.7, 0.1, 0.2), atol=0.04)
    part = split(patients(names[::3]), ratios=(0.7, 0.1, 0.2), seed=1)
    assert all(set(part[subset]) <= set(result[subset]) for subset in result)
    assert split(twice, seed=2) != split(twice, seed=1) == result
    # pinned, so that a change of the rule cannot pass unseen: it would leak patients of trained networks
    assert split(patients([f"P{k}" for k in range(10, 22)]), ratios=(0.3, 0.3, 0.4)) == {
        "train": ["P12", "P13", "P15", "P16", "P21"],
        "val": ["P10", "P19"],
        "test": ["P11", "P14", "P17", "P18", "P20"],
    }


def test_published_splits():
    tcia = patients(["C121", "C001", "C002", "L241", "L506", "L004", "N090", "N001"])
    result = split(tcia, name="ldct-benchmark")
    assert result["test"] == ["C121", "L241", "N090"]
    # L506 is tested in the challenge's split, so nothing may be trained on it
    assert sorted(result["train"] + result["val"]) == ["C001", "C002", "L004", "N001"]
    mayo = patients(["L067", "L096", "L506", "L008"])
    challenge = split(mayo, name="mayo-2016")
    assert challenge == {"train": ["L067", "L096"], "val": [], "test": ["L008", "L506"]}
    assert {"L506", "L241"} <= set(split(tcia)["test"])  # whatever the hash says
    check_disjoint(result, challenge)
    with pytest.raises(ParameterError, match="L067"):
        check_disjoint(challenge, {"test": ["L067"]})


def test_ledas_splits():
    """Section 3.1: of 2016 eight patients to train on and two to test, of 2020 sixteen and four; nobody else."""
    names = sorted({*MAYO_PATIENTS, "L004", "L110", "L123", "L148", "L179", "L107", "L203"})
    old, new = (split(patients(names), name=f"leda-mayo-{year}") for year in (2016, 2020))
    assert old["test"] == ["L333", "L506"] and old["train"] == sorted(MAYO_PATIENTS - {"L333", "L506"})
    assert new == {"train": ["L107", "L203"], "val": [], "test": ["L110", "L123", "L148", "L179"]}
    check_disjoint(old, new)  # one network can be tested on both
    counts = [len(json.loads((SPLITS_FOLDER / f"leda-mayo-{year}.json").read_text())["train"]) for year in (2016, 2020)]
    assert counts == [8, 16] and {"L333", "L123"} <= set(split(patients(names))["test"])


def test_split_files_are_sound():
    files = sorted(SPLITS_FOLDER.glob("*.json"))
    assert [file.stem for file in files] == ["ldct-benchmark", "leda-mayo-2016", "leda-mayo-2020", "mayo-2016"]
    for file in files:
        content = json.loads(file.read_text())
        everyone = content["train"] + content["val"] + content["test"]
        assert len(set(everyone)) == len(everyone) and content["rest"] in ("test", "nobody", "train and val")
    benchmark = json.loads(files[0].read_text())["test"]
    assert [sum(name[0] == prefix for name in benchmark) for prefix in "CLN"] == [5, 5, 5]


def test_bad_splits():
    with pytest.raises(ParameterError, match="ldct-benchmark, leda-mayo-2016"):
        split(patients(["A"]), name="mayo")
    with pytest.raises(ParameterError, match="sum to 1"):
        split(patients(["A"]), ratios=(0.7, 0.2, 0.2))


# --- real pairs ----------------------------------------------------------------------------------------


def test_real_mayo_pairs(real_data):
    collection = open_collection(real_data / "ct" / "mayo")
    assert collection.layout == "mayo2016" and collection.patients == ("L096", "L143", "L506")
    assert [(case.variant, len(case.full.files)) for case in collection] == [
        ("", 10),
        ("", 4),
        ("3mm_b30f", 7),
        ("1mm", 1),
    ]
    assert {case.dose for case in collection} == {0.25}
    assert [case.load_full().kernel for case in collection] == ["D45f", "D45f", "B30f", "B30f"]
    assert collection.cases[3].spacing_mm == pytest.approx((1, 0.7421875, 0.7421875))
    full, low = collection.cases[1].load_pair()
    assert full.positions_mm == low.positions_mm and len(full.values) == 4
    body = full.values > -500
    # inserted noise: no shift of the mean, and tens of HU of spread
    difference = (low.values - full.values)[body]
    assert abs(difference.mean()) < 2 and 20 < difference.std() < 150


# ---------------------------------------------------------------- how many slices


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
