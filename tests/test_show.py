"""Figures, widgets, exercises and the page: what they draw, say and refuse."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import torch

from ldctlib.benchmark.result import BenchmarkResult
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.show import exercises, figures, page, widgets
from ldctlib.show.exercises import Exercise, check, judge
from ldctlib.show.png import figure_png
from ldctlib.show.table import Table, benchmark_table
from ldctlib.units import SOFT_TISSUE, Window


@pytest.fixture
def image_hu() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 40 + 30 * torch.randn(1, 1, 64, 48, generator=generator)


def picture(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def drawn(figure) -> list:
    return [axis for axis in figure.axes if axis.images]


# -- figures --------------------------------------------------------------------------------------------


def test_rows_show_every_image_in_one_window_and_the_difference_in_hu(image_hu):
    figure = figures.rows({"a": image_hu, "b": image_hu + 7}, window=SOFT_TISSUE, roi=(8, 4, 16, 20), reference="a")
    axes = drawn(figure)
    assert len(axes) == 6
    assert {axis.images[0].get_clim() for axis in axes[:4]} == {(-160, 240)}
    np.testing.assert_array_equal(axes[3].images[0].get_array(), (image_hu + 7)[0, 0, 8:24, 4:24])
    np.testing.assert_allclose(axes[5].images[0].get_array(), 7, atol=1e-4)  # float32 at 40 HU: 4e-6
    assert axes[5].get_xlabel() == "RMSE 7.0 HU"
    low, high = axes[5].images[0].get_clim()
    assert low == -high  # or a diverging map's middle would not be 0


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"roi": (60, 0, 16, 16)}, ParameterError, "leaves the image of 64×48"),
        ({"reference": "c"}, ParameterError, "none of the images: a, b"),
        ({"images": {}}, ParameterError, "at least one"),
        ({"images": {"a": torch.zeros(2, 1, 8, 8)}}, ShapeError, r"got \(2, 1, 8, 8\)"),
        ({"images": {"a": torch.zeros(8, 8), "b": torch.zeros(8, 9)}}, ShapeError, "one shape"),
    ],
)
def test_rows_refuse(image_hu, change, error, says):
    with pytest.raises(error, match=says):
        figures.rows(**{"images": {"a": image_hu, "b": image_hu}, "window": SOFT_TISSUE, **change})


def test_embedded_figures_keep_their_colours_and_are_small(image_hu):
    figure = figures.rows({"a": image_hu, "b": image_hu * 0}, window=SOFT_TISSUE, reference="a")
    figure.canvas.draw()
    figure.set_layout_engine("none")  # or each drawing would move the axes by a pixel
    whole = io.BytesIO()
    figure.savefig(whole, format="png", bbox_inches="tight", pad_inches=0.05)
    small, exact = figure_png(figure), picture(whole.getvalue())
    error = np.abs(picture(small).astype(int) - exact)
    assert len(small) < 0.6 * len(whole.getvalue())
    # Half a step of LEVELS grey levels; between two steps of the diverging map a channel moves by at most 9.
    assert np.percentile(error, 99) <= 9
    assert (picture(small)[0, 0] == 255).all()


def test_nps_plot_normalises_and_names_its_axes():
    frequency = np.linspace(0, 0.7, 20)
    curves = {"real": (frequency, 5 * frequency), "simulated": (torch.tensor(frequency), frequency)}
    figure = figures.nps_plot(curves, reference="real", normalise=True)
    lines = figure.axes[0].lines
    assert [line.get_ydata().max() for line in lines] == [1, 1] and lines[0].get_linestyle() == "--"
    assert "1/mm" in figure.axes[0].get_xlabel()
    with pytest.raises(ShapeError, match="20 positions but 3"):
        figures.nps_plot({"bad": (frequency, [1, 2, 3])})


def test_strips_show_all_rows_in_one_window():
    state, estimate = ([np.full((8, 6), k * 100.0 * i, np.float32) for i in range(5)] for k in (0, 1))
    titles = ["1000", "800", "600", "400", "200"]
    figure = figures.strips({"state": state, "estimate": estimate}, titles, window=Window(200, 400))
    axes = drawn(figure)
    assert len(axes) == 10 and {axis.images[0].get_clim() for axis in axes} == {(0, 400)}
    assert [axis.get_title() for axis in axes] == titles + 5 * [""]
    assert axes[0].get_ylabel() == "state" and axes[5].get_ylabel() == "estimate"
    np.testing.assert_array_equal(axes[9].images[0].get_array(), estimate[4])


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        ({}, ParameterError, "at least one image"),
        ({"a": [torch.zeros(4, 4)]}, ShapeError, "1 images for 2 titles"),
        ({"a": [torch.zeros(4, 4), torch.zeros(4, 5)]}, ShapeError, "one shape"),
    ],
)
def test_strips_refuse(rows, error, says):
    with pytest.raises(error, match=says):
        figures.strips(rows, ["1", "2"], window=SOFT_TISSUE)


def test_curves_draw_lines_levels_and_powers_of_two():
    panels = {"PSNR (dB)": {"ddim": ([2, 4, 8], [1, 2, 3])}, "detail": {"ddim": ([2, 4, 8], [5, 6, 7])}}
    figure = figures.curves(panels, xlabel="steps", levels={"detail": {"ceiling": 9.0}}, log_x=True)
    left, right = figure.axes
    assert left.get_ylabel() == "PSNR (dB)" and left.get_xscale() == "log" and left.get_xlabel() == "steps"
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["2", "4", "8"]
    assert len(left.lines) == 1 and list(right.lines[1].get_ydata()) == [9.0, 9.0]
    falling = figures.curves({"y": {"a": ([1000, 500], [0, 1])}}, xlabel="t", falling=True).axes[0]
    assert falling.get_xlim()[0] > falling.get_xlim()[1]
    x = np.geomspace(0.3, 5.0, 12)
    seconds = figures.curves({"y": {"a": (x, x)}}, xlabel="s", log_x=True).axes[0]
    assert [tick.get_text() for tick in seconds.get_xticklabels()] == ["0.25", "0.5", "1", "2", "4", "8"]


@pytest.mark.parametrize(
    ("panels", "levels", "error", "says"),
    [
        ({}, None, ParameterError, "at least one panel"),
        ({"y": {}}, None, ParameterError, "a line in each"),
        ({"y": {"a": ([1, 2], [1])}}, None, ShapeError, "2 positions but 1 values"),
        ({"y": {"a": ([1], [1])}}, {"z": {"b": 1.0}}, ParameterError, "not there"),
    ],
)
def test_curves_refuse(panels, levels, error, says):
    with pytest.raises(error, match=says):
        figures.curves(panels, xlabel="t", levels=levels)


def test_disagreement_draws_the_last_column_in_colour_from_zero():
    generator = torch.Generator().manual_seed(0)
    images = 40 + 10 * torch.randn(3, 16, 16, generator=generator)
    line = {"mean": images.mean(0), "truth": images[0], "std of 3": images.std(0)}
    figure = figures.disagreement({"dose 0.25": line, "dose 0.1": line}, top_hu=20, circles=[(4, 5, 2)])
    axes = drawn(figure)[:6]
    assert [axis.images[0].get_clim() for axis in axes[:3]] == [(-160, 240), (-160, 240), (0, 20)]
    assert [len(axis.patches) for axis in axes] == [0, 1, 1] * 2
    assert axes[2].patches[0].center == (5, 4) and axes[2].patches[0].radius == 4
    assert [axis.get_title() for axis in axes] == ["mean", "truth", "std of 3", "", "", ""]
    np.testing.assert_array_equal(axes[5].images[0].get_array(), images.std(0))
    of_rows = {"dose 0.25": [(4, 5, 2), (9, 9, 1)], "dose 0.1": []}
    figure = figures.disagreement({"dose 0.25": line, "dose 0.1": line}, circles=of_rows)
    assert [len(axis.patches) for axis in drawn(figure)[:6]] == [0, 2, 2, 0, 0, 0]
    with pytest.raises(ShapeError, match="the same titles"):
        figures.disagreement({"a": line, "b": {"truth": images[0]}})


def test_contact_sheet_hides_what_is_left_over(image_hu):
    figure = figures.contact_sheet([image_hu] * 7, window=SOFT_TISSUE, columns=4)
    assert [axis.get_visible() for axis in figure.axes] == [True] * 7 + [False]


def test_table_marks_the_best_of_those_that_compete():
    rows = [
        {"method": "truth", "PSNR": 99.0, "RMSE": 0.0},
        {"method": "<ldct>", "PSNR": 19.281, "RMSE": 40.0},
        {"method": "nafnet", "PSNR": 24.90, "RMSE": float("nan")},
        {"method": "tie", "PSNR": 24.901, "RMSE": 20.0},
    ]
    table = Table(rows, better={"PSNR": "high", "RMSE": "low"}, skip=["truth"])
    assert table.best("PSNR") == {2, 3} and table.best("RMSE") == {3} and table.best("method") == set()
    html = table._repr_html_()
    assert html.count("<b>") == 3 and "&lt;ldct&gt;" in html and "nan" not in html
    assert repr(table).splitlines()[2].split() == ["<ldct>", "19.28", "40.00"]
    with pytest.raises(ParameterError, match="say 'high' or 'low'"):
        Table(rows, better={"PSNR": "best"})


# -- widgets --------------------------------------------------------------------------------------------


def test_grey_levels_of_a_window():
    hu = torch.tensor([[-1000.0, -160.0, 40.0, 240.0, 3000.0]])
    assert widgets.grey(hu, SOFT_TISSUE).tolist() == [[0, 0, 128, 255, 255]]  # 127.5 rounds to even


def test_wipe_cuts_where_the_slider_is():
    black, white = torch.full((4, 10), -160.0), torch.full((4, 10), 240.0)
    image = widgets.render_wipe(white, black, 0.5, SOFT_TISSUE)
    assert (image[:, :4] == 255).all() and (image[:, 6:] == 0).all()
    assert (image[:, 4:6] == widgets.WIPE_COLOUR).all()
    assert (widgets.render_wipe(white, black, 0.0, SOFT_TISSUE) == 0).all()
    assert (widgets.render_wipe(white, black, 1.0, SOFT_TISSUE) == 255).all()
    with pytest.raises(ShapeError, match="one shape"):
        widgets.render_wipe(white, black[:2], 0.5, SOFT_TISSUE)
    panel = widgets.wipe(white, black, names=("low dose", "denoised"))
    assert panel.controls["fraction"].readout and "ldct-pixels" in panel.image._dom_classes
    assert "pixelated" in panel.box.children[-2].value  # enlarged, not smoothed
    panel.controls["fraction"].value = 0.0
    assert (picture(panel.image.value) == 0).all()
    assert [axis.get_title() for axis in drawn(panel.figure())] == ["low dose", "denoised"]


def test_slice_viewer_redraws_on_every_control():
    volume = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 1, 8, 8) * 100
    panel = widgets.slice_viewer(volume, window=Window(200, 400), titles=[f"z = {i} mm" for i in range(len(volume))])

    def shown() -> int:
        return int(picture(panel.image.value)[0, 0, 0])

    assert shown() == 128  # slice 2: 200 HU, the level
    panel.controls["slice"].value = 4
    assert shown() == 255
    panel.controls["level"].value = 400
    assert shown() == 128
    panel.controls["slice"].value = 3
    panel.controls["width"].value = 400 * 2
    assert shown() == round(255 * (300 - 0) / 800)
    assert "z = 3 mm" in panel.box.children[-2].value and "-0 <span" not in panel.box.children[-2].value
    assert len(drawn(panel.figure())) == 3


def test_dose_slider_shows_the_scan_and_its_noise(image_hu):
    scans = {1.0: image_hu, 0.25: image_hu + 50}
    panel = widgets.dose_slider(scans, image_hu, part=(..., slice(0, 8), slice(0, 8)), where="in a corner")
    head = panel.box.children[-2]
    assert "1 of full dose" in head.value and "its noise, 0 HU in a corner" in head.value
    width = image_hu.shape[-1]
    assert (picture(panel.image.value)[:, width:] == 128).all()  # full dose is the reference: no difference
    panel.controls["dose"].value = 0.25
    noise = picture(panel.image.value)[:, width:]
    assert abs(int(noise.min()) - 255 * 250 / 400) <= 1 and noise.min() == noise.max()
    assert panel.figure().axes
    with pytest.raises(ParameterError, match="was not scanned"):
        widgets.render_dose(scans, 0.5, SOFT_TISSUE, image_hu)


def test_a_change_renders_once_and_draws_no_figure(image_hu):
    import ipywidgets as w

    rendered = []

    def render(level):
        rendered.append(level)
        return widgets.grey(image_hu, Window(level, 400))

    panel = widgets.panel({"level": w.IntSlider(40, min=0, max=100)}, render, lambda: pytest.fail("a figure is slow"))
    before = panel.image.value
    panel.controls["level"].value = 90
    assert rendered == [40, 90] and panel.image.value != before


# -- exercises ------------------------------------------------------------------------------------------

HALF = Exercise(
    name="99.half",
    prompt="what does a quarter of the dose do to the noise?",
    accept=exercises.number(2.0, within=0.01),
    right=2,
    wrong=4,
    because="noise goes with the inverse root of dose",
    hint="count photons",
    hints=[(exercises.number(4.0, within=0.01), "that is the variance")],
)


def test_verdicts():
    assert judge(HALF, ...).state == "open" and HALF.prompt in judge(HALF, ...).message
    assert judge(HALF, 2.01).state == "right"
    assert judge(HALF, 4) == exercises.Verdict("not yet", "that is the variance")
    assert judge(HALF, 3).message == "count photons"
    assert judge(HALF, True).state == "not yet"
    for strange in ("two", None, [], object(), torch.zeros(2)):
        assert judge(HALF, strange).state == "not yet"  # and nothing is raised


def test_a_function_that_does_nothing_is_open():
    def empty(x): ...

    def said(x):
        """Only words."""

    def done(x):
        return x

    assert exercises.is_open(empty) and exercises.is_open(said) and not exercises.is_open(done)


def test_an_answer_that_raises_is_not_yet():
    exercise = Exercise("99.f", "?", lambda f: f(1) == 1, lambda x: x, lambda x: 0, "yes", "return x")
    verdict = judge(exercise, lambda x: 1 / 0)
    assert verdict.state == "not yet" and "ZeroDivisionError" in verdict.message


def test_names_that_do_not_exist_are_said():
    for name in ("77.nothing", "nothing", "", 5):
        assert check(name, 1).state == "unknown"


def test_verdicts_escape_what_they_show():
    assert "<script>" not in exercises.Verdict("not yet", "<script>")._repr_html_()


def test_numbers_are_accepted_within_their_tolerance():
    assert exercises.number(0.0, within=0.1)(0.05) and not exercises.number(0.0, within=0.1)(0.2)
    assert exercises.number(-4.0, within=0.1)(torch.tensor(-4.3)) and not exercises.number(-4.0, within=0.1)(-4.5)
    assert not exercises.number(1.0, within=0.1)(True)


@pytest.mark.parametrize("notebook", exercises.notebooks())
def test_every_exercise_takes_its_right_answer_and_refuses_the_plausible_wrong_one(notebook):
    registered = exercises.exercises_of(notebook)
    assert registered
    for name, exercise in registered.items():
        assert name.startswith(f"{notebook}.")
        assert check(name, exercise.right).state == "right", name
        refused = check(name, exercise.wrong)
        assert refused.state == "not yet" and "could not be tried" not in refused.message, name
        assert check(name, ...).state == "open"


def test_a_solution_is_a_value_or_a_functions_source_and_says_why():
    assert exercises.solution("07.perfect").message.startswith("4.77. The low-dose image")
    told = exercises.solution("07.slope")
    assert (
        told.state == "solution"
        and "(removed * detail)[mask].sum()" in told.message
        and "pre-wrap" in told._repr_html_()
    )
    with pytest.raises(ParameterError, match="there is no exercise '07.slop'"):
        exercises.solution("07.slop")


def test_a_slope_is_accepted_in_every_right_form_and_each_mistake_has_its_own_hint():
    def with_intercept(removed, detail, mask):
        return np.polyfit(detail[mask].numpy(), removed[mask].numpy(), 1)[0]

    def everywhere(removed, detail, mask):
        return (removed * detail).sum() / detail.square().sum()

    def correlation(removed, detail, mask):
        return np.corrcoef(detail[mask].numpy(), removed[mask].numpy())[0, 1]

    assert check("07.slope", with_intercept).state == "right"
    assert "over the mask only" in check("07.slope", everywhere).message
    assert "a correlation does" in check("07.slope", correlation).message


# -- the page -------------------------------------------------------------------------------------------


def record(**change):
    plain = {
        "name": "01_x",
        "title": "What is <dose>?",
        "status": "done",
        "error": "",
        "seconds": 3.2,
        "figures": [],
        "profile": "workshop",
        "metrics": {},
        "html": True,
    }
    return {**plain, **change}


def test_page_shows_what_happened_and_escapes_it():
    error = "cell 7 (In [5]): ValueError: a < b"
    html = page.build(
        [
            record(metrics={"psnr": {"nafnet": 24.56789}, "n": 3}, figures=["01_x/figures/figure_01.png"]),
            record(name="02_y", status="failed", error=error),
        ],
        profile="workshop",
    )
    assert "What is &lt;dose&gt;?" in html and "<dose>" not in html
    assert "psnr.nafnet" in html and "24.57" in html
    assert "a &lt; b" in html and "1 failed" in html
    assert 'src="01_x/figures/figure_01.png"' in html and 'href="01_x.html"' in html
    assert "http" not in html and "<script" not in html  # needs no network and no script


def test_page_limits_the_metrics_it_shows_and_says_how_many_are_left():
    html = page.build([record(metrics={f"m{i}": i for i in range(20)})], profile="workshop")
    assert html.count("<dt>") == page.MAX_METRICS and "(8 more)" in html


# ---------------------------------------------------------------- the table


def test_a_table_has_every_method_of_a_group_and_the_interval_of_its_gain():
    rows = [
        dict(method=m, patient=f"p{i}", slice="0", group="sr4, soft", dose=0.25, reference="truth", residual_noise=0.0)
        | dict(psnr=p + i, ssim=0.7, vif=0.3, seconds=1.0)
        for i in range(8)
        for m, p in (("pseudo_inverse", 20.0), ("ddnm_plus", 22.0))
    ]
    result = BenchmarkResult(pd.DataFrame(rows), SOFT_TISSUE, "pseudo_inverse", ["psnr", "ssim", "vif"])
    case = "sr4, soft", 0.25
    table = benchmark_table(result, *case)
    assert [row["method"] for row in table.rows] == ["pseudo_inverse", "ddnm_plus"]
    first, second = table.rows
    assert second["PSNR (dB)"] == pytest.approx(25.5) and first["PSNR: gain over pseudo_inverse (dB), 95 %"] == ""
    assert second["PSNR: gain over pseudo_inverse (dB), 95 %"] == "+2.00 (+2.00 … +2.00)"
    chosen = benchmark_table(result, "sr4, soft", 0.25, {"ssim": "S"}, names={"ddnm_plus": "DDNM+"}, gain="ssim")
    gain = "+0.000 (+0.000 … +0.000)"
    assert chosen.rows == [{"method": "DDNM+", "S": 0.7, "SSIM: gain over pseudo_inverse, 95 %": gain}]
    assert chosen.better == {"S": "high"}
    timed = benchmark_table(result, *case, {"seconds": "s / slice"}, names={"ddnm_plus": "DDNM+"})
    assert timed.rows[0]["s / slice"] == 1.0
    few = benchmark_table(BenchmarkResult(pd.DataFrame(rows[:4]), SOFT_TISSUE, "pseudo_inverse", ["psnr"]), *case)
    assert few.columns == ["method", "PSNR (dB)"]  # two patients have no interval
    with pytest.raises(ParameterError, match="no result of 'sr8'"):
        benchmark_table(result, "sr8", 0.25)
    two = [row | dict(reference=kind, psnr=row["psnr"] + d) for row in rows for kind, d in (("a", 0), ("b", 5))]
    twice = BenchmarkResult(pd.DataFrame(two), SOFT_TISSUE, "pseudo_inverse", ["psnr"])
    assert benchmark_table(twice, "sr4, soft", 0.25, reference="b").rows[1]["PSNR (dB)"] == pytest.approx(30.5)
    with pytest.raises(ParameterError, match="there is a, b"):
        benchmark_table(twice, "sr4, soft", 0.25)
