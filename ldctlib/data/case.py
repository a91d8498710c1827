"""A case: one scan of one patient, read when asked for, with its low-dose partner where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ldctlib.data.dicom_open import open_dicom
from ldctlib.data.dicom_read import read_scan, read_series
from ldctlib.data.nifti import is_volume_file
from ldctlib.data.pairing import match_slices
from ldctlib.data.scan import Scan
from ldctlib.errors import ScanError


@dataclass(frozen=True)
class Source:
    """One scan, not read yet."""

    load: Callable[[], Scan] = field(repr=False)
    files: tuple[Path, ...] = field(default=(), repr=False)
    as_stored: bool = field(default=False, repr=False)  # a NIfTI file whose third axis counts the slices

    @classmethod
    def of_files(cls, files: Iterable[Path]) -> Source:
        """The DICOM files of one series, or one NIfTI or NumPy file."""
        files = tuple(files)
        if is_volume_file(files[0]):
            return cls(partial(read_scan, files[0]), files)
        return cls(partial(read_series, files, allow_gaps=True), files)


def _depth(file: Path, as_stored: bool) -> int | None:
    """Slices of one file by its header; None where that does not say, so that reading it has to."""
    name = file.name.lower()
    try:
        if name.endswith(".npy"):
            shape = np.load(file, mmap_mode="r", allow_pickle=False).shape
            return shape[0] if len(shape) == 3 else 1
        if is_volume_file(file):
            import nibabel

            image = nibabel.load(file)
            along = [0, 1, 2] if as_stored else nibabel.orientations.io_orientation(image.affine)[:, 0]
            return int((image.shape + (1,))[list(along).index(2)])  # the axis that runs from feet to head
        header = open_dicom(file, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
        return int(header.get("NumberOfFrames") or 1)
    except Exception:  # damaged, or a package is missing: reading names it
        return None


@dataclass(frozen=True)
class Case:
    """One scan of one patient, with its low-dose partner or its labels where there are any.

    ``full`` is the scan as it is where nothing says which dose it has; it is None for the challenge's
    test patients, who come with the quarter dose alone.
    """

    patient: str
    full: Source | None
    low: Source | None = None
    dose: float | None = None  # of the low-dose scan, as a fraction of full dose; None where nothing says it
    anatomy: str | None = None
    variant: str = ""  # tells scans of one patient apart: "1mm", "3mm_sharp", a series' name, "ED"
    labels: Source | None = None  # of the full scan's voxels
    label_ids: str = ""  # which of anatomy_masks.TABLES the labels are in; empty for the heart's

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """(z, y, x) from one file's header; for DICOM, z is the header's spacing between slices."""
        source = self.full or self.low
        if source.files and not is_volume_file(source.files[0]):
            return read_series(source.files[0]).spacing_mm
        return source.load().spacing_mm

    @property
    def n_slices(self) -> int:
        """Slices of the full-dose scan, or of the low-dose one where that is all there is, from headers alone.

        A DICOM series has one slice a file; its copies of a slice, which reading drops, are counted.
        """
        source = self.full or self.low
        if len(source.files) > 1:
            return len(source.files)
        return (_depth(source.files[0], source.as_stored) if source.files else None) or len(source.load().values)

    def load_full(self) -> Scan:
        """The full-dose scan; ScanError if the case has none."""
        if self.full is None:
            raise ScanError(f"patient {self.patient} has no full-dose scan in this collection")
        return self.full.load()

    def load_low(self) -> Scan:
        """The low-dose scan; ScanError if the case has none."""
        if self.low is None:
            raise ScanError(f"patient {self.patient} has no low-dose scan in this collection: simulate one")
        return self.low.load()

    def load_labels(self) -> torch.Tensor:
        """uint8 (D, H, W), on :meth:`load_full`'s voxels: of cine MR ("acdc", "mms", "mms2", "cmrxmotion") in M&Ms'
        convention, 1 left ventricle, 2 myocardium, 3 right ventricle; of "lits" 1 liver, 2 tumour. 0 is all else.

        Raises ScanError if the case has none, for other numbers and, of "lits", for labels of another shape."""
        if self.labels is None:
            raise ScanError(f"patient {self.patient} has no labels in this collection")
        return self.labels.load().values.to(torch.uint8)

    def load_pair(self) -> tuple[Scan, Scan]:
        """(full, low), slice by slice at the same positions; see :func:`~ldctlib.data.pairing.match_slices`."""
        return match_slices(self.load_full(), self.load_low(), name=f"patient {self.patient}")
