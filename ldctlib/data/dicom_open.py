"""Which files are DICOM, and opening them, also those without a preamble, which some exports and old archives hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldctlib.errors import ScanError

GUESSED = "the file has no meta header: how it is encoded was taken from its first bytes"


def is_dicom(file: Path) -> bool:
    """Whether the file carries DICOM's mark, or begins as a data set without preamble does."""
    try:
        with open(file, "rb") as stream:
            start = stream.read(132)
    except OSError as error:
        raise ScanError(f"{file} cannot be opened: {error}") from error
    return start[128:] == b"DICM" or _begins_a_data_set(start)


def _begins_a_data_set(start: bytes) -> bool:
    """Whether an element of group 2 or 8 comes first: explicit, with a VR of two capitals, or implicit and short."""
    if start[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08") or len(start) < 132:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    little = start[1] == 0  # without a meta header big endian is always explicit
    return explicit or (little and start[3] == 0 and 0 < int.from_bytes(start[4:8], "little") <= 64)


def open_dicom(file: Path, **options: Any) -> Any:
    """pydicom's data set of a file; ``options`` as of ``dcmread``. What has no meta header gets the transfer syntax
    that its bytes speak for, and the attribute ``guessed``."""
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    header = dcmread(file, force=True, **options)
    if header.preamble is None and "TransferSyntaxUID" not in header.file_meta:
        implicit, little = header.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        header.guessed = True
    return header
