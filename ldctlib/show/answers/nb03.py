"""Answers to the exercises of notebook 03, latent diffusion."""

from __future__ import annotations

import math
from typing import Any

import torch

from ldctlib.show.exercises import Exercise, number

ALPHA_BAR_999 = 2.4287e-6
"""Of the cosine schedule with T = 1000 (MAN, Eq. 4)."""


def _amplified(error: float = 0.01) -> float:
    return error * math.sqrt((1 - ALPHA_BAR_999) / ALPHA_BAR_999)


def _probe(alpha_bar: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x0, eps, x_t and v at one noise level, in double precision."""
    generator = torch.Generator().manual_seed(3)
    x0, eps = torch.randn(2, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    return x0, eps, signal * x0 + noise * eps, signal * eps - noise * x0


def _error(answer: Any, alpha_bar: float, target: str = "x0") -> float:
    x0, eps, x_t, v = _probe(alpha_bar)
    value = torch.as_tensor(answer(x_t, v, torch.tensor(alpha_bar, dtype=torch.float64)))
    return float((value - {"x0": x0, "eps": eps}[target]).abs().max())


def _x0_from_v(x_t, v, alpha_bar):
    return alpha_bar**0.5 * x_t - (1 - alpha_bar) ** 0.5 * v


def _as_if_eps(x_t, v, alpha_bar):
    return (x_t - (1 - alpha_bar) ** 0.5 * v) / alpha_bar**0.5


def _wrong_sign(x_t, v, alpha_bar):
    return alpha_bar**0.5 * x_t + (1 - alpha_bar) ** 0.5 * v


def _same(answer: Any, wrong: Any) -> bool:
    _, _, x_t, v = _probe(0.3)
    alpha_bar = torch.tensor(0.3, dtype=torch.float64)
    return bool(torch.allclose(answer(x_t, v, alpha_bar), wrong(x_t, v, alpha_bar)))


def _rounded(value: float, within: float):
    """Accepts a number of either sign."""
    return lambda answer: number(value, within=within)(abs(float(answer)))


EXERCISES = [
    Exercise(
        name="03.amplified",
        prompt="How wrong is the estimate of z0, in the latent's standard deviations, if eps_hat is wrong by 0.01?",
        accept=_rounded(_amplified(), within=0.08),
        right=6.4,
        wrong=0.01,
        because="0.01 · √(1 − ᾱ) / √ᾱ = 6.4 units, six standard deviations of a unit-variance latent: the estimate is "
        "nothing but error. A network that predicts v errs by 0.01 there too, but x0_hat = √ᾱ z_t − √(1 − ᾱ) v passes "
        "it on as 0.01.",
        hint="At t = 999 z_t is nearly all noise. How much of z0 is in it, and what must be done to see it?",
        hints=(
            (_rounded(642, within=0.03), "That is the factor. The error of eps_hat was 0.01."),
            (_rounded(0.01 / ALPHA_BAR_999, within=0.05), "ᾱ is a variance. How large is the signal's amplitude?"),
        ),
    ),
    Exercise(
        name="03.velocity",
        prompt="Write x0_from_v(x_t, v, alpha_bar), given x_t = √ᾱ x0 + √(1−ᾱ) eps and v = √ᾱ eps − √(1−ᾱ) x0.",
        accept=lambda answer: all(_error(answer, a) < 1e-4 for a in (0.9, 0.3, 2.4e-9)),
        right=_x0_from_v,
        wrong=_as_if_eps,
        because="√ᾱ x_t − √(1 − ᾱ) v: two equations in two unknowns, and the matrix is a rotation, so that nothing is "
        "divided by anything.",
        hint="Two equations and two unknowns, x0 and eps. Which one do you not want in the result?",
        hints=(
            (lambda f: _same(f, _as_if_eps), "That is x0 from eps, as in equation (6). v is another thing."),
            (lambda f: _same(f, _wrong_sign), "Look at the sign: does eps drop out?"),
            (lambda f: _same(f, lambda x, v, a: a * x - (1 - a) * v), "ᾱ is a variance: amplitudes are its roots."),
            (lambda f: _error(f, 0.3, "eps") < 1e-6, "That is eps. Eliminate eps instead of x0."),
        ),
    ),
    Exercise(
        name="03.samples",
        prompt="How many evaluations of the network does a slice cost?",
        accept=lambda answer: number(300, within=0.001)(answer[-1] if isinstance(answer, tuple | list) else answer),
        right=300,
        wrong=10,
        because="1 + 1/n ≤ 1.05² gives n = 10 draws, so 300 evaluations. The same posterior mean is what a single "
        "evaluation at t = T estimates: if the mean is all that you want, do not draw. Draws show the spread.",
        hint="How does the error of an average fall with the number of draws, and what does each draw cost?",
        hints=(
            (lambda a: 9 <= float(a) <= 10, "Those are draws. Each takes 30 evaluations."),
            (number(270, within=0.003), "With nine draws it is 5.4 %: round up."),
            (number(600, within=0.001), "n = 20 makes 1/n = 0.05. The root halves it."),
            (number(12000, within=0.003), "1/√n is a mean's own scatter; here squares add: 1 + 1/n."),
        ),
    ),
]
