"""What lets torchvision's models and transforms be imported beside any build of torch."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

import torch

_SHIM_LIBRARIES: list[torch.library.Library] = []  # operators vanish with the last reference to their library


def torchvision_shim() -> bool:
    """Make ``import torchvision`` work where its compiled extension does not load; True if that was needed.

    A torchvision built for CUDA beside a CPU-only torch cannot load its extension, hides that, and then fails with
    "operator torchvision::nms does not exist" when it describes operators nobody defined. Defining the two schemas is
    enough for models and transforms. Inert where torchvision is absent, imported already, or loads normally.
    """
    if "torchvision" in sys.modules or _SHIM_LIBRARIES:
        return bool(_SHIM_LIBRARIES)
    spec = importlib.util.find_spec("torchvision")
    if spec is None or _extension_loads(Path(spec.origin).parent):
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _SHIM_LIBRARIES.append(library)
    return True


def _extension_loads(folder: Path) -> bool:
    candidates = [folder / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    for path in filter(os.path.isfile, candidates):
        try:
            torch.ops.load_library(str(path))
            return True
        except OSError:
            continue
    return False
