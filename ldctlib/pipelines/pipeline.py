"""A diffusion model as a whole: network, process, grid and conditioning. What is trained is what is sampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldctlib import checkpoints
from ldctlib.checkpoints import Checkpoint
from ldctlib.diffusion import samplers
from ldctlib.diffusion.process import Generators, Process, noise_like, q_sample
from ldctlib.diffusion.samplers import Step
from ldctlib.errors import CheckpointError
from ldctlib.pipelines.conditioning import Conditioning, Conditions, with_low_resolution_noise
from ldctlib.pipelines.grid import LatentGrid, PixelGrid
from ldctlib.pipelines.regression import RegressionNetwork
from ldctlib.units import Range

PUBLISHED = "published:"
"""Begins the name of a model that its own library reads, from a hub or a folder, in place of a checkpoint's."""


@dataclass(frozen=True)
class PipelineSpec:
    """What a diffusion model is besides its network, as a recipe states it and a checkpoint's header records it."""

    process: dict[str, Any]  # diffusion.process.Process.to_spec
    autoencoder: str | None = None  # name of the checkpoint whose latents are the grid; None: pixels
    estimator: str | None = None  # name of the regression network's checkpoint
    conditions: dict[str, list[str]] = field(default_factory=dict)  # network input -> pipelines.conditioning.SOURCES
    clip: str | None = None  # name of the checkpoint that encodes images of conditions (pipelines.synthesis)
    cell: int = 1  # where the grid is pixels: image pixels a side of one of them (pipelines.synthesis)

    @property
    def uses(self) -> tuple[str, ...]:
        """Names of the checkpoints that the pipeline is built with; published models are not among them."""
        names = (self.autoencoder, self.estimator, self.clip)
        return tuple(name for name in names if name and not name.startswith(PUBLISHED))

    def to_dict(self) -> dict[str, Any]:
        """As headers record it: the last two only where they say something."""
        default = dict(clip=None, cell=1)
        return {name: value for name, value in asdict(self).items() if name not in default or value != default[name]}


class DiffusionPipeline:
    """A diffusion of clean images given low-dose ones, built from a recipe to train, from a checkpoint to sample.

    Outside the process everything is in the grid's own unit: :meth:`encode`, :meth:`decode`, the conditions, and
    ``x_t``, ``x0_hat`` and ``x0_prior`` of :meth:`steps`.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: PipelineSpec,
        image_range: Range | None,
        used: Mapping[str, Checkpoint],
        *,
        device: str | torch.device = "cpu",
        precision: str = "float32",
        output: str = "truth",
        scale: str = "HU",
    ):
        """``used`` holds the checkpoints of ``spec.uses``; ``precision`` is the estimator's; ``scale`` the images'."""
        self.network, self.spec, self.device, self.output = network, spec, torch.device(device), output
        self.process, self.scale = Process.from_spec(spec.process), scale
        if set(spec.conditions) != set(network.conditions):
            raise CheckpointError(
                f"{type(network).__name__} takes {', '.join(network.conditions) or 'no condition'}, and the pipeline "
                f"has {', '.join(spec.conditions) or 'none'} for it"
            )
        if spec.autoencoder is None:
            if image_range is None:
                raise CheckpointError("a diffusion on pixels needs the HU range of its model, or its intensity range")
            self.grid = PixelGrid(image_range, network.factor, scale)
        else:
            checkpoint = used[spec.autoencoder]
            autoencoder = checkpoints.build(checkpoint, map_location=self.device).requires_grad_(False)
            autoencoder.to(memory_format=torch.channels_last)
            self.grid = LatentGrid(autoencoder, checkpoint.range, network.factor)
            if self.grid.channels != network.in_channels:
                raise CheckpointError(
                    f"{checkpoint.path}: its latents have {self.grid.channels} channels and this U-Net takes "
                    f"{network.in_channels}: train {spec.autoencoder} of the same profile into the same folder first"
                )
        estimator = None
        if spec.estimator is not None:
            estimator = RegressionNetwork.from_checkpoint(used[spec.estimator], device=self.device, precision=precision)
        self.condition = Conditioning(self.grid, spec.conditions, estimator)

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, device: str | torch.device = "cpu") -> DiffusionPipeline:
        """The trained model of a checkpoint. The networks that it uses are found by name and hash, beside it first."""
        checkpoint = checkpoints.load(path, map_location=device)
        if checkpoint.pipeline is None:
            raise CheckpointError(f"{path}: records no diffusion process: it is no diffusion model")
        spec = PipelineSpec(**checkpoint.pipeline)
        used = {}
        for name in spec.uses:
            found = checkpoints.find(name, sha256=checkpoint.uses[name], folders=[checkpoint.path.parent])
            used[name] = checkpoints.load(found, map_location=device)
        network = checkpoints.build(checkpoint, map_location=device).to(memory_format=torch.channels_last)
        options = dict(device=device, output=checkpoint.output, scale=checkpoint.scale)
        return cls(network, spec, checkpoint.hu_range or checkpoint.intensity_range, used, **options)

    def encode(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) in the images' scale -> the grid."""
        return self.grid.encode(x.to(self.device))

    def decode(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """The grid -> (B, 1, *size) in the images' scale."""
        return self.grid.decode(x, tuple(size))

    def loss(
        self,
        network: nn.Module,
        batch: Mapping[str, Tensor],
        generator: torch.Generator,
        *,
        noise_draws: int = 1,
        low_resolution_noise_hu: float = 0.0,
    ) -> Tensor:
        """The process's loss on a training batch with "target_hu", and "ldct_hu" where it has conditions.

        Images in arbitrary units are the batch's "target".

        noise_draws : times and noises for each image, whose encodings cost more than a training step.
        low_resolution_noise_hu : most noise of the low resolution that super-resolution is conditioned on.
        """
        with torch.no_grad():
            x0 = self.grid.encode(batch["target_hu" if self.scale == "HU" else "target"], generator)
        conditions = Conditions(x0, {})  # a prior sees clean images alone
        if self.spec.conditions or self.process.residual:
            low_resolution = self.condition.low_resolution  # of the clean image itself
            given = batch["target_hu" if low_resolution else "ldct_hu"]
            conditions = self.condition(with_low_resolution_noise(given, low_resolution_noise_hu, generator))
        if noise_draws > 1:
            # not repeat_interleave: times are an even grid along the batch, and an image's shall be far apart
            x0 = x0.repeat(noise_draws, 1, 1, 1)
            conditions = conditions.map(lambda x: x.repeat(noise_draws, 1, 1, 1))
        estimate = conditions.estimate if self.process.residual else None
        return self.process.loss(lambda x_t, t: network(x_t, t, **conditions.inputs), x0, estimate, generator=generator)

    def predictor(self, conditions: Conditions):
        """eps(x_t, t) with the conditions bound; x_t is in the unit of the process's chain."""
        return self.process.predictor(
            lambda x_t, t: self.network(x_t, t, **conditions.inputs),
            conditions.estimate if self.process.residual else None,
        )

    def steps(
        self,
        ldct: Tensor | Conditions,
        *,
        sampler: str = "ddim",
        steps: int | None = None,
        start: int | None = None,
        spacing: str = "trailing",
        times: Sequence[int] | None = None,
        num_samples: int = 1,
        temperature: float = 1.0,
        generator: Generators = None,
        **options,
    ) -> Iterator[Step]:
        """The sampler's steps, on the grid; ``options`` go to the sampler.

        ldct : (B, 1, H, W) in HU, or its conditions where they were made before.
        start : the noisiest time. Below T the chain starts from the noised estimate; None starts from noise at T.
        steps : network evaluations; by default 30, or one at each time that the process was trained at where those are
            few (Fast-DDPM).
        times : the visited times, in place of ``steps``, ``start`` and ``spacing``.
        num_samples : of each image at once, one after another along the batch.
        temperature : standard deviation of the noise that the chain starts from; below 1 draws differ less.
        """
        walk = samplers.find(sampler, **options)
        conditions = ldct if isinstance(ldct, Conditions) else self.condition(ldct.to(self.device))
        if num_samples > 1:
            conditions = conditions.map(lambda x: x.repeat_interleave(num_samples, dim=0))
        schedule, to_grid = self.process.schedule, self.process.from_chain
        if times is None and steps is None and start is None:
            times = self.process.times
        if times is None:
            times = schedule.times(30 if steps is None else steps, spacing, start=start)
        else:
            start = times[0]
        x_t = temperature * noise_like(conditions.estimate, generator)
        if start not in (None, schedule.T):
            x_t = q_sample(schedule, self.process.to_chain(conditions.estimate), times[0], x_t)
        for step in walk(self.predictor(conditions), x_t, schedule, times, generator=generator):
            yield step._replace(x_t=to_grid(step.x_t), x0_hat=to_grid(step.x0_hat), x0_prior=to_grid(step.x0_prior))
