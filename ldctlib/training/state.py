"""Where a training stands: weights, optimisers, averages and counts, written to a file and restored from it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldctlib import checkpoints
from ldctlib.errors import CheckpointError, ParameterError
from ldctlib.files import plain
from ldctlib.precision import computes_bf16
from ldctlib.training.config import TrainConfig, Update
from ldctlib.training.processes import share_from_first

STATE_FORMAT = "ldctlib-training-state/2"
NUMBERS = ("step", "counts", "lr", "grad_norm")


@dataclass(eq=False)
class Trained:
    """A network, what moves it, and its running average where it has one."""

    network: nn.Module
    update: Update
    parameters: dict[str, nn.Parameter]
    optimizers: tuple[torch.optim.Optimizer, ...]
    ema: dict[str, Tensor] = field(default_factory=dict)


class TrainState:
    """Everything that a state file holds. ``run`` is what makes it this run and no other, JSON-plain, by name."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        updates: Sequence[Update],
        config: TrainConfig,
        accelerator,
        identity: Mapping[str, Any],
    ):
        self.config, self.accelerator, self.device = config, accelerator, accelerator.device
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and computes_bf16(self.device))
        self.main = next(iter(networks))  # the network that is meant where no name is given
        self.averaged = (self.main,) if config.ema is None else config.ema
        self.run = plain(config.fingerprint(updates) | dict(identity))
        layout = {"memory_format": torch.channels_last} if config.channels_last else {}
        self.trained: dict[str, Trained] = {}
        for u in updates:
            network = networks[u.network].to(self.device, **layout).train()
            parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
            if not parameters:
                raise ParameterError(f"{type(network).__name__} has no parameter with requires_grad to train")
            self.trained[u.network] = Trained(network, u, parameters, u.optimizer.build(parameters))
            self.run |= {f"{u.network}.trained.{name}": True for name in parameters}
        self.step = 0
        self.sums: dict[str, Tensor] = {}  # of each term since the last log
        self.counts: dict[str, int] = {}  # of what was summed
        self.terms: dict[str, float] = {}  # means as of the last log
        self.lr: dict[str, float] = {}  # by network, of the last step
        self.grad_norm: dict[str, Tensor | float] = {}  # likewise, before clipping

    @property
    def computed(self) -> str:
        """In which precision and on what this call computes: what a run may change on resume, with a warning."""
        on = {"cuda": torch.cuda.get_device_name, "cpu": lambda _: f"CPU ({torch.backends.cpu.get_cpu_capability()})"}
        machine = on.get(self.device.type, str)(self.device)
        return f"{'bf16' if self.bf16 else 'float32'} on {self.accelerator.num_processes} x {machine}"

    def start(self, weights: Mapping[str, checkpoints.Checkpoint]) -> None:
        """Begin a run: every process from the first one's weights, the averages from there."""
        for name, c in weights.items():
            checkpoints.place(self.trained[name].network, c.state_dict, where=c.path)
        for name, part in self.trained.items():
            share_from_first([*part.network.parameters(), *part.network.buffers()])
            if name in self.averaged:
                part.ema = {key: p.detach().clone() for key, p in part.parameters.items()}

    def term(self, name: str, network: str) -> str:
        """The name of a network's term in logs: "loss"; with several networks "critic/loss"."""
        return name if len(self.trained) == 1 else f"{network}/{name}"

    @torch.no_grad()
    def ema_model(self, name: str | None = None) -> nn.Module:
        """A copy of a network with its averaged weights, in eval mode; of the first network where no name is given."""
        name = self.main if name is None else name
        if name not in self.averaged:
            raise ParameterError(f"'{name}' is no network with an EMA: name it in TrainConfig.ema")
        part = self.trained[name]
        averaged = copy.deepcopy(part.network)
        for key, mean in part.ema.items():
            averaged.get_parameter(key).copy_(mean)
        return averaged.eval().requires_grad_(False)

    def ema_state_dict(self, name: str | None = None) -> dict[str, Tensor]:
        """The tensors of :meth:`ema_model`, on the CPU."""
        return {key: t.to("cpu", copy=True) for key, t in self.ema_model(name).state_dict().items()}

    # ---------------------------------------------------------------- files

    def write(self, path: Path) -> None:
        """Write the state atomically, by the first process; the others wait until it is there. Logs are reduced."""
        if self.accelerator.is_main_process:
            tensors = {f"sum.{name}": t for name, t in self.sums.items()}
            tensors |= {f"term.{name}": torch.tensor(value).double() for name, value in self.terms.items()}
            for name, part in self.trained.items():
                tensors |= {f"model.{name}.{key}": t for key, t in part.network.state_dict().items()}
                tensors |= {f"ema.{name}.{key}": t for key, t in part.ema.items()}
                for key, p in part.parameters.items():
                    for optimizer in part.optimizers:
                        state = optimizer.state.get(p, {})
                        tensors |= {f"optimizer.{name}.{key}.{what}": t for what, t in state.items() if t is not None}
            fields = {name: getattr(self, name) for name in (*NUMBERS, "run", "computed")}
            checkpoints.write_tensors(path, tensors, kind=STATE_FORMAT, fields=fields)
        self.accelerator.wait_for_everyone()

    def restore(self, path: Path) -> None:
        """Take up a written state; :class:`CheckpointError` says what makes it another run's."""
        tensors, fields = checkpoints.read_tensors(path, kind=STATE_FORMAT)
        ours, theirs = self.run, fields["run"]
        if differing := [
            f"{key} {_short(theirs, key)} there, {_short(ours, key)} here"
            for key in dict.fromkeys([*ours, *theirs])
            if ours.get(key) != theirs.get(key)
        ]:
            raise CheckpointError(
                f"{path}: is the state of another run: {'; '.join(differing[:8])}. Give the same networks, "
                "config, data and starting weights, another state_path, or resume=False to start over"
            )
        if fields["computed"] != self.computed and fields["step"] < self.config.steps:
            warnings.warn(
                f"{path}: was computed in {fields['computed']} and goes on in {self.computed}: no longer bit for bit "
                "the training that it would have been",
                stacklevel=2,
            )

        def below(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}

        for name, part in self.trained.items():
            checkpoints.place(part.network, below(f"model.{name}."), where=path)
            means = below(f"ema.{name}.")
            part.ema = {key: _like(p, means[key]) for key, p in part.parameters.items() if means}
            keys = {p: key for key, p in part.parameters.items()}
            for optimizer in part.optimizers:
                state = {}
                for p in (p for group in optimizer.param_groups for p in group["params"]):
                    state[len(state)] = {k: _like(p, t) for k, t in below(f"optimizer.{name}.{keys[p]}.").items()}
                optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        self.sums = {name: t.to(self.device) for name, t in below("sum.").items()}
        self.terms = {name: t.item() for name, t in below("term.").items()}
        for name in NUMBERS:
            setattr(self, name, fields[name])


def _like(p: Tensor, stored: Tensor) -> Tensor:
    """``stored`` laid out as its parameter, which fused kernels take for granted; a step count stays as it is."""
    if stored.shape != p.shape:
        return stored
    return torch.empty_like(p, memory_format=torch.preserve_format, requires_grad=False).copy_(stored)


def _short(values: dict[str, Any], key: str) -> str:
    text = repr(values[key]) if key in values else "nothing"
    return text if len(text) <= 72 else f"{text[:69]}..."
