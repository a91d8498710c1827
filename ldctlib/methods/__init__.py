"""Every denoiser under one name and one signature.

    denoise = methods.load("nafnet")
    clean_hu = denoise(ldct_hu, noise=None, spacing_mm=(3.0, 0.74, 0.74), generator=None)

Images are float32 (B, 1, H, W) in HU, any H and W; the result has the input's shape and scale. A denoiser that uses
the noise estimates it from the image when none is given, and is deterministic given its generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.methods import diffusion, filters, regression
from ldctlib.methods.denoiser import Denoiser

__all__ = ["METHODS", "Denoiser", "Method", "from_spec", "load", "table"]


TRAINED_HERE = "trained here on phantoms and photographs"


@dataclass(frozen=True)
class Method:
    """A line of :func:`table`."""

    name: str
    title: str
    family: str  # "none", "filter", "regression", "autoencoder", "latent diffusion", "pixel diffusion"
    paper: str
    provenance: str  # where its weights or parameters come from
    evaluations: int  # of the network, an image; MAN's first estimate and autoencoder are not counted
    load: Callable[..., Denoiser]
    checkpoint: str = ""  # the shipped weights
    sees_full_dose: bool = False  # given the full-dose scan: no denoiser, a bound that shows what a part costs


def load(name: str, *, device: str | torch.device = "cpu", **options) -> Denoiser:
    """The denoiser of a name, with its weights; ``options`` are its own (see its function)."""
    if name not in METHODS:
        raise ParameterError(f"no method is named {name!r}; there are {', '.join(METHODS)}")
    try:
        denoise = METHODS[name].load(device=torch.device(device), **options)
    except TypeError as error:
        raise ParameterError(f"method {name!r} does not take these options: {error}") from error

    def checked(ldct: Tensor, *, noise=None, spacing_mm=None, generator=None) -> Tensor:
        if not isinstance(ldct, Tensor) or ldct.dim() != 4 or ldct.shape[1] != 1 or not ldct.is_floating_point():
            what = f"{ldct.dtype} {tuple(ldct.shape)}" if isinstance(ldct, Tensor) else type(ldct).__name__
            raise ShapeError(f"a denoiser takes a floating-point tensor (B, 1, H, W) in HU, got {what}")
        if not torch.isfinite(ldct).all():
            raise ParameterError("the image has values that are not finite: replace them (air is -1000 HU) first")
        with torch.inference_mode():
            out = denoise(ldct.float(), noise=noise, spacing_mm=spacing_mm, generator=generator)
        return out.clone()  # an ordinary tensor, that autograd may use

    checked.__name__ = name
    checked.sees_full_dose = METHODS[name].sees_full_dose
    return checked


def from_spec(spec: str, *, device: str | torch.device = "cpu") -> Denoiser:
    """:func:`load` from one word, for command lines: ``man`` or ``man:steps=10;sampler=ddpm``."""
    name, _, rest = spec.partition(":")
    options = {}
    for part in filter(None, rest.split(";")):
        key, equals, text = part.partition("=")
        if not equals:
            raise ParameterError(f"{spec!r}: write options as name:key=value;key=value")
        options[key] = _value(text)
    return load(name, device=device, **options)


def _value(text: str):
    """A number or None where the text is one, else the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return None if text == "None" else text


def table():
    """All methods with family, paper, provenance and network evaluations, as a pandas DataFrame."""
    import pandas

    rows = [
        {k: getattr(m, k) for k in ("name", "title", "family", "paper", "provenance", "evaluations")}
        for m in METHODS.values()
    ]
    return pandas.DataFrame(rows).set_index("name")


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("ldct", "Low dose", "none", "-", "-", 0, filters.identity),
        Method("gaussian", "Gaussian, 0.8 px", "filter", "-", "fixed", 0, filters.gaussian),
        Method(
            "nlm",
            "Non-local means",
            "filter",
            "Buades et al. 2005",
            "scikit-image; noise from the image",
            0,
            filters.nlm,
        ),
        Method(
            "bm3d",
            "BM3D with NPS",
            "filter",
            "Dabov et al. 2007; Mäkinen et al. 2020",
            "package bm3d; noise from the image",
            0,
            filters.bm3d,
        ),
        Method(
            "bm3d_white",
            "BM3D, one sigma",
            "filter",
            "Dabov et al. 2007",
            "package bm3d; noise from the image",
            0,
            partial(filters.bm3d, spectrum=False),
        ),
        Method(
            "redcnn",
            "RED-CNN",
            "regression",
            "Chen et al. 2017",
            TRAINED_HERE,
            1,
            partial(regression.network, name="redcnn"),
            "redcnn",
        ),
        Method(
            "nafnet",
            "NAFNet",
            "regression",
            "Chen et al. 2022",
            TRAINED_HERE,
            1,
            partial(regression.network, name="nafnet"),
            "nafnet",
        ),
        Method(
            "round_trip",
            "D(E(low dose))",
            "autoencoder",
            "MAN, section 2.1",
            TRAINED_HERE,
            1,
            diffusion.round_trip,
            "autoencoder_perceptual",
        ),
        Method(
            "round_trip_full",
            "D(E(full dose)): MAN's ceiling",
            "autoencoder",
            "MAN, section 2.1",
            TRAINED_HERE,
            1,
            diffusion.round_trip,
            "autoencoder_perceptual",
            sees_full_dose=True,
        ),
        Method("man", "MAN, 30 steps", "latent diffusion", "Fang et al., MAN", TRAINED_HERE, 30, diffusion.man, "man"),
        Method(
            "man_fast",
            "MAN, one step",
            "latent diffusion",
            "Fang et al., MAN",
            TRAINED_HERE,
            1,
            partial(diffusion.man, steps=1),
            "man",
        ),
        Method(
            "man_simple",
            "MAN on the simple autoencoder",
            "latent diffusion",
            "Fang et al., MAN, Table 2",
            TRAINED_HERE,
            30,
            partial(diffusion.man, name="man_simple"),
            "man_simple",
        ),
        Method(
            "ddpm",
            "Pixel DDPM, 30 DDIM steps",
            "pixel diffusion",
            "Ho et al. 2020; Saharia et al. 2021",
            TRAINED_HERE,
            30,
            diffusion.ddpm,
            "ddpm",
        ),
    )
}
