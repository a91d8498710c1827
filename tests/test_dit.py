"""The diffusion transformer against published sizes and keys, and a second implementation with explicit attention."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ldctlib import checkpoints
from ldctlib.errors import CheckpointError, ParameterError, ShapeError
from ldctlib.models.dit import SIZES, Attention, Block, DiT, positions, published_size, unpatchify
from tests.test_checkpoints import TRAINED_ON, UNITS
from tests.test_unet import count, noise, random_weights

TINY = dict(input_size=8, patch_size=2, in_channels=3, hidden_size=16, depth=2, num_heads=2)
TWO = dict(vectors=2, vector_dim=5)
B, D, N = 3, 16, 16


def tiny(seed: int = 1, **changes) -> DiT:
    """With every number random, those that start at 0 and the positions too, in float64."""
    model = random_weights(DiT(**TINY, **changes), seed)
    model.pos_embed.copy_(noise(*model.pos_embed.shape, seed=seed + 50))
    return model


def times() -> torch.Tensor:
    return torch.tensor([1, 250, 1000])


# ---------------------------------------------------------------- published layouts


def published_shapes(size: str, patch: int, side: int = 32) -> dict[str, tuple[int, ...]]:
    """Every key of the published file of a size: four channels, 1000 classes and one for none, learned variance."""
    depth, d, _ = SIZES[size]
    weights = {"x_embedder.proj": (d, 4, patch, patch), "t_embedder.mlp.0": (d, 256), "t_embedder.mlp.2": (d, d)}
    for n in range(depth):
        weights |= {f"blocks.{n}.attn.qkv": (3 * d, d), f"blocks.{n}.attn.proj": (d, d)}
        weights |= {f"blocks.{n}.mlp.fc1": (4 * d, d), f"blocks.{n}.mlp.fc2": (d, 4 * d)}
        weights |= {f"blocks.{n}.adaLN_modulation.1": (6 * d, d)}
    weights |= {"final_layer.linear": (patch**2 * 8, d), "final_layer.adaLN_modulation.1": (2 * d, d)}
    shapes = {f"{name}.weight": shape for name, shape in weights.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in weights.items()}
    shapes |= {"pos_embed": (1, (side // patch) ** 2, d), "y_embedder.embedding_table.weight": (1001, d)}
    return shapes


def published(name: str) -> DiT:
    with torch.device("meta"):
        return DiT(**published_size(name), learn_sigma=True, class_labels=1000)


def test_the_published_xl_2_is_placed_key_by_key():
    model, shapes = published("DiT-XL/2"), published_shapes("XL", 2)
    assert len(shapes) == 8 + 28 * 10 + 4
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    checkpoints.place(model, state, where="published")  # names every key that is missing, left over or misshapen
    with pytest.raises(CheckpointError, match="missing keys: pos_embed"):
        checkpoints.place(model, {k: v for k, v in state.items() if k != "pos_embed"}, where="published")


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts(size, patch):
    """A block has 3 + 1 + 4 + 4 + 6 matrices D x D, and 3 + 1 + 4 + 1 + 6 biases of D."""
    depth, d, _ = SIZES[size]
    block = 18 * d**2 + 15 * d
    ends = (4 * patch**2 + 1) * d + (256 * d + d) + (d**2 + d) + (2 * d**2 + 2 * d) + 8 * patch**2 * (d + 1)
    model = published(f"DiT-{size}/{patch}")
    assert count(model) == depth * block + ends + 1001 * d
    assert model.pos_embed.numel() == (32 // patch) ** 2 * d


def test_counts_as_the_paper_rounds_them():
    millions = {"DiT-S/2": 33, "DiT-B/2": 130, "DiT-L/2": 458, "DiT-XL/2": 675, "DiT-L/4": 458}
    # a published count has the frozen positions in it
    ours = {name: count(model := published(name)) + model.pos_embed.numel() for name in millions}
    assert not {name: n for name, n in ours.items() if abs(n / 1e6 - millions[name]) > 0.6}
    assert ours["DiT-XL/2"] == 675_129_632


def test_what_nadiff_adds_lies_under_names_of_its_own():
    plain = DiT(**TINY).state_dict()
    full = DiT(**TINY, **TWO, hint_channels=1, hint_mode="modulate", conv_channels=2).state_dict()
    assert {name.split(".")[0] for name in full.keys() - plain.keys()} == {
        "vector_embedder", "vector_null", "vector_fusion", "vector_mean", "vector_std", "hint_embedder", "hint_null",
        "conv_in", "conv_join", "conv_out",
    }  # fmt: skip
    assert plain.keys() <= full.keys()


def test_a_checkpoint_gives_the_network_back(tmp_path):
    config = TINY | TWO | dict(fuse="sum", hint_channels=1, hint_mode="modulate", class_labels=4)
    model = random_weights(DiT(**config)).float()
    options = dict(model="dit", config=config, hu_range=UNITS, trained_on=TRAINED_ON, dtype=torch.float32)
    loaded = checkpoints.build(checkpoints.save(tmp_path / "dit.safetensors", model, **options))
    inputs = (noise(B, 3, 8, 8), times(), noise(B, 2, 5), noise(B, 1, 8, 8))
    assert torch.equal(loaded(*inputs), model(*inputs))


# ---------------------------------------------------------------- a second implementation


class ByHand:
    """The network on its state dict, with naive parts: explicit attention by heads, modulation written out."""

    def __init__(self, model: DiT, heads: int = 2, patch: int = 2):
        self.p, self.heads, self.patch = model.state_dict(), heads, patch

    def linear(self, at, x):
        return x @ self.p[f"{at}.weight"].T + self.p[f"{at}.bias"]

    def mlp(self, at, x):
        y = self.linear(f"{at}.0", x)
        return self.linear(f"{at}.2", y * torch.sigmoid(y))

    def embed(self, at, x):
        """A matrix product with every patch."""
        kernel, p = self.p[f"{at}.proj.weight"], self.patch
        rows, columns = x.shape[2] // p, x.shape[3] // p
        patches = [
            x[:, :, i * p : i * p + p, j * p : j * p + p].flatten(1) for i in range(rows) for j in range(columns)
        ]
        return torch.stack(patches, dim=1) @ kernel.flatten(1).T + self.p[f"{at}.proj.bias"]

    def conv(self, at, x):
        """A matrix product with the 3 x 3 places around each place, 0 outside."""
        h, w = x.shape[-2:]
        padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
        around = torch.stack([padded[..., i : i + h, j : j + w] for i in range(3) for j in range(3)], dim=2)
        kernel = self.p[f"{at}.weight"].flatten(2)
        return torch.einsum("ocn,bcnhw->bohw", kernel, around) + self.p[f"{at}.bias"][:, None, None]

    def time(self, t):
        frequency = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
        angle = t[:, None].float() * frequency
        code = torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)
        return self.mlp("t_embedder.mlp", code.to(self.p["pos_embed"].dtype))

    def modulation(self, at, c, parts):
        return self.linear(f"{at}.adaLN_modulation.1", c * torch.sigmoid(c)).chunk(parts, dim=-1)

    def normed(self, x, shift, scale):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-6).sqrt() * (1 + scale) + shift

    def attention(self, at, x):
        d = x.shape[-1] // self.heads
        q, k, v = self.linear(f"{at}.qkv", x).chunk(3, dim=-1)
        heads = [slice(h * d, h * d + d) for h in range(self.heads)]
        out = [(q[..., h] @ k[..., h].transpose(1, 2) / d**0.5).softmax(-1) @ v[..., h] for h in heads]
        return self.linear(f"{at}.proj", torch.cat(out, dim=-1))

    def run(self, x, c, rows):
        """Tokens (B, N, D) and conditions (B, 1 or N, D) to the map."""
        n = 0
        while f"blocks.{n}.attn.qkv.weight" in self.p:
            at = f"blocks.{n}"
            shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(at, c, 6)
            x = x + gate1 * self.attention(f"{at}.attn", self.normed(x, shift1, scale1))
            y = self.linear(f"{at}.mlp.fc1", self.normed(x, shift2, scale2))
            y = 0.5 * y * (1 + torch.tanh((2 / math.pi) ** 0.5 * (y + 0.044715 * y**3)))
            x = x + gate2 * self.linear(f"{at}.mlp.fc2", y)
            n += 1
        y = self.linear("final_layer.linear", self.normed(x, *self.modulation("final_layer", c, 2)))
        p, columns = self.patch, y.shape[1] // rows
        out = y.new_zeros(len(y), y.shape[2] // p**2, rows * p, columns * p)
        for place in range(rows * columns):
            i, j = divmod(place, columns)
            # of each place of a patch, all channels
            patch = y[:, place].reshape(len(y), p, p, -1).movedim(-1, 1)
            out[:, :, i * p : i * p + p, j * p : j * p + p] = patch
        return out


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_equals_the_public_module(dtype, tolerance, learn_sigma):
    model = tiny(class_labels=10, learn_sigma=learn_sigma).to(dtype)
    by_hand = ByHand(model)
    x, label = noise(B, 3, 8, 8).to(dtype), torch.tensor([0, 9, 10])
    c = by_hand.time(times()) + by_hand.p["y_embedder.embedding_table.weight"][label]
    expected = by_hand.run(by_hand.embed("x_embedder", x) + by_hand.p["pos_embed"], c[:, None], 4)
    assert expected.shape == (B, 6 if learn_sigma else 3, 8, 8) and expected.abs().max() > 0.1
    torch.testing.assert_close(model(x, times(), label=label), expected, rtol=tolerance, atol=tolerance)
    # no label is the last row
    no_class = torch.full((B,), 10)
    assert torch.equal(model(x, times()), model(x, times(), label=no_class))


CONDITIONED = {
    "one vector": dict(vectors=1, vector_dim=5),
    "two, concatenated": TWO | dict(fuse="concat"),
    "two, summed": TWO | dict(fuse="sum"),
    "added hint": dict(hint_channels=4, hint_mode="add"),
    "modulating hint": dict(hint_channels=4, hint_mode="modulate"),
    "vectors and hint": TWO | dict(hint_channels=4),
    "convolutions around": TWO | dict(hint_channels=4, conv_channels=5),
}


def inputs(config: dict, seed: int = 20) -> dict[str, torch.Tensor]:
    shapes = {"vector": (B, config.get("vectors"), 5), "hint": (B, 4, 8, 8)}
    return {
        n: noise(*shapes[n], seed=seed) for n, k in (("vector", "vectors"), ("hint", "hint_channels")) if k in config
    }


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("config", CONDITIONED.values(), ids=CONDITIONED)
def test_equals_the_paper_with_conditions(config, drop):
    """Eqs 11 to 14 for vectors, tokens of the hint added to x or to the condition of each token."""
    model, given, x_t = tiny(**config), inputs(config), noise(B, 3, 8, 8)
    by_hand = ByHand(model)
    seen = by_hand.conv("conv_in", x_t) if "conv_channels" in config else None
    x = by_hand.embed("x_embedder", x_t if seen is None else seen * torch.sigmoid(seen)) + by_hand.p["pos_embed"]
    c = by_hand.time(times())[:, None]
    masks = {}
    if "vector" in given:
        y = by_hand.mlp("vector_embedder", given["vector"])
        if drop:  # the second image misses its first vector, the third one all
            masks["dropped"] = torch.zeros(y.shape[:2], dtype=torch.bool)
            masks["dropped"][1, 0] = masks["dropped"][2] = True
            y[1, 0], y[2] = by_hand.p["vector_null"][0], by_hand.p["vector_null"]
        both = config["vectors"] == 2 and config.get("fuse") != "sum"
        y = by_hand.mlp("vector_fusion", torch.cat([y[:, 0], y[:, 1]], dim=1)) if both else y.sum(1)
        c = c + y[:, None]
    if "hint" in given:
        tokens = by_hand.embed("hint_embedder", given["hint"])
        if drop:
            masks["hint_dropped"] = torch.tensor([False, True, False])
            tokens[1] = by_hand.p["hint_null"] if config.get("hint_mode") == "modulate" else 0
        if config.get("hint_mode") == "modulate":
            c = c + tokens + by_hand.p["pos_embed"]
        else:
            x = x + tokens
    expected = by_hand.run(x, c, 4)
    if seen is not None:
        y = by_hand.conv("conv_join", torch.cat([expected, seen], dim=1))
        expected = by_hand.conv("conv_out", y * torch.sigmoid(y))
    torch.testing.assert_close(model(x_t, times(), **given, **masks), expected, rtol=1e-10, atol=1e-10)


def test_attention_equals_the_explicit_product():
    attention, x = Attention(48, 4), noise(2, 64, 48).float()
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    q, k, v = (part.reshape(2, 64, 4, 12).transpose(1, 2) for part in (q, k, v))
    weights = (torch.einsum("bhqd,bhkd->bhqk", q, k) / 12**0.5).softmax(-1)
    expected = attention.proj(torch.einsum("bhqk,bhkd->bqhd", weights, v).reshape(2, 64, 48))
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- the beginning


@pytest.mark.parametrize("config", CONDITIONED.values(), ids=CONDITIONED)
def test_a_fresh_network_gives_0_and_its_blocks_the_identity(config):
    model = DiT(**TINY, **config).double()
    assert not model(noise(B, 3, 8, 8), times(), **inputs(config)).any()
    tokens, c = noise(B, N, D), noise(B, D, seed=3)
    for block in (*model.blocks, Block(D, 2).double()):
        assert torch.equal(block(tokens, c), tokens)


def test_initial_weights():
    """Xavier's uniform has the variance 2 / (fan in + fan out); a patch embedding is the matrix that it is."""
    torch.manual_seed(5)
    model = DiT(hidden_size=96, depth=1, num_heads=4, class_labels=100, hint_channels=4, hint_mode="modulate")
    block = model.blocks[0]
    fans = {block.attn.qkv: 4 * 96, block.attn.proj: 2 * 96, block.mlp.fc1: 5 * 96, block.mlp.fc2: 5 * 96}
    fans |= {embedder.proj: 96 + 64 for embedder in (model.x_embedder, model.hint_embedder)}
    stds = {layer: (2 / fan) ** 0.5 for layer, fan in fans.items()}
    stds |= dict.fromkeys((model.t_embedder.mlp[0], model.t_embedder.mlp[2], model.y_embedder.embedding_table), 0.02)
    for layer, std in stds.items():  # of 6,144 numbers or more: 5 of their standard deviations
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert not hasattr(layer, "bias") or not layer.bias.any()


def test_every_weight_learns():
    """Nothing is cut off: after two steps away from 0 every parameter has a gradient."""
    config = TWO | dict(hint_channels=4, hint_mode="modulate", class_labels=3, conv_channels=5)
    model = DiT(**TINY, **config).double()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        masks = dict(dropped=torch.eye(3, 2) > 0, hint_dropped=torch.tensor([True, False, False]))
        out = model(noise(B, 3, 8, 8), times(), **inputs(config), **masks, label=torch.arange(3))
        (out - noise(B, 3, 8, 8, seed=9)).square().mean().backward()
        optimiser.step()
    assert not [name for name, p in model.named_parameters() if not p.grad.any()]
    assert "pos_embed" not in dict(model.named_parameters())


def test_an_added_hint_begins_as_if_it_were_not_there():
    model, plain = DiT(**TINY, hint_channels=4), DiT(**TINY)
    state = random_weights(plain).state_dict()
    model.double().load_state_dict(state, strict=False)
    x, hint = noise(B, 3, 8, 8), noise(B, 4, 8, 8, seed=4)
    assert torch.equal(model(x, times(), hint=hint), plain(x, times()))
    model(x, times(), hint=hint).square().mean().backward()
    with torch.no_grad():
        for p in model.hint_embedder.parameters():
            p -= 0.1 * p.grad
    changed = model(x, times(), hint=hint)
    assert (changed - plain(x, times())).abs().max() > 1e-3
    assert (changed - model(x, times(), hint=hint.flip(0))).abs().max() > 1e-3
    # and dropped it is not there again
    assert torch.equal(model(x, times(), hint=hint, hint_dropped=torch.ones(B, dtype=torch.bool)), plain(x, times()))


# ---------------------------------------------------------------- conditions


def test_a_modulation_for_every_token_is_the_global_one_where_all_are_equal():
    block = random_weights(Block(D, 2))
    x, c = noise(B, N, D), noise(B, D, seed=3)
    assert torch.equal(block(x, c), block(x, c[:, None]))
    torch.testing.assert_close(block(x, c[:, None].expand(B, N, D)), block(x, c), rtol=1e-12, atol=1e-12)
    other = c[:, None].repeat(1, N, 1)
    other[:, 5] += 1
    assert (block(x, other) - block(x, c))[:, 5].abs().max() > 0.01


def test_a_sum_does_not_know_which_vector_is_which():
    """rho is shared, so that only the concatenation tells a noise map from a mask."""
    x, vector = noise(B, 3, 8, 8), noise(B, 2, 5)
    swapped = vector.flip(1)
    summed, joined = (tiny(**TWO, fuse=fuse) for fuse in ("sum", "concat"))
    torch.testing.assert_close(summed(x, 7, vector), summed(x, 7, swapped), rtol=1e-12, atol=1e-12)
    assert (joined(x, 7, vector) - joined(x, 7, swapped)).abs().max() > 1e-3


@pytest.mark.parametrize("config", CONDITIONED.values(), ids=CONDITIONED)
def test_what_is_dropped_has_no_influence(config):
    model, x = tiny(**config), noise(B, 3, 8, 8)
    one, other = inputs(config, seed=20), inputs(config, seed=30)
    masks = {"vector": {"dropped": torch.ones(B, config.get("vectors", 0), dtype=torch.bool)}}
    masks |= {"hint": {"hint_dropped": torch.ones(B, dtype=torch.bool)}}
    mask = {name: m for n in one for name, m in masks[n].items()}
    assert torch.equal(model(x, times(), **one, **mask), model(x, times(), **other, **mask))
    assert (model(x, times(), **one) - model(x, times(), **other)).abs().max() > 1e-3
    if config.get("vectors") == 2:  # the other one of two still counts
        half = mask | {"dropped": torch.tensor([[True, False]]).expand(B, 2)}
        only_first = one | {"vector": torch.stack([other["vector"][:, 0], one["vector"][:, 1]], dim=1)}
        assert torch.equal(model(x, times(), **one, **half), model(x, times(), **only_first, **half))
        assert (model(x, times(), **one, **half) - model(x, times(), **other, **half)).abs().max() > 1e-3


def test_an_image_does_not_depend_on_its_batch():
    model, given, x = tiny(**TWO, hint_channels=4), inputs(TWO | dict(hint_channels=4)), noise(B, 3, 8, 8)
    alone = model(x[1:2], 250, **{name: v[1:2] for name, v in given.items()})
    torch.testing.assert_close(model(x, times(), **given)[1:2], alone, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- grids


def test_unpatchify_undoes_patchify():
    """A token holds, row by row, all channels of each place of its patch."""
    x, p = noise(2, 3, 4, 6), 2
    tokens = torch.empty(2, 6, p * p * 3, dtype=x.dtype)
    for n, (row, column) in enumerate((i, j) for i in range(2) for j in range(3)):
        for i in range(p):
            for j in range(p):
                for c in range(3):
                    tokens[:, n, (i * p + j) * 3 + c] = x[:, c, row * p + i, column * p + j]
    assert torch.equal(unpatchify(tokens, (2, 3), p), x)


def test_positions_in_closed_form():
    code = positions(3, 5, 16, torch.device("cpu"))
    expected = torch.empty(15, 16, dtype=torch.float64)
    for n in range(15):
        row, column = divmod(n, 5)
        for k in range(4):
            frequency = 10_000 ** (-k / 4)
            for half, place in ((0, column), (8, row)):
                expected[n, half + k] = math.sin(place * frequency)
                expected[n, half + 4 + k] = math.cos(place * frequency)
    # sine and cosine of float32 angles below 5
    torch.testing.assert_close(code[0].double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(DiT(**TINY).pos_embed, positions(4, 4, 16, torch.device("cpu")))


def test_other_grids_than_the_stored_one():
    """Every grid has its own code; what a file says of the stored one stays there."""
    model = tiny()
    big, wide = DiT(**TINY | dict(input_size=12)).double(), noise(1, 3, 4, 12)
    big.load_state_dict(model.state_dict() | {"pos_embed": big.pos_embed})
    x = noise(B, 3, 12, 12)
    assert torch.equal(model(x, times()), big(x, times()))
    by_hand = ByHand(model)
    tokens = by_hand.embed("x_embedder", wide) + positions(2, 6, 16, torch.device("cpu")).double()
    expected = by_hand.run(tokens, by_hand.time(torch.tensor([9]))[:, None], 2)
    torch.testing.assert_close(model(wide, 9), expected, rtol=1e-10, atol=1e-10)
    # weights that are loaded into one network do not change the code that others share
    DiT(**TINY).load_state_dict(model.float().state_dict())
    assert torch.equal(DiT(**TINY).pos_embed, positions.__wrapped__(4, 4, 16, torch.device("cpu")))


# ---------------------------------------------------------------- numbers and errors


def test_half_precision_and_autocast():
    model, x = tiny(**TWO, hint_channels=4, hint_mode="modulate").float(), noise(B, 3, 8, 8).float()
    given = {name: v.float() for name, v in inputs(CONDITIONED["vectors and hint"]).items()}
    exact = model(x, times(), **given)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x, times(), **given)
    assert rounded.dtype == torch.float32
    in_bf16 = model.bfloat16()(x, times(), **given)
    for out in (rounded, in_bf16.float()):  # bf16 has 8 bits
        assert 0 < (out - exact).abs().max() < 0.1 * exact.abs().max()
    assert in_bf16.dtype == torch.float32


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(input_size=9), "no whole patches of 2"),
        (dict(hidden_size=18, num_heads=2), "multiple of 4"),
        (dict(num_heads=3), "num_heads=3"),
        (dict(vectors=3, vector_dim=5), "0, 1 or 2"),
        (dict(vectors=1), "vector_dim=None"),
        (dict(vector_dim=5), "vectors=0"),
        (dict(fuse="product"), "'product'"),
        (dict(hint_mode="concat"), "'concat'"),
    ],
)
def test_configurations_that_cannot_be_built(changes, said):
    with pytest.raises(ParameterError, match=said):
        DiT(**TINY | changes)


@pytest.mark.parametrize("name", ["L/4", "DiT-L", "DiT-M/2", "DiT-L/3"])
def test_names_that_are_no_size(name):
    with pytest.raises(ParameterError, match="DiT-L/4"):
        published_size(name)


def wrong_inputs() -> dict[str, tuple[dict, dict, str]]:
    x, vector, hint = torch.zeros(B, 3, 8, 8), torch.zeros(B, 2, 5), torch.zeros(B, 4, 8, 8)
    two, spatial = TWO, dict(hint_channels=4)
    return {
        "channels": ({}, dict(x_t=torch.zeros(B, 4, 8, 8)), "got .3, 4, 8, 8.*image.fit"),
        "odd side": ({}, dict(x_t=torch.zeros(B, 3, 8, 7)), "multiples of 2"),
        "times": ({}, dict(x_t=x, t=torch.ones(2)), "t is one time or .3,."),
        "no vector": (two, dict(x_t=x), "vector must be .3, 2, 5. .* got None"),
        "one of two": (two, dict(x_t=x, vector=vector[:, :1]), "vector must be .* got .3, 1, 5."),
        "vector not taken": ({}, dict(x_t=x, vector=vector), "vector must be None"),
        "no hint": (spatial, dict(x_t=x), "hint must be .3, 4, 8, 8."),
        "small hint": (spatial, dict(x_t=x, hint=hint[..., :4]), "hint must be .3, 4, 8, 8."),
        "hint not taken": (two, dict(x_t=x, vector=vector, hint=hint), "hint must be None"),
        "dropped": (two, dict(x_t=x, vector=vector, dropped=torch.ones(3) > 0), "dropped must be .3, 2."),
        "not yes or no": (two, dict(x_t=x, vector=vector, dropped=torch.ones(3, 2)), "bool, not torch.float32"),
        "hint dropped": (two, dict(x_t=x, vector=vector, hint_dropped=torch.ones(3) > 0), "hint_dropped must be None"),
        "label": ({}, dict(x_t=x, label=torch.zeros(3, dtype=torch.long)), "label must be None"),
    }


@pytest.mark.parametrize("case", wrong_inputs())
def test_inputs_that_do_not_fit(case):
    config, given, said = wrong_inputs()[case]
    with pytest.raises(ShapeError, match=said):
        DiT(**TINY, **config)(**({"t": 1} | given))


def test_what_a_pipeline_asks_of_a_network():
    model: nn.Module = DiT(**TINY, **TWO, hint_channels=4)
    assert (model.conditions, model.factor, model.in_channels) == (("vector", "hint"), 2, 3)
    assert DiT(**TINY, class_labels=2).conditions == ()


def test_vectors_are_standardised_before_the_mlp():
    """Vectors of another scale give the same output once their mean and deviation are known; a constant one no NaN."""
    model = tiny(**TWO)
    generator = torch.Generator().manual_seed(5)
    vectors = torch.randn(64, *model.vector_mean.shape, generator=generator)
    x, t = torch.randn(64, model.in_channels, 8, 8, generator=generator), torch.full((64,), 300)
    model.standardise(vectors)
    plain = model(x, t, vectors)
    other = 3 * vectors + 7
    model.standardise(other)
    torch.testing.assert_close(model(x, t, other), plain, atol=1e-4, rtol=1e-4)
    model.standardise(torch.ones_like(vectors))
    assert bool(torch.isfinite(model(x, t, torch.ones_like(vectors))).all())
    with pytest.raises(ShapeError, match="has vectors"):
        model.standardise(vectors[:, :1])
