"""ControlNet against the published size and keys, a second implementation, and what training may move."""

from __future__ import annotations

import copy

import pytest
import torch

from ldctlib import checkpoints
from ldctlib.errors import CheckpointError, ShapeError
from ldctlib.models.blocks import timestep_embedding
from ldctlib.models.controlnet import STABLE_DIFFUSION, ControlNet
from ldctlib.models.unet import UNet
from ldctlib.recipes import Network

BASE = dict(in_channels=2, model_channels=8, channel_mult=[1, 2], num_res_blocks=1, attention_at=[2], norm_groups=4)
HINT = dict(hint_channels=3, hint_widths=[4, 8], hint_stem=2)


def randomised(model: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Every parameter random, those that start at 0 too, in float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.double().parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / max(p[0].numel(), 4) ** 0.5)
    return model


def begun(seed: int = 1) -> ControlNet:
    """As a training begins: on a base whose weights are of no special kind, the rest initialised."""
    model = ControlNet(BASE, **HINT).double()
    state = model.taken_from(randomised(UNet(**BASE), seed).state_dict())
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    return model


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    x_t = torch.randn(batch, 2, 4, 4, generator=generator, dtype=torch.float64)
    return x_t, torch.tensor([3, 700][:batch]), torch.rand(batch, 3, 16, 16, generator=generator, dtype=torch.float64)


def test_the_published_size_outputs_and_keys():
    """Of Stable Diffusion's ControlNet: 361,279,120 weights, 12 + 1 outputs."""
    with torch.device("meta"):
        model = ControlNet(STABLE_DIFFUSION)
        x_t, hint, context = torch.empty(1, 4, 64, 64), torch.empty(1, 3, 512, 512), torch.empty(1, 77, 768)
        middle, skips = model.control(x_t, torch.tensor(5), hint, context)
        assert model(x_t, torch.tensor(5), hint, context).shape == x_t.shape
    assert [sum(p.numel() for p in part.parameters()) for part in (model.base, model.control)] == [
        859_520_964,
        361_279_120,
    ]
    levels = [(320, 64)] * 3 + [(320, 32)] + [(640, 32)] * 2 + [(640, 16)] + [(1280, 16)] * 2 + [(1280, 8)] * 3
    assert [tuple(s.shape) for s in skips] == [(1, c, n, n) for c, n in levels] and middle.shape == (1, 1280, 8, 8)
    own = {name for name in model.control.state_dict() if name not in model.base.state_dict()}
    layers = [f"input_hint_block.{n}" for n in range(0, 15, 2)] + [f"zero_convs.{n}.0" for n in range(12)]
    assert own == {f"{layer}.{what}" for layer in [*layers, "middle_block_out.0"] for what in ("weight", "bias")}
    strides = [model.control.input_hint_block[n].stride[0] for n in range(0, 15, 2)]
    assert strides == [1, 1, 2, 1, 2, 1, 2, 1] and model.control.hint_factor == 8
    assert not any(name.startswith(("output_blocks", "out.")) for name in model.control.state_dict())


def test_it_begins_as_its_base_whatever_the_hint():
    model, (x_t, t, hint) = begun(), inputs()
    expected = model.base(x_t, t)
    assert expected.abs().mean() > 0.01
    for shown in (hint, torch.zeros_like(hint), 1e3 * hint):
        assert torch.equal(model(x_t, t, shown), expected)


def test_it_is_the_published_algorithm():
    """Written out block by block: zero-convolved outputs of the copy are added to the middle and to every skip."""
    model, (x_t, t, hint) = randomised(ControlNet(BASE, **HINT), 2), inputs()
    base, control = model.base, model.control
    code = timestep_embedding(t, 8).double()
    h, emb = x_t, control.time_embed(code)
    added = []
    for block, zero in zip(control.input_blocks, control.zero_convs, strict=True):
        h = block(h, emb, None)
        h = h + control.input_hint_block(hint) if not added else h
        added.append(zero(h))
    middle = control.middle_block_out(control.middle_block(h, emb, None))
    h, emb, skips = x_t, base.time_embed(code), []
    for block in base.input_blocks:
        skips.append(h := block(h, emb, None))
    h = base.middle_block(h, emb, None) + middle
    for block in base.output_blocks:
        h = block(torch.cat([h, skips.pop() + added.pop()], dim=1), emb, None)
    torch.testing.assert_close(model(x_t, t, hint), base.out(h))


def test_what_learns_and_when():
    """First the zero convolutions, then the hint's last layer and the copy, then the rest; the base never."""
    model, (x_t, t, hint) = begun(), inputs()
    before = copy.deepcopy(model.base.state_dict())
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    trained = []
    for _ in range(3):
        optimiser.zero_grad()
        (model(x_t, t, hint) - 1).square().mean().backward()
        found = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
        trained.append({n.removeprefix("control.").rsplit(".", 1)[0] for n in found})
        optimiser.step()
    outputs = {f"zero_convs.{n}.0" for n in range(4)} | {"middle_block_out.0"}
    assert len(model.control.zero_convs) == 4 and trained[0] == outputs
    assert trained[1] >= outputs | {"input_hint_block.6", "input_blocks.0.0", "middle_block.0.in_layers.2"}
    assert not trained[1] & {f"input_hint_block.{n}" for n in (0, 2, 4)}
    assert trained[2] >= {f"input_hint_block.{n}" for n in (0, 2, 4, 6)}
    after = model.base.state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert not torch.equal(model(x_t, t, hint), model.base(x_t, t))
    assert not torch.equal(model(x_t, t, hint), model(x_t, t, hint.flip(0)))


def test_without_its_hint_an_image_is_the_base_s():
    model, (x_t, t, hint) = randomised(ControlNet(BASE, **HINT), 3), inputs()
    whole, none = model(x_t, t, hint), model.base(x_t, t)
    mixed = model(x_t, t, hint, hint_dropped=torch.tensor([True, False]))
    torch.testing.assert_close(mixed, torch.stack([none[0], whole[1]]))
    assert not torch.allclose(whole[0], none[0])


def test_it_starts_from_a_trained_base(tmp_path):
    """Frozen and copied; a base of another width is refused."""
    config = dict(base=BASE, **HINT)
    network = Network("controlnet", config, "base", ("control.input_hint", "control.zero", "control.middle_block_out"))
    trained = randomised(UNet(**BASE), 5).float()
    told = dict(collection="none", cases="none", seed=0, steps=0, profile="test", code_revision="none")
    path = checkpoints.save(
        tmp_path / "base.safetensors", trained, model="unet", config=BASE, hu_range=None, trained_on=told
    )
    start, model = checkpoints.load(path), network.build(0)
    anew = network.place(model, start)
    state = model.state_dict()
    for name, t in start.state_dict.items():
        assert torch.equal(state[f"base.{name}"], t)
        if not name.startswith(("output_blocks", "out.")):
            assert torch.equal(state[f"control.{name}"], t)
    assert anew == [
        n for n in state if n.startswith("control.") and n.removeprefix("control.") not in trained.state_dict()
    ]
    wide = Network("controlnet", config | dict(base=BASE | dict(model_channels=16)), "base", network.reinitialise)
    with pytest.raises(CheckpointError, match="wrong shapes: base"):
        wide.place(wide.build(0), start)


def test_a_hint_of_another_size_is_refused():
    model, (x_t, t, hint) = begun(), inputs()
    with pytest.raises(ShapeError, match=r"hint must be \(2, 3, 16, 16\)"):
        model(x_t, t, hint[..., :8, :8])
