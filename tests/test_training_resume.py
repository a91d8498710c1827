"""A training that is ended, interrupted, killed and resumed, and one that runs in two processes."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest

from ldctlib import checkpoints
from ldctlib.training import STATE_FORMAT, train
from tests.training_toys import (
    DISTRIBUTED,
    KILL_STEPS,
    Net,
    Pairs,
    Tokens,
    distributed_runs,
    killable,
    net,
    noisy_loss,
    plain_loss,
    run,
    same,
    seeded,
    settings,
    spawn,
)

pytestmark = pytest.mark.usefixtures("one_thread", "interruptible")


@pytest.mark.parametrize(
    "optimizer", [{}, {"kind": "adam"}, {"kind": "sgd", "momentum": 0.9, "schedule": "poly"}, {"kind": "sgd"}]
)
def test_time_limit_stops_cleanly_at_every_step(tmp_path, optimizer):
    """Ended after each step and resumed, the run, its logs and its EMA are those of an uninterrupted one."""
    config = settings(steps=8, log_every=3, **optimizer)
    reference = run(whole := net(), config)
    logs, state = [], tmp_path / "run.state"
    for call in range(1, 9):
        model = Net()  # weights of its own, which must not matter after the first call
        if call == 1:
            model.load_state_dict(net().state_dict())
        (log,) = run(model, config, max_seconds=0, state_path=state)
        assert log.step == call and log.finished == (call == 8)
        logs.append(log)
    assert same(model.state_dict(), whole.state_dict())
    assert same(logs[-1].ema_state_dict(), reference[-1].ema_state_dict())
    at_log = [log for log in logs if log.step in (3, 6, 8)]
    assert [(log.terms, log.lr) for log in at_log] == [(log.terms, log.lr) for log in reference]
    (again,) = run(Net(), config, state_path=state)  # nothing left to do
    assert again.finished and again.terms == reference[-1].terms
    assert same(again.ema_state_dict(), reference[-1].ema_state_dict())


def test_muon_moves_the_blocks_matrices_and_resumes(tmp_path):
    """Half of the steps and the rest from the state are the whole run; AdamW moves all but the blocks' matrices."""
    config = settings(steps=6, kind="muon", lr=1e-2)
    whole, again, plain = (seeded(Tokens, 3) for _ in range(3))
    blocks, rest = config.build(dict(whole.named_parameters()))[::-1]
    moved = {id(p) for group in blocks.param_groups for p in group["params"]}
    assert moved == {id(block.weight) for block in whole.blocks}
    assert len([p for group in rest.param_groups for p in group["params"]]) == 6
    run(whole, config, plain_loss)
    before = again.blocks[0].weight.detach().clone()
    state = tmp_path / "run.state"
    for _ in range(3):
        run(again, config, plain_loss, state_path=state, max_seconds=0)
    run(resumed := seeded(Tokens, 4), config, plain_loss, state_path=state)
    assert same(resumed.state_dict(), whole.state_dict())
    run(plain, settings(steps=6, lr=1e-2), plain_loss)
    assert not same(plain.state_dict(), whole.state_dict())
    # a step of an orthogonal matrix has the size that AdamW's steps have: about .2 lr a number
    first = seeded(Tokens, 3)
    run(first, settings(steps=1, kind="muon", lr=1e-2, warmup_steps=0), plain_loss)
    assert 0.1e-2 < float((first.blocks[0].weight - before).square().mean().sqrt()) < 0.3e-2


def test_slow_parameters_move_at_a_tenth_of_the_rate():
    """AdamW's first step is the rate itself wherever there is a gradient."""
    before, model = seeded(Tokens, 3), seeded(Tokens, 3)
    run(model, settings(steps=1, lr=1e-2, warmup_steps=0, slow="blocks.0", weight_decay=0.0), plain_loss)
    moved = {
        name: float((p - q).abs().max())
        for (name, p), q in zip(model.named_parameters(), before.parameters(), strict=True)
    }
    for name, most in moved.items():
        assert most == pytest.approx(1e-3 if "blocks.0" in name else 1e-2, rel=0.02), name


def test_an_interrupt_waits_for_the_step_and_leaves_a_state(tmp_path):
    config, state = settings(steps=8, accumulation=1), tmp_path / "run.state"
    run(whole := net(), config)

    def interrupted(times: int):
        def loss(model, batch, generator, step):
            for _ in range(times if step == 4 else 0):
                signal.raise_signal(signal.SIGINT)
            return noisy_loss(model, batch, generator, step)

        return loss

    with pytest.raises(KeyboardInterrupt, match="after step 5; the state is .*run.state"):
        run(net(), config, interrupted(1), state_path=state)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert checkpoints.read_tensors(state, kind=STATE_FORMAT)[1]["step"] == 5
    run(model := Net(), config, state_path=state)
    assert same(model.state_dict(), whole.state_dict())
    state.unlink()
    with pytest.raises(KeyboardInterrupt):  # the second one does not wait
        run(net(), config, interrupted(2), state_path=state)
    assert not state.exists() and signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Interrupting(Pairs):
    """Ctrl-C while a worker prepares the first sample, sent as a terminal sends it: to every process."""

    def __getitem__(self, n: int) -> dict:
        if n == 0:
            for process in (os.getppid(), os.getpid()):
                os.kill(process, signal.SIGINT)
        return super().__getitem__(n)


def test_an_interrupt_leaves_the_loaders_workers_to_finish_the_step(tmp_path):
    config, state = settings(steps=8, num_workers=1), tmp_path / "run.state"
    with pytest.raises(KeyboardInterrupt, match="after step 1"):
        list(train(net(), noisy_loss, Interrupting(), config, state_path=state, progress=False))
    assert checkpoints.read_tensors(state, kind=STATE_FORMAT)[1]["step"] == 1


@pytest.mark.parametrize("kind", ["single", "gan"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, kind):
    state = tmp_path / "run.state"
    rng = random.Random(time.time_ns())  # a random step: any one must do
    mark = rng.randrange(5, KILL_STEPS // 2)
    process = spawn(kind, str(state))
    for line in process.stdout:
        if int(line) >= mark:
            time.sleep(rng.random() * 0.02)  # and anywhere in it
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"ended before it was killed at {mark}"
    killed_at = checkpoints.read_tensors(state, kind=STATE_FORMAT)[1]["step"]
    assert mark - 2 <= killed_at < KILL_STEPS
    process = spawn(kind, str(state))
    *_, last = killable(kind, tmp_path / "whole.state")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert int(out.split()[0]) == killed_at + 1  # it did resume
    assert "train:" not in err  # the bar honours TQDM_DISABLE
    whole, fields = checkpoints.read_tensors(tmp_path / "whole.state", kind=STATE_FORMAT)
    resumed, _ = checkpoints.read_tensors(state, kind=STATE_FORMAT)
    assert fields["step"] == last.step == KILL_STEPS
    assert same(resumed, whole), f"killed at {killed_at}"  # weights, buffers, EMA, optimisers, last terms
    for name in ("model",) if kind == "single" else ("generator", "late"):
        prefix = f"ema.{name}."
        stored = {key.removeprefix(prefix): t for key, t in whole.items() if key.startswith(prefix)}
        averaged = last.ema_state_dict(name)
        assert stored and same(stored, {key: averaged[key] for key in stored})


def test_two_processes_equal_one(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    process = spawn("distributed", str(tmp_path / "two"), launcher=launcher)
    distributed_runs(tmp_path / "one")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    ranks = [json.loads((tmp_path / f"two.rank{rank}").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1] and ranks[0]["processes"] == 2  # weights and batch statistics, to the bit
    for name in DISTRIBUTED:
        alone, _ = checkpoints.read_tensors(tmp_path / f"one.{name}", kind=STATE_FORMAT)
        shared, _ = checkpoints.read_tensors(tmp_path / f"two.{name}", kind=STATE_FORMAT)
        assert alone.keys() == shared.keys()
        # After one step AdamW's first moment is 0.1 times the gradient. Float32 sums over 8 images x 144
        # pixels in another order differ by 1e-7 relative; after 5 steps of lr 1e-3 the weights by ~1e-8
        # where gradients are not tiny, and with a wrong division of the batch by 1e-3.
        for key, tensor in alone.items():
            scale = tensor.abs().max().item() if key.endswith(("exp_avg", "momentum_buffer")) else 1.0
            difference = (shared[key] - tensor).abs().max().item()
            assert difference <= 1e-5 * scale, f"{name} {key}: {difference} of {scale}"
