"""Several processes as one, by ``accelerate``: the same weights everywhere, gradients averaged, ends agreed on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ldctlib.errors import ParameterError
from ldctlib.training.config import TrainConfig


def make_accelerator(config: TrainConfig):
    """The process group and this process's device, both as ``torchrun`` and ``config.device`` say."""
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


@torch.no_grad()
def share_from_first(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's values."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in tensors:
            first = tensor.detach().contiguous()  # channels-last weights are not
            torch.distributed.broadcast(first, src=0)
            tensor.copy_(first)


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], accelerator) -> None:
    """Average ``.grad`` over the processes, in one message; a parameter that no process used keeps None.

    This takes the place of DistributedDataParallel, which knows neither a gradient penalty (the gradient of an input,
    differentiated again) nor a backward pass that leaves out some of its parameters.
    """
    if accelerator.num_processes == 1:
        return
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=accelerator.device)
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters]
    used, *means = accelerator.reduce(torch.cat([used, *parts]), "mean").split([len(parts), *map(len, parts)])
    for i, (p, mean) in enumerate(zip(parameters, means, strict=True)):
        if p.grad is None and used[i] > 0:
            p.grad = torch.empty_like(p)
        if p.grad is not None:
            p.grad.copy_(mean.view(p.shape))


def any_process(accelerator, wish: bool) -> bool:
    """True on every process when one of them wishes it: they must end at the same step."""
    if accelerator.num_processes == 1:
        return wish
    return bool(accelerator.reduce(torch.tensor(float(wish), device=accelerator.device), "sum") > 0)
