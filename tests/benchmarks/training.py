"""The training loop's pace beside forward, backward and step alone, on data that lie ready: one network, and a GAN.

``python -m tests.benchmarks.training [threads]``: CPU time, blocks of both loops in turn, the best of each, since other
processes must not decide. 64² patches, batches of 4.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.data import Dataset

from ldctlib.models.redcnn import REDCNN
from ldctlib.training import Optimizer, TrainConfig, Update, train
from tests.training_toys import plain_loss, wasserstein_loss

PER_BLOCK, BLOCKS, BATCH = 4, 12, 4


class Cached(Dataset):
    """One sample, ready: nothing but the loop is timed."""

    sample = {"ldct": torch.zeros(1, 64, 64), "ndct": torch.ones(1, 64, 64), "mix": torch.full((1, 1, 1), 0.5)}

    def __getitem__(self, n: int):
        return self.sample


def critic() -> nn.Module:
    layers = nn.Conv2d(1, 16, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 1)
    return nn.Sequential(*layers)


def critic_loss(networks, batch, generator, step):
    return wasserstein_loss(networks["critic"], networks["generator"], batch)


def generator_loss(networks, batch, generator, step):
    fake = networks["generator"](batch["ldct"])
    return (fake - batch["ndct"]).square().mean() - 0.01 * networks["critic"](fake).mean()


def share(loop: Iterator, bare_step: Callable[[], None]) -> tuple[float, float]:
    """(the loop's share of the bare pace, a bare step's CPU time in ms)."""

    def bare_block() -> float:
        start = time.process_time()
        for _ in range(PER_BLOCK):
            bare_step()
        return time.process_time() - start

    bare, ours = [bare_block()], []
    start = time.process_time()
    for _ in loop:
        ours.append(time.process_time() - start)
        bare.append(bare_block())
        start = time.process_time()
    return min(bare) / min(ours), 1e3 * min(bare) / PER_BLOCK


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    config = {"steps": PER_BLOCK * BLOCKS, "batch_size": BATCH, "log_every": PER_BLOCK, "device": "cpu"}
    batch = {name: torch.stack([image] * BATCH) for name, image in Cached.sample.items()}

    def networks() -> dict[str, nn.Module]:
        made = {"generator": REDCNN(channels=16), "critic": critic()}
        return {name: n.to(memory_format=torch.channels_last) for name, n in made.items()}

    plain = networks()
    moved = {name: torch.optim.AdamW(n.parameters(), lr=1e-4, fused=True) for name, n in plain.items()}

    def move(name: str, loss: torch.Tensor) -> None:
        loss.backward(inputs=list(plain[name].parameters()))
        moved[name].step()
        moved[name].zero_grad()

    def gan_step() -> None:
        for _ in range(4):
            move("critic", critic_loss(plain, batch, None, 0)["loss"])
        move("generator", generator_loss(plain, batch, None, 0))

    rate = Optimizer(lr=1e-4)
    updates = [Update("critic", critic_loss, rate, repeat=4), Update("generator", generator_loss, rate)]
    runs = {
        "one network": (
            train(REDCNN(channels=16), plain_loss, Cached(), TrainConfig(lr=1e-4, **config), progress=False),
            lambda: move("generator", plain_loss(plain["generator"], batch, None, 0)),
        ),
        "WGAN-GP, 4 : 1": (train(networks(), updates, Cached(), TrainConfig(**config), progress=False), gan_step),
    }
    for name, (loop, bare_step) in runs.items():
        kept, ms = share(loop, bare_step)
        print(f"{name:16} bare step {ms:6.1f} ms, the loop keeps {100 * kept:5.1f} % of its pace")


if __name__ == "__main__":
    main()
