"""What a denoiser is, and how a trained estimate is blended with the low-dose image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ldctlib.ct.noise_model import NoiseModel, noise_from_image
from ldctlib.diffusion.process import image_generators
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import check_images, gaussian_blur

STRENGTHS = {"smooth": 0.0, "balanced": 0.25, "fine": 0.4}
"""Residual noise by the names that people choose from."""


class Denoiser(Protocol):
    """What :func:`ldctlib.methods.load` returns."""

    # noise: NoiseModel | None; spacing_mm: (z, y, x) or None; generator: torch.Generator | None
    def __call__(self, ldct: Tensor, *, noise=None, spacing_mm=None, generator=None) -> Tensor: ...


class Trained(NamedTuple):
    """A network's denoiser, and what it estimates: "truth" or "full dose"."""

    denoise: Denoiser
    output: str


@dataclass(frozen=True)
class LoadedMethod:
    """A method with its weights, which checks its input and blends its output: see :func:`blend`."""

    name: str
    denoise: Callable[..., Tensor]
    scale: str = "HU"  # "HU" or "arbitrary": what images it takes
    oracle: bool = False  # given the full-dose scan: no denoiser, a bound that shows what a part costs
    blends: bool = False  # estimates the noise-free image: against a full-dose reference some noise is to be given back
    residual_noise: float = 0.0
    preserve_mean_px: float = 0.0

    @torch.no_grad()
    def __call__(self, ldct: Tensor, *, noise=None, spacing_mm=None, generator=None) -> Tensor:
        """(B, 1, H, W) -> the same shape and scale. Raises ShapeError or ParameterError for what is no image."""
        if not isinstance(ldct, Tensor) or ldct.dim() != 4 or ldct.shape[1] != 1 or not ldct.is_floating_point():
            what = f"{ldct.dtype} {tuple(ldct.shape)}" if isinstance(ldct, Tensor) else type(ldct).__name__
            raise ShapeError(f"a denoiser takes a floating-point tensor (B, 1, H, W), in HU for CT; got {what}")
        check_images(ldct)
        ldct = ldct.float()
        denoised = self.denoise(ldct, noise=noise, spacing_mm=spacing_mm, generator=generator)
        if self.residual_noise or self.preserve_mean_px:
            denoised = blend(ldct, denoised, self.residual_noise, self.preserve_mean_px)
        return denoised.clone() if denoised is ldct else denoised


def blend(ldct: Tensor, denoised: Tensor, residual_noise: float = 0.0, preserve_mean_px: float = 0.0) -> Tensor:
    """The denoised image with a share of the removed part given back.

    residual_noise : the share. 0 is the estimate of the noise-free image that networks are trained towards. The best
        estimate of a *full-dose image*, which has noise of its own, gives 1/R of the low-dose noise back, R the ratio
        of the variances: about the dose fraction where the noise is nested. On the pairs of the 2016 challenge, whose
        inserted noise is not quite nested, .15 is better than their dose of .25 (by .15 dB on the sharp kernel).
    preserve_mean_px : standard deviation of the low-pass (Gaussian, in pixels) of the removed part that is put back,
        so that mean HU do not drift; 0 leaves it out.
    """
    removed = ldct - denoised
    if preserve_mean_px:
        removed = removed - gaussian_blur(removed, preserve_mean_px)
    return ldct - (1 - residual_noise) * removed


def noise_of(image: Tensor, noise: NoiseModel | None, spacing_mm) -> NoiseModel:
    """The noise that a caller gave, or else an estimate from the image (1, 1, H, W), of .75 mm pixels unless told."""
    pixel_mm = 0.75 if spacing_mm is None else float(spacing_mm[-1])
    return noise if noise is not None else noise_from_image(image.cpu(), pixel_mm)


def in_batches(
    ldct: Tensor,
    generator: torch.Generator | None,
    batch: int,
    denoise: Callable[[Tensor, list[torch.Generator]], Tensor],
) -> Tensor:
    """``denoise(images, generators)`` of so many images at a time, each image with its own stream of random numbers."""
    streams = image_generators(generator, len(ldct))
    parts = [denoise(ldct[i : i + batch], streams[i : i + batch]) for i in range(0, len(ldct), batch)]
    return torch.cat([part.to(ldct.device) for part in parts])


def residual_share(residual_noise: float | str) -> float:
    """A share in [0, 1), given as a number or as one of :data:`STRENGTHS`."""
    share = STRENGTHS.get(residual_noise, residual_noise)
    if isinstance(share, str) or not 0 <= share < 1:
        raise ParameterError(
            f"residual_noise is a share in [0, 1) or one of {', '.join(STRENGTHS)}; got {residual_noise!r}"
        )
    return float(share)
