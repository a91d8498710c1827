"""Stable Diffusion's autoencoder through ``diffusers``, for grey images: NA-Diff's latents (Algorithm 2)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ldctlib.compat import torchvision_shim
from ldctlib.errors import CheckpointError, MissingDependency
from ldctlib.image import fit
from ldctlib.models.autoencoder import Posterior

SD_VAE = "stabilityai/sd-vae-ft-mse"
SD_LATENT_SCALE = 0.18215
"""Of the published models whose configuration does not say it."""


class PublishedVAE(nn.Module):
    """An AutoencoderKL of colour images as an autoencoder of grey ones in [-1, 1]: repeated to three channels, and the
    mean of the three decoded ones.

    It has the interface of :class:`~ldctlib.models.autoencoder.Autoencoder` that a diffusion on latents uses.
    """

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae, self.latent_channels = vae, vae.config.latent_channels
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.latent_scale = float(getattr(vae.config, "scaling_factor", None) or SD_LATENT_SCALE)

    def encode(self, x: Tensor) -> Posterior:
        """(B, 1, H, W), clipped to [-1, 1] -> posterior over raw latents."""
        rgb = fit(x.clamp(-1.0, 1.0), self.factor).expand(-1, 3, -1, -1)
        q = self.vae.encode(rgb).latent_dist
        return Posterior(q.mean, q.logvar)

    def decode(self, z: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Raw latents -> (B, 1, H, W), cropped to ``size`` if given."""
        image = self.vae.decode(z).sample.mean(dim=1, keepdim=True)
        return image if size is None else image[..., : size[0], : size[1]]

    def scale(self, z: Tensor) -> Tensor:
        return z * self.latent_scale

    def unscale(self, z: Tensor) -> Tensor:
        return z / self.latent_scale


def published_vae(source: str | Path = SD_VAE) -> PublishedVAE:
    """A published AutoencoderKL, frozen.

    source : a name on the hub, which ``diffusers`` downloads at first use, or a folder that ``save_pretrained`` has
        written. Raises CheckpointError if there is none, MissingDependency without the package.
    """
    torchvision_shim()
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        hint = 'pip install "ldctlib[diffusers]"'
        raise MissingDependency(f"a published autoencoder needs the package diffusers: {hint}") from error
    try:
        vae = AutoencoderKL.from_pretrained(source, torch_dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source}: no AutoencoderKL could be read ({str(error).splitlines()[0]}). Give a folder that holds "
            f"config.json and weights, or a name on the hub with a connection to it"
        ) from error
    return PublishedVAE(vae).requires_grad_(False).eval()
