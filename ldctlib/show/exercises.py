"""Exercises: ``check("01.noise_ratio", answer)`` says open, right, or not yet with a hint, and never raises.

The exercises of notebook NN live in ``ldctlib/show/answers/nbNN.py`` as a list ``EXERCISES``, loaded when a name that
begins with ``NN.`` is first checked. Each one carries a right and a plausible wrong answer, which a test feeds to it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ldctlib.errors import ParameterError, did_you_mean

Accept = Callable[[Any], bool]


@dataclass(frozen=True)
class Exercise:
    """One question and how its answers are judged."""

    name: str  # "NN.what", NN being the notebook
    prompt: str
    accept: Accept
    right: Any  # an answer that must be accepted
    wrong: Any  # a plausible one that must not
    because: str  # shown with "right": why
    hint: str  # shown with "not yet", when no hint below fits
    hints: Sequence[tuple[Accept, str]] = ()  # (recognises a particular mistake, what to say)


@dataclass(frozen=True)
class Verdict:
    """What ``check`` returns; a notebook shows it as a coloured line."""

    state: str  # "open", "right", "not yet", "unknown" or "solution"
    message: str

    def __repr__(self) -> str:
        return f"{self.state}: {self.message}"

    def _repr_html_(self) -> str:
        colour = {"right": "#009E73", "not yet": "#D55E00"}.get(self.state, "#0072B2")
        style = f"border-left: 4px solid {colour}; padding: .3em .8em" + "; white-space: pre-wrap" * (
            self.state == "solution"
        )
        return f'<div style="{style}"><b style="color: {colour}">{self.state}</b>: {escape(self.message)}</div>'


def check(name: str, answer: Any) -> Verdict:
    """Judge an answer. ``...``, or a function whose body is ``...``, is still open. Never raises."""
    try:
        exercises = exercises_of(str(name).partition(".")[0])
    except ParameterError as error:
        return Verdict("unknown", str(error))
    if name not in exercises:
        near = did_you_mean(name, exercises)
        return Verdict("unknown", f"there is no exercise '{name}'{near}; there are: {', '.join(exercises)}")
    return judge(exercises[name], answer)


def judge(exercise: Exercise, answer: Any) -> Verdict:
    """The verdict of one exercise on one answer. Never raises."""
    if is_open(answer):
        return Verdict("open", exercise.prompt)
    try:
        accepted = bool(exercise.accept(answer))
        otherwise = exercise.hint
    except Exception as error:  # whatever a student's answer does, the notebook goes on
        reason = f"{type(error).__name__}: {error}"
        accepted, otherwise = False, f"this answer could not be tried ({reason}). {exercise.hint}"
    if accepted:
        return Verdict("right", exercise.because)
    return Verdict("not yet", next((text for fits, text in exercise.hints if holds(fits, answer)), otherwise))


def solution(name: str) -> Verdict:
    """The answer of an exercise, for a person who gives up or wants to compare: a value, or a function's source."""
    exercises = exercises_of(str(name).partition(".")[0])
    if name not in exercises:
        raise ParameterError(f"there is no exercise '{name}'{did_you_mean(name, exercises)}")
    right = exercises[name].right
    text = inspect.getsource(right).strip() + "\n\n" if callable(right) else f"{right}. "
    return Verdict("solution", text + exercises[name].because)


def exercises_of(notebook: str) -> dict[str, Exercise]:
    """The exercises of notebook ``"NN"``, by name. Raises ParameterError if it has none."""
    if notebook not in notebooks():
        raise ParameterError(f"no exercises for '{notebook}'; there are some for {', '.join(notebooks())}")
    module = importlib.import_module(f"ldctlib.show.answers.nb{notebook}")
    return {exercise.name: exercise for exercise in module.EXERCISES}


def notebooks() -> list[str]:
    """Numbers of the notebooks that have exercises."""
    from ldctlib.show import answers

    return sorted(module.name.removeprefix("nb") for module in pkgutil.iter_modules(answers.__path__))


def number(value: float, *, within: float) -> Accept:
    """Accepts numbers with a relative error of at most ``within`` (absolute where ``value`` is 0)."""
    tolerance = within * (abs(value) or 1.0)
    return lambda answer: not isinstance(answer, bool) and abs(float(answer) - value) <= tolerance


def is_open(answer: Any) -> bool:
    """Whether an answer has not been given yet: ``...``, or a function that does nothing."""
    if answer is ...:
        return True
    code = getattr(answer, "__code__", None)
    return code is not None and code.co_code in _EMPTY


def holds(fits: Accept, answer: Any) -> bool:
    """Whether an answer is recognised; not if it cannot be tried."""
    try:
        return bool(fits(answer))
    except Exception:
        return False


def _nothing(): ...


def _nothing_said():
    """A docstring moves None to the second constant, which another byte code loads."""


_EMPTY = {_nothing.__code__.co_code, _nothing_said.__code__.co_code}
