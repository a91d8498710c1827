"""The benchmark: table, intervals, times, round trip, and the known numbers of the real pairs."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from ldctlib.benchmark import (
    DEFAULT_METRICS,
    METRICS,
    BenchmarkCase,
    BenchmarkResult,
    paired_bootstrap,
    real_pairs,
    run,
)
from ldctlib.benchmark.__main__ import main
from ldctlib.compat import torchvision_shim
from ldctlib.errors import ParameterError, ScanError, ShapeError
from ldctlib.metrics import psnr, ssim
from ldctlib.metrics.perceptual import trunk_file
from ldctlib.units import ABDOMEN, SOFT_TISSUE
from tests.test_collections import write_series


def nothing(ldct, *, noise=None, spacing_mm=None, generator=None):
    return ldct.clone()


def gaussian(sigma):
    def denoise(ldct, *, noise=None, spacing_mm=None, generator=None):
        return torch.from_numpy(ndimage.gaussian_filter(ldct.numpy(), (0, 0, sigma, sigma)))

    return denoise


def jitter(ldct, *, noise=None, spacing_mm=None, generator=None):
    return ldct + torch.randn(ldct.shape, generator=generator)


def phantom_case(patient: int, index: int = 0, dose: float = 0.25, **fields) -> BenchmarkCase:
    generator = torch.Generator().manual_seed(100 * patient + index)
    rows, columns = np.indices((96, 96))
    truth = np.where(np.hypot(rows - 48, columns - 48) < 40, 40.0, -1000.0)
    truth[np.hypot(rows - 40 - patient, columns - 50) < 6] = 180.0
    truth = torch.from_numpy(truth).float()[None, None]
    ldct = truth + 20 / math.sqrt(dose) * torch.randn(truth.shape, generator=generator)
    values = {"reference_kind": "truth", "pixel_mm": 0.8, "slice": str(index)} | fields
    return BenchmarkCase(f"P{patient}", ldct, truth, dose=dose, **values)


CASES = [phantom_case(p, i, d) for d in (0.5, 0.1) for p in range(6) for i in range(2)]
METHODS = {"ldct": nothing, "gaussian": gaussian(0.8), "jitter": jitter}


@pytest.fixture(scope="module")
def result() -> BenchmarkResult:
    return run(METHODS, CASES, window=SOFT_TISSUE)


def test_rows_hold_the_metrics_of_each_case(result):
    table = result.table
    assert len(table) == len(METHODS) * len(CASES)
    case = CASES[3]
    row = table[
        (table.method == "gaussian")
        & (table.patient == case.patient)
        & (table.slice == case.slice)
        & (table.dose == case.dose)
    ]
    x = gaussian(0.8)(case.ldct_hu)
    assert row.psnr.item() == pytest.approx(psnr(x, case.reference_hu, window=SOFT_TISSUE).item(), abs=1e-9)
    assert row.ssim.item() == pytest.approx(ssim(x, case.reference_hu, window=SOFT_TISSUE).item(), abs=1e-9)
    assert (table[table.method == "ldct"].edge_attenuation == 0).all()
    assert table[table.method == "ldct"].nps_shape_distance.isna().all()  # nothing was removed
    assert 0.5 < table[table.method == "gaussian"].edge_attenuation.mean() < 0.9
    assert set(table.reference) == {"truth"}


def test_scores_are_means_of_paired_differences(result):
    table = result.table
    score = next(s for s in result.scores() if (s.method, s.metric, s.dose) == ("gaussian", "psnr", 0.1))
    own, base = (table[(table.method == m) & (table.dose == 0.1)].psnr.to_numpy() for m in ("gaussian", "ldct"))
    assert score.value == pytest.approx(own.mean()) and score.difference == pytest.approx((own - base).mean())
    assert score.low < score.difference < score.high and score.low > 0
    assert (score.n_slices, score.n_patients, score.reference) == (12, 6, "truth")
    assert score.window == str(SOFT_TISSUE)


def test_seeded_methods_repeat(result):
    again = run({"ldct": nothing, "jitter": jitter}, CASES, window=SOFT_TISSUE, metrics=["psnr"])
    old = result.table[result.table.method == "jitter"].psnr.to_numpy()
    assert np.array_equal(again.table[again.table.method == "jitter"].psnr.to_numpy(), old)


def test_json_round_trip_keeps_everything(result, tmp_path):
    path = tmp_path / "result.json"
    result.to_json(path)
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]  # no temporary file is left
    content = json.loads(path.read_text())
    assert content["window"] == {"level": 40, "width": 400, "unit": "HU"}
    assert {"value", "low", "high", "n_patients", "reference", "window"} <= content["scores"][0].keys()
    back = BenchmarkResult.from_json(path)
    assert back.to_markdown() == result.to_markdown() and back.window == result.window
    for metric in [*result.metrics, "seconds"]:
        assert np.array_equal(back.table[metric], result.table[metric], equal_nan=True)
    path.write_text("{}")
    with pytest.raises(ParameterError, match="not a benchmark result"):
        BenchmarkResult.from_json(path)


def test_markdown_says_what_the_numbers_depend_on(result):
    text = result.to_markdown()
    for part in (
        "dose 0.1",
        "dose 0.5",
        "reference: truth",
        "[-160, 240] HU",
        "12 slice(s) of 6 patient(s)",
        "11x11 Gaussian",
        "95% interval",
    ):
        assert part in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1 and len(rows) == 2 * (2 + len(METHODS))


def test_groups_and_reference_kinds_are_never_pooled():
    cases = [
        phantom_case(0, group="chest"),
        phantom_case(1, group="abdomen"),
        phantom_case(2, group="abdomen", reference_kind="full dose"),
    ]
    frames = run({"ldct": nothing}, cases, window=SOFT_TISSUE, metrics=["psnr"]).frames()
    assert len(frames) == 3 and all("1 slice(s) of 1 patient(s)" in caption for caption in frames)


@pytest.mark.parametrize("name", ["lpips", "lpips_vgg", "lpips_alex"])
def test_lpips_without_a_trunk_is_empty_with_the_reason(name, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    result = run({"ldct": nothing}, CASES[:1], window=SOFT_TISSUE, metrics=["psnr", name])
    assert result.table[name].isna().all() and "weights" in result.notes[name]
    assert name not in result.provenance and "–" in result.to_markdown()


@pytest.mark.filterwarnings("ignore:.*weights:UserWarning")  # torchvision, of the package's way to call it
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_is_that_of_its_package_with_the_trunk_it_is_named_for(net):
    if not trunk_file(net).is_file():
        pytest.skip(f"torch's cache (TORCH_HOME) has no {net} weights")
    torchvision_shim()
    import lpips

    case, ldct = CASES[0], CASES[0].ldct_hu
    value = METRICS[f"lpips_{net}"].function(ldct, case, SOFT_TISSUE)
    unit = [(((x + 160) / 400).clamp(0, 1) * 2 - 1).expand(-1, 3, -1, -1) for x in (ldct, case.reference_hu)]
    with torch.no_grad():
        expected = lpips.LPIPS(net=net, verbose=False)(*unit)
    assert value == pytest.approx(expected.item(), rel=1e-4) and value > 0.05
    assert f", {net}," in METRICS[f"lpips_{net}"].provenance


def test_warm_up_and_what_a_denoiser_is_given():
    calls = []

    def spy(ldct, *, noise=None, spacing_mm=None, generator=None):
        calls.append((noise, spacing_mm, generator.initial_seed()))
        return ldct

    cases = [phantom_case(p, noise="model", slice_mm=3.0) for p in range(2)]
    result = run({"ldct": spy}, cases, window=SOFT_TISSUE, metrics=["psnr"], warmup=2)
    assert len(calls) == 2 + 2  # one shape: two warm-up runs, then one a case
    assert calls[-1] == ("model", (3.0, 0.8, 0.8), 1)
    assert result.table.seconds.notna().all()


def test_doses_select_cases():
    result = run({"ldct": nothing}, CASES, window=SOFT_TISSUE, metrics=["psnr"], doses=[0.1])
    assert set(result.table.dose) == {0.1} and len(result.table) == 12


def test_bad_inputs_are_refused_by_name():
    def call(methods=None, cases=CASES[:1], window=SOFT_TISSUE, **options):
        return run({"ldct": nothing} if methods is None else methods, cases, window=window, **options)

    for options, message in (
        ({"methods": {}}, "no methods"),
        ({"methods": {"gaussian": gaussian(1)}}, "baseline 'ldct'"),
        ({"window": None}, "Window"),
        ({"metrics": ["psnr", "quality"]}, "quality"),
        ({"doses": [0.3]}, "no case has"),
        ({"cases": []}, "no cases"),
    ):
        with pytest.raises(ParameterError, match=message):
            call(**options)
    with pytest.raises(ShapeError, match="'ldct' on patient P0"):
        call({"ldct": lambda x, **k: x[..., 1:]})
    with pytest.raises(ShapeError, match="finite"):
        call({"ldct": lambda x, **k: x / 0})
    for fields, message in (({"reference_kind": "gt"}, "reference_kind"), ({"pixel_mm": 0.0}, "pixel_mm")):
        with pytest.raises(ParameterError, match=message):
            phantom_case(0, **fields)
    with pytest.raises(ParameterError, match="dose"):
        BenchmarkCase("p", CASES[0].ldct_hu, CASES[0].reference_hu, "truth", 25, 0.8)
    with pytest.raises(ShapeError, match="one slice"):
        BenchmarkCase("p", *[torch.zeros(2, 1, 8, 8)] * 2, "truth", 0.25, 0.8)


# ---------------------------------------------------------------- intervals


def coverage(by_patient: bool, trials: int = 400, patients: int = 12, slices: int = 8) -> float:
    """How often the interval holds the true mean 1, patients differing with std 1 and slices with std 0.5."""
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(trials):
        values = 1 + generator.normal(size=(patients, 1)) + 0.5 * generator.normal(size=(patients, slices))
        labels = np.repeat(np.arange(patients), slices) if by_patient else np.arange(patients * slices)
        _, low, high = paired_bootstrap(values.ravel(), labels, resamples=500, seed=trial)
        hits += low <= 1 <= high
    return hits / trials


def test_bootstrap_covers_at_its_level_only_when_patients_are_resampled():
    # 400 trials of a 95 % interval: standard error 1.1 %; small n costs the bootstrap a little more
    assert 0.915 <= coverage(by_patient=True) <= 0.985
    assert coverage(by_patient=False) < 0.7  # slices of one patient are not independent


def test_bootstrap_weighs_slices_and_needs_enough_patients():
    mean, low, high = paired_bootstrap([1.0, 1.0, 4.0], ["a", "a", "b"])
    assert mean == 2.0 and math.isnan(low) and math.isnan(high)
    assert math.isnan(paired_bootstrap(np.arange(5.0), range(5))[1])
    assert not math.isnan(paired_bootstrap(np.arange(6.0), range(6))[1])
    # a constant difference is known exactly
    assert paired_bootstrap([0.5] * 8, range(8)) == (0.5, 0.5, 0.5)
    for arguments, options in ((([1.0], ["a", "b"]), {}), (([], []), {}), (([1.0], ["a"]), {"level": 95})):
        with pytest.raises(ParameterError):
            paired_bootstrap(*arguments, **options)


# ---------------------------------------------------------------- real pairs


def test_real_pairs_reproduce_the_known_baselines(real_data):
    cases = real_pairs(real_data)
    assert [c.group for c in cases] == ["3 mm D45f"] * 14 + ["3 mm B30f"] * 7 + ["1 mm B30f"]
    assert {c.dose for c in cases} == {0.25} and [c.patient for c in cases].count("L143") == 11
    result = run(
        {"ldct": nothing, "gaussian": gaussian(0.8)},
        cases,
        window=SOFT_TISSUE,
        metrics=["psnr", "ssim_uniform7"],
        warmup=0,
    )
    found = {(s.group, s.method, s.metric): s for s in result.scores()}
    for group, method, expected in (
        ("3 mm D45f", "ldct", (19.28, 0.717)),
        ("3 mm D45f", "gaussian", (23.33, 0.742)),
        ("1 mm B30f", "ldct", (19.79, 0.760)),
        ("1 mm B30f", "gaussian", (22.46, 0.792)),
    ):
        # published to two and three digits
        assert found[group, method, "psnr"].value == pytest.approx(expected[0], abs=0.0051)
        assert found[group, method, "ssim_uniform7"].value == pytest.approx(expected[1], abs=0.00051)
    assert found["3 mm D45f", "ldct", "psnr"].n_slices == 14
    soft = result.table[(result.table.method == "ldct") & (result.table.group == "3 mm B30f")].psnr
    assert soft.min() == pytest.approx(22.6, abs=0.05) and soft.max() == pytest.approx(29.0, abs=0.05)


def test_edge_attenuation_on_real_pairs_is_what_a_blur_takes(real_data):
    """The Gaussian's loss depends on the anatomy only: every slice and kernel must agree, noise or not."""
    cases = [c for c in real_pairs(real_data / "ct" / "mayo")][::5]
    result = run(
        {"ldct": nothing, "gaussian": gaussian(0.8)}, cases, window=SOFT_TISSUE, metrics=["edge_attenuation"], warmup=0
    )
    values = result.table[result.table.method == "gaussian"].edge_attenuation
    assert values.between(0.70, 0.78).all()


def test_folders_without_pairs_are_refused(tmp_path):
    with pytest.raises(ParameterError, match="neither a folder"):
        real_pairs(tmp_path / "absent")
    with pytest.raises(ScanError, match="no CT or MR"):
        real_pairs(tmp_path)
    write_series(tmp_path / "P1" / "full", ["1.dcm"], 40)
    with pytest.raises(ScanError, match="nobody has a full-dose and a low-dose scan"):
        real_pairs(tmp_path)


def test_command_line(capsys, tmp_path):
    for dose, value in (("full", 40), ("quarter", 60)):
        for patient, n in (("L067", 5), ("L333", 3)):
            write_series(tmp_path / patient / dose, [f"{k}.dcm" for k in range(n)], value, ConvolutionKernel="D45f")
    arguments = ["--real", str(tmp_path), "--slices", "2", "--methods", "gaussian", "--metrics", "psnr"]
    assert main([*arguments, "--json", str(tmp_path / "r.json")]) == 0
    out = capsys.readouterr().out
    assert "| ldct |" in out and "| gaussian |" in out
    assert "3 mm D45f: dose 0.25, reference: full dose" in out and "n = 4 slice(s) of 2 patient(s)" in out
    assert BenchmarkResult.from_json(tmp_path / "r.json").metrics == ["psnr"]
    assert main([*arguments, "--split", "leda-mayo-2016"]) == 0
    assert "n = 2 slice(s) of 1 patient(s)" in capsys.readouterr().out
    for more, message in ((["--metrics", "quality"], "quality"), (["--real", str(tmp_path / "x")], "neither")):
        assert main([*arguments, *more]) == 2 and message in capsys.readouterr().err


def test_another_window_gives_another_number(result):
    other = run({"ldct": nothing}, CASES[:1], window=ABDOMEN, metrics=["psnr"])
    assert other.table.psnr.item() != result.table.psnr.iloc[0]


def test_measured_quality_goes_into_the_checkpoint(tmp_path, monkeypatch):
    from ldctlib import checkpoints, methods, recipes
    from ldctlib.benchmark import record
    from ldctlib.recipes.running import save

    r = recipes.recipe("nafnet", "workshop")
    path = save(tmp_path / "nafnet.safetensors", r.saved.build(1), "nafnet", r, "workshop")
    monkeypatch.setenv("LDCT_CHECKPOINTS", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    clean = torch.full((1, 1, 64, 64), 40.0)
    noisy = [clean + 20 * torch.randn(clean.shape, generator=generator) for _ in range(2)]
    cases = [BenchmarkCase(f"p{i}", x, clean, "truth", 0.25, 0.7) for i, x in enumerate(noisy)]
    names = ("ldct", "gaussian", "nafnet")
    result = run({name: methods.load(name) for name in names}, cases, window=SOFT_TISSUE, metrics=["psnr"])
    assert record(result) == [path]
    ((where, values),) = checkpoints.load(path).quality.items()
    assert "truth" in where and "2 slices" in where
    # an untrained network changes nothing: its PSNR is the low-dose image's, 20 log10(400 / 20) = 26 dB
    assert abs(values["psnr"] - 26.0) < 0.2


def test_an_oracle_is_given_the_full_dose():
    """It is no denoiser but a bound: it gets the full-dose image, or the truth where that is all."""

    def same(ldct, *, noise=None, spacing_mm=None, generator=None):
        return ldct + 1

    bound = lambda ldct, **more: same(ldct, **more)  # noqa: E731
    bound.oracle = True
    truth = phantom_case(0).reference_hu
    noisy = truth + 10 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    for full_dose, seen in ((None, truth), (noisy, noisy)):
        case = phantom_case(0, full_dose_hu=full_dose)
        methods = {"ldct": nothing, "same": same, "bound": bound}
        images = run(methods, [case], window=SOFT_TISSUE, metrics=["psnr"], warmup=0, keep_images=True).images
        assert torch.equal(images["same", 0], case.ldct_hu + 1) and torch.equal(images["bound", 0], seen + 1)


# ---------------------------------------------------------------- residual noise


def truth_minus(removed_hu: float):
    """A denoiser that removes so much everywhere and estimates the anatomy."""

    def denoise(ldct, *, noise=None, spacing_mm=None, generator=None):
        return ldct - removed_hu

    denoise.blends = True
    return denoise


@pytest.mark.parametrize(("residual_noise", "shares"), [("dose", {0.5: 0.5, 0.1: 0.1}), (0.3, {0.5: 0.3, 0.1: 0.3})])
def test_against_a_full_dose_a_share_of_the_residual_is_added_again(residual_noise, shares):
    cases = [phantom_case(p, dose=d, full_dose_hu=phantom_case(p, dose=1.0).ldct_hu) for p, d in enumerate((0.5, 0.1))]
    plain = truth_minus(20.0)
    blends = {"ldct": nothing, "anatomy": truth_minus(20.0), "other": lambda ldct, **more: plain(ldct, **more)}
    result = run(blends, cases, window=SOFT_TISSUE, metrics=["psnr"], residual_noise=residual_noise, keep_images=True)
    for index, case in enumerate(cases):
        assert torch.equal(result.images["anatomy", index], case.ldct_hu - 20)  # nothing added to what is kept
        rows = result.table[result.table.patient == case.patient].set_index(["method", "reference"]).psnr
        share = shares[case.dose]
        x = case.ldct_hu - 20 * (1 - share)
        expected = psnr(x, case.full_dose_hu, window=SOFT_TISSUE).item()
        assert rows["anatomy", "full dose"] == pytest.approx(expected, abs=1e-4)
        assert rows["anatomy", "truth"] == rows["other", "truth"]  # nor to what is compared with the truth
        assert rows["other", "full dose"] == pytest.approx(
            psnr(case.ldct_hu - 20, case.full_dose_hu, window=SOFT_TISSUE).item(), abs=1e-9
        )
    assert "a share of what they removed added again: " + ", ".join(map(str, sorted(set(shares.values())))) in (
        result.to_markdown()
    )


def test_an_unknown_dose_is_said_and_nothing_is_added(tmp_path):
    cases = [replace(phantom_case(p), dose=math.nan, reference_kind="full dose") for p in range(2)]
    result = run({"ldct": nothing, "anatomy": truth_minus(20.0)}, cases, window=SOFT_TISSUE, metrics=["psnr"], warmup=0)
    x = result.table[result.table.method == "anatomy"].psnr.iloc[0]
    assert x == psnr(cases[0].ldct_hu - 20, cases[0].reference_hu, window=SOFT_TISSUE).item()
    assert len(result.frames()) == 1  # one group, though NaN is not equal to itself
    result.to_json(tmp_path / "r.json")
    for text in (result.to_markdown(), BenchmarkResult.from_json(tmp_path / "r.json").to_markdown()):
        assert "dose unknown" in text and "the dose of patient P1 is unknown, nothing is added" in text


# ---------------------------------------------------------------- the registry


def test_cases_are_taken_one_after_the_other():
    alive = []

    def cases():
        for p in range(3):
            alive.append(p)
            yield phantom_case(p)

    def spy(ldct, *, noise=None, spacing_mm=None, generator=None):
        seen.append(len(alive))
        return ldct

    seen = []
    table = run({"ldct": spy, "again": spy}, cases(), window=SOFT_TISSUE, metrics=["psnr"], warmup=0).table
    assert seen == [1, 1, 2, 2, 3, 3]
    assert list(table.method) == ["ldct"] * 3 + ["again"] * 3  # one method after the other all the same


def test_every_metric_of_the_registry_measures(result):
    names = [name for name in METRICS if not name.startswith("lpips")]
    both = run(METHODS, CASES[:1], window=SOFT_TISSUE, metrics=names, warmup=0)
    row = both.table[both.table.method == "gaussian"]
    assert not both.notes and row[names].notna().all(axis=None)
    assert set(both.provenance) == {"ssim", "ssim_uniform7", "fsim"}
    assert result.metrics == list(DEFAULT_METRICS) and set(DEFAULT_METRICS) < set(names)
