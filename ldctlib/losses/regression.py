"""The loss of regression denoisers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldctlib.units import SOFT_TISSUE, Range


def weighted_mse(hu_range: Range):
    """``loss(model, batch, generator, step)``: squared error over the noise's variance, so that every dose counts.

    The batch holds "ldct_hu" and "target_hu" (B, 1, H, W) and "noise_sd_hu" (B,). Bone, lung and air count a quarter.
    The variance has a floor of (15 HU)^2, below which there is nothing worth learning.
    """

    def loss(model: nn.Module, batch: dict[str, Tensor], generator, step: int) -> Tensor:
        target = batch["target_hu"]
        predicted = model(hu_range.to_model(batch["ldct_hu"]).to(memory_format=torch.channels_last))
        error = (predicted.float() - hu_range.to_model(target)) / hu_range.scale
        variance = batch["noise_sd_hu"].square()[:, None, None, None] + 15.0**2
        soft = (target > SOFT_TISSUE.low - 40) & (target < SOFT_TISSUE.high + 60)
        weight = torch.where(soft, 1.0, 0.25)
        return (weight * error.square() / variance).mean()

    return loss
