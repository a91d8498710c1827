"""The noise model: its own samples come back, pairs and blind estimates agree with the simulator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ldctlib.ct.dose import Scanner, noise_only, scan
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.noise_model import NoiseModel, noise_from_image, noise_from_pair
from ldctlib.ct.nps import NPS, cut_rois, nps, soft_tissue_rois
from ldctlib.ct.projector import projector
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.phantom.patient import Patient
from ldctlib.units import hu_to_mu, mu_to_hu


@pytest.fixture(scope="module")
def phantom_scan():
    patient = Patient.random(4)
    low, high = patient.z_range_mm
    drawn = patient.slice(0.5 * (low + high), size=256)
    geometry = ParallelGeometry.for_image(256, drawn.pixel_mm, n_views=360)
    scanner = Scanner(photons=3e5)
    full, quarter = scan(drawn.hu, geometry, scanner, (1.0, 0.25), generator=torch.Generator().manual_seed(0))
    return full, quarter, geometry, noise_of_scans(drawn.hu, geometry, scanner, 0.25)


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
    full, quarter, geometry, simulated = phantom_scan
    pair = noise_from_pair(quarter, full, geometry.pixel_mm, dose=0.25, roi=32)
    # one image of some 20 squares, noise that varies over the body: 12 %
    assert abs(pair.sd_hu / math.sqrt(simulated.variance) - 1) < 0.12


def test_blind_estimate(phantom_scan):
    """Without a partner: a fifth off at most in sd (what anatomy adds), and most power where the simulator has it."""
    _, quarter, geometry, simulated = phantom_scan
    blind = noise_from_image(quarter, geometry.pixel_mm)
    assert -0.05 < blind.sd_hu / math.sqrt(simulated.variance) - 1 < 0.2
    peak = blind.frequency_per_mm[blind.radial_nps.argmax()]
    assert abs(peak - simulated.frequency[simulated.radial.argmax()]) < 0.12
    assert blind.map_hu.shape == quarter.shape and (blind.map_hu > 0).all()


def test_scaling():
    model = hump().scaled(5.0)
    assert model.sd_hu == 5.0 and np.allclose(model.radial_nps, hump().radial_nps / 16)


def test_bad_input_is_named():
    with pytest.raises(ParameterError, match="soft tissue"):
        noise_from_image(torch.full((1, 1, 128, 128), 3000.0), 0.75)
    with pytest.raises(ShapeError):
        noise_from_pair(torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 32, 32), 1.0)
    with pytest.raises(ParameterError, match="fraction"):
        noise_from_pair(torch.randn(1, 1, 64, 64), torch.zeros(1, 1, 64, 64), 1.0, dose=1.5)
