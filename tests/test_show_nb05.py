"""Notebook 05: its diagrams, rows of images with looks of their own, and its exercises."""

from __future__ import annotations

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ldctlib.ct.dose_scaling import noise_scale, std_map_scale
from ldctlib.data.anatomy_masks import CLASSES
from ldctlib.show import figures
from ldctlib.show.answers import nb05 as answers
from ldctlib.show.exercises import check
from ldctlib.show.notebooks import nb05
from ldctlib.units import SOFT_TISSUE, Window


def test_the_diagrams_show_both_conditions_and_the_gates():
    flow, block = nb05.flow_diagram(12), nb05.block_diagram()
    assert not plt.get_fignums()
    words = [[text.get_text() for text in figure.axes[0].texts] for figure in (flow, block)]
    assert {"noise map", "mask", "CLIP", "DiT", "Eqs 12, 13", "training only", "after 12 steps"} <= set(
        words[0]
    ) and words[0].count("CLIP") == 2
    assert [words[1].count(name) for name in ("× gate", "attention", "MLP", "as it is")] == [2, 1, 1, 2]


def test_a_row_with_a_look_of_its_own_has_its_own_bar():
    images = {"scan": [torch.zeros(8, 8)] * 2, "map": [torch.ones(8, 8)] * 2}
    figure = figures.strips(images, "ab", window=SOFT_TISSUE, looks={"map": (Window(5, 10), "magma", "std (HU)")})
    shown = [axis.images[0] for axis in figure.axes[:4]]
    assert [image.get_clim() for image in shown] == [(-160, 240)] * 2 + [(0, 10)] * 2
    assert [image.get_cmap().name for image in shown] == ["gray"] * 2 + ["magma"] * 2
    assert [axis.get_ylabel() for axis in figure.axes[4:]] == ["HU", "std (HU)"]
    assert len(figures.strips(images, "ab", window=SOFT_TISSUE).axes) == 5  # one bar for all


def test_masks_have_a_colour_for_each_class():
    mask = torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4)
    figure = nb05.class_strips({"mask": [mask, mask], "F": [torch.zeros(1, 1, 3, 4)] * 2}, "ab")
    image = figure.axes[0].images[0]
    shown = image.cmap(image.norm(image.get_array()))[..., :3]
    assert len({tuple(colour) for colour in shown.reshape(-1, 3).tolist()}) == len(CLASSES)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(CLASSES)
    array = nb05.mask_and_image(mask, torch.zeros(3, 4), "F, 25 %")
    assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and not plt.get_fignums()


def test_noise_is_measured_where_nothing_is_clipped():
    without = torch.tensor([[-100.0, 0.0, 0.0, 200.0]])
    noisy = without + torch.tensor([[50.0, 3.0, 4.0, -60.0]])
    assert nb05.noise_sd_hu(without, noisy) == pytest.approx(12.5**0.5)
    assert nb05.noise_sd_hu(without, noisy, torch.tensor([[True, True, False, True]])) == 3


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("05.pair", 6.0, "if the other scan had no noise"),
        ("05.pair", 5.37, "one after the other"),
        ("05.pair", 12, "the variance 4σ²"),
        ("05.alpha", partial(noise_scale, acquisition="nested"), "an inserted low dose"),
        ("05.alpha", partial(std_map_scale, acquisition="independent"), "noise alone"),
        ("05.alpha", lambda dose, measured_dose: measured_dose / dose, "Set its variance"),
        ("05.alpha", partial(noise_scale, acquisition="noise-free"), "for a reference without noise"),
        ("05.alpha", answers._smaller_root, "is not 1 at d = d0"),
        ("05.order", (0.5, 20), "from 6 to 16 HU"),
        ("05.order", (0.01, 6), "from 0.05 to 1"),
        ("05.order", (0.25, 16), "full_dose_sd_hu / √d"),
        ("05.order", (0.25, 10), "full_dose_sd_hu / √d"),
        ("05.order", (0.25, 12.5, 0), "Two numbers"),
        ("05.order", (0.25,), "Two numbers"),
        ("05.order", 20, "Two numbers"),
        ("05.order", "half", "Two numbers"),
    ],
)
def test_exercises_tell_mistakes_apart(name, answer, says):
    verdict = check(name, answer)
    assert verdict.state == "not yet" and says in verdict.message


@pytest.mark.parametrize("order", [(0.25, 12.5), [0.09, 7.5], torch.tensor([0.36, 15.0]), (0.16, 10)])
def test_every_known_order_of_the_noise_is_right(order):
    assert check("05.order", order).state == "right"


def test_alpha_is_the_library_s_and_makes_the_noise():
    independent = partial(noise_scale, acquisition="independent")
    assert check("05.alpha", independent).state == "right"
    assert check("05.alpha", lambda dose, measured_dose: round(independent(dose, measured_dose), 2)).state == "right"
    for dose in (0.05, 0.25, 0.9):
        alpha = answers._alpha(dose, 0.25)
        assert (1 - alpha) ** 2 + alpha**2 / 0.25 == pytest.approx(1 / dose)
