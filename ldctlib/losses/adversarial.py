"""Adversarial losses, from logits of real and generated images."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Mean of max(0, 1 - D(real)) and max(0, 1 + D(fake)) (Lim & Ye 2017); halved, as in VQGAN."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def hinge_generator(fake: Tensor) -> Tensor:
    """Minus the mean logit of generated images."""
    return -fake.float().mean()
