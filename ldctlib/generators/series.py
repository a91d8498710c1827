"""From a file with a mask to a synthetic series: ``python -m ldctlib generate``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.data.anatomy_masks import TABLES, read_mask
from ldctlib.data.dicom_write import write_synthetic
from ldctlib.data.nifti import write_nifti
from ldctlib.data.scan import Scan
from ldctlib.data.six_dose import DOSES
from ldctlib.errors import ParameterError
from ldctlib.files import is_taken, only_one
from ldctlib.generators.registry import FULL_DOSE_SD_HU, GENERATORS, load

SIDE = 256
"""Pixels a side of a generated image, as in the training."""

PIXELS_MM = (0.9, 2.2)
"""Sizes of these pixels that a mask may come to; bodies in the training had 1.1 to 1.8 mm."""

AT_ONCE = 8
FORMATS = ("dicom", "nifti")


def on_grid(mask: Tensor, spacing_mm: Sequence[float] | None) -> tuple[Tensor, float]:
    """A mask (D, H, W) on the generator's grid, (D, 1, 256, 256), and its pixel in mm.

    The longer side becomes 256 pixels; the shorter one is padded with background on both sides. Raises ParameterError
    for pixels that are not square, or of a size that no training image had.
    """
    depth, h, w = mask.shape
    if spacing_mm is None:
        raise ParameterError("the mask has no pixel spacing, which a noise map needs: give pixel_mm")
    if abs(spacing_mm[1] / spacing_mm[2] - 1) > 0.01:
        raise ParameterError(f"pixels must be square, these are {spacing_mm[1]:.3f} x {spacing_mm[2]:.3f} mm")
    side = max(h, w)
    top, left = (side - h) // 2, (side - w) // 2
    square = F.pad(mask[:, None], (left, side - w - left, top, side - h - top))
    pixel_mm = spacing_mm[2] * side / SIDE
    if not PIXELS_MM[0] <= pixel_mm <= PIXELS_MM[1]:
        raise ParameterError(
            f"on {SIDE} x {SIDE} pixels this mask has pixels of {pixel_mm:.2f} mm; the generators know bodies at "
            f"{PIXELS_MM[0]} to {PIXELS_MM[1]} mm: crop or pad it to a field of view of 230 to 560 mm"
        )
    return F.interpolate(square.float(), (SIDE, SIDE), mode="nearest-exact").to(torch.uint8), pixel_mm


def generate_series(
    mask_file: str | Path,
    out: str | Path,
    *,
    name: str = "na_diff_f",
    dose: float = 1.0,
    ids: str = "classes",
    seed: int = 0,
    steps: int = 30,
    guidance: float = 1.0,
    full_dose_sd_hu: float = FULL_DOSE_SD_HU,
    kernel: str = "B30f",
    pixel_mm: float | None = None,
    file_format: str = "dicom",
    device: str = "cpu",
) -> list[Path]:
    """An image of every slice of a mask, in the folder ``out``: a DICOM series, or one NIfTI file. Files say that they
    are synthetic. Slice k has the seed ``seed`` + k: slices of one mask do not continue one another.

    ids : what the mask's numbers are, a key of :data:`~ldctlib.data.anatomy_masks.TABLES`.
    pixel_mm : of the mask, where the file does not say it.
    """
    if file_format not in FORMATS:
        raise ParameterError(f"format is one of {', '.join(FORMATS)}; got {file_format!r}")
    if not DOSES[0] <= dose <= 1:
        raise ParameterError(f"dose is a fraction of full dose from {DOSES[0]:g} to 1, got {dose}")
    if pixel_mm is not None and not 0 < pixel_mm < np.inf:
        raise ParameterError(f"pixel_mm is a size in mm, got {pixel_mm}")
    out = Path(out)
    _refuse_taken(out)
    mask, scan = read_mask(mask_file, ids)
    spacing = (1.0, pixel_mm, pixel_mm) if pixel_mm is not None else scan.spacing_mm
    mask, pixel = on_grid(mask, spacing)
    generate = load(name, device=device)
    told = [name, f"dose {dose:g}" if "noise" in generate.conditions else "dose ignored"]
    told += [] if "anatomy" in generate.conditions else ["mask ignored"]
    told = ", ".join([*told, f"seed {seed}", f"{steps} steps"] + [f"guidance {guidance:g}"] * (guidance != 1))
    slice_mm = float(spacing[0]) if np.isfinite(spacing[0]) else 1.0
    how = dict(dose=dose, pixel_mm=pixel, full_dose_sd_hu=full_dose_sd_hu, kernel=kernel, steps=steps)
    with only_one(out.parent / f".{out.name}.lock", f"{out}"):
        _refuse_taken(out)  # by another process, in the meantime
        images = []
        for first in range(0, len(mask), AT_ONCE):
            part = mask[first : first + AT_ONCE]
            seeds = range(seed + first, seed + first + len(part))
            images.append(generate(part, seeds=seeds, guidance=guidance, **how)[:, 0].cpu())
        values = torch.cat(images)
        if file_format == "dicom":
            return write_synthetic(values, out, pixel_mm=pixel, slice_mm=slice_mm, description=told)
        affine = np.diag([-pixel, -pixel, slice_mm, 1.0])
        made = Scan(values, "HU", (slice_mm, pixel, pixel), affine=affine)
        return [write_nifti(made, values, out / f"synthetic_{name}.nii.gz", description=f"SYNTHETIC CT: {told}")]


def _refuse_taken(out: Path) -> None:
    if is_taken(out):
        raise ParameterError(f"{out} exists and is not an empty folder: name a new one for the synthetic series")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ldctlib generate", description=__doc__.splitlines()[0])
    parser.add_argument("--mask", required=True, help="a NIfTI or NumPy file of anatomy classes")
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument(
        "--dose", type=float, default=1.0, help="fraction of full dose, 0.05 to 1; ignored by models of a mask alone"
    )
    parser.add_argument("--name", default="na_diff_f", help=", ".join(GENERATORS))
    parser.add_argument("--ids", default="classes", help=f"what the mask's numbers are: {', '.join(TABLES)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=1.0, help="of classifier-free guidance; 1 is none")
    parser.add_argument("--full-dose-sd", type=float, default=FULL_DOSE_SD_HU, help="noise of full dose, in HU")
    parser.add_argument("--kernel", default="B30f")
    parser.add_argument("--pixel-mm", type=float, help="of the mask, where its file does not say it")
    parser.add_argument("--format", default="dicom", choices=FORMATS)
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args(arguments)
    how = dict(name=a.name, dose=a.dose, ids=a.ids, seed=a.seed, steps=a.steps, guidance=a.guidance, kernel=a.kernel)
    how |= dict(full_dose_sd_hu=a.full_dose_sd, pixel_mm=a.pixel_mm, file_format=a.format, device=a.device)
    files = generate_series(a.mask, a.out, **how)
    print(f"{len(files)} files in {a.out}")
    return 0
