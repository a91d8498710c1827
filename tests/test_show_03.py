"""Notebook 03: its pictures of diffusion, its widget, its exercises."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from ldctlib.diffusion import samplers, schedule
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.show import answers_03, diffusion
from ldctlib.show.exercises import check, judge
from ldctlib.units import SOFT_TISSUE, Window


def picture(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture
def walk() -> list[diffusion.Look]:
    """Five looks whose left half is 0 HU and whose right half rises by 100 HU a step."""
    return [
        diffusion.Look(1000 - 200 * i, np.zeros((8, 6), np.float32), np.full((8, 6), 100.0 * i, np.float32))
        for i in range(5)
    ]


def drawn(figure) -> list:
    return [axis for axis in figure.axes if axis.images]


# ---------------------------------------------------------------- looks


def test_looks_decode_every_step_of_a_sampler():
    plan = schedule.cosine(20)
    z = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    steps = samplers.ddim(lambda x_t, t: 0 * x_t, z, plan, plan.times(4))
    taken = diffusion.looks(steps, lambda x: 100 * x[:, :1])
    assert [look.t for look in taken] == list(plan.times(4))
    np.testing.assert_allclose(taken[0].x_t_hu, 100 * z[0, 0], rtol=1e-6)
    # with eps_hat = 0 the estimate is x_t divided by its signal's scale
    np.testing.assert_allclose(taken[1].x0_hat_hu, taken[1].x_t_hu / plan.at(taken[1].t) ** 0.5, rtol=1e-4)


# ---------------------------------------------------------------- figures


def test_strips_show_all_rows_in_one_window(walk):
    figure = diffusion.strips(
        {"state": [w.x_t_hu for w in walk], "estimate": [w.x0_hat_hu for w in walk]},
        [str(w.t) for w in walk],
        window=Window(200, 400),
    )
    axes = drawn(figure)
    assert len(axes) == 10 and {axis.images[0].get_clim() for axis in axes} == {(0, 400)}
    assert [axis.get_title() for axis in axes[:5]] == ["1000", "800", "600", "400", "200"]
    assert axes[0].get_ylabel() == "state" and axes[5].get_ylabel() == "estimate"
    np.testing.assert_array_equal(axes[9].images[0].get_array(), walk[4].x0_hat_hu)


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        ({}, ParameterError, "at least one row"),
        ({"a": [torch.zeros(4, 4)]}, ShapeError, "1 images for 2 titles"),
        ({"a": [torch.zeros(4, 4), torch.zeros(4, 5)]}, ShapeError, "one shape"),
    ],
)
def test_strips_refuse(rows, error, says):
    with pytest.raises(error, match=says):
        diffusion.strips(rows, ["1", "2"], window=SOFT_TISSUE)


def test_curves_draw_lines_levels_and_powers_of_two():
    panels = {"PSNR (dB)": {"ddim": ([2, 4, 8], [1, 2, 3])}, "detail": {"ddim": ([2, 4, 8], [5, 6, 7])}}
    figure = diffusion.curves(panels, xlabel="steps", levels={"detail": {"ceiling": 9.0}}, log_x=True)
    left, right = figure.axes
    assert left.get_ylabel() == "PSNR (dB)" and left.get_xscale() == "log" and left.get_xlabel() == "steps"
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["2", "4", "8"]
    assert len(left.lines) == 1 and list(right.lines[1].get_ydata()) == [9.0, 9.0]
    falling = diffusion.curves({"y": {"a": ([1000, 500], [0, 1])}}, xlabel="t", falling=True).axes[0]
    assert falling.get_xlim()[0] > falling.get_xlim()[1]


@pytest.mark.parametrize(
    ("panels", "levels", "error", "says"),
    [
        ({}, None, ParameterError, "at least one panel"),
        ({"y": {}}, None, ParameterError, "a line in each"),
        ({"y": {"a": ([1, 2], [1])}}, None, ShapeError, "2 positions but 1 values"),
        ({"y": {"a": ([1], [1])}}, {"z": {"b": 1.0}}, ParameterError, "not there"),
    ],
)
def test_curves_refuse(panels, levels, error, says):
    with pytest.raises(error, match=says):
        diffusion.curves(panels, xlabel="t", levels=levels)


def test_disagreement_draws_the_last_column_in_colour_from_zero():
    generator = torch.Generator().manual_seed(0)
    images = 40 + 10 * torch.randn(3, 16, 16, generator=generator)
    line = {"mean": images.mean(0), "truth": images[0], "std of 3": images.std(0)}
    figure = diffusion.disagreement({"dose 0.25": line, "dose 0.1": line}, top_hu=20, circles=[(4, 5, 2)])
    axes = drawn(figure)[:6]
    assert [axis.images[0].get_clim() for axis in axes[:3]] == [(-160, 240), (-160, 240), (0, 20)]
    assert [len(axis.patches) for axis in axes] == [0, 1, 1] * 2
    assert axes[2].patches[0].center == (5, 4) and axes[2].patches[0].radius == 4
    assert [axis.get_title() for axis in axes] == ["mean", "truth", "std of 3", "", "", ""]
    np.testing.assert_array_equal(axes[5].images[0].get_array(), images.std(0))
    with pytest.raises(ShapeError, match="the same titles"):
        diffusion.disagreement({"a": line, "b": {"truth": images[0]}})


# ---------------------------------------------------------------- the scrubber


def test_a_step_is_the_state_beside_the_estimate_and_a_bar(walk):
    image = diffusion.render_step(walk, 2, Window(200, 400))
    assert image.shape == (8 + diffusion.BAR_PX, 12, 3) and image.dtype == np.uint8
    assert (image[:8, :6] == 0).all() and (image[:8, 6:] == 128).all()
    filled = (image[-1] == diffusion.WIPE_COLOUR).all(axis=1)
    assert filled.sum() == round(12 * 3 / 5) and filled[0] and not filled[-1]
    for step in (-1, 5):
        with pytest.raises(ParameterError, match=r"there are 0 … 4"):
            diffusion.render_step(walk, step, SOFT_TISSUE)


def test_the_scrubber_redraws_when_its_slider_moves(walk):
    panel = diffusion.scrubber(walk, window=Window(200, 400))
    assert int(picture(panel.image.value)[0, -1, 0]) == 128  # begins in the middle, 200 HU
    panel.controls["step"].value = 4
    assert int(picture(panel.image.value)[0, -1, 0]) == 255
    panel.controls["step"].value = 0
    assert int(picture(panel.image.value)[0, -1, 0]) == 0
    assert [label for label, _ in panel.controls["step"].options][0] == "1 of 5, t = 1000"
    assert len(drawn(panel.figure())) == 10
    with pytest.raises(ParameterError, match="at least one step"):
        diffusion.scrubber([])


# ---------------------------------------------------------------- exercises


@pytest.mark.parametrize("exercise", answers_03.EXERCISES, ids=lambda e: e.name)
def test_every_exercise_takes_the_right_answer_and_no_other(exercise):
    assert judge(exercise, exercise.right).state == "right"
    assert judge(exercise, exercise.wrong).state == "not yet"
    assert check(exercise.name, ...).state == "open"
    assert judge(exercise, None).state == "not yet"


def test_the_number_in_the_answers_is_the_schedules():
    assert schedule.cosine().at(999) == pytest.approx(answers_03.ALPHA_BAR_999, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("03.amplified", 642, "That is the factor"),
        ("03.amplified", 0.01 / 2.4e-6, "Divided by"),
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
