"""The prior in the image's own scale, the methods on it, and the table of restorations; on tiny random networks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ldctlib import methods
from ldctlib.benchmark import restoration
from ldctlib.benchmark.cases import phantom_cases
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.noise_model import noise_from_image
from ldctlib.ct.projector import projector
from ldctlib.diffusion import plug_and_play as pnp
from ldctlib.diffusion.samplers import final
from ldctlib.errors import CheckpointError, ParameterError, ShapeError
from ldctlib.image import gaussian_blur
from ldctlib.operators import BlockMean, CorrelatedNoise, CTProjection, Identity, Mask, WhiteNoise, conjugate_gradient
from ldctlib.operators.solvers import largest_eigenvalue, total_variation
from ldctlib.pipelines import DiffusionPipeline, PipelineSpec, Prior
from ldctlib.units import SOFT_TISSUE, Range, hu_to_mu
from tests.test_pipelines import PIXELS, SPECS, image, seeded, write

pytestmark = pytest.mark.usefixtures("one_thread")

RANGE = Range(-360.0, 440.0)
EPS = PipelineSpec(dict(schedule="linear", T=1000, prediction="eps"))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("priors")
    write(folder / "ddpm.safetensors", "unet", PIXELS, seed=20, pipeline=SPECS["pixels"].to_dict())
    network = PIXELS | dict(concat_channels=0)
    return write(folder / "prior_ct.safetensors", "unet", network, seed=5, hu_range=RANGE, pipeline=EPS.to_dict())


@pytest.fixture(scope="module")
def prior(path) -> Prior:
    return Prior.from_checkpoint(path)


def few_views(size: int) -> CTProjection:
    geometry = ParallelGeometry.for_image(size, 4.0, n_views=9)
    ray_sd = 0.01 + 0.02 * torch.rand(1, 1, 9, geometry.n_bins, generator=torch.Generator().manual_seed(3))
    return CTProjection(projector(geometry), ray_sd=ray_sd, iterations=20)


SEEN = torch.rand(32, 32, generator=torch.Generator().manual_seed(1)) > 0.4
OPERATORS = {
    "identity": Identity(30.0),
    "means": BlockMean(4, 5.0),
    "mask": Mask(SEEN, 20.0),
    "projections": few_views(32),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_measurement_in_hu_is_one_of_the_same_image_in_the_models_range(prior, name):
    operator, x = OPERATORS[name], image(32, 32)
    y, in_model = prior.to_model(operator.A(x), operator)
    torch.testing.assert_close(y, in_model.A(RANGE.to_model(x)), rtol=1e-4, atol=1e-4)
    assert in_model.noise_sd == pytest.approx(operator.noise_sd / 400)


def test_rays_of_less_noise_count_more(prior):
    """Weighted line integrals: y = (p - p_water) / sd, and FBP of them is FBP of the line integrals."""
    operator, x = few_views(32), image(32, 32)
    lines = operator.projector.A(hu_to_mu(x))
    torch.testing.assert_close(operator.to_y(lines) * operator.ray_sd, lines - operator.water)
    torch.testing.assert_close(
        operator.fbp(operator.to_y(lines)),
        operator.projector.fbp(lines) / operator.mu_per_hu - 1000,
        rtol=1e-4,
        atol=0.1,
    )
    with pytest.raises(ParameterError, match="ray_sd is positive"):
        CTProjection(operator.projector, ray_sd=torch.zeros(1, 1, 9, 2))


@pytest.mark.parametrize("name", OPERATORS)
def test_steps_are_the_samplers_in_the_scale_of_the_image(prior, name):
    operator, x = OPERATORS[name], image(32, 32)
    y = operator.A(x)
    known = operator.singular_values is not None
    options = dict(sampler="ddnm_plus") if known else dict(sampler="dds", gamma=1.0)
    steps = list(prior.steps(y, operator, times=(1000, 400, 60), generator=seeded(2), **options))
    model_y, model_operator = prior.to_model(y, operator)
    generator, T = seeded(2), 1000
    if known:
        x_t = pnp.start_from_measurement(model_operator, model_y, prior.schedule, T, generator)
        walk = pnp.ddnm_plus
    else:
        x_t = torch.randn(1, 1, 32, 32, generator=generator)
        walk = lambda *a, **o: pnp.dds(*a, gamma=1.0, **o)  # noqa: E731
    by_hand = list(walk(prior.eps, x_t, prior.schedule, (1000, 400, 60), model_operator, model_y, generator=generator))
    for step, expected in zip(steps, by_hand, strict=True):
        for field in ("x_t", "x0_hat", "x0_prior"):
            torch.testing.assert_close(getattr(step, field), RANGE.from_model(getattr(expected, field)))


def test_any_size_and_what_the_network_sees_of_it(prior):
    x = image(30, 21)
    out = prior.restore(x, Identity(20.0), steps=2, generator=seeded(1))
    assert out.shape == x.shape and torch.isfinite(out).all()
    with pytest.raises(ShapeError, match="30 x 21 pixels have no means over 4 x 4"):
        BlockMean(4).A(x)


def test_where_a_chain_starts(prior):
    x = image(32, 32)
    start = pnp.first_time(prior.to_model(x, Identity(40.0))[1], prior.schedule)
    steps = list(prior.steps(x, Identity(40.0), steps=3, generator=seeded(1)))
    assert steps[0].t == start and (1 - prior.schedule.at(start)) >= prior.schedule.at(start) * 0.1**2
    assert next(iter(prior.steps(BlockMean(4).A(x), BlockMean(4, 5.0), generator=seeded(1)))).t == 1000
    near = next(iter(prior.steps(BlockMean(4).A(x), BlockMean(4), start=10, estimate=x, generator=seeded(1))))
    assert near.t == 10 and (near.x_t - x).std() < 40  # sqrt(1 - alpha_bar_10) * 400 HU = 18 HU
    few = few_views(32)
    with pytest.raises(ParameterError, match="needs an estimate"):
        prior.restore(few.A(x), few, sampler="dds", gamma=1.0, start=300)
    two = prior.restore(x, Identity(40.0), steps=2, num_samples=2, generator=seeded(1))
    assert len(two) == 2 and not torch.equal(two[0], two[1])


def test_an_image_does_not_depend_on_its_batch(path):
    x = torch.cat([image(24, 24), image(24, 24, seed=4)])
    alone = methods.load("ddnm", path=path, steps=3)(x[:1], generator=seeded(3))
    together = methods.load("ddnm", path=path, steps=3)(x, generator=seeded(3))
    batched = methods.load("ddnm_white", path=path, steps=3, fixed_sd_unit=0.1, batch=2)(x, generator=seeded(3))
    single = methods.load("ddnm_white", path=path, steps=3, fixed_sd_unit=0.1)(x, generator=seeded(3))
    torch.testing.assert_close(together[:1], alone)
    torch.testing.assert_close(batched, single, rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("name", ["ddnm", "ddnm_white", "dps", "ilvr"])
def test_the_methods_take_a_scan_as_it_is(path, name):
    x = image(24, 32)
    options = dict(steps=3) | (dict(start=1000) if name == "dps" else {})
    denoise = methods.load(name, path=path, preserve_mean_px=0.0, **options)
    first, again = denoise(x, generator=seeded(1)), denoise(x, generator=seeded(1))
    assert first.shape == x.shape and torch.equal(first, again)
    assert not torch.equal(first, denoise(x, generator=seeded(2)))


def test_the_noise_that_is_given_is_the_noise_that_is_used(path, prior):
    """The method is the sampler with the noise's spectrum in HU; twice the standard deviation is another start."""
    x = image(32, 32)
    noise = noise_from_image(x, 0.8)
    options = dict(path=path, steps=4, preserve_mean_px=0.0, local=False)
    out = methods.load("ddnm", **options)(x, noise=noise, generator=seeded(1))
    operator = Identity(CorrelatedNoise.from_psd(noise.psd(32, 32), 0.8))
    torch.testing.assert_close(out, prior.restore(x, operator, steps=4, generator=[seeded(1)]), rtol=1e-4, atol=0.02)
    doubled = methods.load("ddnm", noise_factor=2.0, **options)
    torch.testing.assert_close(
        doubled(x, noise=noise, generator=seeded(1)),
        methods.load("ddnm", **options)(x, noise=noise.scaled(2 * noise.sd_hu), generator=seeded(1)),
        rtol=1e-4,
        atol=0.02,
    )
    local = Identity(operator.noise.varying((noise.map_hu / noise.sd_hu).clamp(0.4, 2.5)))
    torch.testing.assert_close(
        methods.load("ddnm", **options | dict(local=True))(x, noise=noise, generator=seeded(1)),
        prior.restore(x, local, steps=4, generator=[seeded(1)]),
        rtol=1e-4,
        atol=0.02,
    )
    paper = methods.load("ddnm_white", path=path, steps=4, preserve_mean_px=0.0, fixed_sd_unit=0.6)
    by_hand = prior.restore(x, Identity(0.6 * 400), steps=4, generator=[seeded(1)])
    torch.testing.assert_close(paper(x, generator=seeded(1)), by_hand, rtol=1e-4, atol=0.02)


def test_wrong_options_are_named(path):
    for options, what in (
        (dict(sampler="ddmn"), "sampler is one of ddnm, ddnm_plus"),
        (dict(etta=0.5), "etta"),
        (dict(num_samples=0), "num_samples"),
        (dict(noise_factor=-1), "noise_factor"),
        (dict(fixed_sd_unit=-0.1), "fixed_sd_unit"),
        (dict(start=2000), "start"),
    ):
        with pytest.raises(ParameterError, match=what):
            methods.load("ddnm", path=path, **options)
    with pytest.raises(CheckpointError, match="unconditional"):
        Prior.from_checkpoint(path.parent / "ddpm.safetensors")


def test_total_variation_is_where_nothing_better_is_near():
    """Of a step with noise: the edge stays, the noise goes, and no blend with the data or the truth costs a hundredth
    less (scikit-image's iteration ends early)."""
    truth = torch.zeros(1, 1, 24, 24)
    truth[..., 12:] = 1.0
    operator, weight = Identity(0.1), 0.15
    y = truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    x = total_variation(operator, y, y, weight)

    def cost(x):
        dy, dx = x.diff(dim=2, append=x[..., -1:, :]), x.diff(dim=3, append=x[..., -1:])
        return float(0.5 * (x - y).square().sum() + weight * (dy**2 + dx**2).sqrt().sum())

    assert (x - truth).std() < 0.3 * (y - truth).std()
    for other in (y, truth, gaussian_blur(y, 1.0)):
        assert all(cost(x) <= 1.01 * cost(x + share * (other - x)) for share in (0.02, 0.2, 1.0))


def test_the_largest_eigenvalue_of_a_diagonal_map():
    scale = torch.linspace(0.1, 3.0, 64).reshape(1, 1, 8, 8)
    assert largest_eigenvalue(lambda x: scale * x, torch.ones(1, 1, 8, 8), 400) == pytest.approx(3.0, rel=1e-3)
    assert conjugate_gradient(lambda x: scale * x, scale, 200).sub(1).abs().max() < 1e-2


# ---------------------------------------------------------------- the table


def test_the_tasks_measure_what_they_say_and_estimate_their_noise(prior):
    case = phantom_cases([3], (0.25,), size=128, pixel_mm=3.1, n_views=180)[0]
    denoise, sr4 = restoration.ct_tasks([case], ["denoise", "sr4"])
    assert torch.equal(denoise.y, case.ldct_hu) and sr4.y.shape[-1] == 32
    torch.testing.assert_close(sr4.y, torch.nn.functional.avg_pool2d(case.ldct_hu, 4))
    assert sr4.operator.noise_sd < denoise.operator.noise_sd
    for wrong in ("sr1", "super", "srx"):
        with pytest.raises(ParameterError, match="a task is 'denoise' or 'srR'"):
            list(restoration.ct_tasks([case], [wrong]))
    few = dict(steps=2, sampler="ddnm_plus")
    methods_of = {
        "A+": restoration.pseudo_inverse,
        "bicubic": restoration.bicubic,
        "plus": restoration.with_prior(prior, **few),
        "white": restoration.with_prior(prior, white=True, **few),
        "ilvr": restoration.with_prior(prior, sampler="ilvr", steps=2),
    }
    result = restoration.restore_all(methods_of, [denoise, sr4], window=SOFT_TISSUE)
    assert len(result.table) == 10 and set(result.metrics) == {"psnr", "ssim", "vif"}
    assert torch.equal(result.images["A+", 0], case.ldct_hu)
    assert "sr4" in result.to_markdown()
    with pytest.raises(ParameterError, match="no cases"):
        restoration.restore_all(methods_of, [], window=SOFT_TISSUE)


def test_few_views_are_measured_on_a_finer_grid_with_each_ray_s_noise():
    case = next(restoration.few_view_cases([3], n_views=30, size=64, pixel_mm=6.0))
    residual = case.y - case.operator.A(case.reference)
    assert case.y.shape[-2] == 30 and 0.8 < float(residual.square().mean().sqrt()) < 3.0  # noise of one, and the grid's
    fbp = restoration.pseudo_inverse(case.y, case.operator)
    assert 50 < float((fbp - case.reference).std()) < 1000
    arc = next(restoration.few_view_cases([3], n_views=30, size=64, pixel_mm=6.0, turn_rad=2 * math.pi / 3))
    angles = arc.operator.projector.geometry.angles_rad
    assert angles[-1] == pytest.approx(2 * math.pi / 3 * 29 / 30) and "120°" in arc.group


def test_the_shipped_prior_restores_few_views():
    case = next(restoration.few_view_cases([3], n_views=48, size=96, pixel_mm=3.9))
    restorers = restoration.restorers(["pseudo_inverse"], "prior_ct")
    restorers["dds"] = restoration.dds(Prior.from_checkpoint("prior_ct"), prior_error=40.0, start=300, steps=6)
    result = restoration.restore_all(restorers, [case], window=SOFT_TISSUE, metrics=("psnr",))
    fbp, dds = result.table.psnr
    assert dds > fbp + 2.5


def test_a_limited_arc_is_a_part_of_the_half_turn():
    """Views of a third of the angles are those of the half turn, and FBP weighs them by their spacing."""
    whole = ParallelGeometry.for_image(32, 3.0, n_views=30)
    third = replace(whole, n_views=10, turn_rad=math.pi / 3)
    x = image(32, 32).clamp(min=0) * 1e-4
    torch.testing.assert_close(projector(third).A(x), projector(whole).A(x)[:, :, :10], rtol=1e-4, atol=1e-5)
    views = torch.zeros(1, 1, 30, whole.n_bins)
    views[:, :, :10] = projector(third).A(x)
    torch.testing.assert_close(
        projector(third).fbp(views[:, :, :10]), projector(whole).fbp(views), rtol=1e-3, atol=1e-7
    )


def test_the_command_line_prints_a_table_and_names_what_it_does_not_know(path, capsys):
    common = ["--patients", "1", "--kernels", "B30f", "--doses", "0.25", "--crop", "64", "--prior", str(path)]
    assert restoration.main([*common, "--tasks", "sr8", "--methods", "pseudo_inverse,bicubic", "--no-intervals"]) == 0
    assert "bicubic" in capsys.readouterr().out
    assert restoration.main([*common, "--methods", "magic"]) == 2
    assert "no method is named magic" in capsys.readouterr().err


def test_white_noise_of_the_same_strength(prior):
    operator = Identity(CorrelatedNoise.from_psd(torch.ones(32, 32) * 900, 1.0))
    assert operator.noise_sd == pytest.approx(30.0)
    x = image(32, 32)
    white = restoration.with_prior(prior, white=True, steps=3)(x, operator, generator=seeded(1))
    same = final(prior.steps(x, Identity(WhiteNoise(30.0)), steps=3, generator=seeded(1)))
    torch.testing.assert_close(white, same)
    assert isinstance(prior.pipeline, DiffusionPipeline)
