"""Training patches of cine cardiac MR in arbitrary units: noise-free slices of phantoms, photographs, or real scans.

Every sample is a function of (seed, n) alone, as in :mod:`ldctlib.data.patches`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ldctlib.data.collection import Collection
from ldctlib.data.natural import random_intensity
from ldctlib.data.patches import crops
from ldctlib.data.stream import BankStream
from ldctlib.errors import ParameterError, ScanError
from ldctlib.phantom.mr.cardiac import CardiacPatient

SLICES_A_PATIENT = 6


@dataclass(frozen=True)
class MRPatchConfig:
    """What is drawn for every patch."""

    seed: int = 0
    patch: int = 64  # pixels a side
    size: int = 192  # pixels a side of the slices in the bank
    n_slices: int = 240  # in the bank
    n_photographs: int = 48
    refresh: int = 12_000  # samples between two drawings of the bank
    photograph_share: float = 0.2
    pixel_mm: tuple[float, float] = (1.0, 1.8)  # of a phantom's slice, uniform
    brightness: tuple[float, float] = (0.7, 1.2)  # a sample's factor: volumes differ in what their brightest tissue is

    def __post_init__(self):
        for name in ("pixel_mm", "brightness"):
            pair = getattr(self, name)
            if not 0 < pair[0] < pair[1]:
                raise ParameterError(f"{name} is a rising pair above 0, got {pair}")
        if not 16 <= self.patch <= self.size:
            raise ParameterError(f"patch must lie between 16 and size = {self.size} pixels, got {self.patch}")

    embedded = "phantom of cine cardiac MR and scikit-image's photographs, no noise"

    def open(self, collection: Collection | None = None) -> MRPatches:
        """The stream of phantoms and photographs, or of a collection's scans in arbitrary units."""
        return MRPatches(self, collection)

    def tiny(self, multiple: int = 1) -> MRPatchConfig:
        """Small patches from a bank that is drawn at once, to see that a training starts."""
        patch = 64 + -64 % multiple
        return replace(self, patch=patch, size=max(96, patch), n_slices=3, n_photographs=2)


class MRPatches(BankStream):
    """``dataset[n]`` -> {"target" (1, P, P) float32 in arbitrary units}: an endless stream.

    Volumes are divided by their 99.5th percentile. Without a collection the images are noise-free.
    """

    bank_key, sample_key = 0xBA29, 0x5A3D

    def __init__(self, config: MRPatchConfig = MRPatchConfig(), collection: Collection | None = None):
        super().__init__(config)
        self._collection = collection

    def draw_bank(self, rng: np.random.Generator) -> None:
        c = self.config
        drawn = phantom_slices(rng, c) if self._collection is None else scan_slices(self._collection, rng, c.n_slices)
        self._slices = [image.astype(np.float16) for image in drawn]
        self._photographs = [random_intensity(rng, min_size=max(c.patch, 96)) for _ in range(c.n_photographs)]

    def sample(self, n: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        c = self.config
        bank = self._photographs if rng.random() < c.photograph_share else self._slices
        for _ in range(6):  # seldom air alone
            (patch,) = crops([bank[rng.integers(len(bank))]], c.patch, rng)
            if patch.mean() > 0.08 or rng.random() < 0.1:
                break
        return {"target": torch.from_numpy(patch[None] * np.float32(rng.uniform(*c.brightness)))}


def phantom_slices(rng: np.random.Generator, config: MRPatchConfig) -> list[np.ndarray]:
    """Noise-free slices (size, size), six to a random patient, at any phase of the heartbeat."""
    out: list[np.ndarray] = []
    for i in range(config.n_slices):
        if i % SLICES_A_PATIENT == 0:
            patient = CardiacPatient.random(int(rng.integers(2**31)))
            pixel_mm = float(rng.uniform(*config.pixel_mm))
        low, high = patient.z_range_mm
        options = dict(phase=rng.uniform(0, 1), thickness_mm=rng.choice((3.0, 6.0, 8.0)))
        drawn = patient.slice(rng.uniform(low + 12, high), size=config.size, pixel_mm=pixel_mm, **options)
        out.append(drawn.image[0, 0].numpy())
    return out


def scan_slices(collection: Collection, rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """``count`` slices of random scans, at most sixteen from one reading, over their volume's 99.5th percentile."""
    out: list[np.ndarray] = []
    while len(out) < count:
        case = collection.cases[rng.integers(len(collection))]
        scan = case.load_full()
        if scan.scale != "arbitrary":
            raise ScanError(f"{collection.name}: patient {case.patient} is in HU; this training takes MR images")
        values = normalised(scan.values).numpy()
        out += list(values[rng.permutation(len(values))[: min(16, count - len(out))]])
    return out


def normalised(volume: torch.Tensor) -> torch.Tensor:
    """The volume over its 99.5th percentile: the unit of the prior for MR."""
    return volume / max(float(np.percentile(volume.numpy(), 99.5)), 1e-6)
