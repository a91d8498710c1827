"""Vessels and bowel: great vessels, arterial and venous trees, strands in fat, small bowel and colon."""

from __future__ import annotations

import numpy as np

from ldctlib.ct.abdomen_tissues import ID
from ldctlib.ct.abdomen_viscera import Viscera
from ldctlib.ct.abdomen_wall import Frame, Spine, Wall
from ldctlib.ct.drawing import Canvas, Tube, VesselTree, ellipsoid, smooth_path
from ldctlib.ct.textures import cloud, sheets, swell


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
        self.aorta = np.stack(
            [
                column[:, 0] + 8 + 0.6 * bend + np.interp(z, [20, 150], [0, 8]),
                column[:, 1] - half - self.aorta_r - 1 + np.interp(z, [60, 150], [0, 9]),
                z,
            ],
            1,
        )
        self.cava = np.stack(
            [
                column[:, 0] - 21 - np.interp(z, [30, 100], [0, 9 * s]),
                column[:, 1] - half - 4 - np.interp(z, [20, 100], [0, 26]),
                z,
            ],
            1,
        )
        self.cava_axes = u(10, 14), u(6.5, 11)
        self.strand_mm, self.vessel_mm, self.strand = u(0.1, 0.3), u(-0.1, 0.5), u(0.3, 0.75)
        self.shift = rng.uniform(0, 96, (4, 3))
        self.arteries, self.veins = (VesselTree.join(t) for t in self._trees(rng, s, viscera))
        self.plaques = (
            []
            if rng.random() < 0.5
            else [(u(-110, 60), u(0, 2 * np.pi), u(0.3, 1.0), u(3, 10)) for _ in range(rng.integers(2, 12))]
        )

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
        sma = line(
            arteries, 3.8, 2.2, a0, a0 + (-1, -16, -6), a0 + (-2, -20, -40), a0 + (-6, -24, -80), (-30, -5, -115)
        )
        smv = line(
            veins,
            6.0,
            3.2,
            (-26 * s, -24, 2),
            sma[len(sma) // 3] + (-13, -2, 0),
            sma[-8] + (-12, -2, 0),
            (-38, -8, -118),
        )
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
        grow = VesselTree.grow
        for path, bag in ((sma, arteries), (smv, veins)):
            for q in path[6::4]:
                for _ in range(4):
                    d = (u(-1, 1), u(-0.9, 0.25), u(-0.9, 0.3))
                    bag.append(
                        grow(
                            rng,
                            q,
                            d,
                            radius=u(1.3, 2.1),
                            length=u(26, 42),
                            levels=3,
                            spread=0.5,
                            shrink=0.72,
                            taper=0.76,
                            wander=0.16,
                            step=8,
                        )
                    )
        for _ in range(26):  # gastric, omental, colic and retroperitoneal branches
            p = (u(-100, 100) * s, u(-66, 30), u(-120, 75))
            arteries.append(
                grow(
                    rng,
                    p,
                    rng.normal(size=3),
                    radius=u(0.9, 1.7),
                    length=u(22, 48),
                    levels=3,
                    spread=0.6,
                    wander=0.25,
                    step=8,
                )
            )
        for _ in range(40):  # under the skin and between the muscles
            t, out = u(0, 2 * np.pi), u(-6, 14)
            p = (np.cos(t) * (self.wall.half_width + out), np.sin(t) * (self.wall.half_depth + out), u(-135, 115))
            veins.append(
                grow(
                    rng,
                    p,
                    (-np.sin(t), np.cos(t), u(-1, 1)),
                    radius=u(0.6, 1.4),
                    length=36,
                    levels=2,
                    spread=0.4,
                    wander=0.2,
                    step=8,
                )
            )
        return arteries, veins

    @staticmethod
    def at(path: np.ndarray, z: float) -> np.ndarray:
        """The point of a path (n, 3), whose z falls, at height z."""
        return np.array([np.interp(-z, -path[:, 2], path[:, i]) for i in range(3)])

    def draw_branches(self, canvas: Canvas, frame: Frame, hu: dict) -> None:
        """Strands and twigs of the visceral fat, then the vessel trees."""
        self._draw_strands(canvas, frame, hu)
        inside = np.zeros_like(canvas.hu)
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
        canvas.hu[box] += inside * (4 * haze)
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


class Bowel:
    """Small-bowel loops with folds, and the colon with haustra, gas and stool."""

    def __init__(self, rng: np.random.Generator, wall: Wall):
        self.shift = rng.uniform(0, 96, (3, 3))
        self._colon(rng, wall)
        self.positive = rng.uniform(0.3, 0.8) if rng.random() < 0.35 else 0.03  # share of loops with oral contrast
        self.lean = rng.uniform()  # little visceral fat: more and wider loops
        self.loops = [self._loop(rng, wall) for _ in range(int(44 + 40 * self.lean))]

    def _colon(self, rng, wall):
        u, d = rng.uniform, wall.half_depth
        x0 = wall.half_width - wall.side_mm - 26
        path = smooth_path(
            [
                (-x0 + 12, 22, -128),
                (-x0, 14, -105),
                (-x0 - 2, 24, -70),
                (-x0, 20, -40),
                (-x0 + 8, -8, -28),
                (-x0 * 0.66, -d + 42, -40 + u(-15, 15)),
                (-x0 * 0.25, -d + 34, -50 + u(-20, 15)),
                (x0 * 0.2, -d + 34, -42),
                (x0 * 0.6, -d + 42, -15),
                (x0 * 0.9, -12, 18),
                (x0, 20, 22),
                (x0 + 4, 30, -10),
                (x0 + 4, 28, -50),
                (x0, 24, -90),
                (x0 - 8, 16, -130),
                (x0 - 40, 10, -150),
            ],
            4.0,
            rng,
            6,
        )
        n = np.arange(len(path))
        radius = np.interp(n / len(n), [0, 0.25, 0.55, 0.68, 0.8, 1], [26, 23, 20, 16, 14, 14]) * u(0.8, 1.1)
        self.colon = Tube(path, radius * (0.93 + 0.14 * np.abs(np.sin(n * 4.0 / u(9, 12)))))
        self.bubble_mm = u(0.22, 0.4)
        self.colon_mm, gas = u(1.5, 2.8), u(-0.4, 0.2)
        self.colon_fill = np.interp(n, np.linspace(0, len(n), 10), u(0, 1, 10)).astype(np.float32)
        smooth = np.convolve(np.pad(path[:, 1], 10, mode="edge"), np.ones(21) / 21, mode="valid")
        self.colon_level = (smooth + (gas - 0.8) * 1.3 * radius).astype(np.float32)

    def _loop(self, rng, wall):
        u, w, d = rng.uniform, wall.half_width, wall.half_depth
        p = np.array([u(-0.7, 0.7) * w, u(-d + 28, 14), u(-150, 14)])
        heading = rng.normal(size=3) * (1, 0.8, 0.7)
        knots = [p]
        for _ in range(rng.integers(3, 6)):
            heading = heading / np.linalg.norm(heading) + rng.normal(0, 0.7, 3)
            p = p + heading / np.linalg.norm(heading) * 24
            p = np.clip(p, (-0.72 * w, -d + 24, -170), (0.72 * w, 26, 20))
            knots.append(p)
        path = smooth_path(knots, 3.5)
        n = len(path)
        r = u(7.5, 12 + 2.5 * self.lean) * (1 + 0.18 * np.sin(np.linspace(0, u(4, 9), n) + u(0, 6)))
        ends = np.minimum(np.arange(n), np.arange(n)[::-1]) + 1
        fill = u(120, 320) if rng.random() < self.positive else u(0, 65)
        return {
            "tube": Tube(path, r * np.sqrt(np.minimum(ends / 3, 1))),
            "fill": fill,
            "wall": u(1.4, 2.4),
            "pitch": u(3.0, 5.5),
            "gas": rng.random() < 0.18,
            "level": float(path[:, 1].mean() - u(-2, 6)),
            "folds": u(0.3, 1.0),
        }

    def draw(self, canvas: Canvas, frame: Frame, hu: dict) -> None:
        for loop in self.loops:
            self._draw_loop(canvas, frame, hu, loop)
        self._draw_colon(canvas, frame, hu)

    def _draw_loop(self, canvas, frame, hu, loop):
        shape = loop["tube"].cut(canvas)
        if shape is None:
            return
        box, d, arc = shape
        d = np.minimum(d, frame.on(box, frame.cavity) - 1.2) + 0.9 * canvas.sample(swell(3), box, 0.8, self.shift[0])
        canvas.paint(box, d + 0.9, hu["fat"])  # a film of fat keeps loops apart
        lumen = d - np.float32(loop["wall"])
        canvas.paint(box, d, hu["wall"], ID["small bowel"])
        c = canvas.paint(box, lumen, loop["fill"], ID["bowel content"])
        bend = canvas.sample(swell(2), box, 0.6, self.shift[0])
        folds = np.cos(arc * np.float32(2 * np.pi / loop["pitch"]) + 2 * bend)
        reach = np.float32(0.25) + np.float32(0.75) * np.clip(1 - lumen * np.float32(0.22), 0, 1)
        canvas.blend(box, c * np.clip(folds * 2.2 - 0.8, 0, 1) * reach * np.float32(loop["folds"]), hu["wall"])
        if loop["gas"]:
            level = np.float32(loop["level"]) - canvas.grid(box)[1]
            canvas.paint(box, np.minimum(lumen, level), hu["gas"], ID["gas"])

    def _draw_colon(self, canvas, frame, hu):
        shape = self.colon.cut(canvas, 5.0)
        if shape is None:
            return
        box, d, arc = shape
        d = np.minimum(d, frame.on(box, frame.cavity) - 1.2) + canvas.sample(swell(0), box, 1.0, self.shift[1])
        canvas.paint(box, d + 0.8, hu["fat"])
        canvas.paint(box, d, hu["wall"], ID["colon"])
        lumen = d - self.colon_mm
        at = np.clip(arc * np.float32(0.25), 0, len(self.colon_fill) - 1).astype(np.int32)
        fill = self.colon_fill[at]
        grain = canvas.sample(cloud(2.0), box, 0.6, self.shift[2])
        c = canvas.paint(box, lumen, hu["stool"] + 18 * grain, ID["stool"])
        froth = canvas.sample(swell(1), box, self.bubble_mm, self.shift[0])
        froth = 0.71 * (froth + canvas.sample(swell(3), box, 0.83 * self.bubble_mm, self.shift[1]))
        bubbles = canvas.coverage((froth - 1.1 + 1.1 * (fill - 0.5)) * np.float32(3.2 * self.bubble_mm))
        canvas.blend(box, c * bubbles * canvas.coverage(lumen - 1.0), -700.0)
        # gas lies in front: its level follows how full each stretch is
        level = self.colon_level[at] + fill * np.float32(1.6) * self.colon.radii[at] - canvas.grid(box)[1]
        canvas.paint(box, np.minimum(lumen, level), hu["gas"], ID["gas"])
