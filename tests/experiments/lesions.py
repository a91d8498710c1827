"""Faint small lesions in real scans: how much of their contrast do methods keep?

    LDCT_REAL_DATA=... python -m tests.experiments.lesions [--methods nafnet,redcnn] [--slices 2] [--strength 0]

Discs (edge blurred by .6 pixels) are inserted into flat soft tissue of each full-dose slice, which has the scan's own
noise, and of its quarter-dose partner, which has twice that. Kept is the share of notebook 08's Eq. 4: the difference
of the images denoised with and without the disc, projected on the disc. Others are compared with the first method place
by place, with a 95 % interval over slices (of few patients, so it is too narrow for others).
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
from torch import Tensor

from ldctlib import methods
from ldctlib.benchmark.cases import collection_cases
from ldctlib.data.collection import open_collection
from ldctlib.errors import ParameterError
from ldctlib.image import disc, gaussian_blur
from ldctlib.metrics.statistics import paired_bootstrap
from ldctlib.show.notebooks.nb08 import flat_places, patch_at

CONTRASTS_HU = (-20.0, -40.0, -80.0)
DIAMETERS_PX = (2, 3, 4, 6, 10)


def lesions(size: int, row: int, column: int) -> Tensor:
    """Discs of 1 HU about a place, (diameters, 1, size, size)."""
    return torch.stack([gaussian_blur(disc((size, size), (row, column), d / 2), 0.6)[0] for d in DIAMETERS_PX])


def kept(denoise, patch: Tensor, row: int, column: int, **how) -> np.ndarray:
    """Shares (contrasts, diameters)."""
    masks = lesions(patch.shape[-1], row, column)
    both = torch.cat([patch + c * m for c in CONTRASTS_HU for m in masks[:, None]])
    seeds = [torch.Generator().manual_seed(0) for _ in range(len(both) + 1)]  # the same draws for all
    out = denoise(torch.cat([patch, both]), generator=seeds, **how)
    change = (out[1:] - out[:1]).reshape(len(CONTRASTS_HU), len(masks), *patch.shape[-2:])
    norms = torch.tensor(CONTRASTS_HU)[:, None] * masks[:, 0].square().sum((-1, -2))
    return ((change * masks[:, 0]).sum((-1, -2)) / norms).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--methods", default="nafnet", help="names, with options as in nafnet:path=FILE; the first leads"
    )
    parser.add_argument("--slices", type=int, default=2, help="of each scan")
    parser.add_argument("--places", type=int, default=4, help="in each slice")
    options = parser.parse_args()
    loaded = {name: methods.from_spec(name) for name in options.methods.split(",")}
    rows: dict[str, dict[str, list[np.ndarray]]] = {}
    slices: dict[str, list[int]] = {}
    cases = collection_cases(open_collection(os.environ["LDCT_REAL_DATA"]), slices_per_patient=options.slices)
    for number, case in enumerate(cases):
        try:
            places = flat_places(case.reference_hu, options.places)
        except ParameterError:  # bone, lung or vessels everywhere
            print(f"{case.patient}: a slice without flat soft tissue, passed over", flush=True)
            continue
        for noise, image in (("the scan's own", case.reference_hu), ("twice that", case.ldct_hu)):
            for place in places:
                patch, row, column = patch_at(image, place)
                for name, method in loaded.items():
                    shares = kept(method, patch, row, column, spacing_mm=(case.slice_mm, case.pixel_mm, case.pixel_mm))
                    rows.setdefault(noise, {}).setdefault(name, []).append(shares)
                slices.setdefault(noise, []).append(number)
    for noise, of_method in rows.items():
        first = None
        for name, shares in of_method.items():
            table = np.stack(shares)
            print(f"\n{name}, noise {noise}, {len(table)} places: share kept, by diameter (pixels) {DIAMETERS_PX}")
            for contrast, line in zip(CONTRASTS_HU, table.mean(0), strict=True):
                print(f"{contrast:6.0f} HU  " + "  ".join(f"{share:5.2f}" for share in line))
            if first is None:
                first = table
                continue
            gain, low, high = paired_bootstrap((table - first).mean((1, 2)), slices[noise])
            print(f"    against the first: {gain:+.3f} ({low:+.3f} … {high:+.3f})")


if __name__ == "__main__":
    main()
