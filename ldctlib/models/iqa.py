"""A small network that scores the quality of a CT image without a reference."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ShapeError


class IQA(nn.Module):
    """Images (B, 1, H, W) in model range, any size from 16 pixels on -> scores (B,), 0 to 4 as they were taught.

    widths : channels of the convolutions; all but the first and the last halve H and W.

    A score is the mean of local scores, weighted with where the network can judge (:meth:`local_scores`). There is no
    normalisation layer: it would divide out the noise that is judged. The input is cut to [-1, 1], a window's ends.
    """

    min_size = 16

    def __init__(self, widths: Sequence[int] = (16, 32, 48, 64, 64)):
        super().__init__()
        strides = [1, *[2] * (len(widths) - 2), 1]
        layers: list[nn.Module] = []
        for channels, out, stride in zip((1, *widths[:-1]), widths, strides, strict=True):
            layers += [nn.Conv2d(channels, out, 3, stride, 1, padding_mode="replicate"), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Conv2d(widths[-1], 2, 1)
        for layer in self.features[::2]:  # PyTorch's default would shrink the noise at every layer
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def local_scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and weights, (B, 1, h, w) each; the weights are positive."""
        if x.ndim != 4 or x.shape[1] != 1 or min(x.shape[-2:]) < self.min_size:
            raise ShapeError(f"images must be (B, 1, H, W) of {self.min_size} pixels or more, got {tuple(x.shape)}")
        score, weight = self.head(self.features(x.clamp(-1, 1))).chunk(2, dim=1)
        return 2 + score, F.softplus(weight) + 1e-4

    def forward(self, x: Tensor) -> Tensor:
        score, weight = self.local_scores(x)
        return (score * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))
