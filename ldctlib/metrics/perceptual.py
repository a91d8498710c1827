"""LPIPS with its provenance: a number is only called LPIPS if the trunk has its ImageNet weights.

The ``lpips`` package ships the linear heads alone; torchvision downloads the trunk on first use. Here nothing
is downloaded unless asked: without the trunk in torch's cache the value is NaN and the reason is kept.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ldctlib.compat import torchvision_shim
from ldctlib.errors import ParameterError, ShapeError, require
from ldctlib.image import check_images
from ldctlib.units import Window

TRUNK_FILES = {"squeeze": "squeezenet1_1-b8a52dc0.pth", "alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
"""torchvision's file names in ``$TORCH_HOME/hub/checkpoints``."""

SMALLEST = {"squeeze": 32, "alex": 64, "vgg": 32}
"""Smallest side in pixels with which every layer of the trunk still has an output."""


class Perceptual(NamedTuple):
    """Per-image distances and what they depend on."""

    values: Tensor  # (B,) float32, NaN where the trunk is not to be had
    net: str  # "squeeze", "alex" or "vgg"
    provenance: str  # "imagenet", "random" or "none"
    reason: str  # why the values are NaN, else ""


def trunk_file(net: str) -> Path:
    """Where torchvision caches the trunk of ``net``; the file need not exist."""
    if net not in TRUNK_FILES:
        raise ParameterError(f"unknown LPIPS trunk {net!r}: use one of {sorted(TRUNK_FILES)}")
    return Path(torch.hub.get_dir()) / "checkpoints" / TRUNK_FILES[net]


@lru_cache(maxsize=4)
def _model(net: str, source: str, seed: int):
    """An LPIPS network; ``source`` (the trunk's path, or "random") is part of the cache's key."""
    torchvision_shim()
    package = require("lpips", extra="test", needed_for="LPIPS")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # torchvision's deprecated 'pretrained' argument, used by lpips
        torch.manual_seed(seed)  # inside fork_rng: the caller's random state is untouched
        model = package.LPIPS(net=net, pnet_rand=source == "random", verbose=False)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def _distance(model, x: Tensor, reference: Tensor, window: Window) -> Tensor:
    model = model.to(x.device)
    # Three equal channels, [0, 1] mapped to LPIPS's [-1, 1] by normalize; one image a call bounds the memory.
    x, reference = (window.to_display(z).float().expand(-1, 3, -1, -1) for z in (x, reference))
    return torch.cat([model(a[None], b[None], normalize=True).reshape(1) for a, b in zip(x, reference, strict=True)])


def _check(x: Tensor, reference: Tensor, window: Window, net: str) -> None:
    check_images(x, reference)
    if not isinstance(window, Window):
        raise ParameterError(f"LPIPS needs a window (units.Window), got {window!r}")
    trunk_file(net)
    if min(x.shape[-2:]) < SMALLEST[net]:
        raise ShapeError(f"LPIPS ({net}) needs {SMALLEST[net]} pixels a side, got {tuple(x.shape[-2:])}")


def lpips(x: Tensor, reference: Tensor, *, window: Window, net="squeeze", allow_download=False) -> Perceptual:
    """LPIPS v0.1 (Zhang et al. 2018) of two ``(B, 1, H, W)`` HU images in a display window.

    Without the trunk's ImageNet weights in torch's cache (``$TORCH_HOME/hub/checkpoints``) the values are NaN
    with the reason; ``allow_download=True`` lets torchvision fetch them.
    """
    _check(x, reference, window, net)
    path = trunk_file(net)
    if not path.is_file() and not allow_download:
        reason = f"torch's cache lacks the {net} trunk's ImageNet weights ({path.name}); see allow_download"
        return Perceptual(torch.full((len(x),), torch.nan, device=x.device), net, "none", reason)
    try:
        model = _model(net, str(path), 0)
    except (OSError, RuntimeError) as error:  # no network, or a damaged file
        reason = f"the {net} trunk cannot be loaded: {type(error).__name__}: {error}"
        return Perceptual(torch.full((len(x),), torch.nan, device=x.device), net, "none", reason)
    return Perceptual(_distance(model, x, reference, window), net, "imagenet", "")


def lpips_random_trunk(x: Tensor, reference: Tensor, *, window: Window, net="squeeze", seed=0) -> Perceptual:
    """LPIPS's formula on an untrained trunk: **not LPIPS**, a stand-in for demonstrations that never ranks."""
    _check(x, reference, window, net)
    return Perceptual(_distance(_model(net, "random", seed), x, reference, window), net, "random", "")
