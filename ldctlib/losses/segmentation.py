"""The losses of segmenters and of a judge of image quality."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.units import Range


def soft_dice_loss(logits: Tensor, mask: Tensor, *, background: bool = True, smooth: float = 1e-5) -> Tensor:
    """1 - mean over classes of (2 sum p t + smooth) / (sum p^2 + sum t^2 + smooth), sums over the whole batch.

    p is the softmax of ``logits`` (B, K, H, W), t is 1 where ``mask`` (B, H, W) is the class. Squares in the
    denominator (Milletari et al. 2016) as TransUNet has them; a class without a pixel in the batch and in p costs
    nothing. ``background`` says whether class 0 counts.
    """
    p = logits.float().softmax(dim=1).movedim(1, 0).flatten(1)
    k = len(p)
    target = mask.long().flatten()
    # sums over a class's own pixels instead of a one-hot of every class
    own = p.gather(0, target[None])[0]
    both = torch.zeros(k, device=p.device).index_add(0, target, own)
    count = torch.bincount(target, minlength=k).to(p)
    dice = (2 * both + smooth) / (p.square().sum(dim=1) + count + smooth)
    return 1 - dice[0 if background else 1 :].mean()


def segmentation_loss(hu_range: Range, *, background: bool = True, class_weights: Sequence[float] | None = None):
    """``loss(model, batch, generator, step)``: half cross-entropy and half :func:`soft_dice_loss` (TransUNet).

    The batch holds "image_hu" (B, 1, H, W) and "mask" (B, H, W). ``class_weights`` are of the cross-entropy, (K,).
    """

    def loss(model: nn.Module, batch: dict[str, Tensor], generator, step: int) -> dict[str, Tensor]:
        image = hu_range.to_model(batch["image_hu"]).to(memory_format=torch.channels_last)
        logits, mask = model(image).float(), batch["mask"].long()
        weights = None if class_weights is None else logits.new_tensor(class_weights)
        terms = {
            "cross_entropy": F.cross_entropy(logits, mask, weights),
            "dice": soft_dice_loss(logits, mask, background=background),
        }
        return terms | {"loss": 0.5 * terms["cross_entropy"] + 0.5 * terms["dice"]}

    return loss


BEST_SD_HU, WORST_SD_HU = 5.0, 100.0
"""Noise of the best and of the worst score."""


def quality_score(noise_sd_hu: Tensor) -> Tensor:
    """Score 0 (worst) to 4 (best) of an image with this noise: 4 ln(100 / sd) / ln(100 / 5), cut at both ends.

    The scale is that of LDCTIQAC's readers, what stands on it is not: no reader has scored anything here. A quarter of
    the dose doubles the noise and costs 0.93.
    """
    score = 4 * (WORST_SD_HU / noise_sd_hu).log() / math.log(WORST_SD_HU / BEST_SD_HU)
    return score.clamp(0, 4)


def quality_loss(hu_range: Range):
    """``loss(model, batch, generator, step)``: the distance to :func:`quality_score`, squared below 0.25."""

    def loss(model: nn.Module, batch: dict[str, Tensor], generator, step: int) -> Tensor:
        image = hu_range.to_model(batch["image_hu"]).to(memory_format=torch.channels_last)
        return F.smooth_l1_loss(model(image).float(), quality_score(batch["noise_sd_hu"]), beta=0.25)

    return loss
