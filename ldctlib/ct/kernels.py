"""Reconstruction kernels: the windows that multiply the ramp filter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ldctlib.errors import ParameterError


@dataclass(frozen=True)
class Kernel:
    """A reconstruction kernel: the window that multiplies the ramp, as a function of frequency in 1/mm.

    1 up to ``flat_to``, then a cosine roll-off (a Hann flank) that reaches 0 at ``cutoff``; ``tilt`` multiplies by
    (f / 0.05)^-tilt above 0.05 /mm, the gentle fall from low frequencies on that sharp clinical kernels have.
    ``flat_to=0`` is a Hann window.
    """

    flat_to: float
    cutoff: float
    tilt: float = 0.0

    def __post_init__(self):
        if not 0 <= self.flat_to <= self.cutoff or not self.cutoff > 0:
            raise ParameterError(
                f"a kernel needs 0 <= flat_to <= cutoff, cutoff > 0 (1/mm), got {self.flat_to}, {self.cutoff}"
            )

    def __call__(self, f_per_mm: torch.Tensor) -> torch.Tensor:
        span = max(self.cutoff - self.flat_to, 1e-9)
        position = ((f_per_mm - self.flat_to) / span).clamp(0, 1)
        window = 0.5 * (1 + torch.cos(math.pi * position))
        if self.tilt:
            window = window * (f_per_mm / 0.05).clamp(min=1) ** -self.tilt
        return window


KERNELS = {
    "soft": Kernel(0.0, 0.55),
    "B30f": Kernel(0.15, 0.75, tilt=0.2),
    "B45": Kernel(0.2, 0.85),
    "D45f": Kernel(0.42, 1.1, tilt=0.08),
    "ramp": Kernel(1e6, 1e6),
}
"""Named after what they resemble. B30f and D45f are fitted to real scanners' noise spectra, each band within 20 %, for
detector bins of half a pixel (:mod:`ldctlib.ct.scanner_spectra`, notebook 01). "ramp" has no window."""


def find_kernel(kernel: str | Kernel) -> Kernel:
    """A kernel by name, or the one given."""
    if isinstance(kernel, Kernel):
        return kernel
    if kernel not in KERNELS:
        raise ParameterError(f"no kernel is named {kernel!r}; there are {', '.join(KERNELS)}, or give a Kernel")
    return KERNELS[kernel]


def edge_blur_px(kernel: Kernel, pixel_mm: float, aperture_mm: float = 0.3) -> float:
    """Standard deviation, in pixels, of the Gaussian that blurs edges about as a scan with this kernel does.

    A Gaussian's MTF falls to a half at 0.187 / sigma; the kernel's half is matched, and the focal spot's and
    detector's aperture is added in quadrature.
    """
    f = torch.linspace(0, 2, 2001)
    half = float(f[(kernel(f) < 0.5).nonzero()[0, 0]]) if bool((kernel(f) < 0.5).any()) else 2.0
    return math.hypot(0.187 / half, aperture_mm / math.sqrt(12) * 1.5) / pixel_mm
