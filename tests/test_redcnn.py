"""RED-CNN against its published layout and a second implementation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ldctlib.errors import ShapeError
from ldctlib.models.redcnn import REDCNN


def small(**options) -> REDCNN:
    torch.manual_seed(3)
    return REDCNN(channels=6, **options).double()


def image(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_published_size_and_keys():
    model = REDCNN()
    assert sum(p.numel() for p in model.parameters()) == 1_848_865
    layers = [f"conv{i}" for i in range(1, 6)] + [f"tconv{i}" for i in range(1, 6)]
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert list(shapes) == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert shapes["conv1.weight"] == (96, 1, 5, 5)
    assert shapes["tconv5.weight"] == (96, 1, 5, 5)  # a transposed kernel has its input channels first
    assert shapes["tconv1.weight"] == (96, 96, 5, 5)


def gathered_convolution(x, weight, bias):
    """Valid cross-correlation as a sum over kernel positions."""
    k = weight.shape[-1]
    h, w = x.shape[-2] - k + 1, x.shape[-1] - k + 1
    y = sum(
        torch.einsum("oi,bihw->bohw", weight[:, :, i, j], x[:, :, i : i + h, j : j + w])
        for i in range(k)
        for j in range(k)
    )
    return y + bias[None, :, None, None]


def scattered_convolution(x, weight, bias):
    """Its transpose: every input pixel adds the kernel at its place."""
    k = weight.shape[-1]
    h, w = x.shape[-2:]
    y = x.new_zeros(x.shape[0], weight.shape[1], h + k - 1, w + k - 1)
    for i in range(k):
        for j in range(k):
            y[:, :, i : i + h, j : j + w] += torch.einsum("io,bihw->bohw", weight[:, :, i, j], x)
    return y + bias[None, :, None, None]


@pytest.mark.parametrize("size", [(21, 21), (33, 26)])
def test_equals_second_implementation(size):
    model, x = small(final_relu=False), image(2, 1, *size) - 0.5
    p = model.state_dict()

    def down(y, i):
        return gathered_convolution(y, p[f"conv{i}.weight"], p[f"conv{i}.bias"]).clamp_min(0)

    def up(y, i):
        return scattered_convolution(y, p[f"tconv{i}.weight"], p[f"tconv{i}.bias"])

    after2 = down(down(x, 1), 2)
    after4 = down(down(after2, 3), 4)
    y = (up(down(after4, 5), 1) + after4).clamp_min(0)
    y = (up(up(y, 2).clamp_min(0), 3) + after2).clamp_min(0)
    y = up(up(y, 4).clamp_min(0), 5) + x
    # float64 sums of about 150 products of order 1, ten layers deep: 1e-12 leaves three orders of margin
    torch.testing.assert_close(model(x), y, rtol=0, atol=1e-12)


def test_final_relu_is_the_only_difference():
    x = image(1, 1, 24, 24) - 0.5
    linear = small(final_relu=False)(x)
    assert (linear < 0).any()
    assert torch.equal(small(final_relu=True)(x), F.relu(linear))


def test_shift_equivariance_inside():
    """A pixel sees 20 pixels each way (five kernels of radius 2, there and back), and no further."""
    model, x = small(final_relu=False), image(1, 1, 60, 56)
    whole, part = model(x), model(x[..., 3:, 5:])
    inside = (..., slice(20, -20), slice(20, -20))
    # only the order of float64 sums may differ
    torch.testing.assert_close(whole[..., 3:, 5:][inside], part[inside], rtol=0, atol=1e-12)
    assert (whole[..., 3:, 5:] - part)[..., :20, :20].abs().max() > 1e-6  # the border does see the edge


def test_starts_as_identity():
    x = image(2, 1, 30, 23) - 0.5
    assert torch.equal(small(final_relu=False).start_as_identity()(x), x)
    assert torch.equal(small().start_as_identity()(x), x.clamp_min(0))


@pytest.mark.parametrize("shape", [(1, 1, 20, 64), (1, 1, 64, 20), (1, 2, 64, 64), (1, 64, 64)])
def test_refuses_by_name(shape):
    with pytest.raises(ShapeError, match="21 pixels"):
        small()(image(*shape))
