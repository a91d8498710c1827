"""Obedience to a noise condition, with noise of known strength and spectrum on textured organs; copies of training
images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ldctlib.ct.noise_model import NoiseModel
from ldctlib.errors import LdctError, ParameterError, ShapeError
from ldctlib.image import gaussian_blur
from ldctlib.metrics.copies import Nearest, copies, nearest_training
from ldctlib.metrics.obedience import dose_response, noise_sd
from ldctlib.units import SOFT_TISSUE

PIXEL = 0.8
F = np.linspace(0, 0.9, 50)
FBP = NoiseModel(20.0, F, F * np.exp(-((F / 0.4) ** 2)), PIXEL, None, "pair")
"""A ramp under a soft kernel: its peak is at 0.28 /mm."""


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def organs(
    n: int, size: int = 160, texture_hu: float = 6.0, scale_mm: float = 5.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of an organ at 100 HU with texture, in fat; and its mask."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mask = ((y - 0.5 * size) ** 2 / 1.4 + (x - 0.45 * size) ** 2 < (0.33 * size) ** 2).expand(n, 1, -1, -1)
    texture = gaussian_blur(torch.randn(n, 1, size, size, generator=seeded(7)), scale_mm / PIXEL)
    return torch.where(mask, 100.0, -100.0) + texture * (texture_hu / texture.std()), mask


def test_the_noise_of_a_textured_organ_is_measured_within_five_percent():
    clean, mask = organs(4)
    for sd in (8.0, 20.0, 60.0):
        image = clean + FBP.scaled(sd).sample(tuple(clean.shape), generator=seeded(1))
        found = noise_sd(image, mask, pixel_mm=PIXEL, noise=FBP)
        # the sample itself scatters by 1/√(2 · 9000 pixels / 3 a cell) = 1.3 %, the texture passes by some 2 % at 8 HU
        torch.testing.assert_close(found.sd_hu, torch.full((4,), sd, dtype=torch.float64), rtol=0.05, atol=0)
        assert abs(found.sd_hu.mean().item() / sd - 1) < 0.03
    assert (found.pixels < mask.flatten(1).sum(1)).all() and torch.isnan(found.condition_hu).all()
    # the filter's gain is far from 1 for a short Gaussian, and is made up for
    short = noise_sd(image, mask, pixel_mm=PIXEL, noise=FBP, highpass_mm=0.6)
    torch.testing.assert_close(short.sd_hu, found.sd_hu, rtol=0.03, atol=0)
    white = NoiseModel(1.0, F, np.ones(50), PIXEL, None, "pair")
    assert (noise_sd(image, mask, pixel_mm=PIXEL, noise=white, highpass_mm=0.6).sd_hu < 0.9 * short.sd_hu).all()


def test_differences_of_two_seeds_need_no_high_pass():
    clean, mask = organs(4, texture_hu=50.0, scale_mm=2.0)
    first, second = (clean + FBP.sample(tuple(clean.shape), generator=seeded(s)) for s in (1, 2))
    alone = noise_sd(first, mask, pixel_mm=PIXEL, noise=FBP).sd_hu
    found = noise_sd(first, mask, pixel_mm=PIXEL, other_hu=second, highpass_mm=None).sd_hu
    assert (alone > 1.2 * 20).all()  # such a texture is no noise, and is taken for it
    torch.testing.assert_close(found, torch.full((4,), 20.0, dtype=torch.float64), rtol=0.05, atol=0)


def test_noise_is_compared_with_the_map_that_was_asked_for():
    clean, mask = organs(3)
    column = torch.linspace(0.5, 1.5, clean.shape[-1]).expand(clean.shape)
    asked = 30.0 * column
    image = clean + FBP.scaled(1.0).sample(tuple(clean.shape), generator=seeded(3)) * asked
    found = noise_sd(image, mask, pixel_mm=PIXEL, noise=FBP, map_hu=asked)
    torch.testing.assert_close(found.ratio, torch.ones(3, dtype=torch.float64), rtol=0.05, atol=0)
    torch.testing.assert_close(
        noise_sd(image, mask, pixel_mm=PIXEL, noise=FBP, map_hu=2 * asked).ratio, found.ratio / 2
    )
    small = torch.zeros_like(mask)
    small[0, 0, 40:52, 40:52] = True  # 12 pixels, of which 3 mm on both sides leave 6: 36 pixels
    few = noise_sd(image, small, pixel_mm=PIXEL, noise=FBP)
    assert few.pixels.tolist() == [36, 0, 0] and torch.isnan(few.sd_hu).all()


def test_the_dose_response_of_quantum_noise():
    doses = [0.05, 0.1, 0.25, 0.5, 1.0]
    exact = dose_response(doses, 12 / np.sqrt(doses))
    assert exact.slope == pytest.approx(-0.5, abs=1e-12) and exact.spearman == pytest.approx(-1)
    assert math.isnan(exact.low)  # one image
    clean, mask = organs(8, size=96)
    sds = [
        noise_sd(
            clean + FBP.scaled(12 / math.sqrt(d)).sample(tuple(clean.shape), generator=seeded(i)),
            mask,
            pixel_mm=PIXEL,
            noise=FBP,
        ).sd_hu
        for i, d in enumerate(doses)
    ]
    found = dose_response(doses, torch.stack(sds, dim=1))
    assert found.low < found.slope < found.high and found.slope == pytest.approx(-0.5, abs=0.02)
    assert found.spearman == pytest.approx(-1)
    ignored = dose_response(doses, np.random.default_rng(0).uniform(19, 21, (20, 5)))
    assert ignored.low < 0 < ignored.high and abs(ignored.spearman) < 0.4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(noise=None), "give its spectrum"),
        (dict(pixel_mm=0.5), "0.8 mm are not the images' of 0.5 mm"),
        (dict(pixel_mm=-1.0), "must be > 0"),
        (dict(masks=torch.ones(1, 1, 8, 8)), "masks are bool"),
        (dict(map_hu=torch.ones(1, 1, 8, 8)), "the map must have"),
        (dict(other_hu=torch.ones(1, 1, 8, 8)), "one shape"),
    ],
)
def test_what_noise_cannot_be_measured_in_is_refused(options, says):
    clean, masks = organs(1, size=32)
    with pytest.raises(LdctError, match=says):
        noise_sd(**(dict(images_hu=clean, masks=masks, pixel_mm=PIXEL, noise=FBP) | options))


def test_a_dose_response_needs_enough():
    for doses, sds, error in (
        ([0.5], [3.0], ShapeError),
        ([0.5, 0.5], [3.0, 3.0], ShapeError),
        ([0.5, 1.0], [3.0, 0.0], ParameterError),
        ([0.5, 1.0], [math.nan, 1.0], ParameterError),
    ):
        with pytest.raises(error):
            dose_response(doses, sds)


# ---------------------------------------------------------------- copies


def patients(n: int, seed: int, size: int = 96) -> torch.Tensor:
    """Bodies of one shape with organs of their own: smooth random soft tissue."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    inside = gaussian_blur(torch.randn(n, 1, size, size, generator=seeded(seed)), 6)
    return torch.where(y**2 / 0.6 + x**2 / 0.8 < 1, 40 + 60 * inside / inside.std(), -1000.0)


def test_the_nearest_training_image_by_brute_force_and_in_batches():
    training, samples = patients(30, 0), patients(6, 1)
    found = nearest_training(samples, training, SOFT_TISSUE, size=32)

    def vector(image: torch.Tensor) -> np.ndarray:
        small = image[0].reshape(32, 3, 32, 3).mean((1, 3)).double().numpy()
        values, body = (small.clip(-160, 240) + 160) / 400, small > -500
        values = np.where(body, values - values[body].mean(), 0)
        return (values / np.linalg.norm(values)).ravel()

    pairs = np.array([[np.linalg.norm(vector(s) - vector(t)) for t in training] for s in samples])
    assert found.indices.tolist() == pairs.argmin(axis=1).tolist()
    np.testing.assert_allclose(found.distances, pairs.min(axis=1), rtol=1e-6)
    batches = nearest_training(samples, (part for part in training.split(7)), SOFT_TISSUE, size=32)
    assert torch.equal(batches.indices, found.indices) and torch.equal(batches.distances, found.distances)


def test_copies_are_told_from_new_patients():
    training, unseen = patients(40, 0), patients(25, 1)
    reference = nearest_training(unseen, training, SOFT_TISSUE)
    noise = 15 * torch.randn(3, 1, 96, 96, generator=seeded(9))
    copied = nearest_training(1.1 * training[[3, 17, 17]] + noise, training, SOFT_TISSUE)
    assert copied.indices.tolist() == [3, 17, 17]
    new = nearest_training(patients(25, 2), training, SOFT_TISSUE)
    found = copies(
        Nearest(torch.cat([new.indices, copied.indices]), torch.cat([new.distances, copied.distances])), reference
    )
    assert {25, 26, 27} <= set(found.suspects.tolist()) and len(found.suspects) <= 3 + 4
    assert found.ratio[25:].max() < 0.5 < 0.8 < found.ratio[:25].min()
    assert copies(copied, reference).nearer == 1
    assert copies(new, reference).nearer == pytest.approx(0.5, abs=0.33)  # four standard errors of 25 against 25
    same = nearest_training(training[:2], training, SOFT_TISSUE)
    assert same.indices.tolist() == [0, 1] and same.distances.tolist() == [0, 0]


def test_images_that_cannot_be_looked_up_are_refused():
    training = patients(2, 0)
    for samples, options, says in (
        (torch.full((1, 1, 96, 96), -1000.0), {}, r"samples \[0\] have no body"),
        (torch.full((1, 1, 96, 96), 500.0), {}, "no contrast"),
        (training, dict(window=None), "window"),
        (training, dict(training_hu=[]), "no training images"),
    ):
        with pytest.raises(LdctError, match=says):
            nearest_training(**(dict(samples_hu=samples, training_hu=training, window=SOFT_TISSUE) | options))
    with pytest.raises(ParameterError, match="one unseen image"):
        copies(nearest_training(training, training, SOFT_TISSUE), Nearest(torch.zeros(0), torch.zeros(0)))
