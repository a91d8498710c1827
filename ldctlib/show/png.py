"""The look of all figures, and images as small PNG files."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 10.0
"""Inches; at DPI it fills a notebook's output column."""
DPI = 92
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito (2008): distinguishable with every common colour blindness."""
ROI_COLOUR = "#E69F00"
ERROR_COLOUR = "#FF2A2A"  # beside COLOURS: of marks with a second sign, for those who see no red
LEVELS = 96  # of each colour map in an embedded image: 4 HU in a window of 400, below what an eye tells apart

STYLE = (
    {"figure.dpi": DPI, "savefig.dpi": DPI, "figure.facecolor": "white", "image.interpolation": "nearest"}
    | {"font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "legend.fontsize": 9, "legend.frameon": False}
    | {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": False, "lines.linewidth": 1.6}
)


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
        shell.display_formatter.formatters["image/png"].for_type(Figure, figure_png)


def figure_png(figure: Figure) -> bytes:
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


def array_png(image: np.ndarray) -> bytes:
    """A uint8 (H, W) or (H, W, 3) array as PNG bytes, packed for speed."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png", compress_level=1)
    return buffer.getvalue()


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
    steps = np.linspace(0, 1, min(LEVELS, (256 - 3 * len(COLOURS) - 3) // len(maps)))
    lines = np.array([to_rgb(colour) for colour in (*COLOURS, ERROR_COLOUR)])
    blends = [lines * weight + (1 - weight) for weight in (1.0, 0.6, 0.3)]  # anti-aliased on white
    return np.rint(255 * np.concatenate([m(steps)[:, :3] for m in maps.values()] + blends)).astype(np.uint8)
