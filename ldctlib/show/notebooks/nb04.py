"""Notebook 04: the autoencoder whose code is words, its pyramid, words on an image, and gradients of a loss.

A word's place is a position (row, column) of the latent's grid. Layer l of the pyramid chooses one position in each
block of the grid; blocks have 4 positions a side where the layer after has one. Figures are closed to pyplot, as in
:mod:`ldctlib.show.figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ldctlib.data.captions import INDEX, DrawnSlice, Facts, word_truth
from ldctlib.data.vocabulary import ORGAN_WORDS
from ldctlib.errors import ParameterError, did_you_mean
from ldctlib.models.pyramid_quantiser import PYRAMID, positions
from ldctlib.pipelines.words import check_layers
from ldctlib.show.diagrams import diagram
from ldctlib.show.figures import grid as images_in_lines
from ldctlib.show.figures import plane
from ldctlib.show.png import COLOURS, ERROR_COLOUR
from ldctlib.show.widgets import Panel, panel
from ldctlib.units import SOFT_TISSUE, Window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 6.4  # inches: the image that words are written on
SIZES = {1: (13, 9), 2: (9, 5)}  # points: of a word that fits, and the smallest, in each layer
LAYER_COLOURS = {1: COLOURS[4], 2: COLOURS[5], 3: COLOURS[2]}
WRONG = ERROR_COLOUR  # in a box, too


def vqgan_diagram(positions: Sequence[int] = (4, 64, 1024), words: Sequence[str] | None = None) -> Figure:
    """An image through the encoder, the three layers of the pyramid, the averages of their codes, and the decoder.

    positions : of each layer, coarse to fine
    words : some of each layer, as examples

    A layer takes the nearest code at its positions, and adds z - code there to what the next one sees.
    """
    words = ["words"] * len(PYRAMID) if words is None else [f"“{each}”" for each in words]
    if not len(positions) == len(words) == len(PYRAMID):
        have = f"{len(positions)} numbers of positions, words of {len(words)}"
        raise ParameterError(f"the pyramid has {len(PYRAMID)} layers, got {have}")
    boxes = {
        "x": ("$x$", 0, 1, "image", "data"),
        "E": ("encoder", 1, 1, "", "network"),
        "z": ("$z$", 2, 1, f"{positions[-1]} positions", "data", 1.5),
        "codebook": ("codebook", 3.5, 0, "a language model's vector of every word", "frozen", 3.25),
        "z_hat": (r"$\hat z$: average", 6.75, 1, "of 1, 2 or 3 codes", "operation", 1.5, 3),
        "D": ("decoder", 8.25, 2, "", "network"),
        "x_hat": (r"$\hat x$", 9.25, 2, "image", "data"),
    }
    arrows = [("x", "E"), ("E", "z"), ("z", "layer 1"), ("z_hat", "D"), ("D", "x_hat"), ("codebook", "layer 1")]
    for layer, (count, word) in enumerate(zip(positions, words, strict=True), 1):
        name = f"layer {layer}"
        boxes[name] = (name, 3.5, layer, f"nearest at {count}", "operation", 1.75)
        boxes[f"words {layer}"] = (word, 5.25, layer, f"{count} words, $e_{layer}$", "data", 1.5)
        arrows += [(name, f"words {layer}"), (f"words {layer}", "z_hat")]
        if layer > 1:
            arrows.append((f"layer {layer - 1}", name, f"$z_{layer}$"))
    return diagram(boxes, arrows)


def pyramid_positions(image_hu: Any, factor: int, *, window: Window = SOFT_TISSUE) -> Figure:
    """The positions of each layer as dots on the image, in the middle of the ``factor`` x ``factor`` pixels of each."""
    image = plane(image_hu)
    layers = positions((image.shape[0] // factor, image.shape[1] // factor))
    figure, axes = images_in_lines([[(image, window, "gray")] * len(layers)])
    for layer, ((rows, columns), axis) in enumerate(zip(layers, axes[0], strict=True), 1):
        y, x = (np.arange(n // factor)[chosen] for n, chosen in zip(image.shape, (rows, columns), strict=True))
        x, y = np.meshgrid((x + 0.5) * factor - 0.5, (y + 0.5) * factor - 0.5)
        axis.scatter(x, y, s=(60, 14, 2)[layer - 1], color=LAYER_COLOURS[layer], linewidths=0)
        stride = PYRAMID[layer - 1][0]
        axis.set_title(f"layer {layer}: {x.size} positions" + (f", every {stride}th" if stride > 1 else ", all"))
    figure.supxlabel(f"window {window}", fontsize=9)
    return figure


def gradient_images(losses: Mapping[str, Callable[[Tensor], Tensor]], prediction: Tensor) -> dict[str, Tensor]:
    """Each loss's gradient in a prediction (1, 1, H, W), over its root mean square: where a step would change it."""
    out = {}
    for name, loss in losses.items():
        with torch.enable_grad():
            x = prediction.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(x), x)
        scale = gradient.square().mean().sqrt()  # 0 where an image has what the loss wants
        out[name] = gradient / scale.clamp(min=torch.finfo(scale.dtype).tiny)
    return out


def words_on_image(
    image_hu: Any,
    words: Sequence[tuple[int, int, int, str]],
    grid: tuple[int, int],
    *,
    window: Window = SOFT_TISSUE,
    wrong: Collection[str] = (),
) -> Figure:
    """A CT slice with the words of layers 1 and 2 written into their blocks, which are outlined.

    image_hu : (H, W) or (1, 1, H, W)
    words : (layer, row, column, word), positions on the latent's grid; those of one block must be one
    grid : rows and columns of the latent's grid, multiples of 16
    wrong : words that are known not to apply, red and in a box

    A word shrinks until it fits its block, and is cut where it would be too small to read. Raises ParameterError for a
    layer, a position or a grid that the pyramid does not have, and for two words in one block.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patheffects import withStroke

    image = plane(image_hu)
    _check_words(words, grid)
    height, width = SIDE * image.shape[0] / max(image.shape), SIDE * image.shape[1] / max(image.shape)
    figure, axis = plt.subplots(figsize=(width, height + 0.3))
    plt.close(figure)
    axis.set_position((0, 0.3 / (height + 0.3), 1, height / (height + 0.3)))
    extent = (0, grid[1], grid[0], 0)
    axis.imshow(image, "gray", vmin=window.low, vmax=window.high, extent=extent, aspect="auto")
    axis.axis("off")
    axis.set(xlim=(0, grid[1]), ylim=(grid[0], 0))
    for layer in sorted({layer for layer, *_ in words}, reverse=True):
        side, colour, own = _block(layer), LAYER_COLOURS[layer], [each for each in words if each[0] == layer]
        for lines, last in ((axis.vlines, grid), (axis.hlines, grid[::-1])):
            lines(range(0, last[1] + 1, side), 0, last[0], colors=colour, linewidth=2 / layer, alpha=0.8)
        for _, row, column, word in own:
            # the middle of a block of layer 1 is a corner of four blocks of layer 2: nothing is written there
            place = (column // side + 0.5) * side, (row // side + 0.5) * side
            text = axis.text(*place, word, ha="center", va="center", color=WRONG if word in wrong else colour)
            text.set(fontweight="bold" if layer == 1 else "normal", gid=f"layer {layer}")
            text.set_path_effects([withStroke(linewidth=2.2, foreground="black")])
            _fit(text, SIZES[layer], 0.92 * side / grid[1] * width * figure.dpi)
            if word in wrong:
                text.set_bbox(dict(boxstyle="square,pad=0.12", facecolor="black", edgecolor=WRONG, linewidth=1.2))
    names = [(f"■ layer {n}", LAYER_COLOURS[n]) for n in sorted({each[0] for each in words})] + [
        ("□ known not to apply", WRONG)
    ] * bool(wrong)
    for place, (name, colour) in enumerate(names):
        figure.text((0.1 + 1.2 * place) / width, 0.09 / (height + 0.3), name, color=colour, fontsize=9)
    figure.text(1 - 0.1 / width, 0.09 / (height + 0.3), f"window {window}", fontsize=9, ha="right")
    return figure


def organs_under_words(
    words: Sequence[tuple[int, int, int, str]], grid: tuple[int, int], drawn: DrawnSlice, shift: int = 0
) -> tuple[int, int]:
    """Of layer 2's words that name an organ of the slice: how many have it in their block, and how many there are.

    words, grid : as in :func:`words_on_image`
    shift : blocks further, line by line and round the slice, that are looked at instead: a control

    A pixel of the organ in the block is enough.
    """
    facts, side = Facts(drawn.anatomy, drawn.phase, 0.0), _block(2)
    rows, columns = (n // side for n in grid)
    height, width = (n // count for n, count in zip(drawn.labels.shape, (rows, columns), strict=True))
    whole = word_truth(drawn.labels, drawn.pixel_mm, facts)
    hits = count = 0
    for layer, row, column, word in words:
        if layer == 2 and word in ORGAN_WORDS and whole[INDEX[word]] == 1:
            i, j = divmod((row // side * columns + column // side + shift) % (rows * columns), columns)
            block = drawn.labels[i * height : (i + 1) * height, j * width : (j + 1) * width]
            hits += int(word_truth(block, drawn.pixel_mm, facts)[INDEX[word]] != 0)
            count += 1
    return hits, count


def words_explorer(
    views: Mapping[str, tuple[Any, Sequence[tuple[int, int, int, str]]]],
    grid: tuple[int, int],
    *,
    window: Window | Mapping[str, Window] = SOFT_TISSUE,
    wrong: Mapping[str, Collection[str]] | None = None,
) -> Panel:
    """Choose a view, which is a name -> (image, its words), and the layers whose words are written on it.

    grid : as in :func:`words_on_image`, for all views. The static figure is of the last view.
    window : for all views; or a view's name -> its own, the soft tissue's for those not named
    wrong : a view's name -> words that are known not to apply to it

    The figure of a view that is not there, or of layers other than 1 and 2, is a ParameterError.
    """
    import ipywidgets as w

    if not views:
        raise ParameterError("the explorer needs a view: an image and its words")
    controls = {
        "view": w.Dropdown(options=list(views), value=list(views)[-1], description="words of"),
        "layers": w.ToggleButtons(options=[("1", (1,)), ("2", (2,)), ("1 and 2", (1, 2))], description="layers"),
    }

    def figure(view: str = list(views)[-1], layers: Collection[int] = (1, 2)) -> Figure:
        if view not in views:
            raise ParameterError(f"no view {view!r}{did_you_mean(view, views)}; there are: {', '.join(views)}")
        check_layers(layers, 2)
        image, words = views[view]
        chosen = [word for word in words if word[0] in layers]
        own = window if isinstance(window, Window) else window.get(view, SOFT_TISSUE)
        return words_on_image(image, chosen, grid, window=own, wrong=(wrong or {}).get(view, ()))

    def render(view: str, layers: Collection[int]) -> np.ndarray:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure(view, layers))
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    return panel(controls, render, figure)


def _block(layer: int) -> int:
    """Grid positions along the side of a layer's block."""
    return PYRAMID[layer - 1][0]


def _check_words(words: Sequence[tuple[int, int, int, str]], grid: tuple[int, int]) -> None:
    if min(grid) < 1 or any(n % _block(1) for n in grid):
        raise ParameterError(f"the pyramid fits a grid of multiples of {_block(1)} rows and columns, got {tuple(grid)}")
    taken: dict[tuple[int, int, int], str] = {}
    for layer, row, column, word in words:
        if layer not in SIZES or not (0 <= row < grid[0] and 0 <= column < grid[1]):
            have = f"“{word}” of layer {layer} at ({row}, {column})"
            raise ParameterError(f"words are those of layers 1 and 2, on a grid of {tuple(grid)}; got {have}")
        block = (layer, row // _block(layer), column // _block(layer))
        if block in taken:
            raise ParameterError(f"layer {layer} has two words in one block: “{taken[block]}” and “{word}”")
        taken[block] = word


def _fit(text: Any, sizes: tuple[float, float], most: float) -> None:
    """Shrink a text until it is ``most`` pixels wide, and cut it with an ellipsis where that is too small to read."""
    whole, (size, least) = text.get_text(), sizes
    text.set_fontsize(size)
    share = text.get_window_extent().width / most
    text.set_fontsize(max(least, size / max(share, 1)))
    length = len(whole)
    while length and text.get_window_extent().width > 1.02 * most:  # a small font's width is not quite in proportion
        length = min(length - 1, int(length * most / text.get_window_extent().width))
        text.set_text(whole[:length] + "…")
