"""Notebook 01: the way of a scan, noise by dose, kernel and direction, and simulated spectra over real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ldctlib.ct.nps import BAND_CENTRES
from ldctlib.ct.scanner_spectra import REAL_NPS, band_errors
from ldctlib.show.diagrams import diagram
from ldctlib.show.figures import curves, grid
from ldctlib.units import SOFT_TISSUE, Window

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


def there_and_back(object_hu: Any, sinogram: Any, smeared: Any, filtered_hu: Any) -> Figure:
    """An object, its sinogram, the sinogram smeared back, and filtered backprojection."""
    windows = (SOFT_TISSUE, Window(3.5, 7.0), Window(float(smeared.max()) / 2, float(smeared.max())), SOFT_TISSUE)
    images = (object_hu, sinogram, smeared, filtered_hu)
    titles = (f"the object\n{SOFT_TISSUE}", "sinogram p(θ, s)\n0 … 7", "smeared back only\n0 … its largest value")
    figure, axes = grid(
        [[(*both, "gray") for both in zip(images, windows, strict=True)]], titles=(*titles, f"FBP\n{SOFT_TISSUE}")
    )
    axes[0, 1].set(xlabel="detector position s", ylabel="angle θ")
    axes[0, 1].set(yticks=[0, sinogram.shape[-2] - 1], yticklabels=["0°", "180°"])
    return figure


def noise_laws(counted: Mapping, electronic_sd: float, measured: Mapping, doses: Sequence[float]) -> Figure:
    """Std and bias of a line integral by mean count, and noise in HU by dose, both with their theory."""
    means = np.array(list(counted))
    sd, bias = np.abs(list(counted.values())).T
    theory, law = np.sqrt(means + electronic_sd**2) / means, 1 / np.sqrt(doses)
    lines = {
        "error of the line integral": {
            "std, counted": (means, sd),
            "|bias|, counted": (means, bias),
            "std, Eq. (3)": (means, theory),
            "bias, Eq. (3)": (means, theory**2 / 2),
        },
        "noise at the centre (HU)": {name: (doses, noise) for name, noise in measured.items()}
        | {f"{noise[0]:.0f} HU / √dose": (doses, noise[0] * law) for noise in measured.values()},
    }
    predicted = [name for panel in lines.values() for name in panel if "Eq" in name or "√" in name]
    figure = curves(lines, xlabel="mean count of a ray", reference=predicted)
    for axis in figure.axes:
        axis.set(xscale="log", yscale="log")
        axis.lines[3].set_linestyle(":")
        axis.legend(fontsize=8)
    figure.axes[0].set_ylim(1e-3, 10)
    figure.axes[0].axvspan(0.4, 30, color="#E69F00", alpha=0.15)
    figure.axes[1].set(xlabel="dose (fraction of full)", xticks=doses, xticklabels=[f"{d:g}" for d in doses])
    figure.axes[1].tick_params(axis="x", which="minor", bottom=False)
    return figure


def grain(noises_hu: Mapping[str, Any]) -> Figure:
    """Noise of one part, kernel by kernel, each within 2.5 of its own standard deviations."""
    sds = {name: float(noise.std()) for name, noise in noises_hu.items()}
    line = [(noise, Window(0, 5 * sds[name]), "gray") for name, noise in noises_hu.items()]
    return grid([line], titles=[f"{name}: {sd:.0f} HU, shown ±{2.5 * sd:.0f} HU" for name, sd in sds.items()])[0]


def kernel_spectra(spectra: Mapping[str, Any], nyquist: float) -> Figure:
    """Radial noise power spectra up to ``nyquist``, on a logarithmic axis."""
    lines = {name: (s.frequency[s.frequency < nyquist], s.radial[s.frequency < nyquist]) for name, s in spectra.items()}
    figure = curves({"NPS (HU² mm²)": lines}, xlabel="spatial frequency (1/mm)")
    figure.axes[0].set(yscale="log", ylim=(5, None), xlim=(0, None))
    return figure


def anisotropy(power: np.ndarray) -> float:
    """Mean noise power within 15° of v over that within 15° of u, in (n, n) with 0 in the centre."""
    f = np.abs(np.fft.fftshift(np.fft.fftfreq(len(power))))
    angle, ring = np.degrees(np.arctan2(f[:, None], f)), np.hypot(f[:, None], f) > 0.1
    return float(power[ring & (angle > 75)].mean() / power[ring & (angle < 15)].mean())


def streaks(image_hu: Any, noise_hu: Any, power: np.ndarray, pixel_mm: float) -> Figure:
    """An image, its noise, and the noise's 2-D spectrum with the ratio of its two directions."""
    window, large = Window(0, 1600), np.kron(np.log10(power), np.ones((4, 4)))
    line = [(image_hu, window, "gray"), (noise_hu, window, "gray"), (large, Window(5, 5), "magma")]
    titles = (
        f"quarter dose\n{window}",
        f"its noise\n{window}",
        f"NPS between the hips\nv : u = {anisotropy(power):.0f} : 1",
    )
    figure, axes = grid([line], titles=titles, margins=(1.6, 0.8))
    ends, edge = [0, len(large) // 2, len(large) - 1], [f"{x:.2f}" for x in (-0.5 / pixel_mm, 0, 0.5 / pixel_mm)]
    ticks = dict(xticks=ends, yticks=ends, xticklabels=edge, yticklabels=edge)
    axes[0, 2].set(xlabel="u (1/mm)", ylabel="v (1/mm)", **ticks)
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
        bands = np.array(curve.bands)
        axis.fill_between(BAND_CENTRES, 0.8 * bands, 1.2 * bands, color="0.85", zorder=0)
        axis.axvline(0.5 / curve.pixel_mm, color="0.6", linewidth=1)
        axis.text(0.5 / curve.pixel_mm, 1.27, "Nyquist ", ha="right", fontsize=8, color="0.4")
        axis.set_title(title, fontsize=9)
        axis.set(ylabel="NPS / peak; grey: real ± 20 %", xlim=(0, 0.78), ylim=(0, 1.35))
    figure.axes[-1].legend(fontsize=8, loc="center right")
    return figure
