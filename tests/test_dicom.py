"""Reading and writing DICOM, NIfTI and NumPy scans."""

from __future__ import annotations

import gzip
import math
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ldctlib.data.dicom_read import list_series, pydicom_ct_slice, read_scan, read_series
from ldctlib.data.dicom_write import write_derived
from ldctlib.data.nifti import read_nifti, write_nifti
from ldctlib.errors import LdctError, MissingDependency, ParameterError, ScanError, ShapeError, WriteError

PYDICOM_FILES = sorted(
    path
    for path in (Path(pydicom.__file__).parent / "data").rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
)


def bundled(name: str) -> Path:
    return Path(get_testdata_file(name, download=False))


def ct_slice(z: float, stored: np.ndarray, *, series: str = "1.2.3", number: int = 1, **changes) -> Dataset:
    """A small CT image; ``stored`` is int16 or uint16 (H, W)."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2", series, "1.4"
    ds.Modality, ds.PatientID, ds.ImageType = "CT", "P1", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.InstanceNumber, ds.SeriesDescription, ds.SliceThickness = number, "thin", "2"
    ds.Rows, ds.Columns = stored.shape
    ds.PixelSpacing, ds.ImageOrientationPatient = [0.7, 0.8], [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [-10, -20, z]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.RescaleSlope, ds.RescaleIntercept = "1", "-1024"
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    ds.add_new("PixelData", "OW", stored.astype(stored.dtype.newbyteorder("<")).tobytes())
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def save(ds: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def stack(folder: Path, positions, *, shape=(8, 6), seed: int = 0, **changes) -> list[np.ndarray]:
    """Write one slice per position, in the order given; returns the stored pixels in that order."""
    rng = np.random.default_rng(seed)
    pixels = [rng.integers(0, 2000, shape).astype(np.uint16) for _ in positions]
    for number, (z, stored) in enumerate(zip(positions, pixels, strict=True), start=1):
        save(ct_slice(z, stored, number=number, **changes), folder / f"{number:03d}.dcm")
    return pixels


# --- what pydicom bundles ------------------------------------------------------------------------------


def test_every_bundled_file_reads_rightly_or_raises_a_named_error():
    read = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a reader that floods its user with warnings fails here
        for path in PYDICOM_FILES:
            try:
                read[path.name] = read_series(path)
            except LdctError as error:
                assert path.name in str(error)
    # values against an independent path: pydicom's own decoding and the rescale tags
    for name, scan in read.items():
        path = scan.source_files[0]
        ds = pydicom.dcmread(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = ds.pixel_array * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
        measured = slice(None) if scan.padding is None else ~scan.padding[0].numpy()
        assert np.array_equal(scan.values[0].numpy()[measured], expected.astype(np.float32)[measured]), name
        assert scan.modality == ds.Modality and scan.scale == ("HU" if ds.Modality == "CT" else "arbitrary")
        assert scan.spacing_mm[1:] == tuple(float(x) for x in ds.PixelSpacing)
    for name in ("CT_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "examples_overlay.dcm", "17106"):
        assert name in read
    assert not any(name.startswith(("SC_", "rtdose", "liver", "6293", "DICOMDIR")) for name in read)
    assert len(read) >= 30


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("examples_rgb_color.dcm", "Ultrasound Image Storage"),
        ("liver_1frame.dcm", "Segmentation Storage"),
        ("rtdose.dcm", "RT Dose Storage"),
        ("DICOMDIR", "Media Storage Directory"),
        ("MR_truncated.dcm", "damaged"),
        ("no_meta.dcm", "not a DICOM file"),
    ],
)
def test_the_error_says_what_the_file_is(name, says):
    with pytest.raises(ScanError, match=says):
        read_series(next(path for path in PYDICOM_FILES if path.name == name))


def test_the_slice_that_ships():
    scan = pydicom_ct_slice()
    assert scan.values.shape == (1, 128, 128) and scan.values.dtype == torch.float32 and scan.scale == "HU"
    assert (scan.values.min(), scan.values.max()) == (-896, 1167)  # facts of the file
    assert scan.images_hu().shape == (1, 1, 128, 128)
    assert scan.patient_id == "1CT1" and scan.thickness_mm == 5


def damaged_copies(rng: np.random.Generator, count: int):
    """(source, bytes or dataset, kind): cuts, flipped bits in the header or anywhere, deleted elements."""
    names = [
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_implicit.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "693_J2KI.dcm",
        "17106",
        "4919",
    ]
    sources = [next(path for path in PYDICOM_FILES if path.name == name) for name in names]
    for index in range(count):
        source = sources[index % len(sources)]
        data = bytearray(source.read_bytes())
        kind = ("truncated", "flipped header", "flipped", "deleted")[index // len(sources) % 4]
        if kind == "truncated":
            yield source, bytes(data[: rng.integers(133, len(data))]), kind
        elif kind == "deleted":
            ds = pydicom.dcmread(source)
            tags = [tag for tag in ds.keys() if tag.group in (0x0008, 0x0020, 0x0028, 0x7FE0)]
            for tag in rng.choice(len(tags), 3, replace=False):
                del ds[tags[tag]]
            yield source, ds, kind
        else:
            high = min(len(data), 2500) if kind == "flipped header" else len(data)
            for place in rng.integers(132, high, 8):
                data[place] ^= 1 << rng.integers(8)
            yield source, bytes(data), kind


def test_200_damaged_copies_read_or_raise_a_named_error(tmp_path):
    rng = np.random.default_rng(7)
    outcomes: dict[str, list[bool]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns while this test writes its damaged files
        copies = list(damaged_copies(rng, 200))
    for index, (source, content, kind) in enumerate(copies):
        path = tmp_path / f"{index}.dcm"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path.write_bytes(content) if isinstance(content, bytes) else content.save_as(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                scan = read_series(path)
            except LdctError:
                outcomes.setdefault(kind, []).append(False)
            else:
                assert torch.isfinite(scan.values).all()
                # a cut may only pass where it took nothing but what follows the pixels
                assert kind != "truncated" or torch.equal(scan.values, read_series(source).values)
                outcomes.setdefault(kind, []).append(True)
    assert {kind: len(results) for kind, results in outcomes.items()} == dict.fromkeys(outcomes, 50)
    # damage of each kind is noticed somewhere, and harmless damage does not stop a file from being read
    assert all(not all(results) for results in outcomes.values())
    assert any(outcomes["deleted"]) and any(outcomes["flipped"])


def test_cut_pixels_never_become_an_image(tmp_path):
    whole = bundled("CT_small.dcm").read_bytes()
    end = whole.rindex(b"\xfc\xff\xfc\xff")  # the trailing padding element behind the pixels
    for cut in (end - 1, end - 2, end - 128 * 128, end - 2 * 128 * 128):
        path = tmp_path / f"{cut}.dcm"
        path.write_bytes(whole[:cut])
        with pytest.raises(ScanError):
            read_series(path)


# --- traps ---------------------------------------------------------------------------------------------


def test_slices_are_ordered_by_position_not_by_number(tmp_path):
    positions = [4.0, -2.0, 2.0, 0.0]
    pixels = stack(tmp_path, positions)
    scan = read_series(tmp_path)
    order = np.argsort(positions)
    assert np.array_equal(scan.values.numpy(), np.stack(pixels)[order].astype(np.float32) - 1024)
    assert scan.positions_mm == (-2.0, 0.0, 2.0, 4.0) and scan.spacing_mm == (2.0, 0.7, 0.8)
    # row r, column c of slice k is at (-10 + .8 c, -20 + .7 r, -2 + 2 k) in DICOM's LPS
    assert np.allclose(scan.affine @ [3, 5, 1, 1], [10 - 2.4, 20 - 3.5, 0, 1])


def test_order_follows_the_normal_of_an_oblique_plane(tmp_path):
    angle = math.radians(30)
    orientation = [1, 0, 0, 0, math.cos(angle), math.sin(angle)]
    normal = np.array([0, -math.sin(angle), math.cos(angle)])
    for k, steps in enumerate((2, 0, 1)):
        ds = ct_slice(0, np.full((4, 4), steps, np.uint16), ImageOrientationPatient=orientation)
        ds.ImagePositionPatient = [float(x) for x in np.round(3.0 * steps * normal, 6)]
        save(ds, tmp_path / f"{k}.dcm")
    scan = read_series(tmp_path)
    assert scan.values[:, 0, 0].tolist() == [-1024, -1023, -1022]
    assert scan.spacing_mm[0] == pytest.approx(3.0, abs=1e-5) and scan.tilt_deg == pytest.approx(0, abs=0.01)


def test_gaps_duplicates_and_clashes(tmp_path):
    stack(tmp_path / "gap", [0, 2, 4, 8, 10])
    with pytest.raises(ScanError, match="4.00 to 8.00 mm.*allow_gaps"):
        read_series(tmp_path / "gap")
    scan = read_series(tmp_path / "gap", allow_gaps=True)
    assert len(scan.values) == 5 and scan.spacing_mm[0] == 2 and "missing" in scan.notes[0]

    same = np.full((4, 4), 7, np.uint16)
    for name, z in (("a", 0), ("b", 2), ("copy_of_b", 2), ("c", 4)):
        save(ct_slice(z, same + np.uint16(z)), tmp_path / "twice" / f"{name}.dcm")
    scan = read_series(tmp_path / "twice")
    assert [path.name for path in scan.source_files] == ["a.dcm", "b.dcm", "c.dcm"]
    assert any("repeat" in note for note in scan.notes)

    save(ct_slice(2, same, AcquisitionNumber=9), tmp_path / "twice" / "other_phase.dcm")
    with pytest.raises(ScanError, match="same place.*AcquisitionNumber"):
        read_series(tmp_path / "twice")


def test_kernel_and_instance_numbers_are_kept(tmp_path):
    stack(tmp_path / "in", [4, 0, 2], ConvolutionKernel="D45f")
    scan = read_series(tmp_path / "in")
    assert scan.kernel == "D45f" and scan.instance_numbers == (2, 3, 1)
    assert scan.select([2, 0]).instance_numbers == (1, 2)
    assert read_series(save(padded([0, 1], ConvolutionKernel=["Br40d", "3"]), tmp_path / "two.dcm")).kernel == "Br40d/3"
    unknown = read_series(save(padded([0, 1], InstanceNumber=None), tmp_path / "no.dcm"))
    assert unknown.kernel == "" and unknown.instance_numbers is None


def test_without_any_positions_gaps_must_be_allowed(tmp_path):
    pixels = stack(tmp_path / "in", [0, 2, 4])
    numbers = iter((7, 9, 5))
    for path in sorted((tmp_path / "in").iterdir()):
        ds = pydicom.dcmread(path)
        del ds.ImagePositionPatient
        ds.InstanceNumber = next(numbers)
        save(ds, path)
    with pytest.raises(ScanError, match="001.dcm lacks ImagePositionPatient"):
        read_series(tmp_path / "in")
    scan = read_series(tmp_path / "in", allow_gaps=True)
    assert np.array_equal(scan.values.numpy() + 1024, np.stack([pixels[2], pixels[0], pixels[1]]))
    assert scan.instance_numbers == (5, 7, 9) and scan.positions_mm is None and scan.affine is None
    assert scan.spacing_mm == (2.0, 0.7, 0.8) and "order of their numbers" in scan.notes[0]
    paths = write_derived(scan, scan.values, tmp_path / "out", description="copy")
    assert [pydicom.dcmread(path).InstanceNumber for path in paths] == [5, 7, 9]
    save(ct_slice(6, pixels[0], number=11), tmp_path / "in" / "004.dcm")  # one that has a position
    with pytest.raises(ScanError, match="lacks ImagePositionPatient"):
        read_series(tmp_path / "in", allow_gaps=True)


def test_what_systems_leave_in_folders_is_passed_over(tmp_path):
    stack(tmp_path, [0, 2, 4])
    for name in (".DS_Store", "._001.dcm", "Thumbs.db", "DICOMDIR"):
        (tmp_path / name).write_bytes(b"\0" * 128 + b"DICM, and nothing that can be read")
    assert len(read_series(tmp_path).values) == len(read_series(sorted(tmp_path.iterdir())).values) == 3


def test_gantry_tilt_is_noted(tmp_path):
    for k in range(3):
        # the table moves along z, the image plane is tilted by 20 degrees
        tilt = math.radians(20)
        orientation = [1, 0, 0, 0, math.cos(tilt), math.sin(tilt)]
        save(ct_slice(2.0 * k, np.zeros((4, 4), np.uint16), ImageOrientationPatient=orientation), tmp_path / f"{k}.dcm")
    scan = read_series(tmp_path)
    assert scan.tilt_deg == pytest.approx(20, abs=0.01) and any("tilted by 20.0" in note for note in scan.notes)


def test_localizers_are_left_aside_and_several_series_listed(tmp_path):
    stack(tmp_path / "thin", [0, 2, 4])
    scout = ct_slice(0, np.zeros((4, 9), np.uint16), series="1.2.9", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    save(scout, tmp_path / "scout.dcm")
    (tmp_path / "notes.txt").write_text("not DICOM")
    assert len(read_series(tmp_path).values) == 3
    with pytest.raises(ScanError, match="localizer"):
        read_series(tmp_path / "scout.dcm")

    stack(tmp_path / "thick", [0, 5], series="1.2.4", SeriesDescription="thick")
    with pytest.raises(ScanError, match=r'(?s)1\.2\.3: 3 file.*1\.2\.4: 2 file\(s\), CT 8x6 "thick"') as error:
        read_series(tmp_path)
    assert "series_uid" in str(error.value)
    assert len(read_series(tmp_path, series_uid="1.2.4").values) == 2
    with pytest.raises(ScanError, match="has no series 1.2.5"):
        read_series(tmp_path, series_uid="1.2.5")
    assert [info.uid for info in list_series(tmp_path)] == ["1.2.3", "1.2.4", "1.2.9"]

    # one series, two orientations
    save(ct_slice(6, np.zeros((8, 6), np.uint16), ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), tmp_path / "thin/c.dcm")
    with pytest.raises(ScanError, match="1.2.3#2"):
        read_series(tmp_path / "thin")


def padded(values, **changes) -> Dataset:
    return ct_slice(0, np.array([values], dtype=changes.pop("dtype", np.int16)).repeat(4, axis=0), **changes)


def test_padding_is_masked_before_rescale(tmp_path):
    ds = padded([-2000, 0, 24, 1064])
    ds.add_new("PixelPaddingValue", "SS", -2000)
    scan = read_series(save(ds, tmp_path / "a.dcm"))
    assert scan.values[0, 0].tolist() == [-1000, -1024, -1000, 40]
    assert scan.padding[0, 0].tolist() == [True, False, False, False]

    ds = padded([-2000, -1999, -1990, 1064])
    ds.add_new("PixelPaddingValue", "SS", -2000)
    ds.add_new("PixelPaddingRangeLimit", "SS", -1995)
    scan = read_series(save(ds, tmp_path / "range.dcm"))
    assert scan.padding[0, 0].tolist() == [True, True, False, False]

    # the tag is written unsigned (63536 has the bits of -2000), as many scanners do
    ds = padded([-2000, 0, 24, 1064])
    ds.add_new("PixelPaddingValue", "US", 63536)
    assert read_series(save(ds, tmp_path / "sign.dcm")).padding[0, 0].tolist() == [True, False, False, False]

    # undeclared: constant over a quarter of the slice, and no material reads -3024 HU
    assert read_series(save(padded([-2000, 0, 24, 1064]), tmp_path / "undeclared.dcm")).padding.sum() == 4
    # a single low pixel is noise, not padding
    noisy = np.full((32, 32), 24, np.int16)
    noisy[3, 3] = -900
    assert read_series(save(ct_slice(0, noisy), tmp_path / "noise.dcm")).padding is None


def test_unused_bits_and_sign(tmp_path):
    # 12 bits used, signed: 0xFFF is -1; the four bits above hold an overlay
    ds = ct_slice(0, np.array([[0x1FFF, 0x8001], [0x0800, 0x07FF]], np.uint16), BitsStored=12, HighBit=11)
    ds.PixelRepresentation, ds.RescaleIntercept = 1, "0"
    scan = read_series(save(ds, tmp_path / "a.dcm"))
    assert scan.padding is None or not scan.padding[0, 0].any()
    assert scan.values[0, 0].tolist() == [-1, 1] and scan.values[0, 1, 1] == 2047


def test_rescale_is_read_from_each_file(tmp_path):
    save(ct_slice(0, np.full((4, 4), 100, np.uint16), RescaleSlope="2", RescaleIntercept="-1000"), tmp_path / "0.dcm")
    save(ct_slice(2, np.full((4, 4), 100, np.uint16), RescaleSlope="1", RescaleIntercept="-200"), tmp_path / "1.dcm")
    assert read_series(tmp_path).values[:, 0, 0].tolist() == [-800, -100]
    scan = read_series(save(ct_slice(0, np.full((4, 4), 9, np.uint16), RescaleType="HU_MOD"), tmp_path / "m/m.dcm"))
    assert scan.scale == "arbitrary"
    with pytest.raises(ScanError, match="arbitrary units"):
        scan.images_hu()


@pytest.mark.parametrize(
    "missing", ["RescaleSlope", "PixelSpacing", "PixelRepresentation", "BitsStored", "PixelData", "Rows", "Modality"]
)
def test_what_ct_must_state(tmp_path, missing):
    ds = ct_slice(0, np.zeros((4, 4), np.uint16))
    delattr(ds, missing)
    with pytest.raises(ScanError, match="a.dcm"):
        read_series(save(ds, tmp_path / "a.dcm"))


def test_raw_projections_are_no_image(tmp_path):
    ds = ct_slice(0, np.zeros((4, 4), np.uint16))
    ds.add_new(0x70290010, "LO", "DETECTOR GEOMETRY")
    ds.add_new(0x70291010, "US", 64)
    with pytest.raises(ScanError, match="raw projections"):
        read_series(save(ds, tmp_path / "a.dcm"))


def test_a_missing_decoder_is_named(monkeypatch):
    class NoDecoder:
        is_available = False

    monkeypatch.setattr("pydicom.pixels.get_decoder", lambda syntax: NoDecoder)
    for name, plugin in (
        ("MR_small_jp2klossless.dcm", "pylibjpeg-openjpeg"),
        ("MR_small_jpeg_ls_lossless.dcm", "pyjpegls"),
    ):
        with pytest.raises(MissingDependency, match=plugin):
            read_series(bundled(name))


# --- writing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_RLE.dcm",
        "693_J2KI.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "examples_overlay.dcm",
    ],
)
def test_written_series_reads_back_within_half_a_stored_unit(tmp_path, name):
    scan = read_series(bundled(name))
    noise = torch.randn(scan.values.shape, generator=torch.Generator().manual_seed(3))
    values = scan.values + 7.3 * noise
    write_derived(scan, values, tmp_path / "out", description="noise added")
    again = read_series(tmp_path / "out")
    measured = torch.ones_like(values, dtype=torch.bool) if scan.padding is None else ~scan.padding
    # half a unit, and float32's rounding of values of a few thousand
    assert (again.values - values)[measured].abs().max() <= 0.5 + 1e-3
    assert (scan.padding is None) == (again.padding is None)
    assert scan.padding is None or torch.equal(scan.padding, again.padding)
    assert again.spacing_mm == scan.spacing_mm and np.array_equal(again.affine, scan.affine)
    # rounded, not truncated: truncation would shift the mean by half a unit
    assert abs((again.values - values)[measured].mean()) < 0.05


def test_the_header_says_that_it_is_derived(tmp_path):
    stack(tmp_path / "in", [0, 2, 4], SmallestImagePixelValue=0, LargestImagePixelValue=1999, BurnedInAnnotation="NO")
    scan = read_series(tmp_path / "in")
    paths = write_derived(scan, scan.values[:, None], tmp_path / "out", description="made by a test")
    assert [path.name for path in paths] == ["0001.dcm", "0002.dcm", "0003.dcm"]
    sources = [pydicom.dcmread(path) for path in scan.source_files]
    written = [pydicom.dcmread(path) for path in paths]
    assert len({ds.SeriesInstanceUID for ds in written}) == 1
    assert len({ds.SOPInstanceUID for ds in written} | {ds.SOPInstanceUID for ds in sources}) == 6
    for ds, source in zip(written, sources, strict=True):
        assert ds.SeriesInstanceUID != source.SeriesInstanceUID
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        for same in (
            "StudyInstanceUID",
            "FrameOfReferenceUID",
            "PatientID",
            "ImagePositionPatient",
            "InstanceNumber",
            "SOPClassUID",
            "RescaleIntercept",
            "BurnedInAnnotation",
        ):
            assert ds[same].value == source[same].value
        assert ds.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
        assert ds.DerivationDescription == "made by a test" and "made by a test" in ds.SeriesDescription
        assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert ds.ContributingEquipmentSequence[-1].Manufacturer == "ldctlib"
        assert "SmallestImagePixelValue" not in ds and "LargestImagePixelValue" not in ds
        assert ds.BitsStored == 16 and ds.PixelRepresentation == 0  # unchanged, since the values fit
        assert np.array_equal(ds.pixel_array, source.pixel_array)


def test_values_that_do_not_fit_widen_the_series_or_raise(tmp_path):
    scan = read_series(save(ct_slice(0, np.full((4, 4), 5, np.uint16), BitsStored=12, HighBit=11), tmp_path / "a.dcm"))
    low = scan.values.clone()
    low[0, 0, 0] = -1500  # stored -476: not in 12 unsigned bits
    paths = write_derived(scan, low, tmp_path / "wide", description="wide")
    assert torch.equal(read_series(tmp_path / "wide").values, low)
    assert pydicom.dcmread(paths[0]).PixelRepresentation == 1

    low[0, 0, 0] = 40000
    with pytest.raises(ScanError, match="do not fit"):
        write_derived(scan, low, tmp_path / "lost", description="lost")
    low[0, 0, 0] = math.nan
    with pytest.raises(ScanError, match="not finite"):
        write_derived(scan, low, tmp_path / "lost", description="lost")
    with pytest.raises(ShapeError):
        write_derived(scan, low[:, :2], tmp_path / "lost", description="lost")
    with pytest.raises(ParameterError):
        write_derived(scan, scan.values, tmp_path / "lost", description=" ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.dcm", "wide"]  # nothing half-written
    with pytest.raises(ScanError, match="not an empty folder"):
        write_derived(scan, scan.values, tmp_path / "wide", description="again")


@pytest.mark.parametrize("declared", [-2000, 2096, None])
@pytest.mark.parametrize("above", [0xF000, 0, 0x8000])
def test_padding_is_found_whatever_the_unused_bits_hold(tmp_path, declared, above):
    """Signed 12-bit pixels in 16 bits: those above repeat the sign, are 0, or hold an overlay (PS3.5, 8.1.1)."""
    stored = np.full((20, 20), 1064, np.uint16)
    stored[:4] = above | 0x830  # -2000 in 12 bits
    ds = ct_slice(0, stored.view(np.int16), BitsStored=12, HighBit=11)
    if declared is not None:
        ds.add_new("PixelPaddingValue", "SS", declared)
    scan = read_series(save(ds, tmp_path / "a.dcm"))
    assert scan.padding[0, :4].all() and not scan.padding[0, 4:].any() and scan.values[0, 4:].eq(40).all()
    write_derived(scan, scan.values + 1, tmp_path / "out", description="brighter")
    again = read_series(tmp_path / "out")
    assert torch.equal(again.padding, scan.padding) and again.values[0, 4:].eq(41).all()
    assert pydicom.dcmread(again.source_files[0]).pixel_array.min() == -2000


def test_padding_beyond_the_used_bits_is_looked_for_in_all(tmp_path):
    stored = np.full((20, 20), 2096, np.uint16)  # 1072 HU: the 12 lower bits of 63536
    stored[:4] = 63536
    ds = ct_slice(0, stored, BitsStored=12, HighBit=11)
    ds.add_new("PixelPaddingValue", "US", 63536)
    scan = read_series(save(ds, tmp_path / "a.dcm"))
    assert scan.padding[0, :4].all() and not scan.padding[0, 4:].any()


@pytest.mark.parametrize("uid", ["", "1.2.3"])
def test_two_patients_are_two_series_whatever_became_of_the_uid(tmp_path, uid):
    stored = np.full((8, 8), 1064, np.int16)
    for k in range(4):
        save(ct_slice(3.0 * k, stored, series=uid), tmp_path / f"a{k}.dcm")
        save(ct_slice(3.0 * k + 1.5, stored, series=uid, PatientID="P2"), tmp_path / f"b{k}.dcm")
    one, other = list_series(tmp_path)
    assert (one.patient_id, other.patient_id) == ("P1", "P2") and len(one.files) == len(other.files) == 4
    with pytest.raises(ScanError, match="several series"):
        read_series(tmp_path)
    assert read_series(tmp_path, series_uid=other.uid).patient_id == "P2"


@pytest.mark.parametrize("differs", [dict(SeriesNumber=3), dict(ConvolutionKernel="B70f"), dict(StudyInstanceUID="9")])
def test_series_without_a_uid_are_told_by_what_is_left(tmp_path, differs):
    stored = np.full((8, 8), 1064, np.int16)
    for k in range(4):
        save(ct_slice(3.0 * k, stored, series="", SeriesNumber=2), tmp_path / f"a{k}.dcm")
        save(ct_slice(3.0 * k + 1.5, stored, series="", **dict(SeriesNumber=2) | differs), tmp_path / f"b{k}.dcm")
    assert len(list_series(tmp_path)) == 2
    for k in range(4):
        (tmp_path / f"b{k}.dcm").unlink()
    assert read_series(tmp_path).values.shape == (4, 8, 8)


@pytest.mark.parametrize("spelling", ["HU", "hu", " HU ", "Hounsfield Unit", "Houndsfield Unit", "hounsfield units"])
def test_hounsfield_is_read_in_any_spelling(tmp_path, spelling):
    path = save(ct_slice(0, np.full((8, 8), 1064, np.int16), RescaleType=spelling), tmp_path / "a.dcm")
    assert read_series(path).images_hu().eq(40).all() and not read_series(path).notes


@pytest.mark.parametrize("said", ["US", "HU_MOD", "Z_EFF"])
def test_who_knows_better_says_that_it_is_hu(tmp_path, said):
    path = save(ct_slice(0, np.full((8, 8), 1064, np.int16), RescaleType=said), tmp_path / "a.dcm")
    with pytest.raises(ScanError, match='scale="HU" if you know better'):
        read_scan(path).images_hu()
    scan = read_scan(path, scale="HU")
    assert scan.images_hu().eq(40).all() and said in scan.notes[0]
    mr = save(ct_slice(0, np.full((8, 8), 1064, np.int16), Modality="MR"), tmp_path / "mr.dcm")
    with pytest.raises(ScanError, match="MR, whose values are never HU"):
        read_scan(mr, scale="HU")


def test_stored_values_taken_for_hu_are_noted(tmp_path):
    values = np.full((2, 8, 8), 1064, np.float32)
    np.save(tmp_path / "a.npy", values)
    assert "without their -1024" in read_scan(tmp_path / "a.npy").notes[0]
    assert not read_scan(tmp_path / "a.npy", scale="arbitrary").notes
    values[0, 0, :2] = np.inf, np.nan
    values[1] = -1000
    np.save(tmp_path / "b.npy", values)
    scan = read_scan(tmp_path / "b.npy")
    assert scan.padding.sum() == 2 and scan.padding[0, 0, :2].all() and not scan.notes and scan.values.max() == 1064


@pytest.mark.parametrize("charset", ["ISO_IR 192", "ISO_IR 6", None, "ISO 2022 IR 87"])
def test_a_name_in_the_wrong_character_set_stays_what_it_is(tmp_path, charset):
    ds = ct_slice(0, np.full((8, 8), 1064, np.int16), PatientName="M?ller^Test", SeriesNumber=2)
    if charset:
        ds.SpecificCharacterSet = charset
    path = save(ds, tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"M?ller", b"M\xfcller"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scan = read_series(path)
        (file,) = write_derived(scan, scan.values, tmp_path / "out", description="geglättet ± 山")
        before, after = pydicom.dcmread(path), pydicom.dcmread(file)
        assert after.get_item("PatientName").value == before.get_item("PatientName").value == b"M\xfcller^Test "
        assert after.DerivationDescription == ("geglättet ± 山" if charset == "ISO_IR 192" else "geglattet  ").strip()
        assert after.SeriesNumber == 1002 and read_series(file).values.eq(40).all()


@pytest.mark.parametrize(
    ("source", "derived"), [("2147483000", 2147482000), ("456115117112105110101", 1000), ("ABCD", 1000), ("-5", 995)]
)
def test_the_series_number_stays_one(tmp_path, source, derived):
    ds = ct_slice(0, np.full((8, 8), 1064, np.int16))
    ds.add_new("SeriesNumber", "LO", source)
    path = save(ds, tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"\x20\x00\x11\x00LO", b"\x20\x00\x11\x00IS"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scan = read_series(path)
        (file,) = write_derived(scan, scan.values, tmp_path / "out", description="x")
    assert pydicom.dcmread(file).SeriesNumber == derived


def test_padding_keeps_its_stored_value_and_is_never_confused_with_measurements(tmp_path):
    ds = padded([0, 10, 24, 1064], dtype=np.uint16)
    ds.add_new("PixelPaddingValue", "US", 0)
    scan = read_series(save(ds, tmp_path / "a.dcm"))
    values = torch.full_like(scan.values, 33.0)
    path = write_derived(scan, values, tmp_path / "kept", description="flat")[0]
    assert pydicom.dcmread(path).pixel_array[0].tolist() == [0, 1057, 1057, 1057]

    values[0, 1, 1] = -1024  # would be stored as 0, which is the padding value
    path = write_derived(scan, values, tmp_path / "moved", description="flat")[0]
    again = read_series(path)
    assert again.values[0, 1, 1] == -1024 and torch.equal(again.padding, scan.padding)
    assert pydicom.dcmread(path).PixelPaddingValue == -32768


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    stack(tmp_path / "in", [0, 2, 4])
    scan = read_series(tmp_path / "in")
    original, calls = Dataset.save_as, []

    def fails_at_the_second(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("disk full")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Dataset, "save_as", fails_at_the_second)
    with pytest.raises(WriteError, match="out cannot be written: disk full"):
        write_derived(scan, scan.values, tmp_path / "out", description="x")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_selection_of_slices_writes_its_own_sources(tmp_path):
    stored = np.tile(np.array([-2000, 0, 24, 1064], np.int16), (4, 1))
    for k in range(3):
        save(ct_slice(2.0 * k, np.roll(stored, k, axis=1)), tmp_path / "in" / f"{k}.dcm")
    scan = read_series(tmp_path / "in")
    part = scan.select([2, 0])
    assert torch.equal(part.values, scan.values[[2, 0]]) and part.positions_mm == (4.0, 0.0)
    paths = write_derived(part, part.values, tmp_path / "out", description="two of three")
    for path, source in zip(paths, (scan.source_files[2], scan.source_files[0]), strict=True):
        assert np.array_equal(pydicom.dcmread(path).pixel_array, pydicom.dcmread(source).pixel_array)


# --- NIfTI and NumPy -----------------------------------------------------------------------------------


def test_nifti_is_turned_like_dicom_and_written_back_as_it_was(tmp_path):
    nib = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    for name, codes in (("a.nii.gz", "RAS"), ("b.nii", "LPS"), ("c.nii", "PIR")):
        lps = rng.normal(0, 100, (5, 4, 3)).astype(np.float32)  # x to the left, y to the back, z to the head
        affine = np.diag([-0.8, -0.7, 2.0, 1.0])
        affine[:3, 3] = 10, 20, -2
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(codes)
        )
        stored = nib.orientations.apply_orientation(lps, turn)
        image = nib.Nifti1Image(stored, affine @ nib.orientations.inv_ornt_aff(turn, lps.shape))
        nib.save(image, tmp_path / name)
        scan = read_scan(tmp_path / name)
        assert np.array_equal(scan.values.numpy(), lps.transpose(2, 1, 0)), codes
        assert scan.spacing_mm == pytest.approx((2.0, 0.7, 0.8)) and np.allclose(scan.affine, affine)
        out = write_nifti(scan, scan.values + 1, tmp_path / f"out_{name}", description="plus one")
        back = nib.load(out)
        assert np.allclose(back.get_fdata(), stored + 1, atol=1e-4) and np.allclose(back.affine, image.affine)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_bad_nifti_and_numpy_files(tmp_path):
    nib = pytest.importorskip("nibabel")
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3, 4), np.float32), np.eye(4)), tmp_path / "four.nii")
    nib.save(nib.Nifti1Image(np.zeros((30, 30, 30), np.float32), np.eye(4)), tmp_path / "whole.nii.gz")
    whole = (tmp_path / "whole.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"not an image"))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "line.npy", np.zeros(5))
    for name in ("four.nii", "cut.nii.gz", "text.nii.gz", "objects.npy", "line.npy", "absent.nii", "absent.npy"):
        with pytest.raises(ScanError, match=name):
            read_scan(tmp_path / name)
    with pytest.raises(ParameterError, match="HU"):
        read_nifti(tmp_path / "whole.nii.gz", scale="hounsfield")


def test_numpy(tmp_path):
    array = np.arange(24.0).reshape(2, 3, 4)
    array[0, 0, 0] = np.nan
    np.save(tmp_path / "a.npy", array)
    scan = read_scan(tmp_path / "a.npy")
    assert scan.values[0, 0, 0] == -1000 and scan.padding.sum() == 1 and scan.values[1, 2, 3] == 23
    with pytest.raises(ScanError, match="not read from DICOM"):
        write_derived(scan, scan.values, tmp_path / "out", description="x")


# --- real scans ----------------------------------------------------------------------------------------

LIVER = 5  # of TotalSegmentator's 117 structures


def test_real_jpeg2000_abdomen_and_its_mask(real_data, tmp_path):
    folder = real_data / "ct" / "abdomen_series"
    scan = read_series(folder)
    assert scan.values.shape == (20, 512, 512) and scan.spacing_mm == pytest.approx((2, 0.9765625, 0.9765625))
    mask = read_scan(folder / "segmentation_117.nii.gz", scale="arbitrary")
    assert np.allclose(mask.affine, scan.affine)
    liver = scan.values[mask.values == LIVER]
    # measured with another reader: 89 +- 22 HU; a flipped or shifted mask reads far from both
    assert liver.mean() == pytest.approx(89, abs=1) and liver.std() == pytest.approx(22, abs=1)
    # its study, series and instance UIDs were anonymised away: the derived series must get its own
    paths = write_derived(scan, scan.values, tmp_path / "out", description="copy")
    again = read_series(tmp_path / "out")
    assert torch.equal(again.values, scan.values)
    written = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    assert len({ds.StudyInstanceUID for ds in written}) == 1 and written[0].StudyInstanceUID
    assert written[0].SOPClassUID == CTImageStorage and "SourceImageSequence" not in written[0]


def read_nrrd(path: Path) -> np.ndarray:
    """Short gzip NRRD as (D, H, W)."""
    header, data = path.read_bytes().split(b"\n\n", 1)
    sizes = next(line for line in header.decode().splitlines() if line.startswith("sizes:"))
    x, y, z = (int(n) for n in sizes.split()[1:])
    return np.frombuffer(gzip.decompress(data), "<i2").reshape(z, y, x)


def test_real_ge_slices_with_padding_and_masks(real_data, tmp_path):
    scan = read_series(real_data / "ct" / "liver_3slices")
    assert scan.values.shape == (3, 512, 512) and scan.spacing_mm[0] == pytest.approx(1)
    assert scan.values.min() >= -1024 and scan.padding.float().mean() == pytest.approx(0.2128, abs=1e-3)
    liver = scan.values[torch.from_numpy(read_nrrd(real_data / "ct/liver_3slices/liver_seg.nrrd") > 0)]
    spine = scan.values[torch.from_numpy(read_nrrd(real_data / "ct/liver_3slices/spine_seg.nrrd") > 0)]
    # unenhanced liver and bone; turned or mirrored masks miss them (medians below 25, and 230 at most)
    assert liver.median() == pytest.approx(45, abs=1) and spine.median() == pytest.approx(251, abs=1)

    odd = read_series(real_data / "ct" / "odd" / "ge_padding_minus3024.dcm")
    assert odd.values.min() >= -1024  # its padding of -2000 is not the -32768 that the header declares
    paths = write_derived(odd, odd.values, tmp_path / "out", description="copy")
    before = pydicom.dcmread(real_data / "ct/odd/ge_padding_minus3024.dcm").pixel_array
    assert np.array_equal(pydicom.dcmread(paths[0]).pixel_array, before)


def test_real_mr(real_data, tmp_path):
    heart = read_series(real_data / "mr" / "heart_16frames.dcm")
    assert heart.values.shape == (16, 256, 256) and heart.scale == "arbitrary" and heart.spacing_mm is None
    write_derived(heart, heart.values, tmp_path / "out", description="copy")
    assert torch.equal(read_series(tmp_path / "out").values, heart.values)
    abdomen = read_scan(real_data / "mr" / "abdomen_small.nii.gz", scale="arbitrary")
    assert abdomen.values.shape == (20, 91, 117) and abdomen.spacing_mm == pytest.approx((3, 3, 3), abs=0.01)
