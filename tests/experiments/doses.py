"""Does noise follow the dose that was asked for, and does a judge of images see it (NA-Diff, Table 4)?

    python -m tests.experiments.doses [--generators na_diff_b,na_diff_f,...] [--patients 24]

One slice of each unseen phantom patient, at six doses with one seed. Of the noise in the liver: its standard deviation
over the conditioned map's at each dose, the slope of its logarithm over the dose's (-1/2 for quantum noise) and the
rank correlation with the dose, image by image; judged quality, 0 to 4; 95 % intervals by patient. "scan" and "round
trip" are what the generators are held against; a generator that sees no noise map is the control.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch

from ldctlib import generators
from ldctlib.benchmark.synthesis import Cases, images_of, noise_obedience, round_trip
from ldctlib.data.six_dose import DOSES
from ldctlib.errors import ParameterError
from ldctlib.metrics.obedience import dose_response
from ldctlib.metrics.statistics import paired_bootstrap
from ldctlib.pipelines.segmentation import quality

DEFAULT = "na_diff_a,na_diff_b,na_diff_d,na_diff_e,na_diff_f,na_diff_spatial"


def told(values: np.ndarray, patients: np.ndarray, digits: int = 2) -> str:
    there = np.isfinite(values)
    value, low, high = paired_bootstrap(values[there], patients[there])
    return f"{value:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generators", default=DEFAULT)
    parser.add_argument("--patients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=9_800_001)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    drawn = Cases.of_phantoms(options.patients, seed=options.seed, a_patient=1)
    clean = drawn.images_hu - drawn.noise_hu
    full = drawn.noise_hu * torch.from_numpy(drawn.doses**0.5).float()[:, None, None, None]
    cases = {d: replace(drawn, noise_hu=full / d**0.5, images_hu=clean + full / d**0.5) for d in DOSES}
    loaded = {name: generators.load(name) for name in options.generators.split(",")}
    sets = {"scan": lambda c: (c.images_hu, c.noise_hu)}
    latent = next((g.pipeline for g in loaded.values() if g.pipeline.spec.autoencoder is not None), None)
    if latent is not None:
        sets["round trip"] = lambda c: round_trip(latent, c)
    sets |= {name: lambda c, g=g: images_of(g, c, steps=options.steps) for name, g in loaded.items()}
    print("| set | " + " | ".join(f"{d:.0%}" for d in DOSES) + " | slope | rank correlation |")
    print("| --- |" + " --- |" * (len(DOSES) + 2))
    judged = []
    for name, make in sets.items():
        ratios, sds, scores = [], [], []
        for case in cases.values():
            images, noise = make(case)
            scores.append(quality(images).numpy())
            if noise is not None:
                ratio, _ = noise_obedience(images - noise, noise, case)
                ratios.append(ratio)
                sds.append(ratio * case.noise_map_hu.mean(dim=(1, 2, 3)).numpy())
        if ratios:
            try:
                r = dose_response(DOSES, np.stack(sds, axis=1))
                response = f"{r.slope:.3f} ({r.low:.3f} … {r.high:.3f}) | {r.spearman:.3f}"
            except ParameterError:
                response = "– | –"
            row = " | ".join(told(ratio, drawn.patients) for ratio in ratios)
            print(f"| {name}, noise made / asked | {row} | {response} |", flush=True)
        row = " | ".join(told(score, drawn.patients) for score in scores)
        ranks = dose_response(DOSES, np.maximum(np.stack(scores, axis=1), 1e-3)).spearman
        judged.append(f"| {name}, judged quality | {row} | | {ranks:.3f} |")
    print("\n".join(judged))


if __name__ == "__main__":
    main()
