"""What a recipe is: everything that decides a checkpoint, as plain data and one function for the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ldctlib.checkpoints import Checkpoint
from ldctlib.data.patches import PatchConfig
from ldctlib.training import TrainConfig
from ldctlib.units import Range

LossFunction = Callable[[nn.Module, Any, Any], Tensor | Mapping[str, Tensor]]

HU_RANGE = Range(-1000.0, 1000.0)
"""Model units of networks that see images: soft tissue near 0, 100 HU at 0.1. Nothing is clipped."""

SMALL_BANKS: dict[str, Any] = dict(size=256, slices=16, photographs=16, noises=12)
"""Banks of a live training in a workshop: drawn in seconds."""


@dataclass(frozen=True)
class Stage:
    """A part of a training with its own rate and its own stream of samples."""

    name: str
    train: TrainConfig
    patches: PatchConfig
    objective: dict[str, Any] = field(default_factory=dict)  # what the recipe's loss takes in this stage
    needs: tuple[str, ...] = ()  # checkpoints that must be there before: trained in ``out``, or shipped
    epochs: int | None = None  # on a collection: steps = epochs * slices / batch, where the paper counts so


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a checkpoint."""

    model: str  # a key of checkpoints.MODELS
    config: dict[str, Any]  # the model's keyword arguments
    stages: tuple[Stage, ...]
    loss: Callable[[Recipe, Stage, Mapping[str, Checkpoint]], LossFunction]  # given the checkpoints it needs
    range: Range = HU_RANGE
    schedule: dict[str, Any] | None = None  # of a diffusion model: name, T, prediction
    measure: Callable[[nn.Module, Recipe, Any], dict[str, Any]] | None = None
    """(averaged model, recipe, dataset) -> entries of ``config`` that only the trained model can tell."""
    notes: dict[str, Any] = field(default_factory=dict)  # goes into trained_on
