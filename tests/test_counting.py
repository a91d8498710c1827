"""Counts against exact quantiles, chi-squared tests, closed-form moments, and themselves after rounding otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from ldctlib.ct.counting import FEW, VERY_FEW, binomial, poisson, standard_normal
from ldctlib.errors import ParameterError


def numbers(n: int, seed: int = 0) -> torch.Tensor:
    return standard_normal(torch.empty(n), torch.Generator().manual_seed(seed))


def spread(low: float, high: float, n: int, seed: int = 9) -> torch.Tensor:
    """Values between two limits, even in the logarithm."""
    u = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.exp(math.log(low) + u * math.log(high / low))


def chi_square_p(counts: torch.Tensor, distribution, cells: int = 200) -> float:
    """p of counts in cells of about equal probability, each of whole numbers."""
    edges = np.unique(distribution.ppf(np.arange(1, cells) / cells))
    expected = np.diff(distribution.cdf(edges), prepend=0, append=1) * len(counts)
    observed = np.bincount(np.searchsorted(edges, counts.numpy()), minlength=len(edges) + 1)
    keep = expected > 0
    return stats.chi2.sf(((observed - expected)[keep] ** 2 / expected[keep]).sum(), keep.sum() - 1)


@pytest.mark.parametrize("mean", (0.3, 3.0, 29.9, 30.0, 300.0, 3e7))
def test_counts_are_poisson(mean):
    """Two million draws: errors of 1 % in every cell of 1/200 would add 200 to a chi-squared of 199 +- 20."""
    counts = poisson(torch.full((2_000_000,), mean), numbers(2_000_000))
    assert chi_square_p(counts, stats.poisson(np.float32(mean))) > 1e-3
    # the mean within 4 standard errors, and the variance (its relative error is (2 + 1 / mean) / n, squared)
    assert abs(float(counts.mean() - np.float32(mean))) < 4 * math.sqrt(mean / 2e6)
    assert abs(float(counts.var()) / mean - 1) < 4 * math.sqrt((2 + 1 / mean) / 2e6)


@pytest.mark.parametrize(
    ("n", "f"), ((1, 0.3), (40, 0.01), (60, 0.5), (150, 0.25), (1000, 0.9), (10**8, 0.3), (3 * 10**7, 0.999))
)
def test_kept_counts_are_binomial(n, f):
    """Above 2^24 counts, too, which float32 does not tell from their neighbours."""
    kept = binomial(torch.full((1_000_000,), n), f, numbers(1_000_000, 1))
    assert chi_square_p(kept, stats.binom(n, f)) > 1e-3
    assert abs(float(kept.var()) / (n * f * (1 - f)) - 1) < 4 * math.sqrt((2 + 1 / (n * f * (1 - f))) / 1e6)


def test_each_count_is_the_exact_quantile():
    """SciPy's inverse distribution functions; from FEW on, the expansion may miss one count in 70,000 by one."""
    z = numbers(300_000, 2)
    u = special.ndtr(z.double().numpy())
    mean = spread(1e-3, 1e3, len(z))
    off = poisson(mean, z).numpy() - stats.poisson.ppf(u, mean.numpy())
    assert not off[mean < FEW].any() and np.abs(off).max() <= 1 and (off != 0).mean() < 1e-5
    n = spread(1, 3e3, len(z)).round()
    for f in (0.02, 0.4, 0.8):
        off = binomial(n, f, z).numpy() - stats.binom.ppf(u, n.numpy(), f)
        assert not off[n * min(f, 1 - f) < FEW].any() and np.abs(off).max() <= 1 and (off != 0).mean() < 1e-5


def test_a_count_depends_on_its_own_number_only():
    """Neither the order nor the neighbours, which decide how it is computed, matter."""
    mean, z = spread(0.05, 1e6, 100_000), numbers(100_000, 3)
    order = mean.argsort()
    counts = poisson(mean, z)
    torch.testing.assert_close(poisson(mean[order], z[order]), counts[order], rtol=0, atol=0)
    torch.testing.assert_close(binomial(counts[order], 0.3, z[order]), binomial(counts, 0.3, z)[order], rtol=0, atol=0)


@pytest.mark.parametrize("low, high", ((0.05, 1.0), (1.0, 100.0), (100.0, 1e4), (1e4, 1e6), (1e6, 1e8)))
def test_counts_follow_the_expected_count(low, high):
    """A relative change of 1e-6 moves every count by as little as it can.

    Counts whose mean rises by D rise by D on average: below 1e4 that is fewer than 1 in 100 counts, by one. Above 1e6,
    D itself is more than one count; what is left to ask for is that no count moves further than its mean and its
    spread do, to the next whole number.
    """
    mean, z = spread(low, high, 1_000_000), numbers(1_000_000, 4)
    before, after = poisson(mean, z), poisson(mean * (1 + 1e-6), z)
    moved, shift = after - before, 1e-6 * mean
    assert (moved >= 0).all() and (moved <= (shift * 1.01).ceil()).all()
    assert abs(float(moved.mean() / shift.mean()) - 1) < 5 / math.sqrt(len(mean) * float(shift.mean()))
    kept = binomial(after, 0.25, -z) - binomial(before, 0.25, -z)
    assert (kept >= 0).all() and (kept <= moved).all()
    if high <= 1e4:
        assert (moved != 0).float().mean() < 0.01 and moved.max() == 1


@pytest.mark.parametrize("switch", (VERY_FEW, FEW))
def test_the_switch_has_no_seam(switch):
    below = torch.full((1_000_000,), switch * (1 - 1e-9), dtype=torch.float64)
    z = numbers(len(below), 5)
    moved = poisson(below / (1 - 1e-9), z) - poisson(below, z)
    assert moved.abs().max() <= 1 and (moved != 0).float().mean() < 3e-5
    n = torch.full_like(below, switch / 0.1)
    kept = [binomial(n, f, z) for f in (0.1 * (1 - 1e-9), 0.1)]
    assert (kept[1] - kept[0]).abs().max() <= 1 and (kept[1] != kept[0]).float().mean() < 3e-5


def test_thinning_has_its_limits_and_its_mirror():
    n, z = spread(0.1, 1e9, 200_000).round(), numbers(200_000, 6)
    assert (binomial(n, 0.0, z) == 0).all() and (binomial(n, 1.0, z) == n).all()
    for f in (1e-6, 0.25, 0.5, 0.7):
        kept = binomial(n, f, z)
        assert ((kept >= 0) & (kept <= n)).all() and (kept == kept.round()).all()
        torch.testing.assert_close(kept + binomial(n, 1 - f, -z), n, rtol=0, atol=0)


@pytest.mark.parametrize("count", (0.0, 3.0, 20.0, 1e5))
def test_numbers_far_out_give_possible_counts(count):
    n = torch.full((4,), count)
    far = torch.tensor([-40.0, -9.0, 9.0, 40.0])
    kept, counts = binomial(n, 0.4, far), poisson(n, far)
    assert ((kept >= 0) & (kept <= n)).all() and (kept.diff() >= 0).all()
    assert (counts.diff() >= 0).all() and 0 <= counts[0] and counts[2] <= 4 * count + 30 * math.sqrt(count)


@pytest.mark.parametrize("mean", (2.0, 50.0, 4e7))
def test_thinned_counts_are_poisson_and_share_their_photons(mean):
    """Cov(N, N_d) = d mean: its standard error is about mean / sqrt(n)."""
    d, n = 0.25, 1_000_000
    full = poisson(torch.full((n,), mean, dtype=torch.float64), numbers(n, 7))
    low = binomial(full, d, numbers(n, 8))
    assert chi_square_p(low, stats.poisson(d * mean)) > 1e-3
    covariance = float(((full - full.mean()) * (low - low.mean())).mean())
    assert abs(covariance / (d * mean) - 1) < 4 * math.sqrt((1 + 1 / d + 1 / (d * mean)) / n)


@pytest.mark.parametrize("bad", (-1.0, math.nan, math.inf))
def test_impossible_means_are_named(bad):
    with pytest.raises(ParameterError, match="finite and not negative"):
        poisson(torch.tensor([1.0, bad, 5.0]), torch.zeros(3))


def test_impossible_fractions_are_named():
    with pytest.raises(ParameterError, match=r"\[0, 1\]"):
        binomial(torch.ones(3), 1.5, torch.zeros(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_counts_alike():
    mean, z = spread(0.05, 1e8, 1_000_000), numbers(1_000_000, 10)
    counts = poisson(mean, z)
    assert torch.equal(poisson(mean.cuda(), z.cuda()).cpu(), counts)
    assert torch.equal(binomial(counts.cuda(), 0.3, z.cuda()).cpu(), binomial(counts, 0.3, z))
