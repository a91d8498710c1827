"""Scan geometries: parallel beam, and fan beam with a curved (equiangular) detector.

Coordinates: the image has pixel centres at x = (column - (N-1)/2) pixel and y = (row - (N-1)/2) pixel, both in mm from
the axis of rotation, y growing downwards as in DICOM. A parallel ray (theta, s) is the line x cos(theta) + y sin(theta)
= s. A fan ray (beta, gamma) is the parallel ray theta = beta + gamma, s = R sin(gamma) (Kak & Slaney, section 3.4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ldctlib.errors import GeometryError


@dataclass(frozen=True)
class _Scan:
    """What both geometries have."""

    size: int = 512  # pixels a side of the square image
    pixel_mm: float = 0.75
    n_views: int = 720
    n_bins: int = 736

    def _check(self, **least: int) -> None:
        """Raise GeometryError unless counts reach these, lengths are positive and the offset is on the detector."""
        for name, value in vars(self).items():
            if name == "offset_bins":
                fits, need = abs(value) <= self.n_bins / 2, f"within half the detector, ±{self.n_bins / 2:g} bins"
            elif name in least:
                fits, need = value >= least[name], f"at least {least[name]}"
            else:
                fits, need = value > 0, "positive"
            if not (fits and math.isfinite(value)):
                raise GeometryError(f"{name} = {value!r} cannot be scanned: it must be {need}")

    @property
    def angles_rad(self) -> list[float]:
        return [self.view_rad * i for i in range(self.n_views)]

    @property
    def view_rad(self) -> float:
        """The angle from one view to the next."""
        return self.turn_rad / self.n_views

    def on_grid(self, size: int) -> Geometry:
        """The same scan of the same field of view, on an image grid of another size."""
        return replace(self, size=size, pixel_mm=self.pixel_mm * self.size / size)


@dataclass(frozen=True)
class ParallelGeometry(_Scan):
    """Parallel beam over half a turn, or less of it."""

    bin_mm: float = 0.75
    offset_bins: float = 0.0  # shift of the detector's centre; 0.25 is a quarter-detector offset
    turn_rad: float = math.pi  # of all views; below π the arc is limited

    def __post_init__(self):
        self._check(size=8, n_views=1, n_bins=2)

    @property
    def fov_radius_mm(self) -> float:
        """Radius of the disc about the axis that every view sees whole."""
        return (self.n_bins / 2 - abs(self.offset_bins)) * self.bin_mm

    @classmethod
    def for_image(
        cls, size=512, pixel_mm=0.75, *, bins_per_pixel=1.0, n_views: int | None = None, bin_mm: float | None = None
    ) -> ParallelGeometry:
        """A detector that covers the image's diagonal, with ``bins_per_pixel`` bins to a pixel.

        Two bins to a pixel imitate scanners that sample finer than the pixel (flying focal spot, quarter
        offset): their noise reaches past the pixel's Nyquist frequency and aliases.
        """
        bin_mm = pixel_mm / bins_per_pixel if bin_mm is None else bin_mm
        n_bins = 2 * math.ceil((size * pixel_mm * math.sqrt(0.5) + 2 * pixel_mm) / bin_mm)
        return cls(size, pixel_mm, n_views or max(1, round(size * 1.4)), n_bins, bin_mm)


@dataclass(frozen=True)
class FanGeometry(_Scan):
    """Fan beam over a full turn, detector on an arc about the source.

    The defaults are close to a Siemens Definition AS+ (LDCT-and-Projection-data's headers): 736 channels of
    0.0679 degrees, source 595 mm from the axis, an angular bin of 0.70 mm at the axis.
    """

    n_views: int = 1152
    bin_rad: float = 0.0011844
    source_to_iso_mm: float = 595.0
    offset_bins: float = 0.0
    turn_rad = 2 * math.pi

    def __post_init__(self):
        self._check(size=8, n_views=4, n_bins=8)
        if self.fan_half_angle_rad >= math.pi / 2:
            fan = math.degrees(2 * self.fan_half_angle_rad)
            raise GeometryError(f"a fan of {fan:.0f} degrees opens beyond 180 degrees: use fewer or narrower bins")
        corner = self.size * self.pixel_mm * math.sqrt(0.5)
        if corner >= self.source_to_iso_mm:
            raise GeometryError(
                f"the source, {self.source_to_iso_mm:g} mm from the axis, would turn inside the image, whose corner is "
                f"{corner:.0f} mm from it: enlarge source_to_iso_mm or shrink the image"
            )

    @property
    def fan_half_angle_rad(self) -> float:
        return (self.n_bins / 2 + abs(self.offset_bins)) * self.bin_rad

    @property
    def fov_radius_mm(self) -> float:
        seen = (self.n_bins / 2 - abs(self.offset_bins)) * self.bin_rad
        return self.source_to_iso_mm * math.sin(seen)


Geometry = ParallelGeometry | FanGeometry
