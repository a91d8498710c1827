"""How a scanner sees the object: coil sensitivity, the resolution of a finite k-space, magnitude and Rician noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldctlib.errors import ParameterError


@dataclass(frozen=True)
class Coils:
    """Surface coils: (x, y) and reach in mm in the image's axes, and weight; ``flat`` is the sensitivity anywhere."""

    coils: tuple[tuple[float, float, float, float], ...]
    flat: float

    @classmethod
    def random(cls, rng: np.random.Generator, front: float) -> Coils:
        """A few before the chest, which lies towards the angle ``front``, and two behind."""
        u, coils = rng.uniform, []
        for towards, count, strength in ((front, 3, float(np.exp(u(-1.2, 1.9)))), (front + np.pi, 2, u(0.1, 1.5))):
            for i in range(count):
                angle, away = towards + 0.7 * (i - (count - 1) / 2) + u(-0.2, 0.2), u(80, 150)
                coils.append((away * np.cos(angle), away * np.sin(angle), u(45, 90), strength * u(0.6, 1.4)))
        return cls(tuple(coils), u(0.4, 1.0))

    def sensitivity(self, x: np.ndarray, y: np.ndarray, z: float = 0.0) -> np.ndarray:
        """(H, W) on the grid y (H,) x x (W,), smooth and positive; 1 at the image's centre for z = 0."""

        def at(x, y, z):
            total = self.flat
            for cx, cy, reach, weight in self.coils:
                squared = (x - np.float32(cx)) ** 2 + (y - np.float32(cy)) ** 2 + np.float32((z - 20) ** 2)
                total = total + weight * np.exp(-squared / np.float32(2 * reach**2))
            return total

        return (at(x[None, :], y[:, None], z) / at(0.0, 0.0, 0.0)).astype(np.float32)


def band_limit(signal: np.ndarray, resolution: tuple[float, float], taper: float) -> np.ndarray:
    """The signed signal (H, W) as a finite k-space shows it, at the same pixels.

    resolution : share of the pixels' Nyquist frequency that is acquired, along y and x (1: all of it).
    taper : 0 for a sharp edge of k-space, which rings, to 1 for a raised cosine over all of it.
    """
    spectrum = np.fft.rfft2(signal)
    for frequencies, share, shape in (
        (np.fft.fftfreq(signal.shape[0]), resolution[0], (-1, 1)),
        (np.fft.rfftfreq(signal.shape[1]), resolution[1], (1, -1)),
    ):
        f = np.abs(frequencies) / (0.5 * share)
        window = np.where(f <= 1, 1 - taper * (0.5 - 0.5 * np.cos(np.pi * np.minimum(f, 1))), 0.0)
        spectrum *= window.reshape(shape).astype(np.float32)
    return np.fft.irfft2(spectrum, s=signal.shape).astype(np.float32)


def magnitude(signal: np.ndarray, noise_sd: float = 0.0, rng: np.random.Generator | None = None) -> np.ndarray:
    """|signal + complex noise|, ``noise_sd`` a channel: Rician (Gudbjartsson & Patz 1995); no noise for 0.

    Raises ParameterError for a negative level, or noise without ``rng``.
    """
    if not (noise_sd >= 0 and np.isfinite(noise_sd)):
        raise ParameterError(f"noise_sd is a standard deviation, 0 or more, got {noise_sd}")
    if noise_sd == 0:
        return np.abs(signal)
    if rng is None:
        raise ParameterError("noise needs a random generator: give a seed")
    real, imaginary = rng.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(noise_sd)
    return np.hypot(signal + real, imaginary)
