"""Pixels of a DICOM image that were not measured: padding, as the header declares it or as scanners write it unsaid."""

from __future__ import annotations

from typing import Any

import numpy as np

PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
UNDECLARED_PADDING_HU = -1500.0
"""No material reads less than -1000 HU, and noise and undershoot seldom pass -1500 HU."""
UNDECLARED_PADDING_SHARE = 0.005
"""Share of a slice that its smallest value must fill before it is taken for undeclared padding."""


def wrap(value: int, bits: int, signed: bool) -> int:
    """An integer's bits, read as ``bits`` wide and signed or not: 63536 is -2000 in signed 16 bits."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def padding_bits(header: Any, allocated: int, used: int, signed: bool) -> int:
    """Bits that padding is compared in: the ``used`` ones, since those above need not repeat the sign (PS3.5, 8.1.1);
    all that are allocated where the declared value has no place in them."""
    ends = [int(end) for end in (header.get(tag) for tag in PADDING) if end is not None]
    fits = all(wrap(end, used, signed) == wrap(end, allocated, signed) for end in ends)
    return used if fits or not any(wrap(end, allocated, False) >> used for end in ends) else allocated


def declared_padding(stored: np.ndarray, header: Any, bits: int, signed: bool) -> np.ndarray:
    """Pixels from PixelPaddingValue to PixelPaddingRangeLimit, of integers of :func:`padding_bits`.

    Writers differ in the sign that they give the tag.
    """
    value, limit = (header.get(tag) for tag in PADDING)
    if value is None:
        return np.zeros(stored.shape, bool)
    ends = [wrap(int(end), bits, signed) for end in (value, value if limit is None else limit)]
    return (stored >= min(ends)) & (stored <= max(ends))


def undeclared_padding(stored: np.ndarray, values_hu: np.ndarray) -> np.ndarray:
    """Padding that the header does not name, of arrays (D, H, W).

    It is a slice's smallest stored value, far below air and constant over a visible area: GE scanners store -2000
    outside the circle, whatever the tag says.
    """
    smallest = stored.min(axis=(1, 2), keepdims=True)
    found = (stored == smallest) & (values_hu < UNDECLARED_PADDING_HU)
    return found & (found.mean(axis=(1, 2), keepdims=True) >= UNDECLARED_PADDING_SHARE)
