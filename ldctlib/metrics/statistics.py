"""Means over cases with intervals that respect patients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ldctlib.errors import ParameterError


def paired_bootstrap(difference, patients, *, level=0.95, resamples=2000, seed=0) -> tuple[float, float, float]:
    """Mean paired difference and its interval ``(mean, low, high)``, resampling whole patients.

    Slices of one patient are not independent, so the patient is the unit (cluster bootstrap). Percentiles are
    expanded for small n to the tail Φ(-√(n/(n-1)) t) (Hesterberg 2015). No bootstrap interval leaves the
    range of the n patients' means, which covers a median with probability 1 - 2^(1-n) at most: where that
    is below ``level`` (n < 6 for 95 %) the limits are NaN. Measured on normal differences, 95 % intervals cover
    the mean in 93 % of the cases with 6 patients and 95 % from 8 on; on lognormal ones in 83 % with 6 and 90 %
    with 20, as Student's t does: no interval of few patients knows a tail that it has not seen.
    """
    from scipy import stats

    difference, patients = np.asarray(difference, float), np.asarray(patients)
    if difference.ndim != 1 or difference.shape != patients.shape or not len(difference):
        raise ParameterError(f"need one patient per difference, got {difference.shape} and {patients.shape}")
    if not 0 < level < 1 or resamples < 100:
        raise ParameterError(f"need 0 < level < 1 and resamples >= 100, got {level} and {resamples}")
    _, index = np.unique(patients, return_inverse=True)
    total, count = np.bincount(index, difference), np.bincount(index)
    n = len(count)
    if 1 - 2.0 ** (1 - n) < level:
        return float(difference.mean()), math.nan, math.nan
    draws = np.random.default_rng(seed).integers(n, size=(resamples, n))
    means = total[draws].sum(axis=1) / count[draws].sum(axis=1)
    tail = stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(difference.mean()), float(low), float(high)


@dataclass(frozen=True)
class Score:
    """One number with everything it depends on; ``low`` and ``high`` bound ``difference`` to the baseline."""

    method: str
    metric: str
    value: float
    group: str
    dose: float
    reference: str
    window: str
    n_slices: int
    n_patients: int
    baseline: str
    difference: float
    low: float
    high: float
    level: float
    provenance: str = ""
