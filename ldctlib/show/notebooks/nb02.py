"""Notebook 02: an autoencoder's diagram, a latent's channels as a mosaic, and a walk through a latent.

A latent is (1, c, h, w) or (c, h, w), raw (as the decoder takes it). ``decode`` is any callable from raw latents
(B, c, h, w) to images (B, 1, H, W) in HU. Figures are closed to pyplot, as in :mod:`ldctlib.show.figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.show.diagrams import diagram
from ldctlib.show.figures import DIFFERENCE, grid, plane, rows
from ldctlib.show.widgets import Panel, grey, hu_bar, panel
from ldctlib.units import SOFT_TISSUE, Window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ldctlib.models.autoencoder import Autoencoder

Decode = Callable[[Tensor], Tensor]

CENTRE = 1 / 3
"""Share of a latent's height and width, in its middle, that a walk's shift moves."""


def autoencoder_diagram(model: Autoencoder, side: int) -> Figure:
    """Encoder (above) and decoder (below) of an autoencoder with a stem and a shortcut, sizes for side² pixels."""
    stem, latent = model.stem, f"{model.latent_channels} × {side // model.factor}²"
    levels = len(model.encoder.levels)
    last, wide = 2 + 1.3 * levels, 1.3 * levels
    boxes = {
        "x": ("$x$", 0, 1, f"1 × {side}²", "data", 0.8),
        "stem": (f"{stem} × {stem} to channels", 0.8, 1, f"{stem**2} × {side // stem}²", "operation", 1.2),
        "posterior": (r"$\mu,\ \sigma$", last, 1, f"2 × {latent}", "data", 1.2),
        "z": (r"$z = \mu + \sigma\epsilon$", last, 2, latent, "data", 1.2),
        "unstem": (f"channels to {stem} × {stem}", 0.8, 2, f"1 × {side}²", "operation", 1.2),
        "x_hat": (r"$\tilde x$", 0, 2, f"1 × {side}²", "data", 0.8),
        "W": ("$W$", 2, 0, f"{model.latent_channels} cosines of {model.factor}² pixels", "network", wide),
        "WT": (r"$W^\mathsf{T}$", 2, 3, "the same cosines at the start", "network", wide),
    }
    for i, level in enumerate(model.encoder.levels):
        text = "residual" + " + attention" * (len(level) > 1)
        shape = f"{level[0].out_layers[-1].out_channels} × {side // stem // 2**i}²"
        boxes |= {f"{part}{i}": (text, 2 + 1.3 * i, row, shape, "network", 1.3) for part, row in (("E", 1), ("D", 2))}
    down = ["x", "stem", *(f"E{i}" for i in range(levels)), "posterior", "z"]
    up = ["z", *(f"D{i}" for i in reversed(range(levels))), "unstem", "x_hat"]
    arrows = [*zip(down, down[1:], strict=False), *zip(up, up[1:], strict=False)]
    arrows += [("x", "W", "", "down"), ("W", "posterior", "+", "across")]
    return diagram(boxes, [*arrows, ("z", "WT", "", "down"), ("WT", "x_hat", "+", "across")])


def channels(z: Any) -> np.ndarray:
    """A latent (c, h, w) or (1, c, h, w) as a float32 array (c, h, w). Raises ShapeError."""
    array = z.detach().cpu().numpy() if hasattr(z, "detach") else np.asarray(z)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3:
        raise ShapeError(f"one latent is (c, h, w) or (1, c, h, w), got {tuple(array.shape)}; index it first")
    return array.astype(np.float32, copy=False)


def mosaic(z: Any, *, columns: int | None = None) -> np.ndarray:
    """The channels of a latent side by side in reading order: (rows · h, columns · w), NaN where none is left.

    columns : default is about a square, full where the number of channels allows it.
    """
    array = channels(z)
    c, h, w = array.shape
    if columns is None:
        square = int(np.ceil(np.sqrt(c)))
        columns = next((n for n in range(square, 2 * square) if c % n == 0), square)
    if columns < 1:
        raise ParameterError(f"a mosaic has at least one column, got {columns}")
    lines = -(-c // columns)
    sheet = np.full((lines * columns, h, w), np.nan, np.float32)
    sheet[:c] = array
    return sheet.reshape(lines, columns, h, w).transpose(0, 2, 1, 3).reshape(lines * h, columns * w)


def bottleneck(
    image_hu: Any,
    z: Any,
    decoded_hu: Any,
    *,
    window: Window = SOFT_TISSUE,
    difference: Window = DIFFERENCE,
    names: tuple[str, str] = ("x", "D(E(x))"),
) -> Figure:
    """An image, its latent at the same size of a number on paper, the decoded image, and the difference in HU.

    Each channel of the latent has its own grey levels, from its 1st to its 99th percentile.
    """
    image, decoded, latent = plane(image_hu), plane(decoded_hu), channels(z)
    if image.shape != decoded.shape:
        raise ShapeError(f"an image and its decoded one have one shape, got {image.shape} and {decoded.shape}")
    low, high = np.percentile(latent, (1, 99), axis=(1, 2))[..., None, None]
    sheet = mosaic((latent - low) / np.maximum(high - low, 1e-12))[: image.shape[0], : image.shape[1]]
    paper = np.full_like(image, np.nan)
    paper[: sheet.shape[0], : sheet.shape[1]] = sheet
    cells = (
        (image, window, "gray"),
        (paper, Window(0.5, 1), "gray"),
        (decoded, window, "gray"),
        (decoded - image, difference, "RdBu_r"),
    )
    c, h, w = latent.shape
    titles = (
        f"{names[0]}: {image.size:,} numbers",
        f"latent: {c} × {h} × {w} = {latent.size:,}",
        names[1],
        f"{names[1]} − {names[0]}",
    )
    figure, axes = grid([cells], titles=titles, margins=(0.1, 0.8))
    bar = dict(location="bottom", fraction=0.06, pad=0.02)
    figure.colorbar(axes[0, 0].images[0], ax=list(axes[0, :3]), label="HU (both images)", aspect=60, **bar)
    figure.colorbar(axes[0, 3].images[0], ax=axes[0, 3], label="HU", **bar)
    return figure


# ---------------------------------------------------------------- the walk


def walk_point(start: Tensor, end: Tensor, blend: float, channel: int, shift: float, unit: Sequence[float]) -> Tensor:
    """A point of the walk: between two latents, with one channel raised in the middle of the image.

    start, end : (1, c, h, w)
    blend : 0 start, 1 end
    shift : in units of ``unit[channel]``, a channel's std
    """
    if start.shape != end.shape or start.ndim != 4:
        shapes = f"{tuple(start.shape)} and {tuple(end.shape)}"
        raise ShapeError(f"a walk needs two latents (1, c, h, w) of one shape, got {shapes}")
    c, h, w = start.shape[1:]
    if not 0 <= channel < c:
        raise ParameterError(f"channel {channel}: this latent has channels 0 to {c - 1}")
    z = torch.lerp(start, end, float(blend))
    top, left = (int(n * (1 - CENTRE) / 2) for n in (h, w))
    z[:, channel, top : h - top, left : w - left] += shift * float(unit[channel])
    return z


@torch.no_grad()
def render_walk(
    decode: Decode, start: Tensor, end: Tensor, point: tuple[float, int, float], unit: Sequence[float], window: Window
) -> np.ndarray:
    """The decoded image of a point of the walk, beside the change that the shift makes (grey at 0 HU): uint8 (H, 2W).

    point : the blend, channel and shift of :func:`walk_point`
    """
    blend, channel, shift = point
    latents = [walk_point(start, end, blend, channel, each, unit) for each in (0.0, shift)]
    unshifted, shifted = (plane(image) for image in decode(torch.cat(latents)))
    return np.concatenate([grey(shifted, window), grey(shifted - unshifted, Window(0, window.width))], axis=1)


def latent_walk(decode: Decode, start: Tensor, end: Tensor, *, window: Window = SOFT_TISSUE) -> Panel:
    """Walk through a latent: blend two codes (1, c, h, w), and raise one channel in the middle of the image.

    The shift counts in standard deviations of the channel in ``start``.
    """
    import ipywidgets as w

    unit = start.std((0, 2, 3)).tolist()
    slow = {"continuous_update": False}
    codes = dict(description="first code | second code", style={"description_width": "initial"})
    controls = {
        "blend": w.FloatSlider(0.0, min=0.0, max=1.0, step=0.05, **codes, **slow),
        "channel": w.IntSlider(0, min=0, max=len(unit) - 1, description="channel", **slow),
        "shift": w.FloatSlider(0.0, min=-3.0, max=3.0, step=0.25, description="shift (std)", **slow),
    }
    points = {
        "first code": (0.0, 0, 0.0),
        "channel 0, +0.3 std": (0.0, 0, 0.3),
        "channel 2, +1 std": (0.0, min(2, len(unit) - 1), 1.0),
        "halfway": (0.5, 0, 0.0),
        "second code": (1.0, 0, 0.0),
    }

    def render(blend: float, channel: int, shift: float) -> np.ndarray:
        return render_walk(decode, start, end, (blend, channel, shift), unit, window)

    @torch.no_grad()
    def figure() -> Figure:
        images = decode(torch.cat([walk_point(start, end, *point, unit) for point in points.values()]))
        return rows(dict(zip(points, images, strict=True)), window=window)

    def heads(channel: int, shift: float, **_) -> list[str]:
        change = f"change by {shift:+.2f} std in channel {channel}"
        return [f"decoded &emsp; {hu_bar(window)}", f"{change} &emsp; {hu_bar(Window(0, window.width))}"]

    return panel(controls, render, figure, heads=heads)
