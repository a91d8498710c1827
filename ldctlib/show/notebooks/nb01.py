"""Notebook 01: the way of a scan, streaks and their spectrum, simulated spectra over real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ldctlib.ct.nps import BAND_CENTRES, NPS
from ldctlib.ct.scanner_spectra import REAL_NPS, band_errors
from ldctlib.show.diagrams import diagram
from ldctlib.show.figures import curves, grid
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


def anisotropy(spectrum: NPS) -> float:
    """Noise energy within 15° of the v axis over that within 15° of the u axis, beyond 0.1 cycles a pixel."""
    f = np.fft.fftshift(np.fft.fftfreq(len(spectrum.two_d)))
    angle = np.degrees(np.arctan2(np.abs(f)[:, None], np.abs(f)[None, :]))
    ring = np.hypot(f[:, None], f[None, :]) > 0.1
    return float(spectrum.two_d[ring & (angle > 75)].mean() / spectrum.two_d[ring & (angle < 15)].mean())


def streaks(image_hu: Any, noise_hu: Any, spectrum: NPS, *, window: Window = Window(0, 1600)) -> Figure:
    """An image, its noise, and the logarithm of a part's 2-D spectrum."""
    power = np.log10(spectrum.two_d)
    power = np.kron(power, np.ones([n // len(power) for n in image_hu.shape[-2:]]))  # one shape in a line
    look = Window((power.min() + power.max()) / 2, power.max() - power.min())
    titles = f"quarter dose\n{window}", "its noise", f"NPS between the hips,\n{anisotropy(spectrum):.0f} : 1"
    cells = [(image_hu, window, "gray"), (noise_hu, window, "gray"), (power, look, "magma")]
    figure, axes = grid([cells], titles=titles, margins=(1.6, 0.8))
    edge, ends = 0.5 / spectrum.pixel_mm, [0, (len(power) - 1) / 2, len(power) - 1]
    labels = [f"{f:.2f}" for f in (-edge, 0, edge)]
    axes[0, 2].set(xticks=ends, yticks=ends, xticklabels=labels, yticklabels=labels, xlabel="u (1/mm)", ylabel="v (1/mm)")
    figure.colorbar(axes[0, 1].images[0], ax=list(axes[0, :2]), label="HU", fraction=0.03, pad=0.01)
    figure.colorbar(axes[0, 2].images[0], ax=axes[0, 2], label="log10 of HU² mm²", fraction=0.05)
    return figure


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
        axis.fill_between(BAND_CENTRES, 0.8 * np.array(curve.bands), 1.2 * np.array(curve.bands), color="0.85", zorder=0)
        axis.axvline(0.5 / curve.pixel_mm, color="0.6", linewidth=1)
        axis.text(0.5 / curve.pixel_mm, 1.27, "Nyquist ", ha="right", fontsize=8, color="0.4")
        axis.set_title(title, fontsize=9)
        axis.set(ylabel="NPS / peak; grey: real ± 20 %", xlim=(0, 0.78), ylim=(0, 1.35))
    figure.axes[-1].legend(fontsize=8, loc="center right")
    return figure
