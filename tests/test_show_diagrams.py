"""Diagrams: boxes where they were put, labels inside them, arrows from edge to edge."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ldctlib.errors import ParameterError
from ldctlib.show.diagrams import Box, diagram

BOXES = {
    "x": ("low-dose image", 0, 0.5, "1 × 512 × 512", "data"),
    "E": Box("a very long name of an encoder", 1, 0, rows=2),
    "U": Box("U-Net", 2, 0, kind="frozen"),
    "loss": ("loss", 2, 1, "", "loss"),
}


def parts(figure, kind) -> list:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, kind)]


def extent(patch) -> np.ndarray:
    """(left, top), (right, bottom) in inches."""
    first = np.array([patch.get_x(), patch.get_y()])
    return np.stack([first, first + (patch.get_width(), patch.get_height())])


def test_boxes_stand_apart_and_labels_fit_into_them():
    figure = diagram(BOXES, [])
    extents = [extent(box) for box in parts(figure, FancyBboxPatch)]
    assert len(extents) == 4 and not plt.get_fignums()  # closed to pyplot
    for i, (first, last) in enumerate(extents):
        for other_first, other_last in extents[:i]:
            assert (first >= other_last).any() or (last <= other_first).any()
    scale = figure.axes[0].transData.inverted()
    texts = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    for box, (first, last) in zip(BOXES.values(), extents, strict=True):
        (left, low), (right, high) = scale.transform(texts[box[0]].get_points())
        assert first[0] < left < right < last[0] and first[1] < high < low < last[1], box[0]


@pytest.mark.parametrize("way", [0.0, 0.2, -0.2, "across"])
def test_an_arrow_runs_from_the_edge_of_a_box_to_the_edge_of_the_other(way):
    figure = diagram(BOXES, [("E", "loss", "a label", way)])
    points = parts(figure, FancyArrowPatch)[0].get_path().vertices
    for index, box in enumerate(parts(figure, FancyBboxPatch)):
        first, last = extent(box)
        outside = np.maximum(first - points, points - last).max(axis=1)  # inches, < 0 inside the box
        assert outside.min() > -0.02
        assert (outside.min() < 0.02) == (index in (1, 3))  # it touches its own two
    assert "a label" in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(
    ("boxes", "arrows", "says"),
    [
        ({}, [], "at least one box"),
        ({"a": ("a", 0, 0), "b": ("b", 0.5, 0.5)}, [], "'a' and 'b' overlap"),
        ({"a": ("a", 0, 0, "", "nets")}, [], "kind 'nets'; there are data, network"),
        (BOXES, [("x", "D")], "x → D"),
        (BOXES, [("x", "x")], "x → x"),
        (BOXES, [("x", "U")], "crosses the box 'E'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(boxes, arrows, says):
    with pytest.raises(ParameterError, match=says):
        diagram(boxes, arrows)
