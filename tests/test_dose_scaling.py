"""Scaling of noise to other doses against simulated scans, noise maps against brute force and propagated variances."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldctlib.ct.dose import Scanner, acquire, calibrate, noise_map, noise_only
from ldctlib.ct.dose_scaling import ACQUISITIONS, at_dose, full_dose_sd, noise_scale, std_map_scale
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.noise_maps import anatomy_noise_map, noise_map_from_image, noise_map_image, std_map
from ldctlib.ct.nps import nps, rings
from ldctlib.ct.projector import projector
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import gaussian_blur
from ldctlib.units import delta_mu_to_hu, hu_to_mu

DOSES = (0.05, 0.1, 0.25, 0.5, 0.75)
GEOMETRY = ParallelGeometry.for_image(48, 4.0, n_views=72)
SCANS = 192  # of each dose
SCANNER = Scanner(photons=2e5, electronic_sd=0.0)  # 460 quanta behind the disk at 5 %: log's second order adds 0.2 %


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def scans() -> dict:
    """The noise of many scans of a uniform disk: {"nested", "independent", "noise-free": (full, at 25 %)}, and
    {dose: scans of that dose alone}, each (SCANS, 1, 32, 32) in HU about the axis."""
    project, generator = projector(GEOMETRY), seeded()
    axis = (torch.arange(48) - 23.5) * 4.0
    disk = torch.where(torch.hypot(axis[:, None], axis) <= 80, 0.0, -1000.0)[None, None]
    p = project.A(hu_to_mu(disk)).expand(SCANS, -1, -1, -1)

    def noise(doses):
        measured = acquire(p, SCANNER, GEOMETRY, doses, generator=generator)
        return [delta_mu_to_hu(project.fbp(q - p, "soft"))[..., 8:40, 8:40] for q in measured]

    nested, (other_full,), (low,) = noise((1.0, 0.25)), noise((1.0,)), noise((0.25,))
    out = {"nested": nested, "independent": (other_full, low), "noise-free": (torch.zeros_like(low), low)}
    return out | {dose: noise((dose,))[0] for dose in (*DOSES, 1.0)}


def by_jackknife(estimate, *samples, groups: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """An estimate from all scans and its Monte-Carlo standard error, from leaving out one group of them at a time."""
    part = np.arange(SCANS) % groups
    left_out = np.stack([estimate(*(s[part != g] for s in samples)) for g in range(groups)])
    spread = left_out - left_out.mean(axis=0)
    return np.asarray(estimate(*samples)), np.sqrt((groups - 1) / groups * (spread**2).sum(axis=0))


def test_scales_are_the_closed_forms():
    """Of a nested pair at 25 %; by hand, to the table's three decimals."""
    alpha = [noise_scale(d, 0.25, "nested") for d in (*DOSES, 1.0)]
    assert np.allclose(alpha, [2.517, 1.732, 1.0, 0.577, 0.333, 0.0], atol=5e-4)
    b = [std_map_scale(d, 0.25, "nested") for d in (*DOSES, 1.0)]
    assert np.allclose(b, [2.582, 1.826, 1.155, 0.816, 0.667, 0.577], atol=5e-4)
    for d in (*DOSES, 1.0):
        a = noise_scale(d, 0.25, "noise-free")
        assert a == std_map_scale(d, 0.25, "noise-free") == pytest.approx(math.sqrt(0.25 / d))


@pytest.mark.parametrize("measured", [0.1, 0.25, 0.6])
@pytest.mark.parametrize("dose", [0.03, 0.25, 0.6, 1.0])
def test_variances_add_up_to_that_of_the_dose(dose, measured):
    """With the covariances of each kind of pair; at the measured dose the low-dose scan itself comes back."""
    difference = {"nested": 1 / measured - 1, "independent": 1 + 1 / measured, "noise-free": 1 / measured}
    covariance = {"nested": 0.0, "independent": -1.0, "noise-free": 0.0}  # of x_fd and the difference
    for kind in ACQUISITIONS:
        a, own = noise_scale(dose, measured, kind), float(kind != "noise-free")
        assert own + 2 * a * covariance[kind] + a**2 * difference[kind] == pytest.approx(1 / dose)
        assert std_map_scale(dose, measured, kind) ** 2 * difference[kind] == pytest.approx(1 / dose)
        assert noise_scale(measured, measured, kind) == pytest.approx(1)
        assert full_dose_sd(math.sqrt(difference[kind]) * 7.0, measured, kind) == pytest.approx(7)


def test_the_printed_equations_do_not_scale():
    """Eq. 7's a is 1 at every dose; Eq. 8's b rises with the dose, and is right at the measured dose alone."""
    d = np.array(DOSES)
    assert np.allclose((1 / d - 1) / (1 / d - 1), 1)
    printed = np.sqrt((1 / d) / (1 / d - 1))
    right = np.array([std_map_scale(x, 0.25, "nested") for x in DOSES])
    assert (np.diff(printed) > 0).all() and (np.diff(right) < 0).all()
    assert [bool(x) for x in np.isclose(printed, right)] == [x == 0.25 for x in DOSES]


@pytest.mark.parametrize("kind", ACQUISITIONS)
def test_simulated_scans_have_these_scales(scans, kind):
    """The α that gives x_fd + α Δ the variance of scans at the dose, and b that gives it to b Δ: both measured, without
    a model of the pair. Jackknife errors are 0.3 to 0.5 % of b; the log's second order may add 0.3 %."""
    full, low = scans[kind]

    def estimate(full, low, *direct):
        delta = (low - full).double()
        v, c, own = delta.var(), (delta * full).mean(), full.double().square().mean()
        wanted = torch.stack([x.double().square().mean() for x in direct])
        alpha = (-c + (c**2 + v * (wanted - own).clamp(min=0)).sqrt()) / v
        return torch.stack([alpha, (wanted / v).sqrt()]).numpy()

    (alpha, b), (alpha_error, b_error) = by_jackknife(estimate, full, low, *(scans[d] for d in DOSES))
    expected_alpha = np.array([noise_scale(d, 0.25, kind) for d in DOSES])
    expected_b = np.array([std_map_scale(d, 0.25, kind) for d in DOSES])
    assert (b_error < 0.01 * b).all() and (alpha_error < 0.02 + 0.01 * alpha).all()  # small enough to tell kinds apart
    assert (abs(alpha - expected_alpha) < 4 * alpha_error + 0.003 * alpha).all()
    assert (abs(b - expected_b) < 4 * b_error + 0.003 * b).all()
    if kind != "noise-free":
        sd, error = by_jackknife(lambda f, lo: np.sqrt([float((lo - f).square().mean())]), full, low)
        sigma = float(scans[1.0].square().mean().sqrt())
        assert abs(full_dose_sd(sd[0], 0.25, kind) / sigma - 1) < 4 * 1.5 * error[0] / sd[0] + 0.003


def test_the_spectrum_does_not_change_with_the_dose(scans):
    """Radial NPS over its mean at 10 % and 50 %, both made of one pair at 25 %, and that of direct scans; white noise,
    which Eq. 7 draws, differs by far. A ring's error is that of its independent frequencies, half of them."""
    full, low = scans["nested"]
    images = at_dose(full, low, (0.1, 0.5), 0.25, "nested")
    white = torch.randn(low.shape, generator=seeded(1))
    cells = np.bincount(rings(32).ravel())

    def shape(noise):
        radial = nps(noise[:, 0], GEOMETRY.pixel_mm).radial
        return (radial * cells)[2:17] / (radial * cells)[2:17].sum()

    tolerance = 4 * math.sqrt(2) / np.sqrt(SCANS * cells[2:17] / 2)  # 5 standard errors at worst: a taper couples rings
    tenth, half, direct = shape(images[:SCANS]), shape(images[SCANS:]), shape(scans[0.1])
    assert (abs(tenth / half - 1) < tolerance).all() and (abs(tenth / direct - 1) < tolerance).all()
    assert (abs(shape(white) / direct - 1) > 3 * tolerance).sum() > 5


def test_several_doses_follow_each_other_in_the_batch():
    full, low = torch.randn(2, 2, 1, 6, 6, generator=seeded())
    out = at_dose(full, low, (0.1, 0.25, 1.0), 0.25, "nested")
    assert out.shape == (6, 1, 6, 6)
    torch.testing.assert_close(out[2:4], low)
    assert torch.equal(out[4:], full) and torch.equal(out[:2], at_dose(full, low, 0.1, 0.25, "nested"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.25, "nested"), "fraction of full dose"),
        ((1.2, 0.25, "nested"), "fraction of full dose"),
        ((0.5, 0.0, "nested"), "measured_dose is a fraction"),
        ((0.5, 1.0, "nested"), "no difference"),
        ((0.5, 0.25, "inserted"), "nested, independent, noise-free"),
        ((0.5, (0.1, 0.25), "nested"), "measured_dose is one fraction"),
        ((0.5, "a quarter", "nested"), "measured_dose is a fraction"),
        (("half", 0.25, "nested"), "dose is a fraction"),
    ],
)
def test_impossible_scalings_are_refused(arguments, message):
    image = torch.zeros(1, 1, 4, 4)
    for call in (noise_scale, std_map_scale, lambda *a: at_dose(image, image, *a)):
        with pytest.raises(ParameterError, match=message):
            call(*arguments)
    with pytest.raises(ParameterError, match="fraction"):
        at_dose(image, image, (), 0.25, "nested")
    for scale in (noise_scale, std_map_scale):
        with pytest.raises(ParameterError, match="dose is one fraction"):
            scale((0.1, 0.5), 0.25, "nested")
    for wrong in (-3.0, math.nan, torch.tensor([1.0, -1.0])):
        with pytest.raises(ParameterError, match="0 or more"):
            full_dose_sd(wrong, 0.25, "nested")
    with pytest.raises(ShapeError):
        at_dose(image, image[..., :3], 0.5, 0.25, "nested")


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_std_map_is_the_root_mean_square_of_the_window(size):
    noise = torch.randn(2, 1, 17, 12, generator=seeded(), dtype=torch.float64) + 0.3
    half = size // 2
    expected = np.empty(noise.shape)
    for b in range(2):
        padded = np.pad(noise[b, 0].numpy(), half, mode="reflect")
        for y, x in np.ndindex(17, 12):
            expected[b, 0, y, x] = np.sqrt((padded[y : y + size, x : x + size] ** 2).sum() / size**2)
    assert np.allclose(std_map(noise, size).numpy(), expected, rtol=1e-12, atol=0)


def test_windows_that_cannot_be_are_refused():
    noise = torch.zeros(1, 1, 8, 8)
    for size in (0, 4, -3):
        with pytest.raises(ParameterError, match="odd"):
            std_map(noise, size)
    with pytest.raises(ShapeError, match="does not fit"):
        std_map(noise, 17)


def ellipse(size: int = 128, pixel_mm: float = 2.5, a: float = 130.0, b: float = 90.0) -> torch.Tensor:
    """A body of soft tissue with a spine and a bubble of gas, edges about a pixel wide."""
    axis = (torch.arange(size) - (size - 1) / 2) * pixel_mm
    x, y = axis, axis[:, None]
    hu = torch.where((x / a) ** 2 + (y / b) ** 2 <= 1, 40.0, -1000.0)
    hu = torch.where(torch.hypot(x, y - 55) < 18, 500.0, hu)
    return gaussian_blur(torch.where(torch.hypot(x + 30, y + 40) < 20, -950.0, hu)[None, None], 0.7)


@pytest.mark.parametrize("scanner", [Scanner(), Scanner(electronic_sd=30.0, bowtie_radius_mm=140.0, modulation=0.4)])
def test_an_anatomys_map_is_that_of_a_calibrated_scanner(scanner):
    """Against ct.dose: the same grid within 1 % (fewer views and bins), a coarse one within 2 % rms in the body."""
    hu, geometry = ellipse(), ParallelGeometry.for_image(128, 2.5, bins_per_pixel=2, n_views=179)
    calibrated = calibrate(hu, geometry, scanner, 10.0)
    body = hu > -500
    for grid, tolerance in ((None, 0.004), (64, 0.02)):
        maps = anatomy_noise_map(hu, (1.0, 0.05), pixel_mm=2.5, centre_sd_hu=10.0, scanner=scanner, grid=grid)
        for dose, found in zip((1.0, 0.05), maps, strict=True):
            error = (found / noise_map(hu, geometry, calibrated, dose)[0] - 1)[body[0]]
            assert float(error.square().mean().sqrt()) < tolerance


def test_an_anatomys_map_scales_with_the_dose():
    """As √(1/d) without electronic noise, and above it with; each image of a batch is calibrated by itself."""
    both = torch.cat([ellipse(), ellipse(a=100.0)])
    options = dict(pixel_mm=2.5, centre_sd_hu=12.0, grid=64)
    quiet = anatomy_noise_map(both, (1.0, 0.1), scanner=Scanner(electronic_sd=0.0), **options)
    assert quiet.shape == (4, 1, 128, 128)
    torch.testing.assert_close(quiet[2:], quiet[:2] * math.sqrt(10))
    noisy = anatomy_noise_map(both, (1.0, 0.1), scanner=Scanner(electronic_sd=30.0), **options)
    assert (noisy[2:] > noisy[:2] * math.sqrt(10)).all()
    alone = anatomy_noise_map(both[1:], 0.1, scanner=Scanner(electronic_sd=30.0), **options)
    torch.testing.assert_close(alone, noisy[3:], rtol=1e-4, atol=0)
    centre = np.s_[..., 48:80, 48:80]  # a square of the area of the 40 mm disk's bounding box
    assert abs(float(noisy[:2][centre].square().mean().sqrt()) / 12 - 1) < 0.03


def test_a_realisations_map_scatters_as_a_measured_one():
    """Its rms is the expected map, 2 %; the standard deviation of its logarithm that of simulated noise, within a
    sixth, which a body's streaks may add."""
    hu, geometry = ellipse(), ParallelGeometry.for_image(128, 2.5, bins_per_pixel=2, n_views=179)
    scanner, centre = calibrate(hu, geometry, Scanner(), 10.0), np.s_[..., 32:96, 32:96]
    options = dict(pixel_mm=2.5, centre_sd_hu=10.0, grid=64)
    expected = anatomy_noise_map(hu, 0.25, **options)
    drawn = anatomy_noise_map(hu.expand(6, -1, -1, -1), 0.25, generator=seeded(), **options)
    p = projector(geometry).A(hu_to_mu(hu)).clamp(min=0)
    measured = std_map(noise_only(p.expand(6, -1, -1, -1), geometry, scanner, 0.25, generator=seeded(1)))
    ratios = [(maps / expected)[centre] for maps in (drawn, measured)]
    assert all(abs(float(r.square().mean().sqrt()) - 1) < 0.02 for r in ratios)
    scatter = [float(r.log().std()) for r in ratios]
    assert abs(scatter[0] / scatter[1] - 1) < 1 / 6
    again = anatomy_noise_map(hu.expand(6, -1, -1, -1), 0.25, generator=seeded(), **options)
    assert torch.equal(again, drawn)


def test_maps_that_cannot_be_predicted_are_refused():
    options = dict(pixel_mm=2.5, centre_sd_hu=10.0)
    with pytest.raises(ShapeError, match="square"):
        anatomy_noise_map(ellipse()[..., :100], 0.1, **options)
    for bad in (dict(pixel_mm=0.0), dict(centre_sd_hu=-1.0), dict(dose=2.0), dict(kernel="B99")):
        with pytest.raises(ParameterError):
            anatomy_noise_map(ellipse(), **(dict(dose=0.1, **options) | bad))


def test_a_noise_map_is_read_back_from_its_image():
    sd = torch.linspace(0, 100, 4001, dtype=torch.float64).view(1, 1, 1, -1)
    image = noise_map_image(sd)
    assert (image.diff() > 0).all() and float(image[..., 0]) == -160 and abs(float(image[..., -1]) - 240) < 1e-9
    torch.testing.assert_close(noise_map_from_image(image), sd, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(noise_map_from_image(noise_map_image(sd.float())), sd.float(), rtol=1e-5, atol=1e-4)
    above = noise_map_image(torch.tensor([[[[100.0, 130.0]]]]))
    assert torch.equal(above[..., 0], above[..., 1])  # the full scale
    wide = noise_map_image(sd * 3, 300.0)
    torch.testing.assert_close(noise_map_from_image(wide, 300.0), sd * 3, rtol=1e-12, atol=1e-12)
    # doses of 5, 10, 25, 50, 100 % at 8 HU lie at least 25 HU apart
    centres = noise_map_image(8 / torch.tensor([1.0, 0.5, 0.25, 0.1, 0.05]).sqrt().view(1, 1, 1, -1))
    assert float(centres.diff().min()) > 25
    with pytest.raises(ParameterError, match="0 or more"):
        noise_map_image(-sd)
    for call in (noise_map_image, noise_map_from_image):
        with pytest.raises(ParameterError, match="full_scale_hu"):
            call(sd, 0.0)


def test_photons_of_the_scanner_do_not_matter():
    """They are calibrated."""
    options = dict(pixel_mm=2.5, centre_sd_hu=10.0, grid=64)
    few, many = (
        anatomy_noise_map(ellipse(), 0.1, scanner=replace(Scanner(), photons=n), **options) for n in (1e3, 1e7)
    )
    torch.testing.assert_close(few, many, rtol=1e-4, atol=0)
