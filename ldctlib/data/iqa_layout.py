"""LDCTIQAC 2023: windowed abdominal CT images with the quality that radiologists saw in them.

The folder holds TIFF images of real numbers from 0 to 1, the ends of a display window, and a JSON file of their scores,
``{"0000.tif": 2.4, ...}``: 0 (bad) to 4 (excellent), the mean of five readers. Images lie beside it or in a folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldctlib.data.dicom_read import files_below
from ldctlib.errors import ScanError
from ldctlib.units import Window

LDCTIQAC_WINDOW = Window(40, 350)
"""The challenge's window, which its files do not state."""


@dataclass(frozen=True)
class ScoredImages:
    """Images with readers' scores: ``len``, and ``images[i]`` -> (image_hu (1, 1, H, W), score), read then."""

    files: tuple[Path, ...]
    scores: tuple[float, ...]
    window: Window

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, float]:
        from PIL import Image

        path = self.files[i]
        try:
            with Image.open(path) as image:
                values = np.array(image, np.float32)
        except Exception as error:  # Pillow raises many kinds on damaged files
            raise ScanError(f"{path} cannot be read as an image ({type(error).__name__}: {error})") from error
        if values.ndim != 2 or not (values.min() >= 0 and values.max() <= 1):
            raise ScanError(f"{path} holds {values.shape}, not one number from 0 to 1 a pixel: which window is it in?")
        return self.window.low + torch.from_numpy(values)[None, None] * self.window.width, self.scores[i]

    def __iter__(self) -> Iterator[tuple[Tensor, float]]:
        return (self[i] for i in range(len(self)))


def open_ldctiqac(folder: str | Path, window: Window = LDCTIQAC_WINDOW) -> ScoredImages:
    """The images of a folder in the challenge's layout, in the order of their names. HU are ``window``'s, and what it
    cut off stays cut off.

    Raises ScanError where no JSON file holds scores, or one of their images is missing.
    """
    folder = Path(folder)
    scores: dict[str, float] = {}
    files = files_below(folder)
    for path in (file for file in files if file.suffix == ".json"):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ScanError(f"{path} is no JSON ({error})") from error
        if isinstance(found, dict) and all(isinstance(score, int | float) for score in found.values()):
            scores |= found
    if not scores:
        raise ScanError(f"{folder}: no JSON file with scores of images, {{name: number}}, as LDCTIQAC 2023 has it")
    if wrong := [name for name, score in scores.items() if not 0 <= score <= 4]:
        raise ScanError(f"{folder}: scores lie from 0 to 4, that of {wrong[0]} is {scores[wrong[0]]}")
    there = {path.name: path for path in files if path.suffix.lower() in (".tif", ".tiff")}
    stems = {path.stem: path for path in there.values()}
    files = {name: there.get(name) or stems.get(name) for name in sorted(scores)}
    if missing := [name for name, path in files.items() if path is None]:
        raise ScanError(f"{folder}: {len(missing)} images have a score and no file, {missing[0]} the first")
    return ScoredImages(tuple(files.values()), tuple(float(scores[name]) for name in files), window)
