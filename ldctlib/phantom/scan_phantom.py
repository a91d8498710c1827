"""Simulated scans of phantoms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ldctlib.ct.dose import Scanner, measure
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.kernels import Kernel
from ldctlib.ct.nps import band_nps
from ldctlib.ct.projector import projector
from ldctlib.phantom.patient import Patient
from ldctlib.units import MU_WATER_PER_MM, hu_to_mu

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
    scanner = projector(geometry)
    noise, tissue = [], []
    for seed in patients:
        patient = Patient.random(seed)
        body_hu = patient.slice(0.5 * sum(patient.z_range_mm), size=512, pixel_mm=pixel_mm).hu
        p = scanner.A(hu_to_mu(body_hu)).clamp(min=0)
        (noisy,) = measure(p, SIMULATED, geometry, (0.25,), generator=generator)
        noise.append(scanner.fbp(noisy - p, kernel) * (1000 / MU_WATER_PER_MM))
        tissue.append(body_hu)
    return band_nps(torch.cat(noise), torch.cat(tissue), pixel_mm)
