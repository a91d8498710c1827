"""Every shipped checkpoint gives the image that it gave when ``digests.json`` was made: a sample of its pixels.

On the machine that made them outputs agree to 0.0005 HU. Elsewhere thirty steps of another processor's rounding are
let pass; a change of a tenth of a HU is a change of the method.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ldctlib import checkpoints, methods

DIGESTS = json.loads((Path(__file__).parent / "digests.json").read_text())
EVERY = 313  # pixels between two that are kept
METHODS = {
    "nafnet keep 0": ("nafnet", {}),
    "nafnet keep .25": ("nafnet", dict(residual_noise=0.25)),
    "nafnet 8 turns, no mean": ("nafnet", dict(residual_noise=0.1, self_ensemble=8, preserve_mean_px=0)),
    "redcnn keep .25": ("redcnn", dict(residual_noise=0.25)),
    "round_trip": ("round_trip", {}),
    "round_trip simple": ("round_trip", dict(path=checkpoints.find("autoencoder_simple"))),
    "man 30": ("man", dict(residual_noise=0.25)),
    "man fast": ("man_fast", {}),
    "man_simple 6": ("man_simple", dict(steps=6)),
    "man_paper 6": ("man_paper", dict(steps=6)),
    "man mid-chain ddpm": ("man", dict(steps=4, start=300, sampler="ddpm")),
    "man dpm": ("man", dict(steps=5, sampler="dpm_solver_pp_2m", num_samples=2)),
    "man eta": ("man", dict(steps=5, eta=0.5)),
    "ddpm 6": ("ddpm", dict(residual_noise=0.25, steps=6)),
    "ddpm ancestral": ("ddpm", dict(steps=5, sampler="ddpm", spacing="uniform")),
    "fast_ddpm": ("fast_ddpm", {}),
    "ddnm, a noise told": ("ddnm", dict(steps=5, fixed_sd_unit=0.1)),
    "dndp": ("dndp", dict(num_samples=1, steps=4, rerun=2)),
    "gaussian": ("gaussian", {}),
    "nlm": ("nlm", {}),
    "bm3d": ("bm3d", {}),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def image(seed: int, h: int = 104, w: int = 88) -> torch.Tensor:
    """An oval with discs, a bone and correlated noise, (1, 1, h, w) HU, from NumPy's numbers alone."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    y, x = (y - (h - 1) / 2) / h, (x - (w - 1) / 2) / w
    hu = np.full((h, w), -1000.0)
    hu[(x / 0.45) ** 2 + (y / 0.4) ** 2 < 1] = 45.0
    for _ in range(12):
        cx, cy, r = rng.uniform(-0.3, 0.3), rng.uniform(-0.25, 0.25), rng.uniform(0.02, 0.09)
        hu[np.hypot(x - cx, y - cy) < r] += rng.uniform(-120, 160)
    hu[np.hypot(x, y - 0.28) < 0.06] = 700.0
    n = rng.normal(0, 1, (h + 2, w + 2))
    n = (n[1:-1, 1:-1] * 2 + n[:-2, 1:-1] + n[2:, 1:-1] + n[1:-1, :-2] + n[1:-1, 2:]) / 8**0.5
    return torch.from_numpy((hu + 45 * n).astype(np.float32))[None, None]


@pytest.mark.parametrize("name", DIGESTS)
def test_a_shipped_method_gives_the_image_that_it_gave(name):
    method, options = METHODS[name]
    if method == "bm3d":
        pytest.importorskip("bm3d")
    denoise = methods.load(method, **options)
    spacing = (3.0, 0.75, 0.75)
    out = [denoise(image(s), spacing_mm=spacing, generator=torch.Generator().manual_seed(5)) for s in range(2)]
    values = torch.cat(out).flatten()[::EVERY].numpy()
    np.testing.assert_allclose(values, DIGESTS[name]["values"], rtol=0, atol=0.1)
