"""Distances between sets of images: closed forms, second implementations, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg

from ldctlib import metrics as M
from ldctlib.errors import CheckpointError, LdctError, ParameterError, ShapeError
from ldctlib.metrics import distribution
from ldctlib.metrics.perceptual import trunk_file
from ldctlib.units import SOFT_TISSUE, Window

needs_vgg = pytest.mark.skipif(not trunk_file("vgg").is_file(), reason="torch's cache (TORCH_HOME) has no VGG-16")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(values: torch.Tensor, **fields) -> M.Features:
    same = dict(backbone="vgg16", layer="relu3_3", window=SOFT_TISSUE, size=(64, 64))
    return M.Features(values.double(), **(same | fields))


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)


def prescribed(n: int, mean: np.ndarray, covariance: np.ndarray, seed: int) -> torch.Tensor:
    """Samples whose own mean and covariance are exactly these."""
    x = normal(n, len(mean), seed).numpy()
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return torch.from_numpy(mean + x @ np.linalg.cholesky(covariance).T)


def rotated(variances: list[float], angle_seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(normal(len(variances), len(variances), angle_seed).numpy())
    return q @ np.diag(variances) @ q.T


# ---------------------------------------------------------------- the distances


def test_frechet_distance_of_gaussians_in_closed_form():
    mean = np.array([1.0, -2.0, 0.5, 0.0])
    a = prescribed(200, mean, rotated([1, 4, 9, 0.25], 1), seed=1)
    b = prescribed(300, 0 * mean, rotated([4, 1, 1, 2.25], 1), seed=2)  # the same axes: the covariances commute
    result = M.frechet_distance(features(a), features(b), blocks=0)
    assert result.value == pytest.approx(mean @ mean + 1 + 1 + 4 + 1, abs=1e-9)  # (σ_a - σ_b)² of each axis
    other = rotated([4, 1, 1, 2.25], 7)
    result = M.frechet_distance(features(a), features(prescribed(300, 0 * mean, other, seed=2)), blocks=0)
    cross = linalg.sqrtm(linalg.sqrtm(other) @ rotated([1, 4, 9, 0.25], 1) @ linalg.sqrtm(other)).real
    expected = mean @ mean + 14.25 + 8.25 - 2 * np.trace(cross)
    assert result.value == pytest.approx(expected, abs=1e-8)
    assert (result.name, result.n, result.n_reference, result.subset_size) == ("FD(vgg16)", 200, 300, None)
    assert math.isnan(result.low) and math.isnan(result.bias)  # no blocks, no interval


def test_frechet_distance_of_few_images_is_biased_and_says_so():
    """For n images of one distribution the mean's part alone is 2 d / n; what is above it is due to n too."""
    results = [
        M.frechet_distance(features(normal(100, 6, 2 * i)), features(normal(100, 6, 2 * i + 1))) for i in range(30)
    ]
    value, rest = (np.array([r.value - share * r.bias for r in results]) for share in (0, 1))
    assert value.mean() > 2 * 6 / 100 and min(value) > 0
    # 30 repetitions: what is left of the bias is within four standard errors of 0, and the bias itself is not
    assert abs(rest.mean()) < 4 * rest.std() / math.sqrt(30) < 0.3 * value.mean()


def kernel_distance_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    n, total = len(x), 0.0
    for i in range(n):
        for j in range(n):
            k = [(a @ b / x.shape[1] + 1) ** 3 for a, b in ((x[i], x[j]), (y[i], y[j]), (x[i], y[j]))]
            total += (k[0] + k[1]) / (n * (n - 1)) * (i != j) - 2 * k[2] / n**2
    return total


def test_kernel_distance_equals_a_second_implementation():
    x, y = normal(50, 5, 0), normal(50, 5, 1) + 0.5
    whole = M.kernel_distance(features(x), features(y), subset_size=50, subsets=1, blocks=0)
    assert whole.value == pytest.approx(kernel_distance_by_hand(x.numpy(), y.numpy()), abs=1e-12)
    halves = M.kernel_distance(features(x), features(y), blocks=0)
    assert halves.subset_size == 25 and halves.name == "KD(vgg16)"
    assert halves.value == pytest.approx(whole.value, rel=0.3)  # a mean over 100 halves
    assert M.kernel_distance(features(x), features(y), blocks=0) == halves or math.isnan(halves.low)


def test_kernel_distance_is_unbiased_and_its_interval_holds():
    """Of equal distributions: 0 on average, below 0 as well, and inside the interval as often as it says or more."""
    results = [
        M.kernel_distance(features(normal(60, 8, 2 * i)), features(normal(60, 8, 2 * i + 1)), subsets=10)
        for i in range(40)
    ]
    values = np.array([r.value for r in results])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(40) and values.min() < 0 < values.max()
    assert sum(r.low < 0 < r.high for r in results) >= 34  # 95 % of 40, less two standard errors
    shifted = M.kernel_distance(features(normal(60, 8, 0) + 1), features(normal(60, 8, 1)), subsets=20)
    assert 0 < shifted.low < shifted.value < shifted.high


def test_the_interval_of_a_mean_is_that_of_student():
    """A distance that is a plain mean difference: the jackknife is then the t interval of the blocks' means."""
    a, b = normal(60, 1, 3), normal(60, 1, 4)
    result = distribution._result(
        "KD", features(a), features(b), lambda x, y: float(x.mean() - y.mean()), None, None, 6, 0.9, 30
    )
    means = (a - b).reshape(6, 10).mean(1).numpy()
    half = 2.015048 * means.std(ddof=1) / math.sqrt(6)  # t of 5 degrees of freedom at 95 %
    assert result.value == pytest.approx(means.mean()) and result.bias == pytest.approx(0, abs=1e-12)
    assert (result.low, result.high) == pytest.approx((means.mean() - half, means.mean() + half), rel=1e-6)


def test_a_patient_s_images_stay_together():
    """Ten images of each patient that are nearly one: as many patients, not as many images, make the interval."""
    patients = np.repeat([f"p{i}" for i in range(12)], 10)
    x = normal(12, 4, 5).repeat_interleave(10, 0) + 0.01 * normal(120, 4, 6)
    y = normal(12, 4, 7).repeat_interleave(10, 0) + 0.01 * normal(120, 4, 8)
    shuffled = torch.randperm(120, generator=seeded(9))
    x, y, labels = x[shuffled], y[shuffled], patients[shuffled.numpy()]
    apart = M.kernel_distance(features(x), features(y), subsets=20)
    together = M.kernel_distance(features(x), features(y), subsets=20, patients=labels, reference_patients=labels)
    assert together.value == apart.value
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    few = M.kernel_distance(features(x), features(y), patients=labels > "p5", subsets=5)
    assert math.isnan(few.low) and few.value == pytest.approx(apart.value, rel=0.5)


# ---------------------------------------------------------------- the features


@needs_vgg
def test_vgg_features_are_the_channels_means_in_the_window():
    from torchvision.models import vgg16

    images = 40 + 300 * torch.randn(3, 1, 40, 33, generator=seeded(0))  # leaves the window on both sides
    found = M.image_features(images, window=SOFT_TISSUE, layer="relu2_2")
    network = vgg16()
    network.load_state_dict(torch.load(trunk_file("vgg"), weights_only=True))
    rgb = ((images + 160) / 400).clamp(0, 1).expand(-1, 3, -1, -1)
    rgb = (rgb - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    with torch.no_grad():
        expected = network.features[:9](rgb).mean((2, 3)).double()
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-5)
    batches = M.image_features((part for part in images.split(2)), window=SOFT_TISSUE, layer="relu2_2")
    torch.testing.assert_close(batches.values, found.values, rtol=1e-5, atol=1e-6)
    assert found._replace(values=0) == (0, "vgg16", "relu2_2", SOFT_TISSUE, (40, 33))


@needs_vgg
def test_sets_are_told_apart_from_images():
    """Sharp against blurred textures: further apart than two sets of sharp ones, by both distances."""

    def textures(seed: int, blur: int) -> torch.Tensor:
        noise = torch.randn(130, 1, 24, 24, generator=seeded(seed))
        return 40 + 60 * torch.nn.functional.avg_pool2d(noise, blur, 1, blur // 2) * blur

    sharp, again, blurred = (
        M.image_features(textures(*each), window=SOFT_TISSUE, layer="relu1_2") for each in ((0, 1), (1, 1), (2, 3))
    )
    same, other = M.kernel_distance(again, sharp, subsets=20), M.kernel_distance(blurred, sharp, subsets=20)
    assert same.low < 0 < same.high < other.low and other.name == "KD(vgg16, relu1_2)"
    same, other = (M.frechet_distance(each, sharp, blocks=6) for each in (again, blurred))
    assert same.value < other.low and other.provenance == (
        "torchvision's VGG-16 (ImageNet), relu1_2, 64 features, 24x24 pixels"
    )
    assert other.window == "[-160, 240] HU"


def test_inception_is_refused_by_name_offline_and_used_where_it_is(tmp_path, monkeypatch):
    images = 40 + 100 * torch.randn(2, 1, 32, 32, generator=seeded(0))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"Inception weights are not in torch's cache.*backbone='vgg16'"):
        M.image_features(images, window=SOFT_TISSUE, backbone="inception")
    with pytest.raises(CheckpointError, match="VGG-16"):
        M.image_features(images, window=SOFT_TISSUE)
    from torch_fidelity import feature_extractor_inceptionv3 as published

    path = tmp_path / "checkpoints" / published.URL_INCEPTION_V3.rpartition("/")[2]
    path.parent.mkdir()
    path.write_bytes(b"not a network")
    with pytest.raises(CheckpointError, match="inception cannot be loaded"):
        M.image_features(images, window=SOFT_TISSUE, backbone="inception")
    # random weights in the published layout, through the same file
    with monkeypatch.context() as patch:
        patch.setattr(published, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(published.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = published.FeatureExtractorInceptionV3("inception-v3-compat", ["192"])
    torch.save(network.state_dict(), path)
    found = M.image_features(images, window=SOFT_TISSUE, backbone="inception", layer="192")
    levels = (255 * ((images + 160) / 400).clamp(0, 1)).round().to(torch.uint8)
    assert torch.equal(found.values, network(levels.repeat(1, 3, 1, 1))[0].double())
    for layer, names in (("192", ("FD(inception, 192)", "KD(inception, 192)")), ("2048", ("FID", "KID"))):
        assert tuple(distribution._name(k, found._replace(layer=layer)) for k in ("FD", "KD")) == names


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (dict(layer="relu2_2"), "same layer"),
        (dict(backbone="inception"), "same backbone"),
        (dict(window=Window(50, 400)), r"same window.*\[-150, 250\] HU"),
        (dict(size=(32, 64)), "same size"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(other, says):
    x = normal(60, 4, 0)
    for distance in (M.frechet_distance, M.kernel_distance):
        with pytest.raises(ParameterError, match=says):
            distance(features(x), features(x, **other))


def test_small_sets_and_wrong_arguments_are_refused():
    x, few = features(normal(60, 40, 0)), features(normal(49, 40, 0))
    with pytest.raises(ParameterError, match=r"FD\(vgg16\) of 40 features needs 80 images in each set, got 60"):
        M.frechet_distance(x, x)
    with pytest.raises(ParameterError, match=r"KD\(vgg16\).* needs 50 images in each set, got 49"):
        M.kernel_distance(x, few)
    for options in (dict(subset_size=61), dict(subset_size=1), dict(subsets=0)):
        with pytest.raises(ParameterError, match="fits into both sets"):
            M.kernel_distance(x, x, **options)
    for options in (dict(level=1.0), dict(blocks=-1)):
        with pytest.raises(ParameterError, match="0 < level < 1"):
            M.kernel_distance(x, x, **options)
    with pytest.raises(ParameterError, match="a label for each of 60 images"):
        M.kernel_distance(x, x, patients=["a"] * 59)


@pytest.mark.parametrize(
    ("images", "options", "says"),
    [
        (torch.zeros(2, 1, 32, 32), dict(window=None), "window"),
        (torch.zeros(2, 1, 32, 32), dict(backbone="resnet"), "backbone 'resnet'"),
        (torch.zeros(2, 1, 32, 32), dict(layer="2048"), "no layer '2048'"),
    ],
)
def test_arguments_of_features_are_checked_before_any_network_is_loaded(images, options, says):
    with pytest.raises(ParameterError, match=says):
        M.image_features(images, **(dict(window=SOFT_TISSUE) | options))


@needs_vgg
@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.zeros(2, 3, 32, 32), r"\(B, 1, H, W\)"),
        (torch.zeros(2, 1, 8, 32), "16 pixels"),
        (torch.full((2, 1, 32, 32), torch.nan), "not finite"),
        ([torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 16)], "several sizes"),
        ([], "no images"),
    ],
)
def test_images_that_cannot_be_used_are_refused(images, says):
    with pytest.raises(LdctError, match=says) as caught:
        M.image_features(images, window=SOFT_TISSUE, layer="relu1_2")
    assert isinstance(caught.value, ShapeError | ParameterError)
