"""Contrastive losses of images and texts where it is known which of the batch's texts hold for which image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def word_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Sigmoid loss of image–word pairs (Zhai et al. 2023, SigLIP), true and false ones weighing alike.

    logits : (B, V). truth : (B, V) with 1 true, 0 false, -1 unknown; unknown pairs take no part.
    """
    true, false = truth == 1, truth == 0
    each = F.binary_cross_entropy_with_logits(logits.float(), true.float(), reduction="none")
    return 0.5 * sum((each * mask).sum() / mask.sum().clamp(min=1) for mask in (true, false))


def caption_truth(truth: Tensor, caption_words: Tensor) -> Tensor:
    """Which caption holds for which image, (B, N): 1 if all its words do, 0 if one doesn't, -1 if that is unknown.

    truth : (B, V) of every word with 1, 0, -1. caption_words : (N, V) bool.
    """
    words = caption_words.float()
    false = (truth == 0).float() @ words.T > 0
    unknown = (truth == -1).float() @ words.T > 0
    return torch.where(false, 0, torch.where(unknown, -1, 1))


def caption_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy (Radford et al. 2021) where a caption may hold for several images.

    logits, truth : (B, B), truth 1, 0, -1. The target is spread evenly over the pairs that hold; pairs of unknown truth
    are left out of the denominator.
    """
    logits = logits.float().masked_fill(truth == -1, -torch.inf)
    target = (truth == 1).float()

    def one_way(logits: Tensor, target: Tensor) -> Tensor:
        log_p = F.log_softmax(logits, dim=1).masked_fill(target == 0, 0.0)
        n = target.sum(1)
        return -((target * log_p).sum(1) / n.clamp(min=1))[n > 0].mean()

    return 0.5 * (one_way(logits, target) + one_way(logits.T, target.T))
