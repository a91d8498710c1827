"""Projector speed beside scikit-image, in one run: forward, FBP, backward, peak memory; 512², 720 views, 736 bins."""

from __future__ import annotations

import resource
import time

import numpy as np
import torch

from ldctlib.ct.geometry import FanGeometry, Geometry, ParallelGeometry
from ldctlib.ct.projector import projector
from ldctlib.units import MU_WATER_PER_MM
from tests.ellipses import raster, sinogram


def best(f, repeats: int) -> float:
    """Shortest of ``repeats`` timed calls, in ms, after one to warm up."""
    f()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def _row(name: str, geometry: Geometry) -> tuple[float, float]:
    """Print one geometry's times and errors; returns the forward and FBP times in ms."""
    start = time.perf_counter()
    p = projector(geometry)
    build = time.perf_counter() - start
    image = raster(geometry)
    truth = torch.from_numpy(sinogram(geometry)).float()[None, None]
    forward, fbp = best(lambda: p.A(image), 9), best(lambda: p.fbp(truth), 9)
    x = image.clone().requires_grad_()
    total = best(lambda: torch.autograd.grad(p.A(x).sum(), x), 9)
    error = float((p.A(image) - truth).norm() / truth.norm())
    print(
        f"{name:28s}{forward:10.1f}{fbp:10.1f}{total - forward:10.1f}{error:9.3%}{build:9.1f}"
        f"{p._gridder.nbytes / 1e6:6.0f}"
    )
    image_hu, result = image * 1000 / MU_WATER_PER_MM, p.fbp(truth) * 1000 / MU_WATER_PER_MM
    body = image_hu > 0
    print(f"{'  FBP body RMSE, with edges':28s}{float((result - image_hu)[body].square().mean().sqrt()):10.1f} HU")
    return forward, fbp


def main() -> None:
    from skimage.transform import iradon, radon

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; best of several, ms an image")
    geometry = ParallelGeometry(512, 0.75, 720, 736, 0.75)
    image = raster(geometry)
    theta = np.degrees(geometry.angles_rad)
    padded = np.pad(image[0, 0].numpy(), 112)  # 736 wide: skimage's detector is as wide as its image
    slow_forward = best(lambda: radon(padded, theta=theta, circle=True), 1)
    slow_sinogram = radon(padded, theta=theta, circle=True)
    slow_fbp = best(lambda: iradon(slow_sinogram, theta=theta, circle=True, output_size=512), 1)
    print(f"{'':28s}{'forward':>10s}{'FBP':>10s}{'backward':>10s}{'error':>9s}{'build s':>9s}{'MB':>6s}")
    print(f"{'scikit-image radon/iradon':28s}{slow_forward:10.1f}{slow_fbp:10.1f}")
    forward, fbp = _row("parallel", geometry)
    print(f"{'  times faster':28s}{slow_forward / forward:10.0f}{slow_fbp / fbp:10.0f}")
    p, batch = projector(geometry), image.expand(8, -1, -1, -1).contiguous()
    print(f"{'  in a batch of 8':28s}{best(lambda: p.A(batch), 5) / 8:10.1f}")
    _row("fan", FanGeometry(512, 0.75, 720, 736))
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
