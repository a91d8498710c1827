"""Methods x cases x doses -> one tidy table with metrics, times and paired bootstrap intervals by patient.

    python -m ldctlib.benchmark --methods ldct,gaussian,nafnet                    # phantoms
    python -m ldctlib.benchmark --methods ldct,gaussian,nafnet --real FOLDER      # full/low-dose pairs

Every result carries what it depends on: window, reference kind, LPIPS backbone and trunk, n, interval,
device.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldctlib import metrics as M
from ldctlib.cases import BenchmarkCase, phantom_cases, real_pairs
from ldctlib.errors import LdctError, ParameterError, ShapeError
from ldctlib.metrics.statistics import Score, paired_bootstrap
from ldctlib.units import SOFT_TISSUE, Window

__all__ = [
    "METRICS",
    "BenchmarkCase",
    "BenchmarkResult",
    "CaseMetric",
    "paired_bootstrap",
    "phantom_cases",
    "real_pairs",
    "run",
]

# ---------------------------------------------------------------- metrics of a case


@dataclass(frozen=True)
class CaseMetric:
    """``function(denoised, case, window) -> float``, and how to read it."""

    function: Callable[[Tensor, BenchmarkCase, Window], float]
    label: str
    digits: int = 3


def _windowed(metric) -> Callable[[Tensor, BenchmarkCase, Window], float]:
    return lambda x, case, window: metric(x, case.reference_hu, window=window).item()


def _shift_hu(x: Tensor, case: BenchmarkCase, window: Window) -> float:
    return M.bias_hu(x, case.ldct_hu, mask=M.body_mask(case.reference_hu)).item()


def _edge_loss(x: Tensor, case: BenchmarkCase, window: Window) -> float:
    coupling = 0.0 if case.reference_kind == "truth" else None
    return M.edge_loss(x, case.ldct_hu, case.reference_hu, coupling=coupling)


def _nps_removed(magnitude: bool) -> Callable[[Tensor, BenchmarkCase, Window], float]:
    def distance(x: Tensor, case: BenchmarkCase, window: Window) -> float:
        if torch.equal(x, case.ldct_hu):
            return math.nan  # nothing removed: no spectrum
        size = 64 if min(x.shape[-2:]) >= 256 else 32
        corners = M.soft_tissue_rois(case.reference_hu, size)
        removed, noise = (
            M.nps(case.ldct_hu - y, case.pixel_mm, roi=size, corners=corners) for y in (x, case.reference_hu)
        )
        return M.nps_distance(removed, noise, magnitude=magnitude)

    return distance


def _lpips(function) -> Callable[[Tensor, BenchmarkCase, Window], float]:
    def distance(x: Tensor, case: BenchmarkCase, window: Window) -> float:
        result = function(x, case.reference_hu, window=window)
        if result.reason:
            raise ParameterError(result.reason)
        return result.values.item()

    return distance


METRICS: dict[str, CaseMetric] = {
    "psnr": CaseMetric(_windowed(M.psnr), "PSNR (dB)", 2),
    "ssim": CaseMetric(_windowed(M.ssim), "SSIM"),
    "ssim_uniform7": CaseMetric(_windowed(M.ssim_uniform7), "SSIM (7x7 box)"),
    "rmse_hu": CaseMetric(lambda x, c, w: M.rmse_hu(x, c.reference_hu).item(), "RMSE (HU)", 1),
    "bias_hu": CaseMetric(lambda x, c, w: M.bias_hu(x, c.reference_hu).item(), "bias (HU)", 2),
    "shift_hu": CaseMetric(_shift_hu, "mean change of the body (HU)", 2),
    "edge_loss": CaseMetric(_edge_loss, "edge loss"),
    "structure": CaseMetric(
        lambda x, c, w: M.structure_in_removed(x, c.ldct_hu, c.reference_hu), "structure in removed", 2
    ),
    "nps_shape": CaseMetric(_nps_removed(False), "NPS distance of removed, shape"),
    "nps_db": CaseMetric(_nps_removed(True), "NPS distance of removed (dB)", 2),
    "vif": CaseMetric(_windowed(M.vif), "VIF"),
    "fsim": CaseMetric(_windowed(M.fsim), "FSIM"),
    "lpips": CaseMetric(_lpips(M.lpips), "LPIPS (squeeze, ImageNet trunk)"),
    "lpips_random_trunk": CaseMetric(_lpips(M.lpips_random_trunk), "lpips_random_trunk (not LPIPS)"),
}
"""What :func:`run` can compute. Error and texture metrics are in HU, the others in the window.
NPS distances compare what was removed with the true difference, ldct - reference, in soft tissue."""

DEFAULT_METRICS = tuple(METRICS)[:10]
PROVENANCE = {
    "ssim": "11x11 Gaussian, sigma 1.5",
    "ssim_uniform7": "7x7 box with sample covariance (scikit-image's default)",
    "lpips": "v0.1, squeeze, trunk: imagenet",
    "lpips_random_trunk": "squeeze, trunk: random; never ranks",
}


# ---------------------------------------------------------------- running


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _denoise(name: str, method, case: BenchmarkCase, device: torch.device, seed: int) -> tuple[Tensor, float]:
    """The denoised slice on the CPU and the seconds that it took, transfers included."""
    generator = torch.Generator(device=device).manual_seed(seed)
    _synchronise(device)
    start = time.perf_counter()
    with torch.no_grad():
        seen = case.ldct_hu
        if getattr(method, "sees_full_dose", False):  # a bound, not a denoiser
            seen = case.reference_hu if case.full_dose_hu is None else case.full_dose_hu
        x = method(
            seen.to(device),
            noise=case.noise,
            spacing_mm=(case.slice_mm, case.pixel_mm, case.pixel_mm),
            generator=generator,
        )
        x = x.cpu()
    _synchronise(device)
    seconds = time.perf_counter() - start
    if x.shape != case.ldct_hu.shape or not torch.isfinite(x).all():
        raise ShapeError(
            f"method {name!r} on patient {case.patient}, slice {case.slice}: it must return finite "
            f"values of shape {tuple(case.ldct_hu.shape)}, got {tuple(x.shape)}"
        )
    return x, seconds


def _select(chosen: Iterable[str], known: Mapping[str, Any], what: str) -> list[str]:
    chosen = list(chosen)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ParameterError(f"unknown {what} {unknown}: choose from {sorted(known)}")
    return chosen


def run(
    methods: Mapping[str, Callable],
    cases: Sequence[BenchmarkCase],
    *,
    window: Window,
    metrics: Iterable[str] = DEFAULT_METRICS,
    doses: Iterable[float] | None = None,
    baseline: str = "ldct",
    warmup: int = 1,
    device: str | torch.device = "cpu",
    seed: int = 0,
    keep_images: bool = False,
) -> BenchmarkResult:
    """Denoise every case by every method and measure.

    ``methods`` maps names to denoisers ``denoise(ldct, *, noise, spacing_mm, generator)``, spacing (z, y, x);
    ``doses`` keeps only the cases of these dose fractions. Each method runs ``warmup`` times, unmeasured,
    before its first slice of each shape. A case with two references is denoised once and gives two rows. A
    metric that cannot be computed on a slice is NaN there and its reason is kept in ``notes``.
    ``keep_images`` keeps the denoised slices in ``images``, by (method, number of the case).
    """
    if not methods:
        raise ParameterError("no methods given")
    if baseline not in methods:
        raise ParameterError(f"the baseline {baseline!r} is not among the methods {sorted(methods)}")
    if not isinstance(window, Window):
        raise ParameterError(f"window must be a units.Window, got {window!r}")
    names = _select(metrics, METRICS, "metrics")
    wanted = None if doses is None else [float(d) for d in doses]
    cases = [c for c in cases if wanted is None or any(math.isclose(c.dose, d) for d in wanted)]
    if not cases:
        raise ParameterError("no cases" if wanted is None else f"no case has one of the doses {wanted}")
    device = torch.device(device)
    rows, notes, images = [], {}, {}
    for name, method in methods.items():
        warm = set()
        for index, case in enumerate(cases):
            if case.ldct_hu.shape not in warm:
                warm.add(case.ldct_hu.shape)
                for _ in range(warmup):
                    _denoise(name, method, case, device, seed)
            x, seconds = _denoise(name, method, case, device, seed + index)
            if keep_images:
                images[name, index] = x
            for view in case.views():
                row = {
                    "method": name,
                    "patient": case.patient,
                    "slice": case.slice,
                    "group": case.group,
                    "dose": case.dose,
                    "reference": view.reference_kind,
                }
                for metric in names:
                    try:
                        row[metric] = float(METRICS[metric].function(x, view, window))
                    except LdctError as error:
                        row[metric] = math.nan
                        notes.setdefault(metric, str(error))
                rows.append(row | {"seconds": seconds})
    provenance = {m: PROVENANCE[m] for m in names if m in PROVENANCE and m not in notes}
    import pandas as pd

    return BenchmarkResult(pd.DataFrame(rows), window, baseline, names, provenance, notes, _device_name(device), images)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


# ---------------------------------------------------------------- the result


def _plain(value):
    """JSON has no NaN and no infinity: null and "inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


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
        """Means per method, metric, group, dose and reference kind, with paired differences to the
        baseline."""
        scores = []
        for (group, dose, kind), part in self.table.groupby(["group", "dose", "reference"], sort=False):
            base = part[part.method == self.baseline].set_index(["patient", "slice"])
            for method, own in part.groupby("method", sort=False):
                own = own.set_index(["patient", "slice"])
                for metric in [*self.metrics, "seconds"]:
                    values = own[metric].dropna()
                    paired = own[metric] - base[metric].reindex(own.index)
                    paired = paired[np.isfinite(paired)]
                    triple = (math.nan,) * 3
                    if method != self.baseline and len(paired):
                        patients = paired.index.get_level_values("patient")
                        triple = paired_bootstrap(paired, patients, level=level, resamples=resamples, seed=seed)
                    scores.append(
                        Score(
                            method,
                            metric,
                            float(values.mean()) if len(values) else math.nan,
                            group,
                            float(dose),
                            kind,
                            str(self.window),
                            len(values),
                            values.index.get_level_values("patient").nunique(),
                            self.baseline,
                            *triple,
                            level,
                            self.provenance.get(metric, ""),
                        )
                    )
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
        for (group, dose, kind), part in summary.groupby(["group", "dose", "reference"], sort=False):
            slices, patients = part.n_slices.max(), part.n_patients.max()
            caption = (
                f"{group}: dose {dose:g}, reference: {kind}, window {self.window}, "
                f"n = {slices} slice(s) of {patients} patient(s)"
            )
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
        lines += [f"{_label(m)[0]}: missing on some slices ({reason})." for m, reason in self.notes.items()]
        return [*lines, f"Times: {self.device}, warmed up, synchronised, transfers included."]

    def to_markdown(self, **options) -> str:
        """Tables in Markdown, each under a caption with window, reference kind and n."""
        parts = []
        for caption, frame in self.frames(**options).items():
            rows = [list(frame.columns), ["---"] * frame.shape[1], *frame.to_numpy().tolist()]
            parts += [f"**{caption}**", "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)]
        return "\n\n".join([*parts, "\n".join(self._footnotes())]) + "\n"

    def to_html(self, **options) -> str:
        """The same tables as an HTML fragment."""
        from html import escape

        tables = [
            f"<h3>{escape(caption)}</h3>\n{frame.to_html(index=False, border=0)}"
            for caption, frame in self.frames(**options).items()
        ]
        return "\n".join([*tables, *(f"<p>{escape(line)}</p>" for line in self._footnotes())])

    def to_json(self, path: str | Path) -> None:
        """Write everything, the summary with intervals included, to a file that appears whole or not at
        all."""
        rows = [{k: _plain(v) for k, v in row.items()} for row in self.table.to_dict("records")]
        scores = [{k: _plain(v) for k, v in asdict(s).items()} for s in self.scores()]
        content = {
            "window": {"level": self.window.level, "width": self.window.width},
            "baseline": self.baseline,
            "metrics": self.metrics,
            "provenance": self.provenance,
            "notes": self.notes,
            "device": self.device,
            "rows": rows,
            "scores": scores,
        }
        path = Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(content, indent=1, allow_nan=False))
        os.replace(part, path)

    @classmethod
    def from_json(cls, path: str | Path) -> BenchmarkResult:
        """Read what :meth:`to_json` wrote (ParameterError for anything else)."""
        import pandas as pd

        try:
            content = json.loads(Path(path).read_text())
            table = pd.DataFrame(content["rows"])
            for metric in [*content["metrics"], "seconds"]:
                table[metric] = table[metric].astype(float)
            return cls(
                table,
                Window(**content["window"]),
                content["baseline"],
                content["metrics"],
                content["provenance"],
                content["notes"],
                content["device"],
            )
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


def record(result: BenchmarkResult) -> list[Path]:
    """Write what was measured into the header of every shipped checkpoint among the methods; returns their paths."""
    from ldctlib import checkpoints
    from ldctlib import methods as registry

    written, scores = [], result.scores()
    for method in result.table.method.unique():
        known = registry.METHODS.get(method)
        if known is None or not known.checkpoint:
            continue  # without weights, or with other settings than its own
        path = checkpoints.shipped(known.checkpoint)
        quality = dict(checkpoints.load(path).quality)
        for s in scores:
            if s.method == method and s.metric in ("psnr", "ssim", "ssim_uniform7") and math.isfinite(s.value):
                where = f"{s.group}, dose {s.dose:g}, against {s.reference}, {s.window}, {s.n_slices} slices"
                key = s.metric if known.name == known.checkpoint else f"{known.title}: {s.metric}"
                quality.setdefault(where, {})[key] = round(s.value, 4)
        checkpoints.update_quality(path, quality)
        written.append(path)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m ldctlib.benchmark``: methods on phantom cases, or on real pairs, as a Markdown table."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m ldctlib.benchmark", description=main.__doc__)
    parser.add_argument("--real", type=Path, help="folder with full/quarter-dose pairs; without it, phantoms")
    parser.add_argument("--patients", type=int, default=4, help="phantom patients")
    parser.add_argument("--crop", type=int, help="the central square of the phantoms, for slow methods")
    parser.add_argument(
        "--methods",
        default="ldct,gaussian",
        help="comma-separated names of ldctlib.methods, with options as in gaussian:sigma_px=1.0",
    )
    parser.add_argument("--metrics", default=",".join(DEFAULT_METRICS), help=f"of {', '.join(METRICS)}")
    parser.add_argument("--json", type=Path, help="also write every number here")
    parser.add_argument("--record", action="store_true", help="write the means into the shipped checkpoints' headers")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-intervals", action="store_true", help="means only")
    options = parser.parse_args(arguments)
    from ldctlib import methods as registry

    try:
        names = list(dict.fromkeys(["ldct", *filter(None, options.methods.split(","))]))
        loaded = {name: registry.from_spec(name, device=options.device) for name in names}
        if options.real:
            cases = real_pairs(options.real)
        else:  # seeds far from any that training draws first
            seeds = range(9_000_001, 9_000_001 + options.patients)
            cases = phantom_cases(seeds, (0.25, 0.1), kernels=("B30f", "D45f"), crop=options.crop)
        result = run(
            loaded, cases, window=SOFT_TISSUE, device=options.device, metrics=filter(None, options.metrics.split(","))
        )
        if options.record:
            record(result)
    except LdctError as error:
        parser.exit(2, f"{type(error).__name__}: {error}\n")
    print(result.to_markdown(intervals=not options.no_intervals))
    if options.json:
        result.to_json(options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
