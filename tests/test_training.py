"""The training loop with one network: against a plain second implementation, its logs, and what it refuses."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from ldctlib import checkpoints
from ldctlib.errors import CheckpointError, LdctError, ParameterError
from ldctlib.precision import computes_bf16
from ldctlib.training import STATE_FORMAT, Optimizer, train
from tests.training_toys import (
    REPOSITORY,
    STEPS,
    Pairs,
    net,
    noisy_loss,
    plain_loss,
    plain_net,
    run,
    same,
    saved,
    settings,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------- against a second implementation


def test_equals_a_plain_loop():
    """AdamW, warm-up, cosine, clipping, accumulation, weight decay, EMA, written out with torch's parts."""
    config = settings(clip_norm=0.3)
    model = plain_net()
    (*_, last) = run(model, config, plain_loss)

    reference, dataset = plain_net(), Pairs()
    kernels = [p for p in reference.parameters() if p.ndim == 4]
    biases = [p for p in reference.parameters() if p.ndim == 1]
    groups = [{"params": kernels, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=False, foreach=False)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 5)
    ema, clipped = [p.detach().double() for p in reference.parameters()], 0
    for step in range(STEPS):
        if step < 5:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * (step + 1) / 5
        batch = default_collate([dataset[n] for n in range(4 * step, 4 * step + 4)])
        optimizer.zero_grad()
        plain_loss(reference, batch, None, step).backward()
        clipped += bool(nn.utils.clip_grad_norm_(reference.parameters(), 0.3) > 0.3)
        optimizer.step()
        if step >= 5:
            cosine.step()
        elif step == 4:
            for group in optimizer.param_groups:
                group["lr"] = config.lr
        d = min(0.9, (1 + step) / (10 + step))
        ema = [d * e + (1 - d) * p.detach().double() for e, p in zip(ema, reference.parameters(), strict=True)]
    assert 0 < clipped < STEPS  # or clipping would not have been tested
    # Float32 rounds gradients differently (the batch is summed in halves, ~1e-7 relative), which Adam's
    # division by their size turns into ~lr * 1e-7 per step where they are not tiny; 40 steps of lr 3e-3.
    # A step of a wrong rate, decay or clip changes weights by 1e-4 and more.
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)
    for ours, theirs in zip(last.ema_model().parameters(), ema, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=5e-6)


def test_rates_are_the_closed_forms():
    cosine = Optimizer(lr=2.0, lr_end=1.0, warmup_steps=4)
    assert [cosine.lr_at(step, 12) for step in (0, 3, 4)] == [0.5, 2.0, 2.0]
    assert cosine.lr_at(8, 12) == pytest.approx(1.5) and cosine.lr_at(12, 12) == 1.0  # half-way, and the end
    poly = Optimizer(lr=2.0, schedule="poly")
    assert poly.lr_at(0, 10) == 2.0 and poly.lr_at(5, 10) == pytest.approx(2 * 0.5**0.9)
    assert Optimizer(lr=2.0, schedule="constant").lr_at(9, 10) == 2.0


def test_log_says_what_happened():
    config, dataset = settings(steps=6, log_every=3, schedule="constant", warmup_steps=0), Pairs()
    model, losses = plain_net(), []
    logs = []
    for log in train(model, plain_loss, dataset, config, progress=False):
        logs.append(log)
        averaged = log.ema_model()
        assert not averaged.training and not any(p.requires_grad for p in averaged.parameters())
        assert same(log.ema_state_dict(), averaged.state_dict())
    assert [(log.step, log.finished, log.lr) for log in logs] == [
        (3, False, {"model": 3e-3}),
        (6, True, {"model": 3e-3}),
    ]
    model = plain_net()
    for log in train(model, plain_loss, dataset, settings(**vars(config) | {"log_every": 1}), progress=False):
        losses.append(log.loss)
    # means of three numbers, in float32 on the device here and in float64 there: rounding of 1e-7 relative
    assert logs[0].loss == pytest.approx(np.mean(losses[:3]), rel=1e-6)
    assert logs[1].loss == pytest.approx(np.mean(losses[3:]), rel=1e-6)
    batch = default_collate([dataset[n] for n in range(4)])
    assert losses[0] == pytest.approx(plain_loss(plain_net(), batch, None, 0).item(), rel=1e-6)


# ---------------------------------------------------------------- precision


def first_layer_loss(seen: list):
    def loss(model, batch, generator, step):
        prediction = model.conv1(batch["ldct"])
        seen.append(prediction.dtype)
        return prediction.float().square().mean()

    return loss


def test_bf16_computes_in_bf16_and_keeps_float32():
    run(model := plain_net(), settings(steps=2), first_layer_loss(seen := []))
    run(model, settings(steps=2, precision="bf16"), first_layer_loss(seen))  # after float32, in the same process
    assert set(seen[:4]) == {torch.float32} and set(seen[4:]) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_auto_asks_the_processor_and_a_state_says_what_it_answered(tmp_path, monkeypatch):
    """Going on where the answer is another one is possible, and said."""
    state, config = tmp_path / "run.state", settings(steps=4, precision="auto")
    for answer, dtype in ((True, torch.bfloat16), (True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("ldctlib.training.state.computes_bf16", lambda device, answer=answer: answer)
        with warnings.catch_warnings(record=True) as said:
            run(plain_net(), config, first_layer_loss(seen := []), state_path=state, max_seconds=0)
        assert set(seen) == {dtype}
        messages = [str(w.message) for w in said if "computed in" in str(w.message)]
        assert bool(messages) == (not answer)
    assert "bf16 on 1 x CPU" in messages[0] and "goes on in float32 on 1 x CPU" in messages[0]
    assert checkpoints.read_tensors(state, kind=STATE_FORMAT)[1]["step"] == 3
    run(plain_net(), config, first_layer_loss([]), state_path=state)
    monkeypatch.setattr("ldctlib.training.state.computes_bf16", lambda device: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left to compute
        run(plain_net(), config, first_layer_loss([]), state_path=state)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512bw avx512_vnni", False),
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_fp16", True),
        ("flags\t\t: fpu avx2 amx_tile amx_bf16 amx_int8", True),
        ("Features\t: fp asimd sve i8mm bf16", True),
        ("Features\t: fp asimd svebf16x", False),
        ("model name\t: a processor with bf16 in its name", False),
    ],
)
def test_a_processors_features_say_whether_it_computes_bf16(tmp_path, line, answer):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\n{line}\n")
    assert computes_bf16("cpu", tmp_path / "cpuinfo") is answer
    assert computes_bf16(torch.device("cpu"), tmp_path / "absent") is False
    assert computes_bf16("mps", tmp_path / "cpuinfo") is False


# ---------------------------------------------------------------- randomness, starting points, refusals


def test_randomness_is_the_steps_own():
    """The caller's draws do not change training, and training does not change the caller's."""
    (*_, log) = run(net(), settings())
    reference = log.ema_state_dict()
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    (*_, log) = run(net(), settings(num_workers=2, log_every=7))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all() and random.getstate() == state[2]
    assert same(log.ema_state_dict(), reference)
    for log in train(net(), noisy_loss, Pairs(), settings(), progress=False):  # noqa: B007
        torch.rand(3), np.random.rand(3), random.random()
    assert same(log.ema_state_dict(), reference)
    (*_, log) = run(net(), settings(seed=7))
    assert not same(log.ema_state_dict(), reference)  # the seed does matter: the loss draws from it


def test_warm_start(tmp_path):
    source = plain_net()
    nn.init.constant_(source.tconv5.bias, 0.25)
    path = saved(tmp_path / "warm.safetensors", source)
    batch = default_collate([Pairs()[n] for n in range(4)])
    (log,) = run(model := plain_net(), settings(steps=1, lr=1e-9), plain_loss, init_from=path)
    assert log.loss == pytest.approx(plain_loss(source, batch, None, 0).item(), rel=1e-6)  # float32 rounding
    # one AdamW step moves a weight by at most lr (1 + decay), far below 1e-8
    for name, p in source.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), p, rtol=0, atol=1e-8)
        torch.testing.assert_close(log.ema_model().get_parameter(name), p, rtol=0, atol=1e-8)
    with pytest.raises(CheckpointError, match="missing keys"):
        run(net(), settings(steps=1), init_from=path)


def test_damaged_and_foreign_states_are_refused(tmp_path):
    state = tmp_path / "run.state"
    config = settings(steps=4)
    run(net(), config, state_path=state, max_seconds=0)
    data = state.read_bytes()
    for damaged in (data[: len(data) // 2], data[:-1], b"", data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]):
        state.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="truncated|corrupted"):
            run(net(), config, state_path=state)
    state.write_bytes(data)
    with pytest.raises(CheckpointError, match="another run: model.lr 0.003 there, 0.1 here"):
        run(net(), settings(steps=4, lr=0.1), state_path=state)
    with pytest.raises(CheckpointError, match="another run: model.trained.layers.0.weight True there, nothing here"):
        frozen = net()
        frozen.layers[0].requires_grad_(False)
        run(frozen, config, state_path=state)
    with pytest.raises(CheckpointError, match="another run|missing keys"):
        run(plain_net(), config, state_path=state)
    assert state.read_bytes() == data
    assert run(net(), settings(steps=4, lr=0.1), state_path=state, resume=False)[-1].finished


def test_a_state_of_other_data_or_other_starting_weights_is_refused(tmp_path):
    state, config = tmp_path / "run.state", settings(steps=4)
    phantom = {"data": "phantoms", "patients": [1, 2], "noise": (4.0, 8.0)}
    run(net(), config, state_path=state, max_seconds=0, identity=phantom)
    data = state.read_bytes()
    for other in ("scans", phantom | {"data": "scans"}):
        with pytest.raises(CheckpointError, match="another run: .*identity.data 'phantoms' there, .* here.*state_path"):
            run(net(), config, state_path=state, identity=other)
    with pytest.raises(CheckpointError, match="identity.spacing nothing there, 0.7 here"):
        run(net(), config, state_path=state, identity=phantom | {"spacing": 0.7})
    weights = saved(tmp_path / "weights.safetensors", plain_net())
    run(plain_net(), config, plain_loss, state_path=tmp_path / "plain.state", max_seconds=0)
    with pytest.raises(CheckpointError, match="another run: model.init_from nothing there, '[0-9a-f]{64}' here"):
        run(plain_net(), config, plain_loss, state_path=tmp_path / "plain.state", init_from=weights)
    assert state.read_bytes() == data
    assert run(net(), config, state_path=state, identity=dict(phantom))[-1].finished


def test_divergence_is_an_error_and_spoils_no_state(tmp_path):
    state = tmp_path / "run.state"
    run(net(), settings(steps=6), state_path=state, max_seconds=0)

    def bad(model, batch, generator, step):
        return model(batch["ldct"]).mean() * float("nan")

    with pytest.raises(LdctError, match="diverged before step 6"):
        run(net(), settings(steps=6), bad, state_path=state)
    tensors, fields = checkpoints.read_tensors(state, kind=STATE_FORMAT)
    assert fields["step"] == 1 and all(torch.isfinite(t).all() for t in tensors.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0}, "lr must be positive"),
        ({"lr_end": 0.1}, "lr_end lies in"),
        ({"kind": "lion"}, "kind is one of"),
        ({"schedule": "linear"}, "schedule is one of"),
        ({"precision": "fp16"}, "precision is one of"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"warmup_steps": 41}, "warmup_steps"),
        ({"clip_norm": 0.0}, "clip_norm"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ParameterError, match=message):
        settings(**changes)


def test_impossible_runs_are_refused():
    with pytest.raises(ParameterError, match="does not divide into 3 micro-batches"):
        run(net(), settings(accumulation=3))
    with pytest.raises(ParameterError, match="no parameter"):
        run(net().requires_grad_(False), settings())
    with pytest.raises(ParameterError, match="needs a learning rate"):
        run(net(), settings(lr=None))
    with pytest.raises(ParameterError, match="has no term 'loss'"):
        run(net(), settings(), lambda model, batch, generator, step: {"mse": plain_loss(model, batch, generator, step)})
    if not torch.cuda.is_available():
        with pytest.raises(ParameterError, match="'cuda'"):
            run(net(), settings(device="cuda"))


def test_progress_bar_shows():
    """In a process of its own: tqdm reads TQDM_DISABLE once, when it is imported."""
    code = (
        "from tests.training_toys import Pairs, net, noisy_loss, settings\n"
        "from ldctlib.training import train\n"
        "list(train(net(), noisy_loss, Pairs(), settings(steps=2)))"
    )
    for disable, shown in (("", True), ("1", False)):
        environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
        environment |= {"TQDM_DISABLE": disable} if disable else {}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
        assert done.returncode == 0, done.stderr
        assert ("2/2" in done.stderr) == shown
