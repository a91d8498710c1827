"""Figures of CT images and of curves: HU on every colour bar, legible at a notebook's width.

Images are float32 tensors or arrays in HU of shape (H, W) or (1, 1, H, W). Every function returns a matplotlib Figure
that is closed to pyplot, so that a notebook shows it once, as the cell's value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.show.png import ROI_COLOUR, WIDTH
from ldctlib.units import SOFT_TISSUE, Window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIFFERENCE = Window(0, 200)
LARGEST = 4.0  # inches: an image's side
MOST_TICKS = 8  # on a logarithmic axis


def plane(image_hu: Any) -> np.ndarray:
    """One image as a float32 (H, W) array. Raises ShapeError."""
    array = image_hu.detach().cpu().numpy() if hasattr(image_hu, "detach") else np.asarray(image_hu)
    if array.ndim > 2 and array.shape[:-2] == (1,) * (array.ndim - 2):
        array = array.reshape(array.shape[-2:])
    if array.ndim != 2:
        raise ShapeError(f"one image is (H, W) or (1, 1, H, W), got {tuple(array.shape)}; index it first")
    return array.astype(np.float32, copy=False)


def grid(
    lines: Sequence[Sequence[tuple[Any, Window, str]]], *, titles: Sequence[str] = (), labels=(), margins=(0.8, 0.6)
) -> tuple[Figure, np.ndarray]:
    """Images in lines, each with its window and its colour map; returns the figure and its axes (lines, columns).

    lines : of (image, window, name of a colour map); one shape in a line, and a last line may be shorter
    titles : above the first line's columns
    labels : left of the lines
    margins : inches beside and above the images, for colour bars and titles

    Raises ParameterError and ShapeError.
    """
    lines = [[(plane(image), *look) for image, *look in line] for line in lines]
    aspects = [height / width for height, width in (_common_shape([cell[0] for cell in line]) for line in lines)]
    columns = len(lines[0])
    side = min((WIDTH - margins[0]) / columns, LARGEST)
    size = (side * columns + margins[0], side * sum(aspects) + margins[1])
    figure, axes = _axes(len(lines), columns, size, height_ratios=aspects)
    for line_axes, line, label in zip_longest(axes, lines, labels, fillvalue=""):
        for axis, cell in zip_longest(line_axes, line):
            axis.set_visible(cell is not None)
            if cell is not None:
                image, window, colours = cell
                axis.imshow(image, colours, vmin=window.low, vmax=window.high, interpolation="antialiased")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
        line_axes[0].set_ylabel(label)
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=9)
    return figure, axes


def rows(
    images: Mapping[str, Any], *, window: Window, roi=None, reference=None, difference=DIFFERENCE, captions=None
) -> Figure:
    """Named images side by side in one window; below them a zoomed part, and what differs, in HU.

    images : name → (H, W) or (1, 1, H, W) HU, all of one shape
    roi : (top, left, height, width) in pixels: framed above, zoomed in the second row
    reference : name of the image to compare with: adds a row image − reference, and its RMSE in HU
    difference : window of that row
    captions : name → a second line for the title, for example a metric
    """
    from matplotlib.patches import Rectangle

    planes = {name: plane(image) for name, image in images.items()}
    shape = _common_shape(planes.values())
    if reference is not None and reference not in planes:
        raise ParameterError(f"reference='{reference}' is none of the images: {', '.join(planes)}")
    lines = [[(image, window, "gray") for image in planes.values()]]
    if roi:
        top, left, height, width = roi
        if min(top, left) < 0 or min(height, width) < 1 or top + height > shape[0] or left + width > shape[1]:
            raise ParameterError(f"roi={roi} (top, left, height, width) leaves the image of {shape[0]}×{shape[1]}")
        part = (slice(top, top + height), slice(left, left + width))
        lines.append([(image[part], window, "gray") for image in planes.values()])
    if reference:
        lines.append([(image - planes[reference], difference, "RdBu_r") for image in planes.values()])
    figure, axes = grid(lines)
    for axis, name in zip(axes[0], planes, strict=True):
        axis.set_title(f"{name}\n{captions.get(name) or ' '}" if captions else name)
        if roi:
            frame = dict(fill=False, edgecolor=ROI_COLOUR, linewidth=1.2)
            axis.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, **frame))
    for line in axes[: 2 if roi else 1]:
        _bar(figure, line, "HU", fraction=0.03)
    if reference:
        for axis, name, (error, *_) in zip(axes[-1], planes, lines[-1], strict=True):
            rmse = float(np.sqrt(np.mean(np.square(error, dtype=np.float64))))
            axis.set_xlabel("the reference" if name == reference else f"RMSE {rmse:.1f} HU")
        _bar(figure, axes[-1], f"image − {reference} (HU)", fraction=0.03)
    return figure


def contact_sheet(images_hu: Any, *, window: Window, columns: int = 6, titles: Sequence[str] | None = None) -> Figure:
    """Many images (N, 1, H, W) or a sequence of (H, W), small, in one window."""
    cells = [(image, window, "gray") for image in images_hu]
    columns = max(min(columns, len(cells)), 1)
    lines = [cells[start : start + columns] for start in range(0, max(len(cells), 1), columns)]
    figure, axes = grid(lines, margins=(0, 0.3 + 0.3 * len(lines)))
    for axis, title in zip(axes.flat, titles or (), strict=False):
        axis.set_title(title, fontsize=9)
    figure.supxlabel(f"window {window}", fontsize=9)
    return figure


def strips(
    rows: Mapping[str, Sequence[Any]], titles: Sequence[str], *, window: Window, looks: Mapping[str, tuple] = {}
) -> Figure:
    """Rows of images in one window: row name → one image per title, all of one shape in a row.

    looks : row name → (window, colour map, what its bar says), where rows differ; each row then has its own bar
    """
    for name, images in rows.items():
        if len(images) != len(titles):
            raise ShapeError(f"row '{name}' has {len(images)} images for {len(titles)} titles")
    own = {name: looks.get(name, (window, "gray", window.unit)) for name in rows}
    lines = [[(image, *own[name][:2]) for image in images] for name, images in rows.items()]
    figure, axes = grid(lines or [[]], titles=titles, labels=rows)
    for line, look in zip(axes, own.values(), strict=True) if looks else [(axes, [window.unit])]:
        _bar(figure, line, look[-1], fraction=0.02)
    return figure


def disagreement(
    lines: Mapping[str, Mapping[str, Any]], *, window: Window = SOFT_TISSUE, top_hu: float = 30.0, circles=()
) -> Figure:
    """Rows of images under the same titles; the last column's are standard deviations, 0 … ``top_hu`` HU, in colour.

    circles : (row, column, radius) in pixels, at twice the radius in all columns but the first; or row name → these.
    """
    from matplotlib.patches import Circle

    titles = [list(line) for line in lines.values()]
    if not titles or len(titles[0]) < 2 or any(each != titles[0] for each in titles):
        raise ShapeError(f"every row needs the same titles, two at least, got {titles}")
    looks = [(window, "gray")] * (len(titles[0]) - 1) + [(Window(top_hu / 2, top_hu), "magma")]
    cells = [[(image, *look) for image, look in zip(line.values(), looks, strict=True)] for line in lines.values()]
    figure, axes = grid(cells, titles=titles[0], labels=lines, margins=(0.3, 1.2))
    for name, line in zip(lines, axes, strict=True):
        for row, column, radius in circles[name] if isinstance(circles, Mapping) else circles:
            for axis in line[1:]:
                edge = "white" if axis is line[-1] else ROI_COLOUR
                axis.add_patch(Circle((column, row), 2 * radius, fill=False, edgecolor=edge, linewidth=1))
    # below, so that all images keep one size
    below = dict(location="bottom", fraction=0.06, pad=0.02)
    _bar(figure, axes[:, :-1], "HU", shrink=0.4, aspect=30, **below)
    _bar(figure, axes[:, -1:], "std (HU)", aspect=12, **below)
    return figure


def curves(
    panels: Mapping[str, Mapping[str, Any]],
    *,
    xlabel: str,
    levels=None,
    reference=None,
    log_x=False,
    falling=False,
    one_legend=False,
) -> Figure:
    """Line plots side by side: panel (its y label) → line name → (x, y).

    levels : panel → name → a constant to compare with, dashed
    reference : name of the line to compare with, black and dashed; or several names
    log_x : a logarithmic x axis; its ticks are the positions where there are few, else powers of two
    falling : the largest x on the left, for times that a sampler walks down
    one_legend : below all panels, which have the same lines
    """
    if not panels or not all(panels.values()):
        raise ParameterError("curves need at least one panel, and a line in each")
    if unknown := sorted(set(levels or {}) - set(panels)):
        raise ParameterError(f"levels name panels that are not there: {unknown}; there are {sorted(panels)}")
    figure, axes = _axes(1, len(panels), (min(WIDTH, 6.2 * len(panels)), 3.1))
    for axis, (label, lines) in zip(axes[0], panels.items(), strict=True):
        for name, (x, y) in lines.items():
            if len(x) != len(y):
                raise ShapeError(f"'{name}': {len(x)} positions but {len(y)} values")
            theory = name in ((reference,) if isinstance(reference, str) else reference or ())
            look = {"color": "black", "linestyle": "--"} if theory else {}
            axis.plot(x, y, **{"marker": "o" if len(x) <= 40 else "", "markersize": 3.5, "label": name, **look})
        colours = ("black", "0.5", "0.75")
        for i, (name, level) in enumerate((levels or {}).get(label, {}).items()):
            axis.axhline(level, color=colours[i % len(colours)], linestyle="--", linewidth=1.1, label=name)
        if log_x:
            axis.set_xscale("log", base=2)
            ticks = sorted({x for line in lines.values() for x in line[0]})
            if len(ticks) > MOST_TICKS:
                ticks = 2.0 ** np.arange(np.floor(np.log2(ticks[0])), np.ceil(np.log2(ticks[-1])) + 1)
            axis.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks], minor=False)
            axis.minorticks_off()
        if falling:
            axis.invert_xaxis()
        axis.set(xlabel=xlabel, ylabel=label)
        if not one_legend:
            axis.legend(fontsize=8)
    if one_legend:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def nps_plot(spectra: Mapping[str, tuple[Any, Any]], *, reference: str | None = None, normalise=False) -> Figure:
    """Radial noise power spectra: name → (frequency in 1/mm, NPS in HU² mm²).

    ``normalise`` divides each by its peak, to compare shapes; the reference is drawn dashed and black.
    """
    lines = {name: tuple(np.asarray(part, dtype=np.float64) for part in parts) for name, parts in spectra.items()}
    if normalise:
        lines = {name: (frequency, nps / nps.max()) for name, (frequency, nps) in lines.items()}
    label = "NPS / peak" if normalise else "NPS (HU² mm²)"
    figure = curves({label: lines}, xlabel="spatial frequency (1/mm)", reference=reference)
    figure.axes[0].set(xlim=(0, None), ylim=(0, None))
    return figure


def _axes(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of ``size`` inches that is closed to pyplot, and its axes (rows, columns)."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    plt.close(figure)
    return figure, axes


def _common_shape(images: Iterable[np.ndarray]) -> tuple[int, int]:
    shapes = [image.shape for image in images]
    if not shapes:
        raise ParameterError("a figure needs at least one image in every row")
    if len(set(shapes)) > 1:
        raise ShapeError(f"images side by side need one shape, got {shapes}")
    return shapes[0]


def _bar(figure: Figure, axes: np.ndarray, label: str, **options: Any) -> None:
    """A colour bar in HU for axes whose images have one window."""
    figure.colorbar(axes.flat[0].images[0], ax=list(axes.flat), label=label, **{"pad": 0.01, **options})
