"""From single DICOM images to one volume: order, duplicates, gaps, tilt, spacing, affine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np

from ldctlib.data.scan import DicomOrigin, Scan, fill_padding
from ldctlib.errors import ScanError

GAP = 0.1
"""A step between slices may differ from the median step by this share of it."""
SAME_POSITION_MM = 0.1
"""Slices that are nearer to each other than this lie at one place."""
ROUNDING_MM = 0.1
"""Some exports round positions so."""

PHASES = """
    TemporalPositionIndex AcquisitionNumber EchoTime EchoNumbers TriggerTime TemporalPositionIdentifier DiffusionBValue
    AcquisitionTime ContentTime
""".split()
"""What may differ between two images at the same place, most telling first."""


@dataclass
class Piece:
    """One file, or a frame of an enhanced one: its pixels as they are stored, since a long series in physical values
    takes twice the memory; its padding, its header without pixels."""

    file: Path
    header: Any
    stored: np.ndarray  # integers (F, H, W)
    slope: float
    intercept: float
    padding: np.ndarray | None  # bool (F, H, W) in :func:`own_pages`, or None where no pixel is padding
    stored_padding: np.ndarray  # integers, of the padded pixels
    scale: str
    origin_mm: np.ndarray | None  # (3,) ImagePositionPatient
    axes: np.ndarray | None  # (3, 3) unit vectors: along a row, down a column, normal
    lossy: bool  # compressed with loss at some time
    text: dict[int, bytes]  # of the header, what is no ASCII
    notes: tuple[str, ...] = ()
    whole: Any = None  # the header of the enhanced file that this is a frame of

    @property
    def name(self) -> str:
        return str(self.file) if self.whole is None else f"{self.file}, frame {self.header.InstanceNumber}"

    def values(self) -> np.ndarray:
        """float32 (F, H, W) in the piece's scale."""
        return (self.stored * self.slope + self.intercept).astype(np.float32)

    @property
    def position_mm(self) -> float:
        """Along the normal."""
        return float(self.axes[2] @ self.origin_mm)


def assemble(pieces: list[Piece], *, allow_gaps: bool) -> Scan:
    """One scan from the files of one series; raises ScanError where they do not make a volume."""
    notes: list[str] = []
    for keyword in ("PixelSpacing", "ImageOrientationPatient"):
        said = sorted({tuple(map(float, piece.header.get(keyword) or ())) for piece in pieces})
        if len(said) > 1 and all(said):
            notes.append(f"{keyword} differs in its last digits, {said[0]} and {said[-1]}: the first slice's holds")
    if len(pieces) > 1:
        pieces = _in_order(pieces, allow_gaps, notes)
    first = pieces[0]
    if first.lossy:
        notes.append("the source was compressed with loss")
    step = _step(pieces, allow_gaps, notes)
    tilt = _tilt_deg(first, step)
    if tilt > 0.1:
        notes.append(f"the gantry was tilted by {tilt:.1f} degrees: the stack of slices is sheared")
    spacing = _spacing(first, step, notes)
    notes += dict.fromkeys(note for piece in pieces for note in piece.notes)
    headers, frames = [piece.header for piece in pieces], [len(piece.stored) for piece in pieces]
    placed = set(frames) == {1} and all(piece.axes is not None for piece in pieces)
    kernel = first.header.get("ConvolutionKernel") or []
    origin = _origin(pieces)
    values, padding = _joined(pieces)
    return Scan(
        **fill_padding(values, padding, first.scale),
        spacing_mm=spacing,
        modality=str(first.header.Modality),
        patient_id=str(first.header.get("PatientID") or ""),
        description=str(first.header.get("SeriesDescription") or ""),
        thickness_mm=_positive(first.header.get("SliceThickness")),
        kernel="/".join(map(str, [kernel] if isinstance(kernel, str) else kernel)),
        positions_mm=tuple(piece.position_mm for piece in pieces) if placed else None,
        instance_numbers=instance_numbers(headers) if set(frames) == {1} else None,
        affine=_affine(first, step, spacing),
        tilt_deg=tilt,
        notes=tuple(notes),
        source_files=tuple(dict.fromkeys(piece.file for piece in pieces)),
        origin=origin,
    )


def _origin(pieces: list[Piece]) -> DicomOrigin:
    """What is needed to write the pieces back; frames of one enhanced file are one file again."""
    stored, first = [piece.stored_padding for piece in pieces], pieces[0]
    if first.whole is not None:
        order = tuple(int(piece.header.InstanceNumber) - 1 for piece in pieces)
        return DicomOrigin([first.whole], [order], [np.concatenate(stored)], [first.text])
    headers, texts = [piece.header for piece in pieces], [piece.text for piece in pieces]
    return DicomOrigin(headers, [tuple(range(len(piece.stored))) for piece in pieces], stored, texts)


def own_pages(array: np.ndarray) -> np.ndarray:
    """A copy in pages of its own, which go back to the system with it: the heap keeps what thousands of small arrays
    took."""
    if not array.size:
        return array
    out = np.frombuffer(mmap(-1, array.nbytes), array.dtype).reshape(array.shape)
    out[:] = array
    return out


def _joined(pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """Values and padding of all pieces, which give theirs up: of a long series memory holds one copy."""
    shape = (sum(len(piece.stored) for piece in pieces), *pieces[0].stored.shape[1:])
    values, padding, first = np.empty(shape, np.float32), np.zeros(shape, bool), 0
    for piece in pieces:
        part = slice(first, first := first + len(piece.stored))
        values[part] = piece.values()
        if piece.padding is not None:  # else those pages are never touched
            padding[part] = piece.padding
        piece.stored = piece.padding = None
    return values, padding


def _in_order(pieces: list[Piece], allow_gaps: bool, notes: list[str]) -> list[Piece]:
    """Sorted along the normal, copies dropped; without any positions by instance number, where ``allow_gaps``."""
    placed = any(piece.axes is not None for piece in pieces)
    for piece in pieces:
        if len(piece.stored) > 1:
            raise ScanError(f"{piece.file} has several frames but is not alone in its series: read it by itself")
        if piece.axes is None and (placed or not allow_gaps):
            lacks = f"{piece.name} lacks ImagePositionPatient or ImageOrientationPatient"
            raise ScanError(f"{lacks}, so its place is unknown: read it by itself, or leave it out")
        if piece.scale != pieces[0].scale:
            raise ScanError(f"{piece.file} is in other units than {pieces[0].file}: this series mixes them")
    if not placed:
        numbers = instance_numbers([piece.header for piece in pieces])
        notes.append(f"no file has a position: slices are in the order of their {'numbers' if numbers else 'names'}")
        by_name = sorted(pieces, key=lambda piece: piece.file.name)
        return [pieces[i] for i in np.argsort(numbers)] if numbers else by_name
    for piece in pieces:  # one normal for all: at half a metre from the origin its fourth digit is half a slice
        piece.axes = pieces[0].axes
    kept: list[Piece] = []
    dropped = 0
    # the file's name makes the choice among copies the same on every machine
    for piece in sorted(pieces, key=lambda piece: (round(piece.position_mm, 3), piece.file.name)):
        if kept and abs(piece.position_mm - kept[-1].position_mm) < SAME_POSITION_MM:
            if not np.array_equal(piece.values(), kept[-1].values()):
                raise ScanError(_clash(kept[-1], piece))
            dropped += 1
        else:
            kept.append(piece)
    if dropped:
        notes.append(f"{dropped} file(s) that repeat another slice were left out")
    return kept


def _clash(one: Piece, other: Piece) -> str:
    differ = [key for key in PHASES if one.header.get(key) != other.header.get(key)]
    hint = f"; they differ in {', '.join(differ)}" if differ else ""
    what = f"{one.name} and {other.name} show different images at the same place ({one.position_mm:.2f} mm)"
    return f"{what}{hint}. Put one phase or echo into a {'folder' if one.whole is None else 'file'} of its own"


def _step(pieces: list[Piece], allow_gaps: bool, notes: list[str]) -> np.ndarray | None:
    """The vector from one slice to the next; None for a single slice, frames in time, or scattered slices."""
    if len(pieces) < 2 or pieces[0].axes is None:
        if len(pieces[0].stored) > 1:
            notes.append("a multi-frame file: its frames are taken as they come, as slices or moments")
        return None
    at = np.array([piece.position_mm for piece in pieces])
    along = np.diff(at)
    median = float(np.median(along))
    uneven = np.abs(along - median) > GAP * median
    whole = (pieces[-1].origin_mm - pieces[0].origin_mm) / len(along)
    if _rounded_evenly(pieces, at):
        if uneven.any():
            notes.append("positions are rounded to 0.1 mm: the spacing is that of the whole stack")
        return whole
    if uneven.any():
        where = ", ".join(f"{at[i]:.2f} to {at[i + 1]:.2f} mm" for i in np.flatnonzero(uneven)[:3])
        message = (
            f"{uneven.sum()} of {len(along)} steps between slices are not the usual {median:.3g} mm "
            f"({where}{', ...' if uneven.sum() > 3 else ''}): slices are missing or unevenly spaced"
        )
        if not allow_gaps:
            raise ScanError(f"{pieces[0].file.parent}: {message}. If that is meant, read with allow_gaps=True")
        notes.append(message)
        if uneven.sum() > len(along) / 2:  # a sample of a series: its steps say nothing of the slices' spacing
            return None
        steps = np.diff([piece.origin_mm for piece in pieces], axis=0)
        return steps[int(np.argmin(np.abs(along - median)))]
    return whole  # what rounding does to one step is shared by all


def _rounded_evenly(pieces: list[Piece], at: np.ndarray) -> bool:
    """Whether positions, in mm along the normal, are those of an even stack, each coordinate rounded to 0.1 mm."""
    units = np.array([piece.origin_mm for piece in pieces]) / ROUNDING_MM
    even = np.linspace(at[0], at[-1], len(at))
    # the ends are off by half a rounding each, and so is what lies between
    most = ROUNDING_MM * np.abs(pieces[0].axes[2]).sum() + 1e-3
    coarse = np.abs(units - np.rint(units)).max() < 1e-3
    return bool(coarse and even[1] - even[0] > 4 * most and np.abs(at - even).max() < most)


def _tilt_deg(first: Piece, step: np.ndarray | None) -> float:
    """The header's gantry tilt, or the angle between the stack and the normal if that is larger."""
    tilt = abs(float(first.header.get("GantryDetectorTilt") or 0.0))
    if step is None:
        return tilt
    return max(tilt, math.degrees(math.acos(min(1.0, abs(first.axes[2] @ step) / np.linalg.norm(step)))))


def _spacing(first: Piece, step: np.ndarray | None, notes: list[str]) -> tuple[float, float, float] | None:
    in_plane = first.header.get("PixelSpacing")
    if not in_plane:
        if first.header.Modality == "CT":
            raise ScanError(f"{first.file} is CT without PixelSpacing: it seems damaged")
        notes.append("the file does not say its pixel spacing")
        return None
    y, x = (float(value) for value in in_plane)
    if not (math.isfinite(y) and math.isfinite(x) and y > 0 and x > 0):
        raise ScanError(f"{first.file} has PixelSpacing {in_plane}: it seems damaged")
    if step is not None:
        return float(abs(first.axes[2] @ step)), y, x
    z = _positive(first.header.get("SpacingBetweenSlices")) or _positive(first.header.get("SliceThickness"))
    return z or math.nan, y, x


def _positive(value: Any) -> float | None:
    number = float(value) if value not in (None, "") else math.nan
    return number if math.isfinite(number) and number > 0 else None


def instance_numbers(headers: list[Any]) -> tuple[int, ...] | None:
    """The images' numbers, where each has one and all are different."""
    numbers = [header.get("InstanceNumber") for header in headers]
    known = len(set(numbers)) == len(numbers) and None not in numbers
    return tuple(map(int, numbers)) if known else None


def _affine(first: Piece, step: np.ndarray | None, spacing: tuple[float, float, float] | None) -> np.ndarray | None:
    """Voxel (column, row, slice) to patient mm, RAS+ (DICOM's axes point left and to the back).

    DICOM PS3.3 C.7.6.2.1.1, with its third column for a stack.
    """
    if first.axes is None or spacing is None:
        return None
    z, y, x = spacing
    affine = np.eye(4)
    affine[:3, 0] = first.axes[0] * x
    affine[:3, 1] = first.axes[1] * y
    affine[:3, 2] = step if step is not None else first.axes[2] * (z if math.isfinite(z) else 1.0)
    affine[:3, 3] = first.origin_mm
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
