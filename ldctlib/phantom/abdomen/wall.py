"""The abdomen's walls: skin, fat, muscles, ribs, spine and pelvis, and the maps of one slice that all organs use.

The wall is polar about the body's axis: the muscles' outer surface, the fat outside it and the wall inside it
are functions of angle and z, so that depth below the muscle surface is one map.
"""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.canvas import Box, Canvas, capsules, ellipsoid
from ldctlib.phantom.organs import ID
from ldctlib.phantom.textures import cloud, sample_at, sheets, swell

N_ANGLES = 4096
THETA = (np.arange(N_ANGLES) * (2 * np.pi / N_ANGLES)).astype(np.float32)  # y points back: 90 degrees is the spine


def from_angle(centre: float) -> np.ndarray:
    """Unsigned angle between each table entry and ``centre``."""
    return np.abs(np.angle(np.exp(1j * (THETA - centre)))).astype(np.float32)


FROM_BACK, FROM_FRONT = from_angle(np.pi / 2), from_angle(-np.pi / 2)


def _bump(away: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-0.5 * (away / width) ** 2)


class Wall:
    """Outline, subcutaneous fat, muscle wall, ribs and the couch."""

    def __init__(self, rng: np.random.Generator):
        u = rng.uniform
        self.half_width = float(np.clip(rng.normal(141, 11), 116, 168))
        self.half_depth = self.half_width * u(0.66, 0.8)
        self.axis_y = -u(0, 6)
        self.power = u(2.1, 2.6)
        self.harmonics = [(k, u(0.004, 0.02) / (k - 1), u(0, 2 * np.pi), u(-0.012, 0.012)) for k in (2, 3, 4, 5)]
        thin = float(np.clip(rng.lognormal(2.85, 0.5), 5, 42))
        self.fat_mm = dict(all=thin * 0.55, front=thin * u(0.2, 1.1), side=thin * u(0.2, 0.9), back=thin * u(0.2, 1.0))
        self.furrow_mm = u(2, 6)
        self.fat_drift = u(-0.0035, 0.0005)  # the fat layer grows towards the pelvis
        self.side_mm, self.rectus_mm, self.back_mm = u(10, 18), u(6, 11), u(30, 42)
        self.semilunar, self.alba = u(0.55, 0.75), u(0.02, 0.06)
        self.fatty_muscle = u(0.15, 0.8)
        self.septa, self.hip_mm = u(0.3, 0.95), u(12, 24)
        self.rib_spacing, self.rib_shift, self.rib_slope = u(25, 30), u(-8, 8), u(42, 56)
        self.rib_axes = u(5.5, 7), u(3.2, 4.3)
        self.table_gap = u(2, 10) if rng.random() < 0.75 else None
        self.table_curve, self.table_mm = u(0.0004, 0.0012), (u(0.6, 1.6), u(18, 40))
        self.shift = rng.uniform(0, 96, (4, 3))
        skins = [r + f for r, f, _ in map(self.contours, (-120.0, -60.0, 0.0, 60.0, 110.0))]
        widest = max(float((skin * np.abs(np.cos(THETA))).max()) for skin in skins)
        # the couch touches no skin, wherever its curve comes nearest
        behind = (skin * np.sin(THETA) + self.table_curve * (skin * np.cos(THETA)) ** 2 for skin in skins)
        lowest = max(float(y.max()) for y in behind)
        self.table_y = self.axis_y + lowest + 2 + (self.table_gap or 0)
        self.field_of_view_mm = float(np.clip(2 * widest * u(1.02, 1.2), 338, 461))

    def contours(self, z: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Muscles' outer radius, thickness of the fat outside and of the wall inside it, by angle (mm)."""
        a = self.half_width * (1 - 0.035 * np.cos((z + 20) / 70))
        b = self.half_depth * (1 - 0.02 * np.sin(z / 60))
        n = self.power
        radius = (np.abs(np.cos(THETA) / a) ** n + np.abs(np.sin(THETA) / b) ** n) ** (-1 / n)
        for k, amplitude, phase, drift in self.harmonics:
            radius = radius * (1 + amplitude * np.cos(k * (THETA - np.pi / 2) + 0.4 * np.sin(phase + drift * z)))
        radius *= 1 - 0.05 * _bump(FROM_BACK, 0.12)  # furrow over the spine
        f = self.fat_mm
        fat = f["all"] + f["front"] * _bump(FROM_FRONT, 0.7) + f["back"] * _bump(FROM_BACK - 0.75, 0.4)
        fat = (fat + f["side"] * _bump(FROM_BACK - np.pi / 2, 0.5)) * np.exp(self.fat_drift * z)
        fat = fat + 2.5 * np.sin(2 * THETA + z / 90) ** 2 - 2.5 * _bump(FROM_FRONT, 0.05)
        fat = fat - self.furrow_mm * _bump(FROM_BACK, 0.1)
        below_ribs = 1 / (1 + np.exp((z - 30) / 18))
        side = self.side_mm * (0.75 + 0.25 * below_ribs)
        belly = np.sin(np.pi * np.clip((FROM_FRONT - self.alba) / (self.semilunar - self.alba), 0.0, 1.0))
        lateral = side * (1 - np.exp(-(((FROM_FRONT - self.semilunar) / 0.16) ** 2)))
        wall = np.where(FROM_FRONT < self.semilunar, self.rectus_mm * np.maximum(belly, 0) ** 0.6, lateral)
        wall = np.maximum(wall, 1.6) + self.back_mm * _bump(FROM_BACK, 0.42)
        hip = 1 / (1 + np.exp((z + 92) / 6))  # gluteal muscles outside the iliac wings, iliacus inside
        wall = wall + self.hip_mm * hip * _bump(FROM_BACK - 0.85, 0.3)
        return radius.astype(np.float32), np.maximum(fat, 2.5).astype(np.float32), wall.astype(np.float32)

    def draw(self, canvas: Canvas, frame: Frame, hu: dict) -> None:
        self._draw_table(canvas, hu)
        box = frame.box
        bend = canvas.sample(swell(0), box, 3.0, self.shift[0])
        skin = frame.skin + 0.8 * bend
        canvas.paint(box, skin, hu["skin"], ID["skin"])
        canvas.paint(box, skin - 1.6, hu["fat"], ID["subcutaneous fat"])
        # septa between the fat lobules follow the skin; Scarpa's fascia lies at mid depth
        layers = self._layers(canvas, frame)
        lines = canvas.line_coverage(layers, np.maximum(0.1 + 0.16 * bend, 0)) * self.septa
        scarpa = canvas.line_coverage(frame.depth + 0.55 * frame.fat + 1.5 * bend, 0.25) * 0.6
        canvas.blend(box, np.maximum(lines, scarpa) * canvas.coverage(skin - 2), hu["fat"] + 75)
        muscle = frame.depth + 0.6 * bend
        canvas.paint(box, muscle, hu["muscle"], ID["muscle"])
        planes = canvas.line_coverage(layers, np.maximum(0.2 * self.fatty_muscle * (0.8 + bend), 0)) * 0.6
        for part in (0.36, 0.68):  # between the external oblique, internal oblique and transversus
            plane = canvas.line_coverage(frame.depth - part * frame.wall + 0.5 * bend, 0.45 + 0.25 * bend)
            np.maximum(planes, plane * 0.8, out=planes)
        canvas.blend(box, planes * canvas.coverage(muscle - 1), hu["fat"] + 30)
        self._draw_ribs(canvas, frame, hu)
        canvas.paint(box, frame.cavity, hu["fat"], ID["visceral fat"])

    def _layers(self, canvas, frame):
        """Distance to sheets that run along the wall, three times finer across it than along it (0 elsewhere)."""
        ring = np.flatnonzero((frame.skin > 0) & (frame.cavity < 0))
        turns = round(2 * np.pi * self.half_width / (160 * 0.9))  # whole periods around the body: no seam
        around = frame.index.ravel()[ring] * np.float32(turns * 160 * 0.9 / N_ANGLES)
        depth = frame.depth.ravel()[ring] * np.float32(2.2)
        out = np.full(frame.depth.shape, 9.0, np.float32)
        out.ravel()[ring] = sample_at(sheets(0), around, depth, canvas.z_mm, 0.9, self.shift[1]) * np.float32(0.5)
        return out

    def _draw_table(self, canvas, hu):
        if self.table_gap is None:
            return
        y0, c = np.float32(self.table_y), np.float32(self.table_curve)
        box = canvas.box(-230, 230, y0 - 70, y0 + 60)
        x, y = canvas.grid(box)
        d = (y - (y0 - c * x * x)) / np.sqrt(1 + (2 * c * x) ** 2)
        for offset in (0.0, self.table_mm[1]):
            shell = canvas.line_coverage(d - np.float32(offset), self.table_mm[0])
            canvas.blend(box, shell, hu["table"], ID["table"])

    def _draw_ribs(self, canvas, frame, hu):
        """All ribs at once: the wall unrolled, with the level between ribs as a function of the angle."""
        phi = FROM_BACK
        drop = self.rib_slope * np.minimum(phi, 2.25) - 60 * np.maximum(phi - 2.25, 0)  # cartilage climbs again
        level = (canvas.z_mm + drop - 40 - self.rib_shift) / self.rib_spacing
        number = np.rint(level)
        reach = np.select([number < -0.5, number < 0.5, number < 1.5], [-1.0, 0.95, 1.7], 2.8)
        ends = np.minimum((reach - phi) * 110, (phi - 0.2) * 110).astype(np.float32)
        if not (ends > -4).any():
            return
        a, b = self.rib_axes
        across = ((level - number) * self.rib_spacing * 0.9).astype(np.float32).take(frame.index)
        thick = frame.depth - np.minimum(0.55 * frame.wall, 11)
        k = np.sqrt((across / a) ** 2 + (thick / b) ** 2) + 1e-6
        d = k * (1 - k) / np.sqrt(across**2 / a**4 + thick**2 / b**4 + 1e-9)
        np.minimum(d, ends.take(frame.index), out=d)
        gristle = canvas.coverage((phi.take(frame.index) - 2.25) * 110)
        bone = hu["rib"] + (0.85 * hu["cortical"] - hu["rib"]) * canvas.coverage(1.0 - d)
        c = canvas.coverage(d)
        canvas.blend(frame.box, c, bone + gristle * (hu["cartilage"] - bone), ID["rib"])
        canvas.labels[frame.box][(c >= 0.5) & (gristle >= 0.5)] = ID["cartilage"]


class Frame:
    """Maps of one slice, on the body's box: ``depth`` below the muscle surface, ``skin`` (signed distance
    inside the skin), ``cavity`` (inside the abdominal cavity), thickness of ``fat`` and ``wall``, and the
    ``index`` of angle; ``outer`` is the muscle surface's radius by angle."""

    def __init__(self, wall: Wall, canvas: Canvas):
        radius, fat, thick = wall.contours(canvas.z_mm)
        outer = float((radius + fat).max()) + 4
        y0 = wall.axis_y
        self.box: Box = canvas.box(-outer, outer, y0 - outer, y0 + outer)
        x, y = canvas.grid(self.box)
        y = y - np.float32(y0)
        self.index = (np.arctan2(y, x) * np.float32(N_ANGLES / (2 * np.pi)) + np.float32(N_ANGLES)).astype(np.int32)
        self.index &= N_ANGLES - 1
        slope = np.gradient(radius, THETA[1])
        normal = (1 / np.sqrt(1 + (slope / radius) ** 2)).astype(np.float32)  # makes the radial gap a distance
        self.depth = (radius.take(self.index) - np.sqrt(x * x + y * y)) * normal.take(self.index)
        self.fat, self.wall, self.outer = fat.take(self.index), thick.take(self.index), radius
        self.skin, self.cavity = self.depth + self.fat, self.depth - self.wall

    def on(self, box: Box, values: np.ndarray) -> np.ndarray:
        """One of this frame's maps on another box, continued by its border values."""
        (j, i), (h, w) = self.box, values.shape
        j0, j1, i0, i1 = (box[0].start - j.start, box[0].stop - j.start, box[1].start - i.start, box[1].stop - i.start)
        if 0 <= j0 and j1 <= h and 0 <= i0 and i1 <= w:
            return values[j0:j1, i0:i1]
        return values[np.ix_(np.clip(np.arange(j0, j1), 0, h - 1), np.clip(np.arange(i0, i1), 0, w - 1))]


class Spine:
    """Vertebrae with discs and posterior elements, the muscles beside them, and the iliac wings."""

    def __init__(self, rng: np.random.Generator, wall: Wall):
        u = rng.uniform
        self.wall = wall
        self.height = u(31, 36)
        self.y = wall.axis_y + wall.half_depth * u(0.2, 0.3)
        self.sway, self.lordosis = u(-5, 5), u(0, 6)
        self.half = u(20, 24), u(14.5, 18)
        self.osteophyte = u(0, 0.1)
        self.psoas, self.fatty = u(0.75, 1.15), u(0.3, 1.0)
        self.transverse = u(36, 46)
        self.crest = u(-98, -84), u(5, 8)
        self.shift = rng.uniform(0, 96, (2, 3))

    def at(self, z: float) -> tuple[float, float]:
        """Centre of the vertebral body at z."""
        return self.sway * np.sin(z / 80), self.y - self.lordosis * np.cos((z + 60) / 55)

    def back_at(self, z: float) -> float:
        """y of the back's muscles behind the spine."""
        return self.wall.axis_y + self.wall.half_depth

    def draw(self, canvas: Canvas, frame: Frame, hu: dict) -> None:
        z = canvas.z_mm
        cx, cy = self.at(z)
        a, b = (v * (1 + np.clip(-z, -120, 120) * 0.0009) for v in self.half)
        self._draw_muscles(canvas, frame, hu, cx, cy, a, b)
        box = canvas.box(cx - 62, cx + 62, cy - 34, cy + 78)
        wobble = canvas.sample(swell(2), box, 2.0, self.shift[0])
        shape = ellipsoid(canvas, (cx, cy, z), (a + 3.5, b + 3.5, 1e3), 0.0, 2)
        canvas.paint(*shape, hu["fat"] + 30, ID["visceral fat"])
        self._draw_body(canvas, hu, box, wobble, cx, cy, a, b)
        yc = cy + b * 0.8 + 9
        self._draw_canal(canvas, hu, (cx, yc, z), (9.5, 7), 3.0)
        self._draw_arch(canvas, hu, box, wobble, cx, yc, a)
        if z < self.crest[0] + 2:
            self._draw_ilium(canvas, frame, hu)

    def _bone(self, canvas, hu, inner, shell=1.2):
        return hu["trabecular"] + (0.8 * hu["cortical"] - hu["trabecular"]) * canvas.coverage(shell - inner)

    @staticmethod
    def _draw_canal(canvas, hu, centre, semi_axes, rim):
        """The canal within its rim of fat."""
        for grow, value in ((rim, hu["fat"] + 50), (0.0, hu["canal"])):
            shape = ellipsoid(canvas, centre, (*(v + grow for v in semi_axes), 1e3), 0.0, 2)
            canvas.paint(*shape, value, ID["spinal canal"])

    def _draw_muscles(self, canvas, frame, hu, cx, cy, a, b):
        z, yb = canvas.z_mm, self.wall.axis_y + self.wall.half_depth
        grow = float(np.clip((45 - z) / 110, 0, 1)) * self.psoas
        back = yb - (cy + 30)  # room behind the transverse processes
        for side in (-1, 1):
            # longissimus and iliocostalis, multifidus: bellies with fat between them
            bellies = (51, 0.3, 10, 0.36, -0.35), (30, 0.46, 11, 0.45, -0.15), (11, 0.5, 8, 0.42, 0.0)
            for dx, dy, ax, ay, turn in bellies:
                centre = (cx + side * dx, cy + 30 + dy * back, z)
                shape = ellipsoid(canvas, centre, (ax, ay * back, 1e3), side * turn, 3)
                inside = np.minimum(shape[1], frame.on(shape[0], frame.depth) - 3)
                bend = canvas.sample(swell(1), shape[0], 1.5, self.shift[1])
                rim = canvas.line_coverage(inside + bend, np.maximum(0.2 + 0.6 * self.fatty + 0.4 * bend, 0))
                canvas.blend(shape[0], 0.7 * rim * canvas.coverage(frame.on(shape[0], frame.depth) - 3), hu["fat"] + 25)
            if grow > 0.05:
                centre = (cx + side * (a + 2 + 15 * grow), cy + 5, z)
                shape = ellipsoid(canvas, centre, (6 + 14 * grow, 8 + 15 * grow, 1e3), side * 0.35, 3)
                bend = canvas.sample(swell(1), shape[0], 2.2, self.shift[1])
                canvas.paint(shape[0], shape[1] + 1.2 * bend + 1, hu["fat"])
                canvas.paint(shape[0], shape[1] + 1.2 * bend, hu["muscle"], ID["muscle"])
                streak = canvas.sample(sheets(1), shape[0], 0.8, self.shift[1]) * np.float32(0.8)
                streaks = canvas.line_coverage(streak, 0.2 * self.fatty) * canvas.coverage(shape[1] - 1)
                canvas.blend(shape[0], streaks, hu["fat"] + 40)
                shape = ellipsoid(canvas, (cx + side * (a + 34), cy + 27, z), (19, 6.5, 1e3), side * -0.45, 2)
                canvas.paint(shape[0], shape[1] - 3 * (1 - min(grow, 1.0)), hu["muscle"], ID["muscle"])
            if z > 5:  # crura of the diaphragm
                shape = ellipsoid(canvas, (cx + side * (a - 5), cy - b + 1, z), (12, 4.5, 1e3), side * -0.7, 2)
                canvas.paint(*shape, hu["muscle"], ID["diaphragm"])

    def _draw_body(self, canvas, hu, box, wobble, cx, cy, a, b):
        h, z = self.height, canvas.z_mm
        p = float(np.ceil(z / h) - z / h)  # 0 at a vertebra's top, 0.8 at its bottom, then the disc
        edge = min(p, 0.8 - p) * h
        flare = 1 + self.osteophyte * np.exp(-abs(edge) / 3) - 0.06 * np.exp(-(((p - 0.4) / 0.2) ** 2))
        x, y = canvas.grid(box)
        xx, yy = (x - np.float32(cx)) / np.float32(a * flare), (y - np.float32(cy)) / np.float32(b * flare)
        k = np.sqrt(xx * xx + yy * yy) + 1e-6
        d = (1 - k) * k / np.sqrt((xx / a) ** 2 + (yy / b) ** 2 + 1e-9)
        flat_back = np.float32(cy + 0.8 * b) - y + 0.004 * (x - cx) ** 2
        d = np.minimum(d, flat_back) + 0.5 * wobble
        if p >= 0.8:
            canvas.paint(box, d, hu["disc"] - 15 * canvas.coverage(d - 6), ID["disc"])
            return
        canvas.paint(box, d, self._bone(canvas, hu, np.minimum(d, edge)), ID["vertebra"])
        vein = np.minimum(2.2 - np.abs(x - cx - 2 * wobble), y - np.float32(cy)) - 40 * abs(p - 0.4)
        canvas.paint(box, np.minimum(vein, d - 1), hu["trabecular"] * 0.4)  # basivertebral vein at mid height

    def _draw_arch(self, canvas, hu, box, wobble, cx, yc, a):
        """Pedicles, laminae, transverse and spinous processes, facets; z is halved, so that parts stand tall."""
        h, z = self.height, canvas.z_mm
        tip = min(yc + 36, self.back_at(z) - 7)
        ends_a, ends_b, radii = [], [], []
        for n in np.ceil(z / h) + (1, 0, -1):

            def at(dx, y, part, top=n * h):
                return cx + dx, y, (top - part * h) / 2

            parts = [((0, yc + 15, 0.75), (0, tip, 1.0), 3.2), ((0, yc + 13, 0.55), (0, yc + 22, 0.75), 3.4)]
            for side in (-1, 1):
                t = self.transverse
                parts += [
                    ((side * (a - 5), yc - 12, 0.27), (side * 16, yc + 4, 0.36), 4.6),
                    ((side * 17, yc + 4, 0.36), (side * t, yc + 6, 0.34), 2.9),
                    ((side * 17, yc + 4, 0.4), (side * 12, yc + 10, 0.6), 3.6),
                    ((side * 15, yc + 8, 0.55), (0, yc + 15, 0.75), 3.2),
                    ((side * 17, yc + 6, 0.8), (side * 18, yc + 10, 1.1), 5.2),
                ]
            ends_a += [at(*q) for q, _, _ in parts]
            ends_b += [at(*r) for _, r, _ in parts]
            radii += [w for _, _, w in parts]
        d = capsules(canvas, box, ends_a, ends_b, radii, z_mm=z / 2) + 0.5 * wobble
        canvas.paint(box, d, self._bone(canvas, hu, d, 1.3), ID["vertebra"])

    def _draw_ilium(self, canvas, frame, hu):
        """The iliac wings rise as a curved blade within the wall: the crest is highest at the side."""
        z = canvas.z_mm
        t = np.linspace(0, 1, 9)
        crest = self.crest[0] - 60 * (t - 0.55) ** 2
        angle = np.interp(t, [0, 1], [0.5, 1.62])  # from the back, towards the side
        for side in (-1, 1):
            theta = np.pi / 2 - side * angle
            entry = (theta * (N_ANGLES / (2 * np.pi))).astype(int) % N_ANGLES
            r = frame.outer[entry] - np.interp(t, [0, 0.5, 1], [46, 30, 9])
            bx, by = r * np.cos(theta), r * np.sin(theta) + self.wall.axis_y
            box = canvas.box(bx.min() - 14, bx.max() + 14, by.min() - 14, by.max() + 14)
            knots = np.stack([bx, by, np.minimum(crest, z)], 1)
            d = capsules(canvas, box, knots[:-1], knots[1:], np.full(8, self.crest[1] / 2))
            d = np.minimum(d, frame.on(box, frame.depth) - 3)
            canvas.paint(box, d + 6, hu["muscle"], ID["muscle"])
            grain = canvas.sample(cloud(2.5), box, 0.5, self.shift[0])
            canvas.paint(box, d, self._bone(canvas, hu, d - 0.3, 1.5) + 30 * grain, ID["ilium"])
