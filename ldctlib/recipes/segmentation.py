"""Segmenters that tell the anatomy of CT images, trained on phantoms; and one trained on arrays, to compare data."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.data import Dataset

from ldctlib.data.anatomy_masks import CLASSES
from ldctlib.data.sdct import LabelledConfig
from ldctlib.losses.segmentation import segmentation_loss
from ldctlib.pipelines.synthesis import WINDOW_RANGE
from ldctlib.recipes.recipe import Context, Network, Recipe, Stage
from ldctlib.training import TrainConfig, train

K = len(CLASSES)
UNET = Network("segmentation_unet", dict(classes=K, widths=[24, 32, 64, 72], shuffle=2))
UNET_PAPER = Network("segmentation_unet", dict(classes=K, widths=[64, 128, 256, 512, 512], shuffle=1))
TRANSUNET_SMALL = Network(
    "transunet",
    dict(classes=K, image_size=128, width=16, units=[2, 2, 2], dim=96, depth=3, heads=3, mlp=192, head=96)
    | dict(decoder=[64, 48, 32, 16], dropout=0.0),
)
TRANSUNET_PAPER = Network("transunet", dict(classes=K))

ADAMW: dict[str, Any] = dict(lr=3e-3, weight_decay=0.01)
SGD: dict[str, Any] = dict(kind="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, schedule="poly", clip_norm=None)
"""Chen et al. 2021, section 4.1."""
SMALL: dict[str, Any] = dict(size=64, draw_size=96, n_slices=16, n_noises=4, noise_size=96)


def updates(context: Context):
    """:func:`~ldctlib.losses.segmentation.segmentation_loss` in the recipe's range."""
    return segmentation_loss(context.recipe.hu_range)


def segmenter(
    net: Network, steps: int, batch_size: int, log_every: int, optimizer: dict[str, Any], *, sides: int = 16, **data
) -> Recipe:
    """One stage, its rate falling to zero."""
    how: dict[str, Any] = dict(batch_size=batch_size, log_every=log_every, precision="auto", checkpoint_every=200)
    config = TrainConfig(steps=steps, seed=51, **how, **optimizer)
    stage = Stage("decay", config, LabelledConfig(seed=501, **data), sides=sides)
    paper = "Ronneberger et al. 2015" if net.model == "segmentation_unet" else "Chen et al. 2021"
    return Recipe({"segmenter": net}, (stage,), updates, WINDOW_RANGE, paper=paper, budget_mib=1.0)


SEGMENTER = {
    "workshop": segmenter(UNET, 30, 8, 10, ADAMW | dict(warmup_steps=5), **SMALL),
    "train": segmenter(UNET, 1_500, 16, 50, ADAMW | dict(warmup_steps=50)),
    "paper": segmenter(UNET_PAPER, 50_000, 16, 100, ADAMW | dict(warmup_steps=500), sides=16, size=512, draw_size=512),
}
TRANSUNET = {
    "workshop": segmenter(TRANSUNET_SMALL, 30, 4, 10, ADAMW, sides=128, **SMALL | dict(size=128, noise_size=128)),
    "train": segmenter(TRANSUNET_SMALL, 1_500, 16, 50, ADAMW | dict(lr=1e-3, warmup_steps=50), sides=128),
    "paper": segmenter(TRANSUNET_PAPER, 14_000, 24, 100, SGD, sides=224, size=224, draw_size=512),
}


def train_segmenter(network: Network, samples: Dataset, config: TrainConfig) -> nn.Module:
    """A segmenter trained on these samples alone, in eval mode: real images against real and synthetic ones
    (NA-Diff, Table 6), both as :class:`~ldctlib.data.sdct.ArraySlices`."""
    *_, last = train(network.build(config.seed), segmentation_loss(WINDOW_RANGE), samples, config, progress=False)
    return last.ema_model()
