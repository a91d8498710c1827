"""Restoring measurements y = A x + n: denoising, super-resolution, inpainting, few views, CT and MR, in one table.

python -m ldctlib.benchmark.restoration --tasks denoise,sr4,sr8 --crop 192
"""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ldctlib import metrics as M
from ldctlib.benchmark.cases import FIRST_UNSEEN, BenchmarkCase, phantom_cases, unseen_seeds
from ldctlib.benchmark.result import BenchmarkResult
from ldctlib.commands import command_line
from ldctlib.ct.dose import acquire, ray_variance
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.noise_model import noise_from_image
from ldctlib.ct.projector import projector
from ldctlib.data.collection import open_collection
from ldctlib.data.mr_patches import normalised
from ldctlib.errors import ParameterError
from ldctlib.methods.dip import SUPER_RESOLUTION, deep_image_prior
from ldctlib.methods.plug_and_play import ilvr_reference
from ldctlib.operators import BlockMean, CorrelatedNoise, CTProjection, Identity, Operator, WhiteNoise
from ldctlib.operators.solvers import total_variation
from ldctlib.phantom.mr.cardiac import CardiacPatient
from ldctlib.phantom.patient import Patient
from ldctlib.phantom.scan_phantom import SCANNER
from ldctlib.pipelines import Prior
from ldctlib.units import SOFT_TISSUE, Range, Window, hu_to_mu

MR_WINDOW = Window(0.6, 1.2, "of the volume's 99.5th percentile")

Restorer = Callable[..., Tensor]
"""``restore(y, operator, *, generator)`` -> the image, in its own scale."""


@dataclass(frozen=True, eq=False)
class RestorationCase:
    """A measurement of one image, and the image."""

    task: str
    patient: str
    y: Tensor
    operator: Operator
    reference: Tensor  # (1, 1, H, W), in the image's scale
    group: str = "all"
    dose: float = math.nan
    slice: str = "0"


def restore_all(
    restorers: Mapping[str, Restorer],
    cases: Iterable[RestorationCase],
    *,
    window: Window,
    metrics: Sequence[str] = ("psnr", "ssim", "vif"),
    seed: int = 0,
) -> BenchmarkResult:
    """Every method on every case, measured in the window; the first is what differences are taken to."""
    functions = {name: getattr(M, name) for name in metrics}
    rows, images = [], {}
    for index, case in enumerate(cases):
        for name, restore in restorers.items():
            start = time.perf_counter()
            x = restore(case.y, case.operator, generator=torch.Generator().manual_seed(seed + index))
            row = dict(method=name, patient=case.patient, slice=case.slice, group=f"{case.task}, {case.group}")
            row |= dict(dose=case.dose, reference="truth", residual_noise=0.0, seconds=time.perf_counter() - start)
            row |= {k: float(f(x, case.reference, window=window)) for k, f in functions.items()}
            rows.append(row)
            images[name, index] = x
    if not rows:
        raise ParameterError("no cases to restore")
    import pandas as pd

    device = f"cpu, {torch.get_num_threads()} threads"
    return BenchmarkResult(
        pd.DataFrame(rows), window, next(iter(restorers)), list(metrics), device=device, images=images
    )


# ---------------------------------------------------------------- tasks


def ct_tasks(cases: Iterable[BenchmarkCase], tasks: Sequence[str]) -> Iterator[RestorationCase]:
    """Each low-dose slice as what the tasks make of it: "denoise", or "srR" for its means over R x R pixels.

    The noise is estimated from the low-dose slice alone; that of the means follows from its spectrum.
    """
    for case in cases:
        size = case.ldct_hu.shape[-2:]
        model = noise_from_image(case.ldct_hu, case.pixel_mm)
        noise = CorrelatedNoise.from_psd(model.psd(*size), case.pixel_mm)
        for task in tasks:
            r = factor(task)
            operator = Identity(noise) if r == 1 else BlockMean(r, noise.block_mean(r))
            where = dict(group=case.group, dose=case.dose, slice=case.slice)
            yield RestorationCase(task, case.patient, operator.A(case.ldct_hu), operator, case.reference_hu, **where)


def factor(task: str) -> int:
    """1 for "denoise", R for "srR"."""
    if task == "denoise":
        return 1
    if not (task.startswith("sr") and task[2:].isdigit() and int(task[2:]) > 1):
        raise ParameterError(f"a task is 'denoise' or 'srR' such as 'sr4', got {task!r}")
    return int(task[2:])


def few_view_cases(
    seeds: Sequence[int],
    *,
    n_views: int = 60,
    dose: float = 0.25,
    turn_rad: float = math.pi,
    size: int = 448,
    pixel_mm: float = 0.86,
    photons: float = 1e6,
) -> Iterator[RestorationCase]:
    """A slice of each patient from few views, or from a limited arc below π: line integrals, each with its own noise.

    The body is drawn and projected on a grid of half the pixel; the reference is its mean over that of the image.
    ``photons`` are those of a ray without attenuation, at full dose, in each view.
    """
    geometry = replace(ParallelGeometry.for_image(size, pixel_mm, n_views=n_views), turn_rad=turn_rad)
    scanner = replace(SCANNER, photons=photons)
    for seed in seeds:
        patient = Patient.random(int(seed))
        z_mm = 0.5 * sum(patient.z_range_mm)
        body = patient.slice(z_mm, size=2 * size, pixel_mm=pixel_mm / 2, thickness_mm=3.0).hu
        lines = projector(geometry.on_grid(2 * size)).A(hu_to_mu(body))
        (measured,) = acquire(lines, scanner, geometry, (dose,), generator=torch.Generator().manual_seed(int(seed)))
        variance = ray_variance(measured, scanner.incident(geometry, lines), dose, scanner.electronic_sd)
        operator = CTProjection(projector(geometry), ray_sd=variance.sqrt())
        where = dict(group=f"{n_views} views over {math.degrees(turn_rad):.0f}°", dose=dose, slice=f"{z_mm:.0f} mm")
        reference = F.avg_pool2d(body, 2)
        yield RestorationCase("few views", f"phantom {seed}", operator.to_y(measured), operator, reference, **where)


def mr_tasks(images: Iterable[tuple[str, str, Tensor]], tasks: Sequence[str]) -> Iterator[RestorationCase]:
    """Super-resolution of images (patient, slice, (1, 1, H, W)) as they are: "srR" takes means over R x R pixels."""
    for patient, name, image in images:
        for task in tasks:
            operator = BlockMean(factor(task))
            yield RestorationCase(task, patient, operator.A(image), operator, image, group="cine MR", slice=name)


def mr_images(
    source: str | Path | Sequence[int], patients: int, slices: int = 2, *, crop: int = 192
) -> Iterator[tuple[str, str, Tensor]]:
    """Slices spread over the heart, in units of the volume's 99.5th percentile: of phantoms by their seeds, or of
    the patients of a folder of MR scans; their central part, ``crop`` pixels a side or as many eights as there are."""
    if not isinstance(source, (str, Path)):
        for seed in source[:patients]:
            heart = CardiacPatient.random(seed)
            low, high = heart.z_range_mm
            for k in range(slices):
                z_mm = low + (k + 1) / (slices + 1) * (high - low)
                yield f"phantom {seed}", f"{z_mm:.0f} mm", _central(heart.slice(z_mm, size=192).image, crop)
        return
    for case in open_collection(source).cases[:patients]:
        volume = normalised(case.load_full().values)
        for k in range(slices):
            index = (2 * k + 1) * len(volume) // (2 * slices)
            yield case.patient, str(index), _central(volume[index][None, None].float(), crop)


def _central(image: Tensor, crop: int) -> Tensor:
    h, w = (min(n, crop) // 8 * 8 for n in image.shape[-2:])
    top, left = ((n - side) // 2 for n, side in zip(image.shape[-2:], (h, w), strict=True))
    return image[..., top : top + h, left : left + w]


# ---------------------------------------------------------------- methods


def pseudo_inverse(y: Tensor, operator: Operator, *, generator=None) -> Tensor:
    """A⁺y, the paper's H†y: the scan itself, or each mean repeated; of projections FBP, which is no pseudo-inverse."""
    return operator.fbp(y, "B30f") if isinstance(operator, CTProjection) else operator.A_dagger(y)


def bicubic(y: Tensor, operator: Operator, *, generator=None) -> Tensor:
    """Means enlarged by bicubic interpolation; other measurements as :func:`pseudo_inverse`."""
    if not isinstance(operator, BlockMean):
        return operator.A_dagger(y)
    return F.interpolate(y, scale_factor=operator.r, mode="bicubic", align_corners=False)


def deep_prior(y: Tensor, operator: Operator, *, generator=None) -> Tensor:
    """Deep image prior with the published options of the task."""
    r = operator.r if isinstance(operator, BlockMean) else 1
    margin = 0.05 * float(y.max() - y.min())
    image_range = Range(float(y.min()) - margin, float(y.max()) + margin)
    size = [n * r for n in y.shape[-2:]]
    options = dict(image_range=image_range, generator=generator, **SUPER_RESOLUTION.get(r, {}))
    (last,) = deque(deep_image_prior(y, operator, size, **options), maxlen=1)
    return last.x_average if r == 1 else last.x


def tv(y: Tensor, operator: Operator, *, weight: float = 0.01, generator=None) -> Tensor:
    """Total variation, from filtered backprojection on."""
    return total_variation(operator, y, pseudo_inverse(y, operator), weight)


def with_prior(
    prior: Prior, *, white: bool = False, noise_factor: float = 1.0, start_means: bool = True, **options
) -> Restorer:
    """A plug-and-play sampler on a prior; ``options`` are those of :meth:`~ldctlib.pipelines.Prior.steps`.

    white : take the noise as white, of the same standard deviation.
    noise_factor : times that.
    start_means : a chain for super-resolution starts from bicubic interpolation at :func:`means_start`, and not at T.
    """

    def restore(y: Tensor, operator: Operator, *, generator=None) -> Tensor:
        noise = WhiteNoise(operator.noise_sd) if white else operator.noise
        operator = operator.with_noise(noise.scaled(noise_factor))
        if options.get("sampler") == "ilvr":
            y, operator = ilvr_reference(y, operator)
        chosen = dict(options)
        if start_means and isinstance(operator, BlockMean):
            chosen |= dict(start=means_start(prior), estimate=bicubic(y, operator))
        return prior.restore(y, operator, generator=generator, **chosen)

    return restore


def dds(prior: Prior, *, prior_error: float = 80.0, iterations: int = 5, start: int = 600, steps: int = 20) -> Restorer:
    """Decomposed diffusion sampling from the total-variation image on.

    prior_error : standard deviation in the image's scale that the prior's estimate is taken to have at every step; with
        y's noise it says what the data weigh (γ of DDS's Algorithm 1).
    iterations : conjugate gradients of a step, the paper's 5: with many more the noise of the rays is fitted, too.
    """

    def restore(y: Tensor, operator: Operator, *, generator=None) -> Tensor:
        chain = dict(start=start, steps=steps, estimate=tv(y, operator))
        gamma = (prior_error / operator.noise_sd) ** 2
        operator = operator.with_noise(operator.noise)  # a copy
        operator.iterations = iterations
        return prior.restore(y, operator, sampler="dds", gamma=gamma, generator=generator, **chain)

    return restore


def means_start(prior: Prior) -> int:
    """Where a chain for block means starts from bicubic interpolation: what did best, in CT and in MR."""
    return 100 if prior.pipeline.scale == "HU" else 60


RESTORERS: dict[str, Callable[..., Restorer]] = {
    "pseudo_inverse": lambda prior: pseudo_inverse,
    "bicubic": lambda prior: bicubic,
    "ilvr": lambda prior: with_prior(prior, sampler="ilvr", steps=20),
    "dps": lambda prior: with_prior(prior, sampler="dps", steps=1000, start_means=False),
    "ddnm": lambda prior: with_prior(prior, sampler="ddnm", steps=20),
    "ddrm": lambda prior: with_prior(prior, sampler="ddrm", steps=20, start_means=False),
    "ddnm_white": lambda prior: with_prior(prior, white=True, steps=20),
    "ddnm_plus": lambda prior: with_prior(prior, steps=20),
    "ddnm_published": lambda prior: with_prior(prior, steps=100, start_means=False),
    "dds": dds,
    "dip": lambda prior: deep_prior,
    "tv": lambda prior: tv,
}
"""By the names that the command line takes: a function of the prior."""


def restorers(names: Sequence[str], prior: str | Path) -> dict[str, Restorer]:
    """The methods of these names, on one prior."""
    if unknown := sorted(set(names) - set(RESTORERS)):
        raise ParameterError(f"no method is named {', '.join(unknown)}; there are {', '.join(RESTORERS)}")
    loaded = Prior.from_checkpoint(prior)
    return {name: RESTORERS[name](loaded) for name in names}


@command_line("nothing is kept")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ldctlib.benchmark.restoration", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--tasks", default="denoise,sr4,sr8", help="of denoise, srR, views")
    parser.add_argument("--methods", default="pseudo_inverse,ddnm_plus", help=f"of {', '.join(RESTORERS)}")
    parser.add_argument("--patients", type=int, default=6, help="phantom patients")
    parser.add_argument("--first-seed", type=int, default=FIRST_UNSEEN, help="of the phantom patients")
    parser.add_argument("--kernels", default="B30f,D45f")
    parser.add_argument("--doses", default="0.25,0.1")
    parser.add_argument("--crop", type=int, default=192, help="pixels a side of the central square")
    parser.add_argument("--mr", nargs="?", const="phantom", help="MR in place of CT: phantoms, or a folder of scans")
    parser.add_argument("--slices", type=int, default=2, help="of each MR volume, spread over the heart")
    parser.add_argument("--prior", help="a checkpoint's name or file; default: prior_ct, or prior_mr with --mr")
    parser.add_argument("--json", type=Path, help="also write every number here")
    parser.add_argument("--no-intervals", action="store_true", help="means only")
    options = parser.parse_args(arguments)
    tasks, kernels = options.tasks.split(","), options.kernels.split(",")
    doses = [float(d) for d in options.doses.split(",")]
    seeds = unseen_seeds(options.patients, options.first_seed)
    cases: Iterator[RestorationCase] = iter(())
    if options.mr:
        source = seeds if options.mr == "phantom" else options.mr
        cases = mr_tasks(mr_images(source, options.patients, options.slices, crop=options.crop), tasks)
    if not options.mr and "views" in tasks:
        cases = few_view_cases(seeds)
    if not options.mr and (of_images := [t for t in tasks if t != "views"]):
        phantoms = phantom_cases(seeds, doses, kernels=kernels, crop=options.crop)
        cases = chain(cases, ct_tasks(phantoms, of_images))
    prior = options.prior or ("prior_mr" if options.mr else "prior_ct")
    chosen = restorers(options.methods.split(","), prior)
    result = restore_all(chosen, cases, window=MR_WINDOW if options.mr else SOFT_TISSUE)
    result.report(options.json, intervals=not options.no_intervals)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
