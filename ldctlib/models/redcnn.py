"""RED-CNN, the residual encoder-decoder (Chen et al., IEEE TMI 36(12), 2017, 10.1109/TMI.2017.2715284)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ShapeError


class REDCNN(nn.Module):
    """Five unpadded convolutions, five transposed ones, and three additive shortcuts (Chen 2017, Fig. 1).

    ``forward`` maps (B, 1, H, W) to the same shape, both in model range. Every unpadded 5x5 convolution takes
    4 pixels off a side and every transposed one gives them back, so any H and W from :attr:`min_size` up
    will do. The shortcuts join the input, conv2 and conv4 to the decoder *before* its ReLU. With the
    defaults it has 1,848,865 parameters, named ``conv1..5`` and ``tconv1..5`` as in the published weights.

    ``final_relu`` clamps the output at 0. That is right where 0 is the lowest value, i.e. for data in [0, 1], as in the
    paper; with [-1, 1] or mean/std-normalised data it would erase everything below the middle: set it to False.

    Raises :class:`~ldctlib.errors.ShapeError` for an input that is not (B, 1, H, W) or too small.
    """

    depth = 5

    def __init__(self, channels: int = 96, kernel_size: int = 5, final_relu: bool = True):
        super().__init__()
        self.final_relu = final_relu
        self.min_size = self.depth * (kernel_size - 1) + 1
        for i in range(1, self.depth + 1):
            self.add_module(f"conv{i}", nn.Conv2d(1 if i == 1 else channels, channels, kernel_size))
        for i in range(1, self.depth + 1):
            out_channels = 1 if i == self.depth else channels
            self.add_module(f"tconv{i}", nn.ConvTranspose2d(channels, out_channels, kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 1 or min(x.shape[-2:]) < self.min_size:
            raise ShapeError(
                f"RED-CNN needs (B, 1, H, W) with H and W of at least {self.min_size} pixels, because its "
                f"convolutions are unpadded; got {tuple(x.shape)}: pad or resample the image"
            )
        shortcut1 = x
        x = F.relu(self.conv1(x))
        x = shortcut2 = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        x = shortcut3 = F.relu(self.conv4(x))
        x = F.relu(self.conv5(x))
        x = F.relu(self.tconv1(x) + shortcut3)
        x = F.relu(self.tconv2(x))
        x = F.relu(self.tconv3(x) + shortcut2)
        x = F.relu(self.tconv4(x))
        x = self.tconv5(x) + shortcut1
        return F.relu(x) if self.final_relu else x

    @torch.no_grad()
    def start_as_identity(self) -> REDCNN:
        """He's initialisation, and a last layer of zeros: training starts from "return the input".

        PyTorch's default shrinks the signal at every one of the ten layers, and adds what is left as noise.
        """
        for layer in self.children():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.tconv5.weight.zero_()
        self.tconv5.bias.zero_()
        return self
