"""Reading CT and MR series from DICOM files, with their traps: padding, scouts, order, gaps, compression."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldctlib.data.dicom_enhanced import frame_headers, is_enhanced
from ldctlib.data.dicom_open import GUESSED, is_dicom, open_dicom
from ldctlib.data.dicom_padding import (
    UNDECLARED_PADDING_HU,
    declared_padding,
    lies_outside,
    padding_bits,
    padding_doubts,
    undeclared_padding,
)
from ldctlib.data.dicom_text import exact_text
from ldctlib.data.nifti import is_volume_file, read_nifti, read_npy
from ldctlib.data.scan import Scan
from ldctlib.data.volume import Piece, assemble, own_pages
from ldctlib.errors import LdctError, MissingDependency, ScanError

LARGEST_FILE_PIXELS = 1 << 28
"""A header that asks for more pixels than this in one file is damaged."""

NOT_DATA = {"thumbs.db", "desktop.ini", "dicomdir", "__macosx", "lost+found", "$recycle.bin"}
"""What systems and viewers leave in folders, in lower case; names that begin with a dot are passed over, too."""

PLUGINS = {"JPEG 2000": "pylibjpeg and pylibjpeg-openjpeg", "JPEG-LS": "pyjpegls", "JPEG": "python-gdcm"}
"""What decodes a compressed transfer syntax whose name begins so; first match."""


@dataclass(frozen=True)
class SeriesInfo:
    """One series in a folder: what ``read_series(folder, series_uid=info.uid)`` would read."""

    uid: str  # SeriesInstanceUID; "#2", "#3", ... where one series holds several orientations or shapes
    modality: str
    description: str
    patient_id: str
    shape: tuple[int, int]  # rows, columns
    files: tuple[Path, ...]
    unreadable: str | None  # why this is no CT or MR image series, or None

    def __str__(self) -> str:
        what = self.unreadable or f"{self.modality} {self.shape[0]}x{self.shape[1]}"
        name = f' "{self.description}"' if self.description else ""
        return f"{self.uid or '(no series UID)'}: {len(self.files)} file(s), {what}{name}"


def list_series(path: str | Path | Sequence[str | Path]) -> list[SeriesInfo]:
    """Every DICOM series in a folder and its subfolders (or among some files), without reading pixels.

    Files that are not DICOM are passed over; a DICOM file that cannot be parsed raises ScanError, since a
    series without it would be wrong in silence.
    """
    groups: dict[tuple, list[tuple[Path, Any]]] = {}
    planes: dict[tuple, list[list[float]]] = {}
    for file in _dicom_files(path):
        with _reading(file):
            header = open_dicom(file, stop_before_pixels=True, specific_tags=[*_LISTED, _DETECTOR_ROWS])
            key = _group(file, header)
            place = _place(_plane(header), planes.setdefault(key, []))
            groups.setdefault((*key, place), []).append((file, header))
    found, seen = [], {}
    for key in sorted(groups, key=str):
        uid, unreadable, *shape = key[:4]
        seen[uid] = seen.get(uid, 0) + 1
        name = uid if seen[uid] == 1 else f"{uid}#{seen[uid]}"
        files, headers = zip(*groups[key], strict=True)
        with _reading(files[0]):
            said = (str(headers[0].get(keyword) or "") for keyword in ("Modality", "SeriesDescription", "PatientID"))
            found.append(SeriesInfo(name, *said, tuple(shape), files, unreadable or None))
    return found


def read_series(
    path: str | Path | Sequence[str | Path],
    *,
    series_uid: str | None = None,
    allow_gaps: bool = False,
    scale: str | None = None,
) -> Scan:
    """Read one CT or MR series: a file, a folder with its subfolders, or a list of files.

    CT comes in HU (stored x RescaleSlope + RescaleIntercept of each file, padding masked before), everything
    else with scale "arbitrary". Slices are ordered by their position along the normal of the image plane.
    Scouts and files that are no CT or MR images are left aside; if more than one series remains,
    ``series_uid`` says which (see :func:`list_series`).

    A missing, uneven or unknown step between slices is an error, because volumes and 3-D filters would be wrong in
    silence; ``allow_gaps=True`` reads them and says so in ``Scan.notes`` (slices without any position then come in
    the order of their instance numbers). Copies of the same slice are dropped with a note; different images at one
    place are an error. A tilted gantry is noted.

    ``scale="HU"`` takes CT for HU whose RescaleType says otherwise, and notes it.

    Raises ScanError (what was found, and where), MissingDependency (which decoder to install).
    """
    infos = list_series(path)
    if not infos:
        raise ScanError(f"{_name(path)} holds no DICOM file")
    info = _choose(infos, series_uid, path)
    pieces = [piece for file in info.files for piece in _read_pieces(file, scale)]
    with _reading(info.files[0]):
        scan = assemble(pieces, allow_gaps=allow_gaps)
    if scale == "HU" and not _says_hu(header := pieces[0].header):
        scan.notes += (f"taken for HU, though its RescaleType is {header.RescaleType}",)
    return scan


def read_scan(path: str | Path, *, scale: str | None = None, **dicom_options: Any) -> Scan:
    """Read a DICOM file or folder, a NIfTI file (.nii, .nii.gz) or a NumPy file (.npy).

    ``scale`` says what the numbers of a NIfTI or NumPy file are, since they do not say it themselves ("HU" if not
    given), and those of CT in DICOM that says it badly.
    """
    path = Path(path)
    if is_volume_file(path):
        return (read_npy if path.suffix.lower() == ".npy" else read_nifti)(path, scale=scale or "HU")
    return read_series(path, scale=scale, **dicom_options)


def pydicom_ct_slice() -> Scan:
    """The one real CT slice that ships: CT_small.dcm in pydicom's wheel, 128 x 128, GE, contrast-enhanced."""
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm", download=False)
    if path is None:
        raise ScanError("pydicom's wheel comes without CT_small.dcm here: reinstall pydicom")
    return read_series(path)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Whatever a damaged file makes pydicom raise becomes a ScanError; its warnings are of no use to us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except LdctError:
            raise
        except Exception as error:  # parsers and decoders raise nearly every kind on damaged bytes
            reason = " ".join(str(error).split())[:300]
            kind = type(error).__name__
            raise ScanError(f"{file} cannot be read, it seems damaged ({kind}: {reason})") from error


def is_data(path: Path) -> bool:
    """Whether a file or folder may belong to a scan, by its name: not hidden, not :data:`NOT_DATA`."""
    return not path.name.startswith(".") and path.name.lower() not in NOT_DATA


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders that may be data, sorted; ScanError where one cannot be opened."""

    def refuse(error: OSError) -> None:
        raise ScanError(f"{error.filename} cannot be opened ({error.strerror}): its scans would be missing") from error

    found, seen = [], set()
    for here, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        home = os.path.realpath(here)
        folders[:] = [] if home in seen else sorted(name for name in folders if is_data(Path(name)))
        if home not in seen:  # a link may lead back to a folder above it
            files = [file for name in names if is_data(file := Path(here, name))]
            found += [file for file in files if file.is_file() or file.is_symlink()]  # a dead link cannot be opened
        seen.add(home)
    return sorted(found)


def _dicom_files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    if not isinstance(path, str | Path):
        return [file for one in path if is_data(Path(one)) for file in _dicom_files(one)]
    path = Path(path)
    if os.path.isdir(path):
        return [file for file in files_below(path) if is_dicom(file)]
    if not os.path.isfile(path):
        lost = "does not exist, or lies in a folder that may not be read"
        raise ScanError(f"{path} {lost}: give a DICOM file or a folder of them")
    if not is_dicom(path):
        raise ScanError(f"{path} is not a DICOM file (no DICM mark at byte 128, and no data set without it)")
    return [path]


_LISTED = """
    SOPClassUID SeriesInstanceUID Modality SeriesDescription PatientID Rows Columns ImageType ImageOrientationPatient
    PixelSpacing SamplesPerPixel PhotometricInterpretation StudyInstanceUID SeriesNumber ConvolutionKernel
    ConcatenationUID InConcatenationNumber InConcatenationTotalNumber
""".split()
_DETECTOR_ROWS = 0x70291010  # of DICOM-CT-PD


def _group(file: Path, header: Any) -> tuple:
    """Files with the same key, in one plane, can be one volume. Anonymisers may take the series' UID away, or give all
    the same."""
    shape = (int(header.get(keyword) or 0) for keyword in ("Rows", "Columns"))
    uid = str(header.get("SeriesInstanceUID") or "")
    others = () if uid else ("StudyInstanceUID", "SeriesNumber", "SeriesDescription", "ConvolutionKernel")
    told = (str(header.get(keyword) or "") for keyword in ("PatientID", *others))
    return uid, _unreadable(header) or "", *shape, *told, str(file) if is_enhanced(header) else ""


SAME_PLANE = 1e-3
"""Direction cosines and pixel spacings (of 1) that differ by less are one plane's, written with other roundings."""


def _plane(header: Any) -> list[float]:
    """Orientation, and logarithms of the pixel spacing, so that one tolerance serves both."""
    spacing = [float(step) for step in header.get("PixelSpacing") or ()]
    cosines = [float(cosine) for cosine in header.get("ImageOrientationPatient") or ()]
    return [*cosines, *(math.log(step) if step > 0 else math.inf for step in spacing)]


def _place(plane: list[float], known: list[list[float]]) -> int:
    """The number of a known plane that is as good as this one, or of a new one."""
    for number, other in enumerate(known):
        if len(other) == len(plane) and np.allclose(plane, other, rtol=0, atol=SAME_PLANE, equal_nan=True):
            return number
    known.append(plane)
    return len(known) - 1


def _unreadable(header: Any) -> str | None:
    """Why this is not a plain CT or MR image, in a few words; None if it is one."""
    from pydicom.uid import CTImageStorage, MRImageStorage

    if is_enhanced(header) and int(header.get("InConcatenationTotalNumber") or 2) > 1 and "ConcatenationUID" in header:
        return f"part {header.get('InConcatenationNumber')} of a concatenation: join its parts to one file first"
    sop_class, modality = header.get("SOPClassUID") or "", str(header.get("Modality") or "")
    # anonymised files may have lost their SOP class; their modality then has to do
    if not (sop_class in (CTImageStorage, MRImageStorage, "") or is_enhanced(header)) or modality not in ("CT", "MR"):
        # a DICOMDIR names its class in the file's meta header only
        sop_class = sop_class or header.file_meta.get("MediaStorageSOPClassUID")
        name = getattr(sop_class, "name", "") or "a file without SOP class"
        hint = " of one frame a file: convert it to that first" if "Enhanced" in name else ""
        return f"{name} ({modality or 'no modality'}), not a CT or MR image{hint}"
    if _DETECTOR_ROWS in header:
        return "raw projections (DICOM-CT-PD), not an image"
    if not header.get("Rows") or not header.get("Columns"):
        return "no image in the file"
    photometric = str(header.get("PhotometricInterpretation"))
    if header.get("SamplesPerPixel", 1) != 1 or not photometric.startswith("MONO"):
        return f"a colour image ({photometric})"
    if "LOCALIZER" in (header.get("ImageType") or []):
        return "a localizer (scout)"
    return None


def _choose(infos: list[SeriesInfo], series_uid: str | None, path: Any) -> SeriesInfo:
    listing = "\n  ".join(map(str, infos))
    if series_uid is not None:
        infos = [info for info in infos if info.uid == series_uid]
        if not infos:
            raise ScanError(f"{_name(path)} has no series {series_uid}. It holds:\n  {listing}")
    readable = [info for info in infos if info.unreadable is None]
    if len(readable) == 1:
        return readable[0]
    if readable:
        raise ScanError(f"{_name(path)} holds several series; choose one with series_uid=:\n  {listing}")
    if len(infos) == 1 and len(infos[0].files) == 1:
        raise ScanError(f"{infos[0].files[0]} is {infos[0].unreadable}")
    raise ScanError(f"{_name(path)} holds no CT or MR image:\n  {listing}")


def _name(path: Any) -> str:
    return str(path) if isinstance(path, str | Path) else f"this list of {len(path)} files"


def _read_pieces(file: Path, as_scale: str | None) -> list[Piece]:
    """The images of a file: one, however many frames it has; of an enhanced file each frame."""
    with _reading(file):
        header = open_dicom(file)
        text = exact_text(header)
        if reason := _unreadable(header):
            raise ScanError(f"{file} is {reason}")
        stored = _decode(file, header)
        for keyword in ("PixelData", "DataSetTrailingPadding"):
            header.pop(keyword, None)
        if not is_enhanced(header):
            return [_piece(file, header, stored, as_scale, text)]
        frames = enumerate(frame_headers(file, header))
        return [_piece(file, frame, stored[k : k + 1], as_scale, text, whole=header) for k, frame in frames]


def _piece(
    file: Path, header: Any, stored: np.ndarray, as_scale: str | None, text: dict[int, bytes], whole: Any = None
) -> Piece:
    allocated, used = int(header.BitsAllocated), int(header.BitsStored)
    signed = bool(header.PixelRepresentation)
    notes = (GUESSED,) if getattr(whole or header, "guessed", False) else ()
    if not 0 < used <= allocated or int(header.get("HighBit", used - 1)) != used - 1:
        raise ScanError(f"{file} has {used} of {allocated} bits, up to bit {header.get('HighBit')}: not supported")
    slope, intercept, scale = _rescale(file, header, as_scale)
    # bits above the stored ones may hold overlays, or nothing that means anything
    shift = stored.dtype.itemsize * 8 - used
    meant = (stored << shift) >> shift if shift else stored
    if (bits := padding_bits(header, allocated, used, signed)) == used:
        stored = meant
    padding = declared_padding(stored, header, bits, signed)
    lossy = header.get("LossyImageCompression") == "01"
    smeared = lossy and (whole or header).file_meta.TransferSyntaxUID.is_encapsulated
    if scale == "HU":
        values = meant * slope + intercept
        outside = lies_outside(padding, values)
        notes += padding_doubts(padding & ~outside, outside, values)
        # compression with loss smears padding over neighbouring values, so that no single one marks it
        padding = outside | (values < UNDECLARED_PADDING_HU if smeared else undeclared_padding(meant, values))
    origin, axes = _geometry(file, header)
    mask = own_pages(padding) if padding.any() else None
    measured = (own_pages(meant) if whole is None else meant, slope, intercept, mask, stored[padding])
    return Piece(file, header, *measured, scale, origin, axes, lossy, text, notes, whole)


def _decode(file: Path, header: Any) -> np.ndarray:
    """Stored integers (F, H, W), bits beyond BitsStored untouched."""
    from pydicom.pixels import get_decoder, pixel_array

    if "PixelData" not in header:
        raise ScanError(f"{file} has no PixelData: it is a header only, or cut off")
    syntax = header.file_meta.get("TransferSyntaxUID")
    if not syntax:
        raise ScanError(f"{file} does not say its transfer syntax, so its pixels cannot be decoded")
    if getattr(header, "guessed", False) and header.PixelData[:4] == b"\xfe\xff\x00\xe0":
        raise ScanError(f"{file} has no meta header, and its pixels are compressed in a way that it does not say")
    frames = int(header.get("NumberOfFrames") or 1)
    if not 0 < header.Rows * header.Columns * frames <= LARGEST_FILE_PIXELS:
        raise ScanError(f"{file} claims {frames} x {header.Rows} x {header.Columns} pixels: it seems damaged")
    if syntax.is_compressed and syntax.is_encapsulated and not get_decoder(syntax).is_available:
        plugin = next((what for start, what in PLUGINS.items() if syntax.name.startswith(start)), "pylibjpeg")
        needs = f'{plugin} (for most compressed files: pip install "ldctlib[compressed]")'
        raise MissingDependency(f"{file} is compressed as {syntax.name}; decoding that needs {needs}")
    return pixel_array(header, correct_unused_bits=False).reshape(frames, int(header.Rows), int(header.Columns))


def _rescale(file: Path, header: Any, scale: str | None) -> tuple[float, float, str]:
    """Slope, intercept, and what they lead to: ``scale``, or "HU" for CT unless it says otherwise."""
    if header.get("ModalityLUTSequence"):
        raise ScanError(f"{file} maps its pixels through a lookup table, not a rescale: its scale is unknown")
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if header.Modality == "CT" and (slope is None or intercept is None):
        raise ScanError(f"{file} is CT without RescaleSlope and RescaleIntercept: its HU are unknown")
    slope = 1.0 if slope is None else float(slope)
    intercept = 0.0 if intercept is None else float(intercept)
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope != 0):
        raise ScanError(f"{file} has RescaleSlope {slope} and RescaleIntercept {intercept}: it seems damaged")
    if scale == "HU" and header.Modality != "CT":
        raise ScanError(f"{file} is {header.Modality}, whose values are never HU: leave scale= out")
    return slope, intercept, scale or ("HU" if header.Modality == "CT" and _says_hu(header) else "arbitrary")


def _says_hu(header: Any) -> bool:
    """Whether RescaleType is HU in any spelling, or missing; "US" is unspecified and "HU_MOD" modified."""
    told = str(header.get("RescaleType") or "").strip().lower()
    return told in ("", "hu") or told.startswith(("hounsf", "houndsf"))


def _geometry(file: Path, header: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Position of the first pixel's centre and the image's axes, or None where the file lacks them."""
    position, orientation = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    if not position or not orientation:
        return None, None
    origin = np.array(position, np.float64)
    along_row, down_column = np.array(orientation, np.float64).reshape(2, 3)
    lengths = np.array([along_row @ along_row, down_column @ down_column])
    if origin.shape != (3,) or not np.isfinite(origin).all():
        raise ScanError(f"{file} has ImagePositionPatient {position}: it seems damaged")
    if not np.allclose(lengths, 1, atol=1e-2) or not abs(along_row @ down_column) < 1e-2:
        raise ScanError(f"{file} has ImageOrientationPatient {orientation}, which is no pair of axes")
    return origin, np.stack([along_row, down_column, np.cross(along_row, down_column)])
