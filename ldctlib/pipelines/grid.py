"""Where a diffusion runs: on pixels, or on the latents of an autoencoder; from HU (or arbitrary units) and back.

A grid encodes images (B, 1, H, W), padded to what its network takes, to tensors of about unit size, and decodes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldctlib.errors import ParameterError
from ldctlib.image import fit
from ldctlib.models.autoencoder import Autoencoder
from ldctlib.units import Range


class PixelGrid:
    """Images in the model's range; they are in HU, or in arbitrary units where ``scale`` says so."""

    channels = 1

    def __init__(self, image_range: Range, multiple: int = 1, scale: str = "HU"):
        self.image_range, self.multiple, self.scale = image_range, multiple, scale

    @property
    def hu_range(self) -> Range:
        """The range of a model of CT images. Raises ParameterError for one of images in arbitrary units."""
        if self.scale != "HU":
            raise ParameterError("this model's images are in arbitrary units, not HU: use its image_range")
        return self.image_range

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, 1, H, W) in the images' scale -> (B, 1, H', W') with H' and W' multiples of ``multiple``."""
        return fit(self.image_range.to_model(x), self.multiple)

    def decode(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The inverse of :meth:`encode`, cropped to ``size``."""
        return self.image_range.from_model(x)[..., : size[0], : size[1]]


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
