"""The noise model: its own samples come back, pairs and blind estimates agree with the simulator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ldctlib.benchmark.cases import real_pairs
from ldctlib.ct.dose import Scanner, noise_map, noise_only, scan
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.noise_model import NoiseModel, noise_from_image, noise_from_pair
from ldctlib.ct.nps import NPS, cut_rois, nps, soft_tissue, soft_tissue_rois
from ldctlib.ct.projector import projector
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import gaussian_blur
from ldctlib.phantom.patient import Patient
from ldctlib.phantom.scan_phantom import scan_phantom
from ldctlib.units import hu_to_mu, mu_to_hu


@pytest.fixture(scope="module")
def phantom_scan():
    patient = Patient.random(4)
    low, high = patient.z_range_mm
    drawn = patient.slice(0.5 * (low + high), size=256)
    geometry = ParallelGeometry.for_image(256, drawn.pixel_mm, n_views=360)
    scanner = Scanner(photons=3e5)
    full, quarter = scan(drawn.hu, geometry, scanner, (1.0, 0.25), generator=torch.Generator().manual_seed(0))
    known_map = noise_map(drawn.hu, geometry, scanner, 0.25)
    return full, quarter, geometry, noise_of_scans(drawn.hu, geometry, scanner, 0.25), known_map


def noise_of_scans(image_hu, geometry, scanner, dose: float, scans: int = 4, roi: int = 32) -> NPS:
    """The spectrum in soft tissue of noise alone, from several scans."""
    p = projector(geometry).A(hu_to_mu(image_hu))
    many = p.expand(scans, -1, -1, -1)
    noise = noise_only(many, geometry, scanner, dose, generator=torch.Generator().manual_seed(2))
    places = soft_tissue_rois(mu_to_hu(projector(geometry).fbp(p, "soft")), roi)
    corners = [(i, row, column) for i in range(scans) for _, row, column in places]
    return nps(cut_rois(noise, corners, roi), geometry.pixel_mm, detrend="plane")


def hump() -> NoiseModel:
    f = np.linspace(0, 1, 50)
    radial = f * np.exp(-((f / 0.3) ** 2))
    return NoiseModel(20.0, f, radial, 0.75, None, "image")


def test_samples_have_the_model_s_variance_and_spectrum():
    model = hump()
    samples = model.sample((12, 1, 128, 128), generator=torch.Generator().manual_seed(1))
    assert abs(float(samples.std()) / 20 - 1) < 0.02
    measured = nps(samples, 0.75)
    band = slice(2, 30)
    expected = np.interp(measured.frequency[band], model.frequency_per_mm, model.radial_nps)
    shape = measured.radial[band] / expected
    # Hann's leakage and 48 squares of 64: some per cent a ring
    assert np.abs(shape / shape.mean() - 1).max() < 0.2
    psd = model.psd(64, 96)
    assert psd.shape == (64, 96) and math.isclose(psd.mean() / 0.75**2, 400.0, rel_tol=1e-9)


def test_pair_estimate(phantom_scan):
    """The nested difference holds 1 - d of the variance; scaled up it meets the noise of scans."""
    full, quarter, geometry, simulated, _ = phantom_scan
    pair = noise_from_pair(quarter, full, geometry.pixel_mm, dose=0.25, roi=32)
    # one image of some 20 squares, noise that varies over the body: 12 %
    assert abs(pair.sd_hu / math.sqrt(simulated.variance) - 1) < 0.12


def test_blind_estimate_and_its_map(phantom_scan):
    """Bins of a whole pixel, few views: the estimate rests on no property of one scan simulation."""
    _, quarter, geometry, simulated, known_map = phantom_scan
    blind = noise_from_image(quarter, geometry.pixel_mm)
    # the squares of 32 pixels leave the body's rim out, where there is less noise
    assert abs(blind.sd_hu / math.sqrt(simulated.variance) - 1) < 0.1
    tissue = soft_tissue(quarter)
    assert abs(blind.sd_hu / float(known_map[tissue].square().mean().sqrt()) - 1) < 0.1
    peak = blind.frequency_per_mm[blind.radial_nps.argmax()]
    assert abs(peak - simulated.frequency[simulated.radial.argmax()]) < 0.12
    assert blind.map_hu.shape == quarter.shape and (blind.map_hu > 0).all()
    error = blind.map_hu / known_map - 1
    assert float(error[tissue].abs().median()) < 0.15
    smooth = gaussian_blur(quarter, 2.0)
    steep = torch.hypot(*(torch.diff(smooth, dim=d, append=smooth.narrow(d, 0, 1)) for d in (-1, -2)))
    assert float(error[tissue & (steep > 30)].median()) < 0.15  # edges of bone and gas do not light up


@pytest.fixture(scope="module", params=[(9, 0.3), (10, 0.7)], ids=["crowded", "plain"])
def sharp_and_soft(request):
    """Slices of 256² pixels of 1 mm: kernel -> noise-free image and doses 1, 1/4, 1/10."""
    seed, place = request.param
    patient = Patient.random(seed)
    low, high = patient.z_range_mm
    kernels, generator = ("B30f", "D45f"), torch.Generator().manual_seed(seed)
    z = low + place * (high - low)
    return scan_phantom(patient, z, DOSES, kernels=kernels, size=256, pixel_mm=1.0, generator=generator)


DOSES = (1.0, 0.25, 0.1)


@pytest.mark.parametrize("kernel", ["B30f", "D45f"])
def test_blind_estimate_on_phantoms(sharp_and_soft, kernel):
    """Within a tenth from 11 to 97 HU of noise; what there is no noise in reads little."""
    truth, *images = sharp_and_soft[kernel]
    tissue = soft_tissue(truth)
    for dose, image in zip(DOSES, images, strict=True):
        noise = image - truth
        blind = noise_from_image(image, 1.0)
        assert abs(blind.sd_hu / float(noise[tissue].square().mean().sqrt()) - 1) < 0.1, dose
        side = 18  # as the estimate's own: bins and their leakage are the same
        known = nps(cut_rois(noise, soft_tissue_rois(truth, side), side), 1.0, detrend="plane")
        f = np.array([0.1, 0.15, 0.2, 0.25, 0.3, 0.4])
        shape = np.interp(f, blind.frequency_per_mm, blind.radial_nps / blind.sd_hu**2)
        shape /= np.interp(f, known.frequency, known.radial / known.variance)
        # below 0.2 /mm crowded anatomy hides the noise: the kernel's family continues it
        assert np.abs(shape[2:] - 1).max() < 0.2 and np.abs(np.log(shape[:2])).max() < math.log(1.5), (dose, shape)
    assert noise_from_image(truth, 1.0).sd_hu < 16  # edges alone were once taken for 27 to 74 HU


@pytest.mark.parametrize("shape", ["ramp", "hump", "white", "smooth"])
def test_known_noise_on_a_flat_image_comes_back(shape):
    f = np.linspace(0, 1.1, 80)
    radial = {"ramp": f, "hump": f * np.exp(-((f / 0.4) ** 2)), "white": f * 0 + 1, "smooth": np.exp(-((f / 0.4) ** 2))}
    known = NoiseModel(20.0, f, radial[shape], 0.75, None, "image")
    noise = known.sample((1, 1, 256, 256), generator=torch.Generator().manual_seed(3))
    blind = noise_from_image(40 + noise, 0.75)
    # 65,000 pixels, a few thousand of them independent: 1 to 2 %; the plane taken off each square is another
    assert abs(blind.sd_hu / float(noise.std()) - 1) < 0.03
    assert float((blind.map_hu / blind.sd_hu - 1).abs().max()) < 0.15
    measured = nps(noise, 0.75, roi=24, detrend="plane")
    band = slice(2, 12)
    # squares overlap differently: the two see other parts of the same noise
    ratio = blind.radial_nps[band] / measured.radial[band]
    assert np.abs(ratio - 1).max() < 0.12, ratio


def test_a_batch_is_one_estimate():
    noise = hump().sample((2, 1, 96, 96), generator=torch.Generator().manual_seed(0))
    both, one = noise_from_image(noise, 0.75), noise_from_image(noise[:1], 0.75)
    assert both.map_hu.shape == one.map_hu.shape == (1, 1, 96, 96)
    assert abs(both.sd_hu / float(noise.std()) - 1) < 0.05


def test_nothing_at_all_reads_as_nothing():
    blind = noise_from_image(torch.full((1, 1, 64, 64), 40.0), 0.75)
    assert blind.sd_hu < 0.01 and np.isfinite(blind.psd(64, 64)).all() and torch.isfinite(blind.map_hu).all()


def test_blind_estimate_on_real_pairs(real_data):
    """Low dose: the pair's difference, which holds 0.874 of its variance. Full dose: 0.48 of the difference's sd.

    Both numbers are the ratios of the images' powers above 0.36 /mm, where anatomy has none; slice by slice the second
    is 0.456 to 0.516, so that full-dose truths are known within 6 %: its own tenth is as much as can be asked.
    """
    for case in real_pairs(real_data / "ct" / "mayo")[::5]:
        difference = case.ldct_hu - case.reference_hu
        tissue = soft_tissue(gaussian_blur(case.reference_hu, 1.0))
        sd = float(difference[tissue].square().mean().sqrt())
        low, full = (noise_from_image(x, case.pixel_mm).sd_hu for x in (case.ldct_hu, case.reference_hu))
        assert abs(low / (sd / math.sqrt(0.874)) - 1) < 0.1, (case.group, case.slice)
        assert abs(full / (0.48 * sd) - 1) < 0.1, (case.group, case.slice)


def test_scaling():
    model = hump().scaled(5.0)
    assert model.sd_hu == 5.0 and np.allclose(model.radial_nps, hump().radial_nps / 16)


def test_bad_input_is_named():
    with pytest.raises(ParameterError, match="soft tissue"):
        noise_from_image(torch.full((1, 1, 128, 128), 3000.0), 0.75)
    for pixel_mm in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ParameterError, match="pixel_mm"):
            noise_from_image(torch.zeros(1, 1, 64, 64), pixel_mm)
    with pytest.raises(ShapeError, match="8 pixels"):
        noise_from_image(torch.zeros(1, 1, 64, 7), 0.75)
    with pytest.raises(ShapeError, match="8 pixels"):
        noise_from_image(torch.zeros(1, 1, 64, 64), 0.75, roi=4)
    with pytest.raises(ParameterError, match="not finite"):
        noise_from_image(torch.full((1, 1, 64, 64), math.nan), 0.75)
    with pytest.raises(ShapeError):
        noise_from_pair(torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 32, 32), 1.0)
    with pytest.raises(ParameterError, match="fraction"):
        noise_from_pair(torch.randn(1, 1, 64, 64), torch.zeros(1, 1, 64, 64), 1.0, dose=1.5)
