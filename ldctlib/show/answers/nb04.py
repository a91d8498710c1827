"""Answers to the exercises of notebook 04, words as a loss."""

from __future__ import annotations

import re
from typing import Any

import torch

from ldctlib.show.exercises import Exercise, number

# ---------------------------------------------------------------- 04.positions

SIDE, FACTOR = 512, 8
"""Of the slice in "04.positions", and of the network's downsampling."""
GRID = SIDE // FACTOR
LOOKED_UP = sum((GRID // stride) ** 2 for stride in (16, 4, 1))
_is_right = number(LOOKED_UP, within=1e-4)  # relative: no other whole number


def _is_number(answer: Any) -> bool:
    try:
        return not isinstance(answer, bool) and float(answer) == float(answer)
    except (TypeError, ValueError):
        return False


# ---------------------------------------------------------------- 04.pool

COSINES = torch.tensor([[0.270, 0.262, 0.255, 0.230], [0.310, 0.335, 0.300, 0.331], [-0.10, 0.40, 0.31, 0.06]])
AT_THRESHOLD = torch.tensor([[-512.0, 512.0, 0.0, 256.0], [512.0, 0.0, 256.0, -512.0]])
"""At 0, 1, 1/2 and 3/4 of each image's range, exactly in float32, however it is computed."""


def _pool(similarities, threshold):
    low, high = similarities.amin(dim=1, keepdim=True), similarities.amax(dim=1, keepdim=True)
    return (similarities - low) / (high - low) >= threshold


def _strictly(similarities, threshold):
    low, high = similarities.amin(dim=1, keepdim=True), similarities.amax(dim=1, keepdim=True)
    return (similarities - low) / (high - low) > threshold


def _raw(similarities, threshold):
    return similarities >= threshold


def _whole_batch(similarities, threshold):
    return (similarities - similarities.min()) / (similarities.max() - similarities.min()) >= threshold


def _of_words(similarities, threshold):
    low, high = similarities.amin(dim=0), similarities.amax(dim=0)
    return (similarities - low) / (high - low) >= threshold


def _without_low(similarities, threshold):
    return similarities / similarities.amax(dim=1, keepdim=True) >= threshold


def _agrees(answer: Any, right: Any) -> bool:
    return all(
        torch.equal(torch.as_tensor(answer(given.clone(), threshold)).bool(), right(given, threshold))
        for given, thresholds in ((COSINES, (0.95, 0.8, 0.6, 0.3)), (AT_THRESHOLD, (1.0, 0.75, 0.5)))
        for threshold in thresholds
    )


# ---------------------------------------------------------------- 04.controls


def _letters(answer: Any) -> set[str]:
    """Of "BD", "b, d", "B and D", ["B", "D"]: those of words that have no other letters."""
    text = answer if isinstance(answer, str) else " ".join(map(str, answer))
    return set("".join(re.findall(r"\b[A-E]+\b", text.upper())))


EXERCISES = [
    Exercise(
        name="04.positions",
        prompt=f"How many words does the pyramid look up, all layers together, for a slice of {SIDE}²? A number.",
        accept=lambda answer: _is_number(answer) and _is_right(answer),
        right=LOOKED_UP,
        wrong=1092,
        because=f"{FACTOR}-fold downsampling leaves a grid of {GRID} × {GRID}. Every 16th, every 4th and every "
        f"position along each axis: {(GRID // 16) ** 2} + {(GRID // 4) ** 2} + {GRID**2}.",
        hint=f"How large is the grid of features of a slice of {SIDE}²? Then take every 16th, 4th and every position.",
        hints=(
            (lambda a: not _is_number(a), "One number, please: the sum of the three layers, such as answer = 1000."),
            (
                lambda a: float(a) == 1092,
                "That is 4 + 64 + 1024, of the paper's 16-fold downsampling. This network downsamples 8-fold.",
            ),
            (
                lambda a: float(a) == GRID**2,
                "That is layer 3 alone. The positions of layers 1 and 2 are looked up more than once.",
            ),
            (
                lambda a: float(a) == GRID**2 + (GRID // 4) ** 2,
                "One layer is missing: there are three, with strides 16, 4 and 1.",
            ),
        ),
    ),
    Exercise(
        name="04.pool",
        prompt="Write pool(similarities, threshold): (B, V) cosines → bool (B, V), normalised for each image.",
        accept=lambda answer: _agrees(answer, _pool),
        right=_pool,
        wrong=_raw,
        because="An image's cosines with all words lie in a narrow band, and each image has its own. Stretched to "
        "0 … 1 over the vocabulary, a threshold means the same for every image, and the best word is always in.",
        hint="For each image: (s − smallest) / (largest − smallest) ≥ threshold, over the words (dim=1, keepdim=True).",
        hints=(
            (
                lambda f: _agrees(f, _raw),
                "Those are raw cosines: with .95 no word of any of these images is in. Stretch each image's first.",
            ),
            (
                lambda f: _agrees(f, _whole_batch),
                "Smallest and largest are those of the whole batch: an image's words then depend on its neighbours.",
            ),
            (
                lambda f: _agrees(f, _of_words),
                "You normalised each word over the images. Normalise each image over the words: the other dimension.",
            ),
            (lambda f: _agrees(f, _strictly), "Nearly: a word exactly at the threshold is in, too (≥, not >)."),
            (lambda f: _agrees(f, _without_low), "Largest is 1, but smallest is not 0: take the smallest away first."),
        ),
    ),
    Exercise(
        name="04.controls",
        prompt="Which two controls show whether words say something about their image? answer = two letters.",
        accept=lambda answer: _letters(answer) == {"B", "D"},
        right="BD",
        wrong="AB",
        because="Mixed-up words (B) show what the vocabulary gives away by chance, words of another slice (D) what "
        "holds for any slice of the region. Only what is right beyond both was said of this image.",
        hint="A control keeps everything but the one thing in question: first the words' meaning, then the image.",
        hints=(
            (lambda a: len(_letters(a)) != 2, "Two letters of A to E, please, such as answer = 'AB'."),
            (
                lambda a: "A" in _letters(a),
                "A good reconstruction needs codes that differ, not codes that mean something: any codebook will do.",
            ),
            (lambda a: "C" in _letters(a), "More of the same words are as right, or as wrong, as fewer."),
            (
                lambda a: "E" in _letters(a),
                "That tests how the words stand up to noise. They may be stable, and say nothing.",
            ),
        ),
    ),
]
