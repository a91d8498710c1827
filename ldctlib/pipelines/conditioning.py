"""What a diffusion network is given of a low-dose image, made once for all steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.diffusion.process import noise_like
from ldctlib.errors import ParameterError
from ldctlib.operators import BlockMean
from ldctlib.pipelines.grid import LatentGrid, PixelGrid
from ldctlib.pipelines.regression import RegressionNetwork

SOURCES = ("ldct", "estimate", "low_resolution")
"""What an input of the network is made of: the low-dose image on the grid, a regression network's estimate on it, or
the low resolution, upsampled by bicubic interpolation."""

LOW_RESOLUTION = 4
"""Pixels a side whose mean is one pixel of the low resolution: 512 x 512 -> 128 x 128, as Dn-Dp's for the abdomen."""

MEANS = BlockMean(LOW_RESOLUTION)
"""``A`` makes the low resolution of an image, ``A_dagger`` an image of it by repeating each pixel."""


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
    estimator : the regression network; without one the estimate is the low-dose image, or what super-resolution has.
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
        chosen = {s for sources in inputs.values() for s in sources}
        self.low_resolution = "low_resolution" in chosen
        if self.low_resolution and (chosen != {"low_resolution"} or grid.multiple % LOW_RESOLUTION):
            raise ParameterError(
                f"super-resolution is conditioned on the low resolution alone, and sizes are multiples of "
                f"{LOW_RESOLUTION}; got {', '.join(sorted(chosen))} and multiples of {grid.multiple}"
            )

    @torch.no_grad()
    def __call__(self, ldct_hu: Tensor) -> Conditions:
        ldct = self.grid.encode(ldct_hu)
        estimate = ldct if self.estimator is None else self.grid.encode(self.estimator.apply_hu(ldct_hu))
        sources = {"ldct": ldct, "estimate": estimate}
        if self.low_resolution:
            low = MEANS.A(ldct)
            # "antialias" chooses Keys's cubic (a = -1/2), which continues lines; the other has a = -3/4
            cubic = dict(mode="bicubic", antialias=True)
            estimate = sources["low_resolution"] = F.interpolate(low, scale_factor=LOW_RESOLUTION, **cubic)
        return Conditions(
            estimate, {name: torch.cat([sources[s] for s in chosen], dim=1) for name, chosen in self.inputs.items()}
        )


def with_low_resolution_noise(x_hu: Tensor, most_hu: float, generator: torch.Generator | None) -> Tensor:
    """Images whose low resolution has white noise: conditioning augmentation (Ho et al. 2022, Cascaded diffusion, §4).

    A super-resolution model learns from clean images, and is given what a model of low resolution made. The noise's
    standard deviation is drawn for each image, uniform from 0 to ``most_hu``. Nothing is drawn at 0.
    """
    if not most_hu:
        return x_hu
    low = MEANS.A(x_hu)
    share = torch.rand(len(low), 1, 1, 1, generator=generator, device=None if generator is None else generator.device)
    return x_hu + MEANS.A_dagger(most_hu * share.to(low) * noise_like(low, generator))
