"""The phantom: drawing primitives against closed forms, tissues against their HU, coherence, populations."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy import ndimage

from ldctlib.errors import ParameterError
from ldctlib.phantom.abdomen.tissues import COMMON, PHASES
from ldctlib.phantom.abdomen.wall import Frame
from ldctlib.phantom.canvas import Canvas, Tube, VesselTree, ellipsoid
from ldctlib.phantom.organs import ID, OF_ABDOMEN, ORGANS
from ldctlib.phantom.patient import Patient
from ldctlib.phantom.textures import cloud, sample, sample_at, sheets


@lru_cache(maxsize=64)
def patient(seed: int) -> Patient:
    return Patient.random(seed)


@lru_cache(maxsize=256)
def drawn(seed: int, z_mm: float, size: int = 512, thickness_mm: float = 1.0):
    return patient(seed).slice(z_mm, size=size, thickness_mm=thickness_mm)


# ---- drawing primitives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pixel_mm", [0.5, 0.9])
def test_area_of_an_ellipsoid_cut(pixel_mm):
    # At height z the cut is an ellipse with semi-axes scaled by sqrt(1 - (z/c)^2). The distance is first
    # order, so that grazing borders are a little soft: half a percent.
    canvas = Canvas(128, pixel_mm, 9.0, 0.0)
    box, d = ellipsoid(canvas, (1.3, -2.1, 0.0), (20, 12, 30), 0.7, 3)
    canvas.paint(box, d, 1.0, 1)
    area = math.pi * 20 * 12 * (1 - 0.3**2)
    assert canvas.values.sum() * pixel_mm**2 == pytest.approx(area, rel=5e-3)
    assert (canvas.labels == 1).sum() * pixel_mm**2 == pytest.approx(area, rel=2e-2)
    assert ellipsoid(Canvas(64, 1.0, 31.0, 0.0), (0, 0, 0), (20, 12, 30)) is None


def test_thin_lines_keep_their_mass():
    # A line of half width w covers 2w per unit length, however thin against the pixel.
    canvas = Canvas(64, 0.7, 0.0, 0.0)
    x, _ = canvas.grid((slice(0, 64), slice(0, 64)))
    for half in (0.05, 0.2, 0.35, 1.5):
        row = canvas.line_coverage(x - 0.123, np.float32(half))[0]
        assert row.sum() * 0.7 == pytest.approx(2 * half, rel=1e-4)


def test_tube_is_a_cylinder_across_and_keeps_its_arc_length():
    z = np.arange(-40, 40, 2.0)
    tube = Tube(np.stack([np.full_like(z, 2.0), np.full_like(z, 3.0), z], 1), np.full(z.size, 9.0))
    canvas = Canvas(96, 0.5, 0.6, 0.0)
    box, d, arc = tube.cut(canvas)
    canvas.paint(box, d, 1.0)
    assert canvas.values.sum() * 0.25 == pytest.approx(math.pi * 81, rel=1e-2)  # balls 2 mm apart: 0.6 % scallops
    assert np.allclose(arc[d > 0], 40.6, atol=1e-3)
    assert tube.cut(Canvas(96, 0.5, 60.0, 0.0)) is None


def test_vessels_are_cut_where_they_run():
    tree = VesselTree([(0, 0, -10), (0, 0, 10)], [(0, 0, 10), (20, 0, 30)], [3, 3], [3, 1])
    for z, x, r in ((0.0, 0.0, 3.0), (20.0, 10.0, 2.0)):
        canvas = Canvas(128, 0.4, z, 0.0)
        tree.draw(canvas, 1.0, 1)
        weight = canvas.values.sum()
        assert (canvas.values * canvas.x[None, :]).sum() / weight == pytest.approx(x, abs=0.3)  # taper pulls it
        # the oblique branch (45 degrees) shows an ellipse, longer by sqrt(2)
        stretch = 1.0 if z == 0 else math.sqrt(2)
        assert weight * 0.16 == pytest.approx(math.pi * r * r * stretch, rel=0.03)
    canvas = Canvas(128, 0.4, 0.0, 0.0)
    tree.draw(canvas, 1.0, 1, mask=np.zeros((128, 128), np.float32))
    assert not canvas.values.any()


def test_vessel_trees_branch_and_taper():
    tree = VesselTree.grow(np.random.default_rng(0), (0, 0, 0), (0, 0, 1), radius=4, length=30, levels=4)
    ends = {tuple(np.round(p, 3)) for p in tree.a}
    forks = [p for p in ends if sum(np.allclose(p, q, atol=2e-3) for q in tree.a) == 2]
    assert len(forks) == 2**4 - 1
    assert tree.ra.max() == 4 and tree.rb.min() < 4 * 0.8**4


def test_fields_are_periodic_and_have_their_spectrum():
    field = cloud(2.5)
    power = np.abs(np.fft.rfftn(field)) ** 2
    f = np.sqrt(
        sum(
            np.meshgrid(
                *(np.fft.fftfreq(n) ** 2 for n in field.shape[:2]), np.fft.rfftfreq(field.shape[2]) ** 2, indexing="ij"
            )
        )
    )
    edges = np.geomspace(0.03, 0.45, 9)
    bands = [power[(f >= a) & (f < b)].mean() for a, b in zip(edges, edges[1:], strict=False)]
    slope = np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(bands), 1)[0]
    assert slope == pytest.approx(-2.5, abs=0.1)  # some 1e3 modes in the coarsest band: 3 % each
    x = np.linspace(-30, 30, 50)
    one = sample(field, x, x, 3.3, 0.75)
    assert np.allclose(one, sample(field, x + 192 * 0.75, x - 192 * 0.75, 3.3 + 96 * 0.75, 0.75), atol=1e-3)
    u, v = np.meshgrid(x, x)
    other = sample_at(field, u.ravel(), v.ravel(), 3.3, 0.75).reshape(50, 50)
    assert np.allclose(one, other, atol=1e-3)


def test_sheets_are_distances_near_their_surfaces():
    s = sheets(0)
    slope = np.sqrt(sum(((np.roll(s, -1, a) - np.roll(s, 1, a)) / 2) ** 2 for a in range(3)))
    near = np.abs(s) < 0.7
    # the regularised slope keeps it a little below 1
    assert 0.75 < np.median(slope[near]) < 1.1


# ---- patients -------------------------------------------------------------------------------------------


def test_slices_are_determined_by_seed_and_position():
    first = Patient.random(7).slice(20.0)
    again = Patient.random(7)
    again.slice(-50.0, size=128)  # what was drawn before must not matter
    second = again.slice(20.0)
    assert torch.equal(first.hu, second.hu) and torch.equal(first.labels, second.labels)
    assert (first.hu - drawn(8, 20.0).hu).abs().mean() > 20


def test_slice_keeps_the_contract():
    s = drawn(3, 0.0)
    assert s.hu.shape == s.labels.shape == (1, 1, 512, 512)
    assert s.hu.dtype == torch.float32 and s.labels.dtype == torch.uint8
    assert s.pixel_mm * 512 == pytest.approx(patient(3).body.field_of_view_mm)
    assert 0.66 <= s.pixel_mm <= 0.9
    assert s.organs == tuple(ORGANS[i] for i in s.labels.unique().tolist() if i)
    air = s.labels == 0
    assert air[0, 0, 0].all() and (s.hu[0, 0, 0] == -1000).all()
    for end in patient(3).z_range_mm:
        assert patient(3).slice(end, size=64).hu.shape == (1, 1, 64, 64)


# What is drawn at the patient's own HU. The median may move by the texture's low frequencies, and by twigs
# (liver) and streaks of fat (muscle, fat): 3 HU and 1.5 standard deviations of the texture.
UNIFORM = {
    "liver": "liver",
    "spleen": "spleen",
    "muscle": "muscle",
    "aorta": "aorta",
    "vena cava": "cava",
    "renal cortex": "cortex",
    "gallbladder": "bile",
    "subcutaneous fat": "fat",
    "spinal canal": "canal",
    "gas": "gas",
    "cyst": "cyst",
    "cartilage": "cartilage",
    "renal medulla": "medulla",
    "disc": "disc",
}


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 6])
def test_labels_agree_with_hu(seed):
    body, seen = patient(seed).body, 0
    for z in (-40.0, 15.0, 70.0):
        s = drawn(seed, z)
        hu, labels = s.hu[0, 0].numpy(), s.labels[0, 0].numpy()
        for organ, tissue in UNIFORM.items():
            inner = ndimage.binary_erosion(labels == ID[organ], iterations=3)
            if inner.sum() < 150:
                continue
            seen += 1
            tolerance = 3 + 1.5 * float(body.texture_hu[ID[organ]])
            assert np.median(hu[inner]) == pytest.approx(body.hu[tissue], abs=tolerance), (organ, z)
    assert seen >= 12


def test_hu_lie_in_the_ranges_of_their_phase():
    for seed in range(12):
        body = patient(seed).body
        for tissue, (low, high) in {**COMMON, **PHASES[body.phase]}.items():
            assert low <= body.hu[tissue] <= high
    portal = next(patient(s).body.hu for s in range(12) if patient(s).body.phase == "portal venous")
    assert 100 <= portal["liver"] <= 120 and 110 <= portal["spleen"] <= 130 and 140 <= portal["aorta"] <= 180


def test_vertebrae_have_a_shell_and_an_arch():
    body = patient(2).body
    z = (0.6) * body.spine.height  # the middle of a vertebral body
    s = drawn(2, z)
    hu, bone = s.hu[0, 0].numpy(), s.labels[0, 0].numpy() == ID["vertebra"]
    shell = bone & ~ndimage.binary_erosion(bone, iterations=2)
    core = ndimage.binary_erosion(bone, iterations=6)
    assert core.sum() > 200
    assert np.median(hu[core]) == pytest.approx(body.hu["trabecular"], abs=40)
    assert np.median(hu[shell]) > np.median(hu[core]) + 150
    canal = ndimage.binary_dilation(s.labels[0, 0].numpy() == ID["spinal canal"], iterations=2)
    assert (canal & bone).sum() > 40  # the ring around the canal
    # lower down comes the spinous process, well behind the canal
    labels = drawn(2, 0.15 * body.spine.height).labels[0, 0].numpy()
    behind, canal = (np.argwhere(labels == ID[o])[:, 0].max() for o in ("vertebra", "spinal canal"))
    assert behind > canal + 12 / s.pixel_mm


def test_stomach_has_an_air_fluid_level():
    levels = 0
    for seed in range(12):
        body = patient(seed).body
        for z in (35.0, 55.0):
            canvas = Canvas(512, 0.8, z, -100.0)
            body.viscera.draw_stomach(canvas, Frame(body.wall, canvas), body.hu)
            gas, meal = canvas.labels == ID["gas"], canvas.labels == ID["stomach content"]
            if gas.sum() > 100 and meal.sum() > 100:
                levels += 1
                assert canvas.y[np.flatnonzero(gas.any(1))].max() < body.viscera.air_y + 0.8
                assert canvas.y[np.flatnonzero(meal.any(1))].min() > body.viscera.air_y - 0.8
    assert levels >= 3


def test_neighbouring_slices_agree_and_distant_ones_do_not():
    ranks = []
    for seed in (1, 2, 3):
        base = drawn(seed, 40.0, thickness_mm=3.0)
        body = base.labels > 0

        def agree(dz, seed=seed, base=base, body=body):
            a, b = (s.hu.clamp(-160, 240)[body].numpy() for s in (base, drawn(seed, 40.0 + dz, thickness_mm=3.0)))
            return np.corrcoef(a, b)[0, 1]

        ranks.append([agree(dz) for dz in (1.0, 6.0, 40.0)])
    near, middle, far = np.mean(ranks, axis=0)
    assert near > 0.97 and near > middle > far and far < 0.85


@pytest.mark.parametrize(("seed", "z"), [(1, 0.0), (2, 60.0), (3, -60.0)])
def test_a_finer_grid_shows_the_same_patient(seed, z):
    coarse, fine = drawn(seed, z), drawn(seed, z, 1024)
    assert fine.pixel_mm == coarse.pixel_mm / 2
    gap = coarse.hu - torch.nn.functional.avg_pool2d(fine.hu, 2)
    inside = coarse.labels > 0
    # Borders: the linear edge profile errs by up to 1/8 of the step where an edge is oblique, and twigs
    # finer than a pixel are approximate. The mean, which is dose, must hold.
    window = coarse.hu.clamp(-160, 240) - torch.nn.functional.avg_pool2d(fine.hu, 2).clamp(-160, 240)
    assert window[inside].square().mean().sqrt() < 9
    assert gap[inside].mean().abs() < 0.5
    assert gap[inside].abs().median() < 0.5


@pytest.mark.parametrize(("seed", "z"), [(2, 60.0), (3, -110.0)])
def test_a_smaller_field_of_view_is_a_crop(seed, z):
    # Shapes outside or cut by the field must not change what is inside it.
    whole = drawn(seed, z)
    crop = patient(seed).slice(z, size=128, pixel_mm=whole.pixel_mm)
    middle = whole.hu[..., 192:320, 192:320]
    assert (crop.hu - middle).abs().max() < 0.5  # float32 coordinates
    assert (crop.labels == whole.labels[..., 192:320, 192:320]).float().mean() > 0.999


def test_thickness_is_the_mean_of_thin_slices():
    p, z = patient(4), 10.0
    thick = p.slice(z, thickness_mm=3.0, size=256)
    thin = [p.slice(z + dz, size=256) for dz in (-1.0, 0.0, 1.0)]
    assert torch.allclose(thick.hu, sum(s.hu for s in thin) / 3, atol=2e-3)
    assert torch.equal(thick.labels, thin[1].labels)


def test_a_population_shows_every_organ():
    count = dict.fromkeys(ORGANS, 0)
    for seed in range(14):
        for z in (-115.0, -60.0, -10.0, 12.0, 44.0, 80.0, 112.0):
            for organ in drawn(100 + seed, z, 256).organs:
                count[organ] += 1
    missing = [organ for organ in OF_ABDOMEN[1:] if count[organ] == 0]
    assert not missing
    assert {patient(100 + s).body.phase for s in range(14)} == set(PHASES)
    assert count["aorta"] > 60 and count["vertebra"] == 98 and count["vessel"] > 90


def test_fat_is_not_smooth():
    # Strands and vessels of one or two pixels: what is left above a 5 x 5 median in the visceral fat.
    share = []
    for seed in range(6):
        s = drawn(seed, -40.0)
        hu = s.hu[0, 0].numpy()
        fat = s.labels[0, 0].numpy() == ID["visceral fat"]
        share.append((hu - ndimage.median_filter(hu, 5) > 20)[fat].mean())
    assert 0.02 < np.mean(share) < 0.3


def test_bad_arguments_are_named():
    with pytest.raises(ParameterError, match="abdomen"):
        Patient.random(0, anatomy="elbow")
    for seed in (-1, 1.5, True):
        with pytest.raises(ParameterError, match="seed"):
            Patient.random(seed)
    p = patient(0)
    for kwargs, word in (
        ({"size": 8}, "size"),
        ({"size": 99.5}, "size"),
        ({"pixel_mm": 0.0}, "pixel_mm"),
        ({"thickness_mm": 0.0}, "thickness_mm"),
        ({"thickness_mm": 99.0}, "thickness_mm"),
    ):
        with pytest.raises(ParameterError, match=word):
            p.slice(0.0, **kwargs)
    for z in (p.z_range_mm[1] + 1, math.nan):
        with pytest.raises(ParameterError, match="range"):
            p.slice(z)


def _spectrum(hu: np.ndarray) -> np.ndarray:
    """log10 power of the middle of the body in bands of 0.05 cycles per pixel, from 0.02."""
    rows, cols = np.nonzero(ndimage.binary_opening(hu > -300, iterations=3))
    y, x = int(rows.mean()), int(cols.mean())
    patch = hu[y - 80 : y + 80, x - 100 : x + 100].clip(-160, 240)
    taper = np.hanning(160)[:, None] * np.hanning(200)[None]
    power = np.abs(np.fft.fft2((patch - patch.mean()) * taper)) ** 2 / (taper**2).sum()
    f = np.hypot(np.fft.fftfreq(160)[:, None], np.fft.fftfreq(200)[None])
    return np.array([np.log10(power[(f >= lo) & (f < lo + 0.05)].mean()) for lo in np.arange(0.02, 0.3, 0.05)])


def test_spectrum_is_that_of_real_slices(real_data):
    # A soft-kernel routine-dose series of 3 mm slices: below 0.3 cycles per pixel its anatomy outweighs its
    # noise. A factor of two in power either way: the series is one patient, at one level.
    pydicom = pytest.importorskip("pydicom")
    real = []
    for file in sorted((real_data / "ct" / "abdomen_series").glob("*.dcm"))[::5]:
        d = pydicom.dcmread(file)
        real.append(_spectrum(d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept)))
    ours = [_spectrum(patient(s).slice(50.0, thickness_mm=3.0, pixel_mm=0.9766).hu[0, 0].numpy()) for s in range(10)]
    assert np.abs(np.mean(ours, axis=0) - np.mean(real, axis=0)).max() < 0.35
