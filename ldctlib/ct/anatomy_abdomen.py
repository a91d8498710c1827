"""A random abdomen, from the lung bases to the iliac crests.

z runs towards the head with z = 0 at the disc L1/L2; x to the patient's left, y to the back; mm throughout. The wall
is described in polar coordinates about the body's axis (depth below the muscles' outer surface), solid organs as
warped ellipsoids clipped by the cavity, tubular organs as chains of balls, vessels as branching trees. HU ranges:
non-contrast and portal-venous as tabulated in radiology texts; arterial from the same sources.
"""

from __future__ import annotations

import numpy as np

from ldctlib.ct.textures import Canvas, VesselTree, capsules, cloud, ellipsoid, sheets, swell, tube

ORGANS: tuple[str, ...] = (
    "background", "subcutaneous fat", "skin", "muscle", "visceral fat", "rib", "cartilage", "vertebra", "disc",
    "spinal canal", "lung", "liver", "portal vein", "hepatic vein", "gallbladder", "spleen", "stomach",
    "stomach content", "gas", "renal cortex", "renal medulla", "renal pelvis", "adrenal", "pancreas", "aorta",
    "vena cava", "vessel", "plaque", "small bowel", "bowel content", "colon", "stool", "metastasis", "cyst", "heart",
    "oesophagus", "table", "ilium", "diaphragm",
)
ID = {name: i for i, name in enumerate(ORGANS)}

# (low, high) HU drawn once per patient
COMMON = {
    "fat": (-112, -92), "skin": (0, 40), "rib": (180, 300), "cortical": (650, 1150), "cartilage": (80, 130),
    "disc": (70, 105), "canal": (15, 35), "lung": (-880, -820), "bile": (2, 18), "fluid": (5, 30), "food": (20, 60),
    "stool": (10, 60), "gas": (-970, -900), "plaque": (500, 1000), "cyst": (-2, 14), "table": (-150, 60),
}
PHASES = {
    "non-contrast": {
        "muscle": (48, 60), "liver": (45, 65), "spleen": (38, 55), "cortex": (26, 40), "medulla": (20, 34),
        "aorta": (38, 50), "cava": (36, 50), "portal": (34, 46), "hepatic": (34, 46), "pancreas": (32, 48),
        "wall": (30, 48), "adrenal": (10, 30), "pelvis": (0, 15), "trabecular": (130, 220), "heart": (38, 50),
    },
    "arterial": {
        "muscle": (52, 64), "liver": (60, 80), "spleen": (95, 140), "cortex": (150, 215), "medulla": (60, 95),
        "aorta": (260, 380), "cava": (60, 120), "portal": (75, 125), "hepatic": (58, 78), "pancreas": (90, 125),
        "wall": (65, 105), "adrenal": (50, 85), "pelvis": (0, 15), "trabecular": (140, 230), "heart": (180, 300),
    },
    "portal venous": {
        "muscle": (55, 65), "liver": (100, 120), "spleen": (110, 130), "cortex": (165, 200), "medulla": (150, 185),
        "aorta": (140, 180), "cava": (120, 160), "portal": (150, 190), "hepatic": (145, 180), "pancreas": (80, 110),
        "wall": (70, 105), "adrenal": (60, 90), "pelvis": (0, 20), "trabecular": (150, 250), "heart": (140, 175),
    },
}
TEXTURE_HU = {
    "subcutaneous fat": 4, "muscle": 6, "visceral fat": 6, "rib": 40, "cartilage": 12, "vertebra": 45, "disc": 8,
    "spinal canal": 4, "lung": 25, "liver": 5, "gallbladder": 1.5, "spleen": 5, "stomach": 8, "stomach content": 6,
    "renal cortex": 8, "renal medulla": 8, "renal pelvis": 3, "adrenal": 7, "pancreas": 10, "aorta": 3,
    "vena cava": 4, "vessel": 3, "small bowel": 10, "bowel content": 8, "colon": 8, "metastasis": 8, "cyst": 2,
    "heart": 5, "oesophagus": 8, "ilium": 60, "portal vein": 3, "hepatic vein": 3,
}
N_ANGLES = 4096
THETA = (np.arange(N_ANGLES) * (2 * np.pi / N_ANGLES)).astype(np.float32)
BACK = np.float32(np.pi / 2)  # y points to the back, so theta = +90° is the spine


def _bump(centre: float, width: float) -> np.ndarray:
    away = np.angle(np.exp(1j * (THETA - centre)))
    return np.exp(-0.5 * (away / width) ** 2).astype(np.float32)


def _path(knots, step: float, rng=None, wander: float = 0.0) -> np.ndarray:
    """A smooth path (n, 3) through knots (Catmull–Rom), resampled every ``step`` mm."""
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


class Frame:
    """Maps that all organs of one slice share: depth below the muscle surface, cavity distance, polar angle."""

    def __init__(self, body: Abdomen, canvas: Canvas):
        z = canvas.z_mm
        radius, fat, wall = body.contours(z)
        x, y = canvas.x[None, :], canvas.y[:, None] - np.float32(body.axis_y)
        outer = float((radius + fat).max()) + 4
        self.box = canvas.box(-outer, outer, body.axis_y - outer, body.axis_y + outer)
        x, y = x[:, self.box[1]], y[self.box[0]]
        angle = np.arctan2(y, x)
        self.index = ((angle * np.float32(N_ANGLES / (2 * np.pi))) + np.float32(N_ANGLES)).astype(np.int32)
        self.index &= N_ANGLES - 1
        # dividing by the slope makes the radial gap a distance
        slope = np.gradient(radius, THETA[1])
        normal = (1 / np.sqrt(1 + (slope / radius) ** 2)).astype(np.float32)
        self.depth = (radius.take(self.index) - np.sqrt(x * x + y * y)) * normal.take(self.index)
        self.fat, self.wall = fat, wall
        self.cavity = self.depth - wall.take(self.index)

    def crop(self, values: np.ndarray, box) -> np.ndarray:
        """A map of this frame on another box (padded by the edge where the box reaches outside)."""
        j, i = self.box
        rows = np.clip(np.arange(box[0].start, box[0].stop) - j.start, 0, values.shape[0] - 1)
        cols = np.clip(np.arange(box[1].start, box[1].stop) - i.start, 0, values.shape[1] - 1)
        if rows[-1] - rows[0] == len(rows) - 1 and cols[-1] - cols[0] == len(cols) - 1:
            return values[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        return values[np.ix_(rows, cols)]


class Abdomen:
    """One abdomen's geometry; everything random is drawn here, nothing while drawing a slice."""

    def __init__(self, rng: np.random.Generator):
        u = rng.uniform
        names = tuple(PHASES)
        self.phase = names[rng.choice(3, p=[0.2, 0.2, 0.6])]
        self.hu = {k: float(u(*v)) for k, v in {**COMMON, **PHASES[self.phase]}.items()}
        self.z_range_mm = (-135.0, 118.0)
        self._body(rng)
        self._spine(rng)
        self._solid(rng)
        self._vessels(rng)
        self._bowel(rng)
        self._lesions(rng)
        self.shift = {k: rng.uniform(0, 96, 3) for k in
                      ("cloud", "septa", "muscle", "fat1", "fat2", "lung", "stool", "warp", "bone", "fine")}
        amp = np.zeros(256, np.float32)
        for name, value in TEXTURE_HU.items():
            amp[ID[name]] = value * rng.uniform(0.7, 1.4)
        self.texture_hu = amp

    # ---- latent -------------------------------------------------------------------------------------------------

    def _body(self, rng):
        u = rng.uniform
        self.half_width = float(np.clip(rng.normal(138, 10), 118, 165))
        self.half_depth = self.half_width * u(0.66, 0.78)
        self.axis_y = -u(0, 6)
        self.power = u(2.15, 2.6)
        self.harmonic = [(k, u(0.003, 0.018) / (k - 1), u(0, 2 * np.pi), u(-0.012, 0.012)) for k in (2, 3, 4, 5)]
        thin = float(np.clip(rng.lognormal(2.75, 0.45), 6, 38))
        self.fat_mm = dict(all=thin * 0.6, front=thin * u(0.3, 1.0), side=thin * u(0.3, 0.9), back=thin * u(0.3, 1.0))
        self.fat_drift = u(-0.0035, 0.0005)  # the fat layer grows towards the pelvis
        self.wall_mm = dict(lateral=u(11, 18), rectus=u(6, 11), back=u(30, 42))
        self.rectus_gap = u(0.05, 0.13)
        self.semilunar = u(0.55, 0.75)
        widest = self.half_width * 1.04 + thin * 1.7 + 8
        self.field_of_view_mm = float(np.clip(2.1 * widest, 338, 460))
        self.rib_spacing, self.rib_shift = u(25, 30), u(-8, 8)
        self.rib_drop = u(62, 88)
        self.table_gap = u(2, 10) if rng.random() < 0.75 else None
        self.table_curve = u(0.0004, 0.0012)
        self.septa_density = u(0.15, 0.6)

    def contours(self, z: float):
        """Radius of the muscles' outer surface, thickness of fat outside and of the wall inside it, by angle."""
        s, c = np.sin(THETA), np.cos(THETA)
        waist = 1 - 0.035 * np.cos((z + 20) / 70)
        a, b = self.half_width * waist, self.half_depth * (1 - 0.02 * np.sin(z / 60))
        n = self.power
        radius = (np.abs(c / a) ** n + np.abs(s / b) ** n) ** (-1 / n)
        for k, amp, phase, drift in self.harmonic:
            radius = radius * (1 + amp * np.cos(k * (THETA - BACK) + 0.3 * np.sin(phase + drift * z)))
        radius *= 1 - 0.05 * _bump(np.pi / 2, 0.14)  # furrow over the spine
        grow = np.exp(self.fat_drift * z)
        f = self.fat_mm
        fat = f["all"] + f["front"] * _bump(-np.pi / 2, 0.7) + f["back"] * (_bump(0.9, 0.4) + _bump(np.pi - 0.9, 0.4))
        fat = (fat + f["side"] * (_bump(0, 0.5) + _bump(np.pi, 0.5))) * grow
        fat = fat + 3 * np.sin(2 * THETA + z / 90) ** 2 - 2.5 * _bump(-np.pi / 2, 0.05)
        w = self.wall_mm
        low = 1 / (1 + np.exp((z - 30) / 18))  # 1 below the ribs
        side = w["lateral"] * (0.75 + 0.25 * low)
        front = np.abs(np.angle(np.exp(1j * (THETA + np.pi / 2))))
        wall = np.where(front < self.semilunar, w["rectus"] * np.abs(np.sin(np.pi * np.clip(front / self.semilunar, 0, 1)))
                        ** 0.6, side * (1 - np.exp(-((front - self.semilunar) / 0.16) ** 2)))
        wall = np.maximum(wall, 1.6) + w["back"] * _bump(np.pi / 2, 0.42)
        return (radius.astype(np.float32), np.maximum(fat, 2.5).astype(np.float32), wall.astype(np.float32))

    def _spine(self, rng):
        u = rng.uniform
        self.vertebra_mm = u(31, 36)
        self.spine_y = self.axis_y + self.half_depth * u(0.22, 0.32)
        self.spine_sway = u(-5, 5), u(0, 6)
        self.body_half = u(20, 24), u(14.5, 18)
        self.osteophyte = u(0, 0.08)

    def spine_at(self, z: float) -> tuple[float, float]:
        sway, lordosis = self.spine_sway
        return sway * np.sin(z / 80), self.spine_y - lordosis * np.cos((z + 60) / 55)

    def _solid(self, rng):
        u, g, s = rng.uniform, rng.normal, self.half_width / 138
        sy = self.spine_y
        j = lambda v, sd=5.0: tuple(np.asarray(v, float) + g(0, sd, 3))  # noqa: E731
        self.scale = s
        self.dome_top = u(95, 125), u(85, 112)
        self.liver = [
            (j((-72 * s, 0, 35)), (88 * s * u(0.9, 1.1), 92, u(85, 105)), u(-0.2, 0.2)),
            (j((-5 * s, -48, 52)), (u(55, 95) * s, u(32, 46), u(42, 62)), u(-0.1, 0.35)),
            (j((-28 * s, 5, 40), 3), (40, 34, 50), 0.0),
        ]
        self.warp_mm = u(3, 6)
        self.spleen = (j((96 * s, 28, 40)), (u(34, 46) * s, u(48, 66), u(48, 70)), u(-0.5, -0.1))
        self.spleen_hilum = (j((52 * s, 18, 40)), (26, 40, 55), 0.0)
        self.gallbladder = (j((-48 * s, -38, 6)), (u(11, 17), u(15, 24), u(22, 32)), u(-0.6, 0.6))
        if rng.random() < 0.15:
            self.gallbladder = None
        self.kidneys = []
        for side, zc in ((-1, -14), (1, 2)):
            self.kidneys.append(dict(
                side=side, centre=j((side * 62 * s, sy + 8, zc), 4), axes=(u(24, 29), u(27, 33), u(48, 58)),
                angle=side * u(0.3, 0.8), columns=rng.integers(6, 10), phase=u(0, 6.28), dilated=u(0.5, 1.3),
            ))
        self.adrenals = [(side, j((side * 34 * s, sy - 4, 48), 3), u(1.8, 3.0)) for side in (-1, 1)]
        self.pancreas = _path([(-34 * s, -6, -22), (-28 * s, -16, -5), (-4, -25, 8), (28 * s, -18, 16),
                               (55 * s, -2, 26), (72 * s, 12, 32)], 2.5, rng, 4)
        n = len(self.pancreas)
        self.pancreas_r = np.interp(np.arange(n), [0, .2 * n, .4 * n, n], [14, 15, 9, 10]) * u(0.8, 1.1)
        self.lobulation = u(0.3, 1.0)
        self.stomach = _path([(58 * s, 8, 88), (66 * s, -2, 66), (58 * s, -28, 40), (38 * s, -46, 18), (8, -50, 5),
                              (-18, -42, 4), (-34 * s, -30, 0), (-44 * s, -14, -10), (-42 * s, -4, -35),
                              (-20, 2, -55), (10, -2, -58), (34, -14, -45)], 3.5, rng, 5)
        n = len(self.stomach)
        fill = u(0.55, 1.15)
        self.stomach_r = np.interp(np.arange(n) / n, [0, .12, .25, .4, .5, .56, .62, 1],
                                   [26 * fill + 6, 30 * fill + 6, 27 * fill + 6, 18 * fill + 5, 14 * fill + 5, 10, 11, 11])
        self.stomach_wall = u(2.5, 4.5)
        self.air_level = -u(22, 52)
        self.stomach_fill = float(u(5, 30) if rng.random() < 0.7 else u(60, 350))  # water, or positive oral contrast
        self.heart = (j((18, -30, 128)), (62 * s, 46, 34), u(-0.4, 0.0))

    def _vessels(self, rng):
        u, s = rng.uniform, self.scale
        zz = np.linspace(150, -112, 60)
        front = np.array([self.spine_at(z) for z in zz])
        half = self.body_half[1]
        self.aorta_r = u(8, 11.5)
        wob = u(2, 7) * np.sin(zz / 60 + u(0, 6))
        ax = front[:, 0] + 9 + np.abs(wob) * 0.6 + np.interp(zz, [20, 150], [0, 8])
        ay = front[:, 1] - half - self.aorta_r - 1 + np.interp(zz, [60, 150], [0, 9])
        self.aorta = np.stack([ax, ay, zz], 1)
        cx = front[:, 0] - 22 - np.interp(zz, [30, 100], [0, 10])
        cy = front[:, 1] - half - 4 - np.interp(zz, [20, 100], [0, 26])
        self.cava = np.stack([cx, cy, zz], 1)
        self.cava_axes = u(10, 14), u(6.5, 11)
        at = lambda path, z: np.array([np.interp(-z, -path[:, 2], path[:, i]) for i in range(3)])  # noqa: E731
        a0, c0 = at(self.aorta, 15), at(self.cava, -5)
        along = VesselTree.along
        arteries, veins = [], []
        coel = at(self.aorta, 24)
        arteries.append(along(_path([coel, coel + (0, -20, 4), coel + (30, -22, 8), (60 * s, 0, 30), (80 * s, 18, 36)],
                                    3, rng, 1), np.full(200, 3.0)[: len(_path([coel, coel], 3))])) if False else None
        def line(knots, r0, r1, bag):
            p = _path(knots, 4, rng, 1.5)
            bag.append(along(p, np.linspace(r0, r1, len(p))))
            return p
        arteries.clear()
        line([coel, coel + (-2, -16, 4), coel + (25, -20, 8), (55 * s, -2, 28), (78 * s, 16, 34)], 3.4, 2.0, arteries)
        line([coel + (-2, -16, 4), coel + (-25, -26, 2), (-32 * s, -28, 10)], 2.8, 1.8, arteries)
        sma = line([a0, a0 + (-1, -16, -6), a0 + (-2, -20, -40), a0 + (-6, -24, -80), (-30, -5, -115)], 3.8, 2.2,
                   arteries)
        smv = line([(-26 * s, -24, 2), sma[len(sma) // 3] + (-13, -2, 0), sma[-8] + (-12, -2, 0), (-38, -8, -118)],
                   6.0, 3.2, veins)
        line([(-22 * s, -24, 4), (5, -24, 12), (45 * s, -6, 24), (72 * s, 14, 32)], 5.0, 3.2, veins)
        for k in self.kidneys:
            c, side = np.array(k["centre"]), k["side"]
            hilum = c + (-side * 20, -12, 0)
            line([at(self.aorta, c[2] + 4), (hilum + at(self.aorta, c[2] + 4)) / 2 + (0, 4, 0), hilum], 2.8, 2.0,
                 arteries)
            start = at(self.cava, c[2] - 2) if side < 0 else at(self.cava, c[2]) + (8, -4, 0)
            mid = (hilum + start) / 2 + ((0, 0, 0) if side < 0 else (0, -16, 0))
            line([start, mid, hilum + (0, -3, 0)], 5.0, 3.5, veins)
        for side in (-1, 1):  # iliac vessels
            low = at(self.aorta, -95)
            line([low, low + (side * 16, 0, -22), low + (side * 32, 8, -50)], 6.5, 5.0, arteries)
        for p in (sma, smv):
            bag = arteries if p is sma else veins
            for q in p[6::4]:
                for _ in range(3):
                    d = np.array([u(-1, 1), u(-0.9, 0.25), u(-0.9, 0.3)])
                    bag.append(VesselTree.grow(rng, q, d, radius=u(1.3, 2.0), length=u(26, 42), levels=3,
                                               spread=0.5, shrink=0.72, taper=0.76, wander=0.16))
        for _ in range(14):  # gastric, omental, colic and retroperitoneal branches
            p = np.array([u(-95, 95) * s, u(-62, -20), u(-110, 70)])
            arteries.append(VesselTree.grow(rng, p, rng.normal(size=3), radius=u(1.0, 1.8), length=u(25, 50), levels=3,
                                            spread=0.6, wander=0.25))
        for _ in range(26):  # under the skin and between muscles
            t = u(0, 2 * np.pi)
            p = np.array([np.cos(t) * (self.half_width + u(2, 10)), np.sin(t) * (self.half_depth + u(2, 10)),
                          u(-130, 110)])
            veins.append(VesselTree.grow(rng, p, (-np.sin(t), np.cos(t), u(-1, 1)), radius=u(0.7, 1.4), length=40,
                                         levels=2, spread=0.4, wander=0.2))
        self.arteries, self.veins = VesselTree.join(arteries), VesselTree.join(veins)
        porta = np.array([-26 * s, -24, 10])
        hilum = np.array([-44 * s, -14, 28])
        trunk = _path([porta, (porta + hilum) / 2 + (0, 2, 0), hilum], 4)
        portal = [along(trunk, np.linspace(7, 6, len(trunk)))]
        for d, r, length in (((-1, 0.35, 0.25), 5.0, 34), ((0.75, -0.9, 0.35), 4.2, 38), ((-0.9, -0.6, -0.5), 4.0, 34)):
            portal.append(VesselTree.grow(rng, hilum, d, radius=r, length=length, levels=5, spread=0.6, shrink=0.82,
                                          taper=0.73, wander=0.12))
        self.portal = VesselTree.join(portal)
        top = at(self.cava, 84)
        hepatic = [VesselTree.grow(rng, top, d, radius=4.4, length=46, levels=5, spread=0.45, shrink=0.78, taper=0.74,
                                   wander=0.1)
                   for d in ((-1, 0.1, -0.35), (-0.6, -0.9, -0.4), (0.35, -1, -0.25), (-0.7, 0.5, -0.7))]
        self.hepatic = VesselTree.join(hepatic)
        self.plaques = [] if rng.random() < 0.5 else [
            (u(-110, 60), u(0, 2 * np.pi), u(0.3, 1.0), u(3, 10)) for _ in range(rng.integers(2, 12))]

    def _bowel(self, rng):
        u, s = rng.uniform, self.scale
        w, d = self.half_width, self.half_depth
        x0 = w - self.wall_mm["lateral"] - 26
        colon = _path([
            (-x0 + 12, 22, -128), (-x0, 14, -105), (-x0 - 2, 24, -70), (-x0, 20, -40), (-x0 + 8, -8, -28),
            (-x0 * 0.66, -d + 42, -40 + u(-15, 15)), (-x0 * 0.25, -d + 34, -50 + u(-20, 15)), (x0 * 0.2, -d + 34, -42),
            (x0 * 0.6, -d + 42, -15), (x0 * 0.9, -12, 18), (x0, 20, 22), (x0 + 4, 30, -10), (x0 + 4, 28, -50),
            (x0, 24, -90), (x0 - 8, 16, -130), (x0 - 40, 10, -150)], 4.0, rng, 6)
        n = len(colon)
        base = np.interp(np.arange(n) / n, [0, .25, .55, .68, .8, 1], [26, 22, 19, 15, 13, 13]) * u(0.75, 1.05)
        self.colon, self.colon_base = colon, base
        self.colon_r = base * (1 + 0.14 * np.abs(np.sin(np.arange(n) * 4.0 / u(9, 12))) - 0.07)
        self.colon_wall = u(1.5, 2.8)
        self.colon_gas = u(0.1, 0.9)
        # each stretch of the colon has its own filling: gas, stool, fluid
        self.colon_fill = np.interp(np.arange(n), np.linspace(0, n, 14), u(0, 1, 14))
        self.loops = []
        filled = u(0.0, 0.8)
        for _ in range(rng.integers(30, 44)):
            p = np.array([u(-0.68, 0.68) * w, u(-d + 30, 12), u(-150, 12)])
            direction = rng.normal(size=3) * (1, 0.8, 0.7)
            knots = [p]
            for _ in range(rng.integers(3, 6)):
                direction = direction / np.linalg.norm(direction) + rng.normal(0, 0.7, 3)
                p = p + direction / np.linalg.norm(direction) * 24
                p[:2] *= np.minimum(1, 0.7 * w / max(abs(p[0]), 1)), 1
                p[1] = np.clip(p[1], -d + 26, 24)
                p[2] = min(p[2], 20)
                knots.append(p.copy())
            path = _path(knots, 3.5)
            r = u(7.5, 13) * (1 + 0.18 * np.sin(np.linspace(0, u(4, 9), len(path)) + u(0, 6)))
            ends = np.minimum(np.arange(len(path)) + 1, np.arange(len(path))[::-1] + 1)
            r = r * np.sqrt(np.minimum(ends / 3, 1))
            fill = u(0, 30) if rng.random() < filled else u(30, 70)
            if rng.random() < 0.04:
                fill = u(150, 350)
            self.loops.append(dict(path=path, r=r, fill=fill, wall=u(1.6, 2.6), pitch=u(3.2, 5.5), gas=u(0, 1),
                                   folds=u(0.2, 1.0)))

    def _lesions(self, rng):
        u = rng.uniform
        self.liver_lesions = []
        if rng.random() < 0.5:
            for _ in range(rng.integers(1, 8)):
                c = np.array(self.liver[0][0]) + rng.uniform(-1, 1, 3) * (60, 55, 60)
                r = float(np.clip(rng.lognormal(1.9, 0.5), 2.5, 28))
                cyst = rng.random() < 0.35
                hu = self.hu["cyst"] if cyst else self.hu["liver"] - u(20, 60)
                self.liver_lesions.append((c, r * u(0.8, 1.2, 3), u(0, 3), hu, cyst))
        self.kidney_cysts = []
        for k in self.kidneys:
            if rng.random() < 0.35:
                d = rng.normal(size=3)
                d /= np.linalg.norm(d)
                c = np.array(k["centre"]) + d * np.array(k["axes"]) * 0.9
                self.kidney_cysts.append((c, float(np.clip(rng.lognormal(2.1, 0.5), 3, 30))))

    # ---- drawing ------------------------------------------------------------------------------------------------

    def draw(self, canvas: Canvas) -> None:
        frame = Frame(self, canvas)
        self._draw_table(canvas, frame)
        self._draw_wall(canvas, frame)
        self._draw_fat(canvas, frame)
        inside = np.zeros_like(canvas.hu)
        inside[frame.box] = canvas.coverage(frame.depth + frame.fat.take(frame.index) - 3)
        self.veins.draw(canvas, self.hu["cava"], ID["vessel"], mask=inside)
        self.arteries.draw(canvas, self.hu["aorta"], ID["vessel"], mask=inside)
        self._draw_spine(canvas, frame)
        self._draw_retroperitoneum(canvas, frame)
        self._draw_bowel(canvas, frame)
        self._draw_upper(canvas, frame)
        self._draw_great_vessels(canvas)
        self._draw_lung(canvas, frame)
        self._add_texture(canvas, frame)

    def _draw_table(self, canvas, frame):
        if self.table_gap is None:
            return
        radius, fat, _ = self.contours(0.0)
        y0 = self.axis_y + float((radius + fat)[N_ANGLES // 4]) + self.table_gap
        box = canvas.box(-230, 230, y0 - 60, y0 + 30)
        if box is None:
            return
        x, y = canvas.grid(box)
        d = y - (np.float32(y0) - np.float32(self.table_curve) * x * x)
        slope = np.sqrt(1 + (2 * self.table_curve * x) ** 2)
        for offset in (0.0, 22.0):
            canvas.blend(box, canvas.line_coverage((d - offset) / slope, 0.9), self.hu["table"] + 100, ID["table"])

    def _draw_wall(self, canvas, frame):
        hu, box = self.hu, frame.box
        skin = frame.depth + frame.fat.take(frame.index)
        warp = canvas.sample(swell(0), box, 3.0, self.shift["warp"])
        skin += 0.8 * warp
        canvas.paint(box, skin, hu["skin"], ID["skin"])
        canvas.paint(box, skin - 1.6, hu["fat"], ID["subcutaneous fat"])
        # septa: sheets between the fat lobules, thicker in the superficial and Scarpa's layers
        septa = canvas.sample(sheets(0), box, 0.9, self.shift["septa"])
        line = canvas.line_coverage(septa * np.float32(0.9), 0.16 + 0.1 * warp)
        scarpa = canvas.line_coverage(frame.depth + 0.55 * frame.fat.take(frame.index) + 1.5 * warp, 0.25)
        inside = canvas.coverage(skin - 2)
        canvas.blend(box, np.maximum(line * self.septa_density, 0.6 * scarpa) * inside, hu["fat"] + 75)
        muscle = frame.depth + 0.6 * warp
        canvas.paint(box, muscle, hu["muscle"], ID["muscle"])
        # fat planes between and within the muscles
        wall = frame.wall.take(frame.index)
        streaks = canvas.sample(sheets(1), box, 0.8, self.shift["muscle"]) * np.float32(0.8)
        planes = canvas.line_coverage(streaks, 0.22 + 0.18 * warp) * 0.7
        for part in (0.36, 0.68):
            plane = canvas.line_coverage(frame.depth - part * wall + 0.5 * warp, 0.45 + 0.2 * warp)
            np.maximum(planes, plane * 0.85, out=planes)
        canvas.blend(box, planes * canvas.coverage(muscle - 1), hu["fat"] + 30)
        self._draw_ribs(canvas, frame, muscle)
        canvas.paint(box, frame.cavity, hu["fat"], ID["visceral fat"])

    def _draw_ribs(self, canvas, frame, muscle):
        z, box, hu = canvas.z_mm, frame.box, self.hu
        # around the wall from the spine (0) to the front (pi)
        phi = np.abs(np.angle(np.exp(1j * (THETA - np.pi / 2)))).astype(np.float32)
        drop = self.rib_drop * np.sin(np.minimum(phi, 1.75) * 0.95) - 55 * np.maximum(phi - 1.9, 0) ** 1.3
        level = (z + drop - 22 - self.rib_shift) / self.rib_spacing
        number = np.rint(level)
        reach = np.where(number < -0.5, -1, np.where(number < 0.5, 0.95, np.where(number < 1.5, 1.7, 2.75)))
        along = (level - number) * self.rib_spacing * 0.9
        ends = np.minimum((reach - phi) * 110, (phi - 0.2) * 110)
        if not (ends > -4).any():
            return
        end, across = ends.astype(np.float32).take(frame.index), along.astype(np.float32).take(frame.index)
        thick = frame.depth - np.minimum(0.55 * frame.wall.take(frame.index), 11)
        k = np.sqrt((across / 6.5) ** 2 + (thick / 4.0) ** 2) + 1e-6
        d = k * (1 - k) / np.sqrt(across**2 / 6.5**4 + thick**2 / 4.0**4 + 1e-6)
        np.minimum(d, end, out=d)
        gristle = canvas.coverage((phi.take(frame.index) - 2.2) * 110)
        bone = hu["rib"] + (hu["cortical"] * 0.85 - hu["rib"]) * canvas.coverage(1.1 - d)
        c = canvas.coverage(d)
        canvas.blend(box, c, bone + gristle * (hu["cartilage"] - bone))
        labels = canvas.labels[box]
        labels[c >= 0.5] = ID["rib"]
        labels[(c >= 0.5) & (gristle >= 0.5)] = ID["cartilage"]

    def _draw_fat(self, canvas, frame):
        """Strands and the smallest vessels of the mesentery and the retroperitoneum."""
        hu = self.hu
        reach = frame.cavity
        rows, cols = np.flatnonzero((reach > 0).any(1)), np.flatnonzero((reach > 0).any(0))
        box = (slice(frame.box[0].start + rows[0], frame.box[0].start + rows[-1] + 1),
               slice(frame.box[1].start + cols[0], frame.box[1].start + cols[-1] + 1))
        inside = canvas.coverage(frame.crop(reach, box) - 1)
        s1 = canvas.sample(sheets(2), box, 0.9, self.shift["fat1"]) * np.float32(0.9)
        s2 = canvas.sample(sheets(3), box, 1.1, self.shift["fat2"]) * np.float32(1.1)
        haze = canvas.sample(cloud(3.0), box, 1.3, self.shift["fat1"])
        strand = canvas.line_coverage(s1, 0.2 + 0.12 * haze) * 0.55
        vessel = canvas.line_coverage(np.sqrt(s1 * s1 + s2 * s2), 1.0 + 0.3 * haze)
        canvas.blend(box, strand * inside, hu["fat"] + 90)
        canvas.hu[box] += inside * (4 * haze)
        canvas.blend(box, vessel * inside, 0.5 * (hu["cava"] + hu["muscle"]))

    def _draw_spine(self, canvas, frame):
        hu, z = self.hu, canvas.z_mm
        cx, cy = self.spine_at(z)
        h = self.vertebra_mm
        level = z / h
        number = np.floor(level)
        p = (number + 1 - level)  # 0 at the top of the vertebra, 1 at the bottom of the disc below it
        a, b = (v * (1 + np.clip(-z, -120, 120) * 0.0009) for v in self.body_half)
        # psoas and quadratus beside the spine, from L1 down; crura above
        grow = float(np.clip((45 - z) / 110, 0, 1))
        for side in (-1, 1):
            if grow > 0.05:
                shape = ellipsoid(canvas, (cx + side * (a + 2 + 15 * grow), cy + 5, z), (6 + 14 * grow, 8 + 15 * grow, 1e3),
                                  side * 0.35, 2)
                warp = canvas.sample(swell(1), shape[0], 2.2, self.shift["warp"])
                canvas.paint(shape[0], shape[1] + 1.2 * warp, hu["muscle"], ID["muscle"])
                shape = ellipsoid(canvas, (cx + side * (a + 36), cy + 26, z), (19, 6.5, 1e3), side * -0.45, 2)
                canvas.paint(shape[0], shape[1] - 3 * (1 - grow), hu["muscle"], ID["muscle"])
            else:
                shape = ellipsoid(canvas, (cx + side * (a - 4), cy - b + 2, z), (11, 5, 1e3), side * -0.7, 2)
                canvas.paint(shape[0], shape[1], hu["muscle"], ID["diaphragm"])
        box = canvas.box(cx - 62, cx + 62, cy - 34, cy + 74)
        x, y = canvas.grid(box)
        wobble = canvas.sample(swell(2), box, 2.0, self.shift["bone"])
        # body with a flattened back, a waist at mid height and lips at the end plates
        edge = min(p, 0.8 - p) * h if p < 0.8 else -min(p - 0.8, 1 - p) * h
        flare = 1 + self.osteophyte * np.exp(-abs(edge) / 3) - 0.05 * np.exp(-((p - 0.4) / 0.2) ** 2)
        xx, yy = (x - cx) / (a * flare), (y - cy) / (b * flare)
        k = np.sqrt(xx * xx + yy * yy) + 1e-6
        d = (1 - k) * k / np.sqrt((xx / a) ** 2 + (yy / b) ** 2 + 1e-9)
        d = np.minimum(d, np.float32(cy + b * 0.80) - y + 0.004 * (x - cx) ** 2) + 0.5 * wobble
        if p < 0.8:
            inner = np.minimum(d, edge)
            value = hu["trabecular"] + (hu["cortical"] * 0.8 - hu["trabecular"]) * canvas.coverage(1.0 - inner)
            canvas.paint(box, d, value, ID["vertebra"])
        else:
            canvas.paint(box, d, hu["disc"] - 15 * canvas.coverage(d - 6), ID["disc"])
        yc = cy + b * 0.8 + 9
        shape = ellipsoid(canvas, (cx, yc, z), (12.5, 9.5, 1e3), 0.0, 2)
        canvas.paint(shape[0], shape[1], hu["fat"] + 50, ID["spinal canal"])
        shape = ellipsoid(canvas, (cx, yc, z), (9, 7, 1e3), 0.0, 2)
        canvas.paint(shape[0], shape[1], hu["canal"], ID["spinal canal"])
        ends_a, ends_b, radii = [], [], []
        tip = min(62.0, self.axis_y + self.half_depth - cy - 7)
        for n in (number + 2, number + 1, number):
            top = n * h
            zz = lambda f, top=top: top - f * h  # noqa: E731
            parts = [((0, yc - cy + 15, zz(0.62)), (0, tip, zz(0.95)), 3.0)]
            for side in (-1, 1):
                parts += [
                    ((side * (a - 6), b * 0.6, zz(0.28)), (side * 17, yc - cy + 6, zz(0.34)), 4.8),
                    ((side * 19, yc - cy + 6, zz(0.34)), (side * 44, yc - cy + 9, zz(0.30)), 3.4),
                    ((side * 16, yc - cy + 8, zz(0.45)), (0, yc - cy + 16, zz(0.72)), 3.6),
                    ((side * 17, yc - cy + 6, zz(0.75)), (side * 18, yc - cy + 10, zz(1.12)), 6.0),
                ]
            for q, r, w in parts:
                ends_a.append((cx + q[0], cy + q[1], q[2]))
                ends_b.append((cx + r[0], cy + r[1], r[2]))
                radii.append(w)
        d = capsules(canvas, box, np.array(ends_a), np.array(ends_b), np.array(radii)) + 0.4 * wobble
        value = hu["trabecular"] + (hu["cortical"] * 0.8 - hu["trabecular"]) * canvas.coverage(1.4 - d)
        canvas.paint(box, d, value, ID["vertebra"])

    def _draw_retroperitoneum(self, canvas, frame):
        hu = self.hu
        fine = self.shift["fine"]
        for k in self.kidneys:
            shape = ellipsoid(canvas, k["centre"], k["axes"], k["angle"], 3)
            if shape is None:
                continue
            box, d = shape
            d = d + 1.2 * canvas.sample(swell(3), box, 1.4, fine)
            x, y = canvas.grid(box)
            cx, cy, cz = k["centre"]
            side, dz = k["side"], canvas.z_mm - cz
            # the sinus opens towards the great vessels
            sx, sy = x - (cx - side * 14), y - (cy - 9)
            e = np.sqrt((sx / 19) ** 2 + (sy / 12) ** 2 + (dz / 26) ** 2)
            sinus = (1 - e) * 13
            kidney = np.minimum(d, -sinus)
            angle = np.arctan2(sy, sx)
            pyramid = np.sin(k["columns"] * angle + k["phase"] + dz / 9) * 3.0 + np.sin(dz / 6.0) * 1.5
            medulla = np.minimum(d - 6.5, -sinus - 1.0) + np.minimum(pyramid, 0.5)
            canvas.paint(box, kidney, hu["cortex"], ID["renal cortex"])
            canvas.paint(box, np.minimum(medulla, kidney), hu["medulla"], ID["renal medulla"])
            pelvis = np.minimum((0.55 * k["dilated"] - e) * 13, d + 6)
            spread = np.minimum(sinus - 1.5, 2.4 - np.abs(np.sin(3 * angle + k["phase"])) * 5)
            canvas.paint(box, np.maximum(pelvis, np.minimum(spread, d - 5)), hu["pelvis"], ID["renal pelvis"])
        for c, r in self.kidney_cysts:
            shape = ellipsoid(canvas, c, (r, r * 0.95, r), 0, 2)
            if shape is not None:
                canvas.paint(shape[0], np.minimum(shape[1], frame.crop(frame.cavity, shape[0]) - 1), hu["cyst"],
                             ID["cyst"])
        for side, c, w in self.adrenals:
            c = np.array(c)
            box = canvas.box(c[0] - 20, c[0] + 20, c[1] - 20, c[1] + 20)
            if box is None or abs(canvas.z_mm - c[2]) > 18:
                continue
            a = np.array([c, c, c]) + [(0, -8, 8), (0, 0, 0), (0, 0, 0)]
            b = np.array([c, c, c]) + [(side * 1, 0, 0), (side * 10, 12, -12), (-side * 3, 13, -10)]
            canvas.paint(box, capsules(canvas, box, a, b, np.full(3, w)), hu["adrenal"], ID["adrenal"])
        shape = tube(canvas, self.pancreas, self.pancreas_r)
        if shape is not None:
            box, d, _ = shape
            lobes = canvas.sample(sheets(4), box, 0.45, fine) * np.float32(0.45)
            d = np.minimum(d, np.abs(lobes) + 3.5 * (1 - self.lobulation)) if False else d
            d = d + 1.2 * canvas.sample(swell(1), box, 0.7, fine)
            c = canvas.paint(box, d, hu["pancreas"], ID["pancreas"])
            cleft = canvas.line_coverage(lobes, 0.45) * self.lobulation * c * np.clip(1.1 - d / 14, 0, 1)
            canvas.blend(box, cleft, hu["fat"] + 40)

    def _draw_bowel(self, canvas, frame):
        hu, fine = self.hu, self.shift["fine"]
        for loop in self.loops:
            shape = tube(canvas, loop["path"], loop["r"])
            if shape is None:
                continue
            box, d, arc = shape
            d = np.minimum(d, frame.crop(frame.cavity, box) - 1.2)
            d = d + 0.8 * canvas.sample(swell(3), box, 0.8, fine)
            canvas.paint(box, d + 0.9, hu["fat"])  # a film of fat keeps loops apart
            lumen = d - loop["wall"]
            canvas.paint(box, d, hu["wall"], ID["small bowel"])
            c = canvas.paint(box, lumen, loop["fill"], ID["bowel content"])
            folds = np.cos(arc * np.float32(2 * np.pi / loop["pitch"]) + 2 * canvas.sample(swell(2), box, 0.6, fine))
            depth = 0.25 + 0.75 * np.clip(1 - lumen / 4.5, 0, 1)
            canvas.blend(box, c * np.clip(folds * 2.2 - 0.8, 0, 1) * depth * loop["folds"], hu["wall"])
            if loop["gas"] > 0.85:
                y = canvas.grid(box)[1]
                level = np.float32(loop["path"][:, 1].mean() - 3) - y
                canvas.paint(box, np.minimum(lumen, level), hu["gas"], ID["gas"])
        shape = tube(canvas, self.colon, self.colon_r, 5.0)
        if shape is None:
            return
        box, d, arc = shape
        d = np.minimum(d, frame.crop(frame.cavity, box) - 1.2)
        d = d + 1.0 * canvas.sample(swell(0), box, 1.0, fine)
        canvas.paint(box, d + 0.8, hu["fat"])
        canvas.paint(box, d, hu["wall"], ID["colon"])
        lumen = d - self.colon_wall
        fill = np.interp(arc / 4.0, np.arange(len(self.colon_fill)), self.colon_fill).astype(np.float32)
        bubbles = canvas.sample(cloud(2.0), box, 0.6, self.shift["stool"])
        c = canvas.paint(box, lumen, hu["stool"] + 18 * bubbles, ID["stool"])
        specks = canvas.coverage((bubbles - 1.2 + 0.9 * (fill - 0.5)) * 1.6)
        canvas.blend(box, c * specks * canvas.coverage(lumen - 1.0), -650.0)
        gas = np.minimum(lumen, (fill - 1 + self.colon_gas) * 40)
        canvas.paint(box, gas, hu["gas"], ID["gas"])

    def _draw_upper(self, canvas, frame):
        hu, fine, s = self.hu, self.shift["fine"], self.scale
        self._draw_stomach(canvas, frame)
        shape = ellipsoid(canvas, *self.spleen, 3)
        if shape is not None:
            box, d = shape
            d = np.minimum(d, frame.crop(frame.cavity, box) - 2.0)
            hilum = ellipsoid(canvas, *self.spleen_hilum, 200)
            if hilum is not None:
                x, y = canvas.grid(box)
                c, axes, _ = self.spleen_hilum
                e = np.sqrt(((x - c[0]) / axes[0]) ** 2 + ((y - c[1]) / axes[1]) ** 2 + ((canvas.z_mm - c[2]) / axes[2]) ** 2)
                d = np.minimum(d, (e - 1) * axes[0])
            d = d + 1.6 * canvas.sample(swell(0), box, 1.6, fine)
            canvas.paint(box, d + 0.8, hu["fat"])
            canvas.paint(box, d, hu["spleen"], ID["spleen"])
        self._draw_liver(canvas, frame)

    def _draw_stomach(self, canvas, frame):
        hu, fine = self.hu, self.shift["fine"]
        shape = tube(canvas, self.stomach, self.stomach_r, 5.0)
        if shape is None:
            return
        box, d, arc = shape
        d = np.minimum(d, frame.crop(frame.cavity, box) - 3.0)
        d = d + 1.5 * canvas.sample(swell(1), box, 1.5, fine)
        canvas.paint(box, d + 1.0, hu["fat"])
        canvas.paint(box, d, hu["wall"], ID["stomach"])
        folds = canvas.sample(sheets(5), box, 0.7, fine) * np.float32(0.7)
        rugae = np.clip(2.6 - np.abs(folds), 0, 2.6) * 0.9
        lumen = d - self.stomach_wall - rugae
        grain = canvas.sample(cloud(2.0), box, 0.8, self.shift["stool"])
        canvas.paint(box, lumen, self.stomach_fill + 8 * grain, ID["stomach content"])
        y = canvas.grid(box)[1]
        canvas.paint(box, np.minimum(lumen, np.float32(self.air_level) - y), hu["gas"], ID["gas"])

    def _draw_liver(self, canvas, frame):
        hu, fine, z, s = self.hu, self.shift["fine"], canvas.z_mm, self.scale
        box = frame.box
        d = None
        x, y = canvas.grid(box)
        for (cx, cy, cz), (a, b, c), angle in self.liver:
            cos, sin = np.cos(angle), np.sin(angle)
            xx, yy = x - np.float32(cx), y - np.float32(cy)
            p, q = (xx * cos + yy * sin) / np.float32(a), (yy * cos - xx * sin) / np.float32(b)
            k2 = p * p + q * q + np.float32(((z - cz) / c) ** 2)
            part = (1 - np.sqrt(k2)) * np.float32(min(a, b) * 0.8)
            if d is None:
                d = part
            else:  # smooth union
                m = np.clip(0.5 + (part - d) / 24, 0, 1)
                d = d + m * (part - d) + m * (1 - m) * 6
        d = d + self.warp_mm * canvas.sample(swell(2), box, 3.2, fine)
        # falciform fissure with fat, and the hollow of the great vessels and kidney bed
        fissure = np.abs((x + 18 * s) * 0.94 + (y + 50) * 0.3) - 1.2 - 0.05 * np.maximum(-y - 40, 0)
        d = np.minimum(d, np.where(y < -8 - 0.3 * z, fissure, 50) if z < 60 else d)
        d = np.minimum(d, frame.cavity - 1.6)
        keep = self._dome(canvas, frame, box)
        d = np.minimum(d, keep - 1.2)
        for k in self.kidneys[:1]:
            c = np.array(k["centre"])
            e = np.sqrt(((x - c[0]) / 36) ** 2 + ((y - c[1]) / 38) ** 2 + ((z - c[2]) / 62) ** 2)
            d = np.minimum(d, (e - 1) * 34)
        sx, sy = self.spine_at(z)
        d = np.minimum(d, np.sqrt((x - sx) ** 2 + (y - sy) ** 2) - 31)
        if not (d > -1).any():
            return
        canvas.paint(box, d + 0.9, hu["fat"])
        c = canvas.paint(box, d, hu["liver"], ID["liver"])
        mask = np.zeros_like(canvas.hu)
        mask[box] = canvas.coverage(d - 1.5)
        for centre, axes, angle, value, cyst in self.liver_lesions:
            shape = ellipsoid(canvas, centre, axes, angle, 3)
            if shape is None:
                continue
            e = shape[1] + (0 if cyst else 0.8) * canvas.sample(swell(3), shape[0], 0.7, fine)
            cover = canvas.coverage(e if cyst else e * 0.35) * mask[shape[0]]
            canvas.blend(shape[0], cover, value, ID["cyst" if cyst else "metastasis"])
        self.portal.draw(canvas, hu["portal"], ID["portal vein"], mask=mask)
        self.hepatic.draw(canvas, hu["hepatic"], ID["hepatic vein"], mask=mask)
        s1 = canvas.sample(sheets(2), box, 0.8, fine) * np.float32(0.8)
        s2 = canvas.sample(sheets(4), box, 0.8, fine) * np.float32(0.8)
        twigs = canvas.line_coverage(np.sqrt(s1 * s1 + s2 * s2), 0.6)
        canvas.blend(box, twigs * mask[box], 0.5 * (hu["portal"] + hu["liver"]))
        if self.gallbladder is not None:
            shape = ellipsoid(canvas, *self.gallbladder, 3)
            if shape is not None:
                canvas.paint(shape[0], shape[1] + 1.4, hu["wall"], ID["gallbladder"])
                canvas.paint(shape[0], shape[1], hu["bile"], ID["gallbladder"])

    def _dome(self, canvas, frame, box):
        """Signed distance below the diaphragm: inside the domes positive; large where the lungs end."""
        z, s = canvas.z_mm, self.scale
        x, y = canvas.grid(box)
        right, left = self.dome_top
        out = None
        for cx, top in ((-62 * s, right), (64 * s, left)):
            if z >= top:
                part = np.full((y.shape[0], x.shape[1]), -20.0, np.float32)
            else:
                f = np.sqrt(np.clip(1 - ((max(z, -20.0) + 20) / (top + 20)) ** 2, 0, 1))
                g = np.float32(0.30 + 0.9 * f)
                a, b = 82 * s * g, 92 * g
                k = np.sqrt(((x - cx) / a) ** 2 + ((y + 12) / b) ** 2)
                part = (1 - k) * np.float32(0.85 * min(a, b))
            out = part if out is None else np.maximum(out, part)
        # the mediastinum and the crura always count as below
        sx, sy = self.spine_at(z)
        k = np.sqrt(((x - sx) / (40 * s)) ** 2 + ((y - sy + 40) / 62) ** 2)
        return np.maximum(out, (1 - k) * 38)

    def _draw_lung(self, canvas, frame):
        hu, z, box = self.hu, canvas.z_mm, frame.box
        if z < 8:
            return
        dome = self._dome(canvas, frame, box)
        dome = dome + 2 * canvas.sample(swell(1), box, 3.0, self.shift["lung"])
        if z > 95:
            self._draw_heart(canvas)
            shape = ellipsoid(canvas, *self.heart, 40)
            if shape is not None:
                inside = dome[shape[0].start - box[0].start if False else slice(None)] if False else None
                del inside
        d = np.minimum(-dome, frame.cavity - 1.0)
        if z > 95:
            x, y = canvas.grid(box)
            (cx, cy, cz), (a, b, c), angle = self.heart
            cos, sin = np.cos(angle), np.sin(angle)
            k2 = (((x - cx) * cos + (y - cy) * sin) / (a + 5)) ** 2 + (((y - cy) * cos - (x - cx) * sin) / (b + 5)) ** 2
            k = np.sqrt(k2 + ((z - cz) / c) ** 2)
            d = np.minimum(d, (k - 1) * b)
        if not (d > 0.5).any():
            return
        film = canvas.coverage(d + 1.6) * canvas.coverage(frame.cavity)
        canvas.blend(box, film, hu["muscle"] - 10, ID["diaphragm"])
        c = canvas.paint(box, d, hu["lung"] + 30 * canvas.sample(cloud(3.0), box, 1.4, self.shift["lung"]), ID["lung"])
        s1 = canvas.sample(sheets(1), box, 1.0, self.shift["lung"])
        s2 = canvas.sample(sheets(3), box, 1.0, self.shift["lung"])
        size = canvas.sample(swell(0), box, 2.0, self.shift["lung"])
        vessels = canvas.line_coverage(np.sqrt(s1 * s1 + s2 * s2), np.maximum(0.8 + 0.5 * size, 0.3))
        canvas.blend(box, vessels * c, 20.0)

    def _draw_heart(self, canvas):
        hu = self.hu
        centre, axes, angle = self.heart
        shape = ellipsoid(canvas, centre, (axes[0] + 5, axes[1] + 5, axes[2]), angle, 3)
        if shape is None:
            return
        canvas.paint(shape[0], shape[1], hu["fat"], ID["visceral fat"])
        d = shape[1] - 5
        canvas.paint(shape[0], d, 0.5 * (hu["heart"] + hu["muscle"]), ID["heart"])
        x, y = canvas.grid(shape[0])
        for cx, cy, a, b in ((centre[0] + 14, centre[1] + 4, 22, 20), (centre[0] - 24, centre[1] + 2, 20, 26)):
            k = np.sqrt(((x - cx) / a) ** 2 + ((y - cy) / b) ** 2)
            canvas.paint(shape[0], np.minimum((1 - k) * min(a, b), d - 2), hu["heart"], ID["heart"])

    def _draw_great_vessels(self, canvas):
        hu, z = self.hu, canvas.z_mm
        at = lambda path: [float(np.interp(-z, -path[:, 2], path[:, i])) for i in (0, 1)]  # noqa: E731
        if z > -112:
            x, y = at(self.cava)
            a, b = self.cava_axes
            shape = ellipsoid(canvas, (x, y, z), (a, b, 1e3), -0.2, 2)
            canvas.paint(shape[0], shape[1] + 0.8, hu["fat"])
            canvas.paint(shape[0], shape[1], hu["cava"], ID["vena cava"])
        if z > -98:
            x, y = at(self.aorta)
            r = self.aorta_r * float(np.interp(z, [-100, 60], [0.85, 1.1]))
            shape = ellipsoid(canvas, (x, y, z), (r, r * 0.97, 1e3), 0, 3)
            canvas.paint(shape[0], shape[1] + 1.2, hu["muscle"] - 10, ID["aorta"])
            canvas.paint(shape[0], shape[1], hu["aorta"], ID["aorta"])
            gx, gy = canvas.grid(shape[0])
            for pz, angle, width, length in self.plaques:
                away = abs(z - pz) / length
                if away < 1:
                    arc = np.abs(np.angle(np.exp(1j * (np.arctan2(gy - y, gx - x) - angle)))) * r
                    d = np.minimum(1.1 - np.abs(shape[1]), width * r * (1 - away) - arc)
                    canvas.paint(shape[0], d, hu["plaque"], ID["plaque"])
        if z > 55:
            x, y = at(self.aorta)
            shape = ellipsoid(canvas, (x - 6, y - 22, z), (8, 6, 1e3), 0.2, 2)
            canvas.paint(shape[0], shape[1], hu["wall"], ID["oesophagus"])

    def _add_texture(self, canvas, frame):
        grain = canvas.sample(cloud(2.5), frame.box, 0.75, self.shift["cloud"])
        canvas.hu[frame.box] += grain * self.texture_hu[canvas.labels[frame.box]]
