"""Periodic random fields in space, made once, from which phantoms take texture, bent borders, strands and twigs.

A field is sampled at positions in mm, so that a finer grid shows the same texture in more detail.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def _spectrum_radius(shape: tuple[int, int, int]) -> np.ndarray:
    fz = np.fft.fftfreq(shape[0])[:, None, None]
    fy = np.fft.fftfreq(shape[1])[None, :, None]
    fx = np.fft.rfftfreq(shape[2])[None, None, :]
    return np.sqrt(fz**2 + fy**2 + fx**2).astype(np.float32)


def _gaussian_field(shape: tuple[int, int, int], amplitude: np.ndarray, seed: int) -> np.ndarray:
    white = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    field = np.fft.irfftn(np.fft.rfftn(white, axes=(0, 1, 2)) * amplitude, s=shape, axes=(0, 1, 2))
    return ((field - field.mean()) / field.std()).astype(np.float32)


@lru_cache(maxsize=8)
def cloud(power: float) -> np.ndarray:
    """Periodic field (96, 192, 192), mean 0, std 1, power spectrum f^-power: the texture of parenchyma."""
    shape = (96, 192, 192)
    f = _spectrum_radius(shape)
    return _gaussian_field(shape, np.maximum(f, 1 / 64) ** (-power / 2) * (f > 0), 7000)


@lru_cache(maxsize=16)
def sheets(seed: int) -> np.ndarray:
    """Periodic field (96, 160, 160): signed distance, in voxels, to the zero set of a band-pass Gaussian field.

    The zero set is a tangle of curved sheets: cut by a slice it gives thin lines (septa, strands, folds), and
    where the sheets of two seeds meet it gives curves in space (small vessels).
    """
    shape = (96, 160, 160)
    f = _spectrum_radius(shape)
    band = np.exp(-0.5 * (np.log2(np.maximum(f, 1e-6) * 16) / 0.35) ** 2)  # wavelengths about 16 voxels
    g = _gaussian_field(shape, band * (f > 0), 9000 + seed)
    slope2 = sum(((np.roll(g, -1, a) - np.roll(g, 1, a)) / 2) ** 2 for a in range(3))
    return (g / np.sqrt(slope2 + 0.15 * slope2.mean())).clip(-16, 16).astype(np.float32)


@lru_cache(maxsize=4)
def swell(seed: int) -> np.ndarray:
    """Periodic smooth field (64, 96, 96), mean 0, std 1, wavelengths of about 16 voxels: bends organ borders."""
    shape = (64, 96, 96)
    f = _spectrum_radius(shape)
    return _gaussian_field(shape, np.exp(-0.5 * (f * 16) ** 2) * (f > 0), 5000 + seed)


def _lerp_index(position: np.ndarray, period: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    floor = np.floor(position)
    i = floor.astype(np.intp) % period
    return i, (i + 1) % period, (position - floor).astype(np.float32)


def sample(field: np.ndarray, x_mm, y_mm, z_mm: float, voxel_mm: float, offset=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Linear interpolation of a periodic field (D, H, W) on the grid y_mm (h,) × x_mm (w,) at one z; gives (h, w)."""
    iz, jz, wz = _lerp_index(np.array([z_mm / voxel_mm + offset[0]]), field.shape[0])
    plane = field[iz[0]] * (1 - wz[0]) + field[jz[0]] * wz[0]
    iy, jy, wy = _lerp_index(np.asarray(y_mm) / voxel_mm + offset[1], field.shape[1])
    ix, jx, wx = _lerp_index(np.asarray(x_mm) / voxel_mm + offset[2], field.shape[2])
    rows = plane[iy]
    rows += (plane[jy] - rows) * wy[:, None]
    out = rows.take(ix, axis=1)
    out += (rows.take(jx, axis=1) - out) * wx
    return out


def sample_at(
    field: np.ndarray, u_mm: np.ndarray, v_mm: np.ndarray, z_mm: float, voxel_mm: float, offset=(0.0, 0.0, 0.0)
) -> np.ndarray:
    """Linear interpolation of a periodic field at any points (u, v) of one z: textures that follow a bent layer."""
    iz, jz, wz = _lerp_index(np.array([z_mm / voxel_mm + offset[0]]), field.shape[0])
    plane = (field[iz[0]] * (1 - wz[0]) + field[jz[0]] * wz[0]).ravel()
    width = field.shape[2]
    iv, jv, wv = _lerp_index(v_mm / np.float32(voxel_mm) + np.float32(offset[1]), field.shape[1])
    iu, ju, wu = _lerp_index(u_mm / np.float32(voxel_mm) + np.float32(offset[2]), width)
    iv *= width
    jv *= width
    near, far = plane.take(iv + iu), plane.take(jv + iu)
    near += (plane.take(iv + ju) - near) * wu
    far += (plane.take(jv + ju) - far) * wu
    return near + (far - near) * wv
