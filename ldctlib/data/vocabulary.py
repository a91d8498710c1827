"""The words that captions of CT slices are made of, and which labels of a phantom make a word true.

Some are of organs and findings that a slice may show, some of its region, contrast phase and noise, some hold for every
CT slice, and some for none: a model that knows its words must tell these apart.
"""

from __future__ import annotations

SPECIAL = ("<start>", "<end>", "<pad>")  # a CLIPTextModel whose end is token 2 takes another position for the end
FUNCTION = ("a", "of", "with", "and")

ORGAN_WORDS: dict[str, tuple[str, ...]] = {
    word: tuple(labels.split(", "))
    for words, labels in (
        ("liver hepatic", "liver"),
        ("gallbladder bile biliary", "gallbladder"),
        ("spleen splenic", "spleen"),
        ("stomach gastric", "stomach, stomach content"),
        ("pancreas pancreatic", "pancreas"),
        ("kidney kidneys renal nephrology", "renal cortex, renal medulla"),
        ("adrenal", "adrenal"),
        ("aorta aortic", "aorta"),
        ("cava caval", "vena cava, superior vena cava"),
        ("portal", "portal vein"),
        ("bowel intestine intestinal gut jejunum ileum", "small bowel, bowel content"),
        ("colon colonic", "colon, stool"),
        ("stool faeces", "stool"),
        ("heart cardiac", "heart, myocardium, left ventricle, right ventricle, left atrium, right atrium"),
        ("lung lungs pulmonary", "lung"),
        ("oesophagus oesophageal", "oesophagus"),
        ("airway airways bronchus bronchi bronchial", "airway, bronchial wall"),
        ("rib ribs costal", "rib"),
        ("cartilage", "cartilage"),
        ("vertebra vertebral spine", "vertebra"),
        ("disc", "disc"),
        ("pelvis iliac ilium", "ilium"),
        ("diaphragm diaphragmatic", "diaphragm"),
        ("breast breasts mammary", "breast"),
        ("sternum sternal", "sternum"),
        ("scapula shoulder", "scapula"),
        ("clavicle", "clavicle"),
        ("humerus", "humerus"),
        ("thyroid", "thyroid"),
        ("coronary", "coronary artery"),
        ("mediastinum mediastinal", "mediastinal fat"),
    )
    for word in words.split()
}
"""Word -> the labels any of which makes it true."""

FINDING_WORDS: dict[str, tuple[str, ...]] = {
    word: tuple(labels.split(", "))
    for words, labels in (
        ("metastasis metastases metastatic", "metastasis"),
        ("cyst cystic", "cyst"),
        ("plaque atherosclerosis", "plaque"),
        ("calcification calcified", "plaque"),
        ("nodule nodular", "nodule, ground-glass nodule"),
        ("mass", "lung mass"),
        ("tumour cancer malignant", "metastasis, lung mass"),
        ("effusion pleural", "pleural effusion"),
        ("consolidation pneumonia", "consolidation"),
        ("atelectasis", "atelectasis"),
        ("pneumothorax", "pneumothorax"),
        ("pericardial pericardium", "pericardial effusion"),
        ("emphysema emphysematous", "emphysema"),
        ("adenopathy lymph", "lymph node"),
    )
    for word in words.split()
}

NAMING_WORDS = ORGAN_WORDS | FINDING_WORDS
THINGS: dict[tuple[str, ...], tuple[str, ...]] = {
    labels: tuple(word for word, own in NAMING_WORDS.items() if own == labels) for labels in NAMING_WORDS.values()
}
"""An organ's or finding's labels -> the words that name it."""

ABDOMEN_WORDS = tuple("abdomen abdominal belly waist digestive gastrointestinal peritoneal lumbar".split())
CHEST_WORDS = tuple("chest thorax thoracic respiratory breathing".split())
ENHANCED_WORDS = tuple("contrast enhanced enhancement iodine injected".split())
PHASE_WORDS: dict[str, tuple[str, ...]] = {
    "arterial": ("arterial",),
    "portal venous": ("venous",),
    "non-contrast": tuple("unenhanced native plain".split()),
}
NOISY_WORDS = tuple("noise noisy grainy mottled lowdose quarter degraded".split())
CLEAN_WORDS = tuple("clean noiseless fulldose".split())

GENERAL_WORDS = tuple(
    "ct tomography computed computerised scan scans scanner image images imaging slice slices axial transverse "
    "section xray radiation dose radiology radiologic radiologist gantry attenuation hounsfield reconstruction "
    "medical medicine clinical hospital patient patients body human person anatomy anatomical diagnosis diagnostic "
    "examination tissue soft internal organ organs bone bones skeleton skeletal muscle muscles muscular fat fatty "
    "adipose skin subcutaneous vessel vessels vascular blood healthcare".split()
)
"""True of every slice of a body."""

DISTRACTORS = tuple(
    "brain skull cerebral cranial eye eyes retina ear nose tooth teeth dental jaw tongue face hair knee elbow ankle "
    "wrist hand finger foot toe thigh calf shin femur tibia fibula patella radius ulna bladder prostate uterus ovary "
    "testis fetus embryo placenta mri ultrasound doppler endoscopy microscopy histology pathology smear "
    "photograph painting drawing video film car truck train bicycle aeroplane ship road bridge house tower window "
    "door table chair lamp kitchen spoon cup bottle bread apple banana cake coffee cheese dog cat horse cow sheep "
    "bird fish snake spider insect bee tree flower leaf grass forest mountain river ocean beach snow rain cloud sun "
    "moon star planet rocket guitar piano violin drum dance football tennis ball bat computer keyboard phone camera "
    "clock book pencil paper map flag money ring hat shirt shoe dress umbrella suitcase".split()
)
"""True of no slice."""

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *ORGAN_WORDS,
            *FINDING_WORDS,
            *ABDOMEN_WORDS,
            *CHEST_WORDS,
            *ENHANCED_WORDS,
            *(word for words in PHASE_WORDS.values() for word in words),
            *NOISY_WORDS,
            *CLEAN_WORDS,
            *GENERAL_WORDS,
            *DISTRACTORS,
        )
    )
)
TOKENS: tuple[str, ...] = (*SPECIAL, *FUNCTION, *WORDS)
"""Token id -> token: one for each word, as in a vocabulary of whole words."""

TOKEN_ID = {token: i for i, token in enumerate(TOKENS)}
PROMPT = ("a", "ct", "of")
"""What precedes a word that an image is compared with: "A CT of liver"."""

MAX_TOKENS = 16
"""Of a caption, with its start and its end."""


def encode(words) -> list[int]:
    """Ids of <start> ... <end>, padded to :data:`MAX_TOKENS`; each word is one token."""
    ids = [TOKEN_ID["<start>"], *(TOKEN_ID[w] for w in words), TOKEN_ID["<end>"]]
    return ids + [TOKEN_ID["<pad>"]] * (MAX_TOKENS - len(ids))
