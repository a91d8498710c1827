"""What the LLM-guided autoencoder costs: memory of the search in a big vocabulary, LEDA beside a RED-CNN step.

    python tests/benchmarks/vqgan.py [--threads 1] [--big]

``--big`` quantises four 512 x 512 slices with the published network and 49,408 words of 512 numbers, and prints the
memory that comes on top of the model.
"""

from __future__ import annotations

import argparse
import resource
from statistics import median
from time import perf_counter

import torch
from torch.nn import functional as F

from ldctlib.losses import LEDALoss
from ldctlib.models.redcnn import REDCNN
from ldctlib.models.vqgan import VQGAN
from ldctlib.recipes import recipe


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def big() -> None:
    model = VQGAN().eval()
    before = peak_mib()
    with torch.no_grad():
        z = torch.randn(4, 512, 32, 32)
        begun = perf_counter()
        model.quantiser(z)
    print(f"quantiser, 4 x 1024 positions, 49,408 words: {perf_counter() - begun:.1f} s", end=", ")
    print(f"{peak_mib() - before:.0f} MiB above the model")
    with torch.no_grad():
        model.quantise(torch.rand(4, 1, 512, 512))
    print(f"with the encoder, 4 x 512 x 512: {peak_mib() - before:.0f} MiB above the model")


def steps(repeats: int) -> None:
    """A RED-CNN step of the shipped size with and without LEDA."""
    chosen = recipe("redcnn_leda")
    (size, batch) = chosen.stages[-1].data.patch, chosen.stages[-1].train.batch_size
    denoiser = REDCNN(**chosen.saved.config)
    leda = LEDALoss(VQGAN(**recipe("vqgan_semantic").saved.config))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-4)
    x, y = (torch.rand(batch, 1, size, size).to(memory_format=torch.channels_last) for _ in range(2))

    def step(extra) -> float:
        begun = perf_counter()
        optimizer.zero_grad()
        prediction = denoiser(x)
        (F.mse_loss(prediction, y) + extra(prediction)).backward()
        optimizer.step()
        return perf_counter() - begun

    losses = {"MSE": lambda p: 0.0, "MSE + LEDA": lambda p: leda(p, y)}
    times = {name: median(step(extra) for _ in range(repeats)) for name, extra in losses.items()}
    for name, seconds in times.items():
        print(f"{name}, batch {batch} of {size} x {size}: {1000 * seconds:.0f} ms")
    print(f"LEDA adds {100 * (times['MSE + LEDA'] / times['MSE'] - 1):.0f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--big", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.big:
        big()
    else:
        steps(options.repeats)
