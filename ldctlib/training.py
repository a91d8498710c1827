"""One training loop over ``accelerate``: a generator of logs that resumes as if it had never stopped.

Two rules make the resume exact. *Data is a pure function of a number*: ``dataset[n]`` is the n-th training
sample, always the same, and step ``s`` takes samples ``s·B … s·B + B − 1``, so the data position is the
step. *Randomness is a pure function of the step*: every draw inside ``loss_fn`` and the model comes from
streams derived from (seed, step, process), and the caller's own random state is left as it was. What remains
to be stored is the weights, the optimiser, the EMA and the step.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ldctlib import checkpoints
from ldctlib.errors import CheckpointError, LdctError, ParameterError

STATE_FORMAT = "ldctlib-training-state/1"


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Everything up to ``seed`` decides the result; what follows may differ on resume."""

    steps: int  # optimiser steps
    batch_size: int  # samples a step, over all processes and accumulations
    lr: float  # AdamW's peak learning rate
    weight_decay: float = 0.0  # on kernels and matrices only, not on biases and norms
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0  # linear
    schedule: str = "cosine"  # to 0 at the end, or "constant"
    clip_norm: float | None = 1.0  # of the whole gradient
    accumulation: int = 1  # micro-batches a step
    mixed_precision: str = "no"  # or "bf16": autocast around loss_fn; weights stay float32
    ema_decay: float = 0.999  # after n steps min(ema_decay, (1 + n) / (10 + n))
    channels_last: bool = True
    seed: int = 0
    device: str = "auto"  # "auto", "cpu", "cuda" or "mps"
    num_workers: int = 0  # processes that prepare data ahead
    log_every: int = 50
    checkpoint_every: int = 1000

    def __post_init__(self):
        positive = ("steps", "batch_size", "lr", "accumulation", "log_every", "checkpoint_every")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ParameterError(f"TrainConfig.{name} must be positive, got {getattr(self, name)}")
        choices = {
            "schedule": ("cosine", "constant"),
            "mixed_precision": ("no", "bf16"),
            "device": ("auto", "cpu", "cuda", "mps"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ParameterError(f"TrainConfig.{name} is one of {allowed}, got {getattr(self, name)!r}")
        if not 0 <= self.ema_decay < 1:
            raise ParameterError(f"TrainConfig.ema_decay lies in [0, 1), got {self.ema_decay}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ParameterError(f"TrainConfig.warmup_steps lies in [0, steps], got {self.warmup_steps}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ParameterError(f"TrainConfig.clip_norm is positive or None, got {self.clip_norm}")

    def lr_at(self, step: int) -> float:
        """Learning rate of optimiser step ``step`` (the first is 0)."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + cos(pi * (step - self.warmup_steps) / (self.steps - self.warmup_steps)))

    def decides(self) -> dict[str, Any]:
        """The fields that decide the result, JSON-plain."""
        free = ("device", "num_workers", "log_every", "checkpoint_every")
        # at a constant rate a run may be prolonged: its first steps are the same
        free += ("steps",) if self.schedule == "constant" else ()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k not in free}


@dataclass(frozen=True)
class TrainLog:
    """Where training stands; valid until the generator is advanced."""

    step: int  # optimiser steps done
    steps: int  # of how many
    loss: float  # mean since the last log, over all processes
    terms: dict[str, float]  # the same for each term of loss_fn's dict, "loss" among them
    lr: float  # of the last step
    grad_norm: float  # of the last step, before clipping
    seconds: float  # since this call began to train
    ema_model: Callable[[], nn.Module] = field(repr=False)  # a copy with the EMA weights, in eval mode
    ema_state_dict: Callable[[], dict[str, Tensor]] = field(repr=False)  # of that copy, on the CPU

    @property
    def finished(self) -> bool:
        """False when ``max_seconds`` ended the call before the last step."""
        return self.step >= self.steps


def train(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any, torch.Generator], Tensor | Mapping[str, Tensor]],
    dataset: Dataset,
    config: TrainConfig,
    *,
    state_path: str | Path | None = None,
    resume: bool = True,
    init_from: str | Path | None = None,
    max_seconds: float | None = None,
    collate: Callable[[list], Any] | None = None,
    progress: bool = True,
) -> Iterator[TrainLog]:
    """Train ``model`` in place; yields a :class:`TrainLog` every ``log_every`` steps and one at the end.

        for log in train(model, loss_fn, dataset, TrainConfig(1000, 16, 1e-3), state_path="run.state"):
            print(log.step, log.loss)  # draw, measure, break: the loop is yours

    loss_fn(model, batch, generator): a scalar, the *mean* over the batch, or a dict of scalars with "loss".
        Call the ``model`` that it is given (with several processes it is wrapped), draw from ``generator``
        (on the device).
    dataset: map-style, endless; ``dataset[n]`` depends on n alone (also through ``n // refresh``, for a bank
        that is renewed now and then). It is asked in ascending order. ``__getitems__(ns)`` is used where it
        exists.
    state_path: file for the whole state, written every ``checkpoint_every`` steps, at the end, and when
        ``max_seconds`` are over. With ``resume`` a file found there is continued, bit for bit on one kind of
        machine.
    init_from: checkpoint file whose weights are the starting point, unless a state is resumed.
    max_seconds: end after this time, with the state written. With several processes the clock is looked at
        with each log only.

    Under ``torchrun`` each process takes its share of every batch, so any number of processes takes the same
    steps, apart from rounding and from what ``loss_fn`` itself draws. Raises
    :class:`~ldctlib.errors.CheckpointError` for a state that is damaged or of another run,
    :class:`~ldctlib.errors.LdctError` when the loss stops being finite.
    """
    start = time.perf_counter()
    accelerator = _accelerator(config)
    run = _Run(model, config, accelerator)
    state_path = Path(state_path) if state_path is not None else None
    if state_path is not None and resume and state_path.exists():
        run.restore(state_path)
    elif init_from is not None:
        checkpoints.place(model, checkpoints.load(init_from).state_dict, where=init_from)
        run.start_ema()
    if run.step >= config.steps:  # resumed, and there is nothing left to do
        yield run.log(time.perf_counter() - start)
        return
    network = accelerator.prepare_model(model)
    samples = iter(_loader(dataset, config, accelerator, first_step=run.step, collate=collate))

    with _progress_bar(config, run.step, shown=progress and accelerator.is_main_process) as bar:
        while run.step < config.steps:
            run.advance(network, loss_fn, samples)
            bar.update()
            due = run.step % config.log_every == 0 or run.step == config.steps
            ended = run.step == config.steps or (
                max_seconds is not None
                and (due or accelerator.num_processes == 1)
                and _agree(accelerator, time.perf_counter() - start >= max_seconds)
            )
            write = state_path is not None and (ended or run.step % config.checkpoint_every == 0)
            if due or ended or write:
                run.take_stock(clear=due)
            if write:
                run.write(state_path)
            if due or ended:
                bar.set_postfix(loss=f"{run.terms['loss']:.3g}", refresh=False)
                yield run.log(time.perf_counter() - start)
                model.train()  # the caller may have evaluated it
            if ended:
                return


class _Run:
    """Everything that a state holds, and how one step changes it."""

    def __init__(self, model: nn.Module, config: TrainConfig, accelerator):
        self.model, self.config, self.accelerator = model, config, accelerator
        self.device = accelerator.device
        layout = {"memory_format": torch.channels_last} if config.channels_last else {}
        model.to(self.device, **layout).train()
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.trained:
            raise ParameterError(f"{type(model).__name__} has no parameter with requires_grad to train")
        groups = [
            {"params": [p for p in self.trained.values() if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in self.trained.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=fused
        )
        self.step = 0
        self.sums: dict[str, Tensor] = {}  # since the last log
        self.n_summed = 0
        self.terms: dict[str, float] = {"loss": float("nan")}  # as of the last stock-taking
        self.grad_norm: Tensor | float = float("nan")  # of the last step
        self.start_ema()

    def start_ema(self) -> None:
        self.ema = {name: p.detach().clone() for name, p in self.trained.items()}

    def advance(self, network: nn.Module, loss_fn, samples: Iterator) -> None:
        """One optimiser step. Losses and norms stay on the device: nothing here waits for it."""
        config, rank = self.config, self.accelerator.process_index
        bf16 = self.config.mixed_precision == "bf16"
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(self.step)
        for micro in range(config.accumulation):
            batch = _to_device(next(samples), self.device, config.channels_last)
            more = micro + 1 < config.accumulation
            with self.accelerator.no_sync(network) if more else nullcontext():
                with _own_randomness(_derive(config.seed, self.step, rank, micro), self.device) as generator:
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                        terms = loss_fn(network, batch, generator)
                    terms = terms if isinstance(terms, Mapping) else {"loss": terms}
                    (terms["loss"] / config.accumulation).backward()
            for name, value in terms.items():
                share = torch.as_tensor(value, device=self.device).detach().float() / config.accumulation
                self.sums[name] = self.sums[name] + share if name in self.sums else share
        parameters = list(self.trained.values())
        self.grad_norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), parameters, 1 - decay)
        self.step += 1
        self.n_summed += 1

    # ---------------------------------------------------------------- logs

    def take_stock(self, *, clear: bool) -> None:
        """Means since the last log over steps and processes; refuses to go on when the loss is not finite."""
        names = sorted(self.sums)
        means = torch.stack([self.sums[name] for name in names]) / self.n_summed
        self.terms = dict(zip(names, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        self.grad_norm = float(self.grad_norm)
        if not isfinite(self.terms["loss"] + self.grad_norm):
            raise LdctError(
                f"training diverged before step {self.step}: {self.terms}, gradient norm {self.grad_norm}. "
                "The last state is from before; lower lr or clip_norm, or look for bad samples"
            )
        if clear:
            self.sums, self.n_summed = {}, 0

    def log(self, seconds: float) -> TrainLog:
        return TrainLog(
            step=self.step,
            steps=self.config.steps,
            loss=self.terms["loss"],
            terms=self.terms,
            lr=self.config.lr_at(self.step - 1),
            grad_norm=float(self.grad_norm),
            seconds=seconds,
            ema_model=self.ema_model,
            ema_state_dict=self.ema_state_dict,
        )

    @torch.no_grad()
    def ema_model(self) -> nn.Module:
        averaged = copy.deepcopy(self.model)
        for name, p in averaged.named_parameters():
            if name in self.ema:
                p.copy_(self.ema[name])
        return averaged.eval().requires_grad_(False)

    def ema_state_dict(self) -> dict[str, Tensor]:
        return {name: t.to("cpu", copy=True) for name, t in self.ema_model().state_dict().items()}

    # ---------------------------------------------------------------- states

    def write(self, path: Path) -> None:
        """Write the state, by the first process; the others wait until it is there."""
        if self.accelerator.is_main_process:
            tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
            tensors |= {f"ema.{name}": t for name, t in self.ema.items()}
            for name, p in self.trained.items():
                tensors |= {f"optimizer.{name}.{key}": t for key, t in self.optimizer.state[p].items()}
            tensors |= {f"sum.{name}": t for name, t in self.sums.items()}
            tensors |= {f"term.{name}": torch.tensor(value).double() for name, value in self.terms.items()}
            fields = {
                "step": self.step,
                "n_summed": self.n_summed,
                "grad_norm": self.grad_norm,
                "config": self.config.decides(),
            }
            checkpoints.write_tensors(path, tensors, kind=STATE_FORMAT, fields=fields)
        self.accelerator.wait_for_everyone()

    def restore(self, path: Path) -> None:
        tensors, fields = checkpoints.read_tensors(path, kind=STATE_FORMAT)
        ours, theirs = self.config.decides(), fields["config"]
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}, "sum": {}, "term": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        differing = [f"{k} {theirs.get(k)} there, {ours.get(k)} here" for k in ours if ours[k] != theirs.get(k)]
        if parts["ema"].keys() != self.trained.keys():
            odd = sorted(parts["ema"].keys() ^ self.trained.keys())
            differing.append(f"trained there or here only: {', '.join(odd)}")
        if differing:
            raise CheckpointError(
                f"{path}: is the state of another run: {'; '.join(differing)}. Give the same model and "
                "config, another state_path, or resume=False to start over"
            )
        checkpoints.place(self.model, parts["model"], where=path)
        self.start_ema()
        with torch.no_grad():
            for name, p in self.trained.items():
                self.ema[name].copy_(parts["ema"][name])
                # the fused kernel takes for granted that states are laid out like their parameter
                self.optimizer.state[p] = {
                    key: _like(p, parts["optimizer"][f"{name}.{key}"]) for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self.sums = {name: t.to(self.device) for name, t in parts["sum"].items()}
        self.terms = {name: t.item() for name, t in parts["term"].items()}
        self.step, self.n_summed, self.grad_norm = (fields[key] for key in ("step", "n_summed", "grad_norm"))


# ---------------------------------------------------------------- data


class _Positions:
    """A batch sampler: the sample numbers of this process's micro-batches from ``first_step`` on."""

    def __init__(self, config: TrainConfig, rank: int, world: int, first_step: int):
        share, rest = divmod(config.batch_size, config.accumulation * world)
        if rest:
            raise ParameterError(
                f"batch_size {config.batch_size} does not divide into {config.accumulation} micro-batches "
                f"for {world} processes: choose a multiple of {config.accumulation * world}"
            )
        self.start = first_step * config.batch_size + rank
        self.stop = config.steps * config.batch_size
        self.micro, self.world = share * world, world

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(self.start, self.stop, self.micro):
            yield list(range(first, first + self.micro, self.world))


def _loader(dataset: Dataset, config: TrainConfig, accelerator, *, first_step: int, collate) -> DataLoader:
    workers = config.num_workers
    return DataLoader(
        dataset,
        batch_sampler=_Positions(config, accelerator.process_index, accelerator.num_processes, first_step),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        collate_fn=collate,
        pin_memory=workers > 0 and accelerator.device.type == "cuda",
        # the loader seeds its workers from here, and not by a draw from the caller's random state
        generator=torch.Generator().manual_seed(_derive(config.seed, first_step, accelerator.process_index)),
    )


def _to_device(batch: Any, device: torch.device, channels_last: bool) -> Any:
    """Move every tensor of a nested batch to ``device``."""
    if isinstance(batch, Tensor):
        layout = torch.channels_last if channels_last and batch.ndim == 4 else torch.preserve_format
        return batch.to(device, non_blocking=True, memory_format=layout)
    if isinstance(batch, Mapping):
        return {name: _to_device(item, device, channels_last) for name, item in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_to_device(item, device, channels_last) for item in batch)
    return batch


# ---------------------------------------------------------------- randomness and processes


def _derive(*parts: int) -> int:
    """A 63-bit seed from several numbers, by NumPy's SeedSequence: neighbours give unrelated streams."""
    return int(np.random.SeedSequence([part % 2**64 for part in parts]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Seeded torch, NumPy and Python randomness (dropout takes no generator); the caller's is put back."""
    on_device = None if device.type == "cpu" else getattr(torch, device.type)  # torch.cuda, torch.mps
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    before_on_device = on_device.get_rng_state() if on_device else None
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every backend: a millisecond
    if on_device:
        on_device.manual_seed(seed)
    try:
        yield torch.Generator(device).manual_seed(_derive(seed))
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        if on_device:
            on_device.set_rng_state(before_on_device)


def _accelerator(config: TrainConfig):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    # accelerate fixes device and precision at its first use in a process; a notebook may train with several
    asked = {"_cpu": config.device == "cpu", "_mixed_precision": "no"}
    found = {**PartialState._shared_state, **AcceleratorState._shared_state}
    if not torch.distributed.is_initialized() and any(found.get(k, v) != v for k, v in asked.items()):
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision="no")
    if config.device not in ("auto", accelerator.device.type):
        raise ParameterError(
            f"TrainConfig.device is '{config.device}', which accelerate does not find here; it found "
            f"'{accelerator.device.type}': use that, or 'auto'"
        )
    return accelerator


def _agree(accelerator, wish: bool) -> bool:
    """True on every process when one of them wishes it: they must end at the same step."""
    if accelerator.num_processes == 1:
        return wish
    return bool(accelerator.reduce(torch.tensor(float(wish), device=accelerator.device), "sum") > 0)


def _like(p: Tensor, stored: Tensor) -> Tensor:
    if stored.shape != p.shape:  # AdamW's step count
        return stored.to(p.device)
    return torch.empty_like(p, memory_format=torch.preserve_format).copy_(stored)


def _progress_bar(config: TrainConfig, done: int, *, shown: bool):
    from tqdm.auto import tqdm

    hidden = {} if shown else {"disable": True}  # an explicit False would override TQDM_DISABLE
    return tqdm(total=config.steps, initial=done, desc="train", unit="step", **hidden)
