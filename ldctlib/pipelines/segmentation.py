"""Masks and quality of CT images, as the shipped networks see them that no generator was trained with."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib import checkpoints
from ldctlib.units import Range

SEGMENTER, JUDGE = "segmenter", "iqa_simulated_dose"
SIDE = 128
"""Pixels a side that the segmenter was trained with."""


@lru_cache(maxsize=2)
def _network(path: str) -> tuple[nn.Module, Range]:
    checkpoint = checkpoints.load(path)
    return checkpoints.build(checkpoint), checkpoint.range


@torch.no_grad()
def segment(images_hu: Tensor, batch: int = 32) -> Tensor:
    """Masks (B, 1, H, W), uint8 of :data:`~ldctlib.data.anatomy_masks.CLASSES`, of whole slices (B, 1, H, W) in HU.

    The segmenter sees 128 x 128 pixels, and its logits are enlarged.
    """
    network, hu_range = _network(str(checkpoints.find(SEGMENTER)))
    masks = []
    for part in images_hu.split(batch):
        x = F.interpolate(hu_range.to_model(part.float()).clamp(-1, 1), (SIDE, SIDE), mode="area")
        logits = F.interpolate(network(x), part.shape[-2:], mode="bilinear", align_corners=False)
        masks.append(logits.argmax(1, keepdim=True).to(torch.uint8))
    return torch.cat(masks)


@torch.no_grad()
def quality(images_hu: Tensor, batch: int = 32) -> Tensor:
    """Scores (B,) from 0 to 4 by a judge that was trained on simulated doses."""
    network, hu_range = _network(str(checkpoints.find(JUDGE)))
    return torch.cat([network(hu_range.to_model(part.float())) for part in images_hu.split(batch)])
