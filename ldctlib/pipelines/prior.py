"""An unconditional diffusion prior, and images restored with it from any measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldctlib.diffusion import samplers
from ldctlib.diffusion.plug_and_play import PLUG_AND_PLAY, first_time, start_from_measurement
from ldctlib.diffusion.process import Generators, noise_like, q_sample
from ldctlib.diffusion.samplers import Step
from ldctlib.errors import CheckpointError, ParameterError
from ldctlib.image import fit
from ldctlib.operators import Identity, Operator
from ldctlib.pipelines.pipeline import DiffusionPipeline


class Prior:
    """An unconditional diffusion model on pixels, for images in its own scale (HU for CT).

    Measurements, operators and results are in that scale; :meth:`to_model` says what the sampler makes of them.
    """

    def __init__(self, pipeline: DiffusionPipeline):
        if pipeline.spec.conditions or pipeline.spec.autoencoder or pipeline.process.residual:
            raise CheckpointError("a prior is unconditional and on pixels; this model has conditions or latents")
        self.pipeline, self.device = pipeline, pipeline.device
        self.range, self.schedule = pipeline.grid.image_range, pipeline.process.schedule

    @classmethod
    def from_checkpoint(cls, name_or_path: str | Path, *, device: str | torch.device = "cpu") -> Prior:
        """The prior of a file, or a shipped one by name: "prior_ct"."""
        return cls(DiffusionPipeline.from_checkpoint(name_or_path, device=device))

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise predictor, for images of any size (padded by reflection to what the network takes)."""
        h, w = x_t.shape[-2:]
        predictor = self.pipeline.process.predictor(self.pipeline.network)
        return predictor(fit(x_t, self.pipeline.network.factor), t)[..., :h, :w]

    def to_model(self, y: Tensor, operator: Operator) -> tuple[Tensor, Operator]:
        """A measurement of an image as one of the same image in the model's range: (y, operator).

        With x = c + h x_model, A x = A c + h A x_model: the constant goes out of y, and y and its noise are divided
        by h. A stays as it is.
        """
        h = 1 / self.range.scale
        y = y.to(self.device)
        zero = operator.A_adjoint(y[:1]).detach()  # for its shape alone
        constant = torch.full_like(zero, float(self.range.from_model(torch.tensor(0.0))))
        return (y - operator.A(constant)) / h, operator.with_noise(operator.noise.scaled(1 / h))

    def steps(
        self,
        y: Tensor,
        operator: Operator,
        *,
        sampler: str = "ddnm_plus",
        steps: int = 100,
        start: int | None = None,
        spacing: str = "trailing",
        times: Sequence[int] | None = None,
        estimate: Tensor | None = None,
        num_samples: int = 1,
        generator: Generators = None,
        **options,
    ) -> Iterator[Step]:
        """The sampler's steps, in the image's scale; ``options`` go to the sampler.

        y : (B, ...), the measurement, in the scale of the operator's y.
        sampler : a name of :data:`~ldctlib.diffusion.plug_and_play.PLUG_AND_PLAY`.
        start : the noisiest time. None is where the noise of y is that of x_t if y is the image with noise, else T.
        estimate : (B, 1, H, W), the image that the chain starts from, noised to ``start``; by default A⁺y with the
            noise that y lacks, or noise alone at T.
        times : the visited times, in place of ``steps``, ``start`` and ``spacing``.
        num_samples : of each image at once, one after another along the batch.
        """
        walk, schedule = samplers.find(sampler, PLUG_AND_PLAY, **options), self.schedule
        y, operator = self.to_model(y, operator)
        if num_samples > 1:
            y = y.repeat_interleave(num_samples, dim=0)
            estimate = None if estimate is None else estimate.repeat_interleave(num_samples, dim=0)
        if times is None:
            if start is None:
                start = first_time(operator, schedule) if isinstance(operator, Identity) else schedule.T
            times = schedule.times(min(steps, start), spacing, start=start)
        times = schedule.check_times(times)
        if estimate is not None:
            x = self.range.to_model(estimate.to(self.device))
            x_t = q_sample(schedule, x, times[0], noise_like(x, generator))
        elif operator.singular_values is None or sampler in ("dps", "ilvr") and times[0] == schedule.T:
            x_t = noise_like(operator.A_adjoint(y), generator)
            if times[0] < schedule.T:
                raise ParameterError(f"a chain that starts at {times[0]} < T = {schedule.T} needs an estimate")
        else:
            x_t = start_from_measurement(operator, y, schedule, times[0], generator)
        to_image = self.range.from_model
        for step in walk(self.eps, x_t, schedule, times, operator, y, generator=generator):
            yield step._replace(x_t=to_image(step.x_t), x0_hat=to_image(step.x0_hat), x0_prior=to_image(step.x0_prior))

    def restore(self, y: Tensor, operator: Operator, **options) -> Tensor:
        """The restored image, (B, 1, H, W) in the image's scale; ``options`` are those of :meth:`steps`."""
        return samplers.final(self.steps(y, operator, **options))
