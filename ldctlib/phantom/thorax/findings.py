"""Findings in and around the lungs: nodules, a mass, consolidation, emphysema, effusion, pneumothorax."""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.canvas import Canvas, ellipsoid
from ldctlib.phantom.organs import ID
from ldctlib.phantom.textures import cloud, sheets, swell
from ldctlib.phantom.thorax.lungs import Lungs
from ldctlib.phantom.thorax.wall import ThoraxFrame, ThoraxWall

SHARES = {
    "nodule": 0.5,
    "lung mass": 0.12,
    "consolidation": 0.18,
    "emphysema": 0.22,
    "pleural effusion": 0.22,
    "atelectasis": 0.15,
    "pneumothorax": 0.05,
}
"""Share of patients with a finding; a third of the nodules' patients have ground-glass ones among them."""


class Findings:
    """What is wrong with a patient's lungs."""

    def __init__(self, rng: np.random.Generator, wall: ThoraxWall, lungs: Lungs, hu: dict):
        u = rng.uniform
        has = {name: bool(rng.random() < share) for name, share in SHARES.items()}
        self.names = [name for name in SHARES if has[name]]
        self.wall, self.lungs = wall, lungs
        self.shift = rng.uniform(0, 96, (6, 3))
        sides = ((-1,), (1,), (-1, 1), (-1, 1))[rng.integers(4)] if has["pleural effusion"] else ()
        self.effusions = {side: u(0.15, 1.0) for side in sides}
        self.nodules, self.mass, self.areas, self.bullae = [], None, [], []
        for _ in range(rng.integers(1, 6) if has["nodule"] else 0):
            r = float(np.clip(rng.lognormal(1.35, 0.5), 2.0, 12.5))
            glass = rng.random() < 0.25
            value = hu["ground glass"] if glass else (u(250, 700) if rng.random() < 0.1 else hu["nodule"])
            self.nodules.append((self._place(rng, r + 1.5), r * u(0.85, 1.15, 3), u(0, 3), value, glass, u(0, 1.4)))
        if has["lung mass"]:
            self.mass = self._place(rng, 12), u(16, 32) * u(0.85, 1.15, 3), u(0, 3), u(0, 1)
        for _ in range(rng.integers(1, 3) if has["consolidation"] else 0):
            self.areas.append((self._place(rng, 8, (-999, -10, -999)), u(18, 42, 3), u(0, 3), u(0.1, 0.5)))
        self.emphysema = (u(-0.3, 0.6), u(0.25, 0.6), u(0, 60)) if has["emphysema"] else None
        for _ in range(rng.integers(0, 6) if has["emphysema"] else 0):
            self.bullae.append((self._place(rng, 4, (-999, -999, 15)), u(5, 16, 3), u(0, 3)))
        self.collapse = u(8, 18) if has["atelectasis"] else 0.0
        self.free_air = (int(rng.choice([-1, 1])), u(8, 30), u(-0.6, -0.2)) if has["pneumothorax"] else None

    def _place(self, rng, margin: float, low=(-999, -999, -999)) -> np.ndarray:
        """A point inside a lung, if possible not in its fluid."""
        points = self.lungs.anywhere(rng, margin, low, count=12)
        for x, y, z in points:
            radius = self.wall.cage_radius(z, np.arctan2(y, x))
            if not self.effusions or self.fluid(x, y, z, radius - np.hypot(x, y)) < -margin:
                return np.array([x, y, z])
        return points[0]

    def fluid(self, x, y, z: float, cavity) -> np.ndarray:
        """Signed distance inside the pleural fluid: a crescent along the wall, thickest at the back and low down."""
        out, d = np.float32(-99), self.wall.deep
        for side, much in self.effusions.items():
            thick = 75 * much * float(np.clip((110 * much - 60 - z) / 110, 0, 1)) ** 0.8
            if thick > 0:
                dependent = np.clip((y - np.float32((0.7 - 0.9 * much) * d)) / np.float32((0.3 + 0.9 * much) * d), 0, 1)
                part = np.float32(thick) * dependent * (2 - dependent) - cavity
                out = np.maximum(out, np.minimum(part, np.float32(side) * x))
        return out

    def draw(self, canvas: Canvas, frame: ThoraxFrame, hu: dict, lung: np.ndarray) -> None:
        """``lung`` : coverage of the lungs (size, size), which clips everything."""
        z, box = canvas.z_mm, frame.inner
        cavity, here = frame.on(box, frame.cavity), lung[box]
        x, y = canvas.grid(box)
        if self.emphysema is not None:
            severity, size, low = self.emphysema
            holes = canvas.sample(swell(2), box, size, self.shift[0]) + canvas.sample(swell(3), box, 2.4, self.shift[1])
            holes = (holes - 1.6 + severity + float(np.clip((z - low) / 90, -0.8, 0.6))) * np.float32(4 * size)
            holes = np.minimum(holes, cavity - 2)
            canvas.blend(box, canvas.coverage(holes) * here * 0.92, hu["emphysema"], ID["emphysema"])
            for bulla in self.bullae:
                shape = ellipsoid(canvas, *bulla, 3)
                if shape is not None:
                    d = np.minimum(shape[1], frame.on(shape[0], frame.cavity) - 1.5)
                    c = lung[shape[0]]
                    canvas.blend(shape[0], canvas.coverage(d + 0.9) * c, hu["lung"] + 150)
                    canvas.blend(shape[0], canvas.coverage(d) * c, hu["emphysema"], ID["emphysema"])
        mask = np.zeros_like(canvas.values)
        for centre, axes, angle, grade in self.areas:
            shape = ellipsoid(canvas, centre, axes, angle, 24)
            if shape is None:
                continue
            part, d = shape
            uneven = canvas.sample(cloud(2.5), part, 1.6, self.shift[2])
            d = d + 7 * canvas.sample(swell(1), part, 2.2, self.shift[2]) + 2.5 * uneven
            c = lung[part]
            canvas.blend(part, np.clip(0.55 + d * 0.05, 0, 0.8) * c * grade, hu["muscle"])  # ground glass around
            solid = canvas.coverage(d * 0.35 - 1) * c
            canvas.blend(part, solid, hu["consolidation"] - 25 * np.clip(uneven, 0, 2), ID["consolidation"])
            mask[part] = np.maximum(mask[part], solid)
        if self.collapse and z < 20:
            sag = cavity - self.collapse * np.float32(np.clip((20 - z) / 100, 0, 1))
            back = np.minimum(y - np.float32(0.45 * self.wall.deep), -sag)
            uneven = canvas.sample(swell(2), box, 1.8, self.shift[4])
            solid = canvas.coverage((back + 2.5 * uneven - 2) * 0.5) * here
            canvas.blend(box, solid, hu["atelectasis"], ID["atelectasis"])
        if mask.any():  # air remains in the bronchi
            self.lungs.bronchi.draw(canvas, hu["air"], ID["airway"], mask=mask)
        self._draw_nodules(canvas, hu, lung)
        if self.effusions:
            d = self.fluid(x, y, z, cavity)
            if (d > -20).any():  # the lung beside it is airless
                near = 9 - 0.012 * (np.abs(x) - np.float32(0.4 * self.wall.cage)) ** 2 + np.float32(0.1) * y
                near = np.minimum(
                    d + near + 4 * canvas.sample(swell(2), box, 2.0, self.shift[4]),
                    np.minimum(2 + 0.4 * (d + 12), y - np.float32(0.1 * self.wall.deep)),
                )
                canvas.blend(box, canvas.coverage(near * 0.5) * here, hu["atelectasis"], ID["atelectasis"])
                canvas.blend(box, canvas.coverage(d) * here, hu["effusion"], ID["pleural effusion"])
        if self.free_air is not None:
            side, deep, level = self.free_air
            d = np.minimum(
                deep * np.clip((z + 90) / 120, 0, 1.2) * np.clip(0.4 + (level * self.wall.deep - y) / 40, 0, 1)
                - cavity,
                side * x - 8,
            )
            canvas.blend(box, canvas.line_coverage(d, 0.4) * here, hu["muscle"] - 40)
            canvas.blend(box, canvas.coverage(d - 0.6) * here, hu["pneumothorax"], ID["pneumothorax"])

    def _draw_nodules(self, canvas, hu, lung):
        for centre, axes, angle, value, glass, spikes in self.nodules:
            shape = ellipsoid(canvas, centre, axes, angle, 5)
            if shape is None:
                continue
            box, d = shape
            d = d + 0.12 * float(axes.mean()) * canvas.sample(swell(3), box, 0.5, self.shift[3])
            c = canvas.coverage(d * (0.4 if glass else 1.0)) * lung[box]
            canvas.blend(box, c, value, ID["ground-glass nodule" if glass else "nodule"])
            if not glass and axes.mean() > 4:
                self._spikes(canvas, box, d, spikes, lung[box], hu)
        if self.mass is not None:
            centre, axes, angle, necrosis = self.mass
            shape = ellipsoid(canvas, centre, axes, angle, 10)
            if shape is not None:
                box, d = shape
                d = d + 4 * canvas.sample(swell(3), box, 1.3, self.shift[3])
                core = np.clip((d - 6) / 10, 0, 1) * necrosis
                c = canvas.coverage(d) * lung[box]
                canvas.blend(box, c, hu["mass"] - (hu["mass"] - 15) * core, ID["lung mass"])
                self._spikes(canvas, box, d, 1.0, lung[box], hu)

    def _spikes(self, canvas, box, d, much, lung, hu):
        lines = canvas.line_coverage(canvas.sample(sheets(4), box, 0.6, self.shift[5]) * np.float32(0.6), 0.35)
        canvas.blend(
            box, lines * np.clip(1 + d / 6, 0, 1) * (d < 0.5) * lung * 0.7 * np.clip(much, 0, 1), hu["muscle"] - 60
        )
