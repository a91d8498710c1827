"""Tables for a notebook: aligned as text, and as HTML with the best of each column in bold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from ldctlib.errors import ParameterError

if TYPE_CHECKING:
    from ldctlib.benchmark.result import BenchmarkResult


class Table:
    """Rows of a table, the best of each column in bold where ``better`` says which end is best.

    rows : a list of dicts, or a pandas DataFrame
    better : column → ``"high"`` or ``"low"``; the first column is a name and is never ranked
    digits : column → decimals; 2 for those not named
    skip : names (first column) that are shown and do not compete, such as the reference itself
    """

    def __init__(
        self, rows, *, better: Mapping[str, str] | None = None, digits: Mapping[str, int] | None = None, skip=()
    ):
        self.rows = list(rows.to_dict("records") if hasattr(rows, "to_dict") else rows)
        self.better, self.digits, self.skip = dict(better or {}), dict(digits or {}), skip
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        for name, end in self.better.items():
            if end not in ("high", "low") or name not in self.columns:
                raise ParameterError(f"better[{name!r}]={end!r}: say 'high' or 'low' for one of {self.columns}")

    def best(self, column: str) -> set[int]:
        """Indices of the rows that are best in a column, ties included as displayed."""
        if column not in self.better:
            return set()
        competing = [(i, row) for i, row in enumerate(self.rows) if row[self.columns[0]] not in self.skip]
        values = {i: round(row[column], self.digits.get(column, 2)) for i, row in competing if _finite(row.get(column))}
        best = (max if self.better[column] == "high" else min)(values.values(), default=None)
        return {index for index, value in values.items() if value == best}

    def text(self, row: Mapping[str, Any], column: str) -> str:
        value = row.get(column)
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return "–"
        is_float = isinstance(value, float | np.floating)
        return f"{value:.{self.digits.get(column, 2)}f}" if is_float else str(value)

    def __repr__(self) -> str:
        cells = [self.columns] + [[self.text(row, column) for column in self.columns] for row in self.rows]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.columns))]
        sides = (str.ljust, *[str.rjust] * (len(widths) - 1))
        aligned = ([side(text, w) for side, text, w in zip(sides, line, widths, strict=True)] for line in cells)
        return "\n".join("  ".join(line).rstrip() for line in aligned)

    def _repr_html_(self) -> str:
        best = {column: self.best(column) for column in self.columns}
        head = "".join(f"<th>{escape(str(column))}</th>" for column in self.columns)

        def cell(index: int, column: str) -> str:
            text = escape(self.text(self.rows[index], column))
            return f"<td><b>{text}</b></td>" if index in best[column] else f"<td>{text}</td>"

        lines = ("".join(cell(index, column) for column in self.columns) for index in range(len(self.rows)))
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def benchmark_table(
    result: BenchmarkResult,
    group: str,
    dose: float,
    titles: Mapping[str, str] | None = None,
    *,
    names: Mapping[str, str] | None = None,
    gain: str = "psnr",
    reference: str | None = None,
) -> Table:
    """Means of every method in one group and dose of a benchmark, and the 95 % interval of what one metric gains.

    titles : metric, or "seconds" -> heading, for those to show; by default all metrics, under their labels.
    names : method -> its name in the table, for the methods to show; by default all.
    gain : the metric of the last column, the difference to ``result.baseline``. There is none without an interval: it
        takes patients enough.
    reference : "truth" or "full dose", where the group was measured against both.

    Raises ParameterError where there is no such group, and where it has two references and none is named.
    """
    from ldctlib.benchmark.measures import METRICS

    table = result.table
    table = table[(table.group == group) & ((table.dose == dose) | (table.dose + dose).isna())]
    kinds = sorted(table.reference.unique())
    if reference is not None or len(kinds) > 1:
        table = table[table.reference == reference]
    if table.empty:
        against = f" against {reference!r}: there is {', '.join(kinds)}" if kinds else ""
        raise ParameterError(f"no result of '{group}' at dose {dose:g}{against}")
    chosen = replace(result, table=table).scores()
    titles = {m: METRICS[m].label for m in result.metrics} if titles is None else titles
    names = {s.method: s.method for s in chosen} if names is None else names
    lines: dict[str, dict] = {method: {"method": name} for method, name in names.items()}
    what, bracket, unit = METRICS[gain].label.partition(" (")
    gained = f"{what}: gain over {names.get(result.baseline, result.baseline)}{bracket}{unit}, 95 %"
    gains = {}
    for score in chosen:
        if score.method in lines and score.metric in titles:
            lines[score.method][titles[score.metric]] = score.value
        if score.metric == gain and score.method != result.baseline and not math.isnan(score.low):
            digits = METRICS[gain].digits
            gains[score.method] = f"{score.difference:+.{digits}f} ({score.low:+.{digits}f} … {score.high:+.{digits}f})"
    made = [line | ({gained: gains.get(method, "")} if gains else {}) for method, line in lines.items()]
    digits = {title: METRICS[metric].digits for metric, title in titles.items() if metric in METRICS}
    better = {titles[m]: end for m, end in RANKED.items() if m in titles and any(titles[m] in line for line in made)}
    return Table(made, better=better, digits=digits)


RANKED = {"psnr": "high", "ssim": "high", "ssim_uniform7": "high", "fsim": "high", "vif": "high"}
RANKED |= {"rmse_hu": "low", "lpips": "low", "lpips_vgg": "low", "lpips_alex": "low", "nps_shape_distance": "low"}
"""Metrics of a benchmark and which end is best."""


def _finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and bool(np.isfinite(value))
