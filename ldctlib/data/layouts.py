"""Where collections keep their scans: from the names of files and folders to cases."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ldctlib.data.case import Case, Source
from ldctlib.data.cine_layouts import CINE_LAYOUTS, cine_cases
from ldctlib.data.dicom_open import is_dicom
from ldctlib.data.dicom_read import SeriesInfo, files_below, list_series
from ldctlib.data.dose_marks import SETTINGS, split_mark
from ldctlib.data.lits_layout import lits_cases
from ldctlib.data.nifti import is_label_map, is_volume_file, volume_stem
from ldctlib.errors import ScanError

TCIA_ANATOMY = {"C": ("chest", 0.10), "L": ("abdomen", 0.25), "N": ("head", 0.25)}
"""Prefix of a patient in LDCT-and-Projection-data: anatomy, and dose of the "Low Dose Images"."""

MAYO_PATIENTS = {"L067", "L096", "L109", "L143", "L192", "L286", "L291", "L310", "L333", "L506"}
"""Who has both doses in the 2016 challenge, the low one a quarter, whatever its folder is called."""

_LABEL = r"(?:labels?|labell?ed|masks?|segs?|segmentations?|annotations?)"
_BESIDE = (
    r"(?:manual|auto|expert|all|organs?|dicom|dcm|nifti|nii|images?|maps?|vol(?:ume)?s?|"
    r"train(?:ing)?|test|val|t[rs]|gt|\d++)"
)
_LABEL_FOLDER = re.compile(rf"(?:{_BESIDE}[\s_.-]*)*{_LABEL}[\s_.-]*(?:(?:{_LABEL}|{_BESIDE})[\s_.-]*)*", re.IGNORECASE)
_LABEL_FILE = re.compile(rf"(?:^|[_\- .])(?:{_LABEL}|4d)(?:[_\- .\d]|$)", re.IGNORECASE)
_PROJECTIONS = re.compile(r"(?:full|low)[ _-]*dose[ _-]*projections|dicom[ _-]ct[ _-]pd", re.IGNORECASE)


def cases_below(root: Path, layout: str) -> tuple[str, tuple[Case, ...]]:
    """The layouts that the files below ``root`` are in, joined by "+", and their cases by patient and variant.

    With layout "auto", what no published layout places goes to the reader of any folder, so that nothing is lost.
    Folders of labels and of raw projections are passed over.
    """
    files = files_below(root)
    found: dict[str, tuple[Case, ...]] = {}
    for name in CINE_LAYOUTS:  # first: M&Ms' scans lie in a folder called "Labeled"
        if layout in ("auto", name):
            found[name], files = cine_cases(root, files, name)
    if layout in ("auto", "lits"):  # its segmentations may have a folder of their own
        found["lits"], files = lits_cases(files)
    files = [file for file in files if not _passed_over(file.relative_to(root).parts[:-1])]
    for name, tag in (("tcia", tag_tcia), ("mayo2016", tag_mayo)):
        if layout in ("auto", name):
            found[name], files = cases_from_tags(root, files, tag)
    if layout in ("auto", "folder"):
        found["folder"] = cases_from_folder(root, files)
    cases = [case for of_one in found.values() for case in of_one]
    cases.sort(key=lambda case: (case.patient, case.variant))
    return "+".join(name for name, of_one in found.items() if of_one), tuple(cases)


def _passed_over(folders: tuple[str, ...]) -> bool:
    return any(_LABEL_FOLDER.fullmatch(part) or _PROJECTIONS.search(part) for part in folders)


class Tag(NamedTuple):
    """What a path says of the file at its end."""

    patient: str
    is_full: bool
    dose: float | None
    anatomy: str | None
    variant: str


_TCIA_SERIES = re.compile(r"(full|low)[ _-]*dose[ _-]*images", re.IGNORECASE)
_TCIA_PATIENT = re.compile(r"([CLN])0*(\d{1,3})", re.IGNORECASE)
_MAYO_PATIENT = re.compile(r"(L\d{3})(?:[\s_-]+(.+))?", re.IGNORECASE)
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
    """What a path in the 2016 challenge's packagings, or re-sorted from them, says of its file, or None."""
    *folders, name = parts
    in_name = _MAYO_FILE.match(name)
    marks = (split_mark(part) for part in reversed(folders))
    folder = next((mark for mark in marks if mark.is_full is not None and mark.certain), None)
    in_folder = next((found for part in reversed(folders) if (found := _MAYO_PATIENT.fullmatch(part))), None)
    if not (in_name or (folder and in_folder)):
        return None
    patient = (in_name or in_folder)[1].upper()
    said = [folder.rest if folder else "", (in_folder and in_folder[2]) or ""]
    if in_name:  # which says the thickness
        said = [f"{in_name[3]}mm", in_name[4] or "", *(re.sub(r"\d+mm", "", text) for text in said)]
    else:
        said += [part for part in folders if SETTINGS.fullmatch(part) and re.search(r"\d|sharp|soft", part)]
    variant = "_".join(dict.fromkeys(re.split(r"[\s_-]+", " ".join(said).strip(" _-").lower())))
    quarter = in_name is not None or folder.quarter or patient in MAYO_PATIENTS
    is_full = in_name[2].upper() == "FD" if in_name else folder.is_full
    return Tag(patient, is_full, 0.25 if quarter else None, "abdomen" if quarter else None, variant)


def cases_from_tags(root: Path, files: list[Path], tag: Callable) -> tuple[tuple[Case, ...], list[Path]]:
    """The cases of the files that a layout's ``tag`` (:func:`tag_tcia`, :func:`tag_mayo`) places, and the others."""
    groups: dict[tuple[str, str], dict[bool, list[Path]]] = {}
    known: dict[tuple[str, str], Tag] = {}
    rest = []
    for file in files:
        suffix = file.suffix.lower()
        found = tag((root.resolve().name, *file.relative_to(root).parts)) if suffix in (".dcm", ".ima", "") else None
        if found is None or (not suffix and not is_dicom(file)):
            rest.append(file)
            continue
        key = (found.patient, found.variant)
        if found.dose or key not in known:
            known[key] = found
        groups.setdefault(key, {}).setdefault(found.is_full, []).append(file)
    cases = []
    for key, pair in groups.items():
        scans = {is_full: Source.of_files(files) for is_full, files in pair.items()}
        cases.append(Case(key[0], scans.get(True), scans.get(False), known[key].dose, known[key].anatomy, key[1]))
    return tuple(cases), rest


_CONTAINER = re.compile(
    r"(?:images?|train|test|val|volumes?|batch|media|data|nifti|dicom)(?:ing|tr|ts|set)?\b.*|"
    r"imgs?|scans?|cts?|(?:task|dataset)\d+_.*|.*[_-]dataset.*|.*(?:train|test)(?:ing)?(?:[_ -]?data)?",
    re.IGNORECASE,
)
"""Folders that hold many patients."""
_CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net counts the channels of one patient in the names of its images
_THICKNESS = re.compile(r"[\s_-]*\d+(?:\.\d+)?mm")
_SLICE_NUMBER = re.compile(r"(?:^|[\s_.-])[a-z]{0,3}\d+$", re.IGNORECASE)
_NO_PATIENT = re.compile(r"(anon.*|unknown|none|0*)", re.IGNORECASE)


class _Found(NamedTuple):
    """A scan in a folder, before it is known whether the dose marks in its path are meant."""

    files: list[Path]
    folders: tuple[str, ...]
    name: str  # of a volume's file, or what the files of a DICOM series have in common in theirs
    is_volume: bool
    patient: str = ""  # as the header says
    description: str = ""  # as the header says


class _Place(NamedTuple):
    """Where a scan belongs: the two doses of a pair have one key."""

    key: tuple[str, ...]
    is_full: bool | None
    patient: str
    variant: str
    quarter: bool
    by_patient: bool  # whether the key begins with a folder of the patient's own


def cases_from_folder(root: Path, files: list[Path]) -> tuple[Case, ...]:
    """Cases of DICOM series, NIfTI and NumPy files in any folders; dose marks in folder or file names make pairs.

    A mark that may belong to another term ("low" in "low contrast") counts only where some scan has its partner.
    """
    found = [_volume(root, file) for file in files if is_volume_file(file) and not _LABEL_FILE.search(file.name)]
    found += [_series(root, info) for info in _image_series([file for file in files if not is_volume_file(file)])]
    places = [_place(root, one, uncertain=False) for one in found]
    maybe = [_place(root, one, uncertain=True) for one in found]
    doses = {(place.key, place.is_full) for place in maybe}
    pairs = {key for key, _ in doses if {(key, True), (key, False)} <= doses}
    if any(place.is_full is None and other.key in pairs for place, other in zip(places, maybe, strict=True)):
        places = maybe
    groups: dict[tuple, dict[bool, tuple[_Found, _Place]]] = {}
    for one, place in zip(found, places, strict=True):
        if one.is_volume and place.is_full is None and is_label_map(one.files[0]):
            continue
        # without a dose in its name, a scan stands alone; several may share a folder
        key = place.key if place.is_full is not None else (*place.key, str(one.files[0]))
        pair = groups.setdefault(key, {})
        if place.is_full in pair:
            what = f"two scans that could be the {'full' if place.is_full else 'low'} dose of one pair"
            raise ScanError(f"{one.files[0].parent} holds {what}: put each into a folder of its own")
        pair[place.is_full is not False] = one, place
    return tuple(_case(pair) for pair in _joined_by_folder(list(groups.values())))


def _joined_by_folder(pairs: list[dict[bool, tuple[_Found, _Place]]]) -> list[dict[bool, tuple[_Found, _Place]]]:
    """The same; a patient's folder with one full-dose and one low-dose volume makes a pair, whatever their names."""
    alone: dict[tuple, list[dict]] = {}
    for pair in pairs:
        one, place = next(iter(pair.values()))
        if len(pair) == 1 and one.is_volume and place.is_full is not None and place.by_patient:
            alone.setdefault(place.key[:-1], []).append(pair)
    for both in alone.values():
        if len(both) == 2 and both[0].keys() != both[1].keys():
            both[0].update(both[1])
            pairs.remove(both[1])
    return pairs


def _case(pair: dict[bool, tuple[_Found, _Place]]) -> Case:
    scans = {is_full: Source.of_files(one.files) for is_full, (one, _) in pair.items()}
    one, place = pair.get(True) or pair[False]
    dose, anatomy = (0.25 if any(other.quarter for _, other in pair.values()) else None), None
    if place.key[0] == "by description" and _TCIA_PATIENT.fullmatch(place.patient):
        anatomy, dose = TCIA_ANATOMY[place.patient[0]]
    elif place.patient in MAYO_PATIENTS:
        anatomy, dose = "abdomen", 0.25
    return Case(place.patient, scans.get(True), scans.get(False), dose, anatomy, place.variant)


def _image_series(files: list[Path]) -> list[SeriesInfo]:
    # one folder at a time: two folders may hold copies, or parts, of one series
    folders: dict[Path, list[Path]] = {}
    for file in filter(is_dicom, files):
        folders.setdefault(file.parent, []).append(file)
    infos = [info for folder in sorted(folders) for info in list_series(folders[folder])]
    return [info for info in infos if info.unreadable is None]


def _volume(root: Path, file: Path) -> _Found:
    folders, name = file.relative_to(root).parts[:-1], volume_stem(file)
    if any(part.lower().startswith("images") for part in folders):
        name = _CHANNEL.sub("", name)
    return _Found([file], folders, name, True)


def _series(root: Path, info: SeriesInfo) -> _Found:
    folders = info.files[0].parent.relative_to(root).parts
    marks = {split_mark(_SLICE_NUMBER.sub("", file.stem)) for file in info.files}
    # one mark in all names, as of two doses in one folder; else names count slices and say nothing
    name = _SLICE_NUMBER.sub("", info.files[0].stem) if len(marks) == 1 and marks.pop().is_full is not None else ""
    return _Found(list(info.files), folders, name, False, info.patient_id.strip(), info.description)


def _place(root: Path, one: _Found, *, uncertain: bool) -> _Place:
    """A scan's place by the names in its path, with or without the marks that may mean something else."""
    said = [mark for mark in map(split_mark, (*one.folders, one.name)) if mark.is_full is not None]
    mark = next((mark for mark in said if mark.certain), said[0] if said and uncertain else None)
    is_full = mark.is_full if mark else None
    folders, own, settings = [], [], []
    for part in one.folders:
        stripped = mark is not None and split_mark(part).is_full == is_full
        part = split_mark(part).rest if stripped else part
        folders.append(part)
        if stripped and SETTINGS.fullmatch(part):
            settings.append(part)
        elif not _CONTAINER.fullmatch(part):
            own.append(part)
    name = split_mark(one.name).rest if mark and split_mark(one.name).is_full == is_full else one.name
    if not one.is_volume and folders != list(one.folders):
        name = ""  # the folder says the dose, and files may be called otherwise in the other folder
    patient = one.patient
    if _NO_PATIENT.fullmatch(patient):
        patient = own[0] if own else _THICKNESS.sub("", name) or root.resolve().name
    if published := re.match(r"[CLN]\d{3}(?![a-z0-9])", patient, re.IGNORECASE):
        patient = published[0].upper()
    described = _TCIA_SERIES.search(one.description)
    if is_full is None and described:
        return _Place(("by description", patient), described[1].lower() == "full", patient, "", False, False)
    kind = "volume" if one.is_volume else "dicom"
    key = tuple(part.casefold() for part in (kind, *filter(None, folders), name))
    quarter = any(mark.quarter for mark in said if mark.is_full == is_full)
    more = [*(part for part in own if part != patient), *settings, name if one.is_volume else one.description]
    return _Place(key, is_full, patient, "/".join(filter(None, more)), quarter, bool(own))
