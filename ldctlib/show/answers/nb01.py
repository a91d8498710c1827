"""Exercises of notebook 01, data and dose."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ldctlib.ct.kernels import Kernel
from ldctlib.show.exercises import Exercise, holds, number

NYQUIST = 0.5 / 0.75
PEAK = 0.40


def _added_variance(p, n0, a, electronic_sd):
    inverse = np.exp(p) / n0
    return (1 - a) / a * inverse * (1 + (1 + a) / a * electronic_sd**2 * inverse)


def _without_electronics(p, n0, a, electronic_sd):
    return (1 - a) / a * np.exp(p) / n0


def _same_as(expected: Callable[..., Any]) -> Callable[[Any], bool]:
    """Accepts functions of an array, a tensor or a number that agree with ``expected`` for some rays and scans."""
    import torch

    p, cases = np.array([0.5, 2.0, 4.0, 6.0]), [(1e5, 0.25, 0.0), (1e5, 0.25, 12.0), (3e4, 0.1, 5.0)]

    def agrees(form: Callable[..., Any]) -> bool:
        return all(np.allclose(np.asarray(form(*c), dtype=float), expected(p, *c), rtol=1e-4) for c in cases)

    def accept(answer: Any) -> bool:
        arrays = any(holds(agrees, partial(answer, rays)) for rays in (p, torch.from_numpy(p)))
        return arrays or agrees(lambda *case: [answer(float(ray), *case) for ray in p])

    return accept


def _spectrum(kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies and S(f) = f W(f)^2 before the pixel samples it."""
    import torch

    f = np.linspace(0, 3, 3001)
    return f, f * kernel(torch.from_numpy(f)).numpy() ** 2


def _peak(kernel: Kernel) -> float:
    f, s = _spectrum(kernel)
    return float(f[s.argmax()])


def _share_beyond(kernel: Kernel) -> float:
    """Share of the power beyond Nyquist, over the plane: rings of circumference 2 pi f."""
    f, s = _spectrum(kernel)
    return float((s * f)[f > NYQUIST].sum() / (s * f).sum())


def _kernel(answer: Any) -> Kernel:
    """A Kernel, or the one of a pair (flat_to, cutoff)."""
    return answer if isinstance(answer, Kernel) else Kernel(*map(float, answer))


def _good_kernel(answer: Any) -> bool:
    answer = _kernel(answer)
    return abs(_peak(answer) - PEAK) <= 0.02 + 1e-9 and _share_beyond(answer) < 0.01


EXERCISES = [
    Exercise(
        name="01.nested_difference",
        prompt="A number, in HU.",
        accept=number(np.sqrt(24**2 - 12**2), within=0.03),
        right=20.8,
        wrong=12,
        because="variances add: 24² = 12² + 20.8². The noise that the two share cancels in the difference.",
        hint="Both images come from the same photons. Which noise do they share, and which has only one of them?",
        hints=(
            (number(12, within=0.03), "Standard deviations don't subtract."),
            (
                number(np.sqrt(24**2 + 12**2), within=0.03),
                "That is the difference of two independent scans. In a nested pair the full-dose noise is in both.",
            ),
        ),
    ),
    Exercise(
        name="01.added_variance",
        prompt="A function of p, n0, a and electronic_sd.",
        accept=_same_as(_added_variance),
        right=_added_variance,
        wrong=_without_electronics,
        because="with Var = (N + σe²)/N² at both doses, this is exactly the difference.",
        hint="Try it where you know the answer: at a = 1 nothing is missing. p is an array: np.exp takes it.",
        hints=(
            (
                _same_as(_without_electronics),
                "Right for photons alone. The bracket adds the electronic noise, which does not shrink with the dose.",
            ),
            (
                _same_as(lambda p, n0, a, s: _added_variance(p, n0, a, np.sqrt(s))),
                "electronic_sd is a standard deviation: the formula has its square.",
            ),
        ),
    ),
    Exercise(
        name="01.kernel",
        prompt=f"A Kernel: noise that peaks at {PEAK} /mm, under 1 % of the power beyond {NYQUIST:.3f} /mm.",
        accept=_good_kernel,
        right=Kernel(0.36, 0.74),
        wrong=Kernel(0.4, 1.1),
        because="a flank that is steep enough to end near Nyquist and late enough to let the ramp rise to 0.40 /mm.",
        hint="Give a Kernel, for example Kernel(0.0, 0.6), and draw f·W(f)² for it and for a few others.",
        hints=(
            (lambda k: _share_beyond(_kernel(k)) >= 0.01, "Too much power beyond Nyquist: it would alias."),
            (lambda k: _peak(_kernel(k)) < PEAK - 0.02, "Its noise peaks at too low a frequency."),
            (lambda k: _peak(_kernel(k)) > PEAK + 0.02, "Its noise peaks at too high a frequency."),
        ),
    ),
]
