"""Every method on every case: denoise, measure, time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ldctlib.benchmark.cases import BenchmarkCase
from ldctlib.benchmark.measures import DEFAULT_METRICS, METRICS
from ldctlib.benchmark.result import BenchmarkResult
from ldctlib.errors import LdctError, ParameterError, ShapeError
from ldctlib.methods.denoiser import blend
from ldctlib.units import Window


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
        if getattr(method, "oracle", False):  # a bound, not a denoiser: it is given the full dose
            seen = case.reference_hu if case.full_dose_hu is None else case.full_dose_hu
        spacing_mm = (case.slice_mm, case.pixel_mm, case.pixel_mm)
        x = method(seen.to(device), noise=case.noise, spacing_mm=spacing_mm, generator=generator).cpu()
    _synchronise(device)
    seconds = time.perf_counter() - start
    if x.shape != case.ldct_hu.shape or not torch.isfinite(x).all():
        where, shape = f"method {name!r} on patient {case.patient}, slice {case.slice}", tuple(case.ldct_hu.shape)
        raise ShapeError(f"{where}: it must return finite values of shape {shape}, got {tuple(x.shape)}")
    return x, seconds


def run(
    methods: Mapping[str, Callable],
    cases: Iterable[BenchmarkCase],
    *,
    window: Window,
    metrics: Iterable[str] = DEFAULT_METRICS,
    doses: Iterable[float] | None = None,
    baseline: str = "ldct",
    residual_noise: float | str = "dose",
    warmup: int = 1,
    device: str | torch.device = "cpu",
    seed: int = 0,
    keep_images: bool = False,
) -> BenchmarkResult:
    """Denoise every case by every method and measure.

    methods : names and denoisers ``denoise(ldct, *, noise, spacing_mm, generator)``, spacing (z, y, x). One with an
        attribute ``oracle`` is given the full dose; one with ``blends`` estimates the noise-free anatomy.
    cases : taken one after the other, so that an iterator need not hold them all. A case with two references is
        denoised once and gives two rows.
    doses : only the cases of these dose fractions.
    residual_noise : share of what was removed that is added again where a method ``blends`` and the reference is a
        full-dose scan, which has noise of its own: "dose" is the case's dose fraction (0 where it is unknown, with a
        note), the best share for nested noise. The noise inserted into the Mayo pairs with the sharp kernel D45f is
        not quite nested: there about .15 gives .15 dB more than their dose, .25.
    warmup : unmeasured runs of each method before its first slice of each shape.
    keep_images : keep the denoised slices in ``images``, nothing added, by (method, number of the case).

    A metric that cannot be computed on a slice is NaN there and its reason is kept in ``notes``.
    """
    names = list(metrics)
    if not methods:
        raise ParameterError("no methods given")
    if baseline not in methods:
        raise ParameterError(f"the baseline {baseline!r} is not among the methods {sorted(methods)}")
    if not isinstance(window, Window):
        raise ParameterError(f"window must be a units.Window, got {window!r}")
    if not names or not set(names) <= set(METRICS):
        raise ParameterError(f"unknown metrics {sorted(set(names) - set(METRICS))}: choose from {sorted(METRICS)}")
    if residual_noise != "dose" and not (isinstance(residual_noise, int | float) and 0 <= residual_noise < 1):
        raise ParameterError(f'residual_noise is "dose" or a share in [0, 1), got {residual_noise!r}')
    wanted = None if doses is None else [float(d) for d in doses]
    device = torch.device(device)
    rows, notes, images, warm = [], {}, {}, set()
    chosen = (c for c in cases if wanted is None or any(math.isclose(c.dose, d) for d in wanted))
    for index, case in enumerate(chosen):
        of_case = {"patient": case.patient, "slice": case.slice, "group": case.group, "dose": case.dose}
        for name, method in methods.items():
            if (name, case.ldct_hu.shape) not in warm:
                warm.add((name, case.ldct_hu.shape))
                for _ in range(warmup):
                    _denoise(name, method, case, device, seed)
            x, seconds = _denoise(name, method, case, device, seed + index)
            if keep_images:
                images[name, index] = x
            for view in case.per_reference():
                share = 0.0
                if getattr(method, "blends", False) and view.reference_kind == "full dose":
                    share = case.dose if residual_noise == "dose" else float(residual_noise)
                if math.isnan(share):
                    share = 0.0
                    notes["residual_noise"] = f"the dose of patient {case.patient} is unknown, nothing is added"
                row = {"method": name, **of_case, "reference": view.reference_kind, "residual_noise": share}
                blended = blend(case.ldct_hu, x, share, 0.0) if share else x
                for metric in names:
                    try:
                        row[metric] = float(METRICS[metric].function(blended, view, window))
                    except LdctError as error:
                        row[metric] = math.nan
                        notes.setdefault(metric, str(error))
                rows.append(row | {"seconds": seconds})
    if not rows:
        raise ParameterError("no cases" if wanted is None else f"no case has one of the doses {wanted}")
    rows.sort(key=lambda row: list(methods).index(row["method"]))
    provenance = {m: METRICS[m].provenance for m in names if METRICS[m].provenance and m not in notes}
    import pandas as pd

    used = f"{device.type}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        used = torch.cuda.get_device_name(device)
    used += ", warmed up, synchronised, transfers included"
    return BenchmarkResult(pd.DataFrame(rows), window, baseline, names, provenance, notes, used, images)
