"""How well autoencoders reconstruct full-dose phantoms of unseen patients (LEDA, Table 4, left half).

    python -m tests.experiments.reconstruction [--patients 40] [--autoencoders vqgan_learned,vqgan_vocabulary]

PSNR and SSIM with 95 % intervals by patient, distances of distributions in VGG-16's features (KD of relu3_3, FD of
relu2_2: torchvision's weights must be in torch's cache), and how much of the vocabulary is in use.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ldctlib import metrics
from ldctlib.metrics.backbones import image_features
from ldctlib.metrics.distribution import frechet_distance, kernel_distance
from ldctlib.models.vqgan import VQGAN_RANGE
from ldctlib.units import SOFT_TISSUE
from tests.experiments.words import network, phantom_set

NAMES = "vqgan_learned,vqgan_vocabulary,vqgan_semantic"


@torch.no_grad()
def reconstruct(autoencoder, images_hu: torch.Tensor) -> tuple[torch.Tensor, list[np.ndarray]]:
    """Reconstructions in HU, and how often each word was found in layers 1 to 3."""
    out, counts = [], [np.zeros(len(autoencoder.quantiser.codebook), int) for _ in range(3)]
    for x in images_hu.split(4):
        made = autoencoder(VQGAN_RANGE.to_model(x))
        out.append(VQGAN_RANGE.from_model(made.image))
        for count, indices in zip(counts, made.quantised.indices, strict=True):
            count += np.bincount(indices.flatten().numpy(), minlength=len(count))
    return torch.cat(out), counts


def perplexity(counts: np.ndarray) -> float:
    """The number of words that, used equally often, would be as hard to guess."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--autoencoders", default=NAMES, help="checkpoints' names or files")
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    images, _, drawn = phantom_set(options.patients, 9_200_001, options.size)
    patients = [each.patient for each in drawn]
    see = partial(image_features, window=SOFT_TISSUE)
    seen = {layer: see(images.split(16), layer=layer) for layer in ("relu2_2", "relu3_3")}
    print(f"{len(images)} slices of {options.patients} patients, {options.size}², window {SOFT_TISSUE}\n")
    print("| autoencoder | PSNR (dB) | SSIM | KD(vgg16, relu3_3) | FD(vgg16, relu2_2) | words used, layers 1, 2, 3 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.autoencoders.split(","):
        made, counts = reconstruct(network(name), images)
        cells = []
        for metric, digits in ((metrics.psnr, 2), (metrics.ssim, 3)):
            values = metric(made, images, window=SOFT_TISSUE).flatten().numpy()
            mean, low, high = metrics.paired_bootstrap(values, patients)
            cells.append(f"{mean:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})")
        for layer, distance in (("relu3_3", kernel_distance), ("relu2_2", frechet_distance)):
            found = see(made.split(16), layer=layer)
            d = distance(found, seen[layer], patients=patients, reference_patients=patients)
            cells.append(f"{d.value:.3g} ({d.low:.3g} … {d.high:.3g})")
        used = ", ".join(f"{(c > 0).sum()} ({perplexity(c):.0f})" for c in counts)
        print(f"| {Path(name).stem} | {' | '.join(cells)} | {used} |", flush=True)


if __name__ == "__main__":
    main()
