"""The skip network of deep image prior (Ulyanov, Vedaldi & Lempitsky, CVPR 2018, 10.1109/CVPR.2018.00984)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError


class SkipNetwork(nn.Module):
    """An hourglass with narrow skips: fixed noise z -> an image in (0, 1), (B, in_channels, H, W) -> (B, C, H, W).

    The published layout for denoising and super-resolution (its Fig. 21): strided 3x3 convolutions down, bilinear
    upsampling and 3x3 then 1x1 convolutions up, 1x1 skips, each with batch normalisation and LeakyReLU(.2), reflection
    padding, sigmoid output. With the defaults it has 2,217,573 parameters; with the published three output channels
    2,217,831.

    in_channels : channels of z.
    width : channels on the way down and up at every scale.
    skip_channels : channels of each skip.
    scales : times that H and W are halved, rounded up. The way up is cropped to the skip that it joins, so any H and W
        from :attr:`min_size` on will do; below it the coarsest map would have one pixel, which cannot be reflected.

    Batch normalisation always uses the batch's own statistics in training mode, which is how the prior is meant: fit
    one image at a time. Raises ParameterError for a layout that cannot be, ShapeError for a z that does not fit.
    """

    def __init__(
        self, in_channels: int = 32, out_channels: int = 1, width: int = 128, skip_channels: int = 4, scales: int = 5
    ):
        super().__init__()
        sizes = dict(in_channels=in_channels, out_channels=out_channels, width=width, skip_channels=skip_channels)
        if wrong := {name: value for name, value in (sizes | {"scales": scales}).items() if value < 1}:
            raise ParameterError(f"the skip network takes whole numbers from 1 on, got {wrong}")
        self.in_channels, self.min_size = in_channels, 2**scales + 1
        inner = None
        for scale in reversed(range(scales)):
            inner = _Scale(width if scale else in_channels, width, skip_channels, inner)
        self.scales = inner
        self.out = nn.Conv2d(width, out_channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        if z.ndim != 4 or z.shape[1] != self.in_channels or min(z.shape[-2:]) < self.min_size:
            wanted = f"(B, {self.in_channels}, H, W) with H and W of at least {self.min_size} pixels"
            raise ShapeError(f"this skip network takes {wanted}, got {tuple(z.shape)}")
        return torch.sigmoid(self.out(self.scales(z)))

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None = None) -> SkipNetwork:
        """Draw all weights anew: PyTorch's initialisation, uniform within ±1/√fan_in, from ``generator``."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                for p in (layer.weight, layer.bias):
                    uniform = torch.rand(p.shape, generator=generator, device=generator.device if generator else None)
                    p.copy_((2 * uniform - 1) * layer.weight[0].numel() ** -0.5)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.reset_parameters()
        return self


class _Scale(nn.Module):
    """One scale with all that are coarser inside it; the result has the size of its input."""

    def __init__(self, in_channels: int, width: int, skip_channels: int, inner: _Scale | None):
        super().__init__()
        self.skip = _layers(in_channels, skip_channels, 1)
        self.down = nn.Sequential(_layers(in_channels, width, 3, stride=2), _layers(width, width, 3))
        self.inner = inner
        joined = skip_channels + width
        self.up = nn.Sequential(nn.BatchNorm2d(joined), _layers(joined, width, 3), _layers(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        deep = self.down(x)
        deep = deep if self.inner is None else self.inner(deep)
        deep = F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=False)
        return self.up(torch.cat([self.skip(x), deep[..., : x.shape[-2], : x.shape[-1]]], dim=1))


def _layers(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, padding_mode="reflect")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.2))
