"""The training loop beside forward, backward and step alone, and a widget's redraw of a 512² slice, in one run."""

from __future__ import annotations

import time

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from ldctlib.models.redcnn import REDCNN
from ldctlib.show import widgets
from ldctlib.training import TrainConfig, train


class Cached(Dataset):
    """One sample, ready: nothing but the loop is timed."""

    sample = {"ldct": torch.zeros(1, 64, 64), "ndct": torch.zeros(1, 64, 64)}

    def __getitem__(self, n: int):
        return self.sample


def loss(model, batch, generator):
    return F.mse_loss(model(batch["ldct"]), batch["ndct"])


def training(per_block: int = 4, blocks: int = 10) -> None:
    """CPU time of the best of several blocks, taken in turn, so that what else runs decides little."""
    config = TrainConfig(steps=per_block * blocks, batch_size=4, log_every=per_block, lr=1e-4, device="cpu")
    bare = REDCNN(channels=16).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-4, fused=True)
    batch = {name: torch.stack([image] * 4) for name, image in Cached.sample.items()}

    def bare_block() -> float:
        start = time.process_time()
        for _ in range(per_block):
            loss(bare, batch, None).backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.process_time() - start

    bare_times, loop_times = [bare_block()], []
    start = time.process_time()
    for _ in train(REDCNN(channels=16), loss, Cached(), config, progress=False):
        loop_times.append(time.process_time() - start)
        bare_times.append(bare_block())
        start = time.process_time()
    step, bare_step = (1e3 * min(times) / per_block for times in (loop_times, bare_times))
    print(f"training step: {step:.1f} ms of CPU time, alone {bare_step:.1f} ms ({bare_step / step:.0%}; 90 % is good)")


def redraw() -> None:
    before, after = 40 + 60 * torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0))
    panel = widgets.wipe(before, after)
    times = []
    for step in range(1, 6):
        start = time.perf_counter()
        panel.controls["fraction"].value = step / 10
        times.append(time.perf_counter() - start)
    print(f"redraw of a 512² slice: {1e3 * min(times):.0f} ms (below 150 ms, dragging feels immediate)")


if __name__ == "__main__":
    torch.set_num_threads(1)
    training()
    redraw()
