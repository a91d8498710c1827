"""Published unconditional priors of three channels as priors of grey images.

A network that was trained on three channels with independent noise sees a grey image three times. All that they say
of it is in their mean, whose noise has a third of the variance. Three copies of one noisy image have their whole noise
in the mean: the network takes it for a third of what it is, and leaves the rest in the image. From a Gaussian prior the
probability flow then draws three times the prior's variance. :class:`GreyOfThree` gives the network what it was trained
with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ldctlib import checkpoints
from ldctlib.diffusion import schedule as schedules
from ldctlib.diffusion.process import noise_like
from ldctlib.diffusion.schedule import Schedule
from ldctlib.errors import ParameterError
from ldctlib.models.unet import GUIDED_DIFFUSION_256, RELEASED_CT_MR, UNet, split_prediction
from ldctlib.pipelines.pipeline import DiffusionPipeline, PipelineSpec
from ldctlib.units import Range

LAYOUTS = {"released": RELEASED_CT_MR, "guided_diffusion_256": GUIDED_DIFFUSION_256}
"""U-Net layouts by name: the CT and MR models of plug-and-play DDNM, and guided-diffusion's unconditional 256x256."""

CHANNEL_NOISES = ("independent", "replicated")


class GreyOfThree(nn.Module):
    """A noise predictor of three channels as one of a grey image: (B, 1, H, W) and our times 1 … T -> (B, 1, H, W).

    network : (x (B, 3, H, W), t) -> eps, or eps and a learned variance, which is left out. It counts times from 0.
    schedule : that it was trained with.
    channel_noise : the noise of the three channels in its training.
        "independent", as guided-diffusion's code and all that follow it draw it. The mean of three channels at a time
        t' has the noise of a grey image at t where ᾱ' / (1 − ᾱ') = ᾱ / (3 (1 − ᾱ)). So the network is asked at t',
        about x_t scaled by √(ᾱ' / ᾱ) plus noise that differs between the channels and is 0 in their mean; then
        eps = √3 mean(eps_3), and x0_hat is the mean of the network's three. For an exact denoiser of grey images this
        is the exact one of a single channel, whatever the added noise. Where t' would lie beyond T, it is T.
        "replicated": the channels are three copies, and the three eps are averaged.

    The added noise is the same in every call, for every image: a result depends on nothing but x_t and t.
    """

    in_channels = 1
    conditions = ()

    def __init__(self, network: UNet, schedule: Schedule, channel_noise: str = "independent"):
        super().__init__()
        if channel_noise not in CHANNEL_NOISES:
            raise ParameterError(f"channel_noise is one of {', '.join(CHANNEL_NOISES)}; got {channel_noise!r}")
        if network.in_channels != 3 or network.conditions:
            takes = ", ".join(network.conditions) or "no condition"
            raise ParameterError(f"needs a prior of 3 channels; this takes {network.in_channels} and {takes}")
        self.network, self.channel_noise, self.factor = network, channel_noise, network.factor
        # of the times 0 … T, in double precision: noise over signal, three times its square, and the time that has it
        alpha_bar = schedule.alpha_bar[1:]
        ratio = ((1 - alpha_bar) / alpha_bar).log().numpy()
        wanted = np.minimum(ratio + np.log(3), ratio[-1])
        times = np.interp(wanted, ratio, np.arange(1, schedule.T + 1))
        shifted = 1 / (1 + torch.from_numpy(wanted).exp())  # ᾱ'
        table = {
            "shifted_time": torch.from_numpy(times),
            "signal": (shifted / alpha_bar).sqrt(),
            "noise": (1 - shifted).sqrt(),
            "gain": torch.from_numpy(wanted - ratio).mul(0.5).exp(),  # √3, but where t' is T
        }
        for name, values in table.items():
            values = torch.cat([values[:1], values]).float()  # t counts from 1
            self.register_buffer(name, values, persistent=False)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        t = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        predict = schedules.zero_based(self.network)
        if self.channel_noise == "replicated":
            return self._mean(predict(x_t.expand(-1, 3, -1, -1), t))
        signal, noise, gain = (
            table[t].to(x_t.dtype)[:, None, None, None] for table in (self.signal, self.noise, self.gain)
        )
        x = signal * x_t + noise * self._differences(x_t)
        return gain * self._mean(predict(x, self.shifted_time[t]))

    def _mean(self, output: Tensor) -> Tensor:
        return split_prediction(output, 3)[0].mean(1, keepdim=True)

    def _differences(self, x_t: Tensor) -> Tensor:
        """Noise of three channels that is 0 in their mean, otherwise as it was: (1, 3, H, W)."""
        like = x_t[:1].expand(-1, 3, -1, -1)
        eps = noise_like(like, torch.Generator().manual_seed(0))
        return eps - eps.mean(1, keepdim=True)


def published_prior(
    path: str | Path,
    *,
    hu_range: Range,
    layout: str = "released",
    channel_noise: str = "independent",
    device: str | torch.device = "cpu",
) -> DiffusionPipeline:
    """A published unconditional prior as a pipeline of grey images, which samplers take as they take ours.

    path : a bare state dict (``.pt``), read as weights only.
    hu_range : the interval that was mapped to [-1, 1] in its training; for a model of MR images, the intensities. The
        released CT and MR models do not say theirs, so there is no default.
    layout : one of :data:`LAYOUTS`. All were trained on 256x256 pixels, with T = 1000 and the linear schedule, and take
        any H and W (the pipeline pads).
    channel_noise : see :class:`GreyOfThree`.

    Raises CheckpointError with the names of all tensors that do not fit, ParameterError for what is not stated.
    """
    if layout not in LAYOUTS:
        raise ParameterError(f"layout is one of {', '.join(LAYOUTS)}; got {layout!r}")
    if not isinstance(hu_range, Range) or hu_range.model_low != -1:
        raise ParameterError(
            f"hu_range is the units.Range that was mapped to [-1, 1] when the prior was trained; got {hu_range!r}"
        )
    with torch.device("meta"):  # initial weights would be drawn for nothing
        network = UNet(**LAYOUTS[layout])
    network.to_empty(device="cpu")
    checkpoints.load_published(path, network)
    spec = PipelineSpec(process={"schedule": "linear", "T": 1000, "prediction": "eps"})
    grey = GreyOfThree(network.requires_grad_(False).eval(), schedules.linear(), channel_noise)
    return DiffusionPipeline(grey.to(device, memory_format=torch.channels_last), spec, hu_range, {}, device=device)
