"""The heart: four chambers and the left ventricle's wall in fat within the pericardium, coronary arteries."""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.canvas import Canvas, VesselTree, smooth_path
from ldctlib.phantom.organs import ID
from ldctlib.phantom.textures import swell
from ldctlib.phantom.thorax.wall import smooth_max


class Oval:
    """An ellipsoid with any axes: centre (3,), semi-axes (3,), and the directions of the first two of them."""

    def __init__(self, centre, semi_axes, first, second):
        a = np.array(first, float) / np.linalg.norm(first)
        b = np.array(second, float) - np.dot(second, a) * a
        b /= np.linalg.norm(b)
        axes = np.stack([a, b, np.cross(a, b)])
        self.centre, self.semi_axes = np.asarray(centre, float), np.asarray(semi_axes, float)
        self.matrix = axes / self.semi_axes[:, None]
        self.reach = np.sqrt(((axes * self.semi_axes[:, None]) ** 2).sum(0))  # half the box that holds it

    def distance(self, x, y, z: float) -> np.ndarray:
        """Signed distance (mm), first order, exact on the surface."""
        m = self.matrix.astype(np.float32)
        dx, dy = x - np.float32(self.centre[0]), y - np.float32(self.centre[1])
        dz = np.float32(z - self.centre[2])
        u = [r[0] * dx + (r[1] * dy + r[2] * dz) for r in m]
        k = np.sqrt(u[0] ** 2 + u[1] ** 2 + u[2] ** 2 + np.float32(1e-6))
        g = sum((m[0, i] * u[0] + m[1, i] * u[1] + m[2, i] * u[2]) ** 2 for i in range(3))
        return k * (1 - k) / np.sqrt(g + np.float32(1e-9))


class Heart:
    """One heart. ``place`` turns (x, share of the way from sternum to spine, z) into mm."""

    def __init__(self, rng: np.random.Generator, place, scale: float):
        u = rng.uniform
        g = scale * u(0.92, 1.15)
        base, apex = place(16, 0.56, -66), place(u(62, 72), u(0.2, 0.3), u(-108, -98))
        long = (apex - base) / np.linalg.norm(apex - base)
        middle, up = base + 0.42 * (apex - base), (0.2, -0.4, 1.0)
        self.wall_mm = u(8, 12) if rng.random() < 0.85 else u(12, 17)
        left = np.array([54, 32, 34]) * g
        self.left = Oval(middle, left, long, up)
        self.cavity = Oval(middle - 3 * long, left - self.wall_mm, long, up)
        self.right = Oval(place(8, 0.3, -84), np.array([48, 24, 32]) * g, long + (0.2, 0.2, 0), (0.3, -1, 0.2))
        self.right_atrium = Oval(place(-34, 0.53, -74), np.array([32, 24, 28]) * g, (0, 0.1, 1), (1, 0.3, 0))
        self.left_atrium = Oval(place(3, 0.78, -54), np.array([34, 19, 25]) * g, (1, 0, -0.15), (0, 1, 0))
        self.parts = [self.left, self.right, self.right_atrium, self.left_atrium]
        self.fat_mm, self.pericardium_mm = u(2.0, 7.0), u(0.4, 0.9)
        self.effusion_mm = u(5, 16) if rng.random() < 0.1 else 0.0
        self.trabeculae = u(1.5, 3.5)
        self.shift = rng.uniform(0, 96, (3, 3))
        self._place_coronaries(rng, place)
        self.low = min(p.centre[2] - p.reach[2] for p in self.parts) - 22
        self.high = max(p.centre[2] + p.reach[2] for p in self.parts) + 22

    def _place_coronaries(self, rng, place):
        """Along the grooves; calcified in a third of the patients."""
        u = rng.uniform

        def on_surface(x, share, z):
            """The point moved out of the chambers, to just over the nearest surface."""
            p = place(x, share, z)
            inner = place(12, 0.5, -78)
            for _ in range(60):
                d = max(float(o.distance(*np.float32([[p[0]], [p[1]]]), p[2])[0]) for o in self.parts)
                if abs(d + 2.2) < 0.7:
                    break
                p = p + (p - inner) / np.linalg.norm(p - inner) * (d + 2.2) * 0.7
            return p

        courses = [
            [(-6, 0.38, -54), (-16, 0.32, -62), (-24, 0.26, -76), (-20, 0.28, -95), (-8, 0.45, -106)],
            [(14, 0.44, -54), (28, 0.34, -62), (40, 0.22, -76), (54, 0.16, -92), (66, 0.18, -106)],
            [(14, 0.44, -54), (34, 0.52, -58), (50, 0.62, -66), (54, 0.72, -80)],
        ]
        paths = [smooth_path([on_surface(*k) for k in course], 3) for course in courses]
        self.coronaries = VesselTree.join([VesselTree.along(p, np.linspace(1.9, 1.1, len(p))) for p in paths])
        self.calcified = []
        if rng.random() < 0.35:
            for _ in range(rng.integers(2, 9)):
                path = paths[rng.integers(3)]
                i = rng.integers(0, int(0.7 * len(path)))
                piece = path[i : i + rng.integers(2, 5)]
                self.calcified.append(VesselTree.along(piece, np.full(len(piece), u(0.7, 1.6))))

    def distance(self, canvas: Canvas):
        """(box, distance inside the pericardium, distances of the parts), or None if the slice misses it."""
        z = canvas.z_mm
        if not self.low < z < self.high:
            return None
        lo = np.min([p.centre - p.reach for p in self.parts], axis=0) - 26
        hi = np.max([p.centre + p.reach for p in self.parts], axis=0) + 26
        box = canvas.box(lo[0], hi[0], lo[1], hi[1])
        x, y = canvas.grid(box)
        bend = canvas.sample(swell(0), box, 3.2, self.shift[0])
        parts = [p.distance(x, y, z) + 1.3 * bend for p in self.parts]
        sac = parts[0]
        for part in parts[1:]:
            sac = smooth_max(sac, part, 9)
        sac = sac + self.fat_mm + 2.5 * np.maximum(canvas.sample(swell(2), box, 5.0, self.shift[1]), -1)
        if self.effusion_mm:  # fluid gathers behind
            sac = sac + self.effusion_mm * (0.55 + 0.45 * np.clip((y - np.float32(self.left.centre[1])) / 40, -1, 1))
        return box, sac, parts, bend

    def draw(self, canvas: Canvas, shape, limit: np.ndarray, hu: dict) -> None:
        """``limit`` : signed distance inside what the heart may fill, on the shape's box."""
        box, sac, (left, right, right_atrium, left_atrium), bend = shape
        x, y = canvas.grid(box)
        z = canvas.z_mm
        sac = np.minimum(sac, limit - 1)
        inside = canvas.coverage(sac)
        canvas.blend(box, canvas.line_coverage(sac, self.pericardium_mm) * 0.8, hu["muscle"] - 10)
        whole = canvas.coverage(sac - self.pericardium_mm)
        canvas.blend(box, whole, hu["fat"], ID["mediastinal fat"])
        if self.effusion_mm:
            heart = np.maximum(np.maximum(left, right), np.maximum(right_atrium, left_atrium)) + self.fat_mm
            canvas.blend(box, whole * canvas.coverage(-heart), hu["pericardial fluid"], ID["pericardial effusion"])
        soft = canvas.sample(swell(3), box, 1.0, self.shift[2])
        limit = np.minimum(sac - 1.2, limit)

        def fill(d, value, label):
            canvas.paint(box, np.minimum(d, limit), value, ID[label])

        fill(right_atrium, hu["myocardium"], "myocardium")
        fill(right_atrium - 2, hu["right heart"], "right atrium")
        fill(left_atrium, hu["myocardium"], "myocardium")
        fill(left_atrium - 2, hu["left heart"], "left atrium")
        fill(right, hu["myocardium"], "myocardium")
        fill(right - 3 - 0.7 * self.trabeculae * np.maximum(soft, 0), hu["right heart"], "right ventricle")
        fill(left, hu["myocardium"], "myocardium")
        cavity = self.cavity.distance(x, y, z) + bend - self.trabeculae * np.maximum(soft, 0)
        fill(cavity, hu["left heart"], "left ventricle")
        mask = np.zeros_like(canvas.values)
        mask[box] = inside
        self.coronaries.draw(canvas, 0.75 * hu["aorta"] + 0.25 * hu["muscle"], ID["coronary artery"], mask=mask)
        for tree in self.calcified:
            tree.draw(canvas, hu["plaque"], ID["plaque"], mask=mask)
