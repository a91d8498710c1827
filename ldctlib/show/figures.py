"""Figures of CT images: one window for all, HU on every colour bar, legible at a notebook's width.

Images are float32 tensors or arrays in HU of shape (H, W) or (1, 1, H, W). Every function returns a
matplotlib Figure that is closed to pyplot, so that a notebook shows it once, as the cell's value.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.units import Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10.0
"""Inches; at DPI it fills a notebook's output column."""
DPI = 92
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito (2008): distinguishable with every common colour blindness."""
ROI_COLOUR = "#E69F00"
LEVELS = 96  # of each colour map in an embedded image: 4 HU in a window of 400, below what an eye tells apart
DIFFERENCE = Window(0, 200)

STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "lines.linewidth": 1.6,
    "image.interpolation": "nearest",
}


def use_style() -> None:
    """One look for all figures of a notebook, and small PNGs: a call at the top of each.

    In a notebook, figures with images are embedded with a palette, which halves what noise costs in a file.
    """
    import matplotlib.pyplot as plt
    from cycler import cycler

    plt.rcParams.update({**STYLE, "axes.prop_cycle": cycler(color=COLOURS)})
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        from matplotlib.figure import Figure

        plt.close(plt.figure())  # a notebook's backend sets its own formatter at the first figure
        shell.display_formatter.formatters["image/png"].for_type(Figure, png_bytes)


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG; with images, in a palette of their colour maps, exact grey included."""
    from PIL import Image

    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", bbox_inches="tight", pad_inches=0.05)
    colours = _palette(figure)
    if colours is None:
        return raw.getvalue()
    image = Image.fromarray(_nearest(np.asarray(Image.open(raw).convert("RGB")), colours))
    image.putpalette(colours.tobytes())
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def _nearest(image: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Index (H, W) uint8 of the colour nearest to each pixel (Pillow's choice is approximate)."""
    packed = image.astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)
    unique, inverse = np.unique(packed, return_inverse=True)
    split = np.stack([unique >> 16, unique >> 8 & 255, unique & 255], axis=1)
    distances = np.zeros((len(unique), len(colours)), dtype=np.int32)
    for channel in range(3):
        distances += np.square(split[:, channel, None] - colours[None, :, channel].astype(np.int32))
    return distances.argmin(axis=1).astype(np.uint8)[inverse].reshape(image.shape[:2])


def _palette(figure: Figure) -> np.ndarray | None:
    """At most 256 colours (n, 3) for a figure's images, or None where that would not do them justice."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    images = [image for axis in figure.axes for image in axis.images]
    if not images or any(image.get_array().ndim != 2 for image in images):
        return None
    shaded = [part for axis in figure.axes for part in (*axis.images, *axis.collections)]
    maps = {"gray": colormaps["gray"]} | {m.name: m for m in (p.get_cmap() for p in shaded) if m is not None}
    steps = np.linspace(0, 1, min(LEVELS, (256 - 3 * len(COLOURS)) // len(maps)))
    lines = np.array([to_rgb(colour) for colour in COLOURS])
    blends = [lines * weight + (1 - weight) for weight in (1.0, 0.6, 0.3)]  # anti-aliased on white
    return np.rint(255 * np.concatenate([m(steps)[:, :3] for m in maps.values()] + blends)).astype(np.uint8)


def plane(image_hu: Any) -> np.ndarray:
    """One image as a float32 (H, W) array. Raises ShapeError."""
    array = image_hu.detach().cpu().numpy() if hasattr(image_hu, "detach") else np.asarray(image_hu)
    if array.ndim > 2 and array.shape[:-2] == (1,) * (array.ndim - 2):
        array = array.reshape(array.shape[-2:])
    if array.ndim != 2:
        raise ShapeError(f"one image is (H, W) or (1, 1, H, W), got {tuple(array.shape)}; index it first")
    return array.astype(np.float32, copy=False)


def rows(
    images: Mapping[str, Any],
    *,
    window: Window,
    roi: tuple[int, int, int, int] | None = None,
    reference: str | None = None,
    difference: Window = DIFFERENCE,
    captions: Mapping[str, str] | None = None,
) -> Figure:
    """Named images side by side in one window; below them a zoomed part, and what differs, in HU.

    images      name → (H, W) or (1, 1, H, W) HU, all of one shape
    roi         (top, left, height, width) in pixels: framed above, zoomed in the second row
    reference   name of the image to compare with: adds a row image − reference, and its RMSE in HU
    difference  window of that row
    captions    name → a second line for the title, for example a metric
    """
    planes = {name: plane(image) for name, image in images.items()}
    _check(planes, roi, reference)
    heights = {"image": 1.0, **({"roi": 1.0} if roi else {}), **({"difference": 1.0} if reference else {})}
    figure, axes = _grid(list(heights), len(planes), aspect=next(iter(planes.values())).shape, bar=True)
    grey = differs = None
    for column, (name, image) in enumerate(planes.items()):
        axis = axes["image"][column]
        grey = _show(axis, image, window, "gray")
        axis.set_title(f"{name}\n{captions.get(name) or ' '}" if captions else name)
        if roi:
            top, left, height, width = roi
            _frame(axis, roi)
            _show(axes["roi"][column], image[top : top + height, left : left + width], window, "gray")
        if reference:
            error = image - planes[reference]
            differs = _show(axes["difference"][column], error, difference, "RdBu_r")
            rmse = float(np.sqrt(np.mean(np.square(error, dtype=np.float64))))
            label = "the reference" if name == reference else f"RMSE {rmse:.1f} HU"
            axes["difference"][column].set_xlabel(label)
    figure.colorbar(grey, ax=list(axes["image"]), label="HU", fraction=0.03, pad=0.01)
    if roi:
        figure.colorbar(grey, ax=list(axes["roi"]), label="HU", fraction=0.03, pad=0.01)
    if reference:
        figure.colorbar(
            differs, ax=list(axes["difference"]), label=f"image − {reference} (HU)", fraction=0.03, pad=0.01
        )
    return figure


def contact_sheet(images_hu: Any, *, window: Window, columns: int = 6, titles: Sequence[str] | None = None) -> Figure:
    """Many images (N, 1, H, W) or a sequence of (H, W), small, in one window."""
    planes = [plane(image) for image in images_hu]
    if not planes:
        raise ParameterError("contact_sheet needs at least one image")
    columns = min(columns, len(planes))
    lines = -(-len(planes) // columns)
    figure, axes = _grid([str(line) for line in range(lines)], columns, aspect=planes[0].shape)
    flat = [axis for line in axes.values() for axis in line]
    for index, axis in enumerate(flat):
        if index >= len(planes):
            axis.set_visible(False)
            continue
        _show(axis, planes[index], window, "gray")
        if titles is not None:
            axis.set_title(titles[index], fontsize=9)
    figure.supxlabel(f"window {window}", fontsize=9)
    return figure


def nps_plot(curves: Mapping[str, tuple[Any, Any]], *, reference: str | None = None, normalise: bool = False) -> Figure:
    """Radial noise power spectra: name → (frequency in 1/mm, NPS in HU² mm²).

    ``normalise`` divides each by its peak, to compare shapes; the reference is drawn dashed and black.
    """
    figure, axis = _axis()
    for name, (frequency, nps) in curves.items():
        frequency, nps = _line(frequency), _line(nps)
        if frequency.shape != nps.shape:
            raise ShapeError(f"'{name}': {frequency.size} frequencies but {nps.size} values of NPS")
        look = {"color": "black", "linestyle": "--"} if name == reference else {}
        axis.plot(frequency, nps / nps.max() if normalise else nps, label=name, **look)
    axis.set(xlabel="spatial frequency (1/mm)", ylabel="NPS / peak" if normalise else "NPS (HU² mm²)")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


def profile_plot(
    images: Mapping[str, Any], *, row: int, columns: slice = slice(None), spacing_mm: float | None = None
) -> Figure:
    """HU along one row of each image; positions in mm where ``spacing_mm`` is given, else in pixels."""
    figure, axis = _axis()
    for name, image in images.items():
        image = plane(image)
        if not -image.shape[0] <= row < image.shape[0]:
            raise ParameterError(f"row={row} is outside '{name}', which has {image.shape[0]} rows")
        positions = np.arange(image.shape[1])[columns] * (spacing_mm or 1.0)
        axis.plot(positions, image[row, columns], label=name)
    axis.set(xlabel="position (mm)" if spacing_mm else "column (pixel)", ylabel="HU")
    axis.legend()
    return figure


class Table:
    """Rows of a table, the best of each column in bold where ``better`` says which end is best.

    rows     a list of dicts, or a pandas DataFrame
    better   column → ``"high"`` or ``"low"``; the first column is a name and is never ranked
    digits   column → decimals; 2 for those not named
    skip     names (first column) that are shown and do not compete, such as the reference itself
    """

    def __init__(
        self,
        rows: Any,
        *,
        better: Mapping[str, str] | None = None,
        digits: Mapping[str, int] | None = None,
        skip: Sequence[str] = (),
    ):
        if hasattr(rows, "to_dict"):
            rows = rows.to_dict("records")
        self.rows, self.better, self.digits, self.skip = (list(rows), dict(better or {}), dict(digits or {}), skip)
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        for name, end in self.better.items():
            if end not in ("high", "low") or name not in self.columns:
                raise ParameterError(f"better[{name!r}]={end!r}: say 'high' or 'low' for one of {self.columns}")

    def best(self, column: str) -> set[int]:
        """Indices of the rows that are best in a column, ties included as displayed."""
        if column not in self.better:
            return set()
        competing = [(i, row) for i, row in enumerate(self.rows) if row[self.columns[0]] not in self.skip]
        values = {i: round(row[column], self.digits.get(column, 2)) for i, row in competing if _finite(row.get(column))}
        best = (max if self.better[column] == "high" else min)(values.values(), default=None)
        return {index for index, value in values.items() if value == best}

    def text(self, row: Mapping[str, Any], column: str) -> str:
        value = row.get(column)
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return "–"
        is_float = isinstance(value, float | np.floating)
        return f"{value:.{self.digits.get(column, 2)}f}" if is_float else str(value)

    def __repr__(self) -> str:
        cells = [self.columns] + [[self.text(row, column) for column in self.columns] for row in self.rows]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.columns))]
        aligned = [
            [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
            for line in cells
        ]
        return "\n".join("  ".join(line).rstrip() for line in aligned)

    def _repr_html_(self) -> str:
        best = {column: self.best(column) for column in self.columns}
        head = "".join(f"<th>{escape(str(column))}</th>" for column in self.columns)

        def cell(index: int, row: Mapping[str, Any], column: str) -> str:
            text = escape(self.text(row, column))
            return f"<td><b>{text}</b></td>" if index in best[column] else f"<td>{text}</td>"

        body = "".join(
            "<tr>" + "".join(cell(index, row, column) for column in self.columns) + "</tr>"
            for index, row in enumerate(self.rows)
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and bool(np.isfinite(value))


def _check(planes: Mapping[str, np.ndarray], roi: Any, reference: str | None) -> None:
    if not planes:
        raise ParameterError("rows needs at least one image")
    shapes = {name: image.shape for name, image in planes.items()}
    if len(set(shapes.values())) > 1:
        raise ShapeError(f"images side by side need one shape, got {shapes}")
    if reference is not None and reference not in planes:
        raise ParameterError(f"reference='{reference}' is none of the images: {', '.join(planes)}")
    if roi:
        height, width = next(iter(shapes.values()))
        top, left, rows_, columns = roi
        if min(top, left) < 0 or min(rows_, columns) < 1 or top + rows_ > height or left + columns > width:
            raise ParameterError(f"roi={roi} (top, left, height, width) leaves the image of {height}×{width}")


def _axis() -> tuple[Figure, Axes]:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(WIDTH * 0.62, WIDTH * 0.36), layout="constrained")
    plt.close(figure)
    return figure, axis


def _grid(lines: list[str], columns: int, *, aspect: tuple[int, int], bar: bool = False):
    """A closed figure, and line name → axes, sized so that images of ``aspect`` fill it at WIDTH."""
    import matplotlib.pyplot as plt

    side = min((WIDTH - 0.8 * bar) / columns, 4.0)
    size = (side * columns + 0.8 * bar, side * aspect[0] / aspect[1] * len(lines) + 0.6)
    figure, axes = plt.subplots(len(lines), columns, figsize=size, squeeze=False, layout="constrained")
    plt.close(figure)
    return figure, dict(zip(lines, axes, strict=True))


def _show(axis: Axes, image: np.ndarray, window: Window, colours: str):
    picture = axis.imshow(image, cmap=colours, vmin=window.low, vmax=window.high, interpolation="antialiased")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
    return picture


def _frame(axis: Axes, roi: tuple[int, int, int, int]) -> None:
    from matplotlib.patches import Rectangle

    top, left, height, width = roi
    corner = (left - 0.5, top - 0.5)
    axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=ROI_COLOUR, linewidth=1.2))


def _line(values: Any) -> np.ndarray:
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    return values.astype(np.float64).reshape(-1)
