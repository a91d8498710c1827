"""The start page: the notebooks, what each needs and gives, and the way through them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ldctlib.show.diagrams import Box, diagram
from ldctlib.show.png import COLOURS

KINDS = {"the scan": COLOURS[4], "a paper's method": COLOURS[0], "comparing and using": COLOURS[2]}


class Lesson(NamedTuple):
    """A notebook of the course; it is ``notebooks/NN_name.ipynb``."""

    name: str
    title: str
    kind: str
    needs: tuple[str, ...]  # numbers of notebooks that its first cell names
    gives: str
    minutes: int  # to read, without exercises
    seconds: int  # to run on two CPU cores
    place: tuple[int, int]  # column and row on the map


COURSE = {
    "01": Lesson("data_and_dose", "Data and dose", "the scan", (), "HU, dose, noise, NPS", 60, 31, (0, 0)),
    "02": Lesson("man_autoencoder", "MAN: the latent", "a paper's method", ("01",), "a latent", 30, 49, (1, 0)),
    "03": Lesson(
        "man_latent_diffusion",
        "MAN: the diffusion",
        "a paper's method",
        ("01", "02"),
        "DDIM, conditions",
        40,
        80,
        (2, 0),
    ),
    "04": Lesson("leda", "LEDA", "a paper's method", ("01", "02", "07"), "words as a loss", 40, 53, (2, 1)),
    "05": Lesson("na_diff", "NA-Diff", "a paper's method", ("01", "02", "03"), "scans made to order", 45, 64, (3, 0)),
    "06": Lesson(
        "plug_and_play_ddnm",
        "Plug-and-play DDNM",
        "a paper's method",
        ("01", "03"),
        "one prior, any task",
        40,
        74,
        (3, 1),
    ),
    "07": Lesson("benchmark", "Benchmark", "comparing and using", ("01",), "fair comparisons", 30, 59, (1, 2)),
    "08": Lesson(
        "your_own_scans", "Your own scans", "comparing and using", ("01",), "a derived series", 30, 31, (1, 3)
    ),
}
"""In reading order."""

WAYS = (("01", "02"), ("02", "03"), ("03", "05"), ("03", "06"), ("02", "04", "", "down"))
WAYS += (("07", "04", "section 1", "across", True), ("01", "07", "", "down"), ("01", "08", "", "down"))


def course_map():
    """The notebooks and what leads to what: a Figure."""
    boxes = {
        number: Box(
            f"{number}  {lesson.title}",
            lesson.place[0],
            1.25 * lesson.place[1],
            f"gives {lesson.gives}\nread {lesson.minutes} min, run {lesson.seconds} s",
            lesson.kind,
            rows=1.25,
        )
        for number, lesson in COURSE.items()
    }
    return diagram(boxes, WAYS, kinds=KINDS)


def contents() -> str:
    """The notebooks as a table in Markdown, with links."""
    lines = ["| notebook | needs | gives | read | run, two cores |", "|---|---|---|---|---|"]
    for number, lesson in COURSE.items():
        link = f"[{number} · {lesson.title}]({number}_{lesson.name}.ipynb)"
        needs = ", ".join(lesson.needs) or "Fourier transforms"
        lines.append(f"| {link} | {needs} | {lesson.gives} | {lesson.minutes} min | {lesson.seconds} s |")
    minutes, seconds = (sum(getattr(lesson, each) for lesson in COURSE.values()) for each in ("minutes", "seconds"))
    return "\n".join([*lines, f"| all | | | {minutes / 60:.0f} h | {seconds / 60:.0f} min |"])


def all_here() -> bool:
    """Whether every notebook of the map lies in the working folder, which is that of the notebooks."""
    return all(Path(f"{number}_{lesson.name}.ipynb").is_file() for number, lesson in COURSE.items())
