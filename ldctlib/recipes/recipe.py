"""What a recipe is: everything that decides a checkpoint, as plain data and one function for the losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset

from ldctlib import checkpoints
from ldctlib.checkpoints import Checkpoint
from ldctlib.data.collection import Collection
from ldctlib.errors import CheckpointError
from ldctlib.pipelines import DiffusionPipeline, PipelineSpec
from ldctlib.training import LossFunction, TrainConfig, Update
from ldctlib.units import Range

HU_RANGE = Range(-1000.0, 1000.0)
"""Model units of networks that see images: soft tissue near 0, 100 HU at 0.1. Nothing is clipped."""

SMALL_BANKS: dict[str, Any] = dict(size=256, n_slices=16, n_photographs=16, n_noises=12)
"""Banks of a live training in a workshop: drawn in seconds."""

SHORT_BANKS: dict[str, Any] = dict(n_slices=128, n_photographs=64, n_noises=96)
"""Banks of a training of a quarter of an hour."""

ANATOMIES = ("abdomen", "thorax")
"""Of the phantoms that LEDA's denoisers and those they are compared with see."""

PAPER_TRAIN: dict[str, Any] = dict(batch_size=16, accumulation=4, schedule="constant", precision="auto", log_every=100)
PAPER_DATA: dict[str, Any] = dict(patch=512, size=704, photograph_share=0.0)
"""MAN's section 3.2: batches of 16 whole slices at a constant rate."""


@dataclass(frozen=True)
class Network:
    """A network that a recipe trains.

    ``start`` names the recipe whose result it starts from; parameters whose names begin with one of ``reinitialise``
    keep their own initialisation instead. A model that holds the other one as a part says so by ``taken_from(state)``.
    """

    model: str  # a key of checkpoints.MODELS
    config: dict[str, Any]  # the model's keyword arguments
    start: str | None = None
    reinitialise: tuple[str, ...] = ()

    def build(self, seed: int) -> nn.Module:
        """The network, initialised from the seed; one with ``start_as_identity`` begins by returning its input."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = checkpoints.model_class(self.model)(**self.config)
            return model.start_as_identity() if hasattr(model, "start_as_identity") else model

    def place(self, model: nn.Module, start: Checkpoint) -> list[str]:
        """Load what fits of the weights that the network starts from; returns the names that were initialised anew.

        Raises CheckpointError if a parameter does not fit that is not among ``reinitialise``.
        """
        own, given = model.state_dict(), start.state_dict
        given = model.taken_from(given) if hasattr(model, "taken_from") else given
        anew = [name for name in own if name.startswith(self.reinitialise)]
        taken = {name: t for name, t in given.items() if not name.startswith(self.reinitialise)}
        checkpoints.place(model, taken | {name: own[name] for name in anew}, where=start.path)
        return anew


class TrainingData(Protocol):
    """What a stage learns from: a dataclass of plain values, since a checkpoint's header records it."""

    @property
    def embedded(self) -> str:
        """What the stream without a collection is made of, for a checkpoint's header."""

    def open(self, collection: Collection | None = None) -> Dataset:
        """The endless stream of samples, of phantoms or of a collection's scans."""

    def tiny(self, multiple: int = 1) -> TrainingData:
        """The same with small patches that are drawn at once, their sides multiples of ``multiple``."""


@dataclass(frozen=True)
class Stage:
    """A part of a training with its own rate and its own stream of samples."""

    name: str
    train: TrainConfig
    data: TrainingData
    options: dict[str, Any] = field(default_factory=dict)  # what the recipe's updates take in this stage
    needs: tuple[str, ...] = ()  # checkpoints that must be there before: trained in the same folder, or shipped
    sides: int = 1  # its networks take images with sides of multiples of this
    epochs: int | None = None  # on a collection: steps = epochs * slices / batch, where the paper counts so


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a checkpoint, at one profile."""

    networks: dict[str, Network]  # the first is what is saved
    stages: tuple[Stage, ...]
    updates: Callable[[Context], LossFunction | Sequence[Update]]
    hu_range: Range | None = HU_RANGE
    intensity_range: Range | None = None  # of images in arbitrary units, in place of ``hu_range``
    output: str = "truth"  # what the network estimates: "truth" or "full dose"
    pipeline: PipelineSpec | None = None  # of a diffusion model
    fit: Callable[[Recipe], Recipe] | None = None  # gives networks the sizes that changed options ask for
    prepare: Callable[[Context, Path], Dataset] | None = None
    """(context, folder for files that may be used again) -> what the losses are given in place of the stage's samples,
    such as their latents."""
    finish: Callable[[nn.Module, Recipe, Dataset], dict[str, Any]] | None = None
    """(averaged network, recipe, dataset) -> entries of its config that only the trained network can tell."""
    paper: str = ""  # where the published numbers are from
    budget_mib: float = 8.0  # of the shipped checkpoint

    @property
    def saved(self) -> Network:
        return next(iter(self.networks.values()))

    @property
    def scale(self) -> str:
        """What the images are in: "HU" or "arbitrary"."""
        return "HU" if self.intensity_range is None else "arbitrary"

    def needs(self, stage: Stage) -> tuple[str, ...]:
        """Checkpoints that the stage uses, frozen."""
        return tuple(dict.fromkeys((*(self.pipeline.uses if self.pipeline else ()), *stage.needs)))


@dataclass(frozen=True)
class Context:
    """What a stage's losses are made from: the recipe, the networks in training, and those that it needs."""

    recipe: Recipe
    stage: Stage
    networks: Mapping[str, nn.Module]
    needed: Mapping[str, Checkpoint]
    device: torch.device
    samples: Dataset | None = None  # what the stage learns from
    described: Mapping[str, Any] = field(default_factory=dict)  # the same in words

    @property
    def network(self) -> nn.Module:
        """The network that is saved."""
        return next(iter(self.networks.values()))

    def frozen(self, name: str) -> nn.Module:
        """A needed network on the device, without gradients."""
        if name not in self.needed:
            raise CheckpointError(f"stage {self.stage.name!r} does not say that it needs {name}")
        return checkpoints.build(self.needed[name], map_location=self.device).requires_grad_(False)

    def pipeline(self) -> DiffusionPipeline:
        """The diffusion pipeline around the first network, as a checkpoint of this recipe is sampled with."""
        precision = "auto" if self.stage.train.precision == "auto" else "float32"
        recipe, options = self.recipe, dict(device=self.device, precision=precision, scale=self.recipe.scale)
        image_range = recipe.intensity_range or recipe.hu_range
        return DiffusionPipeline(self.network, recipe.pipeline, image_range, self.needed, **options)
