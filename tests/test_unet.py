"""The U-Net against published sizes and keys, a second implementation, and naive attention."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ldctlib import checkpoints, image
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.models import blocks
from ldctlib.models.unet import GUIDED_DIFFUSION_256, RELEASED_CT_MR, UNet, split_prediction

TINY = dict(
    in_channels=2,
    model_channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_at=(2,),
    num_heads=2,
    norm_groups=4,
)


def on_meta(**config) -> UNet:
    with torch.device("meta"):
        return UNet(**config)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def random_weights(model: nn.Module, seed: int = 1) -> nn.Module:
    """Every parameter random, those that start at 0 too, in float64."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for p in model.parameters():
            fan_in = p[0].numel() if p.ndim > 1 else 1
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / max(fan_in, 4) ** 0.5)
    return model.eval()


def tiny(seed: int = 1, **changes) -> UNet:
    return random_weights(UNet(**(TINY | changes)), seed)


def noise(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- published layouts


def resblock_keys(at: str, shortcut: bool) -> list[str]:
    layers = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
    return [f"{at}.{layer}" for layer in layers + ["skip_connection"] * shortcut]


def attention_keys(at: str) -> list[str]:
    return [f"{at}.{layer}" for layer in ("norm", "qkv", "proj_out")]


def test_released_ct_mr_configuration_has_the_published_size_and_keys():
    model = on_meta(**RELEASED_CT_MR)
    # widths 64 64 128 128 256 256: it widens after the 2nd and 4th downsampling; the way up always joins two
    layers = ["time_embed.0", "time_embed.2", "input_blocks.0.0"]
    for n in range(1, 24):
        if n in (4, 8, 12, 16, 20):
            layers.append(f"input_blocks.{n}.0.op")
        else:
            layers += resblock_keys(f"input_blocks.{n}.0", shortcut=n in (9, 17))
            layers += attention_keys(f"input_blocks.{n}.1") if n > 16 else []
    layers += resblock_keys("middle_block.0", False) + attention_keys("middle_block.1")
    layers += resblock_keys("middle_block.2", False)
    for n in range(24):
        layers += resblock_keys(f"output_blocks.{n}.0", True)
        layers += attention_keys(f"output_blocks.{n}.1") if n < 8 else []
        layers += [f"output_blocks.{n}.2.conv"] if n in (3, 7) else []
        layers += [f"output_blocks.{n}.1.conv"] if n in (11, 15, 19) else []
    layers += ["out.0", "out.2"]
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert set(shapes) == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert len(shapes) == 612
    assert count(model) == 41_123_331
    assert shapes["middle_block.1.qkv.weight"] == (768, 256, 1)
    assert shapes["input_blocks.0.0.weight"] == (64, 3, 3, 3)


def test_guided_diffusion_256_and_stable_diffusion_sizes():
    assert count(on_meta(**GUIDED_DIFFUSION_256)) == 552_814_086
    widths = dict(in_channels=4, model_channels=320, channel_mult=(1, 2, 4, 4), num_res_blocks=2)
    attention = dict(attention_at=(1, 2, 4), num_heads=8, context_dim=768)
    stable_diffusion = on_meta(**widths, **attention, scale_shift_norm=False)
    assert count(stable_diffusion) == 859_520_964
    shapes = {name: tuple(t.shape) for name, t in stable_diffusion.state_dict().items()}
    assert len(shapes) == 686
    at = "input_blocks.1.1."
    expected = {f"{at}{n}.{k}" for n in ("norm", "proj_in", "proj_out") for k in ("weight", "bias")}
    at += "transformer_blocks.0."
    expected |= {f"{at}attn{i}.to_{n}.weight" for i in (1, 2) for n in "qkv"}
    with_bias = ["attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"]
    expected |= {f"{at}{n}.{k}" for n in with_bias for k in ("weight", "bias")}
    assert {n for n in shapes if n.startswith("input_blocks.1.1.")} == expected
    assert shapes[f"{at}attn2.to_k.weight"] == (320, 768)
    assert shapes[f"{at}ff.net.0.proj.weight"] == (2560, 320)


# ---------------------------------------------------------------- a second implementation


class ByHand:
    """The tiny configuration block by block, on its state dict, with naive parts."""

    def __init__(self, model: UNet, scale_shift: bool, heads: int = 2, groups: int = 4):
        self.p, self.scale_shift, self.heads, self.groups = model.state_dict(), scale_shift, heads, groups

    def norm(self, at, x, eps=1e-5):
        b, c, h, w = x.shape
        g = x.reshape(b, self.groups, -1)
        g = (g - g.mean(2, keepdim=True)) / (g.var(2, keepdim=True, unbiased=False) + eps).sqrt()
        return g.reshape(b, c, h, w) * self.p[f"{at}.weight"].view(-1, 1, 1) + self.p[f"{at}.bias"].view(-1, 1, 1)

    def conv(self, at, x, stride=1):
        """Cross-correlation with zero padding as a sum over kernel positions."""
        weight, k = self.p[f"{at}.weight"], self.p[f"{at}.weight"].shape[-1]
        h, w = x.shape[-2:]
        padded = x.new_zeros(*x.shape[:2], h + k - 1, w + k - 1)
        padded[..., k // 2 : k // 2 + h, k // 2 : k // 2 + w] = x
        y = sum(
            torch.einsum("oi,bihw->bohw", weight[:, :, i, j], padded[..., i : i + h : stride, j : j + w : stride])
            for i in range(k)
            for j in range(k)
        )
        return y + self.p[f"{at}.bias"].view(-1, 1, 1)

    def linear(self, at, x):
        bias = self.p.get(f"{at}.bias")
        y = x @ self.p[f"{at}.weight"].squeeze(-1).mT
        return y if bias is None else y + bias

    def res(self, at, x, emb):
        def silu(y):
            return y / (1 + (-y).exp())

        h = self.conv(f"{at}.in_layers.2", silu(self.norm(f"{at}.in_layers.0", x)))
        code = self.linear(f"{at}.emb_layers.1", silu(emb))[:, :, None, None]
        if self.scale_shift:
            c = h.shape[1]
            h = self.norm(f"{at}.out_layers.0", h) * (1 + code[:, :c]) + code[:, c:]
        else:
            h = self.norm(f"{at}.out_layers.0", h + code)
        h = self.conv(f"{at}.out_layers.3", silu(h))
        return (self.conv(f"{at}.skip_connection", x) if f"{at}.skip_connection.weight" in self.p else x) + h

    def attend(self, at, x):
        """Legacy order: q, k, v of one head after the other; q and k each scaled by channels^(-1/4)."""
        b, c, h, w = x.shape
        d = c // self.heads
        qkv = self.linear(f"{at}.qkv", self.norm(f"{at}.norm", x).reshape(b, c, h * w).mT)
        heads = []
        for i in range(self.heads):
            q, k, v = (qkv[..., i * 3 * d + j * d : i * 3 * d + (j + 1) * d] for j in range(3))
            weights = torch.softmax((q * d**-0.25) @ (k * d**-0.25).mT, dim=-1)
            heads.append(weights @ v)
        return x + self.linear(f"{at}.proj_out", torch.cat(heads, -1)).mT.reshape(b, c, h, w)

    def naive(self, at, x, context):
        q, k, v = (self.linear(f"{at}.to_q", x), self.linear(f"{at}.to_k", context), self.linear(f"{at}.to_v", context))
        d, heads = q.shape[-1] // self.heads, []
        for i in range(self.heads):
            part = slice(i * d, (i + 1) * d)
            weights = torch.softmax(q[..., part] @ k[..., part].mT / math.sqrt(d), dim=-1)
            heads.append(weights @ v[..., part])
        return self.linear(f"{at}.to_out.0", torch.cat(heads, -1))

    def transform(self, at, x, context):
        def layer_norm(name, y):
            y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            return y * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

        b, c, h, w = x.shape
        y = self.conv(f"{at}.proj_in", self.norm(f"{at}.norm", x, eps=1e-6)).reshape(b, c, h * w).mT
        block = f"{at}.transformer_blocks.0"
        n = layer_norm(f"{block}.norm1", y)
        y = y + self.naive(f"{block}.attn1", n, n)
        y = y + self.naive(f"{block}.attn2", layer_norm(f"{block}.norm2", y), context)
        a, gate = self.linear(f"{block}.ff.net.0.proj", layer_norm(f"{block}.norm3", y)).chunk(2, -1)
        y = y + self.linear(f"{block}.ff.net.2", a * 0.5 * gate * (1 + torch.erf(gate / 2**0.5)))
        return x + self.conv(f"{at}.proj_out", y.mT.reshape(b, c, h, w))

    def __call__(self, x, t, context=None):
        def attend(at, y):
            return self.attend(at, y) if context is None else self.transform(at, y, context)

        angles = [[ti * 10_000 ** (-k / 4) for k in range(4)] for ti in t.tolist()]
        code = torch.tensor([[math.cos(a) for a in row] + [math.sin(a) for a in row] for row in angles])
        code = self.linear("time_embed.0", code.to(x))
        emb = self.linear("time_embed.2", code / (1 + (-code).exp()))
        h0 = self.conv("input_blocks.0.0", x)
        h1 = self.res("input_blocks.1.0", h0, emb)
        h2 = self.conv("input_blocks.2.0.op", h1, stride=2)
        h3 = attend("input_blocks.3.1", self.res("input_blocks.3.0", h2, emb))
        y = attend("middle_block.1", self.res("middle_block.0", h3, emb))
        y = self.res("middle_block.2", y, emb)
        y = attend("output_blocks.0.1", self.res("output_blocks.0.0", torch.cat([y, h3], 1), emb))
        y = attend("output_blocks.1.1", self.res("output_blocks.1.0", torch.cat([y, h2], 1), emb))
        y = self.conv("output_blocks.1.2.conv", y.repeat_interleave(2, 2).repeat_interleave(2, 3))
        y = self.res("output_blocks.2.0", torch.cat([y, h1], 1), emb)
        y = self.norm("out.0", self.res("output_blocks.3.0", torch.cat([y, h0], 1), emb))
        return self.conv("out.2", y / (1 + (-y).exp()))


# The timestep code is float32 by definition, with errors of 6e-8 of its angles; t is kept below 10, so that
# they stay below 1e-6. Everything else is float64.
CLOSE = dict(rtol=0, atol=2e-5)


@pytest.mark.parametrize("scale_shift", [True, False])
def test_equals_second_implementation(scale_shift):
    model = tiny(scale_shift_norm=scale_shift)
    x, t = noise(2, 2, 8, 6), torch.tensor([0, 9])
    expected = ByHand(model, scale_shift)(x, t)
    assert expected.std() > 0.1  # the comparison is of something
    torch.testing.assert_close(model(x, t), expected, **CLOSE)


def test_cross_attention_equals_second_implementation():
    model = tiny(context_dim=5, scale_shift_norm=False)
    x, t, context = noise(2, 2, 8, 6), torch.tensor([3, 8]), noise(2, 7, 5, seed=8)
    expected = ByHand(model, False)(x, t, context)
    torch.testing.assert_close(model(x, t, context=context), expected, **CLOSE)
    assert (model(x, t, context=context.roll(1, 0)) - expected).abs().max() > 1e-3  # the context counts
    # tokens are a set
    torch.testing.assert_close(model(x, t, context=context.flip(1)), expected, **CLOSE)


def test_resblock_updown_equals_second_implementation():
    """Resampling by 2x2 means and by repetition, between the activation and the first convolution."""
    for resample, change in (
        ("down", lambda y: (y[..., ::2, ::2] + y[..., 1::2, ::2] + y[..., ::2, 1::2] + y[..., 1::2, 1::2]) / 4),
        ("up", lambda y: y.repeat_interleave(2, 2).repeat_interleave(2, 3)),
    ):
        block = random_weights(blocks.ResBlock(4, 8, emb_dim=6, scale_shift=True, resample=resample, groups=2))
        x, emb = noise(2, 4, 6, 4), noise(2, 6)
        hand = ByHand(nn.ModuleDict({"b": block}), True, groups=2)
        h = hand.norm("b.in_layers.0", x)
        h = hand.conv("b.in_layers.2", change(h * torch.sigmoid(h)))
        scale, shift = hand.linear("b.emb_layers.1", emb * torch.sigmoid(emb))[:, :, None, None].chunk(2, 1)
        h = hand.norm("b.out_layers.0", h) * (1 + scale) + shift
        h = hand.conv("b.out_layers.3", h * torch.sigmoid(h)) + hand.conv("b.skip_connection", change(x))
        torch.testing.assert_close(block(x, emb), h, rtol=0, atol=1e-12)


def test_concat_is_a_first_convolution_of_both():
    plain, joined = tiny(), tiny(concat_channels=3)
    state = plain.state_dict()
    extra = noise(8, 3, 3, 3, seed=11)
    state["input_blocks.0.0.weight"] = torch.cat([state["input_blocks.0.0.weight"], extra], 1)
    joined.load_state_dict(state)
    x, t = noise(2, 2, 8, 8), torch.tensor([1, 5])
    nothing = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(joined(x, t, concat=nothing), plain(x, t), rtol=0, atol=1e-12)
    assert (joined(x, t, concat=noise(2, 3, 8, 8)) - plain(x, t)).abs().max() > 1e-3


# ---------------------------------------------------------------- a map as context


def test_rotary_positions_make_scores_depend_on_displacement_alone():
    q, k = noise(1, 1, 1, 12), noise(1, 1, 1, 12, seed=9)

    def score(at_q, at_k):
        def turned(x, at):
            return blocks.rotate_by_position(x, torch.tensor([at], dtype=torch.float64))

        return (turned(q, at_q) * turned(k, at_k)).sum().item()

    # frequencies are float32: 1e-7 of angles up to 60, times scores of about 4
    assert score((3.0, 1.0), (1.0, 5.0)) == pytest.approx(score((53.0, 31.0), (51.0, 35.0)), abs=1e-4)
    assert abs(score((3.0, 1.0), (1.0, 5.0)) - score((3.0, 1.0), (5.0, 1.0))) > 1e-2
    turned = blocks.rotate_by_position(q, torch.tensor([[4.0, 7.0]], dtype=torch.float64))
    assert turned.norm().item() == pytest.approx(q.norm().item(), rel=1e-6)


def test_grid_positions_of_coarse_and_fine_cells_share_their_extent():
    fine = blocks.grid_positions((4, 6), (4, 6), torch.device("cpu")).view(4, 6, 2)
    coarse = blocks.grid_positions((2, 3), (4, 6), torch.device("cpu")).view(2, 3, 2)
    assert fine[1, 2].tolist() == [1.5, 2.5]
    blockwise = fine.view(2, 2, 3, 2, 2).mean(dim=(1, 3))
    torch.testing.assert_close(coarse, blockwise)  # a coarse cell's centre is the mean of its fine cells'


def test_cross_attention_finds_a_place_in_a_context_map():
    """One step of attention can copy the map's value at its own place, at a size it was not set up for."""
    attention = blocks.TokenAttention(8, 9, heads=1).double()
    with torch.no_grad():
        for p in attention.parameters():
            p.zero_()
        # the last channel of both is 1: a constant query and key, which only positions tell apart
        attention.to_q.weight[:, 7] = 60.0
        attention.to_k.weight[:, 8] = 60.0
        attention.to_v.weight[0, 0] = 1.0
        attention.to_out[0].weight[0, 0] = 1.0
    for grid in ((5, 4), (9, 12)):
        values = noise(grid[0] * grid[1])
        context = torch.zeros(1, len(values), 9, dtype=torch.float64)
        context[0, :, 0], context[0, :, 8] = values, 1
        x = torch.zeros(1, len(values), 8, dtype=torch.float64)
        x[..., 7] = 1
        at = blocks.grid_positions(grid, grid, torch.device("cpu"))
        # scores fall by 2 * 3600 / sqrt(8) * (1 - cos d) at distance d, least (101) at the near-period 6
        torch.testing.assert_close(attention(x, context, (at, at))[0, :, 0], values, rtol=0, atol=1e-9)


def test_spatial_transformer_sees_where_the_tokens_of_a_map_lie():
    block = random_weights(blocks.SpatialTransformer(8, 5, heads=2, groups=4))
    x, tokens = noise(1, 8, 4, 4), noise(1, 12, 5)
    turned = tokens.flip(1)

    def difference(grid):
        return (block(x, blocks.Context(tokens, grid)) - block(x, blocks.Context(turned, grid))).abs().max()

    assert difference(None) < 1e-12  # a set
    assert difference((3, 4)) > 1e-3
    assert (block(x, blocks.Context(tokens, (3, 4))) - block(x, blocks.Context(tokens, (4, 3)))).abs().max() > 1e-3


def test_context_map_arrives_as_tokens_of_the_shallowest_attention():
    model = tiny(context_dim=8, context_channels=3)
    x, c = noise(1, 2, 8, 12), noise(1, 3, 8, 12, seed=12)
    seen = []
    for stage in (model.input_blocks[3], model.middle_block, model.output_blocks[1]):
        stage[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model(x, 4, context=c)
    encoded = model.context_embed(c)
    assert encoded.shape == (1, 8, 4, 6)
    assert len(seen) == 3
    for context in seen:
        assert context.grid == (4, 6)
        assert torch.equal(context.tokens[0, 7], encoded[0, :, 1, 1])  # row-major


# ---------------------------------------------------------------- initialisation


@pytest.mark.parametrize("kind", ["self", "tokens"])
def test_starts_at_zero_with_every_block_the_identity(kind):
    torch.manual_seed(0)
    model = UNet(**TINY, context_dim=5 if kind == "tokens" else None)
    x, t = noise(2, 2, 8, 8).float(), torch.tensor([1, 500])
    context = noise(2, 3, 5).float() if kind == "tokens" else None
    assert not model(x, t, context=context).any()
    emb = noise(2, 32).float()
    stage = model.input_blocks[3]  # widens from 8 to 16: a linear shortcut, then attention
    h = noise(2, 8, 4, 4).float()
    attended = None if context is None else blocks.Context(context)
    assert torch.equal(stage(h, emb, attended), stage[0].skip_connection(h))
    h = noise(2, 16, 4, 4).float()
    assert torch.equal(model.middle_block(h, emb, attended), h)


def test_timestep_embedding_closed_form():
    code = blocks.timestep_embedding(torch.tensor([0.0, 2.0]), 6)
    f = [1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)]
    expected = [[1, 1, 1, 0, 0, 0], [math.cos(2 * k) for k in f] + [math.sin(2 * k) for k in f]]
    torch.testing.assert_close(code, torch.tensor(expected), rtol=0, atol=1e-6)
    odd = blocks.timestep_embedding(torch.tensor([2]), 7)
    assert torch.equal(odd[:, :6], code[1:]) and odd[0, 6] == 0


# ---------------------------------------------------------------- numerics and memory


def gradients(model: UNet, x, t, context):
    model.zero_grad()
    x = x.clone().requires_grad_()
    output = model(x, t, context=context)
    output.square().sum().backward()
    return output.detach(), x.grad, {n: p.grad.clone() for n, p in model.named_parameters()}


def test_gradient_checkpointing_gives_equal_gradients():
    model = tiny(context_dim=8, context_channels=3)
    arguments = noise(2, 2, 8, 8), torch.tensor([1, 700]), noise(2, 3, 8, 8)
    calls = []
    model.middle_block[0].register_forward_hook(lambda *_: calls.append(1))
    plain = gradients(model, *arguments)
    assert len(calls) == 1
    model.gradient_checkpointing = True
    again = gradients(model, *arguments)
    assert len(calls) == 3  # once forward, once recomputed
    assert torch.equal(plain[0], again[0])
    assert torch.equal(plain[1], again[1])
    for name, gradient in plain[2].items():
        # the same operations, but a tensor that is used several times may sum its gradients in another order
        torch.testing.assert_close(again[2][name], gradient, rtol=1e-10, atol=1e-12, msg=name)
    with torch.no_grad():
        model(*arguments[:2], context=arguments[2])
    assert len(calls) == 4


def test_channels_last_and_bfloat16():
    model = tiny(context_dim=8, context_channels=3).float()
    x, t, c = noise(2, 2, 8, 8).float(), torch.tensor([1, 700]), noise(2, 3, 8, 8).float()
    with torch.no_grad():
        expected = model(x, t, context=c)
        model.to(memory_format=torch.channels_last)
        last = model(x.contiguous(memory_format=torch.channels_last), t, context=c)
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)  # float32, 15 layers
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x, t, context=c)
        pure = model.bfloat16()(x, t, context=c)
    for y in (mixed, pure):
        assert y.dtype == torch.float32
        # 8 bits of mantissa: 0.4 % a rounding, some 40 of them in a row and partly correlated
        assert (y - expected).std() / expected.std() < 0.05


def test_timesteps_of_any_kind():
    model = tiny()
    x = noise(2, 2, 4, 4)
    torch.testing.assert_close(model(x, 7), model(x, torch.tensor([7, 7])), rtol=0, atol=0)
    torch.testing.assert_close(model(x, torch.tensor(7.0)), model(x, 7), rtol=0, atol=0)
    assert (model(x, 7.5) - model(x, 7)).abs().max() > 1e-4


def test_split_prediction():
    model = tiny(learn_sigma=True)
    output = model(noise(1, 2, 4, 4), 3)
    assert output.shape == (1, 4, 4, 4)
    prediction, v = split_prediction(output, 2)
    assert torch.equal(torch.cat([prediction, v], 1), output)
    assert split_prediction(prediction, 2)[1] is None
    with pytest.raises(ShapeError, match="2 or 4"):
        split_prediction(output[:, :3], 2)


def test_checkpoint_round_trip(tmp_path):
    model = tiny(context_dim=8, context_channels=3).float()
    trained_on = dict.fromkeys(checkpoints.PROVENANCE, 0)
    path = checkpoints.save(
        tmp_path / "u.safetensors",
        model,
        model="unet",
        hu_range=None,
        quality={},
        trained_on=trained_on,
        config=TINY | dict(context_dim=8, context_channels=3),
        dtype=torch.float32,
    )
    again = checkpoints.build(path)
    x, c = noise(1, 2, 8, 8).float(), noise(1, 3, 8, 8).float()
    assert torch.equal(again(x, 5, context=c), model(x, 5, context=c))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(attention_at=(4,)), "factors"),
        (dict(norm_groups=3), "norm_groups"),
        (dict(num_head_channels=3), "num_head_channels=3"),
        (dict(num_heads=5), "num_heads=5"),
        (dict(context_channels=3), "context_dim"),
        (dict(context_dim=8, context_channels=3, num_heads=8), "multiple of 4"),
    ],
)
def test_configurations_that_cannot_be_built(changes, message):
    with pytest.raises(ParameterError, match=message):
        UNet(**(TINY | changes))


def test_inputs_that_do_not_fit():
    x = noise(2, 2, 8, 8)
    plain, tokens, joined, mapped = (
        tiny(**c) for c in ({}, dict(context_dim=5), dict(concat_channels=3), dict(context_dim=8, context_channels=3))
    )
    for call, message in (
        (lambda: plain(x[:, :1], 1), r"\(B, 2, H, W\)"),
        (lambda: plain(x[..., :7], 1), "multiples of 2"),
        (lambda: plain(x, torch.tensor([1, 2, 3])), "timestep"),
        (lambda: plain(x, 1, concat=x), "concat must be None"),
        (lambda: plain(x, 1, context=x), "context must be None"),
        (lambda: joined(x, 1), r"concat must be \(2, 3, 8, 8\)"),
        (lambda: joined(x, 1, concat=noise(2, 3, 4, 4)), "concat must be"),
        (lambda: tokens(x, 1), "context must be given"),
        (lambda: tokens(x, 1, context=noise(2, 4, 6)), "context must be"),
        (lambda: tokens(x, 1, context=noise(1, 4, 5)), "context must be"),
        (lambda: mapped(x, 1, context=noise(2, 3, 4, 4)), r"context must be \(2, 3, 8, 8\)"),
    ):
        with pytest.raises(ShapeError, match=message):
            call()


def test_attention_equals_the_naive_formula_in_any_layout():
    attention = random_weights(blocks.SelfAttention(12, heads=3, groups=4))
    hand = ByHand(nn.ModuleDict({"a": attention}), True, heads=3)
    x = noise(2, 12, 5, 3)
    expected = hand.attend("a", x)
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-12)
    last = attention(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-12)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_fit_mirrors_and_falls_back():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert image.fit(x, 1) is x
    padded = image.fit(x, 4)  # 2 rows cannot reflect 2 more: repeated
    assert padded[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    wide = torch.arange(5.0).view(1, 1, 1, 5).expand(1, 1, 4, 5)
    assert image.fit(wide, 4)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
