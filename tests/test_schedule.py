"""Noise schedules against their formulas and against diffusers; times against published lists."""

from __future__ import annotations

from math import cos, pi, prod

import numpy as np
import pytest
import torch

from ldctlib.diffusion import schedule as schedules
from ldctlib.diffusion.schedule import (
    Schedule,
    cosine,
    from_alphas_cumprod,
    from_betas,
    linear,
    named,
    sr3,
    times_from_zero_based,
    zero_based,
)
from ldctlib.errors import ParameterError


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("T", [None, 2, 50, 1000, 4000])
def test_every_schedule_falls_from_exactly_one(name, T):
    schedule = named(name, T)
    assert schedule.name == name and schedule.T == (T or {"sr3": 2000}.get(name, 1000))
    assert schedule.alpha_bar.dtype == torch.float64 and schedule.alpha_bar.shape == (schedule.T + 1,)
    assert schedule.alpha_bar[0] == 1
    assert (schedule.alpha_bar.diff() < 0).all() and schedule.alpha_bar[-1] > 0
    # pure noise is a fair start: √ᾱ_T of the signal is left, 3 % at most even with two steps
    assert schedule.alpha_bar[-1] ** 0.5 < (0.032 if T == 2 else 0.008)


def test_linear_is_the_product_of_one_minus_beta():
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    for t in (1, 2, 500, 1000):
        assert linear().at(t) == pytest.approx(prod(1 - beta for beta in betas[:t]), rel=1e-12)


@pytest.mark.parametrize("T", [100, 500, 4000])
def test_linear_and_sr3_end_at_the_same_noise_for_any_length(T):
    # ln ᾱ_T = Σ ln(1 − β) ≈ −Σβ − Σβ²/2: the sum of β is kept, and with 100 steps Σβ²/2 adds 7 %
    for make in (linear, sr3):
        assert make(T).alpha_bar[-1].log().item() == pytest.approx(make().alpha_bar[-1].log().item(), rel=0.08)


@pytest.mark.parametrize("T", [10, 1000])
def test_cosine_is_equation_4_but_for_the_capped_end(T):
    def f(t):
        return cos((t / T + 0.008) / 1.008 * pi / 2) ** 2

    schedule = cosine(T)
    for t in (1, T // 2, T - 1):
        assert schedule.at(t) == pytest.approx(f(t) / f(0), rel=1e-9)
    assert schedule.at(T) == pytest.approx(0.001 * schedule.at(T - 1), rel=1e-9)  # β_T = 0.999, not 1
    if T == 1000:
        assert schedule.at(999) == pytest.approx(2.43e-6, rel=1e-2)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (linear(), {}),
        (cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
        (sr3(), {"num_train_timesteps": 2000, "beta_start": 1e-6, "beta_end": 1e-2}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_published_alphas_cumprod_are_ours_from_one_on(ours, theirs):
    diffusers = pytest.importorskip("diffusers")
    published = diffusers.DDPMScheduler(**theirs).alphas_cumprod
    # they accumulate in float32: 2000 products round by up to 2000 · 6e-8
    torch.testing.assert_close(ours.alpha_bar[1:], published.double(), rtol=1.2e-4, atol=0)
    adapted = from_alphas_cumprod(published)
    assert adapted.T == ours.T and adapted.alpha_bar[0] == 1
    assert torch.equal(adapted.alpha_bar[1:].float(), published)


def test_scales_are_unit_vectors_that_broadcast_over_samples():
    schedule, like = linear(), torch.zeros(3, 1, 2, 2)
    t = torch.tensor([0, 10, 1000])
    signal, noise = schedule.scales(t, like)
    assert signal.shape == noise.shape == (3, 1, 1, 1) and signal.dtype == torch.float32
    torch.testing.assert_close(signal**2 + noise**2, torch.ones(3, 1, 1, 1))
    for i, each in enumerate(t.tolist()):
        assert schedule.scales(each, like)[0] == signal[i] and schedule.scales(each, like)[1] == noise[i]
    assert signal[0] == 1 and noise[0] == 0
    torch.testing.assert_close(schedule.snr(t), (signal / noise).square().flatten())


def test_scales_are_rooted_in_double_precision():
    # 1 − (1 − 1e-6) in float32 is 9.5e-7: rounded first, the smallest noise would be 2 % off
    noise = sr3().scales(1, torch.zeros(1))[1]
    assert noise.item() == pytest.approx(1e-3, rel=1e-7)


def test_scales_first_used_in_inference_serve_a_gradient_later():
    schedule = linear()
    with torch.inference_mode():
        schedule.scales(500, torch.zeros(1))
    x = torch.ones(1, requires_grad=True)
    (schedule.scales(500, x)[0] * x).backward()
    assert x.grad.item() == pytest.approx(schedule.at(500) ** 0.5)


@pytest.mark.parametrize("spacing, theirs", [("trailing",) * 2, ("leading",) * 2, ("uniform", "linspace")])
@pytest.mark.parametrize("steps", [1, 7, 30, 50, 1000])
def test_times_are_the_published_lists_plus_one(spacing, theirs, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(timestep_spacing=theirs)
    scheduler.set_timesteps(steps)
    expected = times_from_zero_based(scheduler.timesteps)
    if (spacing, steps) == ("uniform", 1):
        expected = (1000,)  # theirs starts from noise at its cleanest level
    assert linear().times(steps, spacing) == expected


def test_for_how_many_steps_the_trailing_lists_are_not_the_published_ones():
    """diffusers' formula, np.round(np.arange(T, 0, -T / steps))."""
    published = {n: np.round(np.arange(1000, 0, -1000 / n)).astype(int).tolist() for n in range(1, 1001)}
    other = {n for n, times in published.items() if tuple(times) != linear().times(n)}
    assert len(other) == 111 and not other & {10, 20, 25, 30, 50, 100}
    for n in other:
        assert np.abs(np.subtract(published[n][:n], linear().times(n))).max() <= 1


def test_times_mid_chain_begin_at_their_start():
    assert linear().times(4, start=400) == (400, 300, 200, 100)
    assert linear().times(3, "uniform", start=401) == (401, 201, 1)
    assert linear().times(4, "leading", start=400) == (301, 201, 101, 1)
    assert linear().times(1, start=7) == (7,)


def test_the_adapter_shifts_times_by_one():
    fast_ddpm = (0, 199, 399, 599, 699, 799, 849, 899, 949, 999)
    assert times_from_zero_based(fast_ddpm) == (1000, 950, 900, 850, 800, 700, 600, 400, 200, 1)
    seen = []
    zero_based(lambda x_t, t: seen.append(t) or x_t)(torch.zeros(2), torch.tensor([1, 1000]))
    assert seen[0].tolist() == [0, 999]


@pytest.mark.parametrize(
    "mistake, message",
    [
        (lambda: Schedule(torch.tensor([0.9999, 0.5])), "from_alphas_cumprod"),
        (lambda: Schedule(torch.tensor([1.0, 0.5, 0.5])), "fall strictly"),
        (lambda: Schedule(torch.tensor([1.0, 0.5, 0.0])), "above 0"),
        (lambda: Schedule(torch.tensor([1.0, float("nan")])), "finite"),
        (lambda: Schedule(torch.ones(2, 2)), "shape"),
        (lambda: Schedule(torch.ones(1)), "shape"),
        (lambda: from_betas([0.1, 0.0]), "fall strictly"),
        (lambda: from_betas([0.1, 1.0]), "above 0"),
        (lambda: named("quadratic"), "linear, cosine, sr3"),
        (lambda: cosine(1), "T ≥ 2"),
        (lambda: linear().at(-1), "outside 0 … 1000"),
        (lambda: linear().scales(1001, torch.zeros(1)), "0 … 1000"),
        (lambda: linear().scales(torch.tensor([-1]), torch.zeros(1)), "0 … 1000"),
        (lambda: linear().scales(torch.tensor([1, 2]), torch.zeros(3, 1)), "shape"),
        (lambda: linear().times(0), "steps"),
        (lambda: linear().times(11, start=10), "1 … 10 steps"),
        (lambda: linear().times(5, "linspace"), "spacing"),
        (lambda: linear().times(5, start=1001), "start"),
        (lambda: linear().check_times([]), "1 … 1000"),
        (lambda: linear().check_times([999, 0]), "times_from_zero_based"),
        (lambda: linear().check_times([1001, 1]), "1 … 1000"),
    ],
)
def test_mistakes_are_named(mistake, message):
    with pytest.raises(ParameterError, match=message):
        mistake()
