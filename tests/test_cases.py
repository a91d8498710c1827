"""Phantom cases of the benchmark: noise as asked for, nested doses, shared readings, two references."""

from __future__ import annotations

import pytest
import torch

from ldctlib import benchmark
from ldctlib.benchmark import BenchmarkCase, phantom_cases
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.metrics import noise_std, psnr
from ldctlib.units import SOFT_TISSUE

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
