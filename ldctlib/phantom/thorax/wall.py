"""The thorax's walls: rib cage, muscles, breasts, sternum, shoulder girdle, and the thoracic spine.

As in the abdomen, the wall is polar about the body's axis. What differs is that the rib cage (the inside of the
wall) and the muscles' surface (its outside) are shapes of their own: between them lies a hand's breadth at the
shoulders.
"""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.abdomen.wall import FROM_BACK, FROM_FRONT, THETA, Frame, Spine, Wall
from ldctlib.phantom.canvas import Canvas, capsules, ellipsoid, smooth_path
from ldctlib.phantom.organs import ID
from ldctlib.phantom.textures import sheets, swell

KNOTS_Z = (-175, -120, -70, -20, 20, 50, 70, 85, 105)
CAGE_WIDTH = (0.94, 0.99, 1.0, 0.96, 0.87, 0.75, 0.62, 0.5, 0.32)  # of the widest, at those z
CAGE_DEPTH = (0.96, 1.0, 1.0, 0.95, 0.86, 0.74, 0.62, 0.5, 0.34)
CAGE_SHIFT = (0.0, 0.0, 0.0, 0.03, 0.08, 0.13, 0.17, 0.19, 0.2)  # backwards, of the half depth


def bump(away, width: float):
    """A Gaussian of height 1."""
    return np.exp(-0.5 * (away / width) ** 2)


def smooth_max(a, b, over: float):
    """Union of two signed distances, rounded over ``over`` mm."""
    m = np.clip(0.5 + (a - b) / (2 * over), 0, 1)
    return b + m * (a - b) + m * (1 - m) * over


class ThoraxWall(Wall):
    """Outline, fat, breasts, muscles, ribs, sternum, shoulder girdle and the couch; ``scale`` is about 1."""

    def __init__(self, rng: np.random.Generator):
        u = rng.uniform
        self.female = bool(rng.random() < 0.5)
        self.cage = float(np.clip(rng.normal(130 if self.female else 142, 7), 112, 160))
        self.scale = self.cage / 138
        self.deep = self.cage * u(0.56, 0.68)
        self.half_width, self.half_depth, self.axis_y = self.cage, self.deep, 0.0
        self.power = u(2.2, 2.6)
        self.harmonics = [(k, u(0.003, 0.012) / (k - 1), u(0, 2 * np.pi), u(-0.01, 0.01)) for k in (2, 3, 4, 5)]
        thin = float(np.clip(rng.lognormal(2.5, 0.5), 3, 30))
        self.fat_mm = dict(all=thin * 0.5, front=thin * u(0.1, 0.5), side=thin * u(0.3, 1.0), back=thin * u(0.2, 1.0))
        self.furrow_mm, self.lean = u(1, 4), 1.0 if self.female else u(1.15, 1.5)
        self.pectoral, self.lateral, self.back_mm = 11 * self.lean * u(0.7, 1.2), u(3, 8) * self.lean, u(20, 26)
        self.shoulder = self.cage * u(1.2, 1.28)
        self.breast = dict(mm=u(12, 45), at=u(0.5, 0.75), width=u(0.28, 0.38), z=u(-62, -45), tall=u(34, 48))
        self.breast |= dict(gland=u(-1.3, 0.6))
        self.fatty_muscle, self.septa = u(0.2, 0.9), u(0.3, 0.9)
        self.rib_spacing, self.rib_shift, self.rib_axes = u(21.5, 24.5), u(-6, 6), (u(5.5, 7), u(3.0, 4.0))
        self.sternum_mm, self.scapula_z = u(0.85, 1.15), u(-62, -35)
        self.table_gap = u(1, 8) if rng.random() < 0.85 else None
        self.table_curve, self.table_mm = u(0.0004, 0.0012), (u(0.6, 1.6), u(18, 40))
        self.shift = rng.uniform(0, 96, (6, 3))
        profiles = [self.contours(float(z)) for z in np.linspace(-150, 95, 15)]
        skins = [r + f for r, f, _ in profiles]
        widest = max(float((skin * np.abs(np.cos(THETA))).max()) for skin in skins)
        behind = (skin * np.sin(THETA) + self.table_curve * (skin * np.cos(THETA)) ** 2 for skin in skins)
        lowest = max(float(y.max()) for y in behind)
        self.table_y = self.axis_y + lowest + 2 + (self.table_gap or 0)
        self.field_of_view_mm = float(np.clip(2 * widest * u(1.02, 1.12), 330, 480))

    def profile(self, z) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Half width, half depth and shift backwards (mm) of the rib cage's inside at z (number or array)."""
        width, depth, shift = (np.interp(z, KNOTS_Z, v) for v in (CAGE_WIDTH, CAGE_DEPTH, CAGE_SHIFT))
        return self.cage * width, self.deep * depth, self.deep * shift

    def back_at(self, z: float) -> float:
        """y of the rib cage's back, which the spine follows."""
        _, depth, shift = self.profile(z)
        return float(shift + depth)

    def front_at(self, z: float) -> float:
        """y of the rib cage's front."""
        _, depth, shift = self.profile(z)
        return float(shift - depth)

    def cage_radius(self, z, theta=THETA) -> np.ndarray:
        """Radius of the rib cage's inside (mm) by angle; z and theta broadcast."""
        (width, depth, shift), n, cos, sin = self.profile(z), self.power, np.cos(theta), np.sin(theta)
        radius = (np.abs(cos / width) ** n + np.abs(sin / depth) ** n) ** (-1 / n) + shift * sin
        for k, amplitude, phase, drift in self.harmonics:
            radius = radius * (1 + amplitude * np.cos(k * (theta - np.pi / 2) + 0.4 * np.sin(phase + drift * z)))
        return radius

    def contours(self, z: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Muscles' outer radius, thickness of the fat outside and of the wall inside it, by angle (mm)."""
        s, cage = self.scale, self.cage_radius(z)
        chest = float(np.interp(z, [-110, -20, 20, 60], [0.15, 0.8, 1.0, 0.5]))
        girdle = float(np.interp(z, [-55, 10, 60], [0.0, 1.0, 1.25]))
        thick = 12 + self.pectoral * chest * bump(FROM_FRONT - 0.75, 0.42) + 1.5 * bump(FROM_FRONT, 0.12)
        thick += 26 * s * girdle * bump(FROM_BACK - 0.95, 0.36) + self.lateral * bump(FROM_BACK - 1.5, 0.4)
        thick += self.back_mm * bump(FROM_BACK, 0.5) * (0.9 + 0.2 * girdle) - 3 * bump(FROM_BACK, 0.07)
        # the shoulders: a wide flat shape that the wall reaches towards the head
        wide = float(np.interp(z, [-60, 0, 40, 70, 95], [0.85, 0.93, 1.0, 1.04, 1.04])) * self.shoulder
        front, back = self.front_at(z) - 14 - 4 * self.lean, self.back_at(z) + 28
        depth, middle = (back - front) / 2, (back + front) / 2
        round_ = (np.abs(np.cos(THETA) / wide) ** 2.5 + np.abs(np.sin(THETA) / depth) ** 2.5) ** (-1 / 2.5)
        shoulders = round_ + middle * np.sin(THETA)
        rise = float(np.clip((z + 40) / 60, 0, 1))
        radius = smooth_max(shoulders - (1 - rise) * 60, cage + thick, 8)
        f = self.fat_mm
        fat = f["all"] + f["front"] * bump(FROM_FRONT, 0.7) + f["back"] * bump(FROM_BACK - 0.75, 0.4)
        fat = fat + f["side"] * bump(FROM_BACK - 1.6, 0.5) - self.furrow_mm * bump(FROM_BACK, 0.1)
        if self.female:
            b = self.breast
            tall = bump(z - b["z"], b["tall"])
            fat = fat + b["mm"] * tall * bump(FROM_FRONT - b["at"] - 0.1 * (1 - tall), b["width"])
        # the couch flattens the back
        flat = float(np.interp(0.5, FROM_BACK[1024:2048], (radius + fat)[1024:2048])) * np.cos(0.5) * 1.02
        skin = -smooth_max(-(radius + fat), -flat / np.maximum(np.sin(THETA), 0.05), 5)
        radius = np.minimum(radius, skin - 2.2)
        slope = np.gradient(radius, THETA[1])
        normal = 1 / np.sqrt(1 + (slope / radius) ** 2)
        return tuple(v.astype(np.float32) for v in (radius, skin - radius, (radius - cage) * normal))

    def draw(self, canvas: Canvas, frame: Frame, hu: dict) -> None:
        """All of the wall; the cavity is left filled with fat."""
        super().draw(canvas, frame, hu)
        out = -frame.cavity
        self._draw_clefts(canvas, frame, hu)
        self._draw_axillae(canvas, frame, hu, out)
        if self.female:
            self._draw_breasts(canvas, frame, hu)
        self._draw_sternum(canvas, frame, hu, out)
        if canvas.z_mm > self.scapula_z:
            for side in (-1, 1):
                self._draw_girdle(canvas, frame, hu, side)

    def _draw_clefts(self, canvas, frame, hu):
        """Fat between the muscles of chest, back and shoulder, in sheets of varying width."""
        girdle = float(np.interp(canvas.z_mm, [-80, 0, 60], [0.3, 1.0, 1.3]))
        bend = canvas.sample(swell(3), frame.box, 2.4, self.shift[2])
        part = frame.depth / np.maximum(frame.wall, 8)
        clefts = np.zeros_like(bend)
        for at, wide in ((0.24, 1.0), (0.5, 1.2), (0.74, 0.8)):
            line = (part - at - 0.05 * bend) * frame.wall
            width = np.maximum(wide * girdle * self.fatty_muscle * (1.3 * bend + 0.5), 0)
            np.maximum(clefts, canvas.line_coverage(line, np.minimum(width, 0.12 * frame.wall)), out=clefts)
        inside = canvas.coverage(np.minimum(frame.depth - 2, -frame.cavity - 11))
        canvas.blend(frame.box, 0.9 * clefts * inside, hu["fat"] + 15)

    def _draw_axillae(self, canvas, frame, hu, out):
        """The fat between the pectoral muscles and latissimus, and between the muscles of the back."""
        z = canvas.z_mm
        for side in (-1, 1):
            x = self.shoulder * (0.98 if z < 40 else 0.98 - 0.002 * (z - 40)) - 34 * self.scale
            shape = ellipsoid(canvas, (side * x, -8 + 0.15 * (z - 30), 38), (30, 26, 62), side * 0.35, 3)
            if shape is not None:
                box, d = shape
                bend = canvas.sample(swell(1), box, 2.5, self.shift[2])
                d = np.minimum(d + 4 * bend, np.minimum(frame.on(box, out) - 13, frame.on(box, frame.depth) - 4))
                inside = canvas.paint(box, d, hu["fat"], ID["subcutaneous fat"])
                strands = canvas.sample(sheets(3), box, 1.2, self.shift[5]) * np.float32(1.2)
                twigs = canvas.sample(sheets(1), box, 1.2, self.shift[4]) * np.float32(1.2)
                canvas.blend(box, canvas.line_coverage(strands, 0.25) * inside * 0.6, hu["fat"] + 90)
                twigs = np.sqrt(strands * strands + twigs * twigs)
                canvas.blend(box, canvas.line_coverage(twigs, 1.3 + 0.6 * bend) * inside, hu["muscle"])

    def _draw_breasts(self, canvas, frame, hu):
        """Glandular tissue in strands and lumps within the fat, denser behind the nipple."""
        b, z = self.breast, canvas.z_mm
        away = (z - b["z"]) / (1.2 * b["tall"])
        if abs(away) > 1:
            return
        at = (FROM_FRONT - b["at"]) / (1.25 * b["width"])
        reach = (1.4 - 2.2 * (at**2 + away**2)).astype(np.float32)
        inside = np.minimum(frame.skin - 4, -frame.depth - 3)
        rows, columns = (np.flatnonzero((inside > 0).any(axis)) for axis in (1, 0))
        if not rows.size:
            return
        j, i = frame.box[0].start, frame.box[1].start
        box = slice(j + rows[0], j + rows[-1] + 1), slice(i + columns[0], i + columns[-1] + 1)
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        lumps = canvas.sample(swell(2), box, 0.9, self.shift[3]) + 0.8 * canvas.sample(
            swell(1), box, 0.4, self.shift[4]
        )
        gland = (lumps + reach.take(frame.index[part]) + b["gland"]) * 3
        d = np.minimum(gland, inside[part])
        canvas.blend(box, canvas.coverage(0.4 * d), hu["gland"], ID["breast"])

    def _bone(self, canvas, hu, d, inner, label, shell=1.0):
        bone = hu["rib"] + (0.8 * hu["cortical"] - hu["rib"]) * canvas.coverage(shell - d)
        canvas.paint(inner, d, bone, ID[label])

    def _draw_ribs(self, canvas, frame, hu):
        """The rib cage unrolled: ribs sink from the spine to the side, the first ones less; cartilage climbs."""
        phi, z = FROM_BACK, canvas.z_mm
        along = np.minimum(phi, 2.3)
        fall = -0.14 * along  # how the slope changes with z: a rib's height in z stays the same
        drop = (18 - 0.14 * (z - 90)) * along - 30 * np.maximum(phi - 2.3, 0)
        level = (z + drop - 84 - self.rib_shift) / self.rib_spacing
        number = np.minimum(np.rint(level), 0)
        end = np.pi - 20 * self.scale / np.maximum(frame.outer - 10, 20)
        reach = np.select([number < -11.5, number < -10.5, number < -9.5, number < -6.5], [-1, 0.8, 1.5, 2.5], end)
        ends = np.minimum((reach - phi) * 110, (phi - 0.17) * 110).astype(np.float32)
        a, b = self.rib_axes
        across = ((level - number) * self.rib_spacing / (1 + fall)).astype(np.float32).take(frame.index)
        thick = -frame.cavity - 6.0
        k = np.sqrt((across / a) ** 2 + (thick / b) ** 2) + 1e-6
        d = k * (1 - k) / np.sqrt(across**2 / a**4 + thick**2 / b**4 + 1e-9)
        np.minimum(d, ends.take(frame.index), out=d)
        gristle = canvas.coverage((phi.take(frame.index) - np.float32(2.35)) * 110)
        bone = hu["rib"] + (0.85 * hu["cortical"] - hu["rib"]) * canvas.coverage(1.0 - d)
        c = canvas.coverage(d)
        canvas.blend(frame.box, c, bone + gristle * (hu["cartilage"] - bone), ID["rib"])
        canvas.labels[frame.box][(c >= 0.5) & (gristle >= 0.5)] = ID["cartilage"]

    def _draw_sternum(self, canvas, frame, hu, out):
        """Manubrium, body and xiphoid process in front of the rib cage."""
        z, m = canvas.z_mm, self.sternum_mm * self.scale
        half = float(np.interp(z, [-118, -95, -60, 5, 12, 30, 50, 60, 62], [3, 9, 18, 13, 16, 24, 27, 20, 0])) * m
        if not -118 < z < 62:
            return
        y = self.front_at(z)
        box = canvas.box(-half - 4, half + 4, y - 24, y + 12)
        x = canvas.grid(box)[0] - np.float32(2 * np.sin(z / 60))
        high = float(np.interp(z, [-100, -60, 10, 30], [3.5, 4.6, 4.8, 6.0]))
        p, q = np.abs(x / half), np.abs((frame.on(box, out) - 7.0) / high)
        k = (p**3 + q**3 + 1e-6) ** (1 / 3)
        d = (1 - k) * np.where(p > q, min(half, 2 * high), high).astype(np.float32)
        d = d + 0.5 * canvas.sample(swell(0), box, 1.2, self.shift[3])
        self._bone(canvas, hu, d, box, "sternum")

    def _draw_girdle(self, canvas, frame, hu, side):
        """Scapula, clavicle and the humerus's head on one side."""
        z, s = canvas.z_mm, self.scale
        t = np.linspace(0, 1, 8)
        medial = float(np.interp(z, [self.scapula_z, 0, 60, 90], [1.0, 0.62, 0.6, 0.75]))
        lateral = float(np.interp(z, [self.scapula_z, 0, 50, 90], [1.05, 1.3, 1.42, 1.5]))
        phi = medial + (lateral - medial) * t
        x, y = self._beside(frame, phi, 0.34 + 0.1 * t - 0.06 * np.sin(np.pi * t), side)
        radii = np.interp(t, [0, 0.12, 0.3, 0.8, 1], [1.8, 1.1, 0.9, 1.4, 4.2])
        if z < 78:
            self._capsules(canvas, frame, hu, np.stack([x, y, np.full(8, z)], 1), radii, "scapula")
        if z < 25:
            return
        # the spine of the scapula, the acromion, the glenoid, the coracoid process
        bx, by, ry = x[2], y[2], y[-1]
        wide = 1.02 * self.shoulder
        ridge = [
            (bx, by + 4, 42),
            (bx + side * 16, by + 13, 56),
            (side * (wide - 50), by + 6, 76),
            (side * (wide - 26), by - 6, 96),
        ]
        self._capsules(canvas, frame, hu, np.array(ridge), np.array([3, 5, 5.5, 6.5]), "scapula")
        head = np.array([side * (wide - 36 * s), ry - 4, 90.0])
        socket = head - (side * 25 * s, 0, 14)
        self._capsules(
            canvas, frame, hu, np.array([socket - (side * 5, 0, 8), socket + (0, 0, 12)]), np.array([8, 10]), "scapula"
        )
        beak = np.array([socket + (0, -4, 6), socket + (-side * 10, -22, 8), socket + (side * 4, -32, 4)])
        self._capsules(canvas, frame, hu, beak, np.array([6, 5, 4]), "scapula")
        shape = ellipsoid(canvas, head, (22 * s, 21 * s, 21), 0, 2)
        if shape is not None:
            canvas.paint(shape[0], shape[1] + 2, hu["cartilage"] - 40)
            self._bone(canvas, hu, shape[1], shape[0], "humerus")
        knots = [(20, -11, 56), (50, -15, 66), (85, -4, 78), (118, 14, 92), (135, 26, 100)]
        path = smooth_path([(side * a * s, self.front_at(c) + b, c) for a, b, c in knots], 6)
        self._capsules(canvas, frame, hu, path, np.full(len(path), 5.5), "clavicle")

    def _beside(self, frame, phi, share, side):
        """Points at angles from the back, at a share of the way from the ribs' outside to the muscles' surface."""
        theta = np.pi / 2 - side * phi
        entry = (theta * (len(THETA) / (2 * np.pi))).astype(int) % len(THETA)
        inner = self.cage_radius(frame.z, theta) + 11
        r = inner + share * (frame.outer[entry] - inner)
        return r * np.cos(theta), r * np.sin(theta) + self.axis_y

    def _capsules(self, canvas, frame, hu, knots, radii, label):
        reach = float(np.max(radii)) + 2
        if not knots[:, 2].min() - reach < canvas.z_mm < knots[:, 2].max() + reach:
            return
        box = canvas.box(*(v for i in (0, 1) for v in (knots[:, i].min() - reach, knots[:, i].max() + reach)))
        d = capsules(canvas, box, knots[:-1], knots[1:], np.maximum(radii[:-1], radii[1:]))
        d = np.minimum(d, frame.on(box, frame.depth) - 3)
        self._bone(canvas, hu, d, box, label)


class ThoraxFrame(Frame):
    """The maps of one slice of a thorax, its ``z``, and the box ``inner`` that holds the cavity."""

    def __init__(self, wall: ThoraxWall, canvas: Canvas):
        super().__init__(wall, canvas)
        self.z = canvas.z_mm
        x, y = wall.cage_radius(self.z) * np.cos(THETA), wall.cage_radius(self.z) * np.sin(THETA)
        self.inner = canvas.box(x.min() - 2, x.max() + 2, y.min() - 2, y.max() + 2)


class ThoracicSpine(Spine):
    """Thoracic vertebrae, which follow the rib cage's back, and the muscles beside them."""

    def __init__(self, rng: np.random.Generator, wall: ThoraxWall):
        super().__init__(rng, wall)
        u = rng.uniform
        self.height, self.half = u(22.5, 25.5), (u(15.5, 18) * wall.scale, u(13.5, 15.5) * wall.scale)
        self.transverse, self.sway, self.osteophyte = u(26, 31), u(-4, 4), u(0, 0.14)

    def at(self, z: float) -> tuple[float, float]:
        """Centre of the vertebral body at z."""
        return self.sway * np.sin(z / 80), self.wall.back_at(z) - 28 * self.wall.scale

    def back_at(self, z: float) -> float:
        """y of the back's muscles behind the spine."""
        return self.wall.back_at(z) + 30

    def draw(self, canvas: Canvas, frame: Frame, hu: dict) -> None:
        z = canvas.z_mm
        cx, cy = self.at(z)
        a, b = (v * (1 - 0.0008 * z) for v in self.half)
        box = canvas.box(cx - 56, cx + 56, cy - 30, cy + 74)
        wobble = canvas.sample(swell(2), box, 2.0, self.shift[0])
        back = self.back_at(z) - cy
        for side in (-1, 1):  # the muscles in the groove beside the spinous processes
            shape = ellipsoid(canvas, (cx + side * 23, cy + 0.68 * back, z), (19, 0.3 * back, 1e3), side * -0.2, 3)
            inside = np.minimum(
                shape[1] + canvas.sample(swell(2), shape[0], 2.0, self.shift[0]), frame.on(shape[0], frame.depth) - 2
            )
            canvas.paint(shape[0], inside, hu["muscle"], ID["muscle"])
            bend = canvas.sample(sheets(1), shape[0], 0.9, self.shift[1]) * np.float32(0.9)
            canvas.blend(
                shape[0],
                0.7 * canvas.line_coverage(bend, 0.25 * self.fatty) * canvas.coverage(inside - 1),
                hu["fat"] + 40,
            )
        self._draw_body(canvas, hu, box, wobble, cx, cy, a, b)
        yc = cy + b * 0.8 + 9
        self._draw_canal(canvas, hu, (cx, yc, z), (8.5, 7.5), 2.5)
        self._draw_arch(canvas, hu, box, wobble, cx, yc, a)
