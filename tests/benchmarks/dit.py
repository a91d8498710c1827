"""Training the diffusion transformer from cached moments and vectors beside encoding every batch; and sampling.

    python -m tests.benchmarks.dit [--threads 1] [--device cuda] [--repeats 3] [--sizes]

The shipped size: 32 x 32 x 4 latents of 256 x 256 images, patches of 4, width 128, 6 blocks, convolutions around them,
two vectors. The plain loop encodes a batch with an autoencoder of the shipped cost, and its noise maps and masks with
CLIP. bf16 only where the device computes it. Best of the repeats, both loops in turn: other processes must not decide.
``--sizes`` times a training step of other widths and depths as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import perf_counter

import torch

from ldctlib import checkpoints
from ldctlib.diffusion.process import Process
from ldctlib.diffusion.samplers import ddim
from ldctlib.models.autoencoder import Autoencoder, Posterior
from ldctlib.models.dit import DiT
from ldctlib.precision import computes_bf16

BATCH, CACHED, SIDE, VECTOR = 64, 512, 256, 128
SHIPPED = dict(input_size=32, patch_size=4, in_channels=4, num_heads=4, conv_channels=32)
SHIPPED |= dict(vectors=2, vector_dim=VECTOR)
PROCESS = Process.from_spec(dict(schedule="cosine", prediction="x0"))


def best(parts: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of each part, all in turn ``repeats`` times after one to warm up."""
    seconds = dict.fromkeys(parts, float("inf"))
    for repeat in range(repeats + 1):
        for name, part in parts.items():
            begun = perf_counter()
            part()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name] = min(seconds[name], perf_counter() - begun)
    return seconds


def trainer(network: DiT, bf16: bool) -> Callable[[torch.Tensor, torch.Tensor], None]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)

    def step(z: torch.Tensor, vector: torch.Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(z.device.type, torch.bfloat16, enabled=bf16):
            loss = PROCESS.loss(lambda x_t, t: network(x_t, t, vector), z)
        loss.backward()
        optimizer.step()

    return step


def training(device: torch.device, repeats: int) -> None:
    config = checkpoints.load(checkpoints.find("autoencoder_simple")).config | dict(latent_channels=4)
    autoencoder = Autoencoder(**config).to(device, memory_format=torch.channels_last).eval()
    clip = checkpoints.build("clip", map_location=device)
    images_hu = torch.randn(BATCH, 1, SIDE, SIDE, device=device)
    moments = torch.randn(2, CACHED, 4, 32, 32, device=device).half()
    vectors = torch.randn(CACHED, 2, VECTOR, device=device).half()

    @torch.no_grad()
    def encoded():
        z = autoencoder.scale(autoencoder.encode(images_hu).sample())
        return z, torch.stack([clip.encode_image(images_hu), clip.encode_image(images_hu)], dim=1)

    @torch.no_grad()
    def cached():
        chosen = torch.randint(CACHED, (BATCH,), device=device)
        return autoencoder.scale(Posterior(*moments[:, chosen].float()).sample()), vectors[chosen].float()

    parts = {}
    for bf16 in [False, True] if computes_bf16(device) else [False]:
        step = trainer(DiT(**SHIPPED, hidden_size=128, depth=6).to(device), bf16)
        for name, batch in (("every batch encoded", encoded), ("cached", cached)):
            parts[f"{name}, {'bf16' if bf16 else 'float32'}"] = lambda step=step, batch=batch: step(*batch())
    seconds = best(parts, repeats, device)
    slowest = max(seconds.values())
    print(f"\n| training, batches of {BATCH} | s a step | steps a second | times as fast |\n| --- | --- | --- | --- |")
    for name, s in seconds.items():
        print(f"| {name} | {s:.3f} | {1 / s:.2f} | {slowest / s:.1f} |")


def sampling(device: torch.device, repeats: int, images: int = 16, steps: int = 30) -> None:
    network = DiT(**SHIPPED, hidden_size=128, depth=6).to(device).eval()
    x_t, vector = torch.randn(images, 4, 32, 32, device=device), torch.randn(images, 2, VECTOR, device=device)
    eps, times = PROCESS.predictor(lambda x, t: network(x, t, vector)), PROCESS.schedule.times(steps)

    @torch.no_grad()
    def sample() -> None:
        for _ in ddim(eps, x_t, PROCESS.schedule, times):
            pass

    (seconds,) = best({"": sample}, repeats, device).values()
    print(f"\nsampling {images} images in {steps} DDIM steps, latents alone: {seconds:.2f} s")


def sizes(device: torch.device, repeats: int) -> None:
    z, vector = torch.randn(BATCH, 4, 32, 32, device=device), torch.randn(BATCH, 2, VECTOR, device=device)
    print("\n| width | blocks | weights (M) | s a training step |\n| --- | --- | --- | --- |")
    for width, depth in ((128, 6), (160, 6), (128, 8), (160, 8)):
        network = DiT(**SHIPPED, hidden_size=width, depth=depth).to(device)
        step = trainer(network, computes_bf16(device))
        (seconds,) = best({"": lambda step=step: step(z, vector)}, repeats, device).values()
        print(f"| {width} | {depth} | {sum(p.numel() for p in network.parameters()) / 1e6:.2f} | {seconds:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    training(options.device, options.repeats)
    sampling(options.device, options.repeats)
    if options.sizes:
        sizes(options.device, options.repeats)


if __name__ == "__main__":
    main()
