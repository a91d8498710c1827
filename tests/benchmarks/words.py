"""Which words the shipped CLIP knows, on phantoms of unseen patients and on a real abdomen with organ masks.

python -m tests.benchmarks.words                          every word, phantoms
LDCT_REAL_DATA=folder python -m tests.benchmarks.words    and the folder's ct/abdomen_series
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch

from ldctlib import checkpoints
from ldctlib.data import vocabulary as v
from ldctlib.data.captions import DrawnSlice, Facts, captioned_slices, word_truth
from ldctlib.metrics.words import word_aucs

SEGMENTATION_WORDS: dict[str, tuple[int, ...]] = {
    "liver": (5,),
    "gallbladder": (4,),
    "spleen": (1,),
    "stomach": (6,),
    "pancreas": (7,),
    "kidney": (2, 3),
    "adrenal": (8, 9),
    "aorta": (52,),
    "cava": (63,),
    "portal": (64,),
    "bowel": (18, 19),
    "colon": (20,),
    "heart": (51,),
    "lung": (10, 11, 12, 13, 14),
    "oesophagus": (15,),
    "rib": tuple(range(92, 116)),
    "cartilage": (117,),
    "vertebra": tuple(range(26, 51)),
    "pelvis": (77, 78),
    "sternum": (116,),
    "scapula": (71, 72),
    "clavicle": (73, 74),
    "humerus": (69, 70),
}
"""Word -> classes of TotalSegmentator's 117 that make it true; its synonyms are those with the same phantom labels."""


def phantom_set(patients: int, first: int, size: int = 320) -> tuple[torch.Tensor, np.ndarray, list[DrawnSlice]]:
    """Eight slices of each unseen patient, abdomen and thorax in turn, at full dose: HU, truth (N, V), the slices."""
    drawn = captioned_slices(np.random.default_rng([first, 0x717]), 8 * patients, size, ("abdomen", "thorax"))
    images = torch.stack([torch.from_numpy(s.hu.astype(np.float32))[None] for s in drawn])
    truth = np.stack([word_truth(s.labels, s.pixel_mm, Facts(s.anatomy, s.phase, 0.0)) for s in drawn])
    return images, truth, drawn


def segmentation_truth(labels: np.ndarray, pixel_mm: float) -> np.ndarray:
    """:func:`~ldctlib.data.captions.word_truth` from a slice of TotalSegmentator's classes; else -1."""
    truth = np.full(len(v.WORDS), -1, np.int8)
    index = {w: i for i, w in enumerate(v.WORDS)}
    for words, value in ((v.GENERAL_WORDS, 1), (v.ABDOMEN_WORDS, 1), (v.DISTRACTORS, 0)):
        truth[[index[w] for w in words]] = value
    for word, classes in SEGMENTATION_WORDS.items():
        area = np.isin(labels, classes).sum() * pixel_mm**2
        value = 1 if area >= 60 else 0 if area == 0 else -1
        same = [w for w, organs in v.ORGAN_WORDS.items() if organs == v.ORGAN_WORDS[word]]
        truth[[index[w] for w in same]] = value
    return truth


def real_set(folder: Path) -> tuple[torch.Tensor, np.ndarray]:
    """The real abdomen: HU (N, 1, H, W) and truth (N, V)."""
    import nibabel

    from ldctlib.data.dicom_read import read_series

    scan = read_series(folder)
    mask = np.asarray(nibabel.load(folder / "segmentation_117.nii.gz").dataobj).transpose(2, 1, 0)[:, ::-1]
    truth = np.stack([segmentation_truth(labels, scan.spacing_mm[-1]) for labels in mask])
    return scan.values[:, None].float(), truth


@torch.no_grad()
def similarities(clip, images: torch.Tensor) -> np.ndarray:
    """(N, V) of the vocabulary's words."""
    out = torch.cat([clip.similarity(part) for part in images.split(16)])
    return out[:, len(v.SPECIAL) + len(v.FUNCTION) :].numpy()


def report(name: str, clip, images: torch.Tensor, truth: np.ndarray, least: int) -> None:
    scores = similarities(clip, images)
    found = word_aucs(scores, truth, v.WORDS, least=least)
    told = [w for w in found if w.word in v.ORGAN_WORDS or w.word in v.FINDING_WORDS]
    print(f"\n**{name}: {len(images)} slices; one word of each kind**\n\n| word | AUC | true | false |")
    print("| --- | --- | --- | --- |")
    groups = v.ORGAN_WORDS | v.FINDING_WORDS
    first = {labels: word for word, labels in reversed(groups.items())}
    one = [w for w in told if first[groups[w.word]] == w.word]
    for w in sorted(one, key=lambda w: -w.auc):
        print(f"| {w.word} | {w.auc:.3f} | {w.n_true} | {w.n_false} |")
    mean = {kind: np.mean([w.auc for w in of]) for kind, of in (("one of each kind", one), ("all", told)) if of}
    print("\nmean AUC of organs and findings: " + ", ".join(f"{k} {m:.3f}" for k, m in mean.items()))
    index = [i for i, w in enumerate(v.WORDS) if w in groups]
    per_image = [word_aucs(scores[i, index, None], truth[i, index, None], ["-"], least=1) for i in range(len(images))]
    print(f"within an image, over its words: {np.mean([a[0].auc for a in per_image if a]):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", default="clip", help="a checkpoint's name or file")
    parser.add_argument("--patients", type=int, default=40)
    options = parser.parse_args()
    path = Path(options.clip)
    clip = checkpoints.build(checkpoints.load(path if path.is_file() else checkpoints.find(options.clip)))
    clip.requires_grad_(False)
    report("phantoms", clip, *phantom_set(options.patients, 9_200_001)[:2], least=5)
    if (real := Path(os.environ.get("LDCT_REAL_DATA", "-")) / "ct/abdomen_series").is_dir():
        report("real abdomen", clip, *real_set(real), least=2)


if __name__ == "__main__":
    main()
