"""Notebook 08: images as they are, what a scan is, textures of the training, the salt test, lesions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldctlib import metrics
from ldctlib.ct.nps import rings, soft_tissue_rois
from ldctlib.data.banks import PIXELS_MM, random_kernel
from ldctlib.data.scan import Scan
from ldctlib.errors import ParameterError
from ldctlib.image import body_mask, gaussian_blur
from ldctlib.show.diagrams import diagram
from ldctlib.show.figures import DIFFERENCE, _axes, curves, plane
from ldctlib.show.png import COLOURS, WIDTH
from ldctlib.units import SOFT_TISSUE


def panels(images: Mapping[str, Any], differences: Mapping[str, Any] = {}, *, zoom=DIFFERENCE, columns: int = 3):
    """Images, then differences in colour, each with a bar of its own and every pixel drawn as it is: a Figure.

    images : name → image in HU, or (image, window) where that is not the soft tissue's
    zoom : window of the differences
    """
    cells = {name: (*(x if isinstance(x, tuple) else (x, SOFT_TISSUE)), "gray") for name, x in images.items()}
    cells |= {name: (x, zoom, "RdBu_r") for name, x in differences.items()}
    lines = -(-len(cells) // columns)
    figure, axes = _axes(lines, columns, (WIDTH, 1.16 * lines * WIDTH / columns))
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, (image, window, colours)) in zip(axes.flat, cells.items(), strict=False):
        drawn = axis.imshow(plane(image), colours, vmin=window.low, vmax=window.high, interpolation="none")
        axis.set_title(name)
        look = dict(orientation="horizontal", fraction=0.05, pad=0.02, shrink=0.8)
        figure.colorbar(drawn, ax=axis, label=window.unit, **look)
    return figure


def verdict(name: str, value: str, good: bool) -> bool:
    """Prints one line, which begins with LOOK unless the value is good; returns whether it is."""
    print(f"{'ok  ' if good else 'LOOK'}  {name:24} {value}")
    return bool(good)


def check_scan(scan: Scan, image_hu: Tensor) -> None:
    """Prints what a scan is: its size, its range, the tissue of one slice, its padding, what the reader noted."""
    hu, size, mm = scan.images_hu()[:, 0], scan.values.shape, scan.spacing_mm
    padding = torch.zeros_like(hu, dtype=torch.bool) if scan.padding is None else scan.padding
    (low, high), share = hu[~padding].aminmax(), padding.float().mean()
    middle = image_hu[body_mask(image_hu) & (image_hu.abs() < 200)].median()
    verdict("slices, rows, columns", " x ".join(map(str, size)), min(size[-2:]) >= 64)
    spacing = ", ".join(f"{s:.2f}" for s in mm or ()) or "unknown: pixels are taken as 0.75"
    verdict("spacing z, y, x (mm)", spacing, mm is not None)
    verdict("lowest, highest (HU)", f"{low:.0f}, {high:.0f}", -1500 < low < 0 and high < 32000)
    verdict("median soft tissue (HU)", f"{middle:.0f}", -120 < middle < 120)
    verdict("padding", f"{100 * share:.0f} % of the pixels", share < 0.5)
    verdict("notes of the reader", "; ".join(scan.notes) or "none", not scan.notes)


def trained_texture(rng: np.random.Generator, n: int = 64) -> np.ndarray:
    """Equation (1) for a kernel and a pixel size of the training, folded at Nyquist: the NPS at 0, 1/n, 2/n …"""
    kernel, mm = random_kernel(rng), float(rng.choice(PIXELS_MM))
    limit = 1.0 if rng.random() < 0.75 else 0.5  # detector bins of half a pixel, or of one
    axis = torch.arange(-3 * n // 2, 3 * n // 2) / n
    f = torch.hypot(axis[:, None], axis)
    power = torch.where(f <= limit, f * kernel(f / mm) ** 2, 0.0)
    folded = power.view(3, n, 3, n).sum(dim=(0, 2))  # three zones of one sampling frequency
    ring = np.fft.fftshift(rings(n)).ravel()
    return np.bincount(ring, folded.flatten().double().numpy()) / np.bincount(ring)


def salt_diagram():
    """The salt test: what is added, what is compared: a Figure."""
    boxes = {
        "ref": ("the reference", 1.3, 0, "your scan as it is, with its own noise $n_0$", "data", 4.9),
        "scan": ("your scan", 0, 1, "$x_0 + n_0$", "data", 1.3),
        "model": ("estimate", 0, 2, r"$\sigma_0$, NPS", "operation", 1.3),
        "n1": ("known noise", 1.3, 2, r"$n_1$, of $\sqrt{3}\,\sigma_0$", "data", 1.3),
        "+": ("+", 1.65, 1, "", "operation", 0.6),
        "salted": ("salted scan", 2.5, 1, r"noise $2\,\sigma_0$", "data", 1.3),
        "D": ("denoiser", 3.9, 1, "any method", "network", 1.1),
        "out": ("denoised", 5, 1, "", "data", 1.2),
        "loss": ("compare", 6.2, 0, "RMSE, edges, bias", "loss", 1.3, 2),
    }
    arrows = "scan-ref-down scan-+ scan-model model-n1 n1-+ +-salted salted-D D-out out-loss-across ref-loss-across"
    steps = [arrow.split("-") for arrow in arrows.split()]
    return diagram(boxes, [(*ends[:2], "", ends[2] if len(ends) > 2 else 0.0) for ends in steps])


def flat_places(image_hu: Tensor, count: int = 4, room: int = 24) -> list[tuple[int, int]]:
    """Centres (row, column) of the flattest squares of soft tissue in a slice, apart from each other.

    Raises ParameterError where there is none.
    """
    smooth, chosen = gaussian_blur(image_hu, 2.0)[0, 0], []
    corners = soft_tissue_rois(image_hu, room, fraction=0.95, step=4)
    for _, r, c in sorted(corners, key=lambda at: smooth[at[1] : at[1] + room, at[2] : at[2] + room].std().item()):
        if len(chosen) < count and all(max(abs(r - a), abs(c - b)) >= room // 2 for a, b in chosen):
            chosen.append((r, c))
    if not chosen:
        raise ParameterError("no flat soft tissue in this slice for a lesion: choose another, shown=")
    return [(r + room // 2, c + room // 2) for r, c in chosen]


def patch_at(image_hu: Tensor, place: tuple[int, int], size: int = 80) -> tuple[Tensor, int, int]:
    """A square around a place, inside the image, and the place's row and column in it."""
    size = min(size, *image_hu.shape[-2:])
    top, left = (min(max(x - size // 2, 0), n - size) for x, n in zip(place, image_hu.shape[-2:], strict=True))
    return image_hu[..., top : top + size, left : left + size], place[0] - top, place[1] - left


def around(spot: tuple[Tensor, int, int], reach: int) -> tuple:
    """The index of a square about a place in its patch, cut at the patch's edge."""
    return (..., *(slice(max(at - reach, 0), at + reach) for at in spot[1:]))


def noise_left(apply: Callable[[Tensor], Tensor], spots: Sequence[tuple[Tensor, int, int]]) -> float:
    """The share in % of the standard deviation that a method leaves within 8 pixels of places, their mean."""
    shares = [apply(spot[0])[around(spot, 8)].std() / spot[0][around(spot, 8)].std() for spot in spots]
    return 100 * float(torch.stack(shares).mean())


def score(x: Tensor, y: Tensor, reference: Tensor) -> dict[str, float]:
    """What a method made of y, against the reference: a row of a table; RMSE alone where nothing was done."""
    row = {"RMSE (HU)": metrics.rmse_hu(x, reference).item()}
    if x is y:
        return row
    row |= {"bias (HU)": metrics.bias_hu(x, y).item(), "edge attenuation": metrics.edge_attenuation(x, y, reference)}
    return row | {"structure": metrics.residual_structure(x, y, reference)}


def survival_figure(mm: Sequence[float], contrasts: Sequence[float], scans: Mapping[str, Tensor], blur: Tensor):
    """What survives over the diameter: the mean over places, and a band from the worst place to the best: a Figure.

    scans : title → (contrasts, diameters, places); blur : the Gaussian's, the same for every contrast
    """
    panels = {}
    for title, r in scans.items():
        lines = {f"{c:.0f} HU".replace("-", "−"): (mm, r[i].mean(-1)) for i, c in enumerate(contrasts)}
        panels[f"share that survives, {title}"] = {**lines, "Gaussian": (mm, blur[0].mean(-1))}
    figure = curves(panels, xlabel="diameter (mm)", reference="Gaussian", one_legend=True)
    for axis, r in zip(figure.axes, scans.values(), strict=True):
        axis.set(ylim=(0, 1.2))
        for line, colour in zip(r, COLOURS, strict=False):
            axis.fill_between(mm, line.amin(-1), line.amax(-1), color=colour, alpha=0.12)
    return figure
