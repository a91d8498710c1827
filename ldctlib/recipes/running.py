"""Running a recipe: its stages, the data they learn from, and what the checkpoint says of both."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ldctlib import checkpoints
from ldctlib.data.collection import open_collection
from ldctlib.data.patches import NoisePatches, PairedPatches, PatchConfig, scan_slices
from ldctlib.data.splits import split
from ldctlib.errors import CheckpointError, ParameterError
from ldctlib.profiles import PROFILES
from ldctlib.recipes import man, regression
from ldctlib.recipes.recipe import SMALL_BANKS, Recipe, Stage
from ldctlib.training import train

RECIPES: dict[str, Callable[[str], Recipe]] = {
    f.__name__: f
    for f in (
        regression.nafnet,
        regression.redcnn,
        man.autoencoder_simple,
        man.autoencoder_perceptual,
        man.man,
        man.man_simple,
        man.man_start,
        man.ddpm,
    )
}
"""In an order in which each finds what it needs."""


def recipe(name: str, profile: str = "train") -> Recipe:
    """The recipe of a checkpoint by name."""
    if name not in RECIPES:
        raise ParameterError(f"no recipe is named {name!r}; there are {', '.join(RECIPES)}")
    if profile not in PROFILES:
        raise ParameterError(f"profile is one of {', '.join(PROFILES)}; got {profile!r}")
    return RECIPES[name](profile)


def new_model(r: Recipe) -> nn.Module:
    """The recipe's network, initialised from the first stage's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(r.stages[0].train.seed)
        model = checkpoints.model_class(r.model)(**r.config)
        # RED-CNN adds its input at the end: from "return the input" it learns faster than from noise added to it
        return model.start_as_identity() if hasattr(model, "start_as_identity") else model


def run(
    name: str,
    profile: str = "train",
    *,
    out: str | Path = "runs/train",
    max_seconds: float | None = None,
    init_from: str | Path | None = None,
    stage: str | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    workers: int = 0,
    progress: bool = True,
    dry_run: bool = False,
):
    """Train a checkpoint, stage after stage; yields the training logs, tagged with the stage's name.

    States and each stage's result lie in ``out`` and are resumed; the last is ``out/NAME.safetensors``. ``init_from``
    starts from an earlier checkpoint; ``stage`` does one stage alone, from ``init_from`` or the stage before it.
    ``data`` is a folder of scans in place of the phantoms, its training patients only: pairs teach the scanner's own
    full dose, full-dose scans alone get simulated noise. ``dry_run`` takes two steps of every stage on small patches
    with a narrow network: does it start on this machine, with this data? Its results lie apart, in ``out/dry-run``.
    """
    r = recipe(name, profile)
    names = [s.name for s in r.stages]
    if stage is not None and stage not in names:
        raise ParameterError(f"the stages of {name} are {', '.join(names)}; got {stage!r}")
    dataset, notes, slices = _source(data)
    if str(r.notes.get("condition", "")).startswith("start"):
        notes.pop("condition", None)  # a prior alone is told nothing, whatever the folder holds
    stages = tuple(_counted(s, slices) for s in r.stages)
    r = replace(r, stages=stages, notes=r.notes | notes)
    out = Path(out)
    folders = (out,)  # of checkpoints that others need
    if dry_run:
        r = replace(r, stages=tuple(map(_dry, stages)), config=r.config if init_from else _narrow(r.config))
        out, profile = out / "dry-run", f"{profile} (dry run)"
        folders = (out, *folders)
    out.mkdir(parents=True, exist_ok=True)
    start, model = perf_counter(), new_model(r)
    before: Path | None = None
    for i, s in enumerate(r.stages):
        target = out / (f"{name}-{s.name}.safetensors" if i + 1 < len(r.stages) else f"{name}.safetensors")
        first = before if before is not None and before.is_file() else init_from
        before = target
        if stage not in (None, s.name):
            continue
        if i > 0 and first is None:
            raise ParameterError(
                f"stage {s.name!r} needs weights to start from: give init_from, or train {names[i - 1]!r} first"
            )
        left = None if max_seconds is None else max_seconds - (perf_counter() - start)
        if left is not None and left <= 0:
            return
        needed = {other: checkpoints.load(_find(folders, other)) for other in s.needs}
        if needed:  # a latent model is worthless with another autoencoder or first estimate than its own
            uses = {other: c.sha256 for other, c in needed.items()}
            r = replace(r, notes=r.notes | {"uses": uses})
            if i > 0 and first != init_from:
                _same_as_before(first, uses)
        log, samples = None, dataset(s.patches)
        state = None if dry_run else out / f"{name}-{s.name}.state"
        for log in train(
            model,
            r.loss(r, s, needed),
            samples,
            replace(s.train, device=device, num_workers=workers),
            state_path=state,
            init_from=first,
            max_seconds=left,
            progress=progress,
        ):
            yield s.name, log
        if first_process():
            measured = r.measure(log.ema_model(), r, samples) if r.measure else {}
            save(target, log.ema_state_dict(), replace(r, config=r.config | measured), profile, i, log.step)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # the next stage starts from this file
        if not log.finished:
            return


def _same_as_before(stage: Path, uses: dict[str, str]) -> None:
    """Whether the stage before this one used the same networks."""
    before = checkpoints.load(stage).trained_on.get("uses", {})
    if other := [name for name in uses if before.get(name, uses[name]) != uses[name]]:
        raise CheckpointError(
            f"{stage}: was trained with another {', '.join(other)} than there is now: put that one "
            f"back, or remove the file and its states to train this one from the start"
        )


def _find(folders: tuple[Path, ...], name: str) -> Path:
    """A checkpoint that another recipe made: in one of the folders, or the shipped one."""
    own = (folder / f"{name}.safetensors" for folder in folders)
    return next((path for path in own if path.is_file()), None) or checkpoints.shipped(name)


def _counted(s: Stage, slices: int | None) -> Stage:
    """The stage with its steps counted from its epochs, where a collection says how many slices an epoch has."""
    if s.epochs is None or slices is None:
        return s
    return replace(s, train=replace(s.train, steps=s.epochs * max(1, slices // s.train.batch_size)))


def _dry(s: Stage) -> Stage:
    """Two steps of one small patch a process and micro-batch; the ramp's end is within them."""
    banks = SMALL_BANKS | dict(size=128, slices=4, photographs=2, noises=2)
    processes, few = int(os.environ.get("WORLD_SIZE", "1")), min(2, s.train.accumulation)
    batch: dict[str, Any] = dict(batch_size=few * processes, accumulation=few)
    if s.train.batch_size % (s.train.accumulation * processes):
        batch = {}  # the training itself would refuse: so must this
    return replace(
        s,
        train=replace(s.train, steps=2, warmup_steps=0, log_every=1, **batch),
        patches=replace(s.patches, patch=64, **banks),
    )


def _narrow(config: dict[str, Any]) -> dict[str, Any]:
    """The same network with 32 channels at its widest resolution: it starts in seconds on any machine."""
    inner = {k: _narrow(v) for k, v in config.items() if isinstance(v, dict)}
    return config | inner | {k: min(config[k], 32) for k in ("width", "model_channels") if k in config}


def first_process() -> bool:
    """Whether this process writes: the only one, or torchrun's first."""
    return int(os.environ.get("RANK", "0")) == 0


def _source(folder: str | Path | None) -> tuple[Callable[[PatchConfig], Dataset], dict[str, Any], int | None]:
    """The dataset of a patch configuration, what the provenance says of it, and how many slices it holds."""
    if folder is None:
        return NoisePatches, {}, None
    collection = open_collection(folder)
    patients = split(collection)["train"]
    if not patients:
        raise ParameterError(f"{folder}: no patient falls into the training split; give more patients")
    chosen = collection.subset(patients)
    notes: dict[str, Any] = dict(collection=f"{collection.name} ({collection.layout})", cases=list(patients))
    pairs = chosen.pairs()
    slices = sum(case.n_slices for case in pairs or chosen)
    if len(pairs):
        # the target has its own noise: nothing is to be given back
        return (
            (lambda patches: PairedPatches(pairs, patches)),
            notes | dict(target="full dose", keep=0.0, condition="paired: the low-dose scan"),
            slices,
        )
    return (
        (lambda patches: NoisePatches(patches, draw_slices=scan_slices(chosen))),
        notes | dict(target="full-dose scan as if noise-free, simulated noise added", keep=0.0),
        slices,
    )


def save(path: str | Path, weights, r: Recipe, profile: str, stage: int = -1, steps: int | None = None) -> Path:
    """Write a recipe's weights with their provenance: ``steps`` of its ``stage``-th stage done, those before whole."""
    stage %= len(r.stages)
    seen = [s.patches for s in r.stages[: stage + 1]]  # all stages' noise, the last one's everything else
    noise = dict(sd_low_hu=min(p.sd_low_hu for p in seen), sd_high_hu=max(p.sd_high_hu for p in seen))
    patches = asdict(seen[-1]) | noise
    done = [s.train.steps for s in r.stages[:stage]] + [r.stages[stage].train.steps if steps is None else steps]
    return checkpoints.save(
        path,
        weights,
        model=r.model,
        config=r.config,
        units=r.range,
        schedule=r.schedule,
        trained_on=dict(
            collection="phantom and scikit-image's photographs, simulated noise",
            cases="random patients and photographs, drawn anew while training",
            seed=r.stages[0].train.seed,
            steps=sum(done),
            stages={s.name: n for s, n in zip(r.stages, done, strict=False)},
            profile=profile,
            code_revision=checkpoints.code_revision(),
            patches=patches,
        )
        | r.notes,
        quality={},
    )
