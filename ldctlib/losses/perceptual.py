"""Perceptual distance: frozen feature networks, and the distance of their maps (MAN's Eq. 2)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.compat import torchvision_shim
from ldctlib.errors import CheckpointError, ParameterError, ShapeError, require
from ldctlib.models.autoencoder import Autoencoder

VGG16_LAYERS = {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15, "relu4_3": 22, "conv5_3": 28, "relu5_3": 29}
"""Index in torchvision's ``vgg16().features`` of the last activation of each stage, and of the last convolution."""
VGG19_LAYERS = {"relu1_2": 3, "relu2_2": 8, "relu3_4": 17, "relu4_4": 26, "conv5_4": 34, "relu5_4": 35}
"""The same of ``vgg19().features``; "conv5_4" is WGAN-VGG's."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG16Features(nn.Module):
    """Feature maps of VGG-16 (Simonyan & Zisserman 2015) at several layers; frozen, always in eval mode.

    forward : (B, 1 or 3, H, W), with ``low`` seen as black and ``high`` as white (affine, unclipped) -> list
        of maps. A single channel is repeated three times. H and W of at least 2^4.
    weights : the state dict of torchvision's ``vgg16``, whole or ``features.*`` alone; see :func:`vgg16_features`.
    """

    name = "vgg16_imagenet"
    stand_in = False
    depth = 16
    indices = VGG16_LAYERS

    def __init__(
        self, weights: Mapping[str, Tensor], *, layers=("relu1_2", "relu2_2", "relu3_3", "relu4_3"), low=-1.0, high=1.0
    ):
        super().__init__()
        if odd := sorted(set(layers) - set(self.indices)):
            raise ParameterError(f"VGG-{self.depth} has no layers {odd} here; there are {', '.join(self.indices)}")
        if not layers or not high > low:
            raise ParameterError(f"needs layers and high > low, got layers={layers}, low={low}, high={high}")
        with torch.device("meta"):  # its fully connected layers are 90 % of it, and unused
            network = getattr(_torchvision_models(self.depth), f"vgg{self.depth}")(weights=None).features
        self.kept = sorted(self.indices[name] for name in layers)
        self.network = network[: self.kept[-1] + 1]
        try:
            own = {name: weights[f"features.{name}"].float() for name in self.network.state_dict()}
            self.network.load_state_dict(own, assign=True)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"these are not the weights of torchvision's vgg{self.depth}: {error}") from error
        self.low, self.high = float(low), float(high)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
        for layer in self.network:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # the maps before it are kept for the backward pass
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> VGG16Features:
        return super().train(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        if x.ndim != 4 or x.shape[1] not in (1, 3) or min(x.shape[-2:]) < 16:
            raise ShapeError(
                f"VGG-{self.depth} takes (B, 1 or 3, H, W) of at least 16 pixels a side, got {tuple(x.shape)}"
            )
        h = ((x - self.low) / (self.high - self.low) - self.mean) / self.std
        maps = []
        for i, layer in enumerate(self.network):
            h = layer(h)
            if i in self.kept:
                maps.append(h)
        return maps


class VGG19Features(VGG16Features):
    """The same of VGG-19."""

    name = "vgg19_imagenet"
    depth = 19
    indices = VGG19_LAYERS


def vgg16_features(*, allow_download: bool = False, **options) -> VGG16Features:
    """VGG-16 with torchvision's ImageNet weights, from torch's cache (``$TORCH_HOME/hub/checkpoints``).

    Raises :class:`~ldctlib.errors.CheckpointError` if they are not there, unless ``allow_download``.
    """
    return VGG16Features(_imagenet_weights(16, "528 MB", allow_download), **options)


def vgg19_features(*, allow_download: bool = False, layers=("conv5_4",), **options) -> VGG19Features:
    """VGG-19 likewise; by default its last convolution without the ReLU, as in WGAN-VGG (Yang 2018)."""
    return VGG19Features(_imagenet_weights(19, "548 MB", allow_download), layers=layers, **options)


def _imagenet_weights(depth: int, size: str, allow_download: bool) -> dict[str, Tensor]:
    url = getattr(_torchvision_models(depth), f"VGG{depth}_Weights").IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    missing = f"VGG-{depth}'s ImageNet weights are not in torch's cache ({path})"
    if not path.is_file() and not allow_download:
        remedy = f"Allow the download ({size}), put the file there, or use the stand-in, losses.EncoderFeatures"
        raise CheckpointError(f"{missing}. {remedy}")
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except OSError as error:  # no network
        raise CheckpointError(f"{missing} and cannot be downloaded from {url} ({error}): put the file there") from error


def _torchvision_models(depth: int):
    torchvision_shim()
    require("torchvision", extra="test", needed_for=f"the VGG-{depth} perceptual loss")
    import torchvision.models

    return torchvision.models


class EncoderFeatures(nn.Module):
    """The offline stand-in for VGG-16: the frozen encoder of an autoencoder trained on pixels and KL only.

    It knows CT and no photographs, and its features are those that reconstruction needs: a distance in them
    is **not** the paper's perceptual loss, and whatever was trained with it says so by :attr:`name`.
    """

    name = "simple_autoencoder_encoder"
    stand_in = True

    def __init__(self, autoencoder: Autoencoder):
        super().__init__()
        self.autoencoder = copy.deepcopy(autoencoder).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EncoderFeatures:
        return super().train(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.autoencoder.features(x)


def perceptual_distance(features: nn.Module, x_hat: Tensor, x: Tensor) -> Tensor:
    """Sum over layers of the L1 distance of feature maps, *averaged* over each map and the batch: MAN's Eq. 2.

    The paper writes norms, i.e. sums over a map; means keep the weight independent of the image's size and
    give every layer the same say. Differentiable in ``x_hat``; ``x`` is the reference.
    """
    with torch.no_grad():
        reference = features(x)
    return sum(F.l1_loss(a.float(), b.float()) for a, b in zip(features(x_hat), reference, strict=True))
