"""A case: one scan of one patient, read when asked for, with its low-dose partner where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from ldctlib.data.dicom import read_scan, read_series
from ldctlib.data.scan import Scan
from ldctlib.errors import ScanError

BODY_HU = -500.0
SAME_BODY = 0.9
"""Two doses of one slice agree on inside and outside (at BODY_HU) in at least this share of the pixels."""
SAME_POSITION_MM = 0.1


@dataclass(frozen=True)
class Source:
    """One scan, not read yet."""

    load: Callable[[], Scan] = field(repr=False)
    files: tuple[Path, ...] = field(default=(), repr=False)

    @classmethod
    def of_files(cls, files: Iterable[Path]) -> Source:
        """The DICOM files of one series, or one NIfTI or NumPy file."""
        files = tuple(files)
        return cls(partial(_load_files, files), files)


def _load_files(files: tuple[Path, ...]) -> Scan:
    if is_volume_file(files[0]):
        return read_scan(files[0])
    return read_series(files, allow_gaps=True)


def _depth(file: Path) -> int | None:
    """Slices of one file by its header; None where that does not say, so that reading it has to."""
    name = file.name.lower()
    try:
        if name.endswith(".npy"):
            shape = np.load(file, mmap_mode="r", allow_pickle=False).shape
            return shape[0] if len(shape) == 3 else 1
        if is_volume_file(file):
            import nibabel

            image = nibabel.load(file)
            along = nibabel.orientations.io_orientation(image.affine)[:, 0]
            return int((image.shape + (1,))[list(along).index(2)])  # the axis that runs from feet to head
        from pydicom import dcmread

        return int(dcmread(file, stop_before_pixels=True, specific_tags=["NumberOfFrames"]).get("NumberOfFrames") or 1)
    except Exception:  # damaged, or a package is missing: reading names it
        return None


def is_volume_file(file: Path) -> bool:
    return file.name.lower().endswith((".nii", ".nii.gz", ".npy"))


@dataclass(frozen=True)
class Case:
    """One scan of one patient, with its low-dose partner where there is one.

    ``full`` is the scan as it is where nothing says which dose it has; it is None for the challenge's
    test patients, who come with the quarter dose alone.
    """

    patient: str
    full: Source | None
    low: Source | None = None
    dose: float | None = None  # of the low-dose scan, as a fraction of full dose
    anatomy: str | None = None
    variant: str = ""  # tells scans of one patient apart: "1mm", "3mm_sharp", a series' name

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
        return (_depth(source.files[0]) if source.files else None) or len(source.load().values)

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

    def load_pair(self) -> tuple[Scan, Scan]:
        """(full, low), slice by slice at the same positions; see :func:`match_slices`."""
        return match_slices(self.load_full(), self.load_low(), name=f"patient {self.patient}")


@dataclass(frozen=True)
class Collection:
    """Cases, ordered by patient and variant."""

    name: str
    layout: str
    cases: tuple[Case, ...]

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def patients(self) -> tuple[str, ...]:
        return tuple(sorted({case.patient for case in self.cases}))

    def subset(self, patients: Iterable[str]) -> Collection:
        """The cases of these patients."""
        wanted = set(patients)
        return replace(self, cases=tuple(case for case in self.cases if case.patient in wanted))

    def pairs(self) -> Collection:
        """The cases that have both doses."""
        return replace(self, cases=tuple(case for case in self.cases if case.full and case.low))


def match_slices(full: Scan, low: Scan, *, name: str = "this pair") -> tuple[Scan, Scan]:
    """Both scans cut down to the slices that they share, in the same order.

    Slices are matched by position (within a tenth of a millimetre), or by number where files carry none.
    Raises ScanError if the grids differ, if no slice is shared, or if a pair does not show the same body.
    """
    if full.values.shape[1:] != low.values.shape[1:] or full.scale != low.scale:
        raise ScanError(
            f"{name}: full dose is {tuple(full.values.shape[1:])} in {full.scale}, low dose "
            f"{tuple(low.values.shape[1:])} in {low.scale}: they are not scans of one grid"
        )
    if full.spacing_mm and low.spacing_mm and not np.allclose(full.spacing_mm[1:], low.spacing_mm[1:], atol=1e-3):
        raise ScanError(f"{name}: pixels of {full.spacing_mm[1:]} mm and {low.spacing_mm[1:]} mm do not match")
    if full.affine is not None and low.affine is not None:
        shift = np.abs(full.affine[:2, 3] - low.affine[:2, 3]).max()
        if shift > 0.25 * full.spacing_mm[2]:
            raise ScanError(f"{name}: the low-dose grid is shifted by {shift:.2f} mm against the full-dose grid")
    if full.positions_mm is None or low.positions_mm is None:
        if len(full.values) != len(low.values):
            raise ScanError(
                f"{name}: {len(full.values)} and {len(low.values)} slices without positions cannot be paired"
            )
        indices = [(i, i) for i in range(len(full.values))]
    else:
        distance = np.abs(np.subtract.outer(full.positions_mm, low.positions_mm))
        nearest = distance.argmin(axis=1)
        indices = [(i, int(j)) for i, j in enumerate(nearest) if distance[i, j] < SAME_POSITION_MM]
    if not indices:
        raise ScanError(f"{name}: no slice of the two doses is at the same position")
    alone = len(full.values) + len(low.values) - 2 * len(indices)
    full, low = full.select([i for i, _ in indices]), low.select([j for _, j in indices])
    if full.scale == "HU":
        agree = ((full.values > BODY_HU) == (low.values > BODY_HU)).float().mean(dim=(1, 2))
        if agree.min() < SAME_BODY:
            worst = int(agree.argmin())
            raise ScanError(
                f"{name}: slice {worst} of full and low dose agree on what is body in only "
                f"{100 * agree.min():.0f} % of the pixels: they show different anatomy"
            )
    if alone:
        notes = (f"{alone} slice(s) that only one of the two doses has were left out",)
        full, low = replace(full, notes=full.notes + notes), replace(low, notes=low.notes + notes)
    return full, low
