"""The projector against analytic ellipses, scikit-image, its own adjoint and autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ldctlib.ct.geometry import FanGeometry, ParallelGeometry
from ldctlib.ct.kernels import KERNELS, Kernel, find_kernel
from ldctlib.ct.projector import projector
from ldctlib.errors import GeometryError, ParameterError, ShapeError
from ldctlib.units import MU_WATER_PER_MM
from tests.ellipses import ELLIPSES, raster, sinogram

PARALLEL = ParallelGeometry(512, 0.75, 720, 736, 0.75)
FAN = FanGeometry(512, 0.75, 720, 736)
SMALL = (
    ParallelGeometry(96, 1.5, 90, 140, 1.5, 0.25),
    FanGeometry(96, 1.5, 120, 200, 0.0028),
    ParallelGeometry(65, 2.0, 64, 150, 1.0),
    ParallelGeometry(64, 2.0, 30, 40, 2.0),
)


@pytest.mark.parametrize("geometry", (PARALLEL, FAN), ids=("parallel", "fan"))
def test_sinogram_of_off_centre_ellipses(geometry):
    """Area-weighted raster against detector-averaged analytic line integrals."""
    truth = torch.from_numpy(sinogram(geometry)).float()
    p = projector(geometry).A(raster(geometry))[0, 0]
    assert (p - truth).norm() / truth.norm() < 1.5e-3


@pytest.mark.parametrize("geometry", (PARALLEL, FAN), ids=("parallel", "fan"))
def test_fbp_of_analytic_sinogram(geometry):
    """Away from edges: within 2 HU of bias and 7 HU of RMSE."""
    from scipy.ndimage import maximum_filter, minimum_filter

    image = raster(geometry)[0, 0].numpy()
    result = projector(geometry).fbp(torch.from_numpy(sinogram(geometry)).float()[None, None])[0, 0].numpy()
    flat = maximum_filter(image, 13) - minimum_filter(image, 13) < 1e-7
    yy, xx = np.mgrid[:512, :512] - 255.5
    flat &= np.hypot(yy, xx) * geometry.pixel_mm < geometry.fov_radius_mm - 5
    error = (result - image)[flat] * 1000 / MU_WATER_PER_MM
    assert abs(error.mean()) < 2
    assert math.sqrt((error**2).mean()) < 7
    body = (result - image)[flat & (image > 0)] * 1000 / MU_WATER_PER_MM
    assert abs(body.mean()) < 2 and math.sqrt((body**2).mean()) < 7


def test_agrees_with_scikit_image():
    """skimage rotates about pixel N//2 and turns the other way: an odd size makes both centres one."""
    from skimage.transform import radon

    geometry = ParallelGeometry(129, 1.0, 45, 129, 1.0)
    x = torch.zeros(1, 1, 129, 129)
    x[0, 0, 40:60, 70:95] = 0.02
    x[0, 0, 80:90, 30:50] = 0.01
    ours = projector(geometry).A(x)[0, 0].numpy()
    angles = np.degrees(geometry.angles_rad)
    theirs = radon(x[0, 0].numpy(), theta=-angles, circle=True).T
    # rotate-and-sum interpolates bilinearly, which alone costs one to two per cent on sharp squares
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 0.03
    # mass: every view of both sums to the image's
    np.testing.assert_allclose(ours.sum(1), float(x.sum()), rtol=2e-4)


@pytest.mark.parametrize("geometry", SMALL, ids=("parallel", "fan", "odd", "truncated"))
def test_adjoint(geometry):
    """<Ax, y> = <x, A'y>, and the same for FBP; float32 sums of 1e4 terms leave about 1e-6."""
    p, generator = projector(geometry), torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, geometry.size, geometry.size, generator=generator)
    y = torch.rand(2, 1, *p.sinogram_shape, generator=generator)
    soft = find_kernel("B30f")
    for forward, adjoint in ((p.A, p.A_adjoint), (lambda v: p._fbp_adjoint(v, soft), lambda v: p.fbp(v, soft))):
        left = (forward(x).double() * y).sum()
        right = (x.double() * adjoint(y)).sum()
        assert abs(left - right) / (forward(x).double().norm() * y.double().norm()) < 1e-5


def test_gradient_is_the_adjoint_and_batches_are_independent():
    p = projector(SMALL[1])
    x = torch.rand(3, 1, 96, 96, generator=torch.Generator().manual_seed(1), requires_grad=True)
    target = torch.rand(3, 1, *p.sinogram_shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((p.A(x) * target).sum(), x)
    torch.testing.assert_close(gradient, p.A_adjoint(target))
    torch.testing.assert_close(p.A(x)[1:2], p.A(x[1:2].detach()), rtol=1e-5, atol=1e-5)
    # second derivatives: of 1/2 |Ax|^2 the Hessian-vector product is A'A v
    energy = 0.5 * p.A(x).square().sum()
    (g,) = torch.autograd.grad(energy, x, create_graph=True)
    v = torch.ones_like(x)
    (hv,) = torch.autograd.grad((g * v).sum(), x)
    torch.testing.assert_close(hv, p.A_adjoint(p.A(v)), rtol=1e-4, atol=1e-3)


def test_quarter_offset_shifts_the_detector():
    """A quarter-bin offset samples the same profile a quarter of a bin further on."""
    plain = ParallelGeometry(128, 1.0, 12, 200, 1.0)
    shifted = ParallelGeometry(128, 1.0, 12, 200, 1.0, offset_bins=0.25)
    x = raster(ParallelGeometry(128, 3.0, 12, 200, 3.0))  # the ellipses, shrunk with the grid
    a, b = projector(plain).A(x)[0, 0], projector(shifted).A(x)[0, 0]
    f = torch.fft.rfftfreq(200)
    moved = torch.fft.irfft(torch.fft.rfft(a) * torch.exp(2j * math.pi * f * 0.25), n=200)
    assert (moved - b).norm() / b.norm() < 2e-3


def test_ramp_has_no_dc_bias():
    """A uniform disc comes back at its own value: a |f| ramp would miss it by several HU."""
    geometry = ParallelGeometry(256, 1.0, 400, 368, 1.0)
    disc = ELLIPSES[:1]
    p = torch.from_numpy(sinogram(geometry, disc)).float()[None, None]
    image = raster(geometry, disc)[0, 0] > 0
    inner = torch.nn.functional.avg_pool2d(image[None].float(), 9, 1, 4)[0] == 1
    hu = projector(geometry).fbp(p)[0, 0][inner].mean() * 1000 / MU_WATER_PER_MM
    assert abs(hu - 0.02 * 1000 / MU_WATER_PER_MM) < 1.0


def test_white_noise_through_the_pure_ramp():
    """sigma_image = pi sigma_p / (bin sqrt(12 views)), bins as wide as pixels (Kak & Slaney, section 5.2)."""
    geometry = ParallelGeometry(256, 0.75, 400, 368, 0.75)
    noise = torch.randn(6, 1, 400, 368, generator=torch.Generator().manual_seed(3)) * 0.01
    image = projector(geometry).fbp(noise)[..., 64:192, 64:192]
    predicted = math.pi * 0.01 / (0.75 * math.sqrt(12 * 400))
    # 6 x 16384 correlated pixels: about 0.5 % of statistical error
    assert abs(image.std() / predicted - 1) < 0.03


def test_kernels_are_ordered_and_checked():
    f = torch.linspace(0, 1.5, 200)
    assert all(abs(float(k(f)[0]) - 1) < 1e-6 and float(k(f).max()) <= 1 + 1e-6 for k in KERNELS.values())
    area = [float(KERNELS[name](f[f < 0.67]).sum()) for name in ("soft", "B30f", "B45", "D45f", "ramp")]
    assert area == sorted(area)
    with pytest.raises(ParameterError, match="B30f"):
        find_kernel("B99")
    with pytest.raises(ParameterError):
        Kernel(0.5, 0.2)


@pytest.mark.parametrize(
    "bad",
    (
        dict(size=4),
        dict(pixel_mm=0.0),
        dict(pixel_mm=float("nan")),
        dict(n_views=0),
        dict(n_bins=1),
        dict(bin_mm=-1.0),
        dict(offset_bins=4000.0),
    ),
)
def test_impossible_parallel_geometries(bad):
    with pytest.raises(GeometryError, match=next(iter(bad))):
        ParallelGeometry(**bad)


@pytest.mark.parametrize(
    "bad, word",
    (
        (dict(n_bins=3000), "180 degrees"),
        (dict(source_to_iso_mm=200.0), "inside the image"),
        (dict(n_views=2), "n_views"),
        (dict(bin_rad=0.0), "bin_rad"),
    ),
)
def test_impossible_fan_geometries(bad, word):
    with pytest.raises(GeometryError, match=word):
        FanGeometry(**bad)


def test_wrong_inputs_are_named():
    p = projector(SMALL[0])
    with pytest.raises(ShapeError, match=r"\(B, 1, 96, 96\)"):
        p.A(torch.zeros(96, 96))
    with pytest.raises(ShapeError, match="float32"):
        p.A(torch.zeros(1, 1, 96, 96, dtype=torch.float64))
    with pytest.raises(GeometryError):
        projector("fan")


def test_cache_is_keyed_by_values():
    a = projector(ParallelGeometry(64, 2.0, 30, 40, 2.0))
    assert projector(ParallelGeometry(64, 2.0, 30, 40, 2.0)) is a
    assert projector(ParallelGeometry(64, 2.0, 31, 40, 2.0)) is not a
