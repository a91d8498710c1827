"""Full-reference image metrics: PSNR, SSIM, VIF, FSIM in a stated window or range, RMSE and bias in HU.

Images are ``(B, 1, H, W)`` in HU and every metric returns one float64 value per image, ``(B,)``. The
intensity metrics take exactly one of

* ``window``: both images are mapped to [0, 1] and clipped (:meth:`ldctlib.units.Window.to_display`), data range 1;
* ``data_range``: the images are used as they are.

There is no default, because a PSNR without a window or range cannot be compared with anything.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.compat import torchvision_shim
from ldctlib.errors import ParameterError, ShapeError, require
from ldctlib.image import body_mask, check_images, check_mask, gaussian_taps
from ldctlib.units import Window


def _in_range(x: Tensor, reference: Tensor, window: Window | None, data_range: float | None):
    """Both images in float64 on the scale that the caller named, and that scale's data range."""
    check_images(x, reference)
    if (window is None) == (data_range is None):
        raise ParameterError("give exactly one of window=Window(level, width) or data_range=<HU>: no default")
    # float64: SSIM and VIF subtract squares of means, which loses digits in float32.
    x, reference = x.double(), reference.double()
    if window is not None:
        return window.to_display(x), window.to_display(reference), 1.0
    if not data_range > 0:
        raise ParameterError(f"data_range must be > 0, got {data_range}")
    return x, reference, float(data_range)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Per-image mean, over the mask where one is given."""
    if mask is None:
        return values.flatten(1).mean(dim=1)
    return (values * mask).flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1)


def psnr(
    x: Tensor, reference: Tensor, *, window: Window | None = None, data_range: float | None = None, mask=None
) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(L² / MSE); ``inf`` for equal images."""
    x, reference, peak = _in_range(x, reference, window, data_range)
    mask = None if mask is None else check_mask(mask, x)
    return 10 * torch.log10(peak**2 / _mean((x - reference) ** 2, mask))


SSIM_KERNELS = {
    "gaussian": (gaussian_taps(1.5, 5), 1.0),
    "uniform7": (torch.full((7,), 1 / 7, dtype=torch.float64), 49 / 48),
}
"""Separable taps and the covariance's normalisation. ``gaussian`` is 11x11, sigma 1.5 (Wang et al. 2004);
``uniform7`` is scikit-image's default: a 7x7 box with sample covariance, N / (N - 1)."""


def _filter_valid(image: Tensor, taps: Tensor) -> Tensor:
    taps = taps.to(image)
    return F.conv2d(F.conv2d(image, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))


def ssim(
    x: Tensor, reference: Tensor, *, window: Window | None = None, data_range=None, mask=None, kernel="gaussian"
) -> Tensor:
    """Structural similarity (Wang et al. 2004, Eq. 13; K1 = 0.01, K2 = 0.03), mean over the valid positions.

    ``kernel="gaussian"`` is the 11x11 Gaussian of sigma 1.5, ``"uniform7"`` scikit-image's default. With a
    mask the map is averaged over the masked pixels among the valid positions.
    """
    if kernel not in SSIM_KERNELS:
        raise ParameterError(f"unknown SSIM kernel {kernel!r}: use one of {sorted(SSIM_KERNELS)}")
    taps, normalisation = SSIM_KERNELS[kernel]
    x, y, peak = _in_range(x, reference, window, data_range)
    if min(x.shape[-2:]) < len(taps):
        raise ShapeError(f"SSIM's {len(taps)}x{len(taps)} kernel does not fit into {tuple(x.shape[-2:])}")
    mean_x, mean_y = _filter_valid(x, taps), _filter_valid(y, taps)
    var_x = normalisation * (_filter_valid(x * x, taps) - mean_x**2)
    var_y = normalisation * (_filter_valid(y * y, taps) - mean_y**2)
    cov = normalisation * (_filter_valid(x * y, taps) - mean_x * mean_y)
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    if mask is not None:
        r = len(taps) // 2
        check_mask(mask, x)
        mask = check_mask(mask[..., r : mask.shape[-2] - r, r : mask.shape[-1] - r], structure)
    return _mean(luminance * structure, mask)


def ssim_uniform7(x: Tensor, reference: Tensor, **options) -> Tensor:
    """SSIM with scikit-image's default 7x7 box: ``ssim(..., kernel="uniform7")``."""
    return ssim(x, reference, kernel="uniform7", **options)


def rmse_hu(x: Tensor, reference: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Root mean square error in HU over the mask (default: the reference's :func:`body_mask`)."""
    check_images(x, reference)
    mask = check_mask(body_mask(reference) if mask is None else mask, x)
    return _mean((x.double() - reference.double()) ** 2, mask).sqrt()


def bias_hu(x: Tensor, reference: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean of x - reference in HU over the mask (default: the reference's :func:`body_mask`)."""
    check_images(x, reference)
    mask = check_mask(body_mask(reference) if mask is None else mask, x)
    return _mean(x.double() - reference.double(), mask)


def _image_by_image(metric: Callable, x: Tensor, reference: Tensor, **options) -> Tensor:
    """A metric of piq, one image a call: its 'none' reduction is per image, but its memory grows with the batch."""
    pairs = zip(x.split(1), reference.split(1), strict=True)
    return torch.cat([metric(a, b, reduction="none", **options).reshape(1) for a, b in pairs])


def _piq_inputs(x, reference, window, data_range, metric: str):
    x, reference, peak = _in_range(x, reference, window, data_range)
    low, high = min(x.min(), reference.min()).item(), max(x.max(), reference.max()).item()
    if low < 0 or high > peak:
        need = f"[0, data_range] = [0, {peak:g}]"
        raise ParameterError(f"{metric} is defined on {need}, got [{low:g}, {high:g}]: give a window")
    torchvision_shim()  # piq imports torchvision, which needs help beside a CPU-only torch
    return require("piq", extra="test", needed_for=metric), x, reference, peak


def vif(x: Tensor, reference: Tensor, *, window: Window | None = None, data_range: float | None = None) -> Tensor:
    """Visual information fidelity in the pixel domain, 4 scales, noise variance 2 on a 0..255 scale.

    Sheikh & Bovik 2006 (their released ``vifp_mscale``), through piq. Not symmetric; may exceed 1. NaN where the
    reference is constant (in the window): it holds no information that could be kept, and 0 / 0 is no fidelity.
    """
    piq, x, reference, peak = _piq_inputs(x, reference, window, data_range, "VIF")
    if min(x.shape[-2:]) < 41:
        raise ShapeError(f"VIF's four scales need at least 41x41 pixels, got {tuple(x.shape[-2:])}")
    values = _image_by_image(piq.vif_p, x, reference, data_range=peak)
    return values.where(reference.amax((1, 2, 3)) > reference.amin((1, 2, 3)), torch.nan)


def fsim(x: Tensor, reference: Tensor, *, window: Window | None = None, data_range: float | None = None) -> Tensor:
    """Feature similarity on luminance: phase congruency and gradient (Zhang et al. 2011), through piq."""
    piq, x, reference, peak = _piq_inputs(x, reference, window, data_range, "FSIM")
    return _image_by_image(piq.fsim, x, reference, data_range=peak, chromatic=False)
