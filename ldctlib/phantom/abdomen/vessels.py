"""Great vessels with plaque, arterial and venous trees, strands in fat."""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.abdomen.viscera import Viscera
from ldctlib.phantom.abdomen.wall import Frame, Spine, Wall
from ldctlib.phantom.canvas import Canvas, VesselTree, ellipsoid, smooth_path
from ldctlib.phantom.organs import ID
from ldctlib.phantom.textures import cloud, sheets, swell


class Vessels:
    """Great vessels with plaque, their branches, and the finest vessels and strands of the fat."""

    def __init__(self, rng: np.random.Generator, wall: Wall, spine: Spine, viscera: Viscera):
        u, s = rng.uniform, wall.half_width / 138
        self.wall = wall
        z = np.linspace(150, -115, 60)
        column = np.array([spine.at(v) for v in z])
        half = spine.half[1]
        self.aorta_r = u(8, 11.5)
        bend = u(1, 5) * (1 + np.sin(z / 60 + u(0, 6)))
        x = column[:, 0] + 8 + 0.6 * bend + np.interp(z, [20, 150], [0, 8])
        y = column[:, 1] - half - self.aorta_r - 1 + np.interp(z, [60, 150], [0, 9])
        self.aorta = np.stack([x, y, z], 1)
        x = column[:, 0] - 21 - np.interp(z, [30, 100], [0, 9 * s])
        y = column[:, 1] - half - 4 - np.interp(z, [20, 100], [0, 26])
        self.cava = np.stack([x, y, z], 1)
        self.cava_axes = u(10, 14), u(6.5, 11)
        self.strand_mm, self.vessel_mm, self.strand = u(0.1, 0.3), u(-0.1, 0.5), u(0.3, 0.75)
        self.shift = rng.uniform(0, 96, (4, 3))
        self.arteries, self.veins = (VesselTree.join(t) for t in self._trees(rng, s, viscera))
        count = 0 if rng.random() < 0.5 else rng.integers(2, 12)
        self.plaques = [(u(-110, 60), u(0, 2 * np.pi), u(0.3, 1.0), u(3, 10)) for _ in range(count)]

    def _trees(self, rng, s, viscera):
        u = rng.uniform
        arteries: list[VesselTree] = []
        veins: list[VesselTree] = []

        def line(bag, r0, r1, *knots):
            path = smooth_path(knots, 4, rng, 1.5)
            bag.append(VesselTree.along(path, np.linspace(r0, r1, len(path))))
            return path

        a0, coeliac = self.at(self.aorta, 15), self.at(self.aorta, 24)
        fork = coeliac + (-2, -16, 4)
        line(arteries, 3.4, 2.0, coeliac, fork, coeliac + (25, -20, 8), (55 * s, -2, 28), (78 * s, 16, 34))
        line(arteries, 2.8, 1.8, fork, coeliac + (-25, -26, 2), (-32 * s, -28, 10))
        knots = a0, a0 + (-1, -16, -6), a0 + (-2, -20, -40), a0 + (-6, -24, -80), (-30, -5, -115)
        sma = line(arteries, 3.8, 2.2, *knots)
        beside = sma[len(sma) // 3] + (-13, -2, 0), sma[-8] + (-12, -2, 0)
        smv = line(veins, 6.0, 3.2, (-26 * s, -24, 2), *beside, (-38, -8, -118))
        line(veins, 5.0, 3.2, (-22 * s, -24, 4), (5, -24, 12), (45 * s, -6, 24), (72 * s, 14, 32))
        for k in viscera.kidneys:
            c, side = np.array(k["centre"]), k["side"]
            hilum, root = c + (-side * 20, -12, 0), self.at(self.aorta, c[2] + 4)
            line(arteries, 2.8, 2.0, root, (hilum + root) / 2 + (0, 4, 0), hilum)
            root = self.at(self.cava, c[2] - 2) + ((0, 0, 0) if side < 0 else (8, -4, 0))
            line(veins, 5.0, 3.5, root, (hilum + root) / 2 + (0, 0 if side < 0 else -14, 0), hilum + (0, -3, 0))
            line(veins, 1.6, 1.4, hilum + (0, 8, -10), c + (-side * 24, -4, -60), c + (-side * 28, -8, -120))  # ureter
        for side in (-1, 1):
            low = self.at(self.aorta, -95)
            line(arteries, 6.5, 5.0, low, low + (side * 16, 0, -22), low + (side * 32, 8, -50))

        def grow(p, d, radius, length, **shape):
            return VesselTree.grow(rng, p, d, radius=radius, length=length, step=8, **shape)

        mesenteric = dict(levels=3, spread=0.5, shrink=0.72, taper=0.76, wander=0.16)
        for path, bag in ((sma, arteries), (smv, veins)):
            for q in np.repeat(path[6::4], 4, axis=0):
                d = (u(-1, 1), u(-0.9, 0.25), u(-0.9, 0.3))
                bag.append(grow(q, d, u(1.3, 2.1), u(26, 42), **mesenteric))
        for _ in range(26):  # gastric, omental, colic and retroperitoneal branches
            p = (u(-100, 100) * s, u(-66, 30), u(-120, 75))
            arteries.append(grow(p, rng.normal(size=3), u(0.9, 1.7), u(22, 48), levels=3, spread=0.6, wander=0.25))
        for _ in range(40):  # under the skin and between the muscles
            t, out = u(0, 2 * np.pi), u(-6, 14)
            p = (np.cos(t) * (self.wall.half_width + out), np.sin(t) * (self.wall.half_depth + out), u(-135, 115))
            d = (-np.sin(t), np.cos(t), u(-1, 1))
            veins.append(grow(p, d, u(0.6, 1.4), 36, levels=2, spread=0.4, wander=0.2))
        return arteries, veins

    @staticmethod
    def at(path: np.ndarray, z: float) -> np.ndarray:
        """The point of a path (n, 3), whose z falls, at height z."""
        return np.array([np.interp(-z, -path[:, 2], path[:, i]) for i in range(3)])

    def draw_branches(self, canvas: Canvas, frame: Frame, hu: dict) -> None:
        """Strands and twigs of the visceral fat, then the vessel trees."""
        self._draw_strands(canvas, frame, hu)
        inside = np.zeros_like(canvas.values)
        inside[frame.box] = canvas.coverage(frame.skin - 3)
        self.veins.draw(canvas, hu["cava"], ID["vessel"], mask=inside)
        self.arteries.draw(canvas, hu["aorta"], ID["vessel"], mask=inside)

    def _draw_strands(self, canvas, frame, hu):
        if not (frame.cavity > 0).any():
            return
        rows, cols = np.flatnonzero((frame.cavity > 0).any(1)), np.flatnonzero((frame.cavity > 0).any(0))
        j, i = frame.box[0].start, frame.box[1].start
        box = slice(j + rows[0], j + rows[-1] + 1), slice(i + cols[0], i + cols[-1] + 1)
        inside = canvas.coverage(frame.on(box, frame.cavity) - 1)
        s1 = canvas.sample(sheets(2), box, 0.9, self.shift[0]) * np.float32(0.9)
        s2 = canvas.sample(sheets(3), box, 1.1, self.shift[1]) * np.float32(1.1)
        haze = canvas.sample(cloud(3.0), box, 1.3, self.shift[2])
        density = canvas.sample(swell(3), box, 3.5, self.shift[3])  # strands gather in the mesentery's root
        strands = canvas.line_coverage(s1, np.maximum(self.strand_mm + 0.15 * density, 0)) * self.strand
        canvas.blend(box, strands * inside, hu["fat"] + 90)
        canvas.values[box] += inside * (4 * haze)
        twigs = canvas.line_coverage(np.sqrt(s1 * s1 + s2 * s2), np.clip(self.vessel_mm + 0.6 * density, 0, 1.2))
        canvas.blend(box, twigs * inside, 0.5 * (hu["cava"] + hu["muscle"]))

    def draw_great(self, canvas: Canvas, hu: dict) -> None:
        z = canvas.z_mm
        if z > -112:
            x, y, _ = self.at(self.cava, z)
            box, d = ellipsoid(canvas, (x, y, z), (*self.cava_axes, 1e3), -0.2, 3)
            d = d + 0.9 * canvas.sample(swell(0), box, 1.2, self.shift[0])
            canvas.paint(box, d + 0.8, hu["fat"])
            canvas.paint(box, d, hu["cava"], ID["vena cava"])
        if z > -98:
            x, y, _ = self.at(self.aorta, z)
            r = self.aorta_r * float(np.interp(z, [-100, 60], [0.85, 1.1]))
            box, d = ellipsoid(canvas, (x, y, z), (r, r * 0.97, 1e3), 0, 3)
            canvas.paint(box, d + 1.2, hu["muscle"] - 10, ID["aorta"])
            canvas.paint(box, d, hu["aorta"], ID["aorta"])
            gx, gy = canvas.grid(box)
            for pz, angle, width, length in self.plaques:
                away = abs(z - pz) / length
                if away < 1:
                    arc = np.abs(np.angle(np.exp(1j * (np.arctan2(gy - y, gx - x) - angle)))) * r
                    shell = np.minimum(1.1 - np.abs(d), width * r * (1 - away) - arc)
                    canvas.paint(box, shell, hu["plaque"], ID["plaque"])
