"""A diffusion transformer on latents (DiT, Peebles & Xie 2023), conditioned as NA-Diff is (sections 3.1 to 3.5).

Published DiT weights load as they are; everything that they do not have lies under ``vector_…``, ``hint_…`` and
``conv_…``.
Maps are (B, C, h, w), tokens (B, N, D) in row-major order of the patches.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.models.blocks import timestep_embedding, zeroed

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
"""Depth, width and heads of the published sizes; patches are 2, 4 or 8."""

FUSIONS, HINT_MODES = ("concat", "sum"), ("add", "modulate")

TIME_CODE = 256


def published_size(name: str) -> dict[str, int]:
    """What the name of a published size says, e.g. "DiT-L/4" (NA-Diff's), as keyword arguments of :class:`DiT`."""
    size, _, patch = name.removeprefix("DiT-").partition("/")
    if not name.startswith("DiT-") or size not in SIZES or patch not in ("2", "4", "8"):
        raise ParameterError(f"a size is DiT-S, -B, -L or -XL with patches /2, /4 or /8, e.g. DiT-L/4; got {name!r}")
    depth, width, heads = SIZES[size]
    return dict(patch_size=int(patch), hidden_size=width, depth=depth, num_heads=heads)


class DiT(nn.Module):
    """Noisy latents x_t and times t -> prediction: (B, C, h, w) -> (B, C, h, w), or (B, 2C, h, w).

    input_size : h = w of the grid whose positions are stored; other grids get theirs when they come.
    patch_size : latents a side of a token; h and w are multiples of it.
    in_channels : C.
    hidden_size, depth, num_heads : width D of the tokens, blocks, heads of the attention.
    mlp_ratio : inner width of a block's MLP over D.
    learn_sigma : C more channels for the variance; :func:`~ldctlib.models.unet.split_prediction` parts them.
    vectors, vector_dim : global conditions of an image, none, one or two (CLIP's vectors of the noise map and of the
        mask), and how many numbers each has, which should be about of unit variance. All go through one MLP rho:
        Linear, SiLU, Linear (Eq. 11).
    fuse : of two vectors, "concat": a second MLP eta of the same form from 2D to D (Eqs 12 and 13); or "sum" (Table 9).
    hint_channels : of a condition on the grid of x_t, which has a patch embedding of its own.
    hint_mode : "add": its tokens are added to those of x_t, from zero weights, so that a network begins as if it had no
        hint; "modulate": they and the positions are added to the time's embedding, and every token has its own
        modulation (pre-training, Eq. 2, read as Algorithm 1).
    class_labels : classes of a published network; there is one more row, of no class.
    conv_channels : None is the published network. A number K puts convolutions around the transformer, as U-ViT ends
        with one (Bao et al. 2023, section 3.2): tokens stand for K channels made from x_t, and give K channels, which
        convolutions join to those and turn into the prediction. A short training then learns at once that what lies on
        both sides of a patch's border is one image.

    :attr:`conditions` names the inputs besides x_t and t that it must be given. A condition can be dropped for each
    image (classifier-free guidance, or one condition of two): a learned null takes its place, and nothing is added.

    Times count from 1; published weights count from 0, see :func:`~ldctlib.diffusion.schedule.zero_based`.
    The prediction starts at exactly 0, and every block as the identity (adaLN-Zero). Works in float32, bfloat16 and
    under autocast; the output has the dtype of ``x_t``. Raises :class:`~ldctlib.errors.ParameterError` for a
    configuration that cannot be built, :class:`~ldctlib.errors.ShapeError` for inputs that do not fit.
    """

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 4,
        in_channels: int = 4,
        hidden_size: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        *,
        mlp_ratio: float = 4,
        learn_sigma: bool = False,
        vectors: int = 0,
        vector_dim: int | None = None,
        fuse: str = "concat",
        hint_channels: int | None = None,
        hint_mode: str = "add",
        class_labels: int | None = None,
        conv_channels: int | None = None,
    ):
        super().__init__()
        if input_size % patch_size:
            raise ParameterError(f"a grid of {input_size} a side has no whole patches of {patch_size}")
        if hidden_size % num_heads or hidden_size % 4:
            raise ParameterError(f"hidden_size is a multiple of 4 and of {num_heads=}, got {hidden_size}")
        if vectors not in (0, 1, 2) or (vectors > 0) != (vector_dim is not None):
            raise ParameterError(f"vectors is 0, 1 or 2, and vector_dim their width; got {vectors=}, {vector_dim=}")
        if fuse not in FUSIONS or hint_mode not in HINT_MODES:
            raise ParameterError(f"fuse is one of {FUSIONS}, hint_mode of {HINT_MODES}; got {fuse!r}, {hint_mode!r}")
        self.in_channels, self.factor, self.hidden_size = in_channels, patch_size, hidden_size
        self.vectors, self.vector_dim, self.fuse = vectors, vector_dim, fuse
        self.hint_channels, self.hint_mode, self.class_labels = hint_channels, hint_mode, class_labels
        self.conditions = tuple(n for n, given in {"vector": vectors, "hint": hint_channels}.items() if given)
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self.grid = (input_size // patch_size,) * 2

        self.conv_channels = conv_channels
        if conv_channels:
            self.conv_in = nn.Conv2d(in_channels, conv_channels, 3, padding=1)
            self.conv_join = nn.Conv2d(2 * conv_channels, conv_channels, 3, padding=1)
            self.conv_out = zeroed(nn.Conv2d(conv_channels, self.out_channels, 3, padding=1))
        self.x_embedder = _patch_embedding(conv_channels or in_channels, hidden_size, patch_size)
        self.register_buffer("pos_embed", positions(*self.grid, hidden_size, torch.get_default_device()).clone())
        self.t_embedder = nn.Sequential(OrderedDict(mlp=_mlp(TIME_CODE, hidden_size, std=0.02)))
        if class_labels is not None:
            table = nn.Embedding(class_labels + 1, hidden_size)
            nn.init.normal_(table.weight, std=0.02)
            self.y_embedder = nn.Sequential(OrderedDict(embedding_table=table))
        if vectors:
            self.vector_embedder = _mlp(vector_dim, hidden_size)
            for name, value in (("vector_mean", 0.0), ("vector_std", 1.0)):
                self.register_buffer(name, torch.full((vectors, vector_dim), value))
            self.vector_null = nn.Parameter(0.02 * torch.randn(vectors, hidden_size))
            if vectors == 2 and fuse == "concat":
                self.vector_fusion = _mlp(2 * hidden_size, hidden_size)
        if hint_channels:
            self.hint_embedder = _patch_embedding(hint_channels, hidden_size, patch_size)
            if hint_mode == "add":
                zeroed(self.hint_embedder)
            else:
                self.hint_null = nn.Parameter(0.02 * torch.randn(1, hidden_size))
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * (conv_channels or self.out_channels))
        if conv_channels:
            nn.init.xavier_uniform_(self.final_layer.linear.weight)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | float,
        vector: Tensor | None = None,
        hint: Tensor | None = None,
        *,
        dropped: Tensor | None = None,
        hint_dropped: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """The prediction for x_t (B, C, h, w) at t, raw times, (B,) or one number.

        vector : (B, vectors, vector_dim).
        hint : (B, hint_channels, h, w).
        dropped : bool (B, vectors), the vectors to do without; None for none of them.
        hint_dropped : bool (B,), the hints to do without.
        label : int64 (B,), with ``class_labels`` only; None for no class.
        """
        t = torch.as_tensor(t, device=x_t.device)
        self._check(x_t, t, vector, hint, dropped, hint_dropped, label)
        batch, _, h, w = x_t.shape
        grid, dtype = (h // self.factor, w // self.factor), self.pos_embed.dtype
        known = grid == self.grid
        pos = self.pos_embed if known else positions(*grid, self.hidden_size, x_t.device).to(dtype)

        seen = self.conv_in(x_t.to(dtype)) if self.conv_channels else x_t.to(dtype)
        x = _tokens(self.x_embedder(F.silu(seen) if self.conv_channels else seen)) + pos
        c = self.t_embedder(timestep_embedding(t.expand(batch), TIME_CODE).to(dtype))[:, None]
        if self.class_labels is not None:
            label = torch.full_like(t, self.class_labels, dtype=torch.long) if label is None else label
            c = c + self.y_embedder(label.expand(batch))[:, None]
        if vector is not None:
            c = c + self._fused(vector.to(dtype), dropped)[:, None]
        if hint is not None:
            tokens = _tokens(self.hint_embedder(hint.to(dtype)))
            gone = torch.zeros(batch, dtype=torch.bool, device=x.device) if hint_dropped is None else hint_dropped
            gone = gone[:, None, None]
            if self.hint_mode == "add":
                x = x + tokens.masked_fill(gone, 0)
            else:
                c = c + torch.where(gone, self.hint_null, tokens) + pos
        for block in self.blocks:
            x = block(x, c)
        y = unpatchify(self.final_layer(x, c), grid, self.factor)
        if self.conv_channels:
            y = self.conv_out(F.silu(self.conv_join(torch.cat([y, seen], dim=1))))
        return y.to(x_t.dtype)

    @torch.no_grad()
    def standardise(self, vectors: Tensor) -> None:
        """Take mean and standard deviation of each number of condition vectors (N, vectors, vector_dim) as rho's unit.

        An image encoder's vectors of noise maps, or of masks, are nearly one vector beside what tells them apart.
        """
        if not self.vectors or vectors.shape[1:] != self.vector_mean.shape:
            raise ShapeError(f"this DiT has vectors (N, {self.vectors}, {self.vector_dim}), got {tuple(vectors.shape)}")
        std, mean = torch.std_mean(vectors.float(), dim=0)
        self.vector_mean.copy_(mean)
        self.vector_std.copy_(std.clamp(min=1e-3 * float(std.mean().clamp(min=1e-6))))

    def _fused(self, vector: Tensor, dropped: Tensor | None) -> Tensor:
        """(B, vectors, vector_dim) -> what they add to the time's embedding, (B, D)."""
        y = self.vector_embedder((vector - self.vector_mean) / self.vector_std)
        # the null takes part in every training step, as several processes ask of a parameter
        gone = torch.zeros(y.shape[:2], dtype=torch.bool, device=y.device) if dropped is None else dropped
        y = torch.where(gone[..., None], self.vector_null, y)
        return self.vector_fusion(y.flatten(1)) if self.vectors == 2 and self.fuse == "concat" else y.sum(1)

    def _check(self, x_t, t, vector, hint, dropped, hint_dropped, label) -> None:
        if x_t.ndim != 4 or x_t.shape[1] != self.in_channels or any(n % self.factor or not n for n in x_t.shape[2:]):
            wanted = f"(B, {self.in_channels}, h, w) with h and w multiples of {self.factor}"
            raise ShapeError(f"this DiT takes {wanted}, got {tuple(x_t.shape)}: pad with image.fit and crop the result")
        batch, _, h, w = x_t.shape
        if t.ndim and t.shape != (batch,):
            raise ShapeError(f"t is one time or ({batch},), one for each image; got {tuple(t.shape)}")
        shapes = {
            "vector": (vector, (batch, self.vectors, self.vector_dim) if self.vectors else None),
            "hint": (hint, (batch, self.hint_channels, h, w) if self.hint_channels else None),
            "dropped": (dropped, (batch, self.vectors) if self.vectors else None),
            "hint_dropped": (hint_dropped, (batch,) if self.hint_channels else None),
            "label": (label, (batch,) if self.class_labels else None),
        }
        for name, (x, expected) in shapes.items():
            got = None if x is None else tuple(x.shape)
            if got != expected and (x is not None or name in ("vector", "hint")):
                raise ShapeError(f"{name} must be {expected} for this DiT and x_t {tuple(x_t.shape)}, got {got}")
            if x is not None and name.endswith("dropped") and x.dtype != torch.bool:
                raise ShapeError(f"{name} says yes or no of each condition: bool, not {x.dtype}")


class Block(nn.Module):
    """Self-attention, then an MLP; each after a modulated LayerNorm and before a gate (adaLN-Zero).

    x (B, N, D); c (B, D), or (B, 1, D), or (B, N, D) with a modulation of its own for every token. Starts as the
    identity.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4):
        super().__init__()
        inner = int(width * mlp_ratio)
        self.attn = Attention(width, heads)
        layers = dict(fc1=_linear(width, inner), act=nn.GELU(approximate="tanh"), fc2=_linear(inner, width))
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 6 * width)))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        codes = self.adaLN_modulation(c if c.ndim == 3 else c[:, None]).chunk(6, dim=-1)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = codes
        x = x + gate_attention * self.attn(modulate(x, shift_attention, scale_attention))
        return x + gate_mlp * self.mlp(modulate(x, shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """The numbers of every token's patch, from a modulated LayerNorm; starts at 0. Arguments as of :class:`Block`."""

    def __init__(self, width: int, numbers: int):
        super().__init__()
        self.linear = zeroed(nn.Linear(width, numbers))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 2 * width)))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c if c.ndim == 3 else c[:, None]).chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale))


class Attention(nn.Module):
    """Self-attention of tokens (B, N, D); ``qkv`` holds the queries of all heads, then the keys, then the values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = _linear(width, 3 * width), _linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, the norm without weights of its own."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """(B, rows * columns, patch * patch * C) -> (B, C, rows * patch, columns * patch).

    A token holds its patch row by row, and of each place all channels.
    """
    x = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, grid).permute(0, 5, 1, 3, 2, 4)
    return x.flatten(4).flatten(2, 3)


@lru_cache(maxsize=32)
def positions(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """Code of the places of a grid in row-major order, (1, rows * columns, width) float32; shared, not to be changed.

    Half of it tells the column, then half the row, each by [sin, cos] of the place's number times frequencies from 1
    down to 1 / 10,000 (He et al. 2022, MAE).
    """
    with torch.inference_mode(False):  # autograd refuses tensors made in inference mode
        # timestep_embedding has the cosines first
        row, column = (
            timestep_embedding(torch.arange(n, device=device), width // 2).roll(width // 4, dims=1)
            for n in (rows, columns)
        )
        code = [column.expand(rows, -1, -1), row[:, None].expand(-1, columns, -1)]
        return torch.cat(code, dim=-1).flatten(0, 1)[None]


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _linear(inputs: int, outputs: int, std: float | None = None) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.bias)
    nn.init.xavier_uniform_(layer.weight) if std is None else nn.init.normal_(layer.weight, std=std)
    return layer


def _mlp(inputs: int, width: int, std: float | None = None) -> nn.Sequential:
    return nn.Sequential(_linear(inputs, width, std), nn.SiLU(), _linear(width, width, std))


def _patch_embedding(channels: int, width: int, patch: int) -> nn.Sequential:
    """Key ``proj``; initialised as the matrix that it is."""
    conv = nn.Conv2d(channels, width, patch, stride=patch)
    nn.init.xavier_uniform_(conv.weight.data.flatten(1))
    nn.init.zeros_(conv.bias)
    return nn.Sequential(OrderedDict(proj=conv))
