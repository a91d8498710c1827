"""noise_from_image beside the noise that is there: estimate over truth per kind of image, kernel and dose.

    LDCT_REAL_DATA=... python -m tests.experiments.noise_estimate [--short]

Phantoms: noise = dosed minus noise-free image of the same readings, whole slices and crops of them; the map beside the
propagated one. Real pairs (where LDCT_REAL_DATA names scans): a low-dose image's standard deviation is
sd(low - full) / sqrt(.874) and a full-dose image's .48 sd(low - full), the ratio of their powers from .36 /mm on, where
anatomy has none (per slice .456 to .516: full-dose truths are known within 6 %). Tenth dose of real slices: noise
inserted into the full-dose image, known exactly. ``1/mm`` columns: estimated over true spectrum, both of unit variance.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch

from ldctlib.benchmark.cases import real_pairs
from ldctlib.ct.dose import acquire, calibrate, insert_noise_image, noise_map
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.noise_model import noise_from_image
from ldctlib.ct.nps import cut_rois, nps, soft_tissue, soft_tissue_rois
from ldctlib.ct.projector import projector
from ldctlib.image import gaussian_blur
from ldctlib.phantom.patient import Patient
from ldctlib.phantom.scan_phantom import SCANNER
from ldctlib.units import hu_to_mu, mu_to_hu

BANDS = (0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
DOSES = (1.0, 0.25, 0.1)
KERNELS = ("B30f", "D45f")
PHANTOMS = [  # patient, place between the ends of the body, pixels, mm (None: the whole body), full-dose HU on the axis
    (21, 0.5, 512, None, 12.0),
    (22, 0.3, 512, None, 12.0),
    (23, 0.7, 512, None, 6.0),
    (24, 0.2, 512, None, 12.0),
    (25, 0.5, 512, 0.6, 12.0),
    (26, 0.4, 384, 1.0, 12.0),
    (27, 0.6, 384, 0.8, 8.0),
    (28, 0.3, 256, 1.0, 12.0),
    (29, 0.7, 256, 0.8, 12.0),
    (9, 0.3, 256, 1.0, 12.0),
]


class Table:
    """Ratios per row, printed as median and the two ends."""

    def __init__(self):
        self.rows, self.spectra, self.maps = defaultdict(list), defaultdict(list), defaultdict(list)
        self.free, self.seconds = defaultdict(list), []

    def add(self, row, image, pixel_mm, truth, noise=None, map_hu=None):
        start = time.process_time()
        model = noise_from_image(image, pixel_mm)
        self.seconds.append(time.process_time() - start)
        self.rows[row].append(model.sd_hu / truth)
        tissue = soft_tissue(image)
        if noise is not None:
            side = 2 * round(9 / pixel_mm)  # as the estimate's own: the bins' leakage is the same
            true = nps(cut_rois(noise, soft_tissue_rois(image, side), side), pixel_mm, detrend="plane")
            ratio = np.interp(BANDS, model.frequency_per_mm, model.radial_nps / model.sd_hu**2)
            ratio = ratio / np.interp(BANDS, true.frequency, true.radial / true.variance)
            self.spectra[row].append(np.where(np.array(BANDS) < 0.5 / pixel_mm, ratio, np.nan))
        if map_hu is not None:
            error = (model.map_hu / map_hu - 1)[tissue].abs()
            self.maps[row].append((float(error.median()), float(error.quantile(0.95))))

    def show(self):
        print(
            f"{'':34s}  n  median  lowest highest  map: median, 95 %   spectrum at "
            + "  ".join(f"{f:g}" for f in BANDS)
        )
        for row, ratios in self.rows.items():
            maps = "  {:.2f} {:.2f}".format(*np.max(self.maps[row], axis=0)) if self.maps[row] else " " * 11
            bands = " ".join(f"{v:.2f}" for v in np.nanmedian(self.spectra[row], axis=0)) if self.spectra[row] else ""
            ends = f"{np.median(ratios):7.3f}{min(ratios):8.3f}{max(ratios):8.3f}"
            print(f"{row:34s}{len(ratios):4d}{ends}{maps:>19s}   {bands}")
        for row, values in self.free.items():
            print(f"noise-free, {row}: {np.median(values):.1f} HU, highest {max(values):.1f}")
        print(f"seconds a slice, CPU: median {np.median(self.seconds):.2f}, longest {max(self.seconds):.2f}")


def rms(noise, mask) -> float:
    return float(noise[mask].square().mean().sqrt())


def phantom(table: Table, seed, place, size, pixel_mm, full_dose_sd_hu):
    patient = Patient.random(seed)
    low, high = patient.z_range_mm
    pixel_mm = patient.body.field_of_view_mm / size if pixel_mm is None else pixel_mm
    geometry = ParallelGeometry.for_image(size, pixel_mm, bins_per_pixel=2, n_views=600)
    body = patient.slice(low + place * (high - low), size=2 * size, pixel_mm=pixel_mm / 2, thickness_mm=3.0).hu
    scanner = calibrate(body, geometry, SCANNER, full_dose_sd_hu, kernel="B30f")
    lines = projector(geometry.on_grid(2 * size)).A(hu_to_mu(body))
    readings = acquire(lines, scanner, geometry, DOSES, generator=torch.Generator().manual_seed(seed))
    where = torch.Generator().manual_seed(seed)
    for kernel in KERNELS:
        free, *images = (mu_to_hu(projector(geometry).fbp(p, kernel)) for p in (lines, *readings))
        tissue = soft_tissue(free)
        table.free[kernel].append(noise_from_image(free, pixel_mm).sd_hu)
        for dose, image in zip(DOSES, images, strict=True):
            noise, row = image - free, f"phantom {kernel} dose {dose:g}"
            known = noise_map(body, geometry, scanner, dose, kernel=kernel)
            table.add(row, image, pixel_mm, rms(noise, tissue), noise, known)
            for side in (128, 192):
                y, x = torch.randint(size // 4, 3 * size // 4 - side // 2, (2,), generator=where).tolist()
                y, x = min(y, size - side), min(x, size - side)
                crop = (..., slice(y, y + side), slice(x, x + side))
                if tissue[crop].float().mean() > 0.6:
                    row = f"phantom {kernel} dose {dose:g}, crops {side}"
                    table.add(row, image[crop], pixel_mm, rms(noise[crop], tissue[crop]))


def real(table: Table, case):
    kernel, full = case.group.split()[-1], case.reference_hu
    difference = case.ldct_hu - full
    sd = rms(difference, soft_tissue(gaussian_blur(full, 1.0)))
    table.add(f"real {kernel} dose 1", full, case.pixel_mm, 0.48 * sd, difference)
    table.add(f"real {kernel} dose 0.25", case.ldct_hu, case.pixel_mm, sd / math.sqrt(0.874), difference)
    geometry = ParallelGeometry.for_image(full.shape[-1], case.pixel_mm, bins_per_pixel=2, n_views=600)
    scanner = replace(calibrate(full, geometry, SCANNER, 0.5 * sd, kernel=kernel), electronic_sd=0.0)
    generator = torch.Generator().manual_seed(0)
    tenth = insert_noise_image(full, geometry, scanner, 0.1, kernel=kernel, generator=generator)
    added = rms(tenth - full, soft_tissue(gaussian_blur(full, 1.0)))
    table.add(f"real {kernel} dose 0.1, inserted", tenth, case.pixel_mm, math.hypot(added, 0.48 * sd), tenth - full)


def main() -> None:
    torch.set_num_threads(1)
    short, table = "--short" in sys.argv, Table()
    for arguments in PHANTOMS[3::3] if short else PHANTOMS:
        phantom(table, *arguments)
    if root := os.environ.get("LDCT_REAL_DATA"):
        for case in real_pairs(root)[:: 4 if short else 1]:
            real(table, case)
    table.show()


if __name__ == "__main__":
    main()
