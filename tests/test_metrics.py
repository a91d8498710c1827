"""Metrics against second implementations and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import erf
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ldctlib import metrics as M
from ldctlib.compat import torchvision_shim
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import gaussian_blur
from ldctlib.metrics import perceptual
from ldctlib.units import SOFT_TISSUE, Window


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images with structure and noise that leave the window on both sides."""
    base = torch.from_numpy(data.camera()[128:256, 128:278].astype(np.float32))[None, None] * 3 - 300
    base = torch.cat([base, base.flip(-1)])
    return base + 40 * torch.randn(base.shape, generator=seeded()), base


# ---------------------------------------------------------------- image metrics


def test_psnr_equals_scikit_image(pair):
    x, y = pair
    ours = M.psnr(x, y, window=SOFT_TISSUE)
    for i in range(2):
        a, b = (np.clip((z[i, 0].numpy() + 160.0) / 400, 0, 1) for z in (y, x))
        # float32 images against float64: about 1e-6 relative in the MSE, so 1e-5 dB
        assert ours[i].item() == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0), abs=1e-4)
    raw = M.psnr(x, y, data_range=500.0)[0].item()
    assert raw == pytest.approx(10 * math.log10(500**2 / ((x[0] - y[0]).double() ** 2).mean().item()), abs=1e-9)
    assert torch.isinf(M.psnr(x, x, window=SOFT_TISSUE)).all()


@pytest.mark.parametrize("kernel", ["gaussian", "uniform7"])
def test_ssim_equals_scikit_image(pair, kernel):
    x, y = pair
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    options = gaussian if kernel == "gaussian" else {}
    for arguments in ({"window": SOFT_TISSUE}, {"data_range": 765.0}):
        ours = M.ssim(x, y, kernel=kernel, **arguments)
        for i in range(2):
            a, b = (z[i, 0].double() for z in (y, x))
            if "window" in arguments:
                a, b = SOFT_TISSUE.to_display(a), SOFT_TISSUE.to_display(b)
            peak = arguments.get("data_range", 1.0)
            oracle = structural_similarity(a.numpy(), b.numpy(), data_range=peak, **options)
            assert ours[i].item() == pytest.approx(oracle, abs=1e-9)  # both float64
    assert torch.equal(M.ssim_uniform7(x, y, data_range=765.0), M.ssim(x, y, data_range=765.0, kernel="uniform7"))


def test_ssim_mask_averages_the_map(pair):
    x, y = pair
    full = torch.ones_like(x, dtype=torch.bool)
    assert torch.allclose(M.ssim(x, y, window=SOFT_TISSUE, mask=full), M.ssim(x, y, window=SOFT_TISSUE))
    half = full.clone()
    half[..., :75] = False
    x = torch.where(half, y, x)  # equal inside the mask, except within the kernel's reach of its edge
    half[..., 75:80] = False
    assert M.ssim(x, y, window=SOFT_TISSUE, mask=half) == pytest.approx([1.0, 1.0], abs=1e-12)


def vif_oracle(x: np.ndarray, y: np.ndarray) -> float:
    """vifp_mscale (Sheikh & Bovik 2006) on a 0..255 scale, written from the paper with scipy."""
    numerator = denominator = 0.0
    for scale in range(1, 5):
        n = 2 ** (5 - scale) + 1
        axis = np.arange(n) - n // 2
        kernel = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * (n / 5) ** 2))
        kernel /= kernel.sum()
        r = n // 2

        def mean(z, kernel=kernel, r=r):
            return ndimage.correlate(z, kernel)[r:-r, r:-r]

        if scale > 1:
            x, y = mean(x)[::2, ::2], mean(y)[::2, ::2]
        mx, my = mean(x), mean(y)
        vx, vy = np.maximum(mean(x * x) - mx**2, 0), np.maximum(mean(y * y) - my**2, 0)
        g = (mean(x * y) - mx * my) / (vy + 1e-10)
        g = np.where(vy < 1e-10, 0, g)
        rest = vx - g * (mean(x * y) - mx * my)
        rest = np.where(g < 0, vx, rest)
        g = np.maximum(g, 0)
        numerator += np.log10(1 + g**2 * vy / (np.maximum(rest, 1e-10) + 2.0)).sum()
        denominator += np.log10(1 + vy / 2.0).sum()
    return numerator / denominator


def test_vif_equals_a_second_implementation(pair):
    x, y = pair
    ours = M.vif(x, y, window=SOFT_TISSUE)
    for i in range(2):
        a, b = (SOFT_TISSUE.to_display(z[i, 0].double()).numpy() * 255 for z in (x, y))
        assert ours[i].item() == pytest.approx(vif_oracle(a, b), rel=1e-4)  # small constants differ
    assert M.vif(y, y, window=SOFT_TISSUE) == pytest.approx([1, 1], abs=1e-6)


def test_vif_against_a_constant_reference_says_nothing(pair):
    x, y = pair
    air = -1000 + 20 * torch.randn(y[:1].shape, generator=seeded())  # all of it below the window
    values = M.vif(torch.cat([x[:1], x]), torch.cat([air, torch.full_like(y[:1], 0.3), y[1:]]), window=SOFT_TISSUE)
    assert values[:2].isnan().all() and values[2] == M.vif(x[1:], y[1:], window=SOFT_TISSUE)[0]


def test_fsim_is_one_for_equal_images_and_falls_with_noise_and_blur(pair):
    _, y = pair
    assert M.fsim(y, y, window=SOFT_TISSUE) == pytest.approx([1, 1], abs=1e-9)
    noise = torch.randn(y.shape, generator=seeded(1))
    for worse in ([y + s * noise for s in (10, 40, 120)], [gaussian_blur(y, s) for s in (0.6, 1.2, 2.4)]):
        values = [M.fsim(x, y, window=SOFT_TISSUE)[0].item() for x in worse]
        assert 1 > values[0] > values[1] > values[2] > 0.3


def test_fsim_is_piq_s_of_luminance_in_the_window(pair):
    torchvision_shim()
    import piq

    x, y = (z[:1, ..., :96, :96] for z in pair)
    unit = [((z.double() + 160) / 400).clamp(0, 1) for z in (x, y)]
    expected = piq.fsim(*unit, data_range=1.0, chromatic=False, reduction="none")
    torch.testing.assert_close(M.fsim(x, y, window=SOFT_TISSUE), expected, rtol=1e-9, atol=0)


def test_rmse_and_bias_in_the_body():
    reference = torch.full((1, 1, 64, 64), -1000.0)
    reference[..., 10:50, 10:50] = 40.0
    reference[..., 25:30, 25:30] = -900.0  # gas: a hole, belongs to the body
    reference[..., 58:60, 5:60] = 0.0  # a table: 110 pixels, under a tenth of 1600
    mask = M.body_mask(reference)
    expected = torch.zeros_like(mask)
    expected[..., 10:50, 10:50] = True
    assert torch.equal(mask, expected)
    x = reference + 3.0
    x[..., 10:50, 10:30] += 4.0  # half of the body is off by 7, half by 3
    x[..., :10, :] += 1000.0  # outside the body: must not count
    assert M.bias_hu(x, reference).item() == pytest.approx(5.0, abs=1e-4)
    assert M.rmse_hu(x, reference).item() == pytest.approx(math.sqrt((49 + 9) / 2), abs=1e-4)


def test_bad_inputs_are_refused_by_name(pair):
    x, y = pair
    for metric in (M.psnr, M.ssim, M.vif, M.fsim):
        with pytest.raises(ParameterError, match="exactly one of"):
            metric(x, y)
        with pytest.raises(ParameterError, match="exactly one of"):
            metric(x, y, window=SOFT_TISSUE, data_range=1.0)
        with pytest.raises(ShapeError, match="one shape"):
            metric(x[..., 1:], y, window=SOFT_TISSUE)
        with pytest.raises(ShapeError, match=r"\(B, 1, H, W\)"):
            metric(x[:, 0], y[:, 0], window=SOFT_TISSUE)
        with pytest.raises(ParameterError, match="floating"):
            metric(x.int(), y.int(), window=SOFT_TISSUE)
        with pytest.raises(ParameterError, match="finite"):
            metric(x / 0, y, window=SOFT_TISSUE)
        with pytest.raises(ParameterError, match="data_range must be"):
            metric(x, y, data_range=-1.0)
    with pytest.raises(ParameterError, match="SSIM kernel"):
        M.ssim(x, y, window=SOFT_TISSUE, kernel="box")
    with pytest.raises(ShapeError, match="does not fit"):
        M.ssim(x[..., :9], y[..., :9], window=SOFT_TISSUE)
    with pytest.raises(ShapeError, match="41x41"):
        M.vif(x[..., :40], y[..., :40], window=SOFT_TISSUE)
    with pytest.raises(ParameterError, match="give a window"):
        M.vif(x, y, data_range=500.0)
    with pytest.raises(ParameterError, match="selects no pixel"):
        M.rmse_hu(x, torch.full_like(y, -1000.0))
    with pytest.raises(ShapeError, match="mask"):
        M.psnr(x, y, window=SOFT_TISSUE, mask=torch.ones(1, 1, 4, 4))


# ---------------------------------------------------------------- LPIPS


def test_without_the_trunk_lpips_is_nan_with_its_reason(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    result = M.lpips(*pair, window=SOFT_TISSUE)
    assert result.values.isnan().all() and len(result.values) == 2
    assert result.provenance == "none" and perceptual.TRUNK_FILES["squeeze"] in result.reason
    assert not any(tmp_path.iterdir())  # and nothing was downloaded


def test_random_trunk_is_named_so_and_leaves_the_random_state_alone(pair):
    state = torch.get_rng_state()
    a = M.lpips_random_trunk(*pair, window=SOFT_TISSUE)
    perceptual._model.cache_clear()
    b = M.lpips_random_trunk(*pair, window=SOFT_TISSUE)
    assert torch.equal(torch.get_rng_state(), state)
    assert a.provenance == "random" and torch.equal(a.values, b.values) and (a.values > 0).all()


def test_lpips_with_its_trunk():
    if not perceptual.trunk_file("squeeze").is_file():
        pytest.skip("torch's cache (TORCH_HOME) has no SqueezeNet weights")
    grey = torch.full((1, 1, 128, 128), 0.5)
    noise = torch.randn(grey.shape, generator=seeded())
    unit = Window(0.5, 1.0)
    values = [M.lpips(grey + s * noise, grey, window=unit) for s in (0.0, 0.05, 0.1, 0.3)]
    assert all(v.provenance == "imagenet" and not v.reason for v in values)
    d = [v.values.item() for v in values]
    assert d[0] == 0 and d[0] < d[1] < d[2] < d[3] and d[3] > 0.3


def test_lpips_refuses_bad_arguments(pair):
    with pytest.raises(ParameterError, match="trunk"):
        M.lpips(*pair, window=SOFT_TISSUE, net="resnet")
    with pytest.raises(ParameterError, match="window"):
        M.lpips(*pair, window=None)
    with pytest.raises(ShapeError, match="32"):
        M.lpips(*(z[..., :16] for z in pair), window=SOFT_TISSUE)


# ---------------------------------------------------------------- NPS


def test_nps_of_white_noise_is_flat_and_integrates_to_the_variance():
    pixel = 0.7
    noise = 20 * torch.randn(200, 64, 64, generator=seeded(), dtype=torch.float64)
    for taper in ("none", "hann"):
        s = M.nps(noise, pixel, taper=taper, detrend="none")
        # Parseval: exact without a taper; a taper weighs pixels unequally
        if taper == "none":
            assert s.variance == pytest.approx(noise.square().mean().item(), rel=1e-10)
        assert s.variance == pytest.approx(400.0, rel=0.01)
        # a ring of m >= 4 bins averages 200 m exponentials: 3.5 %; the taper ties neighbours: 7 %; at 3 sigma
        assert np.abs(s.radial[1:40] / (400 * pixel**2) - 1).max() < 0.2
    assert s.frequency[1] == pytest.approx(1 / (64 * pixel))


def test_nps_of_filtered_noise_is_the_filter_squared():
    pixel, sigma_px = 0.5, 0.8
    white = 30 * torch.randn(30, 1, 256, 256, generator=seeded(), dtype=torch.float64)
    s = M.nps(gaussian_blur(white, sigma_px), pixel, detrend="mean")
    # the sampled Gaussian's own transfer function, sum_k g_k cos(2 pi k f), averaged over the rings
    k = np.arange(-3, 4)
    g = np.exp(-0.5 * (k / sigma_px) ** 2)
    f = np.arange(-32, 32) / 64
    h = (g / g.sum() * np.cos(2 * np.pi * k * f[:, None])).sum(axis=1)
    two_d = 900 * pixel**2 * np.outer(h, h) ** 2
    radius = np.hypot(f[:, None], f[None])
    for i in range(2, 28):
        ring = (radius >= (i - 0.5) / 64) & (radius < (i + 0.5) / 64)
        # 480 ROIs, rings of >= 12 bins that the taper ties in fours: 2.6 %, at 3 sigma
        assert s.radial[i] == pytest.approx(two_d[ring].mean(), rel=0.08)
        assert s.frequency[i] == pytest.approx(i / 64 / pixel)


def test_detrending_removes_a_ramp_and_little_noise():
    noise = 10 * torch.randn(60, 64, 64, generator=seeded(), dtype=torch.float64)
    ramp = torch.linspace(-100, 100, 64, dtype=torch.float64)[None, :, None] + 500
    clean, tilted = (M.nps(z, 1.0, detrend="plane").radial for z in (noise, noise + ramp))
    assert np.allclose(clean, tilted, rtol=1e-9)
    assert M.nps(noise + ramp, 1.0, detrend="mean").radial[1] > 10 * clean[1]


def test_nps_distance():
    white = torch.randn(40, 1, 128, 128, generator=seeded(), dtype=torch.float64)
    a, b = M.nps(white, 0.7), M.nps(gaussian_blur(white, 1.0), 0.7)
    doubled = M.nps(white * math.sqrt(2), 0.7)
    assert M.nps_distance(a, a) == 0 and M.nps_distance(a, a, magnitude=True) == 0
    assert M.nps_distance(doubled, a) == pytest.approx(0, abs=1e-12)  # shape only
    assert M.nps_distance(doubled, a, magnitude=True) == pytest.approx(3.0, abs=0.02)  # 10 log10 2, less the floor
    assert 0.3 < M.nps_distance(b, a) < 2
    # closed form: flat against exp(-(2 pi sigma f)^2) on the same bins
    f = a.frequency[1:33] * 0.7
    g = np.exp(-((2 * np.pi * f) ** 2))
    assert M.nps_distance(b, a) == pytest.approx(np.abs(g / g.sum() - 1 / len(f)).sum(), abs=0.03)


def test_soft_tissue_rois_and_noise_std():
    reference = torch.full((1, 1, 256, 256), -1000.0)
    reference[..., 30:226, 30:226] = 50.0
    reference[..., 30:120, 30:120] = -800.0  # lung
    corners = M.soft_tissue_rois(reference, 32, fraction=1.0)
    assert corners and all(reference[b, 0, r : r + 32, c : c + 32].min() == 50 for b, r, c in corners)
    noisy = reference + 25 * torch.randn(reference.shape, generator=seeded())
    # about 20 * 1024 independent values (the squares overlap): 1 %; the plane's three parameters 0.15 %
    assert M.noise_std(noisy, corners, 32) == pytest.approx(25, rel=0.03)
    assert M.soft_tissue_rois(torch.full((1, 1, 64, 64), -1000.0), 32) == []
    with pytest.raises(ParameterError, match="soft tissue"):
        M.noise_std(torch.full((1, 1, 64, 64), -1000.0), size=32)


def test_bad_nps_inputs():
    noise = torch.randn(1, 1, 64, 64, generator=seeded())
    with pytest.raises(ParameterError, match="pixel_mm"):
        M.nps(noise, 0.0)
    with pytest.raises(ParameterError, match="taper"):
        M.nps(noise, 1.0, taper="box")
    with pytest.raises(ParameterError, match="detrend"):
        M.nps(noise, 1.0, detrend="cubic")
    with pytest.raises(ShapeError, match="ROIs"):
        M.nps(noise[0, 0], 1.0)
    with pytest.raises(ParameterError, match="no region"):
        M.nps(noise, 1.0, roi=128)
    with pytest.raises(ParameterError, match="power"):
        M.nps_distance(M.nps(noise * 0, 1.0), M.nps(noise, 1.0))
    with pytest.raises(ParameterError, match="frequencies"):
        M.nps_distance(M.nps(noise, 3.0), M.nps(noise, 1.0))
    with pytest.raises(ShapeError, match="does not fit"):
        M.soft_tissue_rois(noise, 128)


# ---------------------------------------------------------------- MTF


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("shape", ["circle", "line"])
def test_mtf_of_a_gaussian_edge(sigma, shape):
    pixel = 0.7
    rows, columns = np.indices((256, 256))
    if shape == "circle":
        edge = {"circle": (127.3, 126.8, 70.0)}
        d = np.hypot(rows - 127.3, columns - 126.8) - 70
    else:
        edge = {"line": (128.0, 128.0, math.radians(7))}
        d = (rows - 128) * math.cos(math.radians(7)) + (columns - 128) * math.sin(math.radians(7))
    image = torch.from_numpy(50 - 50 * erf(d / (math.sqrt(2) * sigma)))[None, None]
    m = M.mtf_edge(image, pixel, **edge)
    band = m.frequency * pixel <= 0.5
    expected = np.exp(-2 * (np.pi * sigma * m.frequency * pixel) ** 2)
    assert np.abs(m.mtf - expected)[band].max() < 0.005  # bins of 0.1 px hold unevenly many samples
    half = math.sqrt(math.log(2) / 2) / (math.pi * sigma * pixel)
    assert m.at(0.5) == pytest.approx(half, rel=0.01)
    noisy = image + 2 * torch.randn(image.shape, generator=seeded(), dtype=torch.float64)
    assert M.mtf_edge(noisy, pixel, **edge).at(0.5) == pytest.approx(half, rel=0.1)  # contrast to noise 50


def test_bad_mtf_inputs():
    image = torch.zeros(1, 1, 64, 64)
    with pytest.raises(ParameterError, match="exactly one"):
        M.mtf_edge(image, 1.0)
    with pytest.raises(ParameterError, match="no contrast"):
        M.mtf_edge(image, 1.0, circle=(31.7, 32.2, 20))
    with pytest.raises(ParameterError, match="too few pixels"):
        M.mtf_edge(image, 1.0, circle=(500, 500, 10))
    with pytest.raises(ShapeError, match="one image"):
        M.mtf_edge(image.expand(2, -1, -1, -1), 1.0, circle=(32, 32, 15))


# ---------------------------------------------------------------- anatomy in the removed part


def coloured(seed: int, size: int, std: float) -> torch.Tensor:
    """Noise with a ramp's spectrum, as of a sharp kernel."""
    f = np.fft.fftfreq(size)
    white = np.random.default_rng(seed).standard_normal((size, size))
    noise = np.fft.ifft2(np.fft.fft2(white) * np.sqrt(np.hypot(f[:, None], f[None]))).real
    return torch.from_numpy(noise / noise.std() * std)[None, None]


@pytest.fixture(scope="module")
def nested():
    """Truth, full dose, quarter dose with nested noise; vessels, organs and an outline as anatomy."""
    size, generator = 320, np.random.default_rng(5)
    rows, columns = np.indices((size, size))
    truth = np.where(np.hypot((rows - 160) / 130, (columns - 160) / 150) < 1, 40.0, -1000.0)
    for _ in range(120):
        r, c, radius = generator.uniform(60, 260), generator.uniform(50, 270), generator.uniform(1, 9)
        truth[np.hypot(rows - r, columns - c) < radius] = generator.choice([-100.0, 120.0, 200.0])
    truth = gaussian_blur(torch.from_numpy(truth)[None, None], 0.5)
    full = truth + coloured(1, size, 25.0)
    return truth, full, full + coloured(2, size, 25.0 * math.sqrt(3))


def median(x):
    return torch.from_numpy(ndimage.median_filter(x[0, 0].numpy(), 3))[None, None]


DENOISERS = {
    "gaussian 0.6": lambda x: gaussian_blur(x, 0.6),
    "gaussian 1.5": lambda x: gaussian_blur(x, 1.5),
    "median": median,
    "clipped": lambda x: x - (x - gaussian_blur(x, 1.0)).clamp(-40, 40),
}


def naive_slope(x, low, reference):
    edges = (M.edge_strength(reference) > 20) & M.body_mask(reference)
    detail = reference - gaussian_blur(reference, 1.0)
    return (((low - x) * detail)[edges].sum() / detail.square()[edges].sum()).item()


@pytest.mark.parametrize("name", DENOISERS)
def test_edge_attenuation_from_a_noisy_nested_reference_equals_the_truths(nested, name):
    truth, full, low = nested
    x = DENOISERS[name](low)
    known = M.edge_attenuation(x, low, truth, coupling=0.0)
    estimated = M.edge_attenuation(x, low, full)
    # about 10^4 edge pixels with 25 HU of noise on 100 HU of detail: a few thousandths
    assert estimated == pytest.approx(known, abs=0.02)


def test_a_plain_slope_mistakes_removed_noise_for_edges(nested):
    truth, full, low = nested
    x = DENOISERS["clipped"](low)
    known = M.edge_attenuation(x, low, truth, coupling=0.0)
    assert abs(naive_slope(x, low, full) - known) > 3 * abs(M.edge_attenuation(x, low, full) - known)


def test_edge_attenuation_is_calibrated(nested):
    truth, full, low = nested
    assert M.edge_attenuation(low, low, full) == 0
    assert M.edge_attenuation(gaussian_blur(low, 1.0), low, full) == pytest.approx(1, abs=1e-9)
    noise_gone = truth + 0.3 * (low - truth)  # takes 70 % of all noise and no anatomy
    assert M.edge_attenuation(noise_gone, low, full) == pytest.approx(0, abs=0.01)
    assert M.noise_coupling(low, full) == pytest.approx(1 / 3, abs=0.03)  # flat ROIs: about 10^4 pixels
    assert M.noise_coupling(low, truth) == pytest.approx(0, abs=0.01)


def test_residual_structure(nested):
    truth, full, low = nested
    noise_gone = truth + 0.3 * (low - truth)
    assert abs(M.residual_structure(noise_gone, low, truth)) < 0.03  # removed is 0.7 of the noise: constant ratio
    values = [M.residual_structure(gaussian_blur(low, s), low, full) for s in (0.6, 1.0, 1.5)]
    assert 0.1 < values[0] < values[1] < values[2]
    assert math.isnan(M.residual_structure(low, low, full))


def test_bad_edge_inputs(nested):
    truth, full, low = nested
    with pytest.raises(ParameterError, match="no edge"):
        M.edge_attenuation(low, low, full, coupling=0.0, threshold=1e6)
    with pytest.raises(ParameterError, match="no noise beyond"):
        M.edge_attenuation(full, full, full)
    with pytest.raises(ShapeError):
        M.edge_attenuation(low[..., 1:], low, full)
