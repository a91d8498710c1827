"""Overlap and surface distances: closed forms, a brute-force computation, scikit-image's, and what is empty."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.metrics.segmentation import mean_scores, segmentation_scores


def disk(size: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def blobs(seed: int, size: int = 40) -> np.ndarray:
    """Random labels 0 to 2 in patches, with holes and several components."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(np.random.default_rng(seed).standard_normal((size, size)), 3)
    return np.digitize(field, np.quantile(field, [0.5, 0.8]))


def surface(mask: np.ndarray) -> np.ndarray:
    """Pixels (n, 2) with a neighbour outside, by shifts of a padded mask."""
    p = np.pad(mask, 1)
    inside = p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:]
    return np.argwhere(mask & ~inside)


def test_two_disks_have_the_overlap_of_a_lens():
    """Two disks of radius r at distance d share 2 r² acos(d / 2r) - d/2 √(4r² - d²)."""
    r, d = 100.0, 80.0
    p, t = disk(320, 160, 120, r), disk(320, 160, 120 + d, r)
    lens = 2 * r**2 * np.arccos(d / (2 * r)) - d / 2 * np.sqrt(4 * r**2 - d**2)
    area = np.pi * r**2
    found = segmentation_scores(p, t, pixel_mm=0.7)
    assert found.classes == (1,) and found.dice.shape == (1, 1)
    for name, expected in (("dice", lens / area), ("iou", lens / (2 * area - lens))):
        assert getattr(found, name).item() == pytest.approx(expected, rel=3e-3), name  # pixels of a circle's border
    assert found.precision.item() == pytest.approx(found.recall.item(), rel=3e-3)
    assert found.hausdorff_mm.item() == pytest.approx(0.7 * d, rel=1e-9)  # from the far poles


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.6, 1.7)])
def test_every_class_equals_a_brute_force_computation(spacing):
    from skimage.metrics import hausdorff_distance

    prediction, reference = (np.stack([blobs(s + k) for s in (0, 10)]) for k in (0, 1))
    found = segmentation_scores(torch.from_numpy(prediction)[:, None], reference, pixel_mm=spacing)
    assert found.classes == (1, 2)
    for i, j in np.ndindex(2, 2):
        p, r = prediction[i] == j + 1, reference[i] == j + 1
        true_positive, false_positive, missed = (p & r).sum(), (p & ~r).sum(), (~p & r).sum()
        assert found.precision[i, j] == true_positive / (true_positive + false_positive)
        assert found.recall[i, j] == true_positive / (true_positive + missed)
        assert found.dice[i, j] == pytest.approx(2 / (1 / found.precision[i, j] + 1 / found.recall[i, j]))
        assert found.iou[i, j] == pytest.approx(found.dice[i, j] / (2 - found.dice[i, j]))
        a, b = surface(p) * spacing, surface(r) * spacing
        pairs = np.linalg.norm(a[:, None] - b, axis=-1)
        one, other = pairs.min(axis=1), pairs.min(axis=0)
        assert found.hausdorff_mm[i, j] == pytest.approx(max(one.max(), other.max()), rel=1e-12)
        expected = max(np.percentile(one, 95), np.percentile(other, 95))
        assert found.hausdorff95_mm[i, j] == pytest.approx(expected, rel=1e-12)
        assert found.hausdorff95_mm[i, j] < found.hausdorff_mm[i, j]
        if spacing == (1.0, 1.0):
            a, b = (np.zeros(p.shape, bool) for _ in range(2))
            a[tuple(surface(p).T)] = b[tuple(surface(r).T)] = True
            assert found.hausdorff_mm[i, j] == pytest.approx(hausdorff_distance(a, b), rel=1e-12)


def test_identity_and_a_shift():
    square = np.zeros((30, 40), bool)
    square[5:15, 8:20] = True
    same = segmentation_scores(square, square, pixel_mm=1.0)
    assert [v.item() for v in same[:6]] == [1, 1, 1, 1, 0, 0]
    shifted = segmentation_scores(np.roll(square, 3, axis=1), square, pixel_mm=(5.0, 0.5))
    assert shifted.hausdorff_mm.item() == shifted.hausdorff95_mm.item() == 1.5  # columns are 0.5 mm apart
    assert shifted.dice.item() == 9 / 12


def test_one_pixel_off_moves_the_maximum_and_not_the_95th_percentile():
    reference = disk(200, 100, 80, 40)
    prediction = reference.copy()
    prediction[100, 180] = True
    found = segmentation_scores(prediction, reference, pixel_mm=1.0)
    assert (found.hausdorff_mm.item(), found.hausdorff95_mm.item()) == (60.0, 0.0)


def test_the_policy_for_what_is_empty():
    nothing, organ = np.zeros((31, 41), int), np.zeros((31, 41), int)
    organ[4:8, 5:9] = 2
    prediction, reference = np.stack([nothing, nothing, organ, organ]), np.stack([nothing, organ, nothing, organ])
    skip = segmentation_scores(prediction, reference, pixel_mm=(3.0, 1.0), classes=(2,))
    agree = segmentation_scores(prediction, reference, pixel_mm=(3.0, 1.0), classes=(2,), empty="agree")
    diagonal = np.hypot(90, 40)
    for name in ("dice", "iou", "precision", "recall"):
        np.testing.assert_array_equal(getattr(skip, name)[:, 0], [np.nan, 0, 0, 1])
        np.testing.assert_array_equal(getattr(agree, name)[:, 0], [1, 0, 0, 1])
    for name in ("hausdorff_mm", "hausdorff95_mm"):
        np.testing.assert_allclose(getattr(skip, name)[:, 0], [np.nan, diagonal, diagonal, 0])
        np.testing.assert_allclose(getattr(agree, name)[:, 0], [0, diagonal, diagonal, 0])
    means = mean_scores(skip)[2]
    assert means["dice"].value == pytest.approx(1 / 3) and means["dice"].n == 3  # a missed organ is not left out
    assert np.isnan(mean_scores(segmentation_scores(nothing, nothing, pixel_mm=1, classes=(1,)))[1]["dice"].value)


def test_means_keep_a_patient_s_images_together():
    rng = np.random.default_rng(0)
    reference = np.stack([disk(24, 12, 12, 6)] * 40)
    shift = rng.integers(0, 6, 10).repeat(4)  # a patient's four images are equally wrong
    prediction = np.stack([np.roll(r, s, axis=0) for r, s in zip(reference, shift, strict=True)])
    scores = segmentation_scores(prediction, reference, pixel_mm=2.0)
    alone, together = mean_scores(scores)[1], mean_scores(scores, np.arange(10).repeat(4))[1]
    for name in ("dice", "hausdorff_mm"):
        assert alone[name].value == together[name].value == pytest.approx(getattr(scores, name).mean())
        assert together[name].low < alone[name].low < alone[name].value < alone[name].high < together[name].high
    assert alone["hausdorff_mm"].value == pytest.approx(2 * shift.mean())


@pytest.mark.parametrize(
    ("prediction", "options", "error", "says"),
    [
        (np.zeros((8, 8)), {}, ParameterError, "labels"),
        (np.zeros((8, 9), int), {}, ShapeError, "one shape"),
        (np.zeros((2, 3, 8, 8), int), {}, ShapeError, r"\(B, 1, H, W\)"),
        (np.zeros((8, 8), int), dict(pixel_mm=0.0), ParameterError, "pixel_mm"),
        (np.zeros((8, 8), int), dict(empty="drop"), ParameterError, "'skip', 'agree'"),
        (np.zeros((8, 8), int), {}, ParameterError, "no class"),
    ],
)
def test_what_cannot_be_compared_is_refused(prediction, options, error, says):
    with pytest.raises(error, match=says):
        segmentation_scores(prediction, np.zeros((8, 8), int), **(dict(pixel_mm=1.0) | options))
    scores = segmentation_scores(np.eye(8, dtype=bool), np.eye(8, dtype=bool), pixel_mm=1.0)
    with pytest.raises(ParameterError, match="one patient for each of 1"):
        mean_scores(scores, ["a", "b"])
