"""A collection of scans as cases by patient: a real one, in the layout it comes in, or the phantom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ldctlib.data.case import Case, Source
from ldctlib.data.cine_layouts import CINE_LAYOUTS
from ldctlib.data.dicom_read import pydicom_ct_slice
from ldctlib.data.layouts import cases_below
from ldctlib.data.scan import Scan
from ldctlib.errors import ParameterError, ScanError

LAYOUTS = ("tcia", "mayo2016", *CINE_LAYOUTS, "lits", "folder")


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

    def labelled(self) -> Collection:
        """The cases whose labels are in one of :data:`~ldctlib.data.anatomy_masks.TABLES`."""
        return replace(self, cases=tuple(case for case in self.cases if case.full and case.labels and case.label_ids))


def open_collection(path_or_name: str | Path, *, layout: str = "auto") -> Collection:
    """Cases by patient, from a folder or one of the embedded collections; scans are read when asked for.

    "phantom"   random patients of the phantom (full only: their noise-free truth); see phantom_collection
    "sample"    the one real CT slice in pydicom's wheel (full only)
    a folder    in one of these layouts, found out by "auto" for each file, so that several may be mixed:
        "tcia"      LDCT-and-Projection-data: .../L241/<study>/1.000000-Full Dose Images-70970/1-001.dcm
        "mayo2016"  the 2016 challenge: L067/full_1mm/*.IMA, full_1mm/L067/full_1mm/*.IMA, L067/quarter/*.IMA,
                    L067/low/*.IMA, or L506_FD_1_1.CT.*.IMA and L506_QD_1_1.CT.*.IMA in one folder
        "acdc", "mms", "mms2", "cmrxmotion"
                    cine cardiac MR: patient001/patient001_frame01.nii.gz, A0S9V9/A0S9V9_sa.nii.gz,
                    001/001_SA_ED.nii.gz, P001-1/P001-1-ED.nii.gz; a case is one phase, "ED" or "ES", with its labels
        "lits"      volume-0.nii and segmentation-0.nii, also .nii.gz, anywhere below; a case has its labels
        "folder"    anything of DICOM, .nii, .nii.gz, .npy; a dose in the names of folders or files (full and low,
                    quarter, ndct and ldct, FD and QD) makes pairs

    Label maps are no scans: they are passed over by the names of their folders and files (labelsTr, segmentations,
    masks, ..._seg) and by their values. Missing slices inside a series are allowed here and noted in each scan.
    Raises ParameterError for an unknown name or layout, ScanError for a folder that holds no scan or that has a part
    which cannot be opened.
    """
    if layout not in ("auto", *LAYOUTS):
        raise ParameterError(f"unknown layout {layout!r}; allowed: auto, {', '.join(LAYOUTS)}")
    if path_or_name == "phantom":
        return phantom_collection()
    if path_or_name == "sample":
        case = Case(patient="pydicom CT_small", full=Source(pydicom_ct_slice), anatomy="abdomen")
        return Collection("sample", "sample", (case,))
    root = Path(path_or_name)
    if not root.is_dir():
        raise ParameterError(f"{path_or_name!s} is neither a folder nor an embedded collection (phantom, sample)")
    found, cases = cases_below(root, layout)
    if not cases and layout in LAYOUTS[:-1]:
        raise ScanError(f"{root} holds nothing in the layout {layout!r}; data/README.md shows what it is")
    if not cases:
        raise ScanError(f"{root} holds no CT or MR image in DICOM, NIfTI or NumPy files (label maps are none)")
    return Collection(root.name, found, cases)


def phantom_collection(
    patients: int = 40, *, slices: int = 8, size: int = 512, anatomy: str = "abdomen", first_seed: int = 0
) -> Collection:
    """Random patients of the phantom, each with ``slices`` noise-free 3 mm slices spread over its length."""
    if patients < 1 or slices < 1:
        raise ParameterError(f"a phantom collection needs patients and slices, got {patients} and {slices}")
    cases = []
    for seed in range(first_seed, first_seed + patients):
        source = Source(partial(_phantom_scan, seed, anatomy, slices, size))
        cases.append(Case(f"{anatomy}-{seed:05d}", source, anatomy=anatomy))
    return Collection("phantom", "phantom", tuple(cases))


def _phantom_scan(seed: int, anatomy: str, slices: int, size: int) -> Scan:
    from ldctlib.phantom.patient import Patient

    thickness = 3.0
    patient = Patient.random(seed, anatomy=anatomy)
    low, high = patient.z_range_mm
    edges = np.linspace(low + thickness, high - thickness, slices + 1)
    positions = [float(z) for z in (edges[:-1] + edges[1:]) / 2]
    drawn = [patient.slice(z, size=size, thickness_mm=thickness) for z in positions]
    step = float(edges[1] - edges[0])
    pixel = drawn[0].pixel_mm
    corner = (size - 1) / 2 * pixel
    affine = np.diag([-pixel, -pixel, step, 1.0])
    affine[:3, 3] = corner, corner, positions[0]
    values = torch.cat([slice_.hu[:, 0] for slice_ in drawn])
    header = {"modality": "CT", "patient_id": f"{anatomy}-{seed:05d}", "description": "phantom without noise"}
    place = {"thickness_mm": thickness, "positions_mm": tuple(positions), "affine": affine}
    return Scan(values, "HU", (step, pixel, pixel), **header, **place)
