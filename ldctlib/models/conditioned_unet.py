"""A latent U-Net together with the encoder of its condition, an image.

Latent diffusion calls it tau_theta (Rombach et al. 2022, section 3.3); MAN's "conditioning context c (derived from the
input noisy image x)" leaves it open. The encoder sees every pixel, and runs once an image, not once a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.models.autoencoder import Encoder
from ldctlib.models.unet import UNet


class ConditionedUNet(nn.Module):
    """A :class:`~ldctlib.models.unet.UNet` on latents whose condition is a code and features of an image.

    unet : keyword arguments of the U-Net, without ``concat_channels`` and ``out_channels``: it concatenates the code
        (``in_channels``) and the features, and gives three maps a, b, c for the prediction a + b * code + c * x_t.
        Much of what separates a noisy code from a clean one is a share of the code itself, as in the shrinkage of
        wavelet coefficients, and a U-Net whose features are normalised cannot hand an amplitude through.
    features : channels of the features, on the grid of the latents.
    width, channel_mult, blocks : of the encoder, as of :class:`~ldctlib.models.autoencoder.Autoencoder`.
    stem : side of the space-to-depth block at its input. The image is ``stem * 2^(levels - 1)`` times as large as the
        latent.
    code_gain : factor on the code beside x_t, where their units differ.
    gain : factor on the image, in model range, at the encoder's input: brings noise to about 1.
    """

    def __init__(self, unet: Mapping[str, Any], features: int = 64, width: int = 32, channel_mult=(1, 2, 2),
                 blocks: int = 1, stem: int = 2, gain: float = 1.0, code_gain: float = 1.0, norm_groups: int = 8):
        super().__init__()
        if own := sorted({"concat_channels", "out_channels"} & set(unet)):
            raise ParameterError(f"{', '.join(own)} follows from in_channels and features: leave it out")
        channels = unet["in_channels"]
        self.unet = UNet(**unet, concat_channels=channels + features, out_channels=3 * channels)
        self.code_gain = code_gain
        self.stem, self.gain, self.scale = stem, gain, stem * 2 ** (len(channel_mult) - 1)
        widths = [width * m for m in channel_mult]
        self.encoder = Encoder(stem**2, features, widths, blocks, [False] * len(widths), None, norm_groups)
        self.factor, self.in_channels = self.unet.factor, self.unet.in_channels

    def encode(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) in model range -> features (B, features, H / scale, W / scale)."""
        if image.ndim != 4 or image.shape[1] != 1 or any(n % self.scale for n in image.shape[2:]):
            raise ShapeError(f"the condition is (B, 1, H, W) with H and W multiples of {self.scale}, got "
                             f"{tuple(image.shape)}")
        return self.encoder(F.pixel_unshuffle(image * self.gain, self.stem))

    def forward(self, x_t: Tensor, t: Tensor | float, code: Tensor, *, image: Tensor | None = None,
                features: Tensor | None = None) -> Tensor:
        """x_t and code (B, in_channels, h, w); ``image``, or its ``features`` where :meth:`encode` made them before."""
        if (image is None) == (features is None):
            raise ShapeError("give the image or its features")
        features = self.encode(image) if features is None else features
        context = code if self.unet.context_channels else None
        maps = self.unet(x_t, t, concat=torch.cat([code, features.to(code.dtype)], dim=1), context=context)
        plain, of_code, of_x_t = maps.chunk(3, dim=1)
        return plain + of_code * code * self.code_gain + of_x_t * x_t
