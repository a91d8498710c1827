"""Endless streams of training samples: sample n is a function of (seed, n) alone.

Training resumes exactly, and several processes share one stream.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

ENDLESS = 2**40  # samples


class Endless(Dataset):
    """A dataset without an end, for :func:`~ldctlib.training.train`."""

    def __len__(self) -> int:
        return ENDLESS


class BankStream(Endless):
    """Samples made from a bank that is drawn anew every ``config.refresh`` samples, so that the network and not the
    simulator sets the pace.

    A stream says how its bank is drawn and how a sample is made of it, each from random numbers of its own.

    bank_key, sample_key : tell the random numbers of a stream from those of others with the same ``config.seed``.
    """

    bank_key: int
    sample_key: int

    def __init__(self, config: Any):
        self.config = config
        self._generation: int | None = None

    def draw_bank(self, rng: np.random.Generator) -> None:
        """Draw the bank anew."""
        raise NotImplementedError

    def sample(self, n: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Sample n, of the bank as it is."""
        raise NotImplementedError

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        seed, generation = self.config.seed, n // self.config.refresh
        if generation != self._generation:
            self.draw_bank(np.random.default_rng([seed, self.bank_key, generation]))
            self._generation = generation
        return self.sample(n, np.random.default_rng([seed, self.sample_key, n]))
