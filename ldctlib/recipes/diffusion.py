"""Diffusion recipes: the loss of every diffusion pipeline, the conditional DDPM on pixels, and Fast-DDPM."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ldctlib.data.patches import PatchConfig
from ldctlib.pipelines import PipelineSpec
from ldctlib.recipes.recipe import PAPER_DATA, PAPER_TRAIN, SMALL_BANKS, Context, Network, Recipe, Stage
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

UNET: dict[str, Any] = dict(in_channels=1, concat_channels=1)
PIXEL_UNET = Network(
    "unet",
    UNET
    | dict(model_channels=32, channel_mult=[1, 2, 2, 1], num_res_blocks=1, norm_groups=8)
    | dict(attention_at=[], num_head_channels=32),
)
"""Base width and depth of the latent U-Net; attention in the middle only, which 512 x 512 pixels can bear."""
PAPER_PIXEL_UNET = Network(
    "unet", UNET | dict(model_channels=128, channel_mult=[1, 1, 2, 2, 4, 4], num_res_blocks=2, attention_at=[32])
)
PIXEL_TRAIN: dict[str, Any] = dict(lr=1e-3, betas=(0.9, 0.99), clip_norm=1.0, precision="auto", seed=5)
PIXELS: dict[str, Any] = dict(patch=64, photograph_share=0.25)
CONCATENATED = {"concat": ["ldct"]}
COMMON: dict[str, Any] = dict(updates=updates, hu_range=DDPM_RANGE, paper="Ho et al. 2020; Saharia et al. 2021 (SR3)")


def pixel_recipe(
    steps: tuple[int, int], warmup: int, batch_size: int, banks=None, times=None, paper="", **train
) -> Recipe:
    """Steps of the stages "stable" and "decay", and warm-up steps of the first; ``times`` are all or a few."""
    train |= PIXEL_TRAIN | dict(batch_size=batch_size)
    banks = PIXELS | (banks or {})
    stable = TrainConfig(steps=steps[0], warmup_steps=warmup, schedule="constant", **train)
    stages = (
        Stage("stable", stable, PatchConfig(seed=205, **banks)),
        Stage("decay", TrainConfig(steps=steps[1], **train), PatchConfig(seed=1205, **banks)),
    )
    process = RESIDUAL_TO_INPUT | ({} if times is None else dict(times=list(times)))
    pipeline = PipelineSpec(process, conditions=CONCATENATED)
    return Recipe({"unet": PIXEL_UNET}, stages, pipeline=pipeline, **COMMON | (dict(paper=paper) if paper else {}))


PAPER_STAGE = Stage(
    "whole", TrainConfig(steps=500_000, lr=2e-5, seed=5, **PAPER_TRAIN), PatchConfig(seed=205, **PAPER_DATA)
)
PAPER_PIPELINE = PipelineSpec(dict(schedule="linear", T=1000, prediction="eps"), conditions=CONCATENATED)

DDPM = {
    "workshop": pixel_recipe((40, 40), 10, batch_size=4, banks=SMALL_BANKS, log_every=10),
    "train": pixel_recipe((2_500, 1_500), 200, batch_size=8, log_every=100, checkpoint_every=500),
    "paper": Recipe({"unet": PAPER_PIXEL_UNET}, (PAPER_STAGE,), pipeline=PAPER_PIPELINE, **COMMON),
}

# ---------------------------------------------------------------- Fast-DDPM (Jiang et al. 2024)

UNIFORM_TIMES = tuple(range(1000, 0, -100))
"""Ten even times. (The published code counts eleven: these and the first.)"""
NON_UNIFORM_TIMES = (1000, 950, 900, 850, 800, 700, 600, 400, 200, 1)
"""The published ten, denser where noise is strong: 0, 199, 399, 599, 699, 799, 849, 899, 949 and 999 from zero."""


def fast_ddpm(times: tuple[int, ...]) -> dict[str, Recipe]:
    """The DDPM's network, data and budget, trained on the ten times alone that its sampler visits."""
    paper = "Jiang et al. 2024 (Fast-DDPM)"
    data = PatchConfig(seed=205, **PAPER_DATA | dict(patch=256))
    stage = Stage("whole", TrainConfig(steps=400_000, lr=2e-5, seed=5, **PAPER_TRAIN | dict(accumulation=1)), data)
    process = dict(schedule="linear", T=1000, prediction="eps", times=list(times))
    pipeline = PipelineSpec(process, conditions=CONCATENATED)
    published = Recipe({"unet": PAPER_PIXEL_UNET}, (stage,), pipeline=pipeline, **COMMON | dict(paper=paper))
    few: dict[str, Any] = dict(batch_size=4, banks=SMALL_BANKS, log_every=10)
    return {
        "workshop": pixel_recipe((40, 40), 10, times=times, paper=paper, **few),
        "train": pixel_recipe(
            (2_500, 1_500), 200, batch_size=8, times=times, paper=paper, log_every=100, checkpoint_every=500
        ),
        "paper": published,
    }


FAST_DDPM = fast_ddpm(UNIFORM_TIMES)
FAST_DDPM_NON_UNIFORM = fast_ddpm(NON_UNIFORM_TIMES)
