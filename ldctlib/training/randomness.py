"""Randomness that is a function of numbers, beside the caller's own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(*parts: int) -> int:
    """A 63-bit seed from several numbers, by NumPy's SeedSequence: neighbours give unrelated streams."""
    return int(np.random.SeedSequence([part % 2**64 for part in parts]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Seeded torch, NumPy and Python randomness (dropout takes no generator); the caller's is put back."""
    on_device = None if device.type == "cpu" else getattr(torch, device.type)  # torch.cuda, torch.mps
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    before_on_device = on_device.get_rng_state() if on_device else None
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every backend: a millisecond
    if on_device:
        on_device.manual_seed(seed)
    try:
        yield torch.Generator(device).manual_seed(derive(seed))
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        if on_device:
            on_device.set_rng_state(before_on_device)
