"""MAN and what it is compared with: two autoencoders, a latent U-Net for each, and a pixel-space DDPM.

Full-dose scans alone are needed (``--data`` a folder of them, or the phantoms): the condition is made from the same
image with simulated noise. With real pairs in the folder it is made from the low-dose scan. It is two codes, of the
low-dose image and of a first estimate by ``nafnet`` (the one in ``--out``, else the shipped one; that one is trained
towards noise-free images, so train it on the same folder first). A latent model goes with the very networks that it was
trained on: whoever trains one of those again trains it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldctlib import checkpoints
from ldctlib.checkpoints import Checkpoint
from ldctlib.data.patches import PatchConfig
from ldctlib.diffusion import objective, schedule
from ldctlib.errors import CheckpointError
from ldctlib.losses import AutoencoderLoss, EncoderFeatures, Ramp, vgg16_features
from ldctlib.models.conditioned_unet import conditions
from ldctlib.recipes.recipe import SMALL_BANKS, LossFunction, Recipe, Stage
from ldctlib.training import TrainConfig
from ldctlib.units import Range

FULL_DOSE_SD_HU = (2.0, 20.0)
"""Noise of the full-dose images that the shipped autoencoders see. They are asked for the noise-free image, because a
latent of few numbers is better spent on anatomy. On scans, where nobody knows it, the target is the image itself, as
in the paper."""

DDPM_RANGE = Range(-360.0, 440.0)
"""Soft tissue fills the model's [-1, 1], so that the noise schedule's middle is where tissues differ."""

SHIPPED_AUTOENCODER: dict[str, Any] = dict(
    width=32,
    channel_mult=[1, 2, 2],
    latent_channels=24,
    blocks=1,
    attention_at=[4],
    stem=2,
    shortcut=True,
    norm_groups=8,
)
"""f = 8 with 24 channels, 3/8 of the image's numbers: with 16, the finest structures of sharp kernels are lost."""

NEAR_THE_CONDITION: dict[str, Any] = dict(name="cosine", T=1000, prediction="v", centred=True, spread=0.15)
"""v instead of Eq. 7's eps: at t = T of the cosine schedule x0 from eps is a division by nearly zero. The condition is
known and lies within about ``spread`` of x0: so the network is asked for the difference (objective.centred), in units
in which that is about 1. Without a weight by SNR: it would take away the times at which the condition is all there is.
"""

NEAR_THE_ESTIMATE: dict[str, Any] = NEAR_THE_CONDITION | dict(spread=0.1)
"""A first estimate's code is nearer: by 0.1 latents of unit variance differ over the phantoms and photographs."""

ESTIMATOR = "nafnet"
"""The regression network whose output's code the latent diffusion is told, and starts from."""

SHIPPED_PRIOR_UNET: dict[str, Any] = dict(
    in_channels=24,
    model_channels=32,
    channel_mult=[2, 2, 2, 2],
    num_res_blocks=1,
    attention_at=[4],
    num_head_channels=32,
    norm_groups=8,
)
"""The latent U-Net told nothing."""

SHIPPED_LATENT_UNET: dict[str, Any] = dict(
    unet=SHIPPED_PRIOR_UNET | dict(context_channels=24, context_dim=64), gain=1 / NEAR_THE_ESTIMATE["spread"]
)
"""Told the code of the low-dose image and that of a first estimate: the code alone, made for clean images, has lost
what tells noise from anatomy."""

SHIPPED_PIXEL_UNET: dict[str, Any] = dict(
    in_channels=1,
    model_channels=32,
    channel_mult=[1, 2, 2, 1],
    num_res_blocks=1,
    attention_at=[],
    num_head_channels=32,
    concat_channels=1,
    norm_groups=8,
)
"""Base width and depth of the latent U-Net; no attention but the middle's, which 512 x 512 pixels can bear."""

PAPER_AUTOENCODER: dict[str, Any] = dict(
    width=128, channel_mult=[1, 2, 4, 4], latent_channels=4, blocks=2, attention_at=[8]
)
PAPER_LATENT_UNET: dict[str, Any] = dict(
    in_channels=4,
    model_channels=192,
    channel_mult=[1, 2, 4],
    num_res_blocks=2,
    attention_at=[2, 4],
    num_head_channels=32,
    context_channels=4,
    context_dim=512,
)
PAPER_PIXEL_UNET: dict[str, Any] = dict(
    in_channels=1,
    model_channels=128,
    channel_mult=[1, 1, 2, 2, 4, 4],
    num_res_blocks=2,
    attention_at=[32],
    concat_channels=1,
)
PAPER_EPOCHS = 600

# ---------------------------------------------------------------- autoencoders


def autoencoder_loss(r: Recipe, stage: Stage, needed: Mapping[str, Checkpoint]) -> LossFunction:
    """MAN's Eq. 3 from the batch's full-dose images to the same without noise.

    ``stage.objective`` says how: ``kl`` and ``perceptual`` are final weights, ``ramp`` the shares of the stage's steps
    between which both rise from 0, or None for weights that are fixed from the start.
    """
    o, steps = stage.objective, stage.train.steps

    def weight(final: float) -> Ramp:
        return Ramp(final) if o["ramp"] is None else Ramp(final, *(share * steps for share in o["ramp"]))

    features = _features(o, needed) if o.get("perceptual") else None
    total = AutoencoderLoss(kl=weight(o["kl"]), perceptual=weight(o.get("perceptual", 0.0)), features=features)

    def loss(
        model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator, step: int = 0
    ) -> dict[str, Tensor]:
        x, target = (r.range.to_model(batch[key]) for key in ("full_hu", "clean_hu"))
        x_hat, posterior = model(x, generator=generator)
        return total(x_hat, target, posterior, int(batch["n"][0]) // stage.train.batch_size)

    return loss


def _features(options: Mapping[str, Any], needed: Mapping[str, Checkpoint]) -> nn.Module:
    """VGG-16 where its weights are asked for, or the stand-in that needs no download."""
    if options["features"] == "vgg16":
        return vgg16_features(allow_download=options.get("allow_download", False))
    return EncoderFeatures(checkpoints.build(needed["autoencoder_simple"]))


@torch.no_grad()
def latent_scale(model: nn.Module, r: Recipe, dataset) -> dict[str, Any]:
    """The factor that gives posterior samples of 64 training images unit variance."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    samples = []
    for first in range(0, 64, 4):  # a few at a time: 64 whole slices would fill any memory
        x = torch.stack([dataset[n]["full_hu"] for n in range(first, first + 4)]).to(device)
        samples.append(model.encode(r.range.to_model(x)).sample(generator).cpu())
    return {"latent_scale": model.fit_latent_scale(torch.cat(samples))}


def _autoencoder(profile: str, *, kl: float, perceptual: float, seed: int) -> Recipe:
    small, paper = profile == "workshop", profile == "paper"
    common: dict[str, Any] = dict(
        precision="auto", betas=(0.9, 0.99), seed=seed, log_every=10 if small else 100, checkpoint_every=500
    )
    patches = PatchConfig(
        seed=100 + seed,
        patch=64 if small else 128,
        full_sd_hu=FULL_DOSE_SD_HU,
        photograph_share=0.2,
        **(SMALL_BANKS if small else {}),
    )
    notes = dict(target="the noise-free image of a full-dose one")
    fixed: dict[str, Any] = dict(kl=kl, ramp=None)
    # section 3.2: from 0 to the final weights over the first half of the epochs
    ramped: dict[str, Any] = dict(kl=kl, perceptual=perceptual, ramp=(0.0, 0.5), features="encoder")
    if paper:
        # Adam at 1e-4, batches of 16 by accumulation; Adam's own betas
        train = TrainConfig(
            steps=100_000,
            batch_size=16,
            accumulation=4,
            lr=1e-4,
            schedule="constant",
            **common | dict(betas=(0.9, 0.999), checkpoint_every=1000),
        )
        whole = replace(patches, patch=512, size=704, photograph_share=0.0)
        stage = Stage(
            "ramp" if perceptual else "pixels",
            train,
            whole,
            ramped | dict(features="vgg16", allow_download=True) if perceptual else fixed,
            epochs=PAPER_EPOCHS,
        )
        return Recipe(
            model="autoencoder",
            config=PAPER_AUTOENCODER,
            stages=(stage,),
            loss=autoencoder_loss,
            measure=latent_scale,
            notes=notes,
        )
    pixels, last = {"workshop": (40, 40), "train": (300, 700)}[profile]
    common |= dict(batch_size=4 if small else 6, clip_norm=1.0)
    first = Stage(
        "pixels",
        TrainConfig(steps=pixels, lr=1e-3, warmup_steps=min(100, pixels // 4), schedule="constant", **common),
        patches,
        dict(kl=0.0, ramp=None) if perceptual else fixed,
    )
    second = Stage(
        "ramp" if perceptual else "decay",
        TrainConfig(steps=last, lr=1e-3, **common),
        replace(patches, seed=1100 + seed),
        ramped if perceptual else fixed,
        needs=("autoencoder_simple",) if perceptual else (),
    )
    return Recipe(
        model="autoencoder",
        config=SHIPPED_AUTOENCODER,
        stages=(first, second),
        loss=autoencoder_loss,
        measure=latent_scale,
        notes=notes,
    )


def autoencoder_simple(profile: str) -> Recipe:
    """The ablation's plain autoencoder: pixels and a fixed KL weight."""
    return _autoencoder(profile, kl=1e-6, perceptual=0.0, seed=1)


def autoencoder_perceptual(profile: str) -> Recipe:
    """MAN's P-AE (section 2.1): pixels first, then KL and the perceptual distance ramped up."""
    return _autoencoder(profile, kl=1e-6, perceptual=0.02, seed=2)


# ---------------------------------------------------------------- diffusion


def latent_loss(r: Recipe, stage: Stage, needed: Mapping[str, Checkpoint]) -> LossFunction:
    """MAN's Eq. 7 on scaled posterior samples of the clean image, conditioned on codes of the low-dose image.

    Where a regression network is among ``needed``, the centre is the code of its output, else that of the low-dose
    image. ``stage.objective["draws"]`` times and noises are drawn for each image: to make its codes costs more than
    to take a step.
    """
    name, own = next((name, c) for name, c in needed.items() if c.model == "autoencoder")
    first = next((c for c in needed.values() if c is not own), None)
    channels = r.config.get("unet", r.config)["in_channels"]
    autoencoder, estimator = _frozen(own), None if first is None else _frozen(first)
    if autoencoder.latent_channels != channels:
        raise CheckpointError(
            f"{own.path}: its latents have {autoencoder.latent_channels} channels and this U-Net takes "
            f"{channels}: train {name} of the same profile into the same folder first"
        )
    draws = stage.objective.get("draws", 1)

    def estimate(ldct_hu: Tensor) -> Tensor:
        # In bf16, as it was trained, it takes half the time; codes change by 0.003, a thirtieth of NEAR_THE_ESTIMATE's
        # spread.
        with torch.autocast(ldct_hu.device.type, torch.bfloat16):
            return first.range.from_model(estimator(first.range.to_model(ldct_hu)).float())

    def posterior(x_hu: Tensor):
        return autoencoder.encode(own.range.to_model(x_hu))

    @torch.no_grad()
    def codes(batch: dict[str, Tensor], generator: torch.Generator) -> list[Tensor]:
        clean, low = batch["clean_hu"], batch["ldct_hu"]
        with torch.autocast(clean.device.type, enabled=False):  # bf16 would round a code of 1000 HU to 4 HU
            found = [posterior(clean).sample(generator), posterior(low).mean]
            found.append(posterior(estimate(low)).mean if estimator else found[1])
        # image by image, not draw by draw: times are an even grid along the batch, and each image's shall be far apart
        return [autoencoder.scale(z).repeat(draws, 1, 1, 1) for z in found]

    def bind(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator):
        for network in filter(None, (autoencoder, estimator)):
            network.to(batch["clean_hu"].device)
        z0, code, centre = codes(batch, generator)
        given = conditions(model, code, centre)
        return z0, centre, lambda z_t, t: model(z_t, t, **given)

    return _diffusion(r, bind)


def _frozen(c: Checkpoint) -> nn.Module:
    return checkpoints.build(c).requires_grad_(False).to(memory_format=torch.channels_last)


def pixel_loss(r: Recipe, stage: Stage, needed: Mapping[str, Checkpoint]) -> LossFunction:
    """DDPM's simple loss on images, the low-dose image concatenated."""

    def bind(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator):
        x0, low = (r.range.to_model(batch[key]) for key in ("clean_hu", "ldct_hu"))
        return x0, low, lambda x_t, t: model(x_t, t, concat=low)

    return _diffusion(r, bind)


def _diffusion(r: Recipe, bind: Callable) -> LossFunction:
    """The loss of ``bind(model, batch, generator) -> (x0, condition, network)`` by the recipe's schedule.

    x0 is taken in units of its ``spread``, the network centred on the condition if it says so.
    """
    described = r.schedule
    plan = schedule.named(described["name"], described["T"])
    spread, prediction = described.get("spread", 1.0), described["prediction"]

    def near(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator):
        x0, condition, network = bind(model, batch, generator)
        if described.get("centred"):
            network = objective.centred(network, plan, condition / spread, prediction)
        return x0 / spread, network

    return objective.loss_fn(plan, near, prediction=prediction)


def _diffusion_stages(
    profile: str,
    *,
    seed: int,
    steps: tuple[int, int],
    batch: int,
    patch: int,
    last: tuple[int, int] | None = None,
    precision: str = "auto",
    **others: Any,
) -> tuple[Stage, Stage]:
    small = profile == "workshop"
    common: dict[str, Any] = dict(
        precision=precision,
        betas=(0.9, 0.99),
        clip_norm=1.0,
        seed=seed,
        batch_size=4 if small else batch,
        log_every=10 if small else 100,
        checkpoint_every=500,
    )
    patches = PatchConfig(
        seed=200 + seed, patch=64 if small else patch, photograph_share=0.25, **(SMALL_BANKS if small else {})
    )
    stable, decay = (40, 40) if small else steps
    final, at_last = replace(patches, seed=1200 + seed), {}
    if last and not small:  # group norms and attention see at the end what whole slices are like
        at_last, final = dict(batch_size=last[0]), replace(final, patch=last[1])
    return (
        Stage(
            "stable",
            TrainConfig(steps=stable, lr=1e-3, warmup_steps=min(200, stable // 4), schedule="constant", **common),
            patches,
            **others,
        ),
        Stage("decay", TrainConfig(steps=decay, lr=1e-3, **common | at_last), final, **others),
    )


def _paper_stage(seed: int, *, lr: float, steps: int, **others: Any) -> Stage:
    patches = PatchConfig(seed=200 + seed, patch=512, size=704, photograph_share=0.0)
    return Stage(
        "whole",
        TrainConfig(
            steps=steps,
            batch_size=16,
            accumulation=4,
            lr=lr,
            schedule="constant",
            precision="auto",
            seed=seed,
            log_every=100,
        ),
        patches,
        **others,
    )


def _latent(profile: str, *, autoencoder: str, seed: int, conditioned: bool = True) -> Recipe:
    notes: dict[str, Any] = dict(
        target="code of the noise-free truth",
        keep=0.25,
        condition="simulated: the same image with simulated noise" if conditioned else "start: none, the prior alone",
    )
    if profile == "paper":
        # Eq. 7 as printed: eps, the condition by cross-attention alone
        return Recipe(
            model="unet",
            config=PAPER_LATENT_UNET,
            loss=latent_loss,
            notes=notes,
            schedule=dict(name="cosine", T=1000, prediction="eps"),
            stages=(_paper_stage(seed, lr=1e-4, steps=100_000, epochs=PAPER_EPOCHS, needs=(autoencoder,)),),
        )
    needs: tuple[str, ...] = (autoencoder,)
    own: dict[str, Any] = dict(
        model="unet", config=SHIPPED_PRIOR_UNET, schedule=dict(name="cosine", T=1000, prediction="v")
    )
    if conditioned:
        needs = (autoencoder, ESTIMATOR)
        own = dict(model="conditioned_unet", config=SHIPPED_LATENT_UNET, schedule=NEAR_THE_ESTIMATE)
    return Recipe(
        **own,
        loss=latent_loss,
        notes=notes,
        stages=_diffusion_stages(
            profile,
            seed=seed,
            steps=(7_500, 2_000),
            batch=4,
            patch=128,
            last=(2, 256),
            precision="float32",
            objective=dict(draws=4),
            needs=needs,
        ),
    )


def man(profile: str) -> Recipe:
    """The latent diffusion model of MAN (section 2.2) on the perceptual autoencoder."""
    return _latent(profile, autoencoder="autoencoder_perceptual", seed=3)


def man_simple(profile: str) -> Recipe:
    """The same on the simple autoencoder: the ablation's other half (Table 2)."""
    return _latent(profile, autoencoder="autoencoder_simple", seed=3)


def man_start(profile: str) -> Recipe:
    """The prior alone, for MAN's third mode: no condition, sampling starts from the noised code."""
    return _latent(profile, autoencoder="autoencoder_perceptual", seed=4, conditioned=False)


def ddpm(profile: str) -> Recipe:
    """A conditional DDPM on pixels (Ho et al. 2020, conditioned as in SR3): what MAN is fast against."""
    notes: dict[str, Any] = dict(target="noise-free truth", keep=0.25)
    if profile == "paper":
        return Recipe(
            model="unet",
            config=PAPER_PIXEL_UNET,
            loss=pixel_loss,
            range=DDPM_RANGE,
            notes=notes,
            schedule=dict(name="linear", T=1000, prediction="eps"),
            stages=(_paper_stage(5, lr=2e-5, steps=500_000),),
        )
    return Recipe(
        model="unet",
        config=SHIPPED_PIXEL_UNET,
        loss=pixel_loss,
        range=DDPM_RANGE,
        notes=notes,
        schedule=NEAR_THE_CONDITION,
        stages=_diffusion_stages(profile, seed=5, steps=(2_500, 1_500), batch=8, patch=64),
    )
