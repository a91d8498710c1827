"""Contrastive losses of images and texts where it is known which of the batch's texts hold for which image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def word_loss(logits: Tensor, truth: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sigmoid loss of image–word pairs (Zhai et al. 2023, SigLIP), true and false ones weighing alike.

    logits : (B, V). truth : (B, V) with 1 true, 0 false, -1 unknown; unknown pairs take no part.
    weights : (V,) of the words; those that hold for every image or for none say nothing of an image.
    """
    each = F.binary_cross_entropy_with_logits(logits.float(), (truth == 1).float(), reduction="none")
    share = torch.ones_like(each) if weights is None else weights.expand_as(each)
    sides = [share * (truth == side) for side in (1, 0)]
    return 0.5 * sum((each * side).sum() / side.sum().clamp(min=1e-6) for side in sides)


def caption_truth(truth: Tensor, caption_words: Tensor) -> Tensor:
    """Which caption holds for which image, (B, N): 1 if all its words do, 0 if one doesn't, -1 if that is unknown.

    truth : (B, V) of every word with 1, 0, -1. caption_words : (N, V) bool.
    """
    words = caption_words.float()
    false = (truth == 0).float() @ words.T > 0
    unknown = (truth == -1).float() @ words.T > 0
    return torch.where(false, 0, torch.where(unknown, -1, 1))


def contrast(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy along the second dimension where several may be right: (N, M) -> a scalar.

    truth : (N, M), 1, 0, -1. The target is spread evenly over a row's true entries; entries of unknown truth are left
    out of the denominator, and rows without a true and a false entry out of the mean.
    """
    log_p = F.log_softmax(logits.float().masked_fill(truth == -1, -torch.inf), dim=1)
    true = truth == 1
    rows = true.any(1) & (truth == 0).any(1)
    each = -log_p.masked_fill(~true, 0.0).sum(1) / true.sum(1).clamp(min=1)
    return each[rows].sum() / rows.sum().clamp(min=1)


def symmetric_contrast(logits: Tensor, truth: Tensor) -> Tensor:
    """CLIP's loss (Radford et al. 2021), images against texts and texts against images, by :func:`contrast`."""
    return 0.5 * (contrast(logits, truth) + contrast(logits.T, truth.T))
