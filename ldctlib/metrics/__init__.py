"""Image quality: full-reference metrics, perceptual distance with provenance, noise texture and edges."""

from ldctlib.ct.nps import NPS, nps, soft_tissue_rois
from ldctlib.metrics.image import bias_hu, body_mask, fsim, psnr, rmse_hu, ssim, ssim_uniform7, vif
from ldctlib.metrics.perceptual import Perceptual, lpips, lpips_random_trunk, torchvision_shim
from ldctlib.metrics.statistics import Score, paired_bootstrap
from ldctlib.metrics.texture import (
    MTF,
    edge_loss,
    edge_strength,
    mtf_edge,
    noise_coupling,
    noise_std,
    nps_distance,
    structure_in_removed,
)

__all__ = [
    "MTF",
    "NPS",
    "Perceptual",
    "Score",
    "bias_hu",
    "body_mask",
    "edge_loss",
    "edge_strength",
    "fsim",
    "lpips",
    "lpips_random_trunk",
    "mtf_edge",
    "noise_coupling",
    "noise_std",
    "nps",
    "nps_distance",
    "paired_bootstrap",
    "psnr",
    "rmse_hu",
    "soft_tissue_rois",
    "ssim",
    "ssim_uniform7",
    "structure_in_removed",
    "torchvision_shim",
    "vif",
]
