"""What a diffusion network is given of a low-dose image, made once for all steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldctlib.errors import ParameterError
from ldctlib.pipelines.grid import LatentGrid, PixelGrid
from ldctlib.pipelines.regression import RegressionNetwork

SOURCES = ("ldct", "estimate")
"""What an input of the network is made of: the low-dose image on the grid, or a regression network's estimate on it."""


class Conditions(NamedTuple):
    """The conditions of a batch."""

    estimate: Tensor  # (B, c, h, w) on the grid: base of a residual process, start of a chain that begins mid-way
    inputs: dict[str, Tensor]  # the network's arguments: "concat", "context", "vector", "hint"

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditions:
        """The conditions with ``function`` applied to every tensor."""
        return Conditions(function(self.estimate), {name: function(x) for name, x in self.inputs.items()})


class Conditioning:
    """Low-dose images (B, 1, H, W) in HU -> :class:`Conditions`.

    inputs : the network's input -> its sources, concatenated along the channels.
    estimator : the regression network; without one the estimate is the low-dose image.
    """

    def __init__(
        self,
        grid: PixelGrid | LatentGrid,
        inputs: Mapping[str, Sequence[str]],
        estimator: RegressionNetwork | None = None,
    ):
        if unknown := {s for sources in inputs.values() for s in sources} - set(SOURCES):
            raise ParameterError(f"conditions are made of {', '.join(SOURCES)}; got {', '.join(sorted(unknown))}")
        self.grid, self.inputs, self.estimator = grid, dict(inputs), estimator

    @torch.no_grad()
    def __call__(self, ldct_hu: Tensor) -> Conditions:
        ldct = self.grid.encode(ldct_hu)
        estimate = ldct if self.estimator is None else self.grid.encode(self.estimator.apply_hu(ldct_hu))
        sources = {"ldct": ldct, "estimate": estimate}
        return Conditions(
            estimate, {name: torch.cat([sources[s] for s in chosen], dim=1) for name, chosen in self.inputs.items()}
        )
