"""Which words the shipped CLIP knows, on phantoms of unseen patients and on a real abdomen with organ masks.

python -m tests.experiments.words                          every word, phantoms
LDCT_REAL_DATA=folder python -m tests.experiments.words    and the folder's ct/abdomen_series
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch

from ldctlib import checkpoints
from ldctlib.data import vocabulary as v
from ldctlib.data.captions import INDEX, PRESENT_MM2, DrawnSlice, Facts, captioned_slices, word_truth
from ldctlib.metrics.words import said_of_images, word_aucs
from ldctlib.pipelines.words import words

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
    for group, value in ((v.GENERAL_WORDS, 1), (v.ABDOMEN_WORDS, 1), (v.DISTRACTORS, 0)):
        truth[[INDEX[w] for w in group]] = value
    for word, classes in SEGMENTATION_WORDS.items():
        area = np.isin(labels, classes).sum() * pixel_mm**2
        value = 1 if area >= PRESENT_MM2["organ"] else 0 if area == 0 else -1
        same = [w for w, organs in v.ORGAN_WORDS.items() if organs == v.ORGAN_WORDS[word]]
        truth[[INDEX[w] for w in same]] = value
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
    return out[:, clip.eligible].numpy()


def report(name: str, clip, images: torch.Tensor, truth: np.ndarray, least: int) -> None:
    scores = similarities(clip, images)
    found = word_aucs(scores, truth, v.WORDS, least=least)
    told = [w for w in found if w.word in v.NAMING_WORDS]
    print(f"\n**{name}: {len(images)} slices; one word of each kind**\n\n| word | AUC | true | false |")
    print("| --- | --- | --- | --- |")
    one = [w for w in told if v.THINGS[v.NAMING_WORDS[w.word]][0] == w.word]
    for w in sorted(one, key=lambda w: -w.auc):
        print(f"| {w.word} | {w.auc:.3f} | {w.n_true} | {w.n_false} |")
    mean = {kind: np.mean([w.auc for w in of]) for kind, of in (("one of each kind", one), ("all", told)) if of}
    print("\nmean AUC of organs and findings: " + ", ".join(f"{k} {m:.3f}" for k, m in mean.items()))
    index = [i for i, w in enumerate(v.WORDS) if w in v.NAMING_WORDS]
    per_image = [word_aucs(scores[i, index, None], truth[i, index, None], ["-"], least=1) for i in range(len(images))]
    print(f"within an image, over its words: {np.mean([a[0].auc for a in per_image if a]):.3f}")


def precision(name: str, clip, autoencoders: dict, images: torch.Tensor, truth: np.ndarray) -> None:
    """How right the words of layers 1 and 2 are, beside the same words mixed up, the words
    of another slice, and as many of CLIP's own first."""
    truths = [dict(zip(v.WORDS, row.tolist(), strict=True)) for row in truth]
    scores = similarities(clip, images)
    mixed = dict(zip(v.TOKENS, np.random.default_rng(0).permutation(v.TOKENS).tolist(), strict=True))
    lines, half = {}, len(images) // 2 + 4  # half way to another patient, and another height
    for label, autoencoder in autoencoders.items():
        spoken = [words(autoencoder, clip.words, x)[0] for x in images[:, None]]
        for layer in (1, 2):
            of_layer = [[w.word for w in image if w.layer == layer] for image in spoken]
            lines[f"{label}, layer {layer}"] = of_layer
            lines[f"{label}, layer {layer}, codebook mixed up"] = [[mixed[w] for w in image] for image in of_layer]
            lines[f"{label}, layer {layer}, said of another slice"] = of_layer[half:] + of_layer[:half]
    for count in (4, 64):
        best = np.argsort(-scores, axis=1)[:, :count]
        lines[f"CLIP asked, first {count}"] = [[v.WORDS[i] for i in row] for row in best]
    print(f"\n**Words, {name}: {len(images)} slices**\n")
    print("| words of | right (%) | of organs and findings: right (%) | named of those present (%) | different words |")
    print("| --- | --- | --- | --- | --- |")
    for label, all_words in lines.items():
        every, organs = said_of_images(all_words, truths, v.THINGS)
        different = len({w for image in all_words for w in image})
        print(
            f"| {label} | {100 * every.precision:.0f} | {100 * organs.precision:.0f} | {100 * organs.recall:.0f} | "
            f"{different} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", default="clip", help="a checkpoint's name or file")
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--autoencoders", default="", help="checkpoints' names or files")
    options = parser.parse_args()
    clip = network(options.clip)
    autoencoders = {Path(name).stem: network(name) for name in filter(None, options.autoencoders.split(","))}
    sets = {"phantoms": (*phantom_set(options.patients, 9_200_001)[:2], 5)}
    if (real := Path(os.environ.get("LDCT_REAL_DATA", "-")) / "ct/abdomen_series").is_dir():
        sets["real abdomen"] = *real_set(real), 2
    for name, (images, truth, least) in sets.items():
        report(name, clip, images, truth, least)
        if autoencoders:
            precision(name, clip, autoencoders, images, truth)


def network(name: str) -> torch.nn.Module:
    """The network of a checkpoint by name or file, frozen."""
    return checkpoints.build(name).requires_grad_(False)


if __name__ == "__main__":
    main()
