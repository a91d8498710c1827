"""The thorax's HU ranges by contrast phase, and the strength of each tissue's texture."""

COMMON = (
    {"fat": (-112, -92), "skin": (0, 40), "rib": (100, 230), "cortical": (650, 1150), "cartilage": (80, 130)}
    | {"disc": (70, 105), "canal": (15, 35), "lung": (-890, -815), "air": (-995, -960), "gas": (-990, -930)}
    | {"bronchial wall": (-20, 40), "plaque": (450, 1000), "table": (-50, 160), "gland": (15, 50)}
    | {"effusion": (2, 20), "pericardial fluid": (0, 18), "emphysema": (-985, -955), "content": (5, 40)}
    | {"pneumothorax": (-1000, -985), "ground glass": (-680, -450), "marrow": (60, 160)}
)
"""(low, high) HU by tissue; a patient's value is drawn once, uniformly. Standard radiological figures."""

_BY_PHASE = {  # without contrast, pulmonary arterial, arterial, portal venous
    "muscle": ((48, 60), (48, 60), (52, 64), (55, 65)),
    "pulmonary artery": ((36, 50), (330, 500), (200, 320), (130, 170)),
    "pulmonary vein": ((36, 50), (280, 420), (240, 340), (130, 170)),
    "superior cava": ((36, 50), (420, 800), (160, 420), (130, 175)),
    "aorta": ((36, 50), (130, 280), (270, 390), (140, 180)),
    "left heart": ((36, 50), (180, 340), (260, 370), (135, 175)),
    "right heart": ((36, 50), (330, 520), (140, 280), (130, 170)),
    "cava": ((36, 50), (40, 70), (50, 110), (120, 160)),
    "myocardium": ((42, 54), (50, 80), (80, 115), (90, 120)),
    "wall": ((30, 46), (32, 50), (45, 70), (55, 85)),
    "node": ((28, 45), (30, 50), (40, 75), (55, 95)),
    "nodule": ((15, 50), (20, 55), (25, 80), (35, 90)),
    "mass": ((25, 45), (28, 50), (35, 70), (45, 90)),
    "consolidation": ((20, 45), (35, 70), (55, 95), (60, 100)),
    "atelectasis": ((35, 55), (60, 95), (80, 120), (85, 125)),
    "thyroid": ((80, 120), (100, 150), (150, 220), (130, 180)),
    "liver": ((48, 65), (48, 66), (60, 82), (98, 120)),
    "hepatic": ((36, 46), (38, 50), (48, 78), (140, 180)),
    "spleen": ((38, 55), (42, 62), (95, 145), (108, 130)),
    "trabecular": ((140, 230), (140, 230), (145, 235), (150, 250)),
}
PHASES = {
    phase: {tissue: spans[i] for tissue, spans in _BY_PHASE.items()}
    for i, phase in enumerate(("non-contrast", "pulmonary", "arterial", "portal venous"))
}
"""Contrast phase -> the same, of the tissues that contrast reaches."""

TEXTURE_HU = (
    {"subcutaneous fat": 4, "muscle": 6, "visceral fat": 5, "mediastinal fat": 5, "rib": 40, "cartilage": 12}
    | {"vertebra": 45, "disc": 8, "spinal canal": 4, "lung": 12, "liver": 5, "hepatic vein": 3, "spleen": 5}
    | {"stomach": 8, "stomach content": 6, "aorta": 3, "vena cava": 4, "vessel": 3, "oesophagus": 8}
    | {"pulmonary artery": 4, "pulmonary vein": 4, "superior vena cava": 6, "left ventricle": 5, "right ventricle": 6}
    | {"left atrium": 5, "right atrium": 7, "myocardium": 5, "sternum": 40, "scapula": 35, "clavicle": 40}
    | {"humerus": 40, "breast": 10, "thyroid": 10, "nodule": 8, "ground-glass nodule": 20, "lung mass": 8}
    | {"consolidation": 10, "atelectasis": 10, "lymph node": 5, "pleural effusion": 3, "pericardial effusion": 3}
    | {"emphysema": 5}
)
"""Standard deviation of a tissue's texture in HU; a patient has 0.7 to 1.4 of it."""
