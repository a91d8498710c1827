"""Segmenters that tell the anatomy of CT images, trained on phantoms; and one trained on arrays, for comparisons."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.data import Dataset

from ldctlib.data.anatomy_masks import CLASSES
from ldctlib.data.sdct import LabelledConfig
from ldctlib.losses.segmentation import segmentation_loss
from ldctlib.recipes.recipe import Context, Network, Recipe, Stage
from ldctlib.training import TrainConfig, train
from ldctlib.units import SOFT_TISSUE, Range

WINDOW_RANGE = Range(SOFT_TISSUE.low, SOFT_TISSUE.high)
"""Model units of networks that see an image in its window alone, since generated images hold nothing beyond it."""

UNET = Network("segmentation_unet", dict(classes=len(CLASSES), widths=[24, 32, 64, 72], shuffle=2))
PAPER = Network("segmentation_unet", dict(classes=len(CLASSES), widths=[64, 128, 256, 512, 512], shuffle=1))
SMALL: dict[str, Any] = dict(size=64, draw_size=96, n_slices=16, n_noises=4, noise_size=96)


def updates(context: Context):
    """:func:`~ldctlib.losses.segmentation.segmentation_loss` in the recipe's range."""
    return segmentation_loss(context.recipe.hu_range)


def segmenter(net: Network, steps: int, batch_size: int, warmup: int, log_every: int, **data) -> Recipe:
    """One stage, its rate falling to zero."""
    config = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        lr=3e-3,
        warmup_steps=warmup,
        weight_decay=0.01,
        log_every=log_every,
        precision="auto",
        checkpoint_every=200,
        seed=51,
    )
    stage = Stage("decay", config, LabelledConfig(seed=501, **data), sides=16)
    return Recipe({"segmenter": net}, (stage,), updates, WINDOW_RANGE, paper="Ronneberger et al. 2015", budget_mib=1.0)


SEGMENTER = {
    "workshop": segmenter(UNET, 30, 8, 5, 10, **SMALL),
    "train": segmenter(UNET, 1_500, 16, 50, 50),
    "paper": segmenter(PAPER, 50_000, 16, 500, 100, size=512, draw_size=512),
}


def train_segmenter(network: Network, samples: Dataset, config: TrainConfig) -> nn.Module:
    """A segmenter trained on these samples alone, in eval mode: real images against real and synthetic ones
    (NA-Diff, Table 6), :class:`~ldctlib.data.sdct.ArraySlices`."""
    *_, last = train(network.build(config.seed), segmentation_loss(WINDOW_RANGE), samples, config, progress=False)
    return last.ema_model()
