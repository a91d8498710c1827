"""Blocks shared by the U-Net and the autoencoder: residual, resampling, attention and spatial transformer blocks.

Attribute names follow guided-diffusion (Dhariwal & Nichol 2021) and latent diffusion (Rombach et al. 2022),
so that state dicts published in their layouts load. All maps are (B, C, H, W), all token lists (B, N, C).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from ldctlib.errors import ParameterError, ShapeError


class Context(NamedTuple):
    """What cross-attention looks at."""

    tokens: Tensor  # (B, N, context_dim)
    grid: tuple[int, int] | None = None  # (rows, columns) if the tokens are a map in row-major order


def group_norm(channels: int, groups: int, eps: float = 1e-5) -> nn.GroupNorm:
    """GroupNorm that says which widths fit. 32 groups are the published layout; narrow networks need fewer,
    since one channel a group would erase every channel's mean contrast.
    """
    if channels % groups:
        fits = "choose widths that are multiples of norm_groups, or lower norm_groups"
        raise ParameterError(f"{channels} channels do not divide into {groups} groups: {fits}")
    return nn.GroupNorm(groups, channels, eps=eps)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all its parameters at 0: a residual branch that ends in it starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def heads_for(channels: int, num_heads: int, num_head_channels: int | None) -> int:
    """Attention heads at a width: of ``num_head_channels`` channels each if given, else ``num_heads``."""
    heads = num_heads if num_head_channels is None else channels // num_head_channels
    if heads < 1 or channels % heads or (num_head_channels and channels % num_head_channels):
        raise ParameterError(f"{channels} channels cannot be split evenly with {num_heads=}, {num_head_channels=}")
    return heads


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal code of timesteps: (B,) raw t, integer or not -> (B, dim) float32, ``[cos, sin]`` in that order.

    Frequencies are ``max_period ** (-k / (dim // 2))`` (Ho et al. 2020, with guided-diffusion's order); an
    odd dim gets a zero at its end.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


class Downsample(nn.Module):
    """Halve H and W, by a strided 3x3 convolution (key ``op``) or, if not ``learned``, by 2x2 means."""

    def __init__(self, channels: int, learned: bool = True):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if learned else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double H and W by repetition, followed by a 3x3 convolution (key ``conv``) if ``learned``."""

    def __init__(self, channels: int, learned: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice, around a shortcut; optionally steered by an embedding.

    emb_dim : width of the embedding; None builds a block without one.
    scale_shift : ``norm(h) (1 + scale) + shift`` (FiLM) instead of adding the embedding before the norm.
    resample : "up" or "down" changes the resolution of both branches by 2, without parameters; None keeps it.

    The last convolution starts at 0, so a block that keeps width and resolution starts as the identity.
    """

    def __init__(
        self, channels, out_channels, *, emb_dim=None, scale_shift=False, resample=None, dropout=0.0, groups=32
    ):
        super().__init__()
        self.scale_shift = scale_shift
        first = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.in_layers = nn.Sequential(group_norm(channels, groups), nn.SiLU(), first)
        self.resample = {"up": Upsample, "down": Downsample}[resample](channels, False) if resample else nn.Identity()
        if emb_dim is not None:
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, out_channels * (2 if scale_shift else 1)))
        last = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.out_layers = nn.Sequential(group_norm(out_channels, groups), nn.SiLU(), nn.Dropout(dropout), last)
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        if emb is None:
            h = self.out_layers(h)
        else:
            code = self.emb_layers(emb)[:, :, None, None]
            if self.scale_shift:
                scale, shift = code.chunk(2, dim=1)
                h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
            else:
                h = self.out_layers(h + code)
        return self.skip_connection(self.resample(x)) + h


class SelfAttention(nn.Module):
    """Residual self-attention over all positions of a map, guided-diffusion's ``AttentionBlock``.

    ``qkv`` holds q, k, v of the first head, then of the second, and so on: the *legacy* order, which every weight
    published in this layout has. (The other order has identical keys and gives other results.) Starts as the identity.
    """

    def __init__(self, channels: int, heads: int, groups: int = 32):
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        # (B, N, C) is a free view of a channels_last map, and a 1x1 convolution of it a matrix product
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = F.linear(tokens, self.qkv.weight[..., 0], self.qkv.bias)
        q, k, v = qkv.unflatten(2, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        out = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = F.linear(out, self.proj_out.weight[..., 0], self.proj_out.bias)
        return x + out.transpose(1, 2).unflatten(2, x.shape[-2:])


def rotate_by_position(x: Tensor, positions: Tensor, longest: float = 100.0) -> Tensor:
    """2-D rotary position code: (B, heads, N, d) and (N, 2) positions -> rotated (B, heads, N, d).

    Pairs of channels turn by position times a frequency, half of them along rows and half along columns, so
    that the product of a query and a key depends on their *displacement* alone (Su et al. 2021), whatever the
    image's size. Frequencies run from 1 to 1/longest radian per unit; d must be a multiple of 4.
    """
    count = x.shape[-1] // 4
    k = torch.arange(count, device=x.device, dtype=torch.float32)
    angles = (positions[:, :, None] * longest ** (-k / max(count - 1, 1))).flatten(1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def grid_positions(grid: tuple[int, int], span: tuple[int, int], device: torch.device) -> Tensor:
    """Centres of a grid's cells in row-major order, (N, 2), on an extent of ``span`` units."""
    centres = [(torch.arange(n, device=device) + 0.5) * (extent / n) for n, extent in zip(grid, span, strict=True)]
    return torch.cartesian_prod(*centres)


class TokenAttention(nn.Module):
    """Attention from tokens to tokens, latent diffusion's ``CrossAttention``: keys ``to_q, to_k, to_v, to_out.0``."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, x: Tensor, context: Tensor, positions: tuple[Tensor, Tensor] | None = None) -> Tensor:
        projected = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in projected)
        if positions is not None:
            q, k = rotate_by_position(q, positions[0]), rotate_by_position(k, positions[1])
        return self.to_out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """``a * gelu(b)`` of a doubled projection (Shazeer 2020)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.proj(x).chunk(2, dim=-1)
        return a * F.gelu(b)


class FeedForward(nn.Module):
    """The token-wise part of a transformer block; keys ``net.0.proj`` and ``net.2``."""

    def __init__(self, dim: int, dropout: float = 0.0):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Dropout(dropout), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward; each residual, after a LayerNorm."""

    def __init__(self, dim: int, context_dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn1 = TokenAttention(dim, dim, heads)
        self.attn2 = TokenAttention(dim, context_dim, heads)
        self.ff = FeedForward(dim, dropout)

    def forward(self, x: Tensor, context: Tensor, positions: tuple[Tensor, Tensor] | None = None) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context, positions)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks on a map's pixels as tokens, with cross-attention (Rombach et al. 2022, section 3.3).

    Where the context is a map (:class:`Context` with a grid), queries and keys carry rotary positions in units of the
    context's cells, so that a pixel can find its own place in the condition. Starts as the identity.
    """

    def __init__(
        self, channels: int, context_dim: int, heads: int, depth: int = 1, dropout: float = 0.0, groups: int = 32
    ):
        super().__init__()
        self.head_channels = channels // heads
        self.norm = group_norm(channels, groups, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        blocks = (TransformerBlock(channels, context_dim, heads, dropout) for _ in range(depth))
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        positions = None
        if context.grid is not None:
            if self.head_channels % 4:
                raise ShapeError(f"a context map needs heads of a multiple of 4 channels, got {self.head_channels}")
            positions = tuple(grid_positions(g, context.grid, x.device) for g in (tuple(x.shape[-2:]), context.grid))
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context.tokens, positions)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[-2:]))
