"""Masks and quality of CT images, as the shipped networks see them that no generator was trained with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib import checkpoints

SEGMENTER, JUDGE = "segmenter", "iqa_simulated_dose"
SIDE = 128
"""Pixels a side that the segmenter was trained with."""


@torch.no_grad()
def segment(images_hu: Tensor, network=None, batch: int = 32) -> Tensor:
    """Masks (B, 1, H, W), uint8 of :data:`~ldctlib.data.anatomy_masks.CLASSES`, of whole slices (B, 1, H, W) in HU.

    network : the shipped segmenter by default; it sees 128 x 128 pixels, and its logits are enlarged.
    """
    checkpoint = checkpoints.load(checkpoints.find(SEGMENTER))
    network = checkpoints.build(checkpoint) if network is None else network
    masks = []
    for part in images_hu.split(batch):
        x = F.interpolate(checkpoint.range.to_model(part.float()).clamp(-1, 1), (SIDE, SIDE), mode="area")
        logits = F.interpolate(network(x), part.shape[-2:], mode="bilinear", align_corners=False)
        masks.append(logits.argmax(1, keepdim=True).to(torch.uint8))
    return torch.cat(masks)


@torch.no_grad()
def quality(images_hu: Tensor, batch: int = 32) -> Tensor:
    """Scores (B,) from 0 to 4 by a judge that was trained on simulated doses."""
    checkpoint = checkpoints.load(checkpoints.find(JUDGE))
    network = checkpoints.build(checkpoint)
    return torch.cat([network(checkpoint.range.to_model(part.float())) for part in images_hu.split(batch)])
