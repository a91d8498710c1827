"""Q-AE, the quadratic autoencoder (Fan et al., IEEE TMI 39(6), 2020, 10.1109/TMI.2019.2963248)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError


class QuadraticConv(nn.Module):
    """A convolution of quadratic neurons: (W_r x + b_r)(W_g x + b_g) + W_b x² + b_b (the paper calls b_b c).

    padding : of zeros, in pixels a side.
    transposed : each of the three convolutions is the transpose of one.

    It starts as a linear layer: W_r from a normal distribution of standard deviation 0.1, cut off at two of them, W_g,
    W_b, b_r and b_b are 0 and b_g is 1. With W_g drawn at random, too, as the paper says, training diverges; the
    authors' code sets it to 0.
    """

    def __init__(self, in_channels: int, out_channels: int, padding: int = 1, transposed: bool = False):
        super().__init__()
        shape = (in_channels, out_channels, 3, 3) if transposed else (out_channels, in_channels, 3, 3)
        self.W_r, self.W_g, self.W_b = (nn.Parameter(torch.zeros(shape)) for _ in range(3))
        self.b_r, self.b_g, self.b_b = (nn.Parameter(torch.zeros(out_channels)) for _ in range(3))
        self.padding, self.transposed = padding, transposed
        nn.init.trunc_normal_(self.W_r, std=0.1, a=-0.2, b=0.2)
        nn.init.ones_(self.b_g)

    def forward(self, x: Tensor) -> Tensor:
        convolve = F.conv_transpose2d if self.transposed else F.conv2d
        # both factors see the same image: one convolution of twice the channels
        kernels = torch.cat([self.W_r, self.W_g], dim=1 if self.transposed else 0)
        both = convolve(x, kernels, torch.cat([self.b_r, self.b_g]), padding=self.padding)
        a, b = both.chunk(2, dim=1)
        return a * b + convolve(x.square(), self.W_b, self.b_b, padding=self.padding)


class QAE(nn.Module):
    """Five quadratic convolutions, five transposed ones, shortcuts of the input, layers 2 and 4.

    ``forward`` maps (B, 1, H, W) to the same shape, both in model range; the output is linear. Only the innermost pair
    is unpadded, so H and W are 3 at least. With the default of 15 channels it has 49,818 parameters, named
    ``encoder.N.W_r`` and so on as in the benchmark suite's weights. Raises :class:`~ldctlib.errors.ShapeError` for an
    input that is not (B, 1, H, W) or too small.

    limits : lowest and highest value that the layers see; what lies beyond is added to the output as it is, and the
        output is held within a quarter of their distance from the input. None is the paper's. Ten squares in a row make
        the output a polynomial of degree 1,024: a pixel of air that noise has taken a little below all that was seen in
        training came out as 1e14, and some of a real sharp scan came out far beyond bone.
    """

    min_size = 3

    def __init__(self, channels: int = 15, limits: Sequence[float] | None = None):
        super().__init__()
        c, self.limits = channels, None if limits is None else tuple(limits)
        if self.limits and (len(self.limits) != 2 or not self.limits[0] < self.limits[1]):
            raise ParameterError(f"limits are the lowest and the highest value, got {limits}")
        self.encoder = nn.ModuleList(QuadraticConv(1 if i == 0 else c, c, padding=int(i < 4)) for i in range(5))
        self.decoder = nn.ModuleList(
            QuadraticConv(c, 1 if i == 4 else c, padding=int(i > 0), transposed=True) for i in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 1 or min(x.shape[-2:]) < self.min_size:
            raise ShapeError(f"Q-AE takes (B, 1, H, W) of at least 3 pixels a side, got {tuple(x.shape)}")
        y = x if self.limits is None else x.clamp(*self.limits)
        shortcuts = []
        for layer in self.encoder:
            shortcuts.append(y)
            y = F.relu(layer(y))
        for i, layer in enumerate(self.decoder):
            y = layer(y)
            if i % 2 == 0:
                y = y + shortcuts[4 - i]
            y = F.relu(y) if i < 4 else y
        if self.limits is None:
            return y
        most = (self.limits[1] - self.limits[0]) / 4
        return x + (y - shortcuts[0]).clamp(-most, most)

    @torch.no_grad()
    def start_as_identity(self) -> QAE:
        """The last layer begins at 0: training starts from "return the input"."""
        self.decoder[-1].W_r.zero_()
        return self
