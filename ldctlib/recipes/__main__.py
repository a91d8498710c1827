"""``python -m ldctlib.recipes NAME``: train checkpoints."""

from __future__ import annotations

import argparse

from ldctlib import recipes
from ldctlib.errors import LdctError
from ldctlib.profiles import PROFILES
from ldctlib.recipes.running import first_process


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ldctlib.recipes", description=recipes.__doc__.splitlines()[0])
    names = ", ".join(recipes.RECIPES)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {names}; all where none is given")
    parser.add_argument("--profile", default="train", choices=tuple(PROFILES))
    parser.add_argument("--out", default="runs/train")
    parser.add_argument("--max-seconds", type=float)
    parser.add_argument("--init-from", help="a checkpoint to start from")
    parser.add_argument("--stage", help="one stage alone")
    parser.add_argument("--data", help="a folder of scans in place of the phantoms")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="two steps of every stage on small patches")
    a = parser.parse_args(argv)
    try:
        for name in a.names or recipes.RECIPES:
            for stage, log in recipes.run(
                name,
                a.profile,
                out=a.out,
                max_seconds=a.max_seconds,
                init_from=a.init_from,
                stage=a.stage,
                data=a.data,
                device=a.device,
                workers=a.workers,
                progress=False,
                dry_run=a.dry_run,
            ):
                if not first_process():
                    continue
                terms = " ".join(f"{k} {v:.5f}" for k, v in log.terms.items() if k != "loss")
                print(
                    f"{name} {stage} {log.step}/{log.steps} loss {log.loss:.5f} {terms} "
                    f"lr {max(log.lr.values()):.2e} |g| {max(log.grad_norm.values()):.3f} {log.seconds:.0f} s",
                    flush=True,
                )
    except LdctError as error:
        parser.exit(2, f"{type(error).__name__}: {error}\n")


if __name__ == "__main__":
    main()
