"""A judge of image quality, trained on simulated doses: a stand-in for one trained on readers' scores."""

from __future__ import annotations

from typing import Any

from ldctlib.data.sdct import LabelledConfig
from ldctlib.losses.segmentation import quality_loss
from ldctlib.recipes.recipe import Context, Network, Recipe, Stage
from ldctlib.recipes.segmentation import SMALL, WINDOW_RANGE
from ldctlib.training import TrainConfig

NETWORK = Network("iqa", dict(widths=[16, 32, 48, 64, 64]))


def updates(context: Context):
    """:func:`~ldctlib.losses.segmentation.quality_loss` in the recipe's range."""
    return quality_loss(context.recipe.hu_range)


def iqa(steps: int, batch_size: int, warmup: int, log_every: int, **data) -> Recipe:
    """Parts of slices, half of them small, at doses beyond those that are asked for."""
    train: dict[str, Any] = dict(batch_size=batch_size, lr=2e-3, warmup_steps=warmup, weight_decay=0.01, seed=61)
    config = TrainConfig(steps=steps, log_every=log_every, precision="auto", checkpoint_every=200, **train)
    stream = LabelledConfig(seed=601, **{"doses": (0.03, 1.5), "shown": (0.35, 1.0)} | data)
    return Recipe({"iqa": NETWORK}, (Stage("decay", config, stream),), updates, WINDOW_RANGE, budget_mib=1.0)


IQA = {
    "workshop": iqa(30, 8, 5, 10, **SMALL),
    "train": iqa(3_000, 16, 50, 100, draw_size=256, n_slices=400),
    "paper": iqa(50_000, 32, 500, 100, size=256, draw_size=512),
}
