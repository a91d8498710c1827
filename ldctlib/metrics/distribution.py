"""Distances between two sets of images in a network's features: Fréchet, kernel and MMD; improved precision and recall.

``FID`` (Heusel et al. 2017) and ``KID`` (Bińkowski et al. 2018) are the names of the first two with the Inception
network of 2015 alone, ``CMMD`` (Jayasumana et al. 2024) that of the third with CLIP ViT-L/14 of 336 pixels; with other
networks they are ``FD(vgg16)``, ``KD(vgg16)``, ``MMD(vgg16)``, whose numbers are others.

    reference = image_features(references_hu, window=SOFT_TISSUE)
    kernel_distance(image_features(images_hu, window=SOFT_TISSUE), reference)

The Fréchet distance of n images is biased: it grows as n falls, and is above 0 for equal distributions. The kernel
distance is unbiased, so it is the one for few images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.compat import torchvision_shim
from ldctlib.errors import ParameterError, require
from ldctlib.metrics.backbones import BACKBONES, CMMD_NAME, Features
from ldctlib.metrics.statistics import paired_bootstrap

MMD_SIGMA = 10.0
"""Of CMMD's kernel."""

ROWS_AT_ONCE = 256
"""Images whose distances to all others are held at once."""

LEAST_KERNEL = 50
"""Images in each set that a kernel distance needs at least."""

LEAST_BLOCKS = 6
"""Blocks of images that an interval needs at least."""


class Distance(NamedTuple):
    """A distance between two sets, or precision or recall, and all that it depends on.

    ``low`` and ``high`` bound the value at this n with the confidence ``level``; NaN where the blocks are too few.
    ``bias`` is the part of the value that is due to n, as the jackknife estimates it: value - bias is nearer to what an
    endless set would give.
    """

    name: str  # "FID", "KID", "CMMD", or with the backbone: "FD(vgg16)", "KD(vgg16)"
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

    return _result("FD", x, reference, distance, patients, reference_patients, blocks, level)


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


def mmd(
    x: Features, reference: Features, *, patients=None, reference_patients=None, blocks: int = 10, level: float = 0.95
) -> Distance:
    """Squared maximum mean discrepancy of unit vectors, kernel exp(-|a - b|² / 2σ²) with σ = 10, times 1000
    (Jayasumana et al. 2024, Eq. 4).

    As published it is the biased estimate, which is never below 0 and too large by about the sets' own spread over n:
    see ``bias``. Features are scaled to unit length first, so that their strength does not matter.

    patients, reference_patients, blocks : as in :func:`frechet_distance`
    """
    _check(x, reference, "MMD", LEAST_KERNEL)
    both = F.normalize(torch.cat([x.values, reference.values]), dim=1)
    kernel = ((both @ both.T - 1) / MMD_SIGMA**2).exp()  # |a - b|² = 2 - 2 a·b

    def distance(a: Tensor, b: Tensor) -> float:
        weights = kernel.new_zeros(len(both))
        weights[a], weights[b] = 1 / len(a), -1 / len(b)
        return 1000 * float(weights @ kernel @ weights)

    # sets are rows of the kernel, which is computed once
    rows = torch.arange(len(both)).split([len(x.values), len(reference.values)])
    options = dict(more=f", sigma {MMD_SIGMA:g}", sets=rows)
    return _result("MMD", x, reference, distance, patients, reference_patients, blocks, level, **options)


def precision_recall(
    x: Features, reference: Features, *, k: int = 3, patients=None, reference_patients=None, level: float = 0.95
) -> tuple[Distance, Distance]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, Eq. 2): does an image lie where the other set is?

    Precision is the share of ``x`` within the distance to its k-th nearest neighbour of any image of the reference;
    recall the share of the reference within that of any image of ``x``. Both depend on n: compare sets of equal sizes.

    k : neighbours, an image itself not counted
    patients, reference_patients : as in :func:`frechet_distance`; the intervals resample them, with the other set as it
        is (:func:`paired_bootstrap`)

    Raises ParameterError for sets of k images or fewer, or features of other backbones, layers, windows or sizes.
    """
    if k < 1:
        raise ParameterError(f"precision and recall need k >= 1 neighbours, got {k}")
    _check(x, reference, "precision", k + 1)
    a, b = x.values, reference.values
    centre = b.mean(dim=0)  # squares of what is far from 0 would blur what is near
    a, b = a - centre, b - centre
    rounding = 1e-10 * max(a.square().sum(1).max().item(), b.square().sum(1).max().item())
    ranks = _ranks(patients, len(a), "patients"), _ranks(reference_patients, len(b), "reference_patients")
    out = []
    for kind, own, other, patient in (("precision", a, b, ranks[0]), ("recall", b, a, ranks[1])):
        # kthvalue counts the image itself, at distance 0
        radii = torch.cat([_squares(part, other).kthvalue(k + 1).values for part in other.split(ROWS_AT_ONCE)])
        reach = radii + rounding  # what lies on the border is inside
        inside = torch.cat([(_squares(part, other) <= reach).any(dim=1) for part in own.split(ROWS_AT_ONCE)])
        value, low, high = paired_bootstrap(inside.double(), patient, level=level)
        described = _describe(x, reference, f", {k} neighbours") | dict(subset_size=None)
        out.append(Distance(_name(kind, x), value, low, high, level, math.nan, **described))
    return tuple(out)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances, (n, N)."""
    return a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T


def _check(x: Features, reference: Features, kind: str, least: int) -> None:
    for name in ("backbone", "layer", "window", "size"):
        if getattr(x, name) != getattr(reference, name):
            have = f"{getattr(x, name)} and {getattr(reference, name)}"
            raise ParameterError(f"features of two sets need the same {name} to be compared, got {have}")
    if (n := min(len(x.values), len(reference.values))) < least:
        remedy = "take more, a layer with fewer features, or kernel_distance" if kind == "FD" else "take more images"
        need = f"{_name(kind, x)} of {x.values.shape[1]} features needs {least} images in each set"
        raise ParameterError(f"{need}, got {n}: {remedy}")


PUBLISHED = {
    ("FD", "inception", "2048"): "FID",
    ("KD", "inception", "2048"): "KID",
    ("MMD", CMMD_NAME, "projection"): "CMMD",
}
"""Kind, backbone and layer -> the name in the literature, which no other backbone has."""


def _name(kind: str, x: Features) -> str:
    default = x.backbone not in BACKBONES or x.layer == BACKBONES[x.backbone].default
    other = f"{kind}({x.backbone})" if default else f"{kind}({x.backbone}, {x.layer})"
    return PUBLISHED.get((kind, x.backbone, x.layer), other)


def _describe(x: Features, reference: Features, more: str = "") -> dict:
    """The fields of a :class:`Distance` that say what it depends on."""
    source = BACKBONES[x.backbone].source if x.backbone in BACKBONES else f"CLIP {x.backbone}"
    provenance = f"{source}, {x.layer}, {x.values.shape[1]} features, {x.size[0]}x{x.size[1]} pixels{more}"
    window = "the backbone's own" if x.window is None else str(x.window)
    return dict(n=len(x.values), n_reference=len(reference.values), window=window, provenance=provenance)


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
    subset_size: int | None = None,
    more: str = "",
    sets: tuple[Tensor, Tensor] | None = None,
) -> Distance:
    """The distance, with the interval and the bias of a jackknife over blocks of patients.

    A block is left out of both sets at once: where both have the same patients, these stay paired. The variance of a
    jackknife is too large rather than too small on average (Efron & Stein 1981).
    """
    from scipy import stats

    if not 0 < level < 1 or blocks < 0:
        raise ParameterError(f"need 0 < level < 1 and blocks >= 0, got {level} and {blocks}")
    a, b = sets or (x.values, reference.values)  # what ``distance`` takes, image by image
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
    described = _describe(x, reference, more) | dict(subset_size=subset_size)
    return Distance(_name(kind, x), float(value), low, high, level, bias, **described)
