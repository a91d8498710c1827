"""The three-layer pyramid of tokens (SPAE: Yu et al. 2023, arXiv 2306.17842, section 3; LEDA, Fig. S1).

No position is pooled: each layer selects positions of one grid, every 16th, every 4th and all of them along an axis.
The masks nest, so that a position is quantised one, two or three times, and its token is the mean of its codewords.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError

PYRAMID = ((16, 7), (4, 3), (1, 0))
"""(stride, offset) along both axes of the positions of layers 1 to 3; on a 32 x 32 grid 4, 64 and 1024 of them."""

CHUNK = 2**25
"""Distances that exist at a time in a search: 128 MiB of float32, whatever the vocabulary."""


class Quantised(NamedTuple):
    """A grid of features (B, C, h, w) and what the pyramid makes of it; layer l selects a grid of (h_l, w_l)."""

    z: Tensor  # the continuous features
    z_q: Tensor  # mean codeword of every position, (B, C, h, w); its gradient passes straight to z
    embeddings: tuple[Tensor, ...]  # z_l, what layer l looks up: (B, C, h_l, w_l)
    indices: tuple[Tensor, ...]  # codewords of layer l: (B, h_l, w_l), integers
    commitment: Tensor  # a scalar that moves the features
    codebook_loss: Tensor  # the same scalar, which moves a learned codebook instead


def positions(grid: tuple[int, int]) -> tuple[tuple[slice, slice], ...]:
    """Rows and columns that each layer selects of a grid, the coarsest layer first.

    Raises :class:`~ldctlib.errors.ShapeError` unless both sides are multiples of 16: other grids would give the layers
    positions that are not evenly spread.
    """
    coarsest = PYRAMID[0][0]
    if any(n % coarsest or not n for n in grid):
        raise ShapeError(
            f"the token pyramid needs a grid with sides of multiples of {coarsest}, got {tuple(grid)}: crop or pad the "
            f"image so that its sides are multiples of {coarsest} times the encoder's downsampling"
        )
    return tuple((slice(offset, None, stride),) * 2 for stride, offset in PYRAMID)


class PyramidQuantiser(nn.Module):
    """Streaming average over the layers: (B, C, h, w) float -> :class:`Quantised`, computed in float32.

    z_1 = z; layer l finds the codeword e_l nearest to z_l among all; z_{l+1} = z_l + m_l (z - e_l); the result is the
    mean of a position's codewords, sum m_l e_l / n (SPAE, Eqs 1 to 3). It is not residual quantisation: every layer
    looks up features near z.

    size, dim : V and C of the codebook.
    learned : a parameter; otherwise a buffer, which no optimiser can move.
    recipe : of the commitment. "paper": sum over layers of ||z - sg(mean of the codewords so far)||^2 on the layer's
        positions. "released": partial sums divided by the *final* number of layers, averaged over the whole grid with
        zeros where the layer selects nothing, which also pulls the features of twice quantised positions towards halves
        of codewords.

    ``scale`` is a power of two near the root mean square of the codebook, for the layers around: they may work with
    numbers of about 1.
    """

    def __init__(self, size: int, dim: int, *, learned: bool = False, recipe: str = "paper"):
        super().__init__()
        if recipe not in ("paper", "released"):
            raise ParameterError(f"recipe is 'paper' or 'released', got {recipe!r}")
        if size < 2 or dim < 1:
            raise ParameterError(f"a codebook has at least 2 words of at least 1 number, got {size} and {dim}")
        self.recipe = recipe
        codebook = torch.randn(size, dim)
        if learned:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def set_codebook(self, table: Tensor) -> None:
        """Take over a table of embeddings, (V, C). Raises ShapeError for another size, ParameterError if not finite."""
        if table.shape != self.codebook.shape:
            raise ShapeError(f"this codebook is {tuple(self.codebook.shape)}, got a table of {tuple(table.shape)}")
        if not (torch.isfinite(table).all() and table.any()):
            raise ParameterError("a codebook must be finite and not all zero")
        self.codebook.copy_(table)
        self.scale.copy_(2.0 ** self.codebook.square().mean().sqrt().log2().round())

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the codeword of least squared distance to each vector: (N, C) -> (N,); the first of equal ones."""
        half_squares = self.codebook.square().sum(dim=1) / 2  # ||v - e||^2 / 2 = ||v||^2 / 2 + this - v . e
        rows = max(1, CHUNK // len(self.codebook))
        parts = (torch.addmm(half_squares, v, self.codebook.T, alpha=-1).argmin(dim=1) for v in vectors.split(rows))
        return torch.cat(list(parts))

    def forward(self, z: Tensor) -> Quantised:
        if z.ndim != 4 or z.shape[1] != self.codebook.shape[1]:
            raise ShapeError(f"this quantiser takes (B, {self.codebook.shape[1]}, h, w), got {tuple(z.shape)}")
        with torch.autocast(z.device.type, enabled=False):
            return self._quantise(z.float())

    def _quantise(self, z: Tensor) -> Quantised:
        layers = positions(tuple(z.shape[-2:]))
        final = z.new_zeros(z.shape[-2:])
        for rows, columns in layers:
            final[rows, columns] += 1
        z_l, total, count = z, torch.zeros_like(z), torch.zeros_like(final)
        embeddings, indices, commitment, codebook_loss = [], [], z.new_zeros(()), z.new_zeros(())
        for rows, columns in layers:
            here = (..., rows, columns)
            looked_up = z_l[here]
            found = self.nearest(looked_up.detach().movedim(1, -1).flatten(0, -2))
            found = found.view(looked_up.shape[:1] + looked_up.shape[2:])
            word = F.embedding(found, self.codebook).movedim(-1, 1)
            embeddings.append(looked_up)
            indices.append(found)
            total, count = total + _placed(word, z, here), count.clone()
            count[rows, columns] += 1
            if self.recipe == "paper":
                mean, target, share = total[here] / count[rows, columns], z[here], 1.0
            else:
                mean, target, share = total[here] / final[rows, columns], z[here], word.numel() / z.numel()
            commitment = commitment + share * F.mse_loss(target, mean.detach())
            codebook_loss = codebook_loss + share * F.mse_loss(mean, target.detach())
            z_l = z_l + _placed(z[here] - word.detach(), z, here)
        z_q = (total / final).detach() + (z - z.detach())  # exactly the mean, with the gradient of z
        return Quantised(z, z_q, tuple(embeddings), tuple(indices), commitment, codebook_loss)


def _placed(values: Tensor, like: Tensor, here: tuple) -> Tensor:
    """Zeros of the shape of ``like`` with ``values`` at some positions."""
    out = torch.zeros_like(like)
    out[here] = values
    return out
