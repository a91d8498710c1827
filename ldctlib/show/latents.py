"""Looking at latents: their channels as a mosaic, what the decoder makes of one number, and a walk through a latent.

A latent is (1, c, h, w) or (c, h, w), raw (as the decoder takes it). ``decode`` is any callable from raw latents
(B, c, h, w) to images (B, 1, H, W) in HU. Figures are closed to pyplot, as in :mod:`ldctlib.show.figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.show.figures import DIFFERENCE, DPI, WIDTH, plane, rows
from ldctlib.show.widgets import Panel, grey, panel
from ldctlib.units import SOFT_TISSUE, Window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Decode = Callable[[Tensor], Tensor]

CENTRE = 1 / 3
"""Share of a latent's height and width, in its middle, that a walk's shift moves."""


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
    """An image, its latent at the same size of a number on paper, what is decoded from it, and the difference in HU.

    Each channel of the latent has its own grey levels, from its 1st to its 99th percentile.
    """
    import matplotlib.pyplot as plt

    image, decoded, latent = plane(image_hu), plane(decoded_hu), channels(z)
    if image.shape != decoded.shape:
        raise ShapeError(f"an image and what is decoded have one shape, got {image.shape} and {decoded.shape}")
    low, high = np.percentile(latent, (1, 99), axis=(1, 2))[..., None, None]
    sheet = mosaic(np.clip((latent - low) / np.maximum(high - low, 1e-12), 0, 1))
    height, width = image.shape
    figure, axes = plt.subplots(1, 4, figsize=(WIDTH, WIDTH / 4 * height / width + 0.75), dpi=DPI, layout="constrained")
    plt.close(figure)
    shown = axes[0].imshow(image, cmap="gray", vmin=window.low, vmax=window.high)
    axes[1].imshow(sheet, cmap="gray", vmin=0, vmax=1, extent=(0, sheet.shape[1], sheet.shape[0], 0))
    axes[1].set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))  # one number of the latent as large as a pixel
    axes[2].imshow(decoded, cmap="gray", vmin=window.low, vmax=window.high)
    error = axes[3].imshow(decoded - image, cmap="RdBu_r", vmin=difference.low, vmax=difference.high)
    c, h, w = latent.shape
    titles = (
        f"{names[0]}: {image.size:,} numbers",
        f"latent: {c} × {h} × {w} = {latent.size:,}",
        names[1],
        f"{names[1]} − {names[0]}",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xticks=[], yticks=[], title=title)
        axis.spines[:].set_visible(False)
    bar = dict(location="bottom", fraction=0.06, pad=0.02)
    figure.colorbar(shown, ax=list(axes[:3]), label="HU (the image and what is decoded)", aspect=60, **bar)
    figure.colorbar(error, ax=axes[3], label="HU", **bar)
    return figure


@torch.no_grad()
def responses(decode: Decode, z: Tensor, *, amount: Any, size: int = 24) -> np.ndarray:
    """What one number of the latent does to the image: (c, size, size) in HU.

    z (1, c, h, w): every channel in turn is raised by its ``amount`` (a number, or one for each channel) at the middle
    position, and half of D(z + amount) - D(z - amount) is cut out around it.
    """
    if z.ndim != 4 or len(z) != 1:
        raise ShapeError(f"responses takes one latent (1, c, h, w), got {tuple(z.shape)}")
    c, h, w = z.shape[1:]
    step = torch.diag(torch.as_tensor(amount, dtype=z.dtype, device=z.device).expand(c))
    raised = z.repeat(2 * c, 1, 1, 1)
    raised[:c, :, h // 2, w // 2] += step
    raised[c:, :, h // 2, w // 2] -= step
    up, down = decode(raised).split(c)
    factor = up.shape[-1] // w
    if min(up.shape[-2:]) < size:
        raise ShapeError(f"the decoded image of {tuple(up.shape[-2:])} pixels is smaller than size={size}")
    top, left = (n // 2 * factor + factor // 2 - size // 2 for n in (h, w))
    return ((up - down) / 2)[:, 0, top : top + size, left : left + size].cpu().numpy()


def atom_sheet(sets: Mapping[str, Any], *, titles: Sequence[str] | None = None) -> Figure:
    """Small images (c, n, n) of every channel, a row for each name; each scaled to its own largest value."""
    import matplotlib.pyplot as plt

    arrays = {name: channels(images) for name, images in sets.items()}
    counts = {len(images) for images in arrays.values()}
    if len(counts) != 1:
        raise ShapeError(f"every row needs as many channels, got {sorted(counts)}")
    (count,) = counts
    figure, axes = plt.subplots(
        len(arrays),
        count,
        squeeze=False,
        dpi=DPI,
        layout="constrained",
        figsize=(WIDTH, len(arrays) * WIDTH / count + 0.5),
    )
    plt.close(figure)
    for row, (name, images) in enumerate(arrays.items()):
        line = axes[row]
        line[0].set_ylabel(name, fontsize=8)
        for i, (axis, image) in enumerate(zip(line, images, strict=True)):
            top = float(np.abs(image).max()) or 1.0
            axis.imshow(image, cmap="RdBu_r", vmin=-top, vmax=top)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color("0.8")
            if row == 0:
                axis.set_title(titles[i] if titles is not None else str(i), fontsize=8)
    return figure


# ---------------------------------------------------------------- the walk


def moved(start: Tensor, end: Tensor, *, blend: float, channel: int, shift: float, unit: Any) -> Tensor:
    """A point of the walk: between two latents, with one channel raised in the middle of the image.

    start, end : (1, c, h, w). blend : 0 start, 1 end. shift : in units of ``unit[channel]``, a channel's std.
    """
    if start.shape != end.shape or start.ndim != 4:
        raise ShapeError(
            f"a walk needs two latents (1, c, h, w) of one shape, got {tuple(start.shape)} and {tuple(end.shape)}"
        )
    c, h, w = start.shape[1:]
    if not 0 <= channel < c:
        raise ParameterError(f"channel {channel}: this latent has channels 0 to {c - 1}")
    z = torch.lerp(start, end, float(blend))
    top, left = (int(n * (1 - CENTRE) / 2) for n in (h, w))
    z[:, channel, top : h - top, left : w - left] += shift * float(unit[channel])
    return z


@torch.no_grad()
def render_walk(
    decode: Decode,
    start: Tensor,
    end: Tensor,
    *,
    blend: float,
    channel: int,
    shift: float,
    unit: Any,
    window: Window = SOFT_TISSUE,
) -> np.ndarray:
    """What is decoded at a point of the walk, beside what the shift changed (grey at 0 HU): uint8 (H, 2W)."""
    here = moved(start, end, blend=blend, channel=channel, shift=0.0, unit=unit)
    there = moved(start, end, blend=blend, channel=channel, shift=shift, unit=unit)
    unshifted, shifted = (plane(image) for image in decode(torch.cat([here, there])))
    return np.concatenate([grey(shifted, window), grey(shifted - unshifted, Window(0, window.width))], axis=1)


def latent_walk(decode: Decode, start: Tensor, end: Tensor, *, window: Window = SOFT_TISSUE) -> Panel:
    """Walk through a latent: blend two codes (1, c, h, w), and raise one channel in the middle of the image.

    The shift counts in standard deviations of the channel in ``start``.
    """
    import ipywidgets as w

    unit = start.std((0, 2, 3)).tolist()
    wide = {"description_width": "initial"}
    controls = {
        "blend": w.FloatSlider(
            0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            description="first code | second code",
            style=wide,
            continuous_update=False,
        ),
        "channel": w.IntSlider(0, min=0, max=len(unit) - 1, description="channel", continuous_update=False),
        "shift": w.FloatSlider(0.0, min=-3.0, max=3.0, step=0.25, description="shift (std)", continuous_update=False),
    }

    def render(blend: float, channel: int, shift: float) -> np.ndarray:
        return render_walk(decode, start, end, blend=blend, channel=channel, shift=shift, unit=unit, window=window)

    @torch.no_grad()
    def figure() -> Figure:
        stations = {
            "first code": (0.0, 0, 0.0),
            "channel 0, +0.3 std": (0.0, 0, 0.3),
            "channel 2, +1 std": (0.0, 2, 1.0),
            "halfway": (0.5, 0, 0.0),
            "second code": (1.0, 0, 0.0),
        }
        points = [
            moved(start, end, blend=b, channel=min(c, len(unit) - 1), shift=s, unit=unit)
            for b, c, s in stations.values()
        ]
        return rows(dict(zip(stations, decode(torch.cat(points)), strict=True)), window=window)

    return panel(controls, render, figure)
