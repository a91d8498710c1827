"""Labels of all phantoms, and the draws that every anatomy's tables of tissues share."""

from __future__ import annotations

import numpy as np

OF_ABDOMEN: tuple[str, ...] = tuple(
    "background, subcutaneous fat, skin, muscle, visceral fat, rib, cartilage, vertebra, disc, spinal canal, lung, "
    "liver, portal vein, hepatic vein, gallbladder, spleen, stomach, stomach content, gas, renal cortex, "
    "renal medulla, renal pelvis, adrenal, pancreas, aorta, vena cava, vessel, plaque, small bowel, bowel content, "
    "colon, stool, metastasis, cyst, heart, oesophagus, table, ilium, diaphragm".split(", ")
)
ONLY_OF_THORAX: tuple[str, ...] = tuple(
    "airway, bronchial wall, pulmonary artery, pulmonary vein, superior vena cava, left ventricle, right ventricle, "
    "left atrium, right atrium, myocardium, mediastinal fat, coronary artery, sternum, scapula, clavicle, humerus, "
    "breast, thyroid, nodule, ground-glass nodule, lung mass, consolidation, atelectasis, emphysema, lymph node, "
    "pleural effusion, pericardial effusion, pneumothorax".split(", ")
)

ORGANS: tuple[str, ...] = OF_ABDOMEN + ONLY_OF_THORAX
"""Label id -> name, of every anatomy; id 0 is what lies outside the body and the table. New names go to the end."""

ID = {name: i for i, name in enumerate(ORGANS)}


def draw_hu(rng: np.random.Generator, spans: dict[str, tuple[float, float]]) -> dict[str, float]:
    """One patient's HU by tissue, each uniform between its (low, high)."""
    return {name: float(rng.uniform(*span)) for name, span in spans.items()}


def draw_texture(rng: np.random.Generator, texture_hu: dict[str, float]) -> np.ndarray:
    """One patient's texture strength (HU) by label id, (256,): 0.7 to 1.4 of each organ's standard deviation."""
    strength = np.zeros(256, np.float32)
    for name, value in texture_hu.items():
        strength[ID[name]] = value * rng.uniform(0.7, 1.4)
    return strength
