"""The heart's own axes on a slice, and the distances that all organs are cut from.

The origin is the middle of the heart in the plane of the slice; x points from the right ventricle to the left one, y to
the diaphragm, z along the long axis from the apex (0) to the base. mm throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldctlib.phantom.canvas import Box, Canvas, VesselTree, ellipsoid_distance
from ldctlib.phantom.mr.tissues import ID
from ldctlib.phantom.textures import sheets

WHOLE: Box = (slice(None), slice(None))
MARGIN_MM = 12.0
"""How far about a shape its distance is computed."""
FAR = np.float32(-40.0)


@dataclass(frozen=True)
class Placement:
    """How the heart lies in the image: turned by ``angle``, its middle at ``shift`` mm from the image's centre."""

    angle: float
    shift: tuple[float, float]

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 3) from the heart's axes to the image's."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turned = np.array(points, float)
        turned[:, 0] = cos * points[:, 0] - sin * points[:, 1] + self.shift[0]
        turned[:, 1] = sin * points[:, 0] + cos * points[:, 1] + self.shift[1]
        return turned

    def tree(self, tree: VesselTree) -> VesselTree:
        """A tree of vessels in the image's axes."""
        return VesselTree(self.to_image(tree.a), self.to_image(tree.b), tree.ra, tree.rb)


class Frame:
    """A slice's pixels in the heart's axes: ``x``, ``y`` (H, W), and z; what is far from a shape costs nothing."""

    def __init__(self, canvas: Canvas, placement: Placement):
        self.canvas, self.placement = canvas, placement
        cos, sin = np.float32(np.cos(placement.angle)), np.float32(np.sin(placement.angle))
        x = canvas.x[None, :] - np.float32(placement.shift[0])
        y = canvas.y[:, None] - np.float32(placement.shift[1])
        self.x, self.y, self.z = cos * x + sin * y, cos * y - sin * x, canvas.z_mm

    def box(self, centre, reach_mm: float) -> Box:
        """The pixels within ``reach_mm`` of a point of the heart's axes."""
        px, py, _ = self.placement.to_image(np.array([[*centre[:2], 0.0]]))[0]
        return self.canvas.box(px - reach_mm, px + reach_mm, py - reach_mm, py + reach_mm)

    def ellipse(self, centre, semi_axes, angle: float = 0.0) -> np.ndarray:
        """Signed distance (mm) inside an ellipse of this slice, :data:`FAR` where it is far."""
        return self.ellipsoid((*centre, self.z), (*semi_axes, 1e3), angle)

    def ellipsoid(self, centre, semi_axes, angle: float = 0.0) -> np.ndarray:
        """Signed distance (mm) inside an ellipsoid, :data:`FAR` where it is far."""
        out = np.full(self.x.shape, FAR, np.float32)
        if abs(self.z - centre[2]) < semi_axes[2] + MARGIN_MM:
            box = self.box(centre, max(semi_axes[:2]) + MARGIN_MM)
            out[box] = ellipsoid_distance(self.x[box], self.y[box], self.z, centre, semi_axes, angle)
        return out

    def tube(self, path: np.ndarray, radius: float) -> np.ndarray:
        """Signed distance (mm) to a tube along ``path`` (n, 3), :data:`FAR` where it is far."""
        out = np.full(self.x.shape, FAR, np.float32)
        for point in path[np.abs(path[:, 2] - self.z) < radius + 3]:
            box = self.box(point, radius + MARGIN_MM)
            dx, dy = self.x[box] - np.float32(point[0]), self.y[box] - np.float32(point[1])
            ball = radius - np.sqrt(dx * dx + dy * dy + np.float32((self.z - point[2]) ** 2))
            np.maximum(out[box], ball, out=out[box])
        return out

    def paint(self, distance_mm: np.ndarray, value, label: str | None = None) -> None:
        """Fill a shape given by its signed distance; ``value`` is a number or a map."""
        self.blend(self.canvas.coverage(distance_mm), value, label)

    def blend(self, coverage: np.ndarray, value, label: str | None = None) -> None:
        """Mix a value into the slice, weighted by coverage; label what is half covered."""
        rows, columns = (np.flatnonzero(coverage.any(axis)) for axis in (1, 0))
        if rows.size:
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            value = value[box] if isinstance(value, np.ndarray) else np.float32(value)
            self.canvas.blend(box, coverage[box], value, None if label is None else ID[label])

    def coverage(self, distance_mm: np.ndarray) -> np.ndarray:
        return self.canvas.coverage(distance_mm)

    def texture(self, field: np.ndarray, voxel_mm: float, offset) -> np.ndarray:
        """A random field in space over the slice, (H, W)."""
        return self.canvas.sample(field, WHOLE, voxel_mm, offset)

    def lines(self, seed: int, voxel_mm: float, offset, half_width_mm) -> np.ndarray:
        """Coverage of thin curved sheets (septa, strands), cut by the slice."""
        return self.canvas.line_coverage(
            self.texture(sheets(seed), voxel_mm, offset) * np.float32(voxel_mm), half_width_mm
        )

    def twigs(self, seeds: tuple[int, int], voxel_mm: float, offset, radius_mm) -> np.ndarray:
        """Coverage of small vessels: where two sheets meet."""
        a, b = (self.texture(sheets(seed), voxel_mm, offset) for seed in seeds)
        return self.canvas.line_coverage(np.hypot(a, b) * np.float32(voxel_mm), radius_mm)


def union(a: np.ndarray, b: np.ndarray, blend_mm: float = 4.0) -> np.ndarray:
    """The distance inside either of two shapes, their meeting rounded over ``blend_mm``."""
    share = np.clip(0.5 + (a - b) / (2 * blend_mm), 0, 1)
    return b + share * (a - b) + share * (1 - share) * np.float32(blend_mm)
