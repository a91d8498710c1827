"""Other doses from a measured pair: how much of its noise difference makes which dose.

With σ² the variance of a full-dose scan, one at dose d has σ²/d. Of a pair with a low dose d0, the difference
Δ = x_ld - x_fd has variance V σ², and V depends on how the pair was acquired (NA-Diff's section 3.3 takes no account of
this: its Eq. 7 leaves a = 1 for every dose, and b of its Eq. 8 rises with the dose):

    nested       1/d0 - 1   the low dose was inserted into the full-dose scan, so Δ is independent of x_fd's noise
    independent  1/d0 + 1   two scans of the same object; x_fd's noise is in Δ, with the opposite sign
    noise-free   1/d0       x_fd has no noise, as a simulation's truth
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldctlib.errors import ParameterError
from ldctlib.image import check_images

ACQUISITIONS = ("nested", "independent", "noise-free")
"""Real pairs of LDCT-and-Projection-data and of Mayo-2016 are "nested": their low dose is simulated from the full-dose
projections. "independent" needs the patient, or a phantom, to be scanned twice; "noise-free" a simulated truth."""


def dose_list(dose: float | Sequence[float], name: str = "dose") -> list[float]:
    """One dose or several as a list; raises ParameterError for none, and for any outside (0, 1]."""
    doses = np.ravel(dose).tolist()
    if not doses or not all(isinstance(d, int | float) and 0 < d <= 1 for d in doses):
        raise ParameterError(f"{name} is a fraction of full dose in (0, 1], or several of them; got {dose!r}")
    return doses


def _one(dose: float, name: str = "dose") -> float:
    doses = dose_list(dose, name)
    if len(doses) > 1:
        raise ParameterError(f"{name} is one fraction of full dose here, got {len(doses)}")
    return doses[0]


def _difference_variance(measured_dose: float, acquisition: str) -> float:
    """V, the variance of x_ld - x_fd in units of the full-dose scan's."""
    measured_dose = _one(measured_dose, "measured_dose")
    if acquisition not in ACQUISITIONS:
        raise ParameterError(f"an acquisition is one of {', '.join(ACQUISITIONS)}; got {acquisition!r}")
    if acquisition == "nested" and measured_dose == 1:
        raise ParameterError("a nested pair at measured_dose 1 is twice the same scan: there is no difference to scale")
    return 1 / measured_dose + {"nested": -1, "independent": 1, "noise-free": 0}[acquisition]


def noise_scale(dose: float, measured_dose: float, acquisition: str) -> float:
    """α with which x_fd + α (x_ld - x_fd) has the noise of ``dose``.

    nested : the variance is σ² (1 + α² V), so α = √((1/d - 1) / V); 0 at full dose.
    independent : σ² ((1 - α)² + α²/d0), so α = (1 + √(1 + V (1/d - 1))) / V. The larger root is 1 at d = d0 and weighs
        both scans at d = 1.
    noise-free : σ² α² V, so α = √((1/d) / V) = √(d0/d).

    Raises ParameterError for doses outside (0, 1], another acquisition, and a nested pair without a difference.
    """
    variance = _difference_variance(measured_dose, acquisition)
    dose = _one(dose)
    if acquisition == "nested":
        return math.sqrt((1 / dose - 1) / variance)
    if acquisition == "independent":
        return (1 + math.sqrt(1 + variance * (1 / dose - 1))) / variance
    return math.sqrt(1 / dose / variance)


def std_map_scale(dose: float, measured_dose: float, acquisition: str) -> float:
    """b with which b (x_ld - x_fd) is a noise with the whole variance σ²/d of ``dose``: b = √((1/d) / V).

    It is for maps of the noise (:func:`~ldctlib.ct.noise_maps.std_map`); :func:`noise_scale` makes images, in which
    x_fd's own noise counts too. Errors as there.
    """
    variance = _difference_variance(measured_dose, acquisition)
    dose = _one(dose)
    return math.sqrt(1 / dose / variance)


def full_dose_sd(difference_sd, measured_dose: float, acquisition: str):
    """σ, the full-dose scan's standard deviation, from that of x_ld - x_fd (a number or a tensor): sd / √V."""
    if not bool((torch.as_tensor(difference_sd) >= 0).all()):
        raise ParameterError(f"a standard deviation is 0 or more, got {difference_sd}")
    return difference_sd / math.sqrt(_difference_variance(measured_dose, acquisition))


def at_dose(
    full_hu: Tensor, low_hu: Tensor, dose: float | Sequence[float], measured_dose: float, acquisition: str
) -> Tensor:
    """The scan at other doses, x_fd + α (x_ld - x_fd), from an aligned pair (B, 1, H, W) in HU.

    dose : one, or several, which follow each other in the batch: (doses * B, 1, H, W), the first B at the first dose.
    """
    check_images(full_hu, low_hu)
    scales = [noise_scale(d, measured_dose, acquisition) for d in dose_list(dose)]
    return torch.cat([full_hu + scale * (low_hu - full_hu) for scale in scales])
