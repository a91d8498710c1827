"""Pictures of diffusion: what noise destroys, the steps back, and where samples disagree.

Pure functions of images in HU, (H, W) or (1, 1, H, W); figures come closed, as those of
:mod:`ldctlib.show.figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.show import figures
from ldctlib.show.figures import plane
from ldctlib.show.widgets import WIPE_COLOUR, Panel, grey, panel
from ldctlib.units import SOFT_TISSUE, Window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR_PX = 4  # height of the scrubber's progress bar
STATIC_STEPS = 6  # columns of its static figure


class Look(NamedTuple):
    """A sampler's step as images in HU."""

    t: int
    x_t_hu: np.ndarray  # (H, W): where the chain stands
    x0_hat_hu: np.ndarray  # (H, W): what the network makes of it


def looks(steps: Iterable[Any], decode: Callable[[Any], Any]) -> list[Look]:
    """A sampler's steps of one image, decoded: ``decode(x)`` maps the model's grid to (1, 1, H, W) in HU."""
    return [Look(int(s.t), plane(decode(s.x_t)), plane(decode(s.x0_hat))) for s in steps]


# ---------------------------------------------------------------- static figures


def strips(rows: Mapping[str, Sequence[Any]], titles: Sequence[str], *, window: Window) -> Figure:
    """Rows of images in one window: row name → one image per title, all of one shape in a row."""
    import matplotlib.pyplot as plt

    planes = {name: [plane(image) for image in images] for name, images in rows.items()}
    if not planes or not titles:
        raise ParameterError("strips need at least one row and one title")
    for name, images in planes.items():
        if len(images) != len(titles):
            raise ShapeError(f"row '{name}' has {len(images)} images for {len(titles)} titles")
        if len({image.shape for image in images}) > 1:
            raise ShapeError(f"row '{name}': images of one row need one shape, got {[i.shape for i in images]}")
    side = (figures.WIDTH - 0.8) / len(titles)
    aspects = [images[0].shape[0] / images[0].shape[1] for images in planes.values()]
    figure, axes = plt.subplots(
        len(planes),
        len(titles),
        figsize=(figures.WIDTH, side * sum(aspects) + 0.4),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": aspects},
    )
    plt.close(figure)
    picture = None
    for line, (name, images) in zip(axes, planes.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            picture = axis.imshow(image, cmap="gray", vmin=window.low, vmax=window.high, interpolation="antialiased")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.colorbar(picture, ax=list(axes.flat), label="HU", fraction=0.02, pad=0.01)
    return figure


def curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    xlabel: str,
    levels: Mapping[str, Mapping[str, float]] | None = None,
    log_x: bool = False,
    falling: bool = False,
) -> Figure:
    """Line plots side by side: panel (its y label) → line name → (x, y).

    levels : panel → name → a constant to compare with, dashed
    log_x : powers of two on the x axis, for numbers of steps
    falling : the largest x on the left, for times that a sampler walks down
    """
    import matplotlib.pyplot as plt

    if not panels or not all(panels.values()):
        raise ParameterError("curves need at least one panel, and a line in each")
    if unknown := sorted(set(levels or {}) - set(panels)):
        raise ParameterError(f"levels name panels that are not there: {unknown}; there are {sorted(panels)}")
    figure, axes = plt.subplots(1, len(panels), figsize=(figures.WIDTH, 3.1), squeeze=False, layout="constrained")
    plt.close(figure)
    for axis, (label, lines) in zip(axes[0], panels.items(), strict=True):
        for name, (x, y) in lines.items():
            if len(x) != len(y):
                raise ShapeError(f"'{name}': {len(x)} positions but {len(y)} values")
            axis.plot(x, y, "o-" if len(x) <= 40 else "-", markersize=3.5, label=name)
        colours = ("black", "0.5", "0.75")
        for i, (name, level) in enumerate((levels or {}).get(label, {}).items()):
            axis.axhline(level, color=colours[i % len(colours)], linestyle="--", linewidth=1.1, label=name)
        if log_x:
            axis.set_xscale("log", base=2)
            ticks = sorted({x for line in lines.values() for x in line[0]})
            axis.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks], minor=False)
            axis.minorticks_off()
        if falling:
            axis.invert_xaxis()
        axis.set(xlabel=xlabel, ylabel=label)
        axis.legend(fontsize=8)
    return figure


def disagreement(
    lines: Mapping[str, Mapping[str, Any]],
    *,
    window: Window = SOFT_TISSUE,
    top_hu: float = 30.0,
    circles: Sequence[tuple[float, float, float]] = (),
) -> Figure:
    """Rows of images under the same titles; the last column's are standard deviations, 0 … ``top_hu`` HU, in colour.

    circles : (row, column, radius) in pixels, drawn at twice the radius in all columns but the first.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Circle

    titles = [list(line) for line in lines.values()]
    if not titles or len(titles[0]) < 2 or any(own != titles[0] for own in titles):
        raise ShapeError(f"every row needs the same titles, two at least, got {titles}")
    columns = len(titles[0])
    side = (figures.WIDTH - 0.3) / columns
    figure, axes = plt.subplots(
        len(lines), columns, figsize=(figures.WIDTH, side * len(lines) + 1.2), squeeze=False, layout="constrained"
    )
    plt.close(figure)
    for row, (name, line) in zip(axes, lines.items(), strict=True):
        for column, (axis, image) in enumerate(zip(row, line.values(), strict=True)):
            is_map = column == columns - 1
            low, high, colours = (0, top_hu, "magma") if is_map else (window.low, window.high, "gray")
            axis.imshow(plane(image), cmap=colours, vmin=low, vmax=high, interpolation="antialiased")
            for r, c, radius in circles if column else ():
                edge = "white" if is_map else figures.ROI_COLOUR
                axis.add_patch(Circle((c, r), 2 * radius, fill=False, edgecolor=edge, linewidth=1))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(name)
    for axis, title in zip(axes[0], titles[0], strict=True):
        axis.set_title(title, fontsize=9)
    # below, so that all images keep one size
    for part, label, shrink in ((axes[:, :-1], "HU", 0.4), (axes[:, -1:], "std (HU)", 1.0)):
        figure.colorbar(
            part[0, 0].images[0],
            ax=list(part.flat),
            label=label,
            location="bottom",
            shrink=shrink,
            fraction=0.06,
            pad=0.02,
            aspect=30 if shrink < 1 else 12,
        )
    return figure


# ---------------------------------------------------------------- the scrubber


def render_step(walk: Sequence[Look], step: int, window: Window) -> np.ndarray:
    """Step ``step`` (0 is the first): the chain's state, the network's estimate right of it, a bar of progress.

    uint8 (H + 4, 2W, 3). Raises ParameterError for a step that was not taken.
    """
    if not 0 <= step < len(walk):
        raise ParameterError(f"step {step} was not taken: there are 0 … {len(walk) - 1}")
    both = np.concatenate([grey(walk[step].x_t_hu, window), grey(walk[step].x0_hat_hu, window)], axis=1)
    image = np.repeat(both[..., None], 3, axis=2)
    bar = np.full((BAR_PX, image.shape[1], 3), 40, dtype=np.uint8)
    bar[:, : round(image.shape[1] * (step + 1) / len(walk))] = WIPE_COLOUR
    return np.concatenate([image, bar])


def scrubber(walk: Sequence[Look], *, window: Window = SOFT_TISSUE) -> Panel:
    """Drag through a sampler's steps: left what the chain holds, right what the network makes of it."""
    import ipywidgets as w

    if not walk:
        raise ParameterError("a scrubber needs at least one step")
    options = [(f"{i + 1} of {len(walk)}, t = {look.t}", i) for i, look in enumerate(walk)]
    controls = {"step": w.SelectionSlider(options=options, value=len(walk) // 2, description="step")}

    def figure():
        chosen = sorted({round(i) for i in np.linspace(0, len(walk) - 1, min(STATIC_STEPS, len(walk)))})
        return strips(
            {
                "decoded $z_t$": [walk[i].x_t_hu for i in chosen],
                r"decoded $\hat z_0$": [walk[i].x0_hat_hu for i in chosen],
            },
            [f"step {i + 1}, t = {walk[i].t}" for i in chosen],
            window=window,
        )

    return panel(controls, lambda step: render_step(walk, step, window), figure)
