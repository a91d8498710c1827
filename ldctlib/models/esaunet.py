"""ESAU-Net, a U-Net of channel attention (Chen et al., "ASCON", MICCAI 2023, arXiv 2307.12225, Fig. 2): LEDA's second
denoiser.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import fit

SLOPE = 0.01
"""Of LeakyReLU below 0."""


class ChannelAttention(nn.Module):
    """Attention among channels: each is a mixture of the channels of its head, weighted by their correlation.

    Queries, keys and values are 1x1, then depthwise 3x3 convolutions; queries and keys have length 1 over all
    positions, so that a channels x channels map of cosines, times a learned temperature, is what softmax sees. Costs
    grow with the number of positions and not with its square. (B, C, H, W) -> same.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.spatial = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project = nn.Conv2d(channels, channels, 1, bias=False)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.spatial(self.qkv(x)).unflatten(1, (3, self.heads, -1)).flatten(4).unbind(1)
        # the product of unit vectors, without writing these down
        lengths = q.norm(dim=-1)[..., :, None] * k.norm(dim=-1)[..., None, :]
        cosines = q @ k.transpose(-1, -2) / lengths.clamp_min(1e-12)
        mixed = (self.temperature * cosines).softmax(dim=-1).to(v.dtype) @ v
        return self.project(mixed.flatten(1, 2).unflatten(2, x.shape[-2:]))


class ESAUBlock(nn.Module):
    """Residual channel attention, then two 3x3 convolutions, each with LeakyReLU, around a shortcut.

    hidden : channels between the two convolutions.

    The shortcut is a 1x1 convolution where the width changes.
    """

    def __init__(self, channels: int, out_channels: int, heads: int, hidden: int):
        super().__init__()
        self.attention = ChannelAttention(channels, heads)
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(hidden, out_channels, 3, padding=1, bias=False)
        same = channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        y = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), SLOPE)), SLOPE)
        return y + self.shortcut(x)


class ESAUNet(nn.Module):
    """(B, 1, H, W) in model units -> the same, denoised; any H and W (padded by reflection inside).

    widths : channels of the first convolution, then those that each level of the encoder leaves; the last two are
        equal, since skips are added. The published ones are the default: 4,914,230 parameters.
    heads : of the attention at each level, one fewer than widths; a decoder's block has its level's.

    Levels are joined by 2x2 max-pooling and bilinear upsampling with aligned corners. The last level's block is twice
    as wide between its convolutions. No convolution has a bias, nothing is normalised, and the input is not added to
    the output. The attention's cosines are means over the whole image: on patches and on whole slices with their air
    they differ, so train on images like those to be denoised.

    Raises :class:`~ldctlib.errors.ParameterError` for widths and heads that do not fit each other and
    :class:`~ldctlib.errors.ShapeError` for an input that is not (B, 1, H, W).
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256, 256), heads: Sequence[int] = (1, 2, 4, 8)):
        super().__init__()
        if len(heads) < 2 or len(widths) != len(heads) + 1 or widths[-1] != widths[-2] or min(*widths, *heads) < 1:
            need = "two levels or more, a width more than heads, and the last two widths equal"
            raise ParameterError(f"ESAU-Net needs {need}; got widths {list(widths)}, heads {list(heads)}")
        sides = list(zip(widths[:-1], widths[1:], heads, strict=True))  # narrow, wide, heads of each level
        if odd := [(c, h) for narrow, wide, h in sides for c in (narrow, wide) if c % h]:
            raise ParameterError(f"ESAU-Net's channels must divide into the level's heads; not so: {odd}")
        self.factor = 2 ** (len(heads) - 1)
        self.intro = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.encoders = nn.ModuleList(ESAUBlock(a, b, h, hidden=a) for a, b, h in sides[:-1])
        a, b, h = sides[-1]
        self.middle = ESAUBlock(a, b, h, hidden=2 * a)
        self.decoders = nn.ModuleList(ESAUBlock(b, a, h, hidden=b) for a, b, h in reversed(sides[:-1]))
        self.refine = nn.Conv2d(widths[0], widths[0], 3, padding=1, bias=False)
        self.ending = nn.Conv2d(widths[0], 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 1:
            raise ShapeError(f"ESAU-Net takes (B, 1, H, W), got {tuple(x.shape)}")
        h, w = x.shape[-2:]
        y = F.leaky_relu(self.intro(fit(x, self.factor)), SLOPE)
        skips = []
        for encoder in self.encoders:
            skips.append(encoder(y))
            y = F.max_pool2d(skips[-1], 2)
        y = self.middle(y)
        for decoder, skip in zip(self.decoders, reversed(skips), strict=True):
            y = decoder(F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True) + skip)
        return self.ending(F.leaky_relu(self.refine(y), SLOPE))[..., :h, :w]

    @torch.no_grad()
    def start_as_identity(self) -> ESAUNet:
        """Weights with which the output is the input, up to rounding: training starts from "return the input".

        The input is not added to the output. So two channels carry LeakyReLU(x) and LeakyReLU(-x) through the finest
        level alone; their difference is (1 + slope) x. Blocks there leave the two as they are, the level below adds
        nothing to them, and all other channels start as usual. Every weight can move from there.

        Raises :class:`~ldctlib.errors.ParameterError` for fewer than three levels, a first width of 1, or a second
        level that does not widen.
        """
        below = self.decoders[-2] if len(self.decoders) > 1 else self.middle
        if self.intro.out_channels < 2 or not isinstance(below.shortcut, nn.Conv2d):
            need = "three levels, a first width of 2 or more, and a second level that widens"
            raise ParameterError(f"ESAU-Net starts as the identity only with {need}")
        same, difference = torch.eye(2), torch.tensor([[1.0, -1.0]]) / (1 + SLOPE)
        for block in (self.encoders[0], self.decoders[-1], below):
            block.attention.project.weight[:2] = 0
            block.conv2.weight[:2] = 0
            if isinstance(block.shortcut, nn.Conv2d):
                _set_taps(block.shortcut, same if block is not below else 0 * same)
        _set_taps(self.intro, torch.tensor([[1.0], [-1.0]]))
        _set_taps(self.refine, torch.cat([difference, -difference]))
        _set_taps(self.ending, difference)
        return self


def _set_taps(conv: nn.Conv2d, taps: Tensor) -> None:
    """Make the first output channels a mixture ``taps`` (out, in) of the first input channels, pixel by pixel."""
    outputs, inputs = taps.shape
    conv.weight[:outputs] = 0
    conv.weight[:outputs, :inputs, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = taps.to(conv.weight)
