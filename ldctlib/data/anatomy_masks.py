"""Anatomy masks: the classes that a generator is given and a segmenter finds, and three ways to show them to a network.

A mask is uint8 (..., H, W) with an index of :data:`CLASSES` in every pixel. Labels of a phantom and TotalSegmentator's
117 structures map onto the same classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib.data.nifti import read_nifti, read_npy
from ldctlib.data.scan import Scan
from ldctlib.errors import ParameterError, ShapeError, did_you_mean
from ldctlib.image import body_mask
from ldctlib.phantom.organs import ORGANS
from ldctlib.units import SOFT_TISSUE

CLASSES: tuple[str, ...] = tuple(
    "background body bone lung liver spleen kidney vessel bowel heart pancreas fluid".split()
)
"""Class id -> name. "background" is what lies outside the body, the table too; "body" is muscle, fat, skin and every
organ without a class of its own; "lung" has the airways; "bowel" is all of the digestive tract with what it holds;
"fluid" is the gallbladder, the urinary bladder, cysts and effusions."""

BODY, LIVER = CLASSES.index("body"), CLASSES.index("liver")

TYPICAL_HU: tuple[float, ...] = (-1000, -20, 290, -810, 90, 100, 130, 150, 0, 130, 80, 10)
"""A class's mean HU after contrast, about that of the phantom's patients; bowel has gas in it."""

_OF_PHANTOM = {
    "background": "background, table",
    "bone": "rib, vertebra, ilium, sternum, scapula, clavicle, humerus",
    "lung": "lung, airway, bronchial wall, nodule, ground-glass nodule, lung mass, consolidation, atelectasis, "
    "emphysema, pneumothorax",
    "liver": "liver, portal vein, hepatic vein, metastasis",
    "spleen": "spleen",
    "kidney": "renal cortex, renal medulla, renal pelvis",
    "vessel": "aorta, vena cava, vessel, plaque, pulmonary artery, pulmonary vein, superior vena cava",
    "bowel": "stomach, stomach content, gas, small bowel, bowel content, colon, stool, oesophagus",
    "heart": "heart, left ventricle, right ventricle, left atrium, right atrium, myocardium, coronary artery",
    "pancreas": "pancreas",
    "fluid": "gallbladder, cyst, pleural effusion, pericardial effusion",
    "body": "subcutaneous fat, skin, muscle, visceral fat, cartilage, disc, spinal canal, adrenal, diaphragm, "
    "mediastinal fat, breast, thyroid, lymph node",
}

# TotalSegmentator's task "total", version 2
_OF_TOTALSEGMENTATOR = {
    "bone": (*range(25, 51), *range(69, 79), *range(91, 117)),  # sacrum, vertebrae, limbs, skull, ribs, sternum
    "lung": (*range(10, 15), 16),  # five lobes, trachea
    "liver": (5,),
    "spleen": (1,),
    "kidney": (2, 3),
    "vessel": (*range(52, 61), *range(62, 69)),
    "bowel": (6, 15, 18, 19, 20),  # stomach, oesophagus, small bowel, duodenum, colon
    "heart": (51, 61),  # with the left atrial appendage
    "pancreas": (7,),
    "fluid": (4, 21, 23, 24),  # gallbladder, urinary bladder, cysts of the kidneys
    # what bears no label is body or background: the image says which
    "body": (8, 9, 17, 22, 79, *range(80, 91), 117),  # adrenals, thyroid, prostate, cord, muscles, brain, cartilage
}
UNKNOWN = 255


def _table(of: dict[str, tuple[int, ...]]) -> np.ndarray:
    table = np.full(256, UNKNOWN, np.uint8)
    for name, ids in of.items():
        table[list(ids)] = CLASSES.index(name)
    return table


TABLES: dict[str, np.ndarray] = {
    "classes": _table({name: (i,) for i, name in enumerate(CLASSES)}),
    "phantom": _table({k: tuple(ORGANS.index(label) for label in v.split(", ")) for k, v in _OF_PHANTOM.items()}),
    "totalsegmentator": _table({"background": (0,), **_OF_TOTALSEGMENTATOR}),
    "liver": _table({"background": (0,), "liver": (1,)}),
    "lits": _table({"background": (0,), "liver": (1, 2)}),  # 2 is tumour
}
"""What a mask's ids can be (classes, a phantom's labels, TotalSegmentator's structures, a binary liver mask, or LiTS's
labels) -> the class of each id, (256,), :data:`UNKNOWN` where there is none."""


def anatomy(ids, kind: str = "classes", image_hu: Tensor | None = None) -> Tensor:
    """A mask of :data:`CLASSES` from ids of a ``kind`` of :data:`TABLES`: (..., H, W) uint8.

    Masks of organs alone ("totalsegmentator", "liver", "lits") do not say what is body: that is ``image_hu`` (of the
    same shape) above -500 HU with its holes filled or, without an image, an ellipse in the middle, 0.92 of the width
    and 0.68 of the height.

    Raises ParameterError for ids that the kind does not have, and names them.
    """
    if kind not in TABLES:
        raise ParameterError(f"masks are of {', '.join(TABLES)}; got {kind!r}{did_you_mean(kind, TABLES)}")
    ids = torch.as_tensor(ids)
    if ids.ndim < 2:
        raise ShapeError(f"a mask is (..., H, W), got {tuple(ids.shape)}")
    if image_hu is not None and image_hu.shape != ids.shape:
        raise ShapeError(f"mask and image must have one shape, got {tuple(ids.shape)} and {tuple(image_hu.shape)}")
    inside = (ids >= 0) & (ids <= 255)
    if ids.is_floating_point():
        inside &= ids == ids.round()
    index = torch.where(inside, ids, UNKNOWN).long()
    mask = torch.from_numpy(TABLES[kind]).to(ids.device)[index]
    if bool((unknown := mask == UNKNOWN).any()):
        named = ", ".join(f"{value:g}" for value in ids[unknown].unique().tolist()[:8])
        other = " (is it of TotalSegmentator's structures, or of a phantom?)" if kind in ("classes", "liver") else ""
        raise ParameterError(f"a mask of kind {kind!r} holds ids without a class: {named}{other}")
    if kind not in ("classes", "phantom"):
        mask[(mask == 0) & _body(ids, image_hu)] = BODY
    return mask


def _body(ids: Tensor, image_hu: Tensor | None) -> Tensor:
    """Where the body is, bool, of the shape of ``ids``."""
    h, w = ids.shape[-2:]
    if image_hu is not None:
        return body_mask(image_hu.float().reshape(-1, 1, h, w)).reshape(ids.shape).to(ids.device)
    y, x = ((2 * torch.arange(n, device=ids.device) + 1) / n - 1 for n in (h, w))
    return ((y[:, None] / 0.68).square() + (x / 0.92).square() < 1).expand(ids.shape)


def read_mask(path: str | Path, kind: str = "classes", image_hu: Tensor | None = None) -> tuple[Tensor, Scan]:
    """A NIfTI or NumPy file of ids as a mask (D, H, W), and the file as a scan, which knows its spacing and geometry.

    kind, image_hu : as :func:`anatomy` takes them; the image is (D, H, W), in the order that scans are read in.
    """
    scan = (read_npy if Path(path).suffix.lower() == ".npy" else read_nifti)(path, scale="arbitrary")
    if scan.padding is not None and bool(scan.padding.any()):
        raise ParameterError(f"{path}: a mask has an id in every voxel, this one has NaN")
    try:
        return anatomy(scan.values, kind, image_hu), scan
    except (ParameterError, ShapeError) as error:
        raise type(error)(f"{path}: {error}") from error


def check_anatomy(mask: Tensor) -> Tensor:
    """The mask as int64. Raises ShapeError unless it is (B, 1, H, W), ParameterError for an id without a class."""
    if not isinstance(mask, Tensor):
        raise ParameterError(f"a mask is a torch tensor, got {type(mask).__name__}: make it with anatomy()")
    if mask.ndim != 4 or mask.shape[1] != 1 or 0 in mask.shape:
        raise ShapeError(f"masks must be (B, 1, H, W), got {tuple(mask.shape)}")
    if mask.is_floating_point() or int(mask.max()) >= len(CLASSES) or int(mask.min()) < 0:
        raise ParameterError(f"a mask holds whole numbers from 0 to {len(CLASSES) - 1}: make it with anatomy()")
    return mask.long()


def mask_image(mask: Tensor) -> Tensor:
    """The mask as an image for an image encoder: pseudo-HU (B, 1, H, W), a fixed level a class, evenly spaced over
    [-160, 240], so that an encoder with a fixed window sees the same class always at the same grey."""
    levels = torch.linspace(SOFT_TISSUE.low, SOFT_TISSUE.high, len(CLASSES), device=mask.device)
    return levels[check_anatomy(mask)]


def typical_hu(mask: Tensor) -> Tensor:
    """The mask as a body of :data:`TYPICAL_HU`, (B, 1, H, W): what attenuates, where no image is known."""
    return torch.tensor(TYPICAL_HU, dtype=torch.float32, device=mask.device)[check_anatomy(mask)]


def one_hot_on_grid(mask: Tensor, factor: int) -> Tensor:
    """How much of each cell of ``factor`` x ``factor`` pixels is of each class: (B, K, H / factor, W / factor),
    shares that add up to 1."""
    mask = check_anatomy(mask)
    if factor < 1 or any(n % factor for n in mask.shape[-2:]):
        raise ShapeError(f"a mask of {tuple(mask.shape[-2:])} has no cells of {factor} x {factor} pixels")
    return torch.cat([F.avg_pool2d((mask == k).float(), factor) for k in range(len(CLASSES))], dim=1)
