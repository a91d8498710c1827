"""Units and ranges: Hounsfield units, attenuation, model ranges, display windows.

Every conversion is affine, inverts exactly, and never clips: clipping is an act of display
(:meth:`Window.to_display`) and of nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from ldctlib.errors import ParameterError

MU_WATER_PER_MM = 0.0192
"""Linear attenuation of water at 70 keV, about the effective energy of a 120 kVp beam behind a patient
(NIST XCOM: 0.1929 cm²/g at 70 keV; Hubbell & Seltzer 1996)."""

AIR_HU = -1000.0
"""HU of vacuum, by the definition of the scale; room air differs from it by about 1 HU."""


def hu_to_mu(hu, mu_water_per_mm: float = MU_WATER_PER_MM):
    """Hounsfield units to linear attenuation in 1/mm: mu = mu_water (1 + HU / 1000)."""
    return (hu + 1000.0) * (mu_water_per_mm / 1000.0)


def mu_to_hu(mu_per_mm, mu_water_per_mm: float = MU_WATER_PER_MM):
    """Linear attenuation in 1/mm to Hounsfield units, the inverse of :func:`hu_to_mu`."""
    return mu_per_mm * (1000.0 / mu_water_per_mm) - 1000.0


def delta_mu_to_hu(delta_mu_per_mm, mu_water_per_mm: float = MU_WATER_PER_MM):
    """A difference of attenuations (a noise, a standard deviation) in 1/mm to a difference in Hounsfield units."""
    return delta_mu_per_mm * (1000.0 / mu_water_per_mm)


@dataclass(frozen=True)
class Range:
    """A physical interval that a model sees as [-1, 1] or [0, 1]: an exact affine map, no clipping.

    >>> Range(-1024.0, 3072.0).to_model(1024.0)
    0.0
    """

    low: float
    high: float
    model_low: float = -1.0
    model_high: float = 1.0

    def __post_init__(self):
        if not self.high > self.low:
            raise ParameterError(f"Range needs high > low, got low={self.low}, high={self.high}")
        if (self.model_low, self.model_high) not in ((-1.0, 1.0), (0.0, 1.0)):
            raise ParameterError(f"a model's range is [-1, 1] or [0, 1], got [{self.model_low}, {self.model_high}]")

    @property
    def scale(self) -> float:
        """Model units per physical unit; multiply a physical std by it."""
        return (self.model_high - self.model_low) / (self.high - self.low)

    def to_model(self, physical):
        """Physical values to model values."""
        return (physical - self.low) * self.scale + self.model_low

    def from_model(self, model):
        """Model values to physical values."""
        return (model - self.model_low) / self.scale + self.low


@dataclass(frozen=True)
class Window:
    """A display window: ``level`` is its centre, ``width`` its full width, in HU unless ``unit`` says otherwise."""

    level: float
    width: float
    unit: str = "HU"

    def __post_init__(self):
        if not self.width > 0:
            raise ParameterError(f"Window needs width > 0, got {self.width}")

    @property
    def low(self) -> float:
        return self.level - self.width / 2

    @property
    def high(self) -> float:
        return self.level + self.width / 2

    def to_display(self, hu):
        """HU to [0, 1], clipped: for display, and for metrics that say that they clip."""
        scaled = (hu - self.low) / self.width
        return scaled.clip(0.0, 1.0)

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}] {self.unit}"


SOFT_TISSUE = Window(40, 400)
"""Abdominal soft tissue, [-160, 240] HU: the window of the Mayo challenge's published figures."""
ABDOMEN = Window(50, 400)
LIVER = Window(90, 150)
LUNG = Window(-600, 1500)
BONE = Window(400, 1800)
