"""An autoencoder of noisy CT that tells anatomy from noise: four numbers hold what can be predicted of 64 pixels.

The noise of a scan cannot be predicted pixel by pixel, so a small latent has no room for it. Its statistics can: how
strong it is, where, and how its power falls with frequency. The decoder gives the noise-free image and those
statistics, and noise is drawn from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ParameterError
from ldctlib.models.autoencoder import Autoencoder, Posterior

NODES = (0.0, 0.08, 0.16, 0.25, 0.36, 0.5)
"""Frequencies, in cycles per pixel, at which the bands of noise peak."""
LEAST_SD = 1e-3
"""Floor of a band's standard deviation in model units: a fifth of a HU where 2 units are 400 HU."""


class NoiseAutoencoder(Autoencoder):
    """MAN's autoencoder (section 2.1) with a second output: the standard deviation of the noise in bands of frequency.

    ``decode(z)`` is the noise-free image. :meth:`noise_sd` gives the bands of the noise on the latent's grid, and
    :meth:`draw_noise` noise that has them. Other arguments are :class:`~ldctlib.models.autoencoder.Autoencoder`'s.

    nodes : rising frequencies in cycles per pixel; band k is a hat between its neighbours, and the last one reaches to
        the corners of the spectrum. The bands' powers add up to the whole: the drawn noise's spectrum runs linearly
        from node to node.
    noise_width : channels of the layers that read the bands from the latent.
    latent_mean, latent_std : of each channel of raw latents, kept in the checkpoint's config: see :meth:`fit_latents`.
        Scaled latents have mean 0 and deviation 1 in every channel, and not only over all.
    """

    def __init__(
        self,
        *args,
        nodes: Sequence[float] = NODES,
        noise_width: int = 48,
        latent_mean: Sequence[float] | None = None,
        latent_std: Sequence[float] | None = None,
        **options,
    ):
        super().__init__(*args, **options)
        c = self.latent_channels
        mean, std = [0.0] * c if latent_mean is None else latent_mean, [1.0] * c if latent_std is None else latent_std
        if len(mean) != c or len(std) != c or not all(s > 0 for s in std):
            raise ParameterError(f"latent_mean and latent_std have a number a channel, {c}, and std > 0: {mean}, {std}")
        for name, values in (("latent_mean", mean), ("latent_std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None], persistent=False)
        if len(nodes) < 2 or nodes[0] != 0 or any(b <= a for a, b in zip(nodes, nodes[1:], strict=False)):
            raise ParameterError(f"nodes are two or more rising frequencies from 0 on, got {tuple(nodes)}")
        self.nodes = tuple(nodes)
        layers, c = [], self.latent_channels
        for _ in range(2):
            layers += [nn.Conv2d(c, noise_width, 3, padding=1), nn.SiLU()]
            c = noise_width
        self.noise_head = nn.Sequential(*layers, nn.Conv2d(c, len(nodes), 1))
        nn.init.constant_(self.noise_head[-1].bias, -3.0)

    def encode(self, x: Tensor) -> Posterior:
        """As the autoencoder's, of the image clipped to the model's range: it sees a window."""
        return super().encode(x.clamp(-1.0, 1.0))

    def scale(self, z: Tensor) -> Tensor:
        return (z - self.latent_mean) / self.latent_std

    def unscale(self, z: Tensor) -> Tensor:
        return z * self.latent_std + self.latent_mean

    @torch.no_grad()
    def fit_latents(self, z: Tensor) -> dict[str, list[float]]:
        """Take mean and standard deviation of each channel of raw posterior samples (B, c, h, w); returns both as
        entries of a config."""
        std, mean = torch.std_mean(z.double(), dim=(0, 2, 3), keepdim=True)
        if not bool((std > 0).all() and std.isfinite().all()):
            raise ParameterError(f"latents of deviations {std.flatten().tolist()} cannot be scaled to unit variance")
        self.latent_mean.copy_(mean[0])
        self.latent_std.copy_(std[0])
        return {"latent_mean": self.latent_mean.flatten().tolist(), "latent_std": self.latent_std.flatten().tolist()}

    def noise_sd(self, z: Tensor) -> Tensor:
        """Raw latents (B, c, h, w) -> each band's standard deviation (B, K, h, w) in model units."""
        raw = self.noise_head(z.to(self.noise_head[0].weight.dtype)).float()
        return torch.exp(raw.clamp(-8.0, 2.0)).clamp(min=LEAST_SD)

    def bands(self, noise: Tensor) -> Tensor:
        """Noise (B, 1, H, W) split into its bands, (B, K, H, W); their variances add up to the noise's."""
        amplitude = band_amplitudes(self.nodes, *noise.shape[-2:]).to(noise.device)
        return torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=noise.shape[-2:])

    def draw_noise(self, z: Tensor, white: Tensor) -> Tensor:
        """A noise image (B, 1, H, W) in model units with the bands that the latents tell.

        z : raw latents of images of at least H x W.
        white : standard normal numbers (B, K, H, W), a noise for each band: bands overlap, and with one noise for all
            their amplitudes would add up in place of their powers.
        """
        h, w = white.shape[-2:]
        sd = F.interpolate(self.noise_sd(z), scale_factor=self.factor, mode="bilinear", align_corners=False)
        amplitude = band_amplitudes(self.nodes, h, w).to(white.device)
        unit = amplitude / band_rms(self.nodes, h, w).to(white.device)[:, None, None]
        coloured = torch.fft.irfft2(torch.fft.rfft2(white) * unit, s=(h, w))
        return (sd[..., :h, :w] * coloured).sum(dim=1, keepdim=True)


@lru_cache(maxsize=16)
def band_amplitudes(nodes: tuple[float, ...], height: int, width: int) -> Tensor:
    """Filters of the bands on the frequencies of ``torch.fft.rfft2``, (K, H, W // 2 + 1); their squares sum to 1."""
    rho = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :]).clamp(max=nodes[-1])
    hats = []
    for k, node in enumerate(nodes):
        up = (rho - nodes[k - 1]) / (node - nodes[k - 1]) if k else torch.ones_like(rho)
        down = (nodes[k + 1] - rho) / (nodes[k + 1] - node) if k + 1 < len(nodes) else torch.ones_like(rho)
        hats.append(torch.minimum(up, down).clamp(0, 1))
    return torch.stack(hats).sqrt()


@lru_cache(maxsize=16)
def band_rms(nodes: tuple[float, ...], height: int, width: int) -> Tensor:
    """Standard deviation (K,) that each band of white noise of unit variance has."""
    power = band_amplitudes(nodes, height, width).square()
    both = torch.full((width // 2 + 1,), 2.0)  # a half plane: all columns but the first stand for two
    both[0] = 1.0
    if width % 2 == 0:
        both[-1] = 1.0
    return ((power * both).sum(dim=(1, 2)) / (height * width)).sqrt()


def noise_likelihood(sd: Tensor, bands: Tensor, factor: int) -> Tensor:
    """Negative log likelihood of noise bands (B, K, H, W) given their standard deviations (B, K, h, w): a scalar.

    log s + (v + floor^2) / 2 s^2 with v the mean square of a band over ``factor`` x ``factor`` pixels. Its minimum is
    at the expected power, whatever the number of independent values in a block. Relative to that of s = floor.
    """
    power = F.avg_pool2d(bands.square(), factor) + LEAST_SD**2
    return (sd.log() + power / (2 * sd.square())).mean()
