"""The start page: its map says what the notebooks and the README say."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ldctlib.show.notebooks import nb00

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = [name[:2] for name in nb00.COURSE]


def test_the_map_has_every_notebook():
    names = [f"{name}.ipynb" for name in nb00.COURSE]
    assert names == [path.name for path in sorted((ROOT / "notebooks").glob("*.ipynb"))[1:]]
    assert all(f"]({name})" in nb00.contents() for name in names)
    patches = nb00.course_map().axes[0].patches
    assert sum(isinstance(patch, FancyBboxPatch) for patch in patches) == len(names)
    assert sum(isinstance(patch, FancyArrowPatch) for patch in patches) == len(nb00.WAYS)


def test_an_arrow_leads_to_each_notebook_from_all_that_it_needs():
    drawn = {number: {a for a, b, *_ in nb00.WAYS if b == number} for number in NUMBERS}
    needed = {name[:2]: set(lesson.needs.split()) for name, lesson in nb00.COURSE.items()}

    def all_before(number: str, direct: dict[str, set[str]]) -> set[str]:
        return direct[number].union(*(all_before(each, direct) for each in direct[number]))

    for number in NUMBERS:
        assert all_before(number, drawn) == all_before(number, needed), number


@pytest.mark.parametrize("name", nb00.COURSE)
def test_the_map_says_what_the_notebook_says(name):
    lesson = nb00.COURSE[name]
    first = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells[0].source
    needs, takes = re.search(r"\*\*Needs:?\*\*(.*?)\*\*(?:Takes|Time):?\*\*(.*?)read", first, flags=re.S).groups()
    assert " ".join(re.findall(r"\b0\d\b", needs)) == lesson.needs
    minutes = re.search(r"\d+(?=\s+minutes)|an hour", takes).group()
    assert lesson.minutes == (60 if minutes == "an hour" else int(minutes))


def test_the_readme_says_how_long_each_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, lesson in nb00.COURSE.items():
        (line,) = re.findall(rf"^\| `{name}` \|.*$", readme, flags=re.M)
        assert line.endswith(f"| {lesson.seconds} s |")
