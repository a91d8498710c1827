"""Diffusion recipes: the loss of every diffusion pipeline, and the conditional DDPM on pixels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ldctlib.data.patches import PatchConfig
from ldctlib.pipelines import PipelineSpec
from ldctlib.recipes.recipe import SMALL_BANKS, Context, Network, Recipe, Stage
from ldctlib.training import TrainConfig
from ldctlib.units import Range


def updates(context: Context):
    """The loss of the recipe's pipeline (DDPM Eq. 14; MAN Eq. 7); ``stage.options`` may hold ``noise_draws``."""
    pipeline, options = context.pipeline(), context.stage.options

    def loss(model: nn.Module, batch: dict[str, Tensor], generator, step: int) -> Tensor:
        return pipeline.loss(model, batch, generator, **options)

    return loss


RESIDUAL_TO_INPUT: dict[str, Any] = dict(schedule="cosine", T=1000, prediction="v", residual=True, residual_std=0.15)
"""v-prediction, since recovering x0 from eps at t = T of the cosine schedule divides by almost 0. The network denoises
the residual x0 - condition, scaled to unit variance by ``residual_std``. No SNR weighting: it would drop the noisiest
steps, where only the condition informs."""

DDPM_RANGE = Range(-360.0, 440.0)
"""Soft tissue fills the model's [-1, 1], so that the noise schedule's middle is where tissues differ."""

PIXEL_UNET = Network(
    "unet",
    dict(
        in_channels=1,
        model_channels=32,
        channel_mult=[1, 2, 2, 1],
        num_res_blocks=1,
        attention_at=[],
        num_head_channels=32,
        concat_channels=1,
        norm_groups=8,
    ),
)
"""Base width and depth of the latent U-Net; attention in the middle only, which 512 x 512 pixels can bear."""
PAPER_PIXEL_UNET = Network(
    "unet",
    dict(
        in_channels=1,
        model_channels=128,
        channel_mult=[1, 1, 2, 2, 4, 4],
        num_res_blocks=2,
        attention_at=[32],
        concat_channels=1,
    ),
)
PIXEL_TRAIN: dict[str, Any] = dict(lr=1e-3, betas=(0.9, 0.99), clip_norm=1.0, precision="auto", seed=5)
PIXELS: dict[str, Any] = dict(patch=64, photograph_share=0.25)
CONCATENATED = {"concat": ["ldct"]}
COMMON: dict[str, Any] = dict(updates=updates, hu_range=DDPM_RANGE, paper="Ho et al. 2020; Saharia et al. 2021 (SR3)")

DDPM = {
    "workshop": Recipe(
        {"unet": PIXEL_UNET},
        (
            Stage(
                "stable",
                TrainConfig(steps=40, batch_size=4, warmup_steps=10, schedule="constant", log_every=10, **PIXEL_TRAIN),
                PatchConfig(seed=205, **PIXELS, **SMALL_BANKS),
            ),
            Stage(
                "decay",
                TrainConfig(steps=40, batch_size=4, log_every=10, **PIXEL_TRAIN),
                PatchConfig(seed=1205, **PIXELS, **SMALL_BANKS),
            ),
        ),
        pipeline=PipelineSpec(RESIDUAL_TO_INPUT, conditions=CONCATENATED),
        **COMMON,
    ),
    "train": Recipe(
        {"unet": PIXEL_UNET},
        (
            Stage(
                "stable",
                TrainConfig(
                    steps=2_500,
                    batch_size=8,
                    warmup_steps=200,
                    schedule="constant",
                    log_every=100,
                    checkpoint_every=500,
                    **PIXEL_TRAIN,
                ),
                PatchConfig(seed=205, **PIXELS),
            ),
            Stage(
                "decay",
                TrainConfig(steps=1_500, batch_size=8, log_every=100, checkpoint_every=500, **PIXEL_TRAIN),
                PatchConfig(seed=1205, **PIXELS),
            ),
        ),
        pipeline=PipelineSpec(RESIDUAL_TO_INPUT, conditions=CONCATENATED),
        **COMMON,
    ),
    "paper": Recipe(
        {"unet": PAPER_PIXEL_UNET},
        (
            Stage(
                "whole",
                TrainConfig(
                    steps=500_000,
                    batch_size=16,
                    accumulation=4,
                    lr=2e-5,
                    schedule="constant",
                    precision="auto",
                    seed=5,
                    log_every=100,
                ),
                PatchConfig(seed=205, patch=512, size=704, photograph_share=0.0),
            ),
        ),
        pipeline=PipelineSpec(dict(schedule="linear", T=1000, prediction="eps"), conditions=CONCATENATED),
        **COMMON,
    ),
}
