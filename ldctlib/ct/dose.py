"""Dose: photon counting, electronic noise, the logarithm, and three ways to a low-dose image.

Per ray, with line integral p, incident photons N0 (full dose) and dose fraction d:

    N ~ Poisson(d N0 exp(-p)) + Normal(0, electronic_sd^2),     p_hat = -log(N / (d N0)),
    Var(p_hat) ~= (d N0 exp(-p) + electronic_sd^2) / (d N0 exp(-p))^2.

N0 = photons * bowtie(ray) * modulation(view). ``electronic_sd`` is a standard deviation in detected quanta.
A ``kernel`` is the name of one or a :class:`~ldctlib.ct.kernels.Kernel`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ldctlib.ct.counting import binomial, poisson, standard_normal
from ldctlib.ct.geometry import FanGeometry, Geometry
from ldctlib.ct.projector import Projector, projector
from ldctlib.errors import ParameterError
from ldctlib.units import MU_WATER_PER_MM, delta_mu_to_hu, hu_to_mu, mu_to_hu

LOG_POLICIES = ("clip", "local mean", "first order")


@dataclass(frozen=True)
class Scanner:
    """What sets the noise of a scan.

    ``photons`` per ray at full dose and ``electronic_sd`` (quanta) are effective numbers: calibrate them to a noise in
    HU with :func:`calibrate`, do not quote them as physical. ``bowtie_radius_mm`` is the radius of the water cylinder
    whose path the bow-tie filter evens out (None: no filter); ``modulation`` is the exponent of the tube-current
    modulation, 0 for constant current and 1/2 for the optimum of Gies et al. 1999.
    """

    photons: float = 1e6
    electronic_sd: float = math.sqrt(10.0)
    bowtie_radius_mm: float | None = None
    modulation: float = 0.0
    low_counts: str = "clip"

    def __post_init__(self):
        if not self.photons > 0:
            raise ParameterError(f"photons must be positive, got {self.photons}")
        if self.electronic_sd < 0:
            raise ParameterError(f"electronic_sd is a standard deviation in quanta, got {self.electronic_sd}")
        if self.low_counts not in LOG_POLICIES:
            raise ParameterError(f"low_counts is one of {', '.join(LOG_POLICIES)}; got {self.low_counts!r}")
        if self.bowtie_radius_mm is not None and not self.bowtie_radius_mm > 0:
            raise ParameterError(f"bowtie_radius_mm must be positive or None, got {self.bowtie_radius_mm}")

    def incident(self, geometry: Geometry, sinogram: Tensor) -> Tensor:
        """N0 at full dose for every ray, of the sinogram's shape (B, 1, views, bins)."""
        n0 = torch.full_like(sinogram, self.photons)
        if self.bowtie_radius_mm is not None:
            index = torch.arange(geometry.n_bins, device=sinogram.device) - (geometry.n_bins - 1) / 2
            index = index + geometry.offset_bins
            fan = isinstance(geometry, FanGeometry)
            s = geometry.source_to_iso_mm * torch.sin(index * geometry.bin_rad) if fan else index * geometry.bin_mm
            radius = self.bowtie_radius_mm
            filled = 2 * (radius - torch.sqrt((radius**2 - s**2).clamp(min=0)))
            n0 = n0 * torch.exp(-MU_WATER_PER_MM * filled).clamp(min=0.02)
        if self.modulation:
            attenuation = sinogram.amax(dim=-1, keepdim=True) * self.modulation
            current = torch.exp(attenuation - attenuation.amax(dim=-2, keepdim=True))
            n0 = n0 * (current / current.mean(dim=-2, keepdim=True))
        return n0


def _check_dose(dose: float) -> None:
    if not 0 < dose <= 1:
        raise ParameterError(f"dose is a fraction of full dose in (0, 1], got {dose}")


def photon_counts(line_integrals, incident, dose: float = 1.0, *, generator=None) -> Tensor:
    """Detected quanta of one scan, Poisson(dose * incident * exp(-p)), before electronic noise; float64."""
    _check_dose(dose)
    mean = dose * incident * torch.exp(-line_integrals)
    return poisson(mean, standard_normal(mean, generator))


def line_integrals(counts, incident, dose: float = 1.0, *, policy: str = "clip") -> Tensor:
    """-log(counts / (dose * incident)) in ``incident``'s type, with a named policy where the logarithm fails.

    "clip": counts below 1/2 become 1/2 (below about 2 counts the estimate's bias turns negative: thick rays read thin).
    "local mean": counts below 1/2 take the mean of their 3 x 5 neighbourhood first.
    "first order": clip, then subtract the bias 1 / (2 counts) of the logarithm's second-order expansion.
    """
    _check_dose(dose)
    if policy not in LOG_POLICIES:
        raise ParameterError(f"the low-count policy is one of {', '.join(LOG_POLICIES)}; got {policy!r}")
    floor = 0.5
    if policy == "local mean":
        mean = torch.nn.functional.avg_pool2d(counts, (3, 5), stride=1, padding=(1, 2), count_include_pad=False)
        counts = torch.where(counts < floor, mean, counts)
    clipped = counts.clamp(min=floor)
    p = -torch.log(clipped / (dose * incident))
    if policy == "first order":
        p = p - 1 / (2 * clipped.clamp(min=1))
    return p.to(incident.dtype)


def acquire(
    true_p, scanner: Scanner, geometry: Geometry, doses=(1.0,), *, common_random_numbers=False, generator=None
) -> list[Tensor]:
    """Noisy line integrals at several doses: a list like ``doses``.

    doses : by default falling, and nested: out of one stream of photons, each dose thins the one before (thinned
        Poisson counts are Poisson again). The electronic noise of each reading is its own.
    common_random_numbers : every dose, in any order, is a scan by itself, made of the same random numbers, so that the
        same noise is seen to grow as the dose falls.
    """
    doses = list(doses)
    if not common_random_numbers and doses != sorted(doses, reverse=True):
        raise ParameterError(f"nested doses must fall, got {doses}")
    incident = scanner.incident(geometry, true_p)
    mean, out = incident * torch.exp(-true_p), []
    for i, dose in enumerate(doses):
        _check_dose(dose)
        if i == 0 or not common_random_numbers:
            normal, electronic = standard_normal(mean, generator), standard_normal(mean, generator)
        if i == 0 or common_random_numbers:
            counts = poisson(dose * mean, normal)
        else:
            counts = binomial(counts, dose / doses[i - 1], normal)
        readings = counts + scanner.electronic_sd * electronic
        out.append(line_integrals(readings, incident, dose, policy=scanner.low_counts))
    return out


def scan(image_hu, geometry: Geometry, scanner: Scanner, doses=(1.0,), *, kernel="B30f", **options) -> list[Tensor]:
    """Scan an object (:func:`acquire`, which takes the options) and reconstruct it at each dose: (B, 1, N, N) HU each.

    ``image_hu`` may be on a finer grid of the same field of view than ``geometry``'s image: projecting from a finer
    grid than the one reconstructed avoids the inverse crime.
    """
    project, reconstruct = projectors(image_hu, geometry)
    noisy = acquire(project.A(hu_to_mu(image_hu)), scanner, geometry, doses, **options)
    return [mu_to_hu(reconstruct.fbp(q, kernel)) for q in noisy]


def noise_only(true_p, geometry: Geometry, scanner: Scanner, dose=1.0, *, kernel="B30f", generator=None) -> Tensor:
    """The noise of a scan without its object, (B, 1, N, N) HU: noisy minus true line integrals, reconstructed."""
    (noisy,) = acquire(true_p, scanner, geometry, (dose,), generator=generator)
    noise = noisy - true_p
    return delta_mu_to_hu(projector(geometry, noise.device).fbp(noise, kernel))


def projectors(image_hu, geometry: Geometry) -> tuple[Projector, Projector]:
    """The projector of the grid that an image is drawn on, and that of the geometry it is reconstructed on."""
    device = image_hu.device
    return projector(geometry.on_grid(image_hu.shape[-1]), device), projector(geometry, device)


def added_variance(p, incident, dose: float, electronic_sd: float) -> Tensor:
    """Variance that turns a full-dose line integral into one at ``dose`` (Yu et al. 2012, Eq. 8):

    (1-a)/a * exp(p)/N0 * [1 + (1+a)/a * electronic_sd^2 * exp(p)/N0].
    """
    _check_dose(dose)
    inverse = torch.exp(p) / incident
    return (1 - dose) / dose * inverse * (1 + (1 + dose) / dose * electronic_sd**2 * inverse)


def insert_projection(full_p, geometry: Geometry, scanner: Scanner, dose: float, *, generator=None) -> Tensor:
    """Low-dose line integrals from full-dose ones, noise inserted in the projections (Yu et al. 2012).

    Where a ray keeps few quanta, the formula's variance grows without bound and a scan's does not: there it is the
    difference of :func:`clipped_variance`. A warning says so; thinned counts (:func:`acquire`) have the bias, too.
    """
    incident, electronic = scanner.incident(geometry, full_p), scanner.electronic_sd
    variance = added_variance(full_p, incident, dose, electronic)
    quanta = dose * incident * torch.exp(-full_p)
    if (few := quanta < FEW).any():
        low, full = (clipped_variance(full_p, incident, d, electronic) for d in (dose, 1.0))
        variance = torch.where(few, (low - full).clamp(min=0), variance)
        if (share := float((quanta < VERY_FEW).float().mean())) > 1e-3:
            warnings.warn(
                f"{100 * share:.1f} % of the rays keep fewer than {VERY_FEW:g} quanta at a dose of {dose:g}: inserted "
                "noise has about a scan's variance there, not its bias; where counts are known, thin them (acquire)",
                stacklevel=2,
            )
    return full_p + standard_normal(full_p, generator) * variance.sqrt()


def insert_noise_image(
    full_hu, geometry: Geometry, scanner: Scanner, dose: float, *, kernel="B30f", generator=None
) -> Tensor:
    """A low-dose image from a full-dose *image*: reproject it for the variance, reconstruct only the noise, add.

    The image itself never goes through FBP, so it keeps its sharpness and its own noise.
    """
    project, reconstruct = projectors(full_hu, geometry)
    p = project.A(hu_to_mu(full_hu)).clamp(min=0)
    noise = insert_projection(p, geometry, scanner, dose, generator=generator) - p
    return full_hu + delta_mu_to_hu(reconstruct.fbp(noise, kernel))


def noise_map(image_hu, geometry: Geometry, scanner: Scanner, dose: float = 1.0, *, kernel="B30f") -> Tensor:
    """Standard deviation in HU at every pixel, (B, 1, N, N): the projection variances through FBP.

    FBP is linear and the rays are independent, so the variance is backprojected with the squared filter
    (Kak & Slaney, Eq. 5.58). Rays of few quanta have the variance of :func:`clipped_variance`.
    """
    project, _ = projectors(image_hu, geometry)
    return _noise_map(project.A(hu_to_mu(image_hu)), geometry, scanner, dose, kernel, clipped_variance)


def ray_variance(p, incident, dose: float, electronic_sd: float) -> Tensor:
    """Variance of a measured line integral p at ``dose``, to first order; see the head of this module."""
    quanta = dose * incident * torch.exp(-p)
    return (quanta + electronic_sd**2) / quanta.clamp(min=0.5) ** 2


FEW, VERY_FEW = 30.0, 8.0
"""Quanta of a ray below which the first order is no longer exact, and below which it is of little use."""


def clipped_variance(p, incident, dose: float, electronic_sd: float) -> Tensor:
    """:func:`ray_variance`, but for fewer than 30 quanta the variance of :func:`line_integrals` with the policy "clip".

    It is bounded, since no reading counts as less than 1/2: the first order's from 30 quanta on, its own below 15.
    """
    first = ray_variance(p, incident, dose, electronic_sd)
    log_quanta = (dose * incident).log() - p
    share = ((math.log(FEW) - log_quanta) / math.log(2)).clamp(0, 1)
    if not share.any():
        return first
    exact = np.interp(log_quanta.detach().cpu().numpy(), *_variance_table(float(electronic_sd)))
    return torch.lerp(first, torch.from_numpy(exact).to(first), share)


@lru_cache(maxsize=16)
def _variance_table(electronic_sd: float) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of expected quanta, and the variance of the clipped logarithm there: a sum over Poisson counts and 400
    equally probable values of the electronic noise."""
    quanta = torch.logspace(-4, math.log10(FEW), 160, dtype=torch.float64)
    counts = torch.arange(100, dtype=torch.float64)
    noise = torch.special.ndtri((torch.arange(400, dtype=torch.float64) + 0.5) / 400) * electronic_sd
    log = (counts[:, None] + noise).clamp(min=0.5).log()
    probability = torch.exp(torch.special.xlogy(counts, quanta[:, None]) - quanta[:, None] - torch.lgamma(counts + 1))
    variance = probability @ log.square().mean(dim=1) - (probability @ log.mean(dim=1)).square()
    return quanta.log().numpy(), variance.numpy()


def _noise_map(p, geometry: Geometry, scanner: Scanner, dose: float, kernel, variance_of=ray_variance) -> Tensor:
    variance = variance_of(p, scanner.incident(geometry, p), dose, scanner.electronic_sd)
    return delta_mu_to_hu(projector(geometry, p.device).fbp_variance(variance, kernel).clamp(min=0).sqrt())


def calibrate(
    image_hu, geometry: Geometry, scanner: Scanner, target_sd_hu: float, *, kernel="B30f", radius_mm=40.0
) -> Scanner:
    """The scanner with ``photons`` set so that the full-dose noise near the axis is ``target_sd_hu``.

    Raises ParameterError when electronic noise alone exceeds the target.
    """
    if not target_sd_hu > 0:
        raise ParameterError(f"target_sd_hu must be positive, got {target_sd_hu}")
    n = geometry.size
    axis = (torch.arange(n, device=image_hu.device) - (n - 1) / 2) * geometry.pixel_mm
    centre = torch.hypot(axis[:, None], axis[None, :]) <= radius_mm
    project, _ = projectors(image_hu, geometry)
    p = project.A(hu_to_mu(image_hu))
    for _ in range(12):  # the variance is a/photons + b/photons^2: a few fixed-point steps meet it
        sd = _noise_map(p, geometry, scanner, 1.0, kernel)[..., centre].square().mean().sqrt().item()
        power = 2 if sd < 4 * target_sd_hu else 1.2  # far off, electronic noise may rule: step with care
        scanner = replace(scanner, photons=scanner.photons * (sd / target_sd_hu) ** power)
        if not 1e-3 < scanner.photons < 1e15:
            raise ParameterError(f"no photon number gives {target_sd_hu} HU for this object")
        if abs(sd / target_sd_hu - 1) < 1e-4:  # after the step: where it ends must not hang on the last digits
            break
    return scanner
