"""The round trip of NA-Diff's latents on slices of unseen phantom patients: the ceiling of every variant.

    python -m tests.experiments.noise_autoencoder [--checkpoint na_autoencoder] [--slices 48] [--seed 99]

For each dose: noise drawn over noise scanned, whole and in each band of frequency, inside soft tissue; the noise-free
image against the phantom's (PSNR in the window, mean absolute error); and organs' medians.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from ldctlib import checkpoints
from ldctlib.data.anatomy_masks import CLASSES, TABLES
from ldctlib.data.six_dose import DOSES, scanned_slices

PARTS = ("liver", "spleen", "kidney", "vessel", "heart", "bone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="na_autoencoder", help="a name or a file")
    parser.add_argument("--slices", type=int, default=48)
    parser.add_argument("--seed", type=int, default=99)
    options = parser.parse_args()
    checkpoint = checkpoints.load(checkpoints.find(options.checkpoint))
    model, window = checkpoints.build(checkpoint).eval().requires_grad_(False), checkpoint.range
    drawn = scanned_slices(np.random.default_rng(options.seed), options.slices, a_patient=2)
    clean, noise = (
        torch.stack([torch.from_numpy(getattr(s, name).astype(np.float32)) for s in drawn])[:, None]
        for name in ("clean_hu", "noise_hu")
    )
    mask = torch.stack([torch.from_numpy(TABLES["phantom"][s.labels]) for s in drawn])[:, None]
    generator, soft = torch.Generator().manual_seed(0), (clean > -120) & (clean < 200)
    x_clean, hu = window.to_model(clean).clamp(-1, 1), (window.high - window.low) / 2
    print(f"{'dose':>5} {'noise':>6} {'bands':^36} {'PSNR dB':>8} {'MAE HU':>7}   organs' medians, HU off")
    for dose in DOSES:
        x = window.to_model(clean + noise / dose**0.5).clamp(-1, 1)
        images, made = [], []
        for part in x.split(8):
            z = model.encode(part).sample(generator)
            images.append(model.decode(z))
            made.append(
                model.draw_noise(z, torch.randn(len(part), len(model.nodes), *x.shape[-2:], generator=generator))
            )
        image, made, scanned = torch.cat(images), torch.cat(made), x - x_clean
        ratio = made[soft].std() / scanned[soft].std()
        pairs = zip(model.bands(made).unbind(1), model.bands(scanned).unbind(1), strict=True)
        bands = [float(a[soft[:, 0]].std() / b[soft[:, 0]].std()) for a, b in pairs]
        psnr = (10 * torch.log10(4 / (image - x_clean).square().mean((1, 2, 3)))).mean()
        off = [hu * float((image[at].median() - x_clean[at].median()).abs()) for at in map(mask.eq, ids())]
        print(
            f"{dose:5.0%} {ratio:6.2f} {' '.join(f'{b:5.2f}' for b in bands):^36} {psnr:8.2f} "
            f"{hu * float((image - x_clean).abs().mean()):7.1f}   "
            + ", ".join(f"{name} {o:.0f}" for name, o in zip(PARTS, off, strict=True)),
            flush=True,
        )


def ids() -> list[int]:
    """Of :data:`PARTS` among the classes."""
    return [CLASSES.index(name) for name in PARTS]


if __name__ == "__main__":
    main()
