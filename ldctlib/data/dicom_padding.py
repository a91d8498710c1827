"""Pixels of a DICOM image that were not measured: padding, as the header declares it or as scanners write it unsaid."""

from __future__ import annotations

from typing import Any

import numpy as np

UNDECLARED_PADDING_HU = -1500.0
"""No material reads less than -1000 HU, and noise and undershoot seldom pass -1500 HU."""
UNDECLARED_PADDING_SHARE = 0.005
"""Share of a slice that its smallest value must fill before it is taken for undeclared padding."""


def wrap(value: int, bits: int, signed: bool) -> int:
    """An integer's bits, read as ``bits`` wide and signed or not: 63536 is -2000 in signed 16 bits."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def declared_padding(stored: np.ndarray, header: Any, bits: int, signed: bool) -> np.ndarray:
    """Pixels from PixelPaddingValue to PixelPaddingRangeLimit, compared by their bits.

    Writers differ in the sign that they give the tag. ``stored`` is any integer array with all allocated bits still
    in place.
    """
    if header.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, bool)
    value = wrap(int(header.PixelPaddingValue), bits, signed)
    limit = header.get("PixelPaddingRangeLimit")
    limit = value if limit is None else wrap(int(limit), bits, signed)
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def undeclared_padding(stored: np.ndarray, values_hu: np.ndarray) -> np.ndarray:
    """Padding that the header does not name, of arrays (D, H, W).

    It is a slice's smallest stored value, far below air and constant over a visible area: GE scanners store -2000
    outside the circle, whatever the tag says.
    """
    smallest = stored.min(axis=(1, 2), keepdims=True)
    found = (stored == smallest) & (values_hu < UNDECLARED_PADDING_HU)
    return found & (found.mean(axis=(1, 2), keepdims=True) >= UNDECLARED_PADDING_SHARE)
