"""Every denoiser under one name and one signature.

    denoise = methods.load("nafnet")
    clean_hu = denoise(ldct_hu, noise=None, spacing_mm=(3.0, 0.74, 0.74), generator=None)

Images are float32 (B, 1, H, W) in HU, any H and W; the result has the input's shape and scale. A denoiser that uses
the noise estimates it from the image when none is given, and is deterministic given its generator.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ldctlib import checkpoints
from ldctlib.ct.noise import NoiseModel, noise_from_image
from ldctlib.ct.nps import gaussian_blur
from ldctlib.errors import ParameterError, ShapeError, require


class Denoiser(Protocol):
    """What :func:`load` returns."""

    def __call__(self, ldct: Tensor, *, noise: NoiseModel | None = None,
                 spacing_mm: tuple[float, ...] | None = None, generator: torch.Generator | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Method:
    """A line of :func:`table`."""

    name: str
    title: str
    family: str  # "none", "filter", "regression"
    paper: str
    provenance: str  # where its weights or parameters come from
    evaluations: int  # network evaluations an image
    load: Callable[..., Denoiser]


def load(name: str, *, device: str | torch.device = "cpu", **options) -> Denoiser:
    """The denoiser of a name, with its weights; ``options`` are its own (see its function in this module)."""
    if name not in METHODS:
        raise ParameterError(f"no method is named {name!r}; there are {', '.join(METHODS)}")
    try:
        denoise = METHODS[name].load(device=torch.device(device), **options)
    except TypeError as error:
        raise ParameterError(f"method {name!r} does not take these options: {error}") from error

    def checked(ldct: Tensor, *, noise=None, spacing_mm=None, generator=None) -> Tensor:
        if not isinstance(ldct, Tensor) or ldct.dim() != 4 or ldct.shape[1] != 1 or not ldct.is_floating_point():
            what = f"{ldct.dtype} {tuple(ldct.shape)}" if isinstance(ldct, Tensor) else type(ldct).__name__
            raise ShapeError(f"a denoiser takes a floating-point tensor (B, 1, H, W) in HU, got {what}")
        if not torch.isfinite(ldct).all():
            raise ParameterError("the image has values that are not finite: replace them (air is -1000 HU) first")
        with torch.inference_mode():
            out = denoise(ldct.float(), noise=noise, spacing_mm=spacing_mm, generator=generator)
        return out.clone()  # an ordinary tensor, that autograd may use

    checked.__name__ = name
    return checked


def table():
    """All methods with family, paper, provenance and network evaluations, as a pandas DataFrame."""
    import pandas

    rows = [{k: getattr(m, k) for k in ("name", "title", "family", "paper", "provenance", "evaluations")}
            for m in METHODS.values()]
    return pandas.DataFrame(rows).set_index("name")


def _pixel_mm(spacing_mm) -> float:
    return float(spacing_mm[-1]) if spacing_mm is not None else 0.75


def _noise_of(image: Tensor, noise: NoiseModel | None, spacing_mm) -> NoiseModel:
    return noise if noise is not None else noise_from_image(image.cpu(), _pixel_mm(spacing_mm))


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
        out = [torch.from_numpy(np.ascontiguousarray(f(
            image[0].cpu().numpy(), _noise_of(image[None], noise, spacing_mm)), dtype=np.float32))[None]
            for image in ldct]
        return torch.stack(out).to(ldct.device)

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


def network(*, device, name: str, path=None, keep: float | None = None, mean_px: float = 12.0,
            turns: int = 1) -> Denoiser:
    """A regression network trained towards the noise-free truth.

    keep : share of the removed part that is given back. Networks are trained towards the truth, which 0 gives. The
        best estimate of a *full-dose image*, which has noise of its own, gives 1/R of the low-dose noise back, R the
        ratio of the variances: about the dose fraction, 1/4 at a quarter dose. None takes the checkpoint's value.
    mean_px : standard deviation of the Gaussian whose local mean of the removed part is put back, so that no
        tissue's HU are shifted; 0 leaves it out.
    turns : 1, 2, 4 or 8 turned and mirrored passes averaged.
    """
    checkpoint = checkpoints.load(path or checkpoints.shipped(name), map_location=device)
    model = checkpoints.build(checkpoint, map_location=device).to(memory_format=torch.channels_last)
    share = float(checkpoint.trained_on.get("keep", 0.25)) if keep is None else keep
    if not 0 <= share < 1:
        raise ParameterError(f"keep is a share in [0, 1), got {share}")
    if turns not in (1, 2, 4, 8):
        raise ParameterError(f"turns is 1, 2, 4 or 8, got {turns}")
    span = checkpoint.range

    least = getattr(model, "min_size", 1)  # RED-CNN's unpadded convolutions need some pixels

    def once(x):
        h, w = x.shape[-2:]
        if min(h, w) < least:
            x = torch.nn.functional.pad(x, (0, max(0, least - w), 0, max(0, least - h)), mode="replicate")
        return span.from_model(model(span.to_model(x)))[..., :h, :w]

    def denoise(ldct, *, noise, spacing_mm, generator):
        home = ldct.device
        out = []
        for x in ldct.to(device).split(1):  # one slice at a time: memory stays that of one
            views = []
            for i in range(turns):
                # half-turn and mirrors first: they keep the shape
                flips = [d for d, bit in ((2, 1), (3, 2)) if i & bit]
                v = torch.flip(x, flips)
                v = once(v.transpose(2, 3)).transpose(2, 3) if i & 4 else once(v)
                views.append(torch.flip(v, flips))
            clean = torch.stack(views).mean(0)
            removed = x - clean
            if mean_px:
                removed = removed - gaussian_blur(removed, mean_px)
            out.append(x - (1 - share) * removed)
        return torch.cat(out).to(home)

    return denoise


def _network(name: str):
    return lambda *, device, **options: network(device=device, name=name, **options)


METHODS: dict[str, Method] = {m.name: m for m in (
    Method("ldct", "Low dose", "none", "-", "-", 0, identity),
    Method("gaussian", "Gaussian, 0.8 px", "filter", "-", "fixed", 0, gaussian),
    Method("nlm", "Non-local means", "filter", "Buades et al. 2005", "scikit-image; noise from the image", 0, nlm),
    Method("bm3d", "BM3D with NPS", "filter", "Dabov et al. 2007; Mäkinen et al. 2020",
           "package bm3d; noise from the image", 0, bm3d),
    Method("bm3d_white", "BM3D, one sigma", "filter", "Dabov et al. 2007", "package bm3d; noise from the image", 0,
           lambda *, device: bm3d(device=device, spectrum=False)),
    Method("redcnn", "RED-CNN", "regression", "Chen et al. 2017", "trained here on phantoms and photographs", 1,
           _network("redcnn")),
    Method("nafnet", "NAFNet", "regression", "Chen et al. 2022", "trained here on phantoms and photographs", 1,
           _network("nafnet")),
)}
