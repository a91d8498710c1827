"""The loop: steps, logs, and when a state is written."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ldctlib import checkpoints
from ldctlib.errors import LdctError, ParameterError
from ldctlib.training.config import LossFunction, TrainConfig, Update, named_updates
from ldctlib.training.processes import any_process, average_gradients, make_accelerator, share_from_first
from ldctlib.training.randomness import derive, seeded
from ldctlib.training.state import Trained, TrainState


@dataclass(frozen=True)
class TrainLog:
    """Where training stands; valid until the generator is advanced. One module alone has the name "model"."""

    step: int  # training steps done
    steps: int  # of how many
    loss: float  # the first network's: mean since the last log, over all processes; NaN before its update starts
    terms: dict[str, float]  # the same for every term: "loss", "mse"; with several networks "critic/loss"
    lr: dict[str, float]  # by network, of the last step; absent before its update starts
    grad_norm: dict[str, float]  # by network, of the last step, before clipping
    seconds: float  # since this call began to train
    ema_model: Callable[..., nn.Module] = field(repr=False)  # (name=first): a copy with EMA weights, in eval mode
    ema_state_dict: Callable[..., dict[str, Tensor]] = field(repr=False)  # (name=first): of that copy, on the CPU

    @property
    def finished(self) -> bool:
        """False when ``max_seconds`` ended the call before the last step."""
        return self.step >= self.steps


def train(
    networks: nn.Module | Mapping[str, nn.Module],
    updates: LossFunction | Sequence[Update],
    dataset: Dataset,
    config: TrainConfig,
    *,
    state_path: str | Path | None = None,
    resume: bool = True,
    init_from: str | Path | Mapping[str, str | Path] | None = None,
    identity: str | Mapping[str, Any] = "",
    max_seconds: float | None = None,
    collate: Callable[[list], Any] | None = None,
    progress: bool = True,
) -> Iterator[TrainLog]:
    """Train networks in place; yields a :class:`TrainLog` every ``log_every`` steps and one at the end.

        for log in train(model, loss, dataset, TrainConfig(steps=1000, batch_size=16, lr=1e-3), state_path="run.state"):
            print(log.step, log.loss)  # draw, measure, break: the loop is yours

    networks, updates : one module and its loss ``loss(model, batch, generator, step)``, see ``LossFunction``; or named
        modules and an :class:`Update` for each, which run in their order.
    dataset : map-style, endless; ``dataset[n]`` depends on n alone (also through ``n // refresh``, for a bank that is
        renewed now and then). It is asked in ascending order. ``__getitems__(ns)`` is used where it exists.
    state_path : file for the whole state, written every ``checkpoint_every`` steps, at the end, when ``max_seconds``
        are over, and on Ctrl-C, which waits for the step in progress (a second one does not). With ``resume`` a file
        found there is continued, bit for bit on one kind of machine; on another one, with a warning.
    init_from : checkpoint file whose weights the (first) network starts from, unless a state is resumed; or a file for
        each of some networks.
    identity : what the caller says of data and recipe. A state of another identity, or one that started from other
        weights, is not resumed.
    max_seconds : end after this time, with the state written. With several processes, clock and Ctrl-C are looked at
        with each log only.

    Under ``torchrun`` each process takes its share of every batch, so any number of processes takes the same steps,
    apart from rounding and from what a loss itself draws. Buffers are the first process's. Raises
    :class:`~ldctlib.errors.CheckpointError` for a state that is damaged or of another run,
    :class:`~ldctlib.errors.LdctError` when a loss stops being finite.
    """
    from tqdm.auto import tqdm

    began = time.perf_counter()
    given = networks  # what a loss is called with
    networks, updates = named_updates(networks, updates, config)
    files = init_from if isinstance(init_from, Mapping) else {next(iter(networks)): init_from}
    if unknown := files.keys() - networks.keys():
        raise ParameterError(f"init_from names {', '.join(unknown)}; the networks are {', '.join(networks)}")
    starts = {name: checkpoints.load(path) for name, path in files.items() if path is not None}
    described = identity if isinstance(identity, Mapping) else {"run": identity}
    run = {f"identity.{key}": value for key, value in described.items()}
    run |= {f"{name}.init_from": c.sha256 for name, c in starts.items()}
    accelerator = make_accelerator(config)
    state = TrainState(networks, updates, config, accelerator, run)
    state_path = Path(state_path) if state_path is not None else None
    if state_path is not None and resume and state_path.exists():
        state.restore(state_path)
    else:
        state.start(starts)
    del starts
    if state.step >= config.steps:  # resumed, and there is nothing left to do
        yield _log(state, time.perf_counter() - began)
        return
    samples = iter(_loader(dataset, config, accelerator, first_step=state.step, collate=collate))
    interrupts: list[bool] = []

    hidden = {} if progress and accelerator.is_main_process else {"disable": True}  # False would override TQDM_DISABLE
    with tqdm(total=config.steps, initial=state.step, desc="train", unit="step", **hidden) as bar:
        while state.step < config.steps:
            with _interrupts_noted(interrupts):
                _advance(state, given, samples)
                bar.update()
                due = state.step % config.log_every == 0 or state.step == config.steps
                ended = state.step == config.steps
                if due or accelerator.num_processes == 1:
                    over = max_seconds is not None and time.perf_counter() - began >= max_seconds
                    ended |= any_process(accelerator, over or bool(interrupts))
                write = state_path is not None and (ended or state.step % config.checkpoint_every == 0)
                if due or ended or write:
                    _reduce_logs(state, clear=due)
                if write:
                    state.write(state_path)
            if ended and interrupts:
                raise KeyboardInterrupt(f"after step {state.step}; the state is {state_path if write else 'not kept'}")
            if due or ended:
                log = _log(state, time.perf_counter() - began)
                bar.set_postfix(loss=f"{log.loss:.3g}", refresh=False)
                yield log
                for network in networks.values():  # the caller may have evaluated them
                    network.train()
            if ended:
                return


# ---------------------------------------------------------------- a step


def _advance(state: TrainState, given: nn.Module | Mapping[str, nn.Module], samples: Iterator) -> None:
    """One training step. Losses and norms stay on the device: nothing here waits for it."""
    config, device = state.config, state.device
    batches = [_to_device(next(samples), device, config.channels_last) for _ in range(config.accumulation)]
    for index, part in enumerate(state.trained.values()):
        for repeat in range(part.update.repeat if state.step >= part.update.start else 0):
            for micro, batch in enumerate(batches):
                numbers = [config.seed, state.step, state.accelerator.process_index, micro]
                if index or repeat:  # a first update draws what it draws alone
                    numbers += [index, repeat]
                with seeded(derive(*numbers), device) as generator:
                    with torch.autocast(device.type, torch.bfloat16, enabled=state.bf16):
                        terms = part.update.loss(given, batch, generator, state.step)
                    terms = terms if isinstance(terms, Mapping) else {"loss": terms}
                    if "loss" not in terms:
                        raise ParameterError(f"the loss of '{part.update.network}' has no term 'loss': {list(terms)}")
                    # only the network that moves: a critic's weights take no part in the generator's step
                    (terms["loss"] / config.accumulation).backward(inputs=list(part.parameters.values()))
                for term, value in terms.items():
                    name = state.term(term, part.update.network)
                    value = torch.as_tensor(value, device=device).detach().float()
                    state.sums[name] = state.sums[name] + value if name in state.sums else value
                    state.counts[name] = state.counts.get(name, 0) + 1
            _move(state, part)
    for part in state.trained.values():
        n = state.step - part.update.start  # steps of its own before this one
        if part.ema and n >= 0:
            decay = min(config.ema_decay, (1 + n) / (10 + n))
            with torch.no_grad():
                torch._foreach_lerp_(list(part.ema.values()), list(part.parameters.values()), 1 - decay)
        share_from_first(part.network.buffers())
    state.step += 1


def _move(state: TrainState, part: Trained) -> None:
    """One optimiser step of a network from the gradients of its micro-batches."""
    parameters, name, options = list(part.parameters.values()), part.update.network, part.update.optimizer
    average_gradients(parameters, state.accelerator)
    state.grad_norm[name] = nn.utils.clip_grad_norm_(parameters, options.clip_norm or float("inf"))
    state.lr[name] = options.lr_at(state.step - part.update.start, state.config.steps - part.update.start)
    for optimizer in part.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = state.lr[name] * group.get("scale", 1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


# ---------------------------------------------------------------- logs


def _reduce_logs(state: TrainState, *, clear: bool) -> None:
    """Means since the last log over steps and processes; refuses to go on when a loss is not finite."""
    names = sorted(state.sums)
    means = torch.stack([state.sums[name] / state.counts[name] for name in names])
    state.terms = dict(zip(names, state.accelerator.reduce(means, "mean").tolist(), strict=True))
    state.grad_norm = {name: float(norm) for name, norm in state.grad_norm.items()}
    losses = [value for name, value in state.terms.items() if name.rpartition("/")[2] == "loss"]
    if not isfinite(sum(losses) + sum(state.grad_norm.values())):
        raise LdctError(
            f"training diverged before step {state.step}: {state.terms}, gradient norm {state.grad_norm}. "
            "The last state is from before; lower lr or clip_norm, or look for bad samples"
        )
    if clear:
        state.sums, state.counts = {}, {}


def _log(state: TrainState, seconds: float) -> TrainLog:
    loss = state.terms.get(state.term("loss", state.main), nan)
    moved = dict(state.lr), dict(state.grad_norm)
    return TrainLog(
        state.step, state.config.steps, loss, state.terms, *moved, seconds, state.ema_model, state.ema_state_dict
    )


@contextmanager
def _interrupts_noted(seen: list[bool]) -> Iterator[None]:
    """Ctrl-C is noted in ``seen`` and not raised; a second one is raised at once."""
    default = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not default:
        yield  # signals are handled elsewhere
        return

    def note(*_) -> None:
        seen.append(True)
        signal.signal(signal.SIGINT, default)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, default)


# ---------------------------------------------------------------- data


def _batch_indices(config: TrainConfig, rank: int, world: int, first_step: int) -> Iterator[list[int]]:
    """The sample numbers of this process's micro-batches from ``first_step`` on."""
    parts = config.accumulation * world
    if config.batch_size % parts:
        raise ParameterError(
            f"batch_size {config.batch_size} does not divide into {config.accumulation} micro-batches "
            f"for {world} processes: choose a multiple of {parts}"
        )
    micro = config.batch_size // config.accumulation  # of all processes
    for first in range(first_step * config.batch_size, config.steps * config.batch_size, micro):
        yield list(range(first + rank, first + micro, world))


def _loader(dataset: Dataset, config: TrainConfig, accelerator, *, first_step: int, collate) -> DataLoader:
    workers, rank = config.num_workers, accelerator.process_index
    return DataLoader(
        dataset,
        batch_sampler=_batch_indices(config, rank, accelerator.num_processes, first_step),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        collate_fn=collate,
        pin_memory=workers > 0 and accelerator.device.type == "cuda",
        worker_init_fn=_ignore_interrupts,
        # the loader seeds its workers from here, and not by a draw from the caller's random state
        generator=torch.Generator().manual_seed(derive(config.seed, first_step, rank)),
    )


def _ignore_interrupts(worker: int) -> None:
    """A terminal's Ctrl-C reaches workers, too: they end with the training, which still needs them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
