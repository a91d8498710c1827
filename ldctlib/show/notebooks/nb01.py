"""Notebook 01: the way of a scan, noise by dose and kernel, and simulated spectra over real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ldctlib.ct.nps import BAND_CENTRES
from ldctlib.ct.scanner_spectra import REAL_NPS, band_errors
from ldctlib.show.diagrams import diagram
from ldctlib.show.figures import curves, grid, nps_plot
from ldctlib.units import Window

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def scan_chain() -> Figure:
    """Object, line integrals, counts, logarithm, ramp, image; and where noise and dose come in."""
    boxes = {
        "object": ("object", 0, 0, r"$\mu(x, y)$, in 1/mm", "data"),
        "project": ("add up along rays", 1, 0, "section 3, Eq. 2", "operation", 1.3),
        "p": ("sinogram", 2.3, 0, r"$p(\theta, s)$, no unit", "data"),
        "count": ("count photons", 3.3, 0, "section 4, Eq. 3", "operation", 1.3),
        "N": ("counts", 4.6, 0, "$N$, whole numbers", "data"),
        "dose": (r"dose $d$", 3.3, 1, "and electronics", "data", 1.3),
        "log": ("logarithm", 4.6, 1, r"$-\ln N / d N_0$", "operation"),
        "image": ("image", 0, 2, "in HU, Eq. 1", "data"),
        "smear": ("smear back", 1, 2, "section 3", "operation", 1.3),
        "ramp": ("ramp × kernel", 2.3, 2, "$|f|\\,W(f)$, section 5", "operation", 1.3),
        "p_hat": ("noisy sinogram", 4.6, 2, r"$\hat p(\theta, s)$", "data"),
    }
    names = ("object", "project", "p", "count", "N", "log", "p_hat", "ramp", "smear", "image")
    return diagram(boxes, [*zip(names, names[1:], strict=False), ("dose", "count")])


def noise_laws(counted: Mapping, electronic_sd: float, measured: Mapping, doses: Sequence[float]) -> Figure:
    """Std and bias of a line integral by mean count, and noise in HU by dose, both with their theory."""
    means, (sd, bias) = np.array(list(counted)), np.abs(list(counted.values())).T
    theory, law = np.sqrt(means + electronic_sd**2) / means, 1 / np.sqrt(doses)
    ray = {"std, counted": sd, "|bias|, counted": bias, "std, Eq. (3)": theory, "bias, Eq. (3)": theory**2 / 2}
    image = measured | {f"{noise[0]:.0f} HU / √dose": noise[0] * law for noise in measured.values()}
    panels = {
        "error of the line integral": {name: (means, y) for name, y in ray.items()},
        "noise at the centre (HU)": {name: (doses, y) for name, y in image.items()},
    }
    figure = curves(panels, xlabel="mean count of a ray", reference=[*list(ray)[2:], *list(image)[2:]])
    for axis in figure.axes:
        axis.set(xscale="log", yscale="log")
        axis.lines[3].set_linestyle(":")
        axis.legend(fontsize=8)
    figure.axes[0].set_ylim(1e-3, 10)
    figure.axes[0].axvspan(0.4, 30, color="#E69F00", alpha=0.15)
    figure.axes[1].set(xlabel="dose (fraction of full)", xticks=doses, xticklabels=[f"{d:g}" for d in doses])
    figure.axes[1].tick_params(axis="x", which="minor", bottom=False)
    return figure


def textures(noises_hu: Mapping[str, Any], spectra: Mapping[str, Any], nyquist: float) -> tuple[Figure, Figure]:
    """Noise by kernel, each within 2.5 of its standard deviations; and its spectra up to ``nyquist``."""
    sds = {name: float(noise.std()) for name, noise in noises_hu.items()}
    line = [(noise, Window(0, 5 * sds[name]), "gray") for name, noise in noises_hu.items()]
    figure = nps_plot({name: (s.frequency, s.radial) for name, s in spectra.items()})
    figure.axes[0].set(yscale="log", xlim=(0, nyquist), ylim=(5, None))
    return grid([line], titles=[f"{n}: {sd:.0f} HU, shown ±{2.5 * sd:.0f} HU" for n, sd in sds.items()])[0], figure


def real_and_simulated(simulated: Mapping[str, np.ndarray], guess: np.ndarray) -> Figure:
    """Spectra in bands over the measured ones: each at the scale of its smallest error, the guess at its own peak."""
    panels, real = {}, {str(REAL_NPS[name]): REAL_NPS[name] for name in simulated}
    for (title, curve), bands in zip(real.items(), simulated.values(), strict=True):
        scaled = (1 + band_errors(bands, curve.bands)) * curve.bands
        scale = np.nanmean(scaled / bands)
        lines = {"real": curve.bands, "simulated": scale * bands, "Hann to Nyquist": guess / guess.max()}
        panels[title] = {name: (BAND_CENTRES, values) for name, values in lines.items()}
    figure = curves(panels, xlabel="spatial frequency (1/mm)", reference="real")
    for axis, (title, curve) in zip(figure.axes, real.items(), strict=True):
        axis.lines[2].set(linestyle=":", marker="")
        axis.get_legend().remove()
        bands = np.array(curve.bands)
        axis.fill_between(BAND_CENTRES, 0.8 * bands, 1.2 * bands, color="0.85", zorder=0)
        axis.axvline(0.5 / curve.pixel_mm, color="0.6", linewidth=1)
        axis.text(0.5 / curve.pixel_mm, 1.27, "Nyquist ", ha="right", fontsize=8, color="0.4")
        axis.set_title(title, fontsize=9)
        axis.set(ylabel="NPS / peak; grey: real ± 20 %", xlim=(0, 0.78), ylim=(0, 1.35))
    figure.axes[-1].legend(fontsize=8, loc="center right")
    return figure
