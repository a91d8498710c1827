"""How well a segmentation agrees with a reference: overlap, and distance of the surfaces in mm.

An organ that one of the two lacks is an error, and counts as one: its overlap is 0 and its Hausdorff distance is the
image's diagonal, so that a mean over cases cannot improve by a missed organ (MONAI makes such a distance NaN and leaves
it out) nor by an invented one (TransUNet's script gives a Dice of 1 to a prediction where the reference is empty).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.metrics.statistics import paired_bootstrap

EMPTY = ("skip", "agree")


class SegmentationScores(NamedTuple):
    """Of every image and class, each (B, C) float64."""

    dice: np.ndarray
    iou: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    hausdorff_mm: np.ndarray
    hausdorff95_mm: np.ndarray
    classes: tuple[int, ...]


class MeanScore(NamedTuple):
    """A mean over cases with its interval; NaN limits where the patients are too few."""

    value: float
    low: float
    high: float
    n: int  # cases that count


def segmentation_scores(
    prediction,
    reference,
    *,
    pixel_mm: float | tuple[float, float],
    classes: Sequence[int] | None = None,
    empty: str = "skip",
) -> SegmentationScores:
    """Dice, IoU, precision, recall and Hausdorff distances of label maps.

    prediction, reference : integers or bool (H, W), (B, H, W) or (B, 1, H, W), tensors or arrays; bool is class 1
    pixel_mm : the distance of rows and of columns, or one number for both
    classes : labels to compare; by default those above 0 that occur in any of the images
    empty : where a class is in neither: "skip" gives NaN, so that the case does not count, "agree" gives an overlap of
        1 and a distance of 0. In one alone the overlap, precision and recall are 0 and the distances the diagonal of
        the image between the centres of its corners, whatever ``empty`` is

    A surface is the pixels of a class with one of their four neighbours outside it, or outside the image. With d(A, B)
    the distances from every pixel of A's surface to the nearest of B's, ``hausdorff_mm`` is max(max d(A, B),
    max d(B, A)), and ``hausdorff95_mm`` the same of the 95th percentiles, the larger of the two directions.

    Raises ShapeError and ParameterError for what cannot be compared.
    """
    prediction, reference = _labels(prediction, "prediction"), _labels(reference, "reference")
    if prediction.shape != reference.shape:
        raise ShapeError(f"prediction {prediction.shape} and reference {reference.shape} must have one shape")
    spacing = np.broadcast_to(np.asarray(pixel_mm, float), 2)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise ParameterError(f"pixel_mm must be > 0, got {pixel_mm}")
    if empty not in EMPTY:
        raise ParameterError(f"empty is one of {EMPTY}, got {empty!r}")
    if classes is None:
        classes = np.union1d(np.unique(prediction), np.unique(reference))
        classes = classes[classes > 0]
    classes = tuple(int(c) for c in classes)
    if not classes:
        raise ParameterError("there is no class to compare: both are background everywhere; name the classes")
    diagonal = float(np.hypot(*(spacing * (np.array(reference.shape[1:]) - 1))))
    scores = np.empty((6, len(reference), len(classes)))
    for i, (p, r) in enumerate(zip(prediction, reference, strict=True)):
        for j, c in enumerate(classes):
            scores[:, i, j] = _scores(p == c, r == c, spacing, diagonal, 1.0 if empty == "agree" else np.nan)
    return SegmentationScores(*scores, classes)


def mean_scores(
    scores: SegmentationScores, patients: Sequence | None = None, **options
) -> dict[int, dict[str, MeanScore]]:
    """Class -> metric -> mean over the cases that count, with the interval of :func:`paired_bootstrap`.

    patients : of every image, so that a patient's images stay together; by default each image on its own
    options : ``level``, ``resamples`` and ``seed``
    """
    patients = np.arange(len(scores.dice)) if patients is None else np.asarray(patients)
    out: dict[int, dict[str, MeanScore]] = {c: {} for c in scores.classes}
    for name in scores._fields[:-1]:
        for c, values in zip(scores.classes, getattr(scores, name).T, strict=True):
            if patients.shape != values.shape:
                raise ParameterError(f"patients names one patient for each of {len(values)} images")
            counts = ~np.isnan(values)
            mean = paired_bootstrap(values[counts], patients[counts], **options) if counts.any() else (np.nan,) * 3
            out[c][name] = MeanScore(*mean, int(counts.sum()))
    return out


def _labels(labels, name: str) -> np.ndarray:
    """As an array (B, H, W)."""
    labels = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
    if labels.dtype.kind not in "iub":
        raise ParameterError(f"{name} must be labels (integers) or a mask (bool), got {labels.dtype}")
    if labels.ndim == 4 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (2, 3) or not labels.size:
        raise ShapeError(f"{name} must be (H, W), (B, H, W) or (B, 1, H, W), got {labels.shape}")
    return labels.reshape(-1, *labels.shape[-2:])


def _scores(p: np.ndarray, r: np.ndarray, spacing: np.ndarray, diagonal: float, agree: float) -> tuple[float, ...]:
    n_p, n_r = int(p.sum()), int(r.sum())
    if not n_p and not n_r:
        return (agree,) * 4 + (agree - 1,) * 2
    if not n_p or not n_r:
        return (0.0,) * 4 + (diagonal,) * 2
    both = int((p & r).sum())
    directed = _surface_distances(p, r, spacing)
    hausdorff = max(d.max() for d in directed), max(np.percentile(d, 95) for d in directed)
    return 2 * both / (n_p + n_r), both / (n_p + n_r - both), both / n_p, both / n_r, *hausdorff


def _surface_distances(a: np.ndarray, b: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In mm from every pixel of a's surface to the nearest of b's, and the reverse."""
    from scipy import ndimage

    either = a | b
    rows, columns = np.flatnonzero(either.any(axis=1)), np.flatnonzero(either.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # the transform of no more than is needed
    a, b = (mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (a, b))
    to_a, to_b = (ndimage.distance_transform_edt(~mask, sampling=spacing) for mask in (a, b))
    return to_b[a], to_a[b]
