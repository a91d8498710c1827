"""One conditional U-Net for every diffusion model of this project.

The layout is guided-diffusion's (Dhariwal & Nichol 2021), with latent diffusion's spatial transformers
(Rombach et al. 2022) where a context is asked for: state dicts published in either layout load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.models import blocks
from ldctlib.models.blocks import Context, ResBlock, SpatialTransformer

RELEASED_CT_MR = dict(
    in_channels=3, model_channels=64, channel_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=3, attention_at=(16, 32)
)
"""The released CT and MR models of plug-and-play DDNM (bowang-lab/DPM-MedImgEnhance): 41,123,331 weights."""

GUIDED_DIFFUSION_256 = (
    RELEASED_CT_MR
    | dict(model_channels=256, num_res_blocks=2, attention_at=(8, 16, 32))
    | dict(num_head_channels=64, resblock_updown=True, learn_sigma=True)
)
"""guided-diffusion's unconditional 256x256 model."""


class TimestepSequential(nn.Sequential):
    """Layers in a row, each given what it takes besides the map."""

    def forward(self, x: Tensor, emb: Tensor, context: Context | None) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """Noisy images x_t and timesteps t -> prediction: (B, C, H, W) -> (B, C, H, W), or (B, 2C, H, W).

    in_channels : C, the channels of x_t and of the prediction.
    model_channels, channel_mult : width of level i is ``model_channels * channel_mult[i]``; every level but
        the last halves H and W, so H and W must be multiples of :attr:`factor`.
    num_res_blocks : residual blocks a level on the way down; one more on the way up.
    attention_at : downsampling factors (1, 2, 4, ...) of the levels with attention; the middle always has it.
        guided-diffusion's ``attention_resolutions`` are ``image_size / factor``.
    num_heads, num_head_channels : heads of attention; ``num_head_channels`` decides where it is given.
    scale_shift_norm : the timestep scales and shifts the normalised features instead of being added to them.
    resblock_updown : resample inside residual blocks instead of by strided convolutions.
    learn_sigma : C more channels for the variance (Nichol & Dhariwal 2021); see :func:`split_prediction`.
    out_channels : of the output, where it is not the prediction yet; None for C, or 2C with ``learn_sigma``.
    concat_channels : channels of a condition on the grid of x_t, concatenated behind it.
    context_dim : width of context tokens; spatial transformers then replace self-attention.
    context_channels : channels of a context *map* (needs ``context_dim``). A small strided convolution encodes it to
        tokens on the grid of the shallowest attention, and attention to it knows relative positions.
    transformer_depth : blocks in each spatial transformer.
    norm_groups : groups of every GroupNorm; 32 is the published value, small widths want fewer.
    gradient_checkpointing : recompute activations in the backward pass: less memory, about a third more time.

    :attr:`conditions` names the inputs besides x_t and t that it takes; :attr:`skip_channels` are the skips' widths.

    The prediction starts at exactly 0, and every block as the identity. Works in float32, bfloat16 and under
    autocast; the output has the dtype of ``x_t``. Raises :class:`~ldctlib.errors.ParameterError` for a
    configuration that cannot be built, :class:`~ldctlib.errors.ShapeError` for inputs that do not fit.
    """

    def __init__(
        self,
        in_channels: int = 1,
        model_channels: int = 64,
        channel_mult: Sequence[int] = (1, 2, 4),
        num_res_blocks: int = 2,
        attention_at: Sequence[int] = (4,),
        *,
        num_heads: int = 1,
        num_head_channels: int | None = None,
        scale_shift_norm: bool = True,
        resblock_updown: bool = False,
        learn_sigma: bool = False,
        out_channels: int | None = None,
        concat_channels: int = 0,
        context_dim: int | None = None,
        context_channels: int | None = None,
        transformer_depth: int = 1,
        dropout: float = 0.0,
        norm_groups: int = 32,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        self.factor = 2 ** (len(channel_mult) - 1)
        levels = [2**i for i in range(len(channel_mult))]
        if odd := sorted(set(attention_at) - set(levels)):
            raise ParameterError(f"attention_at={odd}: this U-Net has levels at downsampling factors {levels}")
        if context_channels is not None and context_dim is None:
            raise ParameterError("context_channels needs context_dim, the width of the tokens it is encoded to")
        self.in_channels, self.concat_channels = in_channels, concat_channels
        self.context_dim, self.context_channels = context_dim, context_channels
        inputs = {"concat": concat_channels, "context": context_dim}
        self.conditions = tuple(name for name, width in inputs.items() if width)
        self.model_channels = model_channels
        self.gradient_checkpointing = gradient_checkpointing

        emb_dim = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        if context_channels is not None:
            self.context_embed = _map_encoder(context_channels, context_dim, min(attention_at, default=self.factor))

        res = partial(ResBlock, emb_dim=emb_dim, scale_shift=scale_shift_norm, dropout=dropout, groups=norm_groups)

        def attend(channels: int) -> nn.Module:
            heads = blocks.heads_for(channels, num_heads, num_head_channels)
            if context_dim is None:
                return blocks.SelfAttention(channels, heads, norm_groups)
            if context_channels is not None and channels // heads % 4:
                raise ParameterError(f"a context map needs heads of a multiple of 4 channels, got {channels // heads}")
            return SpatialTransformer(channels, context_dim, heads, transformer_depth, dropout, norm_groups)

        widths = [model_channels * m for m in channel_mult]
        c = widths[0]
        self.input_blocks = nn.ModuleList(
            [TimestepSequential(nn.Conv2d(in_channels + concat_channels, c, 3, padding=1))]
        )
        skips = [c]
        for level, (factor, width) in enumerate(zip(levels, widths, strict=True)):
            for _ in range(num_res_blocks):
                self.input_blocks.append(
                    TimestepSequential(res(c, width), *([attend(width)] if factor in attention_at else []))
                )
                c = width
                skips.append(c)
            if level < len(widths) - 1:
                self.input_blocks.append(
                    TimestepSequential(res(c, c, resample="down") if resblock_updown else blocks.Downsample(c))
                )
                skips.append(c)

        self.skip_channels = tuple(skips)
        self.middle_block = TimestepSequential(res(c, c), attend(c), res(c, c))

        self.output_blocks = nn.ModuleList()
        for level, (factor, width) in reversed(list(enumerate(zip(levels, widths, strict=True)))):
            for i in range(num_res_blocks + 1):
                stage = TimestepSequential(
                    res(c + skips.pop(), width), *([attend(width)] if factor in attention_at else [])
                )
                c = width
                if level and i == num_res_blocks:
                    stage.append(res(c, c, resample="up") if resblock_updown else blocks.Upsample(c))
                self.output_blocks.append(stage)

        out_channels = out_channels or in_channels * (2 if learn_sigma else 1)
        last = blocks.zeroed(nn.Conv2d(c, out_channels, 3, padding=1))
        self.out = nn.Sequential(blocks.group_norm(c, norm_groups), nn.SiLU(), last)

    def forward(
        self, x_t: Tensor, t: Tensor | float, concat: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """x_t (B, C, H, W); t raw timesteps, (B,) or one number; concat (B, concat_channels, H, W); context
        tokens (B, N, context_dim), or a map (B, context_channels, H, W) where ``context_channels`` is set.
        """
        h, emb, attended = self.prepare(x_t, t, concat, context)
        h, skips = self.encode(h, emb, attended)
        return self.decode(h, skips, emb, attended).to(x_t.dtype)

    def prepare(
        self, x_t: Tensor, t: Tensor | float, concat: Tensor | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Context | None]:
        """The arguments of :meth:`encode`, in the network's dtype. Raises ShapeError for inputs that do not fit."""
        self._check(x_t, concat, context)
        dtype = self.time_embed[0].weight.dtype
        t = torch.as_tensor(t, device=x_t.device)
        if t.ndim and t.shape != (len(x_t),):
            raise ShapeError(f"t is one timestep or ({len(x_t)},), one for each image; got {tuple(t.shape)}")
        emb = self.time_embed(blocks.timestep_embedding(t.expand(len(x_t)), self.model_channels).to(dtype))
        h = x_t if concat is None else torch.cat([x_t, concat.to(x_t.dtype)], dim=1)
        return h.to(dtype), emb, self._context(context, dtype)

    def encode(
        self, h: Tensor, emb: Tensor, context: Context | None, hint: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Way down and middle; also the output of every input block, the first first. ``hint`` is added to that one."""
        skips = []
        for stage in self.input_blocks:
            h = self._run(stage, h, emb, context)
            if hint is not None and not skips:
                h = h + hint
            skips.append(h)
        return self._run(self.middle_block, h, emb, context), skips

    def decode(self, h: Tensor, skips: list[Tensor], emb: Tensor, context: Context | None) -> Tensor:
        """Way up, from what :meth:`encode` returned."""
        for stage, skip in zip(self.output_blocks, reversed(skips), strict=True):
            h = self._run(stage, torch.cat([h, skip], dim=1), emb, context)
        return self.out(h)

    def _run(self, stage: TimestepSequential, h: Tensor, emb: Tensor, context: Context | None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(stage, h, emb, context, use_reentrant=False)
        return stage(h, emb, context)

    def _context(self, context: Tensor | None, dtype: torch.dtype) -> Context | None:
        if context is None:
            return None
        if self.context_channels is None:
            return Context(context.to(dtype))
        encoded = self.context_embed(context.to(dtype))
        return Context(encoded.flatten(2).transpose(1, 2), tuple(encoded.shape[-2:]))

    def _check(self, x_t: Tensor, concat: Tensor | None, context: Tensor | None) -> None:
        if x_t.ndim != 4 or x_t.shape[1] != self.in_channels or any(n % self.factor or not n for n in x_t.shape[2:]):
            wanted = f"(B, {self.in_channels}, H, W) with H and W multiples of {self.factor}"
            raise ShapeError(f"this U-Net takes {wanted}, got {_shape(x_t)}: pad with image.fit and crop the result")
        batch, _, h, w = x_t.shape
        expected = (batch, self.concat_channels, h, w) if self.concat_channels else None
        if (None if concat is None else tuple(concat.shape)) != expected:
            raise ShapeError(f"concat must be {expected} for this U-Net, got {_shape(concat)}")
        if (context is None) != (self.context_dim is None):
            raise ShapeError(f"context must be {'given' if self.context_dim else 'None'} for this U-Net")
        if self.context_channels is not None:
            expected = (batch, self.context_channels, h, w)
        elif context is not None:  # any number of tokens
            expected = (batch, *context.shape[1:2], self.context_dim)
        if context is not None and tuple(context.shape) != expected:
            raise ShapeError(f"context must be {expected} for this U-Net, got {_shape(context)}")


def _map_encoder(channels: int, dim: int, factor: int) -> nn.Sequential:
    """(B, channels, H, W) -> (B, dim, H / factor, W / factor)."""
    layers: list[nn.Module] = [nn.Conv2d(channels, dim, 3, padding=1)]
    for _ in range(factor.bit_length() - 1):
        layers += [nn.SiLU(), nn.Conv2d(dim, dim, 3, stride=2, padding=1)]
    return nn.Sequential(*layers)


def _shape(x: Tensor | None) -> str:
    return "None" if x is None else str(tuple(x.shape))


def split_prediction(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """A U-Net's output as (prediction, v), where v is None without ``learn_sigma``.

    v, in [-1, 1], interpolates the log variance: a share (v + 1) / 2 of the way from the posterior's to
    beta's (Nichol & Dhariwal 2021, Eq. 15).
    """
    if output.shape[1] == channels:
        return output, None
    if output.shape[1] == 2 * channels:
        return tuple(output.chunk(2, dim=1))
    raise ShapeError(f"a U-Net for {channels} channels gives {channels} or {2 * channels}, got {output.shape[1]}")
