"""Plug-and-play DDNM: unconditional diffusion priors, trained on clean images alone.

A prior learns what images look like and is given no measurement: no scanner noise is simulated for it.
"""

from __future__ import annotations

from typing import Any

from ldctlib.data.mr_patches import MRPatchConfig
from ldctlib.data.patches import PatchConfig
from ldctlib.models.unet import RELEASED_CT_MR
from ldctlib.pipelines import PipelineSpec
from ldctlib.profiles import PROFILES
from ldctlib.recipes.diffusion import DDPM_RANGE, updates
from ldctlib.recipes.recipe import PAPER_DATA, SMALL_BANKS, Network, Recipe, Stage
from ldctlib.training import TrainConfig
from ldctlib.units import Range

PROCESS: dict[str, Any] = dict(schedule="linear", T=1000, prediction="eps")
FREQUENT_SMALL_TIMES: dict[str, Any] = PROCESS | dict(time_power=2.5)
"""A scan's noise is that of t = 1 ... 100; uniform times would spend a tenth of the training there, these 40 %."""

PRIOR_UNET = Network(
    "unet",
    dict(in_channels=1, model_channels=32, channel_mult=[1, 1, 2, 2, 4], num_res_blocks=2)
    | dict(attention_at=[16], num_head_channels=32, norm_groups=8),
)
"""The released layout's family, half as wide and one level less deep."""
PAPER_UNET = Network(
    "unet", {k: list(v) if isinstance(v, tuple) else v for k, v in RELEASED_CT_MR.items()} | dict(in_channels=1)
)
COMMON: dict[str, Any] = dict(hu_range=DDPM_RANGE, paper="plug-and-play DDNM, section 3.1; Ho et al. 2020")


def prior_recipe(profile: str) -> Recipe:
    """Patches first, at the end wider ones for group norms and attention."""
    if profile == "paper":
        train = TrainConfig(steps=500_000, batch_size=16, lr=1e-4, ema_decay=0.9999, schedule="constant", seed=7)
        stage = Stage("whole", train, PatchConfig(seed=207, **PAPER_DATA | dict(patch=256, noise_sd_hu=None)))
        return Recipe({"unet": PAPER_UNET}, (stage,), updates, pipeline=PipelineSpec(PROCESS), **COMMON)
    train: dict[str, Any] = dict(betas=(0.9, 0.99), clip_norm=1.0, precision="auto", seed=7)
    data: dict[str, Any] = dict(noise_sd_hu=None, photograph_share=0.33)
    if profile == "workshop":
        train, data = train | dict(batch_size=4, log_every=10), data | SMALL_BANKS
        steps, warmup, last = (40, 40), 10, dict(batch_size=1)
    else:
        train |= dict(batch_size=12, log_every=50, checkpoint_every=250)
        steps, warmup, last = (2_000, 900), 200, dict(batch_size=2)
    stable = TrainConfig(steps=steps[0], lr=8e-4, warmup_steps=warmup, schedule="constant", **train)
    stages = (
        Stage("stable", stable, PatchConfig(seed=207, patch=64, **data)),
        Stage("decay", TrainConfig(steps=steps[1], lr=8e-4, **train | last), PatchConfig(seed=1207, patch=192, **data)),
    )
    pipeline = PipelineSpec(FREQUENT_SMALL_TIMES)
    return Recipe({"unet": PRIOR_UNET}, stages, updates, pipeline=pipeline, budget_mib=12.0, **COMMON)


PRIOR_CT = {profile: prior_recipe(profile) for profile in PROFILES}


PRIOR_MR_UNET = Network(
    "unet",
    dict(in_channels=1, model_channels=32, channel_mult=[1, 1, 2, 2], num_res_blocks=1)
    | dict(attention_at=[], num_head_channels=32, norm_groups=8),
)
"""A quarter of the CT prior's weights: one level and one block a level less."""
MR_COMMON: dict[str, Any] = dict(hu_range=None, intensity_range=Range(0.0, 1.0), paper=COMMON["paper"])
"""Images are divided by their volume's 99.5th percentile."""


def mr_prior_recipe(profile: str) -> Recipe:
    """As :func:`prior_recipe`, on cine cardiac MR in arbitrary units; hearts want the wider patches sooner."""
    if profile == "paper":
        train = TrainConfig(steps=500_000, batch_size=16, lr=1e-4, ema_decay=0.9999, schedule="constant", seed=8)
        stage = Stage("whole", train, MRPatchConfig(seed=208, patch=256, size=256, photograph_share=0.0))
        return Recipe({"unet": PAPER_UNET}, (stage,), updates, pipeline=PipelineSpec(PROCESS), **MR_COMMON)
    train: dict[str, Any] = dict(betas=(0.9, 0.99), clip_norm=1.0, precision="auto", seed=8)
    data: dict[str, Any] = {}
    if profile == "workshop":
        train |= dict(log_every=10)
        data = dict(n_slices=12, n_photographs=8)
        sizes = ((40, 4, 64), (20, 1, 128))
        warmup = 10
    else:
        train |= dict(log_every=50, checkpoint_every=250)
        sizes = ((1_800, 12, 64), (900, 3, 128))
        warmup = 150
    (steps, batch, patch), (last_steps, last_batch, last_patch) = sizes
    stable = TrainConfig(steps=steps, batch_size=batch, lr=1e-3, warmup_steps=warmup, schedule="constant", **train)
    decay = TrainConfig(steps=last_steps, batch_size=last_batch, lr=1e-3, **train)
    stages = (
        Stage("stable", stable, MRPatchConfig(seed=208, patch=patch, **data)),
        Stage("decay", decay, MRPatchConfig(seed=1208, patch=last_patch, **data)),
    )
    pipeline = PipelineSpec(FREQUENT_SMALL_TIMES)
    return Recipe({"unet": PRIOR_MR_UNET}, stages, updates, pipeline=pipeline, budget_mib=5.0, **MR_COMMON)


PRIOR_MR = {profile: mr_prior_recipe(profile) for profile in PROFILES}
