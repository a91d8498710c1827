"""ESAU-Net: its published size, attention and blocks against second implementations, any size, the identity."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ldctlib import checkpoints
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.models.esaunet import ChannelAttention, ESAUBlock, ESAUNet
from ldctlib.units import Range

SMALL = dict(widths=(4, 8, 16, 16), heads=(1, 2, 4))


def small() -> ESAUNet:
    torch.manual_seed(0)
    return ESAUNet(**SMALL)


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_published_size():
    with torch.device("meta"):
        model = ESAUNet()
        assert sum(p.numel() for p in model.parameters()) == 4_914_230
        assert model(torch.empty(2, 1, 512, 512)).shape == (2, 1, 512, 512)
        quarter = ESAUNet(widths=(8, 16, 32, 64, 64))
    assert sum(p.numel() for p in quarter.parameters()) == 311_966
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]


def attention_by_hand(x, layer: ChannelAttention):
    """Channel by channel, with the cosine that torch has."""
    qkv = F.conv2d(
        torch.einsum("oi,bihw->bohw", layer.qkv.weight[..., 0, 0], x), layer.spatial.weight, None, 1, 1, 1, 12
    )
    q, k, v = qkv.split(4, dim=1)
    out = torch.zeros_like(x)
    for i in range(4):
        head = [j for j in range(4) if j // 2 == i // 2]  # two heads of two channels
        cosines = [F.cosine_similarity(q[:, i].flatten(1), k[:, j].flatten(1), dim=1) for j in head]
        weights = (torch.stack(cosines) * layer.temperature[i // 2]).exp()
        weights = weights / weights.sum(dim=0)
        out[:, i] = sum(w[:, None, None] * v[:, j] for w, j in zip(weights, head, strict=True))
    return torch.einsum("oi,bihw->bohw", layer.project.weight[..., 0, 0], out)


def test_attention_equals_a_second_implementation():
    torch.manual_seed(1)
    layer = ChannelAttention(4, heads=2).double()
    with torch.no_grad():
        layer.temperature.copy_(torch.tensor([0.7, 5.0])[:, None, None])
    x = image(3, 4, 5, 7)
    # float64 sums of 35 products of order 1
    torch.testing.assert_close(layer(x), attention_by_hand(x, layer), rtol=0, atol=1e-12)
    assert torch.equal(layer(0 * x), 0 * x)  # nothing to normalise


@pytest.mark.parametrize("out_channels", [4, 6])
def test_block_equals_a_second_implementation(out_channels):
    torch.manual_seed(2)
    block = ESAUBlock(4, out_channels, heads=2, hidden=5).double()
    x = image(2, 4, 6, 8)
    y = x + attention_by_hand(x, block.attention)
    z = F.conv2d(y, block.conv1.weight, padding=1)
    z = F.conv2d(z.clamp_min(0) + 0.01 * z.clamp_max(0), block.conv2.weight, padding=1)
    z = z.clamp_min(0) + 0.01 * z.clamp_max(0)
    y = y if out_channels == 4 else torch.einsum("oi,bihw->bohw", block.shortcut.weight[..., 0, 0], y)
    torch.testing.assert_close(block(x), z + y, rtol=0, atol=1e-12)


def test_levels_are_joined_as_published():
    """Max-pool down, bilinear with aligned corners up, skips added to the input of a decoder's block."""
    model, x = small().double(), image(1, 1, 16, 24)
    fine = model.encoders[0](F.leaky_relu(F.conv2d(x, model.intro.weight, padding=1)))
    middle = model.encoders[1](fine.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)))
    coarse = model.middle(middle.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)))

    def doubled(y):
        rows, columns = (torch.linspace(-1, 1, 2 * n, dtype=torch.float64) for n in y.shape[-2:])
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)[None]
        return F.grid_sample(y, places, align_corners=True)

    y = model.decoders[0](doubled(coarse) + middle)
    y = model.decoders[1](doubled(y) + fine)
    y = F.conv2d(F.leaky_relu(F.conv2d(y, model.refine.weight, padding=1)), model.ending.weight, padding=1)
    torch.testing.assert_close(model(x), y, rtol=0, atol=1e-10)  # grid_sample's positions are rounded once more
    assert model.middle.conv1.out_channels == 2 * model.middle.conv1.in_channels == 32
    assert [block.attention.heads for block in (*model.encoders, model.middle, *model.decoders)] == [1, 2, 4, 2, 1]


@pytest.mark.parametrize("size", [(7, 5), (33, 64), (40, 40), (1, 100)])
def test_any_size(size):
    x = image(1, 1, *size).float()
    y = small()(x)
    assert y.shape == x.shape and torch.isfinite(y).all()
    bottom, right = (-n % 4 for n in size)  # four pixels of the image are one of the coarsest level
    mode = "reflect" if bottom < size[0] and right < size[1] else "replicate"
    padded = small()(F.pad(x, (0, right, 0, bottom), mode=mode))
    torch.testing.assert_close(padded[..., : size[0], : size[1]], y)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 32, 32)])
def test_wrong_shape_is_named(shape):
    with pytest.raises(ShapeError, match="ESAU-Net"):
        small()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("widths", "heads", "says"),
    [
        ((4, 8, 16), (1, 2, 4), "a width more than heads"),
        ((4, 8, 16), (1, 2), "the last two widths equal"),
        ((4, 4), (1,), "two levels or more"),
        ((4, 8, 16, 16), (1, 3, 4), r"\[\(8, 3\), \(16, 3\)\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(widths, heads, says):
    with pytest.raises(ParameterError, match=says):
        ESAUNet(widths, heads)


def test_starts_as_the_identity_and_every_weight_can_move():
    model, x = small().start_as_identity(), image(2, 1, 20, 28).float()
    # two LeakyReLUs and the division by 1.01 twice, in float32
    torch.testing.assert_close(model(x), x, rtol=1e-5, atol=1e-6)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(8):
        loss = (model(x) - x.roll(1, dims=-1)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    still = [name for name, p in model.named_parameters() if (p == before[name]).all()]
    assert not still, still
    with pytest.raises(ParameterError, match="three levels"):
        ESAUNet((4, 8, 8), (1, 2)).start_as_identity()


def test_gradient_reaches_every_weight_and_the_input():
    model, x = small(), image(1, 1, 16, 16).float().requires_grad_()
    model(x).square().sum().backward()
    for name, p in (*model.named_parameters(), ("input", x)):
        assert torch.isfinite(p.grad).all() and (p.grad != 0).any(), name


def test_a_checkpoint_builds_it_again(tmp_path):
    model, x = small(), image(1, 1, 17, 21).float()
    trained_on = dict(collection="none", cases=[], seed=0, steps=0, profile="workshop", code_revision="none")
    saved = dict(model="esaunet", config=SMALL, hu_range=Range(-1000.0, 2000.0, 0.0), dtype=torch.float32)
    path = checkpoints.save(tmp_path / "e.safetensors", model, trained_on=trained_on, **saved)
    again = checkpoints.build(checkpoints.load(path))
    assert torch.equal(again(x), model(x))
