"""The vocabulary of cine cardiac MR: label ids, bSSFP signals, and the strength of each tissue's texture.

Signals are signed: fat is negative, because at the usual repetition time of balanced SSFP water and fat are in opposite
phase. Where a voxel holds both they cancel, and the magnitude shows the dark line at every border between them.
"""

from __future__ import annotations

import numpy as np

TISSUES: tuple[str, ...] = tuple(
    "background, left ventricle, myocardium, right ventricle, blood, fat, muscle, lung, liver, spleen, stomach, bone, "
    "spinal fluid, kidney, skin, oesophagus, pericardium".split(", ")
)
"""Tissue id -> name; the first three after the background are M&Ms' labels."""

ID = {name: i for i, name in enumerate(TISSUES)}
LABELS: tuple[str, ...] = TISSUES[:4]

_SIGNAL = (
    {"blood": (0.78, 1.0), "muscle": (0.14, 0.24), "lung": (0.015, 0.06), "liver": (0.15, 0.30), "spleen": (0.2, 0.42)}
    | {"bone": (0.15, 0.4), "cortical": (0.02, 0.07), "spinal fluid": (0.8, 1.2), "kidney": (0.35, 0.6)}
    | {"skin": (0.2, 0.35), "wall": (0.2, 0.34), "air": (0.0, 0.004)}
)
"""(low, high) before the coil's bias, where ventricular blood is near 1."""

TEXTURE = {"left ventricle": 0.07, "right ventricle": 0.08, "blood": 0.08, "myocardium": 0.08, "fat": 0.06} | (
    {"muscle": 0.12, "lung": 0.25, "liver": 0.06, "spleen": 0.06, "stomach": 0.15, "bone": 0.15, "kidney": 0.1}
)
"""Relative standard deviation of a tissue's texture; a patient has 0.6 to 1.4 of it."""


def draw_signals(rng: np.random.Generator) -> dict[str, float]:
    """One patient's signal by tissue: bright blood and fat, grey myocardium; in one of five hearts little contrast."""
    signal = {name: float(rng.uniform(*span)) for name, span in _SIGNAL.items()}
    flat = rng.random() < 0.2  # spoiled gradient echoes, or blood after a contrast agent has left
    ratio = rng.uniform(0.5, 0.78) if flat else rng.uniform(0.2, 0.45)
    signal["myocardium"] = signal["blood"] * ratio
    signal["right blood"] = signal["blood"] * rng.uniform(0.82, 1.05)
    opposed = 1.0 if flat and rng.random() < 0.5 else -1.0
    signal["fat"] = opposed * signal["blood"] * rng.uniform(0.6, 1.15)
    return signal


def draw_texture(rng: np.random.Generator) -> np.ndarray:
    """One patient's texture strength by tissue id, (256,)."""
    strength = np.zeros(256, np.float32)
    for name, value in TEXTURE.items():
        strength[ID[name]] = value * rng.uniform(0.6, 1.4)
    return strength
