"""DU-GAN: a generator like RED-CNN's, and discriminators that are U-Nets (Huang et al., IEEE TIM 71, 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from ldctlib.errors import ParameterError, ShapeError


class DUGANGenerator(nn.Module):
    """``layers`` padded 3x3 convolutions, as many transposed ones, and a shortcut at every layer.

    Transposed layer i gives the size and the channels of what convolution i saw, and that is added before its ReLU: so
    the first of them, ``decoder.0``, comes last and adds the image itself. This is the layout of the authors' code,
    with keys ``encoder.N`` and ``decoder.N``; with the defaults it has 11 + 11 layers and 185,569 parameters.
    ``forward`` maps (B, 1, H, W) to the same shape, both in model range.

    final_relu : clamps the output at 0, which the authors' data in [0, 1] allow.
    """

    def __init__(self, channels: int = 32, layers: int = 11, final_relu: bool = False):
        super().__init__()
        self.final_relu = final_relu
        widths = [1, *[channels] * layers]
        self.encoder = nn.ModuleList(nn.Conv2d(widths[i], channels, 3, padding=1) for i in range(layers))
        self.decoder = nn.ModuleList(nn.ConvTranspose2d(channels, widths[i], 3, padding=1) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 1:
            raise ShapeError(f"DU-GAN's generator takes (B, 1, H, W), got {tuple(x.shape)}")
        shortcuts = []
        for layer in self.encoder:
            shortcuts.append(x)
            x = F.relu(layer(x))
        for i in reversed(range(len(self.decoder))):
            x = self.decoder[i](x) + shortcuts[i]
            x = F.relu(x) if i > 0 or self.final_relu else x
        return x

    @torch.no_grad()
    def start_as_identity(self) -> DUGANGenerator:
        """He's initialisation, and a last layer of zeros: training starts from "return the input"."""
        for layer in (*self.encoder, *self.decoder):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.decoder[0].weight.zero_()
        return self


def _convolutions(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions with leaky ReLU."""
    first, second = (nn.Conv2d(c, out_channels, 3, padding=1) for c in (in_channels, out_channels))
    return nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2))


class _Down(nn.Module):
    """Residual block that halves the image, but for the last one; it also returns what the decoder takes up again."""

    def __init__(self, in_channels: int, out_channels: int, halve: bool):
        super().__init__()
        self.conv_res = nn.Conv2d(in_channels, out_channels, 1, stride=2 if halve else 1)
        self.net = _convolutions(in_channels, out_channels)
        self.down = nn.Conv2d(out_channels, out_channels, 4, stride=2, padding=1) if halve else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.net(x)
        return (skip if self.down is None else self.down(skip)) + self.conv_res(x), skip


class _Up(nn.Module):
    """Residual block that doubles the image and takes up the encoder's."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.conv = _convolutions(2 * in_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.conv(torch.cat([x, skip], dim=1)) + self.shortcut(x)


class UNetDiscriminator(nn.Module):
    """A discriminator that judges the whole image and every pixel of it (Huang 2022; Schönfeld et al. 2020).

    ``forward`` maps (B, 1, H, W), H and W multiples of 2^``levels``, to ``(scores (B,), map (B, 1, H, W))``: what the
    encoder says of the image, and what the decoder says of each pixel. Both are without bounds. One network judges
    images and another one their gradients (``losses.adversarial.sobel``).

    width : of the first block; it doubles at each level, up to eight times. The published 64 and 6 levels give 57.2
        million parameters.

    Convolutions that see more than four channels and give more than one have their spectral norm divided out, as in
    the authors' code. Those draw initial weights of standard deviation 0.01; here they are PyTorch's own.
    """

    def __init__(self, width: int = 64, levels: int = 6):
        super().__init__()
        if width < 1 or levels < 1:
            raise ParameterError(f"needs a width and levels of 1 at least, got {width} and {levels}")
        self.factor = 2**levels
        widths = [1, *(min(width * 2**i, 8 * width) for i in range(levels))]
        widths += widths[-1:]
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.down_blocks = nn.ModuleList(_Down(a, b, halve=i < levels) for i, (a, b) in enumerate(pairs))
        self.up_blocks = nn.ModuleList(_Up(b, a) for a, b in reversed(pairs[:-1]))
        self.conv = _convolutions(widths[-1], widths[-1])
        self.to_logit = nn.Linear(widths[-1], 1)
        self.conv_out = nn.Conv2d(1, 1, 1)
        for layer in list(self.modules()):
            if isinstance(layer, nn.Conv2d) and layer.in_channels > 4 and layer.out_channels > 1:
                spectral_norm(layer)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 4 or x.shape[1] != 1 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ShapeError(
                f"this discriminator judges (B, 1, H, W) with H and W multiples of {self.factor}, got {tuple(x.shape)}"
            )
        skips = []
        for block in self.down_blocks:
            x, skip = block(x)
            skips.append(skip)
        x = x + self.conv(x)
        scores = self.to_logit(F.leaky_relu(x, 0.2).mean((2, 3))).squeeze(1)
        for block, skip in zip(self.up_blocks, reversed(skips[:-1]), strict=True):
            x = block(x, skip)
        return scores, self.conv_out(x)
