"""Where collections keep their scans: from the names of files and folders to cases."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ldctlib.data.cases import Case, Source, is_volume_file
from ldctlib.data.dicom import SeriesInfo, is_dicom, list_series
from ldctlib.errors import ScanError

# --- the layouts that say everything in their names ---------------------------------------------------------


class Tag(NamedTuple):
    """What a path says of the file at its end."""

    patient: str
    is_full: bool
    dose: float
    anatomy: str
    variant: str


TCIA_ANATOMY = {"C": ("chest", 0.10), "L": ("abdomen", 0.25), "N": ("head", 0.25)}
"""Prefix of a patient in LDCT-and-Projection-data: anatomy, and dose of the "Low Dose Images"."""

_TCIA_SERIES = re.compile(r"(full|low)[ _-]*dose[ _-]*images", re.IGNORECASE)
_TCIA_PATIENT = re.compile(r"([CLN])0*(\d{1,3})", re.IGNORECASE)
_MAYO_DOSE = re.compile(r"(full|quarter|fd|qd)(?:[_ -]+(.+))?", re.IGNORECASE)
_MAYO_PATIENT = re.compile(r"L\d{3}", re.IGNORECASE)
_MAYO_FILE = re.compile(r"(L\d{3})_(FD|QD)_(\d+)(?:_(SHARP))?_", re.IGNORECASE)


def tag_tcia(parts: tuple[str, ...]) -> Tag | None:
    """What a path in LDCT-and-Projection-data says of its file, or None (projections, reports)."""
    # letter case and zeros differ between downloads; a patient's two doses may lie in different study folders
    folders = parts[:-1]
    series = next((found for part in reversed(folders) if (found := _TCIA_SERIES.search(part))), None)
    patient = next((found for part in folders if (found := _TCIA_PATIENT.fullmatch(part))), None)
    if not series or not patient:
        return None
    prefix = patient[1].upper()
    anatomy, dose = TCIA_ANATOMY[prefix]
    return Tag(f"{prefix}{int(patient[2]):03d}", series[1].lower() == "full", dose, anatomy, "")


def tag_mayo(parts: tuple[str, ...]) -> Tag | None:
    """What a path in the 2016 challenge's packagings says of its file, or None."""
    *folders, name = parts
    in_name = _MAYO_FILE.match(name)
    folder = next((found for part in reversed(folders) if (found := _MAYO_DOSE.fullmatch(part))), None)
    patient = next((part for part in reversed(folders) if _MAYO_PATIENT.fullmatch(part)), None)
    if in_name:
        patient, dose_name = in_name[1], in_name[2]
        variant = f"{in_name[3]}mm" + ("_sharp" if in_name[4] else "")
    if folder and not in_name:
        dose_name, variant = folder[1], ""
    if folder and folder[2]:
        variant = folder[2].lower()
    if not patient or not (folder or in_name):
        return None
    return Tag(patient.upper(), dose_name.lower() in ("full", "fd"), 0.25, "abdomen", variant)


def cases_from_tags(root: Path, files: list[Path], tag: Callable[[tuple[str, ...]], Tag | None]) -> tuple[Case, ...]:
    groups: dict[tuple[str, str], dict[bool, list[Path]]] = {}
    known: dict[tuple[str, str], Tag] = {}
    for file in files:
        found = tag((root.resolve().name, *file.relative_to(root).parts))
        if found and file.suffix.lower() in (".dcm", ".ima", ""):
            key = (found.patient, found.variant)
            known[key] = found
            groups.setdefault(key, {}).setdefault(found.is_full, []).append(file)
    return tuple(
        Case(
            patient=patient,
            full=_source(groups[patient, variant].get(True)),
            low=_source(groups[patient, variant].get(False)),
            dose=known[patient, variant].dose,
            anatomy=known[patient, variant].anatomy,
            variant=variant,
        )
        for patient, variant in sorted(groups)
    )


def _source(files: list[Path] | None) -> Source | None:
    return Source.of_files(files) if files else None


# --- any folder --------------------------------------------------------------------------------------------

_FULL = {"full", "fulldose", "fd", "ndct", "normaldose"}
_LOW = {"low", "lowdose", "ld", "ldct", "quarter", "quarterdose", "qd"}
_CONTAINER = re.compile(r"(images?|train|test|val|volumes?|batch|media|data|nifti|dicom)(ing|tr|ts)?\b.*", re.I)
_NOT_AN_IMAGE = re.compile(r"(^|[_\- ])(seg|segmentation|mask|label|labels|gt|4d)([_\- .\d]|$)", re.IGNORECASE)
_NO_PATIENT = re.compile(r"(anon.*|unknown|none|0*)", re.IGNORECASE)


def _role(part: str) -> bool | None:
    """True for a folder of full dose, False for low dose, None for neither."""
    word = re.sub(r"[^a-z]", "", part.lower())
    return True if word in _FULL else False if word in _LOW else None


class _Found(NamedTuple):
    key: tuple[str, ...]  # the path without the folder that names the dose: pairs share it
    is_full: bool | None
    patient: str
    files: list[Path]
    variant: str


def cases_from_folder(root: Path, files: list[Path]) -> tuple[Case, ...]:
    volumes = [file for file in files if is_volume_file(file) and not _NOT_AN_IMAGE.search(file.name)]
    found = [_describe_volume(root, file) for file in volumes]
    rest = [file for file in files if not is_volume_file(file)]
    found += [_describe_series(root, info) for info in _image_series(rest)]
    groups: dict[tuple, dict[bool, _Found]] = {}
    for one in found:
        # without a dose in its name, a series stands alone; several may share a folder
        key = one.key if one.is_full is not None else (*one.key, one.variant, str(one.files[0]))
        pair = groups.setdefault(key, {})
        if one.is_full is not None and one.is_full in pair:
            raise ScanError(
                f"{one.files[0].parent} holds two scans that could be the "
                f"{'full' if one.is_full else 'low'} dose of one pair: put each into a folder of its own"
            )
        pair[one.is_full is not False] = one
    cases = []
    for pair in groups.values():
        full, low = pair.get(True), pair.get(False)
        one = full or low
        prefix = TCIA_ANATOMY.get(one.patient[:1]) if _TCIA_PATIENT.fullmatch(one.patient) else None
        known = prefix if prefix and one.key[0] == "by description" else (None, None)
        cases.append(
            Case(
                patient=one.patient,
                full=_source(full.files if full else None),
                low=_source(low.files if low else None),
                dose=known[1],
                anatomy=known[0],
                variant=one.variant,
            )
        )
    return tuple(sorted(cases, key=lambda case: (case.patient, case.variant)))


def _image_series(files: list[Path]) -> list[SeriesInfo]:
    dicom = [file for file in files if is_dicom(file)]
    # one folder at a time: two folders may hold copies, or parts, of one series
    folders: dict[Path, list[Path]] = {}
    for file in dicom:
        folders.setdefault(file.parent, []).append(file)
    infos = [info for folder in sorted(folders) for info in list_series(folders[folder])]
    return [info for info in infos if info.unreadable is None]


def _split_role(parts: tuple[str, ...]) -> tuple[tuple[str, ...], bool | None]:
    for index, part in enumerate(parts):
        if _role(part) is not None:
            return parts[:index] + parts[index + 1 :], _role(part)
    return parts, None


def _describe_volume(root: Path, file: Path) -> _Found:
    folders, is_full = _split_role(file.relative_to(root).parts[:-1])
    own = [part for part in folders if not _CONTAINER.fullmatch(part)]
    stem = file.name.split(".")[0]
    return _Found((*folders, file.name), is_full, own[0] if own else stem, [file], stem)


def _describe_series(root: Path, info: SeriesInfo) -> _Found:
    folders, is_full = _split_role(info.files[0].parent.relative_to(root).parts)
    own = [part for part in folders if not _CONTAINER.fullmatch(part)]
    patient = info.patient_id.strip()
    if _NO_PATIENT.fullmatch(patient):
        patient = own[0] if own else root.resolve().name
    described = _TCIA_SERIES.search(info.description)
    if is_full is None and described:
        return _Found(("by description", patient), described[1].lower() == "full", patient, list(info.files), "")
    return _Found(("dicom", *folders), is_full, patient, list(info.files), info.description)
