"""Profiles, and the validated parameters of a notebook.

A notebook's first code cell, tagged ``parameters``, holds plain assignments (``profile``, ``data``, ``out``,
``seed``, ``device``, then its own). Its second cell hands them over::

    settings = profiles.parameters("01_data_and_dose", profile=profile, data=data, out=out, seed=seed,
                                   device=device, doses=doses)

An unknown profile, a missing folder, an impossible device, or a name that papermill injected although the
notebook has no such parameter, is a :class:`~ldctlib.errors.ParameterError` that says what is allowed.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldctlib.errors import ParameterError

COMMON = ("profile", "data", "out", "seed", "device")
"""The parameters that every notebook has."""


@dataclass(frozen=True)
class Profile:
    """How much of the real thing a run does."""

    name: str
    purpose: str
    time: str
    data: tuple[str, ...]  # the embedded sources that it accepts; a folder is accepted by all


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "workshop",
            "reading, teaching, make test: shipped checkpoints and a short live training",
            "at most 60 s a notebook on 2 CPU cores",
            ("phantom", "sample"),
        ),
        Profile(
            "train",
            "reproduces the shipped checkpoints, at their sizes",
            "minutes on a GPU, hours on a CPU; resumable",
            ("phantom", "natural", "sample"),
        ),
        Profile(
            "paper",
            "the published sizes, steps and schedules on the real collections",
            "GPUs, hours to days, under torchrun",
            (),
        ),
    )
}

SOURCES = {
    "phantom": "random patients, simulated at any dose",
    "sample": "the real CT slice inside pydicom's wheel",
    "natural": "scikit-image's photographs",
}
"""Data that needs no download; everything else is a folder."""


@dataclass(frozen=True)
class Settings:
    """Validated parameters of one notebook."""

    notebook: str
    profile: Profile
    data: str | Path  # the name of an embedded source, or an existing folder or file
    out: Path  # an existing folder, for what this notebook writes
    seed: int
    device: torch.device
    own: Mapping[str, Any]  # the notebook's own parameters, by name

    def pick(self, **by_profile: Any) -> Any:
        """The value for this run's profile: ``settings.pick(workshop=4, train=32, paper=32)``."""
        if set(by_profile) != set(PROFILES):
            raise ParameterError(f"pick() needs one value for each of {', '.join(PROFILES)}")
        return by_profile[self.profile.name]

    def generator(self, stream: int = 0) -> torch.Generator:
        """A fresh CPU generator; the same ``stream`` always gives the same numbers, others differ."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + stream)

    def write_metrics(self, metrics: Mapping[str, Any]) -> Path:
        """Write ``metrics.json`` (numbers, strings, lists of them) into ``out``, whole or not at all."""
        record = {
            "notebook": self.notebook,
            "profile": self.profile.name,
            "data": str(self.data) if isinstance(self.data, str) else self.data.name,
            "seed": self.seed,
            "device": str(self.device),
            "metrics": {name: _plain(value) for name, value in metrics.items()},
        }
        path = self.out / "metrics.json"
        partial = path.with_suffix(f".{os.getpid()}.part")
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return path

    def __str__(self) -> str:
        own = "".join(f", {name}={value!r}" for name, value in self.own.items())
        data = self.data if isinstance(self.data, str) else self.data.name
        return f"{self.notebook}: profile={self.profile.name}, data={data}, seed={self.seed}, {self.device}{own}"


def parameters(
    notebook: str,
    *,
    profile: str = "workshop",
    data: str | os.PathLike = "phantom",
    out: str | os.PathLike,
    seed: int = 0,
    device: str = "auto",
    **own: Any,
) -> Settings:
    """Validate a notebook's parameters and make its output folder.

    data     ``"phantom"``, ``"sample"``, ``"natural"`` as the profile allows, or an existing folder or file
    out      a folder, made if needed
    seed     an integer ≥ 0
    device   ``"auto"`` (CUDA if there is one, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``
    own      the notebook's own parameters, kept as they are in ``Settings.own``

    Raises ParameterError, also for a name that papermill injected and that is none of the above.
    """
    check_names(_injected_names(), (*COMMON, *own), where=notebook)
    chosen = _profile(profile)
    return Settings(notebook, chosen, _data(data, chosen), _folder(out), _seed(seed), resolve_device(device), dict(own))


def check_names(given: Iterable[str], allowed: Iterable[str], *, where: str) -> None:
    """Raise ParameterError if a given name is not allowed, with the nearest allowed one."""
    allowed = tuple(allowed)
    for name in given:
        if name not in allowed:
            raise ParameterError(
                f"{where} has no parameter '{name}'{did_you_mean(name, allowed)}. It has: {', '.join(allowed)}"
            )


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """``" (did you mean 'seed'?)"`` or an empty string."""
    near = difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""


def resolve_device(name: str) -> torch.device:
    """``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"`` as a device that exists here."""
    allowed = "auto, cpu, cuda, cuda:N, mps"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ParameterError(f"device={name!r} is not a device; allowed: {allowed}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ParameterError(f"device={name!r}, but PyTorch sees {count} CUDA devices here; use 'auto' or 'cpu'")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ParameterError(f"device={name!r}, but PyTorch sees no Apple GPU here; use 'auto' or 'cpu'")
    return device


def _profile(name: str) -> Profile:
    if name not in PROFILES:
        raise ParameterError(
            f"profile={name!r} does not exist{did_you_mean(name, PROFILES)}. Allowed: {', '.join(PROFILES)}"
        )
    return PROFILES[name]


def _data(data: str | os.PathLike, profile: Profile) -> str | Path:
    if data in profile.data:
        return data
    embedded = f"{', '.join(profile.data)}, or " if profile.data else ""
    allowed = f"profile '{profile.name}' takes {embedded}the path of a folder of scans (data/README.md)"
    if data in SOURCES:
        raise ParameterError(f"data={data!r} cannot be used here: {allowed}")
    if data == "" or not Path(data).expanduser().exists():
        hint = did_you_mean(os.fspath(data), profile.data)
        raise ParameterError(f"data={os.fspath(data)!r} does not exist{hint}; {allowed}")
    return Path(data).expanduser()


def _folder(out: str | os.PathLike) -> Path:
    path = Path(out).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParameterError(f"out={os.fspath(out)!r} cannot be made a folder: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise ParameterError(f"out={os.fspath(out)!r} cannot be written to; name another folder")
    return path


def _seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ParameterError(f"seed={seed!r} must be an integer from 0 to 2147483647")
    return seed


def _plain(value: Any) -> Any:
    """Tensors and NumPy scalars as JSON's own types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _injected_names() -> list[str]:
    """Names assigned by the cell that papermill injected into the running notebook, if any.

    Papermill only warns of a ``-p`` name that the notebook does not know. The kernel's record of executed
    cells shows the injected one by its first line, whatever has been run since.
    """
    if "IPython" not in sys.modules:
        return []
    shell = sys.modules["IPython"].get_ipython()
    executed = shell.user_ns.get("In", []) if shell else []
    injected = [source for source in executed if source.startswith("# Parameters\n")]
    nodes = (node for source in injected[-1:] for node in ast.parse(source).body)
    return [t.id for node in nodes if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)]
