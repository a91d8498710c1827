"""Stomach with duodenum, spleen, pancreas, kidneys and adrenals."""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.abdomen.wall import Frame, Spine, Wall
from ldctlib.phantom.canvas import Canvas, Tube, capsules, ellipsoid, ellipsoid_distance, smooth_path
from ldctlib.phantom.organs import ID
from ldctlib.phantom.textures import cloud, sheets, swell


class Viscera:
    """Stomach with duodenum, spleen, pancreas, kidneys and adrenals."""

    def __init__(self, rng: np.random.Generator, wall: Wall, spine: Spine):
        u, s, sy = rng.uniform, wall.half_width / 138, spine.y
        self.scale = s

        def near(v, sd=5.0):
            return tuple(np.asarray(v, float) + rng.normal(0, sd, 3))

        self.spleen = (near((98 * s, 26, 44)), (u(32, 46) * s, u(46, 66), u(46, 68)), u(-0.5, -0.1))
        self.spleen_hilum = near((54 * s, 16, 42)), (27, 40, 55)
        self.kidneys = []
        for side, z0 in ((-1, -16), (1, 0)):
            kidney = {"side": side, "centre": near((side * 64 * s, sy + 14, z0), 4)}
            kidney |= {"axes": (u(23, 28), u(26, 32), u(48, 58)), "angle": side * u(0.3, 0.8)}
            kidney |= {"columns": int(rng.integers(6, 10)), "phase": u(0, 6.28), "wide": u(0.5, 1.2)}
            self.kidneys.append(kidney)
        self.bed_mm = u(3, 9)
        self.cysts = []
        for k in self.kidneys:
            if rng.random() < 0.35:
                d = rng.normal(size=3)
                centre = np.array(k["centre"]) + d / np.linalg.norm(d) * np.array(k["axes"]) * 0.9
                self.cysts.append((centre, float(np.clip(rng.lognormal(2.1, 0.5), 3, 30))))
        self.adrenals = [(side, near((side * 34 * s, sy - 4, 46), 3), u(1.8, 3.0)) for side in (-1, 1)]
        head = [(-34 * s, -6, -22), (-28 * s, -16, -5), (-4, -25, 8)]
        path = smooth_path([*head, (28 * s, -18, 16), (55 * s, -2, 26), (72 * s, 12, 32)], 2.5, rng, 4)
        n = np.arange(len(path)) / len(path)
        self.pancreas = Tube(path, np.interp(n, [0, 0.2, 0.4, 1], [14, 15, 9, 10]) * u(0.8, 1.1))
        self.lobulation = u(0.3, 1.0)
        stomach = [(58 * s, 8, 92), (68 * s, -2, 66), (60 * s, -28, 40), (38 * s, -46, 18), (8, -50, 5), (-18, -42, 4)]
        duodenum = [(-34 * s, -30, 0), (-44 * s, -14, -10), (-42 * s, -4, -35), (-20, 2, -55), (10, -2, -58)]
        path = smooth_path([*stomach, *duodenum, (34, -14, -45)], 3.5, rng, 5)
        n, fill = np.arange(len(path)) / len(path), u(0.6, 1.25)
        radii = [28 * fill + 6, 30 * fill + 6, 26 * fill + 6, 18 * fill + 5, 13 * fill + 5, 10, 11, 11]
        radius = np.interp(n, [0, 0.12, 0.25, 0.4, 0.5, 0.56, 0.62, 1], radii)
        self.stomach, self.stomach_mm, self.air_y = Tube(path, radius), u(2.0, 4.0), -u(18, 50)
        self.meal_hu = float(u(5, 30) if rng.random() < 0.7 else u(60, 300))  # water, or positive oral contrast
        self.meal_grain = u(2, 20)
        self.shift = rng.uniform(0, 96, (3, 3))

    def kidney_bed(self, x, y, z):
        """Signed distance outside the right kidney's fat, open to the back and the middle."""
        (cx, cy, cz), (a, b, c) = self.kidneys[0]["centre"], self.kidneys[0]["axes"]
        m = self.bed_mm
        dx, dy, dz = x - np.float32(cx), y - np.float32(cy), np.float32(z - cz)
        wx, wy = (np.where(dx > 0, 0.3, 1.0) / np.float32(a + m), np.where(dy > 0, 0.3, 1.0) / np.float32(b + m))
        wz = np.float32(1 / (c + 8))
        p, q, r = dx * wx, dy * wy, dz * wz
        k = np.sqrt(p * p + q * q + r * r + np.float32(1e-6))
        return (k - 1) * k / np.sqrt((p * wx) ** 2 + (q * wy) ** 2 + (r * wz) ** 2 + np.float32(1e-9))

    def draw(self, canvas: Canvas, frame: Frame, hu: dict) -> None:
        for k in self.kidneys:
            self._draw_kidney(canvas, frame, hu, k)
        for centre, r in self.cysts:
            shape = ellipsoid(canvas, centre, (r, r * 0.95, r), 0, 2)
            if shape is not None:
                d = np.minimum(shape[1], frame.on(shape[0], frame.cavity) - 1)
                canvas.paint(shape[0], d, hu["cyst"], ID["cyst"])
        for side, c, w in self.adrenals:
            box = canvas.box(c[0] - 20, c[0] + 20, c[1] - 20, c[1] + 20)
            if abs(canvas.z_mm - c[2]) > 18:
                continue
            a = np.add(c, [(0, -8, 8), (0, 0, 0), (0, 0, 0)])
            b = np.add(c, [(side, 0, 0), (side * 10, 12, -12), (-side * 3, 13, -10)])
            canvas.paint(box, capsules(canvas, box, a, b, (w, w, w)), hu["adrenal"], ID["adrenal"])

    def _draw_kidney(self, canvas, frame, hu, k):
        shape = ellipsoid(canvas, k["centre"], np.add(k["axes"], 9), k["angle"], 3)
        if shape is None:
            return
        box = shape[0]
        cx, cy, cz = k["centre"]
        side, dz = k["side"], canvas.z_mm - cz
        x, y = canvas.grid(box)
        gerota = canvas.line_coverage(shape[1] + 2 * canvas.sample(swell(1), box, 2.0, self.shift[0]), 0.35)
        canvas.blend(box, 0.7 * gerota * canvas.coverage(frame.on(box, frame.cavity)), hu["muscle"] - 20)
        d = ellipsoid_distance(x, y, canvas.z_mm, k["centre"], k["axes"], k["angle"])
        d = np.minimum(d + 1.2 * canvas.sample(swell(3), box, 1.4, self.shift[0]), frame.on(box, frame.cavity) - 2)
        sx, sy = (x - np.float32(cx - side * 14), y - np.float32(cy - 9))  # the sinus opens to the great vessels
        e = np.sqrt((sx / 19) ** 2 + (sy / 12) ** 2 + np.float32((dz / 26) ** 2))
        sinus = (1 - e) * 13 + 1.5 * canvas.sample(swell(2), box, 0.8, self.shift[1])
        kidney = np.minimum(d, -sinus)
        angle = np.arctan2(sy, sx)
        columns = np.sin(k["columns"] * angle + k["phase"] + dz / 9) * 3 + np.sin(dz / 6.0) * 1.5
        medulla = np.minimum(np.minimum(d - 6, -sinus - 1) + np.minimum(columns, 0.5), kidney)
        canvas.paint(box, kidney + 0.8, hu["fat"])
        canvas.paint(box, kidney, hu["cortex"], ID["renal cortex"])
        canvas.paint(box, medulla, hu["medulla"], ID["renal medulla"])
        pelvis = np.minimum((0.5 * k["wide"] - e) * 13, d + 6)
        calyces = np.minimum(np.minimum(sinus - 1, 2.2 - 5 * np.abs(np.sin(2.5 * angle + k["phase"]))), d - 5)
        canvas.paint(box, np.maximum(pelvis, calyces), hu["pelvis"], ID["renal pelvis"])

    def draw_pancreas(self, canvas: Canvas, hu: dict) -> None:
        shape = self.pancreas.cut(canvas)
        if shape is None:
            return
        box, d, _ = shape
        d = d + 1.5 * canvas.sample(swell(1), box, 0.6, self.shift[1])
        lobes = canvas.sample(sheets(4), box, 0.4, self.shift[0]) * np.float32(0.4)
        c = canvas.paint(box, d, hu["pancreas"], ID["pancreas"])
        clefts = canvas.line_coverage(lobes, 0.5) * self.lobulation * np.clip(1.1 - d / 14, 0, 1)
        canvas.blend(box, clefts * c, hu["fat"] + 40)

    def draw_stomach(self, canvas: Canvas, frame: Frame, hu: dict) -> None:
        shape = self.stomach.cut(canvas, 5.0)
        if shape is None:
            return
        box, d, _ = shape
        d = np.minimum(d, frame.on(box, frame.cavity) - 3) + 1.5 * canvas.sample(swell(1), box, 1.5, self.shift[0])
        canvas.paint(box, d + 1.0, hu["fat"])
        canvas.paint(box, d, hu["wall"], ID["stomach"])
        folds = np.abs(canvas.sample(sheets(5), box, 0.7, self.shift[0]) * np.float32(0.7))
        lumen = d - self.stomach_mm - 0.9 * np.maximum(2.6 - folds, 0)  # rugae
        grain = canvas.sample(cloud(2.0), box, 0.8, self.shift[2])
        canvas.paint(box, lumen, self.meal_hu + self.meal_grain * grain, ID["stomach content"])
        air = np.float32(self.air_y) - canvas.grid(box)[1]
        canvas.paint(box, np.minimum(lumen, air), hu["gas"], ID["gas"])

    def draw_spleen(self, canvas: Canvas, frame: Frame, hu: dict) -> None:
        shape = ellipsoid(canvas, *self.spleen, 3)
        if shape is None:
            return
        box, d = shape
        x, y = canvas.grid(box)
        centre, axes = self.spleen_hilum
        hilum = -ellipsoid_distance(x, y, canvas.z_mm, centre, axes)
        m = np.clip(0.5 + (d - hilum) / 12, 0, 1)  # smooth intersection: a rounded medial edge
        d = d + m * (hilum - d) - m * (1 - m) * 3
        d = np.minimum(d, frame.on(box, frame.cavity) - 2.2) + 1.4 * canvas.sample(swell(0), box, 2.4, self.shift[0])
        canvas.paint(box, d + 0.9, hu["fat"])
        canvas.paint(box, d, hu["spleen"], ID["spleen"])
