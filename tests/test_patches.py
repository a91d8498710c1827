"""Training pairs: a function of (seed, n), noise of the stated strength, spectra that cover real scanners'."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ldctlib.ct.kernels import KERNELS, Kernel, edge_blur_px
from ldctlib.ct.nps import nps
from ldctlib.data.banks import ScanSlices, scanner_noise
from ldctlib.data.natural import photographs, random_hu, shrink
from ldctlib.data.patches import NoisePatches, PairedPatches, PatchConfig
from ldctlib.errors import ParameterError, ScanError, ShapeError

CONFIG = PatchConfig(seed=3, patch=48, size=192, n_slices=4, n_photographs=4, n_noises=4, refresh=500)


@pytest.fixture(scope="module")
def dataset() -> NoisePatches:
    return NoisePatches(CONFIG)


def test_a_sample_depends_on_its_number_alone(dataset):
    first = [dataset[n] for n in (7, 8, 9)]
    again = NoisePatches(CONFIG)
    for n, sample in zip((9, 7, 8), (first[2], first[0], first[1]), strict=True):
        for key, value in again[n].items():
            assert torch.equal(value, sample[key])
    assert not torch.equal(first[0]["target_hu"], first[1]["target_hu"])
    other = NoisePatches(replace(CONFIG, seed=4))[7]
    assert not torch.equal(other["ldct_hu"], first[0]["ldct_hu"])


def test_pairs_are_aligned_and_as_noisy_as_they_say(dataset):
    samples = [dataset[n] for n in range(300)]
    clean = torch.stack([s["target_hu"] for s in samples])
    ldct = torch.stack([s["ldct_hu"] for s in samples])
    sd = torch.stack([s["noise_sd_hu"] for s in samples])
    assert clean.shape == ldct.shape == (300, 1, 48, 48) and clean.dtype == ldct.dtype == torch.float32
    noise = ldct - clean
    measured = noise.flatten(1).std(dim=1, correction=0)
    kept = measured >= 0.5 * CONFIG.noise_sd_hu[0]  # below, the stated value has a floor
    torch.testing.assert_close(measured[kept], sd[kept], rtol=1e-3, atol=1e-3)
    # noise does not shift HU, away from where scanners clip: 300 patches of correlated noise, about 0.5 HU of error
    inside = clean.flatten(1).amin(1) > -400
    assert abs(float(noise[inside].mean())) < 2
    # log-uniform strength over the range: the median is near the geometric mean of 6 and 130, 28 HU
    assert 14 < float(sd.median()) < 50


def test_full_dose_images_have_noise_of_their_own(dataset):
    """In the stated range, independent of the low dose's; everything else stays as it is without them."""
    both = NoisePatches(replace(CONFIG, full_dose_noise_sd_hu=(5.0, 40.0)))
    correlation, levels = [], []
    for n in range(150):
        sample, without = both[n], dataset[n]
        assert "full_dose_hu" not in without
        for key, value in without.items():
            assert torch.equal(sample[key], value)
        full, low = (sample[key] - sample["target_hu"] for key in ("full_dose_hu", "ldct_hu"))
        assert full.shape == (1, 48, 48) and full.dtype == torch.float32 and bool(full.any())
        levels.append(float(full.std()))
        correlation.append(float(torch.corrcoef(torch.stack([full.flatten(), low.flatten()]))[0, 1]))

    # unit noise at a body's centre has 0.4 to 1.6 at a patch: a bank's share of the strength
    assert 5.0 * 0.3 < min(levels) and max(levels) < 40.0 * 2 and 8 < np.median(levels) < 25  # geometric mean: 14
    # patches of correlated noise scatter; the same crop of the same image would have 1
    assert abs(np.mean(correlation)) < 0.1 and np.quantile(np.abs(correlation), 0.9) < 0.5


def test_full_dose_scans_have_their_noise_already(tmp_path):
    from ldctlib.data.collection import open_collection

    write_pairs(tmp_path)
    options = dict(
        seed=2, patch=32, size=96, n_slices=4, n_photographs=2, n_noises=2, full_dose_noise_sd_hu=(5.0, 40.0)
    )
    collection = open_collection(tmp_path)
    paired = PairedPatches(collection, PatchConfig(**options))[3]
    assert torch.equal(paired["full_dose_hu"], paired["target_hu"])
    scans = NoisePatches(PatchConfig(**options, photograph_share=0.0), slices=ScanSlices(collection))[3]
    assert torch.equal(scans["full_dose_hu"], scans["target_hu"]) and not torch.equal(
        scans["ldct_hu"], scans["target_hu"]
    )


def test_a_patch_may_be_the_whole_slice(tmp_path):
    """The paper trains on whole slices: the border that blurring needs is made up at their edge."""
    from ldctlib.data.collection import open_collection

    write_pairs(tmp_path, pixels=64)
    collection = open_collection(tmp_path)
    config = PatchConfig(seed=2, patch=64, size=96, n_slices=4, n_photographs=2, n_noises=2, photograph_share=0.0)
    for dataset in (PairedPatches(collection, config), NoisePatches(config, slices=ScanSlices(collection))):
        sample = dataset[1]
        assert sample["target_hu"].shape == sample["ldct_hu"].shape == (1, 64, 64)
    scan = collection.cases[0].load_full().values
    whole = PairedPatches(open_collection(tmp_path), config)[1]["target_hu"]
    assert any(
        torch.equal(torch.sort(whole.flatten())[0], torch.sort(case.load_full().values[i].flatten())[0])
        for case in collection
        for i in range(len(scan))
    )


def test_noise_bank_covers_sharp_and_soft_scanners():
    """Among a few draws some rise up to the pixel's Nyquist frequency and some fall to nothing before it."""
    images, blur = scanner_noise(np.random.default_rng(0), 14, size=192, bodies=np.full((2, 64, 64), 0.0))
    assert images.shape == (14, 192, 192) and blur.min() > 0.1 and blur.max() < 2
    ratios = []
    for image in images:
        spectrum = nps(torch.from_numpy(image)[None, None, 48:144, 48:144], 0.75)
        f = spectrum.frequency
        ratios.append(spectrum.radial[(f > 0.55) & (f < 0.66)].mean() / spectrum.radial.max())
        assert 0.6 < image[48:144, 48:144].std() < 1.6
    assert max(ratios) > 0.75 and min(ratios) < 0.1


def test_edge_blur_follows_the_kernel():
    values = [edge_blur_px(KERNELS[name], 0.75) for name in ("soft", "B30f", "D45f", "ramp")]
    assert values == sorted(values, reverse=True)
    # Hann to 0.8 /mm: half at 0.4 /mm, sigma 0.187 / 0.4 = 0.47 mm, with the aperture 0.485 mm
    assert abs(edge_blur_px(Kernel(0.0, 0.8), 1.0) - 0.485) < 0.01


def test_photographs_are_shrunk_and_scaled_like_ct():
    assert len(photographs()) >= 8 and all(p.min() >= 0 and p.max() <= 1 for p in photographs())
    rng = np.random.default_rng(1)
    for _ in range(10):
        image = random_hu(rng, min_size=128)
        low, high = np.percentile(image, (1, 99))
        assert min(image.shape) >= 128 and 40 < high - low < 1000 and -150 < image.mean() < 160
    with pytest.raises(ParameterError, match="only shrunk"):
        shrink(photographs()[0], 0.5)
    with pytest.raises(ParameterError, match="smaller min_size"):
        random_hu(rng, min_size=5000)


def write_pairs(folder, patients=3, pixels=96):
    """A folder of NumPy volumes: full/NAME.npy and low/NAME.npy, the low one 30 HU brighter than its partner."""
    rng = np.random.default_rng(5)
    for dose, offset in (("full", 0.0), ("low", 30.0)):
        (folder / dose).mkdir()
        for i in range(patients):
            base = np.random.default_rng(i).normal(40, 20, (3, pixels, pixels))
            noise = rng.normal(0, 10, base.shape) if dose == "low" else 0
            np.save(folder / dose / f"P{i}.npy", (base + offset + noise).astype(np.float32))


def test_pairs_of_scans_stay_aligned(tmp_path):
    from ldctlib.data.collection import open_collection

    write_pairs(tmp_path)
    collection = open_collection(tmp_path)
    dataset = PairedPatches(collection, PatchConfig(seed=1, patch=32, n_slices=6, refresh=100))
    for n in (0, 5, 120):
        sample, again = dataset[n], dataset[n]
        assert all(torch.equal(sample[k], again[k]) for k in sample)
        difference = sample["ldct_hu"] - sample["target_hu"]
        # 1024 pixels of 10 HU noise about the 30 HU offset: a misaligned crop would differ by 20 sqrt(2) HU
        assert abs(float(difference.mean()) - 30) < 2 and 8.5 < float(difference.std()) < 11.5
    with pytest.raises(ShapeError, match="too small"):
        PairedPatches(collection, PatchConfig(seed=1, patch=128, n_slices=2))[0]


def test_full_dose_scans_alone_get_simulated_noise(tmp_path):
    from ldctlib.data.collection import open_collection

    write_pairs(tmp_path)
    (tmp_path / "only").mkdir()
    (tmp_path / "full" / "P0.npy").rename(tmp_path / "only" / "P0.npy")
    collection = open_collection(tmp_path / "only")
    with pytest.raises(ScanError, match="both doses"):
        PairedPatches(collection)
    config = PatchConfig(seed=2, patch=32, size=96, n_slices=4, n_photographs=2, n_noises=2, photograph_share=0.0)
    sample = NoisePatches(config, slices=ScanSlices(collection))[0]
    assert abs(float(sample["target_hu"].mean()) - 40) < 5 and float(sample["noise_sd_hu"]) > 2


def test_bad_configurations_are_named():
    with pytest.raises(ParameterError, match="patch"):
        PatchConfig(patch=4)
    with pytest.raises(ParameterError, match="noise_sd_hu"):
        PatchConfig(noise_sd_hu=(50, 10))
    for wrong in ((40.0, 5.0), (0.0, 5.0)):
        with pytest.raises(ParameterError, match="full_dose_noise_sd_hu"):
            PatchConfig(full_dose_noise_sd_hu=wrong)
