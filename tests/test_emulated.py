"""Photographs in a scanner: Eq. 1 against scikit-image's transforms, zero counts, a stream of (seed, n)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldctlib.ct.dose import photon_counts
from ldctlib.ct.geometry import ParallelGeometry
from ldctlib.ct.noise_maps import std_map
from ldctlib.ct.projector import projector
from ldctlib.data import emulated
from ldctlib.data.emulated import EmulatedPhotographs, EmulationConfig, emulate, measure
from ldctlib.data.natural import photographs, read_photograph
from ldctlib.data.six_dose import scanned_slices
from ldctlib.errors import ParameterError, ScanError

CONFIG = EmulationConfig(seed=3, size=64, n_photographs=6, refresh=300)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def dataset() -> EmulatedPhotographs:
    return EmulatedPhotographs(CONFIG)


def test_against_scikit_images_transforms():
    """Image and noise as radon, Poisson counts, and iradon with "hann" and "linear" give them.

    The image to 0.01 of the density (radon interpolates, this projector is band-limited); the noise's standard
    deviation at the centre to 4 Monte-Carlo errors, which are about 1 % each, and 1.5 % for the interpolations.
    """
    from skimage.transform import iradon, radon

    photograph = torch.from_numpy(photographs()[2])[None, None]
    density = torch.nn.functional.interpolate(photograph, (64, 64), mode="bilinear", antialias=True)
    theta, rng, centre = np.arange(180.0), np.random.default_rng(0), np.s_[..., 16:48, 16:48]
    r = radon(density[0, 0].double().numpy(), theta, circle=False)

    def reconstructed(sinogram):
        return iradon(sinogram, theta, filter_name="hann", interpolation="linear", circle=False, output_size=64)

    doses, repeats = (0.05, 0.5), 10
    clean, noise = emulate(density.expand(repeats, -1, -1, -1), doses, generator=seeded())
    assert float(np.sqrt(np.mean((clean[0, 0].numpy() - reconstructed(r))[centre] ** 2))) < 0.01
    for dose, ours in zip(doses, noise, strict=True):
        theirs = []
        for _ in range(repeats):
            counts = rng.poisson(dose * 1e5 * np.exp(-0.02 * r))
            q = -np.log(np.maximum(counts, 1) / (dose * 1e5)) / 0.02
            theirs.append((reconstructed(q - r)[centre] ** 2).mean())
        ours = ours[centre].double().square().mean(dim=(1, 2, 3)).numpy()
        errors = [np.std(x) / math.sqrt(repeats) / np.mean(x) / 2 for x in (ours, theirs)]
        ratio = math.sqrt(np.mean(ours) / np.mean(theirs))
        assert max(errors) < 0.02 and abs(ratio - 1) < 4 * math.hypot(*errors) + 0.015


@pytest.mark.parametrize(("length_px", "view", "zero"), [(256 * math.sqrt(2), 45, 0.0276), (512, 0, 0.836)])
def test_rays_without_counts(length_px, view, zero):
    """Through water of density 1 at 5 %: 2.8 % of a 256² image's diagonal rays, 84 % of a 512² image's axis rays; the
    line integral is the projector's, at a quarter of the size. Both of zero and one counts read the same."""
    size = 64 if view else 128
    geometry = ParallelGeometry.for_image(size, 4.0, n_views=180)
    p = projector(geometry).A(torch.full((1, 1, size, size), emulated.MU_PER_MM))[0, 0, view]
    ray = float(p[len(p) // 2 - 1 : len(p) // 2 + 1].max())
    assert ray == pytest.approx(0.02 * length_px, rel=0.01)
    rays = torch.full((1, 1, 500, 400), 0.02 * length_px)
    counts = photon_counts(rays, torch.full_like(rays, emulated.PHOTONS), 0.05, generator=seeded())
    (q,) = measure(rays, geometry, (0.05,), generator=seeded())
    mean = 0.05 * 1e5 * math.exp(-0.02 * length_px)
    assert zero == pytest.approx(math.exp(-mean), rel=0.01)
    error = 4 * math.sqrt(zero * (1 - zero) / rays.numel())
    assert abs(float((counts == 0).double().mean()) - math.exp(-mean)) < error
    at_most = math.log(0.05 * 1e5)
    expected = math.exp(-mean) * (1 + mean)
    dark = float((q >= at_most - 1e-5).double().mean())
    assert abs(dark - expected) < 4 * math.sqrt(expected * (1 - expected) / rays.numel()) and float(q.max()) < 8.52
    assert torch.equal(q, measure(rays, geometry, (0.05,), generator=seeded())[0])


def test_doses_share_their_noise_and_follow_the_square_root():
    """Ten times the dose: the same picture of noise, √10 weaker, without a shift of the density."""
    density = torch.full((4, 1, 64, 64), 0.5)
    _, noise = emulate(density, (0.1, 1.0), generator=seeded())
    low, full = noise.flatten(1)
    assert float(torch.corrcoef(noise.flatten(1))[0, 1]) > 0.99
    assert float(low.std() / full.std()) == pytest.approx(math.sqrt(10), rel=0.01)
    assert float(full.mean().abs()) < 0.02 * float(full.std())


def test_a_sample_depends_on_its_number_alone(dataset):
    first = [dataset[n] for n in (7, 8, 310)]  # the last one in another bank
    again = EmulatedPhotographs(CONFIG)
    for n, sample in zip((310, 7, 8), (first[2], first[0], first[1]), strict=True):
        for key, value in again[n].items():
            assert torch.equal(value, sample[key])
    other = EmulatedPhotographs(replace(CONFIG, seed=4))[7]
    assert not torch.equal(other["image_hu"], first[0]["image_hu"])
    assert not torch.equal(first[2]["clean_hu"], first[0]["clean_hu"])


def test_samples_are_what_they_say(dataset):
    samples = [dataset[n] for n in range(120)]
    assert {round(float(s["dose"]), 2) for s in samples} == set(CONFIG.doses)
    for s in samples[:20]:
        assert {tuple(s[key].shape) for key in ("image_hu", "clean_hu", "noise_map_hu")} == {(1, 64, 64)}
        expected = std_map((s["image_hu"] - s["clean_hu"])[None])[0]
        torch.testing.assert_close(s["noise_map_hu"], expected, rtol=1e-3, atol=1e-3)
        inside = s["clean_hu"][:, 4:-4, 4:-4]
        assert -200 < float(inside.min()) and float(inside.max()) < 280  # a little overshoot about the window
    level = [
        np.mean([float(s["noise_map_hu"].mean()) for s in samples if float(s["dose"]) == np.float32(dose)])
        for dose in CONFIG.doses
    ]
    assert (np.diff(level) < 0).all()  # few photographs behind each mean: no more than the order


def test_photographs_from_a_folder(tmp_path):
    """Kinds of files, folders below, an enlarged small one; the one that is broken is named."""
    from skimage.io import imsave

    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (40, 90), dtype=np.uint8)
    (tmp_path / "below").mkdir()
    imsave(tmp_path / "grey.png", grey, check_contrast=False)
    imsave(tmp_path / "below" / "deep.png", grey.astype(np.uint16) * 257, check_contrast=False)
    imsave(tmp_path / "below" / "colour.JPG", np.stack([grey] * 3, axis=-1), check_contrast=False)
    imsave(tmp_path / "opacity.png", np.dstack([grey] * 3 + [np.full_like(grey, 255)]), check_contrast=False)
    (tmp_path / "notes.txt").write_text("not an image")
    assert np.allclose(read_photograph(tmp_path / "grey.png"), grey / 255)
    assert np.allclose(read_photograph(tmp_path / "below" / "deep.png"), grey / 255)
    assert np.allclose(read_photograph(tmp_path / "opacity.png"), grey / 255, atol=1e-6)
    config = replace(CONFIG, folder=str(tmp_path), n_photographs=8)
    sample = EmulatedPhotographs(config)[0]
    assert sample["image_hu"].shape == (1, 64, 64) and torch.isfinite(sample["image_hu"]).all()
    assert config.embedded != CONFIG.embedded
    for path in (*tmp_path.glob("*.png"), *tmp_path.glob("below/*")):
        path.unlink()
    with pytest.raises(ScanError, match="holds no photographs"):
        EmulatedPhotographs(config)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ScanError, match="broken.png cannot be read"):
        EmulatedPhotographs(config)[0]


def test_configs_that_cannot_be_are_refused():
    for bad in (dict(doses=()), dict(doses=(0.1, 1.5)), dict(least_part=0.0), dict(size=8)):
        with pytest.raises(ParameterError):
            EmulationConfig(**bad)
    with pytest.raises(ParameterError, match="folder"):
        CONFIG.open(object())
    assert CONFIG.tiny(48).size % 48 == 0 and isinstance(CONFIG.open(), EmulatedPhotographs)


def test_grey_values_are_no_densities():
    with pytest.raises(ParameterError, match="from 0 to 1, these from 0 to 255"):
        emulate(torch.linspace(0, 255, 32 * 32).view(1, 1, 32, 32), (0.5,))


@pytest.mark.parametrize("wrong", [dict(sd_hu=(12, 8)), dict(sd_hu=(0, 8)), dict(a_patient=0), dict(count=0)])
def test_slices_that_cannot_be_drawn(wrong):
    with pytest.raises(ParameterError, match="sd_hu is"):
        scanned_slices(np.random.default_rng(0), **dict(count=1) | wrong)
