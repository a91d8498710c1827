"""Regression networks: one pass from the low-dose image to the noise-free one."""

from __future__ import annotations

import torch

from ldctlib import checkpoints
from ldctlib.errors import ParameterError
from ldctlib.methods.denoiser import Denoiser, give_back, keep_share
from ldctlib.units import Range


def one_pass(model: torch.nn.Module, span: Range, x_hu: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W) in HU through a regression network of that range and back, of any size."""
    least = getattr(model, "min_size", 1)  # RED-CNN's unpadded convolutions need some pixels
    h, w = x_hu.shape[-2:]
    if min(h, w) < least:
        x_hu = torch.nn.functional.pad(x_hu, (0, max(0, least - w), 0, max(0, least - h)), mode="replicate")
    return span.from_model(model(span.to_model(x_hu)))[..., :h, :w]


def network(
    *, device, name: str, path=None, keep: float | None = None, mean_px: float = 12.0, turns: int = 1
) -> Denoiser:
    """A regression network trained towards the noise-free truth.

    keep, mean_px : see :func:`~ldctlib.methods.denoiser.give_back`.
    turns : 1, 2, 4 or 8 turned and mirrored passes averaged.
    """
    checkpoint = checkpoints.load(path or checkpoints.shipped(name), map_location=device)
    model = checkpoints.build(checkpoint, map_location=device).to(memory_format=torch.channels_last)
    share = keep_share(keep, checkpoint)
    if turns not in (1, 2, 4, 8):
        raise ParameterError(f"turns is 1, 2, 4 or 8, got {turns}")
    span = checkpoint.range

    def denoise(ldct, *, noise, spacing_mm, generator):
        home = ldct.device
        out = []
        for x in ldct.to(device).split(1):  # one slice at a time: memory stays that of one
            views = []
            for i in range(turns):
                # half-turn and mirrors first: they keep the shape
                flips = [d for d, bit in ((2, 1), (3, 2)) if i & bit]
                v = torch.flip(x, flips)
                v = one_pass(model, span, v.transpose(2, 3)).transpose(2, 3) if i & 4 else one_pass(model, span, v)
                views.append(torch.flip(v, flips))
            clean = torch.stack(views).mean(0)
            out.append(give_back(x, clean, share, mean_px))
        return torch.cat(out).to(home)

    return denoise
