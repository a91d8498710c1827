"""PatchGAN (Isola et al. 2017, arXiv 1611.07004): a discriminator that judges overlapping patches, as VQGAN uses it."""

from __future__ import annotations

from torch import Tensor, nn

from ldctlib.errors import ParameterError, ShapeError


class PatchGAN(nn.Module):
    """4x4 convolutions with batch normalisation: (B, 1, H, W) in model units -> a map of logits (B, 1, h, w).

    width : channels of the first layer; they double from layer to layer, up to eightfold.
    layers : strided ones; 3 are the published 70 x 70 PatchGAN (2,763,585 parameters for one channel, with width 64).

    Raises :class:`~ldctlib.errors.ShapeError` for an image that is too small for one patch.
    """

    def __init__(self, in_channels: int = 1, width: int = 64, layers: int = 3):
        super().__init__()
        if width < 1 or layers < 1:
            raise ParameterError(f"a PatchGAN has a width and at least one strided layer, got {width} and {layers}")
        self.in_channels, self.smallest = in_channels, 2**layers * 3
        c, parts = width, [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            wider = width * min(2**i, 8)
            convolution = nn.Conv2d(c, wider, 4, stride=2 if i < layers else 1, padding=1, bias=False)
            parts += [convolution, nn.BatchNorm2d(wider), nn.LeakyReLU(0.2)]
            c = wider
        self.net = nn.Sequential(*parts, nn.Conv2d(c, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_channels or min(x.shape[-2:]) < self.smallest:
            wanted = f"(B, {self.in_channels}, H, W) of at least {self.smallest} pixels a side"
            raise ShapeError(f"this PatchGAN takes {wanted}, got {tuple(x.shape)}")
        return self.net(x)
