"""What a denoiser is, and what those that were trained towards the noise-free truth have in common."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ldctlib.checkpoints import Checkpoint
from ldctlib.ct.noise_model import NoiseModel
from ldctlib.errors import ParameterError
from ldctlib.image import gaussian_blur


class Denoiser(Protocol):
    """What :func:`ldctlib.methods.load` returns."""

    def __call__(
        self,
        ldct: Tensor,
        *,
        noise: NoiseModel | None = None,
        spacing_mm: tuple[float, ...] | None = None,
        generator=None,
    ) -> Tensor: ...


def keep_share(keep: float | None, checkpoint: Checkpoint) -> float:
    """The share to give back: as asked, or the checkpoint's."""
    share = float(checkpoint.trained_on.get("keep", 0.25)) if keep is None else keep
    if not 0 <= share < 1:
        raise ParameterError(f"keep is a share in [0, 1), got {share}")
    return share


def give_back(ldct: Tensor, clean: Tensor, keep: float, mean_px: float) -> Tensor:
    """An estimate of the full-dose image from one of the noise-free truth.

    keep : share of the removed part that is given back. The truth is what networks are trained towards, and 0 gives
        it. The best estimate of a *full-dose image*, which has noise of its own, gives 1/R of the low-dose noise back,
        R the ratio of the variances: about the dose fraction, 1/4 at a quarter dose.
    mean_px : standard deviation of the Gaussian whose local mean of the removed part is put back, so that no
        tissue's HU are shifted; 0 leaves it out.
    """
    removed = ldct - clean
    if mean_px:
        removed = removed - gaussian_blur(removed, mean_px)
    return ldct - (1 - keep) * removed
