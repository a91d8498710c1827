"""How right words are: ranks of present against absent ones, precision and recall of what is said of an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldctlib.errors import ParameterError, ShapeError


def auc(scores, truth) -> float:
    """Probability that a true case scores above a false one, ties counting half (the area under the ROC curve).

    scores, truth : (N,); truth 1, 0, or -1 for cases that take no part. NaN where one of both kinds is missing.
    """
    from scipy.stats import rankdata

    scores, truth = np.asarray(scores, float), np.asarray(truth)
    if scores.shape != truth.shape or scores.ndim != 1:
        raise ShapeError(f"auc takes scores and truth (N,), got {scores.shape} and {truth.shape}")
    scores, truth = scores[truth >= 0], truth[truth >= 0]
    n_true = int((truth == 1).sum())
    if n_true in (0, len(truth)):
        return float("nan")
    ranks = rankdata(scores)[truth == 1].sum()
    return float((ranks - n_true * (n_true + 1) / 2) / (n_true * (len(truth) - n_true)))


@dataclass(frozen=True)
class WordAUC:
    """Of one word over images: how well its score tells images where it holds from those where it does not."""

    word: str
    auc: float
    n_true: int
    n_false: int


def word_aucs(scores, truth, words: Sequence[str], *, least: int = 5) -> list[WordAUC]:
    """:func:`auc` of every word that holds for ``least`` of the images and does not hold for as many.

    scores, truth : (N, V) of N images.
    """
    scores, truth = np.asarray(scores), np.asarray(truth)
    if scores.shape != truth.shape or scores.shape[-1] != len(words):
        raise ShapeError(f"scores {scores.shape} and truth {truth.shape} are (images, {len(words)} words)")
    out = []
    for i, word in enumerate(words):
        n_true, n_false = int((truth[:, i] == 1).sum()), int((truth[:, i] == 0).sum())
        if min(n_true, n_false) >= least:
            out.append(WordAUC(word, auc(scores[:, i], truth[:, i]), n_true, n_false))
    return out


@dataclass(frozen=True)
class Said:
    """What was said of one image or of many, counted; words whose truth is unknown are not."""

    right: int  # words said that hold
    wrong: int
    named: int  # things present that at least one right word names
    present: int

    @property
    def precision(self) -> float:
        return self.right / (n if (n := self.right + self.wrong) else float("nan"))

    @property
    def recall(self) -> float:
        return self.named / (self.present or float("nan"))

    def __add__(self, other: Said) -> Said:
        return Said(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def said(words: Sequence[str], truth: Mapping[str, int], things: Mapping[Any, Sequence[str]]) -> Said:
    """Count the words that were said of an image.

    words : said, with repetitions. truth : word -> 1 holds, 0 does not, -1 unknown; words that it lacks are wrong.
    things : thing -> its words, any of which names it; a thing is present if one of its words holds.
    """
    if unknown := {w for group in things.values() for w in group} - set(truth):
        raise ParameterError(f"nothing says whether these words hold: {', '.join(sorted(unknown))}")
    values = [truth.get(word, 0) for word in words]
    spoken = set(words)
    present = [group for group in things.values() if any(truth[w] == 1 for w in group)]
    named = sum(any(w in spoken and truth[w] == 1 for w in group) for group in present)
    return Said(values.count(1), values.count(0), named, len(present))


def said_of_images(
    words: Iterable[Sequence[str]], truths: Iterable[Mapping[str, int]], things: Mapping[Any, Sequence[str]]
) -> tuple[Said, Said]:
    """:func:`said` summed over images, which have each their words and truth: of all words, and of those that name a
    thing alone."""
    every = naming = Said(0, 0, 0, 0)
    names = {word for group in things.values() for word in group}
    for own, truth in zip(words, truths, strict=True):
        every += said(own, truth, things)
        naming += said([word for word in own if word in names], truth, things)
    return every, naming
