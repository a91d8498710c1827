"""How good generators of CT images are, on masks and doses of patients that none has seen (NA-Diff, Tables 2, 3, 5).

    python -m ldctlib.benchmark.synthesis --generators na_diff_b,na_diff_f,na_diff_spatial --patients 32
    python -m ldctlib.benchmark.synthesis --generators na_diff_d,seg_diff --data FOLDER --slices 500

With a folder the cases are slices of its labelled test patients, whose doses and noise nobody knows (Tables 7 and 8).
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
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib import checkpoints, generators
from ldctlib.commands import command_line
from ldctlib.ct.noise_maps import std_map
from ldctlib.ct.nps import nps
from ldctlib.data.anatomy_masks import CLASSES, LIVER, TABLES
from ldctlib.data.collection import Collection, open_collection
from ldctlib.data.labelled import liver_slices
from ldctlib.data.six_dose import DOSES, scanned_slices
from ldctlib.data.splits import split
from ldctlib.errors import ParameterError, ScanError
from ldctlib.files import file_to_write, write_json
from ldctlib.generators.registry import streams
from ldctlib.metrics.backbones import Features, image_features
from ldctlib.metrics.distribution import Distance, frechet_distance, kernel_distance, mmd, precision_recall
from ldctlib.metrics.noise import nps_distance
from ldctlib.metrics.obedience import noise_sd
from ldctlib.metrics.segmentation import segmentation_scores
from ldctlib.metrics.statistics import paired_bootstrap
from ldctlib.pipelines.segmentation import JUDGE, SEGMENTER, quality, segment
from ldctlib.pipelines.synthesis import SynthesisPipeline
from ldctlib.units import SOFT_TISSUE

FULL_DOSE_SD_HU = (8.0, 12.0)
NOISE_ROI = 32
UNCLIPPED_HU = (-60.0, 160.0)
"""Tissue whose noise the window does not clip."""
ORGANS = tuple(CLASSES.index(name) for name in ("bone", "liver", "spleen", "kidney", "vessel"))
"""Classes whose mean Dice is told beside the liver's."""
OF_MASKS = tuple(name for name, entry in generators.GENERATORS.items() if "noise" not in entry.conditions)
"""Generators that need no noise map."""


@dataclass(frozen=True)
class Cases:
    """Slices of unseen patients, as scanned, with what generators are told of them."""

    images_hu: Tensor  # (N, 1, 256, 256)
    noise_hu: Tensor | None  # None of real scans, whose masks have no organ but the liver
    masks: Tensor  # uint8
    doses: np.ndarray | None
    pixel_mm: np.ndarray
    patients: np.ndarray

    @cached_property
    def noise_map_hu(self) -> Tensor | None:
        return None if self.noise_hu is None else std_map(self.noise_hu)

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
        return cls(clean + noise, noise, masks, doses, pixel_mm, patient)

    @classmethod
    def of_collection(cls, collection: Collection, slices: int, *, seed: int, size: int = 256) -> Cases:
        """``slices`` random slices that show liver, about as many of each labelled patient, or all if there are fewer.

        Raises ScanError where nothing is labelled.
        """
        rng, labelled = np.random.default_rng([seed, 0xCA5E]), collection.labelled().cases
        drawn, patients, pixels_mm = [], [], []
        for i, case in enumerate(labelled):
            share = -(-(slices - len(patients)) // (len(labelled) - i))
            if share <= 0:
                break
            drawn.append(liver_slices(case, rng, share, size))
            patients += [case.patient] * len(drawn[-1][0])
            pixels_mm += [drawn[-1][2]] * len(drawn[-1][0])
        if not patients:
            raise ScanError(f"{collection.name}: no labelled scan is among the patients to test on")
        images, masks = (torch.cat(parts) for parts in list(zip(*drawn, strict=True))[:2])
        return cls(images, None, masks, None, np.array(pixels_mm), np.array(patients))

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
    images_hu: Tensor,
    cases: Cases,
    *,
    quality_of_cases: np.ndarray,
    noise_hu: Tensor | None = None,
    reference: Seen | None = None,
) -> dict[str, tuple[float, float, float]]:
    """All scores of images made for the cases; without noise maps those of the liver and of the image alone.

    quality_of_cases : of the cases' own scans.
    noise_hu : what is noise in the images, where it is known.
    reference : :func:`seen` of these, for the distances between the sets; None leaves them out.
    """
    found, judged, out = segment(images_hu), quality(images_hu).numpy(), {}

    def mean(values: np.ndarray) -> tuple[float, float, float]:
        counts = np.isfinite(values)
        return paired_bootstrap(values[counts], cases.patients[counts]) if counts.any() else (np.nan,) * 3

    if reference is not None:
        out |= distances(seen(images_hu), reference, cases.patients, cases.patients)
    overlap = segmentation_scores(found, cases.masks, pixel_mm=1.0, classes=ORGANS)
    liver = ORGANS.index(LIVER)
    out["Dice, liver"] = mean(overlap.dice[:, liver])
    if cases.noise_map_hu is not None:
        out["Dice, five organs"] = mean(np.nanmean(overlap.dice, axis=1))
    out["IoU, liver"] = mean(overlap.iou[:, liver])
    out["HD95, liver (mm)"] = mean(overlap.hausdorff95_mm[:, liver] * cases.pixel_mm)
    out["recall, liver"] = mean(overlap.recall[:, liver])
    out["precision, liver"] = mean(overlap.precision[:, liver])
    out["quality"] = mean(judged)
    out["|Δ quality|"] = mean(np.abs(judged - quality_of_cases))
    if cases.noise_hu is not None and noise_hu is not None:
        ratio, texture = noise_obedience(images_hu - noise_hu, noise_hu, cases)
        out["noise / asked for"], out["NPS distance"] = mean(ratio), mean(texture)
    return out


def noise_obedience(without_hu: Tensor, noise_hu: Tensor, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """Noise of images where the liver was asked for: its standard deviation over the conditioned map's, and how far its
    spectrum is from that of the patient's own noise (:func:`nps_distance`); (N,) each, NaN where there is too little.

    without_hu : the images without it; where these are near the window's ends, noise is clipped and not looked at.
    """
    low, high = UNCLIPPED_HU
    there = (cases.masks == LIVER) & (without_hu > low) & (without_hu < high)
    inside = F.avg_pool2d(there.float(), NOISE_ROI, stride=NOISE_ROI // 4)[:, 0] >= 0.9
    units = [noise / cases.noise_map_hu for noise in (noise_hu, cases.noise_hu)]  # all doses alike
    ratios, distances = np.full((2, len(noise_hu)), np.nan)
    for patient in dict.fromkeys(cases.patients.tolist()):
        own = np.flatnonzero(cases.patients == patient)
        how = dict(pixel_mm=float(cases.pixel_mm[own[0]]))
        found = noise_sd(noise_hu[own], there[own], map_hu=cases.noise_map_hu[own], highpass_mm=None, **how)
        ratios[own] = found.ratio.numpy()
        corners = [(b, r * NOISE_ROI // 4, c * NOISE_ROI // 4) for b, r, c in inside[own].nonzero().tolist()]
        if corners:
            spectra = [nps(unit[own], roi=NOISE_ROI, corners=corners, detrend="plane", **how) for unit in units]
            distances[own[0]] = nps_distance(*spectra)
    return np.where(ratios > 0, ratios, np.nan), distances


Seen = dict[tuple[str, str | None], Features]
"""A set of images in the features of each (backbone, layer)."""

DISTANCES: tuple[tuple[str, str | None, Callable[..., Any]], ...] = (
    ("vgg16", "relu2_2", frechet_distance),
    ("vgg16", "relu3_3", kernel_distance),
    ("small clip", None, mmd),
    ("vgg16", "relu3_3", precision_recall),
)
"""Backbone, its layer, measure."""


def seen(images_hu: Tensor) -> Seen:
    """The features of a set of images that :data:`DISTANCES` are measured in."""
    out: Seen = {}
    for backbone, layer in dict.fromkeys((backbone, layer) for backbone, layer, _ in DISTANCES):
        window = None if backbone == "small clip" else SOFT_TISSUE  # it has windows of its own
        out[backbone, layer] = image_features(images_hu.split(32), window=window, backbone=backbone, layer=layer)
    return out


def distances(own: Seen, reference: Seen, patients: np.ndarray, reference_patients: np.ndarray) -> dict[str, Any]:
    """Distances between two sets of images, with their intervals; those that need more images are left out."""
    out = {}
    for backbone, layer, measure in DISTANCES:
        pair = own[backbone, layer], reference[backbone, layer]
        try:
            found = measure(*pair, patients=patients, reference_patients=reference_patients)
        except ParameterError:
            continue
        for d in (found,) if isinstance(found, Distance) else found:
            out[d.name] = (d.value, d.low, d.high)
    return out


@torch.no_grad()
def round_trip(pipeline: SynthesisPipeline, cases: Cases, batch: int = 8) -> tuple[Tensor, Tensor]:
    """The cases' scans through the autoencoder: what no generator on its latents can surpass; and its noise."""
    out = []
    for first in range(0, len(cases), batch):
        part = cases.images_hu[first : first + batch]
        z = pipeline.autoencoder.scale(pipeline.encode_images(part)["mean"])
        drawn = pipeline.decode(z, generators=streams(range(first, first + len(part)), 1))
        out.append((drawn, drawn - pipeline.decode(z)))
    images_hu, noise_hu = zip(*out, strict=True)
    return torch.cat(images_hu), torch.cat(noise_hu)


def images_of(
    generate: generators.Generator, cases: Cases, *, batch: int = 16, **options
) -> tuple[Tensor, Tensor | None]:
    """An image (N, 1, H, W) in HU for each case, of the seed that is its number, and the noise that its decoder drew.

    ``options`` go to the generator. Pixel models draw noise with the image, and nobody knows it: None.
    """
    parts = []
    for first in range(0, len(cases), batch):
        part = slice(first, min(first + batch, len(cases)))
        noise_map_hu = None if cases.noise_map_hu is None else cases.noise_map_hu[part]
        seeds = range(part.start, part.stop)
        *_, last = generate.steps(cases.masks[part], noise_map_hu=noise_map_hu, seeds=seeds, **options)
        parts.append([generate.decode(last.x0_hat, seeds, noise=noise) for noise in (True, False)])
    images_hu, without_hu = (torch.cat(images) for images in zip(*parts, strict=True))
    return images_hu, None if torch.equal(images_hu, without_hu) else images_hu - without_hu


def run(
    names: Sequence[str],
    cases: Cases,
    *,
    others: Cases | None = None,
    steps: int = 30,
    guidance: float = 1.0,
    files: dict[str, str] | None = None,
    batch: int = 16,
    sets: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> SynthesisResult:
    """Make and score images of the named generators for the cases.

    others : scans of other patients, for the row "real".
    sets : whether distances between sets of images are measured.
    files : checkpoints in place of the shipped ones, by generator.

    Raises ParameterError for generators that need a noise map where the cases have none.
    """
    result, files = SynthesisResult(), files or {}
    refused = [name for name in names if name in generators.GENERATORS and name not in OF_MASKS]
    if cases.noise_map_hu is None and refused:
        told = "conditioned on a noise map, which these scans do not have"
        raise ParameterError(f"{', '.join(refused)}: {told}; of the mask alone are {', '.join(OF_MASKS)}")
    how = dict(quality_of_cases=quality(cases.images_hu).numpy())
    result.scores["the cases' scans"] = score_set(cases.images_hu, cases, noise_hu=cases.noise_hu, **how)
    how |= dict(reference=seen(cases.images_hu) if sets else None)
    n_patients = len(set(cases.patients))
    result.notes |= {
        "n": f"{len(cases)} images of {n_patients} patients, {steps} steps, guidance {guidance:g}",
        "distances": "to the cases' own scans, in the soft-tissue window; the small CLIP has windows of its own",
        "Dice": f"of {SEGMENTER}, trained on other phantoms, against the mask that was asked for",
        "quality": f"0 to 4, by {JUDGE}, which was trained on simulated doses",
    }
    if others is not None:
        row = {"quality": paired_bootstrap(quality(others.images_hu).numpy(), others.patients)}
        if sets:
            row |= distances(seen(others.images_hu), how["reference"], others.patients, cases.patients)
        result.scores["real, other patients"] = row
    for name in names:
        generate = generators.load(name, path=files.get(name))
        if "round trip" not in result.images and generate.pipeline.spec.autoencoder is not None:
            result.images["round trip"], noise_hu = round_trip(generate.pipeline, cases)
            result.scores["round trip"] = score_set(result.images["round trip"], cases, noise_hu=noise_hu, **how)
        made, noise_hu = images_of(generate, cases, steps=steps, guidance=guidance, batch=batch)
        result.images[name] = made
        result.scores[name] = score_set(made, cases, noise_hu=noise_hu, **how)
        progress(name)
    return result


@command_line("nothing is kept")
def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ldctlib.benchmark.synthesis", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--generators", help="names, or name:path=FILE; by default all that ship and that the cases suffice for"
    )
    parser.add_argument("--patients", type=int, default=32, help="of 8 slices each")
    parser.add_argument("--data", help="a folder of labelled scans, whose test patients take the phantoms' place")
    parser.add_argument("--slices", type=int, default=500, help="of these scans")
    parser.add_argument("--seed", type=int, default=9_500_001, help="of the cases' patients")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--json", help="write the scores to this file")
    options = parser.parse_args()
    if options.json:
        file_to_write(options.json)
    known = OF_MASKS if options.data else generators.GENERATORS
    named = options.generators or ",".join(name for name in known if checkpoints.exists(name))
    pairs = [entry.partition(":path=") for entry in named.split(",")]
    if options.data is None:
        cases, others = (Cases.of_phantoms(options.patients, seed=options.seed + i) for i in range(2))
    else:
        collection = open_collection(options.data)
        test, val = (collection.subset(split(collection)[subset]) for subset in ("test", "val"))
        cases = Cases.of_collection(test, options.slices, seed=options.seed)
        others = Cases.of_collection(val, options.slices, seed=options.seed + 1) if len(val.labelled()) else None
    files = {name: path for name, _, path in pairs if path}
    how = dict(steps=options.steps, guidance=options.guidance, others=others, files=files)
    result = run([name for name, *_ in pairs], cases, progress=partial(print, "done:", file=sys.stderr), **how)
    print(result.to_markdown())
    if options.json:
        result.to_json(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
