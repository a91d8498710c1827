"""Diffusion models as denoisers: MAN in the latents of its autoencoder, a DDPM on pixels; and the autoencoder alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldctlib import checkpoints
from ldctlib.diffusion import samplers
from ldctlib.errors import ParameterError
from ldctlib.image import in_squares
from ldctlib.methods.denoiser import Denoiser, Trained, in_batches
from ldctlib.pipelines import DiffusionPipeline, LatentGrid

START_OF_A_PRIOR = 300
"""Where the chain of a model without conditions begins, unless told otherwise."""


def sample(
    *,
    device,
    name: str,
    path=None,
    sampler: str = "ddim",
    steps: int | None = None,
    start: int | None = None,
    spacing: str = "trailing",
    times: str | int | Sequence[int] | None = None,
    num_samples: int = 1,
    temperature: float = 1.0,
    batch: int | None = None,
    side: int | None = None,
    **options,
) -> Trained:
    """A conditional diffusion model: sample the clean image given the low-dose one.

    MAN's quick sampler is DDIM (Eq. 6) in 30 steps, from pure noise at T. The shipped checkpoints condition on, and
    start from, the code of a regression network's estimate as well: the paper leaves open how its condition is
    "derived from the input noisy image". On pixels ``sampler="ddpm", steps=1000`` is the original DDPM.

    sampler, spacing : see :mod:`ldctlib.diffusion.samplers`.
    steps : 30, or as many as the model was trained for (Fast-DDPM: 10).
    start : begin at this time from the noised estimate instead. A prior without conditions begins at 300 unless given,
        as PET-diffusion does.
    times : the visited times, falling, in place of steps, start and spacing; on a command line "1000+600+200".
    num_samples : images drawn and averaged; one is the paper's.
    temperature : standard deviation of the noise that a chain starts from, 1 in theory. With less a draw is nearer to
        the mean of all, and differs less from others; samplers that add noise on their way add it as before.
    batch : slices at a time; 4 on latents, 1 on pixels.
    side : in pixels; larger slices are denoised in squares that overlap, each with its own noise, for models whose
        attention was trained on squares.
    options : go to the sampler, such as ``eta``.
    """
    samplers.find(sampler, **options)  # raises now, not at the first image
    pipeline = DiffusionPipeline.from_checkpoint(path or checkpoints.find(name), device=device)
    batch = batch if batch is not None else 4 if isinstance(pipeline.grid, LatentGrid) else 1
    if num_samples < 1 or batch < 1 or (side is not None and side < 1):
        raise ParameterError(f"num_samples, batch and side are at least 1, got {num_samples}, {batch} and {side}")
    if not 0 <= temperature < float("inf"):
        raise ParameterError(f"temperature is at least 0 and finite, got {temperature}")
    schedule = pipeline.process.schedule
    if not pipeline.spec.conditions:
        start = START_OF_A_PRIOR if start is None else start
        if start == schedule.T:
            raise ParameterError(f"at start = T = {start} nothing of the image is left for a prior: start below T")
    schedule.times(30 if steps is None else steps, spacing, start=start)  # likewise
    if times is not None:
        times = schedule.check_times(str(times).split("+") if isinstance(times, str | int) else times)

    def mean_of_samples(x, own):
        conditions = pipeline.condition(x.to(device))
        chain = dict(sampler=sampler, steps=steps, start=start, spacing=spacing, times=times, **options)
        chain |= dict(temperature=temperature, generator=own)
        drawn = [samplers.final(pipeline.steps(conditions, **chain)) for _ in range(num_samples)]
        return torch.stack([pipeline.decode(x0, x.shape[-2:]) for x0 in drawn]).mean(0)

    def in_parts(x, own):
        return in_squares(x, side, lambda part: mean_of_samples(part, own)) if side else mean_of_samples(x, own)

    def denoise(ldct, *, noise, spacing_mm, generator):
        return in_batches(ldct, generator, batch, in_parts)

    return Trained(denoise, pipeline.output)


def round_trip(*, device, name: str = "autoencoder_perceptual", path=None, batch: int = 4) -> Denoiser:
    """D(E(x)), the posterior's mean decoded: what MAN's autoencoder alone does to an image."""
    checkpoint = checkpoints.load(path or name, map_location=device)
    grid = LatentGrid(
        checkpoints.build(checkpoint, map_location=device).to(memory_format=torch.channels_last), checkpoint.range
    )

    def denoise(ldct, *, noise, spacing_mm, generator):
        return torch.cat([grid.decode(grid.encode(x.to(device)), x.shape[-2:]).to(x.device) for x in ldct.split(batch)])

    return denoise
