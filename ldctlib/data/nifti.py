"""NIfTI (through nibabel) and NumPy files as scans, and derived NIfTI."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from ldctlib.data.scan import NO_HU, NiftiOrigin, Scan, check_values, fill_padding
from ldctlib.errors import LdctError, ScanError, require
from ldctlib.files import whole_file


def read_nifti(path: str | Path, *, scale: str = "HU", frame: int | None = None, as_stored: bool = False) -> Scan:
    """Read a 3-D NIfTI volume, or one frame of a 4-D one, as (D, H, W).

    It is turned the way :func:`ldctlib.data.dicom_read.read_series` gives an axial scan: slices from feet to head, rows
    from front to back, columns from the patient's right to left (the nearest permutation and flips of the stored axes;
    nothing is resampled).

    ``scale`` says what the numbers are ("HU" or "arbitrary"), because the format does not. Voxels that are
    not finite are padding. ``as_stored`` turns nothing: the third stored axis is D, as oblique stacks need. A header
    that gives no spacing (1, 1, 1 in no unit, and no orientation) is noted; in arbitrary units the scan then has none.
    Metres and microns become mm, with a note; where the affine and pixdim disagree, the affine holds, with a note.
    Raises ScanError for what is no 3-D volume of real numbers or has no such frame, MissingDependency without nibabel.
    """
    nib = require("nibabel", extra="nifti", needed_for="reading NIfTI")
    path = Path(path)
    if not os.path.isfile(path):
        raise ScanError(f"{path} does not exist, or lies in a folder that may not be read: give a .nii or .nii.gz file")
    try:
        image = nib.load(path)
        shape = tuple(int(n) for n in image.shape)
        if image.get_data_dtype().kind not in "iuf":
            raise ScanError(f"{path} holds {image.get_data_dtype()}, not one real number a voxel")
        if frame is not None:
            if len(shape) != 4 or not 0 <= frame < shape[3]:
                raise ScanError(f"{path} has shape {shape}: there is no frame {frame} (the first is 0)")
            stored, shape = image.dataobj[..., frame], shape[:3]
        elif len(shape) < 2 or any(n != 1 for n in shape[3:]) or not all(shape[:3]):
            raise ScanError(f"{path} has shape {shape}: one 3-D volume is needed; split other series first")
        else:
            stored = image.dataobj
        unit, notes = _unit_mm(path, image)
        volume = np.asarray(stored, np.float32).reshape((shape + (1,))[:3])
        turn = nib.orientations
        axes = turn.io_orientation(image.affine)
        orientation = turn.ornt_transform(axes, axes if as_stored else turn.axcodes2ornt("LPS"))
        turned = turn.apply_orientation(volume, orientation)
        affine = image.affine @ turn.inv_ornt_aff(orientation, volume.shape)
        affine[:3] *= unit
    except LdctError:
        raise
    except Exception as error:  # nibabel and zlib raise many kinds on damaged files
        raise ScanError(f"{path} cannot be read as NIfTI ({type(error).__name__}: {error})") from error
    values = np.ascontiguousarray(turned.transpose(2, 1, 0))
    del volume, turned, stored
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    first, step = (0.0, spacing[2]) if as_stored else affine[2, [3, 2]]
    unknown = image.header.get_xyzt_units()[0] == "unknown" and np.array_equal(image.affine[:3, :3], np.eye(3))
    if unknown:
        taken = "taken as 1 mm" if scale == "HU" else "left unknown"
        notes += (f"the header gives no spacing (1, 1, 1 in no unit): {taken}",)
    unmeasured = ~np.isfinite(values)
    notes += _doubts(values, unmeasured, scale)
    return Scan(
        **fill_padding(values, unmeasured, scale),
        spacing_mm=None if unknown and scale != "HU" else tuple(float(step) for step in spacing[::-1]),
        description=volume_stem(path),
        positions_mm=tuple(float(first + step * k) for k in range(len(values))),
        affine=affine,
        notes=notes,
        source_files=(path,),
        origin=NiftiOrigin(image.header.copy(), image.affine.copy(), shape, orientation),
    )


def _unit_mm(path: Path, image) -> tuple[float, tuple[str, ...]]:
    """The header's unit of length in mm, and notes on what it says of the spacing."""
    linear, notes = image.affine[:3, :3], ()
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(linear)) < 1e-12 * np.linalg.norm(linear) ** 3:
        raise ScanError(f"{path} has an affine that is no map of voxels to mm: repair its sform or qform")
    spacing, pixdim = (np.asarray(s, float) for s in (np.linalg.norm(linear, axis=0), image.header.get_zooms()[:3]))
    if not np.allclose(spacing[: len(pixdim)], pixdim, rtol=0.01):
        said = (", ".join(f"{step:.4g}" for step in steps) for steps in (spacing, pixdim))
        notes += ("the affine says a spacing of {}, pixdim {}: the affine's is taken".format(*said),)
    unit = {"micron": 1e-3, "meter": 1e3}.get(name := image.header.get_xyzt_units()[0], 1.0)
    if unit != 1:
        told = " x ".join(f"{step:.3g}" for step in spacing * unit)
        notes += (f"the header's unit is {name}: its voxels are {told} mm; if that is wrong, mend xyzt_units",)
    return unit, notes


def open_nifti(path: Path):
    """nibabel's image of a file, its voxels not read yet. Raises ScanError, MissingDependency without nibabel."""
    nib = require("nibabel", extra="nifti", needed_for="reading NIfTI")
    try:
        return nib.load(path)
    except Exception as error:  # nibabel raises many kinds on damaged files
        raise ScanError(f"{path} cannot be read as NIfTI ({type(error).__name__}: {error})") from error


def write_nifti(scan: Scan, values: torch.Tensor, path: str | Path, *, description: str) -> Path:
    """Write ``values`` (D, H, W) or (D, 1, H, W) as float32 NIfTI, in the orientation of the file that
    ``scan`` came from or, where that was not NIfTI, in the scan's own. Padding becomes NaN."""
    nib = require("nibabel", extra="nifti", needed_for="writing NIfTI")
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise ScanError(f"{path} must end in .nii or .nii.gz")
    array = check_values(scan, values).astype(np.float32)
    if scan.padding is not None:
        array[scan.padding.numpy()] = np.nan
    volume = array.transpose(2, 1, 0)
    if isinstance(scan.origin, NiftiOrigin):
        turn = nib.orientations
        back = np.empty_like(scan.origin.orientation)
        for axis, (to, flip) in enumerate(scan.origin.orientation):
            back[int(to)] = axis, flip
        volume = turn.apply_orientation(volume, back).reshape(scan.origin.shape)
        image = nib.Nifti1Image(volume, scan.origin.affine, scan.origin.header)
    elif scan.affine is not None:
        image = nib.Nifti1Image(volume, scan.affine)
    else:
        raise ScanError("this scan has no geometry, which NIfTI needs")
    image.set_data_dtype(np.float32)
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    with whole_file(path) as scratch:
        nib.save(image, scratch)
    return path


def read_npy(path: str | Path, *, scale: str = "HU") -> Scan:
    """Read a NumPy file of shape (H, W) or (D, H, W), rows and columns as displayed; it has no geometry.

    What is not finite is padding.
    """
    path = Path(path)
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy raises ValueError, EOFError, OSError on damaged files
        raise ScanError(f"{path} cannot be read as a NumPy array ({type(error).__name__}: {error})") from error
    if array.ndim not in (2, 3) or array.dtype.kind not in "iuf" or array.size == 0:
        raise ScanError(f"{path} holds {array.dtype} {array.shape}: real numbers (H, W) or (D, H, W) are needed")
    values = array.reshape((-1, *array.shape[-2:])).astype(np.float32)
    unmeasured = ~np.isfinite(values)
    told = dict(description=volume_stem(path), source_files=(path,), notes=_doubts(values, unmeasured, scale))
    return Scan(**fill_padding(values, unmeasured, scale), spacing_mm=None, **told)


def _doubts(values: np.ndarray, unmeasured: np.ndarray, scale: str) -> tuple[str, ...]:
    return (NO_HU,) if scale == "HU" and values.min(where=~unmeasured, initial=0.0) >= 0 else ()


VOLUME_SUFFIXES = (".nii.gz", ".nii", ".npy")
LARGEST_LABEL, MOST_LABELS = 255, 128


def is_volume_file(path: Path) -> bool:
    """Whether the file is NIfTI or NumPy, by its name."""
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def volume_stem(path: Path) -> str:
    """The file's name without the ending of its format."""
    suffix = next((end for end in VOLUME_SUFFIXES if path.name.lower().endswith(end)), "")
    return path.name[: len(path.name) - len(suffix)]


def is_label_map(path: Path) -> bool:
    """Whether a NIfTI or NumPy file holds labels, by its values: few whole numbers from 0 on, 0 among them.

    A CT scan in HU holds air below zero and is told apart by its first slice; only what could be labels is read on.
    False for a file that cannot be read: reading it as a scan names the reason.
    """
    try:
        if path.suffix.lower() == ".npy":
            data = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            import nibabel

            data = nibabel.load(path).dataobj
        if not _may_be_labels(np.asarray(data[..., 0])) or not _may_be_labels(values := np.asarray(data)):
            return False
        counts = np.bincount(values.astype(np.uint8).ravel())
        return bool(counts[0]) and np.count_nonzero(counts) <= MOST_LABELS
    except Exception:  # damaged, or a package is missing
        return False


def _may_be_labels(values: np.ndarray) -> bool:
    """Whole numbers from 0 to the largest label."""
    return bool(values.min() >= 0 and values.max() <= LARGEST_LABEL and (values == np.rint(values)).all())
