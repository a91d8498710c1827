"""The benchmark: table, intervals, times, round trip, and the known numbers of the real pairs."""

from __future__ import annotations

import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from scipy import ndimage

from ldctlib import benchmark
from ldctlib.benchmark import BenchmarkCase, BenchmarkResult, paired_bootstrap, real_pairs, run
from ldctlib.errors import ParameterError, ScanError, ShapeError
from ldctlib.metrics import psnr, ssim
from ldctlib.units import ABDOMEN, SOFT_TISSUE, Range


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
    assert (table[table.method == "ldct"].edge_loss == 0).all()
    assert table[table.method == "ldct"].nps_shape.isna().all()  # nothing was removed
    assert 0.5 < table[table.method == "gaussian"].edge_loss.mean() < 0.9
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
    assert content["window"] == {"level": 40, "width": 400}
    assert {"value", "low", "high", "n_patients", "reference", "window"} <= content["scores"][0].keys()
    back = BenchmarkResult.from_json(path)
    assert back.to_markdown() == result.to_markdown() and back.window == result.window
    for metric in [*result.metrics, "seconds"]:
        assert np.array_equal(back.table[metric], result.table[metric], equal_nan=True)
    path.write_text("{}")
    with pytest.raises(ParameterError, match="not a benchmark result"):
        BenchmarkResult.from_json(path)


def test_markdown_and_html_say_what_the_numbers_depend_on(result):
    text, html = result.to_markdown(), result.to_html()
    for part in (
        "dose 0.1",
        "dose 0.5",
        "reference: truth",
        "[-160, 240] HU",
        "12 slice(s) of 6 patient(s)",
        "11x11 Gaussian",
        "95% interval",
    ):
        assert part in text and part in html
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1 and len(rows) == 2 * (2 + len(METHODS))
    assert html.count("<table") == 2


def test_groups_and_reference_kinds_are_never_pooled():
    cases = [
        phantom_case(0, group="chest"),
        phantom_case(1, group="abdomen"),
        phantom_case(2, group="abdomen", reference_kind="full dose"),
    ]
    frames = run({"ldct": nothing}, cases, window=SOFT_TISSUE, metrics=["psnr"]).frames()
    assert len(frames) == 3 and all("1 slice(s) of 1 patient(s)" in caption for caption in frames)


def test_lpips_without_a_trunk_is_empty_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    result = run({"ldct": nothing}, CASES[:1], window=SOFT_TISSUE, metrics=["psnr", "lpips"])
    assert result.table.lpips.isna().all() and "weights" in result.notes["lpips"]
    assert "lpips" not in result.provenance and "–" in result.to_markdown()


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
    assert [c.patient for c in cases].count("L096") == 10 and len(cases) == 15
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


def test_edge_loss_on_real_pairs_is_what_a_blur_takes(real_data):
    """The Gaussian's loss depends on the anatomy only: every slice and kernel must agree, noise or not."""
    cases = [c for c in real_pairs(real_data / "ct" / "mayo")][::5]
    result = run(
        {"ldct": nothing, "gaussian": gaussian(0.8)}, cases, window=SOFT_TISSUE, metrics=["edge_loss"], warmup=0
    )
    values = result.table[result.table.method == "gaussian"].edge_loss
    assert values.between(0.70, 0.78).all()


def test_folders_without_pairs_are_refused(tmp_path):
    with pytest.raises(ScanError, match="not a folder"):
        real_pairs(tmp_path / "absent")
    with pytest.raises(ScanError, match="no full/quarter"):
        real_pairs(tmp_path)
    for name in ("full", "quarter"):
        (tmp_path / "L000" / name).mkdir(parents=True)
    (tmp_path / "L000" / "full" / "1.IMA").write_bytes(b"")
    with pytest.raises(ScanError, match="1 full-dose but 0"):
        real_pairs(tmp_path)


def test_command_line(monkeypatch, capsys, tmp_path):
    registry = types.ModuleType("ldctlib.methods")
    registry.from_spec = lambda spec, device: METHODS[spec]
    monkeypatch.setitem(sys.modules, "ldctlib.methods", registry)
    monkeypatch.setattr("ldctlib.methods", registry, raising=False)
    monkeypatch.setattr(benchmark, "real_pairs", lambda root: CASES[:2])
    arguments = ["--real", "x", "--methods", "gaussian", "--metrics", "psnr", "--json", str(tmp_path / "r.json")]
    assert benchmark.main(arguments) == 0
    out = capsys.readouterr().out
    assert "| ldct |" in out and "| gaussian |" in out
    assert BenchmarkResult.from_json(tmp_path / "r.json").metrics == ["psnr"]
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--real", "x", "--metrics", "quality"])
    assert stop.value.code == 2 and "quality" in capsys.readouterr().err


def test_another_window_gives_another_number(result):
    other = run({"ldct": nothing}, CASES[:1], window=ABDOMEN, metrics=["psnr"])
    assert other.table.psnr.item() != result.table.psnr.iloc[0]


def test_measured_quality_goes_into_the_checkpoint(tmp_path, monkeypatch):
    from ldctlib import checkpoints, methods, recipes
    from ldctlib.benchmark import record

    r = recipes.recipe("nafnet", "workshop")
    path = recipes.save(tmp_path / "nafnet.safetensors", recipes.new_model(r), r, "workshop")
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


def test_a_bound_is_given_the_full_dose(tmp_path):
    """D(E(full dose)) is no denoiser: the benchmark hands it the full-dose image, or the truth where that is all."""
    from ldctlib import checkpoints, methods

    torch.manual_seed(0)
    config = dict(width=8, channel_mult=[1, 2], latent_channels=3, attention_at=[2], norm_groups=4, shortcut=True)
    path = checkpoints.save(
        tmp_path / "a.safetensors",
        checkpoints.model_class("autoencoder")(**config),
        model="autoencoder",
        config=config,
        hu_range=Range(-1000.0, 1000.0),
        quality={},
        trained_on=dict.fromkeys(checkpoints.PROVENANCE, 0),
    )
    loaded = {name: methods.load(name, path=path) for name in ("round_trip", "round_trip_full")}
    assert loaded["round_trip_full"].oracle and not loaded["round_trip"].oracle
    case = phantom_case(0)
    noisy = case.reference_hu + 10 * torch.randn(case.reference_hu.shape, generator=torch.Generator().manual_seed(1))
    for full_dose, seen in ((None, case.reference_hu), (noisy, noisy)):
        given = phantom_case(0, full_dose_hu=full_dose)
        result = run({"ldct": nothing} | loaded, [given], window=SOFT_TISSUE, metrics=["psnr"], warmup=0)
        found = result.table[result.table.reference == "truth"].set_index("method").psnr
        for name, x in (("round_trip", given.ldct_hu), ("round_trip_full", seen)):
            expected = psnr(loaded[name](x), given.reference_hu, window=SOFT_TISSUE)
            assert found[name] == pytest.approx(expected.item(), abs=1e-9)
    assert not hasattr(nothing, "oracle")  # plain functions stay denoisers
