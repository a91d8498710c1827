"""Denoisers without a network: the low-dose image itself, a Gaussian, non-local means, BM3D."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch

from ldctlib.ct.noise_model import NoiseModel
from ldctlib.errors import ParameterError, require
from ldctlib.image import gaussian_blur
from ldctlib.methods.denoiser import Denoiser, noise_of


def identity(*, device) -> Denoiser:
    """The low-dose image itself: what doing nothing gives."""
    return lambda ldct, *, noise, spacing_mm, generator: ldct


def gaussian(*, device, sigma_px: float = 0.8) -> Denoiser:
    """One fixed Gaussian: the baseline that PSNR cannot tell from a denoiser."""
    if not sigma_px > 0:
        raise ParameterError(f"sigma_px must be positive, got {sigma_px}")
    return lambda ldct, *, noise, spacing_mm, generator: gaussian_blur(ldct, sigma_px)


def _image_by_image(f: Callable[[np.ndarray, NoiseModel], np.ndarray]) -> Denoiser:
    """A NumPy filter of one (H, W) image and its noise as a denoiser of batches."""

    def denoise(ldct, *, noise, spacing_mm, generator):
        out = [f(image[0].cpu().numpy(), noise_of(image[None], noise, spacing_mm)) for image in ldct]
        return torch.from_numpy(np.stack(out).astype(np.float32))[:, None].to(ldct.device)

    return denoise


def nlm(*, device, strength: float = 0.7) -> Denoiser:
    """Non-local means (scikit-image), its strength a fraction of the noise's standard deviation."""

    def f(image, noise):
        from skimage.restoration import denoise_nl_means

        sd = noise.sd_hu
        return denoise_nl_means(image, patch_size=5, patch_distance=6, h=strength * sd, sigma=sd, fast_mode=True)

    return _image_by_image(f)


@contextmanager
def _trapz():
    """bm4d 4.2.5 calls ``numpy.trapz``, which NumPy 2.4 removed: lend it the new name while it runs."""
    if hasattr(np, "trapz"):
        yield
        return
    np.trapz = np.trapezoid
    try:
        yield
    finally:
        del np.trapz


def bm3d(*, device, spectrum: bool = True) -> Denoiser:
    """BM3D (package ``bm3d``): with the noise's spectrum, or with ``spectrum=False`` as if it were white."""
    package = require("bm3d", extra="bm3d", needed_for="the method 'bm3d'")

    def f(image, noise):
        # the package wants E|FFT(noise)|^2, which is NPS * number of pixels / pixel area
        psd = noise.psd(*image.shape) * (image.size / noise.pixel_mm**2) if spectrum else noise.sd_hu
        with _trapz():
            return package.bm3d(image.astype(np.float64), psd)

    return _image_by_image(f)
