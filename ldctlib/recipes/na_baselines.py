"""What NA-Diff is compared with (Table 3): Seg-Diff on pixels, and ControlNet on a trained unconditional model.

Both see the mask alone. They learn from the phantoms that the variants learn from; a dose is not given to them, and
images of all doses are in the training. At the shipped size they take fewer steps: a mask on the grid is soon followed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ldctlib.data.anatomy_masks import CLASSES
from ldctlib.models.controlnet import STABLE_DIFFUSION
from ldctlib.pipelines import PipelineSpec
from ldctlib.profiles import PROFILES
from ldctlib.recipes import na_diff
from ldctlib.recipes.na_diff import PROCESS, WINDOW_RANGE, encode, synthesis_updates
from ldctlib.recipes.recipe import Network, Recipe, Stage
from ldctlib.training import TrainConfig

STEPS = dict(na_base=6_000, controlnet=3_000, seg_diff=1_500)
"""At the shipped size, of as many images as the variants'."""


def baseline(profile: str, variant: str, network: Network, spec: PipelineSpec, paper: str, **train) -> Recipe:
    """One stage on the slices of a variant of NA-Diff; without ``steps`` as many as that one's."""
    (stage,) = na_diff.RECIPES[variant][profile].stages
    theirs = stage.train
    train = dict(steps=theirs.steps, batch_size=theirs.batch_size, precision="auto", checkpoint_every=500) | train
    train |= dict(steps=theirs.steps, warmup_steps=0) if profile == "workshop" else {}
    config = TrainConfig(**{"warmup_steps": train["steps"] // 20, "log_every": theirs.log_every} | train)
    stage = Stage("whole", config, stage.data, dict(n_images=stage.options["n_images"], drop=0.0))
    how: dict[str, Any] = dict(hu_range=WINDOW_RANGE, output="full dose", pipeline=spec, prepare=encode)
    return Recipe({network.model: network}, (stage,), synthesis_updates, **how, paper=paper, budget_mib=4.0)


# ---------------------------------------------------------------- ControlNet

SMALL_BASE: dict[str, Any] = dict(in_channels=4, model_channels=24, channel_mult=[1, 2, 2], num_res_blocks=1)
SMALL_BASE |= dict(attention_at=[4], num_head_channels=24, norm_groups=8)
PAPER_BASE = {k: list(v) if isinstance(v, tuple) else v for k, v in STABLE_DIFFUSION.items() if k != "context_dim"}
"""Stable Diffusion's U-Net without a text, and so with self-attention in place of its transformers."""

ON_LATENTS: dict[str, Any] = dict(process=PROCESS, autoencoder="na_autoencoder")


def na_base(profile: str) -> Recipe:
    """The unconditional model that ControlNet starts from: without it there is nothing to control."""
    small = profile != "paper"
    train: dict[str, Any] = dict(lr=1e-4)
    if small:
        train = dict(lr=1e-3, lr_end=1e-5, betas=(0.9, 0.99), steps=STEPS["na_base"])
    network = Network("unet", SMALL_BASE if small else PAPER_BASE)
    return baseline(profile, "na_diff_a", network, PipelineSpec(**ON_LATENTS), "Rombach et al. 2022", seed=44, **train)


def controlnet(profile: str) -> Recipe:
    """The mask, one-hot at the image's size, as the hint. Published is a constant rate of 1e-5; a small control learns
    within a short training at fifty times that, which then falls."""
    small = profile != "paper"
    train: dict[str, Any] = dict(lr=1e-5, schedule="constant")
    if small:
        train = dict(lr=5e-4, lr_end=1e-5, betas=(0.9, 0.99), steps=STEPS["controlnet"])
    hint = dict(hint_channels=len(CLASSES)) | (dict(hint_widths=[16, 32], hint_stem=4) if small else {})
    config = dict(base=SMALL_BASE if small else PAPER_BASE) | hint
    network = Network(
        "controlnet", config, "na_base", ("control.input_hint", "control.zero", "control.middle_block_out")
    )
    spec = PipelineSpec(**ON_LATENTS, conditions={"hint": ["anatomy_one_hot"]})
    return baseline(profile, "na_diff_c", network, spec, "Zhang et al. 2023", seed=45, **train)


# ---------------------------------------------------------------- Seg-Diff

SMALL_SEG_DIFF: dict[str, Any] = dict(in_channels=1, model_channels=16, channel_mult=[1, 2, 2, 2], num_res_blocks=1)
SMALL_SEG_DIFF |= dict(attention_at=[8], num_head_channels=32, norm_groups=8)
PAPER_SEG_DIFF: dict[str, Any] = dict(in_channels=1, model_channels=128, channel_mult=[1, 1, 2, 2, 4, 4])
PAPER_SEG_DIFF |= dict(num_res_blocks=2, attention_at=[16], num_head_channels=8, scale_shift_norm=False)

SMALL_CELL = 4
"""The small model's pixels are means of 4 x 4 pixels of the image: 64 x 64 for 256 x 256."""


def seg_diff(profile: str, source: str) -> Recipe:
    """The mask is concatenated to the noisy image: "anatomy_255" as in the published code, where a class of 12 is at
    most .043, "anatomy_one_hot" the correction. Published are 256 x 256 pixels, 200 epochs, no EMA."""
    width = {"concat_channels": 1 if source == "anatomy_255" else len(CLASSES)}
    config, spec = SMALL_SEG_DIFF, PipelineSpec(PROCESS, conditions={"concat": [source]}, cell=SMALL_CELL)
    train: dict[str, Any] = dict(lr=1e-3, lr_end=1e-5, betas=(0.9, 0.99), steps=STEPS["seg_diff"])
    if profile == "paper":
        config, spec = PAPER_SEG_DIFF, replace(spec, process=dict(schedule="linear", T=1000, prediction="eps"), cell=1)
        n_images = na_diff.RECIPES["na_diff_c"][profile].stages[0].options["n_images"]
        train = dict(lr=1e-4, batch_size=32, steps=200 * n_images // 32, warmup_steps=500)
        train |= dict(weight_decay=0.01, ema_decay=0.0)
    network, how = Network("unet", config | width), dict(kind="adamw", clip_norm=1.0, seed=46, **train)
    return baseline(profile, "na_diff_c", network, spec, "Konz et al. 2024", **how)


RECIPES = {
    "na_base": {profile: na_base(profile) for profile in PROFILES},
    "controlnet": {profile: controlnet(profile) for profile in PROFILES},
    "seg_diff": {profile: seg_diff(profile, "anatomy_255") for profile in PROFILES},
    "seg_diff_corrected": {profile: seg_diff(profile, "anatomy_one_hot") for profile in PROFILES},
}
