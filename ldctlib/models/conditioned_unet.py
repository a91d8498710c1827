"""A latent U-Net told two codes: that of the low-dose image, and that of a first estimate of the clean one.

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
    """A :class:`~ldctlib.models.unet.UNet` on latents, conditioned on ``code`` and ``centre``.

    unet : keyword arguments of the U-Net, without ``concat_channels`` and ``out_channels``: it concatenates the centre
        and what separates the code from it (each ``in_channels``), attends to the centre where it has
        ``context_channels``, and gives three maps a, b, c for the prediction a + b * (code - centre) + c * x_t.
        Much of what is still wrong with an estimate is a share of what it took away, as in the shrinkage of wavelet
        coefficients, and a U-Net whose features are normalised cannot hand an amplitude through.
    gain : factor on code - centre, which brings it to the unit of x_t.
    """

    def __init__(self, unet: Mapping[str, Any], gain: float = 1.0):
        super().__init__()
        if own := sorted({"concat_channels", "out_channels"} & set(unet)):
            raise ParameterError(f"{', '.join(own)} follows from in_channels: leave it out")
        channels = unet["in_channels"]
        self.unet = UNet(**unet, concat_channels=2 * channels, out_channels=3 * channels)
        self.gain = gain
        self.factor, self.in_channels = self.unet.factor, self.unet.in_channels

    def forward(self, x_t: Tensor, t: Tensor | float, code: Tensor, centre: Tensor) -> Tensor:
        """x_t, code and centre (B, in_channels, h, w); t as of the U-Net."""
        if code.shape != x_t.shape or centre.shape != x_t.shape:
            raise ShapeError(
                f"x_t, code and centre have one shape, got {tuple(x_t.shape)}, {tuple(code.shape)} and "
                f"{tuple(centre.shape)}"
            )
        removed = (code - centre) * self.gain
        context = centre if self.unet.context_channels else None
        maps = self.unet(x_t, t, concat=torch.cat([centre, removed], dim=1), context=context)
        plain, of_removed, of_x_t = maps.chunk(3, dim=1)
        return plain + of_removed * removed + of_x_t * x_t


def conditions(network: nn.Module, code: Tensor, centre: Tensor) -> dict[str, Tensor]:
    """The keyword arguments by which a network takes its condition: none for one that takes none."""
    network = getattr(network, "module", network)  # data-parallel training wraps it
    if isinstance(network, ConditionedUNet):
        return {"code": code, "centre": centre}
    given = {"concat": code} if network.concat_channels else {}
    return given | ({"context": code} if network.context_channels else {})
