"""The loss of the LLM-guided autoencoder (LEDA, Eq. 2), with VQGAN's adaptive weight (Esser et al. 2021, Eq. 7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.errors import ParameterError
from ldctlib.losses.adversarial import hinge_generator
from ldctlib.models.vqgan import Reconstruction


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """||gradient of the reconstruction|| / (||gradient of the adversarial loss|| + 1e-4), at most 1e4, detached.

    Both losses are scalars of one graph, and the gradients those in the decoder's last weight.
    """
    norms = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4).detach()


SEMANTIC_FLOOR = 1.0
"""L_semantic counts as this at least in omega. Eq. 1 never comes near it; of any candidate it can reach 0."""


@dataclass(frozen=True)
class VQGANLoss:
    """L_VQGAN + alpha * omega * L_semantic, where omega = L_VQGAN / L_semantic carries no gradient.

    perceptual : distance of two batches of images in [0, 1]; None leaves it out.
    recipe : "paper": MSE + beta * commitment + gamma * GAN + eta * perceptual (section 2.1, with lambda of its text
        read as gamma). "released": L1 + perceptual + commitment + .8 * adaptive weight * GAN.
    alpha, beta, gamma, eta : of the paper's recipe; alpha of both.
    discriminator_start : training step from which the GAN counts; the released code's is 12,000.

    A learned codebook adds its own loss at weight 1. The hinge loss may be negative and L_VQGAN with it: omega is
    then 0, since a negative one would drive the words away.
    """

    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    recipe: str = "paper"
    alpha: float = 0.3
    beta: float = 0.3
    gamma: float = 0.1
    eta: float = 0.1
    discriminator_start: int = 0

    def __post_init__(self):
        if self.recipe not in ("paper", "released"):
            raise ParameterError(f"recipe is 'paper' or 'released', got {self.recipe!r}")
        if min(self.alpha, self.beta, self.gamma, self.eta, self.discriminator_start) < 0:
            raise ParameterError("weights and discriminator_start must not be negative")

    def __call__(
        self,
        x: Tensor,
        reconstruction: Reconstruction,
        step: int,
        *,
        discriminator: Callable[[Tensor], Tensor] | None = None,
        last_layer: Tensor | None = None,
        semantic: Tensor | None = None,
        learned: bool = False,
    ) -> dict[str, Tensor]:
        """All terms unweighted, and their weighted sum as "loss".

        x : images (B, 1, H, W) in [0, 1].
        discriminator : gives logits; absent, or before its start, there is no GAN term.
        last_layer : for the adaptive weight of the released recipe.
        semantic : L_semantic; None for the variants without it.
        learned : whether the codebook is a parameter.
        """
        image, quantised = reconstruction
        paper = self.recipe == "paper"
        pixels = F.mse_loss(image, x) if paper else F.l1_loss(image, x)
        terms = {"mse" if paper else "l1": pixels, "commitment": quantised.commitment}
        fidelity = pixels
        if self.perceptual is not None and (self.eta > 0 or not paper):
            terms["perceptual"] = self.perceptual(image, x)
            fidelity = pixels + (self.eta if paper else 1.0) * terms["perceptual"]
        loss = fidelity + (self.beta if paper else 1.0) * quantised.commitment
        if learned:
            loss = loss + quantised.codebook_loss
        if discriminator is not None and self.gamma > 0 and step >= self.discriminator_start:
            terms["gan"] = hinge_generator(discriminator(image))
            weight = self.gamma
            if not paper:
                terms["adaptive"] = adaptive_weight(fidelity, terms["gan"], last_layer)
                weight = 0.8 * terms["adaptive"]
            loss = loss + weight * terms["gan"]
        if semantic is not None:
            omega = (loss / semantic.clamp(min=SEMANTIC_FLOOR)).detach().clamp(min=0)
            terms |= {"semantic": semantic.detach(), "omega": omega}
            loss = loss + self.alpha * omega * semantic
        return {name: term.detach() for name, term in terms.items()} | {"loss": loss}
