"""The validated parameters of a notebook, and the metrics that it writes.

A notebook's first code cell, tagged ``parameters``, holds plain assignments (``profile``, ``data``, ``out``,
``seed``, ``device``, then more of its own). Its second cell hands them over::

    settings = notebook.parameters("01_data_and_dose", profile=profile, data=data, out=out, seed=seed,
                                   device=device, doses=doses)

An unknown profile, a missing folder, an impossible device, or a name that papermill injected although the
notebook has no such parameter, is a :class:`~ldctlib.errors.ParameterError` that says what is allowed.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldctlib.errors import ParameterError, did_you_mean
from ldctlib.files import make_folder, write_json
from ldctlib.precision import resolve_device
from ldctlib.profiles import PROFILES, SOURCES, Profile, find_profile

COMMON = ("profile", "data", "out", "seed", "device")
"""The parameters that every notebook has."""


@dataclass(frozen=True)
class Settings:
    """Validated parameters of one notebook."""

    notebook: str
    profile: Profile
    data: str | Path  # the name of an embedded source, or an existing folder or file
    out: Path  # an existing folder, for what this notebook writes
    seed: int
    device: torch.device
    more: Mapping[str, Any]  # the parameters that only this notebook has, by name

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
        record = {"notebook": self.notebook, "profile": self.profile.name, "data": self._data_name()}
        record |= {"seed": self.seed, "device": str(self.device), "metrics": metrics}
        return write_json(self.out / "metrics.json", record)

    def new_path(self, name: str) -> Path:
        """A path in ``out`` that does not exist yet: ``name``, or ``name-2``, ``name-3``, … before the extension."""
        stem, dot, extension = name.partition(".")
        path, number = self.out / name, 1
        while path.exists():
            number += 1
            path = self.out / f"{stem}-{number}{dot}{extension}"
        return path

    def _data_name(self) -> str:
        """Without the folders above it: a committed notebook prints this."""
        return self.data if isinstance(self.data, str) else self.data.name

    def __str__(self) -> str:
        more = "".join(f", {name}={value!r}" for name, value in self.more.items())
        start = f"{self.notebook}: profile={self.profile.name}, data={self._data_name()}"
        return f"{start}, seed={self.seed}, {self.device}{more}"


def parameters(
    notebook: str, *, profile="workshop", data="phantom", out: str | os.PathLike, seed=0, device="auto", **more: Any
) -> Settings:
    """Validate a notebook's parameters and make its output folder.

    data : ``"phantom"``, ``"sample"``, ``"natural"`` as the profile allows, or an existing folder or file
    out : a folder, made if needed
    seed : an integer ≥ 0
    device : ``"auto"`` (CUDA if there is one, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``
    more : the parameters that only this notebook has, kept as they are

    Raises ParameterError, also for a name that papermill injected and that is none of the above.
    """
    check_names(_injected_names(), (*COMMON, *more), where=notebook)
    common = check_common(profile=profile, data=data, seed=seed, device=device)
    return Settings(notebook, out=make_folder(out), more=more, **common)


def check_common(
    *, profile: str = "workshop", data: str | os.PathLike = "phantom", seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    """The parameters of every notebook but ``out``, validated; nothing is written. Raises ParameterError."""
    chosen = find_profile(profile)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ParameterError(f"seed={seed!r} must be an integer from 0 to 2147483647")
    return {"profile": chosen, "data": _find_data(data, chosen), "seed": seed, "device": resolve_device(device)}


def check_names(names: Iterable[str], allowed: Iterable[str], *, where: str) -> None:
    """Raise ParameterError if a name is not allowed, with the nearest allowed one."""
    allowed = tuple(allowed)
    for name in names:
        if name not in allowed:
            near = did_you_mean(name, allowed)
            raise ParameterError(f"{where} has no parameter '{name}'{near}. It has: {', '.join(allowed)}")


def check_multiple(name: str, value: Any, of: int, least: int = 1) -> None:
    """Raise ParameterError unless a notebook's parameter is an integer, a multiple of ``of``, and ``least`` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or value % of:
        first = -(-least // of) * of
        raise ParameterError(f"{name}={value!r} must be a whole number: {first}, {first + of}, {first + 2 * of}, …")


def _find_data(data: str | os.PathLike, profile: Profile) -> str | Path:
    if isinstance(data, int) and not isinstance(data, bool):
        data = str(data)  # a folder's name, which papermill takes for a number
    if data in profile.data:
        return data
    embedded = f"{', '.join(profile.data)}, or " if profile.data else ""
    allowed = f"profile '{profile.name}' takes {embedded}the path of a folder of scans (data/README.md)"
    if data in SOURCES:
        raise ParameterError(f"data={data!r} cannot be used here: {allowed}")
    if not isinstance(data, str | os.PathLike) or data == "" or not Path(data).expanduser().exists():
        near = did_you_mean(data, profile.data)
        raise ParameterError(f"data={str(data)!r} does not exist{near}; {allowed}")
    return Path(data).expanduser()


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
