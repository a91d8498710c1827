"""LEDA (Chen et al. 2024): the LLM-guided autoencoder in three variants (Table 4), and the denoisers of Tables 1 to 4.

Full-dose scans alone are enough for the autoencoders; on phantoms they carry simulated noise of a full dose. Denoisers
learn from pairs, or from simulated noise. Rows of one table differ in their loss alone: they start from the same
weights (``redcnn_start``, ``esaunet_start``) and see the same samples in the same order. Another seed is
``recipes.run(name, seed=1)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.data.patches import PatchConfig
from ldctlib.data.vocabulary import TOKENS
from ldctlib.losses import LEDALoss, VQGANLoss, candidate_pools, perceptual_distance, semantic_loss, vgg16_features
from ldctlib.losses.adversarial import hinge_discriminator
from ldctlib.models.clip import Clip
from ldctlib.models.vqgan import VQGAN, VQGAN_RANGE
from ldctlib.pipelines.published_clip import PUBMEDCLIP, published_clip
from ldctlib.profiles import PROFILES
from ldctlib.recipes.recipe import ANATOMIES, PAPER_DATA, SHORT_BANKS, SMALL_BANKS, Context, Network, Recipe, Stage
from ldctlib.training import Optimizer, TrainConfig, Update
from ldctlib.units import SOFT_TISSUE, Window


def perceptual(side: int | None, window: Window | None = None) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
    """VGG-16 distance of images in [0, 1], on one random square of ``side`` pixels a batch, or on whole images.

    A random square has the whole image's distance on average, and its gradient, at the share of its cost. With a
    ``window`` VGG-16 sees that part of -1000 to 2000 HU, black to white: organs differ by a hundredth of the whole.
    """
    features = vgg16_features(allow_download=True, low=0.0, high=1.0).to(memory_format=torch.channels_last)

    def distance(x_hat: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        if side is not None and side < min(x.shape[-2:]):
            h, w = x.shape[-2:]
            corner = torch.rand(2, generator=generator, device=generator.device).tolist()
            top, left = (int(share * (n - side + 1)) for share, n in zip(corner, (h, w), strict=True))
            x_hat, x = (image[..., top : top + side, left : left + side] for image in (x_hat, x))
        if window is not None:
            x_hat, x = (window.to_display(VQGAN_RANGE.from_model(image)) for image in (x_hat, x))
        return perceptual_distance(features.to(x.device), x_hat, x)

    return distance


def perceptual_of(options: Mapping[str, Any]) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
    """:func:`perceptual` of a stage's options ``perceptual_side`` and ``window``, its level and width in HU."""
    return perceptual(options["perceptual_side"], Window(*options["window"]) if "window" in options else None)


# ---------------------------------------------------------------- autoencoders (section 2.1)


def start_updates(context: Context):
    """Pixels and features of the image, from continuous features: what all three variants start from."""
    options, distance = context.stage.options, perceptual_of(context.stage.options)

    def loss(model: VQGAN, batch: dict[str, Tensor], generator, step: int) -> dict[str, Tensor]:
        x = VQGAN_RANGE.to_model(batch["full_dose_hu"])
        image = model.decode(model.encode(x))
        terms = {"mse": F.mse_loss(image, x), "perceptual": distance(image, x, generator)}
        return terms | {"loss": terms["mse"] + options["eta"] * terms["perceptual"]}

    return loss


LEARNED_UNIT = 1 / 32
"""Of a learned codebook: CLIP's words are about as long, so that the commitment weighs as much in all variants."""


@torch.no_grad()
def place_codebook(context: Context, clip: Clip | None, images: int = 16) -> None:
    """Begin with features where the words are, or with words where the features of some images are, if learned.

    With the semantic loss, where the words are that are candidates for these images: it would take long to bring the
    features there. ``stage.options["stretch"]`` is of :meth:`~ldctlib.models.vqgan.VQGAN.move_features`. A resumed
    training loads its state over this.
    """
    model, options, often = context.network, context.stage.options, None
    x_hu = torch.stack([context.samples[n]["full_dose_hu"] for n in range(images)])
    if clip is None:
        model.quantiser.scale.fill_(LEARNED_UNIT)  # of the features, too
    z = model.encode(VQGAN_RANGE.to_model(x_hu))
    if clip is None:
        z = z.movedim(1, -1).flatten(0, -2)
        generator = torch.Generator().manual_seed(context.stage.train.seed)
        codebook = model.quantiser.codebook
        codebook.copy_(z[torch.randperm(len(z), generator=generator)[: len(codebook)]])
        return
    if options["semantic"]:
        often = candidates(clip, x_hu.to(context.device)).float().mean(dim=(0, 1))
    model.move_features(z, stretch=options["stretch"], weights=often)


@torch.no_grad()
def candidates(clip: Clip, images_hu: Tensor) -> Tensor:
    """Eq. 1's pools for images, (B, layers, V) bool, of the words that may describe one."""
    return candidate_pools(clip.similarity(images_hu).masked_fill(~clip.eligible, -torch.inf))


def vqgan_updates(context: Context):
    """Eq. 2 for the autoencoder, then the hinge loss for the discriminator, of the reconstruction before that step.

    ``stage.options``: ``codebook`` is "learned" or "clip", the frozen table of the checkpoint "clip", or of the
    published model that an option ``clip`` names; ``semantic`` is whether Eq. 1 counts; ``begin`` places the codebook
    first; the others are settings of :class:`~ldctlib.losses.vqgan.VQGANLoss`, and ``temperature`` and ``of`` of the
    semantic loss.
    """
    options, learned = context.stage.options, context.stage.options["codebook"] == "learned"
    clip = None if learned else published_clip(options["clip"]) if "clip" in options else context.frozen("clip")
    model: VQGAN = context.network
    if clip is not None:
        model.set_codebook(clip.to(context.device).token_table().detach().float())
    if options["begin"]:
        place_codebook(context, clip)
    distance = perceptual_of(options)
    start = int(options["discriminator_start"] * context.stage.train.steps)
    settings = {name: options[name] for name in ("recipe", "alpha", "beta", "gamma", "eta") if name in options}
    waiting: list[tuple[Tensor, Tensor]] = []  # images and their reconstructions, for the discriminator's turn

    def autoencoder(networks, batch: dict[str, Tensor], generator, step: int) -> dict[str, Tensor]:
        model, x_hu = networks["autoencoder"], batch["full_dose_hu"]
        x = VQGAN_RANGE.to_model(x_hu)
        made, semantic = model(x), None
        if options["semantic"]:
            words = made.quantised.embeddings, model.quantiser.codebook, candidates(clip, x_hu)
            how = {name: options[name] for name in ("temperature", "of") if name in options}
            semantic = semantic_loss(*words, **how)
        total = VQGANLoss(partial(distance, generator=generator), discriminator_start=start, **settings)
        gan = dict(discriminator=networks["discriminator"], last_layer=model.last_layer)
        if step >= start:
            waiting.append((x, made.image.detach()))
        return total(x, made, step, semantic=semantic, learned=learned, **gan)

    def discriminator(networks, batch, generator, step: int) -> Tensor:
        real, fake = waiting.pop(0)
        judge = networks["discriminator"]
        return hinge_discriminator(judge(real), judge(fake))

    rates = options["rates"]
    moves = [Optimizer(**rates | dict(lr=rates["lr"] * factor)) for factor in (1.0, options["discriminator_rate"])]
    return [Update("autoencoder", autoencoder, moves[0]), Update("discriminator", discriminator, moves[1], start=start)]


def fit_words(recipe: Recipe) -> Recipe:
    """The recipe with a codebook of the size of the published model that its option ``clip`` names."""
    words, width = published_clip(recipe.stages[0].options["clip"]).token_table().shape
    config = recipe.saved.config | dict(codebook_size=words, embed_dim=width)
    return replace(recipe, networks=recipe.networks | {"autoencoder": replace(recipe.saved, config=config)})


VOCABULARY: dict[str, Any] = dict(codebook_size=len(TOKENS), embed_dim=128)
"""V and C of the small CLIP that ships; PubMedCLIP has 49,408 words of 512 numbers."""

SMALL_VQGAN: dict[str, Any] = dict(width=16, channel_mult=[3, 4, 6], z_channels=128, norm_groups=8, unshuffle=2)
SMALL_VQGAN |= dict(shortcut=32)  # half of the cosines of 8 x 8 pixels: what is linear need not be learnt
SMALL_VQGAN |= dict(windows=[[SOFT_TISSUE.low, SOFT_TISSUE.high]])
"""8-fold downsampling: 256 x 256 pixels become the published 32 x 32 grid. 26 thousand multiply-adds a pixel in the
encoder, 61 thousand in the decoder, against 142 and 358 thousand of the published size, for as many more steps."""

SIDES = (128, 256)
"""Images have sides of multiples of these, for the small and the published network: 16 times the downsampling."""

FULL_DOSE_NOISE_SD_HU = (2.0, 20.0)
"""Of the phantoms' full-dose images, which the autoencoder reconstructs as they are."""

VARIANTS: dict[str, dict[str, Any]] = {
    "learned": dict(codebook="learned", semantic=False),
    "vocabulary": dict(codebook="clip", semantic=False),
    "semantic": dict(codebook="clip", semantic=True),
}
"""The rows of Table 4: VQGAN, + LLM codebook, + semantic loss."""


GENTLE: dict[str, Any] = dict(alpha=0.1, gamma=1e-3, eta=2e-3, discriminator_start=0.25)
GENTLE |= dict(temperature=0.05, of="any", window=[SOFT_TISSUE.level, SOFT_TISSUE.width])


def vqgan_start(profile: str, *, seed: int = 1) -> Recipe:
    """The autoencoder without words, on crops: encoder and decoder are most of the work, and the same for all."""
    train: dict[str, Any] = dict(lr=1e-3, betas=(0.9, 0.99), seed=seed, checkpoint_every=200, clip_norm=1.0)
    data: dict[str, Any] = dict(
        seed=400 + seed, patch=128, anatomies=ANATOMIES, full_dose_noise_sd_hu=FULL_DOSE_NOISE_SD_HU
    )
    options: dict[str, Any] = dict(eta=GENTLE["eta"], perceptual_side=64, window=GENTLE["window"])
    if profile == "workshop":
        train |= dict(steps=10, batch_size=2, log_every=5)
        data |= SMALL_BANKS
    elif profile == "train":
        train |= dict(steps=500, batch_size=4, warmup_steps=50, log_every=50)
        data |= dict(photograph_share=0.2, n_slices=128, n_photographs=64, n_noises=64)
    else:
        train |= dict(steps=20_000, batch_size=4, lr=1e-4, log_every=100)
        data |= PAPER_DATA
        options = dict(eta=0.1, perceptual_side=None)
    network = Network("vqgan", PAPER_VQGAN if profile == "paper" else SMALL_VQGAN | VOCABULARY)
    stages = (Stage("features", TrainConfig(**train), PatchConfig(**data), options, sides=SIDES[profile == "paper"]),)
    return Recipe({"autoencoder": network}, stages, start_updates, VQGAN_RANGE, paper="LEDA, section 2.1")


PAPER_VQGAN: dict[str, Any] = dict(width=64, channel_mult=[1, 1, 2, 2, 4], z_channels=256, blocks=1)
PAPER_VQGAN |= dict(codebook_size=49_408, embed_dim=512)


def vqgan(profile: str, variant: str, *, seed: int = 1) -> Recipe:
    """One of the three variants.

    The train profile lowers gamma and eta: on phantoms, whose pixels differ by far less than 1, the paper's weights
    leave next to nothing to the pixels. VGG-16 sees the soft tissue's window there, or soft tissue becomes one word.
    The small CLIP's words are so short that Eq. 1 is flat, its gradient a hundredth of the commitment's: a temperature
    of .05, of any candidate, makes them equal. At the paper's alpha of .3 the words are soon three that hold for nearly
    every slice, and soft tissue is one grey; .1 leaves a hundred words, of which fewer are right.

    The paper profile starts from nothing, at VQGAN's rate of 4.5e-6 an image, with PubMedCLIP from the hub; the option
    ``clip`` takes another CLIPModel's name, or its folder. Its 100 epochs are the released denoisers': the paper gives
    none.
    """
    learned = variant == "learned"
    needs = () if learned else ("clip",)
    options = VARIANTS[variant] | dict(begin=True, stretch=2.0, discriminator_rate=1.0)
    train: dict[str, Any] = dict(seed=seed, checkpoint_every=200)
    data: dict[str, Any] = dict(seed=420 + seed, anatomies=ANATOMIES, photograph_share=0.0)
    data |= dict(full_dose_noise_sd_hu=FULL_DOSE_NOISE_SD_HU)
    if profile == "paper":
        train |= dict(steps=120_000, batch_size=4, log_every=100, precision="auto")
        rates: dict[str, Any] = dict(lr=1.8e-5, kind="adam", betas=(0.5, 0.9), schedule="constant", clip_norm=None)
        options |= {} if learned else dict(clip=PUBMEDCLIP)
        needs = ()
        options |= dict(recipe="paper", discriminator_start=0.0, perceptual_side=None, begin=False, rates=rates)
        networks = {
            "autoencoder": Network("vqgan", PAPER_VQGAN | dict(learned=learned)),
            "discriminator": Network("patchgan", dict(width=64)),
        }
        data |= PAPER_DATA
        stage = Stage("words", TrainConfig(**train), PatchConfig(**data), options, needs, SIDES[True], epochs=100)
        fit = None if learned else fit_words
        return Recipe(networks, (stage,), vqgan_updates, VQGAN_RANGE, fit=fit, paper="LEDA, section 2.1")
    rates = dict(lr=2e-4, betas=(0.9, 0.99), clip_norm=1.0)
    options |= dict(GENTLE, rates=rates, perceptual_side=64)
    if profile == "workshop":
        train |= dict(steps=10, batch_size=1, log_every=5)
        data |= SMALL_BANKS | dict(patch=128)
    else:
        train |= dict(steps=1_100, batch_size=1, log_every=50)
        rates |= dict(warmup_steps=50)
        data |= dict(patch=256, size=352, n_slices=128, n_photographs=1, n_noises=48)
    network = Network(
        "vqgan", SMALL_VQGAN | VOCABULARY | dict(learned=learned), start="vqgan_start", reinitialise=("quantiser.",)
    )
    networks = {"autoencoder": network, "discriminator": Network("patchgan", dict(width=16))}
    stages = (Stage("words", TrainConfig(**train), PatchConfig(**data), options, needs, SIDES[False]),)
    return Recipe(networks, stages, vqgan_updates, VQGAN_RANGE, paper="LEDA, section 2.1 and Table 4")


# ---------------------------------------------------------------- denoisers (section 2.2)


def denoiser_updates(context: Context):
    """Mean squared error in [0, 1], with the perceptual distance or LEDA beside it.

    ``stage.options``: ``perceptual``, a weight; or ``leda``, LEDALoss's settings, and ``autoencoder``.
    """
    options = context.stage.options
    distance = perceptual(options["perceptual_side"]) if options.get("perceptual") else None
    leda = LEDALoss(context.frozen(options["autoencoder"]), **options["leda"]) if "leda" in options else None

    def loss(model: nn.Module, batch: dict[str, Tensor], generator, step: int) -> dict[str, Tensor]:
        ldct, ndct = (VQGAN_RANGE.to_model(batch[key]) for key in ("ldct_hu", "target_hu"))
        prediction = model(ldct).float()
        terms = {"mse": F.mse_loss(prediction, ndct)}
        total = terms["mse"]
        if distance is not None:
            terms["perceptual"] = distance(prediction, ndct, generator)
            total = total + options["perceptual"] * terms["perceptual"]
        if leda is not None:
            terms |= leda.terms(prediction, ndct)
            total = total + leda.weight * sum(value for name, value in terms.items() if name.startswith("leda"))
        return {name: term.detach() for name, term in terms.items()} | {"loss": total}

    return loss


LEDA: dict[str, Any] = dict(leda=dict(weight=0.5), autoencoder="vqgan_semantic")
LOSSES: dict[str, dict[str, Any]] = {
    "start": {},
    "mse": {},
    "perceptual": dict(perceptual=0.1),
    "leda_c": LEDA | dict(leda=dict(weight=0.5, discrete=False)),
    "leda_d": LEDA | dict(leda=dict(weight=0.5, continuous=False)),
    "leda": LEDA,
    "leda_learned": LEDA | dict(autoencoder="vqgan_learned"),
    "leda_vocabulary": LEDA | dict(autoencoder="vqgan_vocabulary"),
}
"""What is added to the squared error: Tables 1 to 3, and Table 4's denoisers."""

DENOISERS: dict[str, dict[str, dict[str, Any]]] = {
    "redcnn": {"small": dict(channels=32, final_relu=True), "paper": dict(channels=96, final_relu=True)},
    "esaunet": {
        "small": dict(widths=[16, 32, 64, 128, 128], heads=[1, 2, 4, 8]),
        "paper": dict(widths=[32, 64, 128, 256, 256], heads=[1, 2, 4, 8]),
    },
}
TRAIN_STEPS: dict[str, tuple[int, int]] = {"redcnn": (1_200, 500), "esaunet": (1_200, 500)}
"""Of the start and of each loss after it."""


def denoiser(profile: str, model: str, loss: str, *, seed: int = 1) -> Recipe:
    """A network with a loss; "start" is the squared error that all others begin from, outside the paper's profile.

    That one has the autoencoder's batches of 4 and the 100 epochs of the released options: of the denoisers the paper
    says neither.
    """
    options = dict(LOSSES[loss])
    needs = (options["autoencoder"],) if "autoencoder" in options else ()
    first = loss == "start"
    shift = 0 if first else 1
    data: dict[str, Any] = dict(seed=450 + seed + 10 * shift, patch=128, anatomies=ANATOMIES)
    train: dict[str, Any] = dict(betas=(0.9, 0.99), weight_decay=1e-9, seed=seed + shift, checkpoint_every=200)
    if "perceptual" in options:
        options |= dict(perceptual_side=None if profile == "paper" else 64)
        options |= {} if profile == "paper" else dict(perceptual=GENTLE_PERCEPTUAL)
    size, start = ("small", f"{model}_start") if profile != "paper" else ("paper", None)
    if profile == "paper":  # section 3.1: AdamW, 1e-4 to 1e-6 along a cosine, whole slices
        train |= dict(steps=120_000, batch_size=4, lr=1e-4, lr_end=1e-6, clip_norm=None, log_every=100)
        data |= PAPER_DATA
    elif profile == "workshop":
        train |= dict(steps=10, batch_size=2, lr=2e-4, warmup_steps=5, log_every=5)
        data |= SMALL_BANKS
    else:
        steps = TRAIN_STEPS[model][0 if first else 1]
        train |= dict(steps=steps, batch_size=4, lr=5e-4, lr_end=5e-6, log_every=50)
        train |= dict(schedule="constant", lr_end=0.0, warmup_steps=50) if first else {}
        data |= SHORT_BANKS | dict(photograph_share=0.2)
    network = Network(model, DENOISERS[model][size], start=None if first else start)
    epochs = 100 if profile == "paper" else None
    stage = Stage(loss, TrainConfig(**train), PatchConfig(**data), options, needs, SIDES[profile == "paper"], epochs)
    return Recipe({model: network}, (stage,), denoiser_updates, VQGAN_RANGE, paper="LEDA, Tables 1 to 4")


GENTLE_PERCEPTUAL = 1e-4
"""The paper names no weight. With this one gradients of the squared error and of VGG-16 are about equal for errors of
50 HU; .1, as in the autoencoder, would leave nothing to the squared error."""

RECIPES: dict[str, dict[str, Recipe]] = {"vqgan_start": {profile: vqgan_start(profile) for profile in PROFILES}}
RECIPES |= {f"vqgan_{variant}": {profile: vqgan(profile, variant) for profile in PROFILES} for variant in VARIANTS}
RECIPES |= {
    f"{model}_{loss}": {profile: denoiser(profile, model, loss) for profile in PROFILES}
    for model, losses in {"redcnn": tuple(LOSSES), "esaunet": ("start", "mse", "perceptual", "leda")}.items()
    for loss in losses
}
