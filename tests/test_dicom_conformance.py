"""What is written passes dciodvfy, of dicom3tools, with no error that its source does not have."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from ldctlib.data.dicom_read import read_series
from ldctlib.data.dicom_write import write_derived, write_synthetic
from tests.test_dicom import bundled, ct_slice, save
from tests.test_dicom_enhanced import enhanced, group

pytestmark = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: apt install dicom3tools)"
)

SOURCES = """
    CT_small.dcm MR_small.dcm MR_small_bigendian.dcm MR_small_implicit.dcm MR_small_RLE.dcm 693_J2KI.dcm
    J2K_pixelrep_mismatch.dcm examples_overlay.dcm
""".split()


def errors(file: Path) -> set[str]:
    done = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True, text=True, errors="replace")
    lines = (done.stdout + done.stderr).splitlines()
    assert any("Image" in line for line in lines), f"dciodvfy says nothing of {file}: {lines[:3]}"
    return {line for line in lines if line.startswith("Error")}


def conforming(ds: Dataset) -> Dataset:
    """With what every image has to say of patient, study and series."""
    ds.PatientName, ds.PatientBirthDate, ds.PatientSex, ds.ReferringPhysicianName = "A^B", "", "O", ""
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber, ds.SeriesNumber = "20260102", "030405", "1", "", 2
    ds.Manufacturer, ds.ManufacturerModelName, ds.DeviceSerialNumber, ds.SoftwareVersions = "M", "N", "1", "2"
    ds.PatientPosition, ds.PositionReferenceIndicator, ds.KVP, ds.AcquisitionNumber = "HFS", "", "120", 1
    ds.Laterality = ""
    ds.ContentDate, ds.ContentTime, ds.BurnedInAnnotation, ds.LossyImageCompression = "20260102", "030405", "NO", "00"
    return ds


def code(keyword: str, value: str, meaning: str) -> dict:
    return {keyword: group(CodeValue=value, CodingSchemeDesignator="SCT", CodeMeaning=meaning)}


def conforming_enhanced() -> Dataset:
    """An enhanced file with all that a scanner's own has to say."""
    when = dict(FrameReferenceDateTime="20260102030405", FrameAcquisitionDateTime="20260102030405")
    ds = conforming(enhanced([4.0, 0.0, 2.0], own=lambda k: when | dict(FrameAcquisitionDuration=500.0)))
    del ds.KVP, ds.AcquisitionNumber, ds.PositionReferenceIndicator, ds.Laterality
    ds.PositionReferenceIndicator, ds.AcquisitionDateTime, ds.AcquisitionDuration = "", "20260102030405", 1.0
    ds.PixelPresentation, ds.VolumetricProperties, ds.VolumeBasedCalculationTechnique = "MONOCHROME", "VOLUME", "NONE"
    ds.ContentQualification, ds.PresentationLUTShape, ds.AcquisitionContextSequence = "RESEARCH", "IDENTITY", []
    ds.MultienergyCTAcquisition = "NO"
    ds.DimensionOrganizationSequence = group(DimensionOrganizationUID="1.2.8")
    ds.DimensionIndexSequence = [
        group(DimensionIndexPointer=pointer, FunctionalGroupPointer=0x00209111, DimensionOrganizationUID="1.2.8")[0]
        for pointer in (0x00209056, 0x00209057)
    ]
    (shared,) = ds.SharedFunctionalGroupsSequence
    frame_type = shared.CTImageFrameTypeSequence[0]
    frame_type.PixelPresentation, frame_type.VolumetricProperties = "MONOCHROME", "VOLUME"
    frame_type.VolumeBasedCalculationTechnique = "NONE"
    region = code("AnatomicRegionSequence", "113345001", "Abdomen")
    shared.FrameAnatomySequence = group(FrameLaterality="U", **region)
    shared.IrradiationEventIdentificationSequence = group(IrradiationEventUID="1.2.6")
    shared.CTAcquisitionTypeSequence = group(AcquisitionType="SPIRAL", ConstantVolumeFlag="NO", FluoroscopyFlag="NO")
    shared.CTAcquisitionDetailsSequence = group(
        RotationDirection="CW",
        RevolutionTime=0.5,
        SingleCollimationWidth=0.6,
        TotalCollimationWidth=38.4,
        TableHeight=100.0,
        GantryDetectorTilt=0.0,
        DataCollectionDiameter=500.0,
    )
    shared.CTTableDynamicsSequence = group(TableSpeed=20.0, TableFeedPerRotation=10.0, SpiralPitchFactor=1.0)
    shared.CTPositionSequence = group(
        TablePosition=0.0, DataCollectionCenterPatient=[0.0, 0, 0], ReconstructionTargetCenterPatient=[0.0, 0, 0]
    )
    shared.CTGeometrySequence = group(DistanceSourceToDetector=1000.0, DistanceSourceToDataCollectionCenter=600.0)
    shared.CTReconstructionSequence = group(
        ReconstructionAlgorithm="FILTER_BACK_PROJ",
        ConvolutionKernel="D45f",
        ConvolutionKernelGroup="SOFT_TISSUE",
        ReconstructionFieldOfView=[4.8, 5.6],
        ReconstructionPixelSpacing=[0.7, 0.8],
        ImageFilter="NONE",
        ReconstructionAngle=360.0,
    )
    exposure = dict(ExposureTimeInms=500.0, XRayTubeCurrentInmA=200.0, ExposureInmAs=100.0)
    shared.CTExposureSequence = group(ExposureModulationType="NONE", CTDIvol=10.0, **exposure)
    shared.CTXRayDetailsSequence = group(KVP=120.0, FocalSpots=[1.0], FilterType="WEDGE", FilterMaterial="ALUMINUM")
    return ds


@pytest.mark.parametrize("name", SOURCES)
def test_derived_series_of_scanners_files(tmp_path, name):
    check(bundled(name), tmp_path)


def test_derived_series_of_plain_and_enhanced_ct(tmp_path):
    source = save(conforming(ct_slice(0, np.full((8, 8), 1064, np.int16))), tmp_path / "plain.dcm")
    assert not errors(source)
    check(source, tmp_path / "1")
    source = save(conforming_enhanced(), tmp_path / "enhanced.dcm")
    assert not errors(source)
    check(source, tmp_path / "2")


def check(source: Path, folder: Path) -> None:
    scan = read_series(source)
    (file,) = write_derived(scan, scan.values + 1, folder / "out", description="one brighter")
    new = errors(file) - errors(source)
    assert not new, "\n".join(sorted(new))


def test_synthetic_series(tmp_path):
    from torch import zeros

    options = dict(pixel_mm=0.8, slice_mm=3.0, description="noise")
    for file in write_synthetic(zeros(2, 16, 16), tmp_path / "out", **options):
        assert not errors(file)
