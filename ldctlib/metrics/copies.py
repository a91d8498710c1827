"""Is a generated image a copy of a training image? Distances to the nearest one, beside those of unseen real images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import body_mask, check_images
from ldctlib.metrics.words import auc
from ldctlib.units import Window


class Nearest(NamedTuple):
    """Of every image the nearest training image."""

    indices: Tensor  # (n,) int64, in the order of the training images
    distances: Tensor  # (n,) float64, from 0 (equal) to 2; 1 - distance² / 2 is the correlation


class Copies(NamedTuple):
    """How near samples are to the training images, by what is usual for unseen ones."""

    ratio: Tensor  # (n,) distance of each sample over the unseen images' median distance
    suspects: Tensor  # (m,) int64, samples nearer than every unseen image, the nearest first
    nearer: float  # probability that a sample is nearer than an unseen image: 1/2 without copies, 1 with copies alone


def nearest_training(
    samples_hu: Tensor, training_hu: Tensor | Iterable[Tensor], window: Window, *, size: int = 64
) -> Nearest:
    """The nearest training image of every sample, by the Euclidean distance of small standardised images.

    Images are averaged to ``size`` pixels a side, then clipped to the window, standardised inside their own body, set
    to 0 outside and scaled to unit length. Noise is averaged away with the pixels; a mirrored or shifted copy is not
    found.

    samples_hu : (n, 1, H, W)
    training_hu : (N, 1, H', W'), or batches of such, which are held one at a time

    Raises ShapeError without training images, ParameterError for an image without a body or without contrast in it.
    """
    if not isinstance(window, Window):
        raise ParameterError(f"images are compared in a window (units.Window), got {window!r}")
    samples = _standardised(samples_hu, window, size, "samples")
    indices, distances, first = None, None, 0
    for batch in [training_hu] if isinstance(training_hu, Tensor) else training_hu:
        training = _standardised(batch, window, size, "training images").to(samples.device)
        found = (samples @ training.T).argmax(dim=1)
        own = torch.linalg.vector_norm(samples - training[found], dim=1)  # exact where both are nearly equal
        if distances is None:
            indices, distances = found, own
        else:
            closer = own < distances
            indices = torch.where(closer, found + first, indices)
            distances = torch.where(closer, own, distances)
        first += len(training)
    if indices is None:
        raise ShapeError("there are no training images")
    return Nearest(indices.cpu(), distances.cpu())


def copies(samples: Nearest, unseen: Nearest) -> Copies:
    """Whether samples are nearer to the training images than real images are that the training has not seen.

    samples, unseen : :func:`nearest_training` with the same training images, window and size; ``unseen`` of real images
        of *other patients*, as alike to the training images as an honest sample would be. With n of them, a sample that
        copies nothing is a suspect with a probability of about 1 / (n + 1).
    """
    if not len(samples.distances) or not len(unseen.distances):
        raise ParameterError("copies are found with one sample and one unseen image at least")
    ours, theirs = samples.distances, unseen.distances
    order = ours.argsort()
    truth = torch.arange(len(ours) + len(theirs)) < len(ours)
    return Copies(
        ours / theirs.quantile(0.5), order[ours[order] < theirs.min()], auc(-torch.cat([ours, theirs]), truth.int())
    )


def _standardised(images_hu: Tensor, window: Window, size: int, name: str) -> Tensor:
    """(n, size²) unit vectors in float64: small images in the window, of mean 0 and equal spread inside the body."""
    check_images(images_hu)
    small = F.interpolate(images_hu, (size, size), mode="area").double()
    body = body_mask(small).flatten(1)
    values = window.to_display(small).flatten(1)
    values = torch.where(body, values - (values * body).sum(1, keepdim=True) / body.sum(1, keepdim=True), 0.0)
    length = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    if empty := (~(length > 1e-6)).flatten().nonzero().flatten().tolist():
        raise ParameterError(f"{name} {empty[:8]} have no body, or no contrast in it in the window {window}")
    return values / length
