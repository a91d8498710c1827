"""Scans in, derived scans out: each kind, several series, an interrupt, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import MRImageStorage

from ldctlib import denoise
from ldctlib.data.dicom_read import read_scan, read_series
from ldctlib.denoise import denoise_scan, main
from ldctlib.errors import ParameterError, ScanError
from ldctlib.methods.denoiser import LoadedMethod
from tests.test_dicom import ct_slice, save

HOW = dict(method="gaussian", device="cpu")


def series(folder: Path, slices: int = 6, first: float = 0.0, **changes) -> Path:
    for k in range(slices):
        noise = np.random.default_rng([7, k]).normal(1064, 20, (32, 32)).round().astype(np.int16)
        save(ct_slice(first + 2.0 * k, noise, number=k + 1, **changes), folder / f"{k:03d}.dcm")
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.dcm")}


def test_a_series_becomes_a_derived_series(tmp_path):
    source = series(tmp_path / "in")
    files = denoise_scan(source, tmp_path / "out", **HOW, strength=None)
    before, after = read_series(source), read_series(tmp_path / "out")
    assert len(files) == 6 and after.values.std() < 0.5 * before.values.std()
    assert after.positions_mm == before.positions_mm
    header = pydicom.dcmread(files[0])
    assert header.ImageType[:2] == ["DERIVED", "SECONDARY"] and "method gaussian" in header.DerivationDescription
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    with pytest.raises(ScanError, match="nothing is overwritten"):
        denoise_scan(source, tmp_path / "out", **HOW)


@pytest.mark.parametrize("suffix", [".npy", ".nii.gz"])
@pytest.mark.parametrize("as_file", [True, False])
def test_volume_files_become_their_own_kind(tmp_path, suffix, as_file):
    values = np.random.default_rng(0).normal(40, 20, (5, 32, 32)).astype(np.float32)
    values[:, 0] = -1000
    source = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(source, values)
    else:
        nibabel = pytest.importorskip("nibabel")
        nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([-0.8, -0.8, 2, 1])), source)
    out = tmp_path / (f"b{suffix}" if as_file else "b")
    (file,) = denoise_scan(source, out, **HOW)
    assert file == (out if as_file else out / f"a_denoised{suffix}")
    assert read_scan(file).values[:, 5:-5].std() < 0.5 * values[:, 5:-5].std()


def test_several_series_each_have_their_folder(tmp_path, monkeypatch):
    """Under torchrun two processes share them, and the last one clears up."""
    source = tmp_path / "in"
    series(source / "one", series="1.1")
    series(source / "two" / "deep", series="1.2", PatientID="P2")
    series(source / "mr", series="1.3", Modality="MR", SOPClassUID=MRImageStorage)
    denoise_scan(source, tmp_path / "alone", **HOW)
    assert sorted(p.name for p in (tmp_path / "alone").iterdir()) == ["one", "two_deep"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        written = denoise_scan(source, tmp_path / "shared", **HOW)
        assert len(written) == 6 and (tmp_path / ".shared-unfinished").exists() == (rank == "0")
    for name in ("one", "two_deep"):
        alone, shared = (read_series(tmp_path / out / name).values for out in ("alone", "shared"))
        assert torch.equal(alone, shared)


def test_one_series_that_fails_does_not_stop_the_others(tmp_path):
    source = tmp_path / "in"
    series(source / "one", series="1.1")
    (series(source / "two", series="1.2") / "003.dcm").unlink()
    series(source / "zz", series="1.3")
    with pytest.raises(ScanError, match=r"1 of 3 series could not.*\n.*1\.2: .*steps between slices"):
        denoise_scan(source, tmp_path / "out", **HOW)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["one", "zz"]
    assert len(denoise_scan(source, tmp_path / "gaps", **HOW, allow_gaps=True, series_uid="1.2")) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gaps", "in", "out"]


def test_after_an_interrupt_the_same_bytes(tmp_path, monkeypatch):
    source = series(tmp_path / "in", slices=10)
    times, original, done = [], LoadedMethod.__call__, []

    def fixed(*args):
        return denoise.datetime.fromisoformat("2026-01-02T03:04:05+00:00")

    class Clock(denoise.datetime):
        now = classmethod(fixed)

    monkeypatch.setattr(denoise, "datetime", Clock)
    denoise_scan(source, tmp_path / "out", **HOW)
    whole = digests(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "first")

    def stops(self, images, **how):
        times.append(len(images))
        if len(times) == 2:
            raise KeyboardInterrupt
        done.append(len(images))
        return original(self, images, **how)

    monkeypatch.setattr(LoadedMethod, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        denoise_scan(source, tmp_path / "out", **HOW)
    assert not (tmp_path / "out").exists() and done == [4]
    with pytest.raises(ScanError, match="holds another run"):
        denoise_scan(source, tmp_path / "out", **HOW, seed=3)
    denoise_scan(source, tmp_path / "out", **HOW)
    assert done == [4, 4, 2] and digests(tmp_path / "out") == whole
    assert not (tmp_path / ".out-unfinished").exists()


def test_random_methods_draw_the_same_for_each_image(tmp_path, monkeypatch):
    """What an image gets does not depend on where a run was stopped."""
    seen = []

    def draws(self, images, *, spacing_mm, generator):
        seen.append((spacing_mm, generator.initial_seed()))
        return images

    monkeypatch.setattr(LoadedMethod, "__call__", draws)
    denoise_scan(series(tmp_path / "in"), tmp_path / "out", **HOW, seed=2)
    assert seen == [((2.0, 0.7, 0.8), 2_000_006), ((2.0, 0.7, 0.8), 2_000_010)]


def test_the_command_line(tmp_path, capsys):
    source = series(tmp_path / "in", RescaleType="US")
    assert main([str(source), str(tmp_path / "out"), "--method", "gaussian", "--device", "cpu"]) == 2
    assert 'scale="HU" if you know better' in capsys.readouterr().err and not (tmp_path / "out").exists()
    told = ["--method", "gaussian", "--scale", "HU", "--device", "cpu"]
    assert main([str(source), str(tmp_path / "out"), *told]) == 0
    assert "6 file(s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "options", "error", "says"),
    [
        (dict(Modality="MR", SOPClassUID=MRImageStorage), {}, ScanError, "holds no CT series to denoise"),
        ({}, dict(series_uid="9.9"), ScanError, "holds no CT series 9.9"),
        ({}, dict(method="nafnett"), ParameterError, "no method is named"),
        ({}, dict(method="nafnet", strength="strong"), ParameterError, "smooth, balanced, fine"),
        ({}, dict(scale="arbitrary"), ParameterError, "scale is HU or nothing"),
        ({}, dict(device="foo"), ParameterError, "is not a device"),
    ],
)
def test_what_cannot_be_denoised_is_refused(tmp_path, changes, options, error, says):
    source = series(tmp_path / "in", slices=2, **changes)
    with pytest.raises(error, match=says):
        denoise_scan(source, tmp_path / "out", **HOW | options)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
