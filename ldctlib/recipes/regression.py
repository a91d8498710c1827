"""The regression denoisers: trained towards the noise-free truth, or towards the full dose of one's own pairs.

Their stages are those of a warm-up-stable-decay schedule: a long one at a constant rate, which can be prolonged at
will, then shorter ones whose rate falls to zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldctlib.checkpoints import Checkpoint
from ldctlib.data.patches import PatchConfig
from ldctlib.recipes.recipe import SMALL_BANKS, LossFunction, Recipe, Stage
from ldctlib.training import TrainConfig
from ldctlib.units import SOFT_TISSUE, Range

TARGET: dict[str, Any] = dict(target="noise-free truth", keep=0.25)
"""What the networks are trained towards, and the share of the removed part that a denoiser gives back by default:
the best estimate of a full-dose image at a quarter dose."""


def denoising_loss(value_range: Range) -> LossFunction:
    """Squared error over the noise's variance, so that every dose counts; bone, lung and air at a quarter's weight.

    The variance has a floor of (15 HU)^2: below it there is nothing worth learning.
    """

    def loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator, step: int = 0) -> Tensor:
        clean = batch["clean_hu"]
        predicted = model(value_range.to_model(batch["ldct_hu"]).to(memory_format=torch.channels_last))
        error = (predicted.float() - value_range.to_model(clean)) / value_range.scale
        variance = batch["sd_hu"].square()[:, None, None, None] + 15.0**2
        soft = (clean > SOFT_TISSUE.low - 40) & (clean < SOFT_TISSUE.high + 60)
        weight = torch.where(soft, 1.0, 0.25)
        return (weight * error.square() / variance).mean()

    return loss


def loss(r: Recipe, stage: Stage, needed: Mapping[str, Checkpoint]) -> LossFunction:
    """:func:`denoising_loss` of a recipe."""
    return denoising_loss(r.range)


def nafnet(profile: str) -> Recipe:
    """NAFNet (Chen et al. 2022) on pixel-unshuffled slices."""
    small = profile == "workshop"
    common: dict[str, Any] = dict(
        batch_size=8 if small else 16,
        betas=(0.9, 0.95),
        precision="auto",
        clip_norm=0.5,
        log_every=20 if small else 100,
        checkpoint_every=500,
    )
    stable, decay, polish = {
        "workshop": (60, 60, 20),
        "train": (5_000, 4_500, 2_000),
        "paper": (200_000, 100_000, 20_000),
    }[profile]
    banks = SMALL_BANKS if small else {}
    return Recipe(
        model="nafnet",
        loss=loss,
        notes=TARGET,
        config=dict(width=64, shuffle=2, encoder=[2, 2], middle=4, decoder=[2, 2], patch=64),
        stages=(
            Stage(
                "stable",
                TrainConfig(
                    steps=stable, lr=1e-3, warmup_steps=min(200, stable // 4), schedule="constant", seed=1, **common
                ),
                PatchConfig(seed=11, **banks),
            ),
            Stage("decay", TrainConfig(steps=decay, lr=1e-3, seed=2, **common), PatchConfig(seed=1011, **banks)),
            # low doses of sharp kernels once more: there a quarter of the pixels' variance is at stake
            Stage(
                "polish",
                TrainConfig(steps=polish, lr=4e-4, warmup_steps=min(100, polish // 4), seed=3, **common),
                PatchConfig(seed=2011, sd_low_hu=15.0, sd_high_hu=140.0, **banks),
            ),
        ),
    )


def redcnn(profile: str) -> Recipe:
    """RED-CNN (Chen et al. 2017), linear output."""
    small = profile == "workshop"
    common: dict[str, Any] = dict(
        batch_size=4 if small else 8,
        lr=3e-4,
        betas=(0.9, 0.99),
        precision="auto",
        clip_norm=0.5,
        log_every=5 if small else 50,
        checkpoint_every=200,
    )
    stable, decay = {"workshop": (20, 20), "train": (400, 900), "paper": (93_000, 20_000)}[profile]
    banks = SMALL_BANKS if small else dict(slices=128, photographs=64, noises=96)
    return Recipe(
        model="redcnn",
        loss=loss,
        notes=TARGET,
        config=dict(final_relu=False),
        stages=(
            Stage(
                "stable",
                TrainConfig(steps=stable, warmup_steps=min(100, stable // 4), schedule="constant", seed=1, **common),
                PatchConfig(seed=12, patch=48, **banks),
            ),
            Stage("decay", TrainConfig(steps=decay, seed=2, **common), PatchConfig(seed=1012, patch=48, **banks)),
        ),
    )
