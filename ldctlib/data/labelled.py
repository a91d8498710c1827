"""Slices of scans with labels, and their masks: what a generator that is guided by anatomy is fine-tuned on (NA-Diff,
Tables 7 and 8)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.data.anatomy_masks import LIVER, TABLES, anatomy
from ldctlib.data.case import Case
from ldctlib.data.collection import Collection
from ldctlib.data.stream import BankStream
from ldctlib.errors import ScanError


def liver_slices(case: Case, rng: np.random.Generator, count: int, size: int) -> tuple[Tensor, Tensor, float]:
    """``count`` random slices of those that show liver, none twice, or all if there are fewer: images (n, 1, S, S) in
    HU, masks (n, 1, S, S) uint8 of :data:`~ldctlib.data.anatomy_masks.CLASSES`, and the pixel in mm.

    The whole field becomes ``size`` x ``size`` pixels: images are averaged, labels taken nearest; the body is found in
    the image. Raises ScanError for a case without liver, without labels, or not in HU.
    """
    scan, labels = case.load_full(), case.load_labels()
    images = scan.images_hu()
    shown = torch.from_numpy(TABLES[case.label_ids] == LIVER)[labels.long()].flatten(1).any(dim=1)
    if not bool(shown.any()):
        raise ScanError(f"patient {case.patient}: no slice is labelled as liver")
    chosen = torch.from_numpy(rng.permutation(shown.nonzero().flatten().numpy())[:count])
    image = F.interpolate(images[chosen], (size, size), mode="area")
    ids = F.interpolate(labels[chosen, None].float(), (size, size), mode="nearest-exact")
    return image, anatomy(ids, case.label_ids, image), scan.spacing_mm[2] * images.shape[-1] / size


class LabelledScans(BankStream):
    """``dataset[n]`` -> {"image_hu" (1, S, S) float32 in HU, "mask" (1, S, S) uint8}: an endless stream of
    :func:`liver_slices` of random cases. The scans are as they are: nothing is known of their noise.

    config : a :class:`~ldctlib.data.six_dose.SixDoseConfig`. With ``in_turn`` every sample has a slice of its own.
    """

    bank_key, sample_key = 0xBA2F, 0x5A43

    def __init__(self, collection: Collection, config: Any):
        super().__init__(config)
        self._collection = collection.labelled()
        if not len(self._collection):
            raise ScanError(f"{collection.name} holds no case with labels of organs")

    def draw_bank(self, rng: np.random.Generator) -> None:
        c = self.config
        self._bank: list[tuple[Tensor, Tensor]] = []
        while (left := (c.refresh if c.in_turn else c.n_slices) - len(self._bank)) > 0:
            case = self._collection.cases[rng.integers(len(self._collection))]
            self._bank += zip(*liver_slices(case, rng, min(16, left), c.size)[:2], strict=True)

    def sample(self, n: int, rng: np.random.Generator) -> dict[str, Tensor]:
        which = n if self.config.in_turn else rng.integers(len(self._bank))
        image, mask = self._bank[which % len(self._bank)]
        return {"image_hu": image, "mask": mask}
