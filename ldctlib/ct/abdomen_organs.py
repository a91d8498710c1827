"""The solid organs, the stomach and the chest's lower end: warped ellipsoids and tubes, clipped by the cavity."""

from __future__ import annotations

import numpy as np

from ldctlib.ct.abdomen_tissues import ID
from ldctlib.ct.abdomen_wall import FROM_BACK, THETA, Frame, Spine, Wall
from ldctlib.ct.drawing import Box, Canvas, Tube, VesselTree, capsules, ellipsoid
from ldctlib.ct.textures import cloud, sheets, swell


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


def _level(x, y, z, centre, axes, angle=0.0):
    """k of an ellipsoid: 1 on its surface, 0 at its centre."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = x - np.float32(centre[0]), y - np.float32(centre[1])
    p, q = (x * cos + y * sin) / np.float32(axes[0]), (y * cos - x * sin) / np.float32(axes[1])
    return np.sqrt(p * p + q * q + np.float32(((z - centre[2]) / axes[2]) ** 2))


class Chest:
    """Diaphragm, lung bases, heart and oesophagus."""

    def __init__(self, rng: np.random.Generator, wall: Wall, spine: Spine):
        u, s = rng.uniform, wall.half_width / 138
        self.spine, self.scale = spine, s
        self.tops = u(95, 120), u(85, 108)  # right and left dome
        self.recess = u(-5, 22), u(20, 45), u(62, 88)  # lowest lung behind, at the side, in front
        self.heart = (18 + u(-5, 8), -30 + u(-5, 5), u(122, 134)), (u(54, 66) * s, u(42, 50), u(30, 40)), u(-0.5, 0.0)
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
            part = (1 - _level(x, y, z, (cx, -16, z), (84 * s * g, 104 * g, 1.0))) * np.float32(80 * g)
            out = part if out is None else np.maximum(out, part)
        d = np.minimum(d, out) if z > 20 else d
        sx, sy = self.spine.at(z)  # crura and mediastinum
        middle = (1 - _level(x, y, z, (sx, sy - 42, z), (38 * s, 62, 1.0))) * np.float32(38)
        back = (1 - _level(x, y, z, (sx, sy + 22, z), (26 * s, 40, 1.0))) * np.float32(26)
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
            d = np.minimum(d, (_level(x, y, z, centre, np.add(axes, (6, 6, 2)), angle) - 1) * np.float32(axes[1]))
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
        d = d + 1.8 * canvas.sample(swell(0), box, 3.0, self.shift[0])
        canvas.paint(box, d, hu["fat"], ID["visceral fat"])
        d = d - 4 - 1.5 * canvas.sample(swell(2), box, 2.5, self.shift[0])
        canvas.paint(box, d, 0.5 * (hu["heart"] + hu["muscle"]), ID["heart"])
        x, y = canvas.grid(box)
        bend = 3 * canvas.sample(swell(3), box, 2.6, self.shift[1])
        for dx, dy, a, b in ((0.3, 0.1, 22, 19), (-0.42, -0.05, 20, 25)):
            k = _level(x, y, 0, (centre[0] + dx * axes[0], centre[1] + dy * axes[1], 0), (a, b, 1))
            canvas.paint(box, np.minimum((1 - k) * 20 + bend, d - 2.5), hu["heart"], ID["heart"])

    def draw_oesophagus(self, canvas: Canvas, hu: dict, beside: tuple[float, float]) -> None:
        """In front of the aorta, with a fleck of gas now and then."""
        if canvas.z_mm < 50:
            return
        centre = (beside[0] - 7, beside[1] - 21, canvas.z_mm)
        shape = ellipsoid(canvas, centre, (9, 6.5, 1e3), 0.3, 3)
        d = shape[1] + 0.8 * canvas.sample(swell(1), shape[0], 0.8, self.shift[0])
        canvas.paint(shape[0], d, hu["wall"], ID["oesophagus"])
        gas = canvas.sample(swell(2), shape[0], 1.0, self.shift[0])
        canvas.blend(shape[0], canvas.coverage(np.minimum(d - 4.2, 2 * gas)), hu["gas"], ID["gas"])


class Liver:
    """Liver with fissure, portal and hepatic veins, lesions, and the gallbladder."""

    def __init__(self, rng: np.random.Generator, wall: Wall, spine: Spine, chest: Chest, hu: dict):
        u, s = rng.uniform, wall.half_width / 138
        self.scale, self.spine, self.chest = s, spine, chest

        def near(v, sd=5.0):
            return tuple(np.asarray(v, float) + rng.normal(0, sd, 3))

        self.lobes = [
            (near((-74 * s, 0, 42)), (92 * s * u(0.9, 1.1), 98, u(88, 108)), u(-0.2, 0.2)),
            (near((-2 * s, -46, 58)), (u(52, 95) * s, u(32, 46), u(44, 62)), u(-0.1, 0.35)),
            (near((-28 * s, 5, 40), 3), (40, 34, 50), 0.0),
        ]
        self.reach_mm = max(centre[0] + max(axes[:2]) for centre, axes, _ in self.lobes) + 45
        self.warp_mm, self.fissure_mm = u(2, 4.5), u(0.4, 2.0)
        self.gallbladder = None if rng.random() < 0.15 else (
            near((-48 * s, -40, 4), 6), (u(10, 17), u(14, 26), u(20, 32)), u(-0.6, 0.6))
        self.shift = rng.uniform(0, 96, (3, 3))
        self.twig_mm = u(0.3, 0.8)
        hilum = np.array([-44 * s, -14, 28])
        trunk = smooth_path([(-26 * s, -24, 8), (-35 * s, -17, 18), hilum], 4)
        portal = [VesselTree.along(trunk, np.linspace(6.5, 5.5, len(trunk)))]
        for d, r, n in (((-1, 0.35, 0.25), 4.8, 34), ((0.75, -0.9, 0.35), 4.0, 36), ((-0.9, -0.6, -0.5), 3.8, 34)):
            portal.append(VesselTree.grow(rng, hilum, d, radius=r, length=n, levels=5, spread=0.6, shrink=0.82,
                                          taper=0.72, wander=0.14))
        self.portal = VesselTree.join(portal)
        top = np.array([-30 * s, spine.y - 45, 84])
        self.hepatic = VesselTree.join([
            VesselTree.grow(rng, top, d, radius=4.2, length=46, levels=5, spread=0.45, shrink=0.78, taper=0.72,
                            wander=0.12)
            for d in ((-1, 0.1, -0.35), (-0.6, -0.9, -0.4), (0.35, -1, -0.25), (-0.7, 0.5, -0.7))])
        self.lesions = []
        for _ in range(rng.integers(1, 8) if rng.random() < 0.5 else 0):
            centre = np.array(self.lobes[0][0]) + rng.uniform(-1, 1, 3) * (60, 55, 60)
            r = float(np.clip(rng.lognormal(1.9, 0.5), 2.5, 28))
            cyst = rng.random() < 0.35
            value = hu["cyst"] if cyst else hu["liver"] - u(20, 60)
            self.lesions.append((centre, r * u(0.8, 1.2, 3), u(0, 3), value, cyst))

    def draw(self, canvas: Canvas, frame: Frame, hu: dict, hollow) -> None:
        """``hollow(x, y, z)`` is the signed distance outside the right kidney's bed."""
        z, s, box = canvas.z_mm, self.scale, frame.box
        ends = canvas.box(0, self.reach_mm, 0, 0)
        if ends is not None:  # nothing of the liver lies at the far left
            box = box[0], slice(box[1].start, min(max(ends[1].stop, box[1].start + 1), box[1].stop))
        x, y = canvas.grid(box)
        d = None
        for centre, axes, angle in self.lobes:
            part = (1 - _level(x, y, z, centre, axes, angle)) * np.float32(min(axes[:2]) * 0.8)
            if d is None:
                d = part
            else:  # smooth union
                m = np.clip(0.5 + (part - d) / 24, 0, 1)
                d = d + m * (part - d) + m * (1 - m) * 6
        d = d + self.warp_mm * canvas.sample(swell(2), box, 4.5, self.shift[0])
        if z < 60:
            fissure = np.abs((x + 18 * s) * 0.94 + (y + 50) * 0.3) - self.fissure_mm - 0.05 * np.maximum(-y - 40, 0)
            d = np.where(y < -8 - 0.3 * z, np.minimum(d, fissure), d)
        d = np.minimum(d, frame.on(box, frame.cavity) - 1.8)
        d = np.minimum(d, self.chest.below(canvas, frame, box) - 1.2)
        sx, sy = self.spine.at(z)
        bed = hollow(x, y, z) + 2.5 * canvas.sample(swell(3), box, 2.5, self.shift[1])
        d = np.minimum(np.minimum(d, bed), np.sqrt((x - sx) ** 2 + (y - sy) ** 2) - 31)
        if not (d > -1).any():
            return
        canvas.paint(box, d + 0.9, hu["fat"])
        canvas.paint(box, d, hu["liver"], ID["liver"])
        mask = np.zeros_like(canvas.hu)
        mask[box] = canvas.coverage(d - 1.5)
        s1 = canvas.sample(sheets(2), box, 0.8, self.shift[1]) * np.float32(0.8)
        s2 = canvas.sample(sheets(4), box, 0.8, self.shift[2]) * np.float32(0.8)
        size = np.clip(self.twig_mm * (0.5 + canvas.sample(swell(1), box, 2.5, self.shift[2])), 0, 0.8)
        twigs = canvas.line_coverage(np.sqrt(s1 * s1 + s2 * s2), size)
        canvas.blend(box, twigs * mask[box], 0.6 * hu["portal"] + 0.4 * hu["liver"])
        self.portal.draw(canvas, hu["portal"], ID["portal vein"], mask=mask)
        self.hepatic.draw(canvas, hu["hepatic"], ID["hepatic vein"], mask=mask)
        for centre, axes, angle, value, cyst in self.lesions:
            shape = ellipsoid(canvas, centre, axes, angle, 3)
            if shape is None:
                continue
            # cysts are sharp and round, metastases fade at an uneven rim
            e = shape[1] if cyst else (shape[1] + canvas.sample(swell(3), shape[0], 0.7, self.shift[1])) * 0.35
            canvas.blend(shape[0], canvas.coverage(e) * mask[shape[0]], value, ID["cyst" if cyst else "metastasis"])
        if self.gallbladder is not None:
            shape = ellipsoid(canvas, *self.gallbladder, 4)
            if shape is not None:
                d = shape[1] + 1.2 * canvas.sample(swell(0), shape[0], 1.5, self.shift[1])
                d = np.minimum(d, frame.on(shape[0], frame.cavity) - 3)
                canvas.paint(shape[0], d + 1.2, hu["wall"], ID["gallbladder"])
                canvas.paint(shape[0], d, hu["bile"], ID["gallbladder"])


class Viscera:
    """Stomach with duodenum, spleen, pancreas, kidneys and adrenals."""

    def __init__(self, rng: np.random.Generator, wall: Wall, spine: Spine):
        u, s, sy = rng.uniform, wall.half_width / 138, spine.y
        self.scale = s

        def near(v, sd=5.0):
            return tuple(np.asarray(v, float) + rng.normal(0, sd, 3))

        self.spleen = (near((98 * s, 26, 44)), (u(32, 46) * s, u(46, 66), u(46, 68)), u(-0.5, -0.1))
        self.spleen_hilum = near((54 * s, 16, 42)), (27, 40, 55)
        self.kidneys = [
            {"side": side, "centre": near((side * 64 * s, sy + 14, z0), 4), "axes": (u(23, 28), u(26, 32), u(48, 58)),
             "angle": side * u(0.3, 0.8), "columns": int(rng.integers(6, 10)), "phase": u(0, 6.28), "wide": u(0.5, 1.2)}
            for side, z0 in ((-1, -16), (1, 0))
        ]
        self.bed_mm = u(3, 9)
        self.cysts = []
        for k in self.kidneys:
            if rng.random() < 0.35:
                d = rng.normal(size=3)
                centre = np.array(k["centre"]) + d / np.linalg.norm(d) * np.array(k["axes"]) * 0.9
                self.cysts.append((centre, float(np.clip(rng.lognormal(2.1, 0.5), 3, 30))))
        self.adrenals = [(side, near((side * 34 * s, sy - 4, 46), 3), u(1.8, 3.0)) for side in (-1, 1)]
        path = smooth_path([(-34 * s, -6, -22), (-28 * s, -16, -5), (-4, -25, 8), (28 * s, -18, 16),
                            (55 * s, -2, 26), (72 * s, 12, 32)], 2.5, rng, 4)
        n = np.arange(len(path)) / len(path)
        self.pancreas = Tube(path, np.interp(n, [0, 0.2, 0.4, 1], [14, 15, 9, 10]) * u(0.8, 1.1))
        self.lobulation = u(0.3, 1.0)
        path = smooth_path([(58 * s, 8, 92), (68 * s, -2, 66), (60 * s, -28, 40), (38 * s, -46, 18), (8, -50, 5),
                            (-18, -42, 4), (-34 * s, -30, 0), (-44 * s, -14, -10), (-42 * s, -4, -35),
                            (-20, 2, -55), (10, -2, -58), (34, -14, -45)], 3.5, rng, 5)
        n, fill = np.arange(len(path)) / len(path), u(0.6, 1.25)
        radius = np.interp(n, [0, 0.12, 0.25, 0.4, 0.5, 0.56, 0.62, 1],
                           [28 * fill + 6, 30 * fill + 6, 26 * fill + 6, 18 * fill + 5, 13 * fill + 5, 10, 11, 11])
        self.stomach, self.stomach_mm, self.air_y = Tube(path, radius), u(2.0, 4.0), -u(18, 50)
        self.meal_hu = float(u(5, 30) if rng.random() < 0.7 else u(60, 300))  # water, or positive oral contrast
        self.meal_grain = u(2, 20)
        self.shift = rng.uniform(0, 96, (3, 3))

    def kidney_bed(self, x, y, z):
        """Signed distance outside the right kidney's fat, open to the back and the middle."""
        (cx, cy, cz), (a, b, c) = self.kidneys[0]["centre"], self.kidneys[0]["axes"]
        m = self.bed_mm
        dx, dy, dz = x - np.float32(cx), y - np.float32(cy), np.float32(z - cz)
        wx, wy = np.where(dx > 0, 0.3, 1.0) / np.float32(a + m), np.where(dy > 0, 0.3, 1.0) / np.float32(b + m)
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
            if box is None or abs(canvas.z_mm - c[2]) > 18:
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
        level = _level(x, y, canvas.z_mm, k["centre"], k["axes"], k["angle"])
        d = (1 - level) * np.float32(min(k["axes"][:2])) + 1.2 * canvas.sample(swell(3), box, 1.4, self.shift[0])
        d = np.minimum(d, frame.on(box, frame.cavity) - 2)
        sx, sy = x - np.float32(cx - side * 14), y - np.float32(cy - 9)  # the sinus opens to the great vessels
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
        hilum = (_level(x, y, canvas.z_mm, centre, axes) - 1) * np.float32(axes[0])
        m = np.clip(0.5 + (d - hilum) / 12, 0, 1)  # smooth intersection: a rounded medial edge
        d = d + m * (hilum - d) - m * (1 - m) * 3
        d = np.minimum(d, frame.on(box, frame.cavity) - 2.2) + 1.4 * canvas.sample(swell(0), box, 2.4, self.shift[0])
        canvas.paint(box, d + 0.9, hu["fat"])
        canvas.paint(box, d, hu["spleen"], ID["spleen"])
