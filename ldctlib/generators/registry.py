"""Every generator under one name and one signature.

    generate = generators.load("na_diff_f")
    images_hu = generate(mask, dose=0.1, seeds=[0])

A mask is uint8 (B, 1, H, W) of :data:`~ldctlib.data.anatomy_masks.CLASSES`, images are float32 (B, 1, H, W) in HU,
clipped to the window that the model was trained in. An image depends on its conditions and its seed alone, not on the
batch that it is made in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ldctlib import checkpoints
from ldctlib.ct.dose_scaling import dose_list
from ldctlib.ct.kernels import Kernel, find_kernel
from ldctlib.ct.noise_maps import anatomy_noise_map
from ldctlib.data.anatomy_masks import check_anatomy, typical_hu
from ldctlib.diffusion.samplers import Step
from ldctlib.errors import ParameterError, ShapeError, did_you_mean
from ldctlib.image import check_images
from ldctlib.phantom.scan_phantom import SCANNER
from ldctlib.pipelines.synthesis import SynthesisPipeline
from ldctlib.precision import resolve_device
from ldctlib.units import Range

FULL_DOSE_SD_HU = 10.0
"""Noise of a full-dose scan near the axis, where nobody says it."""

PIXEL_MM, SD_HU = (0.1, 10.0), (0.1, 100.0)
"""What pixels and full-dose noise can be at all; training had 6 to 16 HU."""


@dataclass(frozen=True)
class Entry:
    """A line of :func:`table`."""

    name: str
    title: str
    paper: str
    conditions: str


GENERATORS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("na_diff_a", "NA-Diff-A", "NA-Diff, Table 1", "noise map"),
        Entry("na_diff_b", "NA-Diff-B", "NA-Diff, Table 1", "noise map"),
        Entry("na_diff_c", "NA-Diff-C", "NA-Diff, Table 1", "mask"),
        Entry("na_diff_d", "NA-Diff-D", "NA-Diff, Table 1", "mask"),
        Entry("na_diff_e", "NA-Diff-E", "NA-Diff, Table 1", "noise map and mask"),
        Entry("na_diff_f", "NA-Diff-F", "NA-Diff, Table 1", "noise map and mask"),
        Entry("na_diff_f_sum", "NA-Diff-F, conditions summed", "NA-Diff, Table 9", "noise map and mask"),
        Entry("na_diff_spatial", "NA-Diff with the mask on the grid", "this project", "noise map and mask"),
        Entry("seg_diff", "Seg-Diff, its mask as class / 255", "Konz et al. 2024", "mask"),
        Entry("seg_diff_corrected", "Seg-Diff, its mask one-hot", "Konz et al. 2024", "mask"),
        Entry("controlnet", "ControlNet", "Zhang et al. 2023", "mask"),
    )
}


@dataclass(frozen=True)
class Generator:
    """A trained generator; see the module's head."""

    name: str
    pipeline: SynthesisPipeline

    @property
    def hu_range(self) -> Range:
        """Images are clipped to it."""
        return self.pipeline.hu_range

    @property
    def conditions(self) -> tuple[str, ...]:
        """What it looks at: "noise", "anatomy", or both. What it is given beyond that has no effect."""
        found = [source.split("_")[0] for source in self.pipeline.sources]
        return tuple(name for name in ("noise", "anatomy") if name in found)

    def __call__(self, mask: Tensor, **options) -> Tensor:
        """Images (B, 1, H, W) in HU; the options are those of :meth:`steps`, and ``noise``: False leaves it out."""
        noise = options.pop("noise", True)
        *_, last = self.steps(mask, **options)
        return self.decode(last.x0_hat, options["seeds"], noise=noise)

    def steps(
        self,
        mask: Tensor,
        *,
        seeds: Sequence[int],
        dose: float | Sequence[float] = 1.0,
        noise_map_hu: Tensor | None = None,
        pixel_mm: float = 1.4,
        full_dose_sd_hu: float = FULL_DOSE_SD_HU,
        kernel: str | Kernel = "B30f",
        **sampling,
    ) -> Iterator[Step]:
        """The sampler's steps in scaled latents; :meth:`decode` makes images of ``x0_hat``.

        mask : (B, 1, H, W), or one of a batch of 1 for all seeds.
        seeds : one for each image.
        dose : as a fraction of full dose, one for all or one for each image: the noise map is then predicted for a body
            of the mask's tissues (:func:`~ldctlib.ct.noise_maps.anatomy_noise_map`) with ``full_dose_sd_hu`` near the
            axis at full dose.
        noise_map_hu : (B, 1, H, W) in place of a dose.
        pixel_mm, full_dose_sd_hu : in :data:`PIXEL_MM` and :data:`SD_HU`. What :attr:`conditions` do not name is
            checked, and has no effect.
        sampling : ``sampler``, ``steps``, ``spacing``, ``guidance`` and a sampler's own, see
            :meth:`~ldctlib.pipelines.synthesis.SynthesisPipeline.steps`.
        """
        check_anatomy(mask)
        count, doses = len(_checked(seeds)), dose_list(dose)
        if len(mask) not in (1, count):
            raise ShapeError(f"{count} seeds make {count} images and need as many masks or one, got {len(mask)}")
        if len(doses) not in (1, count):
            raise ParameterError(f"{count} images need one dose or as many, got {len(doses)}")
        doses = doses if len(doses) == count else doses * count
        for name, value, (low, high) in (("pixel_mm", pixel_mm, PIXEL_MM), ("full_dose_sd_hu", full_dose_sd_hu, SD_HU)):
            if not low <= value <= high:
                raise ParameterError(f"{name} lies in {low:g} … {high:g}, got {value}")
        find_kernel(kernel)
        if noise_map_hu is not None:
            check_images(noise_map_hu)
        elif "noise" in self.conditions:
            noise_map_hu = self.noise_map(mask, doses, pixel_mm, full_dose_sd_hu, kernel)
        mask = mask.expand(count, -1, -1, -1)
        if noise_map_hu is not None and noise_map_hu.shape != mask.shape:
            raise ShapeError(f"a noise map has its mask's shape {tuple(mask.shape)}, got {tuple(noise_map_hu.shape)}")
        encoded = self.pipeline.encode_conditions(noise_map_hu=noise_map_hu, mask=mask)
        yield from self.pipeline.steps(encoded, count, tuple(mask.shape[-2:]), generators=streams(seeds), **sampling)

    def decode(self, x0_hat: Tensor, seeds: Sequence[int], *, noise: bool = True) -> Tensor:
        """Scaled latents to images in HU, with the noise that the latents tell or without."""
        return self.pipeline.decode(x0_hat, generators=streams(seeds, 1) if noise else None)

    @staticmethod
    def noise_map(
        mask: Tensor, doses: Sequence[float], pixel_mm: float, full_dose_sd_hu: float, kernel: str | Kernel = "B30f"
    ) -> Tensor:
        """The noise maps (n, 1, H, W) that n doses ask for, of as many masks or of one."""
        body = typical_hu(mask)
        how = dict(pixel_mm=pixel_mm, centre_sd_hu=full_dose_sd_hu, kernel=kernel, scanner=SCANNER)

        @cache
        def made(i: int, dose: float) -> Tensor:
            return anatomy_noise_map(body[i : i + 1], dose, generator=torch.Generator().manual_seed(0), **how)

        return torch.cat([made(i if len(mask) > 1 else 0, float(dose)) for i, dose in enumerate(doses)])


def _checked(seeds: Sequence[int]) -> Sequence[int]:
    listed = isinstance(seeds, Sequence | np.ndarray) and len(seeds)
    if not listed or not all(isinstance(seed, int | np.integer) and seed >= 0 for seed in seeds):
        raise ParameterError(f"seeds are whole numbers from 0, one for each image, as in seeds=[0]; got {seeds}")
    return seeds


def streams(seeds: Sequence[int], stream: int = 0) -> list[torch.Generator]:
    """A generator for each seed; stream 0 of latents, 1 of the decoder's noise."""
    return [torch.Generator().manual_seed(2 * int(seed) + stream) for seed in seeds]


def load(name: str, *, device: str | torch.device = "cpu", path: str | None = None) -> Generator:
    """The generator of a name, with its weights, of the file ``path`` where one is given."""
    if name not in GENERATORS:
        near = did_you_mean(name, GENERATORS)
        raise ParameterError(f"no generator is named {name!r}{near}; there are {', '.join(GENERATORS)}")
    return Generator(
        name, SynthesisPipeline.from_checkpoint(path or checkpoints.find(name), device=resolve_device(device))
    )


def table() -> list[Entry]:
    """All generators."""
    return list(GENERATORS.values())
