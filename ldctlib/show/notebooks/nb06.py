"""Notebook 06: what a measurement fixes, the weights of DDNM+, coverage, discs, and a widget over a sampler's settings.

Images are (1, 1, H, W) or (H, W) in HU, several draws of one image (n, 1, H, W). Figures are closed to pyplot, as in
:mod:`ldctlib.show.figures`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib import metrics
from ldctlib.diffusion.plug_and_play import ETA, first_time, measurement_weights
from ldctlib.errors import ParameterError
from ldctlib.image import disc
from ldctlib.operators import CorrelatedNoise, Identity
from ldctlib.show import png
from ldctlib.show.diagrams import diagram
from ldctlib.show.figures import DIFFERENCE, grid, plane, rows
from ldctlib.show.widgets import Panel, beside_error, panel
from ldctlib.units import SOFT_TISSUE, Window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ldctlib.diffusion.schedule import Schedule


# ---------------------------------------------------------------- range and null space


def step_diagram() -> Figure:
    """One step of DDNM: the prior's estimate, its null space, the measurement's range, and noise again."""
    boxes = {
        "x_t": ("$x_t$", 0, 1, "image + noise", "data"),
        "eps": (r"$\epsilon_\theta$", 1, 1, "the prior, frozen", "frozen"),
        "x0": ("$x_{0|t}$", 2, 1, "its estimate, Eq. 7", "data"),
        "null": ("$I - A^+A$", 3, 1, "null space", "operation"),
        "y": ("$y$", 2, 0, "the measurement", "data"),
        "pinv": ("$A^+$", 3, 0, "range", "operation"),
        "x0_hat": (r"$\hat x_{0|t}$", 4, 0.5, "Eq. 9: the sum", "data"),
        "renoise": ("+ noise of s", 5, 0.5, "Eq. 10", "operation"),
        "x_s": ("$x_s$", 5, 1.6, "next step's image", "data"),
    }
    arrows = [("x_t", "eps"), ("eps", "x0"), ("x0", "null"), ("y", "pinv"), ("null", "x0_hat"), ("pinv", "x0_hat")]
    return diagram(boxes, [*arrows, ("x0_hat", "renoise"), ("renoise", "x_s")])


def range_and_null(x_hu: Tensor, operator, *, window: Window = SOFT_TISSUE, difference=DIFFERENCE) -> Figure:
    """An image, its part in the range of A⁺, and its part in the null space of A, in HU."""
    held = operator.A_dagger(operator.A(x_hu))
    cells = [(x_hu, window, "gray"), (held, window, "gray"), (x_hu - held, difference, "RdBu_r")]
    titles = ("$x$", "$A^+A\\,x$: what $y = Ax$ fixes", "$(I - A^+A)\\,x$: what no $y$ shows")
    figure, axes = grid([cells], titles=titles, margins=(0.3, 0.9))
    bar = dict(location="bottom", fraction=0.06, pad=0.02)
    figure.colorbar(axes[0, 0].images[0], ax=list(axes[0, :2]), label="HU", aspect=40, **bar)
    figure.colorbar(axes[0, 2].images[0], ax=axes[0, 2], label="HU", **bar)
    return figure


# ---------------------------------------------------------------- DDNM+


class Weights(NamedTuple):
    """What DDNM+ does with one coordinate of the measurement at each time of the chain."""

    t: np.ndarray
    weight: np.ndarray  # λ
    fresh: np.ndarray  # fresh noise over the chain's own, √(1 − ᾱ)


def ddnm_plus_weights(schedule: Schedule, noise_sd: float, *, singular_value: float = 1.0, eta: float = ETA) -> Weights:
    """λ and the fresh noise at every time 1 … T, for a coordinate whose noise is ``noise_sd`` over ``singular_value``.

    noise_sd : in the model's unit.
    """
    a, sigma = schedule.alpha_bar[1:].sqrt(), (1 - schedule.alpha_bar[1:]).sqrt()
    weight, fresh = measurement_weights(a, sigma, singular_value, eta)
    sd = torch.tensor(noise_sd, dtype=a.dtype)
    return Weights(np.arange(1, schedule.T + 1), weight(sd).numpy(), (fresh(sd) / sigma).numpy())


def weights_plot(lines: Mapping[str, Weights]) -> Figure:
    """λ and the fresh share of the noise against time, which runs from right to left."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(png.WIDTH, 3.0), layout="constrained")
    plt.close(figure)
    for axis, part, label in zip(axes, ("weight", "fresh"), ("weight λ", "fresh noise / σ"), strict=True):
        for name, line in lines.items():
            axis.plot(line.t, getattr(line, part), label=name)
        axis.set(xscale="log", xlabel="time t (a chain walks to the left)", ylabel=label, ylim=(0, 1.05))
    axes[0].legend(fontsize=8, loc="upper left")
    return figure


def removed_noise(groups: Mapping[str, Mapping[str, Tensor]], pixel_mm: float) -> tuple[list[dict], dict[str, dict]]:
    """What denoising did to each group of images: rows of a table, and the radial NPS of what was removed.

    groups : group → name → images (n, 1, H, W), "truth" and "low dose" among them

    The spectra are group → name → (frequency, NPS); that of the noise itself is named "noise".
    """
    lines, spectra = [], {}
    for group, images in groups.items():
        truth, low = images["truth"], images["low dose"]
        noise = metrics.nps(low - truth, pixel_mm, roi=32)
        spectra[group] = {"noise": (noise.frequency, noise.radial)}
        for name in (each for each in images if each != "truth"):
            scores = [float(f(images[name], truth, window=SOFT_TISSUE).mean()) for f in (metrics.psnr, metrics.ssim)]
            line = {"kernel": group, "method": name, "PSNR (dB)": scores[0], "SSIM": scores[1]}
            if name != "low dose":
                removed = metrics.nps(low - images[name], pixel_mm, roi=32)
                spectra[group][name] = removed.frequency, removed.radial
                line["NPS distance"] = metrics.nps_distance(removed, noise)
            lines.append(line)
    return lines, spectra


# ---------------------------------------------------------------- several draws


class Calibration(NamedTuple):
    """A sampler against the exact posterior of N(0, 1), for y = x + n."""

    variance: float  # of its draws, given y
    exact: float  # of the posterior
    coverage: tuple[float, ...]  # of its central intervals, for each level


def gaussian_calibration(
    schedule: Schedule, times: Sequence[int], noise_sd: float, *, levels=(0.5, 0.9), eta: float = ETA
) -> Calibration:
    """DDNM+ for x ~ N(0, 1), A = I, as its linear recursion: the draws given y are N(g y, variance)."""
    gain, variance = 0.0, 1.0  # of x_T, which knows nothing of y
    for t, s in zip(times, (*times[1:], 0), strict=True):
        a, sigma = math.sqrt(schedule.at(s)), math.sqrt(1 - schedule.at(s))
        weight, fresh = (float(f(torch.tensor(noise_sd).double())) for f in measurement_weights(a, sigma, eta=eta))
        kept = (1 - weight) * math.sqrt(schedule.at(t))  # E[x0 | x_t] = √ᾱ_t x_t for N(0, 1)
        gain, variance = a * (kept * gain + weight), (a * kept) ** 2 * variance + fresh**2
    exact = noise_sd**2 / (1 + noise_sd**2)
    # x - g y for x and y drawn together
    error = exact + (gain - 1 / (1 + noise_sd**2)) ** 2 * (1 + noise_sd**2)
    normal = torch.distributions.Normal(0.0, 1.0)
    z = [float(normal.icdf(torch.tensor((1 + level) / 2, dtype=torch.float64))) for level in levels]
    return Calibration(variance, exact, tuple(math.erf(each * math.sqrt(variance / error / 2)) for each in z))


def coverage(draws: Tensor, truth: Tensor, levels: Sequence[float], mask: Tensor | None = None) -> list[float]:
    """Share of pixels whose truth lies in the draws' central interval of each level.

    draws : (n, 1, H, W), n ≥ 2. The interval is mean ± t s √(1 + 1/n) with Student's t, which is exact for draws from a
        normal distribution that the truth is drawn from too.
    mask : bool (1, 1, H, W), the pixels that count.
    """
    from scipy import stats

    n = len(draws)
    if n < 2:
        raise ParameterError("an interval needs two draws at least")
    distance = (truth - draws.mean(0, keepdim=True)).abs() / (draws.std(0, keepdim=True) * math.sqrt(1 + 1 / n))
    distance = distance if mask is None else distance[mask]
    return [float((distance <= stats.t.ppf((1 + level) / 2, n - 1)).double().mean()) for level in levels]


Line = tuple[Sequence[float], Sequence[float]]


def calibration_plot(gaussian: Mapping[str, Line], levels: Sequence[float], measured: Mapping[str, Line]) -> Figure:
    """Coverage against the number of steps, for a Gaussian prior, and against the nominal level, for draws of images.

    gaussian : name → (steps, coverage), one for each of ``levels``, which are dashed
    measured : name → (nominal level, coverage)
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(png.WIDTH, 3.4), layout="constrained")
    plt.close(figure)
    for (name, (steps, share)), level, colour in zip(gaussian.items(), levels, png.COLOURS, strict=False):
        axes[0].plot(steps, 100 * np.asarray(share), "o-", color=colour, markersize=3.5, label=name)
        axes[0].axhline(100 * level, color=colour, linestyle="--", linewidth=1)
    axes[0].set(xscale="log", xlabel="steps", ylabel="holds the truth (%)", ylim=(0, 100))
    axes[0].set_title("N(0, 1), exactly; dashed: the promise")
    for name, (nominal, share) in measured.items():
        axes[1].plot(100 * np.asarray(nominal), 100 * np.asarray(share), "o-", markersize=3.5, label=name)
    axes[1].plot((0, 100), (0, 100), "k--", linewidth=1, label="as promised")
    axes[1].set(xlabel="the interval promises (%)", ylabel="holds the truth (%)", xlim=(0, 100), ylim=(0, 100))
    axes[1].set_title("draws of the square")
    for axis in axes:
        axis.legend(fontsize=8)
    return figure


# ---------------------------------------------------------------- discs


def flat_places(x_hu: Tensor, count: int, *, radius: float, soft=(0.0, 230.0)) -> list[tuple[int, int]]:
    """The flattest places of soft tissue, (row, column), at least four radii apart and two from the border."""
    x = plane(x_hu)
    side = 2 * math.ceil(1.5 * radius) + 1
    mean, square = (F.avg_pool2d(torch.from_numpy(v).double()[None, None], side, 1, side // 2)[0, 0] for v in (x, x**2))
    rough = square - mean**2 + 1e9 * ((mean < soft[0]) | (mean > soft[1]))
    row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in x.shape), indexing="ij")
    border = 2 * radius
    rough[(row < border) | (column < border) | (row > x.shape[0] - border) | (column > x.shape[1] - border)] = torch.inf
    places = []
    for _ in range(count):
        place = divmod(int(rough.argmin()), x.shape[1])
        if not rough[place] < 1e9:
            raise ParameterError(
                f"the image has no {count} flat places of soft tissue with a radius of {radius} pixels"
            )
        places.append(place)
        rough[(row - place[0]).hypot(column - place[1]) < 4 * radius] = torch.inf
    return places


def contrast(x: Tensor, place: tuple[int, int], radius: float) -> Tensor:
    """Mean inside a disc minus that of the ring around it, 1.3 to 2 radii, for each image: (B,) in HU."""
    inside = disc(x.shape[-2:], place, radius - 1) > 0.5
    ring = (disc(x.shape[-2:], place, 2 * radius) > 0.5) & ~(disc(x.shape[-2:], place, 1.3 * radius) > 0.5)
    return x[..., inside[0, 0]].mean((1, 2)) - x[..., ring[0, 0]].mean((1, 2))


def contrast_kept(
    samples: Mapping[str, Tensor], target: Tensor, places: Sequence[tuple[int, int]], radius: float
) -> list[dict[str, Any]]:
    """Rows of a table: the share of the discs' contrast in the draws, over the discs and over the draws."""
    lines = []
    for name, x in samples.items():
        true = torch.stack([contrast(target, place, radius) for place in places])
        share = 100 * torch.stack([contrast(x, place, radius) for place in places]) / true  # (places, draws)
        own = share.mean(1)
        line = {"measurement": name, "contrast kept, mean (%)": float(own.mean())}
        line |= {f"least of {len(places)} discs": float(own.min()), "most": float(own.max())}
        scatter = float(share.std(1).mean()) if len(x) > 1 else math.nan
        lines.append(line | {"scatter between draws": scatter})
    return lines


# ---------------------------------------------------------------- tables


# ---------------------------------------------------------------- the widget

Setting = tuple[float, int, float]
"""Noise factor, steps, η."""


def settings_grid(
    prior, y: Tensor, noise: CorrelatedNoise, *, factors, tries, etas, seed: int
) -> dict[Setting, Tensor]:
    """A scan denoised with every noise factor, number of steps and η, each with the same random numbers.

    y : (1, 1, H, W) in HU
    noise : of y; its standard deviation is told to the sampler times a factor

    All chains start where the noise of the largest factor is the chain's.
    """
    told = torch.stack([noise.scaled(factor).variance for factor in factors])[:, None]
    operator = Identity(CorrelatedNoise(told, noise.size))
    start = first_time(prior.to_model(y, operator)[1], prior.schedule)
    results = {}
    for steps in tries:
        for eta in etas:
            chain = dict(steps=steps, start=start, eta=eta)
            chain["generator"] = [torch.Generator().manual_seed(seed) for _ in factors]
            images = prior.restore(y.repeat(len(factors), 1, 1, 1), operator, **chain).cpu()
            results |= {(factor, steps, eta): image for factor, image in zip(factors, images, strict=True)}
    return results


def render_setting(results: Mapping[Setting, Any], setting: Setting, truth_hu: Any, window: Window) -> np.ndarray:
    """The image of a setting beside its error (grey at 0 HU, same width): uint8 (H, 2W). Raises ParameterError."""
    if setting not in results:
        raise ParameterError(f"noise factor, steps, η = {setting} was not computed")
    return beside_error(results[setting], truth_hu, window)


def describe_setting(results: Mapping[Setting, Any], setting: Setting, truth_hu: Any, window: Window) -> str:
    """What the two halves of :func:`render_setting` are, and the error in HU."""
    error = plane(results[setting]) - plane(truth_hu)
    half = window.width / 2
    return (
        f"left: restored, black {window.low:g}, white {window.high:g} HU · right: restored − truth, black {-half:g}, "
        f"white {half:g} HU · RMS error {np.sqrt(np.mean(np.square(error, dtype=np.float64))):.1f} HU"
    )


def settings_explorer(
    results: Mapping[Setting, Any],
    truth_hu: Any,
    *,
    window: Window = SOFT_TISSUE,
    shown: Sequence[Setting] | None = None,
    captions: Mapping[Setting, str] | None = None,
) -> Panel:
    """Choose the noise that the sampler is told, its steps and η, among results computed beforehand.

    results : (noise factor, steps, η) → image, for all combinations of their values
    shown : settings of the static figure, by default those of the first and the last value of each
    captions : setting → a second line of its title there
    """
    import ipywidgets as w

    values = [sorted({setting[i] for setting in results}) for i in range(3)]
    if len(results) != math.prod(map(len, values)) or not results:
        raise ParameterError("the explorer needs a result for every combination of noise factor, steps and η")
    names = {"factor": "noise told / true", "steps": "steps", "eta": "η"}
    controls = {
        name: w.SelectionSlider(
            options=[(f"{v:g}", v) for v in own], value=own[len(own) // 2], description=label, style=_WIDE
        )
        for (name, label), own in zip(names.items(), values, strict=True)
    }
    told = w.HTML()

    def render(factor: float, steps: int, eta: float) -> np.ndarray:
        told.value = describe_setting(results, (factor, steps, eta), truth_hu, window)
        return render_setting(results, (factor, steps, eta), truth_hu, window)

    if shown is None:
        middle = [own[len(own) // 2] for own in values]
        shown = [(*middle[:i], end, *middle[i + 1 :]) for i in range(3) for end in (values[i][0], values[i][-1])]
        shown = list(dict.fromkeys(tuple(each) for each in shown))

    def figure() -> Figure:
        names = [f"noise × {factor:g}\n{steps} steps, η = {eta:g}" for factor, steps, eta in shown]
        second = None if captions is None else {n: captions.get(s, "") for n, s in zip(names, shown, strict=True)}
        images = {name: results[setting] for name, setting in zip(names, shown, strict=True)}
        made = rows(images | {"truth": truth_hu}, window=window, reference="truth", captions=second)
        for axis in made.axes:
            axis.title.set_fontsize(8)
            axis.xaxis.label.set_fontsize(8)
        return made

    made = panel(controls, render, figure)
    made.box.children = (*made.box.children, told)
    return made


_WIDE = {"description_width": "initial"}
