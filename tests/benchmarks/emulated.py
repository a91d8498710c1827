"""Pace of the data for images conditioned on noise: emulated photographs, and noise maps of an anatomy.

    python -m tests.benchmarks.emulated [--photographs 32] [--threads 2]

Wall and CPU time, since other processes may share the machine. Target: 1,000 image-dose pairs of 256² a minute.
"""

from __future__ import annotations

import argparse
import time

import torch

from ldctlib.ct.dose import Scanner, calibrate, noise_map
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.noise_maps import anatomy_noise_map, std_map
from ldctlib.data.emulated import EmulatedPhotographs, EmulationConfig
from ldctlib.phantom.patient import Patient


def seconds(call, repeats: int = 1) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats


def photographs(count: int) -> None:
    config = EmulationConfig(n_photographs=count)
    EmulatedPhotographs(EmulationConfig(n_photographs=8))[0]  # reads the photographs, builds the projector
    stream = EmulatedPhotographs(config)
    wall, cpu = seconds(lambda: stream[0])
    pairs = count * len(config.doses)
    print(
        f"bank of {pairs} pairs of 256²: {60 * pairs / wall:.0f} a minute of wall time, {60 * pairs / cpu:.0f} of CPU"
    )
    numbers = iter(range(1, 10**6))
    wall, cpu = seconds(lambda: stream[next(numbers)], 100)
    print(f"a sample from the bank: {1e3 * wall:.1f} ms, {1e3 * cpu:.1f} ms of CPU")


def maps(size: int = 256) -> None:
    patient = Patient.random(1)
    drawn = patient.slice(sum(patient.z_range_mm) / 2, size=size)
    hu, pixel_mm, doses = drawn.hu.float(), drawn.pixel_mm, (1.0, 0.25, 0.05)
    geometry = ParallelGeometry.for_image(size, pixel_mm, bins_per_pixel=2, n_views=round(1.4 * size))
    scanner = calibrate(hu, geometry, Scanner(), 12.0)
    exact = torch.cat([noise_map(hu, geometry, scanner, dose) for dose in doses])
    _, cpu = seconds(lambda: [noise_map(hu, geometry, scanner, dose) for dose in doses], 3)
    print(f"three doses of a {size}² slice, ct.dose.noise_map: {1e3 * cpu:.0f} ms of CPU")
    for grid in (None, 128, 64):
        options = dict(pixel_mm=pixel_mm, centre_sd_hu=12.0, grid=grid)
        error = (anatomy_noise_map(hu, doses, **options) / exact - 1)[(hu > -500).expand_as(exact)]
        _, cpu = seconds(lambda o=options: anatomy_noise_map(hu, doses, **o), 5)
        text = f"rms difference in the body {float(error.square().mean().sqrt()):.2%}, at most {error.abs().max():.1%}"
        print(f"  grid {grid or size}: {1e3 * cpu:.0f} ms of CPU, {text}")
    noise = torch.randn(16, 1, size, size)
    _, cpu = seconds(lambda: std_map(noise), 5)
    print(f"std_map: {1e3 * cpu / 16:.2f} ms of CPU an image of {size}²")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    photographs(arguments.photographs)
    maps()
