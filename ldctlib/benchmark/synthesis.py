"""How good generators of CT images are, on masks and doses of patients that none has seen (NA-Diff, Tables 2, 3, 5).

    python -m ldctlib.benchmark.synthesis --generators na_diff_b,na_diff_f,na_diff_spatial --patients 32

Each generator makes one image for every case. Sets of images are compared with the cases' own scans; beside the
generators stand "real", scans of other patients, and "round trip", the cases' scans through the generators'
autoencoder, which none of them can surpass. Every distance carries the name of the network that it is measured with.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldctlib import generators
from ldctlib.ct.noise_maps import std_map
from ldctlib.ct.noise_model import NoiseModel, noise_from_pair
from ldctlib.data.anatomy_masks import CLASSES, LIVER, TABLES
from ldctlib.data.six_dose import DOSES, scanned_slices
from ldctlib.errors import LdctError, ParameterError
from ldctlib.files import write_json
from ldctlib.generators.registry import streams
from ldctlib.metrics.backbones import image_features
from ldctlib.metrics.distribution import frechet_distance, kernel_distance, mmd, precision_recall
from ldctlib.metrics.obedience import noise_sd
from ldctlib.metrics.segmentation import segmentation_scores
from ldctlib.metrics.statistics import paired_bootstrap
from ldctlib.pipelines.segmentation import JUDGE, SEGMENTER, quality, segment
from ldctlib.pipelines.synthesis import SynthesisPipeline
from ldctlib.units import SOFT_TISSUE

FULL_DOSE_SD_HU = (8.0, 12.0)
NOISE_ROI = 32
ORGANS = tuple(CLASSES.index(name) for name in ("bone", "liver", "spleen", "kidney", "vessel"))
"""Classes whose mean Dice is told beside the liver's."""


@dataclass(frozen=True)
class Cases:
    """Slices of unseen patients at the six doses in turn, as scanned, with what generators are told of them."""

    images_hu: Tensor  # (N, 1, 256, 256)
    noise_map_hu: Tensor
    masks: Tensor  # uint8
    doses: np.ndarray
    pixel_mm: np.ndarray
    patients: np.ndarray
    noise: dict[int, NoiseModel]  # by patient: one kernel each

    @classmethod
    def of_phantoms(cls, patients: int, *, seed: int, a_patient: int = 8) -> Cases:
        """Phantoms drawn from a seed of their own; doses in turn, so that each patient has all of them."""
        rng = np.random.default_rng([seed, 0xCA5E])
        drawn = scanned_slices(rng, patients * a_patient, sd_hu=FULL_DOSE_SD_HU, a_patient=a_patient)
        doses = np.array([DOSES[i % len(DOSES)] for i in range(len(drawn))])
        noise = torch.stack([torch.from_numpy(s.noise_hu.astype(np.float32))[None] for s in drawn])
        noise = noise / torch.from_numpy(doses**0.5).float()[:, None, None, None]
        clean = torch.stack([torch.from_numpy(s.clean_hu.astype(np.float32))[None] for s in drawn])
        masks = torch.stack([torch.from_numpy(TABLES["phantom"][s.labels])[None] for s in drawn])
        pixel_mm, patient = np.array([s.pixel_mm for s in drawn]), np.array([s.patient for s in drawn])
        spectra = {}
        for p in dict.fromkeys(patient.tolist()):
            own = np.flatnonzero(patient == p)
            spectra[p] = noise_from_pair(clean[own] + noise[own], clean[own], float(pixel_mm[own[0]]), roi=NOISE_ROI)
        return cls(clean + noise, std_map(noise), masks, doses, pixel_mm, patient, spectra)

    def __len__(self) -> int:
        return len(self.images_hu)


@dataclass
class SynthesisResult:
    """Scores of sets of images: set -> metric -> (value, low, high), and what the metrics depend on."""

    scores: dict[str, dict[str, tuple[float, float, float]]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def to_markdown(self) -> str:
        """One row a set."""
        metrics = list(dict.fromkeys(name for row in self.scores.values() for name in row))
        lines = ["| set | " + " | ".join(metrics) + " |", "| --- |" + " --- |" * len(metrics)]
        for name, row in self.scores.items():
            lines.append(f"| {name} | " + " | ".join(_cell(row.get(metric)) for metric in metrics) + " |")
        return "\n".join([*lines, "", *(f"{name}: {text}." for name, text in self.notes.items())]) + "\n"

    def to_json(self, path: str | Path) -> None:
        write_json(path, {"scores": self.scores, "notes": self.notes})

    @classmethod
    def from_json(cls, path: str | Path) -> SynthesisResult:
        """Read what :meth:`to_json` wrote (ParameterError for anything else)."""
        try:
            content = json.loads(Path(path).read_text())
            rows = content["scores"].items()  # JSON has no NaN
            scores = {k: {m: tuple(np.nan if x is None else x for x in v) for m, v in row.items()} for k, row in rows}
            return cls(scores, content["notes"])
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ParameterError(f"{path} is no result of synthesis ({type(error).__name__}: {error})") from error


def _cell(score: tuple[float, float, float] | None) -> str:
    if score is None or not np.isfinite(score[0]):
        return "–"
    digits = 3 if abs(score[0]) < 1 else 2
    interval = f" ({score[1]:.{digits}f} … {score[2]:.{digits}f})" if np.isfinite(score[1]) else ""
    return f"{score[0]:.{digits}f}{interval}"


def score_set(
    images_hu: Tensor, cases: Cases, *, reference: dict[str, Any], distances: bool = True
) -> dict[str, tuple[float, float, float]]:
    """All scores of images made for the cases; ``reference`` is :func:`seen` of the cases' own scans."""
    found, judged, out = segment(images_hu), quality(images_hu).numpy(), {}

    def mean(values: np.ndarray) -> tuple[float, float, float]:
        counts = np.isfinite(values)
        return paired_bootstrap(values[counts], cases.patients[counts]) if counts.any() else (np.nan,) * 3

    if distances:
        own, how = seen(images_hu), dict(patients=cases.patients, reference_patients=cases.patients)
        for key, measure in DISTANCES.items():
            backbone = key[1]
            try:
                measured = measure(own[backbone], reference[backbone], **how)
            except ParameterError:  # too few images for this backbone
                continue
            for d in measured if isinstance(measured, tuple) and not hasattr(measured, "name") else (measured,):
                out[d.name] = (d.value, d.low, d.high)
    overlap = segmentation_scores(found, cases.masks, pixel_mm=1.0, classes=ORGANS)
    liver = ORGANS.index(LIVER)
    scale = cases.pixel_mm
    out["Dice, liver"] = mean(overlap.dice[:, liver])
    out["Dice, five organs"] = mean(np.nanmean(overlap.dice, axis=1))
    out["IoU, liver"] = mean(overlap.iou[:, liver])
    out["HD95, liver (mm)"] = mean(overlap.hausdorff95_mm[:, liver] * scale)
    out["recall, liver"] = mean(overlap.recall[:, liver])
    out["precision, liver"] = mean(overlap.precision[:, liver])
    out["quality"] = mean(judged)
    out["|Δ quality|"] = mean(np.abs(judged - reference["quality"]))
    ratio = noise_ratio(images_hu, cases, found)
    out["noise / asked for"] = mean(ratio)
    return out


def noise_ratio(images_hu: Tensor, cases: Cases, masks: Tensor | None = None) -> np.ndarray:
    """Standard deviation of the noise in the liver over the conditioned map's there, (N,); NaN where it is small.

    masks : where the liver is; the segmenter's by default, since an image may not have it where it was asked for.
    """
    masks = segment(images_hu) if masks is None else masks
    ratios = np.full(len(images_hu), np.nan)
    for patient, model in cases.noise.items():
        own = np.flatnonzero(cases.patients == patient)
        how = dict(pixel_mm=model.pixel_mm, noise=model, map_hu=cases.noise_map_hu[own])
        ratios[own] = noise_sd(images_hu[own], masks[own] == LIVER, **how).ratio.numpy()
    return ratios


def seen(images_hu: Tensor) -> dict[str, Any]:
    """Features of a set of images by every backbone, and their quality."""
    out: dict[str, Any] = {}
    for key in DISTANCES:
        backbone, layer = key[1], key[2]
        if backbone not in out:
            window = None if backbone.startswith("small clip") else SOFT_TISSUE
            out[backbone] = image_features(
                images_hu.split(32), window=window, backbone=backbone.split("/")[0], layer=layer
            )
    out["quality"] = quality(images_hu).numpy()
    return out


DISTANCES: dict[tuple[str, str, str | None], Callable[..., Any]] = {
    ("FD", "vgg16/relu2_2", "relu2_2"): frechet_distance,
    ("KD", "vgg16", "relu3_3"): kernel_distance,
    ("MMD", "small clip", None): mmd,
    ("PR", "vgg16", "relu3_3"): precision_recall,
}
"""(kind, backbone as it is kept, its layer) -> measure."""


@torch.no_grad()
def round_trip(pipeline: SynthesisPipeline, cases: Cases, batch: int = 8) -> Tensor:
    """The cases' scans through the autoencoder: what no generator on its latents can surpass."""
    out = []
    for first in range(0, len(cases), batch):
        part = cases.images_hu[first : first + batch]
        z = pipeline.autoencoder.scale(pipeline.encode_images(part)["mean"])
        out.append(pipeline.decode(z, generators=streams(range(first, first + len(part)), 1)))
    return torch.cat(out)


def run(
    names: Sequence[str],
    cases: Cases,
    *,
    others: Cases | None = None,
    steps: int = 30,
    guidance: float = 1.0,
    files: dict[str, str] | None = None,
    batch: int = 16,
    distances: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> SynthesisResult:
    """Make and score images of the named generators for the cases.

    others : scans of other patients, for the row "real".
    files : checkpoints in place of the shipped ones, by generator.
    """
    result, reference = (
        SynthesisResult(),
        seen(cases.images_hu) if distances else {"quality": quality(cases.images_hu).numpy()},
    )
    result.notes["n"] = (
        f"{len(cases)} images of {len(set(cases.patients))} patients, {steps} steps, guidance {guidance:g}"
    )
    result.notes["distances"] = (
        "to the cases' own scans, in the soft-tissue window; the small CLIP has windows of its own"
    )
    result.notes["Dice"] = f"of {SEGMENTER}, trained on other phantoms, against the mask that was asked for"
    result.notes["quality"] = f"0 to 4, by {JUDGE}, which was trained on simulated doses"
    result.scores["the cases' scans"] = score_set(cases.images_hu, cases, reference=reference, distances=False)
    if others is not None:
        made = score_set(others.images_hu, others, reference=reference, distances=distances)
        result.scores["real, other patients"] = {k: v for k, v in made.items() if "(" in k or k == "quality"}
    for i, name in enumerate(names):
        generate = generators.load(name, path=(files or {}).get(name))
        if i == 0 and generate.pipeline.autoencoder is not None:
            result.images["round trip"] = round_trip(generate.pipeline, cases)
            result.scores["round trip"] = score_set(
                result.images["round trip"], cases, reference=reference, distances=distances
            )
        parts = []
        for first in range(0, len(cases), batch):
            part = slice(first, min(first + batch, len(cases)))
            told = dict(noise_map_hu=cases.noise_map_hu[part], steps=steps, guidance=guidance)
            parts.append(generate(cases.masks[part], seeds=range(part.start, part.stop), **told))
        result.images[name] = torch.cat(parts)
        result.scores[name] = score_set(result.images[name], cases, reference=reference, distances=distances)
        progress(name)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ldctlib.benchmark.synthesis", description=__doc__.splitlines()[0])
    parser.add_argument("--generators", default=",".join(generators.GENERATORS), help="names, or name:path=FILE")
    parser.add_argument("--patients", type=int, default=32, help="of 8 slices each")
    parser.add_argument("--seed", type=int, default=9_500_001, help="of the cases' patients")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--json", help="write the scores to this file")
    options = parser.parse_args()
    try:
        pairs = [entry.partition(":path=") for entry in options.generators.split(",")]
        cases = Cases.of_phantoms(options.patients, seed=options.seed)
        others = Cases.of_phantoms(options.patients, seed=options.seed + 1)
        files = {name: path for name, _, path in pairs if path}
        how = dict(steps=options.steps, guidance=options.guidance, others=others, files=files)
        tell = lambda text: print(f"{text} done", file=sys.stderr, flush=True)  # noqa: E731
        result = run([name for name, *_ in pairs], cases, progress=tell, **how)
        print(result.to_markdown())
        if options.json:
            result.to_json(options.json)
        return 0
    except LdctError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
