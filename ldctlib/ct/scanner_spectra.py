"""Noise power spectra of real scanners, as numbers: what a simulated kernel has to look like.

Source: three patients of the 2016 Low Dose CT Grand Challenge (Mayo Clinic; McCollough et al. 2017), abdomen,
quarter-dose image minus full-dose image. Real and simulated noise are measured alike (:func:`ldctlib.ct.nps.band_nps`):
squares of 64 pixels of soft tissue, each minus its mean and under a Hann window, periodograms averaged, then the mean
over rings of 0.06 /mm up to 0.78 /mm. Rings beyond the pixel's Nyquist frequency hold the corners of the 2-D spectrum.
Each slice's curve is divided by its mean from 0.12 /mm on, the slices are averaged, and the peak is set to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldctlib.errors import ShapeError


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


_L096 = (0.135, 0.214, 0.354, 0.475, 0.602, 0.709, 0.796, 0.857, 0.934, 0.993, 1.000, 0.836, 0.543)
_L143 = (0.132, 0.178, 0.273, 0.387, 0.490, 0.573, 0.700, 0.833, 0.938, 1.000, 0.891, 0.607, 0.421)
_L506 = (0.352, 0.549, 0.803, 1.000, 0.925, 0.756, 0.539, 0.344, 0.191, 0.087, 0.037, 0.015, 0.004)
REAL_NPS: dict[str, RealNPS] = {
    "L096": RealNPS("L096", "D45f", 3.0, 0.7421875, 10, _L096),
    "L143": RealNPS("L143", "D45f", 3.0, 0.8203125, 4, _L143),
    "L506": RealNPS("L506", "B30f", 1.0, 0.7421875, 1, _L506),
}


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
