"""An executed notebook as one HTML file that needs no network and no script, and what its figures are called."""

from __future__ import annotations

import re
from html import escape
from typing import Any

WIDGET = "application/vnd.jupyter.widget-view+json"
STYLE = """<style>
math { font-size: 1.08em } math[display=block] { margin: .7em 0 }
figure { margin: 0 } figcaption { font: 13px/1.4 system-ui, sans-serif; opacity: .7 }
</style>"""


def mathml(tex: str, *, block: bool = False) -> str:
    """An equation in TeX as MathML, which browsers draw by themselves."""
    from latex2mathml.converter import convert

    tex = re.sub(r"\\tag\{(.*?)\}", r"\\qquad\\text{(\1)}", tex)  # its number
    tex = re.sub(r"\\[bB]igg?(?=\\[lr]angle)", "", tex)  # the converter knows these sizes of one-letter brackets only
    drawn = convert(tex, display="block" if block else "inline")
    return drawn.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # \sim: a relation, not the keyboard's tilde


def drop_widgets(cell: Any) -> None:
    """Take a cell's widgets out of its outputs: they need a kernel."""
    if cell.cell_type == "code":
        cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]


def figures(notebook: Any) -> list[tuple[Any, str]]:
    """(output, caption) of each figure in order; the caption is its number and the heading that it stands under."""
    found, heading = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"^```.*?^```", "", cell.source, flags=re.M | re.S)  # a comment in a shell is no heading
            for line in re.findall(r"^#{1,3} +(.+)$", prose, flags=re.M):
                heading = re.sub(r"^\d+\. |[$*`_]|\s*\(\d+ minutes?\)\s*$", "", line).strip()
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                found.append((output, f"Figure {len(found) + 1}" + (f": {heading}" if heading else "")))
    return found


def to_html(notebook: Any, title: str) -> str:
    """The page of a notebook, as ``nbconvert`` makes it, with four changes.

    Equations are MathML. Widgets, which need a kernel, are left out; each has a static figure beside it. Figures have
    captions. Links to notebooks lead to their pages.
    """
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return mathml(body)

        def block_math(self, body: str) -> str:
            return mathml(body, block=True)

        def latex_environment(self, name: str, body: str) -> str:
            return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", block=True)

    notebook = nbformat.from_dict({**notebook, "metadata": {**notebook.metadata, "title": title}})
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        drop_widgets(cell)
    exporter = HTMLExporter(template_name="lab")
    exporter.register_filter("markdown2html", lambda source: MarkdownWithMath(Renderer(escape=False)).render(source))
    html, _ = exporter.from_notebook_node(notebook)
    html = re.sub(r"<script\b.*?</script>", "", html, flags=re.S).replace("</head>", f"{STYLE}</head>", 1)
    html = re.sub(r'href="(\d\d_\w+)\.ipynb(?=["#])', r'href="\1.html', html)
    captions = (escape(caption) for _, caption in figures(notebook))

    def figure(image: re.Match) -> str:
        caption = next(captions)
        return f'{image[1]}<figure><img alt="{caption}"{image[2]}<figcaption>{caption}</figcaption></figure>'

    return re.sub(r'(<div class="jp-RenderedImage [^>]*>\s*)<img alt="[^"]*"([^>]*>)', figure, html)
