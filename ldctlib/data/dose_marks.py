"""Words for a dose in the names of files and folders: ``full``, ``quarter_1mm``, ``P1-LDCT``, ``low dose images``."""

from __future__ import annotations

import re
from typing import NamedTuple

_MARK = re.compile(
    r"(?<![a-z0-9])(?:"
    r"(?P<sure_full>(?:full|normal|routine|standard|high)[\s_.-]*dose|fd|fdct|ndct|hdct)"
    r"|(?P<sure_low>(?:low|quarter|reduced)[\s_.-]*dose|ld|qd|ldct|qdct)"
    r"|(?P<full>full)|(?P<low>low|quarter)"
    r")(?![a-z0-9])",
    re.IGNORECASE,
)
_SETTING = (
    r"\d+(?:\.\d+)?\s*mm|[a-z]{1,2}\d{2}[fsdh]|sharp|soft|"
    r"dose|ct|scans?|im(?:age|g)?s?|data|dicom|dcm|nifti|nii|series"
)
SETTINGS = re.compile(rf"(?:(?:{_SETTING})[\s_.-]*)*", re.IGNORECASE)
"""Thickness, kernel and words for files: they tell no patient, and "full" beside them is a dose ("full_1mm_B30f")."""
_SETTINGS_OR_NUMBER = re.compile(rf"(?:(?:{_SETTING}|\d++)[\s_.-]*)*", re.IGNORECASE)


class Mark(NamedTuple):
    """A name's dose, and what else the name says."""

    rest: str  # the name without the mark: the two doses of one scan share it
    is_full: bool | None  # None where nothing is said
    certain: bool  # False where "full", "low" or "quarter" stands among other words and may belong to them
    quarter: bool  # whether the mark itself says a quarter


def split_mark(name: str) -> Mark:
    """Take the dose mark out of a name; of several, one that is certain, else the last."""
    found = list(_MARK.finditer(name))
    if not found:
        return Mark(name, None, False, False)
    sure = [match for match in found if match.lastgroup.startswith("sure")]
    match = (sure or found)[-1]
    before, after = name[: match.start()].rstrip(" _.-"), name[match.end() :].lstrip(" _.-")
    rest = "_".join(filter(None, (before, after)))
    certain = bool(sure) or _SETTINGS_OR_NUMBER.fullmatch(rest) is not None
    return Mark(rest, match.lastgroup.endswith("full"), certain, match[0][0].lower() == "q")
