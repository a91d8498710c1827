"""Notebook 07: what methods gain, group by group, what they remove, and the error by residual noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldctlib.metrics import psnr
from ldctlib.show.figures import _axes, curves, strips
from ldctlib.show.png import WIDTH
from ldctlib.units import Window


def what_went(images: Mapping[str, Any], ldct_hu: Any, truth_hu: Any, window: Window):
    """Images, their errors against the truth, and what each method removed, with the PSNR in ``window``."""
    errors, removed = ([x - truth_hu for x in images.values()], [ldct_hu - x for x in images.values()])
    lines = {"image": list(images.values()), "image − truth": errors, "removed": removed}
    titles = [f"{name}\n{float(psnr(x, truth_hu, window=window)):.1f} dB to truth" for name, x in images.items()]
    look = (Window(0, 240), "RdBu_r", "HU")
    return strips(lines, titles, window=window, looks={"image − truth": look, "removed": look})


def gains_figure(summary: Any, groups: Sequence[tuple[str, float]], colours: Mapping[str, str]):
    """PSNR gained against the truth: a benchmark's means and intervals, in a panel for each (group, dose)."""
    figure, axes = _axes(1, len(groups), (WIDTH, 2.9), sharex=True, sharey=True)
    gains = summary[(summary.reference == "truth") & (summary.metric == "psnr") & (summary.method != "ldct")]
    for axis, (group, dose) in zip(axes[0], groups, strict=True):
        for row in gains[(gains.group == group) & (gains.dose == dose)].itertuples():
            axis.plot([row.low, row.high], [row.method] * 2, color=colours[row.method], linewidth=3)
            axis.plot(row.difference, row.method, "o", color="black", markersize=4)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=f"{group}, dose {dose:g}", xlabel="PSNR gain to the truth (dB)")
    axes[0, 0].invert_yaxis()
    return figure


def parabolas(fits: Mapping[float, Mapping[str, Any]], sds_hu: Mapping[float, Sequence[float]]):
    """RMSE by residual noise k, a panel a dose: of nafnet, fits (a, b, c) of a + 2 b k + c k², and of known anatomy."""
    k, panels = np.linspace(-0.15, 0.6, 151), {}
    for dose, views in fits.items():
        low, full = np.square(sds_hu[dose])
        known = {"truth": (0, 0, low), "full dose": (full, -full, low)}  # Eq. (3)
        lines = panels[f"RMSE (HU), dose {dose:g}"] = {}
        for who, of in {"nafnet": views, "anatomy known": known}.items():
            lines |= {f"{who}, to the {name}": (k, np.sqrt(a + 2 * b * k + c * k**2)) for name, (a, b, c) in of.items()}
    figure = curves(panels, xlabel="residual noise k", one_legend=True)
    for axis, (sd, sd_full) in zip(figure.axes, sds_hu.values(), strict=True):
        axis.axvline((sd_full / sd) ** 2, color="0.7", linewidth=1)
    return figure
