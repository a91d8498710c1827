"""Seconds a 512² slice for every method, and a phantom slice's drawing time, in one run."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from ldctlib import methods
from ldctlib.errors import LdctError
from ldctlib.phantom.patient import Patient


def seconds(f, repeats: int = 2) -> float:
    f()
    start = time.perf_counter()
    for _ in range(repeats):
        f()
    return (time.perf_counter() - start) / repeats


def _draw(seed: int, slices: int) -> int:
    """Draw slices of a new patient, as training does; returns how many."""
    torch.set_num_threads(1)
    patient = Patient.random(seed)
    low, high = patient.z_range_mm
    for i in range(slices):
        patient.slice(low + (i + 0.5) / slices * (high - low))
    return slices


def main() -> None:
    threads = torch.get_num_threads()
    patient = Patient.random(3)
    low, high = patient.z_range_mm
    drawn = patient.slice(0.5 * (low + high))
    ldct = drawn.hu + 40 * torch.randn(drawn.hu.shape, generator=torch.Generator().manual_seed(0))
    print(f"torch {torch.__version__}, {threads} threads; seconds a 512² slice")
    times = {}
    for name, method in methods.METHODS.items():
        if method.family == "optimisation":
            print(f"{name:12s} left out: {method.evaluations} iterations of seconds each")
            continue
        try:
            denoise = methods.load(name)
        except LdctError as error:
            print(f"{name:12s} left out: {error}")
            continue
        times[name] = seconds(lambda denoise=denoise: denoise(ldct, spacing_mm=(1.0, drawn.pixel_mm, drawn.pixel_mm)))
        print(f"{name:12s}{times[name]:9.3f}")
    if {"redcnn", "nafnet"} <= times.keys():
        print(f"nafnet takes 1/{times['redcnn'] / times['nafnet']:.1f} of redcnn's time")

    workers = min(2, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, initializer=_draw, initargs=(0, 1)) as pool:
        list(pool.map(_draw, range(1, 1 + workers), [1] * workers))  # every process has built its texture fields
        start = time.perf_counter()
        count = sum(pool.map(_draw, range(100, 124), [8] * 24))
        rate = 60 * count / (time.perf_counter() - start)
    print(f"phantom: {rate:.0f} slices of 512² a minute in {workers} processes, 8 to a new patient")


if __name__ == "__main__":
    main()
