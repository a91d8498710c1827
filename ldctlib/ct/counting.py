"""Photon counts as functions of one normal number per bin, so that a seed gives the same scan on every machine.

``torch.poisson`` accepts and rejects numbers in sequence: an expected count that differs in its last digit, as after
another processor's FFT, draws all later counts anew. Here the numbers come first (:func:`standard_normal`), and each
count is the quantile of its distribution at its own number: it moves only where the expected count moves it.

Below ``FEW`` expected counts the quantile is exact: probabilities are summed up, or a Cornish-Fisher expansion is taken
where it is sure of the whole number. From ``FEW`` on the expansion stands alone, to an order at which 1 count in 70,000
is off there, by one, and ever fewer above.

Counts are float64, which holds whole numbers up to 2^53 (float32: 2^24). So is all arithmetic, in operations that every
device computes to the last digits: the same numbers give the same counts on a CPU and a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldctlib.errors import ParameterError

VERY_FEW, FEW = 4.0, 30.0
"""Expected counts below which probabilities are summed always, and wherever the expansion leaves a doubt."""

BLOCK = 2**14  # bins at a time, so that intermediate results stay in the processor's cache


def standard_normal(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One float32 number for each bin of ``like``, drawn on the generator's device and moved to ``like``'s."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device).to(like.device)


def poisson(mean: Tensor, normal: Tensor) -> Tensor:
    """Poisson counts, float64 of ``mean``'s shape.

    mean : expected counts; raises ParameterError unless all are finite and 0 or more.
    normal : standard normal numbers of the same shape.
    """
    return _quantile(mean, 0.0, normal)


def binomial(counts: Tensor, fraction: float, normal: Tensor) -> Tensor:
    """How many of ``counts`` photons are kept, each with probability ``fraction``: float64 of the same shape.

    counts : whole numbers, 0 or more.
    fraction : from 0 to 1; with 1 - ``fraction`` and -``normal`` the result is the photons that are not kept.
    normal : standard normal numbers of the same shape.
    """
    if not 0 <= fraction <= 1:
        raise ParameterError(f"a thinning fraction lies in [0, 1], got {fraction}")
    counts = counts.double()
    if fraction > 0.5:
        return counts - binomial(counts, 1 - fraction, -normal)
    return torch.minimum(_quantile(counts * fraction, fraction, normal), counts)


@torch.no_grad()
def _quantile(mean: Tensor, f: float, normal: Tensor) -> Tensor:
    """The least k with P(N <= k) >= Phi(normal), for N ~ Binomial(mean / f, f), or Poisson(mean) for f = 0."""
    shape, mean, normal = mean.shape, mean.reshape(-1), normal.reshape(-1)
    counts, left = torch.empty(mean.shape, dtype=torch.float64, device=mean.device), []
    for start in range(0, len(mean), BLOCK):
        part = slice(start, start + BLOCK)
        m, z = mean[part].double(), normal[part].double()
        lowest, highest = (float(x) for x in m.aminmax())
        if not 0 <= lowest <= highest < math.inf:  # NaN is neither
            raise ParameterError(
                f"expected counts must be finite and not negative, got {lowest:g} to {highest:g}: "
                "check the line integrals and the photon number"
            )
        if highest < VERY_FEW:
            counts[part] = _summed(m, f, z)
            continue
        y = _expansion(m, f, z)
        torch.floor(y, out=counts[part])
        if lowest < FEW:
            # from VERY_FEW on, within 2.5 standard deviations, the expansion's error is below 0.006
            doubt = (z.abs() > 2.5) | ((y - y.round()).abs() < 0.01)
            left.append(((m < VERY_FEW) | ((m < FEW) & doubt)).nonzero()[:, 0] + start)
    if left:
        left = torch.cat(left)
        low = mean[left] < VERY_FEW  # first, together: their sums end early
        for index in torch.cat([left[low], left[~low]]).split(BLOCK):
            counts[index] = _summed(mean[index].double(), f, normal[index].double())
    return counts.clamp_(min=0).reshape(shape)


def _expansion(mean, f, z):
    """A real number whose whole part is the quantile: Cornish and Fisher's expansion (Hill & Davis 1968) to 1 / sd^3.

    The cumulants are N's less those of a uniform number in a unit interval, which corrects for the steps of a
    discrete distribution; with f = 0 it is Giles's for Poisson (2016), an order further.
    """
    sd, skew, t = (mean * (1 - f)).sqrt(), 1 - 2 * f, z * z
    g, r, c = skew**2, 1 / sd, skew * (9 - skew**2) / 6480
    third = [((9 * g - 486) * g - 351) / 622080, ((256 * g - 2124) * g - 324) / 622080]
    y = _polynomial(t, *third, ((6282 - 433 * g) * g + 4887) / 622080).mul_(z)
    y = y.mul_(r).add_(_polynomial(t, 3 * c, 7 * c, -16 * c))
    y = y.mul_(r).add_(_polynomial(t, (g - 3) / 144, (3 - 7 * g) / 144).mul_(z))
    y = y.mul_(r).add_(_polynomial(t, skew / 6, 0.5 - skew / 6))
    return y.add_(sd.mul_(z)).add_(mean)


def _polynomial(t, *coefficients):
    """The highest power's coefficient comes first."""
    y = t * coefficients[0]
    for c in coefficients[1:-1]:
        y.add_(c).mul_(t)
    return y.add_(coefficients[-1])


def _summed(mean, f, z):
    """The quantile by sums of probabilities p_k = p_(k-1) (b - a k) / k, a = f / (1 - f), b = mean / (1 - f) + a."""
    a = f / (1 - f)
    b = mean / (1 - f) + a
    p = torch.exp(mean * (math.log1p(-f) / f if f else -1.0))
    u, cumulated = torch.special.ndtr(z.clamp(max=7.5)), p.clone()  # at 8 the sum's rounding would count
    count, above = torch.zeros_like(z), torch.empty_like(z)
    for k in range(1, 256):  # P(N > 255) is 0 below FEW
        torch.gt(u, cumulated, out=above)
        if k % 4 == 0 and not bool(above.any()):
            break
        count.add_(above)
        p.mul_(b - a * k if a else b).mul_(1 / k)
        cumulated.add_(p)
    return count
