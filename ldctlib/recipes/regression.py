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

NAFNET_START_NETWORK = Network("nafnet", dict(width=64, shuffle=2, encoder=[2, 2], middle=4, decoder=[2, 2], patch=64))
NAFNET_NETWORK = Network(
    "nafnet",
    NAFNET_START_NETWORK.config | dict(encoder=[2, 4], middle=6, decoder=[4, 2]),
    start="nafnet_start",
    # the further blocks, which start as the identity
    reinitialise=("encoders.1.2.", "encoders.1.3.", "middle.4.", "middle.5.", "decoders.0.2.", "decoders.0.3."),
)
"""Deeper, from the smaller one: this one ships."""
MORE_SCANS: dict[str, Any] = dict(anatomies=("abdomen", "thorax"), thickness_mm=(0.6, 1.0, 2.0, 3.0, 5.0))
MORE_SCANS |= dict(photons=(4e3, 5e5), mix_probability=0.35)
"""Chests too, thinner and thicker slices, streaks behind bone, and more spectra between two kernels'."""


def nafnet(
    network: Network,
    steps: tuple[int, int, int],
    rates: tuple[float, float],
    *,
    warmup: int,
    seed: int,
    batch_size: int = 16,
    log_every: int = 100,
    **data,
) -> Recipe:
    """Steps of the stages "stable", "decay" and "polish"; the rate of the first two, and the last one's.

    The polish sees low doses of sharp kernels once more: there a quarter of the pixels' variance is at stake.
    """
    train: dict[str, Any] = dict(batch_size=batch_size, log_every=log_every, betas=(0.9, 0.95), precision="auto")
    train |= dict(clip_norm=0.5, checkpoint_every=500)
    stable = TrainConfig(steps=steps[0], lr=rates[0], warmup_steps=warmup, schedule="constant", seed=1, **train)
    decay = TrainConfig(steps=steps[1], lr=rates[0], seed=2, **train)
    polish = TrainConfig(steps=steps[2], lr=rates[1], warmup_steps=warmup // 2, seed=3, **train)
    stages = (
        Stage("stable", stable, PatchConfig(seed=seed, **data)),
        Stage("decay", decay, PatchConfig(seed=1000 + seed, **data)),
        Stage("polish", polish, PatchConfig(seed=2000 + seed, noise_sd_hu=(15.0, 140.0), **data)),
    )
    return Recipe({"nafnet": network}, stages, updates, paper="Chen et al. 2022", budget_mib=9.0)


def nafnet_start(*steps: int, warmup: int = 200, **options) -> Recipe:
    return nafnet(NAFNET_START_NETWORK, steps, (1e-3, 4e-4), warmup=warmup, seed=11, **options)


def nafnet_deep(*steps: int, warmup: int = 300, **options) -> Recipe:
    return nafnet(NAFNET_NETWORK, steps, (8e-4, 3e-4), warmup=warmup, seed=13, **MORE_SCANS | options)


WORKSHOP: dict[str, Any] = dict(batch_size=8, **SMALL_BANKS)
NAFNET_START = {
    "workshop": nafnet_start(60, 60, 20, warmup=15, log_every=20, **WORKSHOP),
    "train": nafnet_start(5_000, 4_500, 2_000),
    "paper": nafnet_start(200_000, 100_000, 20_000),
}
NAFNET = {
    "workshop": nafnet_deep(20, 20, 10, warmup=5, log_every=10, **WORKSHOP),
    "train": nafnet_deep(8_000, 6_000, 2_000),
    "paper": nafnet_deep(200_000, 100_000, 20_000),
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
