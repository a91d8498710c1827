"""The table of a benchmark, and what it depends on: means, intervals, Markdown, JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ldctlib.benchmark.measures import METRICS
from ldctlib.errors import ParameterError
from ldctlib.files import write_json
from ldctlib.metrics.statistics import Score, paired_bootstrap
from ldctlib.units import Window

PLAIN = ("baseline", "metrics", "provenance", "notes", "device")
"""Fields that JSON holds as they are, in the order of :class:`BenchmarkResult`."""


@dataclass(frozen=True)
class BenchmarkResult:
    """The tidy table (a row per method and case) and what it depends on."""

    table: Any  # pandas.DataFrame
    window: Window
    baseline: str
    metrics: list[str]
    provenance: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # metric -> why it is NaN somewhere
    device: str = "cpu"
    images: dict[tuple[str, int], Tensor] = field(default_factory=dict, repr=False)  # not written to JSON

    def scores(self, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> list[Score]:
        """Means per method, metric, group, dose and reference kind, with paired differences to the baseline."""
        scores = []
        for (group, dose, kind), part in self.table.groupby(["group", "dose", "reference"], sort=False, dropna=False):
            base = part[part.method == self.baseline].set_index(["patient", "slice"])
            for method, own in part.groupby("method", sort=False):
                own = own.set_index(["patient", "slice"])
                for metric in [*self.metrics, "seconds"]:
                    values = own[metric].dropna()
                    mean = float(values.mean()) if len(values) else math.nan
                    n = len(values), values.index.get_level_values("patient").nunique()
                    paired = own[metric] - base[metric].reindex(own.index)
                    paired = paired[np.isfinite(paired)]
                    interval = (math.nan,) * 3
                    if method != self.baseline and len(paired):
                        patients = paired.index.get_level_values("patient")
                        interval = paired_bootstrap(paired, patients, level=level, resamples=resamples, seed=seed)
                    of_what = method, metric, mean, group, float(dose), kind, str(self.window), *n, self.baseline
                    scores.append(Score(*of_what, *interval, level, self.provenance.get(metric, "")))
        return scores

    def summary(self, **options):
        """:meth:`scores` as a pandas table."""
        import pandas as pd

        return pd.DataFrame([asdict(s) for s in self.scores(**options)])

    def frames(self, *, intervals: bool = True, **options) -> dict[str, Any]:
        """One printable table per group, dose and reference kind: caption -> DataFrame of strings."""
        import pandas as pd

        frames = {}
        summary = self.summary(**options)
        for (group, dose, kind), part in summary.groupby(["group", "dose", "reference"], sort=False, dropna=False):
            slices, patients = part.n_slices.max(), part.n_patients.max()
            caption = f"{group}: dose {'unknown' if math.isnan(dose) else f'{dose:g}'}, reference: {kind}, "
            caption += f"window {self.window}, n = {slices} slice(s) of {patients} patient(s)"
            if intervals and part.low.notna().any():
                caption += f"; in brackets, difference to {self.baseline}, {part.level.iloc[0]:.0%} interval"
            elif intervals:
                caption += "; too few patients for an interval"
            lines = []
            for method, own in part.groupby("method", sort=False):
                line = {"method": method}
                for score in own.itertuples():
                    label, digits = _label(score.metric)
                    line[label] = _cell(score, digits, intervals)
                lines.append(line)
            frames[caption] = pd.DataFrame(lines)
        return frames

    def _footnotes(self) -> list[str]:
        lines = [f"{_label(m)[0]}: {text}." for m, text in self.provenance.items()]
        why = dict(self.notes)
        if self.table.residual_noise.any() or "residual_noise" in why:
            shares = ", ".join(f"{share:g}" for share in sorted(set(self.table.residual_noise) - {0.0}))
            text = (
                "Against the full dose, methods that estimate the noise-free anatomy have a share of what they removed"
            )
            lines.append(f"{text} added again: {why.pop('residual_noise', '') or shares}.")
        lines += [f"{_label(m)[0]}: missing on some slices ({reason})." for m, reason in why.items()]
        return [*lines, f"Times: {self.device}."]

    def to_markdown(self, **options) -> str:
        """Tables in Markdown, each under a caption with window, reference kind and n."""
        parts = []
        for caption, frame in self.frames(**options).items():
            rows = [list(frame.columns), ["---"] * frame.shape[1], *frame.to_numpy().tolist()]
            parts += [f"**{caption}**", "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)]
        return "\n\n".join([*parts, "\n".join(self._footnotes())]) + "\n"

    def report(self, json_file: str | Path | None = None, *, intervals: bool = True) -> None:
        """Print :meth:`to_markdown`, and write :meth:`to_json` where a file is given."""
        print(self.to_markdown(intervals=intervals))
        if json_file is not None:
            self.to_json(json_file)

    def to_json(self, path: str | Path) -> None:
        """Write everything, the summary with intervals included, to a file that appears whole or not at all."""
        window = asdict(self.window)
        content = {"window": window} | {name: getattr(self, name) for name in PLAIN}
        rows, scores = self.table.to_dict("records"), [asdict(score) for score in self.scores()]
        write_json(path, content | {"rows": rows, "scores": scores})

    @classmethod
    def from_json(cls, path: str | Path) -> BenchmarkResult:
        """Read what :meth:`to_json` wrote (ParameterError for anything else)."""
        import pandas as pd

        try:
            content = json.loads(Path(path).read_text())
            table = pd.DataFrame(content["rows"])
            for number in [*content["metrics"], "seconds", "dose", "residual_noise"]:
                table[number] = table[number].astype(float)
            return cls(table, Window(**content["window"]), *(content[name] for name in PLAIN))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ParameterError(f"{path} is not a benchmark result ({type(error).__name__}: {error})") from error


def _label(metric: str) -> tuple[str, int]:
    return ("s / slice", 3) if metric == "seconds" else (METRICS[metric].label, METRICS[metric].digits)


def _cell(score, digits: int, intervals: bool) -> str:
    if math.isnan(score.value):
        return "–"
    text = f"{score.value:.{digits}f}"
    if intervals and score.metric != "seconds" and not math.isnan(score.low):
        text += f" ({score.difference:+.{digits}f}; {score.low:+.{digits}f} … {score.high:+.{digits}f})"
    return text
