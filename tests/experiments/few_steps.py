"""Quality against time: what do MAN and a pixel diffusion reach in 1, 2, 4 and 8 evaluations, and how?

    python -m tests.experiments.few_steps [--methods man,ddpm] [--patients 4] [--evaluations 1,2,4,8] [--json FILE]
    LDCT_REAL_DATA=... python -m tests.experiments.few_steps --real --slices 2

For every number of evaluations a sampler, a start (pure noise, or the noised estimate), and how the times crowd
(start (i / k)^power) are chosen on patients of their own: among those whose PSNR is at least that of the method's 30
even steps, the one whose removed part has the spectrum nearest to the noise's. The chosen ones are then measured on
other patients, or on real pairs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from ldctlib import methods
from ldctlib.benchmark.cases import FIRST_UNSEEN, BenchmarkCase, collection_cases, phantom_cases, unseen_seeds
from ldctlib.benchmark.run import run
from ldctlib.data.collection import open_collection
from ldctlib.files import file_to_write, write_json
from ldctlib.units import SOFT_TISSUE

TUNING_SEED = FIRST_UNSEEN + 500
POWERS = (0.5, 1.0, 2.0)
STARTS = (1000, 700, 400)
SAMPLERS = ("ddim", "dpm_solver_pp_2m")
METRICS = ("psnr", "ssim", "nps_shape_distance")


def candidates(evaluations: int) -> Iterator[str]:
    """Options of a method, all different walks of so many evaluations."""
    seen = set()
    for start in STARTS:
        for power in POWERS:
            times = tuple(max(1, round(start * (i / evaluations) ** power)) for i in range(evaluations, 0, -1))
            if len(set(times)) < evaluations or times in seen:
                continue
            seen.add(times)
            for sampler in SAMPLERS if evaluations > 1 else SAMPLERS[:1]:
                yield f"sampler={sampler};times={'+'.join(map(str, times))}"


def scores(specs: list[str], cases: list[BenchmarkCase]) -> dict[str, dict[str, float]]:
    """Means over all cases; a case with two references counts with the first."""
    loaded = {"ldct": methods.from_spec("ldct")} | {spec: methods.from_spec(spec) for spec in specs}
    table = run(loaded, cases, window=SOFT_TISSUE, metrics=METRICS).table
    table = table[table.reference == cases[0].reference_kind]
    means = table.groupby("method")[[*METRICS, "seconds"]].mean()
    return {spec: means.loc[spec].to_dict() for spec in specs}


def chosen(name: str, counts: list[int], cases: list[BenchmarkCase]) -> list[str]:
    """The best walk of a method for each number of evaluations."""
    whole, best = scores([name], cases)[name], []
    for count in counts:
        tried = scores([f"{name}:{options}" for options in candidates(count)], cases)
        fair = {spec: s for spec, s in tried.items() if s["psnr"] >= whole["psnr"]} or tried
        best.append(min(fair, key=lambda spec: fair[spec]["nps_shape_distance"]))
        print(f"{name}, {count}: {best[-1]} of {len(tried)}, {len(fair)} not worse than 30 steps", flush=True)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="man,ddpm")
    parser.add_argument("--evaluations", default="1,2,4,8")
    parser.add_argument("--patients", type=int, default=4)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--real", action="store_true", help="measure on the pairs that LDCT_REAL_DATA names")
    parser.add_argument("--slices", type=int, default=2, help="of each real scan")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.json:
        file_to_write(options.json)
    look = dict(kernels=("B30f", "D45f"), crop=options.crop)
    tuning = phantom_cases(unseen_seeds(2, TUNING_SEED), (0.25,), **look)
    counts = [int(count) for count in options.evaluations.split(",")]
    specs = [s for name in options.methods.split(",") for s in (*chosen(name, counts, tuning), name)]
    if options.real:
        cases = collection_cases(open_collection(os.environ["LDCT_REAL_DATA"]), slices_per_patient=options.slices)
        cases = list(cases)
    else:
        cases = phantom_cases(unseen_seeds(options.patients), (0.25,), **look)
    table = scores(specs, cases)
    print(f"\n{'':70} {'PSNR':>6} {'SSIM':>6} {'NPS':>6} {'s':>6}   reference: {cases[0].reference_kind}")
    for spec, s in table.items():
        print(f"{spec:70} {s['psnr']:6.2f} {s['ssim']:6.3f} {s['nps_shape_distance']:6.3f} {s['seconds']:6.2f}")
    if options.json:
        write_json(options.json, table)


if __name__ == "__main__":
    main()
