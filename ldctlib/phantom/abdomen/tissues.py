"""The abdomen's HU ranges by contrast phase, and the strength of each tissue's texture."""

COMMON = (
    {"fat": (-112, -92), "skin": (0, 40), "rib": (90, 220), "cortical": (650, 1150), "cartilage": (80, 130)}
    | {"disc": (70, 105), "canal": (15, 35), "lung": (-900, -855), "bile": (2, 18), "stool": (10, 60)}
    | {"gas": (-990, -930), "plaque": (500, 1000), "cyst": (-2, 14), "table": (-50, 160)}
)
"""(low, high) HU by tissue; a patient's value is drawn once, uniformly. Standard radiological figures."""

_BY_PHASE = {  # without contrast, arterial, portal venous
    "muscle": ((48, 60), (52, 64), (55, 65)),
    "liver": ((48, 65), (60, 80), (100, 120)),
    "spleen": ((38, 55), (95, 140), (110, 130)),
    "cortex": ((26, 40), (150, 215), (165, 200)),
    "medulla": ((20, 34), (60, 95), (150, 185)),
    "aorta": ((45, 58), (260, 380), (140, 180)),
    "cava": ((45, 56), (60, 120), (120, 160)),
    "portal": ((36, 46), (85, 130), (150, 190)),
    "hepatic": ((36, 46), (58, 78), (145, 180)),
    "pancreas": ((32, 48), (90, 125), (80, 110)),
    "wall": ((30, 48), (65, 105), (70, 105)),
    "adrenal": ((10, 30), (50, 85), (60, 90)),
    "pelvis": ((0, 15), (0, 15), (0, 20)),
    "trabecular": ((130, 220), (140, 230), (150, 250)),
    "heart": ((42, 52), (180, 300), (140, 175)),
}
PHASES = {
    phase: {tissue: spans[i] for tissue, spans in _BY_PHASE.items()}
    for i, phase in enumerate(("non-contrast", "arterial", "portal venous"))
}
"""Contrast phase -> the same, of the tissues that contrast reaches."""

TEXTURE_HU = (
    {"subcutaneous fat": 4, "muscle": 6, "visceral fat": 5, "rib": 40, "cartilage": 12, "vertebra": 45, "disc": 8}
    | {"spinal canal": 4, "lung": 20, "liver": 5, "gallbladder": 1.5, "spleen": 5, "stomach": 8, "stomach content": 6}
    | {"renal cortex": 8, "renal medulla": 8, "renal pelvis": 3, "adrenal": 7, "pancreas": 10, "aorta": 3}
    | {"vena cava": 4, "vessel": 3, "small bowel": 10, "bowel content": 8, "colon": 8, "metastasis": 8, "cyst": 2}
    | {"heart": 5, "oesophagus": 8, "ilium": 60, "portal vein": 3, "hepatic vein": 3}
)
"""Standard deviation of a tissue's texture in HU; a patient has 0.7 to 1.4 of it."""
