"""The mediastinum: fat around great vessels, trachea with main bronchi, oesophagus, thyroid and lymph nodes."""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.canvas import Canvas, Tube, ellipsoid, smooth_path
from ldctlib.phantom.organs import ID
from ldctlib.phantom.textures import sheets, swell
from ldctlib.phantom.thorax.heart import Heart
from ldctlib.phantom.thorax.lungs import Diaphragm
from ldctlib.phantom.thorax.wall import ThoracicSpine, ThoraxFrame, ThoraxWall, smooth_max

STATIONS = ((-20, 0.66, 18), (2, 0.88, -20), (26, 0.66, 6), (-14, 0.4, 26), (-44, 0.72, -34), (46, 0.7, -32))
"""Where lymph nodes lie (x, share of the way from sternum to spine, z): paratracheal, subcarinal, hilar, …"""


WIDTH_Z = (-120, -40, 0, 30, 60, 90)
WIDTH_SHARES = (0, 0.12, 0.3, 0.6, 0.9, 1.15, 1.8)
WIDTHS = (
    *((30, 18, 16, 18, 36, 42), (26, 10, 5, 12, 34, 40), (24, 10, 9, 18, 32, 36)),
    *((10, 8, 18, 22, 26, 30), (5, 5, 14, 16, 20, 24), (16, 17, 18, 18, 20, 22), (15, 15, 15, 15, 16, 17)),
)
"""Half width (mm) of the column of fat by share of the way from sternum to spine, at those z."""


# fmt: off
AORTA = (
    (4, .46, -64), (-9, .43, -48), (-17, .44, -28), (-19, .47, -6), (-14, .52, 13), (-3, .6, 25), (9, .72, 29),
    (19, .85, 23), (25, .95, 8), (27, 1, -20), (25, 1.02, -70), (16, .96, -110), (10, .86, -150), (8, .82, -185),
)
BRANCHES_OF_THE_ARCH = (
    ("brachiocephalic", (6.5, 6), (-5, .58, 26), (-12, .54, 45), (-21, .48, 64)),
    ("right carotid", (4, 3.6), (-20, .48, 62), (-26, .44, 112)),
    ("right subclavian", (5, 4), (-20, .48, 62), (-40, .6, 80), (-68, .3, 86), (-112, .25, 72)),
    ("left carotid", (4, 3.6), (6, .64, 28), (13, .58, 56), (26, .46, 112)),
    ("left subclavian", (5.5, 5, 4), (17, .76, 26), (26, .82, 56), (40, .72, 78), (68, .3, 86), (112, .25, 72)),
)
PULMONARY_VEINS = (
    ("right upper", (-14, .76, -50), (-32, .68, -42), (-48, .63, -32)),
    ("right lower", (-18, .84, -60), (-44, .93, -65)),
    ("left upper", (18, .74, -48), (36, .66, -40), (48, .63, -32)),
    ("left lower", (20, .86, -58), (44, .93, -65)),
)
PULMONARY_ARTERIES = (
    ("right pulmonary", (11, 10, 10, 8, 6, 4.5),
     (16, .56, -16), (0, .69, -19), (-20, .71, -21), (-38, .73, -25), (-50, .8, -36), (-53, .86, -58)),
    ("left pulmonary", (11, 11, 9, 7, 4.5),
     (18, .5, -17), (32, .68, -9), (45, .8, -13), (51, .88, -28), (53, .92, -48)),
    ("trunk", (13, 13.5, 13), (8, .28, -64), (18, .32, -44), (21, .44, -26), (17, .56, -15)),
)
AIRWAYS = (
    ("left main", (7, 6, 5.5), (3, .79, 2), (18, .83, -17), (38, .86, -31)),
    ("left lower bronchus", (5, 4), (36, .86, -30), (49, .95, -60)),
    ("left upper bronchus", (5, 4), (35, .85, -29), (52, .7, -24)),
    ("right main", (7.5, 7), (3, .79, 2), (-13, .81, -13), (-29, .83, -24)),
    ("intermediate", (6, 5, 4), (-28, .83, -23), (-39, .86, -46), (-47, .93, -66)),
    ("right upper bronchus", (5, 4), (-18, .82, -16), (-46, .78, -8)),
    ("trachea", (8.5, 8.5, 9), (0, .42, 112), (0, .48, 80), (1, .59, 50), (3, .7, 25), (3, .79, 0)),
)
OESOPHAGUS = (
    (3, .84, 112), (4, .84, 80), (5, .86, 50), (7, .91, 20), (5, .93, -10), (5, .95, -50), (9, .93, -80),
    (20, .82, -118), (28, .7, -132),
)
AZYGOS = (-9, 1.02, -150), (-8, 1.02, -20), (-13, .97, 8), (-26, .82, 13), (-32, .62, 9)
# fmt: on


class Mediastinum:
    """Everything between the lungs. ``place`` turns (x, share of the way from sternum to spine, z) into mm."""

    def __init__(self, rng: np.random.Generator, wall: ThoraxWall, spine: ThoracicSpine):
        u = rng.uniform
        self.wall, self.spine = wall, spine
        self.heart = Heart(rng, self.place, wall.scale)
        self.width = u(0.8, 1.25)
        self.shift = rng.uniform(0, 96, (4, 3))
        self.tubes = self._tubes(rng)
        self.strand = u(0.3, 0.7)
        self.thyroid = [(self.place(side * 19, 0.38, 94), (u(8, 12), u(9, 12), u(14, 20))) for side in (-1, 1)]
        count = 0 if rng.random() < 0.4 else rng.integers(1, 10)
        aorta = self.tubes["aorta"][0]
        self.plaques = [
            (aorta.points[rng.integers(14, len(aorta.points))], rng.normal(size=3), u(0.25, 0.8)) for _ in range(count)
        ]
        self.nodes = []
        if rng.random() < 0.2:
            for i in rng.permutation(len(STATIONS))[: rng.integers(1, 5)]:
                size = float(np.clip(rng.lognormal(2.1, 0.25), 6, 15))
                for _ in range(rng.integers(1, 3)):
                    at = self.place(*STATIONS[i]) + rng.normal(0, 4, 3)
                    self.nodes.append((at, size * u(0.8, 1.25, 3), u(0, 3)))

    def edges(self, z: float) -> tuple[float, float]:
        """y of the sternum's back and of the vertebral bodies' front."""
        return self.wall.front_at(z), self.spine.at(z)[1] - self.spine.half[1]

    def place(self, x: float, share: float, z: float) -> np.ndarray:
        """A point at x mm (of a middling chest), at a share of the way from sternum (0) to spine (1), at z mm."""
        front, back = self.edges(z)
        return np.array([x * self.wall.scale, front + share * (back - front), z])

    def _tubes(self, rng) -> dict:
        """Name -> (tube, tissue, label, thickness of its wall)."""
        u, s = rng.uniform, self.wall.scale
        wide = u(1.15, 1.4) if rng.random() < 0.12 else u(0.88, 1.12)  # the aorta, sometimes dilated
        tubes = {}

        def tube(name, tissue, label, radii, *knots, rim=0.0):
            points = smooth_path([self.place(*k) for k in knots], 2.0, rng, 0.8)
            r = np.interp(np.linspace(0, 1, len(points)), np.linspace(0, 1, len(radii)), radii)
            keep = [0]
            for i in range(1, len(points)):  # balls at most half a radius apart
                if np.linalg.norm(points[i] - points[keep[-1]]) >= 0.4 * r[i]:
                    keep.append(i)
            tubes[name] = Tube(points[keep], r[keep] * np.sqrt(s)), tissue, label, rim

        trunk, bore, artery, vein = u(0.9, 1.12), u(0.85, 1.1), ("aorta", "vessel"), ("superior cava", "vessel")
        tube("azygos", "cava", "vessel", (3.0, 3.6), *AZYGOS)
        tube("inferior cava", "cava", "vena cava", (12, 11), (-22, 0.8, -175), (-24, 0.78, -115), (-30, 0.68, -90))
        tube("left innominate", *vein, (6.5, 7.5), (46, 0.34, 68), (30, 0.18, 56), (4, 0.2, 46), (-24, 0.42, 36))
        tube("right innominate", *vein, (6.5, 7.5), (-46, 0.36, 68), (-37, 0.36, 55), (-31, 0.48, 38))
        for side in (-1, 1):
            tube(f"jugular {side}", *vein, (6, 6.5), (side * 36, 0.36, 112), (side * 42, 0.36, 66))
            knots = (side * 46, 0.36, 68), (side * 74, -0.05, 76), (side * 118, 0.2, 62)
            tube(f"subclavian vein {side}", *vein, (6, 5.5), *knots)
        knots = (-31, 0.5, 42), (-33, 0.57, 20), (-33, 0.6, -20), (-33, 0.56, -62)
        tube("superior cava", "superior cava", "superior vena cava", (8, 9.5, 10), *knots)
        for name, radii, *knots in BRANCHES_OF_THE_ARCH:
            tube(name, *artery, radii, *knots)
        for name, *knots in PULMONARY_VEINS:
            tube(name, "pulmonary vein", "pulmonary vein", (6, 5), *knots)
        for name, radii, *knots in PULMONARY_ARTERIES:
            tube(name, "pulmonary artery", "pulmonary artery", np.array(radii) * trunk, *knots)
        radii = np.array([14, 15, 16, 15.5, 15, 14.5, 13.5, 13, 12.5, 12, 12, 11.5, 11, 11]) * wide
        tube("aorta", "aorta", "aorta", radii, *AORTA, rim=1.2)
        tube("oesophagus", "wall", "oesophagus", (6, 7, 7, 7, 6.5, 7, 8), *OESOPHAGUS)
        for name, radii, *knots in AIRWAYS:
            tube(name, "air", "airway", np.array(radii) * bore, *knots, rim=1.3)
        return tubes

    def draw(self, canvas: Canvas, frame: ThoraxFrame, hu: dict, diaphragm: Diaphragm) -> None:
        """Fat over the lungs, then what lies in it."""
        z, s = canvas.z_mm, self.wall.scale
        box = canvas.box(-125 * s, 125 * s, self.wall.front_at(z) - 2, self.spine.at(z)[1] + 40)
        x, y = canvas.grid(box)
        front, back = self.edges(z)
        cavity = frame.on(box, frame.cavity)
        # the column between sternum and spine is narrow where the lungs nearly meet in front
        share = (y - np.float32(front)) / np.float32(back - front)
        widths = [float(np.interp(z, WIDTH_Z, column)) * s * self.width for column in WIDTHS]
        wide = np.mean([np.interp(share + v, WIDTH_SHARES, widths) for v in (-0.09, -0.045, 0, 0.045, 0.09)], axis=0)
        bend = canvas.sample(swell(1), box, 3.0, self.shift[0])
        gullet = self.tubes["oesophagus"][0].points
        at = float(gullet[np.argmin(np.abs(gullet[:, 2] - z)), 0])
        middle = np.interp(share, [0, 0.5, 0.9, 1.1], [3 * s, 4 * s, at, self.spine.at(z)[0]]).astype(np.float32)
        fat = wide.astype(np.float32) - np.abs(x - middle) + 2 * bend
        cut = {}
        for name, (tube, *_) in self.tubes.items():
            shape = tube.cut(canvas, 7.0)
            if shape is None:
                continue
            cut[name] = shape
            if name != "inferior cava":  # the liver embraces it
                self._union(box, fat, shape[0], shape[1] + 3.5, 4)
        below = diaphragm.inside(x, y, z)
        heart = self.heart.distance(canvas)
        if heart is not None:
            self._union(box, fat, heart[0], heart[1] + 1.2 + np.maximum(2 * heart[3], 0), 6)
        fat = np.minimum(fat, cavity + 1.5 if below is None else np.minimum(cavity + 1.5, 9 - below))
        canvas.paint(box, fat, hu["fat"], ID["mediastinal fat"])
        strands = canvas.line_coverage(canvas.sample(sheets(2), box, 0.9, self.shift[1]) * np.float32(0.9), 0.2)
        canvas.blend(box, strands * self.strand * canvas.coverage(fat - 2), hu["fat"] + 90)
        if heart is not None:
            part = heart[0]
            limit = np.minimum(frame.on(part, frame.cavity) - 1, np.float32(back - 8) - canvas.grid(part)[1])
            below = diaphragm.inside(*canvas.grid(part), z)
            if below is not None:  # the heart dents the diaphragm a little
                limit = np.minimum(limit, 8 - below)
            self.heart.draw(canvas, heart, limit, hu)
        self._draw_nodes(canvas, hu)
        for name, (box, d, _) in cut.items():
            self._draw_tube(canvas, frame, hu, name, box, d)
        for name, (box, d, _) in cut.items():  # lumens join where airways branch
            if self.tubes[name][2] == "airway":
                canvas.paint(box, d, hu["air"], ID["airway"])
        for centre, axes in self.thyroid:
            shape = ellipsoid(canvas, centre, axes, 0, 3)
            if shape is not None:
                canvas.paint(
                    shape[0],
                    shape[1] + canvas.sample(swell(3), shape[0], 0.9, self.shift[2]),
                    hu["thyroid"],
                    ID["thyroid"],
                )

    @staticmethod
    def _union(box, whole, part, d, over):
        """Unite a part's distance with the whole's, in place, where their boxes meet."""
        j = slice(max(part[0].start, box[0].start), min(part[0].stop, box[0].stop))
        i = slice(max(part[1].start, box[1].start), min(part[1].stop, box[1].stop))
        if j.start >= j.stop or i.start >= i.stop:
            return
        inner = whole[j.start - box[0].start : j.stop - box[0].start, i.start - box[1].start : i.stop - box[1].start]
        d = d[j.start - part[0].start : j.stop - part[0].start, i.start - part[1].start : i.stop - part[1].start]
        inner[...] = smooth_max(inner, d, over)

    def _draw_tube(self, canvas, frame, hu, name, box, d):
        _, tissue, label, rim = self.tubes[name]
        d = d + 0.5 * canvas.sample(swell(1), box, 1.2, self.shift[0])
        if label == "oesophagus":
            canvas.paint(box, d + 0.8, hu["fat"])
            canvas.paint(box, d, hu["wall"], ID["oesophagus"])
            gas = canvas.sample(swell(2), box, 1.0, self.shift[0])
            canvas.blend(box, canvas.coverage(np.minimum(d - 4.4, 2 * gas - 0.8)), hu["gas"], ID["gas"])
        elif label == "airway":
            canvas.paint(box, d + rim, hu["bronchial wall"], ID["bronchial wall"])
        else:
            if rim:
                canvas.paint(box, d + rim, hu["muscle"] - 10, ID[label])
            canvas.paint(box, d, hu[tissue], ID[label])
            if name == "aorta":
                self._draw_plaques(canvas, hu, box, d)

    def _draw_plaques(self, canvas, hu, box, d):
        x, y = canvas.grid(box)
        for middle, direction, width in self.plaques:
            away = abs(canvas.z_mm - middle[2]) / 9
            if away < 1:
                r = 13.0
                reach = np.hypot(x - np.float32(middle[0]), y - np.float32(middle[1]))
                angle = np.arctan2(direction[1], direction[0])
                arc = np.abs(np.angle(np.exp(1j * (np.arctan2(y - middle[1], x - middle[0]) - angle)))) * r
                near = np.minimum(width * r * (1 - away) - arc, 3 * r - reach)
                canvas.paint(
                    box, np.minimum(1.2 - np.abs(d + 0.2), near).astype(np.float32), hu["plaque"], ID["plaque"]
                )

    def _draw_nodes(self, canvas, hu):
        for centre, axes, angle in self.nodes:
            shape = ellipsoid(canvas, centre, axes, angle, 3)
            if shape is not None:
                d = shape[1] + 0.8 * canvas.sample(swell(2), shape[0], 1.0, self.shift[3])
                canvas.paint(shape[0], d, hu["node"], ID["lymph node"])
