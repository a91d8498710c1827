"""Checkpoints: one safetensors file per model, provenance in its header, and a hash that is checked.

Nothing here unpickles. Published ``.pt`` files go through :func:`load_published`, a weights-only reader.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldctlib import __version__
from ldctlib.errors import CheckpointError
from ldctlib.units import Range

FORMAT = "ldctlib-checkpoint/1"

MODELS: dict[str, str] = {
    "redcnn": "ldctlib.models.redcnn:REDCNN",
    "nafnet": "ldctlib.models.nafnet:NAFNet",
    "unet": "ldctlib.models.unet:UNet",
    "conditioned_unet": "ldctlib.models.conditioned_unet:ConditionedUNet",
    "autoencoder": "ldctlib.models.autoencoder:Autoencoder",
}
"""Model name -> "module:class", imported only when a checkpoint names it."""

PROVENANCE = ("collection", "cases", "seed", "steps", "profile", "code_revision")
"""What ``trained_on`` must say."""

_FIELDS = ("model", "config", "units", "schedule", "trained_on", "quality")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds; ``state_dict`` is float32 whatever precision the file has."""

    state_dict: dict[str, Tensor]
    model: str  # a key of MODELS
    config: dict[str, Any]  # the constructor's keyword arguments
    units: dict[str, Any] | None  # a units.Range as a dict
    schedule: dict[str, Any] | None  # the diffusion schedule, None for a regression network
    trained_on: dict[str, Any]  # PROVENANCE and whatever else the recipe records
    quality: dict[str, Any]  # measured, by name
    sha256: str  # of the tensors as stored
    path: Path

    @property
    def range(self) -> Range:
        """The physical interval that the model was trained on, as an exact map."""
        if self.units is None:
            raise CheckpointError(f"{self.path}: records no units, so its model's range is unknown")
        return Range(**self.units)


# ---------------------------------------------------------------- saving


def save(
    path: str | Path,
    weights: nn.Module | Mapping[str, Tensor],
    *,
    model: str,
    config: Mapping[str, Any],
    units: Range | Mapping[str, Any] | None,
    trained_on: Mapping[str, Any],
    quality: Mapping[str, Any],
    schedule: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write a checkpoint atomically and return its path.

    ``weights`` is a module or a state dict; its float32 tensors are stored as ``dtype`` (float64 and
    integers stay). ``trained_on`` must hold every key of :data:`PROVENANCE`; :func:`code_revision` gives the
    last of them. Raises :class:`CheckpointError` if it lacks one, if ``model`` is not in :data:`MODELS`, if
    a weight is not finite in ``dtype``, or if a description cannot be written as JSON.
    """
    if model not in MODELS:
        raise CheckpointError(f"cannot save '{model}': checkpoints.MODELS knows {', '.join(sorted(MODELS))}")
    if missing := [key for key in PROVENANCE if key not in trained_on]:
        raise CheckpointError(f"cannot save '{model}': trained_on does not say {', '.join(missing)}")
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {}
    for name, tensor in state.items():
        stored = tensor.detach().to("cpu", dtype if tensor.dtype == torch.float32 else tensor.dtype)
        if stored.is_floating_point() and not torch.isfinite(stored).all():
            raise CheckpointError(f"cannot save '{model}': '{name}' is not finite as {stored.dtype}")
        tensors[name] = stored
    described = {
        "model": model,
        "config": dict(config),
        "units": asdict(units) if isinstance(units, Range) else units,
        "schedule": schedule,
        "trained_on": dict(trained_on),
        "quality": dict(quality),
    }
    write_tensors(path, tensors, kind=FORMAT, fields=described)
    return Path(path)


def update_quality(path: str | Path, quality: Mapping[str, Any]) -> None:
    """Replace the measured quality in a checkpoint's header; the tensors keep their bytes and their hash."""
    tensors, fields = read_tensors(path, kind=FORMAT)
    fields.pop("sha256")
    write_tensors(path, tensors, kind=FORMAT, fields=fields | {"quality": dict(quality)})


def code_revision() -> str:
    """The git revision of this code, with ``+changes`` where it has any; the version outside a repository."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=30)
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        # An installed package may lie inside somebody else's repository, whose revision says nothing.
        revision = git("rev-parse", "--short=12", "HEAD") if (root / ".git").exists() else ""
        changes = "+changes" if revision and git("status", "--porcelain", "--", "ldctlib") else ""
    except (OSError, subprocess.TimeoutExpired):
        revision = changes = ""
    return revision + changes if revision else f"version {__version__}"


# ---------------------------------------------------------------- loading


def load(path: str | Path, *, map_location: str | torch.device = "cpu") -> Checkpoint:
    """Read and verify a checkpoint; half-precision tensors come back as float32.

    Raises :class:`CheckpointError` that says which: missing, truncated, corrupted, of another format,
    incomplete.
    """
    tensors, fields = read_tensors(path, kind=FORMAT)
    if absent := [name for name in _FIELDS if name not in fields]:
        raise CheckpointError(f"{path}: the header does not say {', '.join(absent)}; save it again")
    half = (torch.float16, torch.bfloat16)
    state = {n: t.to(map_location, torch.float32 if t.dtype in half else t.dtype) for n, t in tensors.items()}
    described = {name: fields[name] for name in _FIELDS}
    return Checkpoint(state_dict=state, sha256=fields["sha256"], path=Path(path), **described)


def model_class(name: str) -> type[nn.Module]:
    """The class that :data:`MODELS` lists under a name."""
    if name not in MODELS:
        raise CheckpointError(f"is of model '{name}', and MODELS knows {', '.join(sorted(MODELS))}")
    module, _, attribute = MODELS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"its model {MODELS[name]} cannot be imported ({error})") from error


def build(checkpoint: str | Path | Checkpoint, *, map_location: str | torch.device = "cpu") -> nn.Module:
    """The model that a checkpoint describes, with its weights, in eval mode."""
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load(checkpoint, map_location=map_location)
    where = checkpoint.path
    try:
        constructor = model_class(checkpoint.model)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    try:
        model = constructor(**checkpoint.config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: {constructor.__name__} does not take its config {checkpoint.config}: {error}"
        ) from error
    model.to(map_location)
    place(model, checkpoint.state_dict, where=where)
    return model.eval()


def place(model: nn.Module, state: Mapping[str, Tensor], *, where: str | Path) -> None:
    """Load ``state`` into ``model``; :class:`CheckpointError` names every key that does not fit."""
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshapen = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    problems = {"missing keys": missing, "unexpected keys": unexpected, "wrong shapes": misshapen}
    if found := "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names):
        raise CheckpointError(f"{where}: does not fit {type(model).__name__}: {found}")
    model.load_state_dict(dict(state))


def shipped(name: str) -> Path:
    """The path of a checkpoint that ships with the course, e.g. ``shipped("nafnet")``.

    Looks in the folder named by ``LDCT_CHECKPOINTS``, then in the repository, then in the installed package.
    """
    package = Path(__file__).resolve().parent
    named = os.environ.get("LDCT_CHECKPOINTS")
    folders = [Path(named)] if named else []
    folders += [package.parent / "data" / "checkpoints", package / "checkpoints"]
    for folder in folders:
        if (path := folder / f"{name}.safetensors").is_file():
            return path
    present = sorted({path.stem for folder in folders for path in folder.glob("*.safetensors")})
    raise CheckpointError(
        f"no checkpoint '{name}' in {', '.join(map(str, folders))} (there: {', '.join(present) or 'none'}). "
        "Run from a clone of the repository, or name its folder with LDCT_CHECKPOINTS, or train it: "
        f"python -m ldctlib.recipes {name} --profile train"
    )


def load_published(path: str | Path, model: nn.Module, *, rename: Callable[[str], str] | None = None) -> dict[str, Any]:
    """Load a published ``.pt`` file into ``model`` without unpickling code; returns what else the file says.

    The layout is ldct-benchmark's, ``{args: argparse.Namespace, iteration, model_state_dict}``, or a bare
    state dict. ``rename`` maps a published key to this project's; a DataParallel prefix ``module.`` goes by
    itself. Raises :class:`CheckpointError` naming every key that could not be placed.
    """
    from argparse import Namespace

    try:
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file") from error
    except Exception as error:  # the reader's errors have no common base: zip, pickle, EOF and runtime ones
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read as weights only ({reason}). It is damaged, or holds objects other than "
            "tensors, which are never unpickled here: save its state dict alone with the code that made it"
        ) from error
    state = content.get("model_state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{path}: holds no state dict, neither bare nor under 'model_state_dict'")
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        new = key.removeprefix("module.")
        new = rename(new) if rename else new
        if new in renamed:
            raise CheckpointError(f"{path}: two keys become '{new}' after renaming, one of them '{key}'")
        renamed[new] = tensor
    place(model, renamed, where=path)
    rest = {} if state is content else {k: v for k, v in content.items() if k != "model_state_dict"}
    return {k: vars(v) if isinstance(v, Namespace) else v for k, v in rest.items()}


# ---------------------------------------------------------------- the file, shared with training states


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], *, kind: str, fields: Mapping[str, Any]) -> None:
    """Write a safetensors file atomically; ``fields`` become JSON strings of its header, with their hash."""
    from safetensors.torch import save as serialise

    # safetensors takes neither strided nor shared storage
    tensors = {n: t.detach().to("cpu").clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    try:
        header = {name: json.dumps(value, allow_nan=False) for name, value in fields.items()}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: a description is not plain JSON ({error})") from error
    header |= {"format": kind, "sha256": _hash_tensors(tensors)}
    header["header_sha256"] = _hash_header(header)
    _write_atomically(Path(path), serialise(tensors, metadata=header))


def read_tensors(path: str | Path, *, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote: tensors on the CPU, and the fields with ``sha256`` added."""
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    header = _parse_header(path, data)
    try:
        tensors = deserialise(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: truncated or corrupted ({error}); get it again") from error
    if "format" not in header:
        raise CheckpointError(f"{path}: a safetensors file, but not one of ldctlib (its header names no format)")
    if header["format"] != kind:
        raise CheckpointError(f"{path}: has format '{header['format']}', this reads '{kind}'")
    if header.get("sha256") != _hash_tensors(tensors) or header.get("header_sha256") != _hash_header(header):
        raise CheckpointError(f"{path}: corrupted: its content does not have the hash that it records; get it again")
    plain = ("format", "sha256", "header_sha256")
    fields = {name: json.loads(text) for name, text in header.items() if name not in plain}
    return tensors, fields | {"sha256": header["sha256"]}


def _parse_header(path: str | Path, data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: 8 bytes of length, then JSON with the key ``__metadata__``."""
    if len(data) <= 8:
        raise CheckpointError(f"{path}: truncated: only {len(data)} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if data[8:9] != b"{":
        raise CheckpointError(f"{path}: not a safetensors file; for a published .pt file use load_published")
    if length > len(data) - 8:
        raise CheckpointError(f"{path}: truncated inside its header; get it again")
    try:
        header = json.loads(data[8 : 8 + length])
        return dict(header.get("__metadata__", {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its header is corrupted ({error}); get it again") from error


def _hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _hash_header(header: Mapping[str, str]) -> str:
    covered = {name: text for name, text in header.items() if name != "header_sha256"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def _write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed process left is overwritten
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
