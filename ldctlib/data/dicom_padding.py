"""Pixels of a DICOM image that were not measured: padding, as the header declares it or as scanners write it unsaid."""

from __future__ import annotations

from typing import Any

import numpy as np

PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
UNDECLARED_PADDING_HU = -1500.0
"""No material reads less than -1000 HU, and noise and undershoot seldom pass -1500 HU."""
UNDECLARED_PADDING_SHARE = 0.005
"""Share of a slice that its smallest value must fill before it is taken for undeclared padding."""

TISSUE_HU = -900.0
"""Above it a padding value may be lung, fat or water as well."""


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


def lies_outside(padding: np.ndarray, values_hu: np.ndarray) -> np.ndarray:
    """Of declared padding (D, H, W), what can be padding: a value that tissue has, too (a PixelPaddingValue of 0 where
    0 is water) pads only where it fills a visible area that reaches a corner of the slice."""
    if not padding.any() or not (tissue := padding & (values_hu > TISSUE_HU)).any():
        return padding
    return (padding & ~tissue) | _fills_corners(tissue)


def _fills_corners(mask: np.ndarray) -> np.ndarray:
    """Connected parts of a mask (D, H, W), slice by slice, that hold a corner and are of some size."""
    from scipy.ndimage import label

    out = np.zeros(mask.shape, bool)
    for k in np.flatnonzero(_corners(mask).any(axis=0)):
        parts, _ = label(mask[k])
        sizes = np.bincount(parts.ravel())
        at = {int(part) for part in _corners(parts) if part and sizes[part] >= UNDECLARED_PADDING_SHARE * mask[k].size}
        out[k] = np.isin(parts, list(at))
    return out


def _corners(images: np.ndarray) -> np.ndarray:
    """The corners of images (..., H, W), as (4, ...)."""
    return np.stack([images[..., y, x] for y in (0, -1) for x in (0, -1)])


def padding_doubts(tissue: np.ndarray, padding: np.ndarray, values_hu: np.ndarray) -> tuple[str, ...]:
    """Notes on declared padding that was taken for ``tissue``, and on corners that look like undeclared padding."""
    notes = ()
    if tissue.any():
        value = f"{values_hu[tissue].min():g} HU"
        notes += (f"the declared padding value is {value}, as tissue may be: inside the patient it is a measurement",)
    corners = _corners(values_hu)
    same = (corners == corners[0]).all(axis=0) & (corners[0] > TISSUE_HU) & ~_corners(padding).any(axis=0)
    for k in np.flatnonzero(same):
        share = (values_hu[k] == corners[0][k]).mean()
        if UNDECLARED_PADDING_SHARE <= share < 1:
            told = f"{corners[0][k]:g} HU, as padding that the header does not declare would: it was left as it is"
            return (*notes, f"all corners of a slice read {told}")
    return notes


def undeclared_padding(stored: np.ndarray, values_hu: np.ndarray) -> np.ndarray:
    """Padding that the header does not name, of arrays (D, H, W).

    It is a slice's smallest stored value, far below air and constant over a visible area or in two corners: GE scanners
    store -2000 outside the circle, whatever the tag says.
    """
    smallest = stored.min(axis=(1, 2), keepdims=True)
    found = (stored == smallest) & (values_hu < UNDECLARED_PADDING_HU)
    large = found.mean(axis=(1, 2)) >= UNDECLARED_PADDING_SHARE
    return found & (large | (_corners(found).sum(axis=0) >= 2))[:, None, None]
