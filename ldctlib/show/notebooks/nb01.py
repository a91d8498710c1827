"""Notebook 01: the way of a scan, from the object to the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldctlib.show.diagrams import diagram

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
