"""Cases of the benchmark: phantoms with noise as asked for, nested doses, two references; pairs of any collection."""

from __future__ import annotations

import math

import pytest
import torch

from ldctlib import benchmark
from ldctlib.benchmark import BenchmarkCase, collection_cases, phantom_cases, real_pairs
from ldctlib.data.collection import open_collection
from ldctlib.errors import ParameterError, ScanError, ShapeError
from ldctlib.metrics import noise_std, psnr
from ldctlib.units import SOFT_TISSUE
from tests.test_collections import write_series, write_volume

SMALL = dict(size=128, pixel_mm=3.1, n_views=180, thickness_mm=1.0)


@pytest.fixture(scope="module")
def cases() -> list[BenchmarkCase]:
    return phantom_cases([1, 2], [0.1, 0.25], kernels=("B30f", "D45f"), full_dose_sd_hu=9.0, **SMALL)


def test_order_and_provenance(cases):
    found = [(c.group, c.dose, c.patient) for c in cases]
    assert found[:3] == [
        ("1 mm B30f", 0.25, "phantom 1"),
        ("1 mm B30f", 0.25, "phantom 2"),
        ("1 mm B30f", 0.1, "phantom 1"),
    ]
    assert len(found) == 8 and found[-1] == ("1 mm D45f", 0.1, "phantom 2")
    assert {c.reference_kind for c in cases} == {"truth"} and cases[0].pixel_mm == 3.1


def test_noise_near_the_axis_is_the_one_asked_for(cases):
    """calibrate() meets the target within 40 mm of the axis, about 520 pixels whose noise is correlated: the
    measured standard deviation scatters by some 6 %, and two patients are averaged."""
    sds = [noise_std(c.full_dose_hu - c.reference_hu, [(0, 56, 56)], 16, detrend="mean") for c in cases[:2]]
    assert sum(sds) / 2 == pytest.approx(9.0, rel=0.15)


def test_doses_are_nested_and_kernels_share_readings(cases):
    """Thinned photons: Cov(n_low, n_full) = Var(n_full) and Var(n_low) = Var(n_full) / dose, 16,000 pixels."""
    for case in cases:
        low, full = (x.double() - case.reference_hu for x in (case.ldct_hu, case.full_dose_hu))
        body = case.reference_hu > -500
        variance = (full[body] ** 2).mean()
        assert float((low * full)[body].mean() / variance) == pytest.approx(1.0, abs=0.12)
        assert float((low[body] ** 2).mean() / variance) * case.dose == pytest.approx(1.0, abs=0.15)
    soft, sharp = (cases[i].ldct_hu - cases[i].reference_hu for i in (0, 4))
    assert cases[0].patient == cases[4].patient
    assert float(torch.corrcoef(torch.stack([soft.flatten(), sharp.flatten()]))[0, 1]) > 0.5


def test_a_crop_is_a_part_of_the_whole(cases):
    cropped = phantom_cases([1], [0.25], full_dose_sd_hu=9.0, crop=64, **SMALL)[0]
    whole = cases[0].ldct_hu.unfold(2, 64, 1).unfold(3, 64, 1)[0, 0]
    assert cropped.ldct_hu.shape == (1, 1, 64, 64)
    assert ((whole - cropped.ldct_hu[0, 0]).abs().amax((-1, -2)) < 0.01).sum() == 1


def test_two_references_are_scored_from_one_denoising(cases):
    calls = []

    def halve(ldct, *, noise=None, spacing_mm=None, generator=None):
        calls.append(1)
        return 0.5 * ldct

    result = benchmark.run(
        {"ldct": lambda x, **_: x, "halve": halve},
        cases[:2],
        window=SOFT_TISSUE,
        metrics=["psnr", "bias_hu"],
        warmup=0,
        keep_images=True,
    )
    assert len(calls) == 2 and len(result.table) == 8
    for index, case in enumerate(cases[:2]):
        x = result.images["halve", index]
        assert torch.equal(x, 0.5 * case.ldct_hu)
        rows = result.table[(result.table.method == "halve") & (result.table.patient == case.patient)]
        for kind, reference in (("truth", case.reference_hu), ("full dose", case.full_dose_hu)):
            expected = psnr(x, reference, window=SOFT_TISSUE).item()
            assert rows[rows.reference == kind].psnr.item() == pytest.approx(expected, abs=1e-9)


def test_what_cannot_be_made_is_refused():
    for arguments, message in (
        (([], [0.25]), "seeds"),
        (([1], [1.0]), "doses"),
        (([1], [0.0]), "doses"),
        (([1], []), "doses"),
    ):
        with pytest.raises(ParameterError, match=message):
            phantom_cases(*arguments, **SMALL)
    for options, message in ((dict(crop=8), "crop"), (dict(height=1.2), "height"), (dict(kernels=()), "kernels")):
        with pytest.raises(ParameterError, match=message):
            phantom_cases([1], [0.25], **SMALL, **options)
    x = torch.zeros(1, 1, 32, 32)
    with pytest.raises(ParameterError, match="second reference"):
        BenchmarkCase("p", x, x, "full dose", 0.25, 1.0, full_dose_hu=x)
    with pytest.raises(ShapeError):
        BenchmarkCase("p", x, x, "truth", 0.25, 1.0, full_dose_hu=x[..., 1:])


# ---------------------------------------------------------------- pairs of a collection


def pair(folder, *, full="full", low="low", slices=9, **changes) -> None:
    names = [f"{k:02d}.dcm" for k in range(slices)]
    write_series(folder / full, names, 40, **changes)
    write_series(folder / low, names, 60, **changes)


def test_pairs_of_any_layout_become_cases(tmp_path):
    study = tmp_path / "LDCT-and-Projection-data" / "C014" / "12-23-2021-NA-NA-50920"
    pair(study, full="1.000000-Full Dose Images-1", low="1.000000-Low Dose Images-2", ConvolutionKernel=["Br40d", "3"])
    pair(tmp_path / "L067", low="quarter", ConvolutionKernel="D45f", SliceThickness="1")
    cases = real_pairs(tmp_path, slices_per_patient=2)
    assert [(c.patient, c.slice, c.dose, c.group, c.slice_mm) for c in cases] == [
        ("C014", "02", 0.1, "3 mm Br40d/3", 3.0),
        ("C014", "06", 0.1, "3 mm Br40d/3", 3.0),
        ("L067", "02", 0.25, "1 mm D45f", 1.0),
        ("L067", "06", 0.25, "1 mm D45f", 1.0),
    ]
    for case, z in zip(cases, (6, 18, 6, 18), strict=True):
        assert case.ldct_hu[0, 0, 12, 12] == 60 + z and case.reference_hu[0, 0, 12, 12] == 40 + z
        assert case.reference_kind == "full dose" and case.pixel_mm == 0.7 and case.full_dose_hu is None
        assert case.ldct_hu.untyped_storage().nbytes() == 4 * 24 * 24  # one slice, not the scan behind it
    assert [len(real_pairs(tmp_path, slices_per_patient=n)) for n in (1, 9, 99, None)] == [2, 18, 18, 18]


def test_one_patients_scans_are_read_at_a_time(tmp_path):
    for patient in ("a", "b"):
        pair(tmp_path / patient, slices=2)
    collection = open_collection(tmp_path)
    (tmp_path / "b" / "low" / "00.dcm").write_bytes(b"damaged since")
    cases = collection_cases(collection)
    assert [next(cases).patient for _ in range(2)] == ["a", "a"]
    with pytest.raises(ScanError, match="00.dcm"):
        next(cases)


def test_a_dose_that_the_collection_does_not_say(tmp_path):
    pair(tmp_path / "own" / "a", slices=1)
    assert math.isnan(real_pairs(tmp_path / "own")[0].dose)
    assert real_pairs(tmp_path / "own", dose=0.4)[0].dose == 0.4
    # the headers say it where both doses were measured, and not where noise was inserted
    write_series(tmp_path / "scans" / "a" / "full", ["1.dcm"], 40, CTDIvol=10.0)
    write_series(tmp_path / "scans" / "a" / "low", ["1.dcm"], 60, CTDIvol=3.0)
    assert real_pairs(tmp_path / "scans", dose=0.4)[0].dose == pytest.approx(0.3)
    pair(tmp_path / "inserted" / "a", slices=1, CTDIvol=10.0)
    assert real_pairs(tmp_path / "inserted", dose=0.4)[0].dose == 0.4


def test_scans_of_one_patient_keep_their_slices_apart(tmp_path):
    for visit in ("first", "second"):
        pair(tmp_path / "P1" / visit, slices=2)
    cases = real_pairs(tmp_path)
    assert {c.patient for c in cases} == {"P1"} and len({c.slice for c in cases}) == 4


def test_pairs_that_cannot_be_measured_are_refused(tmp_path):
    for dose in ("full", "low"):
        write_volume(tmp_path / "P1" / f"{dose}.npy", 0)
    with pytest.raises(ScanError, match="P1: the files do not say how large a pixel is"):
        real_pairs(tmp_path)
    with pytest.raises(ParameterError, match="slices_per_patient"):
        real_pairs(tmp_path, slices_per_patient=0)
