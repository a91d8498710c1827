"""Dn-Dp: zero-shot denoising by a cascade of priors, each of whose steps solves a MAP problem (Liu et al. 2023).

Each stage starts from pure noise. From x_t the prior predicts x_s ~ N(μ, σ²), DDIM's with η = 1, and the low-dose image
says y_s, y noised to s. Between the two stands the minimiser of (1/2) ‖x - y_s‖² + (1/2) (λ/σ) ‖x - μ‖²:

    x_s = (y_s + (λ/σ) μ) / (1 + λ/σ),    λ = λ0 √ᾱ_t.

While noise is strong λ/σ is near 0 and x_s near y_s; at the end σ vanishes and the prior decides.

λ0, and b below, are in the unit of x. The published values are for 16-bit images scaled to [-1, 1], and the HU range is
not published. With a = 1.5 and b = -0.01 the adapted a std(n̂) + b equals the λ0 of 0.0075 where the removed noise has
a standard deviation of 0.0194 (its absolute value 0.0117): 19 HU, as at quarter dose, if a unit has 1000 HU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from ldctlib.diffusion.process import Generators, noise_like, q_sample
from ldctlib.diffusion.samplers import Limits, NoisePredictor, Step, at_least_float32, ddim_mean, pairs, predict
from ldctlib.diffusion.schedule import Schedule, times_from_zero_based
from ldctlib.errors import ParameterError

DNDP_TIMES = times_from_zero_based((*range(0, 500, 20), 500, 1000, 1500, 1999))
"""The published 29 of T = 2000."""


class AdaptiveWeight(NamedTuple):
    """The prior's weight, adapted to the noise n̂ = |y - x0_hat| that a first run removed, for a run of the last steps.

        λ = (a std(n̂) + b) / λ0 · c n̂

    std(n̂) is over an image's pixels and n̂ stays a map: the prior weighs more in noisier images, and where more was
    removed. The paper's two rules are λ0 = a std(n̂) + b and λ0 = c n̂; this product of both is the released code's. It
    too leaves out √ᾱ_t, .998 or more at these steps. The factor a std(n̂) + b is kept from falling below 0, as it would
    in an image with almost no noise.
    """

    a: float
    b: float
    c: float
    rerun: int = 3  # steps

    def __call__(self, y: Tensor, x0_hat: Tensor, lambda0: float) -> Tensor:
        """λ of y's shape (B, C, H, W)."""
        removed = (y - x0_hat).abs()
        level = (self.a * removed.flatten(1).std(1) + self.b).clamp(min=0)
        return level.reshape(-1, 1, 1, 1) / lambda0 * self.c * removed


DNDP_ABDOMEN = AdaptiveWeight(1.5, -0.01, 0.3)
"""The published second stage for the abdomen, with λ0 = 0.0075; the first stage has λ0 = 0.002 and is not run again."""


def map_step(y_s: Tensor, mean: Tensor, weight: Tensor | float) -> Tensor:
    """argmin over x of 1/2 ‖x - y_s‖² + weight/2 ‖x - mean‖², pixel by pixel where the weight is a map."""
    return (y_s + weight * mean) / (1 + weight)


@torch.no_grad()
def map_chain(
    eps: NoisePredictor,
    y: Tensor,
    schedule: Schedule,
    times: Sequence[int] = DNDP_TIMES,
    *,
    lambda0: float,
    adaptive: AdaptiveWeight | None = None,
    generator: Generators = None,
    clamp_x0: Limits = None,
) -> Iterator[Step]:
    """One stage, as the samplers of :mod:`ldctlib.diffusion.samplers`: its last ``x0_hat`` is the denoised image.

    y : the low-dose image (B, C, H, W) in the unit of the chain.
    times : falling. From T the chain starts from pure noise; from a later time it starts from y noised to it, as which
        the published chain is there almost exactly, λ/σ being small.
    lambda0 : λ0 above, in the same unit.
    adaptive : run the last steps again with the weight that follows from the first run.
    """
    visited = tuple(pairs(schedule, times))
    if any(s >= t for t, s in visited):
        raise ParameterError("Dn-Dp visits falling times: noise is only added to the measurement")
    if not lambda0 > 0:
        raise ParameterError(f"lambda0 is positive, got {lambda0}")
    rerun = 0 if adaptive is None else adaptive.rerun
    if not 0 <= rerun <= len(visited):
        raise ParameterError(f"of {len(visited)} steps 0 to {len(visited)} can be run again, got {rerun}")
    y = at_least_float32(y)
    x, first = noise_like(y, generator), visited[0][0]
    if first < schedule.T:
        x = q_sample(schedule, y, first, x)
    before_last, x0_hat, weight = x, y, None
    for i, (t, s) in enumerate((*visited, *visited[len(visited) - rerun :])):
        if i == len(visited) - rerun:
            before_last = x
        if i == len(visited):
            x, weight = before_last, adaptive(y, x0_hat, lambda0)
        x0_hat, eps_hat = predict(eps, x, t, schedule, clamp_x0)
        yield Step(i, t, x, x0_hat, x0_hat)
        if s > 0:
            mean, sigma = ddim_mean(schedule, t, s, x0_hat, eps_hat, eta=1.0)
            y_s = q_sample(schedule, y, s, noise_like(y, generator))
            x = map_step(y_s, mean, (lambda0 * sqrt(schedule.at(t)) if weight is None else weight) / sigma)


def cascade(*stages: Callable[[Tensor | None], Iterator[Step]], num_samples: int = 10) -> Iterator[Step]:
    """The steps of all stages and samples; the last, at t = 0, holds the mean of the last stage's samples.

    stages : each starts a chain, given the mean of the samples of the stage before it (None the first).
    """
    if num_samples < 1 or not stages:
        raise ParameterError(f"a cascade has a stage and a sample at least, got {len(stages)} and {num_samples}")
    mean, i = None, 0
    for stage in stages:
        total = 0.0
        for _ in range(num_samples):
            for step in stage(mean):
                yield step._replace(i=i)
                i += 1
            total = total + step.x0_hat
        mean = total / num_samples
    yield Step(i, 0, mean, mean, mean)
