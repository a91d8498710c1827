"""The pyramid quantiser against loops, the autoencoder in its published size, PatchGAN."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ldctlib import checkpoints
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.models.autoencoder import low_cosines
from ldctlib.models.patchgan import PatchGAN
from ldctlib.models.pyramid_quantiser import CHUNK, PyramidQuantiser, positions
from ldctlib.models.vqgan import VQGAN, VQGAN_RANGE
from ldctlib.units import SOFT_TISSUE

SMALL = dict(width=8, channel_mult=(1, 2), z_channels=8, norm_groups=4, unshuffle=2, codebook_size=20, embed_dim=12)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def eighths(*shape: int, seed: int) -> torch.Tensor:
    """Multiples of 1/8 in [-1, 1]: sums of products are exact in float32, so equal distances are equal."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)) / 8


def by_loops(z: torch.Tensor, codebook: torch.Tensor, recipe: str = "paper") -> dict:
    """SPAE's streaming average position by position, in float64."""
    z, codebook = z.double(), codebook.double()
    b, _, h, w = z.shape
    z_q, words, looked_up, far = torch.zeros_like(z), {}, {}, [[], [], []]
    for i in range(b):
        for y in range(h):
            for x in range(w):
                v = z[i, :, y, x]
                layers = [y % 16 == 7 and x % 16 == 7, y % 4 == 3 and x % 4 == 3, True]
                z_l, chosen = v, []
                for layer, selected in enumerate(layers):
                    if selected:
                        distances = (codebook - z_l).square().sum(dim=1)
                        word = int(distances.argmin())
                        words[layer, i, y, x], looked_up[layer, i, y, x] = word, z_l
                        chosen.append(codebook[word])
                        divide = len(chosen) if recipe == "paper" else sum(layers)
                        far[layer].append((v - sum(chosen) / divide).square().mean())
                        z_l = z_l + (v - codebook[word])
                z_q[i, :, y, x] = sum(chosen) / len(chosen)
    sizes = [len(f) if recipe == "paper" else b * h * w for f in far]
    commitment = sum(torch.stack(f).sum() / n for f, n in zip(far, sizes, strict=True))
    return {"z_q": z_q, "words": words, "looked_up": looked_up, "commitment": commitment}


@pytest.mark.parametrize("recipe", ["paper", "released"])
@pytest.mark.parametrize("grid", [(16, 16), (32, 16)])
def test_the_quantiser_equals_loops_over_positions(grid, recipe):
    quantiser = PyramidQuantiser(20, 3, recipe=recipe)
    quantiser.set_codebook(eighths(20, 3, seed=1))  # few numbers, so that ties occur
    z = eighths(2, 3, *grid, seed=2)
    got, expected = quantiser(z), by_loops(z, quantiser.codebook, recipe)
    for layer, (rows, columns) in enumerate(positions(grid)):
        ys, xs = range(grid[0])[rows], range(grid[1])[columns]
        assert got.indices[layer].shape == (2, len(ys), len(xs))
        for i in range(2):
            for a, y in enumerate(ys):
                for b, x in enumerate(xs):
                    assert got.indices[layer][i, a, b] == expected["words"][layer, i, y, x]
                    assert torch.equal(
                        got.embeddings[layer][i, :, a, b].double(), expected["looked_up"][layer, i, y, x]
                    )
    torch.testing.assert_close(got.z_q, expected["z_q"].float(), rtol=2e-7, atol=0)  # a third is rounded
    torch.testing.assert_close(got.commitment, expected["commitment"].float())
    assert torch.equal(got.codebook_loss, got.commitment)
    assert got.z is z


def test_the_masks_nest_and_count_as_published():
    """4, 64 and 1024 positions of a 32 x 32 grid; four times as many on 64 x 64, a quarter on 16 x 16."""
    for side, factor in ((32, 4), (64, 16), (16, 1)):
        masks = []
        for rows, columns in positions((side, side)):
            mask = torch.zeros(side, side, dtype=torch.bool)
            mask[rows, columns] = True
            masks.append(mask)
        assert [int(m.sum()) for m in masks] == [factor, 16 * factor, 256 * factor]
        assert all((coarse & ~fine).sum() == 0 for coarse, fine in zip(masks, masks[1:], strict=False))
    assert [int(p) for p in masks[0].nonzero()[0]] == [7, 7] and positions((32, 32))[1][0] == slice(3, None, 4)


@pytest.mark.parametrize("grid", [(24, 32), (32, 8), (0, 16), (20, 20)])
def test_a_grid_that_does_not_fit_is_refused(grid):
    with pytest.raises(ShapeError, match="multiples of 16"):
        PyramidQuantiser(20, 3)(torch.zeros(1, 3, *grid))


def test_the_gradient_is_straight_through():
    quantiser = PyramidQuantiser(20, 3)
    z = eighths(1, 3, 16, 16, seed=3).requires_grad_()
    weight = eighths(1, 3, 16, 16, seed=4)
    (weight * quantiser(z).z_q).sum().backward()
    assert torch.equal(z.grad, weight)  # once, whatever the number of layers


@pytest.mark.parametrize("learned", [False, True])
def test_commitment_moves_features_and_the_codebook_loss_codewords(learned):
    quantiser = PyramidQuantiser(20, 3, learned=learned)
    z = eighths(1, 3, 16, 16, seed=5).requires_grad_()
    result = quantiser(z)
    result.commitment.backward(retain_graph=True)
    assert z.grad.abs().sum() > 0
    assert quantiser.codebook.grad is None and quantiser.codebook.requires_grad == learned
    if learned:
        z.grad = None
        result.codebook_loss.backward()
        assert z.grad is None or not z.grad.any()
        used = torch.cat([i.flatten() for i in result.indices]).unique()
        moved = quantiser.codebook.grad.abs().sum(dim=1).nonzero().flatten()
        assert set(moved.tolist()) <= set(used.tolist()) and len(moved)


class Largest(TorchDispatchMode):
    """The most elements that any result has."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor._base is None:
                self.elements = max(self.elements, tensor.numel())
        return out


def test_the_search_never_holds_all_distances():
    """PubMedCLIP's vocabulary for four slices of 512 x 512: all distances of layer 3 would be 202 million numbers."""
    with torch.device("meta"):
        quantiser = PyramidQuantiser(49_408, 512)
        with Largest() as seen:
            quantiser._quantise(torch.zeros(4, 512, 32, 32))  # autocast knows no meta device
    assert seen.elements <= CHUNK < 4 * 1024 * 49_408 / 6


def test_chunks_do_not_matter(monkeypatch):
    quantiser, z = PyramidQuantiser(20, 3), eighths(2, 3, 16, 16, seed=6)
    whole = quantiser(z)
    monkeypatch.setattr("ldctlib.models.pyramid_quantiser.CHUNK", 20 * 7)
    assert all(torch.equal(a, b) for a, b in zip(whole.indices, quantiser(z).indices, strict=True))


# ---------------------------------------------------------------- the autoencoder


def test_published_sizes():
    """7 residual blocks, one attention and 5.18 M parameters; 12, one and 8.21 M; 512 x 512 becomes 32 x 32."""
    with torch.device("meta"):
        model = VQGAN()
        z = model.encode(torch.zeros(1, 1, 512, 512))
        image = model.decode(z)
    assert (z.shape, image.shape) == ((1, 512, 32, 32), (1, 1, 512, 512))
    assert (model.factor, model.multiple) == (16, 256)
    for part, blocks, count in ((model.encoder, 7, 5_179_392), (model.decoder, 12, 8_206_401)):
        kinds = [type(module).__name__ for module in part.modules()]
        assert (kinds.count("ResBlock"), kinds.count("SelfAttention"), parameters(part)) == (blocks, 1, count)
    assert model.quant_conv.weight.shape == (512, 256, 1, 1) and model.post_quant_conv.weight.shape == (256, 512, 1, 1)
    assert {(m.num_groups, m.eps) for m in model.modules() if isinstance(m, nn.GroupNorm)} == {(32, 1e-6)}
    assert dict(model.named_buffers())["quantiser.codebook"].shape == (49_408, 512)


def test_the_codebook_survives_training_bit_by_bit():
    torch.manual_seed(0)
    model, x = VQGAN(**SMALL), torch.rand(1, 1, 64, 64)
    model.set_codebook(torch.randn(20, 12) * 0.02)
    before = model.quantiser.codebook.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    weights = [p.clone() for p in model.parameters()]
    for _ in range(2):
        image, quantised = model(x)
        (F.mse_loss(image, x) + quantised.commitment).backward()
        optimizer.step()
    assert torch.equal(model.quantiser.codebook, before)
    assert all((a != b).any() for a, b in zip(weights, model.parameters(), strict=True))  # and all else moves
    learned = VQGAN(**SMALL, learned=True)
    assert "quantiser.codebook" in dict(learned.named_parameters())
    learned.load_state_dict(model.state_dict())  # the same layout


def test_features_are_moved_into_the_codebook_and_images_stay():
    torch.manual_seed(0)
    model, x = VQGAN(**SMALL | dict(z_channels=16)).eval(), torch.rand(2, 1, 64, 64)  # features of full rank
    table = torch.randn(20, 12) * torch.linspace(0.1, 0.01, 12) + 0.05
    before = model.decode(model.encode(x))
    model.set_codebook(table)
    assert 0.7 < float(table.square().mean().sqrt() / model.quantiser.scale) < 1.42
    for evenness in (0.0, 1.0):
        model.move_features(model.encode(x), evenness)
        z = model.encode(x).detach().movedim(1, -1).flatten(0, -2).double()
        torch.testing.assert_close(z.mean(dim=0).float(), table.mean(dim=0), rtol=0, atol=1e-4)
        cov, wanted = torch.cov(z.T, correction=0), torch.cov(table.double().T, correction=0)
        torch.testing.assert_close(cov.trace(), wanted.trace(), rtol=1e-3, atol=0)
        axes = torch.linalg.eigh(wanted).eigenvectors
        along = axes.T @ cov @ axes  # diagonal: the principal axes coincide
        torch.testing.assert_close(along, along.diag().diag(), rtol=0, atol=1e-3 * float(along.max()))
        assert (along.diag().diff() > -1e-6).all()  # the strongest with the strongest
        assert torch.allclose(cov, wanted, rtol=0, atol=1e-3 * float(wanted.max())) == (evenness == 1)
        torch.testing.assert_close(model.decode(model.encode(x)), before, rtol=0, atol=1e-4)
    half = torch.cat([torch.ones(10), torch.zeros(10)])  # of the words alone, and three times as wide
    model.move_features(model.encode(x), stretch=3.0, weights=half)
    z = model.encode(x).detach().movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(z.mean(dim=0), table[:10].mean(dim=0), rtol=0, atol=1e-4)
    trace = torch.cov(table[:10].T, correction=0).trace()
    torch.testing.assert_close(torch.cov(z.T, correction=0).trace(), 9 * trace, rtol=1e-3, atol=0)
    torch.testing.assert_close(model.decode(model.encode(x)), before, rtol=0, atol=1e-4)
    with pytest.raises(ParameterError, match="principal axes"):
        model.move_features(torch.zeros(1, 12, 16, 16))


def test_the_shortcut_starts_as_the_lowest_cosines_of_every_block():
    model = VQGAN(**SMALL, shortcut=5)
    x = torch.rand(2, 1, 32, 16, generator=torch.Generator().manual_seed(1))
    basis = low_cosines(4, 5)[0].flatten(1)  # of the network's 4 x 4 pixels
    blocks = F.unfold(x, 4, stride=4)  # (B, 16, blocks)
    expected = F.fold(basis.T @ (basis @ blocks), (32, 16), 4, stride=4)
    torch.testing.assert_close(model.decode(model.encode(x)), expected, rtol=0, atol=1e-5)
    model.set_codebook(0.01 * torch.randn(20, 12, generator=torch.Generator().manual_seed(2)))  # another unit
    torch.testing.assert_close(model.decode(model.encode(x)), expected, rtol=0, atol=1e-5)
    plain = VQGAN(**SMALL)
    assert model.state_dict().keys() - plain.state_dict().keys() == {"analysis.weight", "synthesis.weight"}
    with pytest.raises(ParameterError, match="9 cosines of 1 view"):
        VQGAN(**SMALL, shortcut=9)


def test_a_window_is_another_view_of_the_image():
    model = VQGAN(**SMALL, shortcut=3, windows=[(-160.0, 240.0)]).eval()
    hu = 40 + 500 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    x, seen = VQGAN_RANGE.to_model(hu), SOFT_TISSUE.to_display(hu)
    basis, gain = low_cosines(4, 3)
    z = model.encode(x)
    torch.testing.assert_close(z[:, :3], F.conv2d(x, basis * gain, stride=4), rtol=0, atol=1e-5)
    torch.testing.assert_close(z[:, 3:6], F.conv2d(seen, basis * gain, stride=4), rtol=0, atol=1e-5)
    assert model.encoder.conv_in.in_channels == 2 * 4  # two views of 2 x 2 pixels
    blocks = F.unfold(x, 4, stride=4)
    expected = F.fold(basis.flatten(1).T @ (basis.flatten(1) @ blocks), (64, 64), 4, stride=4)
    torch.testing.assert_close(model.decode(z), expected, rtol=0, atol=1e-4)
    with pytest.raises(ParameterError, match="5 cosines of 2 view"):
        VQGAN(**SMALL, shortcut=5, windows=[(-160.0, 240.0)])


def test_wrong_images_and_tables_are_refused():
    model = VQGAN(**SMALL)
    assert (model.factor, model.multiple) == (4, 64)
    with pytest.raises(ShapeError, match="multiples of 4"):
        model.encode(torch.zeros(1, 1, 66, 64))
    with pytest.raises(ShapeError, match=r"multiples of 64 \(16 x 4\).*ldctlib.image.fit"):
        model(torch.zeros(1, 1, 32, 64))
    with pytest.raises(ShapeError, match="12"):
        model.decode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ShapeError, match="table"):
        model.set_codebook(torch.zeros(21, 12))
    for table in (torch.zeros(20, 12), torch.full((20, 12), float("nan"))):
        with pytest.raises(ParameterError, match="finite"):
            model.set_codebook(table)
    with pytest.raises(ParameterError, match="recipe"):
        VQGAN(**SMALL, recipe="mine")


def test_a_checkpoint_keeps_the_words(tmp_path):
    torch.manual_seed(0)
    model = VQGAN(**SMALL).eval()
    model.set_codebook(torch.randn(20, 12).half().float() * 0.25)
    where = dict(collection="none", cases="none", seed=0, steps=0, profile="train", code_revision="none")
    path = checkpoints.save(
        tmp_path / "v.safetensors", model, model="vqgan", config=SMALL, hu_range=None, trained_on=where
    )
    loaded = checkpoints.build(checkpoints.load(path))
    assert torch.equal(loaded.quantiser.codebook, model.quantiser.codebook)
    assert torch.equal(loaded.quantiser.scale, model.quantiser.scale)


# ---------------------------------------------------------------- PatchGAN


def test_patchgan_is_the_published_one():
    """The count of pix2pix's 70 x 70 discriminator for one channel, and its field of view."""
    model = PatchGAN()
    assert parameters(model) == 2_763_585
    assert model.eval()(torch.zeros(1, 1, 256, 256)).shape == (1, 1, 30, 30)
    small = PatchGAN(width=4).eval().requires_grad_(False)
    x = torch.rand(1, 1, 160, 160, requires_grad=True)
    small(x)[0, 0, 9, 9].backward()
    seen = x.grad[0, 0].nonzero()
    assert (seen.max(dim=0).values - seen.min(dim=0).values + 1).tolist() == [70, 70]
    with pytest.raises(ShapeError, match="PatchGAN"):
        small(torch.zeros(1, 1, 16, 16))
