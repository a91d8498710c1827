"""WGAN-VGG, DU-GAN and Q-AE: published layouts, closed forms of their networks and losses, their recipes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from ldctlib import checkpoints, recipes
from ldctlib.errors import CheckpointError, ParameterError, ShapeError
from ldctlib.losses import VGG19Features, adversarial, perceptual, vgg19_features
from ldctlib.losses.regression import weighted_mse
from ldctlib.models.dugan import DUGANGenerator, UNetDiscriminator
from ldctlib.models.qae import QAE, QuadraticConv
from ldctlib.models.wgan_vgg import WGANVGG, WGANCritic
from ldctlib.recipes import HU_RANGE, Network, Stage
from ldctlib.recipes import adversarial as recipe_file
from ldctlib.recipes.adversarial import SEEN
from ldctlib.training import Optimizer, TrainConfig, train

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def drawn(model: nn.Module, scale: float = 0.3) -> nn.Module:
    """The same in double precision, with every parameter drawn: nothing is zero by initialisation."""
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(scale * normal(*p.shape, seed=i))
    return model.double()


@cache
def shapes_of(model: str, config: tuple) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        built = checkpoints.model_class(model)(**dict(config))
    return {name: tuple(p.shape) for name, p in built.named_parameters()}


def published(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the networks that a recipe builds at its published sizes."""
    networks = recipes.recipe(name, "paper").networks.items()
    shapes = {key: shapes_of(n.model, tuple(n.config.items())) for key, n in networks}
    return {f"{key}.{part}": shape for key, found in shapes.items() for part, shape in found.items()}


# ---------------------------------------------------------------- published sizes


def test_published_sizes():
    count = {}
    for recipe in ("qae", "wgan_vgg", "dugan", "dugan_redcnn"):
        for name, shape in published(recipe).items():
            key = f"{recipe}.{name.partition('.')[0]}"
            count[key] = count.get(key, 0) + math.prod(shape)
    # the critic's convolutions take 64 pixels to 62, 30, 28, 13, 11 and 5
    convolutions = sum(9 * a * b + b for a, b in ((1, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256)))
    critic = convolutions + (256 * 25 + 1) * 1024 + 1025
    assert count == {
        "qae.qae": 49_818,
        "wgan_vgg.generator": 56_097,
        "wgan_vgg.critic": critic,
        "dugan.generator": 185_569,
        "dugan.image_judge": 57_213_839,
        "dugan.gradient_judge": 57_213_839,
        "dugan_redcnn.generator": 1_848_865,
        "dugan_redcnn.image_judge": 57_213_839,
        "dugan_redcnn.gradient_judge": 57_213_839,
    }


def test_published_names():
    """Of what the benchmark suite's files and the authors' code hold."""
    qae, wgan, dugan = (published(name) for name in ("qae", "wgan_vgg", "dugan"))
    parts = ("W_r", "W_g", "W_b", "b_r", "b_g", "b_b")
    assert list(qae) == [f"qae.{side}.{i}.{p}" for side in ("encoder", "decoder") for i in range(5) for p in parts]
    assert qae["qae.encoder.0.W_g"] == (15, 1, 3, 3) and qae["qae.decoder.4.W_g"] == (15, 1, 3, 3)
    ends = ("weight", "bias")
    assert [n for n in wgan if "critic" not in n] == [f"generator.net.{2 * i}.{e}" for i in range(8) for e in ends]
    assert wgan["generator.net.14.weight"] == (1, 32, 3, 3) and wgan["critic.fc1.weight"] == (1024, 6400)
    own = [n for n in dugan if n.startswith("generator")]
    assert own == [f"generator.{side}.{i}.{e}" for side in ("encoder", "decoder") for i in range(11) for e in ends]
    assert dugan["generator.encoder.0.weight"] == dugan["generator.decoder.0.weight"] == (32, 1, 3, 3)


@pytest.mark.parametrize("model", [QAE, WGANVGG, DUGANGenerator])
@pytest.mark.parametrize("size", [(3, 3), (20, 17)])
def test_generators_start_as_identity(model, size):
    x = normal(2, 1, *size)
    torch.testing.assert_close(model().double().start_as_identity()(x), x, rtol=0, atol=1e-12)
    assert (drawn(model(), 0.1)(x) - x).abs().max() > 1e-3


def test_every_layer_learns_from_the_identity_on():
    """No layer is cut off by the zeros of the start for longer than the step that moves the last one."""
    for build in (QAE, WGANVGG, DUGANGenerator):
        torch.manual_seed(0)
        model, x = build().start_as_identity(), normal(2, 1, 16, 16, dtype=torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        for _ in range(2):
            optimizer.zero_grad()
            (model(x) - 0.5 * x).square().mean().backward()
            optimizer.step()
        for name, p in model.named_parameters():
            assert p.grad.abs().max() > 0, f"{build.__name__}: {name}"


def test_shapes_are_refused_by_name():
    for model in (QAE(), DUGANGenerator(channels=2, layers=1)):
        with pytest.raises(ShapeError, match=r"\(B, 1, H, W\)"):
            model(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ShapeError, match="at least 3 pixels"):
        QAE()(torch.zeros(1, 1, 2, 8))
    with pytest.raises(ParameterError, match="29 pixels a side, got 28"):
        WGANCritic(28, 1)
    assert WGANCritic(29, 1)(torch.zeros(2, 1, 29, 29)).shape == (2,)
    with pytest.raises(ShapeError, match=r"\(B, 1, 32, 32\), got \(1, 1, 33, 32\)"):
        WGANCritic(32, 1)(torch.zeros(1, 1, 33, 32))
    with pytest.raises(ShapeError, match="multiples of 8"):
        UNetDiscriminator(1, levels=3)(torch.zeros(1, 1, 64, 60))
    with pytest.raises(ParameterError, match="2 channels"):
        WGANVGG(channels=1)


# ---------------------------------------------------------------- Q-AE


def neighbours(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, 9 C, H, W): what each pixel's 3x3 neuron sees, zeros outside."""
    return F.unfold(x, 3, padding=1).reshape(len(x), -1, *x.shape[-2:])


@pytest.mark.parametrize("transposed", [False, True])
def test_a_quadratic_layer_by_its_formula(transposed):
    """Neuron by neuron: (w_r·x + b_r)(w_g·x + b_g) + w_b·x² + b_b, a transposed one with its kernels turned around."""
    layer, x = drawn(QuadraticConv(2, 3, padding=1, transposed=transposed)), normal(2, 2, 5, 6)
    seen = neighbours(x)

    def weigh(kernel, values):
        if transposed:
            kernel = kernel.transpose(0, 1).flip(2, 3)
        return torch.einsum("ok,bkhw->bohw", kernel.flatten(1), values)

    p = {name: v[:, None, None] if v.ndim == 1 else v for name, v in layer.named_parameters()}
    expected = (weigh(p["W_r"], seen) + p["b_r"]) * (weigh(p["W_g"], seen) + p["b_g"])
    expected = expected + weigh(p["W_b"], seen.square()) + p["b_b"]
    torch.testing.assert_close(layer(x), expected)


def test_a_quadratic_layer_starts_linear():
    """Its initial weights: a normal of 0.1 cut off at two of it has the standard deviation 0.088."""
    torch.manual_seed(0)
    layer = QuadraticConv(30, 30).double()
    assert not layer.W_g.any() and not layer.W_b.any() and (layer.b_g == 1).all() and not layer.b_r.any()
    assert layer.W_r.abs().max() <= 0.2
    assert float(layer.W_r.detach().std()) == pytest.approx(0.088, rel=0.03)  # 8,100 draws: 0.6 % standard error
    x = normal(1, 30, 6, 6)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.W_r, padding=1))
    torch.testing.assert_close(layer(2 * x), 2 * layer(x))


def test_qae_layer_by_layer():
    """Shortcuts of the input, layer 2 and layer 4; only the innermost pair is unpadded."""
    model, x = drawn(QAE(4), 0.2), normal(1, 1, 9, 8)
    first, second, third, fourth, fifth = model.encoder
    x2 = F.relu(second(F.relu(first(x))))
    x4 = F.relu(fourth(F.relu(third(x2))))
    assert (inner := F.relu(fifth(x4))).shape[-2:] == (7, 6)
    y = F.relu(model.decoder[0](inner) + x4)
    y = F.relu(model.decoder[2](F.relu(model.decoder[1](y))) + x2)
    torch.testing.assert_close(model(x), model.decoder[4](F.relu(model.decoder[3](y))) + x)


def test_qae_s_layers_see_nothing_beyond_its_limits():
    model, x = drawn(QAE(4), 0.2), normal(1, 1, 9, 8)
    bounded = QAE(4, limits=(-0.5, 1.0)).double()
    bounded.load_state_dict(model.state_dict())
    torch.testing.assert_close(bounded(0.1 * x), model(0.1 * x), rtol=0, atol=1e-6)
    inside = x.clamp(-0.5, 1.0)
    torch.testing.assert_close(bounded(x), model(inside) + (x - inside))
    for weights in bounded.parameters():
        torch.nn.init.constant_(weights, 1.0)  # explodes
    x = torch.linspace(-3, 3, 64, dtype=torch.float64).view(1, 1, 8, 8)
    torch.testing.assert_close(bounded(x), x + 1.5 / 4)
    for limits in ((1.0, -1.0), (0.0, 0.0), (1.0,)):
        with pytest.raises(ParameterError, match="limits are the lowest"):
            QAE(limits=limits)


# ---------------------------------------------------------------- DU-GAN's networks


def test_dugan_generator_layer_by_layer():
    model, x = drawn(DUGANGenerator(channels=3, layers=3)), normal(1, 1, 7, 6)
    a = F.relu(model.encoder[0](x))
    b = F.relu(model.encoder[1](a))
    y = F.relu(model.decoder[2](F.relu(model.encoder[2](b))) + b)
    y = F.relu(model.decoder[1](y) + a)
    expected = model.decoder[0](y) + x
    torch.testing.assert_close(model(x), expected)
    model.final_relu = True
    torch.testing.assert_close(model(x), F.relu(expected))


def test_discriminators_have_unit_spectral_norms():
    """Where more than four channels are seen and more than one given; after many forwards, as in training."""
    torch.manual_seed(0)
    model, checked = UNetDiscriminator(width=4, levels=3), 0
    x = torch.zeros(1, 1, 8, 8)
    for _ in range(60):
        model(x)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            norm = float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2))
            if layer.in_channels > 4 and layer.out_channels > 1:
                assert norm == pytest.approx(1, abs=0.02)  # power iteration: exact in the limit
                checked += 1
            else:
                assert not hasattr(layer, "parametrizations")
    assert checked > 10


def test_discriminator_scores_and_maps():
    """A score an image and a map of its size; images are judged apart; the map sees details, and far pixels, too."""
    torch.manual_seed(1)
    model, x = UNetDiscriminator(width=6, levels=3).double().eval(), normal(2, 1, 16, 24)
    scores, maps = model(x)
    assert scores.shape == (2,) and maps.shape == x.shape
    torch.testing.assert_close(model(x[1:])[0], scores[1:])
    torch.testing.assert_close(model(x[1:])[1], maps[1:])
    x = x[:1].requires_grad_()
    (slope,) = torch.autograd.grad(model(x)[1][0, 0, 0, 0], x)
    assert slope[0, 0, 0, 0] != 0 and slope[0, 0, -1, -1] != 0


# ---------------------------------------------------------------- losses


def test_gradient_penalty_of_a_linear_critic():
    """Its slope is its weight wherever it is asked: (‖w‖ - 1)², and the derivative 2 (‖w‖ - 1) w / ‖w‖."""
    w = normal(1, 6, 5).requires_grad_()
    real, fake = normal(4, 1, 6, 5, seed=1), normal(4, 1, 6, 5, seed=2)
    penalty = adversarial.gradient_penalty(lambda x: (x * w).sum((1, 2, 3)), real, fake, None)
    norm = w.detach().norm()
    torch.testing.assert_close(penalty, (norm - 1).square())
    penalty.backward()
    torch.testing.assert_close(w.grad, 2 * (norm - 1) * w.detach() / norm)


def test_gradient_penalty_asks_between_real_and_fake():
    """The slope of ½‖x‖² is x: between 0 and an image of norm 1 its length is the share that was drawn."""
    draw = torch.Generator().manual_seed(3)
    shares = torch.rand(3, 1, 1, 1, generator=torch.Generator().manual_seed(3))
    real = F.normalize(normal(3, 16), dim=1).reshape(3, 1, 4, 4).float()
    penalty = adversarial.gradient_penalty(lambda x: 0.5 * x.square().sum((1, 2, 3)), real, 0 * real, draw)
    torch.testing.assert_close(penalty, (shares - 1).square().mean())
    with pytest.raises(ShapeError, match="differ in shape"):
        adversarial.gradient_penalty(lambda x: x.sum(), real, real[..., :3], draw)


def test_wasserstein_critic_term_by_term():
    w, real = normal(1, 4, 4), normal(3, 1, 4, 4, seed=1)
    fake = normal(3, 1, 4, 4, seed=2).requires_grad_()

    def critic(x):
        return (x * w).sum((1, 2, 3))

    terms = adversarial.wasserstein_critic(critic, real, fake, None, penalty=7.0)
    distance = critic(real).mean() - critic(fake).mean()
    torch.testing.assert_close(terms["distance"], distance.detach())
    torch.testing.assert_close(terms["loss"], 7 * (w.norm() - 1).square() - distance.detach())
    assert not terms["distance"].requires_grad  # the fake is a constant for the critic


def test_hinge_and_least_squares_by_hand():
    real, fake = torch.tensor([2.0, 1.0, 0.5, -1.0]), torch.tensor([-3.0, -1.0, 0.0, 2.0])
    assert float(adversarial.hinge_discriminator(real, fake)) == (0.5 + 2) / 8 + (1 + 3) / 8
    assert float(adversarial.hinge_generator(fake)) == 0.5
    assert float(adversarial.least_squares(real, 1.0)) == (1 + 0 + 0.25 + 4) / 4
    assert float(adversarial.least_squares(fake, torch.tensor([-3.0, -1.0, 1.0, 2.0]))) == 0.25


def test_sobel_of_a_ramp_and_of_flat_images():
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(9.0), indexing="ij")
    ramp = (0.3 * x - 0.4 * y)[None, None].double()
    inside = adversarial.sobel(ramp)[..., 1:-1, 1:-1]
    torch.testing.assert_close(inside, torch.full_like(inside, math.sqrt((2 * 0.5) ** 2 + 1e-4)))
    flat = torch.ones(1, 1, 6, 6, requires_grad=True)
    slopes = adversarial.sobel(flat)
    torch.testing.assert_close(slopes[..., 1:-1, 1:-1], torch.full((1, 1, 4, 4), 0.01))
    slopes.sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_cutmix_masks():
    """Rectangles of zeros, one an image, whose area before it is cut off at the edge is uniform."""
    masks = adversarial.cutmix_mask((2000, 1, 24, 40), torch.Generator().manual_seed(0))
    assert masks.shape == (2000, 1, 24, 40) and set(masks.unique().tolist()) == {0.0, 1.0}
    hole = masks[:, 0] == 0
    rows, columns = hole.any(2), hole.any(1)
    assert torch.equal(hole, rows[:, :, None] & columns[:, None, :])
    for edges in (rows, columns):  # without gaps
        assert (edges.int().diff(dim=1).abs().sum(1) <= 2).all()
    # sides in the image's proportion: √u of each, u uniform and the centre c too. Their share that is inside has the
    # mean E[s²(1 - s/4)²] = 1/2 - E[s³]/2 + E[s⁴]/16 = 1/2 - 1/5 + 1/48, since ∫|min(c + s/2, 1) - max(c - s/2, 0)| dc
    # is s - s²/4
    assert float(hole.float().mean()) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.02)
    again = adversarial.cutmix_mask((2000, 1, 24, 40), torch.Generator().manual_seed(0))
    assert torch.equal(masks, again)


class PixelJudge(nn.Module):
    """Its score is an image's mean and its map the image, so that every term is known."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return x.mean((1, 2, 3)), x


def test_unet_discriminator_loss_term_by_term():
    real, fake, low = (normal(3, 1, 8, 8, seed=s, dtype=torch.float32) for s in range(3))
    fake.requires_grad_()
    judge = PixelJudge()
    terms = adversarial.unet_discriminator(judge, real, [fake, low], None)

    def score(x):
        return x.detach().mean((1, 2, 3))

    plain = (score(real) - 1).square().mean() + (real - 1).square().mean()
    plain = plain + sum(score(x).square().mean() + x.detach().square().mean() for x in (fake, low))
    torch.testing.assert_close(terms["loss"], plain)
    assert "consistency" not in terms and not terms["loss"].requires_grad
    draw = torch.Generator().manual_seed(5)
    terms = adversarial.unet_discriminator(judge, real, [fake, low], draw, cutmix_probability=1.0, consistency=3.0)
    mixed = judge.seen[-1][-3:]
    mask = (mixed == real).float()
    assert 0 < mask.mean() < 1 and torch.equal(mixed, torch.where(mask > 0, real, fake.detach()))
    # this judge's map of a mix is the mix of its maps
    assert float(terms["consistency"]) == 0
    torch.testing.assert_close(terms["loss"], plain + score(mixed).square().mean() + (mixed - mask).square().mean())


def test_consistency_costs_what_a_judge_makes_of_the_seam():
    """A judge that shifts its map by a column errs where the column beside is of the other image."""

    class Shifted(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3)), x.roll(1, 3)

    real, fake = torch.ones(4, 1, 8, 8), torch.zeros(4, 1, 8, 8)
    probe, judge = PixelJudge(), Shifted()
    losses = []
    for consistency in (0.0, 2.0):
        draw = torch.Generator().manual_seed(5)
        options = dict(cutmix_probability=1.0, consistency=consistency)
        losses.append(adversarial.unet_discriminator(judge, real, [fake], draw, **options))
    adversarial.unet_discriminator(probe, real, [fake], torch.Generator().manual_seed(5), cutmix_probability=1.0)
    mask = probe.seen[0][-4:]
    seam = (mask.roll(1, 3) - mask).square().mean()
    torch.testing.assert_close(losses[1]["consistency"], seam)
    torch.testing.assert_close(losses[1]["loss"] - losses[0]["loss"], 2 * seam)
    assert seam > 0


def test_cutmix_happens_with_its_probability():
    draw, judge = torch.Generator().manual_seed(1), PixelJudge()
    images = torch.zeros(1, 1, 4, 4)
    for _ in range(400):
        adversarial.unet_discriminator(judge, images, [images], draw, cutmix_probability=0.3)
    # 400 draws: a standard error of 2.3 %
    assert sum(len(x) == 3 for x in judge.seen) / 400 == pytest.approx(0.3, abs=0.07)


def test_unet_generator_by_hand():
    x = normal(2, 1, 8, 8, dtype=torch.float32)
    expected = (x.mean((1, 2, 3)) - 1).square().mean() + (x - 1).square().mean()
    torch.testing.assert_close(adversarial.unet_generator(PixelJudge(), x), expected)


# ---------------------------------------------------------------- VGG-19


def test_vgg19_goes_to_its_last_convolution(tmp_path, monkeypatch):
    """``features[34]``: the sixteenth convolution, without its ReLU, after four halvings."""
    widths, weights, channels, i = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8, {}, 3, 0
    for n, c in enumerate(widths):
        i += 1 if n in (2, 4, 8, 12) else 0  # the pooling before it
        weights[f"features.{i}.weight"] = torch.full((c, channels, 3, 3), 1e-3)
        weights[f"features.{i}.bias"] = torch.full((c,), -1e6 if n == 15 else 0.1)
        channels, i = c, i + 2
    assert max(int(name.split(".")[1]) for name in weights) == 34
    (maps,) = VGG19Features(weights, layers=("conv5_4",))(torch.zeros(1, 1, 32, 32))
    assert maps.shape == (1, 512, 2, 2) and maps.min() < 0
    with pytest.raises(ParameterError, match="VGG-19 has no layers"):
        VGG19Features(weights, layers=("conv5_3",))
    with pytest.raises(CheckpointError, match="vgg16"):
        perceptual.VGG16Features({})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(CheckpointError, match="VGG-19's ImageNet weights are not in torch's cache"):
        vgg19_features()


# ---------------------------------------------------------------- recipes


STEPS = 4


@dataclass(frozen=True)
class Squares(Dataset):
    """Training data without a bank: bright squares on soft tissue with white noise."""

    embedded = "squares"

    def open(self, collection=None) -> Squares:
        return self

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        target = torch.full((1, 32, 32), 40.0)
        target[:, 3 + n % 7 : 16, 9:22] += 60
        return {
            "target_hu": target,
            "ldct_hu": target + 30 * normal(1, 32, 32, seed=n, dtype=torch.float32),
            "noise_sd_hu": torch.tensor(30.0),
        }


PATCHES = Squares()


class MeanFeatures(nn.Module):
    """In place of VGG: the image and its block means."""

    def forward(self, x):
        return [x, F.avg_pool2d(x, 4)]


@pytest.fixture
def tiny(monkeypatch):
    """The workshop's recipes at a size for a test; the stages are theirs, the first one short."""
    monkeypatch.setattr(recipe_file, "perceptual_features", lambda context: (MeanFeatures(), SEEN))
    judges = {"wgan_critic": dict(patch=32, width=1), "unet_discriminator": dict(width=1, levels=2)}
    small = {"wgan_vgg": dict(channels=4, layers=3), "dugan": dict(channels=2, layers=2, final_relu=False)}
    for name in ("wgan_vgg", "dugan"):
        chosen = recipes.recipe(name, "workshop")

        def cut(stage: Stage) -> Stage:
            config = replace(stage.train, steps=STEPS, batch_size=2, log_every=1, checkpoint_every=1, accumulation=1)
            options = stage.options | (dict(alone=0.25, repeat=2) if stage.options["adversarial"] else {})
            return replace(stage, train=config, data=PATCHES, options=options, needs=())

        networks = {k: Network(n.model, (judges | small)[n.model]) for k, n in chosen.networks.items()}
        made = replace(chosen, stages=tuple(map(cut, chosen.stages)), networks=networks)
        monkeypatch.setitem(recipes.RECIPES, f"tiny_{name}", {"train": made})


@pytest.mark.parametrize("name", ["wgan_vgg", "dugan"])
def test_stopped_and_resumed_bit_for_bit(name, tiny, tmp_path):
    """Both stages, at every step: spectral norms, a judge that sleeps, one that learns alone, CutMix's draws."""

    def run(folder, **options):
        return [log for _, log in recipes.run(f"tiny_{name}", out=folder, device="cpu", progress=False, **options)]

    (*_, last) = run(tmp_path / "whole")
    for stage in ("regression", "adversarial"):
        for step in range(1, STEPS + 1):  # each call ends after one step
            (log,) = run(tmp_path / "parts", stage=stage, max_seconds=1e-9)
            assert log.step == step
    for file in (f"tiny_{name}-adversarial.state", f"tiny_{name}.safetensors", f"tiny_{name}-regression.safetensors"):
        kind = "ldctlib-training-state/2" if file.endswith(".state") else checkpoints.FORMAT
        (whole, _), (parts, _) = (
            checkpoints.read_tensors(tmp_path / at / file, kind=kind) for at in ("whole", "parts")
        )
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[k], parts[k]) for k in whole if not k.startswith(("sum.", "term."))), file
    made = checkpoints.load(tmp_path / "whole" / f"tiny_{name}.safetensors")
    assert made.model == name and made.stages[1]["options"]["adversarial"] is True
    judges = {"wgan_vgg": {"critic"}, "dugan": {"image_judge", "gradient_judge"}}[name]
    assert last.lr.keys() == judges | {"generator"}


def test_dugan_s_updates_equal_a_plain_loop(tiny):
    """Three networks and their Adams written out, from the published formulas: step by step, weight by weight.

    The plain loop computes the estimate anew for each network, and draws from the losses' own generators.
    """
    chosen = recipes.recipe("tiny_dugan")
    stage = replace(chosen.stages[1], options=chosen.stages[1].options | dict(cutmix=0.9))
    built = {k: n.build(7 + i) for i, (k, n) in enumerate(chosen.networks.items())}
    plain = {k: n.build(7 + i) for i, (k, n) in enumerate(chosen.networks.items())}
    updates = recipe_file.dugan_updates(recipes.Context(chosen, stage, built, {}, torch.device("cpu")))
    draws: list[torch.Tensor] = []

    def noted(update):
        def loss(networks, batch, generator, step):
            draws.append(generator.get_state())
            return update.loss(networks, batch, generator, step)

        return replace(update, loss=loss)

    data, config = PATCHES.open(), replace(stage.train, channels_last=False, device="cpu")
    logs = list(train(built, [noted(u) for u in updates], data, config, progress=False))
    rates = stage.options["optimizers"]
    adams = {
        k: torch.optim.Adam(
            n.parameters(), fused=True, betas=rates["generator" if k == "generator" else "judges"]["betas"]
        )
        for k, n in plain.items()
    }
    warm, drawn_from, mixes = 0.5 * STEPS, iter(draws), 0

    def move(name, loss, step, start=0):
        for network in plain.values():
            network.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain[name].parameters(), 1.0)
        rate = rates["generator" if name == "generator" else "judges"]["lr"]
        for group in adams[name].param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * (step - start) / (STEPS - start)))
        adams[name].step()

    def seen(hu):
        return (hu + 300) / 600

    def estimate(batch):
        return seen(1000 * plain["generator"](batch["ldct_hu"] / 1000))

    def square(x, target):
        return ((x - target) ** 2).mean()

    for step in range(STEPS):
        batch = default_collate([data[n] for n in (2 * step, 2 * step + 1)])
        for name in ("image_judge", "gradient_judge"):
            view = adversarial.sobel if name == "gradient_judge" else (lambda x: x)
            for _ in range(2):
                real, low, fake = (
                    view(seen(batch["target_hu"])),
                    view(seen(batch["ldct_hu"])),
                    view(estimate(batch).detach()),
                )
                draw = torch.Generator()
                draw.set_state(next(drawn_from))
                images, probability = [real, fake, low], 0.9 * min(1, step / warm)
                if step and float(torch.rand((), generator=draw)) < probability:
                    mask = adversarial.cutmix_mask(real.shape, draw)
                    images.append(mask * real + (1 - mask) * fake)
                scores, maps = (out.chunk(len(images)) for out in plain[name](torch.cat(images)))
                loss = square(scores[0], 1) + square(maps[0], 1)
                loss = loss + square(scores[1], 0) + square(maps[1], 0) + square(scores[2], 0) + square(maps[2], 0)
                if len(images) == 4:
                    consistent = square(maps[3], mask * maps[0] + (1 - mask) * maps[1])
                    loss = loss + square(scores[3], 0) + square(maps[3], mask) + 5.09 * consistent
                    mixes += 1
                move(name, loss, step)
        if step >= 1:  # a quarter of the steps: the judges were alone in the first
            next(drawn_from)
            fake, real = estimate(batch), seen(batch["target_hu"])
            slopes, terms = adversarial.sobel(fake), []
            for name, x in (("image_judge", fake), ("gradient_judge", slopes)):
                score, pixels = plain[name](x)
                terms.append(square(score, 1) + square(pixels, 1))
            loss = 0.142 * terms[0] + 0.120 * terms[1] + 5.03 * square(fake, real)
            loss = loss + 35.3 * (slopes - adversarial.sobel(real)).abs().mean()
            # differences of rounding in the order of sums
            assert logs[step].terms["generator/loss"] == pytest.approx(loss.item(), rel=1e-4)
            move("generator", loss, step, start=1)
    assert mixes > 2 and next(drawn_from, None) is None
    for name, network in built.items():
        for key, p in network.named_parameters():
            # Adam steps by the rate whatever the gradient's size, so rounding of a tiny gradient may turn a part of it
            torch.testing.assert_close(p, plain[name].get_parameter(key), rtol=1e-3, atol=2e-5, msg=f"{name}.{key}")


def test_judges_sleep_through_the_regression_stage(tiny):
    chosen = recipes.recipe("tiny_wgan_vgg")
    built = {k: n.build(i) for i, (k, n) in enumerate(chosen.networks.items())}
    before = {k: p.clone() for k, p in built["critic"].named_parameters()}
    context = recipes.Context(chosen, chosen.stages[0], built, {}, torch.device("cpu"))
    data, config = PATCHES.open(), replace(chosen.stages[0].train, steps=2, device="cpu")
    first, _ = train(built, recipe_file.wgan_vgg_updates(context), data, config, progress=False)
    assert set(first.terms) == {"generator/loss"}
    batch = default_collate([data[0], data[1]])
    alone = weighted_mse(HU_RANGE)(lambda x: x, batch, None, 0)  # the generator starts as identity
    assert first.terms["generator/loss"] == pytest.approx(float(alone), rel=1e-5)
    assert all(torch.equal(p, before[k]) for k, p in built["critic"].named_parameters())


def test_the_estimate_is_computed_once_a_step(tiny):
    chosen, calls = recipes.recipe("tiny_dugan"), []
    built = {k: n.build(i) for i, (k, n) in enumerate(chosen.networks.items())}
    built["generator"].register_forward_hook(lambda *_: calls.append(1))
    context = recipes.Context(chosen, chosen.stages[1], built, {}, torch.device("cpu"))
    config = TrainConfig(steps=3, batch_size=2, device="cpu")
    list(train(built, recipe_file.dugan_updates(context), PATCHES.open(), config, progress=False))
    assert len(calls) == 3


def test_published_settings():
    """Of Q-AE's and DU-GAN's code and of WGAN-VGG; the networks are the published ones at every profile."""
    adam = ("adam", (0.9, 0.999), "constant", None)
    for stage, lr in zip(recipes.recipe("qae", "paper").stages, (4e-4, 2e-4), strict=True):
        config = stage.train
        assert (config.kind, config.betas, config.schedule, config.clip_norm, config.lr) == (*adam, lr)
        assert (config.batch_size, stage.data.patch, config.steps) == (50, 64, 10 * 64_000 // 50)
    (stage,) = recipes.recipe("dugan", "paper").stages
    assert stage.options["weights"] == dict(image=0.142, gradient=0.120, mse=5.03, slopes=35.3)
    assert stage.options["consistency"] == 5.09 and stage.train.steps == 100_000
    rates = stage.options["optimizers"]
    assert (rates["generator"]["lr"], rates["judges"]["lr"]) == (1.81e-4, 7.12e-5)
    for optimizer in (Optimizer(**settings) for settings in rates.values()):
        assert (optimizer.kind, optimizer.betas, optimizer.schedule, optimizer.clip_norm) == adam
    assert (stage.train.batch_size, stage.data.patch, stage.options["cutmix"], stage.options["repeat"]) == (
        64,
        64,
        0.762,
        1,
    )
    assert stage.options["cutmix_warmup"] * stage.train.steps == 1000
    (stage,) = recipes.recipe("wgan_vgg", "paper").stages
    assert stage.options["features"] == "vgg19" and stage.options["repeat"] == 4
    assert (stage.train.batch_size, stage.data.patch, stage.train.steps) == (128, 64, 100 * (100_096 // 128))
    for settings in stage.options["optimizers"].values():
        assert settings == dict(kind="adam", betas=(0.5, 0.9), lr=1e-5, schedule="constant", clip_norm=None)
    assert recipes.recipe("wgan_vgg").stages[1].options["features"] == "vgg16"
    for name in ("qae", "wgan_vgg", "dugan"):
        own, train_size, workshop_size = (recipes.recipe(name, p).saved for p in ("paper", "train", "workshop"))
        assert train_size == workshop_size
        assert own.config == {key: value for key, value in train_size.config.items() if key != "limits"}
