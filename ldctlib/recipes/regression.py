"""The regression denoisers: trained towards the noise-free truth, or towards the full dose of one's own pairs.

Their stages are those of a warm-up-stable-decay schedule: a long one at a constant rate, which can be prolonged at
will, then shorter ones whose rate falls to zero.
"""

from __future__ import annotations

from typing import Any

from ldctlib.data.patches import PatchConfig
from ldctlib.losses.regression import weighted_mse
from ldctlib.recipes.recipe import SHORT_BANKS, SMALL_BANKS, Context, Network, Recipe, Stage
from ldctlib.training import TrainConfig


def updates(context: Context):
    """:func:`~ldctlib.losses.regression.weighted_mse` in the recipe's range."""
    return weighted_mse(context.recipe.hu_range)


# ---------------------------------------------------------------- NAFNet (Chen et al. 2022), pixel-unshuffled

NAFNET_NETWORK = Network("nafnet", dict(width=64, shuffle=2, encoder=[2, 2], middle=4, decoder=[2, 2], patch=64))


def nafnet(steps: tuple[int, int, int], warmup: tuple[int, int], batch_size: int, log_every: int, banks=None) -> Recipe:
    """Steps of the stages "stable", "decay" and "polish", and warm-up steps of the first and the last.

    The polish sees low doses of sharp kernels once more: there a quarter of the pixels' variance is at stake.
    """
    train: dict[str, Any] = dict(batch_size=batch_size, log_every=log_every, betas=(0.9, 0.95), precision="auto")
    train |= dict(clip_norm=0.5, checkpoint_every=500)
    stable = TrainConfig(steps=steps[0], lr=1e-3, warmup_steps=warmup[0], schedule="constant", seed=1, **train)
    decay = TrainConfig(steps=steps[1], lr=1e-3, seed=2, **train)
    polish = TrainConfig(steps=steps[2], lr=4e-4, warmup_steps=warmup[1], seed=3, **train)
    banks = banks or {}
    stages = (
        Stage("stable", stable, PatchConfig(seed=11, **banks)),
        Stage("decay", decay, PatchConfig(seed=1011, **banks)),
        Stage("polish", polish, PatchConfig(seed=2011, noise_sd_hu=(15.0, 140.0), **banks)),
    )
    return Recipe({"nafnet": NAFNET_NETWORK}, stages, updates, paper="Chen et al. 2022")


NAFNET = {
    "workshop": nafnet((60, 60, 20), (15, 5), batch_size=8, log_every=20, banks=SMALL_BANKS),
    "train": nafnet((5_000, 4_500, 2_000), (200, 100), batch_size=16, log_every=100),
    "paper": nafnet((200_000, 100_000, 20_000), (200, 100), batch_size=16, log_every=100),
}

# ---------------------------------------------------------------- NAFNet, deeper, on more kinds of scans

NAFNET_DEEP_NETWORK = Network(
    "nafnet",
    NAFNET_NETWORK.config | dict(encoder=[2, 4], middle=6, decoder=[4, 2]),
    start="nafnet",
    # the further blocks, which start as the identity
    reinitialise=("encoders.1.2.", "encoders.1.3.", "middle.4.", "middle.5.", "decoders.0.2.", "decoders.0.3."),
)
MORE_SCANS: dict[str, Any] = dict(anatomies=("abdomen", "thorax"), thickness_mm=(0.6, 1.0, 2.0, 3.0, 5.0))
MORE_SCANS |= dict(photons=(4e3, 5e5), mix_probability=0.35)
"""Chests too, thinner and thicker slices, streaks behind bone, and more spectra between two kernels'."""


def nafnet_deep(steps: tuple[int, int, int], warmup: int, batch_size: int, log_every: int, banks=None) -> Recipe:
    """From the trained NAFNet: steps of the stages "stable", "decay" and "polish", and warm-up steps of the first."""
    train: dict[str, Any] = dict(batch_size=batch_size, log_every=log_every, betas=(0.9, 0.95), precision="auto")
    train |= dict(clip_norm=0.5, checkpoint_every=500)
    data = MORE_SCANS | (banks or {})
    stable = TrainConfig(steps=steps[0], lr=8e-4, warmup_steps=warmup, schedule="constant", seed=1, **train)
    stages = (
        Stage("stable", stable, PatchConfig(seed=13, **data)),
        Stage("decay", TrainConfig(steps=steps[1], lr=8e-4, seed=2, **train), PatchConfig(seed=1013, **data)),
        Stage(
            "polish",
            TrainConfig(steps=steps[2], lr=3e-4, warmup_steps=warmup // 2, seed=3, **train),
            PatchConfig(seed=2013, noise_sd_hu=(15.0, 140.0), **data),
        ),
    )
    return Recipe({"nafnet_deep": NAFNET_DEEP_NETWORK}, stages, updates, paper="Chen et al. 2022")


NAFNET_DEEP = {
    "workshop": nafnet_deep((20, 20, 10), 5, batch_size=8, log_every=10, banks=SMALL_BANKS),
    "train": nafnet_deep((8_000, 6_000, 2_000), 300, batch_size=16, log_every=100),
    "paper": nafnet_deep((200_000, 100_000, 20_000), 300, batch_size=16, log_every=100),
}

# ---------------------------------------------------------------- RED-CNN (Chen et al. 2017), linear output


def redcnn(steps: tuple[int, int], warmup: int, batch_size: int, log_every: int, banks=None) -> Recipe:
    """Steps of the stages "stable" and "decay", and warm-up steps of the first."""
    banks = banks or {}
    train: dict[str, Any] = dict(batch_size=batch_size, log_every=log_every, lr=3e-4, betas=(0.9, 0.99))
    train |= dict(precision="auto", clip_norm=0.5, checkpoint_every=200)
    stable = TrainConfig(steps=steps[0], warmup_steps=warmup, schedule="constant", seed=1, **train)
    stages = (
        Stage("stable", stable, PatchConfig(seed=12, patch=48, **banks)),
        Stage("decay", TrainConfig(steps=steps[1], seed=2, **train), PatchConfig(seed=1012, patch=48, **banks)),
    )
    return Recipe({"redcnn": Network("redcnn", dict(final_relu=False))}, stages, updates, paper="Chen et al. 2017")


REDCNN = {
    "workshop": redcnn((20, 20), 5, batch_size=4, log_every=5, banks=SMALL_BANKS),
    "train": redcnn((3_000, 2_000), 100, batch_size=8, log_every=50),
    "paper": redcnn((93_000, 20_000), 100, batch_size=8, log_every=50, banks=SHORT_BANKS),
}
