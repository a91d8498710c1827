"""Edges: whether anatomy is in what a denoiser removed (the residual), ldct - denoised.

PSNR and SSIM cannot tell a blur from a denoiser. These can: the share of the anatomy's edges that is in the residual,
and the link between the two. Images are ``(B, 1, H, W)`` in HU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldctlib.ct.nps import cut_rois, soft_tissue_rois
from ldctlib.errors import ParameterError
from ldctlib.image import body_mask, check_images, check_mask, gaussian_blur

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

    Measured in the flattest quarter of the soft tissue: ρ = <ldct', reference'> / <ldct', (ldct - reference)'>, primes
    for fine detail: the value with which reference - ρ (ldct - reference) no longer correlates with the low-dose noise.
    0 for a noise-free truth or an independent second scan; a / (1 - a) for pure quantum noise and nested doses 1 and a
    (1/3 at a quarter).
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


def edge_attenuation(
    denoised: Tensor, ldct: Tensor, reference: Tensor, *, coupling=None, mask=None, threshold=EDGE_HU_PER_PX
) -> float:
    """Share of the anatomy's fine detail at edges that was removed: 0 none, 1 as a Gaussian of 1 px.

    The slope of the removed part, ldct - denoised, on the reference's fine detail (image minus its 1 px
    Gaussian), over body pixels whose :func:`edge_strength` exceeds ``threshold``. A full-dose reference
    shares noise with the low-dose image made from the same scan, so a plain slope counts removed *noise* as
    removed anatomy. The instrument z = (reference - ρ (ldct - reference))' does not: for Gaussian noise of
    one spectrum, Cov(f(ldct), z's noise) = E[J] Cov(ldct, z's noise) = 0 for any f (Stein 1981), so

        edge_attenuation = Σ (ldct - denoised) z / Σ ldct' z

    is consistent for every denoiser that sees the low-dose image alone (not for an oracle that saw the
    reference). ``coupling`` is ρ: 0 for a noise-free truth; default :func:`noise_coupling`.
    """
    check_images(denoised, ldct, reference)
    rho = noise_coupling(ldct, reference) if coupling is None else coupling
    inside = check_mask(body_mask(reference) if mask is None else mask, reference)
    edges = (edge_strength(reference) > threshold) & inside
    if not edges.any():
        raise ParameterError(f"no edge above {threshold:g} HU per pixel in the mask: lower the threshold")
    low, ref, removed = ldct.double(), reference.double(), ldct.double() - denoised.double()
    z = _detail(ref - rho * (low - ref))
    return float((removed * z)[edges].sum() / (_detail(low) * z)[edges].sum())


def residual_structure(denoised: Tensor, ldct: Tensor, reference: Tensor, *, mask: Tensor | None = None) -> float:
    """Correlation in the body between log edge strength and the log local power of the removed part.

    The power (Gaussian neighbourhood of 2 px) is taken relative to that of the true noise, ldct - reference, so that
    noise which varies over the image does not count. Positive: more is removed where anatomy has edges, as any blur
    does; near 0: structureless; negative: the method holds back at edges. NaN if nothing was removed.
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
