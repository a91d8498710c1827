"""Every denoiser under one name and one signature.

    denoise = methods.load("nafnet")
    clean_hu = denoise(ldct_hu, noise=None, spacing_mm=(3.0, 0.74, 0.74), generator=None)

Images are float32 (B, 1, H, W) in HU, any H and W; the result has the input's shape and scale. A denoiser that uses
the noise estimates it from the image when none is given, and is deterministic given its generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from ldctlib.errors import ParameterError, check_options
from ldctlib.methods import diffusion, dip, dndp, filters, plug_and_play, regression
from ldctlib.methods.denoiser import Denoiser, LoadedMethod, Trained, residual_share

TRAINED_HERE = "trained here on phantoms and photographs"


@dataclass(frozen=True)
class Method:
    """A line of :func:`table`."""

    name: str
    title: str
    family: str  # "none", "filter", "regression", "autoencoder", "latent diffusion", "pixel diffusion", "optimisation"
    paper: str
    provenance: str  # where its weights or parameters come from
    evaluations: int  # of the network, an image; MAN's first estimate and autoencoder are not counted
    load: Callable[..., Denoiser | Trained]
    checkpoint: str = ""  # the shipped weights
    oracle: bool = False
    scale: str = "HU"


def load(name: str, *, device: str | torch.device = "cpu", **options) -> LoadedMethod:
    """The denoiser of a name, with its weights; ``options`` are its own (see its function).

    Trained denoisers also take ``residual_noise`` (0, a share, or "smooth", "balanced", "fine") and
    ``preserve_mean_px`` (12): see :func:`~ldctlib.methods.denoiser.blend`.
    """
    if name not in METHODS:
        raise ParameterError(f"no method is named {name!r}; there are {', '.join(METHODS)}")
    method, device = METHODS[name], torch.device(device)
    given = dict(options)
    blending: dict[str, float] = {}
    if method.family.endswith(("regression", "diffusion")):
        blending["residual_noise"] = residual_share(given.pop("residual_noise", 0.0))
        blending["preserve_mean_px"] = float(given.pop("preserve_mean_px", 12.0))
    check_options(f"method {name!r}", method.load, device=device, **given)
    loaded = method.load(device=device, **given)
    denoise, output = loaded if isinstance(loaded, Trained) else (loaded, None)
    blends = output == "truth" and "residual_noise" not in options  # a share that was asked for is all there is
    return LoadedMethod(name, denoise, scale=method.scale, oracle=method.oracle, blends=blends, **blending)


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
    """A number, True, False or None where the text is one, else the text."""
    if text in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def table():
    """All methods with family, paper, provenance and network evaluations, as a pandas DataFrame."""
    import pandas

    rows = [
        {k: getattr(m, k) for k in ("name", "title", "family", "paper", "provenance", "evaluations")}
        for m in METHODS.values()
    ]
    return pandas.DataFrame(rows).set_index("name")


def _trained(name: str, title: str, family: str, paper: str, evaluations: int, load: Callable, **options) -> Method:
    """A method whose weights ship under ``checkpoint``, its own name by default."""
    checkpoint = options.pop("checkpoint", name)
    return Method(
        name, title, family, paper, TRAINED_HERE, evaluations, partial(load, name=checkpoint, **options), checkpoint
    )


def _plug_and_play(name: str, title: str, paper: str, evaluations: int, **options) -> Method:
    """A method on the unconditional CT prior."""
    load, family = plug_and_play.denoise_with_prior, "plug-and-play diffusion"
    return _trained(name, title, family, paper, evaluations, load, checkpoint="prior_ct", **options)


def _losses(model: str, title: str, rows: dict[str, str]) -> list[Method]:
    """A denoiser of LEDA's tables: loss -> what the loss adds to the squared error."""
    return [
        _trained(f"{model}_{loss}", f"{title}, {added}", "regression", "Chen et al. 2024, LEDA", 1, regression.network)
        for loss, added in rows.items()
    ]


BM3D = "package bm3d; noise from the image"
LEDA_LOSSES = {"mse": "MSE", "perceptual": "MSE + perceptual", "leda": "MSE + LEDA"}
LEDA_PARTS = {
    "leda_c": "MSE + LEDA-C",
    "leda_d": "MSE + LEDA-D",
    "leda_vocabulary": "LEDA, no semantic loss",
    "leda_learned": "LEDA, learned codebook",
}
ADVERSARIAL = "adversarial regression"
ROUND_TRIP = ("autoencoder", "MAN, section 2.1", 1, diffusion.round_trip)
HONEST = {"temperature": 0.98}
"""With it MAN's draws differ about as much as they err (tests/experiments/draws.py)."""

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("ldct", "Low dose", "none", "-", "-", 0, filters.identity),
        Method("gaussian", "Gaussian, 0.8 px", "filter", "-", "fixed", 0, filters.gaussian),
        Method("nlm", "Non-local means", "filter", "Buades et al. 2005", "noise from the image", 0, filters.nlm),
        Method("bm3d", "BM3D with NPS", "filter", "Mäkinen et al. 2020", BM3D, 0, filters.bm3d),
        Method("bm3d_white", "BM3D", "filter", "Dabov et al. 2007", BM3D, 0, partial(filters.bm3d, spectrum=False)),
        Method("dip", "Deep image prior", "optimisation", "Ulyanov et al. 2018", "fitted to the image", 3000, dip.dip),
        _trained("redcnn", "RED-CNN", "regression", "Chen et al. 2017", 1, regression.network),
        _trained("nafnet", "NAFNet", "regression", "Chen et al. 2022", 1, regression.network),
        _trained("wgan_vgg", "WGAN-VGG", ADVERSARIAL, "Yang et al. 2018", 1, regression.network),
        _trained("dugan", "DU-GAN", ADVERSARIAL, "Huang et al. 2022", 1, regression.network),
        _trained("qae", "Q-AE", "regression", "Fan et al. 2020", 1, regression.network),
        *_losses("redcnn", "RED-CNN", LEDA_LOSSES | LEDA_PARTS),
        *_losses("esaunet", "ESAU-Net", LEDA_LOSSES),
        _trained("round_trip", "D(E(low dose))", *ROUND_TRIP, checkpoint="autoencoder_perceptual"),
        replace(
            _trained("round_trip_full", "D(E(full dose))", *ROUND_TRIP, checkpoint="autoencoder_perceptual"),
            oracle=True,
        ),
        _trained("man", "MAN, 30 steps", "latent diffusion", "Fang et al., MAN", 30, diffusion.sample, **HONEST),
        _trained(
            "man_fast", "MAN, one step", "latent diffusion", "MAN", 1, diffusion.sample, checkpoint="man", steps=1
        ),
        _trained("man_simple", "MAN, simple AE", "latent diffusion", "MAN, Table 2", 30, diffusion.sample, **HONEST),
        _trained("man_paper", "MAN as printed", "latent diffusion", "Fang et al., MAN", 30, diffusion.sample, side=256),
        _trained("ddpm", "Pixel DDPM, 30 DDIM steps", "pixel diffusion", "Ho et al. 2020", 30, diffusion.sample),
        _trained("fast_ddpm", "Fast-DDPM, 10 steps", "pixel diffusion", "Jiang et al. 2024", 10, diffusion.sample),
        _plug_and_play("ddnm", "DDNM+ with NPS, 20 steps", "Wang et al. 2023", 20),
        _plug_and_play("ddnm_white", "DDNM+ white, 20 steps", "plug-and-play DDNM", 20, spectrum=False),
        _plug_and_play("dps", "DPS, 1000 steps", "Chung et al. 2023", 1000, sampler="dps", start=1000, steps=1000),
        _plug_and_play("ilvr", "ILVR, 100 steps", "Choi et al. 2021", 100, sampler="ilvr", steps=100),
        _trained("dndp", "Dn-Dp", "pixel diffusion", "Liu et al. 2023", 610, dndp.dndp, checkpoint="dndp_high"),
    )
}
