"""Liver with fissure, veins and lesions, and the gallbladder: warped ellipsoids clipped by the cavity."""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.abdomen.chest import Chest
from ldctlib.phantom.abdomen.wall import Frame, Spine, Wall
from ldctlib.phantom.canvas import Canvas, VesselTree, ellipsoid, ellipsoid_distance, smooth_path
from ldctlib.phantom.organs import ID
from ldctlib.phantom.textures import sheets, swell


class Liver:
    """Liver with fissure, portal and hepatic veins, lesions, and the gallbladder."""

    def __init__(self, rng: np.random.Generator, wall: Wall, spine: Spine, chest: Chest, hu: dict):
        u, s = rng.uniform, wall.half_width / 138
        self.scale, self.spine, self.chest = s, spine, chest

        def near(v, sd=5.0):
            return tuple(np.asarray(v, float) + rng.normal(0, sd, 3))

        self.lobes = [
            (near((-74 * s, 0, 42)), (92 * s * u(0.9, 1.1), 98, u(88, 108)), u(-0.2, 0.2)),
            (near((-2 * s, -46, 58)), (u(52, 95) * s, u(32, 46), u(44, 62)), u(-0.1, 0.35)),
            (near((-28 * s, 5, 40), 3), (40, 34, 50), 0.0),
        ]
        self.reach_mm = max(centre[0] + max(axes[:2]) for centre, axes, _ in self.lobes) + 45
        self.warp_mm, self.fissure = u(2, 4.5), (u(-26, -10) * s, u(0.1, 0.5), u(0.2, 1.6), u(-30, 0))
        self.gallbladder = None
        if rng.random() >= 0.15:
            self.gallbladder = near((-48 * s, -40, 4), 6), (u(10, 17), u(14, 26), u(20, 32)), u(-0.6, 0.6)
        self.shift = rng.uniform(0, 96, (3, 3))
        self.twig_mm = u(0.3, 0.8)
        hilum = np.array([-44 * s, -14, 28])
        trunk = smooth_path([(-26 * s, -24, 8), (-35 * s, -17, 18), hilum], 4)
        portal = [VesselTree.along(trunk, np.linspace(6.5, 5.5, len(trunk)))]
        look = dict(levels=5, spread=0.6, shrink=0.82, taper=0.72, wander=0.14)
        for d, r, n in (((-1, 0.35, 0.25), 4.8, 34), ((0.75, -0.9, 0.35), 4.0, 36), ((-0.9, -0.6, -0.5), 3.8, 34)):
            portal.append(VesselTree.grow(rng, hilum, d, radius=r, length=n, **look))
        self.portal = VesselTree.join(portal)
        top = (-30 * s, spine.y - 45, 84)
        directions = ((-1, 0.1, -0.35), (-0.6, -0.9, -0.4), (0.35, -1, -0.25), (-0.7, 0.5, -0.7))
        look = dict(radius=4.2, length=46, levels=5, spread=0.45, shrink=0.78, taper=0.72, wander=0.12)
        self.hepatic = VesselTree.join([VesselTree.grow(rng, top, d, **look) for d in directions])
        self.lesions = []
        for _ in range(rng.integers(1, 8) if rng.random() < 0.5 else 0):
            centre = np.array(self.lobes[0][0]) + rng.uniform(-1, 1, 3) * (60, 55, 60)
            r = float(np.clip(rng.lognormal(1.9, 0.5), 2.5, 28))
            cyst = rng.random() < 0.35
            value = hu["cyst"] if cyst else hu["liver"] - u(20, 60)
            self.lesions.append((centre, r * u(0.8, 1.2, 3), u(0, 3), value, cyst))

    def draw(self, canvas: Canvas, frame: Frame, hu: dict, hollow) -> None:
        """``hollow(x, y, z)`` is the signed distance outside the right kidney's bed."""
        z, s, box = canvas.z_mm, self.scale, frame.box
        ends = canvas.box(0, self.reach_mm, 0, 0)
        # nothing of the liver lies at the far left
        box = box[0], slice(box[1].start, min(max(ends[1].stop, box[1].start + 1), box[1].stop))
        x, y = canvas.grid(box)
        d = None
        for centre, axes, angle in self.lobes:
            part = ellipsoid_distance(x, y, z, centre, axes, angle)
            if d is None:
                d = part
            else:  # smooth union
                m = np.clip(0.5 + (part - d) / 24, 0, 1)
                d = d + m * (part - d) + m * (1 - m) * 6
        warp = canvas.sample(swell(2), box, 4.5, self.shift[0])
        d = d + self.warp_mm * warp
        if z < 60:  # the fissure of the falciform ligament, wider in front
            x0, lean, half, end = self.fissure
            gap = np.abs(x - np.float32(x0) + lean * (y + 50) + 3 * warp) - half - 0.05 * np.maximum(-y - 40, 0)
            d = np.minimum(d, np.maximum(gap, y - np.float32(end - 0.3 * z)))
        d = np.minimum(d, frame.on(box, frame.cavity) - 1.8)
        d = np.minimum(d, self.chest.below(canvas, frame, box) - 1.2)
        sx, sy = self.spine.at(z)
        # the bed of the stomach and the left kidney
        d = np.minimum(d, -ellipsoid_distance(x, y, 0, (sx + 72 * s, sy + 14, 0), (68 * s, 52, 1)) + 2 * warp)
        bed = hollow(x, y, z) + 2.5 * canvas.sample(swell(3), box, 2.5, self.shift[1])
        d = np.minimum(np.minimum(d, bed), np.sqrt((x - sx) ** 2 + (y - sy) ** 2) - 31)
        if not (d > -1).any():
            return
        canvas.paint(box, d + 0.9, hu["fat"])
        canvas.paint(box, d, hu["liver"], ID["liver"])
        mask = np.zeros_like(canvas.values)
        mask[box] = canvas.coverage(d - 1.5)
        s1 = canvas.sample(sheets(2), box, 0.8, self.shift[1]) * np.float32(0.8)
        s2 = canvas.sample(sheets(4), box, 0.8, self.shift[2]) * np.float32(0.8)
        size = np.clip(self.twig_mm * (0.5 + canvas.sample(swell(1), box, 2.5, self.shift[2])), 0, 0.8)
        twigs = canvas.line_coverage(np.sqrt(s1 * s1 + s2 * s2), size)
        canvas.blend(box, twigs * mask[box], 0.6 * hu["portal"] + 0.4 * hu["liver"])
        self.portal.draw(canvas, hu["portal"], ID["portal vein"], mask=mask)
        self.hepatic.draw(canvas, hu["hepatic"], ID["hepatic vein"], mask=mask)
        for centre, axes, angle, value, cyst in self.lesions:
            shape = ellipsoid(canvas, centre, axes, angle, 3)
            if shape is None:
                continue
            # cysts are sharp and round, metastases fade at an uneven rim
            e = shape[1] if cyst else (shape[1] + canvas.sample(swell(3), shape[0], 0.7, self.shift[1])) * 0.35
            canvas.blend(shape[0], canvas.coverage(e) * mask[shape[0]], value, ID["cyst" if cyst else "metastasis"])
        if self.gallbladder is not None:
            shape = ellipsoid(canvas, *self.gallbladder, 4)
            if shape is not None:
                d = shape[1] + 1.2 * canvas.sample(swell(0), shape[0], 1.5, self.shift[1])
                d = np.minimum(d, frame.on(shape[0], frame.cavity) - 3)
                canvas.paint(shape[0], d + 1.2, hu["wall"], ID["gallbladder"])
                canvas.paint(shape[0], d, hu["bile"], ID["gallbladder"])
