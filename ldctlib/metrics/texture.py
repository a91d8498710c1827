"""Noise texture and edges: NPS, MTF on a known edge, and whether anatomy is in what a denoiser removed.

PSNR and SSIM cannot tell a blur from a denoiser. These can: the noise power spectrum of what was removed, the
share of the anatomy's edges that went with it, and the link between the two. Images are ``(B, 1, H, W)`` HU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldctlib.ct.nps import NPS, cut_rois, soft_tissue_rois, trend_removed
from ldctlib.errors import ParameterError, ShapeError
from ldctlib.image import body_mask, check_images, check_mask, gaussian_blur

# ---------------------------------------------------------------- noise power spectrum


def nps_distance(a: NPS, b: NPS, *, magnitude: bool = False) -> float:
    """How far two radial NPS are from each other, on ``b``'s frequencies from its first bin to Nyquist.

    Shape (default): ∫ |a/∫a - b/∫b| df, the L1 distance of the curves scaled to unit area: 0 equal, 2
    disjoint; an overall factor does not matter. ``magnitude=True``: mean over f of |10 log10((a + c) / (b +
    c))| in dB with c = b's peak / 1000, so that bands without noise do not dominate; a factor of 2
    everywhere is 3 dB.
    """
    band = slice(1, b.two_d.shape[0] // 2 + 1)
    f, sb = b.frequency[band], b.radial[band]
    if a.frequency[-1] < f[-1] / 1.5:
        raise ParameterError(f"pixels of {a.pixel_mm:g} and {b.pixel_mm:g} mm share too few frequencies to compare")
    sa = np.interp(f, a.frequency, a.radial)
    if not (sa.sum() > 0 and sb.sum() > 0):
        raise ParameterError("an NPS without any power cannot be compared")
    if magnitude:
        floor = sb.max() * 1e-3
        return float(np.abs(10 * np.log10((sa + floor) / (sb + floor))).mean())
    return float(np.abs(sa / sa.sum() - sb / sb.sum()).sum())


def noise_std(
    noise: Tensor, corners: list[tuple[int, int, int]] | None = None, size: int = 64, *, detrend: str = "plane"
) -> float:
    """Noise's std in HU: root of the mean variance of the ROIs at ``corners`` (default: all soft tissue)
    after removal of each one's trend. For an image with anatomy use small ROIs (``size=16``)."""
    corners = soft_tissue_rois(noise, size) if corners is None else corners
    rois = trend_removed(cut_rois(noise, corners, size).double(), detrend)
    return float(rois.square().mean().sqrt())


# ---------------------------------------------------------------- modulation transfer on a known edge


@dataclass(frozen=True)
class MTF:
    """Modulation transfer function across an edge."""

    frequency: np.ndarray  # cycles/mm
    mtf: np.ndarray  # 1 at frequency 0
    distance_mm: np.ndarray  # positions of the edge-spread function
    esf: np.ndarray  # HU

    def at(self, level: float) -> float:
        """Lowest frequency in cycles/mm at which the MTF falls to ``level``; NaN if it never does."""
        below = np.flatnonzero(self.mtf <= level)
        if not len(below) or below[0] == 0:
            return float("nan")
        j = below[0]
        (f0, f1), (m0, m1) = self.frequency[j - 1 : j + 1], self.mtf[j - 1 : j + 1]
        return float(f0 + (m0 - level) / (m0 - m1) * (f1 - f0))


def mtf_edge(
    image_hu: Tensor,
    pixel_mm: float,
    *,
    circle: tuple[float, float, float] | None = None,
    line: tuple[float, float, float] | None = None,
    half_width_mm: float | None = None,
    bin_px: float = 0.1,
) -> MTF:
    """MTF across a known edge of one image ``(1, 1, H, W)``: slanted (ISO 12233) or circular (Richard 2012).

    ``circle=(row, column, radius)`` or ``line=(row, column, angle)``, in pixels; a line passes through
    (row, column) with its normal at ``angle`` radians from the row axis, and should be slanted against the
    pixel grid. Pixels within ``half_width_mm`` (default 8 pixels) of the edge are binned by distance into
    the edge-spread function (ESF); the ESF's derivative, its outer half tapered, gives the MTF, corrected
    for the bin's width and the finite difference.
    """
    check_images(image_hu)
    if len(image_hu) != 1:
        raise ShapeError(f"mtf_edge takes one image (1, 1, H, W), got {tuple(image_hu.shape)}")
    if (circle is None) == (line is None):
        raise ParameterError("give exactly one of circle=(row, column, radius) or line=(row, column, angle)")
    if not (pixel_mm > 0 and 0 < bin_px <= 0.5):
        raise ParameterError(f"need pixel_mm > 0 and 0 < bin_px <= 0.5, got {pixel_mm} and {bin_px}")
    image = image_hu[0, 0].detach().cpu().double().numpy()
    rows, columns = np.indices(image.shape)
    if circle is not None:
        distance = np.hypot(rows - circle[0], columns - circle[1]) - circle[2]
    else:
        distance = (rows - line[0]) * np.cos(line[2]) + (columns - line[1]) * np.sin(line[2])
    half = 8.0 if half_width_mm is None else half_width_mm / pixel_mm
    bins = 2 * int(round(half / bin_px))
    index = np.floor(distance / bin_px).astype(int) + bins // 2
    near = (index >= 0) & (index < bins)
    count = np.bincount(index[near], minlength=bins)
    if (count == 0).mean() > 0.2:
        raise ParameterError("too few pixels near the edge: is it inside the image and slanted?")
    centres = (np.arange(bins) + 0.5) * bin_px - half
    esf = np.bincount(index[near], weights=image[near], minlength=bins) / np.maximum(count, 1)
    esf = np.interp(centres, centres[count > 0], esf[count > 0])
    # Tapered against noise far from the edge, flat in the middle: a Hann would narrow wide spread functions.
    ramp = np.clip(2 * (1 - np.abs(centres[1:] + centres[:-1]) / 2 / half), 0, 1)
    lsf = np.diff(esf) * np.sin(np.pi / 2 * ramp) ** 2
    spectrum = np.abs(np.fft.rfft(lsf, 8 * bins))
    if not spectrum[0] > 1e-9 * max(1.0, np.abs(esf).max()):
        raise ParameterError("no contrast across the given edge")
    f_px = np.fft.rfftfreq(8 * bins, bin_px)
    keep = f_px <= 1.0  # the sampling is finer than the pixel: meaningful beyond its Nyquist frequency of 0.5
    # binning averages over bin_px, the difference divides by bin_px: a sinc each
    mtf = spectrum[keep] / spectrum[0] / np.sinc(f_px[keep] * bin_px) ** 2
    return MTF(f_px[keep] / pixel_mm, mtf, centres * pixel_mm, esf)


# ---------------------------------------------------------------- anatomy in the removed part

DETAIL_SIGMA_PX = 1.0
EDGE_HU_PER_PX = 20.0


def _detail(image: Tensor) -> Tensor:
    """Fine detail: what a Gaussian of 1 px takes away."""
    return image - gaussian_blur(image, DETAIL_SIGMA_PX)


def edge_strength(reference_hu: Tensor) -> Tensor:
    """Gradient magnitude in HU per pixel of the reference smoothed by 1.5 px."""
    row, column = torch.gradient(gaussian_blur(reference_hu.double(), 1.5), dim=(-2, -1))
    return torch.hypot(row, column)


def noise_coupling(ldct: Tensor, reference: Tensor, *, size: int = 16) -> float:
    """Coupling ρ of the reference's own noise to the low-dose image's.

    Measured in the flattest quarter of the soft tissue:
    ρ = <ldct', reference'> / <ldct', (ldct - reference)'>, primes for fine detail: the value with which
    reference - ρ (ldct - reference) no longer correlates with the low-dose noise. 0 for a noise-free truth
    or an independent second scan; a / (1 - a) for pure quantum noise and nested doses 1 and a (1/3 at a
    quarter).
    """
    corners = soft_tissue_rois(reference, size, fraction=1.0)

    def cut(z):
        return cut_rois(z, corners, size).flatten(1)

    flatness = cut(edge_strength(reference)).mean(dim=1)
    flat = flatness <= flatness.quantile(0.25)
    low, ref = (cut(_detail(z.double()))[flat] for z in (ldct, reference))
    added = (low * (low - ref)).sum()
    if not added > 0:
        raise ParameterError("the low-dose image has no noise beyond the reference's own")
    return float((low * ref).sum() / added)


def edge_loss(
    denoised: Tensor,
    ldct: Tensor,
    reference: Tensor,
    *,
    coupling: float | None = None,
    mask: Tensor | None = None,
    threshold: float = EDGE_HU_PER_PX,
) -> float:
    """Share of the anatomy's fine detail at edges that was removed: 0 none, 1 as a Gaussian of 1 px.

    The slope of the removed part, ldct - denoised, on the reference's fine detail (image minus its 1 px
    Gaussian), over body pixels whose :func:`edge_strength` exceeds ``threshold``. A full-dose reference
    shares noise with the low-dose image made from the same scan, so a plain slope counts removed *noise* as
    removed anatomy. The instrument z = (reference - ρ (ldct - reference))' does not: for Gaussian noise of
    one spectrum, Cov(f(ldct), z's noise) = E[J] Cov(ldct, z's noise) = 0 for any f (Stein 1981), so

        edge_loss = Σ (ldct - denoised) z / Σ ldct' z

    is consistent for every denoiser that sees the low-dose image alone (not for an oracle that saw the
    reference). ``coupling`` is ρ: 0 for a noise-free truth; default :func:`noise_coupling`.
    """
    check_images(denoised, ldct, reference)
    rho = noise_coupling(ldct, reference) if coupling is None else coupling
    edges = (edge_strength(reference) > threshold) & check_mask(
        body_mask(reference) if mask is None else mask, reference
    )
    if not edges.any():
        raise ParameterError(f"no edge above {threshold:g} HU per pixel in the mask: lower the threshold")
    low, ref, removed = ldct.double(), reference.double(), ldct.double() - denoised.double()
    z = _detail(ref - rho * (low - ref))
    return float((removed * z)[edges].sum() / (_detail(low) * z)[edges].sum())


def structure_in_removed(denoised: Tensor, ldct: Tensor, reference: Tensor, *, mask: Tensor | None = None) -> float:
    """Correlation in the body between log edge strength and the log local power of the removed part.

    The power (Gaussian neighbourhood of 2 px) is taken relative to that of the true noise, ldct -
    reference, so that noise which varies over the image does not count. Positive: more is removed where
    anatomy has edges, as any blur does; near 0: structureless; negative: the method holds back at edges.
    NaN if nothing was removed.
    """
    check_images(denoised, ldct, reference)
    inside = check_mask(body_mask(reference) if mask is None else mask, reference)
    removed, noise = ldct.double() - denoised.double(), ldct.double() - reference.double()
    if not removed[inside].any() or not noise[inside].any():
        return float("nan")

    def log_power(z):
        power = gaussian_blur(z * z, 2.0)[inside]
        return (power + 1e-3 * power.mean()).log()

    edge = edge_strength(reference)[inside].clamp(min=1.0).log()
    return float(torch.corrcoef(torch.stack([log_power(removed) - log_power(noise), edge]))[0, 1])
