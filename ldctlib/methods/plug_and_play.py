"""Denoising with an unconditional prior, without pairs: a sampler starts from the scan with its own noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldctlib.ct.noise_model import NoiseModel
from ldctlib.diffusion import samplers
from ldctlib.diffusion.plug_and_play import PLUG_AND_PLAY
from ldctlib.errors import ParameterError
from ldctlib.methods.denoiser import Trained, in_batches, noise_of
from ldctlib.operators import BlockMean, CorrelatedNoise, Identity, Operator, WhiteNoise
from ldctlib.pipelines import Prior

LOCAL_STRENGTH = (0.4, 2.5)
"""Limits of the local noise over its mean: a map says little beyond."""


def denoising_operator(
    noises: list[NoiseModel], size, *, spectrum: bool = True, local: bool = True, noise_factor: float = 1.0
) -> Identity:
    """A = I with the noise of each image of a batch, in HU: its spectrum, or its standard deviation as white noise.

    local : the strength follows the noise's map where there is one of the image's size.
    noise_factor : times the standard deviation.
    """
    if not spectrum:
        return Identity(WhiteNoise(noise_factor * max(noise.sd_hu for noise in noises)))
    psd = np.stack([noise.psd(*size) / noise.pixel_mm**2 for noise in noises])[:, None]
    correlated = CorrelatedNoise.from_psd(psd, 1.0).scaled(noise_factor)
    if local and all(n.map_hu is not None and tuple(n.map_hu.shape[-2:]) == tuple(size) for n in noises):
        strength = torch.cat([n.map_hu / n.sd_hu for n in noises])
        correlated = correlated.varying(strength.clamp(*LOCAL_STRENGTH))
    return Identity(correlated)


def ilvr_reference(y: Tensor, operator: Operator, factor: int = 2) -> tuple[Tensor, Operator]:
    """What ILVR holds a chain to: block means. Those of the scan where y is a scan, else y itself."""
    if not isinstance(operator, Identity):
        return y, operator
    low_pass = BlockMean(factor)
    return low_pass.A(y), low_pass


def denoise_with_prior(
    *,
    device,
    name: str = "prior_ct",
    path=None,
    sampler: str = "ddnm_plus",
    steps: int = 20,
    start: int | None = None,
    spectrum: bool = True,
    local: bool = True,
    noise_factor: float = 1.0,
    fixed_sd_unit: float | None = None,
    factor: int = 2,
    num_samples: int = 1,
    batch: int = 1,
    **options,
) -> Trained:
    """Plug-and-play denoising: a sampler held to the scan, with the noise that the scan already has.

    The noise comes from the call (``noise=``) or is estimated from each image, in HU. The chain starts mid-way, where
    its own noise is that of the scan's strongest frequency: above, the scan says nothing.

    sampler : a name of :data:`~ldctlib.diffusion.plug_and_play.PLUG_AND_PLAY`; its arguments are ``options``.
    steps, start : network evaluations, and the noisiest time in place of the scan's own.
    spectrum : the noise's power spectrum, or one white standard deviation.
    local : the strength of the spectrum follows the noise's map.
    noise_factor : times the estimated standard deviation.
    fixed_sd_unit : a white standard deviation in the model's [-1, 1] in place of the scan's noise. The released code
        takes .6, about five times the noise of its images: a strength, no noise level.
    factor : pixels a side of ILVR's block means.
    num_samples : images drawn and averaged; one is a draw from about the posterior, many are its mean.
    batch : slices at a time.
    """
    samplers.find(sampler, PLUG_AND_PLAY, **options)  # raises now, not at the first image
    prior = Prior.from_checkpoint(path or name, device=device)
    prior.schedule.times(min(steps, start or prior.schedule.T), start=start)
    for what, value in dict(num_samples=num_samples, batch=batch, noise_factor=noise_factor).items():
        if not value > 0:
            raise ParameterError(f"{what} must be above 0, got {value}")
    if fixed_sd_unit is not None and not fixed_sd_unit >= 0:
        raise ParameterError(f"fixed_sd_unit is a standard deviation in the model's range, got {fixed_sd_unit}")

    def measurement(x: Tensor, noise: NoiseModel | None, spacing_mm) -> tuple[Tensor, Operator]:
        if sampler == "ilvr":
            return ilvr_reference(x, Identity(), factor)
        if fixed_sd_unit is not None:
            return x, Identity(fixed_sd_unit / prior.range.scale)
        noises = [noise_of(image[None], noise, spacing_mm) for image in x]
        return x, denoising_operator(noises, x.shape[-2:], spectrum=spectrum, local=local, noise_factor=noise_factor)

    def denoise(ldct, *, noise, spacing_mm, generator):
        def mean_of_samples(x, own):
            y, operator = measurement(x, noise, spacing_mm)
            chain = dict(sampler=sampler, steps=steps, start=start, generator=own, **options)
            return torch.stack([prior.restore(y, operator, **chain) for _ in range(num_samples)]).mean(0)

        return in_batches(ldct, generator, batch, mean_of_samples)

    return Trained(denoise, prior.pipeline.output)
