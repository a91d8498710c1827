"""LiTS (Bilic et al. 2023): CT of the liver, ``volume-N.nii``, with ``segmentation-N.nii``, in any folders."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from ldctlib.data.case import Case, Source
from ldctlib.data.cine_layouts import read_labels
from ldctlib.data.nifti import open_nifti, read_nifti
from ldctlib.data.scan import Scan
from ldctlib.errors import ScanError

_NAME = re.compile(r"(volume|segmentation)-(\d+)\.nii(?:\.gz)?", re.IGNORECASE)


def lits_cases(files: list[Path]) -> tuple[tuple[Case, ...], list[Path]]:
    """The cases of the files that are named so, and the other files; none where there is no segmentation.

    Raises ScanError for two files of one number: a segmentation belongs to one scan.
    """
    named = {file: name for file in files if (name := _NAME.fullmatch(file.name))}
    if not any(name[1].lower() == "segmentation" for name in named.values()):
        return (), files
    found: dict[tuple[str, int], Path] = {}
    for file, name in named.items():
        other = found.setdefault((name[1].lower(), int(name[2])), file)
        if other is not file:
            raise ScanError(f"{other} and {file} are the same file of LiTS: keep one of them below the folder")
    cases = []
    for (kind, number), file in found.items():
        if kind == "volume":
            mask = found.get(("segmentation", number))
            labels = None if mask is None else Source(partial(_read_labels, mask, file), (mask,))
            told = dict(anatomy="abdomen", labels=labels, label_ids="lits")
            cases.append(Case(f"volume-{number}", Source.of_files([file]), **told))
    return tuple(cases), [file for file in files if file not in named]


def _read_labels(file: Path, volume: Path) -> Scan:
    """The ids as a scan, on the voxels that ``volume`` is read on.

    Both are turned by their headers. Where these say that the two are stored in different directions, they have to
    place them alike.
    """
    from nibabel.orientations import io_orientation

    scan, image = read_labels(file, partial(read_nifti, scale="arbitrary"), largest=2), open_nifti(volume)
    stored, axes = (tuple(image.shape) + (1,))[:3], io_orientation(image.affine)
    shape = tuple(stored[i] for i in np.argsort(axes[:, 0])[::-1])
    if shape != tuple(scan.values.shape):
        raise ScanError(f"{file} has {tuple(scan.values.shape)} voxels and {volume} {shape}: it is of another scan")
    if not np.array_equal(axes, io_orientation(scan.origin.affine)):
        # turning moves no volume's centre
        centre = image.affine @ [*(np.array(stored) - 1) / 2, 1]
        if np.abs(centre - scan.affine @ [*(np.array(shape[::-1]) - 1) / 2, 1]).max() > max(scan.spacing_mm or [1.0]):
            raise ScanError(f"the headers of {file} and {volume} turn and place them differently: one of them is wrong")
    return scan
