"""MAN's speed: one table from one run, every method in a process of its own, autoencoder included.

    python -m tests.benchmarks.man
    python -m tests.benchmarks.man --size 128 --quick         # does it run?

The pixel DDPM's 1000 ancestral steps are timed on a few and multiplied. Speed does not depend on weights: where a
checkpoint is missing, random ones stand in, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGETS = {"man": 60.0, "man_fast": 400.0}
"""How many times faster than the pixel DDPM with 1000 steps."""

PACE = 0.9
"""Share of a bare loop's pace that training is to keep."""

DDPM = "ddpm, 1000 steps"
METHODS = {"redcnn": "redcnn", "nafnet": "nafnet", "man": "man", "man_fast": "man", DDPM: "ddpm"}  # and checkpoints
STEPS = 1000


def synchronise(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_mib(device: str) -> float:
    """Of this process, or of its tensors on a GPU."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss starts from the parent's
        return next(float(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:") / 2**10
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def clocks(device: str) -> tuple[float, float]:
    """(wall, CPU) seconds; the second tells on a busy machine, summed over threads."""
    synchronise(device)
    return time.perf_counter(), time.process_time()


def medians(marks: list[tuple[float, float]]) -> tuple[float, float]:
    """Median (wall, CPU) seconds between marks."""
    spans = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(marks, marks[1:], strict=False)]
    wall, cpu = (statistics.median(span[i] for span in spans) for i in (0, 1))
    return wall, cpu


def seconds(call, device: str, repeats: int) -> tuple[float, float]:
    """Median of some calls after one to warm up."""
    call()
    marks = [clocks(device)]
    for _ in range(repeats):
        call()
        marks.append(clocks(device))
    return medians(marks)


def between_steps(steps, count: int, device: str) -> tuple[float, float]:
    """Median of ``count`` steps of a sampler after two to warm up."""
    marks = []
    for _ in steps:
        marks.append(clocks(device))
        if len(marks) == count + 2:
            break
    return medians(marks[1:])


def measure(name: str, a: argparse.Namespace) -> dict:
    """One method's time and memory in this process."""
    import torch

    from ldctlib import checkpoints, methods
    from ldctlib.pipelines import DiffusionPipeline

    device = torch.device(a.device)
    ldct = 40 + 60 * torch.randn(1, 1, a.size, a.size, generator=torch.Generator().manual_seed(0))
    found: dict = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    generator = torch.Generator().manual_seed(0)
    path = checkpoints.find(METHODS[name])
    with torch.no_grad():
        if name == DDPM:
            model = DiffusionPipeline.from_checkpoint(path, device=device)
            found["unet"] = sum(p.numel() for p in model.network.parameters())
            found["loaded_mib"] = peak_mib(a.device)
            step, cpu = between_steps(
                model.steps(ldct.to(device), sampler="ddpm", steps=STEPS, generator=generator), a.ddpm_steps, a.device
            )
            return found | {
                "seconds": STEPS * step,
                "cpu": STEPS * cpu,
                "step": step,
                "evaluations": STEPS,
                "peak_mib": peak_mib(a.device),
            }
        denoise = methods.load(name, device=device)
        found["loaded_mib"] = peak_mib(a.device)
        found["seconds"], found["cpu"] = seconds(lambda: denoise(ldct, generator=generator), a.device, a.repeats)
        found |= {"peak_mib": peak_mib(a.device), "evaluations": methods.METHODS[name].evaluations}
        if METHODS[name] == "man":
            model = DiffusionPipeline.from_checkpoint(path, device=device)
            estimator = model.condition.estimator
            parts = {"unet": model.network, "autoencoder": model.grid.autoencoder, "estimator": estimator.network}
            found |= {part: sum(p.numel() for p in network.parameters()) for part, network in parts.items()}
            x, size = ldct.to(device), (a.size, a.size)
            z = model.encode(x)
            found["estimate"], _ = seconds(lambda: estimator.apply_hu(x), a.device, a.repeats)
            found["encode"], _ = seconds(lambda: [model.encode(x) for _ in range(2)], a.device, a.repeats)
            found["step"], _ = between_steps(model.steps(x, steps=30, generator=generator), 5, a.device)
            found["decode"], _ = seconds(lambda: model.decode(z, size), a.device, a.repeats)
        else:
            found["network"] = sum(v.numel() for v in checkpoints.load(path).state_dict.values())
    return found


def pace(a: argparse.Namespace) -> dict:
    """Training on data that lie ready, beside forward, backward and step alone; blocks in turn, the best of each."""
    import torch
    from torch.utils.data import Dataset

    from ldctlib import recipes
    from ldctlib.precision import computes_bf16
    from ldctlib.recipes import Context
    from ldctlib.training import TrainConfig, train

    recipe = recipes.recipe("ddpm", "train")
    stage = recipe.stages[0]
    batch_size, patch = (2, 32) if a.quick else (stage.train.batch_size, stage.data.patch)
    per_block, blocks = (2, 3) if a.quick else (3, 8)
    generator = torch.Generator().manual_seed(0)
    images = {
        key: 100 * torch.randn(batch_size, 1, patch, patch, generator=generator) for key in ("target_hu", "ldct_hu")
    }
    samples = [{key: image[n] for key, image in images.items()} for n in range(batch_size)]

    class Cached(Dataset):
        def __getitem__(self, n: int):
            return samples[n % batch_size]

    device = a.device
    accelerated = device.startswith("cuda")
    clock = time.perf_counter if accelerated else time.process_time  # what else the machine does must not count
    bare = recipe.saved.build(0).to(device, memory_format=torch.channels_last)
    loss = recipe.updates(Context(recipe, stage, {"unet": bare}, {}, torch.device(device)))
    bf16 = computes_bf16(device)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-4, fused=True)
    batch = {key: image.to(device) for key, image in images.items()}
    own = torch.Generator(device).manual_seed(0)

    def bare_block() -> float:
        synchronise(device)
        start = clock()
        for _ in range(per_block):
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                terms = loss(bare, batch, own, 0)
            (terms if isinstance(terms, torch.Tensor) else terms["loss"]).backward()
            optimizer.step()
            optimizer.zero_grad()
        synchronise(device)
        return clock() - start

    config = TrainConfig(
        steps=per_block * blocks,
        batch_size=batch_size,
        lr=1e-4,
        precision="auto",
        schedule="constant",
        log_every=per_block,
        device="cuda" if accelerated else device,
    )
    bare_times, loop_times = [bare_block()], []
    start = clock()
    for _ in train(recipe.saved.build(0), loss, Cached(), config, progress=False):
        synchronise(device)
        loop_times.append(clock() - start)
        bare_times.append(bare_block())
        start = clock()
    share = min(bare_times) / min(loop_times)
    return {
        "share": share,
        "bare": min(bare_times) / per_block,
        "loop": min(loop_times) / per_block,
        "batch": f"{batch_size} x {patch}²",
    }


def gather(folder: Path) -> list[str]:
    """Copies of the shipped checkpoints, random ones for those that are missing; returns the names of the latter."""
    from ldctlib import checkpoints, recipes
    from ldctlib.errors import CheckpointError
    from ldctlib.recipes.running import save

    made: list[str] = []
    for name in ("redcnn", "nafnet", "autoencoder_perceptual", "man", "ddpm"):
        target = folder / f"{name}.safetensors"
        recipe = recipes.recipe(name, "train")
        needed = recipe.pipeline.uses if recipe.pipeline else ()
        try:
            if not set(needed) & set(made):
                shutil.copy(checkpoints.find(name), target)
                continue
        except CheckpointError:
            pass
        made.append(name)
        uses = {other: checkpoints.load(folder / f"{other}.safetensors").sha256 for other in needed}
        save(target, recipe.saved.build(0), name, recipe, "random", uses=uses)
    return made


def in_own_process(task: str, a: argparse.Namespace, folder: Path) -> dict:
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.man",
        "--task",
        task,
        "--size",
        str(a.size),
        "--threads",
        str(a.threads),
        "--device",
        a.device,
        "--repeats",
        str(a.repeats),
        "--ddpm-steps",
        str(a.ddpm_steps),
        *(["--quick"] if a.quick else []),
    ]
    environment = os.environ | {"LDCT_CHECKPOINTS": str(folder), "OMP_NUM_THREADS": str(a.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(found: dict[str, dict], training: dict, made: list[str], a: argparse.Namespace) -> str:
    man, ddpm = found["man"], found[DDPM]
    lines = [
        f"torch {man['torch']}, {a.device}, {man['threads']} threads, one slice of {a.size}², "
        "synchronised, autoencoder and transfers included"
    ]
    if made:
        lines.append(f"random weights, for want of a checkpoint: {', '.join(made)}")
    lines.append(
        f"U-Nets of one class: latent {man['unet']:,} parameters, pixel {ddpm['unet']:,}; "
        f"autoencoder {man['autoencoder']:,}, network of the first estimate {man['estimator']:,}"
    )
    lines += [
        "",
        "| method | evaluations | s a slice | CPU s | peak MiB | of it loaded | DDPM takes | in CPU s | target |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, f in found.items():
        ratio, target = ddpm["seconds"] / f["seconds"], TARGETS.get(name)
        verdict = "" if target is None else f"{target:g}x: {'met' if ratio >= target else 'MISSED'}"
        lines.append(
            f"| {name} | {f['evaluations']} | {f['seconds']:.3f} | {f['cpu']:.3f} | {f['peak_mib']:.0f} | "
            f"{f['loaded_mib']:.0f} | {ratio:.1f}x | {ddpm['cpu'] / f['cpu']:.1f}x | {verdict} |"
        )
    lines += [
        "",
        f"{DDPM}: extrapolated from {a.ddpm_steps} steps of {ddpm['step']:.3f} s; "
        f"a step on pixels costs {ddpm['step'] / man['step']:.1f} on latents",
    ]
    for name in ("man", "man_fast"):
        f = found[name]
        parts = {
            "first estimate": f["estimate"],
            "two codes": f["encode"],
            f"{f['evaluations']} U-Net steps": f["evaluations"] * f["step"],
            "decode": f["decode"],
        }
        total = sum(parts.values())
        lines.append(f"{name}: " + ", ".join(f"{k} {v:.3f} s ({100 * v / total:.0f} %)" for k, v in parts.items()))
    verdict = "met" if training["share"] >= PACE else "MISSED"
    lines.append(
        f"training on cached data ({training['batch']}, bf16): {training['loop']:.3f} s a step, bare loop "
        f"{training['bare']:.3f} s: {100 * training['share']:.0f} % of its pace (target {100 * PACE:.0f} %: "
        f"{verdict})"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ddpm-steps", type=int, default=4, help="of the 1000, timed")
    parser.add_argument("--quick", action="store_true", help="a smaller training batch")
    parser.add_argument("--json", type=Path, help="also write every number here")
    parser.add_argument("--task", choices=[*METHODS, "pace"], help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.task:
        import torch

        torch.set_num_threads(a.threads)
        print(json.dumps(pace(a) if a.task == "pace" else measure(a.task, a)))
        return
    with tempfile.TemporaryDirectory() as folder:
        made = gather(Path(folder))
        found = {name: in_own_process(name, a, Path(folder)) for name in METHODS}
        training = in_own_process("pace", a, Path(folder))
    print(report(found, training, made, a))
    if a.json:
        a.json.write_text(json.dumps({"methods": found, "training": training, "random": made}, indent=1))


if __name__ == "__main__":
    main()
