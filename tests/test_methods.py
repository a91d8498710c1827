"""Every denoiser keeps the one contract: shape, scale, determinism, named errors; and real scans decide."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldctlib import methods
from ldctlib.errors import CheckpointError, ParameterError, ShapeError
from ldctlib.image import gaussian_blur
from ldctlib.methods import registry
from ldctlib.methods.denoiser import STRENGTHS

SHORT = {
    "dip": dict(width=12, iterations=60, ema=0.9),
    "dndp": dict(num_samples=1, steps=6),
    "ddnm": dict(steps=5),
    "ddnm_white": dict(steps=5),
    "ilvr": dict(steps=8, factor=4),
    "dps": dict(steps=12, start=60, zeta=0.05),
}
"""Options that keep a slow method short here."""

FAST = ("ldct", "gaussian", "nlm", "nafnet")

REMAINS = 0.75
"""Of white noise of 40 HU on a disc, every method leaves at most this share."""


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
        return methods.load(name, **SHORT.get(name, {}))
    except CheckpointError as error:
        pytest.fail(f"the shipped checkpoint of {name} is missing: {error}")


def test_a_command_line_s_options_are_values():
    given = {}

    def load(name, **options):
        given.update(options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load", load)
        registry.from_spec("man:steps=10;eta=0.5;single_stage=False;batch=None;sampler=ddpm")
    assert given == dict(device="cpu", steps=10, eta=0.5, single_stage=False, batch=None, sampler="ddpm")


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
    with pytest.raises(ParameterError, match="residual_noise"):
        methods.load("nafnet", residual_noise=1.5)
    assert set(methods.table().index) == set(methods.METHODS)


def test_a_bug_inside_a_method_is_not_called_a_wrong_option(monkeypatch):
    """Only the call's own arguments are checked against the signature."""

    def broken(*, device, strength: float = 1.0):
        return None + strength

    row = replace(methods.METHODS["gaussian"], load=broken)
    monkeypatch.setitem(methods.METHODS, "gaussian", row)
    with pytest.raises(TypeError, match="NoneType"):
        methods.load("gaussian", strength=2.0)
    with pytest.raises(ParameterError, match="options"):
        methods.load("gaussian", sigma_px=2.0)


def test_a_denoiser_may_use_autograd_and_gives_ordinary_tensors(monkeypatch):
    """Deep image priors and posterior sampling differentiate inside; the result belongs to nobody's graph."""

    def descent(*, device):
        def denoise(ldct, *, noise, spacing_mm, generator):
            with torch.enable_grad():
                x = ldct.detach().clone().requires_grad_(True)
                (x.square().sum()).backward()
            return x.detach() - 0.25 * x.grad

        return denoise

    monkeypatch.setitem(methods.METHODS, "gaussian", replace(methods.METHODS["gaussian"], load=descent))
    x = torch.ones(1, 1, 8, 8, requires_grad=True)
    out = methods.load("gaussian")(x)
    assert not out.requires_grad and torch.equal(out, torch.full_like(out, 0.5))
    (out * x).sum().backward()  # an inference tensor could not be saved for this


def test_blending_gives_back_a_share_and_keeps_the_mean(noisy):
    """From the estimate at 0 any share follows by x + share (ldct - x): what the benchmark does by dose."""
    clean, ldct = noisy
    denoised = gaussian_blur(ldct, 1.5) - 3.0
    estimate = methods.blend(ldct, denoised, 0.0, 12.0)
    removed = ldct - denoised
    torch.testing.assert_close(ldct - estimate, removed - gaussian_blur(removed, 12.0), rtol=0, atol=1e-3)
    torch.testing.assert_close(
        methods.blend(ldct, denoised, 0.3, 12.0), estimate + 0.3 * (ldct - estimate), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(methods.blend(ldct, denoised), denoised, rtol=0, atol=1e-3)
    for name, share in STRENGTHS.items():
        loaded = methods.load("nafnet", residual_noise=name)
        assert loaded.residual_noise == share and not loaded.blends  # what was asked for is all there is
    loaded = methods.load("nafnet")
    assert loaded.residual_noise == 0 and loaded.blends and not loaded.oracle and loaded.scale == "HU"
    assert not methods.load("gaussian").blends and methods.load("round_trip_full").oracle


@pytest.mark.parametrize(("name", "every"), [("nafnet", 1), ("man_fast", 7), ("man", 7)])
def test_networks_on_real_pairs(real_data, name, every):
    """On every slice above the low-dose image, body mean kept within 1 HU; on the mean above any one blur in SSIM."""
    from ldctlib.benchmark import real_pairs
    from ldctlib.image import gaussian_blur
    from ldctlib.metrics import body_mask, psnr, ssim_uniform7
    from ldctlib.units import SOFT_TISSUE

    denoise = methods.load(name, residual_noise=0.25)
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
