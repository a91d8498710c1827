"""Conditional diffusion as a denoiser: MAN in the latent space of its autoencoder, a DDPM on pixels.

Both are a :class:`Conditional`: a condition and a starting point from the low-dose image, a noise predictor bound to
it, any sampler of :mod:`ldctlib.diffusion.samplers`, and a way back to HU.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ldctlib import checkpoints
from ldctlib.checkpoints import Checkpoint
from ldctlib.diffusion import samplers, schedule
from ldctlib.diffusion.process import centred, noise_like, noise_predictor, q_sample
from ldctlib.errors import CheckpointError, ParameterError
from ldctlib.image import fit
from ldctlib.methods.denoiser import Denoiser, give_back, keep_share
from ldctlib.methods.regression import one_pass
from ldctlib.models.conditioned_unet import conditions

SAMPLERS = {"ddim": samplers.ddim, "ddpm": samplers.ddpm, "dpm_solver_pp_2m": samplers.dpm_solver_pp_2m}

CONDITIONS = ("simulated", "paired", "start")


class Condition(NamedTuple):
    """What a model is told of the low-dose image."""

    centre: Tensor  # on the model's grid, in its units: where a centred network starts from
    given: dict[str, Tensor]  # the network's own arguments


class Conditional:
    """A diffusion model of clean images (or their codes) given a low-dose image.

    The grid is the model's own: pixels here, latents in :class:`Latent`, both in units of the checkpoint's ``spread``,
    in which what separates them from the condition is about 1. Everything is on ``device``.
    """

    def __init__(self, path: str | Path, device: torch.device):
        self.checkpoint = checkpoints.load(path, map_location=device)
        described = self.checkpoint.schedule
        if described is None:
            raise CheckpointError(f"{self.checkpoint.path}: records no noise schedule: it is no diffusion model")
        self.device = device
        self.unet = checkpoints.build(self.checkpoint, map_location=device).to(memory_format=torch.channels_last)
        self.schedule = schedule.named(described["name"], described["T"])
        self.prediction = described["prediction"]
        self.centred, self.spread = bool(described.get("centred")), float(described.get("spread", 1.0))

    def encode(self, ldct_hu: Tensor) -> Tensor:
        """(B, 1, H, W) in HU -> condition on the model's grid, padded to what the U-Net takes."""
        x = ldct_hu.to(self.device)
        return fit(self.checkpoint.range.to_model(x), self.unet.factor) / self.spread

    def decode(self, x0: Tensor, size: tuple[int, int]) -> Tensor:
        """The model's grid -> (B, 1, *size) in HU."""
        return self.checkpoint.range.from_model(x0 * self.spread)[..., : size[0], : size[1]]

    def condition(self, ldct_hu: Tensor) -> Condition:
        """What the network is told, computed once for all steps."""
        centre = self.encode(ldct_hu)
        return Condition(centre, conditions(self.unet, centre * self.spread, centre * self.spread))

    def predictor(self, condition: Condition):
        """eps(x_t, t) with the condition bound."""

        def network(x_t, t):
            return self.unet(x_t, t, **condition.given)

        if self.centred:
            network = centred(network, self.schedule, condition.centre, self.prediction)
        return noise_predictor(network, self.schedule, self.prediction)

    def steps(
        self,
        ldct_hu: Tensor | Condition,
        *,
        sampler: str = "ddim",
        steps: int = 30,
        start: int | None = None,
        spacing: str = "trailing",
        draws: int = 1,
        generator: torch.Generator | None = None,
        **options,
    ) -> Iterator[samplers.Step]:
        """The sampler's steps on the model's grid, for looking at; ``options`` go to the sampler.

        ldct_hu : the image, or its :meth:`condition` where it was made before.
        start : the noisiest time. Below T the chain starts from the noised centre of the condition; None starts from
            pure noise at T.
        draws : of each image at once, one after another along the batch; its condition is made once.
        """
        told = ldct_hu if isinstance(ldct_hu, Condition) else self.condition(ldct_hu)
        if draws > 1:
            given = {name: x.repeat_interleave(draws, dim=0) for name, x in told.given.items()}
            told = Condition(told.centre.repeat_interleave(draws, dim=0), given)
        times = self.schedule.times(steps, spacing, start=start)
        x_t = noise_like(told.centre, generator)
        if start not in (None, self.schedule.T):
            x_t = q_sample(self.schedule, told.centre, times[0], x_t)
        eps = self.predictor(told)
        if sampler == "ddpm" or options.get("eta"):
            options["generator"] = generator
        yield from SAMPLERS[sampler](eps, x_t, self.schedule, times, **options)


class Latent(Conditional):
    """The same in the scaled latents of an autoencoder, which the checkpoint names by its hash.

    Where it names a regression network too, the code of that one's output is the condition's centre.
    """

    def __init__(self, path: str | Path, device: torch.device, autoencoder: str | Path | None = None):
        super().__init__(path, device)
        used = [
            self._used(name, sha256, autoencoder if name.startswith("autoencoder") else None)
            for name, sha256 in self.checkpoint.trained_on.get("uses", {}).items()
        ]
        own = next((c for c in used if c.model == "autoencoder"), None)
        if own is None:
            raise CheckpointError(f"{self.checkpoint.path}: names no autoencoder: it is no latent diffusion model")
        first = next((c for c in used if c is not own), None)
        self.range, self.autoencoder = own.range, self._built(own)
        self.estimator = None if first is None else self._built(first)
        self.estimator_range = None if first is None else first.range

    def _used(self, name: str, sha256: str, given: str | Path | None) -> Checkpoint:
        """A checkpoint that this one was trained on, by its hash: the given one, or that beside it, or the shipped."""
        tried = []
        for path in self._places(name, given):
            own = checkpoints.load(path, map_location=self.device)
            if own.sha256 == sha256:
                return own
            tried.append(str(path))
        what = "autoencoder" if own.model == "autoencoder" else name
        why = "its latents mean something else" if what == "autoencoder" else "it was told something else"
        raise CheckpointError(
            f"{self.checkpoint.path}: was trained on another {what} than {' and '.join(tried)}: {why}. Put the one "
            f"with the hash {sha256[:12]}… beside it as {name}.safetensors, or train it again"
        )

    def _places(self, name: str, given: str | Path | None) -> Iterator[Path]:
        """Where a checkpoint may lie; what ships is looked for last, and only if asked for."""
        beside = self.checkpoint.path.with_name(f"{name}.safetensors")
        if given or beside.is_file():
            yield Path(given or beside)
        if given:
            return
        try:
            shipped = checkpoints.shipped(name)
        except CheckpointError:
            if beside.is_file():
                return
            raise
        if shipped != beside:
            yield shipped

    def _built(self, checkpoint: Checkpoint):
        return checkpoints.build(checkpoint, map_location=self.device).to(memory_format=torch.channels_last)

    def estimate(self, ldct_hu: Tensor) -> Tensor:
        """The regression network's estimate of the noise-free image, (B, 1, H, W) in HU; the image itself without."""
        x = ldct_hu.to(self.device)
        if self.estimator is None:
            return x
        # a slice at a time: pixels take far more memory than latents
        return torch.cat([one_pass(self.estimator, self.estimator_range, v) for v in x.split(1)])

    def encode(self, ldct_hu: Tensor) -> Tensor:
        x = self.range.to_model(ldct_hu.to(self.device))
        padded = fit(x, self.autoencoder.factor * self.unet.factor)
        return self.autoencoder.scale(self.autoencoder.encode(padded).mean) / self.spread

    def condition(self, ldct_hu: Tensor) -> Condition:
        code = self.encode(ldct_hu)
        centre = code if self.estimator is None else self.encode(self.estimate(ldct_hu))
        return Condition(centre, conditions(self.unet, code * self.spread, centre * self.spread))

    def decode(self, x0: Tensor, size: tuple[int, int]) -> Tensor:
        return self.range.from_model(self.autoencoder.decode(self.autoencoder.unscale(x0 * self.spread), size))


def _denoiser(
    model: Conditional,
    *,
    sampler: str,
    steps: int,
    start: int | None,
    spacing: str,
    keep: float | None,
    mean_px: float,
    samples: int,
    batch: int,
    options: dict,
) -> Denoiser:
    if sampler not in SAMPLERS:
        raise ParameterError(f"sampler is one of {', '.join(SAMPLERS)}; got {sampler!r}")
    if samples < 1 or batch < 1:
        raise ParameterError(f"samples and batch are at least 1, got {samples} and {batch}")
    # both raise now, not at the first image
    signature(SAMPLERS[sampler]).bind(None, None, None, (), **options)
    model.schedule.times(steps, spacing, start=start)
    share = keep_share(keep, model.checkpoint)

    def denoise(ldct, *, noise, spacing_mm, generator):
        # a denoiser is deterministic given its generator, and given none it is deterministic too
        generator = generator or torch.Generator().manual_seed(0)
        out = []
        for x in ldct.split(batch):
            told = model.condition(x)
            drawn = [
                samplers.final(
                    model.steps(
                        told, sampler=sampler, steps=steps, start=start, spacing=spacing, generator=generator, **options
                    )
                )
                for _ in range(samples)
            ]
            clean = torch.stack([model.decode(x0, tuple(x.shape[-2:])) for x0 in drawn]).mean(0)
            out.append(give_back(x, clean.to(x.device), share, mean_px))
        return torch.cat(out)

    return denoise


def man(
    *,
    device,
    name: str = "man",
    path=None,
    autoencoder=None,
    sampler: str = "ddim",
    steps: int = 30,
    start: int | None = None,
    spacing: str = "trailing",
    condition: str | None = None,
    keep: float | None = None,
    mean_px: float = 12.0,
    samples: int = 1,
    batch: int = 4,
    **options,
) -> Denoiser:
    """MAN: encode, sample the latent of the clean image given that of the low-dose image, decode.

    The shipped checkpoints are told, and start from, the code of a first estimate by a regression network as well:
    the paper leaves open how its condition is "derived from the input noisy image".

    sampler, steps, spacing : the paper's quick sampler is DDIM (Eq. 6) in 30 steps, here from pure noise at T.
    start : begin at this time from the noised centre instead: the code of the first estimate, or of the low-dose
        image where there is none.
    condition : what the checkpoint was trained for, which None takes: "simulated" or "paired", codes of the low-dose
        image, on simulated or real pairs; "start", no condition but the prior alone, from a noised code, as
        PET-diffusion starts (``start`` is 300 unless given).
    keep, mean_px : see :func:`~ldctlib.methods.denoiser.give_back`.
    samples : images drawn and averaged; one is the paper's.
    batch : slices at a time.
    options : go to the sampler, such as ``eta``.
    """
    model = Latent(path or checkpoints.shipped(name), device, autoencoder)
    trained_for = str(model.checkpoint.trained_on.get("condition", "simulated")).split(":")[0]
    condition = condition or trained_for
    if condition not in CONDITIONS:
        raise ParameterError(f"condition is one of {', '.join(CONDITIONS)}; got {condition!r}")
    if condition != trained_for:
        how = "man_start" if condition == "start" else "man --data FOLDER" if condition == "paired" else "man"
        raise ParameterError(
            f"{model.checkpoint.path} was trained for condition={trained_for!r}: for {condition!r} "
            f"train one (python -m ldctlib.recipes {how}) and give its path"
        )
    if condition == "start":
        start = 300 if start is None else start
        if start == model.schedule.T:
            raise ParameterError(f"condition='start' at T = {start} has nothing of the image left: start below T")
    return _denoiser(
        model,
        sampler=sampler,
        steps=steps,
        start=start,
        spacing=spacing,
        keep=keep,
        mean_px=mean_px,
        samples=samples,
        batch=batch,
        options=options,
    )


def ddpm(
    *,
    device,
    name: str = "ddpm",
    path=None,
    sampler: str = "ddim",
    steps: int = 30,
    start: int | None = None,
    spacing: str = "trailing",
    keep: float | None = None,
    mean_px: float = 12.0,
    samples: int = 1,
    batch: int = 1,
    **options,
) -> Denoiser:
    """A conditional DDPM on pixels; ``sampler="ddpm", steps=1000`` is the original. Options as of :func:`man`."""
    model = Conditional(path or checkpoints.shipped(name), device)
    return _denoiser(
        model,
        sampler=sampler,
        steps=steps,
        start=start,
        spacing=spacing,
        keep=keep,
        mean_px=mean_px,
        samples=samples,
        batch=batch,
        options=options,
    )


def round_trip(*, device, name: str = "autoencoder_perceptual", path=None, batch: int = 4) -> Denoiser:
    """D(E(x)), the posterior's mean decoded: what MAN's autoencoder alone does to an image."""
    checkpoint = checkpoints.load(path or checkpoints.shipped(name), map_location=device)
    model = checkpoints.build(checkpoint, map_location=device).to(memory_format=torch.channels_last)
    span = checkpoint.range

    def denoise(ldct, *, noise, spacing_mm, generator):
        return torch.cat(
            [span.from_model(model(span.to_model(x.to(device)))[0]).to(x.device) for x in ldct.split(batch)]
        )

    return denoise
