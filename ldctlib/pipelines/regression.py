"""A regression network from HU to HU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldctlib import checkpoints
from ldctlib.checkpoints import Checkpoint
from ldctlib.image import fit
from ldctlib.precision import computes_bf16
from ldctlib.units import Range

PIXELS_AT_ONCE = 512 * 512
"""Of a pass through a network on pixels, to bound its memory."""


class RegressionNetwork:
    """A network that maps a low-dose image to an estimate, in its own range; ``apply_hu`` maps HU to HU.

    precision : "float32", or "auto" for bf16 autocast where the device computes bf16.
    """

    def __init__(self, network: nn.Module, hu_range: Range, precision: str = "float32"):
        self.network, self.hu_range, self.precision = network, hu_range, precision

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, device="cpu", precision: str = "float32") -> RegressionNetwork:
        """The network of a checkpoint, frozen, on ``device``."""
        network = checkpoints.build(checkpoint, map_location=device).requires_grad_(False)
        return cls(network.to(memory_format=torch.channels_last), checkpoint.range, precision)

    def apply_hu(self, x_hu: Tensor) -> Tensor:
        """(B, 1, H, W) in HU -> the same, of any size; a few images at a time."""
        h, w = x_hu.shape[-2:]
        x = fit(x_hu, 1, least=getattr(self.network, "min_size", 1))
        at_once = max(1, PIXELS_AT_ONCE // (x.shape[-2] * x.shape[-1]))
        bf16 = self.precision == "auto" and computes_bf16(x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            passes = [self.network(self.hu_range.to_model(part)) for part in x.split(at_once)]
        return self.hu_range.from_model(torch.cat(passes).float())[..., :h, :w]
