"""Notebook 02: figures of an autoencoder and its latent, the small VAEs of its section 3, and a walk through a latent.

A latent is (1, c, h, w) or (c, h, w), raw (as the decoder takes it). ``decode`` is any callable from raw latents
(B, c, h, w) to images (B, 1, H, W) in HU. Figures are closed to pyplot, as in :mod:`ldctlib.show.figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.losses import Ramp
from ldctlib.metrics import body_mask, edge_strength, nps, soft_tissue_rois
from ldctlib.models.autoencoder import Posterior
from ldctlib.show.diagrams import diagram
from ldctlib.show.figures import DIFFERENCE, curves, grid, plane, rows
from ldctlib.show.png import COLOURS
from ldctlib.show.widgets import Panel, grey, hu_bar, panel
from ldctlib.units import SOFT_TISSUE, Window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ldctlib.models.autoencoder import Autoencoder

Decode = Callable[[Tensor], Tensor]

CENTRE = 1 / 3
"""Share of a latent's height and width, in its middle, that a walk's shift moves."""


def autoencoder_diagram(model: Autoencoder, side: int) -> Figure:
    """Encoder (above) and decoder (below) of an autoencoder with a stem and a lapped shortcut, for side² pixels."""
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
        "B": ("$B$", 0.8, 0, "filter across borders", "operation", 1.2),
        "BT": (r"$B^\mathsf{T}$", 0.8, 3, f"sketch, 1 × {side}²", "operation", 1.2),
        "W": ("$W$", 2, 0, f"{model.latent_channels} cosines of {model.factor}² pixels", "network", wide),
        "WT": (r"$W^\mathsf{T}$", 2, 3, "the same cosines at the start", "network", wide),
    }
    for i, level in enumerate(model.encoder.levels):
        text = "residual" + " + attention" * (len(level) > 1)
        shape = f"{level[0].out_layers[-1].out_channels} × {side // stem // 2**i}²"
        boxes |= {f"{part}{i}": (text, 2 + 1.3 * i, row, shape, "network", 1.3) for part, row in (("E", 1), ("D", 2))}
    down = ["x", "stem", *(f"E{i}" for i in range(levels)), "posterior", "z"]
    up = ["z", *(f"D{i}" for i in reversed(range(levels))), "unstem", "x_hat"]
    arrows = [*zip(down, down[1:], strict=False), *zip(up, up[1:], strict=False), ("B", "W"), ("WT", "BT")]
    arrows += [("x", "B", "", "down"), ("W", "posterior", "+", "across")]
    return diagram(boxes, [*arrows, ("z", "WT", "", "down"), ("BT", "x_hat", "+", "across"), ("BT", "D0")])


def channels(z: Any) -> np.ndarray:
    """A latent (c, h, w) or (1, c, h, w) as a float32 array (c, h, w). Raises ShapeError."""
    array = z.detach().cpu().numpy() if hasattr(z, "detach") else np.asarray(z)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3:
        raise ShapeError(f"one latent is (c, h, w) or (1, c, h, w), got {tuple(array.shape)}; index it first")
    return array.astype(np.float32, copy=False)


def mosaic(z: Any) -> np.ndarray:
    """A latent's channels in reading order, about a square of them; NaN where none is left."""
    array = channels(z)
    c, h, w = array.shape
    square = int(np.ceil(np.sqrt(c)))
    columns = next((n for n in range(square, 2 * square) if c % n == 0), square)
    lines = -(-c // columns)
    sheet = np.full((lines * columns, h, w), np.nan, np.float32)
    sheet[:c] = array
    return sheet.reshape(lines, columns, h, w).transpose(0, 2, 1, 3).reshape(lines * h, columns * w)


def bottleneck(
    image_hu: Any, z: Any, decoded_hu: Any, *, difference: Window = DIFFERENCE, names=("x", "D(E(x))")
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
        (image, SOFT_TISSUE, "gray"),
        (paper, Window(0.5, 1), "gray"),
        (decoded, SOFT_TISSUE, "gray"),
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


def border_ratio(x: Tensor, size: int) -> float:
    """How much larger the steps from pixel to pixel are across the borders of blocks than inside them (RMS).

    x : (..., H, W), blocks of ``size`` from its upper left corner. 1 where no border is seen.
    """
    steps = [(y[..., 1:] - y[..., :-1]).square() for y in (x, x.mT)]
    across = torch.stack([s[..., size - 1 :: size].mean() for s in steps]).mean()
    inside = torch.stack([s[..., k::size].mean() for s in steps for k in range(size - 1)]).mean()
    return float((across / inside).sqrt())


def discs(size: int, diameter: float, *, step: int = 13, fine: int = 8) -> Tensor:
    """Discs of height 1, ``step`` pixels apart, (1, 1, size, size); a pixel that is cut counts by its area inside.

    A step that shares no factor with the blocks puts them in every phase.
    """
    axis = (torch.arange(size * fine) + 0.5) / fine
    offset = (axis - step / 2).remainder(step)
    near = torch.minimum(offset, step - offset).square()
    inside = (near[:, None] + near < (diameter / 2) ** 2).float()
    return F.avg_pool2d(inside[None, None], fine)


def flattest(image_hu: Tensor, size: int) -> tuple:
    """Index of the square of soft tissue with the weakest edges, of ``size`` pixels; its corner is one of blocks."""
    strength = edge_strength(image_hu)
    corners = soft_tissue_rois(image_hu, size, step=8)
    squares = [(..., slice(row, row + size), slice(column, column + size)) for _, row, column in corners]
    return min(squares, key=lambda square: float(strength[square].mean()))


def regions(truth_hu: Tensor) -> dict[str, Tensor]:
    """Masks: "flat" is soft tissue without an edge within four pixels, "edges" are those of the body."""
    strength = edge_strength(truth_hu)
    far = F.max_pool2d(strength, 9, stride=1, padding=4) < 5
    flat = far & (truth_hu > -150) & (truth_hu < 250)
    return {"flat": flat, "edges": (strength > 20) & body_mask(truth_hu)}


def mean_nps(images_hu: Sequence[Tensor], truths_hu: Sequence[Tensor], pixel_mm: float) -> tuple:
    """Frequencies in 1/mm, and the radial NPS of images minus truths where the truth has no strong edge."""
    spectra = []
    for image, truth in zip(images_hu, truths_hu, strict=True):
        strength = F.max_pool2d(edge_strength(truth), 32, stride=1)
        corners = [c for c in soft_tissue_rois(truth, 32, step=8) if strength[c[0], 0, c[1], c[2]] < 20]
        spectra.append(nps(image - truth, pixel_mm, roi=32, corners=corners).radial[:17])
    return np.arange(17) / (32 * pixel_mm), np.mean(spectra, axis=0)


# ---------------------------------------------------------------- small VAEs


@torch.enable_grad()
def train_toys(
    training: Tensor, held_out: Tensor, weights: Collection[Ramp], *, steps: int, generator: torch.Generator, starts=5
) -> tuple[Tensor, Tensor]:
    """Train small VAEs side by side, 16 latent numbers each, on vectors (n, d) with the loss MSE + λ KL / d.

    weights : a run's λ, over the share of the steps; every run has the same ``starts`` random starts

    Returns the MSE (times, runs, starts) and the nats of each number (times, runs, starts, 16) on the held-out
    vectors, whose noise is the same every time, after every tenth step.
    """
    d, runs = training.shape[-1], len(weights)
    encoder = _layers(d, 64, 64, 32, copies=(runs, starts), generator=generator)
    decoder = _layers(16, 64, 64, d, copies=(runs, starts), generator=generator)
    optimizer = torch.optim.AdamW([*encoder, *decoder], betas=(0.9, 0.99))
    history = []

    def terms(x: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        x = x.expand(runs * starts, -1, -1)
        posterior = Posterior(*_apply(encoder, 4 * x).chunk(2, dim=-1))
        x_hat = _apply(decoder, posterior.sample(draw))
        nats = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - posterior.logvar - 1)
        return (x_hat - x).square().mean((1, 2)), nats.mean(1)

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 + np.cos(np.pi * step / steps))
        weight = torch.tensor([ramp(step / steps) for ramp in weights]).repeat_interleave(starts)
        mse, nats = terms(training[torch.randint(len(training), (128,), generator=generator)], generator)
        optimizer.zero_grad()
        (mse + weight * nats.sum(1) / d).sum().backward()
        optimizer.step()
        if step % 10 == 9:
            with torch.no_grad():
                history.append(terms(held_out, torch.Generator().manual_seed(0)))
    mse, nats = (torch.stack(part).unflatten(1, (runs, starts)) for part in zip(*history, strict=True))
    return mse, nats


def _layers(*sizes: int, copies: tuple[int, int], generator: torch.Generator) -> list[Tensor]:
    """Weights and biases (runs · starts, in, out), (runs · starts, 1, out)."""
    runs, starts = copies
    shapes = [(n, b, a) for a, b in zip(sizes, sizes[1:], strict=False) for n in (a, 1)]
    drawn = [(2 * torch.rand(starts, n, b, generator=generator) - 1) / a**0.5 for n, b, a in shapes]
    return [each.repeat(runs, 1, 1).requires_grad_() for each in drawn]


def _apply(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """(runs · starts, n, in) to (runs · starts, n, out)."""
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        x = torch.baddbmm(bias, x if weight is weights[0] else F.silu(x), weight)
    return x


def toy_scores(mse: Tensor, nats: Tensor, weight: float, d: int = 64) -> dict[str, Tensor]:
    """RMSE, the numbers with more than 0.05 nats, and the loss at ``weight``, of what :func:`train_toys` returns."""
    alive, loss = (nats > 0.05).sum(-1).float(), mse + weight * nats.sum(-1) / d
    return {"RMSE (HU)": 1000 * mse.sqrt(), "channels alive": alive, "loss × 1000": 1000 * loss}


def toy_figure(scores: Mapping[str, Tensor], runs: Collection[str], levels: Mapping[str, float], ramp) -> Figure:
    """RMSE and channels alive over the steps: means, the range of the starts as bands; the ramp's steps are grey."""
    shown = list(scores)[:2]
    steps = 10 * np.arange(1, len(scores[shown[0]]) + 1)
    panels = {label: {name: (steps, scores[label][:, i].mean(-1)) for i, name in enumerate(runs)} for label in shown}
    figure = curves(panels, xlabel="step", levels={label: {"Eq. (B)": levels[label]} for label in shown})
    for axis, label in zip(figure.axes, shown, strict=True):
        axis.axvspan(*ramp, color="0.93", zorder=0)
        for i in range(len(runs)):
            axis.fill_between(steps, *scores[label][:, i].aminmax(dim=-1), color=COLOURS[i], alpha=0.2)
    figure.axes[0].set_ylim(40, 130)
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
