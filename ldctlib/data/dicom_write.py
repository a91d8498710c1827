"""Writing a processed scan as a derived DICOM series that an archive (PACS) accepts beside its source."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ldctlib
from ldctlib.data.dicom_enhanced import derive_frames, is_enhanced, rescales
from ldctlib.data.dicom_padding import declared_padding, lies_outside, padding_bits, undeclared_padding, wrap
from ldctlib.data.dicom_text import fitting, restore_text
from ldctlib.data.scan import DicomOrigin, Scan, check_values
from ldctlib.data.volume import instance_numbers
from ldctlib.errors import LdctError, ParameterError, ScanError
from ldctlib.files import is_taken, whole_folder

PADDING_MOVED = -32768
"""Where padding goes when the values need the number that the source used for it."""

STALE = """
    SmallestImagePixelValue LargestImagePixelValue SmallestPixelValueInSeries LargestPixelValueInSeries
    IconImageSequence DigitalSignaturesSequence MACParametersSequence DataSetTrailingPadding PixelDataProviderURL
    ExtendedOffsetTable ExtendedOffsetTableLengths SeriesDate SeriesTime
""".split()
"""Elements that describe the source's pixels, or are thumbnails and signatures of them."""


def write_derived(
    scan: Scan,
    values: torch.Tensor,
    folder: str | Path,
    *,
    description: str,
    series_description: str | None = None,
    derivation: tuple[str, str] | None = ("113087", "Smoothing"),
    begun: datetime.datetime | None = None,
) -> list[Path]:
    """Write ``values`` as a new DICOM series derived from ``scan``; all files or none.

    values : (D, H, W) or (D, 1, H, W) in the scan's scale; padded pixels are ignored
    folder : must not exist yet, or be empty; gets 0001.dcm, 0002.dcm, ... in slice order
    description : what was done, in words: goes to DerivationDescription
    series_description : what a reader sees in the list of series; default: the source's, then "description"
    derivation : DICOM's code and meaning of what was done, or None
    begun : when, with its zone: equal scans, descriptions and times then make equal files, UIDs included

    Pixels are rounded to the source's own rescale slope and intercept, so reading them back differs by half
    a stored unit at most, and padded pixels get their stored value back. Where values do not fit the source's
    bits, or meet its padding value, the whole series becomes signed 16 bit; what does not fit that either
    raises ScanError. The series has new SOP and series instance UIDs, keeps the study and frame of reference,
    names its source images and this software, and is uncompressed explicit little endian. Private elements
    are left out, because what they say of the source need not hold for a derived image.
    """
    from pydicom.uid import generate_uid

    if not isinstance(scan.origin, DicomOrigin):
        raise ScanError("this scan was not read from DICOM and has no headers to derive from: use write_nifti")
    if not description.strip():
        raise ParameterError("write_derived needs a description of what was done to the images")
    array = check_values(scan, values)
    told = None if begun is None else [begun.isoformat(), description, *map(str, scan.source_files)]

    def uid(part: str) -> str:
        return generate_uid(entropy_srcs=told and [*told, part])

    pixel, headers = _pixel_format(scan, array), scan.origin.headers
    shared = {
        "DerivationDescription": description.strip()[:1024],
        "SeriesDescription": (series_description or f"{scan.description} {description}".strip())[:64],
        "SeriesInstanceUID": uid("series"),
        # a study that was anonymised away still needs one UID for all of its images
        "StudyInstanceUID": headers[0].get("StudyInstanceUID") or uid("study"),
    }
    # the source's numbers where each image has its own, so that viewers keep its order
    numbers = instance_numbers(headers) or range(1, len(headers) + 1)
    folder = Path(folder)
    if is_taken(folder):
        raise ScanError(f"{folder} exists and is not an empty folder: name a new one for the derived series")
    try:
        with whole_folder(folder) as work:
            for index, (header, text) in enumerate(zip(headers, scan.origin.texts, strict=True)):
                own = {k: fitting(v, header) for k, v in shared.items()} | {"InstanceNumber": numbers[index]}
                dataset = _derive(header, own | {"SOPInstanceUID": uid(str(index))}, derivation, begun)
                if is_enhanced(header):
                    derive_frames(dataset, header, scan.origin.frames[index])
                restore_text(dataset, text, header, but=own)
                _set_pixels(dataset, _stored(scan, array, index, pixel), pixel)
                file = work / f"{index + 1:04d}.dcm"
                dataset.save_as(file, implicit_vr=False, little_endian=True, enforce_file_format=True)
    except LdctError:
        raise
    except Exception as error:  # pydicom raises many kinds while it writes a header that came in damaged
        raise ScanError(f"the derived series could not be written to {folder}: {error}") from error
    return sorted(folder.glob("*.dcm"))


def write_synthetic(
    values_hu: torch.Tensor,
    folder: str | Path,
    *,
    pixel_mm: float,
    slice_mm: float,
    description: str,
    window: tuple[float, float] = (40.0, 400.0),
) -> list[Path]:
    """Write images (D, H, W) in HU that no scanner took as a CT series that says so; all files or none.

    Patient, image type and descriptions say SYNTHETIC, ``description`` what made them. Slices lie ``slice_mm`` apart
    from feet to head, the first at 0.
    """
    from pydicom.dataset import Dataset
    from pydicom.uid import CTImageStorage, generate_uid

    depth, height, width = values_hu.shape
    study, frame, headers = generate_uid(), generate_uid(), []
    for k in range(depth):
        header = Dataset()
        header.SOPClassUID, header.Modality, header.ImageType = CTImageStorage, "CT", ["", "", "AXIAL", "SYNTHETIC"]
        header.PatientName, header.PatientID, header.PatientIdentityRemoved = "SYNTHETIC^CT", "SYNTHETIC", "YES"
        header.DeidentificationMethod, header.Laterality, header.AcquisitionNumber = "no patient was scanned", "", None
        header.PatientBirthDate = header.PatientSex = header.AccessionNumber = header.ReferringPhysicianName = ""
        header.StudyInstanceUID, header.FrameOfReferenceUID, header.StudyID = study, frame, "SYNTHETIC"
        header.StudyDescription, header.StudyDate, header.StudyTime = "SYNTHETIC: no patient was scanned", "", ""
        header.ImageComments = f"SYNTHETIC image made by a model, not by a scanner: {description}"[:10240]
        header.SeriesNumber, header.InstanceNumber, header.PatientPosition = 0, k + 1, "HFS"
        header.ImagePositionPatient = [-pixel_mm * (width - 1) / 2, -pixel_mm * (height - 1) / 2, slice_mm * k]
        header.ImageOrientationPatient, header.PixelSpacing = [1, 0, 0, 0, 1, 0], [pixel_mm, pixel_mm]
        header.SliceThickness, header.SliceLocation, header.KVP = slice_mm, slice_mm * k, None
        header.Rows, header.Columns, header.SamplesPerPixel = height, width, 1
        header.PhotometricInterpretation, header.PositionReferenceIndicator = "MONOCHROME2", ""
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
        header.RescaleSlope, header.RescaleIntercept, header.RescaleType, header.Manufacturer = 1, 0, "HU", "ldctlib"
        header.WindowCenter, header.WindowWidth = window
        headers.append(header)
    origin = DicomOrigin(headers, [(0,)] * depth, [np.empty(0)] * depth, [{}] * depth)
    scan = Scan(values_hu.float(), "HU", (slice_mm, pixel_mm, pixel_mm), origin=origin)
    said = dict(description=description, series_description=f"SYNTHETIC {description}"[:64], derivation=None)
    return write_derived(scan, values_hu, folder, **said)


@dataclass(frozen=True)
class _PixelFormat:
    allocated: int
    stored: int
    signed: bool
    padding_moved: bool = False

    @property
    def limits(self) -> tuple[int, int]:
        low = -(1 << self.stored - 1) if self.signed else 0
        return low, low + (1 << self.stored) - 1

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(f"<{'i' if self.signed else 'u'}{self.allocated // 8}")


def _pixel_format(scan: Scan, values: np.ndarray) -> _PixelFormat:
    """The narrowest format that holds all values and tells padding from them. Raises ScanError if there is none."""
    # formats can differ from slice to slice in what scanners write; a series of ours has one
    formats = {(h.BitsAllocated, h.BitsStored, bool(h.PixelRepresentation)) for h in scan.origin.headers}
    candidates = [_PixelFormat(*formats.pop())] if len(formats) == 1 else []
    candidates += [_PixelFormat(16, 16, True), _PixelFormat(16, 16, True, padding_moved=True)]
    for candidate in candidates:
        if all(_stored(scan, values, file, candidate) is not None for file in range(len(scan.origin.headers))):
            return candidate
    measured = values if scan.padding is None else values[~scan.padding.numpy()]
    span = f"values from {measured.min():.6g} to {measured.max():.6g}, padding included, do not fit 16 signed bits"
    slope, intercept = rescales(scan.origin.headers[0], scan.origin.frames[0])[0]
    rescale = f"rescale slope {slope:g} and intercept {intercept:g}"
    raise ScanError(f"{span} with the source's {rescale}: nothing was written. Clip them to the source's range first")


def _stored(scan: Scan, values: np.ndarray, file: int, pixel: _PixelFormat) -> np.ndarray | None:
    """Stored integers (F, H, W) of a file's frames; None where the format does not hold them, or where a reader would
    find other padding in them."""
    header, frames = scan.origin.headers[file], scan.origin.frames[file]
    first, (low, high) = sum(map(len, scan.origin.frames[:file])), pixel.limits
    bits = padding_bits(header, pixel.allocated, pixel.stored, pixel.signed)
    out, known = np.empty((len(frames), *values.shape[1:]), pixel.dtype), 0
    for k, (slope, intercept) in enumerate(rescales(header, frames)):  # one by one, for memory's sake
        stored = np.rint((values[first + k].astype(np.float64) - intercept) / slope)[None]
        padding = np.zeros(stored.shape, bool) if scan.padding is None else scan.padding[first + k].numpy()[None]
        count = int(padding.sum())
        kept = scan.origin.stored_padding[file][known : (known := known + count)]
        stored[padding] = PADDING_MOVED if pixel.padding_moved else kept
        if stored.min() < low or stored.max() > high:
            return None
        stored = stored.astype(np.int64)
        if pixel.padding_moved:
            found = stored == PADDING_MOVED
        else:
            found = declared_padding(stored, header, bits, pixel.signed)
            if scan.scale == "HU":
                values_hu = stored * slope + intercept
                found = lies_outside(found, values_hu) | undeclared_padding(stored, values_hu)
        if not np.array_equal(found, padding):
            return None
        out[k] = stored[0]
    return out


def _derive(
    header: Any, elements: dict[str, Any], derivation: tuple[str, str] | None, begun: datetime.datetime | None
) -> Any:
    """A copy of the source's header with these elements, made to say what the new image is."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

    dataset = _decoded_copy(header)
    dataset.remove_private_tags()
    for keyword in STALE:
        dataset.pop(keyword, None)
    _drop_embedded_overlays(dataset)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    source_class = header.get("SOPClassUID")
    dataset.SOPClassUID = source_class or (CTImageStorage if header.Modality == "CT" else MRImageStorage)
    dataset.SeriesNumber = _series_number(header)
    kind = list(header.get("ImageType") or [])
    plane = kind[2] if len(kind) > 2 else {"CT": "AXIAL", "MR": "OTHER"}[header.Modality]
    dataset.ImageType = ["DERIVED", "SECONDARY", plane, *kind[3:4]]
    if derivation is not None:
        dataset.DerivationCodeSequence = [_code(*derivation)]
    if header.get("SOPInstanceUID"):
        dataset.SourceImageSequence = [_reference(dataset.SOPClassUID, header.SOPInstanceUID)]
    else:
        dataset.pop("SourceImageSequence", None)  # names the source's own sources, which are not ours
    now = _time(header, begun)
    dataset.InstanceCreationDate = dataset.ContentDate = now[:8]
    dataset.InstanceCreationTime = dataset.ContentTime = now[8:]
    before = header.get("ContributingEquipmentSequence") or []
    dataset.ContributingEquipmentSequence = [*before, _equipment(dataset.DerivationDescription, now)]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _series_number(header: Any) -> int:
    """A thousand above the source's, or below it at the end of DICOM's integers; 1000 where it has none."""
    try:
        number = int(header.get("SeriesNumber") or 0)
    except ValueError:
        return 1000
    above = number + 1000
    return above if abs(above) < 1 << 31 else max(number - 1000, 1000) if abs(number) < 1 << 31 else 1000


def _decoded_copy(header: Any) -> Any:
    """A copy that no longer knows how its source was encoded, so that it can be written otherwise."""
    from copy import deepcopy

    from pydicom.dataset import Dataset

    source = deepcopy(header)
    source.walk(lambda _, element: None)  # visiting an element decodes its bytes
    big_endian = source.original_encoding[1] is False
    # words inside an opaque OW element stay in the source's byte order: overlays would come out scrambled
    return Dataset({element.tag: element for element in source if not (big_endian and element.VR == "OW")})


def _set_pixels(dataset: Any, stored: np.ndarray, pixel: _PixelFormat) -> None:
    dataset.BitsAllocated, dataset.BitsStored = pixel.allocated, pixel.stored
    dataset.HighBit, dataset.PixelRepresentation = pixel.stored - 1, int(pixel.signed)
    if dataset.get("PixelPaddingValue") is not None or pixel.padding_moved:
        vr = "SS" if pixel.signed else "US"
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
            if pixel.padding_moved and keyword in dataset:
                del dataset[keyword]
            elif dataset.get(keyword) is not None:
                value = wrap(int(dataset[keyword].value), 16, pixel.signed)
                del dataset[keyword]
                dataset.add_new(keyword, vr, value)
        if pixel.padding_moved:
            dataset.add_new("PixelPaddingValue", "SS", PADDING_MOVED)
    data = stored.tobytes()
    dataset.add_new("PixelData", "OB" if pixel.allocated == 8 else "OW", data + b"\0" if len(data) % 2 else data)


def _drop_embedded_overlays(dataset: Any) -> None:
    """Overlays kept in unused bits of the pixels cannot survive new pixels; those with own data stay."""
    for group in {tag.group for tag in dataset.keys() if 0x6000 <= tag.group <= 0x60FF}:
        if (group, 0x3000) not in dataset:
            for tag in [tag for tag in dataset.keys() if tag.group == group]:
                del dataset[tag]


def _code(value: str, meaning: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _reference(sop_class: str, sop_instance: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
    item.SpatialLocationsPreserved = "YES"
    item.PurposeOfReferenceCodeSequence = [_code("121322", "Source image for image processing operation")]
    return item


def _equipment(description: str, now: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [_code("109102", "Processing Equipment")]
    item.Manufacturer = item.ManufacturerModelName = "ldctlib"
    item.SoftwareVersions = str(getattr(ldctlib, "__version__", "unknown"))
    item.ContributionDateTime = now
    item.ContributionDescription = description
    return item


def _time(header: Any, begun: datetime.datetime | None) -> str:
    """YYYYMMDDHHMMSS in the zone that the source's own times are in; now unless told."""
    offset = str(header.get("TimezoneOffsetFromUTC") or "")
    zone = None
    if len(offset) == 5 and offset[0] in "+-" and offset[1:].isdigit():
        minutes = int(offset[1:3]) * 60 + int(offset[3:])
        zone = datetime.timezone(datetime.timedelta(minutes=-minutes if offset[0] == "-" else minutes))
    return (datetime.datetime.now(zone) if begun is None else begun.astimezone(zone)).strftime("%Y%m%d%H%M%S")
