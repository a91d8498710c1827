"""Below the diaphragm: liver with its vessels, stomach, spleen, kidney, bowel, and the fat between them."""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.canvas import VesselTree
from ldctlib.phantom.mr.chest import Wall
from ldctlib.phantom.mr.frame import Frame, Placement, union
from ldctlib.phantom.textures import cloud, swell


class UpperAbdomen:
    """What lies under the heart. Both domes of the diaphragm sink from the apex to the base."""

    def __init__(self, rng: np.random.Generator, placement: Placement, radius: float, length: float):
        u = rng.uniform
        self.length, self.floor = length, radius * 0.92 + u(-3, 6)
        self.right = u(-70, -25), (u(100, 140), u(70, 105))  # x of the dome, its semi-axes
        self.left, self.left_lower = (u(45, 85), (u(55, 80), u(60, 90))), u(-12, 30)
        self.sink, self.rise = (u(0.1, 0.5), u(0.25, 0.8)), u(0.15, 0.45) * radius
        self.liver_end = u(0, 45)
        self.stomach = np.array([u(40, 75), u(20, 50)]), np.array([u(20, 38), u(15, 30)]), u(-0.6, 0.6)
        self.content, self.air, self.rugae = u(0.1, 1.0), u(0.0, 0.6), u(0, 1.4)
        self.spleen = (u(85, 115), self.floor + u(25, 55)), (u(16, 26), u(32, 50)), u(-0.5, 0.3)
        self.kidney = (u(55, 95), u(90, 120), u(-10, 30)), (u(26, 32), u(22, 28), u(45, 60)), u(-0.5, 0.5)
        self.bowel = [
            ((u(-30, 100), self.floor + u(20, 90), u(-30, 60)), u(12, 24, 3), u(0, 3), u(0.1, 0.9)) for _ in range(6)
        ]
        self.shift = rng.uniform(0, 96, (5, 3))
        self.vessel_signal = u(0.6, 1.0)
        trees, fine = [], []
        for _ in range(8):
            start = np.array([u(-80, 0), self.floor + u(20, 60), length * u(0.1, 1.0)])
            direction = np.array([u(-1, 1), u(-1.0, 0.4), u(-1, 1)])
            shape = dict(radius=u(2.5, 4.8), length=u(22, 36), levels=4, spread=0.6, taper=0.75, step=7.0)
            trees.append(VesselTree.grow(rng, start, direction, **shape))
        for _ in range(9):
            start = np.array([u(-20, 110), self.floor + u(30, 100), u(-20, length)])
            fine.append(VesselTree.grow(rng, start, rng.normal(size=3), radius=u(1.5, 3), length=30, levels=3))
        self.vessels, self.mesentery = (placement.tree(VesselTree.join(bag)) for bag in (trees, fine))

    def draw(self, frame: Frame, wall: Wall, signal: dict) -> None:
        z = frame.z
        up = self.rise * max(1 - 2 * z / self.length, 0.0)
        right_lower, left_lower = (s * max(z - 0.5 * self.length, 0.0) - up for s in self.sink)
        bend = frame.texture(swell(2), 3.2, self.shift[0])
        x, axes = self.right
        right = frame.ellipse((x, self.floor + right_lower + axes[1]), axes)
        x, axes = self.left
        left = frame.ellipse((x, self.floor + self.left_lower + left_lower + axes[1]), axes)
        inside = np.minimum(union(right, left, 8.0) + 1.5 * bend, wall.cavity)
        if not (inside > -2).any():
            return
        frame.paint(inside + 1.6, signal["muscle"], "muscle")
        frame.paint(inside, signal["fat"], "fat")
        within = frame.coverage(inside - 2)
        frame.blend(0.7 * frame.lines(3, 1.2, self.shift[1], 0.35) * within, signal["muscle"])
        self.mesentery.draw(frame.canvas, 0.8 * signal["blood"], None, mask=within)
        for centre, axes, angle, value in self.bowel:
            loop = np.minimum(frame.ellipsoid(centre, axes, angle) + 2 * bend, inside - 2)
            frame.paint(loop, signal["wall"], "stomach")
            frame.paint(loop - 2.2, value * (0.6 + 0.3 * bend), "stomach")
        kidney = np.minimum(frame.ellipsoid(*self.kidney), inside - 3)
        frame.paint(kidney + 1, signal["cortical"], "kidney")
        frame.paint(kidney, signal["kidney"], "kidney")
        frame.paint(np.minimum(kidney - 8 + 3 * bend, kidney - 5), 0.75 * signal["kidney"], "kidney")
        frame.paint(kidney - 15 + 5 * bend, signal["fat"], "fat")
        spleen = np.minimum(frame.ellipse(*self.spleen) + 2.5 * bend, inside - 1)
        frame.paint(spleen + 1, signal["cortical"], "spleen")
        frame.paint(spleen, signal["spleen"], "spleen")
        self._draw_stomach(frame, signal, inside, bend, left_lower)
        lobe = np.float32(self.liver_end) - frame.x + 0.5 * (frame.y - np.float32(self.floor)) + 6 * bend
        lobe = np.minimum(np.minimum(lobe, inside - 1.0), right + 1)
        frame.paint(lobe + 0.8, signal["cortical"], "liver")
        frame.paint(lobe, signal["liver"], "liver")
        mask = frame.coverage(lobe - 1)
        frame.blend(0.5 * mask * frame.twigs((1, 2), 1.5, self.shift[2], 0.6), 0.7 * signal["blood"])
        self.vessels.draw(frame.canvas, self.vessel_signal * signal["blood"], None, mask=mask)

    def _draw_stomach(self, frame, signal, inside, bend, lower):
        at, axes, angle = self.stomach
        size = 1 + 0.25 * np.sin(frame.z / 25)
        middle = at + (0, self.floor + 0.5 * (self.left_lower + lower))
        stomach = np.minimum(frame.ellipse(middle, axes * size, angle) + 3 * bend, inside - 1)
        frame.paint(stomach, signal["wall"], "stomach")
        inner = stomach - 3.0
        grain = frame.texture(cloud(2.5), 1.2, self.shift[4])
        frame.paint(inner, self.content * np.maximum(0.75 + 0.3 * grain, 0.05), "stomach")
        frame.blend(frame.lines(4, 0.9, self.shift[3], self.rugae) * frame.coverage(inner), signal["wall"])
        # gas rises to the front of a patient who lies on the back
        level = np.float32(middle[1] - axes[1] * (1.0 - 1.6 * self.air)) - frame.y
        frame.paint(np.minimum(inner, level), 0.01, "stomach")
