"""Image quality: full-reference metrics, perceptual distance, distances of sets, noise, resolution and edges."""

from ldctlib.ct.nps import NPS, nps, soft_tissue_rois
from ldctlib.image import body_mask
from ldctlib.metrics.backbones import CMMD_CLIP, Features, image_features
from ldctlib.metrics.distribution import Distance, frechet_distance, kernel_distance, mmd, precision_recall
from ldctlib.metrics.edges import edge_attenuation, edge_strength, noise_coupling, residual_structure
from ldctlib.metrics.image import bias_hu, fsim, psnr, rmse_hu, ssim, ssim_uniform7, vif
from ldctlib.metrics.noise import noise_std, nps_distance
from ldctlib.metrics.perceptual import Perceptual, lpips, lpips_random_trunk
from ldctlib.metrics.resolution import MTF, mtf_edge
from ldctlib.metrics.statistics import Score, paired_bootstrap
