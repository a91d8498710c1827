"""How each shipped checkpoint is trained: one recipe each, the same call alone, in a notebook, under ``torchrun``.

    python -m ldctlib.recipes nafnet --profile train
    python -m ldctlib.recipes nafnet --profile train --max-seconds 500     # again and again: it resumes
    torchrun --standalone --nproc_per_node 4 -m ldctlib.recipes nafnet --profile train

A recipe has stages, as warm-up-stable-decay schedules have: a long one at a constant rate, which can be prolonged at
will, then shorter ones whose rate falls to zero. Each starts from the averaged weights of the one before.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ldctlib import checkpoints
from ldctlib.data.collections import open_collection
from ldctlib.data.patches import NoisePatches, PairedPatches, PatchConfig, scan_slices
from ldctlib.data.splits import split
from ldctlib.errors import LdctError, ParameterError
from ldctlib.profiles import PROFILES
from ldctlib.training import TrainConfig, train
from ldctlib.units import SOFT_TISSUE, Range

DENOISER_RANGE = Range(-1000.0, 1000.0)
"""Model units of the regression networks: soft tissue near 0, 100 HU of noise at 0.1. Nothing is clipped."""


SMALL_BANKS: dict[str, Any] = dict(size=256, slices=16, photographs=16, noises=12)
"""Banks of a live training in a workshop: drawn in seconds."""


@dataclass(frozen=True)
class Stage:
    """A part of a training with its own rate and its own stream of samples."""

    name: str
    train: TrainConfig
    patches: PatchConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a checkpoint."""

    model: str  # a key of checkpoints.MODELS
    config: dict[str, Any]  # the model's keyword arguments
    stages: tuple[Stage, ...]
    range: Range = DENOISER_RANGE
    notes: dict[str, Any] = field(default_factory=dict)  # goes into trained_on


def denoising_loss(value_range: Range) -> Callable[[nn.Module, dict[str, Tensor], torch.Generator], Tensor]:
    """Squared error over the noise's variance, so that every dose counts; bone, lung and air at a quarter's weight.

    The variance has a floor of (15 HU)^2: below it there is nothing worth learning.
    """

    def loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        clean = batch["clean_hu"]
        predicted = model(value_range.to_model(batch["ldct_hu"]).to(memory_format=torch.channels_last))
        error = (predicted.float() - value_range.to_model(clean)) / value_range.scale
        variance = batch["sd_hu"].square()[:, None, None, None] + 15.0**2
        soft = (clean > SOFT_TISSUE.low - 40) & (clean < SOFT_TISSUE.high + 60)
        weight = torch.where(soft, 1.0, 0.25)
        return (weight * error.square() / variance).mean()

    return loss


def _nafnet(profile: str) -> Recipe:
    small = profile == "workshop"
    common: dict[str, Any] = dict(batch_size=8 if small else 16, betas=(0.9, 0.95), mixed_precision="bf16",
                                  clip_norm=0.5, log_every=20 if small else 100, checkpoint_every=500)
    stable, decay, polish = {"workshop": (60, 60, 20), "train": (5_000, 4_500, 2_000),
                             "paper": (200_000, 100_000, 20_000)}[profile]
    banks = SMALL_BANKS if small else {}
    return Recipe(
        model="nafnet",
        config=dict(width=64, shuffle=2, encoder=[2, 2], middle=4, decoder=[2, 2], patch=64),
        stages=(
            Stage("stable", TrainConfig(steps=stable, lr=1e-3, warmup_steps=min(200, stable // 4),
                                        schedule="constant", seed=1, **common), PatchConfig(seed=11, **banks)),
            Stage("decay", TrainConfig(steps=decay, lr=1e-3, seed=2, **common), PatchConfig(seed=1011, **banks)),
            # low doses of sharp kernels once more: there a quarter of the pixels' variance is at stake
            Stage("polish", TrainConfig(steps=polish, lr=4e-4, warmup_steps=min(100, polish // 4), seed=3, **common),
                  PatchConfig(seed=2011, sd_low_hu=15.0, sd_high_hu=140.0, **banks)),
        ),
    )


def _redcnn(profile: str) -> Recipe:
    small = profile == "workshop"
    common: dict[str, Any] = dict(batch_size=4 if small else 8, lr=3e-4, betas=(0.9, 0.99), mixed_precision="bf16",
                                  clip_norm=0.5, log_every=5 if small else 50, checkpoint_every=200)
    stable, decay = {"workshop": (20, 20), "train": (400, 900), "paper": (93_000, 20_000)}[profile]
    banks = SMALL_BANKS if small else dict(slices=128, photographs=64, noises=96)
    return Recipe(
        model="redcnn",
        config=dict(final_relu=False),
        stages=(
            Stage("stable", TrainConfig(steps=stable, warmup_steps=min(100, stable // 4), schedule="constant", seed=1,
                                        **common), PatchConfig(seed=12, patch=48, **banks)),
            Stage("decay", TrainConfig(steps=decay, seed=2, **common), PatchConfig(seed=1012, patch=48, **banks)),
        ),
    )


RECIPES: dict[str, Callable[[str], Recipe]] = {"nafnet": _nafnet, "redcnn": _redcnn}


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


def run(name: str, profile: str = "train", *, out: str | Path = "runs/train", max_seconds: float | None = None,
        init_from: str | Path | None = None, stage: str | None = None, data: str | Path | None = None,
        device: str = "auto", workers: int = 0, progress: bool = True):
    """Train a checkpoint, stage after stage; yields the training logs, tagged with the stage's name.

    States and each stage's result lie in ``out`` and are resumed; the last is ``out/NAME.safetensors``. ``init_from``
    starts from an earlier checkpoint; ``stage`` does one stage alone, from ``init_from`` or the stage before it.
    ``data`` is a folder of scans in place of the phantoms, its training patients only: pairs teach the scanner's own
    full dose, full-dose scans alone get simulated noise.
    """
    r = recipe(name, profile)
    names = [s.name for s in r.stages]
    if stage is not None and stage not in names:
        raise ParameterError(f"the stages of {name} are {', '.join(names)}; got {stage!r}")
    dataset, notes = _source(data)
    r = replace(r, notes={**r.notes, **notes})
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    start, model, loss = perf_counter(), new_model(r), denoising_loss(r.range)
    before: Path | None = None
    for i, s in enumerate(r.stages):
        target = out / (f"{name}-{s.name}.safetensors" if i + 1 < len(r.stages) else f"{name}.safetensors")
        first = before if before is not None and before.is_file() else init_from
        before = target
        if stage not in (None, s.name):
            continue
        if i > 0 and first is None:
            raise ParameterError(f"stage {s.name!r} needs weights to start from: give init_from, or train "
                                 f"{names[i - 1]!r} first")
        left = None if max_seconds is None else max_seconds - (perf_counter() - start)
        if left is not None and left <= 0:
            return
        log = None
        for log in train(model, loss, dataset(s.patches), replace(s.train, device=device, num_workers=workers),
                         state_path=out / f"{name}-{s.name}.state", init_from=first, max_seconds=left,
                         progress=progress):
            yield s.name, log
        if _first_process():
            save(target, log.ema_state_dict(), r, profile, i, log.step)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # the next stage starts from this file
        if not log.finished:
            return


def _first_process() -> bool:
    """Whether this process writes: the only one, or torchrun's first."""
    return int(os.environ.get("RANK", "0")) == 0


def _source(folder: str | Path | None) -> tuple[Callable[[PatchConfig], Dataset], dict[str, Any]]:
    """The dataset of a patch configuration, and what the provenance says of it."""
    if folder is None:
        return NoisePatches, {}
    collection = open_collection(folder)
    patients = split(collection)["train"]
    if not patients:
        raise ParameterError(f"{folder}: no patient falls into the training split; give more patients")
    chosen = collection.subset(patients)
    notes: dict[str, Any] = dict(collection=f"{collection.name} ({collection.layout})", cases=list(patients))
    if len(chosen.pairs()):
        # the target has its own noise: nothing is to be given back
        return (lambda patches: PairedPatches(chosen, patches)), notes | dict(target="full dose", keep=0.0)
    return (lambda patches: NoisePatches(patches, draw_slices=scan_slices(chosen))), notes | dict(
        target="full-dose scan as if noise-free, simulated noise added", keep=0.0)


def save(path: str | Path, weights, r: Recipe, profile: str, stage: int = -1, steps: int | None = None) -> Path:
    """Write a recipe's weights with their provenance: ``steps`` of its ``stage``-th stage done, those before whole."""
    stage %= len(r.stages)
    seen = [s.patches for s in r.stages[:stage + 1]]  # all stages' noise, the last one's everything else
    noise = dict(sd_low_hu=min(p.sd_low_hu for p in seen), sd_high_hu=max(p.sd_high_hu for p in seen))
    patches = asdict(seen[-1]) | noise
    done = [s.train.steps for s in r.stages[:stage]] + [r.stages[stage].train.steps if steps is None else steps]
    return checkpoints.save(
        path, weights, model=r.model, config=r.config, units=r.range,
        trained_on=dict(collection="phantom and scikit-image's photographs, simulated noise",
                        cases="random patients and photographs, drawn anew while training",
                        target="noise-free truth", keep=0.25, seed=r.stages[0].train.seed, steps=sum(done),
                        stages={s.name: n for s, n in zip(r.stages, done, strict=False)}, profile=profile,
                        code_revision=checkpoints.code_revision(), patches=patches) | r.notes,
        quality={})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ldctlib.recipes", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; all where none is given")
    parser.add_argument("--profile", default="train", choices=tuple(PROFILES))
    parser.add_argument("--out", default="runs/train")
    parser.add_argument("--max-seconds", type=float)
    parser.add_argument("--init-from", help="a checkpoint to start from")
    parser.add_argument("--stage", help="one stage alone")
    parser.add_argument("--data", help="a folder of scans in place of the phantoms")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    a = parser.parse_args(argv)
    try:
        for name in a.names or RECIPES:
            for stage, log in run(name, a.profile, out=a.out, max_seconds=a.max_seconds, init_from=a.init_from,
                                  stage=a.stage, data=a.data, device=a.device, workers=a.workers, progress=False):
                if not _first_process():
                    continue
                print(f"{name} {stage} {log.step}/{log.steps} loss {log.loss:.5f} lr {log.lr:.2e} "
                      f"|g| {log.grad_norm:.3f} {log.seconds:.0f} s", flush=True)
    except LdctError as error:
        parser.exit(2, f"{type(error).__name__}: {error}\n")


if __name__ == "__main__":
    main()
