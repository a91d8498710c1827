"""Notebook 03: its pictures of diffusion, its widget, its exercises."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from ldctlib.diffusion import samplers, schedule
from ldctlib.errors import ParameterError
from ldctlib.phantom.organs import ID
from ldctlib.recipes.man import MAN
from ldctlib.show.answers import nb03 as answers
from ldctlib.show.exercises import check
from ldctlib.show.notebooks import nb03
from ldctlib.units import Window


def picture(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture
def steps() -> list[nb03.DecodedStep]:
    """Five steps whose left half is 0 HU and whose right half rises by 100 HU a step."""
    return [
        nb03.DecodedStep(1000 - 200 * i, np.zeros((8, 6), np.float32), np.full((8, 6), 100.0 * i, np.float32))
        for i in range(5)
    ]


def drawn(figure) -> list:
    return [axis for axis in figure.axes if axis.images]


def test_every_step_of_a_sampler_is_decoded():
    plan = schedule.cosine(20)
    z = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    steps = samplers.ddim(lambda x_t, t: 0 * x_t, z, plan, plan.times(4))
    taken = nb03.decode_steps(steps, lambda x: 100 * x[:, :1])
    assert [step.t for step in taken] == list(plan.times(4))
    np.testing.assert_allclose(taken[0].x_t_hu, 100 * z[0, 0], rtol=1e-6)
    # with eps_hat = 0 the estimate is x_t divided by its signal's scale
    np.testing.assert_allclose(taken[1].x0_hat_hu, taken[1].x_t_hu / plan.at(taken[1].t) ** 0.5, rtol=1e-4)


# ---------------------------------------------------------------- the scrubber


def test_the_scrubber_redraws_when_its_slider_moves(steps):
    panel = nb03.scrubber(steps, window=Window(200, 400))
    image = picture(panel.image.value)
    assert image.shape == (8, 12, 3) and (image[:, :6] == 0).all() and (image[:, 6:] == 128).all()  # begins at 200 HU
    panel.controls["step"].value = 4
    assert int(picture(panel.image.value)[0, -1, 0]) == 255
    panel.controls["step"].value = 0
    assert int(picture(panel.image.value)[0, -1, 0]) == 0
    assert [label for label, _ in panel.controls["step"].options][0] == "1 of 5, t = 1000"
    assert len(drawn(panel.figure())) == 10
    with pytest.raises(ParameterError, match="at least one step"):
        nb03.scrubber([])


def test_the_scrubber_says_what_is_left_and_right_and_in_which_window(steps):
    first, head, image = nb03.scrubber(steps, window=Window(200, 400)).box.children
    assert "decoded z_t" in head.value and "decoded ẑ0" in head.value and "0 <" in head.value and "400 HU" in head.value
    assert hasattr(first, "options")


# ---------------------------------------------------------------- diagrams and places


def test_the_diagram_of_the_unet_is_that_of_the_trained_one():
    config = MAN["train"].networks["unet"].config["unet"]
    width = config["model_channels"] * config["channel_mult"][0]
    texts = [text.get_text() for text in nb03.unet_diagram().axes[0].texts]
    assert sum(f"× {width}" in text for text in texts) == 2 * len(config["channel_mult"]) + 1
    assert config["attention_at"] == [4] and f"16 × 16 × {width}" in texts
    assert f"3 × {config['in_channels']} maps" in texts and f"{config['in_channels']} maps" in texts
    assert f"16 × 16 of {config['context_dim']} numbers" in texts
    assert f"sines, MLP: {4 * config['model_channels']} numbers" in texts
    assert len(nb03.flow_diagram().axes[0].texts) > 30


def test_places_lie_inside_the_liver_and_apart():
    labels = torch.zeros(1, 1, 200, 220, dtype=torch.uint8)
    labels[..., 40:190, 10:160] = ID["liver"]
    labels[..., 100:104, 60:64] = ID["hepatic vein"]
    cut, places, inside = nb03.liver_places(labels, count=4, apart=28, margin=12)
    assert len(places) == 4 and inside.shape == labels[cut].shape == (1, 1, 128, 128)
    for i, (row, column) in enumerate(places):
        around = labels[cut][..., row - 12 : row + 13, column - 12 : column + 13]
        assert around.shape[-2:] == (25, 25) and (around == ID["liver"]).all()
        assert all((row - r) ** 2 + (column - c) ** 2 >= 28**2 for r, c in places[:i])
    with pytest.raises(ParameterError, match="inside the liver"):
        nb03.liver_places(torch.zeros(1, 1, 200, 220, dtype=torch.uint8))


def test_the_tiny_network_begins_with_nothing_and_may_copy_its_condition():
    z, c = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    tiny = nb03.Tiny(4, schedule.cosine())
    silent = tiny(z, torch.tensor([500] * 3), c)
    tiny.gain.data += 1
    torch.testing.assert_close(tiny(z, torch.tensor([500] * 3), c) - silent, c)


def test_what_was_removed_is_weighed_at_edges_and_where_it_is_flat():
    image = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    image[..., 32:] += 100.0
    removed = torch.full_like(image, 2.0)
    removed[..., 30:34] = 10.0
    edges, flat = nb03.rms_removed(image, image - removed, image)
    assert edges > 6 and flat == pytest.approx(2.0)


def test_the_errors_of_draws_are_split_into_what_differs_and_what_is_common():
    rows = nb03.error_rows({(0.25, "liver"): [[9.0, 25.0, 13.0, 16.0]]}, n=4)  # 25 = 9 + 16, and 13 = 9 + 16 / 4
    assert list(rows[0].values()) == [0.25, "liver", 5.0, 4.0, 3.0, 3.0] and nb03.spread([1, 3]) == "2 (1 … 3)"


def test_false_spots_are_those_that_are_deep_enough_and_in_the_mask():
    error, mask = torch.zeros(2, 1, 64, 64), torch.ones(1, 1, 64, 64, dtype=torch.bool)
    mask[..., 40:] = False
    for image, column, depth in ((0, 20, -20), (1, 25, 20), (1, 50, 20)):
        error[image] += depth * nb03.disc((64, 64), (30, column), 3.0)[0]
    error += 100  # no structure
    assert nb03.false_spots(error, mask, least_hu=15.0) == [[0, 30, 20], [1, 30, 25]]
    assert nb03.false_spots(error, mask, least_hu=25.0) == []


# ---------------------------------------------------------------- exercises


def test_the_number_in_the_answers_is_the_schedules():
    assert schedule.cosine().at(999) == pytest.approx(answers.ALPHA_BAR_999, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("03.amplified", 6),
        ("03.amplified", torch.tensor(-6.4)),
        ("03.velocity", lambda x, v, a: torch.sqrt(a) * x - torch.sqrt(1 - a) * v),
        ("03.velocity", lambda x, v, a: float(a) ** 0.5 * x - np.sqrt(1 - float(a)) * v),
        ("03.velocity", lambda x, v, a: (a**0.5 * x - (1 - a) ** 0.5 * v).float()),
        ("03.samples", 300.0),
        ("03.samples", torch.tensor(300)),
        ("03.samples", (10, 300)),
    ],
)
def test_every_right_form_of_an_answer_is_accepted(name, answer):
    assert check(name, answer).state == "right"


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("03.amplified", 642, "That is the factor"),
        ("03.amplified", 0.01 / 2.4e-6, "amplitude"),
        ("03.velocity", lambda x, v, a: a**0.5 * x + (1 - a) ** 0.5 * v, "sign"),
        ("03.velocity", lambda x, v, a: a * x - (1 - a) * v, "roots"),
        ("03.velocity", lambda x, v, a: (1 - a) ** 0.5 * x + a**0.5 * v, "Eliminate eps"),
        ("03.samples", 10, "Those are draws"),
        ("03.samples", 270, "round up"),
        ("03.samples", 600, "The root halves"),
        ("03.samples", 12000, "squares add"),
    ],
)
def test_plausible_mistakes_get_their_own_hint(name, answer, says):
    verdict = check(name, answer)
    assert verdict.state == "not yet" and says in verdict.message
