"""Where a diffusion runs: on pixels, or on the latents of an autoencoder; from HU and back.

A grid encodes (B, 1, H, W) in HU, padded to what its network takes, to tensors of about unit size, and decodes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldctlib.image import fit
from ldctlib.models.autoencoder import Autoencoder
from ldctlib.units import Range


class PixelGrid:
    """Images in the model's range."""

    channels = 1

    def __init__(self, hu_range: Range, multiple: int = 1):
        self.hu_range, self.multiple = hu_range, multiple

    def encode(self, x_hu: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, 1, H, W) in HU -> (B, 1, H', W') with H' and W' multiples of ``multiple``."""
        return fit(self.hu_range.to_model(x_hu), self.multiple)

    def decode(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The inverse of :meth:`encode`, cropped to ``size``."""
        return self.hu_range.from_model(x)[..., : size[0], : size[1]]


class LatentGrid:
    """Scaled latents of an autoencoder (unit variance); the network's ``multiple`` counts latents."""

    def __init__(self, autoencoder: Autoencoder, hu_range: Range, multiple: int = 1):
        self.autoencoder, self.hu_range = autoencoder, hu_range
        self.channels, self.multiple = autoencoder.latent_channels, autoencoder.factor * multiple

    def encode(self, x_hu: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, 1, H, W) in HU -> (B, c, h, w): the posterior's mean, or a sample of it with a generator."""
        with torch.autocast(x_hu.device.type, enabled=False):  # bf16 would round a code of 1000 HU to 4 HU
            posterior = self.autoencoder.encode(fit(self.hu_range.to_model(x_hu), self.multiple))
            return self.autoencoder.scale(posterior.mean if generator is None else posterior.sample(generator))

    def decode(self, z: Tensor, size: tuple[int, int]) -> Tensor:
        """Scaled latents -> (B, 1, *size) in HU."""
        return self.hu_range.from_model(self.autoencoder.decode(self.autoencoder.unscale(z), size))
