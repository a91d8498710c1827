"""Plug-and-play DDNM: unconditional diffusion priors, trained on clean images alone.

A prior learns what images look like and is given no measurement: no scanner noise is simulated for it.
"""

from __future__ import annotations

from typing import Any

from ldctlib.data.patches import PatchConfig
from ldctlib.models.unet import RELEASED_CT_MR
from ldctlib.pipelines import PipelineSpec
from ldctlib.profiles import PROFILES
from ldctlib.recipes.diffusion import DDPM_RANGE, updates
from ldctlib.recipes.recipe import PAPER_DATA, SMALL_BANKS, Network, Recipe, Stage
from ldctlib.training import TrainConfig

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
