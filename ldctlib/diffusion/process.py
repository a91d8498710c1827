"""The forward process, what a network predicts of it, and the loss that it is trained with.

    x_t = √ᾱ_t x0 + √(1 − ᾱ_t) eps                  (DDPM Eq. 4)
    v   = √ᾱ_t eps − √(1 − ᾱ_t) x0                  (Salimans & Ho 2022, §4)

(x_t, v) is (x0, eps) turned by an angle, so with x_t any one of x0, eps and v gives the other two.
Images, latents and noise have one shape (B, …); t is an int or int64 (B,), from 1 … T.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ldctlib.diffusion import schedule as schedules
from ldctlib.diffusion.schedule import Schedule
from ldctlib.errors import ParameterError, ShapeError

Network = Callable[[Tensor, Tensor], Tensor]
"""network(x_t, t) with t int64 (B,), or a noise level, float32 (B,); conditions are bound by closure."""

Generators = torch.Generator | Sequence[torch.Generator] | None
"""One generator for a batch, or one for each of its images."""

PREDICTIONS = ("eps", "x0", "v")

LEVEL_SCALE = 5000.0
"""Factor on √ᾱ_t where a network is told the noise level (Chen et al. 2021, WaveGrad, whose idea SR3 takes up): the
sinusoidal embedding of times then tells apart levels that differ by 1e-4."""


def noise_like(x: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal noise of x's shape, dtype and device, drawn on the generator's device.

    A CPU generator therefore gives the same noise wherever x lives. With one generator for each image, an image's
    noise does not depend on the batch that it is in.
    """
    if isinstance(generator, Sequence):
        if len(generator) != len(x):
            raise ParameterError(f"{len(x)} images need as many generators, got {len(generator)}")
        return torch.cat([noise_like(x[i : i + 1], g) for i, g in enumerate(generator)])
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def image_generators(generator: torch.Generator | None, count: int) -> list[torch.Generator]:
    """A generator for each of ``count`` images, so that no image depends on how many come with it.

    The first draws from ``generator`` itself (seed 0 without one), image k from a stream that follows from the
    generator's state and k.
    """
    root = torch.Generator().manual_seed(0) if generator is None else generator
    state = hashlib.sha256(root.get_state().numpy().tobytes())
    streams = [root]
    for k in range(1, count):
        own = state.copy()
        own.update(k.to_bytes(8, "big"))
        streams.append(torch.Generator(root.device).manual_seed(int.from_bytes(own.digest()[:8], "big") >> 1))
    return streams[:count]


def q_sample(schedule: Schedule, x0: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
    """x0 noised to time t (DDPM Eq. 4)."""
    signal, noise = schedule.scales(t, x0)
    return signal * x0 + noise * eps


def v_from(schedule: Schedule, t: int | Tensor, *, x0: Tensor, eps: Tensor) -> Tensor:
    """The velocity of (x0, eps)."""
    signal, noise = schedule.scales(t, x0)
    return signal * eps - noise * x0


def x0_from(schedule: Schedule, x_t: Tensor, t: int | Tensor, prediction: str, value: Tensor) -> Tensor:
    """x0 from x_t and the ``value`` of one ``prediction``: "eps", "x0" or "v"."""
    _check_prediction(prediction)
    signal, noise = schedule.scales(t, x_t)
    if prediction == "eps":
        return (x_t - noise * value) / signal
    return value if prediction == "x0" else signal * x_t - noise * value


def eps_from(schedule: Schedule, x_t: Tensor, t: int | Tensor, prediction: str, value: Tensor) -> Tensor:
    """eps from x_t and the ``value`` of one ``prediction``: "eps", "x0" or "v"."""
    _check_prediction(prediction)
    signal, noise = schedule.scales(t, x_t)
    if prediction == "x0":
        return (x_t - signal * value) / noise
    return value if prediction == "eps" else signal * value + noise * x_t


@dataclass(frozen=True)
class Process:
    """A diffusion and the task of its network: which noise levels, which target, of x0 or of what separates it from
    an estimate.

    prediction : "eps", "x0" or "v".
    residual : the network sees and predicts the noised *difference* x0 - estimate. x_t - √ᾱ_t estimate is that
        difference noised by the same eps, so the diffusion is the same and the network starts from "x0 is the
        estimate" instead of from nothing (Whang et al. 2022).
    residual_std : unit of the noise, in x0's: about the standard deviation of x0, or of the difference (edm2's
        sigma_data). The chain runs on x0 / residual_std; :meth:`to_chain` and :meth:`from_chain` convert.
    times : the times that the network is trained at, all of 1 … T by default (Fast-DDPM has ten).
    time_power : training times are drawn as T u^time_power with u uniform. 1 is the papers'; above, small times come
        more often, where a denoiser's chain starts.
    level_input : the network is told the noise level, :data:`LEVEL_SCALE` √ᾱ_t, in place of the time (SR3).
    min_snr : γ of min-SNR-γ weights (Hang et al. 2023), or None for DDPM's simple loss (Eq. 14).
    """

    schedule: Schedule
    prediction: str = "eps"
    residual: bool = False
    residual_std: float = 1.0
    times: tuple[int, ...] | None = None
    min_snr: float | None = None
    time_power: float = 1.0
    level_input: bool = False

    def __post_init__(self):
        _check_prediction(self.prediction)
        if not self.residual_std > 0:
            raise ParameterError(f"residual_std must be positive, got {self.residual_std}")
        if self.min_snr is not None and not self.min_snr > 0:
            raise ParameterError(f"min_snr is a positive number, usually 5, or None, got {self.min_snr}")
        if not self.time_power > 0:
            raise ParameterError(f"time_power is positive, 1 for uniform times, got {self.time_power}")
        if self.times is not None:
            object.__setattr__(self, "times", self.schedule.check_times(self.times))

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Process:
        """The process that :meth:`to_spec` described, as recipes and checkpoints write it."""
        options = dict(spec)
        try:
            plan = schedules.named(options.pop("schedule"), options.pop("T", None))
            return cls(plan, **options)
        except (KeyError, TypeError) as error:
            raise ParameterError(f"{dict(spec)} describes no diffusion process: {error}") from error

    def to_spec(self) -> dict[str, Any]:
        """The process as plain JSON: the schedule by name and length, and what is not a default."""
        spec: dict[str, Any] = {"schedule": self.schedule.name, "T": self.schedule.T, "prediction": self.prediction}
        for f in fields(self)[2:]:
            if (value := getattr(self, f.name)) != f.default:
                spec[f.name] = list(value) if isinstance(value, tuple) else value
        return spec

    def to_chain(self, x: Tensor) -> Tensor:
        """x0, or an estimate of it, in the unit of the chain."""
        return x if self.residual_std == 1 else x / self.residual_std

    def from_chain(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`to_chain`."""
        return x if self.residual_std == 1 else x * self.residual_std

    def loss(self, network: Network, x0: Tensor, estimate: Tensor | None = None, *, generator=None) -> Tensor:
        """Mean weighted squared error of the prediction at random times (DDPM Eq. 14; MAN Eq. 7): a float32 scalar.

        x0, estimate : (B, …), the estimate with ``residual`` only. Raises ShapeError when the network does not answer
        in x0's shape (a learned variance is extra channels).
        """
        network, x0 = self._of_x_t(network, estimate), self.to_chain(x0)
        options = dict(generator=generator, device=x0.device, times=self.times, power=self.time_power)
        t = sample_times(self.schedule, len(x0), **options)
        eps = noise_like(x0, generator)
        weight = loss_weight(self.schedule, t, self.prediction, self.min_snr)
        value = network(q_sample(self.schedule, x0, t, eps), t)
        _check_shape(value, x0)
        target = {"eps": eps, "x0": x0}.get(self.prediction)
        target = v_from(self.schedule, t, x0=x0, eps=eps) if target is None else target
        error = (value.float() - target.float()).square().flatten(1).mean(1)
        return (weight * error).mean()

    def predictor(self, network: Network, estimate: Tensor | None = None) -> Network:
        """The network as the noise predictor ``eps(x_t, t)`` of samplers; x_t is in the unit of the chain."""
        of_x_t = self._of_x_t(network, estimate)

        def eps(x_t: Tensor, t: Tensor) -> Tensor:
            value = of_x_t(x_t, t)
            _check_shape(value, x_t)
            return eps_from(self.schedule, x_t, t, self.prediction, value.to(x_t.dtype))

        return eps

    def _of_x_t(self, network: Network, estimate: Tensor | None) -> Network:
        """The network as one of x_t and t, where it is told the level or sees the difference from the estimate."""
        if self.residual != (estimate is not None):
            raise ParameterError("a residual process takes an estimate, any other takes none")

        def told(x_t: Tensor, t: Tensor) -> Tensor:
            return network(x_t, LEVEL_SCALE * self.schedule.scales(t, t.float())[0] if self.level_input else t)

        if estimate is None:
            return told
        estimate = self.to_chain(estimate)

        def of_x_t(x_t: Tensor, t: Tensor) -> Tensor:
            signal, noise = self.schedule.scales(t, x_t)
            value = told(x_t - signal * estimate, t)
            if self.prediction == "eps":
                return value
            return value + estimate if self.prediction == "x0" else value - noise * estimate

        return of_x_t


def sample_times(
    schedule: Schedule,
    batch: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    times: Iterable[int] | None = None,
    power: float = 1.0,
) -> Tensor:
    """Training times, int64 (batch,), uniform over 1 … T, or over ``times``, as in Fast-DDPM.

    ``power`` above 1 draws the first of them more often: T u^power with u uniform.

    One random offset shifts an even grid (Kingma et al. 2021, VDM, App. I.1): every t is still uniform, but a
    batch covers all noise levels evenly, so its loss scatters less.
    """
    source = device if generator is None else generator.device
    levels = range(1, schedule.T + 1) if times is None else schedule.check_times(times)
    offset = torch.rand((), generator=generator, device=source)
    place = (offset + torch.arange(batch, device=source) / batch) % 1
    # rounding may lift a place just under 1 to 1
    index = (place**power * len(levels)).long().clamp(max=len(levels) - 1)
    t = index + 1 if times is None else torch.tensor(levels, device=source)[index]
    return t if device is None else t.to(device)


def loss_weight(schedule: Schedule, t: Tensor, prediction: str, min_snr: float | None) -> Tensor:
    """Weight of each sample's squared error, float32 (B,).

    None is 1: for "eps" DDPM's simple loss (Eq. 14). A number γ is min-SNR-γ (Hang et al. 2023, §3.4; they
    take 5): the squared error of x0 weighted by min(SNR, γ), whichever of the three is predicted.
    """
    _check_prediction(prediction)
    if min_snr is None:
        return torch.ones(t.shape, device=t.device)
    snr = schedule.snr(t)
    # ‖eps − eps_hat‖² = SNR ‖x0 − x0_hat‖² and ‖v − v_hat‖² = (SNR + 1) ‖x0 − x0_hat‖²
    return snr.clamp(max=min_snr) / {"eps": snr, "x0": 1.0, "v": snr + 1}[prediction]


def _check_prediction(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise ParameterError(f"prediction is one of {PREDICTIONS}, got {prediction!r}")


def _check_shape(value: Tensor, x_t: Tensor) -> None:
    if value.shape != x_t.shape:
        raise ShapeError(
            f"the network answered x_t {tuple(x_t.shape)} with {tuple(value.shape)}; "
            "of one that also learns the variance pass on the first half of the channels"
        )
