"""Photon counts beside torch.poisson and torch.binomial, in one run: 600 x 1400 bins, one thread, CPU time."""

from __future__ import annotations

import time
from functools import partial

import torch

from ldctlib.ct.counting import binomial, poisson, standard_normal


def compare(*functions, repeats: int = 9) -> list[float]:
    """The shortest run of each in ms of CPU time (other processes' does not count), taken in turn."""
    times = []
    for _ in range(repeats + 1):
        for f in functions:
            start = time.process_time()
            f()
            times.append(1e3 * (time.process_time() - start))
    return [min(times[i + len(functions) :: len(functions)]) for i in range(len(functions))]


def main() -> None:
    torch.set_num_threads(1)
    shape, g = (1, 1, 600, 1400), torch.Generator().manual_seed(0)
    means = {"1 to 5e5": torch.exp(torch.rand(shape, generator=g) * 13.12)}
    means |= {f"{m:g}": torch.full(shape, m) for m in (0.3, 3.0, 30.0, 3e3, 3e5)}
    print(
        f"{'expected counts':18s}{'torch':>8s}{'ours':>8s}{'ratio':>8s}{'thinned to 1/4':>18s}{'ours':>8s}{'ratio':>8s}"
    )
    for name, mean in means.items():
        counts = torch.poisson(mean, generator=g)
        fraction = torch.full_like(counts, 0.25)
        a, b, c, d = compare(
            partial(torch.poisson, mean, generator=g),
            lambda m=mean: poisson(m, standard_normal(m, g)),
            partial(torch.binomial, counts, fraction, generator=g),
            lambda n=counts: binomial(n, 0.25, standard_normal(n, g)),
        )
        print(f"{name:18s}{a:8.1f}{b:8.1f}{b / a:8.2f}{c:18.1f}{d:8.1f}{d / c:8.2f}")


if __name__ == "__main__":
    main()
