"""Text of DICOM headers: the source's kept byte for byte, ours fitted to its character set."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

TEXT = {"LO", "LT", "PN", "SH", "ST", "UC", "UT"}
"""Value representations that SpecificCharacterSet has a say in."""


def exact_text(header: Any) -> dict[int, bytes]:
    """Text of a header just read that is no ASCII, as its bytes: decoded by a wrong character set, as some exports name
    it, a name would be another."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    out = {}
    for element in map(header.get_item, header.keys()):
        if element.is_raw and isinstance(element.value, bytes) and not element.value.isascii():
            known = element.VR or (dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else None)
            if known in TEXT:
                out[int(element.tag)] = element.value
    return out


def restore_text(dataset: Any, exact: dict[int, bytes], header: Any, but: Iterable[str]) -> None:
    """Put the bytes back in place, for writing in explicit little endian; ``header`` is what they come from, ``but``
    what is no longer the source's."""
    from pydicom.datadict import keyword_for_tag
    from pydicom.dataelem import RawDataElement
    from pydicom.filewriter import correct_ambiguous_vr
    from pydicom.tag import Tag

    if not exact:
        return
    correct_ambiguous_vr(dataset, True)
    # what is encoded as the file will be is written as it is
    dataset.set_original_encoding(False, True, getattr(dataset, "_character_set", None))
    for tag, value in ((Tag(number), value) for number, value in exact.items()):
        if tag in dataset and keyword_for_tag(tag) not in but:
            dataset[tag] = RawDataElement(tag, header[tag].VR, len(value), value, 0, False, True)


def fitting(text: str, header: Any) -> str:
    """The text if the header's character set can say it, else without accents and what else is not ASCII."""
    from pydicom.charset import convert_encodings, encode_string

    if (sets := header.get("SpecificCharacterSet")) and not text.isascii():
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pydicom's, of what it replaces
            with suppress(UserWarning, LookupError, ValueError):
                encode_string(text, convert_encodings(sets))
                return text
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
