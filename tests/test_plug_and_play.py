"""Plug-and-play samplers against exact recursions.

For a Gaussian prior N(0, C) the best noise predictor is linear, so each sampler is a linear recursion
x_s = F x_t + G y + N z, whose mean and covariance follow from dense matrices. They are built here with NumPy from the
papers' formulas, singular vectors and all, and share no code with the library.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
import torch

from ldctlib.diffusion import plug_and_play as pnp
from ldctlib.diffusion import schedule as schedules
from ldctlib.diffusion.samplers import final
from ldctlib.diffusion.schedule import time_travel
from ldctlib.errors import ParameterError
from ldctlib.operators import BlockMean, CorrelatedNoise, Identity, Mask, Operator

SIDE = 6
DIM = SIDE * SIDE
PLAN = schedules.linear(1000)
IMAGES = 3_000


def gaussian_prior(white: bool) -> np.ndarray:
    """Covariance of a 6 x 6 image: c² I, or neighbours that are alike."""
    place = np.stack(np.meshgrid(range(SIDE), range(SIDE), indexing="ij"), -1).reshape(DIM, 2)
    distance = np.linalg.norm(place[:, None] - place[None], axis=-1)
    return 0.5 * np.eye(DIM) if white else 0.6 * np.exp(-distance / 2)


def predictor_matrices(C: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
    """x_t -> E[x0 | x_t] and x_t -> E[eps | x_t], as matrices."""
    alpha_bar = float(PLAN.alpha_bar[t])
    E = sqrt(alpha_bar) * C @ np.linalg.inv(alpha_bar * C + (1 - alpha_bar) * np.eye(DIM))
    return E, (np.eye(DIM) - sqrt(alpha_bar) * E) / sqrt(1 - alpha_bar)


def eps_of(C: np.ndarray):
    tables = {}

    def eps(x, t):
        t = int(t[0])
        if t not in tables:
            tables[t] = torch.from_numpy(predictor_matrices(C, t)[1])
        return (x.reshape(len(x), DIM) @ tables[t].T).reshape(x.shape)

    return eps


def coloured_noise(sd: float) -> tuple[CorrelatedNoise, np.ndarray]:
    """Noise that grows with frequency like a sharp kernel's, and its covariance matrix from the same spectrum."""
    f = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None])
    power = (0.1 + f) ** 2
    power *= sd**2 / power.mean()
    line = np.fft.fft(np.eye(SIDE), norm="ortho")
    F = np.kron(line, line)
    return CorrelatedNoise.from_psd(power, 1.0), (F.conj().T @ np.diag(power.ravel()) @ F).real


def matrix_of(operator: Operator) -> np.ndarray:
    basis = torch.eye(DIM, dtype=torch.float64).reshape(DIM, 1, SIDE, SIDE)
    return operator.A(basis).reshape(DIM, -1).T.numpy()


class AnyMatrix(Operator):
    """A matrix whose singular values all differ, in the coordinates of its singular vectors."""

    def __init__(self, sd: float):
        super().__init__(sd)
        matrix = np.random.default_rng(8).standard_normal((20, DIM)) / 4
        self.matrix, self.dagger = torch.from_numpy(matrix), torch.from_numpy(np.linalg.pinv(matrix))
        left, self.singular_values, _ = torch.linalg.svd(self.matrix)
        self.noise.filter = lambda y, function: (function(torch.full_like(y, sd)) * (y @ left)) @ left.T

    def A(self, x):
        return (x.reshape(len(x), DIM) @ self.matrix.T).reshape(-1, 1, 1, 20)

    def A_adjoint(self, y):
        return (y.reshape(len(y), 20) @ self.matrix).reshape(-1, 1, SIDE, SIDE)

    def A_dagger(self, y):
        return (y.reshape(len(y), 20) @ self.dagger.T).reshape(-1, 1, SIDE, SIDE)

    def prox_l2(self, z, y, gamma):
        inverse = torch.linalg.inv(torch.eye(DIM, dtype=torch.float64) + gamma * self.matrix.T @ self.matrix)
        return ((z + gamma * self.A_adjoint(y)).reshape(len(z), DIM) @ inverse).reshape(z.shape)


SEEN = torch.ones(SIDE, SIDE, dtype=torch.bool)
SEEN[2:4, 1:5] = False
CASES = {
    "identity": (Identity(0.3), None),
    "identity, coloured noise": (Identity(coloured_noise(0.3)[0]), coloured_noise(0.3)[1]),
    "block mean": (BlockMean(2, 0.2), None),
    "block mean, no noise": (BlockMean(2), None),
    "mask": (Mask(SEEN, 0.2), None),
    "any matrix": (AnyMatrix(0.3), None),
}


class Exact:
    """One sampler's recursion on one case: the mean and the covariance of its last x0_hat, given y."""

    def __init__(self, C, operator, covariance, y):
        self.C, self.A, self.y = C, matrix_of(operator), y
        self.pinv = np.linalg.pinv(self.A)
        sd2 = operator.noise_sd**2
        self.correlated = covariance is not None
        self.noise = covariance if self.correlated else sd2 * np.eye(len(self.A))
        self.range = self.pinv @ self.A

    def spectral(self, function):
        """A function of n_k = σ_y,k / s_k on the coordinates of the range of A, as a matrix on measurements."""
        left, singular, _ = np.linalg.svd(self.A)
        if self.correlated:  # of the operators with correlated noise all singular values are one
            variance, left = np.linalg.eigh(self.noise)
            n = np.sqrt(variance.clip(min=0)) / singular[0]
        else:
            n = sqrt(self.noise[0, 0]) / singular.clip(min=1e-9)
        return left @ np.diag(function(n)) @ left.T

    def ddrm(self, t, s, eta=pnp.ETA, eta_b=1.0):
        a, sigma = sqrt(PLAN.alpha_bar[s]), sqrt(1 - PLAN.alpha_bar[s])
        E, Eps = predictor_matrices(self.C, t)
        with np.errstate(divide="ignore", invalid="ignore"):
            weight = self.spectral(lambda n: np.where(a * n <= sigma, eta_b, sigma * sqrt(1 - eta**2) / (a * n)))
        fresh = self.spectral(
            lambda n: np.where(a * n <= sigma, np.sqrt((sigma**2 - (a * eta_b * n) ** 2).clip(min=0)), sigma * eta)
        )
        x0 = E - self.pinv @ weight @ self.A @ E, self.pinv @ weight
        null = np.eye(DIM) - self.range
        F = a * x0[0] + sigma * sqrt(1 - eta**2) * null @ Eps
        return x0, F, a * x0[1], sigma * eta * null + self.pinv @ fresh @ self.A

    def ddnm(self, t, s, eta=pnp.ETA):
        E, Eps = predictor_matrices(self.C, t)
        x0 = E - self.range @ E, self.pinv
        if eta is None:
            return x0, *self.ancestral(x0, t, s)
        a, sigma = sqrt(PLAN.alpha_bar[s]), sqrt(1 - PLAN.alpha_bar[s])
        return x0, a * x0[0] + sigma * sqrt(1 - eta**2) * Eps, a * x0[1], sigma * eta * np.eye(DIM)

    def ancestral(self, x0, t, s):
        if s == 0:
            return np.zeros((DIM, DIM)), np.zeros_like(x0[1]), np.zeros((DIM, DIM))
        at, before = float(PLAN.alpha_bar[t]), float(PLAN.alpha_bar[s])
        alpha = at / before
        c0, ct = sqrt(before) * (1 - alpha) / (1 - at), sqrt(alpha) * (1 - before) / (1 - at)
        beta = (1 - before) / (1 - at) * (1 - alpha)
        return c0 * x0[0] + ct * np.eye(DIM), c0 * x0[1], sqrt(beta) * np.eye(DIM)

    def ilvr(self, t, s):
        E, _ = predictor_matrices(self.C, t)
        x0 = E, np.zeros_like(self.pinv)
        F, G, N = self.ancestral(x0, t, s)
        a, sigma = sqrt(PLAN.alpha_bar[s]), sqrt(1 - PLAN.alpha_bar[s])
        keep = np.eye(DIM) - self.range
        return x0, keep @ F, a * self.range @ self.pinv, np.hstack([keep @ N, sigma * self.range])

    def dds(self, t, s, gamma=1.0, eta=pnp.ETA):
        E, Eps = predictor_matrices(self.C, t)
        inverse = np.linalg.inv(np.eye(DIM) + gamma * self.A.T @ self.A)
        x0 = inverse @ E, gamma * inverse @ self.A.T
        at, before = float(PLAN.alpha_bar[t]), float(PLAN.alpha_bar[s])
        sigma = eta * sqrt((1 - before) / (1 - at) * (1 - at / before)) if s else 0.0
        rest = sqrt(max(1 - before - sigma**2, 0))
        return x0, sqrt(before) * x0[0] + rest * Eps, sqrt(before) * x0[1], sigma * np.eye(DIM)

    def run(self, sampler, times, mean, covariance, **options):
        for t, s in zip(times, (*times[1:], 0), strict=True):
            x0, F, G, N = getattr(self, sampler)(t, s, **options)
            last = x0[0] @ mean + x0[1] @ self.y, x0[0] @ covariance @ x0[0].T
            mean, covariance = F @ mean + G @ self.y, F @ covariance @ F.T + N @ N.T
        return last

    def posterior(self):
        """The exact mean and covariance of x0 given y (noise above 0)."""
        gain = self.C @ self.A.T @ np.linalg.inv(self.A @ self.C @ self.A.T + self.noise)
        return gain @ self.y, self.C - gain @ self.A @ self.C


def measured(C, operator):
    """A measurement of one image, as (1, 1, ...) and flat."""
    rng = np.random.default_rng(5)
    x = torch.from_numpy(np.linalg.cholesky(C) @ rng.standard_normal(DIM)).reshape(1, 1, SIDE, SIDE)
    clean = operator.A(x)
    noise = operator.noise_sd * torch.from_numpy(rng.standard_normal(clean.shape))
    return clean + noise


def agree(drawn: torch.Tensor, mean, covariance):
    """The sample's mean and covariance within 5.5 standard errors of each entry."""
    flat = drawn.reshape(len(drawn), DIM).numpy()
    variance = np.diag(covariance)
    mean_error = np.sqrt(variance / len(flat))
    assert (np.abs(flat.mean(0) - mean) <= 5.5 * mean_error + 1e-9).all()
    entry_error = np.sqrt((np.outer(variance, variance) + covariance**2) / len(flat))
    assert (np.abs(np.cov(flat.T) - covariance) <= 5.5 * entry_error + 1e-9).all()


TIMES = (1000, 800, 620, 450, 300, 180, 90, 40, 12, 3)
SAMPLERS = {
    "ddnm_plus": ("ddrm", {}),
    "ddrm": ("ddrm", dict(eta=0.6, eta_b=0.7)),
    "ddnm": ("ddnm", {}),
    "ddnm, ancestral": ("ddnm", dict(eta=None)),
    "ilvr": ("ilvr", {}),
    "dds": ("dds", dict(gamma=3.0)),
}


@pytest.mark.parametrize("white", [True, False], ids=["white prior", "smooth prior"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_its_own_linear_recursion(name, case, white):
    C, (operator, covariance) = gaussian_prior(white), CASES[case]
    recursion, options = SAMPLERS[name]
    y = measured(C, operator)
    x_T = torch.randn(IMAGES, 1, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    walk = getattr(pnp, name.partition(",")[0])
    generator = torch.Generator().manual_seed(4)
    steps = walk(eps_of(C), x_T, PLAN, TIMES, operator, y.expand(IMAGES, -1, -1, -1), generator=generator, **options)
    drawn = final(steps)
    exact = Exact(C, operator, covariance, y.flatten().numpy())
    agree(drawn, *exact.run(recursion, TIMES, np.zeros(DIM), np.eye(DIM), **options))


def run(name, operator, y, C, x_T, times=TIMES, **options):
    return final(getattr(pnp, name)(eps_of(C), x_T, PLAN, times, operator, y, **options))


def noise(seed: int, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, SIDE, SIDE, dtype=torch.float64, generator=generator)


def test_without_noise_the_result_measures_what_was_measured():
    C, y = gaussian_prior(False), BlockMean(2).A(noise(1))
    for name in ("ddnm", "ddnm_plus", "ddrm"):
        drawn = run(name, BlockMean(2), y, C, noise(2))
        assert (BlockMean(2).A(drawn) - y).abs().max() < 1e-9
    drawn = run("ddnm", Mask(SEEN), Mask(SEEN).A(noise(1)), C, noise(2))
    torch.testing.assert_close(drawn[..., SEEN], noise(1)[..., SEEN])


def test_denoising_with_a_noise_of_zero_returns_the_measurement():
    """The degenerate case: A = I and noise_sd = 0 leave the prior nothing to say."""
    y = noise(1)
    torch.testing.assert_close(run("ddnm_plus", Identity(0.0), y, gaussian_prior(False), noise(2)), y)


def test_ddnm_plus_without_noise_is_ddnm_and_ddrm_with_eta_b_of_one_is_ddnm_plus():
    """For a white prior, where the null space does not see the noise of the range: that of DDNM is not all fresh."""
    C, generator = gaussian_prior(True), torch.Generator
    y = BlockMean(3).A(noise(1))
    results = [
        run(name, BlockMean(3, sd), y, C, noise(2), generator=generator().manual_seed(9))
        for name, sd in (("ddnm", 0), ("ddnm_plus", 0), ("ddnm_plus", 0.2), ("ddrm", 0.2))
    ]
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[2], results[3], rtol=0, atol=0)


@pytest.mark.parametrize("case", ["identity, coloured noise", "block mean", "mask"])
def test_a_chain_starts_with_white_noise_of_the_right_strength(case):
    """x_t - √ᾱ x0 has covariance (1 - ᾱ) I: the measurement's noise and the fresh noise together."""
    operator, covariance = CASES[case]
    A, t = matrix_of(operator), pnp.first_time(operator, PLAN)
    alpha_bar = float(PLAN.alpha_bar[t])
    zero = torch.zeros(IMAGES, 1, SIDE, SIDE, dtype=torch.float64)
    y = operator.A(zero) + operator.noise_sd * torch.randn(
        operator.A(zero).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    if covariance is not None:
        root = torch.from_numpy(np.linalg.cholesky(covariance))
        y = torch.randn(IMAGES, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) @ root.T
        y = y.reshape(IMAGES, 1, SIDE, SIDE)
    x_t = pnp.start_from_measurement(operator, y, PLAN, t, torch.Generator().manual_seed(2))
    agree(x_t, np.zeros(DIM), (1 - alpha_bar) * np.eye(DIM))
    worst = operator.noise.largest_sd / operator.singular_values
    before = float(PLAN.alpha_bar[t - 1])
    assert 1 - before < before * worst**2 <= (1 - alpha_bar) * before / alpha_bar
    assert A.shape[1] == DIM


def test_more_steps_draw_too_little_and_the_unmeasured_keeps_its_width_no_more():
    """DDNM+ is not the posterior: a fixed η forgets. N(0, 1), A = I, σ_y = .2: the posterior's variance is .0385."""
    expected = {20: 0.037, 100: 0.014, 1000: 0.0048}
    for steps, variance in expected.items():
        measured, unmeasured = 1.0, 1.0
        for t, s in zip(PLAN.times(steps), (*PLAN.times(steps)[1:], 0), strict=True):
            alpha_bar_t, a, sigma = float(PLAN.alpha_bar[t]), sqrt(PLAN.alpha_bar[s]), sqrt(1 - PLAN.alpha_bar[s])
            E, Eps = sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t)  # of N(0, 1)
            above = a * 0.2 <= sigma
            weight = 1.0 if above else sigma * sqrt(1 - 0.85**2) / (a * 0.2)
            fresh = sqrt(sigma**2 - (a * 0.2) ** 2) if above else 0.85 * sigma
            last = ((1 - weight) * E) ** 2 * measured, E**2 * unmeasured
            measured = (a * (1 - weight) * E) ** 2 * measured + fresh**2
            unmeasured = (a * E + sigma * sqrt(1 - 0.85**2) * Eps) ** 2 * unmeasured + (0.85 * sigma) ** 2
        assert abs(last[0] / variance - 1) < 0.05
        assert 0.6 < last[1] < 0.8


def test_the_gradient_of_dps_is_the_closed_form_and_each_image_has_its_own():
    """∇ ‖y − A E x‖ = −Eᵀ Aᵀ r / ‖r‖; a norm over the batch would divide by another number."""
    C, operator, zeta = gaussian_prior(False), BlockMean(2), 0.4
    y, x = operator.A(noise(1)) * torch.tensor([1.0, 5.0, 20.0]).reshape(3, 1, 1, 1), noise(2)
    t, s = 500, 400
    first, second = pnp.dps(eps_of(C), x, PLAN, (t, s), operator, y, zeta=zeta, generator=Zero())
    E, A = predictor_matrices(C, t)[0], matrix_of(operator)
    x0 = x.reshape(3, DIM).numpy() @ E.T
    r = y.reshape(3, -1).numpy() - x0 @ A.T
    gradient = -(r / np.linalg.norm(r, axis=1, keepdims=True)) @ A @ E
    at, before = float(PLAN.alpha_bar[t]), float(PLAN.alpha_bar[s])
    c0 = sqrt(before) * (1 - at / before) / (1 - at)
    ct = sqrt(at / before) * (1 - before) / (1 - at)
    expected = c0 * x0 + ct * x.reshape(3, DIM).numpy() - zeta * gradient
    np.testing.assert_allclose(second.x_t.reshape(3, DIM).numpy(), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(first.x0_hat.reshape(3, DIM).numpy(), x0, rtol=1e-9, atol=1e-9)


class Zero(torch.Generator):
    """A source whose noise is replaced by zeros, so that a step shows its deterministic part."""


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    real = torch.randn

    def randn(*shape, generator=None, **options):
        out = real(*shape, generator=None if isinstance(generator, Zero) else generator, **options)
        return torch.zeros_like(out) if isinstance(generator, Zero) else out

    monkeypatch.setattr(torch, "randn", randn)


def test_time_travel_walks_each_run_again_and_noises_what_the_prior_said():
    times = time_travel((900, 600, 300, 100), jump=2, repeats=3)
    assert times == (900, 600, 900, 600, 900, 600, 300, 100, 300, 100, 300, 100)
    C, operator, y = gaussian_prior(False), BlockMean(2), BlockMean(2).A(noise(1))
    steps = list(pnp.ddnm(eps_of(C), noise(2), PLAN, times, operator, y, generator=Zero()))
    assert [step.t for step in steps] == list(times)
    alpha_bar = float(PLAN.alpha_bar[900])
    torch.testing.assert_close(steps[2].x_t, sqrt(alpha_bar) * steps[1].x0_prior)
    assert (operator.A(steps[-1].x0_hat) - y).abs().max() < 1e-9
    with pytest.raises(ParameterError, match="repeats"):
        time_travel((3, 2, 1), repeats=0)


def test_what_a_sampler_cannot_do_is_refused_by_name():
    y = noise(1)

    class Unknown(Identity):
        singular_values = None

    for name in ("ddnm_plus", "ddrm"):
        with pytest.raises(ParameterError, match="singular values of Unknown"):
            run(name, Unknown(0.1), y, gaussian_prior(True), noise(2))
    for name in ("ddnm", "ddnm_plus", "dds"):
        with pytest.raises(ParameterError, match="eta"):
            run(name, Identity(0.1), y, gaussian_prior(True), noise(2), eta=1.5)
