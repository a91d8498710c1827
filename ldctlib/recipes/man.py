"""MAN: two autoencoders, and a latent U-Net for each.

Full-dose scans alone are needed (``--data`` a folder of them, or the phantoms): the condition is made from the same
image with simulated noise. With real pairs in the folder it is made from the low-dose scan. It is two codes, of the
low-dose image and of a first estimate by ``nafnet`` (the one in ``--out``, else the shipped one; that one is trained
towards noise-free images, so train it on the same folder first). A latent model goes with the very networks that it was
trained on, which its checkpoint names by their hash.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ldctlib.data.patches import PatchConfig
from ldctlib.losses import AutoencoderLoss, EncoderFeatures, Ramp, vgg16_features
from ldctlib.pipelines import PipelineSpec
from ldctlib.profiles import PROFILES
from ldctlib.recipes.diffusion import RESIDUAL_TO_INPUT, updates
from ldctlib.recipes.recipe import PAPER_DATA, PAPER_TRAIN, SMALL_BANKS, Context, Network, Recipe, Stage
from ldctlib.recipes.regression import MORE_SCANS
from ldctlib.training import TrainConfig

# ---------------------------------------------------------------- autoencoders (section 2.1)


def autoencoder_updates(context: Context):
    """MAN's Eq. 3: the batch's full-dose images and back, noise and all.

    ``stage.options`` says how: ``kl`` and ``perceptual`` are final weights, ``ramp`` the shares of the stage's steps
    between which both rise from 0, or None for weights that are fixed from the start. The perceptual distance is seen
    in the first ``perceptual_images`` of a batch, all of them if it is not given: VGG-16 costs far more than the rest.
    """
    options, hu_range, steps = context.stage.options, context.recipe.hu_range, context.stage.train.steps

    def weight(final: float) -> Ramp:
        return Ramp(final, *(share * steps for share in options["ramp"] or ()))

    features = None
    if options.get("features") == "vgg16":
        low, high = (hu_range.to_model(edge) for edge in PERCEPTUAL_WINDOW)
        features = vgg16_features(allow_download=True, low=low, high=high)
    elif options.get("features"):
        features = EncoderFeatures(context.frozen(options["features"]))
    total = AutoencoderLoss(
        kl=weight(options["kl"]),
        perceptual=weight(options.get("perceptual", 0.0)),
        features=features,
        perceptual_images=options.get("perceptual_images"),
    )

    def loss(model: nn.Module, batch: dict[str, Tensor], generator, step: int) -> dict[str, Tensor]:
        x = hu_range.to_model(batch["full_dose_hu"])
        x_hat, posterior = model(x, generator=generator)
        return total(x_hat, x, posterior, step)

    return loss


@torch.no_grad()
def posterior_samples(model: nn.Module, recipe: Recipe, dataset: Dataset, image: str) -> Tensor:
    """Raw latents of 64 training images, whose name is ``image``."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    samples = []
    for first in range(0, 64, 4):  # a few at a time: 64 whole slices would fill any memory
        x = torch.stack([dataset[n][image] for n in range(first, first + 4)]).to(device)
        samples.append(model.encode(recipe.hu_range.to_model(x)).sample(generator).cpu())
    return torch.cat(samples)


def latent_scale(model: nn.Module, recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """The factor that gives posterior samples of training images unit variance."""
    return {"latent_scale": model.fit_latent_scale(posterior_samples(model, recipe, dataset, "full_dose_hu"))}


FULL_DOSE_NOISE_SD_HU = (2.0, 35.0)
"""Noise of the full-dose images that the autoencoders see, up to that of thin or sharp real ones."""

LATENT_CHANNELS = 32
"""At f = 8 half of the image's numbers: with 16, the finest structures of sharp kernels are lost."""
AUTOENCODER_CONFIG: dict[str, Any] = dict(width=32, channel_mult=[1, 2, 2], latent_channels=LATENT_CHANNELS, blocks=1)
AUTOENCODER_CONFIG |= dict(attention_at=[4], stem=2, shortcut=True, lapped=True, norm_groups=8)
AUTOENCODER = Network("autoencoder", AUTOENCODER_CONFIG)
PAPER_AUTOENCODER = Network(
    "autoencoder", dict(width=128, channel_mult=[1, 2, 4, 4], latent_channels=4, blocks=2, attention_at=[8])
)
SIMPLE: dict[str, Any] = dict(kl=1e-6, ramp=None)
"""The ablation's plain autoencoder: pixels and a fixed KL weight."""
PERCEPTUAL: dict[str, Any] = dict(kl=1e-6, perceptual=0.005, features="vgg16", ramp=(0.0, 0.5))
"""MAN's P-AE (section 3.2): from 0 to the final weights over the first half of the epochs. The perceptual distance then
pulls about as hard as the pixels do."""
OFFLINE: dict[str, Any] = PERCEPTUAL | dict(perceptual=0.02, features="autoencoder_simple")
"""In a workshop the stand-in, which needs no download of half a gigabyte."""
PERCEPTUAL_WINDOW = (-360.0, 440.0)
"""HU that VGG-16 sees as black and white: in a window of 2000 HU tissues would hardly differ."""


def autoencoder_recipe(profile: str, *, perceptual: bool) -> Recipe:
    """Pixels alone first, the same for both; then fixed weights, or the ramps of the perceptual autoencoder."""
    data: dict[str, Any] = dict(full_dose_noise_sd_hu=FULL_DOSE_NOISE_SD_HU, photograph_share=0.2)
    train: dict[str, Any] = dict(betas=(0.9, 0.99), precision="auto", clip_norm=1.0, seed=1, checkpoint_every=500)
    last, second, needs = (PERCEPTUAL, "ramp", ()) if perceptual else (SIMPLE, "decay", ())
    common: dict[str, Any] = dict(updates=autoencoder_updates, finish=latent_scale, paper="MAN, sections 2.1 and 3.2")
    if profile == "paper":  # Adam at 1e-4 and its own betas, batches of 16 by accumulation, 600 epochs
        stage = Stage(
            "ramp" if perceptual else "pixels",
            TrainConfig(steps=100_000, lr=1e-4, seed=1, **PAPER_TRAIN),
            PatchConfig(seed=101, **data | PAPER_DATA),
            last,
            epochs=600,
        )
        return Recipe({"autoencoder": PAPER_AUTOENCODER}, (stage,), **common)
    if profile == "workshop":
        steps, train, data = (40, 40), train | dict(batch_size=4, log_every=10), data | SMALL_BANKS | dict(patch=64)
        if perceptual:
            last, needs = OFFLINE, ("autoencoder_simple",)
    else:
        last = last | dict(perceptual_images=3) if perceptual else last
        data |= MORE_SCANS | dict(patch=128)
        steps, train = (2_000, 1_500), train | dict(batch_size=6, log_every=100)
    stages = (
        Stage(
            "pixels",
            TrainConfig(steps=steps[0], lr=1e-3, warmup_steps=min(100, steps[0] // 4), schedule="constant", **train),
            PatchConfig(seed=101, **data),
            SIMPLE | dict(kl=0.0),
        ),
        Stage(second, TrainConfig(steps=steps[1], lr=1e-3, **train), PatchConfig(seed=1101, **data), last, needs),
    )
    return Recipe({"autoencoder": AUTOENCODER}, stages, **common)


AUTOENCODER_SIMPLE = {profile: autoencoder_recipe(profile, perceptual=False) for profile in PROFILES}
AUTOENCODER_PERCEPTUAL = {profile: autoencoder_recipe(profile, perceptual=True) for profile in PROFILES}

# ---------------------------------------------------------------- latent diffusion (section 2.2)

RESIDUAL_TO_ESTIMATE: dict[str, Any] = RESIDUAL_TO_INPUT | dict(residual_std=0.12)
"""A first estimate's code is nearer: by 0.12 latents of unit variance differ over the phantoms and photographs."""

LATENT_UNET: dict[str, Any] = dict(in_channels=LATENT_CHANNELS, model_channels=24, channel_mult=[2, 2, 2, 2])
LATENT_UNET |= dict(num_res_blocks=1, attention_at=[4], num_head_channels=24, norm_groups=8)
PRIOR = Network("unet", LATENT_UNET)
"""The latent U-Net without conditions."""
WITH_CONTEXT = LATENT_UNET | dict(context_channels=LATENT_CHANNELS, context_dim=64)
CONDITIONED = Network("conditioned_unet", dict(unet=WITH_CONTEXT, gain=1 / RESIDUAL_TO_ESTIMATE["residual_std"]))
"""Conditioned on the codes of the low-dose image and of a first estimate: the code alone, made for clean images, has
lost what tells noise from anatomy."""
PAPER_FORM = Network("unet", WITH_CONTEXT | dict(attention_at=[1, 4]))
"""As printed: the code of the low-dose image by cross-attention alone, a token for each latent."""
PAPER_LATENTS: dict[str, Any] = dict(in_channels=4, context_channels=4, context_dim=512)
PAPER_UNET = Network(
    "unet",
    PAPER_LATENTS
    | dict(model_channels=192, channel_mult=[1, 2, 4], num_res_blocks=2)
    | dict(attention_at=[2, 4], num_head_channels=32),
)


def latent_recipe(profile: str, *, autoencoder: str, seed: int, form: str = "estimate") -> Recipe:
    """A latent U-Net on the codes of one autoencoder. At the end group norms and attention see wider patches.

    ``form`` is "estimate", conditioned on a first estimate too; "paper", as printed; or "prior", without conditions.
    At the paper profile the first two are the same. The paper's form, which starts from nothing, trains longer.

    Codes are made in float32: bf16 would round one of 1000 HU to 4 HU. So the training is in float32 as well.
    """
    if profile == "paper":  # Eq. 7 as printed: eps, the condition by cross-attention alone
        stage = Stage(
            "whole",
            TrainConfig(steps=100_000, lr=1e-4, seed=seed, **PAPER_TRAIN),
            PatchConfig(seed=200 + seed, **PAPER_DATA),
            epochs=600,
        )
        process = dict(schedule="cosine", T=1000, prediction="eps")
        pipeline = PipelineSpec(process, autoencoder=autoencoder, conditions={"context": ["ldct"]})
        return Recipe({"unet": PAPER_UNET}, (stage,), updates, pipeline=pipeline, paper="MAN, sections 2.2 and 3.2")
    train: dict[str, Any] = dict(betas=(0.9, 0.99), clip_norm=1.0, seed=seed, checkpoint_every=500)
    options = dict(noise_draws=4)
    if profile == "workshop":
        train, small = train | dict(batch_size=4, log_every=10), SMALL_BANKS | dict(patch=64, photograph_share=0.25)
        stages = (
            Stage(
                "stable",
                TrainConfig(steps=40, lr=1e-3, warmup_steps=10, schedule="constant", **train),
                PatchConfig(seed=200 + seed, **small),
                options,
            ),
            Stage("decay", TrainConfig(steps=40, lr=1e-3, **train), PatchConfig(seed=1200 + seed, **small), options),
        )
    else:
        train = train | dict(log_every=100)
        stages = (
            Stage(
                "stable",
                TrainConfig(
                    steps=7_500 if form == "paper" else 3_500,
                    batch_size=4,
                    lr=1e-3,
                    warmup_steps=200,
                    schedule="constant",
                    **train,
                ),
                PatchConfig(seed=200 + seed, patch=128, photograph_share=0.25, **MORE_SCANS),
                options,
            ),
            Stage(
                "decay",
                TrainConfig(steps=1_000, batch_size=2, lr=1e-3, **train),
                PatchConfig(seed=1200 + seed, patch=256, photograph_share=0.25, **MORE_SCANS),
                options,
            ),
        )
    process = dict(schedule="cosine", T=1000, prediction="v")
    network, pipeline = {
        "estimate": (
            CONDITIONED,
            PipelineSpec(RESIDUAL_TO_ESTIMATE, autoencoder, "nafnet", {"concat": ["ldct", "estimate"]}),
        ),
        "paper": (PAPER_FORM, PipelineSpec(process, autoencoder, conditions={"context": ["ldct"]})),
        "prior": (PRIOR, PipelineSpec(process, autoencoder)),
    }[form]
    return Recipe({"unet": network}, stages, updates, pipeline=pipeline, paper="MAN, section 2.2")


MAN = {p: latent_recipe(p, autoencoder="autoencoder_perceptual", seed=3) for p in PROFILES}
MAN_SIMPLE = {p: latent_recipe(p, autoencoder="autoencoder_simple", seed=3) for p in PROFILES}
"""The same on the simple autoencoder: the ablation's other half (Table 2)."""
MAN_PAPER = {p: latent_recipe(p, autoencoder="autoencoder_perceptual", seed=3, form="paper") for p in PROFILES}
"""The paper's form: no first estimate, the condition by cross-attention alone."""
MAN_START = {p: latent_recipe(p, autoencoder="autoencoder_perceptual", seed=4, form="prior") for p in PROFILES}
"""The prior alone, for MAN's third mode: no condition, sampling starts from the noised code."""
