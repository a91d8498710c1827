"""The heart: ventricles with trabeculae and papillary muscles, atria, great vessels, fat and pericardium."""

from __future__ import annotations

import numpy as np

from ldctlib.phantom.canvas import smooth_path
from ldctlib.phantom.mr.frame import FAR, Frame, union
from ldctlib.phantom.textures import cloud, sample_at, swell


class Heart:
    """One heart, from the apex (z = 0) to the great vessels; ``contraction`` is 0 in end diastole, 1 in end systole."""

    def __init__(self, rng: np.random.Generator):
        u = rng.uniform
        self.radius = float(np.clip(rng.normal(38, 4.5), 29, 50))  # of the left ventricle at the base, outside
        thick = u(14, 20) if rng.random() < 0.12 else u(6.5, 11.5)
        self.wall = min(thick, 0.5 * self.radius)
        self.length = self.radius * u(2.15, 2.6)
        self.shortening, self.ejection = u(0.08, 0.16), u(0.12, 0.42)
        self.power, self.oval, self.oval_angle = u(2.0, 2.8), u(0.92, 1.06), u(0, np.pi)
        self.centre, self.drift = np.array([0.45 * self.radius, u(-4, 4)]), rng.normal(0, 0.05, 2)
        self.tilt = u(-0.05, 0.2), u(-0.15, 0.1)  # of the valves' plane
        self.right_angle, self.right_axes = np.pi + u(-0.25, 0.35), (u(0.75, 1.05), u(1.0, 1.4))
        self.right_wall, self.right_length = u(1.5, 3.5), u(0.72, 0.9)
        self.trabeculae_mm, self.right_trabeculae = u(2.0, 10.0), u(0.3, 1.6)
        self.papillary = [
            (angle + u(-0.3, 0.3), u(6.0, 10.0), u(4.2, 7.0), u(0.25, 0.38), u(0.58, 0.72)) for angle in (-0.75, 1.25)
        ]
        self.fat_mm, self.groove_mm, self.pericardium = u(0.5, 5.0), u(2.0, 9.0), u(0.5, 1.2)
        self.shift = rng.uniform(0, 96, (6, 3))
        self._place_vessels(rng)

    def _place_vessels(self, rng: np.random.Generator) -> None:
        """Atria as (centre, semi-axes, angle), great vessels as (path, radius), above the valves."""
        u, r, base, (x, y) = rng.uniform, self.radius, self.length, self.centre

        def vessel(radius, *knots):
            return smooth_path(np.array(knots, float), 2.5, rng, 2.0), radius

        left = np.array([x + u(-4, 6), y + u(6, 15), base + u(18, 26)])
        right = np.array([-r * u(0.95, 1.25), r * u(0.35, 0.7), base + u(10, 20)])
        self.left_atrium = left, (u(25, 36), u(19, 27), u(21, 27)), u(-0.4, 0.5)
        self.right_atrium = right, (u(22, 31), u(24, 32), u(21, 28)), u(-0.5, 0.5)
        root = np.array([x - 0.55 * r, y - 0.25 * r, base + 12])
        self.aorta = vessel(u(12, 16.5), (x - 0.15 * r, y - 4, base - 4), root, root + (-8, -3, 48))
        self.pulmonary = vessel(u(12, 16), *self._outflow(r, base))
        low = right + (6, 10, -4), right + (u(0, 16), 34, u(-6, 6)), right + (u(0, 24), 84, u(-20, 16))
        high = right + (2, -12, 10), right + (4, -22, 50)
        self.caval = [vessel(u(8, 13), *low), vessel(u(8, 12), *high)]
        self.veins = []  # the pulmonary ones
        for s in (-1, 1):
            knots = left + (20, 4 * s, 4), left + (42, 14 * s, u(4, 14)), left + (70, u(20, 44) * s, u(6, 26))
            self.veins.append(vessel(u(4, 7), *knots))

    @staticmethod
    def _outflow(r: float, base: float) -> np.ndarray:
        """From the right ventricle over the aorta to the pulmonary artery."""
        return np.array([[-0.8, -0.55, 0], [-0.55, -1.0, 0], [-0.1, -1.05, 0], [0.5, -0.75, 0]]) * r + (
            np.array([[0, 0, z + base] for z in (-22, -4, 16, 42)])
        )

    # ---------------------------------------------------------------- shapes

    def _share(self, q: float) -> float:
        """Radius of the left ventricle over that at the base; q runs from the base (0) to the apex (1)."""
        q = min(max(q, -0.2), 1.0)
        return (1 - abs(q) ** self.power) ** (1 / self.power) * (1 - 0.06 * (1 - q) ** 4)

    def base(self, contraction: float) -> float:
        """Height of the valves, which sink towards the apex in systole."""
        return self.length * (1 - self.shortening * contraction)

    def radii(self, z: float, contraction: float) -> tuple[float, float]:
        """Outer and inner radius (mm) of the left ventricle; as it contracts the wall keeps its area."""
        q = 1 - z / self.base(contraction)
        outer = self.radius * self._share(q)
        inner = (self.radius - self.wall) * self._share(q * self.length / (self.length - 0.7 * self.wall))
        muscle = outer**2 - inner**2
        inner *= 1 - self.ejection * contraction * (0.8 + 0.4 * min(max(q, 0.0), 1.0))
        return float(np.sqrt(max(inner**2 + muscle, 0.0))), float(inner)

    def draw(self, frame: Frame, signal: dict, contraction: float) -> None:
        """Paint the heart over what lies behind it."""
        z, muscle, base = frame.z, signal["myocardium"], self.base(contraction)
        centre = self.centre + self.drift * (z - 0.5 * self.length)
        dx, dy = frame.x - np.float32(centre[0]), frame.y - np.float32(centre[1])
        angle, away = np.arctan2(dy, dx), np.hypot(dx, dy)
        below = np.float32(base - z) + np.float32(self.tilt[0]) * dx + np.float32(self.tilt[1]) * dy  # the valves
        bend = frame.texture(swell(0), 2.6, self.shift[0])
        outer, inner = self.radii(z, contraction)
        oval = 1 + (self.oval - 1) * np.cos(2 * (angle - np.float32(self.oval_angle)))
        outside = outer * oval - away + 0.8 * bend
        ventricle = np.minimum(outside, below) if outer > 0 else np.full_like(away, FAR)
        cavity = inner * oval - away + 0.9 * bend
        right = self._right(frame, centre, outer, bend, contraction)
        rooms = self._rooms(frame, np.minimum(right - 3, below + 16), np.minimum(cavity - 2, below + 18))
        above = np.maximum.reduce([distance for _, distance, _ in rooms]) + 2
        whole = union(union(ventricle, np.minimum(right, below + 10) + self.right_wall), above)
        inside = whole + self._fat(frame, angle)
        if not (inside > -2).any():
            return
        frame.paint(inside + self.pericardium, signal["cortical"] + 0.05, "pericardium")
        frame.paint(inside, signal["fat"], "fat")
        for side in (-1.3, 1.4):  # coronary vessels in the grooves
            turn = self.right_angle + side
            at = centre + (outer + 3.0) * np.array([np.cos(turn), np.sin(turn)])
            frame.paint(frame.ellipse(at, (1.6, 1.3)), 0.8 * signal["blood"], "blood")
        for name, room, veins in rooms:  # each with a wall of its own against the ones before
            if (distance := np.maximum.reduce([room, *veins])).max() > -2:
                frame.paint(distance + 1.8, muscle * 0.6, "muscle")
                frame.paint(distance, signal[name] * (1 + 0.06 * bend), "blood")
        if right.max() > 0:
            frame.paint(np.minimum(right + self.right_wall, below + 1.5), muscle * 0.9, "muscle")
            blood = np.minimum(np.minimum(right, -outside - 0.4), below)
            self._right_blood(frame, signal, blood, bend, z / base)
        if outer > 0:
            frame.paint(ventricle, muscle, "myocardium")
            self._left_blood(frame, signal, angle, away, cavity, below, 1 - z / base, inner, contraction)

    def _rooms(self, frame, into_right, into_left) -> list[tuple[str, np.ndarray, list[np.ndarray]]]:
        """What lies above the valves: the signal's name, the distance inside it, and those inside its veins, which run
        in lung and liver, without the heart's fat."""
        veins, caval = ([frame.tube(*vessel) for vessel in bag] for bag in (self.veins, self.caval))
        return [
            ("right blood", np.maximum(frame.ellipsoid(*self.right_atrium), into_right), caval),
            ("blood", np.maximum(frame.ellipsoid(*self.left_atrium), into_left), veins),
            ("blood", frame.tube(*self.aorta), []),
            ("right blood", frame.tube(*self.pulmonary), []),
        ]

    def _right(self, frame, centre, outer, bend, contraction) -> np.ndarray:
        """Distance inside the right ventricle's blood before the septum cuts it."""
        q = (1 - frame.z / self.base(contraction)) / self.right_length
        if q >= 1 or frame.z > self.base(contraction) + 24:
            return np.full_like(frame.x, FAR)
        size = (1 - max(q, 0.0) ** 2.2) ** 0.5
        a = self.radius * self.right_axes[0] * size**1.2 * (1 - 0.28 * contraction)
        b = self.radius * self.right_axes[1] * size**0.8 * (1 - 0.12 * contraction)
        away = 0.72 * outer + 0.12 * self.radius * size
        middle = centre + away * np.array([np.cos(self.right_angle), np.sin(self.right_angle)])
        return frame.ellipse(middle, (max(a, 1.0), max(b, 1.0)), self.right_angle - 0.15) + 1.2 * bend

    def _fat(self, frame, angle):
        """Thickness of the fat around the heart (mm): thin over the left ventricle, thick in the grooves."""
        uneven = frame.texture(swell(1), 2.8, self.shift[1])
        from_groove = np.abs(np.cos(0.5 * (angle - np.float32(self.right_angle)))) - np.float32(np.cos(0.675))
        groove = np.exp(-0.5 * (from_groove / 0.11) ** 2)
        return np.maximum(self.fat_mm * (0.8 + 0.5 * uneven) + self.groove_mm * groove * (0.7 + 0.3 * uneven), 0.3)

    def _right_blood(self, frame, signal, blood, bend, height):
        frame.paint(blood, signal["right blood"] * (1 + 0.05 * bend), "right ventricle")
        # trabeculae: sheets cut by the slice, more of them towards the apex and the free wall
        more = np.clip(1.3 - height, 0.1, 1.2) * self.right_trabeculae
        depth = np.clip(1 - blood / 14, 0.15, 1)
        cover = frame.lines(1, 0.9, self.shift[2], np.maximum(more * (depth + 0.35 * bend), 0)) * frame.coverage(blood)
        frame.blend(0.85 * cover, signal["myocardium"])

    def _left_blood(self, frame, signal, angle, away, cavity, below, q, inner, contraction):
        """Blood, then what reaches into it: trabeculae like fingers at the border, two papillary muscles.

        They belong to the ventricle's label, as annotators count them.
        """
        blood, muscle = np.minimum(cavity, below), signal["myocardium"]
        if inner < 1:
            return
        frame.paint(blood, signal["blood"], "left ventricle")
        along = angle * np.float32(0.8 * inner + 2)
        field = sample_at(swell(2), along, 0.3 * away, frame.z * 0.25, 0.42, self.shift[3])
        reach = self.trabeculae_mm * np.clip(0.25 + 1.1 * q, 0, 1) * (0.55 + 0.45 * np.cos(angle - 0.2))
        fingers = np.minimum(reach * np.maximum(field, 0) - cavity, blood + 0.5)
        frame.blend(0.9 * frame.coverage(fingers), muscle)
        near = frame.lines(3, 0.7, self.shift[4], np.maximum(0.6 * field + 0.15, 0)) * np.clip(1.2 - cavity / 9, 0, 1)
        frame.blend(0.7 * near * frame.coverage(np.minimum(blood, reach + 1)), muscle)
        for at, long, short, low, high in self.papillary:
            t = (q - low) / (high - low)
            if not -0.3 < t < 1.15:
                continue
            size = np.sqrt(max(1 - (2 * (t - 0.4) / 1.5) ** 2, 0.05)) * (1 + 0.2 * contraction)
            out = inner * (0.62 + 0.24 * min(max(t, 0), 1))
            place = self.centre + self.drift * (frame.z - 0.5 * self.length) + out * np.array([np.cos(at), np.sin(at)])
            shape = frame.ellipse(place, (long * size, short * size), at)
            shape = shape + 1.3 * frame.texture(cloud(3.0), 0.9, self.shift[5])
            frame.blend(frame.coverage(np.minimum(shape, blood + 1)), muscle)
