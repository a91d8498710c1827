"""Distances between two sets of images: Fréchet and kernel distance of a network's features, through torch-fidelity.

``FID`` (Heusel et al. 2017) and ``KID`` (Bińkowski et al. 2018) are the names of these distances with the Inception
network of 2015 alone; with another network they are ``FD(vgg16)`` and ``KD(vgg16)``, whose numbers are others.

    reference = image_features(references_hu, window=SOFT_TISSUE)
    kernel_distance(image_features(images_hu, window=SOFT_TISSUE), reference)

The Fréchet distance of n images is biased: it grows as n falls, and is above 0 for equal distributions. The kernel
distance is unbiased, so it is the one for few images.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldctlib.compat import torchvision_shim
from ldctlib.errors import CheckpointError, ParameterError, ShapeError, require
from ldctlib.image import check_images
from ldctlib.losses.perceptual import vgg16_features
from ldctlib.metrics.perceptual import trunk_file
from ldctlib.units import Window

LAYERS = {
    "vgg16": {"relu1_2": 64, "relu2_2": 128, "relu3_3": 256, "relu4_3": 512, "relu5_3": 512},
    "inception": {"64": 64, "192": 192, "768": 768, "2048": 2048},
}
"""Backbone -> its layers and how many features each gives: the channels' means over the image."""

DEFAULT_LAYER = {"vgg16": "relu3_3", "inception": "2048"}

LEAST_KERNEL = 50
"""Images in each set that a kernel distance needs at least."""

LEAST_BLOCKS = 6
"""Blocks of images that an interval needs at least."""

PIXELS_AT_ONCE = 4 * 512 * 512
"""Of a pass through the backbone, to bound its memory."""


class Features(NamedTuple):
    """What a backbone sees in a set of images."""

    values: Tensor  # (n, features) float64 on the CPU
    backbone: str
    layer: str
    window: Window
    size: tuple[int, int]  # H and W of the images


class Distance(NamedTuple):
    """A distance between two sets and all that it depends on.

    ``low`` and ``high`` bound the value at this n with the confidence ``level``; NaN where the blocks are too few.
    ``bias`` is the part of the value that is due to n, as the jackknife estimates it: value - bias is nearer to what an
    endless set would give.
    """

    name: str  # "FID", "KID", or with the backbone: "FD(vgg16)", "KD(vgg16)"
    value: float
    low: float
    high: float
    level: float
    bias: float
    n: int
    n_reference: int
    subset_size: int | None  # of a kernel distance
    window: str
    provenance: str


@lru_cache(maxsize=2)
def _vgg16(layer: str, path: Path, allow_download: bool):
    return vgg16_features(allow_download=allow_download, layers=(layer,), low=0.0, high=1.0)


@lru_cache(maxsize=2)
def _inception(layer: str, folder: Path, allow_download: bool):
    torchvision_shim()  # torch-fidelity imports torchvision
    require("torch_fidelity", extra="test", needed_for="FID and KID")
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    path = folder / URL_INCEPTION_V3.rpartition("/")[2]
    if not path.is_file() and not allow_download:
        remedy = "Allow the download (91 MB), put the file there, or use backbone='vgg16', whose distances are no FID"
        raise CheckpointError(f"FID's and KID's Inception weights are not in torch's cache ({path}). {remedy}")
    # torch-fidelity unpickles: only a file that is known to hold nothing but tensors
    torch.hub.load_state_dict_from_url(
        URL_INCEPTION_V3, str(folder), map_location="cpu", check_hash=True, weights_only=True, progress=False
    )
    return FeatureExtractorInceptionV3(
        "inception-v3-compat", [layer], feature_extractor_weights_path=str(path), verbose=False
    )


@torch.no_grad()
def image_features(
    images_hu: Tensor | Iterable[Tensor],
    *,
    window: Window,
    backbone: str = "vgg16",
    layer: str | None = None,
    allow_download: bool = False,
) -> Features:
    """A backbone's features of images in a display window, black to white.

    images_hu : (n, 1, H, W) in HU, or batches of such that have one size
    backbone : "vgg16" (torchvision's, ImageNet; images are not resized) or "inception" (that of FID: images are 8 bit,
        resized to 299 x 299)
    layer : one of :data:`LAYERS`; by default "relu3_3" and "2048"

    Raises CheckpointError where the weights are not in torch's cache (``$TORCH_HOME/hub/checkpoints``), unless
    ``allow_download``; ParameterError and ShapeError for arguments that cannot be used.
    """
    if backbone not in LAYERS:
        raise ParameterError(f"unknown backbone {backbone!r}: use one of {sorted(LAYERS)}")
    layer = layer or DEFAULT_LAYER[backbone]
    if layer not in LAYERS[backbone]:
        raise ParameterError(f"{backbone} has no layer {layer!r} here: use one of {list(LAYERS[backbone])}")
    if not isinstance(window, Window):
        raise ParameterError(f"features need a window (units.Window), got {window!r}")
    folder = trunk_file("vgg").parent
    try:
        model = {"vgg16": _vgg16, "inception": _inception}[backbone](layer, folder, allow_download)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # no network, or a damaged file
        raise CheckpointError(f"the weights of {backbone} cannot be loaded: {type(error).__name__}: {error}") from error
    values, sizes = [], set()
    for batch in [images_hu] if isinstance(images_hu, Tensor) else images_hu:
        check_images(batch)
        sizes.add(tuple(batch.shape[-2:]))
        if len(sizes) > 1:
            raise ShapeError(f"features of images of several sizes cannot be compared, got {sorted(sizes)}")
        model = model.to(batch.device)
        for part in batch.split(max(1, PIXELS_AT_ONCE // batch[0].numel())):
            grey = window.to_display(part.float())
            if backbone == "vgg16":
                found = model(grey)[0].mean((-2, -1))
            else:
                (found,) = model((255 * grey).round().to(torch.uint8).expand(-1, 3, -1, -1))
            values.append(found.double().cpu())
    if not values:
        raise ShapeError("there are no images to take features of")
    return Features(torch.cat(values), backbone, layer, window, *sizes)


def frechet_distance(
    x: Features, reference: Features, *, patients=None, reference_patients=None, blocks: int = 10, level: float = 0.95
) -> Distance:
    """Fréchet distance of Gaussians with the features' means and covariances (Heusel et al. 2017, Eq. 6).

    patients, reference_patients : a label for each image, so that a patient's images stay together in the interval.
        Default: each image on its own, in their order
    blocks : groups of patients that the interval and the bias come from, each left out once; 0 for neither

    Raises ParameterError for sets of fewer than twice as many images as features, where the covariances are mostly
    noise: take more images, a layer with fewer features, or :func:`kernel_distance`.
    """
    _check(x, reference, "FD", 2 * x.values.shape[1])
    torchvision_shim()
    require("torch_fidelity", extra="test", needed_for="the Fréchet distance")
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    def distance(a: Tensor, b: Tensor) -> float:
        statistics = fid_features_to_statistics(a), fid_features_to_statistics(b)
        return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]

    return _result("FD", x, reference, distance, patients, reference_patients, blocks, level, None)


def kernel_distance(
    x: Features,
    reference: Features,
    *,
    subset_size: int | None = None,
    subsets: int = 100,
    patients=None,
    reference_patients=None,
    blocks: int = 10,
    level: float = 0.95,
    seed: int = 0,
) -> Distance:
    """Squared maximum mean discrepancy with the kernel (a·b / features + 1)³ (Bińkowski et al. 2018), unbiased.

    It is 0 on average for equal distributions, so that values below 0 occur.

    subset_size : images of each set in one of ``subsets`` random subsets, whose mean the value is; by default half of
        the smaller set, at most 1000
    patients, reference_patients, blocks : as in :func:`frechet_distance`

    Raises ParameterError for fewer than :data:`LEAST_KERNEL` images in a set, or a subset larger than a set.
    """
    _check(x, reference, "KD", LEAST_KERNEL)
    smaller = min(len(x.values), len(reference.values))
    subset_size = min(smaller // 2, 1000) if subset_size is None else subset_size
    if not 2 <= subset_size <= smaller or subsets < 1:
        have = f"subset_size={subset_size}, subsets={subsets} for {len(x.values)} and {len(reference.values)} images"
        raise ParameterError(f"a subset has 2 images or more and fits into both sets, and there is one; got {have}")
    torchvision_shim()
    require("torch_fidelity", extra="test", needed_for="the kernel distance")
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    def distance(a: Tensor, b: Tensor) -> float:
        # without a block, fewer images than the subset may be left
        size = min(subset_size, len(a), len(b))
        options = dict(kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False)
        return kid_features_to_metric(a, b, **options)[KEY_METRIC_KID_MEAN]

    return _result("KD", x, reference, distance, patients, reference_patients, blocks, level, subset_size)


def _check(x: Features, reference: Features, kind: str, least: int) -> None:
    for name in ("backbone", "layer", "window", "size"):
        if getattr(x, name) != getattr(reference, name):
            have = f"{getattr(x, name)} and {getattr(reference, name)}"
            raise ParameterError(f"features of two sets need the same {name} to be compared, got {have}")
    if (n := min(len(x.values), len(reference.values))) < least:
        remedy = "take more images" if kind == "KD" else "take more, a layer with fewer features, or kernel_distance"
        need = f"{_name(kind, x)} of {x.values.shape[1]} features needs {least} images in each set"
        raise ParameterError(f"{need}, got {n}: {remedy}")


def _name(kind: str, x: Features) -> str:
    if (x.backbone, x.layer) == ("inception", "2048"):
        return {"FD": "FID", "KD": "KID"}[kind]
    return f"{kind}({x.backbone})" if x.layer == DEFAULT_LAYER[x.backbone] else f"{kind}({x.backbone}, {x.layer})"


def _ranks(labels, n: int, what: str) -> np.ndarray:
    """The rank of every image's patient, from 0 on."""
    labels = np.arange(n) if labels is None else np.asarray(labels)
    if labels.shape != (n,):
        raise ParameterError(f"{what} needs a label for each of {n} images, got shape {labels.shape}")
    return np.unique(labels, return_inverse=True)[1]


def _result(
    kind: str,
    x: Features,
    reference: Features,
    distance: Callable[[Tensor, Tensor], float],
    patients,
    reference_patients,
    blocks: int,
    level: float,
    subset_size: int | None,
) -> Distance:
    """The distance, with the interval and the bias of a jackknife over blocks of patients.

    A block is left out of both sets at once: where both have the same patients, these stay paired. The variance of a
    jackknife is too large rather than too small on average (Efron & Stein 1981).
    """
    from scipy import stats

    if not 0 < level < 1 or blocks < 0:
        raise ParameterError(f"need 0 < level < 1 and blocks >= 0, got {level} and {blocks}")
    a, b = x.values, reference.values
    rank_a = _ranks(patients, len(a), "patients")
    rank_b = _ranks(reference_patients, len(b), "reference_patients")
    value, low, high, bias = distance(a, b), math.nan, math.nan, math.nan
    n_a, n_b = rank_a.max() + 1, rank_b.max() + 1
    if (g := min(blocks, n_a, n_b)) >= LEAST_BLOCKS:
        kept = ((torch.from_numpy(r * g // n != j) for r, n in ((rank_a, n_a), (rank_b, n_b))) for j in range(g))
        without = np.array([distance(a[keep_a], b[keep_b]) for keep_a, keep_b in kept])
        bias = float((g - 1) * (without.mean() - value))
        error = math.sqrt((g - 1) / g * np.square(without - without.mean()).sum())
        half = stats.t.ppf((1 + level) / 2, g - 1) * error
        low, high = float(value - half), float(value + half)
    source = {"vgg16": "torchvision's VGG-16 (ImageNet)", "inception": "torch-fidelity's Inception (2015)"}[x.backbone]
    provenance = f"{source}, {x.layer}, {a.shape[1]} features, {x.size[0]}x{x.size[1]} pixels"
    sizes = dict(n=len(a), n_reference=len(b), subset_size=subset_size, window=str(x.window), provenance=provenance)
    return Distance(_name(kind, x), float(value), low, high, level, bias, **sizes)
