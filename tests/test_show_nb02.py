"""Notebook 02: pictures of latents, the walk's widget, and the exercises' particular mistakes."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.losses import Ramp
from ldctlib.models.autoencoder import Autoencoder
from ldctlib.show.exercises import check
from ldctlib.show.notebooks import nb02
from ldctlib.units import SOFT_TISSUE, Window


def upsample(z: torch.Tensor) -> torch.Tensor:
    """A decoder that can be computed by hand: channel 0 in HU, eight times enlarged, plus a tenth of the others."""
    return F.interpolate(z[:, :1] + 0.1 * z[:, 1:].sum(1, keepdim=True), scale_factor=8)


def picture(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture
def z() -> torch.Tensor:
    return 40 + 20 * torch.randn(1, 6, 9, 12, generator=torch.Generator().manual_seed(0))


# -- still pictures -------------------------------------------------------------------------------------


def test_mosaic_shows_the_channels_in_reading_order(z):
    sheet = nb02.mosaic(z)
    assert sheet.shape == (2 * 9, 3 * 12)  # 6 = 2 x 3: nothing is left over
    np.testing.assert_array_equal(sheet[9:, 12:24], z[0, 4].numpy())
    assert nb02.mosaic(torch.zeros(24, 4, 4)).shape == (16, 24)
    odd = nb02.mosaic(torch.zeros(11, 9, 12))
    assert odd.shape == (27, 48) and np.isnan(odd[18:, 36:]).all() and not np.isnan(odd[:, :36]).any()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (lambda: nb02.mosaic(torch.zeros(2, 3, 4, 4)), ShapeError, r"got \(2, 3, 4, 4\)"),
        (lambda: nb02.bottleneck(torch.zeros(8, 8), torch.zeros(2, 1, 1), torch.zeros(8, 9)), ShapeError, "one shape"),
    ],
)
def test_pictures_refuse(given, error, says):
    with pytest.raises(error, match=says):
        given()


def test_bottleneck_draws_a_number_of_the_latent_as_large_as_a_pixel(z):
    image = upsample(z)
    figure = nb02.bottleneck(image, z, image + 5)
    first, latent, second, error = [axis for axis in figure.axes if axis.images][:4]
    shown = np.asarray(latent.images[0].get_array().filled(np.nan))
    assert shown.shape == image.shape[-2:]
    assert np.isfinite(shown[:18, :36]).all()  # the mosaic's own size, in pixels of the image
    assert np.isnan(shown[18:]).all() and np.isnan(shown[:, 36:]).all()
    np.testing.assert_allclose(error.images[0].get_array(), 5, atol=1e-4)  # float32 at 40 HU: 4e-6
    assert "6 × 9 × 12 = 648" in latent.get_title() and first.images[0].get_clim() == second.images[0].get_clim()


def test_the_diagram_has_the_sizes_of_its_model():
    model = Autoencoder(
        width=8,
        channel_mult=(1, 2),
        latent_channels=5,
        blocks=1,
        attention_at=(2,),
        stem=2,
        shortcut=True,
        lapped=True,
        norm_groups=4,
    )
    texts = [text.get_text() for text in nb02.autoencoder_diagram(model, 64).axes[0].texts]
    assert {"1 × 64²", "4 × 32²", "8 × 32²", "16 × 16²", "2 × 5 × 16²", "5 × 16²"} <= set(texts)
    assert texts.count("residual + attention") == 2  # one level, in the encoder and in the decoder


def test_border_ratio_is_one_for_noise_and_sees_blocks_in_both_directions():
    x = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(1))
    assert nb02.border_ratio(x, 8) == pytest.approx(1, abs=0.02)
    means = F.interpolate(torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2)), scale_factor=8)
    ratio = nb02.border_ratio(x + 10 * means, 8)
    assert ratio == pytest.approx(101**0.5, rel=0.1)  # steps of variance 2 + 200 across, of 2 inside
    assert nb02.border_ratio((x + 10 * means).roll(3, dims=-1), 8) < 0.8 * ratio


def test_discs_have_their_area_and_lie_in_every_phase():
    disc = nb02.discs(104, 3.0)
    assert disc.shape == (1, 1, 104, 104) and disc.max() == 1
    assert float(disc.sum()) == pytest.approx(64 * np.pi * 1.5**2, rel=0.03)  # 8 x 8 of them
    phases = {int(i) % 8 for i in (disc[0, 0].amax(0) == 1).nonzero()}
    assert phases == set(range(8))


def test_flat_places_have_no_edge():
    image = torch.full((1, 1, 128, 128), 40.0)
    image[..., :60, :] = 80
    square = nb02.flattest(image, 32)
    assert image[square].shape == (1, 1, 32, 32) and image[square].unique().tolist() in ([40.0], [80.0])
    assert square[1].start % 8 == square[2].start % 8 == 0


def test_regions_are_apart():
    truth = torch.full((1, 1, 64, 64), 40.0)
    truth[..., :30, :] = 140
    masks = nb02.regions(truth)
    assert masks["edges"][0, 0, 29:31].all() and not (masks["edges"] & masks["flat"]).any()
    assert not masks["flat"][0, 0, 26:34].any() and masks["flat"][0, 0, 40:60].all()


def test_noise_power_is_measured_beside_strong_edges():
    truth = torch.full((1, 1, 128, 128), 40.0)
    truth[..., :60, :] = 140
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(4))
    seen = truth + 10 * noise
    seen[..., 55:65, :] += 1000  # near the edge: no square may hold it
    frequency, power = nb02.mean_nps([seen], [truth], 0.8)
    assert frequency[-1] == pytest.approx(0.5 / 0.8)
    assert power[4:].mean() == pytest.approx(100 * 0.8**2, rel=0.15)  # white: variance times a pixel's area


# -- small VAEs -----------------------------------------------------------------------------------------


def test_toys_learn_and_a_heavy_kl_switches_channels_off():
    draw = torch.Generator().manual_seed(3)
    x = 0.3 * torch.randn(512, 4, generator=draw) @ torch.randn(4, 16, generator=draw) / 2
    weights = [Ramp(0.0), Ramp(10.0), Ramp(10.0, 0.5, 1.0)]
    mse, nats = nb02.train_toys(x[64:], x[:64], weights, steps=40, generator=draw, starts=2)
    assert mse.shape == (4, 3, 2) and nats.shape == (4, 3, 2, 16)
    assert (mse[-1, 0] < mse[0, 0]).all() and not torch.equal(mse[..., 0], mse[..., 1])
    none, heavy, ramped = nats.sum(-1).unbind(1)
    assert (heavy[-1] < 0.5 * none[-1]).all()
    assert (heavy[1] < ramped[1]).all()  # until step 20 the ramp's weight is 0
    scores = nb02.toy_scores(mse, nats, 10.0, d=16)
    assert (scores["channels alive"][-1, 1] < scores["channels alive"][-1, 0]).all()
    torch.testing.assert_close(scores["loss × 1000"], 1000 * (mse + 10 * nats.sum(-1) / 16))
    figure = nb02.toy_figure(scores, ["a", "b", "c"], dict.fromkeys(scores, 7.0), (8, 20))
    assert [axis.get_ylabel() for axis in figure.axes] == ["RMSE (HU)", "channels alive"]


# -- the walk -------------------------------------------------------------------------------------------


def test_a_walk_point_blends_and_shifts_one_channel_in_the_middle_alone(z):
    end, unit = z + 8, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    before = z.clone()
    change = nb02.walk_point(z, end, blend=0.25, channel=2, shift=-2.0, unit=unit) - z
    assert torch.equal(z, before)  # the codes themselves are left as they were
    middle = torch.zeros_like(z)
    middle[:, 2, 3:6, 4:8] = -6  # the middle third of 9 x 12
    torch.testing.assert_close(change, 2 + middle, atol=1e-4, rtol=0)
    with pytest.raises(ParameterError, match="channels 0 to 5"):
        nb02.walk_point(z, end, blend=0.0, channel=6, shift=0.0, unit=unit)
    with pytest.raises(ShapeError, match="of one shape"):
        nb02.walk_point(z, end[..., 1:], blend=0.0, channel=0, shift=0.0, unit=unit)


def test_render_walk_shows_the_image_and_what_the_shift_changed():
    start = torch.full((1, 2, 9, 9), 0.0)
    start[:, 0] = 40  # the window's level
    image = nb02.render_walk(upsample, start, start + 4, (0.0, 0, 2.0), [10.0, 10.0], Window(40, 400))
    assert image.shape == (72, 144) and image.dtype == np.uint8
    assert image[0, 0] == 128 and image[36, 36] == round(255 * 220 / 400)  # 40 and 60 HU
    assert image[0, 72] == 128 and image[36, 108] == round(255 * 220 / 400)  # 0 and 20 HU about 0
    at_end = nb02.render_walk(upsample, start, start + 100, (1.0, 0, 0.0), [1.0, 1.0], SOFT_TISSUE)
    assert at_end[0, 0] == round(255 * 310 / 400)  # 40 + 100 + a tenth of 100
    assert (at_end[:, 72:] == 128).all()  # a blend is not a shift


def test_latent_walk_redraws_on_every_control_and_has_a_static_figure(z):
    panel = nb02.latent_walk(upsample, z, z + 50)
    head = panel.box.children[-2]
    start = picture(panel.image.value)
    assert (start[:, 96:] == 128).all()
    panel.controls["shift"].value = 2.0
    shifted = picture(panel.image.value)
    assert (shifted[24:48, 96 + 32 : 96 + 64] > 128).all() and (shifted[:24, 96:] == 128).all()
    assert "+2.00 std in channel 0" in head.value and "200 HU" in head.value
    panel.controls["channel"].value = 3  # a tenth of the effect
    assert 128 < picture(panel.image.value)[36, 96 + 48] < shifted[36, 96 + 48]
    panel.controls["shift"].value = 0.0
    panel.controls["blend"].value = 1.0
    np.testing.assert_array_equal(
        picture(panel.image.value), nb02.render_walk(upsample, z, z + 50, (1.0, 0, 0.0), [1.0] * 6, SOFT_TISSUE)
    )
    assert len([axis for axis in panel.figure().axes if axis.images]) == 5
    few = nb02.latent_walk(lambda c: F.interpolate(c[:, :1], scale_factor=8), z[:, :1], z[:, :1])
    assert few.figure().axes  # a latent of one channel has no channel 2


# -- exercises ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("02.white", 5, "a quarter of the \\*variance\\*"),
        ("02.white", 20, "48 of 64"),
        ("02.white", 15.0, "not a quarter"),
        ("02.white", 12, "in each of the 64"),
        ("02.weight", 800, "model units"),
        ("02.weight", 4e-4, "That is D"),
        ("02.weight", 2e-4, "not 2 λ"),
        ("02.weight", 0.04, "D is a variance"),
        ("02.weight", 1e-6, "amplitude or a variance"),
        ("02.scale", lambda mean, logvar: 1 / mean.std(), "scale of the means"),
        ("02.scale", lambda mean, logvar: (mean.var() + logvar.exp().mean()).sqrt(), "its inverse"),
        ("02.scale", lambda mean, logvar: 1 / (mean.var() + (logvar / 2).exp().mean()).sqrt(), "variances add"),
        ("02.scale", lambda mean, logvar: 1 / (mean.square() + logvar.exp()).mean().sqrt(), "taken off first"),
        ("02.scale", lambda mean, logvar: 0.18215 + 0 * mean.sum(), "look at their variance"),
    ],
)
def test_each_mistake_gets_its_hint(name, answer, says):
    verdict = check(name, answer)
    assert verdict.state == "not yet"
    assert re.search(says, verdict.message), verdict.message


def test_drawing_samples_is_a_right_answer_too():
    def drawn(mean, logvar):
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
        return 1 / (mean + (0.5 * logvar).exp() * noise).std()

    assert check("02.scale", drawn).state == "right"
    assert check("02.white", 20 * 16**0.5 / 8).state == "right"
    assert check("02.weight", 2 * 0.02**2).state == "right"
