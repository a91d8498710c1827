"""The autoencoder: its sizes, its two ranges of latents, its posterior, padding, a second implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldctlib import checkpoints
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.models.autoencoder import INITIAL_LOGVAR, Autoencoder, Posterior, border_filter, low_cosines
from ldctlib.models.blocks import Downsample, ResBlock, SelfAttention, Upsample

TINY = dict(width=8, channel_mult=(1, 2), latent_channels=3, blocks=1, attention_at=(2,), norm_groups=4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(**changes) -> Autoencoder:
    """All weights random, float64."""
    model = Autoencoder(**(TINY | changes)).double()
    generator = seeded(1)
    with torch.no_grad():
        for p in model.parameters():
            fan_in = p[0].numel() if p.ndim > 1 else 1
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / max(fan_in, 4) ** 0.5)
    return model.eval()


def image(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float64) * 2 - 1


# ---------------------------------------------------------------- structure


def res_size(c: int, width: int) -> int:
    shortcut = 0 if c == width else c * width + width
    return 2 * c + 9 * c * width + width + 2 * width + 9 * width**2 + width + shortcut


def attention_size(c: int) -> int:
    return 2 * c + 3 * c * c + 3 * c + c * c + c


def resampling_size(c: int) -> int:
    return 9 * c * c + c


def test_latent_diffusion_f4_configuration_has_the_size_of_its_parts():
    with torch.device("meta"):
        model = Autoencoder()  # latent diffusion's f = 4, z3: widths 128, 256, 512
    assert model.factor == 4
    deep = res_size(512, 512) + attention_size(512)
    encoder = 9 * 128 + 128 + 2 * res_size(128, 128) + resampling_size(128)
    encoder += res_size(128, 256) + res_size(256, 256) + resampling_size(256)
    encoder += res_size(256, 512) + deep  # attention between the two blocks
    middle = deep + res_size(512, 512)
    encoder += middle + 2 * 512 + 9 * 512 * 6 + 6
    decoder = 9 * 3 * 512 + 512 + middle
    decoder += 3 * res_size(512, 512) + 2 * attention_size(512) + resampling_size(512)
    decoder += res_size(512, 256) + 2 * res_size(256, 256) + resampling_size(256)
    decoder += res_size(256, 128) + 2 * res_size(128, 128) + 2 * 128 + 9 * 128 + 1
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.decoder.parameters()) == decoder


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        (dict(channel_mult=(1, 2, 4)), 4),
        (dict(channel_mult=(1, 2, 4, 4), latent_channels=4), 8),
        (dict(channel_mult=(1, 2, 4), stem=2), 8),
        (dict(channel_mult=(1, 2), stem=2, attention_at=()), 4),
    ],
)
def test_factor(config, factor):
    with torch.device("meta"):
        model = Autoencoder(**({"attention_at": (2,)} | config))
        assert model.factor == factor
        assert model.encode(torch.empty(1, 1, 64, 32)).mean.shape[-2:] == (64 // factor, 32 // factor)
        assert model.decode(torch.empty(1, model.latent_channels, 4, 5)).shape[-2:] == (4 * factor, 5 * factor)


def kinds(part: nn.Module) -> list[type]:
    return [type(m) for m in part.modules() if isinstance(m, ResBlock | SelfAttention | Downsample | Upsample)]


def test_attention_is_at_the_deep_level_only_and_the_decoder_mirrors_the_encoder():
    model = Autoencoder(**(TINY | dict(blocks=2)))
    assert kinds(model.encoder.levels[0]) == [ResBlock] * 2
    assert kinds(model.encoder.levels[1]) == [ResBlock, SelfAttention, ResBlock]
    assert kinds(model.encoder.downs) == [Downsample] and kinds(model.decoder.ups) == [Upsample]
    assert kinds(model.decoder.levels[0]) == [ResBlock, SelfAttention] * 2 + [ResBlock]
    assert kinds(model.decoder.levels[1]) == [ResBlock] * 3
    convolutional = Autoencoder(**(TINY | dict(attention_at=())))
    assert SelfAttention not in kinds(convolutional)


def test_equals_second_implementation():
    """The tiny configuration, written out on its state dict."""
    model, x = tiny(), image(2, 1, 8, 6)
    p = model.state_dict()

    def conv(at, y, **options):
        weight = p[f"{at}.weight"]
        return F.conv2d(y, weight, p[f"{at}.bias"], padding=weight.shape[-1] // 2, **options)

    def norm_silu(at, y):
        y = F.group_norm(y, 4, p[f"{at}.weight"], p[f"{at}.bias"], 1e-5)
        return y * torch.sigmoid(y)

    def res(at, y):
        h = conv(f"{at}.in_layers.2", norm_silu(f"{at}.in_layers.0", y))
        h = conv(f"{at}.out_layers.3", norm_silu(f"{at}.out_layers.0", h))
        return h + (conv(f"{at}.skip_connection", y) if f"{at}.skip_connection.weight" in p else y)

    def attend(at, y):
        b, c, h, w = y.shape
        n = F.group_norm(y, 4, p[f"{at}.norm.weight"], p[f"{at}.norm.bias"], 1e-5).flatten(2)
        q, k, v = (p[f"{at}.qkv.weight"][..., 0] @ n + p[f"{at}.qkv.bias"][:, None]).chunk(3, 1)
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(c), dim=-1)
        out = torch.einsum("bqk,bck->bcq", weights, v)
        out = p[f"{at}.proj_out.weight"][..., 0] @ out + p[f"{at}.proj_out.bias"][:, None]
        return y + out.reshape(b, c, h, w)

    h = res("encoder.levels.0.0", conv("encoder.conv_in", x))
    h = conv("encoder.downs.0.op", h, stride=2)
    h = attend("encoder.levels.1.1", res("encoder.levels.1.0", h))
    h = res("encoder.middle.2", attend("encoder.middle.1", res("encoder.middle.0", h)))
    h = conv("encoder.out.2", norm_silu("encoder.out.0", h))
    posterior = model.encode(x)
    torch.testing.assert_close(torch.cat(posterior, 1), h, rtol=0, atol=1e-12)

    z = h[:, :3]
    y = conv("decoder.conv_in", z)
    y = res("decoder.middle.2", attend("decoder.middle.1", res("decoder.middle.0", y)))
    y = attend("decoder.levels.0.1", res("decoder.levels.0.0", y))
    y = res("decoder.levels.0.2", y).repeat_interleave(2, 2).repeat_interleave(2, 3)
    y = conv("decoder.ups.0.conv", y)
    y = res("decoder.levels.1.1", res("decoder.levels.1.0", y))
    y = conv("decoder.out.2", norm_silu("decoder.out.0", y))
    torch.testing.assert_close(model.decode(z), y, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(x)[0], y, rtol=0, atol=1e-12)


def test_stem_takes_and_gives_blocks_of_pixels():
    model, x = tiny(stem=2), image(1, 1, 8, 8)
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    z = model.encode(x).mean
    corners = torch.stack([x[0, 0, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    assert torch.equal(seen[0][0], corners)
    blocks = model.decoder(z)
    y = model.decode(z)
    for n in range(4):
        assert torch.equal(y[0, 0, n // 2 :: 2, n % 2 :: 2], blocks[0, n])


def test_features_end_in_what_the_latent_is_read_from():
    model, x = tiny(), image(1, 1, 8, 8)
    features = model.features(x)
    assert [tuple(f.shape) for f in features] == [(1, 8, 8, 8), (1, 16, 4, 4)]
    posterior = model.encode(x)
    torch.testing.assert_close(model.encoder.out(features[-1]), torch.cat(posterior, 1), rtol=0, atol=1e-12)


# ---------------------------------------------------------------- any size


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (2, 9)])
def test_any_size_comes_back_as_if_padded_by_hand(size):
    model = tiny()
    x = image(1, 1, *size)
    y, posterior = model(x)
    assert y.shape == x.shape
    assert posterior.mean.shape[-2:] == tuple(math.ceil(n / 2) for n in size)
    padded = torch.cat([x, x[..., -2:-1, :] if size[0] > 1 and size[1] > 1 else x[..., -1:, :]], 2)
    padded = padded[..., : size[0] + size[0] % 2, :]
    column = padded[..., -2:-1] if size[0] > 1 and size[1] > 1 else padded[..., -1:]
    padded = torch.cat([padded, column], 3)[..., : size[1] + size[1] % 2]
    torch.testing.assert_close(model(padded)[0][..., : size[0], : size[1]], y, rtol=0, atol=1e-12)


def test_decode_crops_and_refuses_what_it_cannot_give():
    model = tiny()
    z = image(1, 3, 4, 5)
    assert torch.equal(model.decode(z, (7, 9)), model.decode(z)[..., :7, :9])
    for size in ((9, 10), (8, 11), (0, 4)):
        with pytest.raises(ShapeError, match="lacks"):
            model.decode(z, size)
    with pytest.raises(ShapeError, match=r"\(B, 3, h, w\)"):
        model.decode(z[:, :2])
    with pytest.raises(ShapeError, match=r"\(B, 1, H, W\)"):
        model.encode(z)


# ---------------------------------------------------------------- posterior and scale


def test_untrained_posterior_is_narrow():
    torch.manual_seed(0)
    posterior = Autoencoder(**TINY).encode(image(2, 1, 8, 8).float())
    assert (posterior.logvar == INITIAL_LOGVAR).all()
    assert posterior.std.mean().item() == pytest.approx(math.exp(INITIAL_LOGVAR / 2), rel=1e-6)
    assert posterior.mean.std() > 0.01  # while the mean already carries the image


def test_posterior_samples_have_its_moments_and_repeat():
    mean, logvar = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, math.log(4.0)]])
    n = 40_000
    z = Posterior(mean.expand(n, 2), logvar.expand(n, 2)).sample(seeded(3))
    # standard errors: std / 200 of a mean, std / 283 of a std; 4 of them
    torch.testing.assert_close(z.mean(0), mean[0], rtol=0, atol=0.04)
    torch.testing.assert_close(z.std(0), torch.tensor([1.0, 2.0]), rtol=0.015, atol=0)
    model, x = tiny(), image(1, 1, 8, 8)
    one, two, other = (model(x, generator=seeded(s))[0] for s in (5, 5, 6))
    assert torch.equal(one, two) and not torch.equal(one, other)
    before = torch.get_rng_state()
    y, posterior = model(x, generator=seeded(5))
    assert torch.equal(torch.get_rng_state(), before)  # the default stream is untouched
    noise = torch.randn(posterior.mean.shape, generator=seeded(5)).double()
    torch.testing.assert_close(y, model.decode(posterior.mean + posterior.std * noise), rtol=0, atol=0)


def test_samples_are_differentiable_in_mean_and_spread():
    mean = torch.zeros(1, 2, 3, 3, requires_grad=True)
    logvar = torch.full((1, 2, 3, 3), 0.4, requires_grad=True)
    z = Posterior(mean, logvar).sample(seeded(1))
    z.sum().backward()
    assert torch.equal(mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(logvar.grad, 0.5 * z.detach())  # d(std noise)/d(logvar) = std noise / 2, mean is 0


def test_latent_scale_makes_unit_variance_and_survives_a_checkpoint(tmp_path):
    model, x = tiny(), image(4, 1, 16, 16)
    z = model.encode(x).sample(seeded(1))
    scale = model.fit_latent_scale(z)
    assert model.scale(z).std().item() == pytest.approx(1.0, rel=1e-12)
    torch.testing.assert_close(model.unscale(model.scale(z)), z, rtol=1e-14, atol=0)
    trained_on = dict.fromkeys(checkpoints.PROVENANCE, 0)
    described = dict(config=TINY | {"latent_scale": scale}, hu_range=None, quality={}, trained_on=trained_on)
    path = checkpoints.save(tmp_path / "a.safetensors", model.float(), model="autoencoder", **described)
    again = checkpoints.build(path)
    assert again.latent_scale == scale  # exact, though the weights are stored in half precision
    x = x.float()
    with torch.no_grad():
        # weights rounded at 2^-11 each: relative errors of 5e-4 in a dozen layers, none of them correlated
        torch.testing.assert_close(again(x)[0], model(x)[0], rtol=0, atol=0.02 * model(x)[0].std().item())


def test_bfloat16_and_channels_last_keep_dtype_and_values():
    model, x = tiny().float(), image(2, 1, 16, 16).float()
    with torch.no_grad():
        expected, posterior = model(x)
        model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(x)[0], expected, rtol=0, atol=1e-4 * expected.abs().max().item())
        with torch.autocast("cpu", torch.bfloat16):
            mixed, mixed_posterior = model(x)
        pure, _ = model.bfloat16()(x)
    assert mixed_posterior.mean.dtype == torch.float32
    for y in (mixed, pure):
        assert y.dtype == torch.float32
        # 8 bits of mantissa: 0.4 % a rounding, some 40 of them in a row and partly correlated
        assert (y - expected).std() / expected.std() < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(attention_at=(4,)), "factors"),
        (dict(latent_scale=0.0), "latent_scale"),
        (dict(width=6), "norm_groups"),
        (dict(num_head_channels=5), "num_head_channels=5"),
    ],
)
def test_configurations_that_cannot_be_built(changes, message):
    with pytest.raises(ParameterError, match=message):
        Autoencoder(**(TINY | changes))


def test_constant_latents_have_no_scale():
    with pytest.raises(ParameterError, match="unit variance"):
        tiny().fit_latent_scale(torch.ones(2, 3, 4, 4))


def test_learns_to_reconstruct_in_a_few_steps():
    torch.manual_seed(0)
    model = Autoencoder(**(TINY | dict(width=16)))
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij")
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    generator = seeded(4)

    def planes(n):
        a, b, c = torch.randn(3, n, 1, 1, 1, generator=generator) * 0.4
        return a + b * rows + c * columns

    for _ in range(100):
        x = planes(16)
        loss = F.mse_loss(model(x, generator=generator)[0], x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = planes(64)
    with torch.no_grad():
        error = F.mse_loss(model(x)[0], x) / x.var()
    assert error < 0.06  # 0.015 and 0.020 with two seeds; predicting the mean gives 1, no training 1.1


# ---------------------------------------------------------------- the linear shortcut


def kept(size: int, count: int) -> np.ndarray:
    """Which cosines of a block are the ``count`` lowest: by a^2 + b^2, then by a, then by b."""
    a, b = np.indices((size, size))
    order = np.lexsort((b.ravel(), a.ravel(), (a**2 + b**2).ravel()))
    mask = np.zeros(size * size, bool)
    mask[order[:count]] = True
    return mask.reshape(size, size)


@pytest.mark.parametrize(("stem", "latents"), [(1, 1), (1, 3), (2, 4), (2, 16)])
def test_shortcut_starts_as_the_projection_on_the_lowest_cosines(stem, latents):
    from scipy.fft import dctn, idctn

    model = Autoencoder(**(TINY | dict(stem=stem, latent_channels=latents, shortcut=True)))
    f = model.factor
    x = image(2, 1, 3 * f, 5 * f).float()
    blocks = x.numpy().reshape(2, 3, f, 5, f).transpose(0, 1, 3, 2, 4)
    coefficients = dctn(blocks, axes=(-2, -1), norm="ortho") * kept(f, latents)
    projected = idctn(coefficients, axes=(-2, -1), norm="ortho").transpose(0, 1, 3, 2, 4).reshape(x.shape)
    with torch.no_grad():
        y, posterior = model(x)
    torch.testing.assert_close(y, torch.from_numpy(projected), rtol=0, atol=2e-6)
    # each channel is one cosine's coefficient up to a gain, and its noise is an untrained posterior's
    values = coefficients[..., kept(f, latents)].reshape(-1, latents)
    means = posterior.mean.permute(0, 2, 3, 1).reshape(-1, latents).numpy()
    correlation = np.abs(np.corrcoef(values.T, means.T)[:latents, latents:]) if latents > 1 else np.ones((1, 1))
    assert np.allclose(correlation.max(0), 1, atol=1e-4) and sorted(correlation.argmax(0)) == list(range(latents))
    assert torch.allclose(posterior.logvar, torch.tensor(INITIAL_LOGVAR))


@pytest.mark.parametrize("size", [(8, 8), (13, 7), (1, 1), (5, 30)])
def test_shortcut_gives_constant_images_back_at_any_size(size):
    model = Autoencoder(**(TINY | dict(stem=2, latent_channels=4, shortcut=True)))
    x = torch.full((1, 1, *size), 0.3)
    with torch.no_grad():
        y, posterior = model(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y, x, rtol=0, atol=1e-6)
    assert posterior.mean.shape[-2:] == tuple(math.ceil(n / 4) for n in size)
    assert model.decode(posterior.mean, size).shape == x.shape


@pytest.mark.parametrize(("size", "count", "channels"), [(8, 16, 1), (4, 16, 1), (2, 5, 2), (1, 1, 1)])
def test_cosines_are_orthonormal(size, count, channels):
    basis, gain = low_cosines(size, count, channels)
    assert basis.shape == (count, channels, size, size) and gain.shape == (count, 1, 1, 1) and bool((gain > 0).all())
    flat = basis.flatten(1).double()
    torch.testing.assert_close(flat @ flat.T, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_block_has_only_so_many_cosines():
    with pytest.raises(ParameterError, match="4 x 4 has no 17 cosines"):
        low_cosines(4, 17)
    with pytest.raises(ParameterError, match="2 x 2 has no 5 cosines"):
        Autoencoder(**(TINY | dict(latent_channels=5, shortcut=True)))


def test_the_shortcut_adds_two_linear_maps_and_nothing_without_it():
    plain, short = (Autoencoder(**(TINY | dict(shortcut=on))).state_dict() for on in (False, True))
    assert {k.split(".")[0] for k in plain} == {"encoder", "decoder"}
    assert short.keys() - plain.keys() == {"analysis.weight", "synthesis.weight"} and plain.keys() <= short.keys()
    assert {k: v.shape for k, v in plain.items()} == {k: short[k].shape for k in plain}


def test_the_shortcut_and_the_network_are_both_learnt():
    """Each gets a gradient in the first step, though the network adds nothing yet."""
    torch.manual_seed(0)
    model = Autoencoder(**(TINY | dict(shortcut=True)))
    x = image(2, 1, 16, 16).float()
    F.mse_loss(model(x, generator=seeded())[0], x).backward()
    for name in ("analysis.weight", "synthesis.weight", "encoder.out.2.weight", "decoder.out.2.weight"):
        assert float(model.get_parameter(name).grad.abs().max()) > 0, name


# ---------------------------------------------------------------- the lapped shortcut


F8 = TINY | dict(channel_mult=(1, 2, 2), stem=2, shortcut=True)


def lapped(latents: int = 32) -> Autoencoder:
    return Autoencoder(**(F8 | dict(latent_channels=latents, lapped=True)))


def test_the_filter_across_borders_makes_a_lapped_orthogonal_transform():
    """Its coding gain for the textbook's signal, an AR(1) of .95, is the published one: 9.22 dB; blocks alone 8.83."""
    from scipy.fft import dct

    size, blocks = 8, 5
    n = size * blocks
    matrix = border_filter(size).double().numpy()
    assert np.abs(matrix @ matrix.T - np.eye(size)).max() < 1e-6
    covariance = 0.95 ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    cosines = np.kron(np.eye(blocks), dct(np.eye(size), norm="ortho", axis=0))
    across = np.eye(n)
    for k in range(1, blocks):
        across[k * size - 4 : k * size + 4, k * size - 4 : k * size + 4] = matrix
    for transform, gain in ((cosines, 8.83), (cosines @ across, 9.22)):
        inner = transform[2 * size : 3 * size]  # a block that has neighbours
        variances = np.diag(inner @ covariance @ inner.T)
        assert -10 * np.log10(variances).mean() == pytest.approx(gain, abs=0.01)


@pytest.mark.parametrize("size", [(32, 48), (8, 16), (8, 8), (19, 37)])
def test_a_lapped_shortcut_with_all_cosines_gives_the_image_back(size):
    model, x = lapped(64), image(2, 1, *size).float()
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], x, rtol=0, atol=1e-5)
        flat = torch.full_like(x, 0.3)
        torch.testing.assert_close(lapped(1)(flat)[0], flat, rtol=0, atol=1e-5)


def test_neighbouring_latents_that_err_apart_leave_no_border():
    """Noise on every latent: the steps from a pixel to the next across borders against those inside blocks."""

    def ratio(model):
        with torch.no_grad():
            y = model.decode(torch.randn(1, 16, 32, 32, generator=seeded()))
        steps = (y[..., 1:] - y[..., :-1]).square().mean((0, 1, 2))
        inside = torch.arange(len(steps)) % 8 != 7
        return float((steps[~inside].mean() / steps[inside].mean()).sqrt())

    blocks = Autoencoder(**(F8 | dict(latent_channels=16)))
    assert ratio(blocks) > 3 and ratio(lapped(16)) < 1.3


def test_the_last_level_sees_the_sketch_and_the_border_filter_is_no_weight():
    plain, more = (Autoencoder(**(TINY | dict(shortcut=True, lapped=on))).state_dict() for on in (False, True))
    assert more.keys() - plain.keys() == {"decoder.sketch.weight", "decoder.sketch.bias"}
    with pytest.raises(ParameterError, match="needs shortcut=True"):
        Autoencoder(**(TINY | dict(lapped=True)))
    with pytest.raises(ParameterError, match="an even factor"):
        Autoencoder(**(F8 | dict(channel_mult=(1,), stem=3, attention_at=(), lapped=True)))
