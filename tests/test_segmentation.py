"""Anatomy masks, labelled slices, segmenters and the judge of image quality."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ldctlib import checkpoints, recipes
from ldctlib.data import anatomy_masks as am
from ldctlib.data.anatomy_masks import CLASSES, anatomy, mask_image, one_hot_on_grid, read_mask, typical_hu
from ldctlib.data.captions import captioned_slices
from ldctlib.data.iqa_layout import open_ldctiqac
from ldctlib.data.sdct import ArraySlices, LabelledConfig, warp
from ldctlib.errors import CheckpointError, ParameterError, ScanError, ShapeError
from ldctlib.losses.segmentation import quality_score, segmentation_loss, soft_dice_loss
from ldctlib.models.iqa import IQA
from ldctlib.models.segmentation_unet import SegmentationUNet
from ldctlib.models.transunet import StdConv2d, TransUNet, from_vit_npz
from ldctlib.phantom.organs import ORGANS
from ldctlib.recipes.segmentation import WINDOW_RANGE, train_segmenter
from ldctlib.training import TrainConfig
from ldctlib.units import Range, Window

pytestmark = pytest.mark.usefixtures("one_thread")

K = len(CLASSES)
CONFIG = LabelledConfig(size=32, draw_size=64, n_slices=4, n_noises=2, noise_size=48)
TINY_UNET = recipes.Network("segmentation_unet", dict(classes=K, widths=[8, 16], shuffle=2))
TINY_TRANSUNET = dict(classes=3, image_size=32, width=4, units=(1, 2, 1), dim=16, depth=2, heads=2, mlp=32, head=16)
TINY_TRANSUNET |= dict(decoder=(16, 8, 8, 8), dropout=0.0)


def random_mask(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, K, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- classes and masks


def test_every_label_has_a_class():
    of_phantom, of_total = am.TABLES["phantom"], am.TABLES["totalsegmentator"]
    assert set(of_phantom[: len(ORGANS)]) == set(range(K))  # none is UNKNOWN, every class occurs
    assert set(of_total[:118]) == set(range(K))
    assert set(of_phantom[len(ORGANS) :]) == set(of_total[118:]) == {am.UNKNOWN}
    listed = [label for labels in am._OF_PHANTOM.values() for label in labels.split(", ")]
    assert len(listed) == len(set(listed))
    ids = [i for group in am._OF_TOTALSEGMENTATOR.values() for i in group]
    assert sorted(ids) == list(range(1, 118))
    named = {1: "spleen", 3: "kidney", 4: "fluid", 5: "liver", 7: "pancreas", 12: "lung", 20: "bowel", 27: "bone"}
    named |= {51: "heart", 52: "vessel", 63: "vessel", 79: "body", 88: "body", 92: "bone", 117: "body"}
    assert {i: CLASSES[of_total[i]] for i in named} == named
    assert [
        CLASSES[of_phantom[ORGANS.index(n)]] for n in ("metastasis", "stool", "table", "sternum", "myocardium")
    ] == ["liver", "bowel", "background", "bone", "heart"]


def test_unknown_ids_are_named():
    ids = torch.tensor([[0, 3], [12, 77]])
    with pytest.raises(ParameterError, match="12, 77.*TotalSegmentator"):
        anatomy(ids)
    with pytest.raises(ParameterError, match="without a class: 118"):
        anatomy(torch.tensor([[0, 118]]), "totalsegmentator")
    for wrong in (torch.tensor([[0.5, 1.0]]), torch.tensor([[-1, 1]]), torch.tensor([[256, 1]])):
        with pytest.raises(ParameterError, match="without a class"):
            anatomy(wrong)
    with pytest.raises(ParameterError, match="did you mean 'liver'"):
        anatomy(ids, "livr")
    assert anatomy(torch.tensor([[0.0, 4.0]])).tolist() == [[0, 4]]


def test_a_mask_of_organs_alone_gets_a_body():
    ids = torch.zeros(2, 100, 100)
    ids[:, 40:50, 40:50] = 1
    mask = anatomy(ids, "liver")
    assert (mask[:, 40:50, 40:50] == am.LIVER).all() and mask[0, 0, 0] == 0
    # an ellipse with these half axes covers pi / 4 of their product
    assert float((mask > 0).float().mean()) == pytest.approx(math.pi / 4 * 0.68 * 0.92, abs=0.01)
    image = torch.full((2, 100, 100), -1000.0)
    image[:, 20:80, 20:80] = 40.0
    image[:, 60:70, 60:70] = -900.0  # a hole is inside
    told = anatomy(ids * 5, "totalsegmentator", image)
    assert (told[:, 20:80, 20:80] > 0).all() and int((told > 0).sum()) == 2 * 60 * 60
    with pytest.raises(ShapeError, match="one shape"):
        anatomy(ids, "liver", image[:1])


def test_shares_of_cells_are_those_of_a_one_hot():
    mask = random_mask(2, 1, 12, 8)
    shares = one_hot_on_grid(mask, 4)
    assert shares.shape == (2, K, 3, 2)
    assert torch.allclose(shares.sum(dim=1), torch.ones(2, 3, 2))
    whole = F.one_hot(mask[:, 0].long(), K).permute(0, 3, 1, 2).float()
    assert torch.allclose(shares, whole.unflatten(3, (2, 4)).unflatten(2, (3, 4)).mean(dim=(3, 5)))
    with pytest.raises(ShapeError, match="5 x 5"):
        one_hot_on_grid(mask, 5)
    with pytest.raises(ShapeError, match=r"\(B, 1, H, W\)"):
        one_hot_on_grid(mask[:, 0], 4)
    with pytest.raises(ParameterError, match="anatomy"):
        one_hot_on_grid(mask.float(), 4)


def test_classes_have_fixed_greys_and_the_phantoms_hu():
    levels = mask_image(torch.arange(K)[None, None, None]).flatten()
    assert levels[0] == -160 and levels[-1] == 240 and torch.allclose(levels.diff(), torch.tensor(400 / (K - 1)))
    slices = captioned_slices(np.random.default_rng(5), 8, 64, ("abdomen", "thorax"), a_patient=2)
    hu = torch.from_numpy(np.stack([s.hu for s in slices])).float()[:, None]
    mask = anatomy(np.stack([s.labels for s in slices])[:, None], "phantom")
    typical = typical_hu(mask)
    for k, name in enumerate(CLASSES):
        here = mask == k
        if int(here.sum()) > 100:  # patients, phases and gas in the bowel differ
            off = float((hu - typical)[here].mean())
            assert abs(off) < (250 if name == "bowel" else 90), (name, off)


def test_masks_are_read_from_files(tmp_path):
    nib = pytest.importorskip("nibabel")
    mask = random_mask(3, 8, 6).numpy()
    np.save(tmp_path / "m.npy", mask)
    assert torch.equal(read_mask(tmp_path / "m.npy")[0], torch.from_numpy(mask))
    # LPS as the reader gives it is -x, -y in NIfTI's own axes
    nib.save(nib.Nifti1Image(mask.transpose(2, 1, 0), np.diag([-2.0, -2.0, 5.0, 1.0])), tmp_path / "m.nii.gz")
    read, scan = read_mask(tmp_path / "m.nii.gz")
    assert read.dtype == torch.uint8 and torch.equal(read, torch.from_numpy(mask))
    assert scan.spacing_mm == pytest.approx((5, 2, 2))
    with pytest.raises(ParameterError, match=r"m\.nii\.gz.*without a class"):
        read_mask(tmp_path / "m.nii.gz", "liver")


def test_a_real_abdomen_in_classes(real_data):
    from ldctlib.data.dicom_read import read_series

    folder = real_data / "ct" / "abdomen_series"
    image = read_series(folder).values.float()
    mask, _ = read_mask(folder / "segmentation_117.nii.gz", "totalsegmentator", image)
    assert image[mask == am.LIVER].mean() == pytest.approx(89, abs=1)
    mean = {name: float(image[mask == CLASSES.index(name)].mean()) for name in ("spleen", "vessel", "bone")}
    assert 70 < mean["spleen"] < 90 and 130 < mean["vessel"] < 170 and mean["bone"] > 250
    assert image[mask == 0].median() < -900 and -110 < image[mask == am.BODY].median() < 60


# ---------------------------------------------------------------- labelled slices


def test_a_labelled_slice_is_a_function_of_its_number():
    samples = CONFIG.open()
    first, again = samples[3], CONFIG.open()[3]
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert first["image_hu"].shape == (1, 32, 32) and first["mask"].shape == (32, 32)
    assert not torch.equal(first["image_hu"], samples[4]["image_hu"])
    with pytest.raises(ParameterError, match="ArraySlices"):
        CONFIG.open(object())
    with pytest.raises(ParameterError, match="doses"):
        LabelledConfig(doses=(0.5, 0.1))


def test_noise_of_a_labelled_slice_is_its_doses():
    """Full dose's 10 HU is 20 HU at a quarter: the same draws with a thousandth of the noise leave the rest."""
    from dataclasses import replace

    noisy = replace(CONFIG, doses=(0.25, 0.25), full_dose_noise_sd_hu=(10.0, 10.0)).open()
    quiet = replace(CONFIG, doses=(0.25, 0.25), full_dose_noise_sd_hu=(0.01, 0.01)).open()
    for n in range(6):
        a, b = noisy[n], quiet[n]
        assert float(a["noise_sd_hu"]) == 20 and float(a["dose"]) == 0.25 and torch.equal(a["mask"], b["mask"])
        assert float((a["image_hu"] - b["image_hu"]).std()) == pytest.approx(20 * (1 - 1e-3), rel=1e-3)


def test_image_and_mask_are_warped_alike():
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[20:44, 6:26] = 1  # on the left
    image = mask.float()[None, None] * 1000 - 1000
    for seed in range(8):
        turned, of, side = warp(image, mask, 48, (0.9, 1.1), np.random.default_rng(seed))
        assert 0.9 <= side <= 1.1
        # bilinear and nearest differ where a pixel's centre lies next to an edge
        assert float(((turned[0, 0] > -500) == (of == 1)).float().mean()) > 0.97
        columns = of.float().sum(0)
        assert float((columns * torch.arange(48)).sum() / columns.sum()) < 23.5


def test_arrays_are_mixed_by_their_share():
    real, masks = torch.zeros(3, 1, 16, 16), torch.ones(3, 1, 16, 16, dtype=torch.uint8)
    made = (torch.full((2, 1, 16, 16), 100.0), torch.full((2, 1, 16, 16), 4, dtype=torch.uint8))
    mixed = ArraySlices(real, masks, synthetic=made, share=0.3, augment=False)
    synthetic = torch.tensor([float(mixed[n]["image_hu"].mean()) == 100 for n in range(400)]).float()
    assert abs(float(synthetic.mean()) - 0.3) < 4 * math.sqrt(0.21 / 400)
    assert all(bool((mixed[n]["mask"] == (4 if synthetic[n] else 1)).all()) for n in range(20))
    assert all(float(ArraySlices(real, masks, augment=False)[n]["image_hu"].max()) == 0 for n in range(20))
    augmented = ArraySlices(real, masks, seed=1)
    assert augmented[0].keys() == CONFIG.open()[0].keys()
    assert torch.equal(augmented[5]["image_hu"], ArraySlices(real, masks, seed=1)[5]["image_hu"])
    with pytest.raises(ShapeError, match="one shape"):
        ArraySlices(real, masks[:2])
    with pytest.raises(ParameterError, match="share"):
        ArraySlices(real, masks, synthetic=made, share=1.5)


# ---------------------------------------------------------------- losses


def test_dice_in_closed_form():
    """Two classes, half the pixels each, p = 1/2: 2 (1/4) / (1/4 + 1/2) = 2/3 for both."""
    mask = torch.tensor([[[0, 0], [1, 1]]])
    even = torch.zeros(1, 2, 2, 2)
    assert float(soft_dice_loss(even, mask)) == pytest.approx(1 / 3, abs=1e-5)
    sure = F.one_hot(mask, 2).permute(0, 3, 1, 2).float() * 80
    assert float(soft_dice_loss(sure, mask)) == pytest.approx(0, abs=1e-6)
    assert float(soft_dice_loss(-sure, mask)) == pytest.approx(1, abs=1e-4)
    # class 0 alone is there: p = 1/2 gives it 2 (n/2) / (n/4 + n) = 4/5, and class 1 nothing
    alone = torch.zeros(1, 2, 2, dtype=torch.long)
    assert float(soft_dice_loss(even, alone)) == pytest.approx(1 - 0.4, abs=1e-4)
    assert float(soft_dice_loss(even, alone, background=False)) == pytest.approx(1, abs=1e-4)


def test_dice_is_that_of_a_one_hot():
    logits = torch.randn(3, K, 8, 8, generator=torch.Generator().manual_seed(1))
    mask = random_mask(3, 8, 8)
    p, t = logits.softmax(1), F.one_hot(mask.long(), K).permute(0, 3, 1, 2).float()
    over = (0, 2, 3)
    dice = (2 * (p * t).sum(over) + 1e-5) / (p.square().sum(over) + t.square().sum(over) + 1e-5)
    assert float(soft_dice_loss(logits, mask)) == pytest.approx(1 - float(dice.mean()), abs=1e-6)
    assert float(soft_dice_loss(logits, mask, background=False)) == pytest.approx(1 - float(dice[1:].mean()), abs=1e-6)


def test_segmentation_loss_is_half_and_half():
    batch = {"image_hu": torch.zeros(1, 1, 2, 2), "mask": torch.tensor([[[0, 0], [1, 1]]], dtype=torch.uint8)}
    loss = segmentation_loss(WINDOW_RANGE)(lambda x: torch.zeros(1, 2, 2, 2), batch, None, 0)
    assert float(loss["cross_entropy"]) == pytest.approx(math.log(2))
    assert float(loss["loss"]) == pytest.approx(0.5 * math.log(2) + 1 / 6, abs=1e-5)
    # a weighted mean: class 1, which is missed by ln(1 + e^2), counts three times
    fixed = torch.tensor([2.0, 0.0])[None, :, None, None].expand(1, 2, 2, 2)
    weighted = segmentation_loss(WINDOW_RANGE, class_weights=(1, 3))(lambda x: fixed, batch, None, 0)
    expected = (math.log1p(math.exp(-2)) + 3 * math.log1p(math.exp(2))) / 4
    assert float(weighted["cross_entropy"]) == pytest.approx(expected, abs=1e-5)


def test_scores_of_noise():
    sd = torch.tensor([1.0, 5.0, math.sqrt(500), 100.0, 300.0])
    assert torch.allclose(quality_score(sd), torch.tensor([4.0, 4.0, 2.0, 0.0, 0.0]), atol=1e-6)
    # a quarter of the dose doubles the noise
    assert float(quality_score(sd[2]) - quality_score(2 * sd[2])) == pytest.approx(4 * math.log(2) / math.log(20))


# ---------------------------------------------------------------- networks


def test_the_shipped_segmenter_is_small():
    recipe = recipes.recipe("segmenter")
    model = recipe.saved.build(0)
    assert sum(p.numel() for p in model.parameters()) <= 500_000
    assert sum(p.numel() for p in recipes.recipe("iqa_simulated_dose").saved.build(0).parameters()) <= 150_000
    x = torch.randn(1, 1, 64, 32, generator=torch.Generator().manual_seed(0)) * 2
    assert model(x).shape == (1, K, 64, 32)
    assert torch.equal(model(x), model(x.clamp(-1, 1)))  # an image that was stored in its window
    with pytest.raises(ShapeError, match="multiples of 16"):
        model(x[..., :24])
    with pytest.raises(ParameterError, match="two levels"):
        SegmentationUNet(3, widths=(8,))


def test_a_segmenter_learns_from_arrays():
    """Bright squares on the left are livers, dark ones on the right are kidneys; new ones are found."""
    generator = torch.Generator().manual_seed(3)

    def scenes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        masks = torch.ones(count, 1, 32, 32, dtype=torch.uint8)
        for mask in masks[:, 0]:
            top, left = torch.randint(2, 18, (2,), generator=generator).tolist()
            mask[top : top + 10, left // 3 : left // 3 + 10] = am.LIVER
            mask[left : left + 10, 20 : 20 + 8] = CLASSES.index("kidney")
        hu = torch.tensor([-1000.0, -60, 0, 0, 120, 0, 40, 0, 0, 0, 0, 0])
        return hu[masks.long()] + 10 * torch.randn(masks.shape, generator=generator), masks

    config = TrainConfig(steps=60, batch_size=4, lr=3e-2, log_every=60, ema_decay=0.8, device="cpu")
    model = train_segmenter(TINY_UNET, ArraySlices(*scenes(16), augment=False), config)
    images, masks = scenes(8)
    found = model(WINDOW_RANGE.to_model(images)).argmax(1)
    assert not model.training and float((found == masks[:, 0]).float().mean()) > 0.95


def test_a_score_is_a_weighted_mean_of_local_ones():
    torch.manual_seed(0)
    model = IQA()
    x = torch.randn(3, 1, 40, 24)
    local, weight = model.local_scores(x)
    score = model(x)
    assert score.shape == (3,) and bool((weight > 0).all())
    assert bool(((local.amin((1, 2, 3)) <= score) & (score <= local.amax((1, 2, 3)))).all())
    noise = 0.1 * torch.randn(1, 1, 64, 64)  # no layer divides the noise out
    assert abs(float((model(noise) - model(4 * noise)).detach())) > 0.02
    with pytest.raises(ShapeError, match="16 pixels"):
        model(x[..., :8])


# ---------------------------------------------------------------- TransUNet


def test_transunet_has_its_published_size_and_names():
    with torch.device("meta"):
        model = TransUNet(9)
        assert sum(p.numel() for p in model.parameters()) == 105_277_081
        assert model(torch.zeros(2, 1, 224, 224)).shape == (2, 9, 224, 224)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    resnet = "transformer.embeddings.hybrid_model."
    assert shapes[f"{resnet}root.conv.weight"] == (64, 3, 7, 7)
    assert shapes[f"{resnet}body.block3.unit9.conv3.weight"] == (1024, 256, 1, 1)
    assert shapes[f"{resnet}body.block2.unit1.gn_proj.bias"] == (512,)
    assert shapes["transformer.embeddings.patch_embeddings.weight"] == (768, 1024, 1, 1)
    assert shapes["transformer.embeddings.position_embeddings"] == (1, 196, 768)
    assert shapes["transformer.encoder.layer.11.attn.query.weight"] == (768, 768)
    assert shapes["transformer.encoder.layer.0.ffn.fc1.weight"] == (3072, 768)
    assert shapes["decoder.conv_more.0.weight"] == (512, 768, 3, 3)
    assert shapes["decoder.blocks.0.conv1.0.weight"] == (256, 1024, 3, 3)
    assert shapes["decoder.blocks.3.conv1.0.weight"] == (16, 64, 3, 3)
    assert shapes["segmentation_head.0.bias"] == (9,)


def test_a_small_transunet():
    torch.manual_seed(0)
    model = TransUNet(**TINY_TRANSUNET)
    out = model(torch.randn(2, 1, 32, 32))
    out.square().mean().backward()
    assert out.shape == (2, 3, 32, 32) and all(p.grad is not None for p in model.parameters())
    with pytest.raises(ShapeError, match="32, 32"):
        model(torch.zeros(1, 1, 48, 48))
    with pytest.raises(ParameterError, match="multiple of 16"):
        TransUNet(3, image_size=40)


def test_kernels_are_standardised():
    torch.manual_seed(0)
    conv, x = StdConv2d(6, 4, 3), torch.randn(1, 6, 8, 8)
    w = conv.weight.detach()
    plain = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True, unbiased=False)
    # 1e-5 beside a variance of 1/162 is a thousandth of the kernel
    assert torch.allclose(conv(x), F.conv2d(x, plain, padding=1), rtol=3e-3, atol=3e-3)


def published_vit(model: TransUNet, grid: int) -> dict[str, np.ndarray]:
    """Random weights under the names and in the axes of the published hybrid (JAX: kernels end in their outputs)."""
    rng, out = np.random.default_rng(0), {}
    dim, heads, mlp, w = 16, 2, 32, 4

    def add(name: str, *shape: int) -> None:
        out[name] = rng.normal(size=shape).astype(np.float32)

    def norm(name: str, n: int, *lead: int) -> None:
        add(f"{name}/scale", *lead, n)
        add(f"{name}/bias", *lead, n)

    add("conv_root/kernel", 7, 7, 3, w)
    norm("gn_root", w, 1, 1, 1)
    channels = w
    for b, (units, middle) in enumerate(zip((1, 2, 1), (w, 2 * w, 4 * w), strict=True), start=1):
        for u in range(1, units + 1):
            at = f"block{b}/unit{u}"
            add(f"{at}/conv1/kernel", 1, 1, channels, middle)
            add(f"{at}/conv2/kernel", 3, 3, middle, middle)
            add(f"{at}/conv3/kernel", 1, 1, middle, 4 * middle)
            for i, n in ((1, middle), (2, middle), (3, 4 * middle)):
                norm(f"{at}/gn{i}", n, 1, 1, 1)
            if u == 1:
                add(f"{at}/conv_proj/kernel", 1, 1, channels, 4 * middle)
                norm(f"{at}/gn_proj", 4 * middle, 1, 1, 1)
            channels = 4 * middle
    add("embedding/kernel", 1, 1, channels, dim)
    add("embedding/bias", dim)
    add("Transformer/posembed_input/pos_embedding", 1, grid**2 + 1, dim)
    for i in range(2):
        at = f"Transformer/encoderblock_{i}"
        norm(f"{at}/LayerNorm_0", dim)
        norm(f"{at}/LayerNorm_2", dim)
        for name in ("query", "key", "value"):
            add(f"{at}/MultiHeadDotProductAttention_1/{name}/kernel", dim, heads, dim // heads)
            add(f"{at}/MultiHeadDotProductAttention_1/{name}/bias", heads, dim // heads)
        add(f"{at}/MultiHeadDotProductAttention_1/out/kernel", heads, dim // heads, dim)
        add(f"{at}/MultiHeadDotProductAttention_1/out/bias", dim)
        for j, (a, b) in enumerate(((dim, mlp), (mlp, dim))):
            add(f"{at}/MlpBlock_3/Dense_{j}/kernel", a, b)
            add(f"{at}/MlpBlock_3/Dense_{j}/bias", b)
    norm("Transformer/encoder_norm", dim)
    return out


def test_weights_of_the_published_transformer_are_placed():
    model = TransUNet(**TINY_TRANSUNET)
    arrays = published_vit(model, grid=2)
    weights = from_vit_npz(arrays, model)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(not name.startswith("transformer.") for name in missing)
    assert len(weights) == len(arrays)  # each is used once
    layer = model.transformer.encoder.layer[1]
    x = torch.randn(5, 16)
    kernel, bias = (
        arrays[f"Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/{n}"] for n in ("kernel", "bias")
    )
    query = np.einsum("nd,dhe->nhe", x.numpy(), kernel) + bias  # as the published code computes it
    assert np.allclose(layer.attn.query(x).detach().numpy().reshape(5, 2, 8), query, atol=1e-5)
    kernel, bias = (
        arrays[f"Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/{n}"] for n in ("kernel", "bias")
    )
    joined = np.einsum("nhe,hed->nd", query, kernel) + bias
    assert np.allclose(layer.attn.out(torch.from_numpy(query.reshape(5, 16))).detach().numpy(), joined, atol=1e-4)
    conv = model.transformer.embeddings.hybrid_model.body.block2.unit2.conv2.weight
    assert float(conv[3, 1, 2, 0].detach()) == float(arrays["block2/unit2/conv2/kernel"][2, 0, 1, 3])
    positions = arrays["Transformer/posembed_input/pos_embedding"]
    assert torch.equal(weights["transformer.embeddings.position_embeddings"], torch.from_numpy(positions[:, 1:]))
    finer = from_vit_npz(published_vit(model, grid=3), model)["transformer.embeddings.position_embeddings"]
    assert np.allclose(finer[0, 3], published_vit(model, grid=3)["Transformer/posembed_input/pos_embedding"][0, -1])
    arrays.pop("gn_root/bias")
    with pytest.raises(CheckpointError, match="gn_root/bias"):
        from_vit_npz(arrays, model)


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", ["segmenter", "iqa_simulated_dose", "transunet"])
def test_dry_runs(name, tmp_path):
    logs = list(recipes.run(name, out=tmp_path, device="cpu", progress=False, dry_run=True))
    assert [log.step for _, log in logs] == [1, 2] and all(math.isfinite(log.loss) for _, log in logs)
    saved = checkpoints.load(tmp_path / "dry-run" / f"{name}.safetensors")
    assert saved.range == Range(-160, 240) and "anatomy masks" in saved.trained_on["collection"]


def test_the_published_training_of_transunet():
    (stage,) = recipes.recipe("transunet", "paper").stages
    train = stage.train
    assert (train.kind, train.lr, train.momentum, train.weight_decay) == ("sgd", 0.01, 0.9, 1e-4)
    assert (train.schedule, train.batch_size, stage.data.size) == ("poly", 24, 224)


# ---------------------------------------------------------------- the shipped judge of quality


def scores(images_hu: torch.Tensor) -> np.ndarray:
    model = checkpoints.build(checkpoints.load(checkpoints.find("iqa_simulated_dose")))
    with torch.no_grad():
        return model(WINDOW_RANGE.to_model(images_hu)).numpy()


def test_scores_follow_the_dose_of_unseen_patients():
    from scipy.stats import spearmanr

    from ldctlib.phantom.patient import Patient
    from ldctlib.phantom.scan_phantom import scan_phantom

    doses, found = (1.0, 0.5, 0.25, 0.1, 0.05), []
    for seed, anatomy_name in ((90_001, "abdomen"), (90_002, "thorax"), (90_003, "abdomen")):
        patient = Patient.random(seed, anatomy=anatomy_name)
        z, generator = 0.5 * sum(patient.z_range_mm), torch.Generator().manual_seed(seed)
        _, *scans = scan_phantom(patient, z, doses, size=192, generator=generator)["B30f"]
        found.append(scores(torch.cat(scans)))
    assert all((np.diff(each) < 0).all() for each in found)
    assert spearmanr(np.concatenate(found), np.tile(doses, 3)).statistic >= 0.9


def test_scores_order_the_doses_of_a_scanned_phantom(real_data):
    means = []
    for dose in ("010", "055", "100"):
        files = sorted((real_data / "phantom_mita" / f"dose_{dose}").rglob("*.raw"))
        images = np.stack([np.fromfile(path, "<i2").reshape(1, 256, 256) for path in files]) - 1000.0
        means.append(scores(torch.from_numpy(images).float()))
    assert len(means[0]) == 8 and means[0].max() < means[1].min() and means[1].mean() < means[2].mean()


# ---------------------------------------------------------------- readers' scores


def test_images_with_readers_scores(tmp_path):
    from PIL import Image

    (tmp_path / "image").mkdir()
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    for name in ("0001.tif", "0000.tif"):
        Image.fromarray(values if name == "0000.tif" else 0.5 * values).save(tmp_path / "image" / name)
    scores = tmp_path / "train.json"
    scores.write_text(json.dumps({"0001.tif": 1.4, "0000.tif": 3.8}))
    images = open_ldctiqac(tmp_path)
    assert len(images) == 2 and images.scores == (3.8, 1.4)
    image, score = images[0]
    assert score == 3.8 and image.shape == (1, 1, 3, 4)
    assert float(image.min()) == -135 and float(image.max()) == 215  # the ends of [40, 350]
    assert float(open_ldctiqac(tmp_path, Window(40, 400))[1][0].max()) == 40

    Image.fromarray((255 * values).astype(np.uint8)).save(tmp_path / "image" / "0000.tif")
    with pytest.raises(ScanError, match=r"0000\.tif.*from 0 to 1"):
        images[0]
    (tmp_path / "image" / "0001.tif").write_bytes(b"no image")
    with pytest.raises(ScanError, match=r"0001\.tif cannot be read"):
        images[1]
    (tmp_path / "image" / "0001.tif").unlink()
    with pytest.raises(ScanError, match=r"1 images have a score and no file, 0001\.tif"):
        open_ldctiqac(tmp_path)
    for text, what in (('{"0000.tif": 7}', "0 to 4"), ("{", "no JSON"), ('["a"]', "no JSON file with scores")):
        scores.write_text(text)
        with pytest.raises(ScanError, match=what):
            open_ldctiqac(tmp_path)
