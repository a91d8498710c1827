"""Samplers against closed forms and against diffusers.

The prior is Gaussian, x0 ~ N(MEAN, VARIANCE) in three independent channels, so that eps(x_t, t) is known and
every sampler is an affine recursion, written here a second time and in another form.
"""

from __future__ import annotations

from itertools import islice
from math import exp, log, sqrt

import numpy as np
import pytest
import torch

from ldctlib.diffusion import samplers
from ldctlib.diffusion.process import image_generators, noise_like, q_sample
from ldctlib.diffusion.samplers import ddim, ddpm, dpm_solver_pp_2m, final, predict
from ldctlib.diffusion.schedule import cosine, from_alphas_cumprod, linear, sr3, times_from_zero_based, zero_based
from ldctlib.errors import ParameterError, ShapeError

MEAN = np.array([-1.0, 0.3, 2.0])
VARIANCE = np.array([0.04, 0.5, 1.5])
SAMPLERS = list(samplers.SAMPLERS.values())
SCHEDULES = [linear(), cosine(), sr3()]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def channels(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values).to(like).reshape(3, 1, 1)


def gaussian_eps(schedule):
    """E[eps | x_t] of the prior."""

    def eps(x_t, t):
        signal, noise = schedule.scales(t, x_t)
        mean, variance = channels(MEAN, x_t), channels(VARIANCE, x_t)
        return noise / (signal**2 * variance + noise**2) * (x_t - signal * mean)

    return eps


def affine(sampler, schedule, times, **options) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Slope and offset, by channel, of a deterministic sampler's last x_t and x0_hat in its start."""
    start = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1).expand(2, 3, 1, 1)
    *_, step = sampler(gaussian_eps(schedule), start, schedule, times, **options)
    x, x0 = step.x_t.reshape(2, 3).numpy(), step.x0_hat.reshape(2, 3).numpy()
    return x[1] - x[0], x[0], x0[1] - x0[0], x0[0]


def roots(schedule, t: int) -> tuple[float, float]:
    return sqrt(schedule.at(t)), sqrt(1 - schedule.at(t))


def shrink(schedule, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset of E[x0 | x_t], by conditioning the joint Gaussian of x0 and x_t."""
    a, b = roots(schedule, t)
    slope = a * VARIANCE / (a * a * VARIANCE + b * b)
    return slope, MEAN - slope * a * MEAN


def moments(schedule, times, sigma, mean, variance) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and variance after steps x_s ~ N(a_s x0_hat + c (x_t − a_t x0_hat), sigma²).

    With (c b_t)² + sigma² = b_s² a step keeps the marginal of a known x0: that is all of DDIM's family.
    """
    for t, s in zip(times, times[1:], strict=False):
        (a_t, b_t), (a_s, b_s) = roots(schedule, t), roots(schedule, s)
        c = sqrt(b_s**2 - sigma(t, s) ** 2) / b_t
        slope, offset = shrink(schedule, t)
        mean = (a_s - c * a_t) * (slope * mean + offset) + c * mean
        variance = ((a_s - c * a_t) * slope + c) ** 2 * variance + sigma(t, s) ** 2
    slope, offset = shrink(schedule, times[-1])
    return slope * mean + offset, slope**2 * variance


def posterior_sigma(schedule, share: float = 1.0):
    """share · the standard deviation of q(x_s | x_t, x0), by conditioning on x_t = (a_t/a_s) x_s + noise."""

    def sigma(t, s):
        (a_t, b_t), (a_s, b_s) = roots(schedule, t), roots(schedule, s)
        k = a_t / a_s * b_s**2 / b_t**2  # Cov(x_s, x_t) / Var(x_t), given x0
        return share * sqrt(b_s**2 - k**2 * b_t**2)

    return sigma


STOCHASTIC = [(ddpm, {}, 1.0), (ddim, {"eta": 0.7}, 0.7), (ddim, {"eta": 1.0}, 1.0)]


@pytest.mark.parametrize("schedule", [linear(), cosine()], ids=lambda s: s.name)
@pytest.mark.parametrize("sampler, options, share", STOCHASTIC)
@pytest.mark.parametrize("steps", [4, 20])
def test_stochastic_samplers_have_the_moments_of_their_recursion(schedule, sampler, options, share, steps):
    n, times = 40_000, schedule.times(steps)
    x_t = noise_like(torch.empty(n, 3, 1, 1), seeded(1))
    x0 = final(sampler(gaussian_eps(schedule), x_t, schedule, times, generator=seeded(2), **options))
    mean, variance = moments(schedule, times, posterior_sigma(schedule, share), np.zeros(3), np.ones(3))
    x0 = x0.reshape(n, 3).double().numpy()
    # standard errors √(v/n) and v √(2/n), taken four times for six comparisons in each of twelve cases
    assert np.all(abs(x0.mean(0) - mean) < 4 * np.sqrt(variance / n))
    assert np.all(abs(x0.var(0) - variance) < 4 * variance * sqrt(2 / n))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("steps", [1, 2, 30, 1000])
def test_ddim_is_its_recursion_to_rounding(schedule, steps):
    times = schedule.times(steps)
    *_, slope, offset = affine(ddim, schedule, times)
    mean, variance = moments(schedule, times, lambda t, s: 0.0, np.zeros(3), np.ones(3))
    # x0_hat = (x_t − b eps_hat) / a cancels: at the cosine's t = T rounding grows to 1e-16 / ᾱ_T = 1e-7
    np.testing.assert_allclose(offset, mean, rtol=2e-6)
    np.testing.assert_allclose(slope**2, variance, rtol=2e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("steps", [1, 2, 3, 30])
def test_2m_is_its_recursion_to_rounding(schedule, steps):
    times = schedule.times(steps)
    x = np.zeros(3), np.ones(3)  # offset, slope
    data, lam = [], []
    for t, s in zip(times, (*times[1:], None), strict=True):
        a, b = roots(schedule, t)
        slope, offset = shrink(schedule, t)
        data.append((slope * x[0] + offset, slope * x[1]))
        lam.append(log(a / b))
        if s is None:
            break
        a_s, b_s = roots(schedule, s)
        h = log(a_s / b_s) - lam[-1]
        # x0_hat at the middle of the step, on the line through the last two
        ahead = 0.5 * h / (lam[-1] - lam[-2]) if len(lam) > 1 else 0.0
        weight = a_s * (1 - exp(-h))
        x = tuple(
            b_s / b * x[i] + weight * (data[-1][i] + ahead * (data[-1][i] - data[max(len(data) - 2, 0)][i]))
            for i in range(2)
        )
    *_, slope, offset = affine(dpm_solver_pp_2m, schedule, times)
    np.testing.assert_allclose((offset, slope), data[-1], rtol=2e-6)  # as for DDIM


@pytest.mark.parametrize("sampler, order", [(ddim, 1), (dpm_solver_pp_2m, 2)])
@pytest.mark.parametrize("make", [linear, cosine])
def test_variance_approaches_the_prior_in_the_stated_order(sampler, order, make):
    # times of even spacing in λ, from −4 to 4, on a grid so fine that their rounding does not matter
    schedule = make(100_000)
    lam = torch.log(schedule.alpha_bar[1:] / (1 - schedule.alpha_bar[1:])) / 2
    errors = []
    for steps in (40, 80, 160):
        wanted = torch.linspace(-4, 4, steps + 1, dtype=torch.float64)
        times = [schedule.T - i for i in torch.searchsorted(lam.flip(0).contiguous(), wanted).tolist()]
        slope, offset, *_ = affine(sampler, schedule, times)
        (a_t, b_t), (a_s, b_s) = roots(schedule, times[0]), roots(schedule, times[-1])
        # started on the prior's own marginal, so the end should be on it
        mean, variance = slope * a_t * MEAN + offset, slope**2 * (a_t**2 * VARIANCE + b_t**2)
        np.testing.assert_allclose(mean, a_s * MEAN, rtol=1e-9)  # the mean is exact with any number of steps
        errors.append(abs(variance - (a_s**2 * VARIANCE + b_s**2)))
    # halving the step divides the error by 2^order; the next order still shows in the second digit
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    np.testing.assert_allclose(np.log2(ratios), order, atol=0.16)
    assert errors[-1].max() < {1: 0.04, 2: 0.004}[order]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_moments_approach_the_prior_from_noise_to_image(share):
    schedule = cosine(20_000)
    gaps = []
    for steps in (200, 400, 800):
        mean, variance = moments(
            schedule, schedule.times(steps), posterior_sigma(schedule, share), np.zeros(3), np.ones(3)
        )
        # pure noise lacks √ᾱ_T of the mean: 1e-5 with 20 000 capped levels
        np.testing.assert_allclose(mean, MEAN, atol=1e-4)
        gaps.append(abs(variance - VARIANCE))
    np.testing.assert_allclose(np.log2(np.array(gaps[:-1]) / np.array(gaps[1:])), 1, atol=0.15)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_ddim_with_eta_one_is_ddpm(schedule):
    x_t = noise_like(torch.empty(4, 3, 2, 2, dtype=torch.float64), seeded(3))
    ancestral, implicit = (
        sampler(gaussian_eps(schedule), x_t, schedule, schedule.times(25), generator=seeded(4), **options)
        for sampler, options in ((ddpm, {}), (ddim, {"eta": 1.0}))
    )
    for one, other in zip(ancestral, implicit, strict=True):
        torch.testing.assert_close(one.x_t, other.x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler, share", [(ddpm, 1.0), (ddim, 0.0), (dpm_solver_pp_2m, None)])
def test_mid_chain_start_gives_noised_images_their_detail_back(sampler, share):
    schedule, n = linear(), 40_000
    times = schedule.times(100, start=400)
    white = noise_like(torch.empty(n, 3, 1, 1), seeded(5))
    x0 = channels(MEAN, white) + channels(VARIANCE, white).sqrt() * white
    x_t = q_sample(schedule, x0, times[0], noise_like(x0, seeded(6)))
    options = {"generator": seeded(7)} if sampler is ddpm else {}
    out = final(sampler(gaussian_eps(schedule), x_t, schedule, times, **options)).reshape(n, 3).double().numpy()
    mean, variance = MEAN, VARIANCE  # which 2M meets to 0.4 % in 100 steps; the others are of order 1
    if share is not None:
        a, b = roots(schedule, times[0])
        sigma = posterior_sigma(schedule, share)
        mean, variance = moments(schedule, times, sigma, a * MEAN, a**2 * VARIANCE + b**2)
        assert np.all(abs(variance / VARIANCE - 1) < 0.12)
    # four standard errors, as above
    assert np.all(abs(out.mean(0) - mean) < 4 * np.sqrt(variance / n))
    assert np.all(abs(out.var(0) / variance - 1) < 4 * sqrt(2 / n) + 0.004)


def test_a_chain_resumed_at_one_of_its_steps_ends_alike():
    schedule = linear()
    eps, times = mixture_eps(schedule), schedule.times(20)
    x_t = noise_like(torch.empty(2, 3, 4, 4), seeded(8))
    whole = list(ddim(eps, x_t, schedule, times))
    assert torch.equal(final(ddim(eps, whole[12].x_t, schedule, times[12:])), whole[-1].x0_hat)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_known_image_is_found_at_every_time(sampler, schedule):
    # if eps(x_t, t) is the noise that leads from this image to x_t, every estimate is the image, as long as
    # the network and the sampler mean the same level by t
    image = noise_like(torch.empty(2, 3, 4, 4, dtype=torch.float64), seeded(9))
    told = []

    def eps(x_t, t):
        told.append(t)
        signal, noise = schedule.scales(t, x_t)
        return (x_t - signal * image) / noise

    times = schedule.times(12, "uniform")
    steps = list(sampler(eps, noise_like(image, seeded(10)), schedule, times))
    assert [step.t for step in steps] == list(times)
    assert [t.tolist() for t in told] == [[t, t] for t in times]
    for step in steps:
        torch.testing.assert_close(step.x0_hat, image, rtol=0, atol=1e-8)


def mixture_eps(schedule):
    """E[eps | x_t] of an equal mixture of N(−1, 0.05) and N(1, 0.05): not linear, and sane at every level."""

    def eps(x_t, t):
        a, b = schedule.scales(t, x_t)
        spread = a**2 * 0.05 + b**2
        return b / spread * (x_t - a * torch.tanh(a * x_t / spread))

    return eps


def against_diffusers(ours, scheduler, x_t, network, **options):
    """Follow one of our samplers with a scheduler of diffusers on the same network, which counts from 0.

    In double precision: in float32 their own rounding of √(1 − ᾱ_t), over √ᾱ_t = 5e-5, moves x0_hat by 1e-3.
    """
    x = x_t
    for step, t in zip(ours, scheduler.timesteps.tolist(), strict=True):
        assert step.t == t + 1
        torch.testing.assert_close(step.x_t, x, rtol=0, atol=1e-5)
        x = scheduler.step(network(x, torch.full((len(x),), t)), t, x, **options).prev_sample
    torch.testing.assert_close(step.x0_hat, x, rtol=0, atol=1e-5)


BETAS = pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])


def published(name: str, betas: str, **config):
    """A scheduler, its schedule in our indexing, a network that counts from 0, and a start."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(beta_schedule=betas, **config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    schedule = from_alphas_cumprod(scheduler.alphas_cumprod)
    right = mixture_eps(schedule)
    x_t = noise_like(torch.empty(2, 3, 8, 8), seeded(11)).double()
    return scheduler, schedule, lambda x, t: right(x, t + 1), x_t


@BETAS
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing, steps", [("leading", 50), ("trailing", 20)])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim_is_diffusers(betas, eta, spacing, steps, clip):
    scheduler, schedule, network, x_t = published(
        "DDIMScheduler", betas, timestep_spacing=spacing, clip_sample=clip, clip_sample_range=0.8
    )
    scheduler.set_timesteps(steps)
    ours = ddim(
        zero_based(network),
        x_t,
        schedule,
        schedule.times(steps, spacing),
        eta=eta,
        clamp_x0=(-0.8, 0.8) if clip else None,
        generator=seeded(12),
    )
    against_diffusers(ours, scheduler, x_t, network, eta=eta, use_clipped_model_output=clip, generator=seeded(12))


@BETAS
@pytest.mark.parametrize("steps", [20, 200])
@pytest.mark.parametrize("clip", [False, True])
def test_ddpm_is_diffusers(betas, steps, clip):
    scheduler, schedule, network, x_t = published("DDPMScheduler", betas, clip_sample=clip, clip_sample_range=0.8)
    scheduler.set_timesteps(steps)
    ours = ddpm(
        zero_based(network),
        x_t,
        schedule,
        schedule.times(steps, "leading"),
        clamp_x0=(-0.8, 0.8) if clip else None,
        generator=seeded(13),
    )
    against_diffusers(ours, scheduler, x_t, network, generator=seeded(13))


@BETAS
@pytest.mark.parametrize("spacing, steps", [("trailing", 4), ("linspace", 20), ("leading", 50)])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
def test_2m_is_diffusers(betas, spacing, steps):
    scheduler, schedule, network, x_t = published(
        "DPMSolverMultistepScheduler", betas, timestep_spacing=spacing, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    signal = scheduler.alphas_cumprod[scheduler.timesteps]
    scheduler.sigmas = torch.cat([((1 - signal) / signal).sqrt(), torch.zeros(1)])  # else rounded to float32
    ours = dpm_solver_pp_2m(zero_based(network), x_t, schedule, times_from_zero_based(scheduler.timesteps))
    against_diffusers(ours, scheduler, x_t, network)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_is_float32_whatever_the_network_computes_in(sampler):
    schedule = cosine()
    x_t = noise_like(torch.empty(2, 3, 4, 4), seeded(14)).bfloat16()
    eps = mixture_eps(schedule)

    def half(x, t):
        assert x.dtype == torch.float32
        return eps(x, t).bfloat16()

    def run(start, predictor):
        options = {} if sampler is dpm_solver_pp_2m else {"generator": seeded(15)}
        return list(sampler(predictor, start, schedule, schedule.times(10), clamp_x0=(-1.5, 1.5), **options))

    for low, full in zip(run(x_t, half), run(x_t.float(), lambda x, t: half(x, t).float()), strict=True):
        assert low.x_t.dtype == low.x0_hat.dtype == torch.float32
        assert torch.equal(low.x_t, full.x_t) and torch.equal(low.x0_hat, full.x0_hat)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_clamp_is_only_on_request_and_keeps_its_limits(sampler):
    schedule, x_t = cosine(), noise_like(torch.empty(2, 3, 4, 4), seeded(16))

    def eps(x, t):
        return 0.5 * x  # half of the noise: at t = T x0_hat is 10 000 times too large

    free = next(sampler(eps, x_t, schedule, schedule.times(10)))
    assert free.x0_hat.abs().max() > 1000
    for step in sampler(eps, x_t, schedule, schedule.times(10), clamp_x0=(-0.4, 0.7)):
        assert -0.4 <= step.x0_hat.min() and step.x0_hat.max() <= 0.7


def test_clamped_estimates_still_explain_x_t():
    schedule, x_t = linear(), noise_like(torch.empty(2, 3, 4, 4, dtype=torch.float64), seeded(17))
    x0_hat, eps_hat = predict(mixture_eps(schedule), x_t, 300, schedule, (-0.2, 0.2))
    torch.testing.assert_close(q_sample(schedule, x0_hat, 300, eps_hat), x_t)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_time_travel_noises_the_estimate_afresh(sampler):
    """With a known x0 the state at a revisited time is N(√ᾱ x0, 1 - ᾱ), independent of the state before."""
    schedule, times, x0 = cosine(), (800, 400, 700, 700, 300), 0.6
    x_t = noise_like(torch.empty(1, 1, 200, 200), seeded(1))

    def exact(x_t, t):
        signal, noise = schedule.scales(t, x_t)
        return (x_t - signal * x0) / noise

    steps = list(sampler(exact, x_t, schedule, times, generator=seeded(2)))
    assert [step.t for step in steps] == list(times) and [step.i for step in steps] == [0, 1, 2, 3, 4]
    for step in steps[2:4]:
        signal, noise = (float(x) for x in schedule.scales(step.t, x_t))
        # 40 000 pixels: a mean scatters by 0.5 % of the noise, a standard deviation by 0.35 %
        assert abs(float(step.x_t.mean()) - signal * x0) < 4 * 0.005 * noise
        assert abs(float(step.x_t.std()) / noise - 1) < 4 * 0.0036
    pair = torch.stack([steps[2].x_t.flatten(), steps[3].x_t.flatten()])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 * 0.005
    torch.testing.assert_close(steps[-1].x0_hat, torch.full_like(x_t, x0), rtol=0, atol=1e-4)
    assert all(torch.equal(step.x0_hat, step.x0_prior) for step in steps)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_of_a_batch_is_what_it_is_alone(sampler):
    schedule, times = linear(), (900, 500, 700, 200)
    x_t = noise_like(torch.empty(3, 1, 4, 4), image_generators(seeded(4), 3))
    eps = gaussian_eps_of_one(schedule)
    batch = samplers.final(sampler(eps, x_t, schedule, times, generator=image_generators(seeded(5), 3)))
    alone = samplers.final(sampler(eps, x_t[:1], schedule, times, generator=seeded(5)))
    torch.testing.assert_close(batch[:1], alone)


def gaussian_eps_of_one(schedule):
    """The exact noise predictor of x0 ~ N(0, 1)."""
    return lambda x_t, t: schedule.scales(t, x_t)[1] * x_t


def test_the_loop_belongs_to_the_caller():
    schedule, x_t = linear(), noise_like(torch.empty(1, 3, 4, 4), seeded(18))
    weight = torch.ones((), requires_grad=True)
    calls = []

    def eps(x, t):
        calls.append(t)
        return weight * x

    start = x_t.clone()
    for step in islice(ddim(eps, x_t, schedule, schedule.times(30)), 5):
        assert torch.is_grad_enabled() and not step.x0_hat.requires_grad
    assert len(calls) == 5  # stopping early costs nothing more
    assert torch.equal(x_t, start)


@pytest.mark.parametrize(
    "mistake, error, message",
    [
        (lambda run: run(ddim, eta=1.5), ParameterError, "eta"),
        (lambda run: run(ddim, eta=-0.1), ParameterError, "eta"),
        (lambda run: run(ddpm, times=(999, 499, 0)), ParameterError, "times_from_zero_based"),
        (lambda run: run(dpm_solver_pp_2m, times=(1001, 1)), ParameterError, "1 … 1000"),
        (lambda run: run(ddim, clamp_x0=(1, -1)), ParameterError, "low < high"),
        (lambda run: run(ddim, eps=lambda x, t: x[:, :1]), ShapeError, "answered"),
    ],
)
def test_mistakes_are_named(mistake, error, message):
    def run(sampler, times=(1000, 500), eps=lambda x, t: x, **options):
        return final(sampler(eps, torch.zeros(1, 3, 2, 2), linear(), times, **options))

    with pytest.raises(error, match=message):
        mistake(run)
