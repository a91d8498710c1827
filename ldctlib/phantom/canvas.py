"""A canvas that paints antialiased shapes: ellipsoids, tubes, capsules and branching vessels, cut by a slice.

Everything is given in millimetres, so that a finer grid shows the same shapes in more detail. Shapes come as
a signed distance (mm, positive inside); a pixel's coverage is ``clip(distance / pixel + 1/2, 0, 1)``.
"""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.textures import sample

Box = tuple[slice, slice]


class Canvas:
    """One slice being drawn: ``values`` (HU, or an MR signal), ``labels`` (size, size), pixel centres ``x``, ``y``.

    The origin is the image centre; x grows to the image's right (the patient's left), y downwards (posterior).
    """

    def __init__(self, size: int, pixel_mm: float, z_mm: float, background: float):
        self.size, self.pixel_mm, self.z_mm = size, pixel_mm, z_mm
        self.x = ((np.arange(size) - (size - 1) / 2) * pixel_mm).astype(np.float32)
        self.y = self.x
        self.values = np.full((size, size), background, np.float32)
        self.labels = np.zeros((size, size), np.uint8)

    def box(self, x0: float, x1: float, y0: float, y1: float) -> Box:
        """The pixels within [x0, x1] × [y0, y1] mm and a one-pixel rim; the nearest ones if outside."""
        half, p, last = (self.size - 1) / 2, self.pixel_mm, self.size - 1
        i0, i1, j0, j1 = (int(np.floor(v / p + half)) for v in (x0, x1, y0, y1))
        i0, j0 = min(max(i0 - 1, 0), last), min(max(j0 - 1, 0), last)
        return slice(j0, min(max(j1 + 3, j0 + 1), last + 1)), slice(i0, min(max(i1 + 3, i0 + 1), last + 1))

    def grid(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of a box, broadcastable: x (1, w), y (h, 1)."""
        return self.x[None, box[1]], self.y[box[0], None]

    def sample(self, field: np.ndarray, box: Box, voxel_mm: float, offset=(0.0, 0.0, 0.0)) -> np.ndarray:
        return sample(field, self.x[box[1]], self.y[box[0]], self.z_mm, voxel_mm, offset)

    def coverage(self, distance_mm: np.ndarray) -> np.ndarray:
        """Fraction of each pixel inside a shape, from its signed distance."""
        c = distance_mm * np.float32(1 / self.pixel_mm)
        c += np.float32(0.5)
        return np.clip(c, 0, 1, out=c)

    def line_coverage(self, distance_mm: np.ndarray, half_width_mm) -> np.ndarray:
        """Fraction of each pixel inside a line or tube; a line keeps its mass when thinner than a pixel."""
        d = np.abs(distance_mm)
        return self.coverage(half_width_mm - d) - self.coverage(-half_width_mm - d)

    def blend(self, box: Box, coverage: np.ndarray, value, label: int | None = None) -> None:
        """Mix a value (number or map) into a box, weighted by coverage in [0, 1]; label what is half covered."""
        under = self.values[box]
        under += coverage * (value - under)
        if label is not None:
            self.labels[box][coverage >= 0.5] = label

    def paint(self, box: Box, distance_mm: np.ndarray, value, label: int | None = None) -> np.ndarray:
        """Fill a shape given by its signed distance; returns the coverage."""
        c = self.coverage(distance_mm)
        self.blend(box, c, value, label)
        return c


def smooth_path(knots, step: float, rng: np.random.Generator | None = None, wander: float = 0.0) -> np.ndarray:
    """A path (n, 3) through knots (Catmull–Rom), a point every ``step`` mm; the knots moved by ``wander`` mm."""
    k = np.asarray(knots, float)
    if rng is not None:
        k = k + rng.normal(0, wander, k.shape)
    p = np.concatenate([[2 * k[0] - k[1]], k, [2 * k[-1] - k[-2]]])
    t = np.linspace(0, 1, 24, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    fine = np.concatenate([*pieces, k[-1:]])
    s = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(fine, axis=0), axis=1))])
    at = np.linspace(0, s[-1], max(3, int(s[-1] / step) + 1))
    return np.stack([np.interp(at, s, fine[:, i]) for i in range(3)], axis=1)


def ellipsoid_distance(x, y, z, centre, semi_axes, angle: float = 0.0) -> np.ndarray:
    """Signed distance (mm) inside an ellipsoid turned by ``angle`` in the slice's plane.

    To first order, k(1 - k)/|k grad k| with k = 1 on the surface: exact there.
    """
    (cx, cy, cz), (a, b, c) = centre, semi_axes
    cos, sin = np.cos(angle), np.sin(angle)
    x, y, w2 = x - np.float32(cx), y - np.float32(cy), ((z - cz) / c) ** 2
    p = x * np.float32(cos / a) + y * np.float32(sin / a)
    q = y * np.float32(cos / b) - x * np.float32(sin / b)
    pp, qq = p * p, q * q
    k = np.sqrt(pp + qq + np.float32(w2 + 1e-6))
    slope2 = pp * np.float32(1 / a**2) + qq * np.float32(1 / b**2) + np.float32(w2 / c**2 + 1e-9)
    return k * (1 - k) / np.sqrt(slope2)


def ellipsoid(canvas: Canvas, centre, semi_axes, angle: float = 0.0, margin: float = 0.0):
    """(box, :func:`ellipsoid_distance`), or None if the slice misses it; ``margin`` (mm) widens the box."""
    (cx, cy, cz), (a, b, c) = centre, semi_axes
    if abs(canvas.z_mm - cz) > c + margin:
        return None
    cos, sin = np.cos(angle), np.sin(angle)
    ex, ey = np.hypot(a * cos, b * sin) + margin, np.hypot(a * sin, b * cos) + margin
    box = canvas.box(cx - ex, cx + ex, cy - ey, cy + ey)
    return box, ellipsoid_distance(*canvas.grid(box), canvas.z_mm, centre, semi_axes, angle)


class Tube:
    """A tube of closely set balls: points (n, 3), radii (n,).

    Balls should be set closer than half a radius: the scallops are then below 3 % of the radius.
    """

    def __init__(self, points: np.ndarray, radii: np.ndarray):
        self.points, self.radii = points.astype(np.float32), np.asarray(radii, np.float32)
        step = np.gradient(points, axis=0)
        self.tangents = (step / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-6)).astype(np.float32)
        gaps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        self.arc = np.concatenate([[0], np.cumsum(gaps)]).astype(np.float32)
        self.low, self.high = float((points[:, 2] - radii).min()), float((points[:, 2] + radii).max())

    def cut(self, canvas: Canvas, rim: float = 4.0):
        """(box, signed distance mm down to -rim, arc length mm), or None if the slice misses the tube."""
        z = np.float32(canvas.z_mm)
        if not self.low < z < self.high:
            return None
        near = np.flatnonzero(np.abs(self.points[:, 2] - z) < self.radii)
        if near.size == 0:
            return None
        c, r = self.points[near], self.radii[near]
        ext = np.sqrt(np.maximum(r**2 - (c[:, 2] - z) ** 2, 0)) + rim
        lo, hi = (c[:, :2] - ext[:, None]).min(0), (c[:, :2] + ext[:, None]).max(0)
        box = canvas.box(lo[0], hi[0], lo[1], hi[1])
        x, y = canvas.x[box[1]], canvas.y[box[0], None]
        d = np.full((y.shape[0], x.size), -rim, np.float32)
        arc = np.zeros_like(d)
        j0, i0 = box[0].start, box[1].start
        for i, ball, radius, e in zip(near, c, r, ext, strict=True):
            rows, columns = canvas.box(ball[0] - e, ball[0] + e, ball[1] - e, ball[1] + e)
            inner = slice(max(rows.start - j0, 0), rows.stop - j0), slice(max(columns.start - i0, 0), columns.stop - i0)
            dx, dy, dz = x[inner[1]] - ball[0], y[inner[0]] - ball[1], z - ball[2]
            new = radius - np.sqrt(dx * dx + (dy * dy + dz * dz))
            old, t = d[inner], self.tangents[i]
            np.copyto(arc[inner], dx * t[0] + (dy * t[1] + (dz * t[2] + self.arc[i])), where=new > old)
            np.maximum(old, new, out=old)
        return box, d, arc


def capsules(canvas: Canvas, box: Box, ends_a, ends_b, radii, *, z_mm: float | None = None) -> np.ndarray:
    """Signed distance (mm) to a union of capsules (n, 3)–(n, 3) with radii (n,), over a box, cut at z_mm."""
    x, y = canvas.grid(box)
    z = np.float32(canvas.z_mm if z_mm is None else z_mm)
    out = np.full((box[0].stop - box[0].start, box[1].stop - box[1].start), -50.0, np.float32)
    for a, b, r in zip(np.float32(ends_a), np.float32(ends_b), np.float32(radii), strict=True):
        if min(a[2], b[2]) - r - 2 > z or max(a[2], b[2]) + r + 2 < z:
            continue
        u = b - a
        t = (x - a[0]) * u[0] + ((y - a[1]) * u[1] + (z - a[2]) * u[2])
        t *= 1 / max(float(u @ u), 1e-6)
        np.clip(t, 0, 1, out=t)
        dx, dy, dz = x - a[0] - t * u[0], y - a[1] - t * u[1], z - a[2] - t * u[2]
        np.maximum(out, r - np.sqrt(dx * dx + dy * dy + dz * dz), out=out)
    return out


class VesselTree:
    """Tapered branches in space: segments a–b (n, 3) with end radii, drawn together, clipped by a mask if given."""

    def __init__(self, a, b, ra, rb):
        self.a, self.b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        self.ra, self.rb = np.asarray(ra, np.float32), np.asarray(rb, np.float32)
        reach = np.maximum(self.ra, self.rb)
        self.low = np.minimum(self.a[:, 2], self.b[:, 2]) - reach
        self.high = np.maximum(self.a[:, 2], self.b[:, 2]) + reach

    @classmethod
    def grow(
        cls, rng, start, direction, *, radius, length, levels, spread=0.6, taper=0.75, shrink=0.8, step=5.0, wander=0.25
    ) -> VesselTree:
        """A random binary tree. Radii fall by ``taper`` at forks (Murray's law for equal daughters gives 0.79)."""
        segs: list[tuple] = []

        def branch(p, d, r, left, level):
            n = max(2, int(round(left / step)))
            for i in range(n):
                d = d + rng.normal(0, wander, 3)
                d = d / np.linalg.norm(d)
                q = p + d * (left / n)
                segs.append((p, q, r * (1 - 0.25 * i / n), r * (1 - 0.25 * (i + 1) / n)))
                p = q
            if level == 0:
                return
            side = np.cross(d, rng.normal(size=3))
            side /= np.linalg.norm(side)
            fork = rng.uniform(0.6, 1.3) * spread
            for sign, share in ((1, rng.uniform(0.85, 1.1)), (-1, rng.uniform(0.7, 1.0))):
                e = d * np.cos(fork) + sign * side * np.sin(fork)
                branch(p, e, r * taper * share, left * shrink * rng.uniform(0.7, 1.3), level - 1)

        direction = np.asarray(direction, float)
        branch(np.asarray(start, float), direction / np.linalg.norm(direction), radius, length, levels)
        return cls(*zip(*segs, strict=True))

    @classmethod
    def along(cls, points, radii) -> VesselTree:
        points, radii = np.asarray(points, float), np.asarray(radii, float)
        return cls(points[:-1], points[1:], radii[:-1], radii[1:])

    @classmethod
    def join(cls, trees) -> VesselTree:
        return cls(*(np.concatenate([getattr(t, k) for t in trees]) for k in ("a", "b", "ra", "rb")))

    def draw(self, canvas: Canvas, value: float, label: int | None, *, mask: np.ndarray | None = None) -> None:
        """Paint the branches that the slice cuts; ``mask`` (size, size) in [0, 1] clips them."""
        z, p = np.float32(canvas.z_mm), canvas.pixel_mm
        hit = np.flatnonzero((self.low < z) & (self.high > z))
        for i in hit:
            a, b, ra, rb = self.a[i], self.b[i], self.ra[i], self.rb[i]
            # only the part of the segment near the plane can show
            u = b - a
            r = max(ra, rb)
            if abs(u[2]) > 1e-3:
                t0, t1 = sorted(((z - r - 1 - a[2]) / u[2], (z + r + 1 - a[2]) / u[2]))
                t0, t1 = min(max(t0, 0.0), 1.0), min(max(t1, 0.0), 1.0)
            else:
                t0, t1 = 0.0, 1.0
            e0, e1 = a + t0 * u, a + t1 * u
            m = r + p
            box = canvas.box(min(e0[0], e1[0]) - m, max(e0[0], e1[0]) + m, min(e0[1], e1[1]) - m, max(e0[1], e1[1]) + m)
            x, y = canvas.grid(box)
            x, y, zz = x - a[0], y - a[1], z - a[2]
            t = x * u[0] + (y * u[1] + zz * u[2])
            t *= 1 / max(float(u @ u), 1e-6)
            np.clip(t, 0, 1, out=t)
            dx, dy, dz = x - t * u[0], y - t * u[1], zz - t * u[2]
            c = canvas.line_coverage(np.sqrt(dx * dx + dy * dy + dz * dz), ra + (rb - ra) * t)
            if mask is not None:
                c *= mask[box]
            canvas.blend(box, c, value, label)
