"""Seg-Diff and ControlNet as recipes and generators: what their masks become, what stays frozen, published settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ldctlib import checkpoints, generators, recipes
from ldctlib.data.anatomy_masks import CLASSES, LIVER
from ldctlib.errors import CheckpointError, ParameterError, ShapeError
from ldctlib.generators import Generator
from ldctlib.models.unet import UNet
from ldctlib.pipelines import PipelineSpec
from ldctlib.pipelines.synthesis import PixelSynthesis
from ldctlib.recipes.na_diff import PROCESS, WINDOW_RANGE
from tests.test_synthesis import place_autoencoder

NAMES = ("na_base", "controlnet", "seg_diff", "seg_diff_corrected")
SOURCES = {"seg_diff": "anatomy_255", "seg_diff_corrected": "anatomy_one_hot"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where an autoencoder lies that nobody has trained, for each profile."""
    out = tmp_path_factory.mktemp("baselines")
    for profile in ("workshop", "paper"):
        lies_in = out / profile / "dry-run"
        lies_in.mkdir(parents=True)
        place_autoencoder(lies_in)
    return out


def trained(folder, profile: str) -> dict[str, Path]:
    """The checkpoints of dry runs, each run once."""
    files = {name: folder / profile / "dry-run" / f"{name}.safetensors" for name in NAMES}
    for name in NAMES:
        if not files[name].is_file():
            how = dict(out=folder / profile, device="cpu", progress=False, dry_run=True)
            assert [log.step for _, log in recipes.run(name, profile, **how)] == [1, 2]
    return files


@pytest.fixture(scope="module")
def mask() -> torch.Tensor:
    mask = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    mask[:, :, 10:50, 8:56] = 1
    mask[0, :, 20:40, 10:30] = LIVER
    mask[1, :, 20:40, 10:30] = len(CLASSES) - 1
    return mask


def pixels(source: str, cell: int = 4) -> PixelSynthesis:
    channels = 1 if source == "anatomy_255" else len(CLASSES)
    small = dict(model_channels=8, channel_mult=[1, 2], num_res_blocks=1, attention_at=[], norm_groups=4)
    network = UNet(in_channels=1, concat_channels=channels, **small)
    spec = PipelineSpec(PROCESS, conditions={"concat": [source]}, cell=cell)
    return PixelSynthesis(network, spec, {}, hu_range=WINDOW_RANGE)


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("cell", [1, 4])
def test_the_faithful_mask_is_its_class_over_255(mask, cell):
    """Of the pixel in the middle of a cell; the corrected one has a channel a class."""
    model = pixels("anatomy_255", cell)
    encoded = model.encode_conditions(mask=mask)
    assert encoded["mask"].dtype == torch.uint8
    concat, classes = model.inputs(encoded)["concat"], mask[..., cell // 2 :: cell, cell // 2 :: cell]
    assert concat.shape == (2, 1, 64 // cell, 64 // cell) and torch.equal(concat, classes.float() / 255)
    assert concat.max() == torch.tensor(11.0) / 255 and {0, 1, LIVER, 11} == set(
        (255 * concat).round().int().flatten().tolist()
    )
    model = pixels("anatomy_one_hot", cell)
    one_hot = model.inputs(model.encode_conditions(mask=mask))["concat"]
    assert torch.equal(one_hot, F.one_hot(classes[:, 0].long(), len(CLASSES)).permute(0, 3, 1, 2).float())


def test_images_are_means_of_cells_and_are_enlarged():
    model = pixels("anatomy_255")
    image = 40 + 300 * torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    x = model.encode_images(image)["image"]
    windowed = (image.clamp(-160, 240) - 40) / 200
    torch.testing.assert_close(x, windowed.unflatten(3, (8, 4)).unflatten(2, (8, 4)).mean(dim=(3, 5)))
    # a ramp's means lie on it; the bicubic filter (a = -.75) is off it by (2a + 1) s (1 - s) (1 - 2s) of a cell's step,
    # 26 HU, at a share s of the way: 1.06 HU at 1/8
    ramp = torch.linspace(-100, 100, 32).expand(1, 1, 32, 32)
    back = model.decode(model.encode_images(ramp)["image"], generators=[torch.Generator()])
    torch.testing.assert_close(back[..., 8:-8], ramp[..., 8:-8], atol=1.1, rtol=0)
    assert bool((model.decode(5 * torch.randn(1, 1, 8, 8)).abs() <= 240).all())
    whole = pixels("anatomy_255", cell=1)
    torch.testing.assert_close(whole.decode(whole.encode_images(ramp)["image"]), ramp, atol=1e-3, rtol=0)


def test_the_loss_is_that_of_the_network_that_is_sampled(mask):
    model = pixels("anatomy_one_hot")
    torch.nn.init.normal_(model.network.out[-1].weight, std=0.1)
    batch = model.encode_images(40 + 60 * torch.randn(2, 1, 64, 64)) | model.encode_conditions(mask=mask)
    loss = model.loss(model.network, batch, torch.Generator().manual_seed(3))
    concat = F.one_hot(batch["mask"][:, 0].long(), len(CLASSES)).permute(0, 3, 1, 2).float()
    by_hand = model.process.loss(
        lambda x_t, t: model.network(x_t, t, concat), batch["image"], generator=torch.Generator().manual_seed(3)
    )
    assert torch.equal(loss, by_hand)


def test_what_does_not_fit_is_named(mask):
    model = pixels("anatomy_255")
    with pytest.raises(ParameterError, match="guidance is 1"):
        model.predictor(model.encode_conditions(mask=mask), 2.0)
    with pytest.raises(ShapeError, match="no whole cells of 4 x 4"):
        model.encode_images(torch.zeros(1, 1, 62, 64))
    with pytest.raises(ParameterError, match="multiples of 8"):
        Generator("seg_diff", model)(mask[..., :60, :60], seeds=[0, 1])
    with pytest.raises(CheckpointError, match="needs the HU range"):
        PixelSynthesis(model.network, model.spec, {})
    with pytest.raises(ParameterError, match="concat is made of anatomy_one_hot, anatomy_255"):
        PixelSynthesis(model.network, PipelineSpec(PROCESS, conditions={"concat": ["anatomy_map"]}), {})


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize("profile", ["workshop", "paper"])
def test_dry_runs_train_and_sample(folder, mask, profile, one_thread):
    """ControlNet's base stays as it was trained, to the bit, and its control has moved; each generator follows its
    mask and seed."""
    files = trained(folder, profile)
    base, control = (checkpoints.load(files[name]) for name in ("na_base", "controlnet"))
    assert all(torch.equal(control.state_dict[f"base.{name}"], t) for name, t in base.state_dict.items())
    zero = [t for name, t in control.state_dict.items() if name.startswith("control.zero_convs")]
    assert len(zero) == 2 * len(checkpoints.build(control).control.skip_channels) and any(bool(t.any()) for t in zero)
    assert list(control.uses) == ["na_autoencoder"] and control.hu_range == WINDOW_RANGE
    for name in NAMES[1:]:
        generate = generators.load(name, path=files[name])
        assert generate.conditions == ("anatomy",)
        images = generate(mask, seeds=[1, 2], steps=2)
        assert images.shape == mask.shape and bool(((images >= -160) & (images <= 240)).all())
        again = generate(mask[1:], seeds=[2], steps=2, dose=0.05)  # no dose has an effect
        torch.testing.assert_close(images[1:], again, atol=2e-3, rtol=0)  # HU; other batches add in another order
        assert not torch.allclose(generate(mask[1:], seeds=[3], steps=2), again, atol=1.0)
        if name in SOURCES:
            assert checkpoints.load(files[name]).pipeline["conditions"] == {"concat": [SOURCES[name]]}


def test_guidance_starts_from_the_base(folder, mask, one_thread):
    """Without its mask ControlNet is the unconditional model."""
    pipeline = generators.load("controlnet", path=trained(folder, "workshop")["controlnet"]).pipeline
    x_t, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4)), torch.tensor([500, 500])
    encoded = pipeline.encode_conditions(mask=mask)
    assert torch.equal(encoded["mask"], mask) and pipeline.inputs(encoded)["hint"].shape == (2, len(CLASSES), 64, 64)
    none, single, double = (pipeline.predictor(encoded, w)(x_t, t) for w in (0.0, 1.0, 2.0))
    torch.testing.assert_close(none, pipeline.process.predictor(pipeline.network.base)(x_t, t))
    torch.testing.assert_close(double - single, single - none)


def test_published_settings():
    """Seg-Diff: the network of 113,669,761 weights, AdamW at 1e-4, 500 steps of warm-up, gradients clipped at 1, no
    EMA, 256 x 256 pixels. ControlNet: 1e-5, its hint at the image's size."""
    chosen = recipes.recipe("seg_diff", "paper")
    with torch.device("meta"):
        network = UNet(**chosen.saved.config)
    assert sum(p.numel() for p in network.parameters()) == 113_669_761
    assert network.skip_channels == (128,) * 7 + (256,) * 6 + (512,) * 5
    (stage,) = chosen.stages
    c = stage.train
    assert (c.kind, c.lr, c.warmup_steps, c.clip_norm, c.ema_decay, c.batch_size) == ("adamw", 1e-4, 500, 1.0, 0.0, 32)
    assert (stage.data.size, chosen.pipeline.cell, chosen.pipeline.process["prediction"]) == (256, 1, "eps")
    control = recipes.recipe("controlnet", "paper")
    assert control.stages[0].train.lr == 1e-5 and control.networks["controlnet"].start == "na_base"
    assert control.saved.config["base"] == recipes.recipe("na_base", "paper").saved.config


def test_all_learn_from_the_slices_of_the_variants():
    """From as many, in batches of as many; the base takes as many steps, which are as long."""
    for name, variant in zip(NAMES, ("na_diff_a", *["na_diff_c"] * 3), strict=True):
        (mine,), (theirs,) = recipes.recipe(name).stages, recipes.recipe(variant).stages
        assert mine.train.batch_size == theirs.train.batch_size and mine.train.steps <= theirs.train.steps
        assert mine.data == theirs.data and mine.options["n_images"] == theirs.options["n_images"]
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in checkpoints.model_class(r.model)(**r.config).parameters())
            for name in NAMES
            for r in [recipes.recipe(name).saved]
        }
    assert 2 * (sizes["controlnet"] + sizes["seg_diff"] + sizes["seg_diff_corrected"]) <= 3.6 * 2**20, sizes
