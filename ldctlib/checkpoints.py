"""Checkpoints: one safetensors file per model, provenance in its header, and a hash that is checked.

Nothing here unpickles. Published ``.pt`` files go through :func:`load_published`, a weights-only reader.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldctlib import __version__
from ldctlib.errors import CheckpointError
from ldctlib.files import write_whole
from ldctlib.units import Range

FORMAT = "ldctlib-checkpoint/2"
OLD_FORMAT = "ldctlib-checkpoint/1"

MODELS: dict[str, str] = {
    "redcnn": "ldctlib.models.redcnn:REDCNN",
    "nafnet": "ldctlib.models.nafnet:NAFNet",
    "esaunet": "ldctlib.models.esaunet:ESAUNet",
    "unet": "ldctlib.models.unet:UNet",
    "conditioned_unet": "ldctlib.models.conditioned_unet:ConditionedUNet",
    "autoencoder": "ldctlib.models.autoencoder:Autoencoder",
    "noise_autoencoder": "ldctlib.models.noise_autoencoder:NoiseAutoencoder",
    "clip": "ldctlib.models.clip:Clip",
    "dit": "ldctlib.models.dit:DiT",
    "controlnet": "ldctlib.models.controlnet:ControlNet",
    "vqgan": "ldctlib.models.vqgan:VQGAN",
    "patchgan": "ldctlib.models.patchgan:PatchGAN",
    "qae": "ldctlib.models.qae:QAE",
    "wgan_vgg": "ldctlib.models.wgan_vgg:WGANVGG",
    "wgan_critic": "ldctlib.models.wgan_vgg:WGANCritic",
    "dugan": "ldctlib.models.dugan:DUGANGenerator",
    "unet_discriminator": "ldctlib.models.dugan:UNetDiscriminator",
    "segmentation_unet": "ldctlib.models.segmentation_unet:SegmentationUNet",
    "transunet": "ldctlib.models.transunet:TransUNet",
    "iqa": "ldctlib.models.iqa:IQA",
}
"""Model name -> "module:class", imported only when a checkpoint names it."""

OUTPUTS = ("truth", "full dose")
"""What a network estimates: the noise-free image, or a full-dose image with its own noise."""

PROVENANCE = ("collection", "cases", "seed", "steps", "profile", "code_revision")
"""What ``trained_on`` must say."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds; ``state_dict`` is float32 whatever precision the file has.

    What steers inference is a field; ``trained_on``, ``stages`` and ``quality`` are for people.
    """

    state_dict: dict[str, Tensor]
    model: str  # a key of MODELS
    config: dict[str, Any]  # the constructor's keyword arguments
    hu_range: Range | None  # the physical interval that the model was trained on; None for one that is not in HU
    intensity_range: Range | None  # the same of a model of images in arbitrary units (MR)
    output: str  # one of OUTPUTS
    pipeline: dict[str, Any] | None  # of a diffusion model: pipelines.PipelineSpec as a dict
    uses: dict[str, str]  # networks that it was trained with, by name: the hash of their weights
    recipe: str  # what trained it, a key of recipes.RECIPES
    stages: list[dict[str, Any]]  # name, steps, seed and data of every stage
    trained_on: dict[str, Any]  # PROVENANCE and whatever else the recipe records
    quality: dict[str, Any]  # measured, by name
    sha256: str  # of the tensors as stored
    path: Path

    @property
    def scale(self) -> str:
        """What the model's images are in: "HU" or "arbitrary"."""
        return "arbitrary" if self.hu_range is None else "HU"

    @property
    def range(self) -> Range:
        """The interval that the model was trained on, in its :attr:`scale`, as an exact map."""
        if (found := self.hu_range or self.intensity_range) is None:
            raise CheckpointError(f"{self.path}: records no HU range and no intensity range: it is no model of images")
        return found


# ---------------------------------------------------------------- saving


def save(
    path: str | Path,
    weights: nn.Module | Mapping[str, Tensor],
    *,
    model: str,
    config: Mapping[str, Any],
    hu_range: Range | None,
    trained_on: Mapping[str, Any],
    intensity_range: Range | None = None,
    output: str = "truth",
    pipeline: Mapping[str, Any] | None = None,
    uses: Mapping[str, str] | None = None,
    recipe: str = "",
    stages: Sequence[Mapping[str, Any]] = (),
    quality: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write a checkpoint, whole or not at all, and return its path.

    ``weights`` is a module or a state dict; its float32 tensors are stored as ``dtype`` (float64 and
    integers stay). ``trained_on`` must hold every key of :data:`PROVENANCE`; :func:`code_revision` gives the
    last of them. Raises :class:`CheckpointError` if it lacks one, if ``model`` or ``output`` is unknown, if
    a weight is not finite in ``dtype``, if it has both ranges, or if a description cannot be written as JSON.
    """
    if model not in MODELS:
        raise CheckpointError(f"cannot save '{model}': checkpoints.MODELS knows {', '.join(sorted(MODELS))}")
    if output not in OUTPUTS:
        raise CheckpointError(f"cannot save '{model}': output is one of {OUTPUTS}, got {output!r}")
    if hu_range is not None and intensity_range is not None:
        raise CheckpointError(f"cannot save '{model}': its images are in HU or in arbitrary units, not in both")
    if missing := [key for key in PROVENANCE if key not in trained_on]:
        raise CheckpointError(f"cannot save '{model}': trained_on does not say {', '.join(missing)}")
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {}
    for name, tensor in state.items():
        stored = tensor.detach().to("cpu", dtype if tensor.dtype == torch.float32 else tensor.dtype)
        if stored.is_floating_point() and not torch.isfinite(stored).all():
            raise CheckpointError(f"cannot save '{model}': '{name}' is not finite as {stored.dtype}")
        tensors[name] = stored
    fields = dict(model=model, config=dict(config), output=output, pipeline=pipeline, uses=dict(uses or {}))
    fields |= dict(recipe=recipe, stages=list(stages), trained_on=dict(trained_on), quality=dict(quality or {}))
    for name, interval in (("hu_range", hu_range), ("intensity_range", intensity_range)):
        fields[name] = None if interval is None else asdict(interval)
    write_tensors(path, tensors, kind=FORMAT, fields=fields)
    return Path(path)


def update_quality(path: str | Path, quality: Mapping[str, Any]) -> None:
    """Replace the measured quality in a checkpoint's header; the tensors keep their bytes and their hash."""
    tensors, fields = _read_checkpoint(path)
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

    path : its file, or the name of a shipped one, which :func:`find` finds: "vqgan_semantic".

    Raises :class:`CheckpointError` that says which: missing, truncated, corrupted, of another format, incomplete.
    """
    path = find(str(path)) if str(path).isidentifier() and not Path(path).is_file() else Path(path)
    tensors, fields = _read_checkpoint(path)
    half = (torch.float16, torch.bfloat16)
    state = {n: t.to(map_location, torch.float32 if t.dtype in half else t.dtype) for n, t in tensors.items()}
    described = {field.name: fields.get(field.name) for field in dataclasses.fields(Checkpoint)}
    ranges = {n: Range(**fields[n]) if fields[n] else None for n in ("hu_range", "intensity_range")}
    return Checkpoint(**described | ranges | dict(state_dict=state, path=path))


def _read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and the fields of today's header."""
    tensors, fields = read_tensors(path, kind=(FORMAT, OLD_FORMAT))
    if fields.pop("format") == OLD_FORMAT:
        fields = _from_old_header(path, fields)
    fields.setdefault("intensity_range", None)  # headers from before there were images in other units
    in_header = {field.name for field in dataclasses.fields(Checkpoint)} - {"state_dict", "path"}
    if absent := sorted(in_header - set(fields)):
        raise CheckpointError(f"{path}: the header does not say {', '.join(absent)}; save it again")
    return tensors, fields


def _from_old_header(path: str | Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The first format kept what steers inference among the notes of ``trained_on``."""
    if absent := [n for n in ("model", "config", "units", "schedule", "trained_on", "quality") if n not in fields]:
        raise CheckpointError(f"{path}: the header does not say {', '.join(absent)}; save it again")
    notes, old, config = dict(fields["trained_on"]), fields["schedule"], fields["config"]
    uses, condition = notes.pop("uses", {}), str(notes.pop("condition", ""))
    pipeline = None
    if old is not None:
        autoencoder = next((name for name in uses if name.startswith("autoencoder")), None)
        estimator = next((name for name in uses if name != autoencoder), None)
        inputs = [name for name in ("concat", "context") if config.get(f"{name}_channels")]
        conditions = {} if condition.startswith("start") else {name: ["ldct"] for name in inputs}
        if fields["model"] == "conditioned_unet":
            conditions = {"concat": ["ldct", "ldct" if estimator is None else "estimate"]}
        process = {"schedule": old["name"], "T": old["T"], "prediction": old["prediction"]}
        if old.get("centred"):
            process["residual"] = True
        if "spread" in old:
            process["residual_std"] = old["spread"]
        pipeline = dict(process=process, autoencoder=autoencoder, estimator=estimator, conditions=conditions)
    stages = [{"name": name, "steps": steps} for name, steps in notes.pop("stages", {}).items()]
    if stages and (patches := notes.pop("patches", None)):
        stages[-1]["data"] = patches | {"noise_sd_hu": [patches.pop("sd_low_hu"), patches.pop("sd_high_hu")]}
    full_dose = notes.pop("keep", 0.25) == 0 and "full dose" in str(notes.get("target", "")).replace("-", " ")
    kept = {name: fields[name] for name in ("model", "config", "quality", "sha256")}
    output = "full dose" if full_dose else "truth"
    new = dict(hu_range=fields["units"], output=output, pipeline=pipeline, uses=uses, recipe=Path(path).stem)
    return kept | new | dict(stages=stages, trained_on=notes)


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


def find(name: str, *, sha256: str | None = None, folders: Sequence[str | Path] = ()) -> Path:
    """The file of a checkpoint by name, e.g. ``find("nafnet")``, and by the hash of its weights where one is asked for.

    Looks in ``folders``, then in the folder named by ``LDCT_CHECKPOINTS``, in the repository, in the installed package;
    for a hash also among files kept as ``name@….safetensors``. Raises CheckpointError that says what was found.
    """
    package = Path(__file__).resolve().parent
    named = os.environ.get("LDCT_CHECKPOINTS")
    places = [*map(Path, folders), *([Path(named)] if named else [])]
    places += [package.parent / "data" / "checkpoints", package / "checkpoints"]
    tried = []
    for folder in dict.fromkeys(places):
        for path in (folder / f"{name}.safetensors", *(sorted(folder.glob(f"{name}@*.safetensors")) if sha256 else ())):
            if path.is_file() and (sha256 is None or _read_header(path)[0].get("sha256") == sha256):
                return path
            tried += [str(path)] if path.is_file() else []
    if tried:
        raise CheckpointError(
            f"none of {', '.join(tried)} is the {name} with the hash {sha256[:12]}…: put that one beside it as "
            f"{name}@{sha256[:12]}.safetensors"
        )
    present = sorted({path.stem for folder in places for path in folder.glob("*.safetensors")})
    raise CheckpointError(
        f"no checkpoint '{name}' in {', '.join(map(str, places))} (there: {', '.join(present) or 'none'}). "
        "Run from a clone of the repository, or name its folder with LDCT_CHECKPOINTS, or train it: "
        f"python -m ldctlib.recipes {name} --profile train"
    )


def exists(name: str) -> bool:
    """Whether :func:`find` finds a checkpoint of this name."""
    try:
        return bool(find(name))
    except CheckpointError:
        return False


def load_published(path: str | Path, model: nn.Module, *, rename: Callable[[str], str] | None = None) -> dict[str, Any]:
    """Load a published ``.pt`` file into ``model`` without unpickling code; returns what else the file says.

    See :func:`read_published`. Raises :class:`CheckpointError` naming every key that could not be placed.
    """
    state, said = read_published(path, rename=rename)
    place(model, state, where=path)
    return said


def read_published(
    path: str | Path, *, rename: Callable[[str], str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of a published ``.pt`` file, and what else it says; no code is unpickled.

    The layout is ldct-benchmark's, ``{args: argparse.Namespace, iteration, model_state_dict}``, or a bare
    state dict. ``rename`` maps a published key to this project's; a DataParallel prefix ``module.`` goes by
    itself. Namespaces come as dicts. Raises :class:`CheckpointError` for a file that holds anything else.
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
    rest = {} if state is content else {k: v for k, v in content.items() if k != "model_state_dict"}
    return renamed, {k: vars(v) if isinstance(v, Namespace) else v for k, v in rest.items()}


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
    write_whole(path, serialise(tensors, metadata=header))


def read_tensors(path: str | Path, *, kind: str | tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote: tensors on the CPU, and the fields, ``sha256`` and ``format`` added."""
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    header, data = _read_header(path)
    try:
        tensors = deserialise(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: truncated or corrupted ({error}); get it again") from error
    if "format" not in header:
        raise CheckpointError(f"{path}: a safetensors file, but not one of ldctlib (its header names no format)")
    kinds = (kind,) if isinstance(kind, str) else kind
    if header["format"] not in kinds:
        raise CheckpointError(f"{path}: has format '{header['format']}', this reads '{kinds[0]}'")
    if header.get("sha256") != _hash_tensors(tensors) or header.get("header_sha256") != _hash_header(header):
        raise CheckpointError(f"{path}: corrupted: its content does not have the hash that it records; get it again")
    plain = ("format", "sha256", "header_sha256")
    fields = {name: json.loads(text) for name, text in header.items() if name not in plain}
    return tensors, fields | {"sha256": header["sha256"], "format": header["format"]}


def _read_header(path: str | Path) -> tuple[dict[str, str], bytes]:
    """A safetensors file's metadata, which nothing has checked yet, and its content.

    8 bytes of length, then JSON with the key ``__metadata__``.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if len(data) <= 8:
        raise CheckpointError(f"{path}: truncated: only {len(data)} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if data[8:9] != b"{":
        raise CheckpointError(f"{path}: not a safetensors file; for a published .pt file use load_published")
    if length > len(data) - 8:
        raise CheckpointError(f"{path}: truncated inside its header; get it again")
    try:
        header = json.loads(data[8 : 8 + length])
        return dict(header.get("__metadata__", {})), data
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
