"""``python -m ldctlib.recipes NAME``: train checkpoints."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ldctlib import recipes
from ldctlib.commands import command_line
from ldctlib.profiles import PROFILES
from ldctlib.recipes.running import first_process, training_order


def option(text: str) -> tuple[str, Any]:
    """``"eta=0.1"`` -> ("eta", 0.1): values as in JSON, anything else is a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


@command_line("the same command goes on from the last state")
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ldctlib.recipes", description=recipes.__doc__.splitlines()[0])
    names = ", ".join(recipes.RECIPES)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {names}; all where none is given")
    parser.add_argument("--profile", default="train", choices=tuple(PROFILES))
    parser.add_argument("--out", default="runs/train")
    parser.add_argument("--max-seconds", type=float)
    parser.add_argument("--init-from", help="a checkpoint to start from")
    parser.add_argument("--stage", help="one stage alone")
    parser.add_argument("--data", help="a folder of scans in place of the phantoms")
    parser.add_argument("--split", help="whom of them to train on: the name of a file in data/splits")
    value = dict(type=option, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--option", dest="options", help="another value of a stage's option; may be repeated", **value)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="other samples and weights; give another --out with it")
    parser.add_argument("--dry-run", action="store_true", help="two steps of every stage on small patches")
    parser.add_argument("--graph", action="store_true", help="print who needs whom, and train nothing")
    options = vars(parser.parse_args(argv))
    names, profile = options.pop("names"), options.pop("profile")
    options["options"] = dict(options["options"])
    if options.pop("graph"):
        print(recipes.graph(profile))
        return 0
    for name in names or training_order(profile=profile):
        for stage, log in recipes.run(name, profile, progress=False, **options):
            if not first_process():
                continue
            terms = " ".join(f"{k} {v:.5f}" for k, v in log.terms.items() if k != "loss")
            rates = " ".join(f"lr {lr:.2e} |g| {log.grad_norm[k]:.3f}" for k, lr in log.lr.items())
            print(
                f"{name} {stage} {log.step}/{log.steps} loss {log.loss:.5f} {terms} {rates} {log.seconds:.0f} s",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
