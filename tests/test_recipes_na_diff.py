"""NA-Diff's recipes: images are encoded once, variants start from one another, published models take the same path."""

import pytest
import torch

from ldctlib import checkpoints, recipes
from ldctlib.pipelines.published_vae import published_vae
from ldctlib.pipelines.synthesis import SynthesisPipeline
from ldctlib.recipes.na_diff import VARIANTS
from tests.test_synthesis import place_autoencoder


def train(name, folder, profile="workshop", **options):
    for _ in recipes.run(name, profile, out=folder, progress=False, device="cpu", **options):
        pass


def test_variants_start_from_one_another_and_share_their_encoded_images(tmp_path):
    place_autoencoder(tmp_path)
    for name in ("na_natural", "na_diff_b", "na_diff_d", "na_diff_spatial"):
        train(name, tmp_path)
    assert len(list(tmp_path.glob("encoded-*.safetensors"))) == 2  # of photographs and of CT
    made = [checkpoints.load(tmp_path / f"{name}.safetensors") for name in ("na_diff_b", "na_diff_d")]
    assert all(set(c.uses) == {"na_autoencoder", "clip"} for c in made)
    # the unit of rho's input is that of each variant's own condition
    b, d = (c.state_dict["vector_mean"] for c in made)
    assert b.abs().max() > 0 and (b - d).abs().mean() > 0.1 * b.abs().mean()
    assert SynthesisPipeline.from_checkpoint(tmp_path / "na_diff_spatial.safetensors").sources == [
        "noise",
        "anatomy_map",
    ]


def test_what_pre_training_hands_on_is_all_but_its_condition(tmp_path):
    place_autoencoder(tmp_path)
    train("na_natural", tmp_path)
    start = checkpoints.load(tmp_path / "na_natural.safetensors").state_dict
    network = recipes.recipe("na_diff_b", "workshop").saved
    model = network.build(0)
    anew = network.place(model, checkpoints.load(tmp_path / "na_natural.safetensors"))
    assert anew and all(name.startswith("vector_") for name in anew)
    placed = model.state_dict()
    assert all(torch.equal(placed[name].half(), start[name].half()) for name in placed if name not in anew)
    assert {name for name in start if name not in placed} == {n for n in start if n.startswith("hint_")}


def test_published_models_take_the_same_path(tmp_path, tiny_vae, clip_folder):
    """The paper's profile, dry, on a tiny AutoencoderKL and a tiny CLIPModel that lie in folders."""
    chosen = recipes.recipe("na_diff_f", "paper")
    assert (chosen.saved.config["hidden_size"], chosen.saved.config["depth"]) == (1024, 24)
    for name in ("na_natural", "na_diff_f"):
        train(name, tmp_path, "paper", dry_run=True, options=dict(vae=str(tiny_vae), clip=str(clip_folder)))
    made = SynthesisPipeline.from_checkpoint(tmp_path / "dry-run" / "na_diff_f.safetensors")
    assert made.network.vector_dim == 32 and made.spec.uses == ()
    noise, mask = torch.full((1, 1, 64, 64), 12.0), torch.ones(1, 1, 64, 64, dtype=torch.uint8)
    encoded = made.encode_conditions(noise_map_hu=noise, mask=mask)
    *_, last = made.steps(encoded, 1, (64, 64), generators=[torch.Generator().manual_seed(0)], steps=2)
    assert made.decode(last.x0_hat).shape == (1, 1, 64, 64)


def test_a_published_autoencoder_sees_grey_as_three_channels(tiny_vae):
    vae = published_vae(tiny_vae)
    x = torch.linspace(-1.2, 1.2, 64 * 64).view(1, 1, 64, 64)
    posterior = vae.encode(x)
    direct = vae.vae.encode(x.clamp(-1, 1).expand(-1, 3, -1, -1)).latent_dist
    assert torch.equal(posterior.mean, direct.mean) and vae.factor == 8
    assert torch.equal(vae.decode(posterior.mean)[:, 0], vae.vae.decode(direct.mean).sample.mean(1))
    assert vae.latent_scale == pytest.approx(0.18215)


def test_variants_are_the_paper_s():
    """Table 1: what each starts from and is conditioned on."""

    def conditions(name):
        return {source for sources in VARIANTS[name][1].values() for source in sources}

    assert [VARIANTS[f"na_diff_{v}"][0] for v in "abcdef"] == [
        None, "na_natural", "na_diff_a", "na_diff_b", None, "na_natural"
    ]  # fmt: skip
    assert [conditions(f"na_diff_{v}") for v in "abcdef"] == [{"noise"}] * 2 + [{"anatomy"}] * 2 + [
        {"noise", "anatomy"}
    ] * 2
