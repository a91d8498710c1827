"""The noise autoencoder: bands against closed forms, drawn noise against what was asked for."""

import numpy as np
import pytest
import torch

from ldctlib.errors import ParameterError
from ldctlib.models.noise_autoencoder import (
    LEAST_SD,
    NODES,
    NoiseAutoencoder,
    band_amplitudes,
    band_rms,
    noise_likelihood,
)

SMALL = dict(width=8, channel_mult=[1, 1], latent_channels=4, blocks=1, attention_at=[], stem=4, norm_groups=4)


@pytest.fixture(scope="module")
def model() -> NoiseAutoencoder:
    torch.manual_seed(0)
    return NoiseAutoencoder(**SMALL).eval().requires_grad_(False)


def test_the_bands_powers_add_up_to_the_whole():
    torch.testing.assert_close(band_amplitudes(NODES, 48, 64).square().sum(0), torch.ones(48, 33))


def test_the_rms_of_white_noise_in_a_band_is_that_of_its_filter():
    """Against the full plane of frequencies."""
    h, w = 32, 48
    rho = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None]).clip(max=0.5)
    hat = np.interp(rho, NODES, np.eye(len(NODES))[2])
    assert float(band_rms(NODES, h, w)[2]) == pytest.approx(np.sqrt(hat.mean()), rel=1e-5)


def test_bands_of_a_noise_have_its_variance(model):
    noise = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    bands = model.bands(noise)
    assert bands.shape == (2, len(NODES), 64, 64)
    torch.testing.assert_close(bands.square().mean((1, 2, 3)) * len(NODES), noise.square().mean((1, 2, 3)))


def test_drawn_noise_has_the_standard_deviations_that_the_head_tells(model):
    z = torch.zeros(1, 4, 32, 32)
    sd = model.noise_sd(z)[0, :, 16, 16]  # the same everywhere but at the border
    white = torch.randn(8, len(NODES), 256, 256, generator=torch.Generator().manual_seed(2))
    inner = model.draw_noise(z.expand(8, -1, -1, -1), white)[..., 32:-32, 32:-32]
    # 8 x 192² values, of which noise of 0.08 cycles per pixel leaves some hundred independent ones
    assert float(inner.std()) == pytest.approx(float(sd.square().sum().sqrt()), rel=0.02)


def test_drawn_noise_is_as_small_as_the_image(model):
    white = torch.randn(1, len(NODES), 60, 52, generator=torch.Generator().manual_seed(2))
    assert model.draw_noise(torch.zeros(1, 4, 8, 8), white).shape == (1, 1, 60, 52)


def test_the_likelihood_is_best_at_the_expected_power():
    """Also with few independent values in a block, whose own power scatters."""
    bands = 0.3 * torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(3))

    def at(sd: float) -> float:
        return float(noise_likelihood(torch.full((64, 1, 2, 2), sd), bands, 8))

    best = float((bands.square().mean() + LEAST_SD**2).sqrt())
    assert at(best) < min(at(0.97 * best), at(1.03 * best))
    assert at(best) == pytest.approx(np.log(best) + 0.5, abs=1e-5)


def test_it_sees_a_window(model):
    x = torch.linspace(-3, 3, 64 * 64).view(1, 1, 64, 64)
    torch.testing.assert_close(model.encode(x).mean, model.encode(x.clamp(-1, 1)).mean)


def test_nodes_rise_from_zero():
    for nodes in ((0.0,), (0.1, 0.5), (0.0, 0.3, 0.2)):
        with pytest.raises(ParameterError, match="rising"):
            NoiseAutoencoder(**SMALL, nodes=nodes)


def test_scaled_latents_have_unit_variance_in_every_channel():
    made = NoiseAutoencoder(**SMALL)
    z = torch.tensor([3.0, 0.2, 1.0, 7.0])[:, None, None] * torch.randn(8, 4, 9, 9) - 2
    told = made.fit_latents(z)
    scaled = NoiseAutoencoder(**SMALL, **told).scale(z)
    torch.testing.assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(made.unscale(scaled), z)
    assert not any(name.startswith("latent_") for name in made.state_dict())  # they are of the config


def test_latents_without_a_unit_are_refused():
    with pytest.raises(ParameterError, match="unit variance"):
        NoiseAutoencoder(**SMALL).fit_latents(torch.ones(2, 4, 3, 3))
    with pytest.raises(ParameterError, match="number a channel"):
        NoiseAutoencoder(**SMALL, latent_std=[1.0])
    with pytest.raises(ParameterError, match="std > 0"):
        NoiseAutoencoder(**SMALL, latent_std=[1.0, 1.0, 0.0, 1.0])
