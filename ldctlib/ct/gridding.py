"""Kaiser-Bessel gridding between an image and the radial lines of its Fourier transform.

The Fourier slice theorem puts a parallel projection's spectrum on a radial line of the image's 2-D spectrum.
:class:`Gridder` evaluates those lines with a padded FFT and a Kaiser-Bessel interpolation that is one cached
sparse matrix, and its exact adjoint with the transpose (Jackson et al. 1991; Beatty, Nishimura & Pauly 2005 for
the shape parameter).
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch

WIDTH, OVERSAMPLING = 5, 1.5
"""Samples a side that a value is interpolated from, and by how much the image is padded for the FFT."""


def fast_length(n: float) -> int:
    """The next even length whose only prime factors are 2, 3 and 5."""
    n = 2 * max(1, math.ceil(n / 2))
    while pow(30, 64, n):  # 0 where n divides 30^64, so has no other prime factor
        n += 2
    return n


def sparse_csr(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int], device):
    """A float32 CSR matrix and its transpose, from coordinates (repeated entries add up)."""
    from scipy.sparse import coo_matrix

    matrix = coo_matrix((values.ravel(), (rows.ravel(), columns.ravel())), shape=shape).tocsr()

    def to_torch(m):
        index = (torch.from_numpy(part.astype(np.int32)) for part in (m.indptr, m.indices))
        values = torch.from_numpy(m.data.astype(np.float32))
        return torch.sparse_csr_tensor(*index, values, m.shape, device=device, check_invariants=False)

    with warnings.catch_warnings():  # torch calls its CSR layout beta, once a process
        warnings.filterwarnings("ignore", message=".*[Ss]parse.*")
        return to_torch(matrix), to_torch(matrix.T.tocsr())


class Gridder:
    """Image (B, N, N) <-> complex samples of its spectrum on radial lines (B, V, K).

    ``lines(image)[b, v, j]`` = sum over pixels n of image[b, n] exp(-2 pi i k_vj . x_n), with k_vj = (j /
    length_mm)(cos theta_v, sin theta_v) and x_n in mm from the image's centre: the discrete-space Fourier transform,
    periodic in 1/pixel. Evaluating lines beyond the pixel's Nyquist frequency therefore aliases, as sampling does.
    """

    def __init__(self, size: int, pixel_mm: float, angles_rad, n_frequencies: int, length_mm: float, device):
        self.size, self.m, w = size, fast_length(OVERSAMPLING * size), WIDTH
        m, angles = self.m, np.asarray(angles_rad, np.float64)
        beta = math.pi * math.sqrt((w * (1 - 0.5 / (m / size))) ** 2 - 0.8)
        self.left = m // 2 - size // 2
        n = np.arange(size) - size // 2
        root = np.sqrt(beta**2 - (math.pi * w * n / m) ** 2)
        self.deapodise = torch.from_numpy((1 / (w * np.sinh(root) / root)).astype(np.float32)).to(device)
        self._margin = margin = (w + 1) // 2
        k = np.arange(n_frequencies) / length_mm
        kx, ky = k[None] * np.cos(angles)[:, None], k[None] * np.sin(angles)[:, None]
        self.shape = kx.shape
        nyquist = 0.5 / pixel_mm * (1 + 1e-9)
        in_band = (np.abs(kx) <= nyquist) & (np.abs(ky) <= nyquist)
        # The FFT's origin is pixel N//2, the image's centre (N-1)/2: the difference is a phase.
        half = (size - 1) / 2 - size // 2
        phase = 2 * math.pi * (kx + ky) * pixel_mm * half
        ux, uy = kx * m * pixel_mm, ky * m * pixel_mm
        ux, uy = ux - m * np.round(ux / m), uy - m * np.round(uy / m)
        flip = ux < 0  # a real image: the value at -u is the conjugate, so half the plane is enough
        ux, uy = np.where(flip, -ux, ux), np.where(flip, -uy, uy)
        self.columns = m // 2 + 1 + 2 * margin

        def taps(u):
            first = np.ceil(u - w / 2).astype(np.int64).ravel()
            index = first[:, None] + np.arange(w)
            inside = np.clip(1 - (2 * (index - u.ravel()[:, None]) / w) ** 2, 0, None)
            # The padded image's centre sits at index m/2 of the FFT: a sign that alternates.
            return index, np.i0(beta * np.sqrt(inside)) * (1 - 2 * (np.abs(index) % 2))

        ix, vx = taps(ux)
        iy, vy = taps(uy)
        column = (iy[:, :, None] % m) * self.columns + (ix[:, None, :] + margin)
        values = vy[:, :, None] * vx[:, None, :]
        rows = np.broadcast_to(np.arange(ux.size)[:, None, None], column.shape)
        shape = (ux.size, m * self.columns)
        self.matrix, self.transpose = sparse_csr(rows, column, values.astype(np.float32), shape, device)
        # conjugates the lines that were read at -u
        self._sign = torch.from_numpy(np.where(flip, -1.0, 1.0).astype(np.float32)).to(device)
        self.phase = torch.from_numpy(np.exp(1j * phase).astype(np.complex64)).to(device)
        self.in_band = torch.from_numpy(in_band).to(device)
        # (rfft2's half plane holds each interior column once where the full plane holds it twice.)
        twice = torch.full((m // 2 + 1,), 2.0, device=device)
        twice[0] = twice[-1] = 1.0
        self._adjoint_weight = float(m * m) / twice

    @property
    def nbytes(self) -> int:
        """Bytes held by the two cached matrices."""
        both = (self.matrix, self.transpose)
        return sum(m.values().nbytes + m.col_indices().nbytes + m.crow_indices().nbytes for m in both)

    def lines(self, image: torch.Tensor) -> torch.Tensor:
        """(B, N, N) real -> (B, V, K) complex."""
        m, n, left, margin = self.m, self.size, self.left, self._margin
        padded = image.new_zeros((image.shape[0], m, m))
        padded[:, left : left + n, left : left + n] = image * self.deapodise[:, None] * self.deapodise[None, :]
        half = torch.fft.rfft2(padded)
        grid = half.new_empty((image.shape[0], m, self.columns))
        grid[..., margin : margin + m // 2 + 1] = half
        # Columns beyond both ends, by the Hermitian symmetry of a real image's spectrum.
        grid[..., :margin] = self._mirror(half[..., 1 : margin + 1])
        grid[..., margin + m // 2 + 1 :] = self._mirror(half[..., m // 2 - margin : m // 2])
        flat = torch.view_as_real(grid).reshape(image.shape[0], m * self.columns, 2)
        # One image at a time: a single wide right-hand side is slower (its rows no longer fit the cache lines).
        out = torch.stack([self.matrix @ column for column in flat])
        out = out.reshape(image.shape[0], *self.shape, 2)
        return torch.complex(out[..., 0], out[..., 1] * self._sign) * self.phase

    def adjoint(self, lines: torch.Tensor) -> torch.Tensor:
        """(B, V, K) complex -> (B, N, N) real: the adjoint for the real inner product Re(a conj b)."""
        m, n, left, margin = self.m, self.size, self.left, self._margin
        lines = lines * self.phase.conj()
        flat = torch.stack([lines.real, lines.imag * self._sign], dim=-1).reshape(lines.shape[0], -1, 2)
        grid = torch.stack([self.transpose @ column for column in flat])
        grid = torch.view_as_complex(grid.reshape(lines.shape[0], m, self.columns, 2))
        half = grid[..., margin : margin + m // 2 + 1].clone()
        half[..., 1 : margin + 1] += self._mirror(grid[..., :margin])
        half[..., m // 2 - margin : m // 2] += self._mirror(grid[..., margin + m // 2 + 1 :])
        image = torch.fft.irfft2(half * self._adjoint_weight, s=(m, m))[:, left : left + n, left : left + n]
        return image * self.deapodise[:, None] * self.deapodise[None, :]

    @staticmethod
    def _mirror(columns: torch.Tensor) -> torch.Tensor:
        """Conjugate at the negated frequency: rows r -> -r (mod m), columns in reverse order."""
        return torch.roll(columns.flip(-2), 1, dims=-2).flip(-1).conj()
