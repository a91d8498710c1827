"""Pages of notebooks: complete without a network, equations included."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from ldctlib.show import export

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def notebook(*markdown: str) -> nbformat.NotebookNode:
    """After each text a figure and a widget."""
    cells = []
    for text in markdown:
        data = {"image/png": PIXEL}, {export.WIDGET: {"model_id": "a"}, "text/plain": "Panel(children=…)"}
        outputs = [nbformat.v4.new_output("display_data", each) for each in data]
        cells += [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell("x", outputs=outputs)]
    return nbformat.v4.new_notebook(cells=cells, metadata={"widgets": {"state": {}}})


def test_a_page_has_its_equations_and_captions_and_no_script():
    texts = (
        "# A & B\n\n## 1. Dose (6 minutes)\n\n$a_1$ and `$b`",
        "$$ x = \\frac12 \\tag{3} $$\n\n```\n# a comment\n```",
    )
    html = export.to_html(notebook(*texts, "[back](01_small.ipynb#Dose), [a](a/01_b.ipynb)"), "A < B")
    assert "<msub><mi>a</mi><mn>1</mn></msub>" in html and "<mfrac>" in html and "(3)" in html
    assert "<code>$b</code>" in html
    assert re.findall("<figcaption>(.*?)</figcaption>", html) == [f"Figure {i}: Dose" for i in (1, 2, 3)]
    assert html.count('alt="Figure 2: Dose"') == 1 and "No description" not in html
    assert "<title>A &lt; B</title>" in html and "Panel(" not in html
    assert 'href="01_small.html#Dose"' in html and 'href="a/01_b.ipynb"' in html
    assert "<script" not in html and not re.findall(r'(?:src|href)="(?:https?:)?//|@import|url\((?!data)', html)


def test_what_the_converter_does_not_know_by_itself():
    assert "<mo>&#x0223C;</mo>" in export.mathml(r"N \sim p")
    assert "\\" not in export.mathml(r"\big\langle x \Big\rangle") and "(4)" in export.mathml(r"x \tag{4}", block=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_equation_of_the_course_is_drawn(path):
    found = nbformat.read(path, as_version=4)
    found.cells = [cell for cell in found.cells if cell.cell_type == "markdown"]
    html = export.to_html(found, path.stem)
    drawn = re.findall(r"<math.*?</math>", html, flags=re.S)
    unknown = [equation for equation in drawn if "\\" in equation]
    assert not unknown, f"TeX that no page can show: {unknown[0]}"
    prose = re.sub(r"<(pre|code|math|style).*?</\1>", "", html, flags=re.S)
    assert "$" not in prose and "<script" not in html
