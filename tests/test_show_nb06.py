"""Notebook 06: its pictures, its calibration, its table and widget, its exercises."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch

from ldctlib.diffusion import plug_and_play as pnp
from ldctlib.diffusion.samplers import final
from ldctlib.diffusion.schedule import linear
from ldctlib.errors import ParameterError
from ldctlib.operators import BlockMean, CorrelatedNoise, Identity
from ldctlib.show.answers import nb06 as answers
from ldctlib.show.exercises import check
from ldctlib.show.notebooks import nb06
from ldctlib.units import SOFT_TISSUE, Window

PLAN = linear(1000)


def picture(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- what a measurement fixes, and its weights


def test_the_two_parts_that_are_shown_add_up_to_the_image():
    x = 40 + 100 * torch.randn(1, 1, 16, 16, generator=seeded(0))
    images = [
        np.asarray(axis.images[0].get_array()) for axis in nb06.range_and_null(x, BlockMean(4)).axes if axis.images
    ]
    np.testing.assert_allclose(images[1] + images[2], images[0], atol=1e-4)
    np.testing.assert_allclose(images[2].reshape(4, 4, 4, 4).mean((1, 3)), 0, atol=1e-4)
    assert any("A^+" in text.get_text() for text in nb06.step_diagram().axes[0].texts)


@pytest.mark.parametrize("operator", [Identity(0.2), BlockMean(4, 0.05)], ids=["identity", "block mean"])
def test_the_weights_that_are_drawn_are_those_of_the_sampler(operator):
    """λ as the share of A⁺(y - A x0) that a step adds, and the noise of the next x_t, in the measured coordinates."""
    weights = nb06.ddnm_plus_weights(PLAN, operator.noise_sd, singular_value=operator.singular_values)
    y = operator.A(torch.randn(400, 1, 8, 8, generator=seeded(1), dtype=torch.float64))
    seen = []
    for s in (2, 30, 40, 200):
        steps = list(
            pnp.ddnm_plus(
                lambda x, t: 0 * x, torch.zeros(400, 1, 8, 8), PLAN, (s + 1, s), operator, y, generator=seeded(2)
            )
        )
        held, fresh = steps[0].x0_hat, operator.A(steps[1].x_t) - PLAN.at(s) ** 0.5 * operator.A(steps[0].x0_hat)
        torch.testing.assert_close(held, weights.weight[s - 1] * operator.A_dagger(y), atol=1e-5, rtol=1e-5)
        drawn = float(fresh.std()) / operator.singular_values / (1 - PLAN.at(s)) ** 0.5
        # 400 images of 4 values at least: a standard deviation is known to 1.8 %
        assert drawn == pytest.approx(weights.fresh[s - 1], rel=0.08)
        seen.append(weights.weight[s - 1] < 1)
    assert seen[0] and not seen[-1]
    figure = nb06.weights_plot({"one": weights})
    assert [axis.get_ylabel() for axis in figure.axes] == ["weight λ", "fresh noise / σ"]


def test_what_was_removed_is_compared_with_the_noise():
    truth = torch.full((2, 1, 64, 64), 40.0)
    noise = 20 * torch.randn(2, 1, 64, 64, generator=seeded(0))
    images = {"truth": truth, "low dose": truth + noise, "half": truth + noise / 2}
    rows, spectra = nb06.removed_noise({"soft": images}, 0.8)
    low, half = rows
    assert half["PSNR (dB)"] - low["PSNR (dB)"] == pytest.approx(20 * np.log10(2), abs=0.05)  # nothing is clipped
    assert half["NPS distance"] == pytest.approx(0, abs=1e-6) and "NPS distance" not in low
    np.testing.assert_allclose(spectra["soft"]["half"][1], spectra["soft"]["noise"][1] / 4, rtol=1e-4)


# ---------------------------------------------------------------- draws


def test_the_gaussian_calibration_is_what_the_sampler_does():
    noise_sd, n, times = 0.2, 40_000, PLAN.times(20)
    x = torch.randn(n, 1, 1, 1, dtype=torch.float64, generator=seeded(1))
    y = x + noise_sd * torch.randn(n, 1, 1, 1, dtype=torch.float64, generator=seeded(2))
    x_T = torch.randn(n, 1, 1, 1, dtype=torch.float64, generator=seeded(3))

    def eps(x_t, t):
        return (1 - PLAN.at(int(t[0]))) ** 0.5 * x_t  # of N(0, 1)

    drawn = final(pnp.ddnm_plus(eps, x_T, PLAN, times, Identity(noise_sd), y, generator=seeded(4)))
    gain = float((drawn * y).sum() / y.square().sum())
    variance = float((drawn - gain * y).square().mean())
    found = nb06.gaussian_calibration(PLAN, times, noise_sd)
    assert variance == pytest.approx(found.variance, rel=0.03)  # 4 standard errors of √(2 / n)
    for z, share in zip((0.67449, 1.64485), found.coverage, strict=True):
        inside = float(((x - gain * y).abs() <= z * variance**0.5).double().mean())
        assert inside == pytest.approx(share, abs=0.015)
    assert found.exact == pytest.approx(0.04 / 1.04)


def test_more_steps_are_surer_than_the_posterior():
    found = {n: nb06.gaussian_calibration(PLAN, PLAN.times(n), 0.2) for n in (20, 100, 1000)}
    assert [round(found[n].variance, 4) for n in found] == [0.0372, 0.014, 0.0048]
    assert found[20].coverage[1] > 0.85 and found[1000].coverage[1] < 0.5


def test_coverage_keeps_its_promise_for_draws_like_the_truth():
    sample = 30 * torch.randn(7, 1, 200, 200, generator=seeded(0))
    mask = torch.zeros(1, 1, 200, 200, dtype=torch.bool)
    mask[..., :100] = True
    truth = sample[6:].clone()
    truth[..., 100:] += 1000
    half, most = nb06.coverage(sample[:6], truth, (0.5, 0.9), mask)
    assert half == pytest.approx(0.5, abs=0.02) and most == pytest.approx(0.9, abs=0.02)  # 6 standard errors
    assert nb06.coverage(sample[:6], truth, (0.9,))[0] == pytest.approx(0.45, abs=0.02)
    with pytest.raises(ParameterError, match="two draws"):
        nb06.coverage(sample[:1], truth, (0.5,))
    line = ((0.5, 0.9), (half, most))
    assert len(nb06.calibration_plot({"50 %": ((5, 10), (0.5, 0.4))}, (0.5,), {"draws": line}).axes) == 2


# ---------------------------------------------------------------- discs


def test_discs_lie_in_flat_soft_tissue_apart_from_each_other_and_keep_their_contrast():
    x = torch.full((1, 1, 64, 64), 60.0)
    x[..., :, :20] = -100.0  # fat: outside of the range of soft tissue
    x[..., 40:, :] += 30 * torch.randn(24, 64, generator=seeded(0))
    places = nb06.flat_places(x, 2, radius=3.0)
    for row, column in places:
        assert 6 <= row < 36 and 24 <= column < 59
    (r0, c0), (r1, c1) = places
    assert np.hypot(r0 - r1, c0 - c1) >= 12
    target = x - 40 * sum(nb06.disc((64, 64), place, 3.0) for place in places)
    for place in places:
        assert float(nb06.contrast(target, place, 3.0)) == pytest.approx(-40, abs=0.1)
    half = (x + target) / 2
    (line,) = nb06.contrast_kept({"half": half.repeat(2, 1, 1, 1)}, target, places, 3.0)
    assert line["contrast kept, mean (%)"] == pytest.approx(50, abs=0.1) and line["scatter between draws"] < 1e-3
    (line,) = nb06.contrast_kept({"one draw": half}, target, places, 3.0)
    assert np.isnan(line["scatter between draws"])
    with pytest.raises(ParameterError, match="no 9 flat places"):
        nb06.flat_places(x, 9, radius=6.0)


# ---------------------------------------------------------------- the widget


@pytest.fixture
def results() -> dict:
    return {
        (f, n, eta): np.full((8, 6), 100 * f + n + 10 * eta, np.float32)
        for f in (0.5, 1.0)
        for n in (4, 12)
        for eta in (0.0, 1.0)
    }


def test_a_setting_is_the_image_beside_its_error(results):
    truth = np.full((8, 6), 50.0, np.float32)
    image = nb06.render_setting(results, (0.5, 4, 0.0), truth, Window(54, 400))
    assert image.shape == (8, 12) and (image[:, :6] == 128).all()
    assert (image[:, 6:] == round((4 + 200) / 400 * 255)).all()
    assert "RMS error 4.0 HU" in nb06.describe_setting(results, (0.5, 4, 0.0), truth, Window(54, 400))
    with pytest.raises(ParameterError, match="was not computed"):
        nb06.render_setting(results, (2.0, 4, 0.0), truth, SOFT_TISSUE)


def test_the_explorer_redraws_and_says_what_it_shows(results):
    truth = np.full((8, 6), 50.0, np.float32)
    panel = nb06.settings_explorer(results, truth, captions={(0.5, 4, 0.0): "a caption"}, shown=[(0.5, 4, 0.0)])
    panel.controls["factor"].value, panel.controls["steps"].value, panel.controls["eta"].value = 0.5, 4, 0.0
    assert picture(panel.image.value)[0, 0, 0] == round((54 + 160) / 400 * 255)
    assert "RMS error 4.0 HU" in panel.box.children[-1].value
    panel.controls["factor"].value = 1.0
    assert picture(panel.image.value)[0, 0, 0] == round((104 + 160) / 400 * 255)
    assert "RMS error 54.0 HU" in panel.box.children[-1].value
    titles = [axis.get_title() for axis in panel.figure().axes]
    assert titles[0] == "noise × 0.5\n4 steps, η = 0\na caption"
    del results[0.5, 4, 0.0]
    with pytest.raises(ParameterError, match="every combination"):
        nb06.settings_explorer(results, truth)


def test_every_setting_is_run_with_its_own_noise():
    class Recorded:
        schedule = PLAN

        def to_model(self, y, operator):
            return y / 400, operator.with_noise(operator.noise.scaled(1 / 400))

        def restore(self, y, operator, *, steps, start, eta, generator):
            assert 0.9 * 90 < 400 * ((1 - PLAN.at(start)) / PLAN.at(start)) ** 0.5 < 1.1 * 90  # 1.5 × 60 HU
            told = operator.noise.variance.mean((-2, -1), keepdim=True).sqrt()
            return told + steps + eta + 0 * y

    noise = CorrelatedNoise(torch.full((8, 5), 60.0**2), (8, 8))
    y = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    grid = nb06.settings_grid(Recorded(), y, noise, factors=(0.5, 1.5), tries=(3, 5), etas=(0.0, 0.5), seed=1)
    assert len(grid) == 8
    for (factor, steps, eta), image in grid.items():
        torch.testing.assert_close(image, torch.full_like(image, 60 * factor + steps + eta))


# ---------------------------------------------------------------- exercises


def equivalent(a, sigma, noise_sd, s, eta):
    """The rules in torch, without an if."""
    n = torch.as_tensor(a * noise_sd / s)
    fresh = torch.where(sigma >= n, (sigma**2 - n**2).clamp(min=0).sqrt(), sigma * eta)
    return torch.where(sigma >= n, 1.0, sigma * (1 - eta**2) ** 0.5 / n), fresh


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("06.degenerate", 0),
        ("06.degenerate", torch.tensor(0.01)),
        ("06.weights", equivalent),
        ("06.start", [36, 18]),
        ("06.start", (50, 20)),
    ],
)
def test_every_right_form_is_accepted(name, answer):
    assert check(name, answer).state == "right"


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("06.degenerate", 5, "Which part"),
        ("06.degenerate", -3.0, "not y"),
        ("06.degenerate", "nothing", "Put A = I"),
        ("06.weights", answers._no_singular_value, "Right for s = 1"),
        ("06.weights", answers._times_singular_value, "does not multiply"),
        ("06.weights", answers._always_one, "above the threshold"),
        ("06.weights", answers._variance, "standard deviation"),
        ("06.weights", answers._upside_down, "other way round"),
        ("06.weights", answers._plain_eta, "what is left"),
        ("06.weights", lambda a, sigma, noise_sd, s, eta: (1.0, sigma), "Compare σ"),
        ("06.start", (10, 10), "less noise than the scan"),
        ("06.start", (1000, 20), "far above"),
        ("06.start", (60, 60), "more than 20"),
        ("06.start", (40, 5), "may take more"),
        ("06.start", 40, "At which t"),
    ],
)
def test_each_mistake_gets_its_hint(name, answer, says):
    verdict = check(name, answer)
    assert verdict.state == "not yet"
    assert re.search(says, verdict.message), verdict.message


def test_the_scan_of_the_third_exercise_starts_where_the_library_starts_it():
    scan = Identity(answers.SCAN_HU / answers.HALF_RANGE_HU)
    assert answers.FIRST == pnp.first_time(scan, PLAN)
