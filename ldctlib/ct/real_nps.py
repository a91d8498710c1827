"""Noise power spectra of real scanners, as numbers: what a simulated kernel has to look like.

Source: three patients of the 2016 Low Dose CT Grand Challenge (Mayo Clinic; McCollough et al. 2017), abdomen,
quarter-dose image minus full-dose image. Real and simulated noise are measured alike (:func:`band_nps`): squares
of 64 pixels of soft tissue, each minus its mean and under a Hann window, periodograms averaged
(:mod:`ldctlib.ct.nps`), then the mean over rings of 0.06 /mm up to 0.78 /mm. Rings beyond the pixel's Nyquist
frequency hold the corners of the 2-D spectrum. Each slice's curve is divided by its mean from 0.12 /mm on, the
slices are averaged, and the peak is set to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldctlib.ct.dose import Scanner, noise_only
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.nps import nps, soft_tissue_rois
from ldctlib.ct.phantom import Patient
from ldctlib.ct.projector import Kernel, projector
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.units import hu_to_mu

BAND_EDGES = np.arange(14) * 0.06
"""Edges of the 13 bands, 1/mm."""
BAND_CENTRES = (BAND_EDGES[:-1] + BAND_EDGES[1:]) / 2
ROI = 64


@dataclass(frozen=True)
class RealNPS:
    """One measured curve."""

    patient: str
    kernel: str  # as the DICOM header names it
    thickness_mm: float
    pixel_mm: float
    slices: int
    bands: tuple[float, ...]  # (13,) mean power in each band over the largest

    def __str__(self) -> str:
        return f"{self.patient}, {self.kernel}, {self.thickness_mm:g} mm, pixel {self.pixel_mm:.2f} mm"


REAL_NPS: dict[str, RealNPS] = {
    curve.patient: curve
    for curve in (
        RealNPS(
            "L096",
            "D45f",
            3.0,
            0.7421875,
            10,
            (0.135, 0.214, 0.354, 0.475, 0.602, 0.709, 0.796, 0.857, 0.934, 0.993, 1.000, 0.836, 0.543),
        ),
        RealNPS(
            "L143",
            "D45f",
            3.0,
            0.8203125,
            4,
            (0.132, 0.178, 0.273, 0.387, 0.490, 0.573, 0.700, 0.833, 0.938, 1.000, 0.891, 0.607, 0.421),
        ),
        RealNPS(
            "L506",
            "B30f",
            1.0,
            0.7421875,
            1,
            (0.352, 0.549, 0.803, 1.000, 0.925, 0.756, 0.539, 0.344, 0.191, 0.087, 0.037, 0.015, 0.004),
        ),
    )
}


def band_nps(noise_hu: Tensor, tissue_hu: Tensor, pixel_mm: float) -> np.ndarray:
    """Radial NPS of noise (B, 1, H, W) in the 13 bands, over its peak, where ``tissue_hu`` is soft tissue.

    ``tissue_hu`` is (1, 1, H, W), or (B, 1, H, W) for noise of different slices. Raises ShapeError, and
    ParameterError where no square of 64 pixels is soft tissue.
    """
    if noise_hu.shape[-2:] != tissue_hu.shape[-2:] or len(tissue_hu) not in (1, len(noise_hu)):
        raise ShapeError(f"noise {tuple(noise_hu.shape)} and tissue {tuple(tissue_hu.shape)} do not match")
    corners = soft_tissue_rois(tissue_hu, ROI)
    curves = []
    for i in range(len(noise_hu)):
        own = [(i, r, c) for b, r, c in corners if len(tissue_hu) == 1 or b == i]
        if not own:
            raise ParameterError(f"image {i} has no square of {ROI} pixels of soft tissue")
        two_d = nps(noise_hu, pixel_mm, corners=own, roi=ROI).two_d
        axis = np.fft.fftshift(np.fft.fftfreq(ROI, pixel_mm))
        band = np.digitize(np.hypot(axis[:, None], axis[None, :]), BAND_EDGES) - 1
        curve = np.array([two_d[band == k].mean() for k in range(len(BAND_CENTRES))])
        curves.append(curve / curve[2:].mean())
    mean = np.mean(curves, axis=0)
    return mean / mean.max()


SIMULATED = Scanner(photons=8e5, bowtie_radius_mm=160.0)
"""The scanner of :func:`simulated_bands`. Only the shape is looked at, which hardly depends on it."""


def simulated_bands(
    kernel: str | Kernel, pixel_mm: float, *, patients: Sequence[int] = (3, 5, 8, 11), generator: torch.Generator
) -> np.ndarray:
    """The same curve for quarter-dose scans of phantoms (one slice of each patient) on 512² pixels.

    The detector's bins are half a pixel wide, so that noise reaches past the pixel's Nyquist frequency and
    aliases, as on scanners that sample finer than the pixel.
    """
    geometry = ParallelGeometry.for_image(512, pixel_mm, bins_per_pixel=2, n_views=720)
    scanner = projector(geometry)
    noise, tissue = [], []
    for seed in patients:
        patient = Patient.random(seed)
        body_hu = patient.slice(0.5 * sum(patient.z_range_mm), size=512, pixel_mm=pixel_mm).hu
        p = scanner.A(hu_to_mu(body_hu)).clamp(min=0)
        noise.append(noise_only(p, geometry, SIMULATED, 0.25, kernel=kernel, generator=generator))
        tissue.append(body_hu)
    return band_nps(torch.cat(noise), torch.cat(tissue), pixel_mm)


def band_errors(simulated: Sequence[float], real: Sequence[float]) -> np.ndarray:
    """Relative error of a simulated curve in the bands where the real one exceeds a fifth of its peak.

    A shape has no scale of its own (strength is the dose's business): the simulated curve is first scaled to
    zero mean error in the logarithm. Bands below a fifth are NaN.
    """
    ours, theirs = np.asarray(simulated, float), np.asarray(real, float)
    if ours.shape != theirs.shape:
        raise ShapeError(f"curves of {ours.shape} and {theirs.shape} bands cannot be compared")
    strong = theirs > 0.2 * theirs.max()
    scale = np.exp(np.log(theirs[strong] / ours[strong]).mean())
    return np.where(strong, ours * scale / theirs - 1, np.nan)
