"""NA-Diff: the autoencoder whose latents are diffused, and the variants A to F (Table 1).

The paper's latents are those of Stable Diffusion's autoencoder, f = 8 with 4 channels, of images in a soft-tissue
window. ``na_autoencoder`` is this project's own of that shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldctlib.data.six_dose import SixDoseConfig
from ldctlib.losses import AutoencoderLoss, Ramp
from ldctlib.models.noise_autoencoder import noise_likelihood
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
    train: dict[str, Any] = dict(betas=(0.9, 0.99), clip_norm=1.0, lr=1e-3, checkpoint_every=250, precision="auto")
    data: dict[str, Any] = dict(photograph_share=0.2)
    options: dict[str, Any] = dict(kl=5e-3, perceptual=0.02, noise=0.02, perceptual_side=64)
    if profile == "workshop":
        steps, size = (20, 10), dict(batch_size=4, log_every=5)
        data |= dict(n_slices=8, n_photographs=4)
    else:
        steps, size = (1_000, 700) if profile == "train" else (100_000, 50_000), dict(batch_size=8, log_every=50)
    stages = (
        Stage(
            "stable",
            TrainConfig(steps=steps[0], warmup_steps=steps[0] // 10, schedule="constant", seed=41, **train | size),
            SixDoseConfig(seed=401, patch=128, **data),
            options,
        ),
        Stage(
            "decay",
            TrainConfig(steps=steps[1], seed=42, **train | size),
            SixDoseConfig(seed=1401, patch=128, **data),
            options,
        ),
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
