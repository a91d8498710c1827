"""Collections of cine cardiac MR in NIfTI: which file is which patient's end diastole or end systole, and its labels.

ACDC (Bernard et al. 2018), M&Ms (Campello et al. 2021), M&Ms-2 (Martín-Isla et al. 2023), CMRxMotion (Wang
et al. 2022).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldctlib.data.case import Case, Source
from ldctlib.data.nifti import is_volume_file, open_nifti, read_nifti, volume_stem
from ldctlib.data.scan import Scan
from ldctlib.errors import ScanError

CINE_LAYOUTS: dict[str, re.Pattern] = {
    "acdc": re.compile(r"(?P<patient>patient\d{3})_(?:frame(?P<frame>\d+)(?P<labels>_gt)?|4d)"),
    "mms": re.compile(r"(?:(?P<phase>ED|ES)_)?(?P<patient>[A-Z]\d[A-Z]\d[A-Z]\d)_sa(?P<labels>_gt)?"),
    "mms2": re.compile(r"(?P<patient>\d{3})_(?P<view>SA|LA)_(?:(?P<phase>ED|ES)(?P<labels>_gt)?|CINE)"),
    "cmrxmotion": re.compile(r"(?P<patient>P\d{3})-(?P<view>\d)-(?P<phase>ED|ES)(?P<labels>-label)?"),
}
"""Layout -> what a file's name says, without its ending; ``view`` is M&Ms-2's axis or CMRxMotion's grade of motion."""

ACDC_LABELS = (0, 3, 2, 1)
"""ACDC counts the right ventricle first; the others, and this library, the left one."""


class _Volume(NamedTuple):
    """A volume and its labels, as far as the names say."""

    image: Path | None
    labels: Path | None


def cine_cases(root: Path, files: list[Path], layout: str) -> tuple[tuple[Case, ...], list[Path]]:
    """The cases of the files that a layout's names place, and the other files.

    A file with all phases is left to those of single phases where the layout has them; M&Ms' files hold all phases, and
    its table, or the labels, say which are end diastole and end systole.
    """
    groups: dict[tuple, dict[bool, Path]] = {}
    rest = []
    for file in files:
        name = CINE_LAYOUTS[layout].fullmatch(volume_stem(file)) if is_volume_file(file) else None
        if name is None:
            rest.append(file)
            continue
        said = name.groupdict()
        moment = said.get("frame") or said.get("phase")
        if moment is not None or layout == "mms":  # else all phases in one file
            key = (file.parent, said["patient"], said.get("view") or "", moment or "")
            groups.setdefault(key, {})[bool(said["labels"])] = file
    cases: list[Case] = []
    table = _mms_table(rest) if layout == "mms" else {}
    for (folder, patient, view, moment), both in sorted(groups.items()):
        volume = _Volume(both.get(False), both.get(True))
        if volume.image is None:
            continue  # labels alone
        if layout == "acdc":
            frames = sorted(int(key[3]) for key in groups if key[:2] == (folder, patient))
            cases.append(_case(patient, _acdc_phase(folder, int(moment), frames), volume, mapping=ACDC_LABELS))
        elif layout == "mms" and len(_shape(volume.image)) == 4:
            phases = table.get(patient) or _labelled_phases(volume)
            cases += [_case(patient, phase, volume, frame=frame) for phase, frame in phases.items()]
        else:
            cases.append(_case(patient, "/".join(filter(None, (view, moment))), volume))
    return tuple(cases), rest


def _case(patient: str, variant: str, volume: _Volume, *, frame: int | None = None, mapping=None) -> Case:
    read = partial(read_nifti, scale="arbitrary", frame=frame, as_stored=True)
    labels = None
    if volume.labels is not None:
        labels = Source(partial(read_labels, volume.labels, read, mapping), (volume.labels,))
    source = Source(partial(read, volume.image), (volume.image,), as_stored=True)
    return Case(patient, source, None, None, "heart", variant, labels)


def read_labels(file: Path, read: Callable[[Path], Scan], mapping=None, largest: int = 3) -> Scan:
    """Label ids as a scan; ``mapping`` holds what each is to become. Raises ScanError for others than 0 to largest."""
    scan = read(file)
    if not ((scan.values >= 0) & (scan.values <= largest) & (scan.values == scan.values.round())).all():
        raise ScanError(f"{file} does not hold the labels 0 to {largest}")
    if mapping is not None:
        scan.values = scan.values.new_tensor(mapping)[scan.values.long()]
    return scan


def _acdc_phase(folder: Path, frame: int, frames: list[int]) -> str:
    """ED or ES by the patient's Info.cfg; without one, ED is the first of two frames."""
    info = folder / "Info.cfg"
    text = info.read_text("utf-8", "replace") if info.is_file() else ""
    for phase, number in re.findall(r"^\s*(ED|ES)\s*:\s*(\d+)", text, re.MULTILINE):
        if int(number) == frame:
            return phase
    if not text and len(set(frames)) == 2:
        return "ED" if frame == frames[0] else "ES"
    return f"frame {frame}"


def _mms_table(files: list[Path]) -> dict[str, dict[str, int]]:
    """Patient -> frames of ED and ES, counted from 0, of M&Ms' table where it lies beside the scans."""
    found: dict[str, dict[str, int]] = {}
    for file in files:
        if file.suffix.lower() != ".csv":
            continue
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            for row in csv.DictReader(lines):
                numbers = {phase: row.get(phase) or "" for phase in ("ED", "ES")}
                if row.get("External code") and all(number.strip().isdigit() for number in numbers.values()):
                    found[row["External code"].strip()] = {phase: int(number) for phase, number in numbers.items()}
    return found


def _shape(file: Path) -> tuple[int, ...]:
    shape = tuple(open_nifti(file).shape)
    return shape[:3] if shape[3:] == (1,) else shape


def _labelled_phases(volume: _Volume) -> Mapping[str, int]:
    """ED and ES by the two labelled frames, ED with the larger left ventricle; the first frame where there is none."""
    if volume.labels is None:
        return {"frame 0": 0}
    import nibabel

    labels = np.asarray(nibabel.load(volume.labels).dataobj)
    left = (labels == 1).sum(axis=(0, 1, 2)) if labels.ndim == 4 else np.zeros(1)
    order = sorted(np.flatnonzero(left), key=lambda frame: -left[frame])
    return dict(zip(("ED", "ES"), map(int, order[:1] + order[-1:] if len(order) > 1 else order), strict=False)) or {
        "frame 0": 0
    }
