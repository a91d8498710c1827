"""WGAN-VGG: a plain convolutional generator and its critic (Yang et al., IEEE TMI 37(6), 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldctlib.errors import ParameterError, ShapeError


class WGANVGG(nn.Module):
    """The generator: ``layers`` 3x3 convolutions with ReLU between them, the last one linear.

    ``forward`` maps (B, 1, H, W) to the same shape, both in model range. With the defaults it has 56,097 parameters,
    named ``net.0``, ``net.2``, … as in the benchmark suite's weights.
    """

    def __init__(self, channels: int = 32, layers: int = 8):
        super().__init__()
        if channels < 2 or layers < 2:
            raise ParameterError(f"needs 2 channels and 2 layers at least, got {channels} and {layers}")
        widths = [1, *[channels] * (layers - 1), 1]
        parts: list[nn.Module] = []
        for i in range(layers):
            parts += [nn.Conv2d(widths[i], widths[i + 1], 3, padding=1), nn.ReLU()]
        self.net = nn.Sequential(*parts[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    @torch.no_grad()
    def start_as_identity(self) -> WGANVGG:
        """He's initialisation, and two channels that carry the input through: training starts from "return the input".

        There is no shortcut, so channels 0 and 1 hold the positive and the negative part of the image, which ReLU
        leaves as they are; the last layer takes their difference. They are free to change like all others.
        """
        convolutions = [layer for layer in self.net if isinstance(layer, nn.Conv2d)]
        for i, layer in enumerate(convolutions):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            last = i + 1 == len(convolutions)
            layer.weight[: 1 if last else 2] = 0
            carried = [(0, 0, 1.0), (1, 1, 1.0)]
            if i == 0:
                carried = [(0, 0, 1.0), (1, 0, -1.0)]
            elif last:
                carried = [(0, 0, 1.0), (0, 1, -1.0)]
            for to, of, sign in carried:
                layer.weight[to, of, 1, 1] = sign
        return self


class WGANCritic(nn.Module):
    """The critic: six unpadded 3x3 convolutions of strides 1 and 2, and two fully connected layers.

    patch : pixels a side of the images that it judges, on which its first fully connected layer depends.
    width : of the first convolution; the published 64 gives 64, 64, 128, 128, 256, 256 and 1024 hidden units.

    ``forward`` maps (B, 1, patch, patch) to one score an image, (B,), without bounds. Leaky ReLU of slope 0.2 (the
    paper states none). Raises ParameterError for a patch that is too small, ShapeError for images of another size.
    """

    def __init__(self, patch: int = 64, width: int = 64):
        super().__init__()
        self.patch, side = patch, patch
        parts: list[nn.Module] = []
        channels = [1, width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        for i in range(6):
            stride = 1 + i % 2
            side = (side - 3) // stride + 1
            parts += [nn.Conv2d(channels[i], channels[i + 1], 3, stride), nn.LeakyReLU(0.2)]
        if side < 1:
            raise ParameterError(
                f"a critic of six unpadded convolutions needs patches of 29 pixels a side, got {patch}"
            )
        self.net = nn.Sequential(*parts)
        self.fc1 = nn.Linear(channels[-1] * side**2, 16 * width)
        self.fc2 = nn.Linear(16 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1:] != (1, self.patch, self.patch):
            raise ShapeError(f"this critic judges (B, 1, {self.patch}, {self.patch}), got {tuple(x.shape)}")
        hidden = nn.functional.leaky_relu(self.fc1(self.net(x).flatten(1)), 0.2)
        return self.fc2(hidden).squeeze(1)
