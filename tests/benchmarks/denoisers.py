"""Seconds a 512² slice for every method, and a phantom slice's drawing time, in one run."""

from __future__ import annotations

import time

import torch

from ldctlib import methods
from ldctlib.ct.phantom import Patient
from ldctlib.errors import LdctError


def seconds(f, repeats: int = 2) -> float:
    f()
    start = time.perf_counter()
    for _ in range(repeats):
        f()
    return (time.perf_counter() - start) / repeats


def main() -> None:
    threads = torch.get_num_threads()
    patient = Patient.random(3)
    low, high = patient.z_range_mm
    drawn = patient.slice(0.5 * (low + high))
    ldct = drawn.hu + 40 * torch.randn(drawn.hu.shape, generator=torch.Generator().manual_seed(0))
    print(f"torch {torch.__version__}, {threads} threads; seconds a 512² slice")
    times = {}
    for name in methods.METHODS:
        try:
            denoise = methods.load(name)
        except LdctError as error:
            print(f"{name:12s} left out: {error}")
            continue
        times[name] = seconds(lambda denoise=denoise: denoise(ldct, spacing_mm=(1.0, drawn.pixel_mm, drawn.pixel_mm)))
        print(f"{name:12s}{times[name]:9.3f}")
    if {"redcnn", "nafnet"} <= times.keys():
        print(f"nafnet takes 1/{times['redcnn'] / times['nafnet']:.1f} of redcnn's time")

    start, count = time.perf_counter(), 0
    for seed in range(6):  # new patients, four slices each, as training draws them
        patient = Patient.random(100 + seed)
        low, high = patient.z_range_mm
        for i in range(4):
            patient.slice(low + (i + 0.5) / 4 * (high - low))
            count += 1
    rate = 60 * count / (time.perf_counter() - start)
    print(f"phantom: {rate:.0f} slices of 512² a minute in one process")


if __name__ == "__main__":
    main()
