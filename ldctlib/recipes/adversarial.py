"""Q-AE, and the denoisers that are trained against a critic: WGAN-VGG and DU-GAN.

The adversarial ones have two stages. "regression" is the squared error of ``recipes/regression.py``, with the judges
asleep: a short training gets nowhere against a critic from a generator that denoises nothing. "adversarial" is the
paper's loss; in its first steps the judges learn alone. The profile ``paper`` has the second alone, from the start.
Their layers are the published ones, and there so are their widths; elsewhere they are as narrow as a CPU asks. Reals
are the targets of the stream: of phantoms the noise-free image, of one's own pairs the full-dose scan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.data.patches import PatchConfig
from ldctlib.losses import EncoderFeatures, Ramp, perceptual_distance, vgg16_features, vgg19_features
from ldctlib.losses.adversarial import hinge_generator, sobel, unet_discriminator, unet_generator, wasserstein_critic
from ldctlib.losses.regression import weighted_mse
from ldctlib.profiles import PROFILES
from ldctlib.recipes import regression
from ldctlib.recipes.recipe import ANATOMIES, HU_RANGE, SHORT_BANKS, SMALL_BANKS, Context, Network, Recipe, Stage
from ldctlib.training import LossFunction, Optimizer, TrainConfig, Update
from ldctlib.units import Range

SEEN = Range(-300.0, 300.0, 0.0, 1.0)
"""In what the losses are: DU-GAN's 600 HU as [0, 1], for which its weights are; a judge of -1000 … 1000 HU would hardly
see soft tissue. Nothing is clipped."""

BANKS: dict[str, Any] = SHORT_BANKS | dict(anatomies=ANATOMIES)

# ---------------------------------------------------------------- Q-AE (Fan et al. 2020)


def qae(profile: str) -> Recipe:
    """Two rates one after the other, by the loss of ``recipes/regression.py``.

    The paper profile is the authors' code: Adam, batches of 50 of 64,000 patches of 64², ten epochs at 4e-4 and ten at
    2e-4. Its loss is the plain squared error of 600 HU, clipped. The benchmark suite takes 94,025 steps at 2.8e-5, with
    batches of 125 patches of 36².
    """
    if profile == "paper":
        train: dict[str, Any] = dict(batch_size=50, kind="adam", schedule="constant", clip_norm=None, log_every=100)
        rates: list[dict[str, Any]] = [dict(steps=12_800, lr=4e-4), dict(steps=12_800, lr=2e-4)]
        data: dict[str, Any] = dict(patch=64)
    else:
        steps, warmup, log_every, banks = (20, 5, 5, SMALL_BANKS) if profile == "workshop" else (2_000, 100, 100, BANKS)
        train = dict(steps=steps, batch_size=8, log_every=log_every, lr=5e-4, betas=(0.9, 0.99), clip_norm=0.5)
        rates = [dict(warmup_steps=warmup, schedule="constant"), {}]
        data = dict(patch=48, **banks)
    stages = tuple(
        Stage(name, TrainConfig(seed=1 + k, **train, **rates[k]), PatchConfig(seed=31 + 1000 * k, **data))
        for k, name in enumerate(("stable", "decay"))
    )
    config = dict(channels=15) | ({} if profile == "paper" else dict(limits=[-1.1, 2.0]))
    return Recipe({"qae": Network("qae", config)}, stages, regression.updates, paper="Fan et al. 2020")


# ---------------------------------------------------------------- what both adversarial ones share


def estimates(context: Context) -> Callable[[Mapping[str, nn.Module], Mapping[str, Tensor], int], Tensor]:
    """``(networks, batch, step) -> the generator's images in SEEN``, computed once for a batch of a step.

    The generator's update is the last of a step, so until then all judges see the same images, and its own loss
    differentiates the pass that they have seen.
    """
    hu_range, last = context.recipe.hu_range, [None, None, None]

    def estimate(networks, batch, step: int) -> Tensor:
        if last[0] is not batch or last[1] != step:
            out = networks["generator"](hu_range.to_model(batch["ldct_hu"])).float()
            last[:] = batch, step, SEEN.to_model(hu_range.from_model(out))
        return last[2]

    return estimate


def updates_of(context: Context, judges: Mapping[str, LossFunction], generator_loss: LossFunction) -> list[Update]:
    """The judges' updates, then the generator's, by the stage's options.

    "optimizers" are an Optimizer's settings by network, "repeat" the judges' steps a training step, "alone" the share
    of the steps in which they learn alone. In a stage without judges ("adversarial" False) they do not move, and the
    generator learns by squared error.
    """
    options, steps = context.stage.options, context.stage.train.steps
    how = {name: Optimizer(**settings) for name, settings in options["optimizers"].items()}
    if not options["adversarial"]:
        mse = weighted_mse(context.recipe.hu_range)
        asleep = Optimizer(lr=1e-4)
        return [
            *(Update(name, loss, asleep, start=steps) for name, loss in judges.items()),
            Update("generator", lambda networks, *rest: mse(networks["generator"], *rest), how["generator"]),
        ]
    start = int(options["alone"] * steps)
    return [
        *(Update(name, loss, how["judges"], repeat=options["repeat"]) for name, loss in judges.items()),
        Update("generator", generator_loss, how["generator"], start=start),
    ]


def regression_stage(steps: int, warmup: int, seed: int, **settings: Any) -> Stage:
    """The squared error from "return the input", its rate falling to zero."""
    optimizer = dict(lr=1e-3, betas=(0.9, 0.99), clip_norm=0.5, warmup_steps=warmup)
    train = TrainConfig(steps=steps, batch_size=8, seed=seed, log_every=max(1, steps // 20))
    options = dict(adversarial=False, optimizers={"generator": optimizer})
    return Stage("regression", train, PatchConfig(seed=30 + seed, patch=48, **settings), options)


# ---------------------------------------------------------------- WGAN-VGG (Yang et al. 2018)


def perceptual_features(context: Context) -> tuple[nn.Module, Range]:
    """The network of "features" among the stage's options, and the range in which it sees images.

    "vgg19" is the published one; "vgg16" takes its place where that cannot be had: both at the last convolution,
    without the ReLU. "encoder" is the stand-in of a workshop, which needs no download.
    """
    name = context.stage.options["features"]
    if name == "encoder":
        return EncoderFeatures(context.frozen("autoencoder_simple")), HU_RANGE
    options = dict(allow_download=True, low=SEEN.model_low, high=SEEN.model_high)
    features = vgg19_features(**options) if name == "vgg19" else vgg16_features(layers=("conv5_3",), **options)
    return features.to(context.device), SEEN


def wgan_vgg_updates(context: Context) -> list[Update]:
    """Wasserstein distance with gradient penalty, and L1 of deep features; no loss on pixels."""
    options, estimate = context.stage.options, estimates(context)
    features, seen = perceptual_features(context) if options["adversarial"] else (None, SEEN)

    def critic(networks, batch, generator, step):
        real, fake = SEEN.to_model(batch["target_hu"]), estimate(networks, batch, step)
        return wasserstein_critic(networks["critic"], real, fake, generator, penalty=10.0)

    def generator(networks, batch, generator, step):
        fake = estimate(networks, batch, step)
        adversarial = hinge_generator(networks["critic"](fake))
        target = seen.to_model(batch["target_hu"])
        perceptual = perceptual_distance(features, seen.to_model(SEEN.from_model(fake)), target)
        loss = adversarial + options["perceptual"] * perceptual
        return {"loss": loss, "adversarial": adversarial, "perceptual": perceptual}

    return updates_of(context, {"critic": critic}, generator)


WGAN_ADAM: dict[str, Any] = dict(kind="adam", betas=(0.5, 0.9))
WGAN_GENERATOR = Network("wgan_vgg", dict(channels=32, layers=8))


def wgan_vgg(profile: str, generator: Network = WGAN_GENERATOR) -> Recipe:
    """WGAN-VGG with its own generator, or another that may start trained: then there is no first stage.

    The paper: 100 epochs of 100,096 patches of 64² in batches of 128, Adam (0.5, 0.9) at 1e-5 (1e-4 in the authors'
    code), four critic steps for one of the generator's, penalty 10. The L1 of features and its weight, 0.69, are the
    benchmark suite's: the paper's 0.1 is for summed squares, of features of the image times 255. The rest of the
    suite's is 67,306 steps at 7.1e-5 on batches of 77 patches of 77², with one critic step.
    """
    options: dict[str, Any] = dict(adversarial=True, perceptual=0.69, repeat=4, alone=0.0, features="vgg19")
    if profile == "paper":
        both = WGAN_ADAM | dict(lr=1e-5, schedule="constant", clip_norm=None)
        options |= dict(optimizers={"generator": both, "judges": both})
        stages = [
            Stage("adversarial", TrainConfig(steps=78_200, batch_size=128, seed=4), PatchConfig(seed=34), options)
        ]
    else:
        small = profile == "workshop"
        judges = WGAN_ADAM | dict(lr=1e-3)  # of 2e-4 to 1e-3 the one that learns in 200 steps
        options |= dict(optimizers={"generator": WGAN_ADAM | dict(lr=1e-4), "judges": judges}, repeat=2, alone=0.2)
        options |= dict(features="encoder" if small else "vgg16")
        steps, log_every, banks = (20, 5, SMALL_BANKS) if small else (800, 20, BANKS)
        train = TrainConfig(steps=steps, batch_size=4 if small else 8, seed=4, log_every=log_every, checkpoint_every=50)
        needs = ("autoencoder_simple",) if small else ()
        first = regression_stage(*((20, 5) if small else (4_000, 100)), seed=3, **banks)
        stages = [first, Stage("adversarial", train, PatchConfig(seed=34, **banks), options, needs)]
    if generator.start:
        stages = stages[-1:]
    critic = Network("wgan_critic", dict(patch=64, width=64 if profile == "paper" else 16))
    networks = {"generator": generator, "critic": critic}
    return Recipe(networks, tuple(stages), wgan_vgg_updates, paper="Yang et al. 2018")


# ---------------------------------------------------------------- DU-GAN (Huang et al. 2022)


def dugan_updates(context: Context) -> list[Update]:
    """Huang 2022: U-Nets judge images and their gradients; squared error of pixels, L1 of gradients."""
    options, estimate = context.stage.options, estimates(context)
    probability = Ramp(options.get("cutmix", 0.0), 0.0, options.get("cutmix_warmup", 0.0) * context.stage.train.steps)

    def judge(name: str, view: Callable[[Tensor], Tensor]) -> LossFunction:
        def loss(networks, batch, generator, step):
            real, low_dose = (SEEN.to_model(batch[key]) for key in ("target_hu", "ldct_hu"))
            fakes = [view(estimate(networks, batch, step).detach()), view(low_dose)]
            mixed = dict(cutmix_probability=probability(step), consistency=options["consistency"])
            return unet_discriminator(networks[name], view(real), fakes, generator, **mixed)

        return loss

    def generator(networks, batch, generator, step):
        fake, real = estimate(networks, batch, step), SEEN.to_model(batch["target_hu"])
        slopes = sobel(fake)
        terms = {
            "image": unet_generator(networks["image_judge"], fake),
            "gradient": unet_generator(networks["gradient_judge"], slopes),
            "mse": F.mse_loss(fake, real),
            "slopes": F.l1_loss(slopes, sobel(real)),
        }
        return terms | {"loss": sum(options["weights"][name] * value for name, value in terms.items())}

    judges = {"image_judge": judge("image_judge", lambda x: x), "gradient_judge": judge("gradient_judge", sobel)}
    return updates_of(context, judges, generator)


DUGAN_GENERATOR = Network("dugan", dict(channels=32, layers=11, final_relu=False))
DUGAN_LOSS: dict[str, Any] = dict(
    weights=dict(image=0.142, gradient=0.120, mse=5.03, slopes=35.3), consistency=5.09, cutmix=0.762
)
"""The published weights (the authors' code), of images in :data:`SEEN`."""


def dugan(profile: str, generator: Network = DUGAN_GENERATOR) -> Recipe:
    """DU-GAN with its own generator, or another that may start trained: then there is no first stage.

    The paper profile is the authors' script: 100,000 steps (the chest's; the abdomen's are 50,000) of Adam
    (0.9, 0.999) on batches of 64 patches of 64², CutMix at full probability after 1,000. The benchmark suite's is
    33,875 steps at 1.2e-5 on 92 patches of 128², two of the judges' for one of the generator's, with weights 0.080,
    1, 27.8 and 2.65 for judges, pixels, gradients and consistency, and CutMix half of the time.
    """
    adam = dict(kind="adam", schedule="constant", clip_norm=None)
    options: dict[str, Any] = dict(adversarial=True, repeat=1, alone=0.0, cutmix_warmup=0.01) | DUGAN_LOSS
    if profile == "paper":
        rates = {"generator": adam | dict(lr=1.81e-4), "judges": adam | dict(lr=7.12e-5)}
        train = TrainConfig(steps=100_000, batch_size=64, seed=6, log_every=100)
        stages = [Stage("adversarial", train, PatchConfig(seed=36), options | dict(optimizers=rates))]
    else:
        small = profile == "workshop"
        rates = {
            "generator": dict(kind="adam", lr=1e-4, betas=(0.9, 0.99)),
            "judges": dict(kind="adam", lr=2e-3, betas=(0.5, 0.99)),
        }
        options |= dict(optimizers=rates, alone=0.3, cutmix_warmup=0.5)
        steps, log_every, banks = (20, 5, SMALL_BANKS) if small else (650, 10, BANKS)
        train = TrainConfig(steps=steps, batch_size=4 if small else 8, seed=6, log_every=log_every, checkpoint_every=50)
        first = regression_stage(*((20, 5) if small else (2_000, 100)), seed=5, **banks)
        stages = [first, Stage("adversarial", train, PatchConfig(seed=36, **banks), options)]
    if generator.start:
        stages = stages[-1:]
    # a narrow one of 6 levels tells nothing apart in the steps that a CPU has: each level weakens its signal
    judge = Network("unet_discriminator", dict(width=64, levels=6) if profile == "paper" else dict(width=8, levels=3))
    networks = {"generator": generator, "image_judge": judge, "gradient_judge": judge}
    return Recipe(networks, tuple(stages), dugan_updates, paper="Huang et al. 2022")


# ---------------------------------------------------------------- by profile

QAE = {profile: qae(profile) for profile in PROFILES}
REDCNN = Network("redcnn", dict(final_relu=False), start="redcnn")
"""The generator of both in LEDA's tables, from its regression checkpoint."""
WGAN_VGG = {profile: wgan_vgg(profile) for profile in PROFILES}
WGAN_VGG_REDCNN = {profile: wgan_vgg(profile, REDCNN) for profile in PROFILES}
DUGAN = {profile: dugan(profile) for profile in PROFILES}
DUGAN_REDCNN = {profile: dugan(profile, REDCNN) for profile in PROFILES}
