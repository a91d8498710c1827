"""Dn-Dp as a denoiser: a low-resolution prior, then super-resolution, both held to the low-dose image."""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm

from torch import Tensor

from ldctlib import checkpoints
from ldctlib.diffusion import samplers
from ldctlib.diffusion.cascade import DNDP_ABDOMEN, DNDP_TIMES, AdaptiveWeight, cascade, map_chain
from ldctlib.diffusion.process import Generators
from ldctlib.diffusion.samplers import Step
from ldctlib.errors import CheckpointError, ParameterError
from ldctlib.image import fit
from ldctlib.methods.denoiser import Trained, in_batches
from ldctlib.pipelines import DiffusionPipeline
from ldctlib.pipelines.conditioning import LOW_RESOLUTION, MEANS, Conditions


def dndp(
    *,
    device,
    name: str = "dndp_high",
    low: str = "dndp_low",
    path=None,
    low_path=None,
    single_stage: bool = False,
    num_samples: int = 10,
    lambda0: float = 0.0075,
    lambda0_low: float = 0.0005,
    a: float = DNDP_ABDOMEN.a,
    b: float = DNDP_ABDOMEN.b,
    c: float = DNDP_ABDOMEN.c,
    rerun: int = DNDP_ABDOMEN.rerun,
    steps: int = len(DNDP_TIMES),
) -> Trained:
    """Dn-Dp (Liu et al. 2023), with its published numbers for the abdomen but one; no low-dose scan was seen.

    See :mod:`ldctlib.diffusion.cascade` for λ0, a, b, c, in units of 1000 HU with the shipped networks. The first stage
    denoises block means of the low-dose image, the second the image itself, given the mean of the first one's samples.

    name, low : checkpoints of the second and the first stage; ``path`` and ``low_path`` files in their place.
    single_stage : the second stage alone, given the block means of the low-dose image as they are.
    lambda0_low : of the first stage. The published 0.002 loses detail that block means of a sharp kernel still hold;
        the cascade is then worse there than its second stage alone. A quarter is better on both kernels.
    num_samples : images that each stage draws and averages.
    rerun : steps of the second stage that are run again with the adapted weight; 0 keeps λ0.
    steps : of the published 29 the last so many, in both stages; with fewer a chain starts from the noised image.
    """
    adaptive = AdaptiveWeight(a, b, c, rerun) if rerun else None
    high = _stage(path or checkpoints.find(name), device, low_resolution=True)
    first = None if single_stage else _stage(low_path or checkpoints.find(low), device, low_resolution=False)
    # both grids then take the image without padding of their own
    multiple = high.grid.multiple if first is None else lcm(LOW_RESOLUTION * first.grid.multiple, high.grid.multiple)
    if num_samples < 1:
        raise ParameterError(f"num_samples is 1 or more, got {num_samples}")
    if min(lambda0, lambda0_low) <= 0:
        raise ParameterError(f"lambda0 and lambda0_low are positive, got {lambda0} and {lambda0_low}")
    if not 1 <= steps <= len(DNDP_TIMES) or not 0 <= rerun <= steps:
        raise ParameterError(
            f"steps lies in 1 ... {len(DNDP_TIMES)}, and at most as many are run again; got {steps} and rerun={rerun}"
        )

    def chain(
        pipeline: DiffusionPipeline, image_hu: Tensor, conditions: Conditions, generator: Generators, **options
    ) -> Iterator[Step]:
        options |= dict(times=DNDP_TIMES[-steps:], generator=generator)
        return map_chain(
            pipeline.predictor(conditions), pipeline.encode(image_hu), pipeline.process.schedule, **options
        )

    def denoise_one(image: Tensor, generator: Generators) -> Tensor:
        x, means = fit(image, multiple), None

        def low_stage(_) -> Iterator[Step]:
            return chain(first, means, first.condition(means), generator, lambda0=lambda0_low)

        def full_stage(estimate: Tensor | None) -> Iterator[Step]:
            given = x if estimate is None else MEANS.A_dagger(first.decode(estimate, estimate.shape[-2:]))
            return chain(high, x, high.condition(given), generator, lambda0=lambda0, adaptive=adaptive)

        stages = [full_stage]
        if first is not None:
            means, stages = MEANS.A(x), [low_stage, full_stage]
        return high.decode(samplers.final(cascade(*stages, num_samples=num_samples)), image.shape[-2:])

    def denoise(ldct, *, noise, spacing_mm, generator):
        return in_batches(ldct, generator, 1, lambda image, own: denoise_one(image.to(device), own))

    return Trained(denoise, high.output)


def _stage(path, device, *, low_resolution: bool) -> DiffusionPipeline:
    """A stage's pipeline, refused unless it is conditioned on a low resolution where that is given."""
    pipeline = DiffusionPipeline.from_checkpoint(path, device=device)
    if pipeline.condition.low_resolution != low_resolution or (pipeline.spec.conditions and not low_resolution):
        wanted = "conditioned on the low resolution" if low_resolution else "unconditional"
        raise CheckpointError(f"{path}: this stage of Dn-Dp takes a model that is {wanted}; give that checkpoint")
    pipeline.process.schedule.check_times(DNDP_TIMES)
    if pipeline.process.residual or pipeline.process.residual_std != 1:
        raise CheckpointError(f"{path}: Dn-Dp's chain runs in the model's range, without residual or residual_std")
    return pipeline
