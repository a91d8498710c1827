"""The regression denoisers: trained towards the noise-free truth, or towards the full dose of one's own pairs.

Their stages are those of a warm-up-stable-decay schedule: a long one at a constant rate, which can be prolonged at
will, then shorter ones whose rate falls to zero.
"""

from __future__ import annotations

from typing import Any

from ldctlib.data.patches import PatchConfig
from ldctlib.losses.regression import weighted_mse
from ldctlib.recipes.recipe import SMALL_BANKS as SMALL
from ldctlib.recipes.recipe import Context, Network, Recipe, Stage
from ldctlib.training import TrainConfig


def updates(context: Context):
    """:func:`~ldctlib.losses.regression.weighted_mse` in the recipe's range."""
    return weighted_mse(context.recipe.hu_range)


# ---------------------------------------------------------------- NAFNet (Chen et al. 2022), pixel-unshuffled

NAFNET_NETWORK = {
    "nafnet": Network("nafnet", dict(width=64, shuffle=2, encoder=[2, 2], middle=4, decoder=[2, 2], patch=64))
}
NAFNET_TRAIN: dict[str, Any] = dict(
    batch_size=16, betas=(0.9, 0.95), precision="auto", clip_norm=0.5, log_every=100, checkpoint_every=500
)
NAFNET_LIVE = NAFNET_TRAIN | dict(batch_size=8, log_every=20)
LOW_DOSES: dict[str, Any] = dict(noise_sd_hu=(15.0, 140.0))
"""Of sharp kernels: there a quarter of the pixels' variance is at stake."""

NAFNET = {
    "workshop": Recipe(
        NAFNET_NETWORK,
        (
            Stage(
                "stable",
                TrainConfig(steps=60, lr=1e-3, warmup_steps=15, schedule="constant", seed=1, **NAFNET_LIVE),
                PatchConfig(seed=11, **SMALL),
            ),
            Stage("decay", TrainConfig(steps=60, lr=1e-3, seed=2, **NAFNET_LIVE), PatchConfig(seed=1011, **SMALL)),
            Stage(
                "polish",
                TrainConfig(steps=20, lr=4e-4, warmup_steps=5, seed=3, **NAFNET_LIVE),
                PatchConfig(seed=2011, **LOW_DOSES, **SMALL),
            ),
        ),
        updates,
    ),
    "train": Recipe(
        NAFNET_NETWORK,
        (
            Stage(
                "stable",
                TrainConfig(steps=5_000, lr=1e-3, warmup_steps=200, schedule="constant", seed=1, **NAFNET_TRAIN),
                PatchConfig(seed=11),
            ),
            Stage("decay", TrainConfig(steps=4_500, lr=1e-3, seed=2, **NAFNET_TRAIN), PatchConfig(seed=1011)),
            Stage(
                "polish",
                TrainConfig(steps=2_000, lr=4e-4, warmup_steps=100, seed=3, **NAFNET_TRAIN),
                PatchConfig(seed=2011, **LOW_DOSES),
            ),
        ),
        updates,
    ),
    "paper": Recipe(
        NAFNET_NETWORK,
        (
            Stage(
                "stable",
                TrainConfig(steps=200_000, lr=1e-3, warmup_steps=200, schedule="constant", seed=1, **NAFNET_TRAIN),
                PatchConfig(seed=11),
            ),
            Stage("decay", TrainConfig(steps=100_000, lr=1e-3, seed=2, **NAFNET_TRAIN), PatchConfig(seed=1011)),
            Stage(
                "polish",
                TrainConfig(steps=20_000, lr=4e-4, warmup_steps=100, seed=3, **NAFNET_TRAIN),
                PatchConfig(seed=2011, **LOW_DOSES),
            ),
        ),
        updates,
    ),
}

# ---------------------------------------------------------------- RED-CNN (Chen et al. 2017), linear output

REDCNN_NETWORK = {"redcnn": Network("redcnn", dict(final_relu=False))}
REDCNN_TRAIN: dict[str, Any] = dict(
    batch_size=8, lr=3e-4, betas=(0.9, 0.99), precision="auto", clip_norm=0.5, log_every=50, checkpoint_every=200
)
REDCNN_LIVE = REDCNN_TRAIN | dict(batch_size=4, log_every=5)
REDCNN_BANKS: dict[str, Any] = dict(patch=48, n_slices=128, n_photographs=64, n_noises=96)

REDCNN = {
    "workshop": Recipe(
        REDCNN_NETWORK,
        (
            Stage(
                "stable",
                TrainConfig(steps=20, warmup_steps=5, schedule="constant", seed=1, **REDCNN_LIVE),
                PatchConfig(seed=12, patch=48, **SMALL),
            ),
            Stage("decay", TrainConfig(steps=20, seed=2, **REDCNN_LIVE), PatchConfig(seed=1012, patch=48, **SMALL)),
        ),
        updates,
    ),
    "train": Recipe(
        REDCNN_NETWORK,
        (
            Stage(
                "stable",
                TrainConfig(steps=400, warmup_steps=100, schedule="constant", seed=1, **REDCNN_TRAIN),
                PatchConfig(seed=12, **REDCNN_BANKS),
            ),
            Stage("decay", TrainConfig(steps=900, seed=2, **REDCNN_TRAIN), PatchConfig(seed=1012, **REDCNN_BANKS)),
        ),
        updates,
    ),
    "paper": Recipe(
        REDCNN_NETWORK,
        (
            Stage(
                "stable",
                TrainConfig(steps=93_000, warmup_steps=100, schedule="constant", seed=1, **REDCNN_TRAIN),
                PatchConfig(seed=12, **REDCNN_BANKS),
            ),
            Stage("decay", TrainConfig(steps=20_000, seed=2, **REDCNN_TRAIN), PatchConfig(seed=1012, **REDCNN_BANKS)),
        ),
        updates,
    ),
}
