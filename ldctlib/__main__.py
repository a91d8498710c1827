"""``python -m ldctlib course|test|lab|train|bench|notebooks|denoise|generate``: every job of this repository."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from ldctlib.commands import command_line
from ldctlib.errors import ParameterError
from ldctlib.profiles import PROFILES

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
START = NOTEBOOKS / "00_start_here.ipynb"

QUIET_OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "500"}
QUIET_OPENMP |= {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}  # of glibc
"""On a CPU that others use too, spinning threads, and memory given back at every step, cost several times a training
step; a very short spin gives small networks a sixth of their time back."""


def environment(*, threads: int) -> dict[str, str]:
    """The environment of child processes: ldctlib importable, no progress bars, ``threads`` threads each."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    children = {"PYTHONPATH": path, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(threads)}
    return {**QUIET_OPENMP, **os.environ, **children}


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """The user's OMP_NUM_THREADS, or one for each core."""
    return int(os.environ.get("OMP_NUM_THREADS") or cores())


def wait_for(command: list[str], **how) -> int:
    """Run a child process and return its exit code. Ctrl-C reaches the child, too, which may still have a state to
    write: this process waits for it, where ``subprocess.run`` would kill it."""
    stopped = False
    with subprocess.Popen(command, **how) as child:
        while child.returncode is None:
            try:
                child.wait()
            except KeyboardInterrupt:
                stopped = True
    if stopped:
        raise KeyboardInterrupt
    return child.returncode


def run_course(args: argparse.Namespace) -> int:
    from ldctlib import course

    os.environ.update(environment(threads=threads()))
    values = dict(course.parse_assignment(text) for text in args.parameter)
    out = args.out or ROOT / "runs" / args.profile
    return course.run(NOTEBOOKS, out, profile=args.profile, only=args.only, values=values)


def execute_notebooks(args: argparse.Namespace) -> int:
    from ldctlib import course

    os.environ.update(environment(threads=threads()))
    for path in course.find_notebooks(NOTEBOOKS, args.only):
        print(course.execute_in_place(path), flush=True)
    return 0


def run_tests(args: argparse.Namespace) -> int:
    """Unit tests, then every notebook; both always run, and either may fail the whole."""
    workers = str(min(2, cores()))
    pytest = [sys.executable, "-m", "pytest", "-q", "-rs", "-n", workers]
    # loadscope keeps the cells of one notebook in one worker and in order.
    nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "300", "--dist", "loadscope"]
    units, notebooks = ["--dist", "worksteal", "tests", *args.rest], [*nbval, "-p", "no:cacheprovider", "notebooks"]
    jobs = [*pytest, *units], [*pytest, *notebooks]
    codes = [wait_for(job, cwd=ROOT, env=environment(threads=1)) for job in jobs]
    return max(abs(code) for code in codes)


def open_lab(args: argparse.Namespace) -> int:
    """JupyterLab on the folder of the notebooks, with the start page open."""
    env = {**environment(threads=threads()), "TQDM_DISABLE": os.environ.get("TQDM_DISABLE", "")}
    page = f"--LabApp.default_url=/lab/tree/{START.name}"  # also in the address that is printed
    return wait_for([sys.executable, "-m", "jupyterlab", str(NOTEBOOKS), page, *args.rest], env=env)


def train(args: argparse.Namespace) -> int:
    """All recipes, or the named ones; what the options mean is said by the recipes' own command line."""
    command = [sys.executable, "-m", "ldctlib.recipes", *args.rest]
    return wait_for(command, cwd=ROOT, env={**QUIET_OPENMP, **os.environ})


def generate(args: argparse.Namespace) -> int:
    from ldctlib.generators import series

    return series.main(args.rest)


def denoise(args: argparse.Namespace) -> int:
    from ldctlib import denoise

    return denoise.main(args.rest)


def measure_speed(args: argparse.Namespace) -> int:
    """Every script of tests/benchmarks, one after the other, alone on the machine's cores."""
    worst = 0
    for path in sorted((ROOT / "tests" / "benchmarks").glob("[!_]*.py")):
        print(f"== {path.stem}", flush=True)
        code = wait_for([sys.executable, str(path)], cwd=ROOT, env=environment(threads=threads()))
        worst = max(worst, abs(code))
    return worst


def parser() -> argparse.ArgumentParser:
    main_parser = argparse.ArgumentParser(prog="python -m ldctlib", description=__doc__)
    jobs = main_parser.add_subparsers(dest="job", required=True, metavar="job")

    def add(job: str, function, help: str, **options) -> argparse.ArgumentParser:
        sub = jobs.add_parser(job, help=help, **options)
        sub.set_defaults(function=function)
        return sub

    numbers = "numbers of notebooks, for example 01,07"
    purposes = "; ".join(f"{profile.name}: {profile.purpose}" for profile in PROFILES.values())
    sub = add("course", run_course, "run the notebooks in order and write a page to look at")
    sub.add_argument("--profile", default="workshop", help=f"default workshop. {purposes}")
    sub.add_argument("--only", default="", help=numbers)
    sub.add_argument("--out", type=Path, help="folder of the results; default runs/PROFILE")
    many = dict(action="append", default=[], metavar="name=value", help="set a notebook parameter; may be repeated")
    sub.add_argument("-p", dest="parameter", **many)
    sub = add("notebooks", execute_notebooks, "re-execute the notebooks in place, with metadata that does not change")
    sub.add_argument("--only", default="", help=numbers)
    # those without help of their own pass all of their arguments on, --help too
    tests = "unit tests, then every notebook under nbval; more arguments go to the unit tests' pytest"
    add("test", run_tests, tests, add_help=False)
    add("lab", open_lab, "JupyterLab on the notebooks, at the start page; more arguments go to it", add_help=False)
    recipes = "the recipes behind the shipped checkpoints; more arguments go to python -m ldctlib.recipes"
    add("train", train, recipes, add_help=False)
    add("bench", measure_speed, "speed")
    own = "a scan, or a folder of them, denoised and written as a derived one; --help says how"
    add("denoise", denoise, own, add_help=False)
    synthetic = "CT images of a mask at a dose, by a trained generator; --help says how"
    add("generate", generate, synthetic, add_help=False)
    return main_parser


@command_line()
def main(arguments: list[str] | None = None) -> int:
    args, rest = parser().parse_known_args(arguments)
    if rest and args.job not in ("test", "lab", "train", "denoise", "generate"):
        parser().error(f"unknown arguments: {' '.join(rest)}")
    args.rest = rest
    if args.job in ("course", "notebooks", "lab") and not NOTEBOOKS.is_dir():
        raise ParameterError(f"no folder {NOTEBOOKS}: run from a clone, installed with pip install -e .")
    return args.function(args)


if __name__ == "__main__":
    sys.exit(main())
