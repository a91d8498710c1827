"""Synthesis from conditions: what is trained is what is sampled; an image depends on its seed and conditions alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ldctlib import checkpoints, generators
from ldctlib.data.anatomy_masks import CLASSES, LIVER
from ldctlib.errors import CheckpointError, ParameterError, ShapeError
from ldctlib.generators import Generator
from ldctlib.models.dit import DiT
from ldctlib.models.noise_autoencoder import NoiseAutoencoder
from ldctlib.pipelines import PipelineSpec
from ldctlib.pipelines.synthesis import SynthesisPipeline
from ldctlib.recipes.na_diff import PROCESS, WINDOW_RANGE

AUTOENCODER = dict(width=8, channel_mult=[1, 1], latent_channels=4, blocks=1, attention_at=[], stem=4, norm_groups=4)
TINY_DIT = dict(input_size=8, patch_size=4, in_channels=4, hidden_size=32, depth=2, num_heads=2)
UNTRAINED = dict(collection="none", cases="none", seed=0, steps=0, profile="test", code_revision="none")
BOTH = {"vector": ["noise", "anatomy"]}


def place_autoencoder(folder: Path) -> Path:
    """A tiny autoencoder that nobody has trained, as the checkpoint that generators ask for."""
    torch.manual_seed(0)
    told = dict(config=AUTOENCODER, hu_range=WINDOW_RANGE, recipe="na_autoencoder", trained_on=UNTRAINED)
    path, network = folder / "na_autoencoder.safetensors", NoiseAutoencoder(**AUTOENCODER)
    return checkpoints.save(path, network, model="noise_autoencoder", **told)


@pytest.fixture(scope="module")
def used(tmp_path_factory) -> dict[str, checkpoints.Checkpoint]:
    autoencoder = checkpoints.load(place_autoencoder(tmp_path_factory.mktemp("ae")))
    return {"na_autoencoder": autoencoder, "clip": checkpoints.load(checkpoints.find("clip"))}


def pipeline(used, conditions=BOTH, **config) -> SynthesisPipeline:
    torch.manual_seed(1)
    vectors = len(conditions.get("vector", ()))
    dit = DiT(**TINY_DIT, **(dict(vectors=vectors, vector_dim=128) if vectors else {}), **config)
    for p in dit.parameters():  # adaLN-Zero answers 0 to everything
        torch.nn.init.normal_(p, std=0.05)
    spec = PipelineSpec(PROCESS, "na_autoencoder", conditions=conditions, clip="clip" if vectors else None)
    return SynthesisPipeline(dit.requires_grad_(False), spec, used)


@pytest.fixture
def scene() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    mask = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    mask[:, :, 10:50, 8:56] = 1
    mask[0, :, 20:40, 10:30] = LIVER
    return {
        "image_hu": 40 + 60 * torch.randn(2, 1, 64, 64, generator=generator),
        "noise_map_hu": 10 + 5 * torch.rand(2, 1, 64, 64, generator=generator),
        "mask": mask,
    }


def test_the_loss_is_that_of_the_network_that_is_sampled(used, scene):
    """The training's loss by hand, with the conditions that sampling makes, from the same random numbers."""
    model = pipeline(used)
    conditions = model.encode_conditions(noise_map_hu=scene["noise_map_hu"], mask=scene["mask"])
    batch = model.encode_images(scene["image_hu"]) | conditions
    loss = model.loss(model.network, batch, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    z = batch["mean"] + torch.exp(0.5 * batch["logvar"]) * torch.randn(batch["mean"].shape, generator=generator)
    inputs = {"vector": torch.stack([conditions["noise"], conditions["anatomy"]], dim=1)}
    by_hand = model.process.loss(
        lambda x_t, t: model.network(x_t, t, **inputs), model.autoencoder.scale(z), generator=generator
    )
    assert torch.equal(loss, by_hand)


def test_condition_vectors_are_of_about_unit_size(used, scene):
    model = pipeline(used)
    vectors = model.encode_conditions(noise_map_hu=scene["noise_map_hu"], mask=scene["mask"])
    for name in ("noise", "anatomy"):
        torch.testing.assert_close(vectors[name].square().mean(dim=1), torch.ones(2))


def test_guidance_moves_away_from_the_unconditional_prediction(used, scene):
    model = pipeline(used)
    encoded = model.encode_conditions(noise_map_hu=scene["noise_map_hu"], mask=scene["mask"])
    x_t, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4)), torch.tensor([500, 500])
    none, single, double = (model.predictor(encoded, w)(x_t, t) for w in (0.0, 1.0, 2.0))
    torch.testing.assert_close(double - single, single - none)
    gone = torch.ones(2, 2, dtype=torch.bool)
    null = model.process.predictor(lambda x, t: model.network(x, t, **model.inputs(encoded), dropped=gone))
    torch.testing.assert_close(none, null(x_t, t))
    assert not torch.allclose(single, none)


@pytest.mark.parametrize(
    ("conditions", "config"),
    [
        (BOTH, {}),
        ({"vector": ["noise"], "hint": ["anatomy_map"]}, dict(hint_channels=len(CLASSES))),
        ({"hint": ["noise_map"]}, dict(hint_channels=4, hint_mode="modulate")),
    ],
)
def test_an_image_depends_on_its_own_seed_and_conditions(used, scene, conditions, config):
    generate = Generator("na_diff_f", pipeline(used, conditions, **config))
    how = dict(dose=[0.1, 1.0], steps=3)
    both = generate(scene["mask"], seeds=[5, 6], **how)
    assert both.shape == (2, 1, 64, 64) and bool(((both >= -160) & (both <= 240)).all())
    alone = generate(scene["mask"][1:], seeds=[6], **how | dict(dose=1.0))
    torch.testing.assert_close(both[1:], alone, atol=2e-3, rtol=0)  # HU; other batches add in another order
    assert not torch.allclose(alone, generate(scene["mask"][1:], seeds=[7], **how | dict(dose=1.0)), atol=1.0)
    assert not torch.equal(alone, generate(scene["mask"][1:], seeds=[6], noise=False, **how | dict(dose=1.0)))


@pytest.mark.parametrize("conditions", [BOTH, {"vector": ["anatomy"]}])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dict(dose=float("nan")), "fraction of full dose"),
        (dict(dose=5), "fraction of full dose"),
        (dict(dose=[0.1, 0.2, 0.3]), "need one dose or as many"),
        (dict(pixel_mm=-1), "pixel_mm lies in"),
        (dict(pixel_mm=50), "pixel_mm lies in"),
        (dict(full_dose_sd_hu=500), "full_dose_sd_hu lies in"),
        (dict(kernel="B99"), "no kernel is named"),
        (dict(seeds=0), "seeds are whole numbers"),
        (dict(seeds=None), "seeds are whole numbers"),
        (dict(seeds="none"), "seeds are whole numbers"),
        (dict(seeds=[0.5, 1]), "seeds are whole numbers"),
        (dict(seeds=[]), "seeds are whole numbers"),
        (dict(steps=2.5), "whole ones"),
        (dict(guidance=float("nan")), "guidance is a finite number"),
        (dict(noise_map_hu=np.zeros((2, 1, 64, 64))), "torch tensor"),
    ],
)
def test_every_order_is_checked_whatever_the_model_looks_at(used, scene, conditions, wrong, says):
    generate = Generator("na_diff_d", pipeline(used, conditions))
    with pytest.raises(ParameterError, match=says):
        generate(scene["mask"], **dict(seeds=[1, 2], steps=2) | wrong)


def test_masks_that_are_none_and_devices_that_are_not_there(used, scene):
    generate = Generator("na_diff_f", pipeline(used))
    with pytest.raises(ParameterError, match="torch tensor, got ndarray"):
        generate(scene["mask"].numpy(), seeds=[1, 2])
    with pytest.raises(ShapeError, match="must be"):
        generate(scene["mask"][:0], seeds=[1])
    with pytest.raises(ParameterError, match="is not a device"):
        generators.load("na_diff_f", device="gpu")
    how = dict(seeds=np.arange(2), steps=1)
    same = [generate(scene["mask"], dose=dose, **how) for dose in (0.1, [0.1], np.array([0.1]), np.array([0.1, 0.1]))]
    assert all(torch.equal(image, same[0]) for image in same)


def test_what_does_not_fit_is_named(used, scene):
    generate = Generator("na_diff_f", pipeline(used))
    with pytest.raises(ShapeError, match="3 seeds"):
        generate(scene["mask"], seeds=[1, 2, 3])
    with pytest.raises(ParameterError, match="multiples of 32"):
        generate(scene["mask"][..., :48, :48], seeds=[1, 2])
    with pytest.raises(ParameterError, match="need one dose or as many"):
        generate(scene["mask"], seeds=[1, 2], dose=[0.1, 0.2, 0.3])
    with pytest.raises(ParameterError, match="give a mask"):
        generate.pipeline.encode_conditions(noise_map_hu=scene["noise_map_hu"])
    with pytest.raises(CheckpointError, match="takes vector, and the pipeline has hint"):
        spec = PipelineSpec(PROCESS, "na_autoencoder", conditions={"hint": ["noise_map"]}, clip="clip")
        SynthesisPipeline(DiT(**TINY_DIT, vectors=1, vector_dim=128), spec, used)
    with pytest.raises(ParameterError, match="vector is made of"):
        pipeline(used, {"vector": ["anatomy_map"]})
