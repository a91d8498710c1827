"""CT slices with captions: which words hold for a slice of a phantom, and a stream of images with words and captions.

Every sample is a function of (seed, n) alone, as in :mod:`ldctlib.data.patches`.
"""

from __future__ import annotations

from collections.abc import Collection as Labels
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ldctlib.data import vocabulary as v
from ldctlib.data.banks import patients_in_turn, random_slice, scanner_noise
from ldctlib.data.collection import Collection
from ldctlib.data.stream import BankStream
from ldctlib.errors import ParameterError
from ldctlib.phantom.organs import ORGANS

PRESENT_MM2 = {"organ": 60.0, "finding": 20.0}
"""A word is true from this area of its labels on, false where there is none of them, and unknown in between."""

LABEL_WORDS: tuple[tuple[str, tuple[str, ...], float], ...] = tuple(
    (word, labels, PRESENT_MM2[kind])
    for kind, words in (("organ", v.ORGAN_WORDS), ("finding", v.FINDING_WORDS))
    for word, labels in words.items()
)
INDEX = {word: i for i, word in enumerate(v.WORDS)}
_AREA = np.zeros((len(LABEL_WORDS), len(ORGANS)), np.float32)
for _row, (_word, _labels, _) in enumerate(LABEL_WORDS):
    _AREA[_row, [i for i, organ in enumerate(ORGANS) if organ in _labels]] = 1
_LEAST = np.array([least for *_, least in LABEL_WORDS], np.float32)
_COLUMNS = np.array([INDEX[word] for word, *_ in LABEL_WORDS])
_SHOW_CONTRAST = [
    i
    for i, organ in enumerate(ORGANS)
    if organ in {"aorta", "renal cortex", "liver", "heart", "spleen", "vena cava", "pulmonary artery"}
]


@dataclass(frozen=True)
class Facts:
    """What is true of an image beside its labels."""

    anatomy: str  # of the patient
    phase: str  # of contrast
    noise_sd_hu: float


def word_truth(labels: np.ndarray, pixel_mm: float, facts: Facts) -> np.ndarray:
    """Which of :data:`~ldctlib.data.vocabulary.WORDS` hold: int8 (V,), 1 true, 0 false, -1 unknown.

    labels : (H, W) ids as in :data:`~ldctlib.phantom.patient.ORGANS`, of the image or of a part of it.
    """
    truth = np.zeros(len(v.WORDS), np.int8)
    area = np.bincount(labels.ravel(), minlength=len(ORGANS)).astype(np.float32) * pixel_mm**2
    covered = _AREA @ area
    truth[_COLUMNS] = np.where(covered >= _LEAST, 1, np.where(covered > 0, -1, 0))

    def mark(words: Labels[str], value: int) -> None:
        truth[[INDEX[w] for w in words]] = value

    mark(v.GENERAL_WORDS, 1)
    own, other = (v.ABDOMEN_WORDS, v.CHEST_WORDS) if facts.anatomy == "abdomen" else (v.CHEST_WORDS, v.ABDOMEN_WORDS)
    both = truth[INDEX["liver"]] and truth[INDEX["lung"]]  # about the diaphragm a slice is of either
    mark(own, 1)
    mark(other, -1 if both else 0)
    seen = area[_SHOW_CONTRAST].sum() >= 400
    enhanced = facts.phase != "non-contrast"
    mark(v.ENHANCED_WORDS, int(enhanced) if seen else -1)
    for phase, words in v.PHASE_WORDS.items():
        told = seen and facts.phase != "pulmonary"  # some call that arterial
        mark(words, int(phase == facts.phase) if told else -1)
    noisy, clean = facts.noise_sd_hu > 25, facts.noise_sd_hu < 8
    mark(v.NOISY_WORDS, 1 if noisy else 0 if clean else -1)
    mark(v.CLEAN_WORDS, 1 if clean else 0 if noisy else -1)
    return truth


@dataclass(frozen=True)
class CaptionConfig:
    """What is drawn for every image with its caption."""

    seed: int = 0
    size: int = 192  # pixels a side of an image
    draw_size: int = 320  # of the slices in the bank
    n_slices: int = 1600
    n_noises: int = 24
    refresh: int = 40_000  # samples between two drawings of the bank
    whole_share: float = 0.5  # of whole slices, the others are parts
    noise_free_share: float = 0.4
    noise_sd_hu: tuple[float, float] = (5.0, 70.0)
    caption_words: tuple[int, int] = (1, 8)
    anatomies: tuple[str, ...] = ("abdomen", "thorax")

    embedded = "phantom slices with captions of anatomical words, simulated noise"

    def open(self, collection: Collection | None = None) -> CaptionedSlices:
        """The stream of phantoms; scans have no captions."""
        if collection is not None:
            raise ParameterError("captions are made from a phantom's labels: this training takes no folder of scans")
        return CaptionedSlices(self)

    def tiny(self, multiple: int = 1) -> CaptionConfig:
        """Few slices that are drawn at once, to see that a training starts; images keep the size that CLIP takes."""
        return replace(self, draw_size=128, n_slices=4, n_noises=2)


class CaptionedSlices(BankStream):
    """``dataset[n]`` -> {"image_hu" (1, S, S) float32 in HU, "truth" (V,) int8 of every word, "caption"
    (:data:`~ldctlib.data.vocabulary.MAX_TOKENS`,) token ids, "caption_words" (V,) bool}: an endless stream.

    An image is a whole slice or a square part of one, "truth" is that of the part. A caption is "a ct of" and a few of
    the words that hold, in any order.
    """

    bank_key, sample_key = 0xBA2A, 0x5A3E

    def draw_bank(self, rng: np.random.Generator) -> None:
        c = self.config
        self._slices = captioned_slices(rng, c.n_slices, c.draw_size, c.anatomies)
        bodies = [drawn.hu.astype(np.float32) for drawn in self._slices[:: max(1, c.n_slices // 16)]]
        self._noises = scanner_noise(rng, c.n_noises, size=c.draw_size, bodies=bodies)[0].astype(np.float16)

    def sample(self, n: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        c = self.config
        drawn = self._slices[rng.integers(len(self._slices))]
        hu, sd = drawn.hu.astype(np.float32), 0.0
        if rng.random() >= c.noise_free_share:
            sd = float(np.exp(rng.uniform(*np.log(c.noise_sd_hu))))
            noise = self._noises[rng.integers(len(self._noises))].astype(np.float32)
            hu = hu + sd * np.rot90(noise, rng.integers(4))
        whole = rng.random() < c.whole_share
        side = round(c.draw_size * (rng.uniform(0.82, 1.0) if whole else rng.uniform(0.3, 0.75)))
        top, left = rng.integers(0, c.draw_size - side + 1, 2)
        if not whole and drawn.labels[top + side // 2, left + side // 2] == 0:  # seldom air alone
            top = left = (c.draw_size - side) // 2
        part = np.s_[top : top + side, left : left + side]
        image = torch.from_numpy(np.ascontiguousarray(hu[part]))[None, None]
        if side != c.size:
            image = F.interpolate(image, (c.size, c.size), mode="bilinear", antialias=True, align_corners=False)
        image = image[0] * float(rng.uniform(0.96, 1.04)) + float(rng.uniform(-8, 8))
        truth = word_truth(drawn.labels[part], drawn.pixel_mm, Facts(drawn.anatomy, drawn.phase, sd))
        count = rng.integers(c.caption_words[0], c.caption_words[1] + 1)
        chosen = rng.permutation(np.flatnonzero(truth == 1))[:count]
        caption = v.encode((*v.PROMPT, *(v.WORDS[i] for i in chosen)))
        mentioned = np.zeros(len(v.WORDS), bool)
        mentioned[chosen] = True
        return {
            "image_hu": image,
            "truth": torch.from_numpy(truth),
            "caption": torch.tensor(caption),
            "caption_words": torch.from_numpy(mentioned),
        }


@dataclass(frozen=True)
class DrawnSlice:
    """A noise-free slice of a phantom and what is true of it."""

    hu: np.ndarray  # int16 (S, S)
    labels: np.ndarray  # uint8 (S, S)
    pixel_mm: float
    anatomy: str
    phase: str
    patient: int  # its seed


def captioned_slices(
    rng: np.random.Generator, count: int, size: int, anatomies, *, a_patient: int = 8
) -> list[DrawnSlice]:
    """``count`` slices, ``a_patient`` to a random patient, the anatomies in turn."""
    out: list[Any] = []
    patients = patients_in_turn(rng, anatomies)
    for i in range(count):
        if i % a_patient == 0:
            patient = next(patients)
        drawn = random_slice(rng, patient, size=size)
        hu, labels = drawn.hu[0, 0].numpy().astype(np.int16), drawn.labels[0, 0].numpy()
        out.append(DrawnSlice(hu, labels, drawn.pixel_mm, patient.anatomy, patient.body.phase, patient.seed))
    return out
