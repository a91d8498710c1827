"""The start page: the notebooks, what each needs and gives, and the way through them."""

from __future__ import annotations

from typing import NamedTuple

from ldctlib.show.diagrams import Box, diagram
from ldctlib.show.png import COLOURS

KINDS = {"the scan": COLOURS[4], "a paper's method": COLOURS[0], "comparing and using": COLOURS[2]}
SCAN, PAPER, USE = KINDS


class Lesson(NamedTuple):
    """A notebook of the course."""

    title: str
    kind: str
    needs: str  # numbers of the notebooks that its first cell names
    gives: str
    minutes: int  # to read, without exercises
    seconds: int  # to run on two CPU cores
    place: tuple[int, int]  # column and row on the map


COURSE = {
    "01_data_and_dose": Lesson("Data and dose", SCAN, "", "HU, dose, noise, NPS", 60, 31, (0, 0)),
    "02_man_autoencoder": Lesson("MAN: the latent", PAPER, "01", "a latent", 45, 31, (1, 0)),
    "03_man_latent_diffusion": Lesson("MAN: the diffusion", PAPER, "01 02", "DDIM, conditions", 50, 90, (2, 0)),
    "04_leda": Lesson("LEDA", PAPER, "01 02 07", "words as a loss", 40, 41, (2, 1)),
    "05_na_diff": Lesson("NA-Diff", PAPER, "01 02 03", "scans made to order", 50, 71, (3, 0)),
    "06_plug_and_play_ddnm": Lesson("Plug-and-play DDNM", PAPER, "01 03", "one prior, any task", 40, 68, (3, 1)),
    "07_benchmark": Lesson("Benchmark", USE, "01", "fair comparisons", 30, 45, (1, 2)),
    "08_your_own_scans": Lesson("Your own scans", USE, "01", "a derived series", 30, 21, (1, 3)),
}
"""In reading order, by file."""

WAYS = (("01", "02"), ("02", "03"), ("03", "05"), ("03", "06"), ("02", "04", "", "down"))
WAYS += (("07", "04", "section 1", "across", True), ("01", "07", "", "down"), ("01", "08", "", "down"))


def course_map():
    """The notebooks and what leads to what: a Figure."""
    boxes = {}
    for name, lesson in COURSE.items():
        lines = f"gives {lesson.gives}\nread {lesson.minutes} min, run {lesson.seconds} s"
        column, row = lesson.place
        boxes[name[:2]] = Box(f"{name[:2]}  {lesson.title}", column, 1.25 * row, lines, lesson.kind, rows=1.25)
    return diagram(boxes, WAYS, kinds=KINDS)


def contents() -> str:
    """The notebooks as a table in Markdown, with links."""
    lines = ["| notebook | needs | gives | read | run, two cores |", "|---|---|---|---|---|"]
    for name, lesson in COURSE.items():
        needs = lesson.needs.replace(" ", ", ") or "Fourier transforms"
        cells = f"[{name[:2]} · {lesson.title}]({name}.ipynb) | {needs} | {lesson.gives}"
        lines.append(f"| {cells} | {lesson.minutes} min | {lesson.seconds} s |")
    minutes, seconds = (sum(getattr(lesson, each) for lesson in COURSE.values()) for each in ("minutes", "seconds"))
    return "\n".join([*lines, f"| all | | | {minutes / 60:.0f} h | {seconds / 60:.0f} min |"])
