"""Small bowel with folds, and the colon with haustra, gas and stool."""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.abdomen.wall import Frame, Wall
from ldctlib.phantom.canvas import Canvas, Tube, smooth_path
from ldctlib.phantom.organs import ID
from ldctlib.phantom.textures import cloud, swell


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
        ascending = [(-x0 + 12, 22, -128), (-x0, 14, -105), (-x0 - 2, 24, -70), (-x0, 20, -40), (-x0 + 8, -8, -28)]
        across = [(-x0 * 0.66, -d + 42, -40 + u(-15, 15)), (-x0 * 0.25, -d + 34, -50 + u(-20, 15))]
        across += [(x0 * 0.2, -d + 34, -42), (x0 * 0.6, -d + 42, -15), (x0 * 0.9, -12, 18), (x0, 20, 22)]
        descending = [(x0 + 4, 30, -10), (x0 + 4, 28, -50), (x0, 24, -90), (x0 - 8, 16, -130), (x0 - 40, 10, -150)]
        path = smooth_path(ascending + across + descending, 4.0, rng, 6)
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
        tube = Tube(path, r * np.sqrt(np.minimum(ends / 3, 1)))
        loop = {"tube": tube, "fill": u(120, 320) if rng.random() < self.positive else u(0, 65)}
        loop |= {"wall": u(1.4, 2.4), "pitch": u(3.0, 5.5), "gas": rng.random() < 0.18}
        return loop | {"level": float(path[:, 1].mean() - u(-2, 6)), "folds": u(0.3, 1.0)}

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
