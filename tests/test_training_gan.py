"""Several networks: a list of updates against a plain loop with an optimiser each, and what it refuses."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from ldctlib.errors import CheckpointError, ParameterError
from ldctlib.training import Optimizer, TrainConfig, Update, train
from tests.training_toys import (
    LATE,
    Net,
    Pairs,
    critic_loss,
    gan,
    gan_settings,
    gan_updates,
    generator_loss,
    late_loss,
    plain_net,
    run,
    same,
    saved,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_list_of_updates_equals_a_plain_loop():
    """WGAN-GP with two critics, one of which starts late, written out with torch's parts: bit for bit."""
    steps, losses = 12, []
    config = gan_settings(steps, accumulation=1, log_every=1)
    (*_, last) = logs = run(networks := gan(), config, gan_updates())

    plain, dataset = {name: n.to(memory_format=torch.channels_last) for name, n in gan().items()}, Pairs()
    generator, critic, late = plain.values()
    optimizers = {
        "critic": torch.optim.Adam(critic.parameters(), betas=(0.5, 0.9), fused=True),
        "generator": torch.optim.AdamW(generator.parameters(), weight_decay=0.0, fused=True),
        "late": torch.optim.SGD(late.parameters(), momentum=0.9, fused=True),
    }
    ema = {name: copy.deepcopy(plain[name]) for name in ("generator", "late")}

    def move(name: str, lr: float, loss: torch.Tensor, clip: float = float("inf")) -> None:
        for network in plain.values():
            network.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain[name].parameters(), clip)
        optimizers[name].param_groups[0]["lr"] = lr
        optimizers[name].step()

    def cosine(share: float) -> float:
        return 0.5 * (1 + np.cos(np.pi * share))

    def average(name: str, n: int) -> None:
        decay = min(0.9, (1 + n) / (10 + n))
        for mean, p in zip(ema[name].parameters(), plain[name].parameters(), strict=True):
            mean.detach().lerp_(p.detach(), 1 - decay)

    for step in range(steps):
        batch = default_collate([dataset[n] for n in range(4 * step, 4 * step + 4)])
        for _ in range(2):
            terms = critic_loss(plain, batch, None, step)
            move("critic", 2e-3 * cosine(step / steps), terms["loss"])
        losses.append(generator_loss(plain, batch, None, step)["loss"].item())
        warm = 1e-3 * (step + 1) / 4 if step < 4 else 1e-3 * cosine((step - 4) / (steps - 4))
        move("generator", warm, generator_loss(plain, batch, None, step)["loss"], clip=1.0)
        average("generator", step)
        if step >= LATE:
            share = (step - LATE) / (steps - LATE)
            rate = 1e-4 + (5e-3 - 1e-4) * (1 - share) ** 0.9
            move("late", rate, late_loss(plain, batch, None, step), clip=0.5)
            average("late", step - LATE)
    for name, network in networks.items():
        assert same(network.state_dict(), plain[name].state_dict()), name
    for name, network in ema.items():
        assert same(last.ema_state_dict(name), network.state_dict()), name
    assert same(last.ema_model().state_dict(), ema["generator"].state_dict())  # the first network is the main one
    assert [log.loss for log in logs] == losses == [log.terms["generator/loss"] for log in logs]
    assert [("late/loss" in log.terms, "late" in log.lr) for log in logs] == [(s > LATE,) * 2 for s in range(1, 13)]
    assert set(last.terms) == {"critic/loss", "critic/penalty", "generator/loss", "generator/l1", "late/loss"}
    assert last.lr.keys() == last.grad_norm.keys() == networks.keys()
    assert last.lr["late"] == rate


def test_only_the_network_of_an_update_gets_a_gradient():
    networks, seen = gan(), []

    def watching(loss):
        def watched(networks, batch, generator, step):
            seen.append({name for name, n in networks.items() if any(p.grad is not None for p in n.parameters())})
            return loss(networks, batch, generator, step)

        return watched

    updates = [replace(u, loss=watching(u.loss)) for u in gan_updates()]
    run(networks, gan_settings(2), updates)
    # of each two micro-batches the second finds the first one's gradient: critic, critic, generator; late not yet
    assert seen == [set(), {"critic"}, set(), {"critic"}, set(), {"generator"}] * 2


def test_every_call_has_draws_of_its_own():
    """No two of (step, update, repeat, micro-batch) draw the same; the first update draws what it draws alone."""
    draws = []

    def loss(networks, batch, generator, step):
        draws.append((step, torch.rand(1, generator=generator).item(), torch.rand(1).item(), np.random.rand()))
        network = networks if isinstance(networks, nn.Module) else networks["generator"]
        return network(batch["ldct"]).square().mean()

    rate, options = Optimizer(lr=1e-3), {"steps": 3, "batch_size": 4, "accumulation": 2, "device": "cpu"}
    run(plain_net(), TrainConfig(lr=1e-3, **options), loss)
    alone, draws = draws, []

    def critic(networks, batch, generator, step):
        loss(networks, batch, generator, step)
        return networks["critic"](batch["ldct"]).square().mean()

    networks = {name: n for name, n in gan().items() if name != "late"}
    run(networks, TrainConfig(**options), [Update("generator", loss, rate), Update("critic", critic, rate, repeat=2)])
    assert len(draws) == 3 * (1 + 2) * 2
    for column in zip(*draws, strict=True):
        assert len(set(column)) in (3, len(draws))  # steps, or draws
    assert [d for i, d in enumerate(draws) if i % 6 < 2] == alone
    assert all(a[0] <= b[0] for a, b in pairwise(draws))


def test_interrupted_at_every_step_equals_uninterrupted(tmp_path):
    """Dropout, batch statistics, three optimisers, one of which has no state yet for some steps."""
    config, state = gan_settings(6, log_every=4), tmp_path / "run.state"
    (*_, reference) = run(whole := gan(True), config, gan_updates())
    for _ in range(6):
        networks = gan(True)
        if state.exists():  # weights of its own, which must not matter
            networks["generator"] = Net()
        (log,) = run(networks, config, gan_updates(), state_path=state, max_seconds=0)
    assert log.finished and log.terms == reference.terms and log.lr == reference.lr
    for name in networks:
        assert same(networks[name].state_dict(), whole[name].state_dict())
    for name in ("generator", "late"):
        assert same(log.ema_state_dict(name), reference.ema_state_dict(name))


def test_other_updates_are_another_run(tmp_path):
    config, state = gan_settings(4), tmp_path / "run.state"
    run(gan(), config, gan_updates(), state_path=state, max_seconds=0)
    changed = {
        "critic.lr 0.002 there, 0.003 here": {"optimizer": gan_updates(lr=3e-3)[0].optimizer},
        "critic.repeat 2 there, 4 here": {"repeat": 4},
        "critic.start 0 there, 1 here": {"start": 1},
    }
    for message, change in changed.items():
        first, *others = gan_updates()
        with pytest.raises(CheckpointError, match=f"another run: {message}"):
            run(gan(), config, [replace(first, **change), *others], state_path=state)
    two = {name: network for name, network in gan().items() if name != "late"}
    with pytest.raises(CheckpointError, match="late.lr 0.005 there, nothing here"):
        run(two, gan_settings(4, ema=("generator",)), gan_updates()[:2], state_path=state)


def test_networks_start_from_files_of_their_own(tmp_path):
    source = plain_net()
    nn.init.constant_(source.tconv5.bias, 0.25)
    path = saved(tmp_path / "generator.safetensors", source)
    for init_from in (path, {"generator": path}):
        (log,) = run(networks := gan(), gan_settings(1, ema=()), gan_updates(lr=1e-9, lr_end=0.0), init_from=init_from)
        for name, p in source.named_parameters():
            torch.testing.assert_close(networks["generator"].get_parameter(name), p, rtol=0, atol=1e-8)
        with pytest.raises(ParameterError, match="'generator' is no network with an EMA"):
            log.ema_model()
    with pytest.raises(ParameterError, match="init_from names teacher"):
        run(gan(), gan_settings(1), gan_updates(), init_from={"teacher": path})
    with pytest.raises(CheckpointError, match="missing keys"):
        run(gan(), gan_settings(1), gan_updates(), init_from={"critic": path})


def test_impossible_updates_are_refused():
    networks, updates, config = gan(), gan_updates(), gan_settings(4)

    def refused(message: str, networks=networks, updates=updates, config=config) -> None:
        with pytest.raises(ParameterError, match=message):
            next(train(networks, updates, Pairs(), config))

    refused("one module takes one loss", networks=networks["critic"])
    refused("named networks take a list", updates=critic_loss)
    refused("each network has one update .*: networks generator, critic, late; updates of critic", updates=updates[:1])
    refused("each network has one update", updates=[*updates, updates[0]])
    refused("without '.'", networks={"a.b": networks["critic"]}, updates=[Update("a.b", critic_loss, Optimizer(lr=1))])
    refused("has no effect beside updates", config=gan_settings(4, clip_norm=0.5))
    refused("ema names teacher", config=gan_settings(4, ema=("teacher",)))
    refused("starts at step 0", updates=[replace(u, start=1) for u in updates])
    with pytest.raises(ParameterError, match="repeat must be positive"):
        Update("critic", critic_loss, Optimizer(lr=1e-3), repeat=0)
    with pytest.raises(ParameterError, match="needs a learning rate"):
        Update("critic", critic_loss, Optimizer())
