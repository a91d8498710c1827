"""What a benchmark computes of a denoised slice: one entry a metric, with all that a table needs of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldctlib import metrics as M
from ldctlib.benchmark.cases import BenchmarkCase
from ldctlib.errors import ParameterError
from ldctlib.units import Window

Measure = Callable[[Tensor, BenchmarkCase, Window], float]
"""``function(denoised, case, window) -> float``, a HU image (1, 1, H, W) against the case's reference."""


@dataclass(frozen=True)
class CaseMetric:
    """One metric of a case, and how to read it."""

    function: Measure
    label: str
    digits: int = 3
    default: bool = False  # whether it is computed when no metrics are named
    provenance: str = ""  # what the number depends on beside the window, for the table's foot


def _windowed(metric) -> Measure:
    return lambda x, case, window: metric(x, case.reference_hu, window=window).item()


def _in_hu(metric) -> Measure:
    return lambda x, case, window: metric(x, case.reference_hu).item()


def _body_mean_shift_hu(x: Tensor, case: BenchmarkCase, window: Window) -> float:
    return M.bias_hu(x, case.ldct_hu, mask=M.body_mask(case.reference_hu)).item()


def _edge_attenuation(x: Tensor, case: BenchmarkCase, window: Window) -> float:
    coupling = 0.0 if case.reference_kind == "truth" else None
    return M.edge_attenuation(x, case.ldct_hu, case.reference_hu, coupling=coupling)


def _residual_structure(x: Tensor, case: BenchmarkCase, window: Window) -> float:
    return M.residual_structure(x, case.ldct_hu, case.reference_hu)


def _nps_of_residual(magnitude: bool) -> Measure:
    """What was removed against the true difference, ldct - reference, in soft tissue."""

    def distance(x: Tensor, case: BenchmarkCase, window: Window) -> float:
        if torch.equal(x, case.ldct_hu):
            return math.nan  # nothing removed: no spectrum
        size = 64 if min(x.shape[-2:]) >= 256 else 32
        corners = M.soft_tissue_rois(case.reference_hu, size)
        differences = case.ldct_hu - x, case.ldct_hu - case.reference_hu
        spectra = (M.nps(image, case.pixel_mm, roi=size, corners=corners) for image in differences)
        return M.nps_distance(*spectra, magnitude=magnitude)

    return distance


def _lpips(function, net: str = "squeeze") -> Measure:
    def distance(x: Tensor, case: BenchmarkCase, window: Window) -> float:
        result = function(x, case.reference_hu, window=window, net=net)
        if result.reason:
            raise ParameterError(result.reason)
        return result.values.item()

    return distance


METRICS: dict[str, CaseMetric] = {
    "psnr": CaseMetric(_windowed(M.psnr), "PSNR (dB)", 2, default=True),
    "ssim": CaseMetric(_windowed(M.ssim), "SSIM", default=True, provenance="11x11 Gaussian, sigma 1.5"),
    "ssim_uniform7": CaseMetric(
        _windowed(M.ssim_uniform7),
        "SSIM (7x7 box)",
        default=True,
        provenance="7x7 box with sample covariance (scikit-image's default)",
    ),
    "rmse_hu": CaseMetric(_in_hu(M.rmse_hu), "RMSE (HU)", 1, default=True),
    "bias_hu": CaseMetric(_in_hu(M.bias_hu), "bias (HU)", 2, default=True),
    "body_mean_shift_hu": CaseMetric(_body_mean_shift_hu, "mean change of the body (HU)", 2, default=True),
    "edge_attenuation": CaseMetric(_edge_attenuation, "edge attenuation", default=True),
    "residual_structure": CaseMetric(_residual_structure, "residual structure", 2, default=True),
    "nps_shape_distance": CaseMetric(_nps_of_residual(False), "NPS distance of the residual, shape", default=True),
    "nps_db_distance": CaseMetric(_nps_of_residual(True), "NPS distance of the residual (dB)", 2, default=True),
    "vif": CaseMetric(_windowed(M.vif), "VIF"),
    "fsim": CaseMetric(_windowed(M.fsim), "FSIM", provenance="of luminance (not FSIMc)"),
    "lpips": CaseMetric(
        _lpips(M.lpips), "LPIPS (squeeze, ImageNet trunk)", provenance="v0.1, squeeze, trunk: imagenet"
    ),
    "lpips_vgg": CaseMetric(
        _lpips(M.lpips, "vgg"), "LPIPS (vgg, ImageNet trunk)", provenance="v0.1, vgg, trunk: imagenet"
    ),
    "lpips_alex": CaseMetric(
        _lpips(M.lpips, "alex"), "LPIPS (alex, ImageNet trunk)", provenance="v0.1, alex, trunk: imagenet"
    ),
    "lpips_random_trunk": CaseMetric(
        _lpips(M.lpips_random_trunk), "lpips_random_trunk (not LPIPS)", provenance="squeeze, trunk: random; never ranks"
    ),
}
"""Metrics by name. Errors and those of edges and noise are in HU, the others in the window; NPS distances compare what
was removed (the residual) with the true difference, ldct - reference, in soft tissue."""

DEFAULT_METRICS = tuple(name for name, metric in METRICS.items() if metric.default)
