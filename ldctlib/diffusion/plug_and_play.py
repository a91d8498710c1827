"""Plug-and-play samplers: one unconditional prior, and a measurement y = A x + n that each step is held to.

Each is a generator function with the contract of :mod:`ldctlib.diffusion.samplers`, and takes an operator besides:

    for step in ddnm_plus(eps, x_t, schedule, times, operator, y, generator=generator):
        show(step.x0_prior, step.x0_hat)  # what the prior makes of x_t, and that held to the measurement

x_t, y and the noise of the operator are in the unit of the chain. An operator has ``A``, ``A_adjoint``, ``A_dagger``,
``prox_l2``, ``noise`` and ``singular_values`` (:mod:`ldctlib.operators`); nothing else of physics enters here.

The fresh share of the noise follows DDRM (Kawar et al. 2022): with a = √ᾱ_s and σ = √(1 − ᾱ_s) of the next time,

    x_s = a x0_hat + σ (η z + √(1 − η²) eps_hat)

so η² of its variance is new at every step. That is not DDIM's η, whose fresh variance depends on the step's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from ldctlib.diffusion.process import Generators, noise_like, q_sample
from ldctlib.diffusion.samplers import (
    Limits,
    NoisePredictor,
    Step,
    at_least_float32,
    check_eta,
    ddim_mean,
    pairs,
    posterior_sample,
    predict,
)
from ldctlib.diffusion.schedule import Schedule
from ldctlib.errors import ParameterError

ETA = 0.85
"""The published share: .7225 of the noise's variance is fresh at every step."""


class Noise(Protocol):
    """Noise of a measurement, in orthonormal coordinates in which it is independent."""

    sd: float  # rms over y
    largest_sd: float  # of the noisiest coordinate

    def filter(self, y: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """y with each coordinate times a function of its noise's standard deviation."""


class Measurement(Protocol):
    """What a sampler asks of an operator."""

    noise: Noise
    singular_values: float | Tensor | None

    def A(self, x: Tensor) -> Tensor: ...
    def A_adjoint(self, y: Tensor) -> Tensor: ...
    def A_dagger(self, y: Tensor) -> Tensor: ...
    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor: ...


@torch.no_grad()
def ddnm(
    eps: NoisePredictor,
    x_t: Tensor,
    schedule: Schedule,
    times: Sequence[int],
    operator: Measurement,
    y: Tensor,
    *,
    eta: float | None = ETA,
    generator: Generators = None,
    clamp_x0: Limits = None,
) -> Iterator[Step]:
    """DDNM for a measurement without noise (plug-and-play DDNM, Eqs 9 and 10, Algorithm 1; Wang et al. 2023).

    x0_hat = A⁺ y + (I − A⁺ A) x0_prior: the range of A⁺ comes from the measurement, the null space from the prior, so
    A x0_hat = y. Printed are α for ᾱ in Algorithm 1, and in Eq. 10 a wrong coefficient of x_t and σ for √β̃; here is
    the posterior that they are taken from.

    eta : None is Algorithm 1's ancestral step, a number DDRM's share (the released code: .85, 100 steps).
    """
    if eta is not None:
        check_eta(eta)
    x = at_least_float32(x_t)
    for i, (t, s) in enumerate(pairs(schedule, times)):
        x0_prior, eps_hat = predict(eps, x, t, schedule, clamp_x0)
        x0_hat = x0_prior + operator.A_dagger(y - operator.A(x0_prior))
        yield Step(i, t, x, x0_hat, x0_prior)
        if s >= t:
            x = q_sample(schedule, x0_prior, s, noise_like(x, generator))
        elif s > 0 and eta is None:
            x = posterior_sample(schedule, x, t, x0_hat, s, generator)
        elif s > 0:
            x = sqrt(schedule.at(s)) * x0_hat + renewed_noise(schedule, s, eps_hat, noise_like(x, generator), eta)


@torch.no_grad()
def ddrm(
    eps: NoisePredictor,
    x_t: Tensor,
    schedule: Schedule,
    times: Sequence[int],
    operator: Measurement,
    y: Tensor,
    *,
    eta: float = ETA,
    eta_b: float = 1.0,
    generator: Generators = None,
    clamp_x0: Limits = None,
) -> Iterator[Step]:
    """DDRM (Kawar et al. 2022, Eqs 7 and 8), for a measurement with noise of known variance in each coordinate.

    Coordinate k of Vᵀx is measured as ȳ_k = (Uᵀy)_k / s_k with noise of standard deviation n_k = σ_y,k / s_k. With
    x̄ = Vᵀ x0_prior, a = √ᾱ_s and σ = √(1 − ᾱ_s):

        σ ≥ a n_k :  x_s,k = a ((1 − η_b) x̄_k + η_b ȳ_k) + √(σ² − a² η_b² n_k²) z_k
        σ < a n_k :  x_s,k = a x̄_k + σ √(1 − η²) (ȳ_k − x̄_k) / n_k + σ η z_k
        unmeasured:  x_s,k = a x̄_k + σ (η z_k + √(1 − η²) ε_k)

    The noise in y takes the place of the chain's own noise as long as it is smaller, and part of it below. Without
    noise and with η_b = 1 this is :func:`ddnm` but for the measured coordinates' noise, which is all fresh here.

    eta_b : weight of the measurement above its noise.
    """
    check_eta(eta)
    singular = operator.singular_values
    if singular is None:
        raise ParameterError(
            f"the singular values of {type(operator).__name__} are unknown: use dds or dps, or ddnm for noise-free data"
        )
    x = at_least_float32(x_t)
    for i, (t, s) in enumerate(pairs(schedule, times)):
        x0_prior, eps_hat = predict(eps, x, t, schedule, clamp_x0)
        a, sigma = sqrt(schedule.at(s)), sqrt(1 - schedule.at(s))
        weight, fresh = measurement_weights(a, sigma, singular, eta, eta_b)
        x0_hat = x0_prior + operator.A_dagger(operator.noise.filter(y - operator.A(x0_prior), weight))
        yield Step(i, t, x, x0_hat, x0_prior)
        if s >= t:
            x = q_sample(schedule, x0_prior, s, noise_like(x, generator))
        elif s > 0:
            z = noise_like(x, generator)
            x = a * x0_hat + in_range(operator, renewed_noise(schedule, s, eps_hat, z, eta), z, fresh)


def ddnm_plus(eps, x_t, schedule, times, operator, y, *, eta=ETA, generator=None, clamp_x0=None) -> Iterator[Step]:
    """DDNM+ in its exact form, with λ and the noise for each singular value (Wang et al. 2023, section 3.3, Eq. 19).

    λ_k = 1 and fresh noise √(σ² − a² n_k²) while σ ≥ a n_k; below, λ_k = σ √(1 − η²) / (a n_k) and fresh noise ση.
    That is DDRM with η_b = 1, whose arguments it takes. The "simplified" form of the public codes (one scalar λ and γ
    for all k, with √(1 − ᾱ²) for √(1 − ᾱ)) is another, and wrong where singular values are not 1.
    """
    return ddrm(eps, x_t, schedule, times, operator, y, eta=eta, eta_b=1.0, generator=generator, clamp_x0=clamp_x0)


@torch.no_grad()
def dps(
    eps: NoisePredictor,
    x_t: Tensor,
    schedule: Schedule,
    times: Sequence[int],
    operator: Measurement,
    y: Tensor,
    *,
    zeta: float = 0.3,
    generator: Generators = None,
    clamp_x0: Limits = None,
) -> Iterator[Step]:
    """Diffusion posterior sampling (Chung et al. 2023, Algorithm 1): ancestral steps, each moved down the gradient.

    x_s ← x_s − ζ ∇ ‖y − A x0_hat(x_t)‖, the unsquared norm of each image by itself, through the network.

    zeta : step length; .3 is the paper's for faces of 256². It depends on the operator and on the number of steps
        (the paper takes 1000).
    """
    x = at_least_float32(x_t)
    for i, (t, s) in enumerate(pairs(schedule, times)):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0_hat, _ = predict(eps, x, t, schedule, clamp_x0)
            distance = (y - operator.A(x0_hat)).flatten(1).norm(dim=1)
            (gradient,) = torch.autograd.grad(distance.sum(), x)
        x, x0_hat = x.detach(), x0_hat.detach()
        yield Step(i, t, x, x0_hat, x0_hat)
        if s >= t:
            x = q_sample(schedule, x0_hat, s, noise_like(x, generator))
        elif s > 0:
            x = posterior_sample(schedule, x, t, x0_hat, s, generator) - zeta * gradient


@torch.no_grad()
def ilvr(
    eps: NoisePredictor,
    x_t: Tensor,
    schedule: Schedule,
    times: Sequence[int],
    low_pass: Measurement,
    y: Tensor,
    *,
    until: int = 0,
    generator: Generators = None,
    clamp_x0: Limits = None,
) -> Iterator[Step]:
    """ILVR (Choi et al. 2021, Algorithm 1): the low frequencies of every x_s are those of the noised reference.

    x_s ← x_s − φ(x_s) + φ(q_sample(reference, s)), with φ = A⁺A of ``low_pass`` (block means, down and up again) and
    the reference A⁺y. It takes y as free of noise.

    until : the time below which the reference no longer enters (``range_t``; the paper's is 20 of 100 steps).
    """
    reference = low_pass.A_dagger(y)
    x = at_least_float32(x_t)
    for i, (t, s) in enumerate(pairs(schedule, times)):
        x0_hat, _ = predict(eps, x, t, schedule, clamp_x0)
        yield Step(i, t, x, x0_hat, x0_hat)
        if s >= t:
            x = q_sample(schedule, x0_hat, s, noise_like(x, generator))
        elif s > 0:
            x = posterior_sample(schedule, x, t, x0_hat, s, generator)
            if s > until:
                noised = q_sample(schedule, reference, s, noise_like(x, generator))
                x = x + low_pass.A_dagger(low_pass.A(noised - x))


@torch.no_grad()
def dds(
    eps: NoisePredictor,
    x_t: Tensor,
    schedule: Schedule,
    times: Sequence[int],
    operator: Measurement,
    y: Tensor,
    *,
    gamma: float | None = None,
    prior_weight: float = 1.0,
    eta: float = ETA,
    generator: Generators = None,
    clamp_x0: Limits = None,
) -> Iterator[Step]:
    """Decomposed diffusion sampling (Chung et al. 2024, Algorithm 1), for operators such as CT projections.

    x0_hat = argmin γ/2 ‖A x − y‖² + 1/2 ‖x − x0_prior‖² by a few conjugate gradients from x0_prior (``iterations`` of
    the operator; the paper's is 5), then a step of DDIM with its own η.

    gamma : weight of the data, in the chain's unit over y's, squared: the paper's is constant, for data without noise.
        None for r_t² / σ_y², with r_t² = (1 − ᾱ_t) / (ᾱ_t prior_weight) for how far the prior may be wrong at t (Zhu et
        al. 2023, DiffPIR, Algorithm 1). At the end of the chain the prior then decides what is noise.
    """
    check_eta(eta)
    noise_sd = operator.noise.sd
    if gamma is None and not noise_sd > 0:
        raise ParameterError("data without noise need a weight: give dds its gamma")
    x = at_least_float32(x_t)
    for i, (t, s) in enumerate(pairs(schedule, times)):
        x0_prior, eps_hat = predict(eps, x, t, schedule, clamp_x0)
        alpha_bar_t = schedule.at(t)
        weight = gamma if gamma is not None else (1 - alpha_bar_t) / (alpha_bar_t * prior_weight * noise_sd**2)
        x0_hat = operator.prox_l2(x0_prior, y, weight)
        yield Step(i, t, x, x0_hat, x0_prior)
        if s >= t:
            x = q_sample(schedule, x0_prior, s, noise_like(x, generator))
        elif s > 0:
            mean, sigma = ddim_mean(schedule, t, s, x0_hat, eps_hat, eta)
            x = mean + sigma * noise_like(x, generator)


PLUG_AND_PLAY = {"ddnm": ddnm, "ddnm_plus": ddnm_plus, "ddrm": ddrm, "dps": dps, "ilvr": ilvr, "dds": dds}
"""By the names that methods and command lines take."""


# ---------------------------------------------------------------- where a chain starts


def first_time(operator: Measurement, schedule: Schedule) -> int:
    """The smallest time whose noise is at least that of every coordinate of the measurement: √(1 − ᾱ_t) ≥ √ᾱ_t n_k.

    A chain for denoising starts there: above it y has nothing to say that the chain's own noise does not hide. T for
    a measurement with more noise than x_T.
    """
    worst = operator.noise.largest_sd / float(torch.as_tensor(operator.singular_values).min())
    alpha_bar = schedule.alpha_bar[1:]
    enough = (1 - alpha_bar >= alpha_bar * worst**2).nonzero()
    return int(enough[0]) + 1 if len(enough) else schedule.T


@torch.no_grad()
def start_from_measurement(
    operator: Measurement, y: Tensor, schedule: Schedule, t: int, generator: Generators = None
) -> Tensor:
    """x_t around √ᾱ_t A⁺y whose noise, together with that of y, is white of variance 1 − ᾱ_t.

    Coordinate k gets fresh noise of variance (1 − ᾱ_t) − ᾱ_t n_k², which exists from :func:`first_time` on (it is 0
    below), unmeasured ones all of it (DDRM, Eq. 7). Where everything is measured this is x_t of the true image.
    """
    singular = operator.singular_values
    estimate = operator.A_dagger(at_least_float32(y))
    alpha_bar = schedule.at(t)
    z = noise_like(estimate, generator)

    def fresh(sd: Tensor) -> Tensor:
        return (1 - alpha_bar - alpha_bar * (sd / singular) ** 2).clamp(min=0).sqrt()

    return sqrt(alpha_bar) * estimate + in_range(operator, sqrt(1 - alpha_bar) * z, z, fresh)


# ---------------------------------------------------------------- parts of a step

OfNoise = Callable[[Tensor], Tensor]
"""A function of the standard deviation of a coordinate's noise."""


def measurement_weights(
    a: float | Tensor, sigma: float | Tensor, singular: float | Tensor = 1.0, eta: float = ETA, eta_b: float = 1.0
) -> tuple[OfNoise, OfNoise]:
    """λ of the measurement, and the standard deviation of the fresh noise, as functions of σ_y,k: see :func:`ddrm`.

    a, sigma : √ᾱ_s and √(1 − ᾱ_s) of the next time.
    """

    def weight(sd: Tensor) -> Tensor:
        n = a * sd / singular
        return torch.where(n <= sigma, eta_b, sigma * sqrt(1 - eta**2) / n.clamp(min=1e-12))

    def fresh(sd: Tensor) -> Tensor:
        n = a * sd / singular
        return torch.where(n <= sigma, (sigma**2 - (eta_b * n) ** 2).clamp(min=0).sqrt(), sigma * eta)

    return weight, fresh


def renewed_noise(schedule: Schedule, s: int, eps_hat: Tensor, z: Tensor, eta: float) -> Tensor:
    """σ (η z + √(1 − η²) eps_hat): noise of x_s of which a share η² of the variance is fresh."""
    return sqrt(1 - schedule.at(s)) * (eta * z + sqrt(1 - eta**2) * eps_hat)


def in_range(operator: Measurement, unmeasured: Tensor, z: Tensor, fresh: OfNoise) -> Tensor:
    """``unmeasured`` with its part in the range of A⁺ replaced by z's, each coordinate times ``fresh`` of its noise."""
    measured = operator.noise.filter(operator.A(z), fresh)
    return unmeasured + operator.A_dagger(measured - operator.A(unmeasured))
