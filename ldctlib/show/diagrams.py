"""Diagrams of architectures and of data flows: boxes on a grid, and arrows between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ldctlib.errors import ParameterError
from ldctlib.show.png import COLOURS, WIDTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"data": "#555555", "network": COLOURS[0], "frozen": COLOURS[5], "operation": COLOURS[2], "loss": COLOURS[1]}
"""What a box holds → its colour; a frozen network is used as it is, an operation has no weights."""
ROW = 0.85  # inches
GAP = (0.22, 0.14)  # inches that a box leaves free in its cell on each side: left and right, above and below


class Box(NamedTuple):
    """A box; its cell is counted from the top left, in columns and rows, fractions allowed."""

    label: str
    column: float
    row: float
    shape: str = ""  # one or more smaller lines
    kind: str = "network"
    columns: float = 1
    rows: float = 1


class Arrow(NamedTuple):
    """An arrow between two boxes, by name.

    way : 0 straight, > 0 curved to its left, < 0 to its right; "across" or "down": a corner, across or down first
    """

    start: str
    end: str
    label: str = ""
    way: float | str = 0.0
    dashed: bool = False


def diagram(
    boxes: Mapping[str, Box | tuple],
    arrows: Sequence[Arrow | tuple],
    *,
    width: float = WIDTH,
    kinds: Mapping[str, str] = KINDS,
) -> Figure:
    """Named boxes and the arrows between them; a tuple gives the fields of a Box or an Arrow in their order.

    ``diagram({"x": ("x", 0, 0, "1 × H × W", "data"), "E": ("encoder", 1, 0)}, [("x", "E")])``

    width : of the figure, in inches
    kinds : what a box may hold → its colour

    Raises ParameterError for boxes that overlap, for a kind that does not exist, and for an arrow without its two
    boxes or across a third one.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
    from matplotlib.path import Path

    boxes, arrows = {name: Box(*box) for name, box in boxes.items()}, [Arrow(*arrow) for arrow in arrows]
    _check(boxes, arrows, kinds)
    cell = np.array([width / max(box.column + box.columns for box in boxes.values()), ROW])
    bottom = ROW * max(box.row + box.rows for box in boxes.values())
    figure, axis = plt.subplots(figsize=(width, bottom + 0.25))
    plt.close(figure)
    figure.subplots_adjust(0, 0, 1, 1)
    axis.set(xlim=(0, width), ylim=(bottom + 0.25, 0))
    axis.axis("off")
    edges = {}  # (left, top) and (right, bottom) in inches
    for name, box in boxes.items():
        first, last = cell * (box.column, box.row) + GAP, cell * (box.column + box.columns, box.row + box.rows) - GAP
        edges[name] = first, last
        colour, (x, y) = kinds[box.kind], (first + last) / 2
        style = dict(boxstyle="round,pad=0,rounding_size=0.07", facecolor=(colour, 0.13), edgecolor=colour)
        axis.add_patch(FancyBboxPatch(first, *(last - first), linewidth=1.4, **style))
        half = 0.083 * (1 + box.label.count("\n")) + 0.075 * len(box.shape.splitlines())
        texts = [axis.text(x, y - half, box.label, ha="center", va="top", fontsize=10)]
        texts += [axis.text(x, y + half, box.shape, ha="center", va="bottom", fontsize=8, color="0.3")]
        for text in texts:
            share = text.get_window_extent().width / figure.dpi / (last - first - 0.1)[0]
            text.set_fontsize(text.get_fontsize() / max(share, 1))
    for arrow in arrows:
        points = _way(arrow, edges)
        look = dict(arrowstyle="-|>", mutation_scale=11, linewidth=1.2, color="0.25", shrinkA=0, shrinkB=0)
        axis.add_patch(FancyArrowPatch(path=Path(points), linestyle="--" if arrow.dashed else "-", **look))
        back = dict(facecolor="white", edgecolor="none", pad=1)
        axis.text(*points[len(points) // 2], arrow.label, ha="center", va="center", fontsize=8, bbox=back)
    used, left = {box.kind for box in boxes.values()}, GAP[0]
    for kind in (kind for kind in kinds if kind in used):
        axis.text(left, bottom + 0.1, f"■ {kind}", color=kinds[kind], fontsize=8, va="center")
        left += max(0.9, 0.3 + 0.07 * len(kind))
    return figure


def _check(boxes: Mapping[str, Box], arrows: Sequence[Arrow], kinds: Mapping[str, str]) -> None:
    if not boxes:
        raise ParameterError("a diagram needs at least one box")
    for name, box in boxes.items():
        if box.kind not in kinds:
            raise ParameterError(f"box '{name}' has the kind '{box.kind}'; there are {', '.join(kinds)}")
    for (a, one), (b, other) in combinations(boxes.items(), 2):
        beside = one.column >= other.column + other.columns or other.column >= one.column + one.columns
        if not (beside or one.row >= other.row + other.rows or other.row >= one.row + one.rows):
            raise ParameterError(f"boxes '{a}' and '{b}' overlap")
    for arrow in arrows:
        if arrow.start == arrow.end or not {arrow.start, arrow.end} <= set(boxes):
            raise ParameterError(f"an arrow needs two of the boxes {', '.join(boxes)}: {arrow.start} → {arrow.end}")


def _way(arrow: Arrow, edges: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Points (n, 2) in inches from the edge of the first box to that of the second."""
    a, b = (sum(edges[name]) / 2 for name in (arrow.start, arrow.end))
    t = np.linspace(0, 1, 801)[:, None]
    if isinstance(arrow.way, str):
        corner = np.array([b[0], a[1]] if arrow.way == "across" else [a[0], b[1]])
        points = np.where(t < 0.5, a + 2 * t * (corner - a), corner + (2 * t - 1) * (b - corner))
    else:
        middle = (a + b) / 2 + arrow.way * (b - a)[::-1] * (1, -1)  # y grows downwards
        points = (1 - t) ** 2 * a + 2 * t * (1 - t) * middle + t**2 * b
    inside = {name: ((points > first) & (points < last)).all(axis=1) for name, (first, last) in edges.items()}
    points_between = ~inside[arrow.start] & ~inside[arrow.end]
    for name in edges:
        if (inside[name] & points_between).any():
            raise ParameterError(f"the arrow {arrow.start} → {arrow.end} crosses the box '{name}': give it another way")
    return points[points_between].round(6)  # a straight line without jitter
