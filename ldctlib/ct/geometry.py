"""Scan geometries: parallel beam, and fan beam with a curved (equiangular) detector.

Coordinates: the image has pixel centres at x = (column - (N-1)/2) pixel and y = (row - (N-1)/2) pixel, both in mm from
the axis of rotation, y growing downwards as in DICOM. A parallel ray (theta, s) is the line x cos(theta) + y sin(theta)
= s. A fan ray (beta, gamma) is the parallel ray theta = beta + gamma, s = R sin(gamma) (Kak & Slaney, section 3.4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ldctlib.errors import GeometryError


def _check(name: str, value, condition: bool, need: str) -> None:
    if not (condition and math.isfinite(value)):
        raise GeometryError(f"{name} = {value!r} cannot be scanned: it must be {need}")


@dataclass(frozen=True)
class ParallelGeometry:
    """Parallel beam over half a turn."""

    size: int = 512  # pixels a side of the square image
    pixel_mm: float = 0.75
    n_views: int = 720  # over pi
    n_bins: int = 736
    bin_mm: float = 0.75
    offset_bins: float = 0.0  # shift of the detector's centre; 0.25 is a quarter-detector offset

    def __post_init__(self):
        _check("size", self.size, self.size >= 8, "at least 8 pixels")
        _check("pixel_mm", self.pixel_mm, self.pixel_mm > 0, "positive, in mm")
        _check("n_views", self.n_views, self.n_views >= 1, "at least 1")
        _check("n_bins", self.n_bins, self.n_bins >= 2, "at least 2")
        _check("bin_mm", self.bin_mm, self.bin_mm > 0, "positive, in mm")
        _check(
            "offset_bins",
            self.offset_bins,
            abs(self.offset_bins) <= self.n_bins / 2,
            f"within half the detector, ±{self.n_bins / 2:g} bins",
        )

    @property
    def fov_radius_mm(self) -> float:
        """Radius of the disc about the axis that every view sees whole."""
        return (self.n_bins / 2 - abs(self.offset_bins)) * self.bin_mm

    @property
    def angles_rad(self) -> list[float]:
        return [math.pi * i / self.n_views for i in range(self.n_views)]

    def on_grid(self, size: int) -> ParallelGeometry:
        """The same scan of the same field of view, on an image grid of another size."""
        return replace(self, size=size, pixel_mm=self.pixel_mm * self.size / size)

    @classmethod
    def for_image(
        cls,
        size: int = 512,
        pixel_mm: float = 0.75,
        *,
        bins_per_pixel: float = 1.0,
        n_views: int | None = None,
        bin_mm: float | None = None,
    ) -> ParallelGeometry:
        """A detector that covers the image's diagonal, with ``bins_per_pixel`` bins to a pixel.

        Two bins to a pixel imitate scanners that sample finer than the pixel (flying focal spot, quarter
        offset): their noise reaches past the pixel's Nyquist frequency and aliases.
        """
        bin_mm = pixel_mm / bins_per_pixel if bin_mm is None else bin_mm
        n_bins = 2 * math.ceil((size * pixel_mm * math.sqrt(0.5) + 2 * pixel_mm) / bin_mm)
        return cls(size, pixel_mm, n_views or max(1, round(size * 1.4)), n_bins, bin_mm)


@dataclass(frozen=True)
class FanGeometry:
    """Fan beam over a full turn, detector on an arc about the source.

    The defaults are close to a Siemens Definition AS+ (LDCT-and-Projection-data's headers): 736 channels of
    0.0679 degrees, source 595 mm from the axis, an angular bin of 0.70 mm at the axis.
    """

    size: int = 512
    pixel_mm: float = 0.75
    n_views: int = 1152  # over 2 pi
    n_bins: int = 736
    bin_rad: float = 0.0011844
    source_to_iso_mm: float = 595.0
    offset_bins: float = 0.0

    def __post_init__(self):
        _check("size", self.size, self.size >= 8, "at least 8 pixels")
        _check("pixel_mm", self.pixel_mm, self.pixel_mm > 0, "positive, in mm")
        _check("n_views", self.n_views, self.n_views >= 4, "at least 4")
        _check("n_bins", self.n_bins, self.n_bins >= 8, "at least 8")
        _check("bin_rad", self.bin_rad, self.bin_rad > 0, "positive, in radians")
        _check("source_to_iso_mm", self.source_to_iso_mm, self.source_to_iso_mm > 0, "positive, in mm")
        _check(
            "offset_bins",
            self.offset_bins,
            abs(self.offset_bins) <= self.n_bins / 2,
            f"within half the detector, ±{self.n_bins / 2:g} bins",
        )
        if self.fan_half_angle_rad >= math.pi / 2:
            raise GeometryError(
                f"a fan of {math.degrees(2 * self.fan_half_angle_rad):.0f} degrees opens beyond 180 degrees: "
                "use fewer or narrower bins"
            )
        corner = self.size * self.pixel_mm * math.sqrt(0.5)
        if corner >= self.source_to_iso_mm:
            raise GeometryError(
                f"the source, {self.source_to_iso_mm:g} mm from the axis, would turn inside the image, whose "
                f"corner is {corner:.0f} mm from it: enlarge source_to_iso_mm or shrink the image"
            )

    @property
    def fan_half_angle_rad(self) -> float:
        return (self.n_bins / 2 + abs(self.offset_bins)) * self.bin_rad

    @property
    def fov_radius_mm(self) -> float:
        seen = (self.n_bins / 2 - abs(self.offset_bins)) * self.bin_rad
        return self.source_to_iso_mm * math.sin(seen)

    @property
    def angles_rad(self) -> list[float]:
        return [2 * math.pi * i / self.n_views for i in range(self.n_views)]

    def on_grid(self, size: int) -> FanGeometry:
        """The same scan of the same field of view, on an image grid of another size."""
        return replace(self, size=size, pixel_mm=self.pixel_mm * self.size / size)


Geometry = ParallelGeometry | FanGeometry
