"""Scans in, denoised scans out: ``python -m ldctlib denoise IN OUT``.

A DICOM series, a folder of several, a NIfTI or a NumPy file goes in; the same kind comes out, marked as derived. What
lies in OUT is never overwritten. Images done so far lie in a folder beside OUT, ``.OUT-unfinished``: the same command
goes on there after an interrupt, and leaves the bytes that it would have without one. Under ``torchrun`` the processes
share the series out among each other.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldctlib import methods
from ldctlib.commands import command_line
from ldctlib.data.dicom_read import list_series, read_scan, read_series
from ldctlib.data.dicom_write import write_derived
from ldctlib.data.nifti import is_volume_file, volume_stem, write_nifti
from ldctlib.data.scan import DicomOrigin, NiftiOrigin, Scan
from ldctlib.errors import LdctError, ParameterError, ScanError, WriteError
from ldctlib.files import is_taken, only_one, plain, whole_file, write_json
from ldctlib.methods.denoiser import STRENGTHS, LoadedMethod
from ldctlib.precision import resolve_device

BATCH = 4
"""Images of a batch, and those that an interrupt loses at most."""


@dataclass(frozen=True)
class Job:
    """One scan to denoise: what to read, where to write, and the unfinished result's folder."""

    source: tuple[Path, ...]
    title: str
    out: Path
    scratch: Path


def denoise_scan(
    source: str | Path,
    out: str | Path,
    *,
    method: str = "nafnet",
    strength: str | float | None = None,
    scale: str | None = None,
    series_uid: str | None = None,
    allow_gaps: bool = False,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> list[Path]:
    """Denoise every CT series of a folder, or one file, into ``out``; returns the files that this process wrote.

    source : a DICOM file, a folder with one or several series, a NIfTI or a NumPy file.
    out : a new folder; of several series each has a folder of its own in it. For NIfTI and NumPy a new file, by its
        ending, or else a folder.
    method : a name of :mod:`ldctlib.methods`, or with options as in ``"man:steps=4"``.
    strength : "smooth", "balanced" or "fine" noise is left, or that share of what was removed; None as the method does.
    scale : "HU" for CT that says its scale badly.
    series_uid : one series alone.
    allow_gaps : see :func:`~ldctlib.data.dicom_read.read_series`.

    Memory holds one series, and a batch. Raises ScanError for what is no CT or lies in ``out`` already; of several
    series after the others are done. Raises WriteError, at once, where another process writes into ``out`` or the disk
    is full.
    """
    settings = dict(method=method, strength=strength, scale=scale, allow_gaps=allow_gaps, seed=seed)
    if scale not in (None, "HU"):
        raise ParameterError(f"scale is HU or nothing, got {scale!r}: a denoiser of CT takes HU")
    denoise = load(method, strength, resolve_device(device))
    rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    written, failed, out = [], [], Path(out).expanduser()
    source = Path(source).expanduser()
    jobs = list(plan(source, out, series_uid))
    if len(jobs) > 1:
        _begun(unfinished(out) / "run.json", settings | dict(source=str(source.absolute()), series_uid=series_uid), out)
    for number, job in enumerate(jobs):
        if number % processes != rank or (job.scratch / "finished.json").exists():
            continue
        try:
            written += finish(job, denoise, settings, progress=progress)
        except LdctError as error:
            if len(jobs) == 1 or isinstance(error, WriteError):
                raise
            failed.append(f"{job.title}: {error}")
            write_json(job.scratch / "finished.json", None)
    if all((job.scratch / "finished.json").exists() for job in jobs):
        shutil.rmtree(unfinished(out), ignore_errors=True)  # the last process that is done
    if failed:
        raise ScanError(f"{len(failed)} of {len(jobs)} series could not be denoised:\n  " + "\n  ".join(failed))
    return written


def load(method: str, strength: str | float | None, device: torch.device) -> LoadedMethod:
    """The method, which must be one for CT without a reference; ParameterError otherwise."""
    spec = method if strength is None else f"{method}{';' if ':' in method else ':'}residual_noise={strength}"
    loaded = methods.from_spec(spec, device=device)
    if loaded.scale != "HU" or loaded.oracle:
        raise ParameterError(f"{method} is no denoiser for CT scans that have no reference: take another method")
    return loaded


def unfinished(out: Path) -> Path:
    return out.parent / f".{out.name}-unfinished"


def plan(source: Path, out: Path, series_uid: str | None = None) -> Iterator[Job]:
    """What there is to do, in an order that depends on the files alone. ScanError where nothing is a CT image."""
    scratch = unfinished(out)
    if os.path.isfile(source) and is_volume_file(source):
        suffix = source.name[len(volume_stem(source)) :]
        target = out if out.name.lower().endswith(suffix.lower()) else out / f"{volume_stem(source)}_denoised{suffix}"
        yield Job((source,), source.name, target, scratch / "0")
        return
    infos = list_series(source)
    chosen = [i for i in infos if i.unreadable is None and i.modality == "CT" and series_uid in (None, i.uid)]
    if not chosen:
        listing = "".join(f"\n  {info}" for info in infos) or " no DICOM file"
        raise ScanError(f"{source} holds no CT series{f' {series_uid}' if series_uid else ''} to denoise:{listing}")
    names: dict[str, int] = {}
    for number, info in enumerate(chosen):
        home = Path(os.path.commonpath([file.parent for file in info.files]))
        within = home.relative_to(source).as_posix().replace("/", "_") if os.path.isdir(source) else "."
        name = "series" if within == "." else within
        names[name] = names.get(name, 0) + 1
        name += f"_{names[name]}" if names[name] > 1 else ""
        yield Job(info.files, str(info), out if len(chosen) == 1 else out / name, scratch / str(number))


def finish(job: Job, denoise: LoadedMethod, settings: dict[str, Any], *, progress: bool = False) -> list[Path]:
    """Denoise one scan from where it was left, and write it."""
    if is_taken(job.out):
        raise ScanError(f"{job.out} exists: name another place, nothing is overwritten")
    scan = _read(job, settings)
    images = scan.images_hu()
    files = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in job.source]
    told = settings | dict(files=files, out=str(job.out.absolute()))
    with only_one(job.scratch / "lock", f"{job.out}"):
        if is_taken(job.out):
            raise ScanError(f"{job.out} exists by now: another process wrote it, nothing is overwritten")
        begun = _begun(job.scratch / "state.json", told, job.out)
        for first in _shown(range(0, len(images), BATCH), job.title, progress):
            part = images[first : first + BATCH]
            kept = job.scratch / f"{first:06d}.npy"
            if kept.exists():
                part[:] = torch.from_numpy(np.load(kept))
                continue
            generator = torch.Generator().manual_seed(settings["seed"] * 1_000_003 + first)
            part[:] = denoise(part, spacing_mm=scan.spacing_mm, generator=generator).cpu()  # in place of the low dose
            with whole_file(kept) as scratch:
                np.save(scratch, part.numpy())
        given = "" if settings["strength"] is None else f", strength {settings['strength']}"
        note = f"Denoised by ldctlib, method {settings['method']}{given}. Not for diagnosis."
        written = _write(scan, job, note, settings["method"], datetime.fromisoformat(begun["now"]))
        write_json(job.scratch / "finished.json", [str(file) for file in written])
        for kept in job.scratch.glob("*.npy"):
            kept.unlink()
    return written


def _begun(state: Path, told: dict[str, Any], out: Path) -> dict[str, Any]:
    """What a run, or a scan of it, began with, written down where it is new; ScanError where it began otherwise."""
    if not state.exists():
        write_json(state, dict(settings=told, now=datetime.now().astimezone().isoformat(timespec="seconds")))
    begun = json.loads(state.read_text("utf-8"))
    if begun["settings"] != plain(told):
        raise ScanError(f"{state.parent} holds another run into {out}: finish it, or remove that folder")
    return begun


def _read(job: Job, settings: dict[str, Any]) -> Scan:
    if is_volume_file(job.source[0]):
        return read_scan(job.source[0], scale=settings["scale"])
    return read_series(job.source, allow_gaps=settings["allow_gaps"], scale=settings["scale"])


def _write(scan: Scan, job: Job, note: str, method: str, begun: datetime) -> list[Path]:
    if isinstance(scan.origin, DicomOrigin):
        title = f"{scan.description} {method}".strip()
        return write_derived(scan, scan.values, job.out, description=note, series_description=title, begun=begun)
    if isinstance(scan.origin, NiftiOrigin):
        return [write_nifti(scan, scan.values, job.out, description=note)]
    with whole_file(job.out) as scratch:
        np.save(scratch, scan.values.numpy())
    return [job.out]


def _shown(steps: range, title: str, progress: bool) -> Iterator[int]:
    from tqdm.auto import tqdm

    return iter(tqdm(steps, desc=title[:60], unit="batch", disable=not progress))


@command_line("the same command goes on from here")
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ldctlib denoise", description=__doc__)
    parser.add_argument("source", metavar="IN", help="a DICOM file or folder, a NIfTI or a NumPy file")
    parser.add_argument("out", metavar="OUT", help="a new folder or file")
    parser.add_argument("--method", default="nafnet", help="a name of ldctlib.methods, with options as in man:steps=4")
    told = f"{', '.join(STRENGTHS)}, or the share of what was removed that is added again"
    parser.add_argument("--strength", help=f"noise that is left: {told}; default: the estimate without noise")
    parser.add_argument("--scale", choices=("HU",), help="HU: take CT for HU that says its scale badly")
    parser.add_argument("--series", help="the UID of one series alone")
    parser.add_argument("--allow-gaps", action="store_true", help="also series whose slices are not evenly spaced")
    parser.add_argument("--seed", type=int, default=0, help="of methods that draw")
    parser.add_argument("--device", default="auto")
    a = parser.parse_args(arguments)
    how = dict(method=a.method, strength=a.strength, scale=a.scale, series_uid=a.series, seed=a.seed)
    files = denoise_scan(a.source, a.out, allow_gaps=a.allow_gaps, device=a.device, progress=True, **how)
    print(f"{len(files)} file(s) in {a.out}. Derived images, not for diagnosis.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
