"""Would nafnet gain if it were told the noise level? One polished at a single level, against the one for all levels.

    python -m tests.experiments.noise_level [--sd 42] [--steps 400] [--out runs/noise_level]

Both are measured on fresh patches with that noise. Who knows the level can gain no more than who sees no other.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from ldctlib import checkpoints, recipes
from ldctlib.data.patches import PatchConfig
from ldctlib.pipelines.regression import RegressionNetwork
from ldctlib.recipes import running

PATCHES, BATCH = 96, 8


@torch.no_grad()
def squared_errors(path: Path, data: PatchConfig) -> torch.Tensor:
    """Of each patch, the mean square in HU²."""
    network = RegressionNetwork.from_checkpoint(checkpoints.load(path), device="cpu", precision="float32")
    stream, errors = data.open(None), []
    for first in range(0, PATCHES, BATCH):
        batch = [stream[n] for n in range(first, first + BATCH)]
        ldct, target = (torch.stack([sample[key] for sample in batch]) for key in ("ldct_hu", "target_hu"))
        errors.append((network.apply_hu(ldct) - target).square().mean((1, 2, 3)))
    return torch.cat(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sd", type=float, default=42.0, help="noise in HU")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("runs/noise_level"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chosen, shipped = recipes.recipe("nafnet"), checkpoints.find("nafnet")
    polish = chosen.stages[-1]
    one_level = replace(polish.data, noise_sd_hu=(0.999 * options.sd, 1.001 * options.sd))
    train = replace(
        polish.train, steps=options.steps, lr=2e-4, warmup_steps=options.steps // 20, checkpoint_every=10**6
    )
    stage = replace(polish, train=train, data=replace(one_level, seed=555))
    part = running.StageRun(stage, 0, options.out / "nafnet.safetensors", None, shipped)
    source = running.Source.open(None, chosen)
    for _ in running.run_stage("nafnet", "train", replace(chosen, stages=(stage,)), part, source, (), train):
        pass
    before, after = (squared_errors(path, replace(one_level, seed=987)) for path in (shipped, part.target))
    gain = 10 * (before / after).log10()
    error = gain.std() / len(gain) ** 0.5
    print(
        f"{options.sd:g} HU: the specialist gains {gain.mean():+.3f} dB (standard error {error:.3f}, {PATCHES} patches)"
    )


if __name__ == "__main__":
    main()
