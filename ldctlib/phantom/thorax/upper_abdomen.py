"""What shows below the domes: diaphragm, liver with its veins, stomach and spleen."""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.canvas import Canvas, VesselTree, ellipsoid, ellipsoid_distance
from ldctlib.phantom.organs import ID
from ldctlib.phantom.textures import sheets, swell
from ldctlib.phantom.thorax.lungs import Diaphragm
from ldctlib.phantom.thorax.wall import ThoraxFrame, ThoraxWall, smooth_max


class UpperAbdomen:
    """The abdomen's organs in the domes of the diaphragm."""

    def __init__(self, rng: np.random.Generator, wall: ThoraxWall, diaphragm: Diaphragm, cava: np.ndarray):
        u, s, d = rng.uniform, wall.scale, wall.deep
        self.diaphragm, self.scale = diaphragm, s
        left = diaphragm.tops[1]
        self.left_lobe = (u(5, 40) * s, -0.45 * d, left - 46), (u(50, 75) * s, u(30, 42), 52)
        self.fundus = (u(44, 56) * s, u(-8, 10), left - u(38, 46)), (u(26, 36) * s, u(28, 38), u(36, 42)), u(-0.3, 0.3)
        self.spleen = (u(84, 92) * s, 0.42 * d, left - u(56, 64)), (u(26, 36) * s, u(38, 50), u(44, 58)), u(-0.6, -0.3)
        self.air_y, self.wall_mm = self.fundus[0][1] - u(-6, 22), u(2.0, 4.0)
        self.shift = rng.uniform(0, 96, (3, 3))
        top = np.array([cava[0], cava[1] - 4, diaphragm.tops[-1] - 12])
        look = dict(radius=4.4, length=40, levels=5, spread=0.45, shrink=0.8, taper=0.74, wander=0.12)
        directions = (-1, 0.2, -0.35), (-0.7, -0.9, -0.4), (0.5, -1, -0.35), (-0.6, 0.6, -0.7)
        self.veins = VesselTree.join([VesselTree.grow(rng, top, v, **look) for v in directions])

    def draw(self, canvas: Canvas, frame: ThoraxFrame, hu: dict) -> None:
        z, box = canvas.z_mm, frame.inner
        x, y = canvas.grid(box)
        d = self.diaphragm.inside(x, y, z)
        if d is None or not (d > -3).any():
            return
        bend = canvas.sample(swell(2), box, 3.5, self.shift[0])
        cavity = frame.on(box, frame.cavity)
        d = np.minimum(d + 0.8 * bend, cavity - 1)
        canvas.paint(box, np.minimum(d + 1.3, cavity), hu["muscle"] - 10, ID["diaphragm"])
        canvas.paint(box, d, hu["fat"], ID["visceral fat"])
        right = np.float32(6 * self.scale) - x + 5 * bend  # the right lobe fills its dome
        lobe = ellipsoid_distance(x, y, z, *self.left_lobe) + 2 * bend
        liver = np.minimum(smooth_max(right, lobe, 10), d - 0.2 - 0.5 * np.maximum(bend - 0.5, 0))
        canvas.paint(box, liver, hu["liver"], ID["liver"])
        mask = np.zeros_like(canvas.values)
        mask[box] = canvas.coverage(liver - 1.5)
        s1 = canvas.sample(sheets(2), box, 0.9, self.shift[1])
        s2 = canvas.sample(sheets(4), box, 0.9, self.shift[2])
        twigs = canvas.line_coverage(np.sqrt(s1 * s1 + s2 * s2), np.clip(0.35 + 0.25 * bend, 0, 0.8))
        canvas.blend(box, twigs * mask[box], 0.6 * hu["hepatic"] + 0.4 * hu["liver"])
        self.veins.draw(canvas, hu["hepatic"], ID["hepatic vein"], mask=mask)
        for organ in ("fundus", "spleen"):
            shape = ellipsoid(canvas, *getattr(self, organ), 4)
            if shape is None:
                continue
            part, e = shape
            e = e + 1.5 * canvas.sample(swell(0), part, 2.4, self.shift[0])
            e = np.minimum(e, self.diaphragm.inside(*canvas.grid(part), z) - 1.5)
            e = np.minimum(e, frame.on(part, frame.cavity) - 2.5)
            canvas.paint(part, e + 1, hu["fat"])
            if organ == "spleen":
                canvas.paint(part, e, hu["spleen"], ID["spleen"])
                continue
            canvas.paint(part, e, hu["wall"], ID["stomach"])
            folds = np.abs(canvas.sample(sheets(5), part, 0.7, self.shift[0]) * np.float32(0.7))
            lumen = e - self.wall_mm - 0.9 * np.maximum(2.6 - folds, 0)
            canvas.paint(part, lumen, hu["content"], ID["stomach content"])
            canvas.paint(part, np.minimum(lumen, np.float32(self.air_y) - canvas.grid(part)[1]), hu["gas"], ID["gas"])
