"""NAFNet: identity at initialisation, any size, pooling as in training, and a hand-written block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ldctlib.errors import ShapeError
from ldctlib.models.nafnet import LocalPool, NAFBlock, NAFNet


def small() -> NAFNet:
    torch.manual_seed(0)
    return NAFNet(width=8, shuffle=2, encoder=(1, 1), middle=1, decoder=(1, 1), patch=32)


def test_starts_as_the_identity():
    x = torch.randn(2, 1, 32, 48)
    assert torch.equal(small()(x), x)


@pytest.mark.parametrize("size", ((7, 5), (33, 64), (40, 40), (1, 100)))
def test_any_size(size):
    net = small()
    torch.nn.init.normal_(net.ending.weight, std=0.1)
    assert net(torch.randn(1, 1, *size)).shape == (1, 1, *size)


def test_block_against_the_paper_s_equations():
    torch.manual_seed(1)
    block = NAFBlock(4, window=8).double()
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)

    def norm(v, layer):
        mean, var = v.mean(1, keepdim=True), v.var(1, keepdim=True, correction=0)
        return (v - mean) / (var + 1e-6).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]

    def conv(v, layer, **options):
        return F.conv2d(v, layer.weight, layer.bias, **options)

    y = conv(conv(norm(x, block.norm1), block.expand), block.spatial, padding=1, groups=8)
    y = y[:, :4] * y[:, 4:]
    y = y * conv(y.mean((2, 3), keepdim=True), block.attention)
    y = x + conv(y, block.project) * block.beta
    z = conv(norm(y, block.norm2), block.feed)
    expected = y + conv(z[:, :4] * z[:, 4:], block.out) * block.gamma
    torch.testing.assert_close(block(x), expected)


def test_local_pool():
    """Global on a training patch; on a larger image it follows the local mean."""
    pool = LocalPool(16)
    patch = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(pool(patch), patch.mean((2, 3), keepdim=True))
    ramp = torch.linspace(0, 1, 128)[None, None, None, :].expand(1, 1, 128, 128)
    pooled = pool(ramp)
    assert pooled.shape == ramp.shape
    # interpolated windows of a ramp give the ramp back, but for half a window at each end
    assert (pooled - ramp)[..., 16:-16].abs().max() < 0.05


def test_wrong_shape_is_named():
    with pytest.raises(ShapeError, match="NAFNet"):
        small()(torch.zeros(1, 3, 32, 32))
