"""Notebook 03: a sampler's steps, decoded, and a slider through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldctlib.errors import ParameterError
from ldctlib.show.figures import plane, strips
from ldctlib.show.widgets import WIPE_COLOUR, Panel, grey, panel
from ldctlib.units import SOFT_TISSUE, Window

BAR_PX = 4  # height of the scrubber's progress bar
STATIC_STEPS = 6  # columns of its static figure


class DecodedStep(NamedTuple):
    """A sampler's step as images in HU."""

    t: int
    x_t_hu: np.ndarray  # (H, W): where the chain stands
    x0_hat_hu: np.ndarray  # (H, W): the network's estimate there


def decode_steps(steps: Iterable[Any], decode: Callable[[Any], Any]) -> list[DecodedStep]:
    """A sampler's steps of one image, decoded: ``decode(x)`` maps the model's grid to (1, 1, H, W) in HU."""
    return [DecodedStep(int(s.t), plane(decode(s.x_t)), plane(decode(s.x0_hat))) for s in steps]


def render_step(steps: Sequence[DecodedStep], step: int, window: Window) -> np.ndarray:
    """Step ``step`` (0 is the first): the chain's state, the network's estimate right of it, a bar of progress.

    uint8 (H + 4, 2W, 3). Raises ParameterError for a step that was not taken.
    """
    if not 0 <= step < len(steps):
        raise ParameterError(f"step {step} was not taken: there are 0 … {len(steps) - 1}")
    both = np.concatenate([grey(steps[step].x_t_hu, window), grey(steps[step].x0_hat_hu, window)], axis=1)
    image = np.repeat(both[..., None], 3, axis=2)
    bar = np.full((BAR_PX, image.shape[1], 3), 40, dtype=np.uint8)
    bar[:, : round(image.shape[1] * (step + 1) / len(steps))] = WIPE_COLOUR
    return np.concatenate([image, bar])


def scrubber(steps: Sequence[DecodedStep], *, window: Window = SOFT_TISSUE) -> Panel:
    """Drag through a sampler's steps: left the chain's state, right the network's estimate."""
    import ipywidgets as w

    if not steps:
        raise ParameterError("a scrubber needs at least one step")
    options = [(f"{i + 1} of {len(steps)}, t = {decoded.t}", i) for i, decoded in enumerate(steps)]
    controls = {"step": w.SelectionSlider(options=options, value=len(steps) // 2, description="step")}

    def figure():
        chosen = sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(STATIC_STEPS, len(steps)))})
        return strips(
            {
                "decoded $z_t$": [steps[i].x_t_hu for i in chosen],
                r"decoded $\hat z_0$": [steps[i].x0_hat_hu for i in chosen],
            },
            [f"step {i + 1}, t = {steps[i].t}" for i in chosen],
            window=window,
        )

    return panel(controls, lambda step: render_step(steps, step, window), figure)
