"""The chest about the heart: skin, fat, muscles, ribs, lungs with their vessels, spine, aorta and oesophagus."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ldctlib.phantom.canvas import VesselTree
from ldctlib.phantom.mr.frame import Frame, Placement
from ldctlib.phantom.textures import cloud, swell


class Wall(NamedTuple):
    """Signed distances (mm) of one slice inside the skin, the muscles and the chest's cavity."""

    skin: np.ndarray
    muscle: np.ndarray
    cavity: np.ndarray
    angle: np.ndarray  # about the body's axis, 0 in front
    bend: np.ndarray  # a smooth field of unit variance, which bends borders
    inner_mm: float  # from the heart's middle to the cavity's front


class Chest:
    """A body cut across the heart's long axis: the front lies towards ``front``, an angle in the heart's axes."""

    def __init__(self, rng: np.random.Generator, placement: Placement, radius: float, length: float):
        u = rng.uniform
        self.front, self.length = np.deg2rad(u(-165, -95)), length
        self.normal = np.array([np.cos(self.front), np.sin(self.front)])
        self.axes = u(150, 195), u(112, 140)
        self.fat_mm = float(np.clip(rng.lognormal(2.5, 0.6), 4, 45))
        self.breast_mm, self.breast_at = (u(5, 40) if rng.random() < 0.5 else 0.0), u(-1.1, 0.9)
        self.muscle_mm, self.strips = u(8, 22), u(0.2, 1.6)
        self.near_mm, self.gap_mm = u(10, 28), radius + u(0, 14)  # heart's middle to inner wall, at apex and higher up
        self.recede, self.pad = u(0.05, 0.45), u(0.2, 1.0) * radius
        self.rib_mm, self.rib_slope, self.rib_phase = u(28, 50), u(0.2, 0.9), u(0, 50)
        self.rib_axes = u(6, 17), u(2.4, 4.6)
        self.turn = self.front + np.pi + u(-0.1, 0.5)
        self.back = np.array([np.cos(self.turn), np.sin(self.turn)])
        self.side = np.array([-self.back[1], self.back[0]])
        self.spine, self.spine_slope, self.vertebra = (
            self.back * (radius + u(68, 100)),
            u(0.2, 0.5),
            (u(15, 19), u(12, 15)),
        )
        self.aorta_at = -self.back * u(17, 24) - self.side * u(14, 24)
        self.aorta_axes, self.aorta_angle = np.array([u(1.0, 1.5), 1.0]) * u(9.5, 13.5), u(0, np.pi)
        self.oesophagus = -self.back * u(26, 32) + self.side * u(-6, 8)
        self.haze, self.fatty, self.wobble = u(0.3, 1.0), u(-2.5, 2.5), u(1.0, 4.0)
        self.twig_mm, self.vessel_signal, self.marrow = u(0.0, 0.7), u(0.7, 1.2), u(0.1, 0.7)
        self.shift = rng.uniform(0, 96, (6, 3))
        self.vessels = placement.tree(VesselTree.join(self._lung_vessels(rng, radius, length)))

    @staticmethod
    def _lung_vessels(rng, radius, length) -> list[VesselTree]:
        """Trees from the hila: the left lung's fills the image, the right one's begins at its edge."""
        u, trees = rng.uniform, []
        for i in range(18):
            left = i < 14
            start = np.array([radius * u(0.9, 1.5) if left else -radius * u(1.4, 1.9), u(-20, 40), length + u(-25, 40)])
            direction = np.array([u(0.1, 1.0) if left else u(-1.0, -0.2), u(-1.1, 0.9), u(-1.4, 0.7)])
            shape = dict(radius=u(2.0, 4.2), length=u(24, 44), levels=5 if left else 4, spread=0.5, taper=0.77)
            trees.append(VesselTree.grow(rng, start, direction, **shape, step=9.0, wander=0.2))
        return trees

    def wall(self, frame: Frame) -> Wall:
        """The slice's distances inside the layers of the wall."""
        inner = float(np.interp(frame.z, [-5, 0.5 * self.length], [self.near_mm, self.gap_mm]))
        inner += self.recede * max(frame.z - 0.4 * self.length, 0.0)
        a, b = self.axes
        middle = self.normal * (inner - b)
        bend = frame.texture(swell(1), 4.5, self.shift[0])
        dx, dy = frame.x - np.float32(middle[0]), frame.y - np.float32(middle[1])
        across, along = (np.float32(v) for v in (self.normal, (-self.normal[1], self.normal[0])))
        p, q = (dx * along[0] + dy * along[1]) / np.float32(a), (dx * across[0] + dy * across[1]) / np.float32(b)
        k = np.sqrt(p * p + q * q) + np.float32(1e-4)
        slope = np.sqrt((p / np.float32(a)) ** 2 + (q / np.float32(b)) ** 2) / k
        cavity = (1 - k) / np.maximum(slope, np.float32(1 / a)) + self.wobble * bend
        angle = np.arctan2(p, q)
        muscle = cavity + np.float32(self.muscle_mm) * (1 + 0.5 * np.exp(-((np.abs(angle) / 2.6) ** 6)))
        breast = self.breast_mm * np.exp(-0.5 * ((angle - self.breast_at) / 0.35) ** 2)
        skin = muscle + self.fat_mm * (0.75 + 0.5 * np.cos(angle - 0.5) ** 2) + breast + 1.5 * bend
        return Wall(skin, muscle, cavity, angle, bend, inner)

    def draw(self, frame: Frame, wall: Wall, signal: dict) -> None:
        """Wall and lungs."""
        fat, bend = signal["fat"], wall.bend
        frame.paint(wall.skin + 1.5, signal["skin"], "skin")
        frame.paint(wall.skin, fat, "fat")
        septa = frame.lines(2, 1.6, self.shift[1], np.clip(0.3 * bend, 0, 0.5))
        frame.blend(0.6 * septa * frame.coverage(wall.skin - 3), signal["muscle"])
        frame.paint(wall.muscle, signal["muscle"], "muscle")
        strip = frame.texture(swell(3), 1.8, self.shift[2])
        for at, less in ((0.33, 0.0), (0.72, 0.6)):  # fat between the muscles' layers, in strips along the wall
            line = np.abs(wall.muscle - at * self.muscle_mm + 1.5 * bend)
            width = np.maximum(self.strips * (1.2 + 1.6 * strip - less), 0)
            frame.paint(np.minimum(width - line, wall.muscle - 1), fat, "fat")
        self._draw_ribs(frame, wall, signal, strip)
        frame.paint(wall.cavity, fat, "fat")
        haze = 1 + 0.6 * self.haze * frame.texture(cloud(2.5), 1.6, self.shift[3])
        haze += 0.8 * np.clip(0.4 - wall.cavity / 60, 0, 1)
        lung = wall.cavity - 0.6 - 1.2 * np.maximum(strip, 0)  # within the pleura and the fat on it
        frame.paint(lung, signal["lung"] * np.maximum(haze, 0), "lung")
        inside = frame.coverage(lung)
        twigs = frame.twigs((1, 4), 1.3, self.shift[3], np.clip(self.twig_mm + 0.45 * strip, 0, 0.9))
        frame.blend(0.5 * twigs * inside, 0.8 * signal["blood"])
        self.vessels.draw(frame.canvas, self.vessel_signal * signal["blood"], None, mask=inside)

    def _draw_ribs(self, frame, wall, signal, strip):
        along = wall.angle * np.float32(0.5 * sum(self.axes)) + np.float32(self.rib_slope * frame.z + self.rib_phase)
        number = np.round(along / self.rib_mm)
        along = along - number * np.float32(self.rib_mm)
        across = wall.cavity + 0.45 * self.muscle_mm + 2 * np.sin(number * 2.4)
        size = 1 + 0.45 * np.sin(number * 1.7 + self.rib_phase)
        p, q = along / (self.rib_axes[0] * size), across / (self.rib_axes[1] * size)
        rib = np.minimum((1 - np.sqrt(p * p + q * q)) * np.float32(self.rib_axes[1]) + 0.6 * strip, wall.muscle)
        frame.paint(rib + 0.8, signal["cortical"], "bone")
        frame.paint(rib - 1.0, self.marrow * signal["fat"], "bone")

    def draw_pad(self, frame: Frame, wall: Wall, signal: dict) -> None:
        """The fat that joins the heart to the chest's front."""
        middle = self.normal * (0.7 * wall.inner_mm)
        pad = frame.ellipse(middle, (self.pad, 0.5 * wall.inner_mm + 4), self.front - np.pi / 2)
        pad = np.minimum(pad + 5 * wall.bend + 2 * frame.texture(swell(3), 1.3, self.shift[4]), wall.cavity + 1)
        frame.paint(pad, signal["fat"], "fat")
        frame.blend(0.6 * frame.lines(3, 0.9, self.shift[5], 0.3) * frame.coverage(pad - 1), signal["muscle"])

    def draw_back(self, frame: Frame, wall: Wall, signal: dict) -> None:
        """Fat, muscle and vessels between heart and spine, the spine, the back's muscles."""
        back, side, turn, bend = self.back, self.side, self.turn, wall.bend
        at = self.spine + back * self.spine_slope * (self.length - frame.z)
        middle = frame.ellipse(at - back * 34, (42, 27), turn) + 6 * bend
        middle = np.maximum(middle, frame.ellipse(at + back * 6, (27, 32), turn) + 2 * bend)
        middle = np.minimum(middle, wall.muscle)
        if not (middle > -1).any():
            return
        frame.paint(middle, signal["muscle"] * 1.1, "muscle")
        soft = frame.texture(swell(3), 1.7, self.shift[5])
        frame.paint(np.minimum(3 * soft - 1 + self.fatty, middle), signal["fat"], "fat")
        frame.blend(0.8 * frame.lines(4, 1.1, self.shift[1], 0.5) * frame.coverage(middle - 2), signal["muscle"])
        for s in (-20, 20):
            erector = frame.ellipse(at + back * 28 + side * s, (15, 19), turn) + 2 * bend
            frame.paint(np.minimum(erector, wall.muscle), signal["muscle"], "muscle")
        frame.paint(frame.ellipse(at + back * 20, (13, 16), turn), signal["cortical"] + 0.04, "bone")
        frame.paint(frame.ellipse(at + back * 19, (7.5, 9.5), turn), signal["spinal fluid"], "spinal fluid")
        frame.paint(frame.ellipse(at + back * 19, (3.8, 5.0), turn), 0.4 * signal["spinal fluid"], "spinal fluid")
        column = frame.ellipse(at, self.vertebra, turn + np.pi / 2) + 0.8 * bend
        frame.paint(column + 1.0, signal["cortical"], "bone")
        disc = 0.5 + 0.5 * np.tanh(6 * np.cos(2 * np.pi * (frame.z + 7) / 30) - 2)
        frame.paint(column, signal["bone"] * (1 - 0.6 * disc), "bone")
        frame.paint(frame.ellipse(at + self.oesophagus, (8, 5.5), turn) + bend, signal["wall"], "oesophagus")
        frame.paint(frame.ellipse(at + self.oesophagus, (2.5, 1.2), turn) + bend, 0.02, "oesophagus")
        vessel = frame.ellipse(at + self.aorta_at, self.aorta_axes, self.aorta_angle)
        frame.paint(vessel + 1.4, signal["muscle"], "muscle")
        frame.paint(vessel, signal["blood"] * (1 + 0.08 * bend), "blood")
