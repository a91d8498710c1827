"""Notebook 08: images as they are, the salt test, places for lesions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ldctlib.ct.nps import soft_tissue_rois
from ldctlib.image import gaussian_blur
from ldctlib.show.diagrams import diagram
from ldctlib.show.figures import _axes, plane
from ldctlib.show.png import WIDTH


def panels(images: Mapping[str, tuple], *, columns: int = 3):
    """Name → (image, window, colour map), each with a bar of its own and every pixel drawn as it is: a Figure."""
    lines = -(-len(images) // columns)
    figure, axes = _axes(lines, columns, (WIDTH, 1.16 * lines * WIDTH / columns))
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, (image, window, colours)) in zip(axes.flat, images.items(), strict=False):
        drawn = axis.imshow(plane(image), colours, vmin=window.low, vmax=window.high, interpolation="none")
        axis.set_title(name)
        look = dict(orientation="horizontal", fraction=0.05, pad=0.02, shrink=0.8)
        figure.colorbar(drawn, ax=axis, label=window.unit, **look)
    return figure


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
    """Centres (row, column) of the flattest squares of soft tissue in a slice, apart from each other."""
    smooth, chosen = gaussian_blur(image_hu, 2.0)[0, 0], []
    corners = soft_tissue_rois(image_hu, room, fraction=0.95, step=4)
    for _, r, c in sorted(corners, key=lambda at: smooth[at[1] : at[1] + room, at[2] : at[2] + room].std().item()):
        if len(chosen) < count and all(max(abs(r - a), abs(c - b)) >= room // 2 for a, b in chosen):
            chosen.append((r, c))
    return [(r + room // 2, c + room // 2) for r, c in chosen]


def patch_at(image_hu: Tensor, place: tuple[int, int], size: int = 80) -> tuple[Tensor, int, int]:
    """A square around a place, inside the image, and the place's row and column in it."""
    size = min(size, *image_hu.shape[-2:])
    top, left = (min(max(x - size // 2, 0), n - size) for x, n in zip(place, image_hu.shape[-2:], strict=True))
    return image_hu[..., top : top + size, left : left + size], place[0] - top, place[1] - left
