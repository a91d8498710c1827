"""Random patients: CT slices that are coherent in z, in HU, with organ labels.

``Patient.random(seed)`` draws a patient's latent (size, shapes, contrast phase, vessels, bowel, lesions); a
slice is then drawn at any z, on any grid, without noise. Distances are in mm, so that a grid of half the
pixel shows the same patient (the projector projects from a finer grid than it reconstructs on).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from ldctlib.errors import ParameterError
from ldctlib.phantom.abdomen.abdomen import Abdomen
from ldctlib.phantom.canvas import Canvas
from ldctlib.phantom.organs import ORGANS
from ldctlib.phantom.thorax.thorax import Thorax
from ldctlib.units import AIR_HU


class Anatomy(Protocol):
    """What a kind of phantom offers: built from a random generator, drawn slice by slice."""

    z_range_mm: tuple[float, float]
    field_of_view_mm: float

    def draw(self, canvas: Canvas) -> None:
        """Draw the slice at ``canvas.z_mm``."""


ANATOMIES: dict[str, type] = {"abdomen": Abdomen, "thorax": Thorax}
"""Anatomies by name; each is called with a ``numpy.random.Generator`` and fulfils :class:`Anatomy`."""


@dataclass(frozen=True)
class PhantomSlice:
    """A noise-free slice: ``hu`` float32 (1, 1, H, W), ``labels`` uint8 (1, 1, H, W), ids as in :data:`ORGANS`."""

    hu: torch.Tensor
    labels: torch.Tensor
    organs: tuple[str, ...]
    z_mm: float
    pixel_mm: float


@dataclass(frozen=True)
class Patient:
    """One random patient; the same seed gives the same patient on every machine with the same NumPy."""

    seed: int
    anatomy: str
    body: Anatomy = field(repr=False, compare=False)

    @classmethod
    def random(cls, seed: int, *, anatomy: str = "abdomen") -> Patient:
        """Draw a patient. Raises :class:`ParameterError` for an unknown anatomy or a negative seed."""
        if anatomy not in ANATOMIES:
            raise ParameterError(f"unknown anatomy {anatomy!r}; allowed: {', '.join(sorted(ANATOMIES))}")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ParameterError(f"seed must be an integer >= 0, got {seed!r}")
        return cls(int(seed), anatomy, ANATOMIES[anatomy](np.random.default_rng([int(seed), 0x1DC7])))

    @property
    def z_range_mm(self) -> tuple[float, float]:
        """Lowest and highest z (mm, towards the head, as in DICOM patient coordinates) that can be drawn."""
        return self.body.z_range_mm

    def slice(
        self, z_mm: float, *, size: int = 512, pixel_mm: float | None = None, thickness_mm: float = 1.0
    ) -> PhantomSlice:
        """Draw one slice.

        size : pixels a side. pixel_mm : default is the patient's field of view over ``size``.
        thickness_mm : above 1, the mean of sub-slices at most 1 mm apart (partial volume); labels are the
        middle's. Raises :class:`ParameterError` for a z outside :attr:`z_range_mm` or an impossible grid.
        """
        low, high = self.z_range_mm
        if not low <= z_mm <= high:
            raise ParameterError(f"z_mm = {z_mm} is outside this patient's range [{low:.1f}, {high:.1f}] mm")
        if not isinstance(size, (int, np.integer)) or not 16 <= size <= 4096:
            raise ParameterError(f"size must be an integer from 16 to 4096, got {size!r}")
        pixel = self.body.field_of_view_mm / size if pixel_mm is None else float(pixel_mm)
        if not 0.05 <= pixel <= 20:
            raise ParameterError(f"pixel_mm must be within 0.05 to 20 mm, got {pixel}")
        if not 0 < thickness_mm <= 20:
            raise ParameterError(f"thickness_mm must be above 0 and at most 20, got {thickness_mm}")
        n = max(1, int(np.ceil(thickness_mm - 1e-9)))
        offsets = (np.arange(n) - (n - 1) / 2) * (thickness_mm / n)
        hu, labels = 0.0, None
        for i, offset in enumerate(offsets):
            canvas = Canvas(int(size), pixel, float(z_mm + offset), AIR_HU)
            self.body.draw(canvas)
            hu = hu + canvas.values / np.float32(n)
            if i == n // 2:
                labels = canvas.labels
        present = np.flatnonzero(np.bincount(labels.ravel(), minlength=len(ORGANS)))
        return PhantomSlice(
            hu=torch.from_numpy(np.ascontiguousarray(hu, np.float32))[None, None],
            labels=torch.from_numpy(labels)[None, None],
            organs=tuple(ORGANS[i] for i in present if i > 0),
            z_mm=float(z_mm),
            pixel_mm=pixel,
        )
