"""Every denoiser keeps the one contract: shape, scale, determinism, named errors; and real scans decide."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from ldctlib import checkpoints, methods
from ldctlib.errors import CheckpointError, LdctError, ParameterError, ShapeError
from ldctlib.image import gaussian_blur
from ldctlib.methods import regression
from ldctlib.recipes import RECIPES, new_model, recipe, save

FAST = ("ldct", "gaussian", "nlm", "nafnet")

REMAINS = 0.75
"""Of white noise of 40 HU on a disc, every method leaves at most this share."""

SHIPPED = [name for name in RECIPES if name != "man_start"]  # train that one
CHECKPOINT_MIB, MAN_MIB = 8.0, 16.0
"""Of one checkpoint at most, and of all those of MAN's recipes together."""


@pytest.fixture(scope="module")
def noisy() -> tuple[torch.Tensor, torch.Tensor]:
    axis = torch.linspace(-1, 1, 96)
    clean = torch.where(torch.hypot(axis[:, None], axis[None, :]) < 0.9, 50.0, -1000.0)[None, None]
    clean[0, 0, 30:60, 40:43] += 100
    return clean, clean + 40 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))


def available(name: str):
    if name.startswith("bm3d") and importlib.util.find_spec("bm3d") is None:
        pytest.skip("bm3d is not installed")
    try:
        return methods.load(name)
    except CheckpointError as error:
        pytest.fail(f"the shipped checkpoint of {name} is missing: {error}")


@pytest.mark.parametrize("name", methods.METHODS)
def test_contract(name, noisy):
    denoise = available(name)
    clean, ldct = noisy
    x = ldct[..., :75, :90] if name in FAST else ldct[..., :64, :64]
    before = x.clone()
    out = denoise(x, spacing_mm=(1.0, 0.7, 0.7))
    assert out.shape == x.shape and out.dtype == torch.float32 and torch.isfinite(out).all()
    assert torch.equal(x, before)
    if name in FAST:
        assert torch.equal(out, denoise(x, spacing_mm=(1.0, 0.7, 0.7)))
        pair = denoise(torch.cat([x, x.flip(3)]), spacing_mm=(1.0, 0.7, 0.7))
        torch.testing.assert_close(pair[:1], out, atol=1e-2, rtol=1e-4)
    if name != "ldct":
        truth = clean[..., : x.shape[-2], : x.shape[-1]]
        # away from the body's edge, which a blur mixes with air
        inside = torch.nn.functional.max_pool2d((truth < -500).float(), 9, 1, 4) == 0
        assert (out - truth)[inside].std() < REMAINS * (x - truth)[inside].std()


@pytest.mark.parametrize("name", ("gaussian", "nafnet", "redcnn"))
@pytest.mark.parametrize("size", ((1, 1), (9, 40), (33, 17)))
def test_any_size(name, size):
    assert available(name)(torch.full((1, 1, *size), 30.0)).shape == (1, 1, *size)


@pytest.mark.parametrize("name", FAST)
def test_wrong_input_is_named(name):
    denoise = available(name)
    with pytest.raises(ShapeError, match=r"\(B, 1, H, W\)"):
        denoise(torch.zeros(64, 64))
    with pytest.raises(ParameterError, match="not finite"):
        denoise(torch.full((1, 1, 64, 64), float("nan")))


def test_unknown_names_and_options():
    with pytest.raises(ParameterError, match="nafnet"):
        methods.load("nafnett")
    with pytest.raises(ParameterError, match="options"):
        methods.load("gaussian", sigma=1)
    with pytest.raises(ParameterError, match="keep"):
        methods.load("nafnet", keep=1.5)
    assert set(methods.table().index) == set(methods.METHODS)


def test_network_wrapper_blends_and_keeps_the_mean(noisy, tmp_path):
    """out = x - (1 - keep)(removed - its local mean), with the removed part of a known network: a blur."""
    r = recipe("nafnet", "workshop")
    model = new_model(r)
    torch.nn.init.normal_(model.ending.weight, std=0.02)
    path = save(tmp_path / "net.safetensors", model, r, "workshop")
    _, ldct = noisy
    outs = {
        keep: regression.network(device="cpu", name="net", path=path, keep=keep, mean_px=0.0)(
            ldct, noise=None, spacing_mm=None, generator=None
        )
        for keep in (0.0, 0.25)
    }
    torch.testing.assert_close(outs[0.25], ldct - 0.75 * (ldct - outs[0.0]), rtol=1e-4, atol=1e-2)
    back = regression.network(device="cpu", name="net", path=path, keep=0.0, mean_px=12.0)(
        ldct, noise=None, spacing_mm=None, generator=None
    )
    removed = ldct - outs[0.0]
    torch.testing.assert_close(ldct - back, removed - gaussian_blur(removed, 12.0), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_complete(name):
    for profile in ("workshop", "train", "paper"):
        r = recipe(name, profile)
        with torch.device("meta"):  # the paper's networks are big
            checkpoints.model_class(r.model)(**r.config)
            for stage in r.stages:
                for needed in stage.needs:
                    assert list(RECIPES).index(needed) < list(RECIPES).index(name)
                    if r.schedule is not None and needed.startswith("autoencoder"):
                        channels = r.config.get("unet", r.config)["in_channels"]
                        assert recipe(needed, profile).config["latent_channels"] == channels
        schedules = [stage.train.schedule for stage in r.stages]
        if profile == "paper" and name not in ("nafnet", "redcnn"):
            # section 3.2: Adam at a constant rate, batches of 16; 600 epochs but for the pixel DDPM, which is not MAN's
            (stage,) = r.stages
            assert schedules == ["constant"] and stage.train.batch_size == 16 and stage.patches.patch == 512
            assert (stage.train.lr, stage.epochs) == ((2e-5, None) if name == "ddpm" else (1e-4, 600))
        else:
            assert schedules[:2] == ["constant", "cosine"]
        assert r.model.endswith("unet") == (r.schedule is not None)
    with pytest.raises(LdctError, match="profile"):
        recipe(name, "quick")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_checkpoints_say_where_they_come_from(name):
    checkpoint = checkpoints.load(checkpoints.shipped(name))
    assert checkpoint.trained_on["steps"] > 0 and "phantom" in checkpoint.trained_on["collection"]
    assert checkpoint.trained_on["profile"] == "train"
    assert checkpoint.quality or name not in methods.METHODS, "the header holds no measured quality"
    assert checkpoint.path.stat().st_size < CHECKPOINT_MIB * 2**20
    for needed, sha256 in checkpoint.trained_on.get("uses", {}).items():
        assert checkpoints.load(checkpoints.shipped(needed)).sha256 == sha256


def test_shipped_checkpoints_of_man_are_small():
    names = [name for name in SHIPPED if name not in ("nafnet", "redcnn")]
    assert sum(checkpoints.shipped(name).stat().st_size for name in names) < MAN_MIB * 2**20


@pytest.mark.parametrize(("name", "every"), [("nafnet", 1), ("man_fast", 7), ("man", 7)])
def test_networks_on_real_pairs(real_data, name, every):
    """On every slice above the low-dose image, body mean kept within 1 HU; on the mean above any one blur in SSIM."""
    from ldctlib.benchmark import real_pairs
    from ldctlib.image import gaussian_blur
    from ldctlib.metrics import body_mask, psnr, ssim_uniform7
    from ldctlib.units import SOFT_TISSUE

    denoise = available(name)
    gains, similar = [], []
    for case in real_pairs(real_data)[::every]:
        low, full = case.ldct_hu, case.reference_hu
        out = denoise(low)
        gains.append(float(psnr(out, full, window=SOFT_TISSUE) - psnr(low, full, window=SOFT_TISSUE)))
        similar.append(
            [
                float(ssim_uniform7(x, full, window=SOFT_TISSUE))
                for x in (out, *(gaussian_blur(low, sigma) for sigma in (0.6, 0.8, 1.0)))
            ]
        )
        assert abs(float((out - low)[body_mask(full)].mean())) < 1.0
    assert min(gains) > 2.0 and np.mean(gains) > 4.0
    own, *blurs = np.mean(similar, axis=0)
    assert own > max(blurs)
