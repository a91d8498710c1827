"""The three profiles: how much of the real thing a run does."""

from __future__ import annotations

from dataclasses import dataclass

from ldctlib.errors import ParameterError, did_you_mean


@dataclass(frozen=True)
class Profile:
    """How much of the real thing a run does."""

    name: str
    purpose: str
    data: tuple[str, ...]  # the embedded sources that it accepts; a folder is accepted by all


PROFILES = {
    profile.name: profile
    for profile in (
        # at most 60 s a notebook on 2 CPU cores
        Profile("workshop", "shipped checkpoints and a short live training", ("phantom", "sample")),
        # minutes on a GPU, hours on a CPU; resumable
        Profile("train", "reproduces the shipped checkpoints, at their sizes", ("phantom", "natural", "sample")),
        # GPUs, hours to days, under torchrun
        Profile("paper", "the published sizes, steps and schedules, on the real collections", ()),
    )
}

SOURCES = ("phantom", "sample", "natural")
"""Data that needs no download: random patients, simulated at any dose; the real CT slice inside pydicom's wheel;
scikit-image's photographs. Everything else is a folder."""


def find_profile(name: str) -> Profile:
    """The profile of this name. Raises ParameterError."""
    if name not in PROFILES:
        near = did_you_mean(name, PROFILES)
        raise ParameterError(f"profile {name!r} does not exist{near}. Allowed: {', '.join(PROFILES)}")
    return PROFILES[name]
