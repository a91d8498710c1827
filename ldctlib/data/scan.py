"""A scan in memory: values in their physical scale, geometry, and what is needed to write it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldctlib.errors import ParameterError, ScanError, ShapeError
from ldctlib.units import AIR_HU

SCALES = ("HU", "arbitrary")
NO_HU = "no value is below zero: are these HU, or stored values without their -1024?"
"""A note on what was read as HU because nothing says otherwise."""


@dataclass
class Scan:
    """One series. Slices are ordered along the normal of the image plane; for an axial scan that is
    from the feet to the head, rows run from front to back and columns from the patient's right to the left.

    Padded pixels (outside the scanner's field of view) read as air, -1000 HU, or as the smallest measured
    value where the scale is arbitrary; ``padding`` says which they are, and writing restores them.
    """

    values: torch.Tensor  # float32 (D, H, W)
    scale: str  # "HU" or "arbitrary"
    spacing_mm: tuple[float, float, float] | None  # (z, y, x); z is NaN where the file does not say
    padding: torch.Tensor | None = None  # bool (D, H, W), or None where no pixel is padding
    modality: str = ""
    patient_id: str = ""
    description: str = ""
    thickness_mm: float | None = None
    kernel: str = ""  # ConvolutionKernel, several values joined by "/"; empty where the file does not say
    positions_mm: tuple[float, ...] | None = None  # (D,) along the normal of the image plane
    instance_numbers: tuple[int, ...] | None = None  # (D,) where each slice is a file with a number of its own
    affine: np.ndarray | None = None  # (4, 4) voxel (column, row, slice) to patient mm, RAS+ as in NIfTI
    tilt_deg: float = 0.0  # angle between the stack's direction and the normal: a tilted gantry shears
    notes: tuple[str, ...] = ()  # what a reader should know: dropped duplicates, gaps, tilt, guesses
    source_files: tuple[Path, ...] = ()
    origin: Any = field(default=None, repr=False)  # DicomOrigin or NiftiOrigin: the headers to write back

    def __post_init__(self):
        if self.scale not in SCALES:
            raise ParameterError(f"a scan's scale is one of {SCALES}, got {self.scale!r}")
        if self.values.ndim != 3:
            raise ShapeError(f"a scan's values are (D, H, W), got {tuple(self.values.shape)}")

    def images_hu(self) -> torch.Tensor:
        """The slices as (D, 1, H, W), which is what a CT denoiser takes. Raises ScanError unless in HU."""
        if self.scale != "HU":
            way_out = 'read it with scale="HU" if you know better' if self.modality == "CT" else "use .values[:, None]"
            raise ScanError(f"this {self.modality} scan is in arbitrary units, not HU: {way_out}")
        return self.values[:, None]

    def select(self, slices: Sequence[int]) -> Scan:
        """The scan with these slices only, in this order; one of single DICOM files can still be written."""
        index = list(slices)
        origin = self.origin
        if isinstance(origin, DicomOrigin) and all(len(frames) == 1 for frames in origin.frames):
            origin = DicomOrigin(*([of_each[i] for i in index] for of_each in vars(origin).values()))
        elif len(index) != len(self.values):
            origin = None

        def chosen(of_each: tuple | None) -> tuple | None:
            return tuple(of_each[i] for i in index) if of_each and len(of_each) == len(self.values) else of_each

        return replace(
            self,
            values=self.values[index],
            padding=None if self.padding is None else self.padding[index],
            positions_mm=chosen(self.positions_mm),
            instance_numbers=chosen(self.instance_numbers),
            source_files=chosen(self.source_files),
            origin=origin,
        )


@dataclass
class DicomOrigin:
    """Of each file, in slice order: its header (a pydicom dataset without pixels), which of its frames its slices are
    (the first is 0), the stored values of its padded pixels in the order of a boolean index, and the bytes of its text
    that is no ASCII."""

    headers: list[Any]
    frames: list[tuple[int, ...]]
    stored_padding: list[np.ndarray]
    texts: list[dict[int, bytes]]


@dataclass
class NiftiOrigin:
    """NIfTI header, affine, shape of the array on disk, and the flips and axes that made it (D, H, W)."""

    header: Any
    affine: np.ndarray
    shape: tuple[int, ...]
    orientation: np.ndarray


def fill_padding(values: np.ndarray, padding: np.ndarray, scale: str) -> dict[str, Any]:
    """Arguments of a :class:`Scan`: padded pixels become air (HU) or the smallest measured value (arbitrary scale).

    Values that are float32 already, and may be written to, are changed in place.
    """
    values, any_padding = np.require(values, np.float32, "W"), padding.any()
    if any_padding:
        smallest = AIR_HU if scale == "HU" else values.min(where=~padding, initial=np.inf)
        values[padding] = smallest if np.isfinite(smallest) else 0.0
    mask = torch.from_numpy(padding) if any_padding else None
    return {"values": torch.from_numpy(values), "scale": scale, "padding": mask}


def check_values(scan: Scan, values: torch.Tensor) -> np.ndarray:
    """Values to write for ``scan``, (D, H, W) or (D, 1, H, W), as (D, H, W); finite where not padding."""
    array = torch.as_tensor(values).detach().cpu().numpy()
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != tuple(scan.values.shape):
        shapes = f"{tuple(values.shape)}, but the scan they come from is {tuple(scan.values.shape)}"
        raise ShapeError(f"values to write are {shapes}: one value for each of its pixels is needed")
    padding = [False] * len(array) if scan.padding is None else scan.padding.numpy()
    infinite = sum(int((~(np.isfinite(part) | pad)).sum()) for part, pad in zip(array, padding, strict=True))
    if infinite:
        raise ScanError(f"{infinite} of the values to write are not finite: nothing was written")
    return array
