"""Methods on phantom cases, or on real pairs, as a Markdown table: ``python -m ldctlib.benchmark``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldctlib import methods as registry
from ldctlib.benchmark.cases import FIRST_UNSEEN, collection_cases, phantom_cases, unseen_seeds
from ldctlib.benchmark.measures import DEFAULT_METRICS, METRICS
from ldctlib.benchmark.record import record
from ldctlib.benchmark.run import run
from ldctlib.commands import command_line
from ldctlib.data.collection import open_collection
from ldctlib.data.splits import split
from ldctlib.files import file_to_write
from ldctlib.phantom.patient import ANATOMIES
from ldctlib.precision import resolve_device
from ldctlib.units import SOFT_TISSUE


@command_line("nothing is kept")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m ldctlib.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, help="folder with full/low-dose pairs; without it, phantoms")
    parser.add_argument("--split", help="the folder's test patients alone, by the name of a file in data/splits")
    parser.add_argument("--slices", type=int, help="so many slices of each real scan, spread over it; default: all")
    parser.add_argument("--dose", type=float, help="of the low-dose scans, where the folder does not say it")
    parser.add_argument("--patients", type=int, default=4, help="phantom patients")
    parser.add_argument("--first-seed", type=int, default=FIRST_UNSEEN, help="of the phantom patients")
    parser.add_argument("--anatomy", default="abdomen", choices=ANATOMIES, help="of the phantoms")
    doses = "of the phantoms' low-dose scans, comma-separated"
    parser.add_argument("--doses", default=(0.25, 0.1), type=lambda x: [float(d) for d in x.split(",")], help=doses)
    parser.add_argument("--crop", type=int, help="the central square of the phantoms, for slow methods")
    names = "comma-separated names of ldctlib.methods, with options as in gaussian:sigma_px=1.0"
    parser.add_argument("--methods", default="ldct,gaussian", help=names)
    parser.add_argument("--baseline", default="ldct", help="the method that others are compared with, pair by pair")
    parser.add_argument("--metrics", default=",".join(DEFAULT_METRICS), help=f"of {', '.join(METRICS)}")
    share = "share of what was removed that is added again against a full-dose reference; default: the dose"
    parser.add_argument("--residual-noise", default="dose", type=lambda x: x if x == "dose" else float(x), help=share)
    parser.add_argument("--json", type=Path, help="also write every number here")
    parser.add_argument("--record", action="store_true", help="write the means into the shipped checkpoints' headers")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-intervals", action="store_true", help="means only")
    options = parser.parse_args(arguments)
    if options.split and not options.real:
        parser.error("--split divides the patients of a folder: give --real")
    names = list(dict.fromkeys(["ldct", *filter(None, options.methods.split(","))]))
    device = resolve_device(options.device)
    if options.json is not None:
        file_to_write(options.json)
    loaded = {name: registry.from_spec(name, device=device) for name in names}
    if options.real:
        pairs = open_collection(options.real)
        if options.split:
            pairs = pairs.subset(split(pairs, name=options.split)["test"])
        cases = collection_cases(pairs, slices_per_patient=options.slices, dose=options.dose)
    else:
        seeds = unseen_seeds(options.patients, options.first_seed)
        look = dict(kernels=("B30f", "D45f"), crop=options.crop, anatomy=options.anatomy)
        cases = phantom_cases(seeds, options.doses, **look)
    given = {"metrics": filter(None, options.metrics.split(",")), "residual_noise": options.residual_noise}
    given["baseline"] = options.baseline
    result = run(loaded, cases, window=SOFT_TISSUE, device=device, **given)
    if options.record:
        record(result)
    result.report(options.json, intervals=not options.no_intervals)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
