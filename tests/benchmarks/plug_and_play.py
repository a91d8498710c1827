"""Plug-and-play samplers: time of a step beside bare DDIM's, time of a slice, peak memory; each in its own process.

    python -m tests.benchmarks.plug_and_play
    python -m tests.benchmarks.plug_and_play --size 128 --steps 4       # quickly

A few steps are timed and multiplied by each method's number of them. Speed does not depend on weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import islice

from tests.benchmarks.man import between_steps, peak_mib

BARE = "DDIM, no measurement"
SAMPLERS = {  # name -> what is measured, sampler, steps of a slice
    BARE: ("image", None, 20),
    "ddnm_white": ("image", "ddnm_plus", 20),
    "ddnm (spectrum)": ("spectrum", "ddnm_plus", 20),
    "ddnm (spectrum and map)": ("map", "ddnm_plus", 20),
    "ddnm, means over 4 x 4": ("means", "ddnm", 20),
    "ddnm_plus, means over 4 x 4": ("means", "ddnm_plus", 20),
    "ilvr": ("means", "ilvr", 100),
    "dps": ("image", "dps", 1000),
    "dds, 60 views": ("views", "dds", 20),
}
OTHERS = {"dip": 3000, "dndp": 610}
"""Iterations of the fit; evaluations of the second stage (the first works on a sixteenth of the pixels)."""


def operator_of(kind: str, size: int):
    """The operator of a kind of measurement and its options, on images of ``size`` pixels."""
    import torch

    from ldctlib.ct.geometry import ParallelGeometry
    from ldctlib.ct.projector import projector
    from ldctlib.operators import BlockMean, CorrelatedNoise, CTProjection, Identity

    if kind == "means":
        return BlockMean(4, 10.0)
    if kind == "views":
        geometry = ParallelGeometry.for_image(size, 400 / size, n_views=60)
        return CTProjection(projector(geometry), 0.02, iterations=5)
    noise = CorrelatedNoise.from_psd(torch.full((size, size), 900.0), 1.0)
    if kind == "map":
        noise = noise.varying(torch.linspace(0.5, 2.0, size).expand(1, 1, size, size))
    return Identity(30.0 if kind == "image" else noise)


def measure(name: str, size: int, steps: int) -> dict:
    """Seconds of a step, of a slice, and peak memory, in this process."""
    import torch

    from ldctlib import methods
    from ldctlib.diffusion import samplers
    from ldctlib.image import fit
    from ldctlib.pipelines import Prior

    x = 40 + 60 * torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    if name == "dip":
        from ldctlib.methods.dip import deep_image_prior
        from ldctlib.operators import Identity
        from ldctlib.units import Range

        walk = deep_image_prior(x, Identity(0.0), (size, size), image_range=Range(-400.0, 500.0))
        count = OTHERS[name]
    elif name == "dndp":
        prior = Prior.from_checkpoint("dndp_low")  # of the same size as the second stage
        walk = prior.steps(x, operator_of("image", size), sampler="ddnm_plus", times=range(900, 0, -10))
        count = OTHERS[name]
    else:
        kind, sampler, count = SAMPLERS[name]
        prior, times = Prior.from_checkpoint("prior_ct"), range(900, 0, -10)
        if sampler is None:
            x_t = fit(prior.range.to_model(x), prior.pipeline.network.factor)
            walk = samplers.ddim(prior.eps, x_t, prior.schedule, times, eta=0.85)
        else:
            operator = operator_of(kind, size)
            more = dict(gamma=1.0) if sampler == "dds" else {}
            walk = prior.steps(operator.A(x), operator, sampler=sampler, times=times, estimate=x, **more)
    assert name in SAMPLERS or name in methods.METHODS
    seconds, cpu = between_steps(islice(walk, steps + 2), steps, "cpu")
    return dict(step=seconds, cpu=cpu, slice=seconds * count, evaluations=count, peak_mib=peak_mib("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6, help="timed of each")
    parser.add_argument("--only", help="one method, as JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.size, options.steps)))
        return
    print(f"{options.size} x {options.size}; CPU seconds tell on a busy machine")
    print("| | evaluations | s a step | CPU s | of bare DDIM's CPU | s a slice | peak memory |\n|" + "---|" * 7)
    bare = None
    for name in (*SAMPLERS, *OTHERS):
        command = [sys.executable, "-m", "tests.benchmarks.plug_and_play", "--only", name]
        command += ["--size", str(options.size), "--steps", str(options.steps)]
        r = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        bare = r["cpu"] if bare is None else bare
        print(
            f"| {name} | {r['evaluations']} | {r['step']:.3f} | {r['cpu']:.3f} | {r['cpu'] / bare:.2f} | "
            f"{r['slice']:.1f} | {r['peak_mib']:.0f} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
