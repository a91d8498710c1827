"""A random thorax, from the liver to the shoulders, arms up: its parts, and the order in which they are painted.

z runs towards the head with z = 0 at the carina; x to the patient's left, y to the back; mm throughout.
"""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.canvas import Canvas
from ldctlib.phantom.organs import draw_hu, draw_texture
from ldctlib.phantom.textures import cloud
from ldctlib.phantom.thorax.findings import Findings
from ldctlib.phantom.thorax.lungs import Diaphragm, Lungs
from ldctlib.phantom.thorax.mediastinum import Mediastinum
from ldctlib.phantom.thorax.tissues import COMMON, PHASES, TEXTURE_HU
from ldctlib.phantom.thorax.upper_abdomen import UpperAbdomen
from ldctlib.phantom.thorax.wall import ThoracicSpine, ThoraxFrame, ThoraxWall


class Thorax:
    """One thorax. Everything random is drawn here, nothing while a slice is drawn."""

    z_range_mm = (-150.0, 95.0)

    def __init__(self, rng: np.random.Generator):
        parts = iter(rng.spawn(8))  # a stream for each part, so that they can change separately
        own = next(parts)
        self.phase = str(own.choice(list(PHASES), p=[0.35, 0.15, 0.2, 0.3]))
        self.hu = draw_hu(own, {**COMMON, **PHASES[self.phase]})
        self.texture_hu = draw_texture(own, TEXTURE_HU)
        self.shift = own.uniform(0, 96, 3)
        self.wall = ThoraxWall(next(parts))
        self.spine = ThoracicSpine(next(parts), self.wall)
        self.diaphragm = Diaphragm(next(parts), self.wall)
        self.mediastinum = Mediastinum(next(parts), self.wall, self.spine)
        self.lungs = Lungs(next(parts), self.wall, self.diaphragm, self.mediastinum.place)
        self.findings = Findings(next(parts), self.wall, self.lungs, self.hu)
        self.abdomen = UpperAbdomen(next(parts), self.wall, self.diaphragm, self.mediastinum.place(-24, 0.78, -115))
        self.field_of_view_mm = self.wall.field_of_view_mm

    def draw(self, canvas: Canvas) -> None:
        """Paint the slice at ``canvas.z_mm``, each part over what it displaces."""
        hu, frame = self.hu, ThoraxFrame(self.wall, canvas)
        self.wall.draw(canvas, frame, hu)
        lung = self.lungs.draw(canvas, frame, hu)
        self.findings.draw(canvas, frame, hu, lung)
        self.abdomen.draw(canvas, frame, hu)
        self.mediastinum.draw(canvas, frame, hu, self.diaphragm)
        self.spine.draw(canvas, frame, hu)
        grain = canvas.sample(cloud(2.5), frame.box, 0.75, self.shift)
        canvas.values[frame.box] += grain * self.texture_hu[canvas.labels[frame.box]]
