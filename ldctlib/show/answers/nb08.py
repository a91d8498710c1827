"""Answers to the exercises of notebook 08, your own scans."""

from __future__ import annotations

from typing import Any

import numpy as np

from ldctlib.show.exercises import Exercise, number

STORED = np.array([[-2000, 0], [1064, -976]], dtype=np.int16)
"""Padding, air, tissue, and a pixel that only reads -2000 once it is rescaled."""


def _masks_before_rescale(to_hu: Any) -> bool:
    hu = np.asarray(to_hu(STORED.copy(), 1.0, -1024.0, -2000), dtype=np.float64)
    half = np.asarray(to_hu(STORED.copy(), 0.5, -24.0, -2000), dtype=np.float64)
    return np.array_equal(hu, [[-1000, -1024], [40, -2000]]) and np.array_equal(half, [[-1000, -24], [508, -512]])


def _to_hu(stored, slope, intercept, padding):
    return np.where(stored == padding, -1000.0, stored.astype(np.float64) * slope + intercept)


def _to_hu_too_late(stored, slope, intercept, padding):
    hu = stored.astype(np.float64) * slope + intercept
    return np.where(hu == padding, -1000.0, hu)


EXERCISES = [
    Exercise(
        name="08.floor",
        prompt="The lowest RMSE against your own scan that anybody can reach, in HU.",
        accept=number(20 * 0.75**0.5, within=0.03),
        right=17.32,
        wrong=20.0,
        because="20 √(1 − 1/4) = 17.3 HU. The noise-free anatomy itself would be charged 20 HU: your scan's own "
        "noise. Leaving a quarter of the salted scan's noise estimates part of it.",
        hint="R is a ratio of variances. What is it when the standard deviation doubles?",
        hints=(
            (
                number(20.0, within=0.02),
                "20 HU is what the noise-free anatomy would be charged. One can do better: the salted "
                "scan carries information about your scan's own noise.",
            ),
            (
                number(34.64, within=0.02),
                "34.6 HU is the noise that is added, √3 · 20. The question is what is left at best.",
            ),
            (number(10.0, within=0.02), "10 HU would be half of your scan's own noise; variances add, not deviations."),
        ),
    ),
    Exercise(
        name="08.padding",
        prompt="Write to_hu(stored, slope, intercept, padding) and return an array of HU.",
        accept=_masks_before_rescale,
        right=_to_hu,
        wrong=_to_hu_too_late,
        because="The padding value is a stored value. Rescaled with intercept -1024 it reads -3024 HU, "
        "and a pixel that truly reads -2000 HU would be taken for padding.",
        hint="On which of the two scales is the value of the padding given?",
        hints=(
            (
                lambda f: np.asarray(f(STORED.copy(), 1.0, -1024.0, -2000))[0, 0] == -3024,
                "The padded pixel came out as -3024 HU: was it looked for before the rescale, or after?",
            ),
        ),
    ),
    Exercise(
        name="08.residual_noise",
        prompt="The residual_noise that gives a tenth of the dose the noise of a full dose.",
        accept=number(0.1**0.5, within=0.06),
        right=0.316,
        wrong=0.1,
        because="Noise goes as 1/√dose, so a tenth of the dose has √10 times the noise, and 1/√10 = 0.32 of it is as "
        "strong as full-dose noise. The smallest RMSE to the full-dose image has residual_noise = 1/R = 0.1: to read "
        "like a full dose and to score best are two aims.",
        hint="How much stronger is the noise at a tenth of the dose?",
        hints=(
            (
                number(0.1, within=0.02),
                "0.1 = 1/R gives the smallest RMSE to the full-dose image, but it leaves only 0.1 · √10 = "
                "a third of the full-dose noise: smooth.",
            ),
            (number(0.9, within=0.02), "0.9 is a share of variance. residual_noise multiplies the noise itself."),
        ),
    ),
]
