"""Simulated scans of phantoms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ldctlib.ct.dose import Scanner, acquire, calibrate, noise_only
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.kernels import Kernel
from ldctlib.ct.nps import band_nps
from ldctlib.ct.projector import projector
from ldctlib.phantom.patient import Patient
from ldctlib.units import hu_to_mu, mu_to_hu

SCANNER = Scanner(bowtie_radius_mm=160.0, modulation=0.3)
"""Of :func:`scan_phantom`, before its photons are set."""


def scan_phantom(
    patient: Patient,
    z_mm: float,
    doses: Sequence[float],
    *,
    kernels: Sequence[str | Kernel] = ("B30f",),
    full_dose_sd_hu: float = 12.0,
    thickness_mm: float = 3.0,
    size: int = 512,
    pixel_mm: float | None = None,
    n_views: int = 600,
    generator: torch.Generator | None = None,
) -> dict[str | Kernel, list[torch.Tensor]]:
    """A patient's slice scanned once: kernel -> noise-free image, then the image at each dose, (1, 1, N, N) HU.

    The body is drawn and projected on a grid of half the pixel, onto detector bins of half a pixel, through a bow-tie
    filter with tube-current modulation. The photons are set so that the full-dose noise near the axis has
    ``full_dose_sd_hu`` under the kernel B30f; doses fall and are nested; the kernels reconstruct the same readings.

    pixel_mm : the patient's field of view over ``size`` by default.
    """
    pixel_mm = patient.body.field_of_view_mm / size if pixel_mm is None else pixel_mm
    geometry = ParallelGeometry.for_image(size, pixel_mm, bins_per_pixel=2, n_views=n_views)
    body = patient.slice(z_mm, size=2 * size, pixel_mm=pixel_mm / 2, thickness_mm=thickness_mm).hu
    scanner = calibrate(body, geometry, SCANNER, full_dose_sd_hu, kernel="B30f")
    lines = projector(geometry.on_grid(2 * size)).A(hu_to_mu(body))
    readings = [lines, *acquire(lines, scanner, geometry, doses, generator=generator)]
    return {kernel: [mu_to_hu(projector(geometry).fbp(p, kernel)) for p in readings] for kernel in kernels}


SIMULATED = Scanner(photons=8e5, bowtie_radius_mm=160.0)
"""The scanner of :func:`simulated_bands`. Only the shape is looked at, which hardly depends on it."""


def simulated_bands(
    kernel: str | Kernel, pixel_mm: float, *, patients: Sequence[int] = (3, 5, 8, 11), generator: torch.Generator
) -> np.ndarray:
    """The noise's radial NPS in bands (:func:`~ldctlib.ct.nps.band_nps`) for quarter-dose scans of phantoms.

    One slice of each patient on 512² pixels. The detector's bins are half a pixel wide, so that noise reaches past
    the pixel's Nyquist frequency and aliases, as on scanners that sample finer than the pixel.
    """
    geometry = ParallelGeometry.for_image(512, pixel_mm, bins_per_pixel=2, n_views=720)
    noise, tissue = [], []
    for seed in patients:
        patient = Patient.random(seed)
        body_hu = patient.slice(0.5 * sum(patient.z_range_mm), size=512, pixel_mm=pixel_mm).hu
        p = projector(geometry).A(hu_to_mu(body_hu)).clamp(min=0)
        noise.append(noise_only(p, geometry, SIMULATED, 0.25, kernel=kernel, generator=generator))
        tissue.append(body_hu)
    return band_nps(torch.cat(noise), torch.cat(tissue), pixel_mm)
