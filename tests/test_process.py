"""The forward process, the three targets and their losses against a Gaussian prior's closed forms."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from ldctlib.diffusion.process import (
    PREDICTIONS,
    Process,
    eps_from,
    image_generators,
    loss_weight,
    noise_like,
    q_sample,
    sample_times,
    v_from,
    x0_from,
)
from ldctlib.diffusion.schedule import cosine, from_betas, linear
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.training import TrainConfig, train


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def triple(schedule, dtype=torch.float64):
    """Noised samples at many times: x_t, t and what each prediction should say."""
    t = torch.tensor([1, 2, schedule.T // 2, schedule.T - 1, schedule.T])
    x0 = noise_like(torch.empty(5, 2, 4, 4, dtype=dtype), seeded(1))
    eps = noise_like(x0, seeded(2))
    return q_sample(schedule, x0, t, eps), t, {"x0": x0, "eps": eps, "v": v_from(schedule, t, x0=x0, eps=eps)}


def test_q_sample_is_the_chain_of_single_steps():
    # x_t = √(1 − β_t) x_{t−1} + √β_t z, t times, is a Gaussian with mean √ᾱ_t x0 and variance 1 − ᾱ_t
    betas = [0.1, 0.3, 0.2, 0.5]
    schedule = from_betas(betas)
    mean, variance = 3.0, 0.0
    for t, beta in enumerate(betas, start=1):
        mean, variance = (1 - beta) ** 0.5 * mean, (1 - beta) * variance + beta
        x0 = torch.full((1,), 3.0, dtype=torch.float64)
        assert q_sample(schedule, x0, t, 0 * x0).item() == pytest.approx(mean, rel=1e-12)
        shift = q_sample(schedule, x0, t, x0 / x0).item() - mean
        assert shift == pytest.approx(variance**0.5, rel=1e-12)
    assert q_sample(schedule, x0, 0, torch.ones(1)) == x0


@pytest.mark.parametrize("schedule", [linear(), cosine()], ids=lambda s: s.name)
def test_any_target_gives_back_the_other_two(schedule):
    x_t, t, target = triple(schedule)
    for prediction in PREDICTIONS:
        # the cosine's 1/√ᾱ_T = 2e4 amplifies double rounding to 1e-11
        x0, eps = (f(schedule, x_t, t, prediction, target[prediction]) for f in (x0_from, eps_from))
        torch.testing.assert_close(x0, target["x0"], rtol=0, atol=1e-10)
        torch.testing.assert_close(eps, target["eps"], rtol=0, atol=1e-10)
    # (x0, eps) → (x_t, v) is a rotation
    torch.testing.assert_close(x_t**2 + target["v"] ** 2, target["x0"] ** 2 + target["eps"] ** 2)


def test_a_network_of_any_kind_becomes_the_same_noise_predictor():
    schedule = linear()
    x_t, t, target = triple(schedule, torch.float32)
    for prediction in PREDICTIONS:
        eps = Process(schedule, prediction).predictor(lambda x, t, p=prediction: target[p])
        # from x0 the smallest noise, √1e-4, divides float32 rounding
        torch.testing.assert_close(eps(x_t, t), target["eps"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("min_snr, x0_weight", [(5.0, lambda snr: min(snr, 5.0)), (1.0, lambda snr: min(snr, 1.0))])
def test_min_snr_weighs_one_x0_error_alike_in_all_three_predictions(min_snr, x0_weight):
    # networks that all believe in the same wrong x0 must pay the same: min(SNR, γ) ‖x0 − x0_hat‖²
    schedule = linear()
    x0 = noise_like(torch.empty(16, 1, 3, 3), seeded(3))
    x0_hat = x0 + 0.1 * noise_like(x0, seeded(4))
    seen = []

    def network(prediction):
        def answer(x_t, t):
            seen.append(t)
            eps_hat = eps_from(schedule, x_t, t, "x0", x0_hat)
            return {"x0": x0_hat, "eps": eps_hat, "v": v_from(schedule, t, x0=x0_hat, eps=eps_hat)}[prediction]

        return answer

    losses = [
        Process(schedule, p, min_snr=min_snr).loss(network(p), x0, generator=seeded(5)).item() for p in PREDICTIONS
    ]
    snr = [schedule.at(t) / (1 - schedule.at(t)) for t in seen[0].tolist()]
    error = (x0 - x0_hat).square().flatten(1).mean(1).tolist()
    expected = sum(x0_weight(r) * e for r, e in zip(snr, error, strict=True)) / 16
    assert losses == pytest.approx([expected] * 3, rel=1e-3)  # float32 x0 → eps at small t


def test_without_min_snr_the_loss_is_the_simple_one():
    t = torch.tensor([1, 500, 1000])
    for prediction in PREDICTIONS:
        assert torch.equal(loss_weight(linear(), t, prediction, None), torch.ones(3))


def test_the_exact_predictor_of_a_gaussian_pays_the_posterior_variance():
    # x0 ~ N(m, v): Var(eps | x_t) = ᾱ v / (ᾱ v + 1 − ᾱ), which no predictor can beat
    schedule, m, v = cosine(20), 0.7, 0.3
    x0 = m + v**0.5 * noise_like(torch.empty(20_000, 1, 1, 4), seeded(6))

    def exact(x_t, t):
        signal, noise = schedule.scales(t, x_t)
        return noise / (signal**2 * v + noise**2) * (x_t - signal * m)

    a = schedule.alpha_bar[1:]
    floor = (a * v / (a * v + 1 - a)).mean().item()
    # squared errors average 80 000 draws, each scattering by √2 of its mean: 0.5 %, taken four times
    assert Process(schedule).loss(exact, x0, generator=seeded(7)).item() == pytest.approx(floor, rel=0.02)
    worse = Process(schedule).loss(lambda x, t: 0.9 * exact(x, t), x0, generator=seeded(7)).item()
    # 0.9 adds 0.01 Var(eps_hat), which is 0.01 (1 − Var(eps | x_t))
    assert worse - floor == pytest.approx(0.01 * (1 - floor), abs=0.02 * floor)
    assert worse > Process(schedule).loss(exact, x0, generator=seeded(7)).item()


def test_times_are_uniform_and_cover_a_batch():
    schedule, g = linear(50), seeded(8)
    assert sorted(sample_times(schedule, 50, generator=g).tolist()) == list(range(1, 51))
    # each single place of a batch is uniform too: 10 000 draws put 200 ± 14 on each time
    third = torch.stack([sample_times(schedule, 4, generator=g)[2] for _ in range(10_000)])
    counts = third.bincount(minlength=51)
    assert counts[0] == 0 and len(counts) == 51
    assert (counts[1:] - 200).abs().max() < 5 * 14.2


def test_times_follow_the_generator_and_a_given_list():
    schedule = linear()
    assert torch.equal(*(sample_times(schedule, 8, generator=seeded(9)) for _ in range(2)))
    assert not torch.equal(*(sample_times(schedule, 8, generator=seeded(s)) for s in (9, 10)))
    assert sorted(sample_times(schedule, 6, generator=seeded(9), times=(900, 40, 7)).tolist()) == [
        7,
        7,
        40,
        40,
        900,
        900,
    ]


class Gain(nn.Module):
    """eps_hat = gain[t] · x_t: all that the noise of a centred Gaussian prior needs."""

    def __init__(self, T: int):
        super().__init__()
        self.gain = nn.Embedding(T + 1, 1)
        nn.init.zeros_(self.gain.weight)

    def forward(self, x_t, t):
        return self.gain(t)[:, :, None, None] * x_t


class Gaussian(Dataset):
    """x0 ~ N(0, 0.25)."""

    def __getitem__(self, n: int) -> torch.Tensor:
        return 0.5 * torch.randn(1, 16, 16, generator=seeded(n))


def test_the_training_loop_learns_the_closed_form_gain():
    schedule = from_betas([0.2, 0.5, 0.9])
    model, process = Gain(schedule.T), Process(schedule)

    def loss(model, batch, generator, step):
        return process.loss(model, batch, generator=generator)

    config = TrainConfig(steps=300, batch_size=12, lr=0.03, device="cpu", log_every=300, ema_decay=0.9)
    (log,) = train(model, loss, Gaussian(), config, progress=False)
    a = schedule.alpha_bar[1:].float()
    best = (1 - a).sqrt() / (0.25 * a + 1 - a)  # Cov(eps, x_t) / Var(x_t)
    # Adam's last steps are small, but each sees 4 · 256 pixels a time: 3 % scatter, averaged down
    torch.testing.assert_close(log.ema_model().gain.weight[1:, 0], best, rtol=0.03, atol=0)


def test_mistakes_are_named():
    schedule, x0 = linear(), torch.zeros(2, 1, 4, 4)
    with pytest.raises(ParameterError, match="prediction is one of"):
        Process(schedule, prediction="noise")
    with pytest.raises(ParameterError, match="min_snr"):
        Process(schedule, min_snr=0)
    with pytest.raises(ParameterError, match="residual_std"):
        Process(schedule, residual_std=0)
    with pytest.raises(ParameterError, match="takes an estimate"):
        Process(schedule, residual=True).loss(lambda x, t: x, x0)
    with pytest.raises(ParameterError, match="takes none"):
        Process(schedule).predictor(lambda x, t: x, x0)
    with pytest.raises(ShapeError, match="first half"):
        Process(schedule).loss(lambda x, t: torch.cat([x, x], 1), x0)
    with pytest.raises(ParameterError, match="describes no diffusion process"):
        Process.from_spec({"schedule": "cosine", "spread": 1.0})


def test_a_process_is_what_its_spec_says():
    for process in (
        Process(linear()),
        Process(cosine(500), "v", residual=True, residual_std=0.15),
        Process(linear(), "x0", times=(900, 400, 10), min_snr=5.0),
    ):
        spec = process.to_spec()
        again = Process.from_spec(json.loads(json.dumps(spec)))
        assert again.to_spec() == spec and again.times == process.times
        assert torch.equal(again.schedule.alpha_bar, process.schedule.alpha_bar)
    assert Process(linear()).to_spec() == {"schedule": "linear", "T": 1000, "prediction": "eps"}


def test_fast_ddpm_trains_at_its_own_times_only():
    seen = []
    process = Process(linear(), times=(1000, 600, 100))
    process.loss(lambda x, t: seen.append(t) or x, torch.zeros(6, 1, 2, 2), generator=seeded(1))
    assert sorted(seen[0].tolist()) == [100, 100, 600, 600, 1000, 1000]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_residual_process_turns_an_oracle_of_the_difference_into_one_of_x0(prediction):
    """A network that knows (x0 - estimate) / residual_std exactly answers like one that knows x0."""
    process = Process(cosine(), prediction, residual=True, residual_std=0.5)
    schedule, generator = process.schedule, torch.Generator().manual_seed(5)
    x0, estimate, eps = (torch.randn(6, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([1, 50, 300, 700, 950, 1000])
    difference = (x0 - estimate) / 0.5

    def oracle(x_t, t):
        torch.testing.assert_close(x_t, q_sample(schedule, difference, t, eps))
        return {"eps": eps, "x0": difference, "v": v_from(schedule, t, x0=difference, eps=eps)}[prediction]

    x_t = q_sample(schedule, process.to_chain(x0), t, eps)
    found = process.predictor(oracle, estimate)(x_t, t)
    # the smallest noise, √(1 - ᾱ_1), and the cosine's 1/√ᾱ_T amplify double rounding
    torch.testing.assert_close(found, eps, rtol=0, atol=1e-9)
    torch.testing.assert_close(process.from_chain(process.to_chain(x0)), x0)
    exact = process.loss(
        lambda x, t: oracle_of(schedule, difference, x, t, prediction), x0, estimate, generator=seeded(2)
    )
    assert float(exact) < 1e-10


def oracle_of(schedule, clean, x_t, t, prediction):
    """The exact answer of a network that sees ``clean`` noised."""
    eps_hat = eps_from(schedule, x_t, t, "x0", clean)
    return {"x0": clean, "eps": eps_hat, "v": v_from(schedule, t, x0=clean, eps=eps_hat)}[prediction]


def test_an_image_does_not_depend_on_its_batch():
    x = torch.zeros(4, 1, 5, 5)
    whole = noise_like(x, image_generators(seeded(3), 4))
    fewer = noise_like(x[:2], image_generators(seeded(3), 2))
    assert torch.equal(whole[:2], fewer) and torch.equal(whole[:1], noise_like(x[:1], seeded(3)))
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 4
    used = seeded(3)
    first, second = (noise_like(x, image_generators(used, 4)) for _ in range(2))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))  # a second call draws anew
    with pytest.raises(ParameterError, match="as many generators"):
        noise_like(x, image_generators(None, 3))
