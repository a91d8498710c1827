"""Samplers: from noise to an image, or from a noised image back.

Each is a generator function with one contract:

    for step in ddim(eps, x_t, schedule, schedule.times(30), generator=generator):
        show(step.x0_hat)  # draw, count, break: the loop is yours
    image = step.x0_hat

eps(x_t, t) -> eps_hat    noise predictor; t is int64 (B,), conditions are bound by closure
x_t                       (B, …) at ``times[0]``: pure noise, or a noised image to start mid-chain
times                     visited times in 1 … T, one network evaluation each (:meth:`Schedule.times`). Where the next
                          time is larger, x0_hat is noised afresh to it: time travel
generator                 one for the batch, or one for each image; deterministic samplers draw in time travel only
clamp_x0=(low, high)      clamps every x0_hat, for data that ends there; None never does

After the last time comes 0, where each update equals x0_hat: the last ``x0_hat`` is the sample.
Sampling is in float32 at least, whatever the network computes in: 1/√ᾱ_t amplifies the rounding of eps_hat.
Bad arguments raise ParameterError at the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from math import expm1, log, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from ldctlib.diffusion.process import Generators, eps_from, noise_like, q_sample, x0_from
from ldctlib.diffusion.schedule import Schedule
from ldctlib.errors import ParameterError, ShapeError, check_options

NoisePredictor = Callable[[Tensor, Tensor], Tensor]
Limits = tuple[float, float] | None


class Step(NamedTuple):
    """Where a sampler stands."""

    i: int  # number of the step, from 0
    t: int
    x_t: Tensor  # (B, …)
    x0_hat: Tensor  # estimate of x0 that the sampler goes on with
    x0_prior: Tensor  # what the network alone makes of x_t, before a measurement corrects it


def final(steps: Iterable[Step]) -> Tensor:
    """The sample: the last ``x0_hat``, without keeping the steps before it."""
    for step in steps:
        x0_hat = step.x0_hat
    return x0_hat


@torch.no_grad()
def ddpm(
    eps: NoisePredictor,
    x_t: Tensor,
    schedule: Schedule,
    times: Sequence[int],
    *,
    generator: Generators = None,
    clamp_x0: Limits = None,
) -> Iterator[Step]:
    """Ancestral sampling: x_s from the posterior q(x_s | x_t, x0_hat) (Ho et al. 2020, Eqs 6, 7 and 11).

    Between any two times the equations hold with α = ᾱ_t / ᾱ_s. The variance is the posterior's, β̃.
    """
    x = at_least_float32(x_t)
    for i, (t, s) in enumerate(pairs(schedule, times)):
        x0_hat, _ = predict(eps, x, t, schedule, clamp_x0)
        yield Step(i, t, x, x0_hat, x0_hat)
        if s >= t:
            x = q_sample(schedule, x0_hat, s, noise_like(x, generator))
        elif s > 0:
            x = posterior_sample(schedule, x, t, x0_hat, s, generator)


@torch.no_grad()
def ddim(
    eps: NoisePredictor,
    x_t: Tensor,
    schedule: Schedule,
    times: Sequence[int],
    *,
    generator: Generators = None,
    eta: float = 0.0,
    clamp_x0: Limits = None,
) -> Iterator[Step]:
    """DDIM (Song et al. 2021, Eqs 12, 16). η = 0 is MAN's Eq. 6: deterministic, of order 1. η = 1 is DDPM."""
    check_eta(eta)
    x = at_least_float32(x_t)
    for i, (t, s) in enumerate(pairs(schedule, times)):
        x0_hat, eps_hat = predict(eps, x, t, schedule, clamp_x0)
        yield Step(i, t, x, x0_hat, x0_hat)
        if s >= t:
            x = q_sample(schedule, x0_hat, s, noise_like(x, generator))
        elif s > 0:
            x, sigma = ddim_mean(schedule, t, s, x0_hat, eps_hat, eta)
            if eta > 0:
                x = x + sigma * noise_like(x, generator)


@torch.no_grad()
def dpm_solver_pp_2m(
    eps: NoisePredictor,
    x_t: Tensor,
    schedule: Schedule,
    times: Sequence[int],
    *,
    generator: Generators = None,
    clamp_x0: Limits = None,
) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): DDIM's path, of order 2, at one evaluation a step.

    In λ = log(√ᾱ / √(1 − ᾱ)) the path is linear but for x0_hat, which a line through its last two values
    extrapolates to the middle of the step. The last step, to λ = ∞, is of order 1, and so is one after time travel.
    """
    x = at_least_float32(x_t)
    x0_before = h_before = None
    for i, (t, s) in enumerate(pairs(schedule, times)):
        x0_hat, _ = predict(eps, x, t, schedule, clamp_x0)
        yield Step(i, t, x, x0_hat, x0_hat)
        if s >= t:
            x = q_sample(schedule, x0_hat, s, noise_like(x, generator))
            x0_before = h_before = None
        elif s > 0:
            alpha_bar_t, alpha_bar_s = schedule.at(t), schedule.at(s)
            h = half_log_snr(alpha_bar_s) - half_log_snr(alpha_bar_t)
            D = x0_hat
            if x0_before is not None:
                r = h_before / h
                D = (1 + 1 / (2 * r)) * x0_hat - 1 / (2 * r) * x0_before
            x = sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t)) * x - sqrt(alpha_bar_s) * expm1(-h) * D
            x0_before, h_before = x0_hat, h


def ddim_mean(schedule: Schedule, t: int, s: int, x0: Tensor, eps: Tensor, eta: float) -> tuple[Tensor, float]:
    """Mean and standard deviation of x_s, s < t, in DDIM's step (Song et al. 2021, Eqs 12 and 16)."""
    alpha_bar_t, alpha_bar_s = schedule.at(t), schedule.at(s)
    sigma = eta * sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s))
    return sqrt(alpha_bar_s) * x0 + sqrt(1 - alpha_bar_s - sigma**2) * eps, sigma


def check_eta(eta: float) -> None:
    """ParameterError unless eta lies in [0, 1]."""
    if not 0 <= eta <= 1:
        raise ParameterError(f"eta lies in 0 (no fresh noise) … 1 (all that there can be), got {eta}")


def posterior_sample(
    schedule: Schedule, x_t: Tensor, t: int, x0: Tensor, s: int, generator: Generators = None
) -> Tensor:
    """x_s from q(x_s | x_t, x0), s < t (Ho et al. 2020, Eqs 6 and 7, with α = ᾱ_t / ᾱ_s)."""
    alpha_bar_t, alpha_bar_s = schedule.at(t), schedule.at(s)
    alpha = alpha_bar_t / alpha_bar_s
    beta = 1 - alpha
    mean = (sqrt(alpha_bar_s) * beta * x0 + sqrt(alpha) * (1 - alpha_bar_s) * x_t) / (1 - alpha_bar_t)
    sigma = sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t) * beta)
    return mean + sigma * noise_like(x_t, generator)


SAMPLERS = {"ddim": ddim, "ddpm": ddpm, "dpm_solver_pp_2m": dpm_solver_pp_2m}
"""By the names that methods and command lines take."""


def find(name: str, among: Mapping[str, Callable] = SAMPLERS, **options) -> Callable[..., Iterator[Step]]:
    """A sampler by name, with its own options bound; ParameterError for a name or an option that there is not."""
    if name not in among:
        raise ParameterError(f"sampler is one of {', '.join(among)}; got {name!r}")
    positional = [p for p in signature(among[name]).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    check_options(f"sampler {name!r}", among[name], *positional, generator=None, **options)
    return partial(among[name], **options)


def pairs(schedule: Schedule, times: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each visited time t with the next one s; after the last comes 0. ParameterError for times outside 1 … T."""
    times = schedule.check_times(times)
    return zip(times, (*times[1:], 0), strict=True)


def predict(
    eps: NoisePredictor, x_t: Tensor, t: int, schedule: Schedule, clamp_x0: Limits = None
) -> tuple[Tensor, Tensor]:
    """(x0_hat, eps_hat) at x_t, in its dtype: the step that all samplers share.

    The two always explain x_t together: where x0_hat is clamped, eps_hat follows it.
    """
    eps_hat = eps(x_t, torch.full((len(x_t),), t, device=x_t.device))
    if eps_hat.shape != x_t.shape:
        raise ShapeError(f"eps answered x_t {tuple(x_t.shape)} with {tuple(eps_hat.shape)}")
    eps_hat = eps_hat.to(x_t.dtype)
    x0_hat = x0_from(schedule, x_t, t, "eps", eps_hat)
    if clamp_x0 is None:
        return x0_hat, eps_hat
    low, high = clamp_x0
    if not low < high:
        raise ParameterError(f"clamp_x0 is (low, high) with low < high, got {clamp_x0}")
    x0_hat = x0_hat.clamp(low, high)
    return x0_hat, eps_from(schedule, x_t, t, "x0", x0_hat)


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 to float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def half_log_snr(alpha_bar: float) -> float:
    """λ = log(√ᾱ / √(1 − ᾱ))."""
    return 0.5 * log(alpha_bar / (1 - alpha_bar))
