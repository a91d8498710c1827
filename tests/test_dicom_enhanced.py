"""Enhanced multi-frame CT: read as a volume, refused by name where it is several, written back as the same kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, generate_uid

from ldctlib.data.dicom_read import list_series, read_series
from ldctlib.data.dicom_write import write_derived
from ldctlib.denoise import denoise_scan
from ldctlib.errors import ScanError
from tests.test_dicom import ct_slice, save


def group(**values) -> list[Dataset]:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return [item]


def enhanced(positions, *, stored=None, own=None, slopes=None, **changes) -> Dataset:
    """A file of one frame a position, in the order given; ``own`` gives a frame more FrameContent, by its index."""
    if stored is None:
        stored = np.random.default_rng(0).integers(0, 2000, (len(positions), 8, 6)).astype(np.uint16)
    ds = ct_slice(0, stored[0], SOPClassUID=EnhancedCTImageStorage, series="1.2.7")
    for keyword in "PixelSpacing ImageOrientationPatient ImagePositionPatient SliceThickness PixelData".split():
        delattr(ds, keyword)
    del ds.RescaleSlope, ds.RescaleIntercept
    ds.ImageType, ds.NumberOfFrames = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], len(positions)
    shared, frames = Dataset(), []
    shared.PixelMeasuresSequence = group(PixelSpacing=[0.7, 0.8], SliceThickness=2.0)
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.CTImageFrameTypeSequence = group(FrameType=ds.ImageType)
    shared.CTReconstructionSequence = group(ConvolutionKernel="D45f")
    for k, z in enumerate(positions):
        frame = Dataset()
        frame.PlanePositionSequence = group(ImagePositionPatient=[-10, -20, z])
        content = dict(StackID="1", InStackPositionNumber=k + 1, DimensionIndexValues=[1, k + 1])
        frame.FrameContentSequence = group(**content | (own(k) if own else {}))
        slope, intercept = slopes[k] if slopes else (1, -1024)
        told = dict(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU")
        frame.PixelValueTransformationSequence = group(**told)
        frames.append(frame)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], frames
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    ds.add_new("PixelData", "OW", stored.astype(stored.dtype.newbyteorder("<")).tobytes())
    return ds


def test_frames_are_sorted_by_position_and_rescaled_by_their_own(tmp_path):
    stored = np.random.default_rng(1).integers(0, 2000, (3, 8, 6)).astype(np.uint16)
    slopes = [(1, -1024), (2, -1000), (0.5, -200)]
    path = save(enhanced([4.0, 0.0, 2.0], stored=stored, slopes=slopes), tmp_path / "a.dcm")
    scan = read_series(tmp_path)
    order = [1, 2, 0]
    expected = np.stack([stored[k] * float(slopes[k][0]) + slopes[k][1] for k in order])
    assert np.array_equal(scan.values.numpy(), expected.astype(np.float32)) and scan.scale == "HU"
    assert scan.positions_mm == (0.0, 2.0, 4.0) and scan.spacing_mm == (2.0, 0.7, 0.8) and scan.thickness_mm == 2
    assert scan.kernel == "D45f" and scan.source_files == (path,) and not scan.notes
    assert np.allclose(scan.affine @ [3, 5, 1, 1], [10 - 2.4, 20 - 3.5, 2, 1])
    (info,) = list_series(tmp_path)
    assert info.shape == (8, 6) and len(info.files) == 1 and info.unreadable is None


def test_the_derived_file_is_of_the_same_kind_and_names_its_source_frames(tmp_path):
    source = enhanced([4.0, 0.0, 2.0], SpecificCharacterSet="ISO_IR 192", PatientName="Müller")
    source.add_new(0x00091001, "LO", "private")
    save(source, tmp_path / "a.dcm")
    scan = read_series(tmp_path / "a.dcm")
    (file,) = write_derived(scan, scan.values + 3, tmp_path / "out", description="brighter")
    again, ds = read_series(tmp_path / "out"), pydicom.dcmread(file)
    assert torch.equal(again.values, scan.values + 3)
    assert again.positions_mm == scan.positions_mm and np.array_equal(again.affine, scan.affine)
    assert ds.SOPClassUID == EnhancedCTImageStorage and ds.SOPInstanceUID != source.SOPInstanceUID
    assert ds.SeriesInstanceUID != "1.2.7" and ds.StudyInstanceUID == "1.2" and str(ds.PatientName) == "Müller"
    assert ds.ImageType[:2] == ["DERIVED", "PRIMARY"] and (0x0009, 0x1001) not in ds
    (shared,) = ds.SharedFunctionalGroupsSequence
    assert shared.CTImageFrameTypeSequence[0].FrameType[0] == "DERIVED"
    frames = ds.PerFrameFunctionalGroupsSequence
    for frame, number in zip(frames, (2, 3, 1), strict=True):
        (derivation,) = frame.DerivationImageSequence
        (image,) = derivation.SourceImageSequence
        assert derivation.DerivationDescription == "brighter"
        assert (image.ReferencedSOPInstanceUID, image.ReferencedFrameNumber) == (source.SOPInstanceUID, number)
    assert frames[0].PlanePositionSequence[0].ImagePositionPatient[2] == 0
    evidence = ds.SourceImageEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert evidence.SeriesInstanceUID == "1.2.7"
    assert evidence.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    # a derived one of the derived one names that one alone
    (file,) = write_derived(again, again.values, tmp_path / "third", description="as it is")
    third = pydicom.dcmread(file)
    (image,) = third.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence[0].SourceImageSequence
    assert (image.ReferencedSOPInstanceUID, image.ReferencedFrameNumber) == (ds.SOPInstanceUID, 2)


def test_padding_and_values_that_do_not_fit(tmp_path):
    stored = np.full((2, 20, 20), 1064, np.uint16)
    stored[:, :4] = 0
    ds = enhanced([2.0, 0.0], stored=stored)
    ds.add_new("PixelPaddingValue", "US", 0)
    scan = read_series(save(ds, tmp_path / "a.dcm"))
    assert scan.padding[:, :4].all() and not scan.padding[:, 4:].any()
    values = scan.values.clone()
    values[1, 9, 9] = -1500
    (file,) = write_derived(scan, values, tmp_path / "out", description="dark")
    again = read_series(file)
    assert torch.equal(again.padding, scan.padding) and torch.equal(again.values, values)
    assert pydicom.dcmread(file).PixelRepresentation == 1


@pytest.mark.parametrize(
    ("positions", "own", "says"),
    [
        ([0, 2, 4, 10, 12], lambda k: dict(StackID="12"[k > 2]), "StackID 1: 3 frames; StackID 2: 2 frames"),
        ([0, 2, 0, 2], lambda k: dict(TemporalPositionIndex=1 + (k > 1)), "TemporalPositionIndex 1: 2 frames"),
        ([0, 2, 0, 2], None, "frame 1 and .*frame 3 show different images at the same place"),
        ([0, 2, 4, 8], None, "4.00 to 8.00 mm"),
    ],
)
def test_several_volumes_in_one_file_are_refused_by_name(tmp_path, positions, own, says):
    save(enhanced([float(z) for z in positions], own=own), tmp_path / "a.dcm")
    with pytest.raises(ScanError, match=says):
        read_series(tmp_path)


def test_frames_taken_one_after_the_other_are_one_volume(tmp_path):
    save(enhanced([0.0, 2.0, 4.0], own=lambda k: dict(TemporalPositionIndex=k + 1)), tmp_path / "a.dcm")
    assert read_series(tmp_path).positions_mm == (0, 2, 4)


def test_two_orientations_parts_and_damage(tmp_path):
    ds = enhanced([0.0, 2.0])
    del ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    for frame, axes in zip(ds.PerFrameFunctionalGroupsSequence, ([1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]), strict=True):
        frame.PlaneOrientationSequence = group(ImageOrientationPatient=axes)
    with pytest.raises(ScanError, match="2 stacks or phases .*ImageOrientationPatient"):
        read_series(save(ds, tmp_path / "two.dcm"))
    part = enhanced([0.0], ConcatenationUID="1.2.9", InConcatenationNumber=2, InConcatenationTotalNumber=3)
    with pytest.raises(ScanError, match="part 2 of a concatenation"):
        read_series(save(part, tmp_path / "part.dcm"))
    ds = enhanced([0.0, 2.0])
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:1]
    with pytest.raises(ScanError, match="describes 1 of its 2 frames"):
        read_series(save(ds, tmp_path / "cut.dcm"))


def test_files_of_one_series_are_volumes_of_their_own(tmp_path):
    for name, z in (("a", 0.0), ("b", 100.0)):
        save(enhanced([z, z + 2], SOPInstanceUID=generate_uid()), tmp_path / f"{name}.dcm")
    assert [info.uid for info in list_series(tmp_path)] == ["1.2.7", "1.2.7#2"]
    assert read_series(tmp_path, series_uid="1.2.7#2").positions_mm == (100, 102)


def test_the_command_denoises_it(tmp_path):
    stored = np.random.default_rng(2).normal(1064, 20, (3, 32, 32)).round().astype(np.uint16)
    save(enhanced([4.0, 0.0, 2.0], stored=stored), Path(tmp_path, "in") / "a.dcm")
    (file,) = denoise_scan(tmp_path / "in", tmp_path / "out", method="gaussian", device="cpu")
    before, after = read_series(tmp_path / "in"), read_series(tmp_path / "out")
    assert after.values.std() < 0.5 * before.values.std() and after.positions_mm == before.positions_mm
    derivation = pydicom.dcmread(file).PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
    assert "method gaussian" in derivation.DerivationDescription
