"""Are images of the generators copies of training images? Each one's nearest training image, beside an unseen scan's.

    python -m tests.experiments.copies [--generators na_diff_f,na_diff_spatial] [--patients 8] [--images 8192]

The training images are those that the recipes encode. Unseen are scans of other patients, through the autoencoder so
that they are as smooth as samples are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from ldctlib import generators, recipes
from ldctlib.benchmark.synthesis import Cases, images_of, round_trip
from ldctlib.data.six_dose import SixDoseSlices
from ldctlib.metrics.copies import copies, nearest_training
from ldctlib.units import SOFT_TISSUE


def training_images(count: int, batch: int = 64) -> Iterator[Tensor]:
    samples = SixDoseSlices(recipes.recipe("na_diff_f").stages[0].data)
    for first in range(0, count, batch):
        yield torch.stack([samples[n]["image_hu"] for n in range(first, min(first + batch, count))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generators", default="na_diff_a,na_diff_f,na_diff_spatial")
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--images", type=int, default=8192)
    options = parser.parse_args()
    cases, others = (Cases.of_phantoms(options.patients, seed=9_850_001 + i) for i in range(2))
    loaded = {name: generators.load(name) for name in options.generators.split(",")}
    sets = {name: images_of(generate, cases)[0] for name, generate in loaded.items()}
    pipeline = next(iter(loaded.values())).pipeline
    unseen, _ = round_trip(pipeline, others)
    sets["other unseen patients"], _ = round_trip(pipeline, cases)
    n = len(unseen)
    found = nearest_training(torch.cat([unseen, *sets.values()]), training_images(options.images), SOFT_TISSUE)
    parts = [type(found)(*(values[i : i + n] for values in found)) for i in range(0, len(found.indices), n)]
    print(f"{n} images of a set, {options.images} training images; distance of 1 is a correlation of .5")
    print("| set | median distance | the nearest | suspects | nearer than unseen |")
    print("| --- | --- | --- | --- | --- |")
    print(f"| unseen patients | {parts[0].distances.median():.2f} | {parts[0].distances.min():.2f} | | |")
    for name, own in zip(sets, parts[1:], strict=True):
        c = copies(own, parts[0])
        near = f"{own.distances.median():.2f} | {own.distances.min():.2f}"
        print(f"| {name} | {near} | {len(c.suspects)} | {c.nearer:.2f} |")


if __name__ == "__main__":
    main()
