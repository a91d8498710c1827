"""Plug-and-play DDNM: unconditional diffusion priors, trained on clean images alone.

A prior learns what images look like and is given no measurement: no scanner noise is simulated for it.
"""

from __future__ import annotations

from typing import Any

from ldctlib.data.mr_patches import MRPatchConfig
from ldctlib.data.patches import PatchConfig
from ldctlib.models.unet import RELEASED_CT_MR
from ldctlib.pipelines import PipelineSpec
from ldctlib.recipes.diffusion import DDPM_RANGE, updates
from ldctlib.recipes.recipe import PAPER_DATA, SMALL_BANKS, Network, Recipe, Stage, TrainingData
from ldctlib.training import TrainConfig
from ldctlib.units import Range

PROCESS: dict[str, Any] = dict(schedule="linear", T=1000, prediction="eps")
FREQUENT_SMALL_TIMES: dict[str, Any] = PROCESS | dict(time_power=2.5)
"""A scan's noise is that of t = 1 ... 100; uniform times would spend a tenth of the training there, these 40 %."""

PAPER_UNET = Network(
    "unet", {k: list(v) if isinstance(v, tuple) else v for k, v in RELEASED_CT_MR.items()} | dict(in_channels=1)
)
PAPER = "plug-and-play DDNM, section 3.1; Ho et al. 2020"


LARGE_BANKS: dict[str, Any] = dict(n_slices=512, n_photographs=256, refresh=256_000)
"""Slices and photographs of a long training, drawn anew every 256,000 samples: drawing is what a GPU waits for."""


def prior_recipe(
    network: Network,
    data: tuple[TrainingData, TrainingData],
    steps: tuple[int, int],
    batches: tuple[int, int],
    *,
    warmup: int,
    train: dict[str, Any],
    **image_range,
) -> Recipe:
    """Data, steps and batches of the stages "stable" and "decay": patches first, then wider ones for group norms and
    attention. ``warmup`` is the first one's, ``train`` is of both."""
    both = dict(betas=(0.9, 0.99), clip_norm=1.0, precision="auto", **train)
    stable = TrainConfig(steps=steps[0], batch_size=batches[0], warmup_steps=warmup, schedule="constant", **both)
    decay = TrainConfig(steps=steps[1], batch_size=batches[1], **both)
    stages = Stage("stable", stable, data[0]), Stage("decay", decay, data[1])
    pipeline = PipelineSpec(FREQUENT_SMALL_TIMES)
    return Recipe({"unet": network}, stages, updates, pipeline=pipeline, paper=PAPER, **image_range)


def paper_prior(data: TrainingData, seed: int, **image_range) -> Recipe:
    """The published training, of one grey channel."""
    train = TrainConfig(steps=500_000, batch_size=16, lr=1e-4, ema_decay=0.9999, schedule="constant", seed=seed)
    stage, pipeline = Stage("whole", train, data), PipelineSpec(PROCESS)
    return Recipe({"unet": PAPER_UNET}, (stage,), updates, pipeline=pipeline, paper=PAPER, **image_range)


# ---------------------------------------------------------------- CT

PRIOR_UNET = Network(
    "unet",
    dict(in_channels=1, model_channels=32, channel_mult=[1, 1, 2, 2, 4], num_res_blocks=2)
    | dict(attention_at=[16], num_head_channels=32, norm_groups=8),
)
"""The released layout's family, half as wide and one level less deep."""


def ct_patches(**banks) -> tuple[PatchConfig, PatchConfig]:
    """Clean images, a third of them photographs."""
    clean: dict[str, Any] = dict(noise_sd_hu=None, photograph_share=0.33) | banks
    return PatchConfig(seed=207, patch=64, **clean), PatchConfig(seed=1207, patch=192, **clean)


CT: dict[str, Any] = dict(hu_range=DDPM_RANGE, budget_mib=12.0)
CT_RATE: dict[str, Any] = dict(lr=8e-4, seed=7)
PRIOR_CT = {
    "workshop": prior_recipe(
        PRIOR_UNET, ct_patches(**SMALL_BANKS), (40, 40), (4, 1), warmup=10, train=CT_RATE | dict(log_every=10), **CT
    ),
    "train": prior_recipe(
        PRIOR_UNET,
        ct_patches(**LARGE_BANKS),
        (2_482, 1_872),
        (128, 16),
        warmup=500,
        train=CT_RATE | dict(log_every=100, checkpoint_every=2_000),
        **CT,
    ),
    "paper": paper_prior(
        PatchConfig(seed=207, **PAPER_DATA | dict(patch=256, noise_sd_hu=None)), 7, hu_range=DDPM_RANGE
    ),
}

# ---------------------------------------------------------------- cine cardiac MR

PRIOR_MR_UNET = Network(
    "unet",
    dict(in_channels=1, model_channels=32, channel_mult=[1, 1, 2, 2], num_res_blocks=1)
    | dict(attention_at=[], num_head_channels=32, norm_groups=8),
)
"""A quarter of the CT prior's weights: one level and one block a level less."""


def mr_patches(**banks) -> tuple[MRPatchConfig, MRPatchConfig]:
    """Hearts, and a few photographs."""
    return MRPatchConfig(seed=208, patch=64, **banks), MRPatchConfig(seed=1208, patch=128, **banks)


MR_RANGE: dict[str, Any] = dict(hu_range=None, intensity_range=Range(0.0, 1.0))
"""Images are divided by their volume's 99.5th percentile."""
MR: dict[str, Any] = MR_RANGE | dict(budget_mib=5.0)
MR_RATE: dict[str, Any] = dict(lr=1e-3, seed=8)
PRIOR_MR = {
    "workshop": prior_recipe(
        PRIOR_MR_UNET,
        mr_patches(n_slices=12, n_photographs=8),
        (40, 20),
        (4, 1),
        warmup=10,
        train=MR_RATE | dict(log_every=10),
        **MR,
    ),
    "train": prior_recipe(
        PRIOR_MR_UNET,
        mr_patches(n_slices=480, n_photographs=96, refresh=256_000),
        (2_018, 856),
        (64, 16),
        warmup=500,
        train=MR_RATE | dict(log_every=100, checkpoint_every=2_000),
        **MR,
    ),
    "paper": paper_prior(MRPatchConfig(seed=208, patch=256, size=256, photograph_share=0.0), 8, **MR_RANGE),
}
