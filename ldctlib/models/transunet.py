"""TransUNet (Chen et al., arXiv:2102.04306): a ResNet, a transformer on its last map, and a decoder with skips.

Layers have the names of the published code, so that its weights load; :func:`from_vit_npz` renames those of the hybrid
vision transformer that its training starts from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from ldctlib.errors import CheckpointError, ParameterError, ShapeError

EPS = 1e-6  # of every norm of the hybrid vision transformer but "gn_proj"


class StdConv2d(nn.Conv2d):
    """A convolution without bias whose kernels are standardised: mean 0 and variance 1 over an output channel."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1):
        super().__init__(channels, out, kernel, stride, kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(x, (self.weight - mean) / (variance + 1e-5).sqrt(), None, self.stride, self.padding)


def norm(channels: int) -> nn.GroupNorm:
    """32 groups, as published; narrower layers have fewer."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=EPS)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with norms, around a shortcut."""

    def __init__(self, channels: int, out: int, middle: int, stride: int = 1):
        super().__init__()
        self.conv1, self.gn1 = StdConv2d(channels, middle, 1), norm(middle)
        self.conv2, self.gn2 = StdConv2d(middle, middle, 3, stride), norm(middle)
        self.conv3, self.gn3 = StdConv2d(middle, out, 1), norm(out)
        self.projects = stride != 1 or channels != out
        if self.projects:
            self.downsample = StdConv2d(channels, out, 1, stride)
            self.gn_proj = nn.GroupNorm(out, out)  # a group a channel, and torch's epsilon: as published

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.gn_proj(self.downsample(x)) if self.projects else x
        h = F.relu(self.gn1(self.conv1(x)))
        h = F.relu(self.gn2(self.conv2(h)))
        return F.relu(shortcut + self.gn3(self.conv3(h)))


class ResNet(nn.Module):
    """(B, 3, H, W) -> the map at 1/16, and those at 1/8, 1/4 and 1/2 for the skips."""

    def __init__(self, width: int, units: Sequence[int]):
        super().__init__()
        self.root = nn.Sequential()
        for name, layer in (("conv", StdConv2d(3, width, 7, 2)), ("gn", norm(width)), ("relu", nn.ReLU())):
            self.root.add_module(name, layer)
        self.body = nn.Sequential()
        channels = width
        for i, count in enumerate(units):
            block, middle = nn.Sequential(), width * 2**i
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                block.add_module(f"unit{j + 1}", Bottleneck(channels, 4 * middle, middle, stride))
                channels = 4 * middle
            self.body.add_module(f"block{i + 1}", block)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        side = x.shape[-1]
        x = self.root(x)
        skips = [x]
        x = F.max_pool2d(x, 3, 2)  # unpadded, so that the first block's map lacks a row and a column
        for i, block in enumerate(self.body):
            x = block(x)
            missing = side // 4 // 2**i - x.shape[-1]
            skips.append(F.pad(x, (0, missing, 0, missing)))
        return x, skips[-2::-1]


class Attention(nn.Module):
    """Self-attention of a vision transformer, with a linear layer each for queries, keys and values."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU and dropout."""

    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        self.fc1, self.fc2, self.dropout = nn.Linear(dim, hidden), nn.Linear(hidden, dim), nn.Dropout(dropout)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and around a shortcut."""

    def __init__(self, dim: int, heads: int, mlp: int, dropout: float):
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.ffn, self.attn = Mlp(dim, mlp, dropout), Attention(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class Embeddings(nn.Module):
    """The ResNet's last map as tokens, with learned positions."""

    def __init__(self, width: int, units: Sequence[int], dim: int, tokens: int, dropout: float):
        super().__init__()
        self.hybrid_model = ResNet(width, units)
        self.patch_embeddings = nn.Conv2d(width * 4 * 2 ** (len(units) - 1), dim, 1)
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, skips = self.hybrid_model(x)
        tokens = self.patch_embeddings(x).flatten(2).transpose(1, 2)
        return self.dropout(tokens + self.position_embeddings), skips


class Encoder(nn.Module):
    """The transformer's blocks and its last norm."""

    def __init__(self, dim: int, heads: int, mlp: int, depth: int, dropout: float):
        super().__init__()
        self.layer = nn.ModuleList(Block(dim, heads, mlp, dropout) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.layer:
            x = block(x)
        return self.encoder_norm(x)


def conv_relu(channels: int, out: int) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU."""
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


class DecoderBlock(nn.Module):
    """Double H and W, join the skip, two convolutions."""

    def __init__(self, channels: int, out: int, skip: int):
        super().__init__()
        self.conv1, self.conv2 = conv_relu(channels + skip, out), conv_relu(out, out)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.conv2(self.conv1(x if skip is None else torch.cat([x, skip], dim=1)))


class Decoder(nn.Module):
    """Tokens and skips back to an image."""

    def __init__(self, dim: int, head: int, channels: Sequence[int], skips: Sequence[int]):
        super().__init__()
        self.conv_more = conv_relu(dim, head)
        before = (head, *channels[:-1])
        self.blocks = nn.ModuleList(map(DecoderBlock, before, channels, (*skips, 0)))

    def forward(self, tokens: Tensor, skips: list[Tensor]) -> Tensor:
        side = math.isqrt(tokens.shape[1])
        x = self.conv_more(tokens.transpose(1, 2).unflatten(2, (side, side)))
        for block, skip in zip(self.blocks, [*skips, None], strict=True):
            x = block(x, skip)
        return x


class TransUNet(nn.Module):
    """Images (B, 1 or 3, S, S) in model range -> logits (B, K, S, S); S is ``image_size``, a multiple of 16.

    classes : K. width, units : channels of the ResNet's root (64: R50) and bottlenecks in each of its three blocks.
    dim, depth, heads, mlp : of the transformer (ViT-B/16). decoder : channels of its four blocks, ``head`` before them.
    dropout : of tokens and MLPs.

    The defaults are the published configuration. The input is cut to [-1, 1], so that an image that was stored in its
    window looks as the same image in full HU.
    """

    def __init__(
        self,
        classes: int,
        image_size: int = 224,
        width: int = 64,
        units: Sequence[int] = (3, 4, 9),
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp: int = 3072,
        head: int = 512,
        decoder: Sequence[int] = (256, 128, 64, 16),
        dropout: float = 0.1,
    ):
        super().__init__()
        if image_size % 16 or image_size < 32 or len(units) != 3 or len(decoder) != 4 or dim % heads:
            raise ParameterError(
                "TransUNet needs an image_size of a multiple of 16 from 32 on, three blocks, four widths of the "
                f"decoder, and heads that divide dim; got {image_size}, {units}, {decoder}, {dim} and {heads}"
            )
        self.image_size = image_size
        self.transformer = nn.Module()
        self.transformer.embeddings = Embeddings(width, units, dim, (image_size // 16) ** 2, dropout)
        self.transformer.encoder = Encoder(dim, heads, mlp, depth, dropout)
        self.decoder = Decoder(dim, head, decoder, (8 * width, 4 * width, width))
        self.segmentation_head = nn.Sequential(nn.Conv2d(decoder[-1], classes, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3) or x.shape[-2:] != (self.image_size,) * 2:
            raise ShapeError(
                f"this TransUNet needs (B, 1, {self.image_size}, {self.image_size}), got {tuple(x.shape)}: its "
                "positions are learned at one size"
            )
        x = x.clamp(-1, 1).expand(-1, 3, -1, -1)
        tokens, skips = self.transformer.embeddings(x)
        return self.segmentation_head(self.decoder(self.transformer.encoder(tokens), skips))


def from_vit_npz(arrays: Mapping[str, np.ndarray], model: TransUNet) -> dict[str, Tensor]:
    """The weights of a published hybrid vision transformer (R50+ViT-B_16.npz, as ``numpy.load`` gives it) under this
    model's names: all of ``transformer.``. Positions are resampled to the model's grid, without the class token's.

    Raises CheckpointError for a name that is not there.
    """

    def source(name: str) -> str:
        """The file's name of a parameter of ``transformer``."""
        name = name.removeprefix("embeddings.hybrid_model.").removeprefix("body.")
        kind = "scale" if "norm" in name or ".gn" in name else "kernel"
        name = name.replace("weight", kind).replace("downsample", "conv_proj")
        name = name.replace("root.conv", "conv_root").replace("root.gn", "gn_root")
        name = name.replace("embeddings.patch_embeddings", "embedding")
        name = name.replace("embeddings.position_embeddings", "Transformer.posembed_input.pos_embedding")
        name = name.replace("encoder.encoder_norm", "Transformer.encoder_norm")
        name = name.replace("encoder.layer.", "Transformer.encoderblock_")
        name = name.replace("attention_norm", "LayerNorm_0").replace("ffn_norm", "LayerNorm_2")
        name = name.replace("ffn.fc1", "MlpBlock_3.Dense_0").replace("ffn.fc2", "MlpBlock_3.Dense_1")
        return name.replace("attn.", "MultiHeadDotProductAttention_1.").replace(".", "/")

    weights = {}
    for name, parameter in model.transformer.named_parameters():
        if (key := source(name)) not in arrays:
            raise CheckpointError(f"the hybrid vision transformer's weights lack {key!r} (for {name!r})")
        value = torch.from_numpy(np.array(arrays[key], np.float32))
        if name.endswith("position_embeddings"):
            side = math.isqrt(value.shape[1] - 1)
            grid = value[:, 1:].transpose(1, 2).unflatten(2, (side, side))
            new = (math.isqrt(parameter.shape[1]),) * 2
            value = F.interpolate(grid, new, mode="bilinear", align_corners=True).flatten(2).transpose(1, 2)
        elif parameter.ndim == 4:
            value = value.permute(3, 2, 0, 1)
        elif parameter.ndim == 2:  # (in, heads, of each) or (heads, of each, out) or (in, out)
            value = value.flatten(*((1, 2) if "attn.out" not in name else (0, 1))) if value.ndim == 3 else value
            value = value.T
        value = value.reshape(parameter.shape) if parameter.ndim == 1 else value
        if value.shape != parameter.shape:
            shapes = f"{tuple(value.shape)}, the model {tuple(parameter.shape)}"
            raise CheckpointError(f"the hybrid vision transformer's {key!r} is {shapes}")
        weights[f"transformer.{name}"] = value.contiguous()
    return weights
