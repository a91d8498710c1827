"""Losses: pixels, KL divergence, perceptual distance, and the ramped sum that trains MAN's autoencoder (Eqs.
1-3).

Everything is in a model's own units; nothing here knows of HU.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import CheckpointError, ParameterError, ShapeError, require
from ldctlib.models.autoencoder import Autoencoder, Posterior
from ldctlib.torchvision_shim import torchvision_shim


@dataclass(frozen=True)
class Ramp:
    """A weight that is 0 up to ``start``, rises linearly, and is ``final`` from ``end`` on.

    start, end : in whatever the caller counts (optimiser steps, epochs); start == end is a switch. MAN ramps
        "over the first 300 epochs" (section 3.2) or "after an initial phase" (section 2.1): both are values
        of these two.
    """

    final: float
    start: float = 0.0
    end: float = 0.0

    def __post_init__(self):
        if not 0 <= self.start <= self.end:
            raise ParameterError(f"a Ramp needs 0 <= start <= end, got start={self.start}, end={self.end}")
        if not self.final >= 0:
            raise ParameterError(f"a Ramp needs final >= 0, got {self.final}")

    def __call__(self, step: float) -> float:
        if step >= self.end:
            return self.final
        if step <= self.start:
            return 0.0
        return self.final * (step - self.start) / (self.end - self.start)


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, *summed* over the latent of each image: MAN's Eq. 1.

    (B, ...) and the same -> (B,) float32.
    """
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - logvar - 1).flatten(1).sum(dim=1)


# ---------------------------------------------------------------- perceptual distance

VGG16_LAYERS = {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15, "relu4_3": 22, "relu5_3": 29}
"""Index in torchvision's ``vgg16().features`` of the last activation of each stage."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG16Features(nn.Module):
    """Feature maps of VGG-16 (Simonyan & Zisserman 2015) at several layers; frozen, always in eval mode.

    forward : (B, 1 or 3, H, W), with ``low`` seen as black and ``high`` as white (affine, unclipped) -> list
        of maps. A single channel is repeated three times. H and W of at least 2^4.
    weights : the state dict of torchvision's ``vgg16``, whole or ``features.*`` alone; see
    :func:`vgg16_features`.
    """

    name = "vgg16_imagenet"
    stand_in = False

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        layers: Sequence[str] = tuple(VGG16_LAYERS)[:4],
        low: float = -1.0,
        high: float = 1.0,
    ):
        super().__init__()
        if odd := sorted(set(layers) - set(VGG16_LAYERS)):
            raise ParameterError(f"VGG-16 has no layers {odd} here; there are {', '.join(VGG16_LAYERS)}")
        if not layers or not high > low:
            raise ParameterError(f"needs layers and high > low, got layers={layers}, low={low}, high={high}")
        torchvision_shim()
        require("torchvision", extra="test", needed_for="the VGG-16 perceptual loss")
        from torchvision.models import vgg16

        with torch.device("meta"):  # its fully connected layers are 90 % of it, and unused
            network = vgg16(weights=None).features
        self.kept = sorted(VGG16_LAYERS[name] for name in layers)
        self.network = network[: self.kept[-1] + 1]
        prefix = "features."
        own = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
        try:
            self.network.load_state_dict({n: own[n].float() for n in self.network.state_dict()}, assign=True)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"these are not the weights of torchvision's vgg16: {error}") from error
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
            raise ShapeError(f"VGG-16 takes (B, 1 or 3, H, W) of at least 16 pixels a side, got {tuple(x.shape)}")
        h = ((x - self.low) / (self.high - self.low) - self.mean) / self.std
        maps = []
        for i, layer in enumerate(self.network):
            h = layer(h)
            if i in self.kept:
                maps.append(h)
        return maps


def vgg16_features(*, allow_download: bool = False, **options) -> VGG16Features:
    """VGG-16 with torchvision's ImageNet weights, from torch's cache (``$TORCH_HOME/hub/checkpoints``).

    Raises :class:`~ldctlib.errors.CheckpointError` if they are not there, unless ``allow_download``.
    """
    torchvision_shim()
    require("torchvision", extra="test", needed_for="the VGG-16 perceptual loss")
    from torchvision.models import VGG16_Weights

    url = VGG16_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file() and not allow_download:
        raise CheckpointError(
            f"VGG-16's ImageNet weights are not in torch's cache ({path}). Allow the download (528 MB), put "
            "the file there, or use the stand-in, losses.EncoderFeatures"
        )
    weights = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    return VGG16Features(weights, **options)


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
    """Sum over layers of the L1 distance of feature maps, *averaged* over each map and the batch: MAN's Eq.
    2.

    The paper writes norms, i.e. sums over a map; means keep the weight independent of the image's size and
    give every layer the same say. Differentiable in ``x_hat``; ``x`` is the reference.
    """
    with torch.no_grad():
        reference = features(x)
    return sum(F.l1_loss(a.float(), b.float()) for a, b in zip(features(x_hat), reference, strict=True))


# ---------------------------------------------------------------- the autoencoder's objective


@dataclass(frozen=True)
class AutoencoderLoss:
    """MAN's Eq. 3: lambda_1 MSE + lambda_2 L1 + lambda_KL(t) KL + lambda_PL(t) perceptual.

    MSE and L1 are means over pixels. KL is in nats *per pixel*: summed over the latent, divided by the
    image's number of values, averaged over the batch. So ``kl`` takes the weights of the latent diffusion
    literature (1e-6 beside a loss summed over the image) as they are, whatever the image's size.

    features : :class:`VGG16Features`, :class:`EncoderFeatures`, or None for the ``simple`` objective.
    """

    kl: Ramp = Ramp(1e-6)
    perceptual: Ramp = Ramp(0.0)
    features: nn.Module | None = None
    mse: float = 1.0  # lambda_1, section 3.2
    l1: float = 0.5  # lambda_2

    def __post_init__(self):
        if (self.features is None) != (self.perceptual.final == 0):
            raise ParameterError("features and a perceptual weight above 0 go together: give both or neither")

    def __call__(self, x_hat: Tensor, x: Tensor, posterior: Posterior, step: float) -> dict[str, Tensor]:
        """All terms unweighted, and their weighted sum as "loss"; ``step`` in the units of the ramps.

        "perceptual" is absent while its weight is 0, because it is the costly one.
        """
        if x_hat.shape != x.shape:
            raise ShapeError(f"reconstruction {tuple(x_hat.shape)} and image {tuple(x.shape)} differ in shape")
        x_hat = x_hat.float()
        terms = {
            "mse": F.mse_loss(x_hat, x),
            "l1": F.l1_loss(x_hat, x),
            "kl": kl_divergence(*posterior).mean() / x[0].numel(),
        }
        loss = self.mse * terms["mse"] + self.l1 * terms["l1"] + self.kl(step) * terms["kl"]
        if weight := self.perceptual(step):
            terms["perceptual"] = perceptual_distance(self.features.to(x.device), x_hat, x)
            loss = loss + weight * terms["perceptual"]
        return terms | {"loss": loss}
