"""What a benchmark is run on: slices with a reference, from phantoms or from real full/low-dose pairs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldctlib.ct.dose import Scanner, acquire, calibrate
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.phantom import Patient
from ldctlib.ct.projector import projector
from ldctlib.errors import ParameterError, ScanError, ShapeError
from ldctlib.metrics.image import check_images
from ldctlib.units import hu_to_mu, mu_to_hu

REFERENCE_KINDS = ("truth", "full dose")
"""Noise-free truth (phantoms), or a full-dose scan with its own noise."""


@dataclass(frozen=True, eq=False)  # tensors have no single truth value: a case equals itself only
class BenchmarkCase:
    """One slice: low dose and reference in HU, each ``(1, 1, H, W)``, and where it comes from."""

    patient: str
    ldct_hu: Tensor
    reference_hu: Tensor
    reference_kind: str  # "truth" or "full dose"
    dose: float  # fraction of full dose
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
        if not 0 < self.dose <= 1:
            raise ParameterError(f"dose is a fraction of full dose in (0, 1], got {self.dose}")
        if not self.pixel_mm > 0:
            raise ParameterError(f"pixel_mm must be > 0, got {self.pixel_mm}")
        if self.full_dose_hu is not None:
            check_images(self.ldct_hu, self.full_dose_hu)
            if self.reference_kind != "truth":
                raise ParameterError("full_dose_hu is a second reference: the first must be the truth")

    def views(self) -> list[BenchmarkCase]:
        """The case once for each of its references."""
        if self.full_dose_hu is None:
            return [self]
        full = replace(self, reference_hu=self.full_dose_hu, reference_kind="full dose", full_dose_hu=None)
        return [self, full]


# ---------------------------------------------------------------- phantoms


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
) -> list[BenchmarkCase]:
    """A slice of each patient, scanned at full dose and at ``doses``: a case per kernel, dose and seed.

    The reference is the noise-free scan with the same kernel ("truth"); ``full_dose_hu`` holds the full-dose
    scan, whose photons the low doses thin (nested noise). The body is drawn and projected on a grid of half
    the pixel, onto detector bins of half a pixel, through a bow-tie filter with tube-current modulation. Each
    patient's photons are set so that the full-dose noise near the axis has ``full_dose_sd_hu`` under the
    kernel B30f; the other kernels reconstruct the *same* readings, with their own noise.

    height : where the slice lies, from 0 (feet) to 1 (head) of the patient's range.
    crop : keep the central square of the body of so many pixels, for methods that are slow.
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
    geometry = ParallelGeometry.for_image(size, pixel_mm, bins_per_pixel=2, n_views=n_views)
    project, reconstruct = projector(geometry.on_grid(2 * size)), projector(geometry)
    cases = []
    for seed in seeds:
        patient = Patient.random(int(seed))
        low, high = patient.z_range_mm
        z_mm = low + height * (high - low)
        body = patient.slice(z_mm, size=2 * size, pixel_mm=pixel_mm / 2, thickness_mm=thickness_mm).hu
        scanner = Scanner(bowtie_radius_mm=160.0, modulation=0.3)
        scanner = calibrate(body, geometry, scanner, full_dose_sd_hu, kernel="B30f")
        lines = project.A(hu_to_mu(body))
        generator = torch.Generator().manual_seed(int(seed))
        readings = [lines, *acquire(lines, scanner, geometry, (1.0, *doses), generator=generator)]
        part = _body_centre(body[..., ::2, ::2], side)
        for name in kernels:
            truth, full, *scans = (mu_to_hu(reconstruct.fbp(p, name))[part].contiguous() for p in readings)
            cases += [
                BenchmarkCase(
                    f"phantom {seed}",
                    x,
                    truth,
                    "truth",
                    d,
                    pixel_mm,
                    group=f"{thickness_mm:g} mm {name}",
                    slice=f"{z_mm:.0f} mm",
                    slice_mm=thickness_mm,
                    full_dose_hu=full,
                )
                for d, x in zip(doses, scans, strict=True)
            ]
    groups = list(dict.fromkeys(c.group for c in cases))
    return sorted(cases, key=lambda c: (groups.index(c.group), -c.dose))


def _body_centre(image_hu: Tensor, side: int) -> tuple:
    """Index of the square of ``side`` pixels about the body's centre, inside the image."""
    body = (image_hu[0, 0] > -500).nonzero().double()
    size = image_hu.shape[-1]
    centre = (body.amin(0) + body.amax(0)) / 2 if len(body) else torch.tensor([size / 2, size / 2])
    row, column = (int(c) for c in (centre - side / 2).round().clamp(0, size - side))
    return ..., slice(row, row + side), slice(column, column + side)


# ---------------------------------------------------------------- real pairs


def _pair_files(folder: Path) -> list[tuple[Path, Path]]:
    """(full, low) files of one patient: in full*/quarter* subfolders, or side by side as _FD_ and _QD_."""
    sub = {p.name.lower(): p for p in folder.iterdir() if p.is_dir()}
    pairs = []
    for name, full in sorted(sub.items()):
        low = sub.get(name.replace("full", "quarter", 1)) if name.startswith("full") else None
        if low is not None:
            pairs += _match(sorted(p for p in full.iterdir() if p.is_file()), sorted(low.iterdir()), folder)
    files = sorted(p for p in folder.iterdir() if p.is_file())
    marked = [[p for p in files if re.search(rf"(^|_){mark}_", p.name)] for mark in ("FD", "QD")]
    return pairs + _match(*marked, folder)


def _match(full: list[Path], low: list[Path], folder: Path) -> list[tuple[Path, Path]]:
    if len(full) != len(low):
        raise ScanError(f"{folder}: {len(full)} full-dose but {len(low)} low-dose files; pairs need both")
    return list(zip(full, low, strict=True))


def real_pairs(root: str | Path, *, dose: float = 0.25) -> list[BenchmarkCase]:
    """Full/quarter-dose slice pairs below ``root`` (Mayo 2016), grouped by thickness and kernel.

    A patient's folder holds ``full*/`` and ``quarter*/``, or files marked ``_FD_`` and ``_QD_``; its name
    up to the first underscore is the patient. ScanError without any pair, or where two slices' positions
    differ.
    """
    root = Path(root)
    if not root.is_dir():
        raise ScanError(f"{root} is not a folder")
    folders = sorted(
        {
            p.parent.parent if p.parent.name.lower().startswith(("full", "quarter")) else p.parent
            for p in root.rglob("*")
            if p.is_file()
        }
    )
    cases = [_real_case(folder, full, low, dose) for folder in folders for full, low in _pair_files(folder)]
    if not cases:
        raise ScanError(f"{root}: no full/quarter-dose pairs (folders full*/quarter*, files _FD_/_QD_)")
    return cases


def _real_case(folder: Path, full: Path, low: Path, dose: float) -> BenchmarkCase:
    import pydicom

    from ldctlib.data.dicom import read_series

    scan, scan_low = read_series(full), read_series(low)
    tags = ["ConvolutionKernel", "SliceThickness", "ImagePositionPatient"]
    header, header_low = (pydicom.dcmread(p, stop_before_pixels=True, specific_tags=tags) for p in (full, low))
    positions = [[float(v) for v in h.get("ImagePositionPatient", [])] for h in (header, header_low)]
    if len(positions[0]) != len(positions[1]) or not np.allclose(*positions, atol=0.01):
        raise ScanError(f"{full.name} and {low.name} in {folder} are not one slice: positions {positions}")
    kernel = header.get("ConvolutionKernel", "unknown kernel")
    kernel = kernel if isinstance(kernel, str) else "/".join(map(str, kernel))
    thickness = float(header.get("SliceThickness") or math.nan)
    return BenchmarkCase(
        folder.name.split("_")[0],
        scan_low.images_hu(),
        scan.images_hu(),
        "full dose",
        dose,
        pixel_mm=float(scan.spacing_mm[-1]),
        group=f"{thickness:g} mm {kernel}",
        slice=full.stem,
        slice_mm=thickness,
    )
