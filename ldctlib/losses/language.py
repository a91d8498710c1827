"""Language as a loss (LEDA: Chen et al. 2024): words for an image (Eq. 1), and images of the same words (Eq. 3)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.models.vqgan import VQGAN, VQGAN_RANGE
from ldctlib.units import Range

THRESHOLDS = (0.95, 0.9, 0.8)
"""rho_l of the layers' candidate pools (section 3.1)."""

CHUNK = 2**25
"""Logits that exist at a time in the semantic loss."""


def candidate_pools(similarities: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Tensor:
    """Words that may stand for an image, layer by layer: (B, V) similarities -> bool (B, layers, V).

    Each image's similarities are normalised to [0, 1] over the vocabulary first: raw cosines of an image with all words
    lie so close together that no threshold tells them apart. The most similar word is in every pool, so none is empty.
    Words of similarity -inf take no part. Raises ParameterError where an image has nothing else, for other similarities
    that are not finite, and for thresholds outside (0, 1].
    """
    if similarities.ndim != 2 or similarities.shape[1] < 2:
        raise ShapeError(f"similarities are (B, V) with two words or more, got {tuple(similarities.shape)}")
    taking_part = similarities > -torch.inf
    high = similarities.amax(dim=1, keepdim=True)
    if not torch.isfinite(high).all() or not all(0 < t <= 1 for t in thresholds):  # NaN anywhere is the highest
        raise ParameterError(f"needs finite similarities and thresholds in (0, 1], got thresholds {tuple(thresholds)}")
    low = torch.where(taking_part, similarities, torch.inf).amin(dim=1, keepdim=True)
    relative = torch.where(high > low, (similarities - low) / (high - low), taking_part.to(similarities.dtype))
    return relative[:, None] >= relative.new_tensor(thresholds)[:, None]


def semantic_loss(
    embeddings: Sequence[Tensor], codebook: Tensor, candidates: Tensor, *, temperature: float = 1.0, of: str = "every"
) -> Tensor:
    """Eq. 1: minus log softmax over the vocabulary of -||z_l - e(k)||^2, averaged over candidates, positions, layers.

    embeddings : z_l of every layer, (B, C, h_l, w_l); the gradient goes into these.
    codebook : e(k), (V, C).
    candidates : (B, layers, V), True or weights: the words that are right for the image on that layer.
    temperature : divides the squared distances. 1 is the paper's; others deviate from it, for codewords so short that
        the softmax is flat, or so long that it is a step.
    of : "every" averages over the candidates, as the paper: the pull is towards their mean. "any" deviates from it:
        minus the log of the probability of all candidates together, whose pull is towards the nearest ones.

    ||z||^2 stands above and below in the softmax and cancels, so that Eq. 1 is mean ||e_c||^2 - 2 z . mean e_c +
    logsumexp(2 z . e_k - ||e_k||^2), which needs one product a vocabulary; it is recomputed in the backward pass.
    """
    batch, layers, size = candidates.shape if candidates.ndim == 3 else (0, 0, 0)
    if (layers, size) != (len(embeddings), len(codebook)) or any(len(z) != batch for z in embeddings):
        raise ShapeError(
            f"candidates must be (images, layers, words) of {len(embeddings)} layers and {len(codebook)} words, got "
            f"{tuple(candidates.shape)} for {[tuple(z.shape) for z in embeddings]}"
        )
    weights = candidates.to(codebook.dtype)
    totals = weights.sum(dim=-1, keepdim=True)
    if not (totals > 0).all():
        raise ParameterError("every image needs a candidate on every layer")
    if not temperature > 0:
        raise ParameterError(f"temperature must be positive, got {temperature}")
    if of not in ("every", "any"):
        raise ParameterError(f"of is 'every' or 'any' candidate, got {of!r}")
    with torch.autocast(codebook.device.type, enabled=False):
        squares, losses = codebook.square().sum(dim=1), []
        if of == "every":
            weights = weights / totals
            mean_word, mean_square = weights @ codebook, weights @ squares  # (B, layers, C) and (B, layers)
        for layer, z in enumerate(embeddings):
            z = z.float().flatten(2).transpose(1, 2)  # (B, positions, C)
            pools = weights[:, layer].log() if of == "any" else None
            loss = _mean_log_sum(z, codebook, squares, temperature, pools)
            if of == "every":
                right = mean_square[:, layer, None] - 2 * (z * mean_word[:, layer, None]).sum(dim=-1)
                loss = loss + (right / temperature).mean()
            losses.append(loss)
        return torch.stack(losses).mean()


def _mean_log_sum(z: Tensor, codebook: Tensor, squares: Tensor, temperature: float, pools: Tensor | None) -> Tensor:
    """Mean over z (B, N, C) of logsumexp_k((2 z . e_k - ||e_k||^2) / temperature), a chunk at a time.

    pools : (B, V), logarithms of weights: less the same sum with them added.
    """

    def chunk(part: Tensor, pool: Tensor | None, words: Tensor, offsets: Tensor) -> Tensor:
        logits = torch.addmm(offsets, part, words.T, beta=-1, alpha=2) / temperature
        total = logits.logsumexp(dim=1)
        return (total if pool is None else total - (logits + pool).logsumexp(dim=1)).sum()

    rows = max(1, CHUNK // len(codebook))
    if pools is None:
        parts = [(part, None) for part in z.flatten(0, 1).split(rows)]
    else:
        parts = [(part, pool) for of_image, pool in zip(z, pools, strict=True) for part in of_image.split(rows)]
    count = z.shape[0] * z.shape[1]
    if sum(len(part) for part, _ in parts) <= rows:  # all logits at once are few
        return sum(chunk(*part, codebook, squares) for part in parts) / count
    return sum(checkpoint(chunk, *part, codebook, squares, use_reentrant=False) for part in parts) / count


PLAUSIBLE = (-2.0, 3.0)
"""In units of :data:`~ldctlib.models.vqgan.VQGAN_RANGE`, -7000 to 8000 HU: what lies beyond is in another unit."""


class Features(NamedTuple):
    """What LEDA compares of an image."""

    continuous: Tensor  # after quant_conv
    discrete: Tensor | None  # mean codewords, with the straight-through gradient; None without LEDA-D


class LEDALoss(nn.Module):
    """Eq. 3's second term, weight * (||z - z_hat||^2 + ||z_q - z_q_hat||^2), both as means; for any denoiser:

        leda = LEDALoss(autoencoder)
        prediction = denoiser(ldct)
        loss = mse_loss(prediction, ndct) + leda(prediction, ndct)

    autoencoder : a trained VQGAN; a frozen copy is kept, through whose encoder the gradient flows.
    weight : lambda, .5 in the paper.
    continuous, discrete : LEDA-C and LEDA-D of Table 3, one at a time or both.
    image_range : the range that the images come in; None for HU. By default [0, 1] for -1000 to 2000 HU, as the
        autoencoder sees them.

    The discrete term's gradient goes straight through: in z_hat it is 2 (z_q_hat - z_q) / number of values, and not
    zero, although z_q_hat is constant almost everywhere. Sides must be multiples of ``autoencoder.multiple`` (with
    LEDA-C alone of ``factor``). :meth:`features` of a reference can be computed once and given in its place.

    Raises ShapeError for other images, and ParameterError for values that are not finite or in another unit.
    """

    def __init__(
        self,
        autoencoder: VQGAN,
        weight: float = 0.5,
        *,
        continuous: bool = True,
        discrete: bool = True,
        image_range: Range | None = VQGAN_RANGE,
    ):
        super().__init__()
        if not (continuous or discrete) or not weight >= 0:
            raise ParameterError(
                f"LEDA needs a weight of 0 or more and one of its spaces, got {weight=}, {continuous=}, {discrete=}"
            )
        self.autoencoder = copy.deepcopy(autoencoder).requires_grad_(False).eval()
        self.weight, self.continuous, self.discrete, self.image_range = weight, continuous, discrete, image_range

    def train(self, mode: bool = True) -> LEDALoss:
        return super().train(False)

    def features(self, images: Tensor, name: str = "image") -> Features:
        """Continuous and discrete features of images in ``image_range``; errors call it ``name``."""
        given = images
        if self.image_range != VQGAN_RANGE:
            hu = images if self.image_range is None else self.image_range.from_model(images)
            images = VQGAN_RANGE.to_model(hu)
        if images.numel():  # others are refused for their shape
            low, high = torch.stack(torch.aminmax(images.detach())).tolist()
            if not PLAUSIBLE[0] <= low <= high <= PLAUSIBLE[1]:  # NaN is neither
                raise ParameterError(self._implausible(given.detach(), name))
        if self.discrete:
            quantised = self.autoencoder.quantise(images)
            return Features(quantised.z, quantised.z_q)
        return Features(self.autoencoder.encode(images), None)

    def _implausible(self, images: Tensor, name: str) -> str:
        if not torch.isfinite(images).all():
            return f"the {name} has values that are not finite: mend the input, or the training that made it"
        unit = "HU (image_range=None)" if self.image_range is None else f"image_range={self.image_range}"
        values = f"{images.min().item():g} to {images.max().item():g}"
        return f"the {name} has values from {values}, far outside {unit}: say what range they are in, or clip them"

    def terms(self, prediction: Tensor, reference: Tensor | Features) -> dict[str, Tensor]:
        """The terms that are asked for, unweighted: "leda_c" and "leda_d"."""
        if not isinstance(reference, Features):
            if prediction.shape != reference.shape:
                raise ShapeError(f"prediction {tuple(prediction.shape)} and reference {tuple(reference.shape)} differ")
            with torch.no_grad():
                reference = self.features(reference, "reference")
        estimate, terms = self.features(prediction, "prediction"), {}
        if self.discrete and reference.discrete is None:
            raise ParameterError("the kept features of the reference are those of a loss without LEDA-D")
        if estimate.continuous.shape != reference.continuous.shape:
            shapes = f"{tuple(estimate.continuous.shape)} and {tuple(reference.continuous.shape)}"
            raise ShapeError(f"features of prediction and reference differ: {shapes}")
        if self.continuous:
            terms["leda_c"] = F.mse_loss(estimate.continuous.float(), reference.continuous.float())
        if self.discrete:
            terms["leda_d"] = F.mse_loss(estimate.discrete, reference.discrete)
        return terms

    def forward(self, prediction: Tensor, reference: Tensor | Features) -> Tensor:
        return self.weight * sum(self.terms(prediction, reference).values())
