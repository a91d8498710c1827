"""What a diffusion network learns: the forward process, its three equivalent targets, their weighted loss.

    x_t = √ᾱ_t x0 + √(1 − ᾱ_t) eps                  (DDPM Eq. 4)
    v   = √ᾱ_t eps − √(1 − ᾱ_t) x0                  (Salimans & Ho 2022, §4)

(x_t, v) is (x0, eps) turned by an angle, so with x_t any one of x0, eps and v gives the other two.
Images, latents and noise have one shape (B, …); t is an int or int64 (B,), from 1 … T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldctlib.diffusion.schedule import Schedule
from ldctlib.errors import ParameterError, ShapeError

Network = Callable[[Tensor, Tensor], Tensor]
"""network(x_t, t) with t int64 (B,); conditions are bound by closure."""

PREDICTIONS = ("eps", "x0", "v")


def noise_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise of x's shape, dtype and device, drawn on the generator's device.

    A CPU generator therefore gives the same noise wherever x lives.
    """
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


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


def noise_predictor(network: Network, schedule: Schedule, prediction: str = "eps") -> Network:
    """A network that predicts "eps", "x0" or "v" as the ``eps(x_t, t)`` that samplers take."""
    _check_prediction(prediction)

    def eps(x_t: Tensor, t: Tensor) -> Tensor:
        value = network(x_t, t)
        _check_shape(value, x_t)
        return eps_from(schedule, x_t, t, prediction, value.to(x_t.dtype))

    return eps


def centred(network: Network, schedule: Schedule, centre: Tensor, prediction: str) -> Network:
    """A network of the noised *difference* x0 - centre as one of x_t itself.

    x_t - √ᾱ_t centre is the difference noised by the same eps, so the diffusion is the same and only the network's
    task changes: it starts from "x0 is the centre" instead of from nothing. ``centre`` (B, …) is known, such as the
    degraded image (Whang et al. 2022 take a first estimate).
    """
    _check_prediction(prediction)

    def of_x_t(x_t: Tensor, t: Tensor) -> Tensor:
        signal, noise = schedule.scales(t, x_t)
        value = network(x_t - signal * centre, t)
        if prediction == "eps":
            return value
        return value + centre if prediction == "x0" else value - noise * centre

    return of_x_t


def sample_times(
    schedule: Schedule,
    batch: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    times: Sequence[int] | None = None,
) -> Tensor:
    """Training times, int64 (batch,), uniform over 1 … T, or over ``times``, as in Fast-DDPM.

    One random offset shifts an even grid (Kingma et al. 2021, VDM, App. I.1): every t is still uniform, but a
    batch covers all noise levels evenly, so its loss scatters less.
    """
    source = device if generator is None else generator.device
    levels = range(1, schedule.T + 1) if times is None else schedule.check_times(times)
    offset = torch.rand((), generator=generator, device=source)
    place = (offset + torch.arange(batch, device=source) / batch) % 1
    # rounding may lift a place just under 1 to 1
    index = (place * len(levels)).long().clamp(max=len(levels) - 1)
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
    if not min_snr > 0:
        raise ParameterError(f"min_snr is a positive number, usually 5, or None, got {min_snr}")
    snr = schedule.snr(t)
    # ‖eps − eps_hat‖² = SNR ‖x0 − x0_hat‖² and ‖v − v_hat‖² = (SNR + 1) ‖x0 − x0_hat‖²
    return snr.clamp(max=min_snr) / {"eps": snr, "x0": 1.0, "v": snr + 1}[prediction]


def denoising_loss(
    network: Network,
    x0: Tensor,
    schedule: Schedule,
    *,
    prediction: str = "eps",
    min_snr: float | None = None,
    times: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean weighted squared error of a prediction at random times (DDPM Eq. 14; MAN Eq. 7): a float32 scalar.

    Raises ShapeError when the network does not answer in x0's shape (a learned variance is extra channels).
    """
    t = sample_times(schedule, len(x0), generator=generator, device=x0.device, times=times)
    eps = noise_like(x0, generator)
    weight = loss_weight(schedule, t, prediction, min_snr)
    value = network(q_sample(schedule, x0, t, eps), t)
    _check_shape(value, x0)
    target = {"eps": eps, "x0": x0, "v": v_from(schedule, t, x0=x0, eps=eps)}[prediction]
    error = (value.float() - target.float()).square().flatten(1).mean(1)
    return (weight * error).mean()


def loss_fn(
    schedule: Schedule,
    bind: Callable[[nn.Module, Any, torch.Generator | None], tuple[Tensor, Network]] | None = None,
    *,
    prediction: str = "eps",
    min_snr: float | None = None,
    times: Sequence[int] | None = None,
) -> Callable[[nn.Module, Any, torch.Generator | None], Tensor]:
    """:func:`denoising_loss` as the ``loss(model, batch, generator, step)`` of :func:`ldctlib.training.train`.

    bind(model, batch, generator) -> (x0, network) takes x0 out of the batch and binds its conditions:

        bind = lambda model, batch, generator: (batch["z"], lambda z_t, t: model(z_t, t, batch["c"]))

    Without it the batch is x0 and the model itself is the network.
    """
    _check_prediction(prediction)

    def loss(model: nn.Module, batch: Any, generator: torch.Generator | None, step: int = 0) -> Tensor:
        x0, network = (batch, model) if bind is None else bind(model, batch, generator)
        return denoising_loss(
            network, x0, schedule, prediction=prediction, min_snr=min_snr, times=times, generator=generator
        )

    return loss


def _check_prediction(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise ParameterError(f"prediction is one of {PREDICTIONS}, got {prediction!r}")


def _check_shape(value: Tensor, x_t: Tensor) -> None:
    if value.shape != x_t.shape:
        raise ShapeError(
            f"the network answered x_t {tuple(x_t.shape)} with {tuple(value.shape)}; "
            "of one that also learns the variance pass on the first half of the channels"
        )
