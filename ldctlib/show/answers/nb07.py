"""Answers to the exercises of notebook 07, the benchmark."""

from __future__ import annotations

import math
from typing import Any

import torch

from ldctlib.show.exercises import Exercise, number


def _probe(answer: Any, share: float, noise_hu: float = 50.0, outside_hu: float = 500.0) -> float:
    """What a slope function says of ``share`` of the detail in noise that has none of it, nor a mean, in the mask."""
    generator = torch.Generator().manual_seed(7)
    detail, noise = torch.randn(2, 1, 1, 64, 64, generator=generator, dtype=torch.float64)
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[..., 8:40, 20:60] = True
    detail = 30 * (detail - detail[mask].mean())
    noise = noise - noise[mask].mean()
    noise = noise_hu * mask * (noise - detail * (noise * detail)[mask].sum() / detail[mask].square().sum())
    return float(torch.as_tensor(answer(share * detail + noise + outside_hu * ~mask, detail, mask)).squeeze())


def _is_slope(answer: Any) -> bool:
    return all(abs(_probe(answer, share) - share) < 1e-6 for share in (0.3, 0.0, -0.1))


def _slope(removed, detail, mask):
    return (removed * detail)[mask].sum() / detail[mask].square().sum()


def _correlation(removed, detail, mask):
    return torch.corrcoef(torch.stack([removed[mask], detail[mask]]))[0, 1]


EXERCISES = [
    Exercise(
        name="07.perfect",
        prompt="How many dB does the noise-free anatomy gain over the low-dose image, against the full dose?",
        accept=number(10 * math.log10(3), within=0.05),
        right=4.77,
        wrong=6.02,
        because="The low-dose image (k = 1) has the error (R − 1) σ², the exact anatomy (k = 0) has σ²: "
        "10 log10(R − 1) = 4.8 dB. The best answer, k = 1/R, has (1 − 1/R) σ² and gains 10 log10 R = 6.0 dB.",
        hint="Which noise is in the low-dose image and not in the full-dose image? And which, the other way round?",
        hints=(
            (
                number(6.02, within=0.02),
                "6.0 dB = 10 log10 R is the gain of the best answer, which leaves a quarter of the noise.",
            ),
            (number(9.54, within=0.02), "Decibels of a squared error have the factor 10, not 20."),
            (lambda a: float(a) == math.inf, "Infinite it is against the truth. Here the reference has noise."),
        ),
    ),
    Exercise(
        name="07.slope",
        prompt="Write slope(removed, detail, mask), the least-squares slope of removed on detail, in the mask.",
        accept=_is_slope,
        right=_slope,
        wrong=_correlation,
        because="Σ removed·detail / Σ detail² does not change when more noise is removed. A correlation would: "
        "the noise is in its denominator.",
        hint="For which slope is the sum of squares of what the model leaves unexplained, over the mask, smallest?",
        hints=(
            (
                lambda f: _probe(f, 0.3, 50.0, 0.0) - _probe(f, 0.3, 500.0, 0.0) > 0.12,
                "Your number falls when more noise is removed, as a correlation does. What stands in its denominator?",
            ),
            (
                lambda f: abs(_probe(f, 0.3, 50.0, 0.0) - 0.3) < 1e-6,
                "Right where nothing was removed outside the mask. Sum over the mask only.",
            ),
        ),
    ),
    Exercise(
        name="07.patients",
        prompt="How many patients are needed? A number.",
        accept=lambda answer: 34.5 <= float(answer) <= 40,
        right=35,
        wrong=2,
        because="(1.96 · 0.3 / 0.1)² = 35 patients (37 with Student's t). More slices of a patient make that patient's "
        "own mean surer; how patients differ they do not tell.",
        hint="How does the uncertainty of a mean fall with n, and how many standard errors make a 95 % interval?",
        hints=(
            (
                lambda a: 1 <= float(a) <= 3,
                "That would be 35 slices. Slices of one patient are not independent: n counts patients.",
            ),
            (lambda a: 8 <= float(a) <= 10, "That makes one standard error 0.1 dB; a 95 % interval is wider."),
            (lambda a: 33 <= float(a) < 34.5, "Round up: with one fewer the interval is wider than ± 0.1 dB."),
            (lambda a: 600 <= float(a) <= 800, "700 slices, that is. How many patients?"),
        ),
    ),
]
