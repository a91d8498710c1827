"""Does synthetic CT help a segmenter (NA-Diff, Table 6)? Real slices against real and synthetic ones.

    python -m tests.experiments.downstream [--generator na_diff_spatial] [--steps 600] [--seeds 3] [--json FILE]

Few patients are scanned at the six doses. Their slices alone train a segmenter, or they and as many again for each of
``--factor``: synthetic images of other patients' masks at all doses, or, as what one would wish for, those patients'
own scans. U-Net and TransUNet, each with several seeds, at 128 x 128; mean Dice of five organs on unseen patients, with
95 % intervals by patient.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib import generators
from ldctlib.benchmark.synthesis import ORGANS, Cases, images_of
from ldctlib.data.sdct import ArraySlices
from ldctlib.metrics.segmentation import segmentation_scores
from ldctlib.metrics.statistics import paired_bootstrap
from ldctlib.pipelines.synthesis import WINDOW_RANGE
from ldctlib.recipes.segmentation import ADAMW, TRANSUNET_SMALL, UNET, train_segmenter
from ldctlib.training import TrainConfig
from ldctlib.units import SOFT_TISSUE

SIDE = 128
NETWORKS = {"U-Net": (UNET, 3e-3), "TransUNet": (TRANSUNET_SMALL, 1e-3)}


def small(images_hu: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Both at half the size, the images as a window shows them: a generator knows nothing else."""
    images = images_hu.clamp(SOFT_TISSUE.low, SOFT_TISSUE.high)
    return F.avg_pool2d(images, 256 // SIDE), masks[..., :: 256 // SIDE, :: 256 // SIDE].contiguous()


def dice(network, images: Tensor, masks: Tensor) -> np.ndarray:
    """Mean Dice over organs of each image."""
    with torch.no_grad():
        found = [network(WINDOW_RANGE.to_model(part)).argmax(1, keepdim=True) for part in images.split(16)]
    return np.nanmean(segmentation_scores(torch.cat(found), masks, pixel_mm=1.0, classes=ORGANS).dice, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", default="na_diff_spatial")
    parser.add_argument("--patients", type=int, default=6, help="scanned, of 8 slices each")
    parser.add_argument("--factor", type=int, default=4, help="how many times as many are added")
    parser.add_argument("--test", type=int, default=24, help="unseen patients")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", help="write the scores to this file")
    options = parser.parse_args()
    real, more, test = (
        Cases.of_phantoms(n, seed=9_700_001 + i)
        for i, n in enumerate((options.patients, options.factor * options.patients, options.test))
    )
    made, _ = images_of(generators.load(options.generator), more)
    scanned, unseen = small(real.images_hu, real.masks), small(test.images_hu, test.masks)
    share = options.factor / (1 + options.factor)
    arms = {
        "real": {},
        "real + synthetic": dict(synthetic=small(made, more.masks), share=share),
        "real + as many real": dict(synthetic=small(more.images_hu, more.masks), share=share),
    }
    rows = []
    for name, (network, lr) in NETWORKS.items():
        baseline = None
        for arm, other in arms.items():
            scores = []
            for seed in range(options.seeds):
                samples = ArraySlices(*scanned, **other, seed=seed)
                how = ADAMW | dict(
                    lr=lr, steps=options.steps, batch_size=8, warmup_steps=options.steps // 10, seed=seed
                )
                config = TrainConfig(**how)
                scores.append(dice(train_segmenter(network, samples, config), *unseen))
            each = np.mean(scores, axis=0)  # over seeds
            baseline = each if baseline is None else baseline
            value, low, high = paired_bootstrap(each, test.patients)
            row = {"segmenter": name, "trained on": arm, "Dice": f"{value:.3f} ({low:.3f} … {high:.3f})"}
            gain = paired_bootstrap(each - baseline, test.patients)
            row["gain"] = "" if arm == "real" else "{:+.3f} ({:+.3f} … {:+.3f})".format(*gain)
            row["seeds"] = ", ".join(f"{np.nanmean(s):.3f}" for s in scores)
            rows.append(row)
            print(row, flush=True)
    notes = (
        f"{len(real)} slices of {options.patients} patients, {options.factor} times as many added by "
        f"{options.generator}, {options.steps} steps of 8, {options.seeds} seeds, "
        f"{len(test)} test slices of {options.test} patients"
    )
    print(notes)
    if options.json:
        Path(options.json).write_text(json.dumps({"notes": notes, "rows": rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
