"""Regression networks: one pass from the low-dose image to the noise-free one."""

from __future__ import annotations

from pathlib import Path

import torch

from ldctlib import checkpoints
from ldctlib.errors import ParameterError
from ldctlib.methods.denoiser import Trained
from ldctlib.pipelines import RegressionNetwork, published_network
from ldctlib.units import Range


def network(*, device, name: str, path=None, hu_range: Range | None = None, self_ensemble: int = 1) -> Trained:
    """A regression network.

    path : another checkpoint than the shipped one, or a ``.pt`` file of the benchmark suite ``ldct-benchmark``.
    hu_range : of a ``.pt`` file, where it does not say its normalisation (``pipelines.published_benchmark``).
    self_ensemble : average over 1, 2, 4 or 8 flips and transpositions.
    """
    if path is not None and Path(path).suffix in (".pt", ".pth"):
        regression = published_network(path, layout=name.replace("_", ""), hu_range=hu_range, device=device)
        output = "full dose"
    else:
        if hu_range is not None:
            raise ParameterError("hu_range is for a published .pt file: a checkpoint records its own")
        checkpoint = checkpoints.load(path or name, map_location=device)
        regression, output = RegressionNetwork.from_checkpoint(checkpoint, device=device), checkpoint.output
    if self_ensemble not in (1, 2, 4, 8):
        raise ParameterError(f"self_ensemble is 1, 2, 4 or 8, got {self_ensemble}")

    def denoise(ldct, *, noise, spacing_mm, generator):
        out = []
        for x in ldct.split(1):  # one slice at a time: memory stays that of one
            x, passes = x.to(device), []
            for i in range(self_ensemble):
                flips = [d for d, bit in ((2, 1), (3, 2)) if i & bit]  # first: they keep the shape
                turned = torch.flip(x, flips)
                turned = turned.transpose(2, 3) if i & 4 else turned
                y = regression.apply_hu(turned)
                passes.append(torch.flip(y.transpose(2, 3) if i & 4 else y, flips))
            out.append(torch.stack(passes).mean(0).to(ldct.device))
        return torch.cat(out)

    return Trained(denoise, output)
