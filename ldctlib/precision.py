"""Whether a device computes bfloat16 in hardware; emulated, it takes many times as long as float32."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import torch

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
