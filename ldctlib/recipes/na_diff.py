"""NA-Diff: the autoencoder whose latents are diffused, and the variants A to F (Table 1).

The paper's latents are those of Stable Diffusion's autoencoder, f = 8 with 4 channels, of images in a soft-tissue
window. ``na_autoencoder`` is this project's own of that shape.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ldctlib.data.anatomy_masks import CLASSES
from ldctlib.data.emulated import EmulationConfig
from ldctlib.data.encoded import EncodedImages, encoded_once
from ldctlib.data.labelled import LabelledScans
from ldctlib.data.six_dose import SixDoseConfig, SixDoseSlices
from ldctlib.errors import ParameterError
from ldctlib.losses import AutoencoderLoss, Ramp
from ldctlib.models.dit import published_size
from ldctlib.models.noise_autoencoder import noise_likelihood
from ldctlib.pipelines import PipelineSpec
from ldctlib.pipelines.pipeline import PUBLISHED
from ldctlib.pipelines.published_clip import published_clip
from ldctlib.pipelines.published_vae import SD_VAE, published_vae
from ldctlib.pipelines.segmentation import segment
from ldctlib.pipelines.synthesis import WINDOW_RANGE, PixelSynthesis, SynthesisPipeline
from ldctlib.profiles import PROFILES
from ldctlib.recipes.leda import perceptual
from ldctlib.recipes.man import posterior_samples
from ldctlib.recipes.recipe import Context, Network, Recipe, Stage
from ldctlib.training import TrainConfig

# ---------------------------------------------------------------- the autoencoder


def window_model(images_hu: Tensor) -> Tensor:
    """HU -> model units, clipped to the window."""
    return WINDOW_RANGE.to_model(images_hu).clamp(-1.0, 1.0)


def autoencoder_updates(context: Context):
    """The noise-free image from the noisy one (MAN's Eq. 3), and the likelihood of the noise's bands.

    Latents averaged over 2 x 2 are to decode to the image averaged so (Skorokhodov et al. 2025, scale equivariance):
    what is coarse in the image is then coarse in the latents, and a short diffusion training finds it.
    """
    if not isinstance(context.samples, SixDoseSlices):
        raise ParameterError("this autoencoder learns the image without its noise, which phantoms alone have: no data")
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
        if options["coarse"]:
            terms["coarse"] = F.l1_loss(model.decode(F.avg_pool2d(z, 2)).float(), F.avg_pool2d(clean, 2))
        weighted = sum(options[name] * terms[name] for name in ("perceptual", "noise", "coarse") if name in terms)
        return terms | {"loss": terms["loss"] + weighted}

    return loss


def latent_unit(model, recipe: Recipe, samples: Dataset) -> dict[str, Any]:
    """Mean and deviation of each channel of training slices' latents."""
    if isinstance(samples, SixDoseSlices):
        samples = SixDoseSlices(replace(samples.config, photograph_share=0.0))
    return model.fit_latents(posterior_samples(model, recipe, samples, "image_hu"))


SMALL_AUTOENCODER = Network(
    "noise_autoencoder",
    dict(width=32, channel_mult=[1, 2, 3], latent_channels=4, blocks=1, attention_at=[4])
    | dict(stem=2, shortcut=True, norm_groups=8),
)
"""f = 8 with 4 channels: 1/16 of the image's numbers."""


def autoencoder_recipe(profile: str) -> Recipe:
    """Anatomy first, then the noise's bands count as much, then the rate falls. Then come whole slices: their air is
    seen by group norms and attention. Last, latents learn to be coarse where the image is."""
    train: dict[str, Any] = dict(betas=(0.9, 0.99), clip_norm=1.0, checkpoint_every=250, precision="auto")
    data: dict[str, Any] = dict(photograph_share=0.2, patch=128)
    options: dict[str, Any] = dict(kl=5e-3, perceptual=0.02, perceptual_side=64, coarse=0.0)
    if profile == "workshop":
        steps, batch, train = (20, 5, 5, 2, 2), 4, train | dict(log_every=5)
        data |= dict(n_slices=8, n_photographs=4)
    elif profile == "train":
        steps, batch, train = (750, 500, 750, 400, 600), 8, train | dict(log_every=50)
    else:
        steps, batch, train = (50_000, 30_000, 50_000, 20_000, 20_000), 8, train | dict(log_every=100)
    constant: dict[str, Any] = dict(schedule="constant", lr=1e-3, batch_size=batch)
    slices = dict(lr=5e-4, batch_size=max(1, batch // 4)), dict(patch=256, n_slices=data.get("n_slices", 128))
    plans: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, float]]] = [
        ("stable", constant | dict(warmup_steps=min(100, steps[0] // 4)), {}, dict(noise=0.02)),
        ("noise", constant, {}, dict(noise=0.3)),
        ("decay", dict(lr=1e-3, batch_size=batch), {}, dict(noise=0.3)),
        ("whole", *slices, dict(noise=1.0)),
        ("coarse", *slices, dict(noise=1.0, coarse=1.0, kl=1e-2)),
    ]
    stages = tuple(
        Stage(
            name,
            TrainConfig(steps=steps[i], seed=41 + i, **train | rate),
            SixDoseConfig(seed=401 + 1000 * i, **data | other),
            options | weights,
        )
        for i, (name, rate, other, weights) in enumerate(plans)
    )
    return Recipe(
        {"autoencoder": SMALL_AUTOENCODER},
        stages,
        autoencoder_updates,
        hu_range=WINDOW_RANGE,
        finish=latent_unit,
        paper="NA-Diff, section 4.1; Rombach et al. 2022",
        budget_mib=4.0,
    )


NA_AUTOENCODER = {profile: autoencoder_recipe(profile) for profile in PROFILES}

# ---------------------------------------------------------------- the diffusion transformers (Table 1)

PROCESS: dict[str, Any] = dict(schedule="cosine", T=1000, prediction="x0")
"""A token has 64 numbers and the small network 128: it need not carry noise through where it predicts the image (Li &
He 2025). All times weigh alike."""
PAPER_PROCESS: dict[str, Any] = dict(schedule="linear", T=1000, prediction="eps")
"""DiT's; the paper's loss is on eps (section 3.1)."""
VIT_L = "openai/clip-vit-large-patch14"
NATURAL_SOURCES, CT_SOURCES = ("noise_map",), ("noise", "anatomy", "anatomy_map")
MASK_SOURCES = ("anatomy_one_hot",)


def encode(context: Context, folder: Path) -> EncodedImages:
    """The stage's first ``n_images`` samples on the pipeline's grid, with all conditions that any model of it takes.

    Masks that the samples lack are found by the shipped segmenter. Labelled scans have no noise map: ParameterError for
    a model that is conditioned on one.
    """
    stage, spec = context.stage, context.recipe.pipeline
    natural = isinstance(stage.data, EmulationConfig)
    sources = NATURAL_SOURCES if natural else CT_SOURCES if spec.clip else MASK_SOURCES
    if isinstance(context.samples, LabelledScans):
        sources = tuple(name for name in sources if not name.startswith("noise"))
        if any(name.startswith("noise") for names in spec.conditions.values() for name in names):
            others = "train it on pairs of doses or on phantoms, or a model of the mask alone, such as na_diff_d"
            raise ParameterError(f"this recipe's condition is a noise map, which labelled scans do not have: {others}")
    pipeline = synthesis_pipeline(context)
    encoders = [
        name if name is None or name.startswith(PUBLISHED) else context.needed[name].sha256
        for name in (spec.autoencoder, spec.clip)
    ]
    identity = dict(data=asdict(stage.data), sources=list(sources), encoders=encoders, samples=str(context.described))
    if spec.autoencoder is None:
        identity |= dict(range=asdict(pipeline.hu_range), cell=spec.cell)

    def encoded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out, mask = pipeline.encode_images(batch["image_hu"]), batch.get("mask")
        if mask is None and not natural:
            mask = segment(batch["image_hu"])
        out |= pipeline.encode_conditions(noise_map_hu=batch.get("noise_map_hu"), mask=mask, sources=sources)
        return {name: (t if t.dtype == torch.uint8 else t.half()).cpu() for name, t in out.items()}

    count = min(stage.options["n_images"], stage.train.steps * stage.train.batch_size)  # all that it looks at
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
SMALL_DIT |= dict(conv_channels=32)
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
    """One of :data:`VARIANTS`; at the paper's profile on the latents and vectors of published models."""
    start, conditions, extra = VARIANTS[name]
    natural, paper, vectors = name == "na_natural", profile == "paper", conditions.get("vector", ())
    config = (published_size("DiT-L/4") | dict(input_size=32, in_channels=4)) if paper else SMALL_DIT
    config = config | (dict(vectors=len(vectors), vector_dim=768 if paper else CLIP_DIM) if vectors else {}) | extra
    network = Network("dit", config, start, REINITIALISED if start == "na_natural" else ())
    options: dict[str, Any] = dict(n_images=8_192, drop=0.1)
    train: dict[str, Any] = dict(seed=43, precision="auto", channels_last=False)
    data: Any = EmulationConfig(seed=402)
    if not natural:
        data = SixDoseConfig(seed=403, n_slices=64, refresh=128, in_turn=True)
    spec = PipelineSpec(PROCESS, "na_autoencoder", conditions=conditions, clip=None if natural else "clip")
    epochs = None
    if profile == "workshop":
        options |= dict(n_images=8)
        train |= dict(steps=10, batch_size=4, lr=1e-3, log_every=5)
        small: dict[str, Any] = dict(n_photographs=4) if natural else dict(n_slices=4, refresh=8)
        data = replace(data, size=128, **small)
    elif profile == "train":
        train |= dict(kind="muon", steps=STEPS[name], batch_size=16, lr=6e-3, lr_end=1e-5, warmup_steps=200)
        train |= dict(betas=(0.9, 0.99), log_every=100, checkpoint_every=500)
        if len(vectors) > 1:
            train |= dict(slow="vector_")  # at AdamW's full rate one MLP on another dies within a thousand steps
    else:
        options |= dict(n_images=20_000 if natural else 13_314, vae=SD_VAE, clip=VIT_L, photographs=None)
        train |= dict(steps=100_000, batch_size=32, lr=1e-4, ema_decay=0.9999, schedule="constant", log_every=100)
        epochs = 25 if natural else 150 if name in ("na_diff_e", "na_diff_f", "na_diff_f_sum") else 100
        train |= dict(steps=epochs * options["n_images"] // 32)
        spec = replace(spec, process=PAPER_PROCESS)
    stage = Stage("whole", TrainConfig(**train), data, options)
    how: dict[str, Any] = dict(hu_range=WINDOW_RANGE, output="full dose", prepare=encode)
    made = Recipe({"dit": network}, (stage,), synthesis_updates, pipeline=spec, paper="NA-Diff, Table 1", **how)
    return fit_published(replace(made, fit=fit_published)) if paper else replace(made, budget_mib=5.0)


def fit_published(recipe: Recipe) -> Recipe:
    """The recipe on the published models, and with the photographs, that its options name: ``vae``, ``clip``,
    ``photographs`` (a folder). Other models than the paper's are asked for their sizes."""
    (stage,), spec, config = recipe.stages, recipe.pipeline, recipe.saved.config
    vae, clip, photographs = (stage.options[name] for name in ("vae", "clip", "photographs"))
    spec = replace(spec, autoencoder=PUBLISHED + vae)
    if vae != SD_VAE:
        config = config | dict(in_channels=published_vae(vae).latent_channels)
        config |= dict(hint_channels=config["in_channels"]) if recipe.saved.config.get("hint_mode") else {}
    if spec.clip is not None:
        spec = replace(spec, clip=PUBLISHED + clip)
        if clip != VIT_L:
            config = config | dict(vector_dim=published_clip(clip).model.config.projection_dim)
    if isinstance(stage.data, EmulationConfig) and photographs is not None:
        stage = replace(stage, data=replace(stage.data, folder=photographs))
    networks = {"dit": replace(recipe.saved, config=config)}
    return replace(recipe, stages=(stage,), pipeline=spec, networks=networks)


STEPS = dict.fromkeys(VARIANTS, 6_000) | dict(na_natural=1_500, na_diff_spatial=8_000)
"""Of a stage; C and D take two, as in the paper."""

RECIPES = {name: {profile: variant(name, profile) for profile in PROFILES} for name in VARIANTS}
