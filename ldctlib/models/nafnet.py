"""NAFNet blocks in a small U-Net: the practical default for a laptop (Chen et al. 2022, "Simple Baselines").

The network predicts the noise and subtracts it: ``forward(x) = x - noise_hat(x)``. At the input a space-to-depth
step trades resolution for channels without losing a sample, which is what makes it fast on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldctlib.errors import ShapeError
from ldctlib.image import fit


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of every pixel; (B, C, H, W) -> same."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # channels_last tensors permute to a contiguous (B, H, W, C) for free
        return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class LocalPool(nn.Module):
    """Channel means over the training patch's area: global in training, overlapping windows on larger images.

    A network trained on patches sees statistics of a patch; pooling a whole slice with its air would show it others
    (Chu et al. 2022, TLC). Windows of the patch's size, half overlapping, are interpolated between.
    """

    def __init__(self, window: int):
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        if max(h, w) <= self.window:
            return x.mean(dim=(2, 3), keepdim=True)
        kernel = (min(self.window, h), min(self.window, w))
        pooled = F.avg_pool2d(x, kernel, stride=tuple(max(1, n // 2) for n in kernel))
        return F.interpolate(pooled, size=(h, w), mode="bilinear", align_corners=False)


class NAFBlock(nn.Module):
    """Depthwise spatial mixing with a gate and channel attention, then a gated pointwise part."""

    def __init__(self, channels: int, window: int):
        super().__init__()
        c = channels
        self.norm1, self.norm2 = LayerNorm2d(c), LayerNorm2d(c)
        self.expand = nn.Conv2d(c, 2 * c, 1)
        self.spatial = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.pool = LocalPool(window)
        self.attention = nn.Conv2d(c, c, 1)
        self.project = nn.Conv2d(c, c, 1)
        self.feed = nn.Conv2d(c, 2 * c, 1)
        self.out = nn.Conv2d(c, c, 1)
        self.beta = nn.Parameter(torch.zeros(1, c, 1, 1))  # zero: the block starts as the identity
        self.gamma = nn.Parameter(torch.zeros(1, c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.spatial(self.expand(self.norm1(x))).chunk(2, dim=1)
        y = a * b
        y = self.project(y * self.attention(self.pool(y)))
        x = x + y * self.beta
        a, b = self.feed(self.norm2(x)).chunk(2, dim=1)
        return x + self.out(a * b) * self.gamma


class NAFNet(nn.Module):
    """(B, 1, H, W) in model units -> the same, denoised; any H, W (padded by reflection inside).

    width : channels after the space-to-depth stem.
    shuffle : side of the space-to-depth block; 1 works at full resolution.
    encoder, middle, decoder : blocks a level; the number of levels is len(encoder) (= len(decoder)).
    patch : side of the training patch in pixels, which sets the windows of the channel attention.
    """

    def __init__(self, width=48, shuffle=2, encoder=(2, 2), middle=4, decoder=(2, 2), patch=64):
        super().__init__()
        self.shuffle = shuffle
        self.factor = shuffle * 2 ** len(encoder)
        window = patch // shuffle
        self.intro = nn.Conv2d(shuffle**2, width, 3, padding=1)
        c = width
        self.encoders, self.downs = nn.ModuleList(), nn.ModuleList()
        for blocks in encoder:
            self.encoders.append(nn.Sequential(*(NAFBlock(c, window) for _ in range(blocks))))
            self.downs.append(nn.Conv2d(c, 2 * c, 2, stride=2))
            c, window = 2 * c, window // 2
        self.middle = nn.Sequential(*(NAFBlock(c, window) for _ in range(middle)))
        self.decoders, self.ups = nn.ModuleList(), nn.ModuleList()
        for blocks in decoder:
            self.ups.append(nn.Sequential(nn.Conv2d(c, 2 * c, 1, bias=False), nn.PixelShuffle(2)))
            c, window = c // 2, window * 2
            self.decoders.append(nn.Sequential(*(NAFBlock(c, window) for _ in range(blocks))))
        self.ending = nn.Conv2d(c, shuffle**2, 3, padding=1)
        nn.init.zeros_(self.ending.weight)  # starts as the identity: no noise predicted
        nn.init.zeros_(self.ending.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != 1:
            raise ShapeError(f"NAFNet takes (B, 1, H, W), got {tuple(x.shape)}")
        h, w = x.shape[-2:]
        x = fit(x, self.factor)
        y = self.intro(F.pixel_unshuffle(x, self.shuffle).contiguous(memory_format=torch.channels_last))
        skips = []
        for encoder, reduce in zip(self.encoders, self.downs, strict=True):
            y = encoder(y)
            skips.append(y)
            y = reduce(y)
        y = self.middle(y)
        for decoder, up, skip in zip(self.decoders, self.ups, reversed(skips), strict=True):
            y = decoder(up(y) + skip)
        noise = F.pixel_shuffle(self.ending(y), self.shuffle)
        return (x - noise)[..., :h, :w]
