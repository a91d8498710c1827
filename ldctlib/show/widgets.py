"""Interactive views: a pure ``render_*`` function, a thin ipywidgets shell around it, and a static figure.

The render functions return uint8 arrays, (H, W) grey or (H, W, 3) colour; the shells send them as PNG bytes,
which redraws faster than a matplotlib figure would. ``panel.figure()`` is for a reader without a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.show.figures import plane, rows
from ldctlib.show.png import array_png
from ldctlib.units import SOFT_TISSUE, Window

SIZE_PX = 512  # the longer side on screen
WIPE_COLOUR = (230, 159, 0)


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


def slice_viewer(volume_hu: Any, *, window: Window = SOFT_TISSUE) -> Panel:
    """Scroll through a volume (D, H, W) or (D, 1, H, W) in HU, with level and width."""
    import ipywidgets as w

    depth = len(volume_hu)
    controls = {
        "slice": w.IntSlider(depth // 2, min=0, max=depth - 1, description="slice"),
        "level": w.IntSlider(round(window.level), min=-1000, max=1500, step=5, description="level (HU)"),
        "width": w.IntSlider(round(window.width), min=10, max=3000, step=10, description="width (HU)"),
    }

    def render(slice: int, level: int, width: int) -> np.ndarray:
        return render_slice(volume_hu, slice, Window(level, width))

    def figure():
        chosen = sorted({depth // 4, depth // 2, 3 * depth // 4})
        return rows({f"slice {i}": volume_hu[i] for i in chosen}, window=window)

    return panel(controls, render, figure)


def wipe(before_hu: Any, after_hu: Any, *, window: Window = SOFT_TISSUE, names=("before", "after")) -> Panel:
    """A slider moves a line across two images of the same slice, in HU: left of it the first, right the second."""
    import ipywidgets as w

    look = dict(description=f"{names[0]} | {names[1]}", readout_format=".0%", style={"description_width": "initial"})
    controls = {"fraction": w.FloatSlider(0.5, min=0.0, max=1.0, step=0.01, **look)}
    images = {names[0]: before_hu, names[1]: after_hu}

    def render(fraction: float) -> np.ndarray:
        return render_wipe(before_hu, after_hu, fraction, window)

    return panel(controls, render, lambda: rows(images, window=window))


def dose_slider(scans_hu: Mapping[float, Any], reference_hu: Any, *, window: Window = SOFT_TISSUE) -> Panel:
    """One slice at several doses, scanned beforehand: dose (a fraction of full) → image in HU.

    Right of it is its noise, the difference to ``reference_hu``.
    """
    import ipywidgets as w

    doses = sorted(scans_hu)
    options = [(f"{dose:.3g}", dose) for dose in doses]
    controls = {"dose": w.SelectionSlider(options=options, value=doses[-1], description="dose")}

    def figure():
        chosen = sorted({doses[0], doses[len(doses) // 2], doses[-1]}, reverse=True)
        return rows({f"dose {dose:.3g}": scans_hu[dose] for dose in chosen}, window=window)

    return panel(controls, lambda dose: render_dose(scans_hu, dose, window, reference_hu), figure)


def panel(controls: dict[str, Any], render: Callable[..., np.ndarray], figure: Callable[[], Any]) -> Panel:
    """Redraw the image from all controls whenever one changes."""
    import ipywidgets as w

    first = render(**{name: control.value for name, control in controls.items()})
    height, width = first.shape[:2]
    scale = SIZE_PX * (2 if width > 1.5 * height else 1) / max(height, width)
    layout = w.Layout(width=f"{round(width * scale)}px", max_width="100%", object_fit="contain")
    image = w.Image(value=array_png(first), format="png", layout=layout)

    def redraw(_change: Any) -> None:
        image.value = array_png(render(**{name: control.value for name, control in controls.items()}))

    for control in controls.values():
        control.layout = w.Layout(width="460px")
        control.observe(redraw, names="value")
    image.add_class("ldct-pixels")  # a browser smooths what it enlarges, which would be a denoiser
    look = w.HTML("<style>.ldct-pixels {image-rendering: pixelated}</style>" if scale > 1 else "")
    return Panel(controls, image, w.VBox([*controls.values(), image, look]), figure)
