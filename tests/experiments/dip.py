"""Deep image prior over its iterations: distance to the truth, residual, time; where each way of stopping ends.

python -m tests.experiments.dip --crop 128 --iterations 3000        (20 minutes of one core)
"""

from __future__ import annotations

import argparse
import time

import torch

from ldctlib.benchmark.cases import phantom_cases
from ldctlib.methods.dip import deep_image_prior, skip_network
from ldctlib.metrics import psnr
from ldctlib.operators import Identity
from ldctlib.units import SOFT_TISSUE, Range


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patient", type=int, default=101)
    parser.add_argument("--kernel", default="B30f")
    parser.add_argument("--dose", type=float, default=0.25)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--every", type=int, default=100)
    a = parser.parse_args()
    (case,) = phantom_cases([a.patient], (a.dose,), kernels=(a.kernel,), crop=a.crop)
    y, truth = case.ldct_hu, case.reference_hu

    def quality(x: torch.Tensor) -> float:
        return float(psnr(x, truth, window=SOFT_TISSUE))

    noise_sd, margin = float((y - truth).std()), 0.05 * float(y.max() - y.min())
    extent = Range(float(y.min()) - margin, float(y.max()) + margin)
    print(f"{a}, {torch.get_num_threads()} threads")
    print(f"low dose {quality(y):.2f} dB in {SOFT_TISSUE}, noise {noise_sd:.1f} HU, extent {extent}")
    generator = torch.Generator().manual_seed(0)
    fit = deep_image_prior(
        y,
        Identity(noise_sd),
        (a.crop, a.crop),
        image_range=extent,
        network=skip_network("cpu", generator, width=a.width),
        iterations=a.iterations,
        generator=generator,
    )
    ends, fell_back, start = {}, 0, time.perf_counter()
    print("iteration  seconds  fit dB  residual HU  x dB  average dB")
    for step in fit:
        of_x, of_average, fell_back = quality(step.x), quality(step.x_average), fell_back + step.fell_back
        row = f"{step.i:9d} {time.perf_counter() - start:8.0f} {step.fit_psnr:7.2f} {step.residual_rms:12.1f}"
        row += f" {of_x:5.2f} {of_average:11.2f}"
        for name, value in (("best x", of_x), ("best average", of_average)):
            if value > ends.get(name, (-torch.inf,))[0]:
                ends[name] = value, row
        if step.residual_rms <= noise_sd and "discrepancy" not in ends:
            ends["discrepancy"] = of_average, row
        if step.i % a.every == 0:
            print(row, flush=True)
    print(f"{row} the last; {fell_back} steps taken back")
    for name, (_, row) in ends.items():
        print(f"{row} {name}")


if __name__ == "__main__":
    main()
