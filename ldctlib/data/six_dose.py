"""SDCT, NA-Diff's six-dose CT (section 3.3), of phantoms: slices with organ labels, their noise at full dose, and six
doses that scale it.

One scan is simulated a slice, and other doses scale its noise: with a noise-free reference Var(d) = Var(1) / d. Every
sample is a function of (seed, n) alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from ldctlib.ct.dose import noise_only
from ldctlib.ct.dose_scaling import at_dose, std_map_scale
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.kernels import edge_blur_px
from ldctlib.ct.noise_maps import std_map
from ldctlib.ct.projector import projector
from ldctlib.data.anatomy_masks import TABLES
from ldctlib.data.banks import draw_scans, patients_in_turn, random_kernel, random_scanner, random_slice
from ldctlib.data.case import Case
from ldctlib.data.collection import Collection
from ldctlib.data.labelled import LabelledScans
from ldctlib.data.natural import random_hu
from ldctlib.data.patches import crops
from ldctlib.data.stream import BankStream
from ldctlib.errors import ParameterError, ScanError
from ldctlib.image import gaussian_blur
from ldctlib.units import hu_to_mu

DOSES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Of the paper's six-dose set, as fractions of full dose."""

PIXELS_MM = (1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8)
"""Pixel sizes of 256 x 256 images: a few values, so that the projectors stay cached."""

SIMULATED_DOSE = 0.25


class Scanned(NamedTuple):
    """A slice as a scanner shows it without noise, and its noise at full dose; both float16 (H, W) in HU."""

    clean_hu: np.ndarray
    noise_hu: np.ndarray
    labels: np.ndarray  # uint8 (H, W), ids as in phantom.organs.ORGANS
    pixel_mm: float
    patient: int


def scanned_slices(
    rng: np.random.Generator,
    count: int,
    *,
    size: int = 256,
    anatomies=("abdomen",),
    sd_hu: tuple[float, float] = (6.0, 16.0),
    a_patient: int = 8,
) -> list[Scanned]:
    """``count`` slices of random patients, scanned at a quarter of the dose.

    The kernel is drawn for each patient, and so is the full-dose noise near the axis, log-uniform in ``sd_hu``.
    """
    if not (0 < sd_hu[0] <= sd_hu[1] < inf and a_patient >= 1 and count >= 1):
        how = "sd_hu is (low, high), above 0, and a_patient and count are 1 or more"
        raise ParameterError(f"{how}; got {sd_hu}, {a_patient}, {count}")
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    yy, xx = np.mgrid[:size, :size] - (size - 1) / 2
    centre = np.hypot(yy, xx) < 0.15 * size
    out: list[Scanned] = []
    patients = patients_in_turn(rng, anatomies)
    for i in range(count):
        if i % a_patient == 0:
            patient = next(patients)
            field = patient.body.field_of_view_mm * 256 / size
            pixel_mm = min((p for p in PIXELS_MM if 256 * p >= field), default=PIXELS_MM[-1]) * 256 / size
            kernel, sd = random_kernel(rng), float(np.exp(rng.uniform(*np.log(sd_hu))))
            geometry = ParallelGeometry.for_image(size, pixel_mm, bins_per_pixel=1.0, n_views=400)
            scanner = random_scanner(rng, photons=(1e5, 2e6))
        drawn = random_slice(rng, patient, size=size, pixel_mm=pixel_mm)
        lines = projector(geometry).A(hu_to_mu(drawn.hu)).clamp(min=0)
        noise = noise_only(lines, geometry, scanner, SIMULATED_DOSE, kernel=kernel, generator=generator)[0, 0].numpy()
        noise *= sd / max(float(noise[centre].std()), 1e-6)
        blur = edge_blur_px(kernel, pixel_mm)
        clean = gaussian_blur(drawn.hu, blur) if blur > 0.15 else drawn.hu
        images = (clean[0, 0].numpy().astype(np.float16), np.clip(noise, -500, 500).astype(np.float16))
        out.append(Scanned(*images, drawn.labels[0, 0].numpy(), pixel_mm, patient.seed))
    return out


@dataclass(frozen=True)
class SixDoseConfig:
    """What is drawn for every image."""

    seed: int = 0
    size: int = 256
    patch: int | None = None  # pixels a side of a crop; None: whole slices
    n_slices: int = 256  # in the bank
    n_photographs: int = 96
    refresh: int = 12_800  # samples between two drawings of the bank
    photograph_share: float = 0.0  # of crops of photographs with a slice's noise
    doses: tuple[float, ...] = DOSES
    sd_hu: tuple[float, float] = (6.0, 16.0)  # of full-dose noise near the axis
    anatomies: tuple[str, ...] = ("abdomen",)
    in_turn: bool = False  # each slice of the bank after the other, for images that are encoded once

    def __post_init__(self):
        if self.photograph_share and self.patch is None:
            raise ParameterError("photographs are cut to crops: give patch")

    embedded = "phantom slices at six doses, and scikit-image's photographs with their noise"

    def open(self, collection: Collection | None = None) -> BankStream:
        """The stream of phantoms, or of a collection's pairs; of its labelled scans where it has no pairs."""
        if collection is None:
            return SixDoseSlices(self)
        labelled = not len(collection.pairs()) and len(collection.labelled())
        return (LabelledScans if labelled else SixDosePairs)(collection, self)

    def tiny(self, multiple: int = 1) -> SixDoseConfig:
        """Few small slices that are drawn at once, to see that a training starts."""
        size = max(64, multiple)
        few = dict(n_slices=4, n_photographs=1, refresh=min(self.refresh, 8))
        return replace(self, size=size, patch=None, photograph_share=0.0, **few)


class SixDoseSlices(BankStream):
    """``dataset[n]`` -> {"image_hu", "clean_hu" (1, S, S) float32 in HU, "dose" scalar}: an endless stream.

    Of whole slices also the noise's map "noise_map_hu" (Eq. 9), "mask" (1, S, S) uint8 of
    :data:`~ldctlib.data.anatomy_masks.CLASSES`, and "pixel_mm".
    """

    bank_key, sample_key = 0xBA2D, 0x5A3F

    def draw_bank(self, rng: np.random.Generator) -> None:
        c = self.config
        self._slices = scanned_slices(rng, c.n_slices, size=c.size, anatomies=c.anatomies, sd_hu=c.sd_hu)
        side, count = c.patch or 0, c.n_photographs if c.photograph_share else 0
        self._photographs = [random_hu(rng, min_size=max(128, side)).astype(np.float16) for _ in range(count)]

    def sample(self, n: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        c = self.config
        which = rng.integers(len(self._slices))
        drawn = self._slices[n % len(self._slices) if c.in_turn else which]
        images = [drawn.clean_hu, drawn.noise_hu]
        if c.patch is not None:
            images = crops(images, c.patch, rng)
            if rng.random() < c.photograph_share:
                images[0] = crops([self._photographs[rng.integers(len(self._photographs))]], c.patch, rng)[0]
        clean, noise = (np.asarray(image, np.float32) for image in images)
        dose = float(c.doses[rng.integers(len(c.doses))])
        noise = torch.from_numpy(noise / sqrt(dose))[None]
        clean = torch.from_numpy(clean)[None]
        sample = {"image_hu": clean + noise, "clean_hu": clean, "dose": torch.tensor(dose)}
        if c.patch is None:
            mask = torch.from_numpy(TABLES["phantom"][drawn.labels])[None]
            sample |= {"noise_map_hu": std_map(noise[None])[0], "mask": mask, "pixel_mm": torch.tensor(drawn.pixel_mm)}
        return sample


class SixDosePairs(BankStream):
    """The same stream from real pairs (section 3.3): {"image_hu", "noise_map_hu" (1, S, S) float32 in HU, "dose"}.

    The low dose of these collections was inserted into the full-dose scan: a dose d is x_fd + alpha (x_ld - x_fd), and
    its noise map that of b (x_ld - x_fd) (:mod:`~ldctlib.ct.dose_scaling`, "nested"). Slices are averaged to
    ``config.size`` pixels a side. There are no masks: a segmenter finds them, as in the paper.
    """

    bank_key, sample_key = 0xBA2E, 0x5A41

    def __init__(self, collection: Collection, config: SixDoseConfig = SixDoseConfig()):
        super().__init__(config)
        self._collection = collection.pairs()
        if not len(self._collection):
            raise ScanError(
                f"{collection.name} holds no case with both doses or labels of organs: six doses are made from pairs"
            )

    def draw_bank(self, rng: np.random.Generator) -> None:
        self._bank: list[tuple[np.ndarray, np.ndarray, float]] = []
        while (left := self.config.n_slices - len(self._bank)) > 0:
            case = self._collection.cases[rng.integers(len(self._collection))]
            alone = Collection(self._collection.name, self._collection.layout, (case,))
            pairs = draw_scans(alone, rng, min(16, left), Case.load_pair)
            self._bank += [(*pair, case.dose or SIMULATED_DOSE) for pair in pairs]

    def sample(self, n: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        c = self.config
        which = rng.integers(len(self._bank))
        full, low, measured_dose = self._bank[n % len(self._bank) if c.in_turn else which]
        pair = torch.from_numpy(np.stack([full, low]))[:, None]
        pair = F.interpolate(pair, (c.size, c.size), mode="area")
        dose = float(c.doses[rng.integers(len(c.doses))])
        image = at_dose(pair[:1], pair[1:], dose, measured_dose, "nested")
        noise = std_map_scale(dose, measured_dose, "nested") * (pair[1:] - pair[:1])
        return {"image_hu": image[0], "noise_map_hu": std_map(noise)[0], "dose": torch.tensor(dose)}
