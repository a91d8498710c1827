"""Notebook 03: MAN's data flow and U-Net, a slider through a sampler's steps, a tiny network, lesions in a liver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ParameterError
from ldctlib.image import body_mask, disc
from ldctlib.metrics import edge_strength
from ldctlib.phantom.organs import ID
from ldctlib.show.diagrams import diagram
from ldctlib.show.figures import plane, strips
from ldctlib.show.widgets import Panel, grey, hu_bar, panel
from ldctlib.units import SOFT_TISSUE, Window

STATIC_STEPS = 6  # columns of its static figure


def flow_diagram():
    """MAN from the low-dose image to the denoised one, and below it what only the training has: a Figure."""
    boxes = {
        "y": ("$y$", 0, 0.5, "low dose", "data", 0.9),
        "nafnet": ("nafnet", 1, 0, "trained first", "frozen", 1.1),
        "E1": ("$E$", 2.2, 0, "trained first", "frozen", 1.1),
        "E2": ("$E$", 2.2, 1, "the same", "frozen", 1.1),
        "m": ("$m$", 3.5, 0, "estimate", "data", 0.9),
        "code": ("$E(y)$", 3.5, 1, "code", "data", 0.9),
        "U": ("U-Net", 4.7, 0, "trained last", "network", 1.3, 2),
        "z0_hat": (r"$\hat z_0$", 6.4, 0, "after 30 passes", "data", 1.2),
        "D": ("$D$", 7.7, 0, "with $E$", "frozen"),
        "x": (r"$\hat x$", 8.8, 0, "denoised", "data", 1.1),
        "clean": ("$x$", 0, 2, "clean", "data", 0.9),
        "E3": ("$E$", 2.2, 2, "the same", "frozen", 1.1),
        "z0": ("$z_0$", 3.5, 2, "its code", "data", 0.9),
        "z_t": ("$z_t$", 4.7, 2, "with noise of $t$", "operation", 1.3),
        "loss": ("Eq. 7", 6.4, 2, "training only", "loss", 1.2),
    }
    arrows = [("y", "nafnet", "", "down"), ("y", "E2", "", "down"), ("clean", "E3"), ("E3", "z0"), ("z0", "z_t")]
    arrows += [("nafnet", "E1"), ("E1", "m"), ("E2", "code"), ("m", "U", "", "across"), ("code", "U", "", "across")]
    arrows += [("z_t", "U"), ("U", "z0_hat"), ("z0_hat", "D"), ("D", "x"), ("U", "loss", "", "across"), ("z_t", "loss")]
    return diagram(boxes, arrows)


def unet_diagram():
    """The latent U-Net at 512 × 512 pixels: four levels, attention to the condition at the third: a Figure."""
    sides, attends = (64, 32, 16, 8), "block, attention"
    boxes = {
        "in": ("$z_t$, $m$, $E(y) - m$", 0, 0, "3 × 32 maps", "data", 1.9),
        "t": ("$t$", 0, 1, "sines, MLP: 96 numbers", "data", 1.9),
        "c": ("$m$ as tokens", 0, 2, "16 × 16 of 64 numbers", "data", 1.9),
        "out": (r"$\hat v$", 8.9, 0, "32 maps", "data", 1.1),
    }
    for row, side in enumerate(sides):
        label, shape = attends if row == 2 else "residual block", f"{side} × {side} × 48"
        boxes[f"d{row}"] = (label, 2.6, row, shape, "network", 1.7)
        boxes[f"u{row}"] = (label, 6.6, row, shape, "network", 1.7)
    boxes["mid"] = ("block, attention, block", 4.55, 3, "8 × 8 × 48", "network", 1.8)
    arrows = [("in", "d0"), ("t", "d1", "to every block"), ("c", "d2", "keys, values"), ("d3", "mid"), ("mid", "u3")]
    for row in range(3):
        arrows += [(f"d{row}", f"d{row + 1}"), (f"u{row + 1}", f"u{row}"), (f"d{row}", f"u{row}", "skip")]
    return diagram(boxes, [*arrows, ("u0", "out")])


class Tiny(nn.Module):
    """Two convolutions and one gain a channel: an estimate of z0 (B, n, H, W) from z_t, its condition and its time."""

    def __init__(self, n: int, schedule, width: int = 48):
        super().__init__()
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in ((2 * n + 1, width), (width, n))]
        nn.init.zeros_(layers[-1].weight)  # at first it returns gain * c
        self.net, self.schedule = nn.Sequential(layers[0], nn.SiLU(), layers[1]), schedule
        self.gain = nn.Parameter(torch.zeros(n, 1, 1))

    def forward(self, z_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        signal = self.schedule.scales(t, z_t)[0].expand(len(z_t), 1, *z_t.shape[2:])
        return self.gain * c + self.net(torch.cat([z_t, c, signal], dim=1))


def rms_removed(image_hu: Tensor, denoised: Tensor, guide: Tensor) -> tuple[float, float]:
    """RMS in HU of what was removed: at the strongest tenth of a guide's edges, in the flatter half of the body."""
    inside, edges = body_mask(image_hu), edge_strength(guide)
    sharp, flat = edges > edges[inside].quantile(0.9), edges < edges[inside].quantile(0.5)
    return tuple((image_hu - denoised)[inside & mask].square().mean().sqrt().item() for mask in (sharp, flat))


def spread(values: Sequence[float]) -> str:
    """Mean, least and greatest."""
    return f"{sum(values) / len(values):.0f} ({min(values):.0f} … {max(values):.0f})"


def error_rows(squares: Mapping[tuple, Sequence[Sequence[float]]], n: int) -> list[dict[str, Any]]:
    """Rows of a table of errors in HU: what differs between n draws, and what they have in common.

    squares : (dose, place) → for each patient the mean squares of nafnet's error, a draw's, that of the draws' mean,
        and the variance between draws
    """
    table = []
    for (dose, place), values in squares.items():
        regression, draw, mean, variance = torch.tensor(values).mean(0)
        parts = {"a draw errs by (HU)": draw, "of it invented": variance, "common to all draws": mean - variance / n}
        parts["nafnet errs by"] = regression
        table.append({"dose": dose, "where": place} | {name: x.clamp(min=0).sqrt().item() for name, x in parts.items()})
    return table


def liver_places(labels: Tensor, *, side: int = 128, count: int = 4, apart: int = 28, margin: int = 12, seed: int = 0):
    """A square patch (its index) about the middle of the liver, and places (row, column) in it for lesions.

    labels : (1, 1, H, W), of a phantom's slice
    apart, margin : least distance in pixels between places, and to what is not parenchyma

    Fewer than ``count`` places where there is no room. The third value is the liver without its rim.
    """
    other = (labels != ID["liver"]).float()
    free = F.max_pool2d(other, 2 * margin + 1, 1, margin)[0, 0] == 0
    if not free.any():
        raise ParameterError(f"no place in this slice is {margin} pixels inside the liver")
    middle = free.nonzero().double().mean(0)
    top, left = ((middle - side / 2).round().long().clamp(min=0).minimum(torch.tensor(free.shape) - side)).tolist()
    cut = (..., slice(top, top + side), slice(left, left + side))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    free = free[cut] & (torch.minimum(rows, columns) >= margin) & (torch.maximum(rows, columns) < side - margin)
    generator, places = torch.Generator().manual_seed(seed), []
    while len(places) < count and free.any():
        candidates = free.nonzero()
        row, column = candidates[torch.randint(len(candidates), (), generator=generator)].tolist()
        places.append((row, column))
        free &= (rows - row) ** 2 + (columns - column) ** 2 >= apart**2
    return cut, places, F.max_pool2d(other, 9, 1, 4)[cut] == 0


def false_spots(error_hu: Tensor, mask: Tensor, *, least_hu: float, radius: float = 3.0) -> list[list[int]]:
    """Structures that an error (n, 1, H, W) adds or takes away in a mask (1, 1, H, W): [image, row, column] of each.

    One is where the mean over a disc differs from that over a ring, 2 to 6 pixels wider, by ``least_hu``.
    """
    reach = int(radius) + 7
    inner, out, core = (disc((2 * reach + 1,) * 2, (reach, reach), radius + more) for more in (0, 6, 2))
    template = inner / inner.sum() - (out - core) / (out - core).sum()
    contrast = F.conv2d(error_hu, template).abs()
    inside = mask[..., reach:-reach, reach:-reach]
    peaks = (contrast == F.max_pool2d(contrast, 13, 1, 6)) & (contrast >= least_hu) & inside
    return [[image, row + reach, column + reach] for image, _, row, column in peaks.nonzero().tolist()]


class DecodedStep(NamedTuple):
    """A sampler's step as images in HU."""

    t: int
    x_t_hu: np.ndarray  # (H, W): where the chain stands
    x0_hat_hu: np.ndarray  # (H, W): the network's estimate there


def decode_steps(steps: Iterable[Any], decode: Callable[[Any], Any]) -> list[DecodedStep]:
    """A sampler's steps of one image, decoded: ``decode(x)`` maps the model's grid to (1, 1, H, W) in HU."""
    return [DecodedStep(int(s.t), plane(decode(s.x_t)), plane(decode(s.x0_hat))) for s in steps]


def scrubber(steps: Sequence[DecodedStep], *, window: Window = SOFT_TISSUE) -> Panel:
    """Drag through a sampler's steps: left the chain's state, right the network's estimate."""
    import ipywidgets as w

    if not steps:
        raise ParameterError("a scrubber needs at least one step")
    options = [(f"{i + 1} of {len(steps)}, t = {decoded.t}", i) for i, decoded in enumerate(steps)]
    controls = {"step": w.SelectionSlider(options=options, value=len(steps) // 2, description="step")}

    def figure():
        chosen = sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(STATIC_STEPS, len(steps)))})
        return strips(
            {
                "decoded $z_t$": [steps[i].x_t_hu for i in chosen],
                r"decoded $\hat z_0$": [steps[i].x0_hat_hu for i in chosen],
            },
            [f"step {i + 1}, t = {steps[i].t}" for i in chosen],
            window=window,
        )

    def heads(step: int) -> list[str]:
        return [f"{name} &emsp; {hu_bar(window)}" for name in ("decoded z_t", "decoded ẑ0")]

    def render(step: int) -> np.ndarray:
        return np.concatenate([grey(steps[step].x_t_hu, window), grey(steps[step].x0_hat_hu, window)], axis=1)

    return panel(controls, render, figure, heads=heads)
