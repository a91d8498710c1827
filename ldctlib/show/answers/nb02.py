"""Answers to the exercises of notebook 02, the autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldctlib.show.exercises import Exercise, number


def _posteriors(sd: float) -> tuple[Tensor, Tensor]:
    """Means of std 0.4 about 0.3, and posteriors of std ``sd``: raw latents (8, 4, 32, 32)."""
    generator = torch.Generator().manual_seed(2)
    mean = 0.3 + 0.4 * torch.randn(8, 4, 32, 32, generator=generator)
    return mean, torch.full_like(mean, sd).square().log()


def _is_scale(scale: Any) -> bool:
    """Right for a wide posterior, where it matters, and for a narrow one."""
    for sd in (0.5, 0.01):
        mean, logvar = _posteriors(sd)
        expected = 1 / float((mean.double().var() + logvar.double().exp().mean()).sqrt())
        if abs(float(scale(mean, logvar)) / expected - 1) > 0.02:
            return False
    return True


def _scale(mean: Tensor, logvar: Tensor) -> Tensor:
    return 1 / (mean.var() + logvar.exp().mean()).sqrt()


def _of_means(mean: Tensor, logvar: Tensor) -> Tensor:
    return 1 / mean.std()


def _answers_like(other: Any) -> Any:
    """Recognises a function that agrees with ``other`` on a wide posterior."""

    def same(answer: Any) -> bool:
        given = _posteriors(0.5)
        return abs(float(answer(*given)) / float(other(*given)) - 1) < 0.005

    return same


EXERCISES = [
    Exercise(
        name="02.white",
        prompt="A number, in HU.",
        accept=number(10.0, within=0.03),
        right=10.0,
        wrong=5.0,
        because="64 coefficients of 20 HU each; 16 stay. The variance falls to 16/64, the standard deviation to "
        "√(1/4) · 20 = 10 HU. CT noise is not white: of low frequencies more stays, of high ones less.",
        hint="How much noise is in each of the 64 coefficients? Try with torch.randn and 16 of the cosines.",
        hints=(
            (number(5.0, within=0.03), "A quarter of the numbers keeps a quarter of the *variance*."),
            (number(20.0, within=0.03), "That would be all of it: but 48 of 64 coefficients are thrown away."),
            (
                number(15.0, within=0.03),
                "Three quarters of the variance are lost, not a quarter of the standard deviation.",
            ),
        ),
    ),
    Exercise(
        name="02.scale",
        prompt="A function scale(mean, logvar) that returns one factor.",
        accept=_is_scale,
        right=_scale,
        wrong=_of_means,
        because="A sample is mean + std · noise, so its variance is Var(mean) + E[std²]. With a narrow posterior the "
        "second term is nothing; with a heavy KL it is most of it.",
        hint="Try it: draw samples with the notebook's sample(), times your factor, and look at their variance.",
        hints=(
            (_answers_like(_of_means), "That is the scale of the means. Diffusion is trained on samples."),
            (
                _answers_like(lambda m, v: (m.var() + v.exp().mean()).sqrt()),
                "That is the standard deviation itself: the factor that makes it 1 is its inverse.",
            ),
            (
                _answers_like(lambda m, v: 1 / (m.var() + (0.5 * v).exp().mean()).sqrt()),
                "exp(logvar / 2) is a standard deviation; variances add, not standard deviations.",
            ),
            (
                _answers_like(lambda m, v: 1 / (m.square() + v.exp()).mean().sqrt()),
                "That is one over the root mean square: the latent's mean has to be taken off first.",
            ),
        ),
    ),
    Exercise(
        name="02.weight",
        prompt="A number, λ, in the model's units.",
        accept=number(8e-4, within=0.03),
        right=8e-4,
        wrong=800.0,
        because="λ = 2 D = 2 · 0.02² = 8e-4: eight hundred times the 1e-6 of the literature. A coefficient weaker than "
        "20 HU is then worth less than its nats, and is dropped.",
        hint="What is D in (B): an amplitude or a variance? And in which unit?",
        hints=(
            (number(800.0, within=0.03), "That is in HU². The loss is computed in model units: divide by 1000²."),
            (number(4e-4, within=0.03), "That is D. Look at (B) again: is it λ?"),
            (number(2e-4, within=0.03), "D = λ / 2, not 2 λ."),
            (number(0.04, within=0.03), "D is a variance."),
        ),
    ),
]
