"""Notebook 05: what flows where in NA-Diff, a block of its transformer, masks in colours, an image as ordered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldctlib.benchmark.synthesis import UNCLIPPED_HU
from ldctlib.data.anatomy_masks import CLASSES
from ldctlib.show.diagrams import diagram
from ldctlib.show.figures import grid, strips
from ldctlib.units import SOFT_TISSUE, Window

CLASS_COLOURS = ("#000000", "#4d4d4d", "#ffffff", "#56b4e9", "#d55e00", "#cc79a7", "#e69f00", "#ff2a2a")
CLASS_COLOURS += ("#009e73", "#f0e442", "#0072b2", "#b8f2e6")
"""One for each of the mask's classes, bone in white."""


def _class_look() -> tuple[Window, Any]:
    from matplotlib.colors import ListedColormap

    return Window((len(CLASSES) - 1) / 2, len(CLASSES)), ListedColormap(CLASS_COLOURS, name="classes")


def class_strips(rows: Mapping[str, Sequence[Any]], titles: Sequence[str]):
    """Strips in the soft-tissue window, of which the first row, "mask", has a colour for each class: a Figure."""
    from matplotlib.patches import Patch

    figure = strips(rows, titles, window=SOFT_TISSUE, looks={"mask": (*_class_look(), "")})
    figure.axes[len(rows) * len(titles)].set_visible(False)  # the mask's bar
    for axis in figure.axes[: len(titles)]:
        axis.images[0].set_interpolation("nearest")
    legend = [Patch(facecolor=c, edgecolor="0.5", label=name) for c, name in zip(CLASS_COLOURS, CLASSES, strict=True)]
    look = dict(ncols=len(CLASSES), fontsize=8, columnspacing=0.8, handlelength=1, handletextpad=0.4)
    figure.legend(handles=legend, loc="outside lower center", **look)
    return figure


def mask_and_image(mask: Any, image_hu: Any, title: str) -> np.ndarray:
    """A mask in colours and what was made of it, with a bar in HU: uint8 (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure, axes = grid([[(mask, *_class_look()), (image_hu, SOFT_TISSUE, "gray")]], titles=("mask", title))
    axes[0, 0].images[0].set_interpolation("nearest")
    figure.colorbar(axes[0, 1].images[0], ax=axes[0, 1], label="HU", fraction=0.046)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def noise_sd_hu(without_hu: Any, noisy_hu: Any, where: Any = True) -> float:
    """The rms of an image's noise in tissue that the soft-tissue window does not clip, in HU."""
    low, high = UNCLIPPED_HU
    there = (without_hu > low) & (without_hu < high) & where
    return (noisy_hu - without_hu)[there].square().mean().sqrt().item()


def flow_diagram(steps: int):
    """Cat-Diff: noise map and mask as global vectors, a DiT on latents, its image; dashed in training: a Figure."""
    boxes = {
        "map": ("noise map", 0, 0, "Eq. 9", "data", 1.5),
        "mask": ("mask", 0, 1, "one class a pixel", "data", 1.5),
        "CLIP1": ("CLIP", 1.5, 0, "one vector", "frozen"),
        "CLIP2": ("CLIP", 1.5, 1, "one vector", "frozen"),
        "rho": (r"$\rho$", 2.5, 0, "Eq. 11", "network", 0.9, 2),
        "eta": (r"$\eta$", 3.4, 0, "Eqs 12, 13", "network", 1.1, 2),
        "c": ("$c$", 4.6, 0.5, "Eq. 14", "data", 1.2),
        "t": ("$t$", 6, 0.5, "time", "data", 1.3),
        "x": ("CT slice", 0, 2, "training only", "data", 1.5),
        "noise": ("noise", 0, 3, "start of sampling", "data", 1.5),
        "E": ("encoder", 1.5, 2, "$f$ = 8", "frozen"),
        "z": ("$z_t$", 2.5, 2, "32 × 32 × 4, noisy", "data", 1.9),
        "DiT": ("DiT", 4.6, 2, "64 tokens", "network", 1.2),
        "z0": (r"$\hat z_0$", 6, 2, f"after {steps} steps", "data", 1.3),
        "D": ("decoder", 7.3, 2, "+ noise", "frozen", 1.2),
        "y": ("CT image", 8.5, 2, "as ordered", "data", 1.2),
    }
    arrows = "map-CLIP1 mask-CLIP2 CLIP1-rho CLIP2-rho rho-eta eta-c t-c c-DiT z-DiT DiT-z0 z0-D D-y"
    training = [("x", "E", "", 0.0, True), ("E", "z", "", 0.0, True), ("noise", "z", "", "across")]
    return diagram(boxes, [tuple(arrow.split("-")) for arrow in arrows.split()] + training)


def block_diagram():
    """adaLN-Zero: a block of DiT, with the six codes that the condition gives it: a Figure."""
    boxes = {"c": ("$c$", 0, 0, "condition", "data"), "0": ("$x$", 0, 1, "64 tokens", "data")}
    boxes["codes"] = ("SiLU, Linear", 1, 0, "shift, scale, gate, twice: all 0 at the start", "network", 7.7)
    arrows = "c-codes"
    for n, (name, column) in enumerate({"attention": 1, "MLP": 5.5}.items(), 1):
        boxes[f"norm{n}"] = ("norm\n× (1 + scale)", column, 1, "+ shift", "operation", 1.25)
        boxes[f"net{n}"] = (name, column + 1.25, 1, "", "network")
        boxes[f"gate{n}"] = ("× gate", column + 2.25, 1, "", "operation", 0.85)
        boxes[f"sum{n}"] = ("+", column + 3.1, 1, "", "operation", 0.7)
        boxes[f"{n}"] = ("$x$" + "′" * n, column + 3.8, 1, "", "data", 0.7)
        boxes[f"keep{n}"] = ("as it is", column, 2, "", "operation", 3)
        arrows += f" {n - 1}-norm{n} norm{n}-net{n} net{n}-gate{n} gate{n}-sum{n} sum{n}-{n} codes-norm{n}--across"
        arrows += f" codes-gate{n}--across {n - 1}-keep{n}--down keep{n}-sum{n}--across"
    return diagram(boxes, [tuple(arrow.split("-")) for arrow in arrows.split()])
