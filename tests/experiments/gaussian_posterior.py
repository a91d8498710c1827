"""How far each sampler is from the exact posterior of a Gaussian prior, as a Markdown table.

    python -m tests.experiments.gaussian_posterior

Every pixel is N(0, 1); y = A x + n with noise of .2, A the identity or means over 2 x 2 pixels. The predictor is exact,
so what is left is the sampler. Of what is measured, A x: the slope of its mean in y, its variance about that, and how
often an interval of 90 % of the sampler's own spread holds the truth. Of the rest, x - A⁺A x: its variance.
"""

from __future__ import annotations

import argparse
from math import sqrt

import torch

from ldctlib.diffusion import samplers
from ldctlib.diffusion.plug_and_play import PLUG_AND_PLAY
from ldctlib.diffusion.schedule import named
from ldctlib.operators import BlockMean, Identity

NOISE = 0.2
OPTIONS = {"dds": dict(gamma=1 / NOISE**2), "dps": dict(zeta=0.3)}
NINETY = 1.6449  # standard deviations


def gaussian_posterior(name: str, steps: int, operator, *, side: int = 64, images: int = 8, seed: int = 0) -> dict:
    """Slope, variance and coverage of what is measured, and the variance of the rest, of one sampler."""
    schedule, generator = named("linear", 1000), torch.Generator().manual_seed(seed)
    x = torch.randn(images, 1, side, side, generator=generator)
    y = operator.A(x)
    y = y + NOISE * torch.randn(y.shape, generator=generator)

    def eps(x_t, t):
        return (1 - schedule.alpha_bar[t.long()].to(x_t)).sqrt().reshape(-1, 1, 1, 1) * x_t

    walk = samplers.find(name, PLUG_AND_PLAY, **OPTIONS.get(name, {}))
    x_T = torch.randn(x.shape, generator=generator)
    out = samplers.final(walk(eps, x_T, schedule, schedule.times(steps), operator, y, generator=generator))
    part = operator.A(out)
    slope = float((part * y).sum() / y.square().sum())
    variance = float((part - slope * y).var())
    bias = operator.A(x) - slope * y  # about the sampler's own mean
    inside = float((bias.abs() < NINETY * sqrt(variance)).float().mean())
    rest = out - operator.A_dagger(part)
    return dict(slope=slope, variance=variance, coverage=inside, rest=float(rest.square().mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", default="20,100,1000")
    options = parser.parse_args()
    for title, operator in {"identity": Identity(NOISE), "means over 2 x 2": BlockMean(2, NOISE)}.items():
        prior = 1.0 if isinstance(operator, Identity) else 0.25  # variance of A x
        exact_slope, exact = prior / (prior + NOISE**2), prior * NOISE**2 / (prior + NOISE**2)
        open_part = 0.0 if isinstance(operator, Identity) else 0.75
        print(f"{title}: exact slope {exact_slope:.3f}, variance {exact:.4f}, rest {open_part:.2f}; 90 %\n")
        print("| sampler | steps | slope | variance | the 90 % interval holds | variance of the rest |\n|" + "---|" * 6)
        for name in PLUG_AND_PLAY:
            for steps in map(int, options.steps.split(",")):
                r = gaussian_posterior(name, steps, operator)
                cells = f"{r['slope']:.3f} | {r['variance']:.4f} | {100 * r['coverage']:.0f} % | {r['rest']:.2f}"
                print(f"| {name} | {steps} | {cells} |", flush=True)
        print()


if __name__ == "__main__":
    main()
