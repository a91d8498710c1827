"""Answers to the exercises of notebook 05, NA-Diff."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from ldctlib.ct.dose_scaling import ACQUISITIONS, full_dose_sd, noise_scale, std_map_scale
from ldctlib.show.exercises import Exercise, number

DIFFERENCE_HU, ORDERED_HU = 12.0, 25.0  # of the pair in "05.pair", of the image in "05.order"
SIGMA = {kind: full_dose_sd(DIFFERENCE_HU, 0.25, kind) for kind in ACQUISITIONS}


def _alpha(dose, measured_dose):
    variance = 1 / measured_dose + 1  # of x_ld - x_fd, over that of x_fd
    return (1 + math.sqrt(1 + variance * (1 / dose - 1))) / variance


def _smaller_root(dose, measured_dose):
    return 2 / (1 / measured_dose + 1) - _alpha(dose, measured_dose)


def _agrees(answer: Any, right: Any) -> bool:
    pairs = [(d, d0) for d in (0.05, 0.3, 0.6) for d0 in (0.1, 0.25)]
    rounded = dict(rel_tol=0.01, abs_tol=0.0051)  # to two decimals
    return all(math.isclose(float(answer(*pair)), float(right(*pair)), **rounded) for pair in pairs)


def _is_pair(order: Any) -> bool:
    return len(np.ravel(order)) == 2


def _is_known(order: Any) -> bool:
    return _is_pair(order) and 0.05 <= float(order[0]) <= 1 and 6 <= float(order[1]) <= 16


EXERCISES = [
    Exercise(
        name="05.pair",
        prompt=f"A quarter dose is inserted into a full-dose scan; they differ by {DIFFERENCE_HU:g} HU (std). "
        "How much noise has the full-dose scan? HU.",
        accept=number(SIGMA["nested"], within=0.02),
        right=round(SIGMA["nested"], 2),
        wrong=SIGMA["noise-free"],
        because="The inserted noise brings the variance from σ² to 4σ²: the difference has 3σ², so σ = 12 / √3.",
        hint="A quarter of the dose has the variance 4σ². Of this, how much was already in the full-dose scan?",
        hints=(
            (number(SIGMA["noise-free"], within=0.02), "12 / √4 holds if the other scan had no noise. It has σ²."),
            (number(SIGMA["independent"], within=0.02), "12 / √5 is for two scans, one after the other. Inserted?"),
        ),
    ),
    Exercise(
        name="05.alpha",
        prompt="Write alpha(dose, measured_dose) for two independent scans, for doses up to 100 %. Of "
        "two roots, take the one that is 1 at dose = measured_dose.",
        accept=lambda answer: _agrees(answer, _alpha),
        right=_alpha,
        wrong=partial(noise_scale, acquisition="nested"),
        because="(1 - α)² + α²/d0 = 1/d, whose larger root is 1 at d = d0.",
        hint="x_fd + αΔ = (1 - α) x_fd + α x_ld, and the two noises are independent. Set its variance to σ²/d.",
        hints=(
            (lambda f: _agrees(f, partial(noise_scale, acquisition="nested")), "That is for an inserted low dose."),
            (lambda f: _agrees(f, partial(std_map_scale, acquisition="independent")), "That is b, for noise alone."),
            (
                lambda f: _agrees(f, partial(noise_scale, acquisition="noise-free")),
                "√(d0/d) is for a reference without noise. This one has noise, and it is in Δ too.",
            ),
            (lambda f: _agrees(f, _smaller_root), "This root solves the equation too, but is not 1 at d = d0."),
        ),
    ),
    Exercise(
        name="05.order",
        prompt=f"Order an image with {ORDERED_HU:g} HU of noise near the axis: answer = (dose, full_dose_sd_hu).",
        accept=lambda answer: _is_known(answer) and number(ORDERED_HU, within=0.03)(answer[1] / answer[0] ** 0.5),
        right=(0.25, 12.5),
        wrong=(1.0, 25.0),
        because="Noise is sd / √dose. Many orders give one map: an image knows its noise, not its dose.",
        hint="The noise of dose d is full_dose_sd_hu / √d. Training had 6 to 16 HU at full dose, and doses from 5 %.",
        hints=(
            (lambda a: not _is_pair(a), "Two numbers, please: (dose, full_dose_sd_hu)."),
            (lambda a: not _is_known(a), "A dose from 0.05 to 1 and a full-dose noise from 6 to 16 HU, please."),
        ),
    ),
]
