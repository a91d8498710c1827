"""How the command lines end: one line for an error that a person can mend, and for Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps

from ldctlib.errors import LdctError


def command_line(then: str = "") -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorator of a ``main`` that returns its exit status.

    An LdctError ends it with one line on standard error and status 2, Ctrl-C with one line and 130; ``then`` says what
    becomes of the work that was stopped.
    """

    def decorated(main: Callable[..., int]) -> Callable[..., int]:
        @wraps(main)
        def run(*arguments) -> int:
            try:
                return main(*arguments)
            except LdctError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            except KeyboardInterrupt as stop:
                print("; ".join(filter(None, (f"stopped {stop}".strip(), then))), file=sys.stderr)
                return 130

        return run

    return decorated
