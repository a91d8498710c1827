"""Answers to the exercises of notebook 06, plug-and-play DDNM."""

from __future__ import annotations

import math
from typing import Any

import torch

from ldctlib.diffusion.schedule import linear
from ldctlib.show.exercises import Exercise, number

SCHEDULE = linear(1000)
SCAN_HU, HALF_RANGE_HU, BUDGET = 50.0, 400.0, 20
"""The scan of "06.start": its strongest frequency's noise, a model unit in HU, network evaluations."""


# ---------------------------------------------------------------- 06.weights

PROBES = [  # a, σ, σ_y, s, η: above and below the threshold, with singular values other than 1
    (0.8, 0.6, 0.1, 1.0, 0.85),
    (0.995, 0.0999, 0.3, 1.0, 0.85),
    (0.95, 0.312, 0.1, 0.25, 0.85),
    (0.95, 0.312, 0.05, 0.25, 0.3),
    (0.9, 0.436, 0.3, 2.0, 0.0),
    (1.0, 0.0, 0.2, 0.5, 0.85),
]


def _weights(a, sigma, noise_sd, s, eta):
    n = noise_sd / s
    if sigma >= a * n:
        return 1.0, (sigma**2 - (a * n) ** 2) ** 0.5
    return sigma * (1 - eta**2) ** 0.5 / (a * n), sigma * eta


def _no_singular_value(a, sigma, noise_sd, s, eta):
    return _weights(a, sigma, noise_sd, 1.0, eta)


def _times_singular_value(a, sigma, noise_sd, s, eta):
    return _weights(a, sigma, noise_sd * s, 1.0, eta)


def _always_one(a, sigma, noise_sd, s, eta):
    return 1.0, max(sigma**2 - (a * noise_sd / s) ** 2, 0.0) ** 0.5


def _variance(a, sigma, noise_sd, s, eta):
    weight, fresh = _weights(a, sigma, noise_sd, s, eta)
    return weight, fresh**2


def _upside_down(a, sigma, noise_sd, s, eta):
    n = noise_sd / s
    if sigma < a * n:
        return 1.0, abs(sigma**2 - (a * n) ** 2) ** 0.5
    return sigma * (1 - eta**2) ** 0.5 / (a * n), sigma * eta


def _plain_eta(a, sigma, noise_sd, s, eta):
    weight, fresh = _weights(a, sigma, noise_sd, s, eta)
    return (weight, fresh) if sigma >= a * noise_sd / s else (sigma / (a * noise_sd / s), fresh)


def _agrees(answer: Any, right: Any) -> bool:
    for values in PROBES:
        probe = [torch.tensor(v, dtype=torch.float64) for v in values]  # floats, torch and NumPy all take these
        found, expected = answer(*probe), right(*probe)
        if not all(math.isclose(f, e, rel_tol=1e-4, abs_tol=1e-6) for f, e in zip(found, expected, strict=True)):
            return False
    return True


# ---------------------------------------------------------------- 06.start


def chain_noise_hu(t: int) -> float:
    """The noise of x_t over its signal's scale, in HU: √((1 − ᾱ_t) / ᾱ_t) times half the range."""
    return HALF_RANGE_HU * math.sqrt((1 - SCHEDULE.at(int(t))) / SCHEDULE.at(int(t)))


FIRST = next(t for t in range(1, 1001) if chain_noise_hu(t) >= SCAN_HU)


def _pair(answer: Any) -> tuple[int, int]:
    start, steps = (float(v) for v in answer)
    if not (start.is_integer() and steps.is_integer()):
        raise ValueError("start and steps are whole numbers")
    return int(start), int(steps)


def _well_spent(answer: Any) -> bool:
    start, steps = _pair(answer)
    useful = sum(t <= FIRST for t in SCHEDULE.times(steps, start=start))
    return FIRST <= start and 0.6 * BUDGET <= useful and steps <= BUDGET


EXERCISES = [
    Exercise(
        name="06.degenerate",
        prompt="You denoise with A = I and tell DDNM that the noise is 0. How many dB of PSNR do you gain? A number.",
        accept=number(0.0, within=0.05),
        right=0.0,
        wrong=5.0,
        because="With A = I, A⁺A = I too: the null space is empty, every x̂ is y, and the prior has no say. "
        "Nothing is lost either.",
        hint="Put A = I into equation (9). What is left of the prior's estimate?",
        hints=(
            (
                lambda a: float(a) > 0,
                "For that something of the prior's estimate must reach the result. Which part does equation (9) take?",
            ),
            (lambda a: float(a) < 0, "Worse than y it could be only if the result were not y. Put A = I into (9)."),
        ),
    ),
    Exercise(
        name="06.weights",
        prompt="Write weights(a, sigma, noise_sd, s, eta) → (λ, standard deviation of the fresh noise).",
        accept=lambda answer: _agrees(answer, _weights),
        right=_weights,
        wrong=_no_singular_value,
        because="n = σ_y / s is the noise that a coordinate carries into the image. While the chain has more, σ ≥ a n, "
        "y is taken whole and fresh noise fills up to σ. Below, y must be given less weight.",
        hint="Compare σ with a σ_y / s. Above: λ = 1, and the variances a²σ_y²/s² and fresh add up to σ².",
        hints=(
            (lambda f: _agrees(f, _no_singular_value), "Right for s = 1. A⁺ divides by s, and the noise of y with it."),
            (lambda f: _agrees(f, _times_singular_value), "A⁺ divides by s, it does not multiply."),
            (
                lambda f: _agrees(f, _always_one),
                "Right above the threshold. Below it, λ = 1 would carry more noise than σ.",
            ),
            (lambda f: _agrees(f, _variance), "The second number is a variance. Give the standard deviation."),
            (
                lambda f: _agrees(f, _upside_down),
                "The two cases are the other way round: when is there room for noise?",
            ),
            (lambda f: _agrees(f, _plain_eta), "Below the threshold a share η² of the noise is fresh: what is left?"),
        ),
    ),
    Exercise(
        name="06.start",
        prompt="Choose start and steps for 20 network evaluations: answer = (start, steps).",
        accept=_well_spent,
        right=(40, 20),
        wrong=(1000, 20),
        because=f"The scan's noise of {SCAN_HU:g} HU is that of t = {FIRST}. Start there or a little above, and spend "
        "the steps below, where the prior and the scan both have something to say.",
        hint=f"At which t is the chain's noise, √((1 − ᾱ_t) / ᾱ_t) times {HALF_RANGE_HU:g} HU, that of the scan? "
        "How many of the visited times lie at or below it?",
        hints=(
            (
                lambda a: _pair(a)[0] < FIRST,
                "At that time the chain has less noise than the scan: x_t would hold noise that the prior is not told "
                "of, and takes for anatomy.",
            ),
            (lambda a: _pair(a)[1] > BUDGET, f"That is more than {BUDGET} evaluations."),
            (
                lambda a: _pair(a)[0] > 2 * FIRST,
                "Most of these steps are spent at times whose noise is far above the scan's: there x_t is y with more "
                "noise, and nothing is gained.",
            ),
            (lambda a: _pair(a)[1] < 0.6 * BUDGET, "You may take more steps than that, and they help."),
        ),
    ),
]
