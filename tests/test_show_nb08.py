"""Notebooks 07 and 08: their figures, and where lesions are put."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from ldctlib.errors import ParameterError
from ldctlib.show.exercises import check
from ldctlib.show.notebooks import nb07, nb08
from ldctlib.units import SOFT_TISSUE, Window


def test_gains_are_drawn_by_group_and_against_the_truth_only():
    rows = [
        dict(method=m, group="3 mm", dose=d, reference=r, metric="psnr", difference=g, low=g - 1, high=g + 1)
        for m, g in (("ldct", 0.0), ("nlm", 3.0), ("nafnet", 5.0))
        for d in (0.25, 0.1)
        for r in ("truth", "full dose")
    ]
    colours = {"nlm": "red", "nafnet": "blue"}
    figure = nb07.gains_figure(pd.DataFrame(rows), [("3 mm", 0.25), ("3 mm", 0.1)], colours)
    assert not plt.get_fignums() and len(figure.axes) == 2
    bars, points = figure.axes[0].lines[0:-1:2], figure.axes[0].lines[1:-1:2]
    assert [list(bar.get_xdata()) for bar in bars] == [[2, 4], [4, 6]]
    assert [list(point.get_ydata()) for point in points] == [["nlm"], ["nafnet"]]


def test_known_anatomy_is_best_at_the_share_of_its_noise():
    fits = {0.25: {"truth": (100.0, 0.0, 400.0), "full dose": (144.0, -100.0, 400.0)}}
    axis = nb07.parabolas(fits, {0.25: (20.0, 10.0)}).axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axis.lines}
    best = {name: k_rmse[k_rmse[:, 1].argmin()] for name, k_rmse in lines.items() if len(k_rmse) > 2}
    assert best["nafnet, to the full dose"] == pytest.approx((0.25, (144 - 25) ** 0.5))
    assert best["anatomy known, to the full dose"] == pytest.approx((0.25, 75**0.5))
    assert best["anatomy known, to the truth"] == pytest.approx((0, 0), abs=1e-9)
    assert axis.lines[-1].get_xdata()[0] == 0.25


def test_what_went_is_the_difference_from_the_low_dose():
    truth = torch.zeros(1, 1, 8, 8)
    axes = nb07.what_went({"low": truth + 40, "a": truth + 10}, truth + 40, truth, SOFT_TISSUE).axes
    assert [float(axis.images[0].get_array().max()) for axis in axes[:6]] == [40, 10, 40, 10, 0, 30]
    assert axes[0].get_title() == "low\n20.0 dB to truth"


def test_panels_draw_every_pixel_as_it_is_and_say_the_unit():
    image = torch.zeros(1, 1, 8, 8)
    figure = nb08.panels({str(i): (image, Window(0, 10 + i)) for i in range(3)}, {"removed": image}, zoom=Window(0, 13))
    drawn = [axis.images[0] for axis in figure.axes if axis.images]
    assert not plt.get_fignums() and [each.get_clim()[1] for each in drawn] == [5, 5.5, 6, 6.5]
    assert {each.get_interpolation() for each in drawn} == {"none"}
    assert [axis.get_xlabel() for axis in figure.axes].count("HU") == 4
    assert [each.get_cmap().name for each in drawn] == ["gray"] * 3 + ["RdBu_r"]
    (alone,) = [axis.images[0] for axis in nb08.panels({"a": image}, columns=1).axes if axis.images]
    assert alone.get_clim() == (SOFT_TISSUE.low, SOFT_TISSUE.high)


def test_the_salt_test_compares_with_the_scan_as_it_is():
    words = [text.get_text() for text in nb08.salt_diagram().axes[0].texts]
    assert {"your scan", "the reference", "known noise", "salted scan", "denoiser", "compare"} <= set(words)


def test_lesions_go_to_flat_tissue_apart_from_each_other():
    image = torch.full((1, 1, 96, 120), 50.0)
    image[..., :48, :] += 40 * torch.randn(48, 120, generator=torch.Generator().manual_seed(0))
    places = nb08.flat_places(image)
    assert len(places) == 4 and all(row >= 48 + 12 for row, _ in places)
    assert all(max(abs(a - c), abs(b - d)) >= 12 for a, b in places for c, d in places if (a, b) != (c, d))
    with pytest.raises(ParameterError, match="choose another, shown="):
        nb08.flat_places(torch.full((1, 1, 64, 64), -1000.0))


def test_a_trained_texture_vanishes_at_frequency_zero():
    texture = nb08.trained_texture(np.random.default_rng(0))
    assert texture[0] < 0.05 * texture[:33].max() and (texture >= 0).all()


@pytest.mark.parametrize("place", [(3, 5), (50, 60), (95, 119)])
def test_a_patch_holds_its_place(place):
    image = torch.arange(96 * 120.0).reshape(1, 1, 96, 120)
    patch, row, column = nb08.patch_at(image, place)
    assert patch.shape == (1, 1, 80, 80) and patch[0, 0, row, column] == image[0, 0, *place]


@pytest.mark.parametrize(
    ("name", "answer", "state"),
    [
        ("07.perfect", 4.8, "right"),
        ("07.perfect", "5", "right"),
        ("07.perfect", 6.0, "not yet"),
        ("07.patients", 37, "right"),
        ("08.floor", 17, "right"),
        ("08.floor", 20, "not yet"),
        ("08.residual_noise", 0.3, "right"),
        ("08.residual_noise", 0.33, "right"),
        ("08.residual_noise", 0.1, "not yet"),
    ],
)
def test_rounded_answers_are_right(name, answer, state):
    assert check(name, answer).state == state


@pytest.mark.parametrize(
    "name", ["07.perfect", "07.slope", "07.patients", "08.floor", "08.padding", "08.residual_noise"]
)
def test_a_hint_does_not_hold_the_answer(name):
    message = check(name, -1.0).message
    assert not any(told in message for told in ("√", "Σ", "1.96", "==", "slope +", "R − 1", "R is 4"))


def test_a_scan_outside_the_usual_is_looked_at_and_scores_name_what_was_done(capsys):
    patch = torch.randn(1, 1, 80, 80, generator=torch.Generator().manual_seed(0))
    assert nb08.verdict("a", "1", False) is False and capsys.readouterr().out.startswith("LOOK  a ")
    assert nb08.noise_left(lambda x: 0.5 * x, [(patch, 3, 70), (patch, 40, 40)]) == pytest.approx(50, rel=1e-4)
    assert patch[nb08.around((patch, 3, 70), 8)].shape == (1, 1, 11, 16)
    assert set(nb08.score(patch, patch, 0 * patch)) == {"RMSE (HU)"}


def test_what_survives_is_drawn_with_its_band():
    r = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    figure = nb08.survival_figure([1, 2, 3], (-20.0, -40.0), {"your scan": r, "salted scan": r}, r)
    assert [len(axis.lines) for axis in figure.axes] == [3, 3] and len(figure.axes[0].collections) == 2
