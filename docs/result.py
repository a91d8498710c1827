"""Draws docs/result.png, the README's picture: one phantom slice at quarter dose and what methods make of it."""

from __future__ import annotations

from pathlib import Path

from ldctlib import methods
from ldctlib.benchmark import phantom_cases
from ldctlib.metrics import psnr
from ldctlib.show.figures import rows
from ldctlib.show.png import figure_png
from ldctlib.units import SOFT_TISSUE


def main() -> None:
    (case,) = phantom_cases([9_000_004], kernels=("D45f",), crop=336)
    spacing = (3.0, case.pixel_mm, case.pixel_mm)
    images = {"quarter dose": case.ldct_hu}
    for name, title in (("gaussian", "Gaussian, 0.8 px"), ("bm3d", "BM3D with NPS"), ("nafnet", "NAFNet")):
        images[title] = methods.load(name)(case.ldct_hu, spacing_mm=spacing)
    images["noise-free truth"] = case.reference_hu
    captions = {
        title: f"{float(psnr(x, case.reference_hu, window=SOFT_TISSUE)):.1f} dB"
        for title, x in images.items()
        if title != "noise-free truth"
    }
    figure = rows(images, window=SOFT_TISSUE, roi=(112, 22, 130, 130), reference="noise-free truth", captions=captions)
    (Path(__file__).parent / "result.png").write_bytes(figure_png(figure))


if __name__ == "__main__":
    main()
