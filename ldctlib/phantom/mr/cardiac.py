"""Random cardiac patients: noise-free or noisy cine slices along the heart's short axis, with labels.

``CardiacPatient.random(seed)`` draws everything random once; a slice is then drawn at any height of the long axis, at
any phase of the heartbeat, on any grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ldctlib.errors import ParameterError
from ldctlib.phantom.canvas import Canvas
from ldctlib.phantom.mr.acquisition import Coils, band_limit, magnitude
from ldctlib.phantom.mr.chest import Chest
from ldctlib.phantom.mr.frame import Frame, Placement
from ldctlib.phantom.mr.heart import Heart
from ldctlib.phantom.mr.tissues import ID, draw_signals, draw_texture
from ldctlib.phantom.mr.upper_abdomen import UpperAbdomen
from ldctlib.phantom.textures import cloud, swell

END_SYSTOLE = 0.36
"""Share of the heartbeat from end diastole to end systole."""


@dataclass(frozen=True)
class CardiacSlice:
    """``image`` float32 (1, 1, H, W) in arbitrary units, ``labels`` uint8 (1, 1, H, W): M&Ms' 0 to 3."""

    image: torch.Tensor
    labels: torch.Tensor
    z_mm: float
    phase: float
    pixel_mm: float


@dataclass(frozen=True, eq=False)
class CardiacPatient:
    """One random patient; the same seed gives the same patient on every machine with the same NumPy."""

    seed: int
    heart: Heart = field(repr=False)
    chest: Chest = field(repr=False)
    abdomen: UpperAbdomen = field(repr=False)
    coils: Coils = field(repr=False)
    placement: Placement
    signal: dict[str, float] = field(repr=False)
    texture: np.ndarray = field(repr=False)
    shift: np.ndarray = field(repr=False)
    resolution: tuple[float, float]
    taper: float
    scale: list = field(default_factory=list, repr=False)

    @classmethod
    def random(cls, seed: int) -> CardiacPatient:
        """Draw a patient. Raises ParameterError for a seed that is no integer of 0 or more."""
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ParameterError(f"seed must be an integer >= 0, got {seed!r}")
        own, *parts = np.random.default_rng([int(seed), 0x3EA7]).spawn(5)
        placement = Placement(own.uniform(-0.45, 0.35), (own.uniform(-22, 12), own.uniform(-18, 18)))
        heart = Heart(parts[0])
        chest = Chest(parts[1], placement, heart.radius, heart.length)
        abdomen = UpperAbdomen(parts[2], placement, heart.radius, heart.length)
        coils = Coils.random(parts[3], chest.front + placement.angle)
        resolution = own.uniform(0.72, 1.0), own.uniform(0.8, 1.0)
        more = draw_signals(own), draw_texture(own), own.uniform(0, 96, (2, 3))
        return cls(int(seed), heart, chest, abdomen, coils, placement, *more, resolution, own.uniform(0.1, 0.9))

    @property
    def z_range_mm(self) -> tuple[float, float]:
        """From below the apex to the atria and great vessels; apex 0, valves near ``heart.length``."""
        return -12.0, self.heart.length + 30.0

    def contraction(self, phase: float) -> float:
        """0 in end diastole (phase 0 and 1), 1 in end systole."""
        share = phase / END_SYSTOLE if phase < END_SYSTOLE else (1 - phase) / (1 - END_SYSTOLE)
        return float(0.5 - 0.5 * np.cos(np.pi * share))

    def slice(
        self,
        z_mm: float,
        *,
        phase: float = 0.0,
        size: int = 192,
        pixel_mm: float = 1.4,
        thickness_mm: float = 8.0,
        noise_sd: float = 0.0,
        noise_seed: int = 0,
    ) -> CardiacSlice:
        """Draw one slice, its scale such that the volume's 99.5th percentile is about 1.

        phase : share of the heartbeat in [0, 1]; end diastole is 0, end systole :data:`END_SYSTOLE`.
        thickness_mm : above 3, the mean of sub-slices about 2.7 mm apart (partial volume); labels are the middle's.
        noise_sd : of each channel of the complex noise, in the image's unit; 0 is noise-free.
        Raises ParameterError for a z outside :attr:`z_range_mm`, an impossible grid, phase or noise.
        """
        low, high = self.z_range_mm
        if not low <= z_mm <= high:
            raise ParameterError(f"z_mm = {z_mm} is outside this patient's range [{low:.1f}, {high:.1f}] mm")
        if not isinstance(size, (int, np.integer)) or not 16 <= size <= 1024:
            raise ParameterError(f"size must be an integer from 16 to 1024, got {size!r}")
        if not 0.3 <= pixel_mm <= 20:
            raise ParameterError(f"pixel_mm must be within 0.3 to 20 mm, got {pixel_mm}")
        if not 0 < thickness_mm <= 20:
            raise ParameterError(f"thickness_mm must be above 0 and at most 20, got {thickness_mm}")
        if not 0 <= phase <= 1:
            raise ParameterError(f"phase is a share of the heartbeat in [0, 1], got {phase}")
        if not self.scale:
            self.scale.append(self._percentile())
        signal, labels = self._signal(z_mm, phase, int(size), float(pixel_mm), thickness_mm)
        rng = np.random.default_rng([self.seed, noise_seed, 0x41CE])
        image = magnitude(signal / np.float32(self.scale[0]), noise_sd, rng)
        return CardiacSlice(
            torch.from_numpy(image)[None, None],
            torch.from_numpy(labels)[None, None],
            float(z_mm),
            float(phase),
            float(pixel_mm),
        )

    def _percentile(self) -> float:
        """The 99.5th percentile of five thin coarse slices."""
        heights = np.linspace(0.05, 1.05, 5) * self.heart.length
        return float(np.percentile([np.abs(self._signal(z, 0.0, 72, 3.6, 1.0)[0]) for z in heights], 99.5))

    def _signal(self, z_mm, phase, size, pixel_mm, thickness_mm) -> tuple[np.ndarray, np.ndarray]:
        """The signed signal before the magnitude, and the labels."""
        n = max(1, round(thickness_mm / 2.7))
        total, labels = 0.0, None
        for i, offset in enumerate((np.arange(n) - (n - 1) / 2) * (thickness_mm / n)):
            canvas = Canvas(size, pixel_mm, z_mm + offset, self.signal["air"])
            self._draw(canvas, self.contraction(phase))
            total = total + canvas.values / np.float32(n)
            if i == n // 2:
                labels = np.where(canvas.labels <= ID["right ventricle"], canvas.labels, 0).astype(np.uint8)
        total = total * self.coils.sensitivity(canvas.x, canvas.y, z_mm - 0.5 * self.heart.length)
        return band_limit(total, self.resolution, self.taper), labels

    def _draw(self, canvas: Canvas, contraction: float) -> None:
        frame, signal = Frame(canvas, self.placement), self.signal
        wall = self.chest.wall(frame)
        self.chest.draw(frame, wall, signal)
        self.abdomen.draw(frame, wall, signal)
        self.chest.draw_back(frame, wall, signal)
        self.chest.draw_pad(frame, wall, signal)
        self.heart.draw(frame, signal, contraction)
        grain = frame.texture(cloud(2.5), 0.9, self.shift[0]) + frame.texture(swell(0), 1.0, self.shift[1])
        canvas.values *= 1 + np.float32(0.7) * grain * self.texture[canvas.labels]
