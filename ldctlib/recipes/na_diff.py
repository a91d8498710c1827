"""NA-Diff: the autoencoder whose latents are diffused, and the variants A to F (Table 1).

The paper's latents are those of Stable Diffusion's autoencoder, f = 8 with 4 channels, of images in a soft-tissue
window. ``na_autoencoder`` is this project's own of that shape.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldctlib.data.anatomy_masks import CLASSES
from ldctlib.data.emulated import EmulationConfig
from ldctlib.data.encoded import EncodedImages, encoded_once
from ldctlib.data.six_dose import SixDoseConfig
from ldctlib.losses import AutoencoderLoss, Ramp
from ldctlib.models.noise_autoencoder import noise_likelihood
from ldctlib.pipelines import PipelineSpec
from ldctlib.pipelines.synthesis import PixelSynthesis, SynthesisPipeline
from ldctlib.profiles import PROFILES
from ldctlib.recipes.leda import perceptual
from ldctlib.recipes.recipe import Context, Network, Recipe, Stage
from ldctlib.training import TrainConfig
from ldctlib.units import SOFT_TISSUE, Range

WINDOW_RANGE = Range(SOFT_TISSUE.low, SOFT_TISSUE.high)
"""Images are clipped to the soft-tissue window before they are encoded: fixed, so that a dose keeps its meaning."""

# ---------------------------------------------------------------- the autoencoder


def window_model(images_hu: Tensor) -> Tensor:
    """HU -> model units, clipped to the window."""
    return WINDOW_RANGE.to_model(images_hu).clamp(-1.0, 1.0)


def autoencoder_updates(context: Context):
    """The noise-free image from the noisy one (MAN's Eq. 3), and the likelihood of the noise's bands."""
    options = context.stage.options
    total, distance = AutoencoderLoss(kl=Ramp(options["kl"]), mse=0.5, l1=1.0), perceptual(options["perceptual_side"])

    def loss(model, batch: dict[str, Tensor], generator, step: int) -> dict[str, Tensor]:
        x, clean = window_model(batch["image_hu"]), window_model(batch["clean_hu"])
        posterior = model.encode(x)
        z = posterior.sample(generator)
        x_hat = model.decode(z)
        terms = total(x_hat, clean, posterior, step)
        terms["perceptual"] = distance(0.5 + 0.5 * x_hat, 0.5 + 0.5 * clean, generator)
        terms["noise"] = noise_likelihood(model.noise_sd(z), model.bands(x - clean), model.factor)
        return terms | {"loss": terms["loss"] + sum(options[name] * terms[name] for name in ("perceptual", "noise"))}

    return loss


@torch.no_grad()
def latent_scale(model, recipe: Recipe, dataset) -> dict[str, Any]:
    """The factor that gives posterior samples of 64 training images unit variance."""
    generator, samples = torch.Generator().manual_seed(0), []
    for first in range(0, 64, 8):
        x = torch.stack([dataset[n]["image_hu"] for n in range(first, first + 8)])
        posterior = model.encode(window_model(x).to(next(model.parameters()).device))
        samples.append(posterior.sample(generator).cpu())
    return {"latent_scale": model.fit_latent_scale(torch.cat(samples))}


SMALL_AUTOENCODER = Network(
    "noise_autoencoder",
    dict(width=32, channel_mult=[1, 2, 3], latent_channels=4, blocks=1, attention_at=[4])
    | dict(stem=2, shortcut=True, norm_groups=8),
)
"""f = 8 with 4 channels: 1/16 of the image's numbers."""


def autoencoder_recipe(profile: str) -> Recipe:
    """Anatomy first, then the noise's bands count as much, then the rate falls."""
    train: dict[str, Any] = dict(betas=(0.9, 0.99), clip_norm=1.0, lr=1e-3, checkpoint_every=250, precision="auto")
    data: dict[str, Any] = dict(photograph_share=0.2, patch=128)
    options: dict[str, Any] = dict(kl=5e-3, perceptual=0.02, perceptual_side=64)
    if profile == "workshop":
        steps, train = (20, 5, 5), train | dict(batch_size=4, log_every=5)
        data |= dict(n_slices=8, n_photographs=4)
    elif profile == "train":
        steps, train = (750, 500, 750), train | dict(batch_size=8, log_every=50)
    else:
        steps, train = (50_000, 30_000, 50_000), train | dict(batch_size=8, log_every=100)
    rates: list[dict[str, Any]] = [
        dict(warmup_steps=min(100, steps[0] // 4), schedule="constant"),
        dict(schedule="constant"),
        {},
    ]
    stages = tuple(
        Stage(
            name,
            TrainConfig(steps=n, seed=41 + i, **train | rate),
            SixDoseConfig(seed=401 + 1000 * i, **data),
            options | dict(noise=weight),
        )
        for i, (name, n, rate, weight) in enumerate(
            zip(("stable", "noise", "decay"), steps, rates, (0.02, 0.3, 0.3), strict=True)
        )
    )
    return Recipe(
        {"autoencoder": SMALL_AUTOENCODER},
        stages,
        autoencoder_updates,
        hu_range=WINDOW_RANGE,
        finish=latent_scale,
        paper="NA-Diff, section 4.1; Rombach et al. 2022",
        budget_mib=4.0,
    )


NA_AUTOENCODER = {profile: autoencoder_recipe(profile) for profile in PROFILES}

# ---------------------------------------------------------------- the diffusion transformers (Table 1)

PROCESS: dict[str, Any] = dict(schedule="cosine", T=1000, prediction="v", min_snr=5.0)
NATURAL_SOURCES, CT_SOURCES = ("noise_map",), ("noise", "anatomy", "anatomy_map")
MASK_SOURCES = ("anatomy_one_hot",)


def encode(context: Context, folder: Path) -> EncodedImages:
    """The stage's first ``n_images`` samples on the pipeline's grid, with all conditions that any model of it takes."""
    pipeline, stage, spec = synthesis_pipeline(context), context.stage, context.recipe.pipeline
    clip = None if pipeline.clip is None else context.needed[spec.clip].sha256
    sources = NATURAL_SOURCES if isinstance(stage.data, EmulationConfig) else CT_SOURCES if clip else MASK_SOURCES
    identity = dict(data=asdict(stage.data), sources=list(sources), clip=clip)
    grid = dict(range=asdict(pipeline.hu_range), cell=spec.cell)
    identity |= dict(autoencoder=context.needed[spec.autoencoder].sha256) if spec.autoencoder else grid
    count = min(stage.options["n_images"], stage.train.steps * stage.train.batch_size)

    def encoded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out = pipeline.encode_images(batch["image_hu"])
        out |= pipeline.encode_conditions(noise_map_hu=batch["noise_map_hu"], mask=batch.get("mask"), sources=sources)
        return {name: (t if t.dtype == torch.uint8 else t.half()).cpu() for name, t in out.items()}

    tensors = encoded_once(context.samples, count, encoded, identity=identity, folder=folder)
    return EncodedImages(tensors, stage.train.seed)


def synthesis_pipeline(context: Context) -> SynthesisPipeline:
    recipe = context.recipe
    kind = SynthesisPipeline if recipe.pipeline.autoencoder else PixelSynthesis
    return kind(context.network, recipe.pipeline, context.needed, hu_range=recipe.hu_range, device=context.device)


def synthesis_updates(context: Context):
    """The process's loss on encoded images; condition vectors are first given mean 0 and deviation 1."""
    pipeline, drop = synthesis_pipeline(context), context.stage.options["drop"]
    vectors = [context.samples.tensors[name].float() for name in context.recipe.pipeline.conditions.get("vector", ())]
    if vectors:
        context.network.standardise(torch.stack(vectors, dim=1))

    def loss(model, batch: dict[str, Tensor], generator, step: int) -> Tensor:
        return pipeline.loss(model, batch, generator, drop=drop)

    return loss


SMALL_DIT: dict[str, Any] = dict(input_size=32, patch_size=4, in_channels=4, hidden_size=128, depth=6, num_heads=4)
CLIP_DIM = 128
VARIANTS: dict[str, tuple[str | None, dict[str, list[str]], dict[str, Any]]] = {
    "na_natural": (None, {"hint": ["noise_map"]}, dict(hint_channels=4, hint_mode="modulate")),
    "na_diff_a": (None, {"vector": ["noise"]}, {}),
    "na_diff_b": ("na_natural", {"vector": ["noise"]}, {}),
    "na_diff_c": ("na_diff_a", {"vector": ["anatomy"]}, {}),
    "na_diff_d": ("na_diff_b", {"vector": ["anatomy"]}, {}),
    "na_diff_e": (None, {"vector": ["noise", "anatomy"]}, {}),
    "na_diff_f": ("na_natural", {"vector": ["noise", "anatomy"]}, {}),
    "na_diff_f_sum": ("na_natural", {"vector": ["noise", "anatomy"]}, dict(fuse="sum")),
    "na_diff_spatial": ("na_natural", {"vector": ["noise"], "hint": ["anatomy_map"]}, dict(hint_channels=len(CLASSES))),
}
"""Name -> what it starts from, its conditions, and what its network has for them."""

REINITIALISED = ("vector_", "hint_")
"""What pre-training on photographs does not hand on: its condition is made of tokens, fine-tuning's of CLIP vectors."""


def variant(name: str, profile: str) -> Recipe:
    start, conditions, extra = VARIANTS[name]
    vectors = conditions.get("vector", ())
    config = SMALL_DIT | (dict(vectors=len(vectors), vector_dim=CLIP_DIM) if vectors else {}) | extra
    natural = name == "na_natural"
    network = Network("dit", config, start, REINITIALISED if start == "na_natural" else ())
    spec = PipelineSpec(PROCESS, "na_autoencoder", conditions=conditions, clip=None if natural else "clip")
    steps, n_images, batch = (10, 8, 4) if profile == "workshop" else (STEPS[name], 6_144, 64)
    data: Any = EmulationConfig(seed=402) if natural else SixDoseConfig(seed=403, n_slices=64, refresh=64, in_turn=True)
    stage = Stage(
        "whole",
        TrainConfig(
            steps=steps,
            batch_size=batch,
            lr=1e-3,
            lr_end=1e-5,
            warmup_steps=steps // 20,
            betas=(0.9, 0.99),
            seed=43,
            precision="auto",
            channels_last=False,
            log_every=100 if profile == "train" else 5,
            checkpoint_every=500,
        ),
        data,
        dict(n_images=n_images, drop=0.1),
    )
    how: dict[str, Any] = dict(hu_range=WINDOW_RANGE, output="full dose", pipeline=spec, prepare=encode)
    return Recipe({"dit": network}, (stage,), synthesis_updates, **how, paper="NA-Diff, Table 1", budget_mib=5.0)


STEPS = dict(na_natural=1_500, na_diff_a=4_000, na_diff_b=4_000, na_diff_c=4_000, na_diff_d=4_000)
STEPS |= dict(na_diff_e=6_000, na_diff_f=6_000, na_diff_f_sum=6_000, na_diff_spatial=6_000)
"""As the paper's epochs: 25 on photographs, 100 with noise, 100 with anatomy, 150 with both."""

RECIPES = {name: {profile: variant(name, profile) for profile in PROFILES} for name in VARIANTS}
