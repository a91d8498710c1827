"""Do draws differ as much as they err? The mean of eight draws against what their scatter says, by temperature.

    python -m tests.experiments.draws [--method man] [--temperatures 1,.9,.8,.7,.6,.5] [--patients 2] [--tuning]

For draws from the true posterior the truth is as one more draw: the mean of n errs sqrt(1 + 1/n) times their scatter.
Printed is the mean error divided by that, over the body and over its soft tissue (1: as the scatter says, below 1: the
draws differ more than they err); beside it a draw's PSNR and the spectrum of what it removed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ldctlib import checkpoints, metrics
from ldctlib.benchmark.cases import phantom_cases, unseen_seeds
from ldctlib.benchmark.measures import METRICS
from ldctlib.diffusion import samplers
from ldctlib.pipelines import DiffusionPipeline
from ldctlib.units import SOFT_TISSUE
from tests.experiments.few_steps import TUNING_SEED

N = 8


def row(pipeline: DiffusionPipeline, case, **options) -> list[float]:
    """Mean error over what the scatter says, in the body and in its soft tissue; a draw's PSNR; NPS distance."""
    size = case.ldct_hu.shape[-2:]
    generator = torch.Generator().manual_seed(0)
    z = samplers.final(pipeline.steps(case.ldct_hu, num_samples=N, generator=generator, **options))
    x, truth = pipeline.decode(z, size), case.reference_hu
    body = metrics.body_mask(truth)
    squared, variance = (x.mean(0, keepdim=True) - truth).square(), x.var(0, keepdim=True) * (1 + 1 / N)
    ratios = [
        (squared[mask].mean() / variance[mask].mean()).sqrt().item()
        for mask in (body, body & (truth > SOFT_TISSUE.low) & (truth < SOFT_TISSUE.high))
    ]
    draws = [METRICS["psnr"].function(each[None], case, SOFT_TISSUE) for each in x]
    return [*ratios, sum(draws) / N, METRICS["nps_shape_distance"].function(x[:1], case, SOFT_TISSUE)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="man", help="the name or the path of its checkpoint")
    parser.add_argument("--temperatures", default="1,.9,.8,.7,.6,.5")
    parser.add_argument("--doses", default=".25,.1")
    parser.add_argument("--patients", type=int, default=2)
    parser.add_argument("--crop", type=int, default=192)
    parser.add_argument("--tuning", action="store_true", help="on the patients that few_steps tunes on")
    options = parser.parse_args()
    path = Path(options.method)
    pipeline = DiffusionPipeline.from_checkpoint(path if path.is_file() else checkpoints.find(options.method))
    seeds = unseen_seeds(options.patients, TUNING_SEED) if options.tuning else unseen_seeds(options.patients)
    look = dict(kernels=("B30f", "D45f"), crop=options.crop)
    cases = phantom_cases(seeds, [float(dose) for dose in options.doses.split(",")], **look)
    groups = list(dict.fromkeys((case.group, case.dose) for case in cases))
    print("temperature  images              body  soft tissue   PSNR of a draw   NPS distance")
    with torch.no_grad():
        for temperature in map(float, options.temperatures.split(",")):
            for group in groups:
                rows = [row(pipeline, c, temperature=temperature) for c in cases if (c.group, c.dose) == group]
                body, soft, psnr, nps = torch.tensor(rows).mean(0).tolist()
                name = f"{group[0]}, {group[1]:g}"
                print(
                    f"{temperature:11.2f}  {name:18} {body:5.2f}  {soft:11.2f}  {psnr:15.2f}  {nps:13.3f}", flush=True
                )


if __name__ == "__main__":
    main()
