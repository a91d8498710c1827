"""Devices: the one of a name, and whether it computes bfloat16 in hardware; emulated, that takes many times as long as
float32."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import torch

from ldctlib.errors import ParameterError

BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Linux's names of the instructions: AVX-512-BF16 and AMX-BF16 on x86, BF16 on Arm."""


@cache
def computes_bf16(device: str | torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether ``device`` multiplies bfloat16 in hardware.

    A CPU's features are read where Linux lists them. Elsewhere, and on Apple's GPUs, the answer is no: float32 is right
    everywhere.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu" or not cpuinfo.is_file():
        return False
    text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    features = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return features is not None and not BF16_FEATURES.isdisjoint(features[1].split())


def resolve_device(name: str) -> torch.device:
    """``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"`` as a device that exists here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ParameterError(f"device={name!r} is not a device; allowed: auto, cpu, cuda, cuda:N, mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ParameterError(f"device={name!r}, but PyTorch sees {count} CUDA devices here; use 'auto' or 'cpu'")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ParameterError(f"device={name!r}, but PyTorch sees no Apple GPU here; use 'auto' or 'cpu'")
    return device
