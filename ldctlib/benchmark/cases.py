"""What a benchmark is run on: slices with a reference, from phantoms or from real full/low-dose pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldctlib.data.collection import Collection, open_collection
from ldctlib.data.scan import Scan
from ldctlib.errors import ParameterError, ScanError, ShapeError
from ldctlib.image import BODY_HU, check_images
from ldctlib.phantom.patient import Patient
from ldctlib.phantom.scan_phantom import scan_phantom

REFERENCE_KINDS = ("truth", "full dose")
"""Noise-free truth (phantoms), or a full-dose scan with its own noise."""


@dataclass(frozen=True, eq=False)  # tensors have no single truth value: a case equals itself only
class BenchmarkCase:
    """One slice: low dose and reference in HU, each ``(1, 1, H, W)``, and where it comes from."""

    patient: str
    ldct_hu: Tensor
    reference_hu: Tensor
    reference_kind: str  # "truth" or "full dose"
    dose: float  # fraction of full dose; NaN where nobody says
    pixel_mm: float
    group: str = "all"  # kernel, thickness, anatomy: means never pool two groups
    slice: str = "0"
    slice_mm: float = math.nan
    noise: Any = None  # a NoiseModel for methods that can use one
    full_dose_hu: Tensor | None = None  # phantoms: the full-dose scan, a second reference beside the truth

    def __post_init__(self):
        check_images(self.ldct_hu, self.reference_hu)
        if len(self.ldct_hu) != 1:
            raise ShapeError(f"a case is one slice (1, 1, H, W), got {tuple(self.ldct_hu.shape)}")
        if self.reference_kind not in REFERENCE_KINDS:
            raise ParameterError(f"reference_kind is one of {REFERENCE_KINDS}, got {self.reference_kind!r}")
        if not (0 < self.dose <= 1 or math.isnan(self.dose)):
            raise ParameterError(f"dose is a fraction of full dose in (0, 1], got {self.dose}")
        if not self.pixel_mm > 0:
            raise ParameterError(f"pixel_mm must be > 0, got {self.pixel_mm}")
        if self.full_dose_hu is not None:
            check_images(self.ldct_hu, self.full_dose_hu)
            if self.reference_kind != "truth":
                raise ParameterError("full_dose_hu is a second reference: the first must be the truth")

    def per_reference(self) -> list[BenchmarkCase]:
        """The case once for each of its references."""
        if self.full_dose_hu is None:
            return [self]
        full = replace(self, reference_hu=self.full_dose_hu, reference_kind="full dose", full_dose_hu=None)
        return [self, full]


FIRST_UNSEEN = 9_000_001


def unseen_seeds(count: int, first: int = FIRST_UNSEEN) -> range:
    """Seeds of phantom patients for a benchmark, far from any that a training draws first."""
    return range(first, first + count)


def phantom_cases(
    seeds: Sequence[int],
    doses: Sequence[float] = (0.25,),
    *,
    kernels: Sequence[str] = ("B30f",),
    full_dose_sd_hu: float = 12.0,
    thickness_mm: float = 3.0,
    height: float = 0.5,
    size: int = 512,
    pixel_mm: float = 0.78,
    crop: int | None = None,
    n_views: int = 600,
    anatomy: str = "abdomen",
) -> list[BenchmarkCase]:
    """A slice of each patient, scanned at full dose and at ``doses``: a case per kernel, dose and seed.

    The reference is the noise-free scan with the same kernel ("truth"); ``full_dose_hu`` holds the full-dose
    scan, whose photons the low doses thin (nested noise): see :func:`~ldctlib.phantom.scan_phantom.scan_phantom`.

    height : where the slice lies, from 0 (feet) to 1 (head) of the patient's range.
    crop : keep the central square of the body of so many pixels, for methods that are slow.
    anatomy : "abdomen" or "thorax".
    """
    doses = sorted((float(d) for d in doses), reverse=True)
    if not len(seeds) or not len(kernels) or not doses or doses[0] >= 1 or not doses[-1] > 0:
        given = f"{list(seeds)}, {list(kernels)}, {doses}"
        raise ParameterError(f"phantom_cases needs seeds, kernels and doses in (0, 1), got {given}")
    if not 0 <= height <= 1:
        raise ParameterError(f"height lies within 0 (feet) and 1 (head), got {height}")
    side = size if crop is None else int(crop)
    if not 16 <= side <= size:
        raise ParameterError(f"crop is a number of pixels from 16 to size = {size}, got {crop}")
    grid = {"size": size, "pixel_mm": pixel_mm, "thickness_mm": thickness_mm}
    scanner = {"full_dose_sd_hu": full_dose_sd_hu, "n_views": n_views}
    cases = []
    for seed in seeds:
        patient = Patient.random(int(seed), anatomy=anatomy)
        low, high = patient.z_range_mm
        z_mm = low + height * (high - low)
        scanner["generator"] = torch.Generator().manual_seed(int(seed))
        made = scan_phantom(patient, z_mm, (1.0, *doses), kernels=kernels, **scanner, **grid)
        part = body_centre(patient.slice(z_mm, **grid).hu, side)
        for name, images in made.items():
            truth, full, *scans = (x[part].contiguous() for x in images)
            part_of = "" if anatomy == "abdomen" else f"{anatomy} "
            where = f"{part_of}{thickness_mm:g} mm {name}", f"{z_mm:.0f} mm", thickness_mm
            for dose, ldct in zip(doses, scans, strict=True):
                case = BenchmarkCase(f"phantom {seed}", ldct, truth, "truth", dose, pixel_mm, *where, full_dose_hu=full)
                cases.append(case)
    groups = list(dict.fromkeys(c.group for c in cases))
    return sorted(cases, key=lambda c: (groups.index(c.group), -c.dose))


def body_centre(image_hu: Tensor, side: int) -> tuple:
    """Index of the square of ``side`` pixels about the body's centre, inside the image."""
    body = (image_hu[0, 0] > BODY_HU).nonzero().double()
    size = image_hu.shape[-1]
    centre = (body.amin(0) + body.amax(0)) / 2 if len(body) else torch.tensor([size / 2, size / 2])
    row, column = (int(c) for c in (centre - side / 2).round().clamp(0, size - side))
    return ..., slice(row, row + side), slice(column, column + side)


def collection_cases(
    collection: Collection, *, slices_per_patient: int | None = None, dose: float | None = None
) -> Iterator[BenchmarkCase]:
    """The slice pairs of a collection's cases with both doses, one scan in memory at a time.

    slices_per_patient : so many slices of each scan of a patient, spread over its length; None takes all.
    dose : fraction of full dose of the low-dose scans where neither the collection nor the ratio of the headers'
        CTDIvol says it; without any of them a case's dose is NaN.

    A case's group is the slice thickness and the kernel. Raises ScanError where there is no pair, and for pairs that do
    not match or are not in HU.
    """
    if slices_per_patient is not None and slices_per_patient < 1:
        raise ParameterError(f"slices_per_patient is 1 or more, got {slices_per_patient}")
    if not len(collection.pairs()):
        raise ScanError(f"{collection.name}: nobody has a full-dose and a low-dose scan; see data/README.md")
    for case in collection.pairs():
        full, low = case.load_pair()
        if not full.spacing_mm:
            raise ScanError(f"patient {case.patient}: the files do not say how large a pixel is: give DICOM or NIfTI")
        depth = len(full.values)
        n = min(depth, slices_per_patient or depth)
        fraction = case.dose or _dose_in_headers(full, low) or dose or math.nan
        thickness = "unknown thickness" if full.thickness_mm is None else f"{full.thickness_mm:g} mm"
        group, slice_mm = (
            f"{thickness} {full.kernel or 'unknown kernel'}",
            full.thickness_mm or float(full.spacing_mm[0]),
        )
        dose_and_pixel = fraction, float(full.spacing_mm[-1])
        names = [file.stem for file in full.source_files] if len(full.source_files) == depth else range(depth)
        for index in ((2 * k + 1) * depth // (2 * n) for k in range(n)):  # the middles of n equal parts
            # copies: a view would keep the whole scan in memory
            ldct, reference = (scan.images_hu()[index : index + 1].clone() for scan in (low, full))
            where = group, "/".join(filter(None, (case.variant, str(names[index])))), slice_mm
            yield BenchmarkCase(case.patient, ldct, reference, "full dose", *dose_and_pixel, *where)


def _dose_in_headers(full: Scan, low: Scan) -> float | None:
    """Ratio of the two scans' mean CTDIvol, which is proportional to the dose; None where it does not tell them apart.

    Noise that was inserted into a full-dose scan leaves its header as it was.
    """
    means = []
    for scan in (low, full):
        values = [header.get("CTDIvol") for header in getattr(scan.origin, "headers", [])]
        means.append(np.mean(values) if values and None not in values else math.nan)
    ratio = float(means[0] / means[1]) if means[1] > 0 else math.nan
    return ratio if 0 < ratio < 1 else None


def real_pairs(root: str | Path, **options) -> list[BenchmarkCase]:
    """:func:`collection_cases` of a folder, in any layout of :func:`~ldctlib.data.collection.open_collection`."""
    return list(collection_cases(open_collection(root), **options))
