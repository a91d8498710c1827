"""Notebook 07: what methods gain, group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ldctlib.show.figures import _axes
from ldctlib.show.png import WIDTH


def gains_figure(summary: Any, groups: Sequence[tuple[str, float]], colours: Mapping[str, str]):
    """PSNR gained against the truth: a benchmark's means and intervals, in a panel for each (group, dose)."""
    figure, axes = _axes(1, len(groups), (WIDTH, 2.9), sharex=True, sharey=True)
    gains = summary[(summary.reference == "truth") & (summary.metric == "psnr") & (summary.method != "ldct")]
    for axis, (group, dose) in zip(axes[0], groups, strict=True):
        for row in gains[(gains.group == group) & (gains.dose == dose)].itertuples():
            axis.plot([row.low, row.high], [row.method] * 2, color=colours[row.method], linewidth=3)
            axis.plot(row.difference, row.method, "o", color="black", markersize=4)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=f"{group}, dose {dose:g}", xlabel="PSNR gain (dB)")
    axes[0, 0].invert_yaxis()
    return figure
