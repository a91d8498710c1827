"""What networks are trained to lower, in a model's own units."""

from ldctlib.losses.autoencoder import AutoencoderLoss, Ramp, kl_divergence
from ldctlib.losses.language import LEDALoss, candidate_pools, semantic_loss
from ldctlib.losses.perceptual import (
    EncoderFeatures,
    VGG16Features,
    VGG19Features,
    perceptual_distance,
    vgg16_features,
    vgg19_features,
)
from ldctlib.losses.vqgan import VQGANLoss
