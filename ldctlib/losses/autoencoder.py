"""MAN's autoencoder objective (Eqs 1 to 3): pixels, KL divergence and perceptual distance, with ramped weights.

Everything is in a model's own units.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.losses.perceptual import perceptual_distance
from ldctlib.models.autoencoder import Posterior


@dataclass(frozen=True)
class Ramp:
    """A weight that is 0 up to ``start``, rises linearly, and is ``final`` from ``end`` on.

    start, end : in whatever the caller counts (optimiser steps, epochs); start == end is a switch. MAN ramps "over the
        first 300 epochs" (section 3.2) or "after an initial phase" (section 2.1): both are values of these two.
    """

    final: float
    start: float = 0.0
    end: float = 0.0

    def __post_init__(self):
        if not 0 <= self.start <= self.end:
            raise ParameterError(f"a Ramp needs 0 <= start <= end, got start={self.start}, end={self.end}")
        if not self.final >= 0:
            raise ParameterError(f"a Ramp needs final >= 0, got {self.final}")

    def __call__(self, step: float) -> float:
        if step >= self.end:
            return self.final
        if step <= self.start:
            return 0.0
        return self.final * (step - self.start) / (self.end - self.start)


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, *summed* over the latent of each image: MAN's Eq. 1.

    (B, ...) and the same -> (B,) float32.
    """
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - logvar - 1).flatten(1).sum(dim=1)


@dataclass(frozen=True)
class AutoencoderLoss:
    """MAN's Eq. 3: lambda_1 MSE + lambda_2 L1 + lambda_KL(t) KL + lambda_PL(t) perceptual.

    MSE and L1 are means over pixels. KL is in nats *per pixel*: summed over the latent, divided by the
    image's number of values, averaged over the batch. So ``kl`` takes the weights of the latent diffusion
    literature (1e-6 beside a loss summed over the image) as they are, whatever the image's size.

    features : :class:`VGG16Features`, :class:`EncoderFeatures`, or None for the ``simple`` objective.
    perceptual_images : of a batch, the first ones, in which the perceptual distance is taken; None for all.
    """

    kl: Ramp = Ramp(1e-6)
    perceptual: Ramp = Ramp(0.0)
    features: nn.Module | None = None
    perceptual_images: int | None = None
    mse: float = 1.0  # lambda_1, section 3.2
    l1: float = 0.5  # lambda_2

    def __post_init__(self):
        if (self.features is None) != (self.perceptual.final == 0):
            raise ParameterError("features and a perceptual weight above 0 go together: give both or neither")

    def __call__(self, x_hat: Tensor, x: Tensor, posterior: Posterior, step: float) -> dict[str, Tensor]:
        """All terms unweighted, and their weighted sum as "loss"; ``step`` in the units of the ramps.

        "perceptual" is absent while its weight is 0, because it is the costly one.
        """
        if x_hat.shape != x.shape:
            raise ShapeError(f"reconstruction {tuple(x_hat.shape)} and image {tuple(x.shape)} differ in shape")
        x_hat = x_hat.float()
        terms = {
            "mse": F.mse_loss(x_hat, x),
            "l1": F.l1_loss(x_hat, x),
            "kl": kl_divergence(*posterior).mean() / x[0].numel(),
        }
        loss = self.mse * terms["mse"] + self.l1 * terms["l1"] + self.kl(step) * terms["kl"]
        if weight := self.perceptual(step):
            few = slice(self.perceptual_images)
            terms["perceptual"] = perceptual_distance(self.features.to(x.device), x_hat[few], x[few])
            loss = loss + weight * terms["perceptual"]
        return terms | {"loss": loss}
