"""Lungs: parenchyma, fissures, arteries beside bronchi, veins; the diaphragm's domes bound them below."""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.canvas import Canvas, VesselTree, ellipsoid_distance
from ldctlib.phantom.organs import ID
from ldctlib.phantom.textures import cloud, sheets, swell
from ldctlib.phantom.thorax.wall import ThoraxFrame, ThoraxWall, smooth_max


class Diaphragm:
    """Two domes and the lower part between them that bears the heart: half ellipsoids."""

    def __init__(self, rng: np.random.Generator, wall: ThoraxWall):
        u, s, d = rng.uniform, wall.scale, wall.deep
        right = u(-108, -88)
        self.tops = {-1: right, 1: right - u(4, 16)}
        height = u(62, 80)
        self.domes = [
            ((side * 60 * s, u(-0.22, -0.1) * d, top - height), (74 * s, 1.06 * d, height))
            for side, top in self.tops.items()
        ]
        self.domes.append(((4 * s, -0.34 * d, self.tops[1] - u(6, 14) - height), (72 * s, 0.72 * d, height)))

    def inside(self, x, y, z: float) -> np.ndarray | None:
        """Signed distance (mm) below the diaphragm; None where it is far above."""
        if z > max(self.tops.values()) + 2:
            return None
        d = None
        for centre, axes in self.domes:
            part = ellipsoid_distance(x, y, max(z, centre[2]), centre, axes)
            d = part if d is None else smooth_max(d, part, 8)
        return d


class Lungs:
    """Both lungs of a patient, with their trees."""

    def __init__(self, rng: np.random.Generator, wall: ThoraxWall, diaphragm: Diaphragm, place):
        u, s = rng.uniform, wall.scale
        self.wall, self.diaphragm, self.scale = wall, diaphragm, s
        self.gradient, self.haze, self.twig_mm = u(25, 70), u(8, 16), u(0.35, 0.7)
        self.oblique = {side: (u(-52, -38), u(0.75, 1.0), u(-0.002, 0.002), side * 70 * s) for side in (-1, 1)}
        self.horizontal = u(-42, -28), u(0.001, 0.003)
        self.shift = rng.uniform(0, 96, (6, 3))
        self.arteries, self.bronchi, self.veins = (VesselTree.join(t) for t in self._trees(rng, place))

    def room(self, points: np.ndarray) -> np.ndarray:
        """How far (mm) points (n, 3) lie inside a lung, roughly: from wall, mediastinum and diaphragm."""
        x, y, z = points.T
        before = np.clip((24 * self.scale - y) / 12, 0, 1)  # before the oesophagus: heart, and great vessels above
        heart = np.interp(z, [-125, -100, -50, -25], [0, 1, 1, 0]) * np.where(x > 0, 56, 36)
        middle = 28 + before * (heart + np.interp(z, [25, 50], [0, 18]))
        wall = self.wall.cage_radius(z, np.arctan2(y, x)) - np.hypot(x, y)
        domes = []
        for (cx, cy, cz), (a, b, c) in self.diaphragm.domes:
            k = np.sqrt(((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 + (np.maximum(z - cz, 0) / c) ** 2)
            domes.append((k - 1) * c)
        return np.minimum.reduce([wall, np.abs(x) - middle * self.scale, *domes])

    def anywhere(self, rng: np.random.Generator, margin: float, low=(-999, -999, -999), high=(999, 999, 999), count=1):
        """Random points (count, 3) at least ``margin`` mm inside a lung, between two corners of a box."""
        corner = np.array([self.wall.cage, self.wall.deep, 0])
        lowest, highest = np.maximum(-corner - (0, 0, 150), low), np.minimum(corner + (0, 0, 85), high)
        found = np.zeros((0, 3))
        while len(found) < count:
            points = rng.uniform(lowest, highest, (64 + 4 * count, 3))
            found = np.concatenate([found, points[self.room(points) > margin]])
        return found[:count]

    def _trees(self, rng, place):
        """Arteries beside bronchi from the hila, veins from the left atrium's four corners."""
        arteries, bronchi, veins = [], [], []
        for side in (-1, 1):
            low, high = ((0, -999, -999), (999,) * 3) if side > 0 else ((-999,) * 3, (0, 999, 999))
            ends = self.anywhere(rng, 4, low, high, 330)
            tree, thick = self._grow(rng, place(side * 48, 0.8, -26), ends)
            arteries.append(tree)
            aside = np.array([side * 0.6, 1.3, 0.7])
            a, b = (p + aside * (r[:, None] + 1.0) for p, r in ((tree.a, tree.ra), (tree.b, tree.rb)))
            ra, rb = 0.95 * tree.ra - 0.15, 0.95 * tree.rb - 0.15
            bronchi.append(VesselTree(*(v[thick] for v in (a, b, ra, rb))))  # seen down to 1 mm
            ends = self.anywhere(rng, 4, low, high, 280)
            upper, lower = place(side * 48, 0.63, -32), place(side * 44, 0.93, -65)
            near = np.linalg.norm(ends - upper, axis=1) < np.linalg.norm(ends - lower, axis=1)
            veins += [self._grow(rng, start, ends[part])[0] for start, part in ((upper, near), (lower, ~near))]
        return arteries, bronchi, veins

    @staticmethod
    def _grow(rng, start, ends):
        """A tree to all ends (n, 3), each joined to the nearest part so far; and which branches are thick.

        Radii add up from the tips, r^2.7 = Σ r^2.7, as in the lung (Murray's law has 3).
        """
        nodes, parent = [start], [-1]
        ends = ends[np.argsort(np.linalg.norm(ends - start, axis=1))]
        for end in ends:
            known = np.array(nodes)
            gap = np.linalg.norm(known - end, axis=1)
            ahead = np.einsum("ij,ij->i", end - known, known - start)  # branches fork forwards
            at = int(np.argmin(gap - 0.25 * ahead / np.maximum(np.linalg.norm(known - start, axis=1), 8)))
            n = max(1, int(np.ceil(gap[at] / 9)))
            p, q = nodes[at], end
            for i in range(1, n + 1):
                bend = rng.normal(0, 1.3, 3) if i < n else 0
                nodes.append(p + (q - p) * i / n + bend)
                parent.append(at if i == 1 else len(nodes) - 2)
        nodes, parent = np.array(nodes), np.array(parent)
        cube = np.zeros(len(nodes))
        leaf = np.ones(len(nodes), bool)
        leaf[parent[1:]] = False
        cube[leaf] = rng.uniform(0.5, 0.95, leaf.sum()) ** 2.7
        for i in range(len(nodes) - 1, 0, -1):
            cube[parent[i]] += cube[i]
        r = np.minimum(cube ** (1 / 2.7), 5.5)
        i = np.arange(1, len(nodes))
        tree = VesselTree(nodes[parent[i]], nodes[i], 0.7 * r[i] + 0.3 * np.minimum(r[parent[i]], 1.4 * r[i]), r[i])
        return tree, r[i] > 1.15

    def fissures(self, x, y, z: float, bend) -> np.ndarray:
        """Distance (mm) to the nearest fissure: the oblique ones, and the right lung's horizontal one."""
        out = None
        for side, (z0, slope, curve, cx) in self.oblique.items():
            d = (z - z0 - slope * y - curve * ((x - cx) ** 2 - 900) + 2 * bend) / np.sqrt(1 + slope**2)
            d = np.where(x * side > 0, d, 99)
            if side < 0:
                level, dome = self.horizontal
                flat = z - level + dome * ((x - cx) ** 2 + (y + 30) ** 2) + 3 * bend
                flat = flat / np.sqrt(1 + (2 * dome) ** 2 * ((x - cx) ** 2 + (y + 30) ** 2))
                d = np.where((np.abs(flat) < np.abs(d)) & (d > 0), flat, d)
            out = d if out is None else np.where(np.abs(d) < np.abs(out), d, out)
        return out

    def draw(self, canvas: Canvas, frame: ThoraxFrame, hu: dict) -> np.ndarray:
        """Paint parenchyma, fissures and trees into the whole cavity; returns its coverage (size, size)."""
        z, box = canvas.z_mm, frame.inner
        x, y = canvas.grid(box)
        bend = canvas.sample(swell(1), box, 4.0, self.shift[0])
        lung = frame.on(box, frame.cavity) - 0.7 - 0.8 * np.maximum(bend, 0)
        haze = canvas.sample(cloud(3.0), box, 1.6, self.shift[1])
        lean = np.clip(y * np.float32(1 / self.wall.deep), -1, 1)
        value = hu["lung"] + self.haze * haze + self.gradient * 0.5 * lean + np.float32(20) * np.maximum(lean, 0) ** 3
        inside = canvas.paint(box, lung, value, ID["lung"])
        strands = self._twigs(canvas, box, haze)
        near = self.fissures(x, y, z, bend)
        strands *= np.clip(np.abs(near) * np.float32(0.12), 0.15, 1)
        canvas.blend(box, 0.5 * strands * inside, -50.0)
        canvas.blend(box, 0.5 * canvas.line_coverage(near, 0.25) * inside, -250.0)
        mask = np.zeros_like(canvas.values)
        mask[box] = inside
        self.veins.draw(canvas, hu["pulmonary vein"], ID["pulmonary vein"], mask=mask)
        self.arteries.draw(canvas, hu["pulmonary artery"], ID["pulmonary artery"], mask=mask)
        self.draw_bronchi(canvas, hu, mask)
        return mask

    def draw_bronchi(self, canvas: Canvas, hu: dict, mask: np.ndarray) -> None:
        """Walls, then air, within a mask."""
        t = self.bronchi
        wall = 0.35 + 0.18 * t.ra
        VesselTree(t.a, t.b, t.ra + wall, t.rb + wall).draw(
            canvas, hu["bronchial wall"], ID["bronchial wall"], mask=mask
        )
        t.draw(canvas, hu["air"], ID["airway"], mask=mask)

    def _twigs(self, canvas, box, haze):
        s1 = canvas.sample(sheets(1), box, 1.0, self.shift[2])
        s2 = canvas.sample(sheets(3), box, 1.0, self.shift[3])
        size = np.clip(self.twig_mm + 0.25 * haze, 0, 1.0)
        return canvas.line_coverage(np.sqrt(s1 * s1 + s2 * s2), size)
