"""Deep image prior (Ulyanov, Vedaldi & Lempitsky, CVPR 2018): an untrained network fitted to one measurement.

A network f that is fitted to y = A x + n from fixed noise z reaches images long before it reaches noise. So the fit is
ended early, and nothing but y is learned from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldctlib.ct.noise_model import NoiseModel
from ldctlib.diffusion.process import noise_like
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.methods.denoiser import Denoiser, in_batches, noise_of
from ldctlib.models.skip import SkipNetwork
from ldctlib.operators import Identity, Operator
from ldctlib.units import Range

SUPER_RESOLUTION = {4: dict(iterations=2000, input_noise=0.03), 8: dict(iterations=4000, input_noise=0.05)}
"""The published options of :func:`deep_image_prior` for x4 and x8, whose result is the last ``x``, not the average."""

STOPS = ("iterations", "discrepancy")


class DipStep(NamedTuple):
    """Where a fit stands; images are (1, 1, H, W) in the unit of ``image_range``."""

    i: int  # number of the iteration, from 0
    x: Tensor  # the network's image in this iteration
    x_average: Tensor  # its exponential moving average
    fit_psnr: float  # of A x against y in dB, the peak being y's extent
    residual_rms: float  # of A x - y, in y's units
    fell_back: bool  # this x was a bad step: the weights before it are put back, and the average leaves it out


def deep_image_prior(
    y: Tensor,
    operator: Operator,
    shape: tuple[int, int],
    *,
    image_range: Range,
    network: nn.Module | None = None,
    iterations: int = 3000,
    input_noise: float = 1 / 30,
    learning_rate: float = 0.01,
    ema: float = 0.99,
    backtrack_db: float | None = 5.0,
    generator: torch.Generator | None = None,
) -> Iterator[DipStep]:
    """Fit ‖A f(z) - y‖² over the weights of f (Eq. 2), one step an iteration: the caller draws, stops, counts.

    z is uniform in [0, 0.1]; Adam moves the weights. The defaults are the published ones for denoising;
    :data:`SUPER_RESOLUTION` has those for x4 and x8. Nothing is clipped.

    y : the measurement of one image, (1, …). Batch normalisation would couple the images of a batch.
    operator : of the measurement; only its ``A`` is used, which autograd must pass.
    shape : (H, W) of the image, any.
    image_range : the interval that f's sigmoid covers, in the unit that A takes. It must hold the image: what lies
        outside can't be reached.
    network : f, moved in place; by default a :class:`~ldctlib.models.skip.SkipNetwork` with weights drawn from
        ``generator`` on y's device.
    input_noise : standard deviation of the normal noise that is added to z afresh in each iteration.
    ema : weight of the past in the average of the outputs.
    backtrack_db : a fit whose PSNR falls by more than this from one iteration to the next, or that is not finite, goes
        back to the weights before; None never does.

    Raises ParameterError or ShapeError at once for what can't be fitted.
    """
    _check(
        iterations=iterations, input_noise=input_noise, learning_rate=learning_rate, ema=ema, backtrack_db=backtrack_db
    )
    if len(y) != 1:
        raise ShapeError(f"a deep image prior is fitted to one image: y is (1, …), got {tuple(y.shape)}")
    if len(shape) != 2 or min(shape) < 1:
        raise ShapeError(f"shape is (H, W) of the image, got {tuple(shape)}")
    if network is None:
        network = skip_network(y.device, generator)
    sides = [max(n, getattr(network, "min_size", 1)) for n in shape]
    z = torch.rand(1, network.in_channels, *sides, generator=generator, device=generator.device if generator else None)
    z = 0.1 * z.to(y.device)
    y, span = y.detach(), image_range.high - image_range.low
    with torch.no_grad():
        measured = operator.A(torch.zeros(1, 1, *shape, device=y.device)).shape
    if measured != y.shape:
        raise ShapeError(f"A of a {shape} image is {tuple(measured)}, and y is {tuple(y.shape)}")

    def steps() -> Iterator[DipStep]:
        peak = float(y.max() - y.min()) or 1.0
        adam = torch.optim.Adam(network.parameters(), lr=learning_rate)
        good = [p.detach().clone() for p in network.parameters()]
        x_average, psnr_before = None, -torch.inf
        network.train()
        for i in range(iterations):
            z_i = z + input_noise * noise_like(z, generator) if input_noise else z
            with torch.enable_grad():
                x = image_range.low + span * network(z_i)[..., : shape[0], : shape[1]]
                mean_square = (operator.A(x) - y).square().mean()
                adam.zero_grad()
                (mean_square / span**2).backward()
            x, mean_square = x.detach(), mean_square.detach()
            psnr = float(10 * torch.log10(peak**2 / mean_square))
            # written so that a fit that is not finite falls back too
            fell_back = backtrack_db is not None and not psnr >= psnr_before - backtrack_db
            weights = list(network.parameters())
            with torch.no_grad():
                torch._foreach_copy_(*((weights, good) if fell_back else (good, weights)))
            if x_average is None:
                x_average = x
            elif not fell_back:
                x_average = ema * x_average + (1 - ema) * x
            yield DipStep(i, x, x_average, psnr, float(mean_square.sqrt()), fell_back)
            if not fell_back:
                psnr_before = psnr
                adam.step()

    return steps()


def skip_network(device: torch.device | str, generator: torch.Generator | None = None, **sizes) -> SkipNetwork:
    """A :class:`~ldctlib.models.skip.SkipNetwork` on ``device`` with weights drawn from ``generator`` alone."""
    with torch.device("meta"):  # where nothing is drawn
        network = SkipNetwork(**sizes)
    # a half faster on a CPU
    return network.to_empty(device=device).draw(generator).to(memory_format=torch.channels_last)


def dip(
    *,
    device,
    iterations: int = 3000,
    stop: str = "iterations",
    width: int = 128,
    input_noise: float = 1 / 30,
    learning_rate: float = 0.01,
    ema: float = 0.99,
    backtrack_db: float | None = 5.0,
) -> Denoiser:
    """Deep image prior as a denoiser: the average of the outputs when the fit stops. See :func:`deep_image_prior`.

    The sigmoid covers each image's own extent and a twentieth of it more on either side: noise may have lowered the
    highest value, and the ends of a sigmoid are out of reach.

    stop : "iterations" is the published early stopping, a fixed count. "discrepancy" also ends when the residual's rms
        has come down to the noise's standard deviation (Morozov's principle), of the given noise or of the image's
        own estimate.
    width : channels of the network; 128 is published.
    """
    options = dict(input_noise=input_noise, learning_rate=learning_rate, ema=ema)
    _check(iterations=iterations, backtrack_db=backtrack_db, **options)
    if stop not in STOPS:
        raise ParameterError(f"stop is one of {', '.join(STOPS)}; got {stop!r}")
    with torch.device("meta"):
        SkipNetwork(width=width)  # raises now, not at the first image

    def denoise(ldct, *, noise, spacing_mm, generator):
        def fitted(image, streams):
            (own,) = streams
            low, high = float(image.min()), float(image.max())
            margin = 0.05 * (high - low) or 1.0  # of a constant image 1 HU
            noise_sd = _noise_rms(image, noise, spacing_mm) if stop == "discrepancy" else 0.0
            fit = deep_image_prior(
                image.to(device),
                Identity(noise_sd),
                image.shape[-2:],
                image_range=Range(low - margin, high + margin),
                network=skip_network(device, own, width=width),
                iterations=iterations,
                backtrack_db=backtrack_db,
                generator=own,
                **options,
            )
            for step in fit:
                if stop == "discrepancy" and step.residual_rms <= noise_sd:
                    break
            return step.x_average

        return in_batches(ldct, generator, 1, fitted)

    return denoise


def _noise_rms(image_hu: Tensor, noise: NoiseModel | None, spacing_mm) -> float:
    """Root mean square of the noise over the whole image: that of its map where there is one that fits."""
    noise = noise_of(image_hu, noise, spacing_mm)
    if noise.map_hu is None or noise.map_hu.shape[-2:] != image_hu.shape[-2:]:
        return noise.sd_hu
    return float(noise.map_hu.square().mean().sqrt())


def _check(*, iterations, input_noise, learning_rate, ema, backtrack_db) -> None:
    wrong = {
        "iterations is a whole number from 1 on": iterations if iterations < 1 or iterations % 1 else None,
        "input_noise is a standard deviation, 0 or more": input_noise if not input_noise >= 0 else None,
        "learning_rate is positive": learning_rate if not learning_rate > 0 else None,
        "ema is a weight in [0, 1)": ema if not 0 <= ema < 1 else None,
        "backtrack_db is positive, or None": backtrack_db
        if backtrack_db is not None and not backtrack_db > 0
        else None,
    }
    for rule, value in wrong.items():
        if value is not None:
            raise ParameterError(f"{rule}, got {value}")
