"""What a generator and those who judge it are trained to lower: Wasserstein, least squares, hinge, and CutMix.

Scores are tensors of any shape, one an image, a patch or a pixel. Real images are references, fake ones estimates; a
discriminator's loss takes estimates that are detached, or detaches them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ShapeError

# ---------------------------------------------------------------- Wasserstein (Arjovsky 2017; Gulrajani 2017)


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, generator) -> Tensor:
    """Mean of (‖∇ critic‖ - 1)² at points drawn between each real image and its fake one (Gulrajani 2017, Eq. 3).

    The norm is over all pixels of an image. critic maps images to one score each, in terms of its own image alone;
    generator draws the points.
    """
    if real.shape != fake.shape:
        raise ShapeError(f"real and fake images differ in shape: {tuple(real.shape)} and {tuple(fake.shape)}")
    one_each = (len(real), *[1] * (real.ndim - 1))
    share = torch.rand(one_each, generator=generator, device=real.device, dtype=real.dtype)
    between = torch.lerp(fake.detach(), real, share).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def wasserstein_critic(critic, real: Tensor, fake: Tensor, generator, *, penalty: float = 10.0) -> dict[str, Tensor]:
    """WGAN-GP's critic: "distance", its estimate of how far fakes are from reals, "penalty", and their "loss"."""
    real_score, fake_score = critic(torch.cat([real, fake.detach()])).chunk(2)
    distance = real_score.mean() - fake_score.mean()
    terms = {"distance": distance, "penalty": gradient_penalty(critic, real, fake, generator)}
    return terms | {"loss": penalty * terms["penalty"] - distance}


# ---------------------------------------------------------------- least squares (Mao 2017) and hinge (Lim & Ye 2017)


def least_squares(scores: Tensor, target: float | Tensor) -> Tensor:
    """Mean squared distance of the scores from their target, 1 for real and 0 for fake, or a map of both."""
    return (scores - target).square().mean()


def hinge_discriminator(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """½ [max(0, 1 - real) + max(0, 1 + fake)], averaged: nothing is asked beyond ±1."""
    return 0.5 * (F.relu(1 - real_scores).mean() + F.relu(1 + fake_scores).mean())


def hinge_generator(fake_scores: Tensor) -> Tensor:
    """Minus the mean score, for the hinge as for Wasserstein."""
    return -fake_scores.mean()


# ---------------------------------------------------------------- U-Net discriminators (Schönfeld 2020; Huang 2022)


def cutmix_mask(shape: Sequence[int], generator, device=None) -> Tensor:
    """1 but for a rectangle of 0 in each image: (B, 1, H, W) float32 (Yun et al. 2019).

    Its area is uniform in [0, 1] of the image and its centre anywhere; what lies outside is cut off.
    """
    b, _, h, w = shape
    draws = torch.rand(b, 3, 1, 1, 1, generator=generator, device=device)
    side = (1 - draws[:, 0]).sqrt()
    rows, columns = (torch.arange(n, device=device, dtype=torch.float32) + 0.5 for n in (h, w))
    inside = (rows[:, None] - h * draws[:, 1]).abs() < 0.5 * h * side
    return 1.0 - (inside & ((columns - w * draws[:, 2]).abs() < 0.5 * w * side)).float()


def unet_discriminator(
    discriminator: nn.Module,
    real: Tensor,
    fakes: Sequence[Tensor],
    generator,
    *,
    cutmix_probability: float = 0.0,
    consistency: float = 5.09,
) -> dict[str, Tensor]:
    """DU-GAN's discriminator loss (Huang 2022): least squares on scores and maps, and CutMix.

    discriminator : images -> (scores, maps), see ``models.dugan.UNetDiscriminator``; it judges images, or their
        gradients, as ``real`` and ``fakes`` are.
    fakes : the estimates, which reals are mixed with, then others that are no reals: DU-GAN's low-dose images.
    cutmix_probability : with which the whole batch is mixed: a mixed image is fake as a whole, and real where the mask
        is 1, and its map is to be the mix of the two maps, weighted by ``consistency``.

    All are judged in one pass. Gives "loss", "real" and "fake" (the means of what the scores say), and where there is a
    mix "consistency".
    """
    fakes = [fake.detach() for fake in fakes]
    draw = float(torch.rand((), generator=generator, device=real.device)) if cutmix_probability > 0 else 1.0
    images = [real, *fakes]
    if draw < cutmix_probability:
        mask = cutmix_mask(real.shape, generator, real.device)
        images.append(torch.where(mask > 0, real, fakes[0]))
    scores, maps = discriminator(torch.cat(images))
    scores, maps = scores.float().chunk(len(images)), maps.float().chunk(len(images))
    loss = least_squares(scores[0], 1.0) + least_squares(maps[0], 1.0)
    for i in range(1, len(fakes) + 1):
        loss = loss + least_squares(scores[i], 0.0) + least_squares(maps[i], 0.0)
    terms = {"real": scores[0].mean(), "fake": scores[1].mean()}
    if draw < cutmix_probability:
        loss = loss + least_squares(scores[-1], 0.0) + least_squares(maps[-1], mask)
        terms["consistency"] = F.mse_loss(maps[-1], torch.where(mask > 0, maps[0], maps[1]))
        loss = loss + consistency * terms["consistency"]
    return terms | {"loss": loss}


def unet_generator(discriminator: nn.Module, fake: Tensor) -> Tensor:
    """What the estimates lack for a U-Net discriminator to take them for real, as a whole and by pixel."""
    scores, maps = discriminator(fake)
    return least_squares(scores.float(), 1.0) + least_squares(maps.float(), 1.0)


def sobel(x: Tensor, eps: float = 1e-4) -> Tensor:
    """Magnitude of the gradient of (B, 1, H, W), by Sobel's kernels over 4 and padding of zeros: √(g_x² + g_y² + eps).

    A ramp of slope a gives 2|a| inside. ``eps`` keeps the root differentiable where the image is flat.
    """
    kernel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=x.device, dtype=x.dtype) / 4
    g = F.conv2d(x, torch.stack([kernel, kernel.T])[:, None], padding=1)
    return (g.square().sum(1, keepdim=True) + eps).sqrt()
