"""The training loop against a plain second implementation, interruption, and itself on two processes.

Run as a program this file is the process that tests kill, or one of two under torchrun.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from ldctlib import checkpoints
from ldctlib.errors import CheckpointError, LdctError, ParameterError
from ldctlib.models.redcnn import REDCNN
from ldctlib.training import STATE_FORMAT, TrainConfig, train

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS, KILL_STEPS = 40, 120

pytestmark = pytest.mark.usefixtures("one_thread")


class Pairs(Dataset):
    """Clean and noisy images, with a noise bank that is renewed every 24 samples."""

    @cache  # noqa: B019  one small bank at a time in a short-lived object
    def bank(self, number: int) -> torch.Tensor:
        return 0.1 * torch.randn(5, 1, 12, 12, generator=torch.Generator().manual_seed(number))

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        clean = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(n))
        return {"ndct": clean, "ldct": clean + self.bank(n // 24)[n % 5]}


class Net(nn.Module):
    """Every kind of state: kernels, biases, batch-norm buffers, dropout."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(6, 1, 3, padding=1)
        )

    def forward(self, x):
        return x + self.layers(x)


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Net()


def plain_net() -> REDCNN:
    """Nothing random and nothing that looks across the batch: equal for any division of the batch."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return REDCNN(channels=4, kernel_size=3, final_relu=False)


def plain_loss(model, batch, generator):
    return F.mse_loss(model(batch["ldct"]), batch["ndct"])


def noisy_loss(model, batch, generator):
    """Draws from every source of randomness there is."""
    noise = torch.randn(batch["ldct"].shape, generator=generator) * np.random.rand() * random.random()
    loss = F.mse_loss(model(batch["ldct"] + 0.1 * noise), batch["ndct"])
    return {"loss": loss, "twice": 2 * loss}


def settings(steps: int = STEPS, **changes) -> TrainConfig:
    defaults = {
        "batch_size": 4,
        "lr": 3e-3,
        "warmup_steps": min(5, steps),
        "ema_decay": 0.9,
        "accumulation": 2,
        "weight_decay": 0.01,
        "log_every": 10,
        "seed": 6,
        "device": "cpu",
    }
    return TrainConfig(**{"steps": steps} | defaults | changes)


def run(model, config, loss_fn=noisy_loss, **options) -> list:
    return list(train(model, loss_fn, Pairs(), config, progress=False, **options))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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
        plain_loss(reference, batch, None).backward()
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


def test_log_says_what_happened():
    config, dataset = settings(steps=6, log_every=3, schedule="constant", warmup_steps=0), Pairs()
    model, losses = plain_net(), []
    logs = []
    for log in train(model, plain_loss, dataset, config, progress=False):
        logs.append(log)
        averaged = log.ema_model()
        assert not averaged.training and not any(p.requires_grad for p in averaged.parameters())
        assert same(log.ema_state_dict(), averaged.state_dict())
    assert [(log.step, log.finished, log.lr) for log in logs] == [(3, False, 3e-3), (6, True, 3e-3)]
    model = plain_net()
    for log in train(model, plain_loss, dataset, settings(**vars(config) | {"log_every": 1}), progress=False):
        losses.append(log.loss)
    # means of three numbers, in float32 on the device here and in float64 there: rounding of 1e-7 relative
    assert logs[0].loss == pytest.approx(np.mean(losses[:3]), rel=1e-6)
    assert logs[1].loss == pytest.approx(np.mean(losses[3:]), rel=1e-6)
    batch = default_collate([dataset[n] for n in range(4)])
    assert losses[0] == pytest.approx(plain_loss(plain_net(), batch, None).item(), rel=1e-6)


def test_bf16_computes_in_bf16_and_keeps_float32():
    seen = []

    def loss_fn(model, batch, generator):
        prediction = model.conv1(batch["ldct"])
        seen.append(prediction.dtype)
        return prediction.float().square().mean()

    run(model := plain_net(), settings(steps=2), loss_fn)
    run(model, settings(steps=2, mixed_precision="bf16"), loss_fn)  # after "no", in the same process
    assert set(seen[:4]) == {torch.float32} and set(seen[4:]) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.parameters())


# ---------------------------------------------------------------- determinism and resume


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


def test_time_limit_stops_cleanly_at_every_step(tmp_path):
    """Ended after each step and resumed, the run, its logs and its EMA are those of an uninterrupted one."""
    config = settings(steps=8, log_every=3)
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


def spawn(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "TQDM_DISABLE": "1"}
    command = [sys.executable, *launcher, __file__, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killable(state: Path) -> TrainConfig:
    """States are written all the time, so that some kills hit the writing."""
    return settings(steps=KILL_STEPS, log_every=1, checkpoint_every=2)


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    state = tmp_path / "run.state"
    rng = random.Random(time.time_ns())  # a random step: any one must do
    mark = rng.randrange(3, KILL_STEPS // 2)
    process = spawn("killable", str(state))
    for line in process.stdout:
        if int(line) >= mark:
            time.sleep(rng.random() * 0.02)  # and anywhere in it
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"ended before it was killed at {mark}"
    killed_at = checkpoints.read_tensors(state, kind=STATE_FORMAT)[1]["step"]
    assert mark - 2 <= killed_at < KILL_STEPS
    process = spawn("killable", str(state))
    run(model := net(), config := killable(state), state_path=tmp_path / "whole.state")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert int(out.split()[0]) == killed_at + 1  # it did resume
    assert "train:" not in err  # the bar honours TQDM_DISABLE
    whole, fields = checkpoints.read_tensors(tmp_path / "whole.state", kind=STATE_FORMAT)
    resumed, _ = checkpoints.read_tensors(state, kind=STATE_FORMAT)
    assert fields["step"] == config.steps
    assert same(resumed, whole), f"killed at {killed_at}"  # weights, buffers, EMA, optimiser, last terms
    weights = {name.removeprefix("model."): t for name, t in whole.items() if name.startswith("model.")}
    assert same(weights, model.state_dict())


def test_two_processes_equal_one(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    process = spawn("distributed", str(tmp_path / "two"), launcher=launcher)
    one = distributed_runs(tmp_path / "one")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out) == {"processes": 2}
    for name in one:
        alone, _ = checkpoints.read_tensors(tmp_path / f"one.{name}", kind=STATE_FORMAT)
        shared, _ = checkpoints.read_tensors(tmp_path / f"two.{name}", kind=STATE_FORMAT)
        assert alone.keys() == shared.keys()
        # After one step AdamW's first moment is 0.1 times the gradient. Float32 sums over 8 images x 144
        # pixels in another order differ by 1e-7 relative; after 5 steps of lr 1e-3 the weights by ~1e-8
        # where gradients are not tiny, and with a wrong division of the batch by 1e-3.
        for key, tensor in alone.items():
            if key.startswith(("optimizer.", "model.", "ema.")):
                scale = tensor.abs().max().item() if key.endswith("exp_avg") else 1.0
                difference = (shared[key] - tensor).abs().max().item()
                assert difference <= 1e-5 * scale, f"{name} {key}: {difference} of {scale}"


def distributed_runs(prefix: Path) -> dict[str, TrainConfig]:
    """One step, whose state tells the gradient; five steps, with accumulation."""
    common = {"batch_size": 8, "lr": 1e-3, "warmup_steps": 0, "clip_norm": None}
    configs = {
        "gradient": settings(steps=1, accumulation=1, **common),
        "weights": settings(steps=5, accumulation=2, **common),
    }
    for name, config in configs.items():
        run(plain_net(), config, plain_loss, state_path=prefix.with_suffix(f".{name}"))
    return configs


# ---------------------------------------------------------------- starting points and refusals


def test_warm_start(tmp_path):
    source = plain_net()
    nn.init.constant_(source.tconv5.bias, 0.25)
    described = {"collection": "", "cases": [], "seed": 0, "steps": 0, "profile": "", "code_revision": ""}
    path = checkpoints.save(
        tmp_path / "warm.safetensors",
        source,
        model="redcnn",
        config={"channels": 4, "kernel_size": 3},
        units=None,
        trained_on=described,
        quality={},
        dtype=torch.float32,
    )
    batch = default_collate([Pairs()[n] for n in range(4)])
    (log,) = run(model := plain_net(), settings(steps=1, lr=1e-9), plain_loss, init_from=path)
    assert log.loss == pytest.approx(plain_loss(source, batch, None).item(), rel=1e-6)  # float32 rounding
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
    with pytest.raises(CheckpointError, match=r"another run: lr 0.003 there, 0.1 here"):
        run(net(), settings(steps=4, lr=0.1), state_path=state)
    with pytest.raises(CheckpointError, match="another run: trained there or here only: .*layers.0.bias"):
        frozen = net()
        frozen.layers[0].requires_grad_(False)
        run(frozen, config, state_path=state)
    with pytest.raises(CheckpointError, match="another run|missing keys"):
        run(plain_net(), config, state_path=state)
    assert state.read_bytes() == data
    assert run(net(), settings(steps=4, lr=0.1), state_path=state, resume=False)[-1].finished


def test_divergence_is_an_error_and_spoils_no_state(tmp_path):
    state = tmp_path / "run.state"
    run(net(), settings(steps=6), state_path=state, max_seconds=0)

    def bad(model, batch, generator):
        return model(batch["ldct"]).mean() * float("nan")

    with pytest.raises(LdctError, match="diverged before step 6"):
        run(net(), settings(steps=6), bad, state_path=state)
    tensors, fields = checkpoints.read_tensors(state, kind=STATE_FORMAT)
    assert fields["step"] == 1 and all(torch.isfinite(t).all() for t in tensors.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0}, "lr must be positive"),
        ({"schedule": "linear"}, "schedule is one of"),
        ({"mixed_precision": "fp16"}, "mixed_precision is one of"),
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
    if not torch.cuda.is_available():
        with pytest.raises(ParameterError, match="'cuda'"):
            run(net(), settings(device="cuda"))


def test_progress_bar_shows():
    """In a process of its own: tqdm reads TQDM_DISABLE once, when it is imported."""
    code = (
        "from tests.test_training import Pairs, net, noisy_loss, settings\n"
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


# ---------------------------------------------------------------- pace


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, path = sys.argv[1], Path(sys.argv[2])
    if what == "killable":
        for log in train(net(), noisy_loss, Pairs(), killable(path), state_path=path):
            print(log.step, flush=True)
    else:
        distributed_runs(path)
        if torch.distributed.get_rank() == 0:
            print(json.dumps({"processes": torch.distributed.get_world_size()}))
        torch.distributed.destroy_process_group()
