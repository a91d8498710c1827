"""The LLM-guided CT autoencoder of LEDA (Chen et al. 2024, section 2.1): a VQGAN whose codebook is a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.models.autoencoder import Decoder, Encoder, Layout, linear_path
from ldctlib.models.pyramid_quantiser import PYRAMID, PyramidQuantiser, Quantised
from ldctlib.units import Range

VQGAN_RANGE = Range(-1000.0, 2000.0, 0.0, 1.0)
"""What every VQGAN of this library sees (section 3.1). Values beyond it are not clipped."""


class Reconstruction(NamedTuple):
    image: Tensor  # (B, in_channels, H, W)
    quantised: Quantised


class VQGAN(nn.Module):
    """Encoder, 1x1 convolution to the width of the words, pyramid of words, 1x1 convolution back, decoder.

    ``forward`` maps (B, 1, H, W) in [0, 1] (:data:`VQGAN_RANGE`) to a :class:`Reconstruction`. The defaults are the
    published size: 7 residual blocks and one attention in the encoder, 12 and one in the decoder, 16-fold
    downsampling, and PubMedCLIP's 49,408 words of 512 numbers.

    width, channel_mult : channels of level i are ``width * channel_mult[i]``; every level but the last halves H and W.
    z_channels : of the encoder's output and the decoder's input.
    blocks : residual blocks a level of the encoder; one more in the decoder.
    codebook_size, embed_dim : V and C of the codebook, which :meth:`set_codebook` fills.
    learned : the codebook is a parameter (VQGAN), instead of frozen (LEDA).
    shortcut : channels of the features with a linear path past the network, as in
        :class:`~ldctlib.models.autoencoder.Autoencoder`: that many lowest cosines of every block. 0 is the paper's.
    windows : (low, high) in HU: the encoder also sees the image in these, black to white, and the linear path too. Of
        3000 HU organs are a few hundredths; without a window of their own they meet two or three words. () is the
        paper's.
    unshuffle : side of a space-to-depth block at the input and depth-to-space at the output; 1 is the paper's.
    num_head_channels : channels of an attention head; None for the published single head.
    norm_groups : groups of every GroupNorm.
    recipe : of the commitment, see :class:`~ldctlib.models.pyramid_quantiser.PyramidQuantiser`.

    :attr:`factor` is the downsampling, :attr:`multiple` what H and W must be multiples of to be quantised. Raises
    :class:`~ldctlib.errors.ShapeError` for other images and :class:`~ldctlib.errors.ParameterError` for sizes that
    cannot be built.
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: int = 64,
        channel_mult: Sequence[int] = (1, 1, 2, 2, 4),
        z_channels: int = 256,
        blocks: int = 1,
        *,
        codebook_size: int = 49_408,
        embed_dim: int = 512,
        learned: bool = False,
        shortcut: int = 0,
        windows: Sequence[Sequence[float]] = (),
        unshuffle: int = 1,
        num_head_channels: int | None = None,
        norm_groups: int = 32,
        recipe: str = "paper",
    ):
        super().__init__()
        if unshuffle < 1:
            raise ParameterError(f"unshuffle is 1 or more, got {unshuffle}")
        self.in_channels, self.unshuffle = in_channels, unshuffle
        self.windows = [Range(*window, 0.0, 1.0) for window in windows]
        views = 1 + len(self.windows)
        self.factor = unshuffle * 2 ** (len(channel_mult) - 1)
        self.multiple = self.factor * PYRAMID[0][0]
        widths, none = [width * m for m in channel_mult], [False] * len(channel_mult)
        layout = Layout(widths, none, blocks, num_head_channels, norm_groups, middle=True)
        self.encoder = Encoder(views * in_channels * unshuffle**2, z_channels, layout)
        self.decoder = Decoder(z_channels, in_channels * unshuffle**2, layout)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.quantiser = PyramidQuantiser(codebook_size, embed_dim, learned=learned, recipe=recipe)
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):
                module.eps = 1e-6
        self.analysis = self.synthesis = None
        if shortcut:
            if views * shortcut > min(z_channels, embed_dim):
                given = f"{shortcut} cosines of {views} view(s) of the image"
                raise ParameterError(f"shortcut: {given} do not fit {z_channels} channels and {embed_dim}")
            last = self.encoder.out[-1], self.decoder.out[-1]
            paths = linear_path(self.factor, shortcut, in_channels, instead_of=last, views=views)
            self.analysis, self.synthesis = paths
            for conv in (self.quant_conv, self.post_quant_conv):
                nn.init.dirac_(conv.weight)
                nn.init.zeros_(conv.bias)

    @property
    def last_layer(self) -> Tensor:
        """The weight in whose gradients the adaptive weight compares the losses."""
        return self.decoder.out[-1].weight

    def encode(self, x: Tensor) -> Tensor:
        """Continuous features after ``quant_conv``, in the codebook's unit: (B, 1, H, W) -> (B, C, H / f, W / f)."""
        self._check(x, self.factor, "")
        views = [window.to_model(VQGAN_RANGE.from_model(x)).clamp(0, 1) for window in self.windows]
        x = torch.cat([x, *views], dim=1).to(self.quant_conv.weight.dtype)
        z = self.encoder(F.pixel_unshuffle(x, self.unshuffle))
        if self.analysis is not None:
            blocks = self.analysis(x)
            z = z + F.pad(blocks, (0, 0, 0, 0, 0, z.shape[1] - blocks.shape[1]))
        return self.quant_conv(z) * self.quantiser.scale

    def quantise(self, x: Tensor) -> Quantised:
        """The words of an image, and the features on the way: (B, 1, H, W) with H and W multiples of ``multiple``."""
        stride = PYRAMID[0][0]
        self._check(x, self.multiple, f" ({stride} x {self.factor}) for words and LEDA-D")
        return self.quantiser(self.encode(x))

    def _check(self, x: Tensor, multiple: int, why: str) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels or any(n % multiple or not n for n in x.shape[-2:]):
            wanted = f"(B, {self.in_channels}, H, W) with H and W multiples of {multiple}{why}"
            raise ShapeError(f"this VQGAN takes {wanted}, got {tuple(x.shape)}: crop or pad it (ldctlib.image.fit)")

    def decode(self, z: Tensor) -> Tensor:
        """Features or words (B, C, h, w), in the codebook's unit -> image (B, 1, h f, w f)."""
        if z.ndim != 4 or z.shape[1] != self.post_quant_conv.in_channels:
            raise ShapeError(f"this decoder takes (B, {self.post_quant_conv.in_channels}, h, w), got {tuple(z.shape)}")
        h = self.post_quant_conv(z / self.quantiser.scale)
        y = F.pixel_shuffle(self.decoder(h), self.unshuffle)
        if self.synthesis is not None:
            y = y + self.synthesis(h[:, : self.synthesis.in_channels])
        return y.float()

    def forward(self, x: Tensor) -> Reconstruction:
        quantised = self.quantise(x)
        return Reconstruction(self.decode(quantised.z_q), quantised)

    def set_codebook(self, table: Tensor) -> None:
        """Take over a vocabulary's embeddings, (V, C); see :meth:`PyramidQuantiser.set_codebook`."""
        self.quantiser.set_codebook(table)

    @torch.no_grad()
    def move_features(
        self, z: Tensor, evenness: float = 0.5, stretch: float = 1.0, weights: Tensor | None = None
    ) -> None:
        """Turn, stretch and shift the features so that the cloud ``z`` of them comes to lie where the codewords are.

        z : features of training images, (B, C, h, w).
        evenness : 1 gives the features the codebook's covariance; 0 leaves the proportions of their principal axes,
            of which few are strong, so that they meet few words.
        stretch : the features' spread over the codewords'. In many dimensions a cloud of the same spread meets few.
        weights : (V,) of the codewords, such as how often each is right; by default all count alike.

        The principal axes of the features become those of the codebook, the strongest first, with its mean.
        ``post_quant_conv`` undoes it, so that decoding features gives the same images as before. A frozen codebook is
        otherwise far from what an encoder happens to produce.
        """
        scale, points = self.quantiser.scale, z.movedim(1, -1).flatten(0, -2).double() / self.quantiser.scale
        sides = []
        for cloud, counts in ((points, None), (self.quantiser.codebook.double() / scale, weights)):
            counts = cloud.new_ones(len(cloud)) if counts is None else counts.to(cloud)
            mean = counts @ cloud / counts.sum()
            variances, axes = torch.linalg.eigh((cloud - mean).T @ (counts[:, None] * (cloud - mean)) / counts.sum())
            axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()  # whatever the solver gave
            sides.append((mean, variances.clamp(min=0).sqrt(), axes))
        (mean_z, std_z, axes_z), (mean_e, std_e, axes_e) = sides
        if not std_z.any():
            raise ParameterError("features that are all the same have no principal axes")
        spread = stretch * std_e.norm()
        std_e = std_e.clamp(min=0.05 * std_e.max())  # few words span few dimensions: others are not squeezed to nothing
        wanted = std_z * (std_e / std_z.clamp(min=1e-3 * std_z.max())) ** evenness
        wanted = wanted * (spread / wanted.norm())
        stretch = torch.where(std_z > 1e-3 * std_z.max(), wanted / std_z, wanted.max() / std_z.max())
        turn, back = axes_e @ (stretch[:, None] * axes_z.T), axes_z @ (axes_e / stretch).T
        shift = mean_e - turn @ mean_z
        first, last = self.quant_conv, self.post_quant_conv
        weight = last.weight.squeeze().double() @ back
        last.bias.copy_(last.bias.double() - weight @ shift)
        last.weight.copy_(weight[..., None, None])
        first.bias.copy_(turn @ first.bias.double() + shift)
        first.weight.copy_((turn @ first.weight.squeeze().double())[..., None, None])
