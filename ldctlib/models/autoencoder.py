"""The perceptually optimised autoencoder of MAN (section 2.1): an image and back through a small Gaussian latent.

Two ranges of latents: *raw* ones, in which the posterior lives and which the decoder takes, and *scaled*
ones, of about unit variance, in which diffusion works: ``scaled = raw * latent_scale``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import fit
from ldctlib.models.blocks import Downsample, ResBlock, SelfAttention, Upsample, group_norm, heads_for

INITIAL_LOGVAR = -6.0
"""Log variance of an untrained posterior, std 0.05: details first, regularisation later, as the ramps intend."""


class Posterior(NamedTuple):
    """A diagonal Gaussian over raw latents, q(z | x) = N(mean, exp(logvar)); both (B, c, h, w)."""

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """mean + std * noise, differentiable in both; drawn on the generator's device in float32."""
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device)
        return self.mean + self.std * noise.to(self.mean)


class Layout(NamedTuple):
    """What encoder and decoder share."""

    widths: Sequence[int]  # channels a level, finest first
    attention: Sequence[bool]  # a level
    blocks: int  # a level of the encoder; the decoder has one more
    num_head_channels: int | None
    groups: int
    middle: bool | None = None  # attention in the middle; None: as at the deepest level

    def level(self, c: int, width: int, blocks: int, attend: bool) -> nn.Sequential:
        """Residual blocks with self-attention between them, or after a single one."""
        layers: list[nn.Module] = []
        for i in range(blocks):
            layers.append(ResBlock(c if i == 0 else width, width, groups=self.groups))
            if attend and (i < blocks - 1 or blocks == 1):
                layers.append(SelfAttention(width, heads_for(width, 1, self.num_head_channels), self.groups))
        return nn.Sequential(*layers)

    def bottleneck(self, c: int) -> nn.Sequential:
        return self.level(c, c, 2, self.attention[-1] if self.middle is None else self.middle)

    def out(self, c: int, channels: int) -> nn.Sequential:
        return nn.Sequential(group_norm(c, self.groups), nn.SiLU(), nn.Conv2d(c, channels, 3, padding=1))


class Encoder(nn.Module):
    """(B, in, H, W) -> (B, out, H / 2^n, W / 2^n) for n + 1 levels."""

    def __init__(self, in_channels: int, out_channels: int, layout: Layout):
        super().__init__()
        c = layout.widths[0]
        self.conv_in = nn.Conv2d(in_channels, c, 3, padding=1)
        self.levels, self.downs = nn.ModuleList(), nn.ModuleList()
        for width, attend in zip(layout.widths, layout.attention, strict=True):
            if self.levels:
                self.downs.append(Downsample(c))
            self.levels.append(layout.level(c, width, layout.blocks, attend))
            c = width
        self.middle = layout.bottleneck(c)
        self.out = layout.out(c, out_channels)

    def features(self, x: Tensor) -> list[Tensor]:
        """The output of every level, finest first, the middle's instead of the last's."""
        h = self.conv_in(x)
        outputs = []
        for i, level in enumerate(self.levels):
            h = level(self.downs[i - 1](h) if i else h)
            outputs.append(h)
        return outputs[:-1] + [self.middle(h)]

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x)[-1])


class Decoder(nn.Module):
    """The encoder's mirror image. With ``sketched`` its last level sees a sketch of the output, too."""

    def __init__(self, in_channels: int, out_channels: int, layout: Layout, *, sketched: bool = False):
        super().__init__()
        c = layout.widths[-1]
        self.conv_in = nn.Conv2d(in_channels, c, 3, padding=1)
        self.middle = layout.bottleneck(c)
        self.levels, self.ups = nn.ModuleList(), nn.ModuleList()
        for width, attend in zip(layout.widths[::-1], layout.attention[::-1], strict=True):
            if self.levels:
                self.ups.append(Upsample(c))
            self.levels.append(layout.level(c, width, layout.blocks + 1, attend))
            c = width
        self.out = layout.out(c, out_channels)
        entering = layout.widths[:2][-1]  # channels that the last level is given
        self.sketch = nn.Conv2d(out_channels, entering, 3, padding=1) if sketched else None

    def forward(self, z: Tensor, sketch: Tensor | None = None) -> Tensor:
        h = self.middle(self.conv_in(z))
        for i, level in enumerate(self.levels):
            h = self.ups[i - 1](h) if i else h
            if self.sketch is not None and i == len(self.levels) - 1:
                h = h + self.sketch(sketch)
            h = level(h)
        return self.out(h)


class Autoencoder(nn.Module):
    """MAN's autoencoder: residual down and up blocks, self-attention at the deep levels, a VAE bottleneck.

    ``forward(x, generator=g)`` maps (B, 1, H, W) in model range to the reconstruction and the
    :class:`Posterior`: a sample of it is decoded, or its mean without a generator.

    width, channel_mult : channels of level i are ``width * channel_mult[i]``; every level but the last halves H and W.
    latent_channels : c of the latent.
    blocks : residual blocks a level of the encoder; one more in the decoder.
    attention_at : downsampling factors with self-attention, counted as in :class:`~ldctlib.models.unet.UNet`,
        from the first level; the deepest level's covers the bottleneck too. () makes it purely convolutional.
    num_head_channels : channels of an attention head; None for a single head.
    stem : side of a space-to-depth block at the input and depth-to-space at the output. 1 is the paper's; 2
        takes the full resolution out of the network, which is most of its cost.
    shortcut : a linear path past the network, as in residual autoencoding (Chen et al. 2025, DC-AE, section 3.2):
        the lowest cosines of every f x f block, learnable, so that training starts from a block transform
        instead of from nothing. The network adds what is not linear. False is the paper's.
    lapped : filter that path across the blocks' borders, so that it overlaps (:class:`BlockBorders`), and show what it
        synthesises to the decoder's last level. Blocks alone would be seen wherever neighbouring latents err apart, as
        in a diffusion model's draws.
    latent_scale : factor from raw to scaled latents, kept in the checkpoint's config: see :meth:`fit_latent_scale`.
    norm_groups : groups of every GroupNorm.

    :attr:`factor` f = stem * 2^(levels - 1) is the paper's downsampling; f = 4 or 8 with 3 or 4 levels. Any H and W
    will do: the encoder pads at the bottom and the right to a multiple of f, and ``decode(z, size)`` crops. The latent
    of an image padded by the caller to a larger multiple (for the U-Net's sake) is decoded the same way.
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: int = 128,
        channel_mult: Sequence[int] = (1, 2, 4),
        latent_channels: int = 3,
        blocks: int = 2,
        attention_at: Sequence[int] = (4,),
        *,
        num_head_channels: int | None = None,
        stem: int = 1,
        shortcut: bool = False,
        lapped: bool = False,
        latent_scale: float = 1.0,
        norm_groups: int = 32,
    ):
        super().__init__()
        factors = [2**i for i in range(len(channel_mult))]
        if odd := sorted(set(attention_at) - set(factors)):
            raise ParameterError(f"attention_at={odd}: this autoencoder has levels at factors {factors}")
        if lapped and not shortcut:
            raise ParameterError("lapped says how the shortcut's blocks meet: it needs shortcut=True")
        if not latent_scale > 0:
            raise ParameterError(f"latent_scale must be positive, got {latent_scale}")
        self.in_channels, self.latent_channels, self.stem = in_channels, latent_channels, stem
        self.latent_scale = float(latent_scale)
        self.factor = stem * factors[-1]
        widths, attention = [width * m for m in channel_mult], [f in attention_at for f in factors]
        layout = Layout(widths, attention, blocks, num_head_channels, norm_groups)
        self.encoder = Encoder(in_channels * stem**2, 2 * latent_channels, layout)
        self.decoder = Decoder(latent_channels, in_channels * stem**2, layout, sketched=lapped)
        head = self.encoder.out[-1]  # its second half is the log variance
        nn.init.zeros_(head.weight[latent_channels:])
        nn.init.constant_(head.bias[latent_channels:], INITIAL_LOGVAR)
        self.analysis = self.synthesis = None
        self.borders = BlockBorders(self.factor) if lapped else nn.Identity()
        if shortcut:
            self.analysis, self.synthesis = linear_path(
                self.factor, latent_channels, in_channels, instead_of=(head, self.decoder.out[-1])
            )

    def encode(self, x: Tensor) -> Posterior:
        """(B, 1, H, W) in model range -> posterior over raw latents, each (B, c, ceil(H / f), ceil(W / f))."""
        mean, logvar = self.encoder(self._stem(x)).to(x.dtype).chunk(2, dim=1)
        if self.analysis is not None:
            mean = mean + self.analysis(self.borders(self._padded(x))).to(x.dtype)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))  # exp stays finite; far outside what training reaches

    def decode(self, z: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Raw latents (B, c, h, w) -> image (B, 1, h f, w f) in model range, cropped to ``size`` if given."""
        if z.ndim != 4 or z.shape[1] != self.latent_channels:
            raise ShapeError(f"this decoder takes (B, {self.latent_channels}, h, w), got {tuple(z.shape)}")
        h, w = (n * self.factor for n in z.shape[-2:])
        rows, columns = size or (h, w)
        if not (0 < rows <= h and 0 < columns <= w):
            raise ShapeError(f"a latent of {tuple(z.shape[-2:])} decodes to {(h, w)}, which lacks part of {size}")
        raw = z.to(self.decoder.conv_in.weight.dtype)
        sketch = None if self.synthesis is None else self.synthesis(raw)
        shown = None
        if self.decoder.sketch is not None:
            sketch = self.borders.inverse(sketch)
            shown = F.pixel_unshuffle(sketch, self.stem)
        y = F.pixel_shuffle(self.decoder(raw, shown).to(z.dtype), self.stem)
        if sketch is not None:
            y = y + sketch.to(z.dtype)
        return y[..., :rows, :columns]

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Posterior]:
        posterior = self.encode(x)
        z = posterior.mean if generator is None else posterior.sample(generator)
        return self.decode(z, tuple(x.shape[-2:])), posterior

    def features(self, x: Tensor) -> list[Tensor]:
        """The encoder's feature maps, finest first, for a perceptual distance."""
        return self.encoder.features(self._stem(x))

    def scale(self, z: Tensor) -> Tensor:
        """Raw latents to the scaled ones that diffusion sees."""
        return z * self.latent_scale

    def unscale(self, z: Tensor) -> Tensor:
        """The inverse of :meth:`scale`, for :meth:`decode`."""
        return z / self.latent_scale

    @torch.no_grad()
    def fit_latent_scale(self, z: Tensor) -> float:
        """Set :attr:`latent_scale` to 1 / std of raw posterior *samples* (Rombach et al. 2022, section 4.3.2).

        z (B, c, h, w), one batch of training images; put the result into the checkpoint's config.
        """
        std = z.double().std().item()
        if not (std > 0 and std < float("inf")):
            raise ParameterError(f"latents of standard deviation {std} cannot be scaled to unit variance")
        self.latent_scale = 1 / std
        return self.latent_scale

    def _stem(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape:
            raise ShapeError(f"this autoencoder takes (B, {self.in_channels}, H, W), got {tuple(x.shape)}")
        return F.pixel_unshuffle(self._padded(x), self.stem)

    def _padded(self, x: Tensor) -> Tensor:
        return fit(x.to(self.encoder.conv_in.weight.dtype), self.factor)


class BlockBorders(nn.Module):
    """A fixed orthogonal filter across blocks' borders: before the analysis and, transposed, after the synthesis.

    (B, C, H, W) -> the same, sides of multiples of ``size``. With the blocks' cosines it makes a lapped orthogonal
    transform, whose basis functions reach half a block into each neighbour and fall to zero there (Malvar & Staelin
    1989; as a filter in front of blocks: Tran, Liang & Tu 2003). At the image's own border nothing is filtered.
    """

    def __init__(self, size: int):
        super().__init__()
        if size % 2:
            raise ParameterError(f"blocks of {size} pixels have no half: a lapped transform needs an even factor")
        self.size = size
        self.register_buffer("matrix", border_filter(size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._along(self._along(x, self.matrix).mT, self.matrix).mT

    def inverse(self, x: Tensor) -> Tensor:
        return self._along(self._along(x, self.matrix.T).mT, self.matrix.T).mT

    def _along(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Along the last axis."""
        half, n = self.size // 2, x.shape[-1]
        if n <= self.size:
            return x
        first, inner, last = x.split([half, n - self.size, half], dim=-1)
        inner = inner.unflatten(-1, (-1, self.size)) @ matrix.T.to(x.dtype)
        return torch.cat([first, inner.flatten(-2), last], dim=-1)


def border_filter(size: int) -> Tensor:
    """The orthogonal (size, size) matrix across a border: half of its samples lie on each side."""
    n = size // 2
    k, j = torch.arange(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64)
    dct2 = (2 / n) ** 0.5 * torch.cos(torch.pi / n * (j + 0.5) * k[:, None])
    dct2[0] /= 2**0.5
    dct4 = (2 / n) ** 0.5 * torch.cos(torch.pi / n * (j + 0.5) * (k[:, None] + 0.5))
    one, zero = torch.eye(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    mirror = one.flip(1)
    butterfly = torch.cat([torch.cat([one, mirror], 1), torch.cat([mirror, -one], 1)])
    inner = torch.cat([torch.cat([one, zero], 1), torch.cat([zero, mirror @ dct2.T @ dct4 @ mirror], 1)])
    return (0.5 * butterfly @ inner @ butterfly).float()


def linear_path(
    size: int, count: int, channels: int, *, instead_of: tuple[nn.Conv2d, nn.Conv2d], views: int = 1
) -> tuple[nn.Conv2d, nn.ConvTranspose2d]:
    """Learnable analysis and synthesis of ``size`` x ``size`` blocks by :func:`low_cosines`.

    instead_of : the last layers of encoder and decoder, of which the first ``views * count`` channels and all begin at
        zero.
    views : of one image; each is analysed on its own, and the first comes back in the synthesis.
    """
    analysis = nn.Conv2d(views * channels, views * count, size, stride=size, groups=views, bias=False)
    synthesis = nn.ConvTranspose2d(count, channels, size, stride=size, bias=False)
    basis, gain = low_cosines(size, count, channels)
    with torch.no_grad():
        analysis.weight.copy_((basis * gain).repeat(views, 1, 1, 1))
        synthesis.weight.copy_(basis / gain)
        for conv, part in zip(instead_of, (slice(views * count), slice(None)), strict=True):
            conv.weight[part] = 0
            conv.bias[part] = 0
    return analysis, synthesis


def low_cosines(size: int, count: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    """The ``count`` lowest cosines of a block (orthonormal DCT-II) and a gain that evens their strengths.

    (count, channels, size, size) and (count, 1, 1, 1). Images have amplitudes that fall about as 1 / frequency; half
    of that, in logarithms, is evened out: a latent of one scale should neither drown in its means nor in its
    finest details.
    """
    if count > channels * size**2:
        raise ParameterError(f"a block of {size} x {size} has no {count} cosines for {channels} channels")
    k = torch.arange(size, dtype=torch.float64)
    dct = torch.cos(torch.pi * (k + 0.5) * k[:, None] / size) * (2 / size) ** 0.5
    dct[0] /= 2**0.5
    order = sorted(((a, b) for a in range(size) for b in range(size)), key=lambda ab: (ab[0] ** 2 + ab[1] ** 2, ab))
    basis = torch.zeros(count, channels, size, size)
    gain = torch.zeros(count, 1, 1, 1)
    for i in range(count):
        a, b = order[i // channels]
        basis[i, i % channels] = torch.outer(dct[a], dct[b])
        gain[i] = (((1 + a) * (1 + b)) ** 0.5) * (1.0 if (a, b) != (0, 0) else 0.5)
    return basis, gain
