"""Dn-Dp (Liu et al. 2023): an unconditional cascade, low resolution and super-resolution, on clean images alone.

Of its two networks the first makes images of a quarter of the size a side, the second takes such an image to full size.
They are told √ᾱ_t in place of the time, as SR3's. The published second network gives x0 and eps at once and mixes
them to √ᾱ_t (x_t - √(1 - ᾱ_t) eps) + (1 - ᾱ_t) x0: that is v-prediction, v = √ᾱ_t eps - √(1 - ᾱ_t) x0, which
one output gives as well.

The images' HU range is published nowhere. Here it is -1000 ... 1000 HU: what is published of the sampler (levels, λ0,
b) then fits the noise of quarter-dose scans, see :mod:`ldctlib.diffusion.cascade`.
"""

from __future__ import annotations

from typing import Any

from ldctlib.data.patches import PatchConfig
from ldctlib.pipelines import PipelineSpec
from ldctlib.pipelines.conditioning import LOW_RESOLUTION
from ldctlib.profiles import PROFILES
from ldctlib.recipes.diffusion import updates
from ldctlib.recipes.recipe import PAPER_DATA, SMALL_BANKS, Network, Recipe, Stage
from ldctlib.training import TrainConfig

PROCESS: dict[str, Any] = dict(schedule="sr3", T=2000, level_input=True)
SMALL_TIMES_OFTEN: dict[str, Any] = dict(time_power=2.5)
"""The sampler's steps that shape the image lie at t ≤ 200: uniform times would spend a tenth there, these 40 %."""
STAGES: dict[str, dict[str, Any]] = {
    "low": dict(prediction="eps", data=dict(block_mean=LOW_RESOLUTION)),
    "high": dict(prediction="v", conditions={"concat": ["low_resolution"]}, options=dict(low_resolution_noise_hu=15.0)),
}

UNET: dict[str, Any] = dict(in_channels=1, model_channels=32, channel_mult=[1, 2, 2, 1], num_res_blocks=1)
UNET |= dict(attention_at=[], num_head_channels=32, norm_groups=8)
PAPER_UNET: dict[str, Any] = dict(in_channels=1, model_channels=64, channel_mult=[1, 2, 4, 8, 8], num_res_blocks=2)
PAPER_UNET |= dict(dropout=0.2)
"""Its networks work on 2 x 2 pixels as channels (patch diffusion); these work on pixels."""
PAPER_STAGES = {  # batch, steps, downsampling with attention, patch
    "low": (16, 200_000, [8], 512 // LOW_RESOLUTION),
    "high": (8, 100_000, [16], 512),
}


def dndp_recipe(name: str, profile: str) -> Recipe:
    """The recipe of one of :data:`STAGES`: patches first, at the end wider ones for group norms and attention."""
    stage, concat = STAGES[name], dict(concat_channels=1) if name == "high" else {}
    data: dict[str, Any] = dict(noise_sd_hu=None) | stage.get("data", {})
    options = stage.get("options", {})
    process = PROCESS | dict(prediction=stage["prediction"])
    common: dict[str, Any] = dict(updates=updates, paper="Liu et al. 2023 (Dn-Dp); Saharia et al. 2021 (SR3)")
    seed = {"low": 11, "high": 12}[name]
    if profile == "paper":
        batch, steps, attention, patch = PAPER_STAGES[name]
        train = TrainConfig(steps=steps, batch_size=batch, lr=1e-4, schedule="constant", precision="auto", seed=seed)
        whole = Stage("whole", train, PatchConfig(seed=200 + seed, **PAPER_DATA | data | dict(patch=patch)), options)
        network = Network("unet", PAPER_UNET | concat | dict(attention_at=attention))
        pipeline = PipelineSpec(process, conditions=stage.get("conditions", {}))
        return Recipe({"unet": network}, (whole,), pipeline=pipeline, **common)
    train: dict[str, Any] = dict(lr=8e-4, betas=(0.9, 0.99), clip_norm=1.0, precision="auto", seed=seed)
    data |= dict(photograph_share=0.33)
    if profile == "workshop":
        train, data = train | dict(batch_size=4, log_every=10), data | SMALL_BANKS | dict(size=384)
        steps, warmup, last, wide = (40, 40), 10, 1, 64
    else:
        train |= dict(batch_size=8, log_every=100, checkpoint_every=250)
        steps = {"low": (1_700, 700), "high": (2_300, 1_000)}[name]
        warmup, last, wide = 200, 2, 120  # whole slices of 512, less the border of the edge blur, at low resolution
    stable = TrainConfig(steps=steps[0], warmup_steps=warmup, schedule="constant", **train)
    decay = TrainConfig(steps=steps[1], **train | dict(batch_size=last))
    wider = data | dict(patch=wide, photograph_share=0.1)  # few photographs are as wide
    stages = (
        Stage("stable", stable, PatchConfig(seed=200 + seed, patch=64, **data), options),
        Stage("decay", decay, PatchConfig(seed=1200 + seed, **wider), options),
    )
    pipeline = PipelineSpec(process | SMALL_TIMES_OFTEN, conditions=stage.get("conditions", {}))
    return Recipe({"unet": Network("unet", UNET | concat)}, stages, pipeline=pipeline, budget_mib=4.0, **common)


DNDP_LOW = {profile: dndp_recipe("low", profile) for profile in PROFILES}
DNDP_HIGH = {profile: dndp_recipe("high", profile) for profile in PROFILES}
