"""A random abdomen, from the lung bases to the iliac crests: its parts, and the order in which they are painted.

z runs towards the head with z = 0 at the disc L1/L2; x to the patient's left, y to the back; mm throughout.
"""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.abdomen.bowel import Bowel
from ldctlib.phantom.abdomen.chest import Chest
from ldctlib.phantom.abdomen.liver import Liver
from ldctlib.phantom.abdomen.tissues import COMMON, PHASES, TEXTURE_HU
from ldctlib.phantom.abdomen.vessels import Vessels
from ldctlib.phantom.abdomen.viscera import Viscera
from ldctlib.phantom.abdomen.wall import Frame, Spine, Wall
from ldctlib.phantom.canvas import Canvas
from ldctlib.phantom.organs import draw_hu, draw_texture
from ldctlib.phantom.textures import cloud


class Abdomen:
    """One abdomen. Everything random is drawn here, nothing while a slice is drawn."""

    z_range_mm = (-130.0, 118.0)

    def __init__(self, rng: np.random.Generator):
        parts = iter(rng.spawn(8))  # a stream for each part, so that they can change separately
        own = next(parts)
        self.phase = str(own.choice(list(PHASES), p=[0.2, 0.2, 0.6]))
        self.hu = draw_hu(own, {**COMMON, **PHASES[self.phase]})
        self.texture_hu = draw_texture(own, TEXTURE_HU)
        self.shift = own.uniform(0, 96, 3)
        self.wall = Wall(next(parts))
        self.spine = Spine(next(parts), self.wall)
        self.chest = Chest(next(parts), self.wall, self.spine)
        self.liver = Liver(next(parts), self.wall, self.spine, self.chest, self.hu)
        self.viscera = Viscera(next(parts), self.wall, self.spine)
        self.vessels = Vessels(next(parts), self.wall, self.spine, self.viscera)
        self.bowel = Bowel(next(parts), self.wall)
        self.field_of_view_mm = self.wall.field_of_view_mm

    def draw(self, canvas: Canvas) -> None:
        """Paint the slice at ``canvas.z_mm``, each part over what it displaces."""
        hu, frame = self.hu, Frame(self.wall, canvas)
        self.wall.draw(canvas, frame, hu)
        self.vessels.draw_branches(canvas, frame, hu)
        self.bowel.draw(canvas, frame, hu)
        self.viscera.draw_pancreas(canvas, hu)
        self.viscera.draw_stomach(canvas, frame, hu)
        self.spine.draw(canvas, frame, hu)  # nothing of the bowel shows within it
        self.viscera.draw(canvas, frame, hu)
        self.viscera.draw_spleen(canvas, frame, hu)
        self.liver.draw(canvas, frame, hu, self.viscera.kidney_bed)
        self.vessels.draw_great(canvas, hu)
        self.chest.draw(canvas, frame, hu)
        self.chest.draw_oesophagus(canvas, hu, self.vessels.at(self.vessels.aorta, canvas.z_mm)[:2])
        grain = canvas.sample(cloud(2.5), frame.box, 0.75, self.shift)
        canvas.values[frame.box] += grain * self.texture_hu[canvas.labels[frame.box]]
