"""Interactive views: a pure ``render_*`` function, a thin ipywidgets shell around it, and a static figure.

The render functions return uint8 arrays, (H, W) grey or (H, W, 3) colour; the shells send them as PNG bytes,
which redraws faster than a matplotlib figure would. ``panel.figure()`` is for a reader without a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.show.figures import plane, rows
from ldctlib.show.png import array_png
from ldctlib.units import SOFT_TISSUE, Window

SIZE_PX = 512  # the longer side on screen
WIPE_COLOUR = (230, 159, 0)
BAR = "display: inline-block; width: 6em; height: .7em; border: 1px solid #999; background: linear-gradient(90deg"
PIXELS = "<style>.ldct-pixels {image-rendering: pixelated}</style>"  # a browser smooths what it enlarges: a denoiser


@dataclass
class Panel:
    """An interactive view: its controls by name, its image, and a static figure to put beside it."""

    controls: dict[str, Any]
    image: Any
    box: Any
    figure: Callable[[], Any]

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.box)


def grey(image_hu: Any, window: Window) -> np.ndarray:
    """An image (H, W) in HU as uint8 grey levels in a window."""
    return np.rint(window.to_display(plane(image_hu)) * 255).astype(np.uint8)


def hu_bar(window: Window) -> str:
    """A window's grey levels between its two ends, as HTML for a title."""
    return f'{window.low:g} <span style="{BAR}, black, white)"></span> {window.high:g} {window.unit}'


def render_slice(volume_hu: Any, index: int, window: Window) -> np.ndarray:
    """Slice ``index`` of a volume (D, H, W) or (D, 1, H, W) in a window: uint8 (H, W)."""
    return grey(volume_hu[index], window)


def render_wipe(before_hu: Any, after_hu: Any, fraction: float, window: Window) -> np.ndarray:
    """``before`` left of a vertical line at ``fraction`` of the width, ``after`` right of it: (H, W, 3)."""
    before, after = grey(before_hu, window), grey(after_hu, window)
    if before.shape != after.shape:
        raise ShapeError(f"a wipe needs two images of one shape, got {before.shape} and {after.shape}")
    width = before.shape[1]
    cut = int(round(np.clip(fraction, 0.0, 1.0) * width))
    image = np.repeat(np.where(np.arange(width) < cut, before, after)[..., None], 3, axis=2)
    if 0 < cut < width:
        image[:, cut - 1 : cut + 1] = WIPE_COLOUR
    return image


def beside_error(image_hu: Any, reference_hu: Any, window: Window) -> np.ndarray:
    """An image, and right of it image − reference, grey at 0 HU and of the same width: uint8 (H, 2W)."""
    error = plane(image_hu) - plane(reference_hu)
    return np.concatenate([grey(image_hu, window), grey(error, Window(0, window.width))], axis=1)


def render_dose(scans_hu: Mapping[float, Any], dose: float, window: Window, reference_hu: Any) -> np.ndarray:
    """The scan at ``dose`` beside its noise (scan − reference, grey at 0 HU, same width): uint8 (H, 2W)."""
    if dose not in scans_hu:
        raise ParameterError(f"dose={dose} was not scanned; there are {', '.join(map(str, scans_hu))}")
    return beside_error(scans_hu[dose], reference_hu, window)


def slice_viewer(volume_hu: Any, *, window: Window = SOFT_TISSUE, titles: Sequence[str] = ()) -> Panel:
    """Scroll through a volume (D, H, W) or (D, 1, H, W) in HU, with level and width; ``titles`` name the slices."""
    import ipywidgets as w

    depth = len(volume_hu)
    controls = {
        "slice": w.IntSlider(depth // 2, min=0, max=depth - 1, description="slice"),
        "level": w.IntSlider(round(window.level), min=-1000, max=1500, step=5, description="level (HU)"),
        "width": w.IntSlider(round(window.width), min=10, max=3000, step=10, description="width (HU)"),
    }

    def render(slice: int, level: int, width: int) -> np.ndarray:
        return render_slice(volume_hu, slice, Window(level, width))

    names = titles or [f"slice {i}" for i in range(depth)]

    def figure():
        chosen = sorted({depth // 4, depth // 2, 3 * depth // 4})
        return rows({names[i]: volume_hu[i] for i in chosen}, window=window)

    def heads(slice: int, level: int, width: int) -> list[str]:
        return [f"{names[slice]} &emsp; {hu_bar(Window(level, width))}"]

    return panel(controls, render, figure, heads=heads)


def wipe(before_hu: Any, after_hu: Any, *, window: Window = SOFT_TISSUE, names=("before", "after")) -> Panel:
    """A slider moves a line across two images of the same slice, in HU: left of it the first, right the second."""
    import ipywidgets as w

    look = dict(description=f"{names[0]} | {names[1]}", readout_format=".0%", style={"description_width": "initial"})
    controls = {"fraction": w.FloatSlider(0.5, min=0.0, max=1.0, step=0.01, **look)}
    images = {names[0]: before_hu, names[1]: after_hu}

    def render(fraction: float) -> np.ndarray:
        return render_wipe(before_hu, after_hu, fraction, window)

    return panel(controls, render, lambda: rows(images, window=window))


def dose_slider(
    scans_hu: Mapping[float, Any], reference_hu: Any, *, window: Window = SOFT_TISSUE, part=..., where: str = ""
) -> Panel:
    """One slice at several doses, scanned beforehand: dose (a fraction of full) → image in HU.

    Right of it is its noise, the difference to ``reference_hu``, and above that its standard deviation in ``part``, an
    index into the images; ``where`` says in words what the part is.
    """
    import ipywidgets as w

    doses = sorted(scans_hu)
    options = [(f"{dose:.3g}", dose) for dose in doses]
    controls = {"dose": w.SelectionSlider(options=options, value=doses[-1], description="dose")}

    def figure():
        chosen = sorted({doses[0], doses[len(doses) // 2], doses[-1]}, reverse=True)
        return rows({f"dose {dose:.3g}": scans_hu[dose] for dose in chosen}, window=window)

    def heads(dose: float) -> list[str]:
        noise = float((scans_hu[dose] - reference_hu)[part].std())
        two = f"{dose:.3g} of full dose", f"its noise, {noise:.0f} HU {where}"
        return [f"{text} &emsp; {hu_bar(w)}" for text, w in zip(two, (window, Window(0, window.width)), strict=True)]

    return panel(controls, lambda dose: render_dose(scans_hu, dose, window, reference_hu), figure, heads=heads)


def panel(
    controls: dict[str, Any],
    render: Callable[..., np.ndarray],
    figure: Callable[[], Any],
    *,
    heads: Callable[..., Sequence[str]] | None = None,
) -> Panel:
    """Redraw the image from all controls whenever one changes.

    heads : the controls' values → a title, as HTML, for each of the images that stand side by side
    """
    import ipywidgets as w

    def values() -> dict[str, Any]:
        return {name: control.value for name, control in controls.items()}

    first = render(**values())
    height, width = first.shape[:2]
    scale = SIZE_PX * (2 if width > 1.5 * height else 1) / max(height, width)
    width_px = f"{round(width * scale)}px"
    layout = w.Layout(width=width_px, max_width="100%", object_fit="contain")
    image, head = w.Image(value=array_png(first), format="png", layout=layout), w.HTML()
    if scale > 1:
        image.add_class("ldct-pixels")

    def write_head() -> None:
        cells = "".join(f'<div style="flex: 1">{text}</div>' for text in (heads(**values()) if heads else ()))
        head.value = f'{PIXELS}<div style="display: flex; width: {width_px}">{cells}</div>'

    def redraw(_change: Any) -> None:
        image.value = array_png(render(**values()))
        write_head()

    write_head()
    for control in controls.values():
        control.layout = w.Layout(width="460px")
        control.observe(redraw, names="value")
    return Panel(controls, image, w.VBox([*controls.values(), head, image]), figure)
