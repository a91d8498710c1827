"""Notebook 04: the diagram of the autoencoder, and words on an image."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from ldctlib.data.captions import DrawnSlice
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.phantom.organs import ID
from ldctlib.show.answers import nb04 as answers
from ldctlib.show.exercises import check
from ldctlib.show.notebooks import nb04
from ldctlib.units import LUNG, SOFT_TISSUE

GRID = (32, 32)
LONG = "a-word-of-more-letters-than-a-block-of-layer-two-has-room-for"
ALL = [(1, 7 + 16 * i, 7 + 16 * j, "mediastinum") for i in range(2) for j in range(2)]
ALL += [(2, 3 + 4 * i, 3 + 4 * j, ("liver", "hydronephrosis", LONG)[(i + j) % 3]) for i in range(8) for j in range(8)]


def written(figure) -> list:
    return [text for text in figure.axes[0].texts if str(text.get_gid()).startswith("layer")]


def test_the_diagram_has_the_pyramid_and_its_words():
    texts = [text.get_text() for text in nb04.vqgan_diagram().axes[0].texts]
    assert {"encoder", "decoder", "codebook", "layer 1", "layer 2", "layer 3", "$z_2$", "$z_3$"} <= set(texts)
    assert {"nearest at 4", "nearest at 64", "nearest at 1024", "1024 positions"} <= set(texts)
    texts = [t.get_text() for t in nb04.vqgan_diagram((4, 16, 64), ("liver", "fat", "a")).axes[0].texts]
    assert {"“liver”", "“fat”", "nearest at 16"} <= set(texts)
    with pytest.raises(ParameterError, match="3 layers"):
        nb04.vqgan_diagram((4, 64))
    with pytest.raises(ParameterError, match="words of 1"):
        nb04.vqgan_diagram(words=["liver"])


@pytest.mark.parametrize("shape", [(64, 64), (1, 1, 48, 96)])
def test_words_lie_in_their_blocks_and_apart_from_each_other(shape):
    grid = (16, 32) if shape[-2] != shape[-1] else GRID
    words = [each for each in ALL if each[1] < grid[0]]
    figure = nb04.words_on_image(torch.zeros(shape), words, grid)
    assert not plt.get_fignums()  # closed to pyplot
    figure.canvas.draw()
    axis, texts = figure.axes[0], written(figure)
    assert len(texts) == len(words)
    to_grid, boxes = axis.transData.inverted(), {}
    for layer, row, column, word in words:
        side = {1: 16, 2: 4}[layer]
        top, left = row // side * side, column // side * side
        (text,) = [
            t
            for t in texts
            if t.get_gid() == f"layer {layer}" and t.get_position() == (left + side / 2, top + side / 2)
        ]
        extent = text.get_window_extent()
        (x0, y1), (x1, y0) = to_grid.transform(extent.get_points())
        assert left <= x0 < x1 <= left + side and top <= y0 < y1 <= top + side, word
        shown = text.get_text()
        assert shown == word or (word == LONG and shown.endswith("…") and word.startswith(shown[:-1]) and x1 - x0 > 3)
        boxes[layer, row, column] = extent
    places = list(boxes.values())
    assert not [1 for i, a in enumerate(places) for b in places[:i] if a.overlaps(b)]


def test_blocks_are_outlined_and_the_image_is_in_its_window():
    image = np.linspace(-300, 400, 64 * 64, dtype=np.float32).reshape(64, 64)
    figure = nb04.words_on_image(image, [(2, 3, 7, "fat"), (1, 23, 7, "liver")], GRID, wrong={"fat"})
    (shown,) = figure.axes[0].images
    assert np.array_equal(shown.get_array(), image) and shown.get_clim() == (SOFT_TISSUE.low, SOFT_TISSUE.high)
    lines = [
        sorted({s[0][0] for s in c.get_segments()} | {s[0][1] for s in c.get_segments()})
        for c in figure.axes[0].collections
    ]
    assert lines == [list(range(0, 33, 4))] * 2 + [[0, 16, 32]] * 2
    colours = {text.get_text(): to_hex(text.get_color()).upper() for text in written(figure)}
    assert colours == {"fat": nb04.WRONG, "liver": nb04.LAYER_COLOURS[1]}
    boxed = {text.get_text() for text in written(figure) if text.get_bbox_patch() is not None}
    assert boxed == {"fat"}
    legend = [text.get_text() for text in figure.texts]
    assert legend == ["■ layer 1", "■ layer 2", "□ known not to apply", "window [-160, 240] HU"]
    figure = nb04.words_on_image(image, [(1, 23, 7, "liver")], GRID)
    assert [text.get_text() for text in figure.texts] == ["■ layer 1", "window [-160, 240] HU"]


@pytest.mark.parametrize(
    ("words", "grid", "says"),
    [
        ([(3, 0, 0, "fat")], GRID, "layers 1 and 2.*“fat” of layer 3"),
        ([(2, 32, 0, "fat")], GRID, r"at \(32, 0\)"),
        ([(2, 0, -1, "fat")], GRID, r"at \(0, -1\)"),
        ([(1, 7, 7, "fat"), (1, 8, 15, "liver")], GRID, "two words in one block: “fat” and “liver”"),
        ([], (32, 24), "multiples of 16"),
    ],
)
def test_words_that_have_no_place_are_refused(words, grid, says):
    with pytest.raises(ParameterError, match=says):
        nb04.words_on_image(torch.zeros(64, 64), words, grid)


def test_one_image_is_needed():
    with pytest.raises(ShapeError, match="one image"):
        nb04.words_on_image(torch.zeros(2, 1, 64, 64), [], GRID)


def test_the_pyramid_s_positions_are_those_of_the_quantiser():
    figure = nb04.pyramid_positions(torch.zeros(256, 128), 8)
    assert not plt.get_fignums()
    dots = [axis.collections[0].get_offsets().data for axis in figure.axes]
    assert [len(each) for each in dots] == [2, 32, 512]
    assert dots[0].tolist() == [[59.5, 59.5], [59.5, 187.5]]  # the 8th of 16 blocks of 8 pixels
    assert "every 16th" in figure.axes[0].get_title()
    with pytest.raises(ShapeError, match="multiples of 16"):
        nb04.pyramid_positions(torch.zeros(200, 200), 8)


def test_gradients_have_the_loss_s_sign_and_unit_size():
    x = torch.tensor([[[[1.0, -2.0], [0.0, 3.0]]]])
    with torch.no_grad():  # notebooks work without gradients
        found = nb04.gradient_images({"square": lambda y: y.square().mean(), "sum": torch.sum}, x)
    torch.testing.assert_close(found["square"], x / (14 / 4) ** 0.5)
    torch.testing.assert_close(found["sum"], torch.ones_like(x))
    assert not nb04.gradient_images({"flat": lambda y: 0 * y.sum()}, x)["flat"].any()


def test_the_explorer_redraws_for_a_view_and_its_layers():
    views = {"dark": (torch.full((64, 64), -200.0), ALL), "bright": (torch.full((64, 64), 300.0), ALL[:4])}
    panel = nb04.words_explorer(views, GRID, wrong={"dark": ["mediastinum"]})
    assert panel.controls["view"].value == "bright"
    first = panel.image.value
    panel.controls["layers"].value = (2,)  # of which the bright view has none
    second = panel.image.value
    panel.controls["view"].value = "dark"
    assert len({first, second, panel.image.value}) == 3
    assert len(written(panel.figure())) == 4 and len(written(panel.figure("dark", (2,)))) == 64
    marked = {view: "known not to apply" in str([t.get_text() for t in panel.figure(view).texts]) for view in views}
    assert marked == {"dark": True, "bright": False}
    own = nb04.words_explorer(views, GRID, window={"dark": LUNG})
    windows = [own.figure(view).axes[0].images[0].get_clim() for view in views]
    assert windows == [(LUNG.low, LUNG.high), (SOFT_TISSUE.low, SOFT_TISSUE.high)]
    with pytest.raises(ParameterError, match="needs a view"):
        nb04.words_explorer({}, GRID)
    with pytest.raises(ParameterError, match="no view 'brigth'.*mean 'bright'.*dark, bright"):
        panel.figure("brigth")
    for layers in (1, (3,), ()):
        with pytest.raises(ParameterError, match=r"some of \(1, 2\)"):
            panel.figure("dark", layers)


@pytest.mark.parametrize(("size", "grid"), [(256, (32, 32)), (384, (48, 48))])
def test_organs_are_looked_for_under_their_words(size, grid):
    labels = np.zeros((size, size), np.uint8)
    labels[32:64, 64:96] = ID["liver"]  # the second row's third block of layer 2
    drawn = DrawnSlice(np.zeros_like(labels, np.int16), labels, 0.8, "abdomen", "arterial", 0)
    said = [(2, 7, 11, "liver"), (2, 7, 15, "hepatic"), (2, 3, 3, "spleen"), (2, 3, 7, "fat"), (1, 7, 7, "liver")]
    assert nb04.organs_under_words(said, grid, drawn) == (1, 2)
    assert nb04.organs_under_words(said, grid, drawn, shift=-1) == (1, 2)  # now the second word's
    assert nb04.organs_under_words(said, grid, drawn, shift=3) == (0, 2)


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("04.positions", 4096, "layer 3 alone"),
        ("04.positions", 4352, "One layer is missing"),
        ("04.positions", 1092, "16-fold"),
        ("04.positions", 4367, "How large is the grid"),
        ("04.positions", "4,368", "One number, please: the sum"),
        ("04.positions", [16, 256, 4096], "One number, please: the sum"),
        ("04.pool", answers._strictly, "≥, not >"),
        ("04.pool", answers._whole_batch, "whole batch"),
        ("04.pool", answers._of_words, "the other dimension"),
        ("04.pool", answers._without_low, "smallest is not 0"),
        ("04.controls", "B and E", "stand up to noise"),
        ("04.controls", "B", "Two letters"),
    ],
)
def test_exercises_tell_mistakes_apart(name, answer, says):
    verdict = check(name, answer)
    assert verdict.state == "not yet" and says in verdict.message


@pytest.mark.parametrize("answer", ["B and D", "bd", "D, B", ["B", "D"], {"d", "b"}, "B&D"])
def test_two_letters_are_right_however_written(answer):
    assert check("04.controls", answer).state == "right"


def test_a_sum_is_right_as_any_number():
    for answer in (4368, 4368.0, torch.tensor(4368), "4368"):
        assert check("04.positions", answer).state == "right"
