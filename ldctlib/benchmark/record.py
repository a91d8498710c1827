"""Measured quality, written into the headers of the shipped checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

from ldctlib import checkpoints
from ldctlib import methods as registry
from ldctlib.benchmark.result import BenchmarkResult


def record(result: BenchmarkResult) -> list[Path]:
    """Write what was measured into the header of every shipped checkpoint among the methods; returns their paths."""
    written, scores = [], result.scores()
    for method in result.table.method.unique():
        known = registry.METHODS.get(method)
        if known is None or not known.checkpoint:
            continue  # without weights, or with other settings than its own
        path = checkpoints.find(known.checkpoint)
        quality = dict(checkpoints.load(path).quality)
        for s in scores:
            if s.method == method and s.metric in ("psnr", "ssim", "ssim_uniform7") and math.isfinite(s.value):
                where = f"{s.group}, dose {s.dose:g}, against {s.reference}, {s.window}, {s.n_slices} slices"
                key = s.metric if known.name == known.checkpoint else f"{known.title}: {s.metric}"
                quality.setdefault(where, {})[key] = round(s.value, 4)
        checkpoints.update_quality(path, quality)
        written.append(path)
    return written
