"""Two doses of one patient, slice by slice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ldctlib.data.dose_marks import split_mark
from ldctlib.data.nifti import volume_stem
from ldctlib.data.scan import Scan
from ldctlib.data.volume import SAME_POSITION_MM
from ldctlib.errors import ScanError
from ldctlib.image import BODY_HU

SAME_BODY = 0.9
"""Two doses of one slice agree on inside and outside (at BODY_HU) in at least this share of the pixels."""


def match_slices(full: Scan, low: Scan, *, name: str = "this pair") -> tuple[Scan, Scan]:
    """Both scans cut down to the slices that they share, in the same order.

    Slices are matched by position (within a tenth of a millimetre); without positions by instance number; without
    those by the names of their files, which must be equal but for the mark of the dose, and never by order alone.
    Raises ScanError if the grids differ, if no slice is shared, or if a pair does not show the same body.
    """
    if full.values.shape[1:] != low.values.shape[1:] or full.scale != low.scale:
        grids = (f"{tuple(scan.values.shape[1:])} in {scan.scale}" for scan in (full, low))
        raise ScanError(f"{name}: full and low dose are {' and '.join(grids)}: they are not scans of one grid")
    if full.spacing_mm and low.spacing_mm and not np.allclose(full.spacing_mm[1:], low.spacing_mm[1:], atol=1e-3):
        raise ScanError(f"{name}: pixels of {full.spacing_mm[1:]} mm and {low.spacing_mm[1:]} mm do not match")
    if full.affine is not None and low.affine is not None:
        shift = np.abs(full.affine[:2, 3] - low.affine[:2, 3]).max()
        if shift > 0.25 * full.spacing_mm[2]:
            raise ScanError(f"{name}: the low-dose grid is shifted by {shift:.2f} mm against the full-dose grid")
    if full.positions_mm is not None and low.positions_mm is not None:
        distance = np.abs(np.subtract.outer(full.positions_mm, low.positions_mm))
        nearest = distance.argmin(axis=1)
        indices = [(i, int(j)) for i, j in enumerate(nearest) if distance[i, j] < SAME_POSITION_MM]
        if not indices:
            raise ScanError(f"{name}: no slice of the two doses is at the same position")
    else:
        keys = _numbers_or_names(full, low)
        place = {key: j for j, key in enumerate(keys[1])}
        indices = [(i, place[key]) for i, key in enumerate(keys[0]) if key in place]
        if not indices:
            why = "neither instance numbers nor file names agree: name them alike, in one folder for each dose"
            raise ScanError(f"{name}: slices without positions cannot be paired, since {why}")
    alone = len(full.values) + len(low.values) - 2 * len(indices)
    full, low = full.select([i for i, _ in indices]), low.select([j for _, j in indices])
    if full.scale == "HU":
        agree = ((full.values > BODY_HU) == (low.values > BODY_HU)).float().mean(dim=(1, 2))
        if agree.min() < SAME_BODY:
            where = f"in slice {int(agree.argmin())} only {100 * agree.min():.0f} % of the pixels"
            raise ScanError(f"{name}: {where} agree on what is body: the two doses show different anatomy")
    if alone:
        notes = (f"{alone} slice(s) that only one of the two doses has were left out",)
        full, low = replace(full, notes=full.notes + notes), replace(low, notes=low.notes + notes)
    return full, low


def _numbers_or_names(*scans: Scan) -> list[list]:
    """For each scan a key for each slice that tells which slice it is; no keys where the files do not say."""
    if all(scan.instance_numbers is not None for scan in scans):
        return [list(scan.instance_numbers) for scan in scans]
    keys = []
    for scan in scans:
        names = [split_mark(volume_stem(file)).rest for file in scan.source_files]
        one_each, depth = len(names) == len(scan.values), len(scan.values)
        # of a volume in one file the index is the slice's place, if the two volumes have one depth
        keys.append(names if one_each and depth > 1 else [(*names, depth, k) for k in range(depth)])
    every_one = all(len(set(of_one)) == len(of_one) for of_one in keys) and set(keys[0]) == set(keys[1])
    return keys if every_one else [[], []]
