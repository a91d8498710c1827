"""The errors of this library: one base and a few kinds.

A message says what was wrong, where, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any


class LdctError(Exception):
    """Base of every error that this library raises on purpose."""


class ParameterError(LdctError, ValueError):
    """An argument or a notebook parameter has a value that cannot be used."""


class ShapeError(LdctError, ValueError):
    """A tensor does not have the shape that the contract asks for."""


class GeometryError(LdctError, ValueError):
    """A scanner geometry that cannot exist or cannot be computed."""


class ScanError(LdctError):
    """A scan or image file cannot be read, or cannot be written faithfully."""


class WriteError(LdctError, OSError):
    """A file or folder cannot be made or written: no permission, no room, no such place."""


class CheckpointError(LdctError):
    """A checkpoint is missing, damaged, or belongs to something else."""


class MissingDependency(LdctError, ImportError):
    """An optional package is needed; the message gives the command that installs it."""


def require(package: str, *, extra: str, needed_for: str):
    """Import an optional package, or raise :class:`MissingDependency` with the install command."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingDependency(
            f"{needed_for} needs the package '{package}', which cannot be imported here ({error}). "
            f'Install it with: pip install "ldctlib[{extra}]"'
        ) from error


def check_options(what: str, function: Callable, *given: Any, **options: Any) -> None:
    """Raise ParameterError unless ``function`` takes these arguments; ``what`` names it in the message."""
    try:
        signature(function).bind(*given, **options)
    except TypeError as error:
        raise ParameterError(f"{what} does not take these options: {error}") from error


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """``" (did you mean 'seed'?)"``, or an empty string where no allowed name is near."""
    near = difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""
