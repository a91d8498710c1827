"""A small U-Net that tells classes apart (Ronneberger et al., MICCAI 2015), with residual blocks and GroupNorm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.models import blocks
from ldctlib.models.blocks import ResBlock


class SegmentationUNet(nn.Module):
    """Images (B, 1, H, W) in model range -> logits (B, K, H, W); H and W are multiples of :attr:`factor`.

    classes : K. widths : channels of each level, all but the last of which halve H and W. shuffle : the first level
    works on blocks of so many pixels a side as channels, which is as much faster and loses nothing. norm_groups : of
    every GroupNorm.

    The input is cut to [-1, 1], so that an image that was stored in its window looks as the same image in full HU.
    """

    def __init__(self, classes: int, widths: Sequence[int] = (24, 32, 64, 72), shuffle: int = 2, norm_groups: int = 8):
        super().__init__()
        if classes < 2 or len(widths) < 2:
            raise ParameterError(f"a segmenter needs two classes and two levels, got {classes} and {len(widths)}")
        self.shuffle, self.factor = shuffle, shuffle * 2 ** (len(widths) - 1)
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.stem = nn.Conv2d(shuffle**2, widths[0], 3, padding=1)
        self.top = ResBlock(widths[0], widths[0], groups=norm_groups)
        self.down = nn.ModuleList(ResBlock(a, b, resample="down", groups=norm_groups) for a, b in pairs)
        self.middle = ResBlock(widths[-1], widths[-1], groups=norm_groups)
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.up = nn.ModuleList(ResBlock(a + b, a, groups=norm_groups) for a, b in reversed(pairs))
        head = nn.Conv2d(widths[0], classes * shuffle**2, 1)
        self.head = nn.Sequential(blocks.group_norm(widths[0], norm_groups), nn.SiLU(), head)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 1 or any(n % self.factor or n == 0 for n in x.shape[-2:]):
            raise ShapeError(
                f"the segmenter needs (B, 1, H, W) with sides of multiples of {self.factor}, got {tuple(x.shape)}"
            )
        h = self.top(self.stem(F.pixel_unshuffle(x.clamp(-1, 1), self.shuffle)))
        skips = []
        for block in self.down:
            skips.append(h)
            h = block(h)
        h = self.middle(h)
        for block in self.up:
            h = block(torch.cat([self.enlarge(h), skips.pop()], dim=1))
        return F.pixel_shuffle(self.head(h), self.shuffle)
