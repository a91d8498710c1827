"""Notebook 01: the scan's diagram, spectra over real ones, and the exercises' many right forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldctlib.ct.nps import nps
from ldctlib.ct.scanner_spectra import REAL_NPS
from ldctlib.show.exercises import check
from ldctlib.show.notebooks import nb01


def test_the_diagram_leads_from_the_object_to_the_image():
    texts = [text.get_text() for text in nb01.scan_chain().axes[0].texts]
    assert {"object", "count photons", "logarithm", "image"} <= set(texts)


def test_simulated_spectra_lie_over_the_real_ones_at_their_scale():
    simulated = {name: 7 * np.array(curve.bands) for name, curve in REAL_NPS.items()}
    figure = nb01.real_and_simulated(simulated, 3 * np.arange(1.0, 14.0))
    for axis, curve in zip(figure.axes, REAL_NPS.values(), strict=True):
        real, ours, guess = (line.get_ydata() for line in axis.lines[:3])
        np.testing.assert_allclose(real, curve.bands)
        np.testing.assert_allclose(ours, curve.bands, rtol=1e-6)
        assert guess.max() == 1


def test_the_laws_of_noise_stand_beside_what_was_measured():
    counted = {100.0: (0.1, 0.005), 400.0: (0.05, 0.001)}
    figure = nb01.noise_laws(counted, 0.0, {"slim": [10.0, 20.0], "large": [30.0, 90.0]}, [1.0, 0.25])
    left, right = figure.axes
    np.testing.assert_allclose(left.lines[2].get_ydata(), [0.1, 0.05])  # 1 / sqrt(N)
    np.testing.assert_allclose(left.lines[3].get_ydata(), [0.005, 0.00125])  # 1 / 2N
    np.testing.assert_allclose(right.lines[3].get_ydata(), [30, 60])


def test_textures_are_shown_within_their_own_noise_and_up_to_nyquist():
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    images, lines = nb01.textures({"soft": noise, "sharp": 3 * noise}, {"soft": nps(noise, 0.5)}, 1.0)
    limits = [axis.images[0].get_clim()[1] for axis in images.axes]
    np.testing.assert_allclose(limits, [2.5 * float(noise.std()), 7.5 * float(noise.std())])
    assert lines.axes[0].get_xlim()[1] == 1 and lines.axes[0].get_yscale() == "log"


def variance(exp):
    return lambda p, n0, a, sd: (1 - a) / a * exp(p) / n0 * (1 + (1 + a) / a * sd**2 * exp(p) / n0)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("01.nested_difference", 21),
        ("01.nested_difference", torch.tensor(432.0).sqrt()),
        ("01.added_variance", variance(np.exp)),
        ("01.added_variance", variance(torch.exp)),
        ("01.added_variance", variance(lambda p: float(torch.tensor(p).exp()))),
        ("01.kernel", (0.36, 0.74)),
    ],
)
def test_every_right_form_is_accepted(name, answer):
    assert check(name, answer).state == "right"


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("01.nested_difference", 12, "don't subtract"),
        ("01.nested_difference", 26.8, "two independent scans"),
        ("01.added_variance", lambda p, n0, a, sd: np.exp(p) / n0 * (1 - a) / a, "electronic noise"),
        ("01.added_variance", lambda p, n0: p, "could not be tried"),
        ("01.kernel", (0.4, 1.1), "alias"),
        ("01.kernel", 0.4, "Give a Kernel"),
    ],
)
def test_each_mistake_gets_its_hint(name, answer, says):
    verdict = check(name, answer)
    assert verdict.state == "not yet" and says in verdict.message, verdict.message
