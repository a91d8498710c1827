"""The phantom of cine cardiac MR: labels where the signals are, noise by its closed form, slices coherent in z."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy import ndimage

from ldctlib.errors import ParameterError
from ldctlib.phantom.canvas import Canvas
from ldctlib.phantom.mr.acquisition import Coils, band_limit, magnitude
from ldctlib.phantom.mr.cardiac import END_SYSTOLE, CardiacPatient
from ldctlib.phantom.mr.frame import Frame, Placement, union
from ldctlib.phantom.mr.tissues import ID, LABELS

SIZE, PIXEL_MM = 128, 2.0


@cache
def patient(seed: int) -> CardiacPatient:
    return CardiacPatient.random(seed)


@cache
def drawn(seed: int, share: float, **options):
    """A thin slice at a share of the heart's length, cached."""
    p = patient(seed)
    options = dict(size=SIZE, pixel_mm=PIXEL_MM, thickness_mm=1.0) | options
    return p.slice(share * p.heart.length, **options)


# ---------------------------------------------------------------- the object


def test_a_seed_gives_a_patient():
    again = CardiacPatient.random(5).slice(
        0.5 * patient(5).heart.length, size=SIZE, pixel_mm=PIXEL_MM, thickness_mm=1.0
    )
    first = drawn(5, 0.5)
    assert torch.equal(first.image, again.image) and torch.equal(first.labels, again.labels)
    assert first.image.shape == first.labels.shape == (1, 1, SIZE, SIZE)
    assert first.image.dtype == torch.float32 and first.labels.dtype == torch.uint8
    assert float((first.image - drawn(6, 0.5).image).abs().mean()) > 0.05


@pytest.mark.parametrize("seed", range(4))
def test_labels_are_where_the_signals_say(seed):
    """Away from borders each label has its tissue's signal times the coils' sensitivity, over the patient's scale."""
    p, s = patient(seed), drawn(seed, 0.55)
    labels = s.labels[0, 0].numpy()
    assert set(np.unique(labels)) == {0, 1, 2, 3} and LABELS[1] == "left ventricle"
    x = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL_MM
    flat = s.image[0, 0].numpy() * p.scale[0] / p.coils.sensitivity(x, x, 0.05 * p.heart.length)
    for label, tissue, inside in ((1, "blood", 2), (2, "myocardium", 1), (3, "right blood", 2)):
        core = ndimage.binary_erosion(labels == label, iterations=inside)
        assert core.sum() > 15
        # blood within texture and trabeculae, muscle where the wall is two pixels from either side at most
        assert np.median(flat[core]) == pytest.approx(p.signal[tissue], rel=0.12), tissue


def test_the_ventricles_lie_as_in_a_heart():
    """The muscle surrounds the left ventricle; the right one lies on its other side, towards the image's left."""
    for seed in range(6):
        labels = drawn(seed, 0.6).labels[0, 0].numpy()
        left, muscle, right = (labels == i for i in (1, 2, 3))
        around = ndimage.binary_dilation(left, iterations=1) & ~left
        assert (muscle[around]).mean() > 0.95
        (ly, lx), (ry, rx) = (ndimage.center_of_mass(m) for m in (left, right))
        assert rx < lx - 8
        # a circle of the wanted area, to within its bends and ovalness
        outer, inner = patient(seed).heart.radii(0.6 * patient(seed).heart.length, 0.0)
        assert left.sum() * PIXEL_MM**2 == pytest.approx(math.pi * inner**2, rel=0.12)
        assert muscle.sum() * PIXEL_MM**2 == pytest.approx(math.pi * (outer**2 - inner**2), rel=0.15)


def test_the_heart_beats():
    """In systole the cavity shrinks, the wall's area stays, and end diastole comes back."""
    for seed in range(3):
        heart = patient(seed).heart
        z = 0.5 * heart.base(1.0)
        for contraction in (0.0, 0.5, 1.0):
            outer, inner = heart.radii(z, contraction)
            rest = heart.radii(z * heart.base(0.0) / heart.base(contraction), 0.0)
            assert outer**2 - inner**2 == pytest.approx(rest[0] ** 2 - rest[1] ** 2, rel=1e-6)
            assert contraction == 0 or inner < rest[1]
    p = patient(0)
    assert [p.contraction(t) for t in (0.0, END_SYSTOLE, 1.0)] == pytest.approx([0, 1, 0])
    assert p.contraction(END_SYSTOLE / 2) == pytest.approx(0.5)
    systole = drawn(0, 0.5, phase=END_SYSTOLE)
    assert (systole.labels == 1).sum() < 0.9 * (drawn(0, 0.5).labels == 1).sum()
    assert torch.equal(drawn(0, 0.5, phase=1.0).image, drawn(0, 0.5).image)


def test_slices_are_coherent_in_z():
    """Nearer slices are more alike, and the cavity is whole from the apex to the base."""
    p = patient(1)
    at = 0.5 * p.heart.length

    def image(z):
        return p.slice(z, size=SIZE, pixel_mm=PIXEL_MM, thickness_mm=1.0).image

    gaps = [float((image(at + dz) - image(at)).abs().mean()) for dz in (0.5, 2.0, 8.0)]
    assert gaps[0] < 0.5 * gaps[2] and gaps[0] < gaps[1] < gaps[2]
    areas = [int((drawn(1, share).labels == 1).sum()) for share in (-0.1, 0.2, 0.5, 0.8, 1.2)]
    assert areas[0] == areas[4] == 0 and 0 < areas[1] < areas[2] < areas[3]


def test_a_finer_grid_shows_the_same_patient():
    coarse, fine = drawn(2, 0.5), drawn(2, 0.5, size=2 * SIZE, pixel_mm=PIXEL_MM / 2)
    mean = torch.nn.functional.avg_pool2d(fine.image, 2)
    # the band limit of each grid differs, so that edges do: compare where the image is smooth
    edges = ndimage.maximum_filter(coarse.image[0, 0], 3) - ndimage.minimum_filter(coarse.image[0, 0], 3)
    smooth = torch.from_numpy(edges < 0.1)[None, None]
    assert smooth.float().mean() > 0.3 and float((coarse.image - mean)[smooth].abs().mean()) < 0.015
    overlap = (coarse.labels == 2) & (fine.labels[..., ::2, ::2] == 2)
    assert overlap.sum() > 0.85 * (coarse.labels == 2).sum()


def test_the_scale_is_that_of_the_volume():
    """The 99.5th percentile of a volume is about 1: it was measured on five coarse thin slices."""
    for seed in range(3):
        shares = np.linspace(0.05, 1.05, 6)
        values = np.stack([drawn(seed, float(share), thickness_mm=3.0).image[0, 0] for share in shares])
        assert np.percentile(values, 99.5) == pytest.approx(1.0, abs=0.2)


def test_fat_and_water_cancel_at_their_border():
    """Signed signals: a voxel half of each is dark, as in balanced SSFP; in phase it would not be."""
    canvas = Canvas(64, 1.0, 0.0, 0.0)
    frame = Frame(canvas, Placement(0.3, (2.0, -1.0)))
    frame.paint(np.full((64, 64), 50.0, np.float32), -0.8)
    frame.paint(-frame.x, 0.8, "left ventricle")  # a straight edge
    across = np.abs(canvas.values[np.abs(frame.x) < 0.2])
    assert across.max() < 0.35 and np.abs(canvas.values[np.abs(frame.x) > 2]).min() > 0.79
    assert np.array_equal(canvas.labels == ID["left ventricle"], -frame.x >= 0)


def test_shapes_in_the_hearts_axes():
    """Distances are those to a circle, a tube and a union; points go to the image and back."""
    canvas, placement = Canvas(96, 1.0, 3.0, 0.0), Placement(-0.7, (5.0, 3.0))
    frame = Frame(canvas, placement)
    points = np.array([[10.0, -4.0, 3.0], [-20.0, 8.0, 3.0]])
    for point, (px, py, _) in zip(points, placement.to_image(points), strict=True):
        i, j = int(round(py + 47.5)), int(round(px + 47.5))
        assert math.hypot(frame.x[i, j] - point[0], frame.y[i, j] - point[1]) < 0.75  # half a pixel's diagonal
    away = np.hypot(frame.x - 10, frame.y + 4)
    circle = frame.ellipse((10.0, -4.0), (12.0, 12.0))
    near = np.abs(12 - away) < 3
    assert np.allclose(circle[near], (12 - away)[near], atol=0.02)
    path = np.stack([np.full(61, 10.0), np.full(61, -4.0), np.linspace(-30, 30, 61)], 1)
    assert np.allclose(frame.tube(path, 6.0)[np.abs(away - 6) < 3], (6 - away)[np.abs(away - 6) < 3], atol=0.05)
    a, b = np.float32([5.0, -9.0, 1.0]), np.float32([-5.0, -3.0, 1.0])
    assert union(a, b) == pytest.approx([5.0, -3.0, 2.0])  # the larger, where they meet a quarter of the blend more


# ---------------------------------------------------------------- the scanner


@pytest.mark.parametrize("sd", (0.02, 0.3))
def test_rician_noise_has_its_closed_form(sd):
    """Background: Rayleigh, mean sd sqrt(pi/2) and variance (2 - pi/2) sd^2. Signal: E[m^2] = A^2 + 2 sd^2, and at
    high SNR a Gaussian of mean sqrt(A^2 + sd^2) and standard deviation sd (Gudbjartsson & Patz 1995)."""
    n = 400
    m = magnitude(np.zeros((n, n), np.float32), sd, np.random.default_rng(1))
    error = 1 / n  # standard error of a mean of n^2 values, over their standard deviation
    spread = math.sqrt(2 - math.pi / 2) * sd
    assert m.mean() == pytest.approx(sd * math.sqrt(math.pi / 2), abs=5 * error * spread)
    assert m.var() == pytest.approx(spread**2, rel=5 * 2 * error)
    for amplitude in (sd, 20 * sd):
        m = magnitude(np.full((n, n), -amplitude, np.float32), sd, np.random.default_rng(2)).astype(np.float64)
        second = amplitude**2 + 2 * sd**2
        spread = math.sqrt(4 * amplitude**2 * sd**2 + 4 * sd**4)  # of m^2, a non-central chi-squared
        assert (m**2).mean() == pytest.approx(second, abs=5 * error * spread)
    assert m.mean() == pytest.approx(math.sqrt(amplitude**2 + sd**2), abs=5 * error * sd)
    assert m.std() == pytest.approx(sd, rel=0.01)


def test_noise_of_a_slice():
    """A level of 0 is deterministic; else the seed decides, and outside the body the noise is Rayleigh."""
    clean, noisy = drawn(3, 0.5), drawn(3, 0.5, noise_sd=0.05, noise_seed=1)
    assert torch.equal(drawn(3, 0.5, noise_seed=7).image, clean.image)
    assert torch.equal(noisy.labels, clean.labels)
    assert torch.equal(patient(3).slice(noisy.z_mm, size=SIZE, pixel_mm=PIXEL_MM, thickness_mm=1.0, noise_sd=0.05,
                                        noise_seed=1).image, noisy.image)  # fmt: skip
    assert not torch.equal(drawn(3, 0.5, noise_sd=0.05, noise_seed=2).image, noisy.image)
    air = clean.image < 0.003
    assert air.sum() > 200
    mean, spread = 0.05 * math.sqrt(math.pi / 2), 0.05 * math.sqrt(2 - math.pi / 2)
    assert float(noisy.image[air].mean()) == pytest.approx(mean, abs=5 * spread / math.sqrt(int(air.sum())))


def test_the_coils_are_smooth():
    for seed in range(5):
        coils = Coils.random(np.random.default_rng(seed), -2.0)
        x = np.linspace(-150, 150, 301)
        field = coils.sensitivity(x, x)
        assert field.dtype == np.float32 and field.min() > 0 and field[150, 150] == pytest.approx(1, abs=1e-5)
        # sums of Gaussians of 45 mm and wider: a slope of at most exp(-1/2)/45 of the largest, each mm
        assert np.abs(np.diff(field, axis=0)).max() < field.max() * math.exp(-0.5) / 45
        assert field.max() / field.min() > 1.05


def test_the_band_limit_is_a_window_on_k_space():
    """A cosine within the acquired band keeps its amplitude times the window's, one outside it goes."""
    n = 64
    x = np.arange(n)
    for k, resolution, taper, kept in (
        (8, 1.0, 0.0, 1.0),
        (20, 0.75, 0.0, 1.0),
        (25, 0.75, 0.0, 0.0),
        (12, 0.75, 1.0, 0.5 + 0.5 * math.cos(math.pi * 0.5)),
        (12, 0.75, 0.4, 1 - 0.4 * 0.5),
    ):
        wave = np.cos(2 * np.pi * k * x / n)
        rows, columns = np.tile(wave[:, None], (1, n)), np.tile(wave, (n, 1))
        assert np.allclose(band_limit(rows, (resolution, 1.0), taper), kept * rows, atol=1e-5)
        assert np.allclose(band_limit(columns, (1.0, resolution), taper), kept * columns, atol=1e-5)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("seed", (-1, 1.5, True, "a"))
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ParameterError, match="seed"):
        CardiacPatient.random(seed)


@pytest.mark.parametrize(
    ("options", "named"),
    (
        (dict(z_mm=500.0), "z_mm"),
        (dict(size=8), "size"),
        (dict(size=64.0), "size"),
        (dict(pixel_mm=0.0), "pixel_mm"),
        (dict(pixel_mm=math.nan), "pixel_mm"),
        (dict(thickness_mm=0.0), "thickness_mm"),
        (dict(phase=1.5), "phase"),
        (dict(noise_sd=-0.1), "noise_sd"),
        (dict(noise_sd=math.nan), "noise_sd"),
    ),
)
def test_bad_parameters_are_refused(options, named):
    with pytest.raises(ParameterError, match=named):
        patient(0).slice(**dict(z_mm=30.0, size=32, pixel_mm=8.0, thickness_mm=1.0) | options)


def test_noise_without_a_generator_is_refused():
    with pytest.raises(ParameterError, match="generator"):
        magnitude(np.zeros((2, 2)), 0.1)
