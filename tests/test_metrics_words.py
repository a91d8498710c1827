"""How right words are, against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.metrics.words import Said, auc, said, said_of_images, word_aucs


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 6, 40).astype(float), rng.integers(-1, 2, 40)
    true, false = scores[truth == 1], scores[truth == 0]
    pairs = [(a > b) + 0.5 * (a == b) for a in true for b in false]
    assert auc(scores, truth) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auc([1, 2, 3], [0, 0, 1]) == 1 and auc([1, 2, 3], [1, 0, 0]) == 0
    assert math.isnan(auc([1.0, 2.0], [1, -1]))
    with pytest.raises(ShapeError, match="auc takes"):
        auc([1.0], [1, 0])


def test_words_with_too_few_images_are_left_out():
    truth = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])
    found = word_aucs(np.arange(12.0).reshape(4, 3), truth, ("liver", "spleen", "lung"), least=2)
    assert [(w.word, w.n_true, w.n_false) for w in found] == [("liver", 2, 2), ("spleen", 2, 2)]
    assert found[0].auc == 0  # its score grows with the image's number
    with pytest.raises(ShapeError, match="2 words"):
        word_aucs(np.zeros((4, 3)), truth, ("liver", "spleen"))


def test_precision_and_recall():
    truth = {"liver": 1, "hepatic": 1, "spleen": 0, "cyst": -1, "kidney": 1}
    things = {"liver": ("liver", "hepatic"), "spleen": ("spleen",), "kidney": ("kidney",)}
    one = said(["liver", "liver", "spleen", "cyst", "guitar"], truth, things)
    assert one == Said(right=2, wrong=2, named=1, present=2)
    assert (one.precision, one.recall) == (0.5, 0.5)
    both = one + said(["hepatic", "kidney"], truth, things)
    assert both == Said(4, 2, 3, 4) and both.recall == 0.75
    assert math.isnan(said([], truth, {}).precision) and math.isnan(said([], truth, {}).recall)
    with pytest.raises(ParameterError, match="bone"):
        said([], truth, {"bone": ("bone",)})


def test_words_of_images_are_counted_with_their_own_truth():
    things = {"liver": ("liver", "hepatic"), "spleen": ("spleen",)}
    truths = [{"liver": 1, "hepatic": 1, "spleen": 0, "ct": 1}, {"liver": 0, "hepatic": 0, "spleen": 1, "ct": 1}]
    every, naming = said_of_images([["liver", "ct", "spleen"], ["liver", "ct"]], truths, things)
    assert every == Said(right=3, wrong=2, named=1, present=2)
    assert naming == Said(right=1, wrong=2, named=1, present=2)
