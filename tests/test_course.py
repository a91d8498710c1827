"""Runs of the course: what is refused, what a later run replaces, and what it leaves to the person."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from ldctlib import course
from ldctlib.errors import ParameterError

PARAMETERS = """profile = "workshop"
data = "phantom"
out = "."
seed = 0
device = "cpu"
fail = False"""
WORK = """import json
from pathlib import Path
folder = Path(out)
(folder / "series").mkdir(exist_ok=True)
(folder / "series" / f"{seed}.dcm").write_text(data)
(folder / "metrics.json").write_text(json.dumps({"metrics": {"seed": seed}}))
assert not fail"""
PICTURE = """from IPython.display import Image, display
import base64
display(Image(base64.b64decode(PIXEL), format="png"))"""
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


@pytest.fixture
def notebooks(tmp_path) -> Path:
    """A folder with one notebook, 01_small, that writes a series for a person, metrics and a figure."""
    cells = [nbformat.v4.new_markdown_cell("# A small one")]
    for source in (PARAMETERS, f"PIXEL = {PIXEL!r}\n{PICTURE}", WORK):
        cells.append(nbformat.v4.new_code_cell(source))
    cells[1].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / "01_small.ipynb")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_later_run_replaces_its_own_products_and_keeps_what_the_notebook_wrote(notebooks, tmp_path):
    out = tmp_path / "out"
    assert course.run(notebooks, out, profile="workshop", values={"seed": 1}) == 0
    first = files(out)
    assert set(first) == {
        "01_small.html",
        "01_small.ipynb",
        "01_small/figures/figure_01.png",
        "01_small/metrics.json",
        "01_small/run.json",
        "01_small/series/1.dcm",
        "index.html",
        "metrics.json",
    }
    (out / "01_small" / "figures" / "mine.png").write_bytes(b"mine")
    for values in ({"data": str(tmp_path / "mistyped")}, {"seed": -1}, {"device": "gpu"}, {"sede": 1}):
        with pytest.raises(ParameterError):
            course.run(notebooks, out, profile="workshop", values=values)
    with pytest.raises(ParameterError, match="cannot be used here: profile 'paper'"):
        course.run(notebooks, out, profile="paper")  # the notebook's own default is no data of this profile
    assert files(out) == first | {"01_small/figures/mine.png": b"mine"}

    scans = tmp_path / "scans"
    scans.mkdir()
    assert course.run(notebooks, out, profile="workshop", values={"seed": 2, "data": str(scans), "fail": True}) == 1
    second = files(out)
    assert set(second) == set(first) | {"01_small/figures/mine.png", "01_small/series/2.dcm"}
    assert second["01_small/series/1.dcm"] == first["01_small/series/1.dcm"]
    assert second["01_small/series/2.dcm"].decode() == str(scans)
    record = json.loads(second["01_small/run.json"])
    assert record["status"] == "failed" and "AssertionError" in record["error"] and record["title"] == "A small one"
    assert record["figures"] == ["01_small/figures/figure_01.png"] and record["metrics"] == {"seed": 2}
    assert json.loads(second["metrics.json"]) == {"01_small": {"seed": 2}}
    assert "AssertionError" in second["index.html"].decode()


@pytest.mark.parametrize("name", ["01_small.ipynb", "01_small.html", "index.html", "metrics.json"])
def test_a_file_that_no_run_has_written_is_not_overwritten(notebooks, tmp_path, name):
    out = tmp_path / "out"
    (out / "01_small").mkdir(parents=True)
    (out / "01_small" / "run.json").write_text('{"name": "of another program"}')
    (out / name).write_text("a person's")
    before = files(out)
    with pytest.raises(ParameterError, match=f"{name} was not written by an earlier run"):
        course.run(notebooks, out, profile="workshop")
    assert files(out) == before


def test_the_notebooks_own_folder_is_no_place_for_results(notebooks):
    before = files(notebooks)
    with pytest.raises(ParameterError, match="name another --out"):
        course.run(notebooks, notebooks, profile="workshop")
    assert files(notebooks) == before


def test_notebooks_are_found_by_number(notebooks):
    (path,) = course.find_notebooks(notebooks, "1")
    assert path.name == "01_small.ipynb"
    for only in ("02", "1,x", ","):
        with pytest.raises(ParameterError, match="there are notebooks 01"):
            course.find_notebooks(notebooks, only)
    with pytest.raises(ParameterError, match=r"there are notebooks \(none\)"):
        course.find_notebooks(notebooks.parent)


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=3", 3), ("a=1e-3", 1e-3), ("a=True", True), ("a=[0.1, 2]", [0.1, 2]), ("a=cpu", "cpu"), ("a=x=y", "x=y")],
)
def test_command_line_values(text, value):
    name, parsed = course.parse_assignment(text)
    assert (name, parsed, type(parsed)) == ("a", value, type(value))


def test_command_line_nonsense():
    with pytest.raises(ParameterError, match="write name=value"):
        course.parse_assignment("seed")


def test_a_notebook_is_executed_in_place_into_text_that_does_not_change(notebooks):
    path = notebooks / "01_small.ipynb"
    text = path.read_text().replace("assert not fail", "print(object())").replace('out = \\".\\"', 'out = \\"../out\\"')
    path.write_text(text)
    (notebooks.parent / "out").mkdir()
    course.execute_in_place(path)
    once = path.read_text()
    course.execute_in_place(path)
    assert path.read_text() == once and "object at 0x…" in once and "image/png" in once
    assert [each.name for each in notebooks.iterdir()] == ["01_small.ipynb"]
