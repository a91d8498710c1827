"""Diaphragm, lung bases, heart and oesophagus: warped ellipsoids clipped by the cavity."""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.abdomen.wall import FROM_BACK, THETA, Frame, Spine, Wall
from ldctlib.phantom.canvas import Box, Canvas, ellipsoid, ellipsoid_distance
from ldctlib.phantom.organs import ID
from ldctlib.phantom.textures import cloud, sheets, swell


class Chest:
    """Diaphragm, lung bases, heart and oesophagus."""

    def __init__(self, rng: np.random.Generator, wall: Wall, spine: Spine):
        u, s = rng.uniform, wall.half_width / 138
        self.spine, self.scale = spine, s
        self.tops = u(95, 120), u(85, 108)  # right and left dome
        self.recess = u(-5, 22), u(20, 45), u(62, 88)  # lowest lung behind, at the side, in front
        self.heart = ((18 + u(-5, 8), -38 + u(-5, 5), u(122, 134)), (u(54, 66) * s, u(40, 48), u(30, 40)), u(-0.5, 0.0))
        self.shift = rng.uniform(0, 96, (3, 3))
        self.vessel_mm = u(0.2, 0.7)

    def below(self, canvas: Canvas, frame: Frame, box: Box) -> np.ndarray:
        """Signed distance below the diaphragm (positive where the abdomen's organs may lie)."""
        z, s = canvas.z_mm, self.scale
        behind, beside, before = self.recess
        start = np.interp(FROM_BACK, [0.4, np.pi / 2, 2.4], [behind, beside, before])
        right = 0.5 - 0.5 * np.tanh(np.cos(THETA) / 0.25)
        top = right * self.tops[0] + (1 - right) * self.tops[1]
        q = np.clip((z - start) / (top - start), 0, 1)
        gap = 72 * s * (1 - np.sqrt(np.maximum(1 - q * q, 0))) + np.maximum(z - top, 0) * 2
        gap = np.where(z < start, -3.0, gap).astype(np.float32)  # no lung at all: the wall bounds
        d = frame.on(box, frame.cavity - gap.take(frame.index))
        x, y = canvas.grid(box)
        out = None
        for cx, top in ((-62 * s, self.tops[0]), (62 * s, self.tops[1])):
            f = float(np.sqrt(np.clip(1 - ((max(z, -20.0) + 20) / (top + 20)) ** 2, 0, 1)))
            g = 0.3 + 1.0 * f if z < top else 0.02
            part = ellipsoid_distance(x, y, z, (cx, -16, z), (84 * s * g, 104 * g, 1.0))
            out = part if out is None else np.maximum(out, part)
            if cx > 0 and f > 0.1:  # the central tendon bridges the domes in front
                part = np.maximum(part, ellipsoid_distance(x, y, z, (0, -30, z), (70 * s * f, 110 * f, 1.0)))
                out = np.maximum(out, part)
        d = np.minimum(d, out) if z > 20 else d
        sx, sy = self.spine.at(z)  # crura and mediastinum
        middle = ellipsoid_distance(x, y, z, (sx, sy - 42, z), (38 * s, 62, 1.0))
        back = ellipsoid_distance(x, y, z, (sx, sy + 22, z), (26 * s, 40, 1.0))
        return np.maximum(np.maximum(d, middle), back)

    def draw(self, canvas: Canvas, frame: Frame, hu: dict) -> None:
        z, box = canvas.z_mm, frame.box
        if z < self.recess[0]:
            return
        d = -self.below(canvas, frame, box) + 1.2 * canvas.sample(swell(1), box, 3.0, self.shift[0])
        d = np.minimum(d, frame.cavity - 1.0)
        x, y = canvas.grid(box)
        if z > 85:
            self._draw_heart(canvas, hu)
            centre, axes, angle = self.heart
            d = np.minimum(d, -ellipsoid_distance(x, y, z, centre, np.add(axes, (6, 6, 2)), angle))
        if not (d > 0).any():
            return
        film = canvas.coverage(d + 1.7) * canvas.coverage(frame.cavity)
        canvas.blend(box, film, hu["muscle"] - 10, ID["diaphragm"])
        haze = canvas.sample(cloud(3.0), box, 1.4, self.shift[1])
        behind = np.clip((y - np.float32(self.spine.y)) / 60, -0.5, 1) * 25  # dependent lung is denser
        c = canvas.paint(box, d, hu["lung"] + 20 * haze + behind, ID["lung"])
        s1 = canvas.sample(sheets(1), box, 1.1, self.shift[1]) * np.float32(1.1)
        s2 = canvas.sample(sheets(3), box, 1.1, self.shift[2]) * np.float32(1.1)
        radius = np.maximum(self.vessel_mm + 0.6 * haze, 0)
        canvas.blend(box, canvas.line_coverage(np.sqrt(s1 * s1 + s2 * s2), radius) * c, 20.0)

    def _draw_heart(self, canvas, hu):
        centre, axes, angle = self.heart
        shape = ellipsoid(canvas, centre, np.add(axes, (5, 5, 0)), angle, 3)
        if shape is None:
            return
        box, d = shape
        x, y = canvas.grid(box)
        d = d + 1.8 * canvas.sample(swell(0), box, 3.0, self.shift[0])
        # oesophagus and aorta lie behind
        d = np.minimum(d, np.float32(self.spine.at(canvas.z_mm)[1] - 44) - y)
        canvas.paint(box, d, hu["fat"], ID["visceral fat"])
        d = d - 4 - 1.5 * canvas.sample(swell(2), box, 2.5, self.shift[0])
        canvas.paint(box, d, 0.5 * (hu["heart"] + hu["muscle"]), ID["heart"])
        bend = 3 * canvas.sample(swell(3), box, 2.6, self.shift[1])
        for dx, dy, a, b in ((0.3, 0.1, 22, 19), (-0.42, -0.05, 20, 25)):
            chamber = (centre[0] + dx * axes[0], centre[1] + dy * axes[1], 0)
            inside = ellipsoid_distance(x, y, 0, chamber, (a, b, 1)) + bend
            canvas.paint(box, np.minimum(inside, d - 2.5), hu["heart"], ID["heart"])

    def draw_oesophagus(self, canvas: Canvas, hu: dict, beside: tuple[float, float]) -> None:
        """In front of the aorta, with a fleck of gas now and then."""
        if canvas.z_mm < 50:
            return
        centre = (beside[0] - 9, beside[1] - 15, canvas.z_mm)
        shape = ellipsoid(canvas, centre, (9, 6.5, 1e3), 0.3, 3)
        d = shape[1] + 0.8 * canvas.sample(swell(1), shape[0], 0.8, self.shift[0])
        canvas.paint(shape[0], d, hu["wall"], ID["oesophagus"])
        gas = canvas.sample(swell(2), shape[0], 1.0, self.shift[0])
        canvas.blend(shape[0], canvas.coverage(np.minimum(d - 4.2, 2 * gas)), hu["gas"], ID["gas"])
