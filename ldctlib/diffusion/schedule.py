"""Noise schedules: how much of the signal is left at each time, and which times a sampler visits.

Times are integers. ``t = 0`` is the clean image and ``t = T`` almost pure noise, so ``alpha_bar`` has T + 1
entries and ``alpha_bar[0] == 1`` exactly:

    x_t = √ᾱ_t x0 + √(1 − ᾱ_t) eps,    ᾱ_t = ∏ (1 − β_i), i = 1 … t       (Ho et al. 2020, Eq. 4)

Most published code drops the clean end and counts 0 … T − 1. The last section converts; nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import cos, pi

import torch
from torch import Tensor

from ldctlib.errors import ParameterError

MAX_BETA = 0.999
"""Cap on β_t (Nichol & Dhariwal 2021, §3.2). Without it the cosine's ᾱ_T is 0, and a noise estimate at t = T
says nothing about x0. Capping β keeps ᾱ falling at every step; capping ᾱ would leave a flat tail."""

SPACINGS = ("trailing", "leading", "uniform")


@dataclass(frozen=True, eq=False)
class Schedule:
    """A variance-preserving noise schedule.

    alpha_bar : (T + 1,) float64 on the CPU; 1 at t = 0, then strictly falling, above 0 at t = T.
    name : what :func:`named` calls it; goes into a checkpoint's header together with ``T``.

    Raises :class:`~ldctlib.errors.ParameterError` for an ``alpha_bar`` that is none.
    """

    alpha_bar: Tensor = field(repr=False)
    name: str = "custom"
    _cache: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        alpha_bar = torch.as_tensor(self.alpha_bar).detach().to("cpu", torch.float64)
        object.__setattr__(self, "alpha_bar", alpha_bar)
        if alpha_bar.ndim != 1 or len(alpha_bar) < 2:
            raise ParameterError(f"alpha_bar has shape (T + 1,) with T ≥ 1, got {tuple(alpha_bar.shape)}")
        if alpha_bar[0] != 1:
            raise ParameterError(
                f"alpha_bar[0] is the clean image and must be 1, got {alpha_bar[0]:.6g}; "
                "an array that counts 0 … T − 1 goes through from_alphas_cumprod"
            )
        # written so that a NaN fails too
        if not bool((alpha_bar.diff() < 0).all() and alpha_bar[-1] > 0):
            raise ParameterError("alpha_bar must fall strictly from 1 and stay above 0 and finite")

    @property
    def T(self) -> int:
        """Number of noise levels."""
        return len(self.alpha_bar) - 1

    def at(self, t: int) -> float:
        """ᾱ_t in double precision. Raises ParameterError outside 0 … T."""
        if not 0 <= t <= self.T:  # a negative index would silently count from the noisy end
            raise ParameterError(f"time {t} lies outside 0 … {self.T}")
        return self.alpha_bar[t].item()

    def scales(self, t: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise scales √ᾱ_t and √(1 − ᾱ_t), shaped to multiply ``like``, in its dtype.

        t : one time for all, or int64 (B,) on like's device, one for each sample of ``like`` (B, …).
        """
        t = torch.as_tensor(t)
        if t.ndim > 1 or (t.ndim == 1 and len(t) != len(like)):
            raise ParameterError(f"t is an int or has shape ({len(like)},), got {tuple(t.shape)}")
        # elsewhere than on the CPU the look would stall the queue
        if t.device.type == "cpu" and t.numel() and not 0 <= int(t.min()) <= int(t.max()) <= self.T:
            raise ParameterError(f"times lie in 0 … {self.T}, got {int(t.min())} … {int(t.max())}")
        shape = t.shape + (1,) * (like.ndim - 1) if t.ndim else ()
        signal, noise = self._tables(t.device, like.dtype)
        return signal[t].reshape(shape), noise[t].reshape(shape)

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio ᾱ_t / (1 − ᾱ_t) as float32 of t's shape, on its device; infinite at t = 0."""
        signal, noise = self._tables(t.device, torch.float32)
        return (signal[t] / noise[t]).square()

    def _tables(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        # kept, since copying to an accelerator waits for all that is queued there; rooted in double precision
        if (device, dtype) not in self._cache:
            with torch.inference_mode(False):  # autograd refuses tensors made in inference mode
                roots = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
                self._cache[device, dtype] = tuple(root.to(dtype).to(device) for root in roots)
        return self._cache[device, dtype]

    def times(self, steps: int, spacing: str = "trailing", *, start: int | None = None) -> tuple[int, ...]:
        """``steps`` times from noisy to clean, one for each network evaluation; after the last comes 0.

        spacing : (Lin et al. 2024, Table 2; diffusers' lists plus one, but for 111 of the 1000 numbers of "trailing"
            steps, none of them 10, 20, 25, 30, 50 or 100: there rounding puts its times one off, or adds a last):
            "trailing"  start, …, start / steps: begins where training ended, so pure noise is a fair start;
            "leading"   …, 1 + start // steps, 1: DDIM's own habit, begins a little below ``start``;
            "uniform"   start, …, 1: both ends.
        start : the noisiest level, T by default. For a start mid-chain noise the image to ``times[0]``.
        """
        start = self.T if start is None else start
        if spacing not in SPACINGS:
            raise ParameterError(f"spacing is one of {SPACINGS}, got {spacing!r}")
        if not 1 <= start <= self.T:
            raise ParameterError(f"start lies in 1 … {self.T}, got {start}")
        if not 1 <= steps <= start or steps != int(steps):
            raise ParameterError(f"from time {start} a sampler takes 1 … {start} steps, got {steps}: give whole ones")
        steps = int(steps)
        if spacing == "trailing":
            times = [round(start * i / steps) for i in range(steps, 0, -1)]
        elif spacing == "leading":
            times = [1 + i * (start // steps) for i in reversed(range(steps))]
        else:
            times = [1 + round((start - 1) * (1 - i / max(steps - 1, 1))) for i in range(steps)]
        return self.check_times(times)

    def check_times(self, times: Iterable[int]) -> tuple[int, ...]:
        """``times`` as a tuple of ints; ParameterError unless there are some and all lie in 1 … T."""
        times = tuple(int(t) for t in times)
        if not times or max(times) > self.T or min(times) < 1:
            raise ParameterError(
                f"times lie in 1 … {self.T} (0 is the clean image and is implied), got {_short(times)}; "
                "a list that counts from 0 goes through times_from_zero_based"
            )
        return times


def time_travel(times: Sequence[int], jump: int = 10, repeats: int = 3) -> tuple[int, ...]:
    """``times`` with every run of ``jump`` steps walked ``repeats`` times (RePaint, Lugmayr et al. 2022; DDNM's demo).

    After a run the sampler goes back to its first time, by noise of its own, and walks it again.
    """
    if jump < 1 or repeats < 1:
        raise ParameterError(f"jump and repeats are at least 1, got {jump} and {repeats}")
    runs = [tuple(times[i : i + jump]) for i in range(0, len(times), jump)]
    return tuple(t for run in runs for t in run * repeats)


def from_betas(betas: Sequence[float] | Tensor, name: str = "custom") -> Schedule:
    """Schedule with the given β_1 … β_T, each above 0 and below 1."""
    betas = torch.as_tensor(betas, dtype=torch.float64)
    return Schedule(torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)]), name)


def linear(T: int = 1000) -> Schedule:
    """β from 1e-4 to 0.02 in 1000 steps (Ho et al. 2020, §4)."""
    return from_betas(_ramp(1e-4, 0.02, 1000, T), "linear")


def sr3(T: int = 2000) -> Schedule:
    """β from 1e-6 to 0.01 in 2000 steps (SR3, Saharia et al. 2021). Its networks are told √ᾱ_t, not t."""
    return from_betas(_ramp(1e-6, 0.01, 2000, T), "sr3")


def cosine(T: int = 1000) -> Schedule:
    """ᾱ_t = cos²(((t/T + s)/(1 + s)) π/2) / cos²((s/(1 + s)) π/2), s = 0.008, with β capped at 0.999.

    Nichol & Dhariwal 2021, Eq. 17; MAN, Eqs 4 and 5.
    """
    _check_length(T)
    f = [cos((t / T + 0.008) / 1.008 * pi / 2) ** 2 for t in range(T + 1)]
    return from_betas([min(1 - f[t] / f[t - 1], MAX_BETA) for t in range(1, T + 1)], "cosine")


SCHEDULES: dict[str, Callable[..., Schedule]] = {"linear": linear, "cosine": cosine, "sr3": sr3}


def named(name: str, T: int | None = None) -> Schedule:
    """The schedule of that name, at its published length unless ``T`` says otherwise."""
    if name not in SCHEDULES:
        raise ParameterError(f"no schedule is called {name!r}; there are {', '.join(SCHEDULES)}")
    return SCHEDULES[name]() if T is None else SCHEDULES[name](T)


# Published code counts its noise levels 0 … T − 1: its 0 is our 1. Only these three convert.


def from_alphas_cumprod(alphas_cumprod: Sequence[float] | Tensor) -> Schedule:
    """Schedule from published code's ``alphas_cumprod`` (T,), whose first entry is one step from clean."""
    published = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64)
    return Schedule(torch.cat([torch.ones(1, dtype=torch.float64), published.flatten()]))


def times_from_zero_based(times: Iterable[int]) -> tuple[int, ...]:
    """A published list of times, in any order, for a sampler here: (0, 199, …, 999) → (1000, …, 200, 1)."""
    return tuple(sorted((int(t) + 1 for t in times), reverse=True))


def zero_based(network: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A network that was trained with times 0 … T − 1, as a function of our (x_t, t)."""
    return lambda x_t, t: network(x_t, t - 1)


def _ramp(first: float, last: float, published_T: int, T: int) -> Tensor:
    """Linear β, scaled by published_T / T so that a chain of any length ends at about the same noise."""
    _check_length(T)
    betas = torch.linspace(first, last, T, dtype=torch.float64) * (published_T / T)
    return betas.clamp(max=MAX_BETA)


def _check_length(T: int) -> None:
    if T < 2:
        raise ParameterError(f"a noise schedule needs T ≥ 2 levels, got {T}")


def _short(times: tuple[int, ...]) -> str:
    return str(times) if len(times) <= 8 else f"({', '.join(map(str, times[:6]))}, … {times[-1]})"
