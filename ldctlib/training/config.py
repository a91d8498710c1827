"""How to train: the optimiser's settings, the loop's, and which network moves by which loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

from ldctlib.errors import ParameterError

LossFunction = Callable[[Any, Any, torch.Generator, int], Tensor | Mapping[str, Tensor]]
"""``loss(model, batch, generator, step)``: a scalar, the *mean* over the batch, or a dict of scalars with "loss".

model is the module that is trained, or the mapping of them where several are; generator is on the device, and the only
source that draws need; step is the training step, 0 first.
"""

SINGLE = "model"
"""The name of the network where a training has one."""

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
MUON = "muon"


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How a network moves: the kind of step, and its learning rate from the update's first step to the last.

    Muon (Jordan et al. 2024) moves the matrices of a transformer's blocks along the orthogonal matrix nearest to their
    momentum, at a rate that matches AdamW's (Liu et al. 2025, Eq. 4); AdamW moves everything else.
    """

    lr: float | None = None  # the peak; must be given
    lr_end: float = 0.0  # where "cosine" and "poly" end
    kind: str = "adamw"  # "adamw", "adam" (weight decay in the gradient), "sgd", or "muon"
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam and AdamW
    momentum: float = 0.0  # of SGD
    weight_decay: float = 0.0  # on kernels and matrices only, not on biases and norms
    warmup_steps: int = 0  # linear
    schedule: str = "cosine"  # "cosine", "constant" or "poly", (1 - share of the steps)^0.9
    clip_norm: float | None = 1.0  # of the network's whole gradient
    slow: str | None = None  # parameters with this in their names have a tenth of the rate; not those that Muon moves

    def __post_init__(self):
        _check(self, "lr", "clip_norm", kind=(*OPTIMIZERS, MUON), schedule=("cosine", "constant", "poly"))
        if not (0 <= self.lr_end <= (self.lr or 0.0) and self.warmup_steps >= 0):
            raise ParameterError(
                f"lr_end lies in [0, lr] and warmup_steps is 0 or more, got {self.lr_end} and {self.warmup_steps}"
            )

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of step ``step`` of ``steps`` (the first is 0)."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        share = (step - self.warmup_steps) / (steps - self.warmup_steps)
        fall = 0.5 * (1 + cos(pi * share)) if self.schedule == "cosine" else (1 - share) ** 0.9
        return self.lr_end + (self.lr - self.lr_end) * fall

    def build(self, parameters: Mapping[str, Tensor]) -> tuple[torch.optim.Optimizer, ...]:
        """The torch optimisers of named parameters, which are on their device."""
        hidden, rest = [], []
        for name, p in parameters.items():
            if self.kind == MUON and p.ndim == 2 and "blocks." in name:
                hidden.append(p)
            else:
                rest.append((name, p))
        groups = [
            {"params": [], "weight_decay": decay, "scale": scale}
            for decay in (self.weight_decay, 0.0)
            for scale in (1, 0.1)
        ]
        for name, p in rest:
            groups[2 * (p.ndim <= 1) + (self.slow is not None and self.slow in name)]["params"].append(p)
        options = {"momentum": self.momentum} if self.kind == "sgd" else {"betas": self.betas}
        fused = next(iter(parameters.values())).device.type in ("cpu", "cuda")
        made = []
        if groups := [g for g in groups if g["params"]]:
            made.append(OPTIMIZERS.get(self.kind, torch.optim.AdamW)(groups, lr=self.lr, fused=fused, **options))
        if hidden:
            if not hasattr(torch.optim, "Muon"):
                raise ParameterError(f"kind 'muon' needs torch 2.9 or newer, this is {torch.__version__}: take 'adamw'")
            rate = {"lr": self.lr, "adjust_lr_fn": "match_rms_adamw"}
            made.append(torch.optim.Muon(hidden, weight_decay=self.weight_decay, **rate))
        return tuple(made)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Optimizer):
    """How to train. Where one network has one loss the optimiser's settings stand in it, else in the updates."""

    steps: int  # training steps
    batch_size: int  # samples a step, over all processes and accumulations
    accumulation: int = 1  # micro-batches a step
    precision: str = "float32"  # or "bf16": autocast around the loss; "auto": bf16 where the device computes it
    ema_decay: float = 0.999  # after n steps min(ema_decay, (1 + n) / (10 + n))
    ema: tuple[str, ...] | None = None  # the networks that are averaged; None: the first
    channels_last: bool = True
    seed: int = 0
    # what follows may differ on resume
    device: str = "auto"  # "auto", "cpu", "cuda" or "mps"
    num_workers: int = 0  # processes that prepare data ahead
    log_every: int = 50
    checkpoint_every: int = 1000

    def __post_init__(self):
        super().__post_init__()
        positive = ("steps", "batch_size", "accumulation", "log_every", "checkpoint_every")
        _check(self, *positive, precision=("auto", "float32", "bf16"), device=("auto", "cpu", "cuda", "mps"))
        if not 0 <= self.ema_decay < 1:
            raise ParameterError(f"TrainConfig.ema_decay lies in [0, 1), got {self.ema_decay}")
        if self.warmup_steps > self.steps:
            raise ParameterError(f"TrainConfig.warmup_steps lies in [0, steps], got {self.warmup_steps}")

    def fingerprint(self, updates: Sequence[Update]) -> dict[str, Any]:
        """What decides the result: this config's fields, and those of each update below its network's name."""
        shared = [f.name for f in fields(Optimizer)]
        free = {"device", "num_workers", "log_every", "checkpoint_every", *shared}
        if all(u.optimizer.schedule == "constant" for u in updates):
            free.add("steps")  # at a constant rate a run may be prolonged: its first steps are the same
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in free}
        for u in updates:
            own |= {f"{u.network}.{name}": getattr(u.optimizer, name) for name in shared}
            own |= {f"{u.network}.repeat": u.repeat, f"{u.network}.start": u.start}
        return own


@dataclass(frozen=True)
class Update:
    """One optimiser step within a training step: which network moves, by which loss. No other gets a gradient."""

    network: str
    loss: LossFunction
    optimizer: Optimizer
    repeat: int = 1  # steps it makes in a training step, all on that step's batch
    start: int = 0  # the training step at which it starts; its rate and its EMA count from there

    def __post_init__(self):
        _check(self, "repeat")
        if self.optimizer.lr is None or self.start < 0:
            raise ParameterError(
                f"the update of '{self.network}' needs a learning rate and a start of 0 or more, got lr "
                f"{self.optimizer.lr} and start {self.start}"
            )


def named_updates(
    networks: nn.Module | Mapping[str, nn.Module], updates: LossFunction | Sequence[Update], config: TrainConfig
) -> tuple[dict[str, nn.Module], list[Update]]:
    """Both forms of a training as one: networks by name, the first is the main one, and an update for each."""
    if isinstance(networks, nn.Module) != callable(updates):
        raise ParameterError("one module takes one loss function, named networks take a list with an Update for each")
    if callable(updates):
        networks, updates = {SINGLE: networks}, [Update(SINGLE, updates, config)]
    elif unused := [f.name for f in fields(Optimizer) if getattr(config, f.name) != f.default]:
        raise ParameterError(f"TrainConfig.{unused[0]} has no effect beside updates: each says it in its Optimizer")
    networks, updates = dict(networks), list(updates)
    moved = [u.network for u in updates]
    if sorted(moved) != sorted(networks) or any("." in name or "/" in name for name in networks):
        raise ParameterError(
            f"each network has one update (one that does not move belongs into the loss) and a name without '.' and "
            f"'/': networks {', '.join(networks)}; updates of {', '.join(moved)}"
        )
    if all(u.start > 0 for u in updates):
        raise ParameterError("at least one update starts at step 0")
    if unknown := set(config.ema or ()) - networks.keys():
        raise ParameterError(f"TrainConfig.ema names {', '.join(unknown)}; the networks are {', '.join(networks)}")
    return networks, updates


def _check(settings: Any, *positive: str, **choices: tuple[str, ...]) -> None:
    for name in positive:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ParameterError(f"{type(settings).__name__}.{name} must be positive, got {value}")
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise ParameterError(
                f"{type(settings).__name__}.{name} is one of {allowed}, got {getattr(settings, name)!r}"
            )
