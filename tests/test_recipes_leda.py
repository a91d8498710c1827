"""LEDA's recipes: words are placed, two networks take turns as in a plain loop, the denoisers differ in their loss."""

from __future__ import annotations

import copy
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, default_collate

from ldctlib import checkpoints, recipes
from ldctlib.data.layouts import MAYO_PATIENTS
from ldctlib.errors import CheckpointError, ParameterError
from ldctlib.losses.adversarial import hinge_discriminator
from ldctlib.losses.language import THRESHOLDS
from ldctlib.models.patchgan import PatchGAN
from ldctlib.models.vqgan import VQGAN, VQGAN_RANGE
from ldctlib.pipelines.published_clip import PUBMEDCLIP, published_clip
from ldctlib.recipes import leda, running
from ldctlib.recipes.__main__ import main as recipes_main
from ldctlib.recipes.recipe import Context, Network, Recipe
from ldctlib.training import TrainConfig, train

SMALL = dict(width=8, channel_mult=(1, 2), z_channels=8, norm_groups=4, unshuffle=2, codebook_size=20, embed_dim=12)

pytestmark = pytest.mark.usefixtures("one_thread")


class Clip(nn.Module):
    """Words of random embeddings, which are right for an image by its mean."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table, self.slope = torch.randn(20, 12, generator=generator) * 0.1, torch.randn(20, generator=generator)

        self.eligible = torch.ones(20, dtype=torch.bool)
        self.words = ("ct", *(f"word {n}" for n in range(19)))

    def token_table(self) -> torch.Tensor:
        return self.table

    def similarity(self, images_hu: torch.Tensor) -> torch.Tensor:
        return torch.cos(images_hu.mean(dim=(1, 2, 3))[:, None] * self.slope)


class Squares(Dataset):
    """Bright squares in air, of 64 x 64 pixels, with noise."""

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(n)
        image = torch.full((1, 64, 64), -1000.0)
        y, x = torch.randint(0, 32, (2,), generator=generator)
        image[:, y : y + 32, x : x + 32] = 40.0 + n % 7 * 100
        noisy = image + 20 * torch.randn(image.shape, generator=generator)
        return {"full_dose_hu": noisy, "target_hu": image, "ldct_hu": noisy}

    def __len__(self) -> int:
        return 10**6


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    monkeypatch.setattr(Context, "frozen", lambda self, name: Clip() if name == "clip" else VQGAN(**SMALL))
    distance = lambda side, window=None: lambda a, b, generator: (a - b).abs().mean()  # noqa: E731
    monkeypatch.setattr(leda, "perceptual", distance)


def context(variant: str, **options) -> Context:
    chosen = recipes.recipe(f"vqgan_{variant}", "train")
    (stage,) = chosen.stages
    rates = dict(lr=1e-3, betas=(0.9, 0.99), schedule="constant", clip_norm=None)
    options = stage.options | dict(rates=rates, discriminator_start=0.5) | options
    stage = replace(stage, train=TrainConfig(steps=4, batch_size=2), options=options)
    torch.manual_seed(0)
    config = SMALL | dict(learned=variant == "learned")
    networks = {"autoencoder": VQGAN(**config), "discriminator": PatchGAN(width=4)}
    chosen = replace(
        chosen, networks={"autoencoder": Network("vqgan", config), "discriminator": Network("patchgan", {})}
    )
    return Context(chosen, stage, networks, {}, torch.device("cpu"), Squares())


def run(made: Context, steps: int = 4, **options):
    config = TrainConfig(steps=steps, batch_size=2, log_every=1, device="cpu", ema_decay=0.0)
    return list(train(made.networks, leda.vqgan_updates(made), Squares(), config, progress=False, **options))


@pytest.mark.parametrize("variant", leda.VARIANTS)
def test_variants_train_and_keep_frozen_words(variant):
    logs = run(made := context(variant))
    quantiser = made.network.quantiser
    assert isinstance(quantiser.codebook, nn.Parameter) == (variant == "learned")
    assert torch.equal(quantiser.codebook.detach(), Clip().table) == (variant != "learned")
    expected = {"loss", "mse", "commitment", "perceptual"} | ({"semantic", "omega"} if variant == "semantic" else set())
    first, last = logs[0].terms, logs[-1].terms
    assert {key.removeprefix("autoencoder/") for key in first} == expected
    assert set(last) - set(first) == {"autoencoder/gan", "discriminator/loss"}  # from step 2 of 4 on
    assert (
        torch.equal(logs[-1].ema_state_dict()["quantiser.codebook"], quantiser.codebook.detach())
        or variant == "learned"
    )


def test_the_updates_equal_a_plain_loop_with_two_optimisers():
    sgd = dict(lr=0.05, kind="sgd", schedule="constant", clip_norm=None)  # which keeps rounding small, unlike Adam
    made = context("semantic", discriminator_start=0.25, rates=sgd, begin=False)
    plain = {name: copy.deepcopy(n) for name, n in made.networks.items()}
    run(made)
    autoencoder, judge = plain.values()
    a, d = (torch.optim.SGD(n.parameters(), lr=0.05) for n in plain.values())
    clip, dataset = Clip(), Squares()
    autoencoder.set_codebook(clip.table)
    for network in plain.values():
        network.to(memory_format=torch.channels_last)
    for step in range(4):
        hu = default_collate([dataset[n] for n in (2 * step, 2 * step + 1)])["full_dose_hu"]
        x = VQGAN_RANGE.to_model(hu)
        image, quantised = autoencoder(x)
        loss = (image - x).square().mean() + 0.3 * quantised.commitment + leda.GENTLE["eta"] * (image - x).abs().mean()
        if step >= 1:
            loss = loss - leda.GENTLE["gamma"] * judge(image).mean()
        pools = leda.candidates(clip, hu)
        semantic = leda.semantic_loss(quantised.embeddings, clip.table, pools, temperature=0.05, of="any")
        (loss + leda.GENTLE["alpha"] * (loss / semantic.clamp(min=1.0)).item() * semantic).backward()
        a.step()
        for network in plain.values():
            network.zero_grad()
        if step >= 1:
            hinge_discriminator(judge(x), judge(image.detach())).backward()
            d.step()
            judge.zero_grad()
    for name, network in made.networks.items():
        for key, value in network.state_dict().items():
            torch.testing.assert_close(value, plain[name].state_dict()[key], rtol=1e-4, atol=1e-6, msg=f"{name} {key}")


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    for variant in ("learned", "semantic"):
        whole = run(context(variant))[-1]
        path = tmp_path / f"{variant}.state"
        for _ in range(4):
            last = run(made := context(variant), state_path=path, max_seconds=0)[-1]
        assert last.finished and last.terms == whole.terms
        expected = whole.ema_state_dict()
        assert all(torch.equal(t, expected[key]) for key, t in made.network.state_dict().items())


@pytest.mark.parametrize("variant", leda.VARIANTS)
def test_features_begin_where_the_words_are(variant):
    made, clip = context(variant), None if variant == "learned" else Clip()
    if clip is not None:
        made.network.set_codebook(clip.table)
    leda.place_codebook(made, clip, images=8)
    images = torch.stack([Squares()[n]["full_dose_hu"] for n in range(8)])
    z = made.network.encode(VQGAN_RANGE.to_model(images)).detach().movedim(1, -1).flatten(0, -2)
    codebook = made.network.quantiser.codebook.detach()
    if variant == "learned":
        assert all((z == word).all(dim=1).any() for word in codebook)
        assert made.network.quantiser.scale == leda.LEARNED_UNIT
    else:
        pools = leda.candidates(clip, images) if variant == "semantic" else torch.ones(1, 1, 20)
        often = pools.float().mean(dim=(0, 1))
        torch.testing.assert_close(z.mean(dim=0), often @ codebook / often.sum(), rtol=0, atol=2e-3)  # of words of 0.35
    assert len(made.network.quantise(VQGAN_RANGE.to_model(images)).indices[-1].unique()) > 5


def test_candidates_are_words_that_may_describe_an_image():
    clip, images = Clip(), torch.stack([Squares()[n]["full_dose_hu"] for n in range(8)])
    assert torch.equal(leda.candidates(clip, images), leda.candidate_pools(clip.similarity(images)))
    clip.eligible[1:10] = False
    assert not leda.candidates(clip, images)[..., 1:10].any()


def test_denoisers_differ_in_their_loss_alone():
    for model, names in (("redcnn", leda.LOSSES), ("esaunet", ("start", "mse", "perceptual", "leda"))):
        chosen = {name: recipes.recipe(f"{model}_{name}", "train") for name in names if name != "start"}
        (first, *others) = chosen.values()
        for other in others:
            assert other.networks == first.networks and other.hu_range == VQGAN_RANGE
            assert replace(other.stages[0], name="", options={}, needs=()) == replace(
                first.stages[0], name="", options={}, needs=()
            )
        assert first.networks[model].start == f"{model}_start"
    assert recipes.recipe("redcnn_leda_learned").stages[0].needs == ("vqgan_learned",)


@pytest.mark.parametrize("name", ["mse", "perceptual", "leda_c", "leda_d", "leda"])
def test_denoisers_sum_their_terms(name):
    (stage,) = recipes.recipe(f"redcnn_{name}", "train").stages
    batch = default_collate([Squares()[n] for n in range(2)])
    torch.manual_seed(0)
    loss = leda.denoiser_updates(Context(None, stage, {}, {}, torch.device("cpu")))
    terms = loss(lambda x: x, batch, torch.Generator(), 0)
    weights = {"mse": 1.0, "perceptual": leda.GENTLE_PERCEPTUAL, "leda_c": 0.5, "leda_d": 0.5}
    total = terms.pop("loss").item()
    assert set(terms) == {"mse", *(("leda_c", "leda_d") if name == "leda" else (name,))}
    assert total == pytest.approx(sum(weights[key] * term.item() for key, term in terms.items()), rel=1e-5)
    assert terms["mse"].item() == pytest.approx((20 / 3000) ** 2, rel=0.05)  # the noise of 8,192 pixels


def test_published_settings():
    """Section 3.1: AdamW (.9, .99), weight decay 1e-9, 1e-4 to 1e-6 along a cosine, 512 x 512; VQGAN's batches of 4."""
    for name in ("redcnn_leda", "esaunet_leda"):
        chosen = recipes.recipe(name, "paper")
        config, (stage,) = chosen.stages[0].train, chosen.stages
        assert (config.kind, config.betas, config.weight_decay, config.schedule) == (
            "adamw",
            (0.9, 0.99),
            1e-9,
            "cosine",
        )
        assert (config.lr, config.lr_end, stage.data.patch, stage.options["leda"]["weight"]) == (1e-4, 1e-6, 512, 0.5)
        assert (config.lr_at(0, 10), config.lr_at(10, 10)) == (1e-4, 1e-6) and config.clip_norm is None
        assert (config.batch_size, stage.epochs) == (4, 100)
        assert chosen.saved.start is None
    assert recipes.recipe("redcnn_leda", "paper").saved.config == dict(channels=96, final_relu=True)
    chosen = recipes.recipe("vqgan_semantic", "paper")
    (stage,), total = chosen.stages, leda.VQGANLoss()
    assert (stage.train.batch_size, stage.data.patch) == (4, 512)
    assert (total.alpha, total.beta, total.gamma, total.eta) == (0.3, 0.3, 0.1, 0.1)
    assert not {"alpha", "beta", "gamma", "eta"} & set(stage.options) and THRESHOLDS == (0.95, 0.9, 0.8)
    assert stage.options["clip"] == PUBMEDCLIP and chosen.saved.config["codebook_size"] == 49_408
    rates = stage.options["rates"]
    assert (rates["kind"], rates["lr"], rates["betas"], rates["schedule"]) == (
        "adam",
        4.5e-6 * 4,
        (0.5, 0.9),
        "constant",
    )


@pytest.mark.parametrize("variant", ["vocabulary", "semantic"])
def test_the_paper_profile_takes_a_clip_from_a_folder(variant, tmp_path, clip_folder, capsys):
    """The codebook becomes that model's token table, whatever its size, and stays it to the bit."""
    table = published_clip(clip_folder).token_table().detach()
    name, place = f"vqgan_{variant}", ["--out", str(tmp_path), "--device", "cpu"]
    recipes_main([name, "--profile", "paper", "--dry-run", "--option", f"clip={clip_folder}", *place])
    assert f"{name} words 2/2" in capsys.readouterr().out
    made = checkpoints.load(tmp_path / "dry-run" / f"{name}.safetensors")
    assert made.trained_on["options"] == {"clip": str(clip_folder)} and made.trained_on["profile"] == "paper (dry run)"
    assert (made.config["codebook_size"], made.config["embed_dim"]) == table.shape != (49_408, 512)
    model = checkpoints.build(made)
    assert torch.equal(model.quantiser.codebook, table)
    # all else is the paper's: a dry run narrows the widest resolution, and takes fewer and smaller crops
    published = recipes.recipe(name, "paper")
    (stage,) = running.with_options(published, {"clip": str(clip_folder)}).stages
    assert replace(stage, options={}) == replace(published.stages[0], options={})
    assert stage.options == published.stages[0].options | {"clip": str(clip_folder)}
    assert made.config == published.saved.config | dict(width=32, codebook_size=len(table), embed_dim=table.shape[1])


def test_options_that_a_recipe_lacks_are_refused(clip_folder):
    with pytest.raises(ParameterError, match=r"no option 'clop' \(did you mean 'clip'"):
        running.with_options(recipes.recipe("vqgan_semantic", "paper"), {"clop": "x"})
    with pytest.raises(ParameterError, match="no option 'clip'"):
        running.with_options(recipes.recipe("vqgan_learned", "paper"), {"clip": str(clip_folder)})
    with pytest.raises(CheckpointError, match="no CLIPModel"):
        running.with_options(recipes.recipe("vqgan_semantic", "paper"), {"clip": "/nowhere"})
    changed = running.with_options(recipes.recipe("redcnn_perceptual", "paper"), {"perceptual": 0.2})
    assert changed.stages[0].options["perceptual"] == 0.2 and changed.networks["redcnn"].config["channels"] == 96


def test_the_paper_s_split_can_be_trained_on(tmp_path):
    """Of the ten patients of 2016 with both doses LEDA trains on eight."""
    rng, affine = np.random.default_rng(0), np.diag([0.7, 0.7, 3, 1])
    for patient in sorted(MAYO_PATIENTS):
        for dose in ("full", "quarter"):
            (tmp_path / patient / f"{dose}_3mm").mkdir(parents=True)
            values = rng.integers(-100, 100, (16, 16, 2)).astype(np.float32)
            nib.save(nib.Nifti1Image(values, affine), tmp_path / patient / f"{dose}_3mm" / f"{patient}.nii.gz")
    source = running.Source.open(tmp_path, recipes.recipe("redcnn_leda", "paper"), "leda-mayo-2016")
    assert source.described["cases"] == sorted(MAYO_PATIENTS - {"L333", "L506"})
    assert source.described["split"] == "leda-mayo-2016" and source.n_slices == 16
    assert all(case.full and case.low for case in source.collection)
    with pytest.raises(ParameterError, match="give data"):
        running.Source.open(None, recipes.recipe("redcnn_leda", "paper"), "leda-mayo-2016")


def test_another_seed_moves_all_draws():
    chosen: Recipe = recipes.recipe("redcnn_leda")
    other = running.reseeded(chosen, 1)
    assert running.reseeded(chosen, 0) is chosen
    for a, b in zip(chosen.stages, other.stages, strict=True):
        assert a.train.seed != b.train.seed and a.data.seed != b.data.seed
        assert replace(b, train=replace(b.train, seed=a.train.seed), data=a.data) == a
