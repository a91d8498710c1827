"""Toy trainings that tests run here, kill in another process, and run in two: one network with every kind of state, a
plain one, and a GAN with gradient penalty. As a program: ``python -m tests.training_toys JOB PATH``."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ldctlib import checkpoints
from ldctlib.models.redcnn import REDCNN
from ldctlib.training import Optimizer, TrainConfig, Update, train

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS, KILL_STEPS = 40, 80


class Pairs(Dataset):
    """Clean and noisy images, with a noise bank that is renewed every 24 samples, and a share to mix them by."""

    @cache  # noqa: B019  one small bank at a time in a short-lived object
    def bank(self, number: int) -> torch.Tensor:
        return 0.1 * torch.randn(5, 1, 12, 12, generator=torch.Generator().manual_seed(number))

    def __getitem__(self, n: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(n)
        clean = torch.rand(1, 12, 12, generator=generator)
        mix = torch.rand(1, 1, 1, generator=generator)
        return {"ndct": clean, "ldct": clean + self.bank(n // 24)[n % 5], "mix": mix, "n": n}


class Net(nn.Module):
    """Every kind of state: kernels, biases, batch-norm buffers, dropout."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(6, 1, 3, padding=1)
        )

    def forward(self, x):
        return x + self.layers(x)


class Tokens(nn.Module):
    """A network with matrices in blocks and others, as a transformer has them."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Linear(12, 8), nn.Linear(8, 12)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x):
        h = self.embed(x)
        for block in self.blocks:
            h = h + block(h).tanh()
        return x + self.out(h)


class Critic(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(25 * width, 1)
        )

    def forward(self, x):
        return self.layers(x)


def seeded(build, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def net() -> Net:
    return seeded(Net, 1)


def plain_net() -> REDCNN:
    """Nothing random and nothing that looks across the batch: equal for any division of the batch."""
    return seeded(lambda: REDCNN(channels=4, kernel_size=3, final_relu=False), 2)


def plain_loss(model, batch, generator, step):
    return F.mse_loss(model(batch["ldct"]), batch["ndct"])


def noisy_loss(model, batch, generator, step):
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


def run(model, config, loss=noisy_loss, **options) -> list:
    return list(train(model, loss, Pairs(), config, progress=False, **options))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def saved(path: Path, network: REDCNN) -> Path:
    """A checkpoint of :func:`plain_net`'s kind."""
    described = {"collection": "", "cases": [], "seed": 0, "steps": 0, "profile": "", "code_revision": ""}
    return checkpoints.save(
        path,
        network,
        model="redcnn",
        config={"channels": 4, "kernel_size": 3},
        hu_range=None,
        trained_on=described,
        quality={},
        dtype=torch.float32,
    )


# ---------------------------------------------------------------- a GAN


def gan(random_generator: bool = False) -> dict[str, nn.Module]:
    """A denoiser, a Wasserstein critic, and one that judges patches and starts late."""
    generator = net() if random_generator else plain_net()
    return {"generator": generator, "critic": seeded(lambda: Critic(4), 3), "late": seeded(lambda: Critic(2), 4)}


def wasserstein_loss(critic, generator, batch):
    """WGAN-GP (Gulrajani et al. 2017): the gradient of an input, differentiated again."""
    fake, real = generator(batch["ldct"]).detach(), batch["ndct"]
    between = torch.lerp(fake, real, batch["mix"]).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    return {"loss": critic(fake).mean() - critic(real).mean() + 10 * penalty, "penalty": penalty}


LATE = 3


def critic_loss(networks, batch, generator, step):
    return wasserstein_loss(networks["critic"], networks["generator"], batch)


def late_loss(networks, batch, generator, step):
    assert step >= LATE
    return wasserstein_loss(networks["late"], networks["generator"], batch)["loss"]


def generator_loss(networks, batch, generator, step):
    fake = networks["generator"](batch["ldct"])
    adversarial = -networks["critic"](fake).mean() - (networks["late"](fake).mean() if step >= LATE else 0.0)
    l1 = F.l1_loss(fake, batch["ndct"])
    return {"loss": l1 + 0.01 * adversarial, "l1": l1}


def gan_updates(**changes) -> list[Update]:
    adam = {"kind": "adam", "betas": (0.5, 0.9), "clip_norm": None}
    sgd = {"kind": "sgd", "momentum": 0.9, "schedule": "poly", "lr_end": 1e-4, "clip_norm": 0.5}
    return [
        Update("critic", critic_loss, Optimizer(**{"lr": 2e-3} | adam | changes), repeat=2),
        Update("generator", generator_loss, Optimizer(**{"lr": 1e-3, "warmup_steps": 4} | changes)),
        Update("late", late_loss, Optimizer(**{"lr": 5e-3} | sgd | changes), start=LATE),
    ]


def gan_settings(steps: int, **changes) -> TrainConfig:
    defaults = {"batch_size": 4, "accumulation": 2, "ema_decay": 0.9, "ema": ("generator", "late"), "log_every": 10}
    return TrainConfig(**{"steps": steps, "device": "cpu", "seed": 6} | defaults | changes)


# ---------------------------------------------------------------- in other processes


def killable(kind: str, state: Path):
    """A training of either kind; states are written all the time, so that some kills hit the writing."""
    often = {"steps": KILL_STEPS, "log_every": 1, "checkpoint_every": 2}
    if kind == "gan":
        return train(gan(True), gan_updates(), Pairs(), gan_settings(**often), state_path=state)
    return train(net(), noisy_loss, Pairs(), settings(**often), state_path=state)


def partly_used_loss(model, batch, generator, step):
    """A bias that only samples of even numbers reach: with two processes, those of the first."""
    x = model.conv1(batch["ldct"])
    even = batch["n"] % 2 == 0
    loss = (x.square().flatten(1).mean(1)).mean()
    return loss + (model.tconv1.bias.square().sum() + 1) * even.float().mean() if even.any() else loss


DISTRIBUTED = ("gradient", "weights", "partly", "gan")


def distributed_runs(prefix: Path) -> list[nn.Module]:
    """One step, whose state tells the gradient; five with accumulation; a parameter that one process does not use.

    Returns the networks, which every process has alike.
    """
    common = {"batch_size": 8, "lr": 1e-3, "warmup_steps": 0, "clip_norm": None}
    # SGD: Adam turns rounding into lr where gradients are tiny, as a fresh critic's are
    updates = gan_updates(kind="sgd", momentum=0.9, schedule="constant")
    jobs = {
        "gradient": (plain_net(), settings(steps=1, accumulation=1, **common), plain_loss),
        "weights": (plain_net(), settings(steps=5, **common), plain_loss),
        "partly": (plain_net(), settings(steps=2, **common), partly_used_loss),
        "gan": (gan(), gan_settings(steps=5, batch_size=8), updates),
    }
    for name, job in jobs.items():
        run(*job, state_path=prefix.with_suffix(f".{name}"))
    given = [networks for networks, *_ in jobs.values()]
    return [network for g in given for network in (g.values() if isinstance(g, dict) else [g])]


def digest(network: nn.Module) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in network.state_dict().values())).hexdigest()


def spawn(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "TQDM_DISABLE": "1"}
    command = [sys.executable, *launcher, "-m", "tests.training_toys", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    )


def main(job: str, path: Path) -> None:
    torch.set_num_threads(1)
    if job != "distributed":
        for log in killable(job, path):
            print(log.step, flush=True)
        return
    networks = distributed_runs(path)
    rank = torch.distributed.get_rank()
    # from other weights and with its own batch statistics: what either process has in the end
    run(model := seeded(Net, rank), settings(steps=3))
    said = {"processes": torch.distributed.get_world_size(), "digests": [digest(n) for n in (*networks, model)]}
    path.with_suffix(f".rank{rank}").write_text(json.dumps(said))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
