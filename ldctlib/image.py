"""What several layers do to images: check, blur, fit to a grid, find the body. Knows torch only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError

BODY_HU = -500.0
"""What is denser is body, what is thinner is air."""


def check_images(*images: Tensor) -> None:
    """Raise ShapeError or ParameterError unless all are finite floating-point (B, 1, H, W) tensors of one shape."""
    for position, image in enumerate(images):
        if not isinstance(image, Tensor) or not image.is_floating_point():
            kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise ParameterError(f"image {position} must be a floating-point torch tensor, got {kind}")
        if image.ndim != 4 or image.shape[1] != 1 or 0 in image.shape:
            raise ShapeError(f"image {position} must be (B, 1, H, W), got {tuple(image.shape)}")
        if image.shape != images[0].shape:
            raise ShapeError(f"images must have one shape, got {tuple(images[0].shape)} and {tuple(image.shape)}")
        if not torch.isfinite(image).all():
            raise ParameterError(f"image {position} has values that are not finite: replace them first (air is -1000)")


def check_mask(mask: Tensor, image: Tensor) -> Tensor:
    """The mask as bool, refused unless it has the image's shape and selects something in every image."""
    if not isinstance(mask, Tensor) or mask.shape != image.shape:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ShapeError(f"mask must have the images' shape {tuple(image.shape)}, got {shape}")
    mask = mask.to(image.device).bool()
    empty = (~mask.flatten(1).any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ParameterError(f"the mask of image(s) {empty} selects no pixel")
    return mask


def gaussian_taps(sigma: float, radius: int) -> Tensor:
    """Weights of a Gaussian filter at -radius..radius, float64, of sum 1."""
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    return taps / taps.sum()


def gaussian_blur(image: Tensor, sigma_px: float) -> Tensor:
    """Gaussian filter of (B, 1, H, W), cut at 4 sigma, mirrored at the border."""
    radius = max(1, int(4 * sigma_px + 0.5))
    taps = gaussian_taps(sigma_px, radius).to(image)
    # a mirror needs more image than the filter reaches
    mode = "reflect" if radius < min(image.shape[-2:]) else "replicate"
    padded = F.pad(image, (radius,) * 4, mode=mode)
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))


def fit(x: Tensor, multiple: int, least: int = 1) -> Tensor:
    """Extend (B, C, H, W) at the bottom and the right until H and W are multiples of ``multiple``, ``least`` or more.

    By reflection, or by repeating the last row or column where the image is too small to reflect.
    ``[..., :H, :W]`` undoes it exactly.
    """
    h, w = x.shape[-2:]
    bottom, right = (max(least, n) + -max(least, n) % multiple - n for n in (h, w))
    if not (bottom or right):
        return x
    return F.pad(x, (0, right, 0, bottom), mode="reflect" if bottom < h and right < w else "replicate")


def in_squares(image: Tensor, side: int, apply: Callable[[Tensor], Tensor]) -> Tensor:
    """``apply`` of (B, C, H, W), an image of the same size, in squares where H or W is above ``side``.

    Neighbours share a quarter of a square or more; across it one fades into the other.
    """
    h, w = image.shape[-2:]
    if max(h, w) <= side:
        return apply(image)
    shared = side // 4
    fade = ((torch.arange(side) + 1) / max(1, shared)).clamp(max=1).to(image)
    fade = fade.minimum(fade.flip(0))
    total, weight = torch.zeros_like(image), torch.zeros_like(image[:1, :1])
    for top in _starts(h, side, shared):
        for left in _starts(w, side, shared):
            at = (..., slice(top, top + side), slice(left, left + side))
            share = fade[: h - top, None] * fade[None, : w - left]
            total[at] += share * apply(image[at]).to(image)
            weight[at] += share
    return total / weight


def _starts(length: int, side: int, shared: int) -> list[int]:
    """Where squares begin along an axis: evenly, the first and the last flush."""
    more = max(0, -(-(length - side) // (side - shared)))  # squares beside the first
    return [round(i * (length - side) / max(1, more)) for i in range(more + 1)]


def disc(shape: Sequence[int], place: tuple[float, float], radius: float) -> Tensor:
    """A disc of height 1 about (row, column) with an edge one pixel wide, (1, 1, H, W)."""
    row, column = (torch.arange(n, dtype=torch.float32) - at for n, at in zip(shape, place, strict=True))
    return (radius + 0.5 - row[:, None].hypot(column)).clamp(0, 1)[None, None]


def body_mask(reference_hu: Tensor, threshold_hu: float = BODY_HU) -> Tensor:
    """Patient's body, bool (B, 1, H, W): the reference above -500 HU, its large components, holes filled.

    Components under a tenth of the largest one (table, tubes) are dropped; holes (lungs, gas) are filled.
    An image without anything above the threshold gives an empty mask.
    """
    import numpy as np
    from scipy import ndimage

    check_images(reference_hu)
    masks = []
    for image in reference_hu[:, 0].detach().cpu().numpy():
        labels, count = ndimage.label(image > threshold_hu)
        area = np.bincount(labels.ravel(), minlength=count + 1)
        area[0] = 0
        keep = (area >= 0.1 * area.max()) & (area > 0)
        masks.append(ndimage.binary_fill_holes(keep[labels]))
    return torch.from_numpy(np.stack(masks))[:, None].to(reference_hu.device)
