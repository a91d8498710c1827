"""Running a recipe: its stages, the data they learn from, and what the checkpoint says of both."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import nn

from ldctlib import checkpoints
from ldctlib.data.collection import open_collection
from ldctlib.data.six_dose import SixDoseConfig
from ldctlib.data.splits import split
from ldctlib.errors import CheckpointError, ParameterError, did_you_mean
from ldctlib.files import make_folder, only_one
from ldctlib.profiles import PROFILES
from ldctlib.recipes import (
    adversarial,
    clip,
    ddnm,
    diffusion,
    dndp,
    iqa,
    leda,
    man,
    na_baselines,
    na_diff,
    regression,
    segmentation,
)
from ldctlib.recipes.recipe import Context, Network, Recipe, Stage
from ldctlib.training import TrainConfig, TrainLog, train
from ldctlib.training.processes import make_accelerator

RECIPES: dict[str, Mapping[str, Recipe]] = {
    "nafnet_start": regression.NAFNET_START,
    "nafnet": regression.NAFNET,
    "redcnn": regression.REDCNN,
    "autoencoder_simple": man.AUTOENCODER_SIMPLE,
    "autoencoder_perceptual": man.AUTOENCODER_PERCEPTUAL,
    "man": man.MAN,
    "man_simple": man.MAN_SIMPLE,
    "man_paper": man.MAN_PAPER,
    "man_start": man.MAN_START,
    "ddpm": diffusion.DDPM,
    "fast_ddpm": diffusion.FAST_DDPM,
    "fast_ddpm_non_uniform": diffusion.FAST_DDPM_NON_UNIFORM,
    "prior_ct": ddnm.PRIOR_CT,
    "dndp_low": dndp.DNDP_LOW,
    "dndp_high": dndp.DNDP_HIGH,
    "prior_mr": ddnm.PRIOR_MR,
    "clip": clip.CLIP,
    **leda.RECIPES,
    "na_autoencoder": na_diff.NA_AUTOENCODER,
    **na_diff.RECIPES,
    **na_baselines.RECIPES,
    "qae": adversarial.QAE,
    "wgan_vgg": adversarial.WGAN_VGG,
    "wgan_vgg_redcnn": adversarial.WGAN_VGG_REDCNN,
    "dugan": adversarial.DUGAN,
    "dugan_redcnn": adversarial.DUGAN_REDCNN,
    "segmenter": segmentation.SEGMENTER,
    "transunet": segmentation.TRANSUNET,
    "iqa_simulated_dose": iqa.IQA,
}
"""Recipes by the name of their checkpoint, each with one entry a profile."""


def recipe(name: str, profile: str = "train") -> Recipe:
    """The recipe of a checkpoint by name."""
    if name not in RECIPES:
        raise ParameterError(
            f"no recipe is named {name!r}{did_you_mean(name, RECIPES)}; there are {', '.join(RECIPES)}"
        )
    if profile not in PROFILES:
        raise ParameterError(f"profile is one of {', '.join(PROFILES)}; got {profile!r}")
    return RECIPES[name][profile]


def needs(name: str, profile: str = "train") -> tuple[str, ...]:
    """The checkpoints that a recipe needs: those its stages use, and those its networks start from."""
    chosen = recipe(name, profile)
    used = [other for stage in chosen.stages for other in chosen.needs(stage)]
    return tuple(dict.fromkeys([*used, *(n.start for n in chosen.networks.values() if n.start)]))


def training_order(names=None, profile: str = "train") -> list[str]:
    """The recipes in an order in which each finds what it needs."""
    ordered: list[str] = []

    def visit(name: str, path: tuple[str, ...] = ()) -> None:
        if name in path:
            raise ParameterError(f"these recipes need one another: {' -> '.join((*path, name))}")
        for other in needs(name, profile):
            visit(other, (*path, name))
        if name not in ordered:
            ordered.append(name)

    for name in RECIPES if names is None else names:
        visit(name)
    return [name for name in ordered if names is None or name in names]


def graph(profile: str = "train") -> str:
    """Who needs whom, and who has to be trained again after whom, as text."""
    lines = []
    used = {name: needs(name, profile) for name in training_order(profile=profile)}
    for name in used:
        again = [other for other in used if name in used[other]]
        parts = [f"needs {', '.join(used[name])}"] if used[name] else []
        parts += [f"train again after it: {', '.join(again)}"] if again else []
        lines.append(f"{name}: {'; '.join(parts) or 'stands alone'}")
    return "\n".join(lines)


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class Source:
    """What a training learns from: phantoms, or the training patients of a folder of scans, of one scale."""

    collection: Any = None  # data.collection.Collection of the training patients
    described: Mapping[str, Any] = None  # goes into trained_on and into the state's identity
    output: str | None = None  # what a network trained on it estimates, where the data decide
    n_slices: int | None = None

    @classmethod
    def open(cls, folder: str | Path | None, chosen: Recipe, name: str | None = None) -> Source:
        """Phantoms without a folder; else its training patients: pairs if it has any, or full-dose scans, for
        generators those with labels.

        Who they are says the split ``name``, a file of data/splits, or a hash. For a recipe of images in arbitrary
        units they are scans as they are.
        """
        scale, data = chosen.scale, chosen.stages[0].data
        if folder is None:
            if name is not None:
                raise ParameterError(f"split {name!r} divides the patients of a folder: give data")
            return cls(
                described=dict(
                    collection=data.embedded, cases="random patients and photographs, drawn anew while training"
                )
            )
        collection = open_collection(folder)
        patients = split(collection, name=name)["train"]
        if not patients:
            raise ParameterError(f"{folder}: no patient falls into the training split; give more patients")
        chosen = collection.subset(patients)
        described = dict(collection=f"{collection.name} ({collection.layout})", cases=list(patients))
        described |= {} if name is None else dict(split=name)
        if scale == "HU":
            pairs, described["target"] = chosen.pairs(), "full-dose scan"
            if len(pairs):
                chosen = pairs
            elif isinstance(data, SixDoseConfig):
                chosen, described["target"] = chosen.labelled(), "full-dose scan as it is, with the mask of its labels"
            else:
                described["target"] += " as if noise-free, simulated noise added"
        else:
            described["target"] = "scan with its own noise"
        output = "full dose" if scale == "HU" else None
        return cls(chosen, described, output, sum(case.n_slices for case in chosen))


# ---------------------------------------------------------------- stages


class StageRun(NamedTuple):
    """One stage of a run: where it starts from and what it writes."""

    stage: Stage
    index: int
    target: Path  # the checkpoint that it writes
    state: Path | None
    init_from: Path | None  # the stage before it, or a checkpoint of the caller's


def run(
    name: str,
    profile: str = "train",
    *,
    out: str | Path = "runs/train",
    max_seconds: float | None = None,
    init_from: str | Path | None = None,
    stage: str | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    workers: int = 0,
    progress: bool = True,
    dry_run: bool = False,
    seed: int = 0,
) -> Iterator[tuple[str, TrainLog]]:
    """Train a checkpoint, stage after stage; yields the training logs, tagged with the stage's name.

    States and each stage's result lie in ``out`` and are resumed; the last is ``out/NAME.safetensors``. ``init_from``
    starts from an earlier checkpoint; ``stage`` does one stage alone, from ``init_from`` or the stage before it.
    ``data`` is a folder of scans in place of the phantoms, its training patients only: pairs teach the scanner's own
    full dose, full-dose scans alone get simulated noise; ``split`` names a file of data/splits that says who they are.
    ``options`` replace those of the stages that have them: ``{"clip": "a folder"}`` trains LEDA's autoencoder at the
    paper profile with the CLIPModel there. A state of other data, options or another recipe is refused.
    ``dry_run`` takes two steps of every stage on small patches with a narrow network: does it start on this machine,
    with this data? Its results lie apart, in ``out/dry-run``. Another ``seed`` than 0 draws other samples, noise and
    initial weights; give it an ``out`` of its own. WriteError if another process trains the same recipe there.
    """
    options = {key: str(value) if isinstance(value, Path) else value for key, value in (options or {}).items()}
    if workers < 0:
        raise ParameterError(f"workers is 0 (none but this process) or more, got {workers}")
    out, chosen = make_folder(out), with_options(reseeded(recipe(name, profile), seed), options)
    source = Source.open(data, chosen, split)
    if options:
        source = replace(source, described={**source.described, "options": options})
    stages = tuple(steps_from_epochs(s, source.n_slices) for s in chosen.stages)
    chosen = replace(chosen, stages=stages, output=source.output or chosen.output)
    folders = (out,)  # of checkpoints that others need
    if dry_run:
        chosen, profile, out = dry(chosen, narrow=init_from is None), f"{profile} (dry run)", out / "dry-run"
        folders = (out, *folders)
    start, log = perf_counter(), None
    lock = only_one(out / f".{name}.lock", f"{out / name}") if first_process() else nullcontext()
    with lock:
        for part in plan(name, chosen, out, init_from=init_from, only=stage, keep_states=not dry_run):
            left = None if max_seconds is None else max_seconds - (perf_counter() - start)
            if log is not None and left is not None and left <= 0:
                return  # every call does a step at least
            config = replace(part.stage.train, device=device, num_workers=workers)
            how = dict(max_seconds=left, progress=progress)
            for log in run_stage(name, profile, chosen, part, source, folders, config, **how):
                yield part.stage.name, log
            if not log.finished:
                return


def plan(name: str, chosen: Recipe, out: Path, *, init_from=None, only=None, keep_states=True) -> Iterator[StageRun]:
    """The stages to run, each made when its turn comes: it starts from what the one before has written."""
    names = [s.name for s in chosen.stages]
    if only is not None and only not in names:
        raise ParameterError(f"the stages of {name} are {', '.join(names)}; got {only!r}")
    before: Path | None = None
    for index, stage in enumerate(chosen.stages):
        last = index + 1 == len(chosen.stages)
        target = out / (f"{name}.safetensors" if last else f"{name}-{stage.name}.safetensors")
        first = before if before is not None and before.is_file() else init_from
        before = target
        if only not in (None, stage.name):
            continue
        if index > 0 and first is None:
            raise ParameterError(
                f"stage {stage.name!r} needs weights to start from: give init_from, or train {names[index - 1]!r} first"
            )
        state = out / f"{name}-{stage.name}.state" if keep_states else None
        yield StageRun(stage, index, target, state, None if first is None else Path(first))


def run_stage(
    name: str, profile: str, chosen: Recipe, part: StageRun, source: Source, folders, config: TrainConfig, **options
) -> Iterator[TrainLog]:
    """Train one stage and write its checkpoint; yields the training logs. ``options`` go to the training loop."""
    stage = part.stage
    needed = {other: checkpoints.load(checkpoints.find(other, folders=folders)) for other in chosen.needs(stage)}
    uses = {other: c.sha256 for other, c in needed.items()}
    if part.index > 0 and uses:
        _check_same_dependencies(part.init_from, uses)
    networks = {key: n.build(chosen.stages[0].train.seed + i) for i, (key, n) in enumerate(chosen.networks.items())}
    started = _start(chosen.networks, networks, folders) if part.init_from is None else {}
    samples = stage.data.open(source.collection)
    context = Context(chosen, stage, networks, needed, make_accelerator(config).device, samples, source.described)
    if chosen.prepare is not None:
        samples = chosen.prepare(context, part.target.parent)
        context = replace(context, samples=samples)
    identity = dict(recipe=name, profile=profile, stage=stage.name, networks=started, uses=uses, **source.described)
    files = dict(state_path=part.state, init_from=part.init_from, identity=identity)
    trained = networks if len(networks) > 1 else context.network
    for log in train(trained, chosen.updates(context), samples, config, **files, **options):
        yield log
    if first_process():
        config = chosen.finish(log.ema_model(), chosen, samples) if chosen.finish else {}
        done = dict(config=config, uses=uses, index=part.index, steps=log.step, described=source.described)
        save(part.target, log.ema_state_dict(), name, chosen, profile, **done)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()  # the next stage starts from this file


def _start(networks: Mapping[str, Network], built: Mapping[str, nn.Module], folders) -> dict[str, Any]:
    """Place the weights that networks start from; returns where from, and what was initialised anew."""
    started = {}
    for key, network in networks.items():
        if network.start is not None:
            checkpoint = checkpoints.load(checkpoints.find(network.start, folders=folders))
            anew = network.place(built[key], checkpoint)
            started[key] = {"start": network.start, "sha256": checkpoint.sha256, "initialised anew": anew}
    return started


def _check_same_dependencies(before: Path, uses: Mapping[str, str]) -> None:
    """Raise CheckpointError unless the stage before this one used the same networks."""
    earlier = checkpoints.load(before).uses
    if other := [name for name in uses if earlier.get(name, uses[name]) != uses[name]]:
        raise CheckpointError(
            f"{before}: was trained with another {', '.join(other)} than there is now: put that one "
            f"back, or remove the file and its states to train this one from the start"
        )


def reseeded(chosen: Recipe, seed: int) -> Recipe:
    """The recipe with the seeds of training and data shifted, far enough that no other recipe's are met."""
    if not seed:
        return chosen
    shift = 10_000 * seed
    stages = tuple(
        replace(s, train=replace(s.train, seed=s.train.seed + shift), data=replace(s.data, seed=s.data.seed + shift))
        for s in chosen.stages
    )
    return replace(chosen, stages=stages)


def with_options(chosen: Recipe, options: Mapping[str, Any]) -> Recipe:
    """The recipe with other values of its stages' options. Raises ParameterError for one that no stage has."""
    if not options:
        return chosen
    known = {name: None for s in chosen.stages for name in s.options}
    for name in options:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "it has none"
            raise ParameterError(f"this recipe has no option {name!r}{did_you_mean(name, known)}; {there}")
    stages = tuple(
        replace(s, options=s.options | {k: v for k, v in options.items() if k in s.options}) for s in chosen.stages
    )
    changed = replace(chosen, stages=stages)
    return changed if chosen.fit is None else chosen.fit(changed)


def steps_from_epochs(stage: Stage, n_slices: int | None) -> Stage:
    """The stage with its steps counted from its epochs, where a collection says how many slices an epoch has."""
    if stage.epochs is None or n_slices is None:
        return stage
    steps = stage.epochs * max(1, n_slices // stage.train.batch_size)
    return replace(stage, train=replace(stage.train, steps=steps))


def dry(chosen: Recipe, *, narrow: bool) -> Recipe:
    """Two steps a stage, of one small patch a process and micro-batch, by networks of at most 32 channels."""

    def small(stage: Stage) -> Stage:
        processes, few = int(os.environ.get("WORLD_SIZE", "1")), min(2, stage.train.accumulation)
        batch: dict[str, Any] = dict(batch_size=few * processes, accumulation=few)
        if stage.train.batch_size % (stage.train.accumulation * processes):
            batch = {}  # the training itself would refuse: so must this
        config = replace(stage.train, steps=2, warmup_steps=0, log_every=1, **batch)
        return replace(stage, train=config, data=stage.data.tiny(stage.sides))

    networks = {k: replace(n, config=_narrow(n.config)) if narrow else n for k, n in chosen.networks.items()}
    return replace(chosen, stages=tuple(map(small, chosen.stages)), networks=networks)


def _narrow(config: dict[str, Any]) -> dict[str, Any]:
    """The same network with 32 channels at its widest resolution: it starts in seconds on any machine."""
    inner = {k: _narrow(v) for k, v in config.items() if isinstance(v, dict)}
    if "hidden_size" in config:  # a transformer
        inner |= dict(hidden_size=32, depth=2, num_heads=2)
    return config | inner | {k: min(config[k], 32) for k in ("width", "model_channels") if k in config}


def first_process() -> bool:
    """Whether this process writes: the only one, or torchrun's first."""
    return int(os.environ.get("RANK", "0")) == 0


def save(
    path: str | Path,
    weights: nn.Module | Mapping[str, torch.Tensor],
    name: str,
    chosen: Recipe,
    profile: str,
    *,
    config: Mapping[str, Any] | None = None,
    uses: Mapping[str, str] | None = None,
    index: int = -1,
    steps: int | None = None,
    described: Mapping[str, Any] | None = None,
) -> Path:
    """Write a recipe's weights with their provenance: ``steps`` of its ``index``-th stage done, those before whole.

    Those of the paper profile stay float32, a published vocabulary's embeddings with them; others are small enough to
    ship, in float16.
    """
    seen = chosen.stages[: index % len(chosen.stages) + 1]
    done = [s.train.steps for s in seen[:-1]] + [seen[-1].train.steps if steps is None else steps]
    return checkpoints.save(
        path,
        weights,
        model=chosen.saved.model,
        config=chosen.saved.config | dict(config or {}),
        hu_range=chosen.hu_range,
        intensity_range=chosen.intensity_range,
        output=chosen.output,
        pipeline=None if chosen.pipeline is None else chosen.pipeline.to_dict(),
        uses=uses,
        recipe=name,
        dtype=torch.float32 if profile.startswith("paper") else torch.float16,
        stages=[
            dict(
                name=s.name,
                steps=n,
                seed=s.train.seed,
                data=asdict(s.data),
                **({"options": s.options} if s.options else {}),
            )
            for s, n in zip(seen, done, strict=True)
        ],
        trained_on=dict(
            described or Source.open(None, chosen).described,
            seed=chosen.stages[0].train.seed,
            steps=sum(done),
            profile=profile,
            code_revision=checkpoints.code_revision(),
        ),
    )
