"""Noise as an image: the local standard deviation of a noise, the one to expect of an anatomy at a dose, and how an
encoder of images sees either.

A noise map is (B, 1, H, W) in HU. :func:`std_map` measures it in a realisation, which needs a pair of scans;
:func:`anatomy_noise_map` predicts it for any dose from the anatomy alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.ct.dose import Scanner
from ldctlib.ct.dose_scaling import dose_list
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.kernels import Kernel, find_kernel
from ldctlib.ct.projector import projector
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import check_images
from ldctlib.units import SOFT_TISSUE, delta_mu_to_hu, hu_to_mu

VIEWS = 180
"""Of the scan that a predicted map is propagated through; variances vary slowly with the angle."""


def std_map(noise_hu: Tensor, size: int = 5) -> Tensor:
    """Local standard deviation of a noise (B, 1, H, W): √(mean of n² over the centred window) (NA-Diff, Eq. 9).

    The divisor is size², and the window's mean is not removed: a noise has mean 0, and what neighbouring pixels share
    is noise too. Pixels beyond the border are mirrored.

    noise_hu : the noise alone, b (x_ld - x_fd) of a pair (:func:`~ldctlib.ct.dose_scaling.std_map_scale`).
    size : side of the window in pixels, odd. Raises ParameterError otherwise, ShapeError where the image is smaller.
    """
    check_images(noise_hu)
    if size < 1 or size % 2 == 0:
        raise ParameterError(f"the window has a centre pixel: size must be odd and positive, got {size}")
    if size // 2 >= min(noise_hu.shape[-2:]):
        raise ShapeError(f"a window of {size} pixels does not fit into {tuple(noise_hu.shape[-2:])}")
    squared = F.pad(noise_hu.square(), (size // 2,) * 4, mode="reflect")
    return F.avg_pool2d(squared, size, stride=1).sqrt()


def anatomy_noise_map(
    image_hu: Tensor,
    dose: float | Sequence[float],
    *,
    pixel_mm: float,
    centre_sd_hu: float,
    kernel: str | Kernel = "B30f",
    scanner: Scanner | None = None,
    radius_mm: float = 40.0,
    grid: int | None = 128,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The noise map of an anatomy at a dose, without any scan: variances of the rays through filtered backprojection.

    Each image is calibrated by itself: its full-dose noise has the rms ``centre_sd_hu`` within ``radius_mm`` of the
    axis. The variance of a ray is 1/(d N) + (electronic_sd/(d N))² at N expected quanta, so two backprojections serve
    every dose.

    image_hu : the anatomy, (B, 1, N, N); an organ's typical HU is enough.
    dose : one, or several, which follow each other in the batch: (doses * B, 1, N, N), the first B at the first dose.
    scanner : its bow-tie filter, tube-current modulation and electronic noise; ``photons`` are calibrated here.
    grid : pixels a side that the map, which is smooth, is computed with; None: as many as the image has.
    generator : with it, the result is :func:`std_map` of one realisation with the kernel's spectrum, which scatters
        about as a measured map does (streaks are left out); without, the expected one.

    Raises ShapeError for images that are not square, ParameterError for a noise or a dose that cannot be.
    """
    check_images(image_hu)
    doses, kernel, scanner, size = dose_list(dose), find_kernel(kernel), scanner or Scanner(), image_hu.shape[-1]
    if image_hu.shape[-2] != size:
        raise ShapeError(f"a scan's image is square, got {tuple(image_hu.shape)}")
    if not (pixel_mm > 0 and centre_sd_hu > 0):
        raise ParameterError(f"pixel_mm and centre_sd_hu must be positive, got {pixel_mm} and {centre_sd_hu}")
    fine = ParallelGeometry.for_image(size, pixel_mm, bins_per_pixel=2, n_views=round(1.4 * size))
    side = min(size, grid or size)
    coarse = ParallelGeometry.for_image(side, pixel_mm * size / side, n_views=min(VIEWS, fine.n_views))
    # rays of the coarse scan stand for those of the fine one: what a ray's variance comes to differs by a factor
    gain = _ray_gain(fine, kernel) / _ray_gain(coarse, kernel)
    project = projector(coarse, image_hu.device)
    p = project.A(hu_to_mu(F.interpolate(image_hu.float(), (side, side), mode="area"))).clamp(min=0)
    incident = scanner.incident(coarse, p) / scanner.photons
    quanta = incident * torch.exp(-p)

    def propagated(variance: Tensor) -> Tensor:
        return delta_mu_to_hu(delta_mu_to_hu(project.fbp_variance(variance, kernel))).clamp(min=0) * gain

    photon, electronic = propagated(1 / quanta), propagated((scanner.electronic_sd / quanta) ** 2)
    axis = (torch.arange(side, device=p.device) - (side - 1) / 2) * coarse.pixel_mm
    centre = torch.hypot(axis[:, None], axis) <= max(radius_mm, coarse.pixel_mm)
    a, b = (v[..., centre].mean(dim=-1).double()[..., None, None] for v in (photon, electronic))
    photons = ((a + (a.square() + 4 * b * centre_sd_hu**2).sqrt()) / (2 * centre_sd_hu**2)).float()
    variance = torch.cat([photon / (d * photons) + electronic / (d * photons) ** 2 for d in doses])
    sd = F.interpolate(variance, (size, size), mode="bilinear", align_corners=False).sqrt()
    if generator is None:
        return sd
    axis = (torch.fft.fftfreq(size)[:, None] + torch.arange(-1.0, 2.0)) / pixel_mm  # with what pixels alias
    f = torch.hypot(axis[:, None, :, None], axis[:, None])
    amplitude = (f * kernel(f).square() * (f < 0.5 / fine.bin_mm)).sum(dim=(-2, -1)).sqrt()
    white = torch.randn(sd.shape, generator=generator, device=generator.device)
    unit = torch.fft.ifft2(torch.fft.fft2(white) * (amplitude / amplitude.square().mean().sqrt()).to(white)).real
    return std_map(sd * unit.to(sd))


def _ray_gain(geometry: ParallelGeometry, kernel: Kernel) -> float:
    """Variance that unit variance of every ray gives to a pixel, up to a constant: the squared filter's sum, a view."""
    f = torch.linspace(0, 0.5 / geometry.bin_mm, 1001)
    return float((f * kernel(f)).square().mean()) * geometry.view_rad


STEP_HU = 10.0
"""Below it an encoder's image of a noise map is about linear in the standard deviation, above about logarithmic."""


def noise_map_image(std_hu: Tensor, full_scale_hu: float = 100.0) -> Tensor:
    """A noise map as an image in the soft-tissue window [-160, 240] HU, for an encoder that expects one.

    The map is fixed, so that the dose stays readable (an image's own minimum and maximum would erase it), strictly
    rising, and log(1 + sd / 10 HU): 0 is -160 HU, ``full_scale_hu`` 240 HU, and what exceeds it is clipped, nothing
    else. Doses from 5 to 100 % at 8 HU take 0.39 of the range, 0.32 with a square root, 0.28 if it were linear.
    :func:`noise_map_from_image` inverts it.
    """
    check_images(std_hu)
    _check_scale(full_scale_hu)
    if float(std_hu.min()) < 0:
        raise ParameterError(f"a standard deviation is 0 or more, got {float(std_hu.min()):g} HU")
    share = torch.log1p(std_hu.clamp(max=full_scale_hu) / STEP_HU) / math.log1p(full_scale_hu / STEP_HU)
    return SOFT_TISSUE.low + SOFT_TISSUE.width * share


def noise_map_from_image(image_hu: Tensor, full_scale_hu: float = 100.0) -> Tensor:
    """The standard deviation in HU that :func:`noise_map_image` shows as ``image_hu``, with the same full scale."""
    _check_scale(full_scale_hu)
    share = (image_hu - SOFT_TISSUE.low) / SOFT_TISSUE.width
    return STEP_HU * torch.expm1(share * math.log1p(full_scale_hu / STEP_HU))


def _check_scale(full_scale_hu: float) -> None:
    if not 0 < full_scale_hu < math.inf:
        raise ParameterError(f"full_scale_hu is a positive standard deviation, got {full_scale_hu}")
