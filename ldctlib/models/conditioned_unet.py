"""A U-Net on latents, conditioned on two codes: of the low-dose image, and of a first estimate of the clean one.

MAN's "conditioning context c (derived from the input noisy image x)" leaves open how c is derived. An encoder made for
clean images loses what tells noise from anatomy; a regression network on pixels does not, and its output is a code
that the diffusion can start from (Whang et al., CVPR 2022, on pixels).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.models.unet import UNet


class ConditionedUNet(nn.Module):
    """A :class:`~ldctlib.models.unet.UNet` with the prediction a + b * gain * (code - estimate) + c * x_t.

    unet : keyword arguments of the U-Net, without ``concat_channels`` and ``out_channels``: it concatenates the
        estimate and gain * (code - estimate) (each ``in_channels``), attends to the estimate where it has
        ``context_channels``, and gives the three maps a, b, c. The estimate's error is roughly proportional, locally,
        to what the regression removed (code - estimate); GroupNorm discards that amplitude, so it is fed past the
        network.
    gain : factor on code - estimate, which brings it to the unit of x_t.
    """

    conditions = ("concat",)

    def __init__(self, unet: Mapping[str, Any], gain: float = 1.0):
        super().__init__()
        if given := sorted({"concat_channels", "out_channels"} & set(unet)):
            raise ParameterError(f"{', '.join(given)} follows from in_channels: leave it out")
        channels = unet["in_channels"]
        self.unet = UNet(**unet, concat_channels=2 * channels, out_channels=3 * channels)
        self.gain = gain
        self.factor, self.in_channels = self.unet.factor, self.unet.in_channels

    def forward(self, x_t: Tensor, t: Tensor | float, concat: Tensor) -> Tensor:
        """x_t (B, in_channels, h, w); t as of the U-Net; concat (B, 2 in_channels, h, w): code, then estimate."""
        batch, channels, *grid = x_t.shape
        if concat.shape != (batch, 2 * channels, *grid):
            wanted = f"code and estimate, (B, {2 * channels}, h, w) of the same grid"
            raise ShapeError(f"for x_t {tuple(x_t.shape)} concat holds {wanted}; got {tuple(concat.shape)}")
        code, estimate = concat.chunk(2, dim=1)
        removed = (code - estimate) * self.gain
        context = estimate if self.unet.context_channels else None
        maps = self.unet(x_t, t, concat=torch.cat([estimate, removed], dim=1), context=context)
        a, b, c = maps.chunk(3, dim=1)
        return a + b * removed + c * x_t
