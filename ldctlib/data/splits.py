"""Who is trained on and who is tested: splits by patient that hold across collections."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import ldctlib
from ldctlib.data.collection import Collection
from ldctlib.errors import ParameterError

SPLITS_FOLDER = Path(ldctlib.__file__).resolve().parent.parent / "data" / "splits"

SUBSETS = ("train", "val", "test")


def split(
    collection: Collection, *, name: str | None = None, ratios: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0
) -> dict[str, list[str]]:
    """Patients for training, validation and test: ``{"train": [...], "val": [...], "test": [...]}``.

    Without ``name``, a patient's subset follows from a hash of the seed and the patient alone: the same
    patient falls into the same subset in every collection, and adding patients moves nobody. Shares are met
    on average only. Test patients of any split in data/splits stay test patients.

    ``name`` is a file in data/splits. Its patients are where it puts them; the others go where its entry
    "rest" says: "test", "nobody" for none of the three, or by hash to train and val in the ratio that ``ratios``
    gives them. Others that are test patients of another named split are then left out of all three: 13 of the
    challenge's 20 test patients are in LDCT-and-Projection-data too.
    """
    if len(ratios) != 3 or min(ratios) < 0 or not math.isclose(sum(ratios), 1):
        raise ParameterError(f"ratios are three shares (train, val, test) that sum to 1, got {ratios}")
    published = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(SPLITS_FOLDER.glob("*.json"))}
    if name is not None and name not in published:
        raise ParameterError(f"unknown split {name!r}; allowed: {', '.join(published) or 'none: data/splits is gone'}")
    reserved = {patient for one in published.values() for patient in one["test"]}
    listed = {p: subset for subset in SUBSETS for p in published[name][subset]} if name else {}
    result: dict[str, list[str]] = {subset: [] for subset in SUBSETS}
    for patient in collection.patients:
        if patient in listed:
            subset = listed[patient]
        elif name is None:
            subset = "test" if patient in reserved else _by_hash(patient, seed, ratios)
        elif published[name]["rest"] == "test":
            subset = "test"
        elif published[name]["rest"] == "nobody" or patient in reserved:
            continue
        else:
            trained = ratios[0] + ratios[1] or 1.0
            subset = _by_hash(patient, seed, (ratios[0] / trained, ratios[1] / trained, 0.0))
        result[subset].append(patient)
    return result


def _by_hash(patient: str, seed: int, ratios: Sequence[float]) -> str:
    digest = hashlib.sha256(f"{seed}/{patient}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < ratios[0]:
        return "train"
    return "test" if ratios[2] and place >= ratios[0] + ratios[1] else "val"


def check_disjoint(*splits: Mapping[str, Iterable[str]]) -> None:
    """Raise ParameterError if a patient that one split trains on or validates with is tested by another."""
    used = {patient for one in splits for subset in ("train", "val") for patient in one.get(subset, ())}
    tested = {patient for one in splits for patient in one.get("test", ())}
    if used & tested:
        both = ", ".join(sorted(used & tested))
        raise ParameterError(f"patients {both} are in one split's training or validation set and in a test set")
