"""What an LLM-guided autoencoder says of an image: the words of its pyramid, and where they lie (LEDA, Fig. 3)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldctlib.errors import ParameterError
from ldctlib.image import check_images, fit
from ldctlib.models.pyramid_quantiser import PYRAMID
from ldctlib.models.vqgan import VQGAN, VQGAN_RANGE


class Word(NamedTuple):
    """A word and the position of the grid that it was looked up for."""

    layer: int  # 1 to 3
    row: int  # of the grid of features
    column: int
    word: str


def check_layers(layers: Collection[int], most: int) -> None:
    """Raise ParameterError unless these are some of the pyramid's layers 1 to ``most``, in a tuple or a list."""
    allowed = tuple(range(1, most + 1))
    if not isinstance(layers, Collection) or not layers or not all(layer in allowed for layer in layers):
        raise ParameterError(f"layers are some of {allowed}, such as ({most},), got {layers!r}")


@torch.no_grad()
def words(autoencoder: VQGAN, vocabulary: Sequence[str], image_hu: Tensor, layers: Sequence[int] = (1, 2)):
    """The words of each image, layer after layer: (B, 1, H, W) in HU -> a list of :class:`Word` an image.

    vocabulary : (V,) the codebook's words, in its order.
    layers : 1 to 3; the third has a word for every position, most of them of texture and not of anatomy.

    Sides that do not fit the pyramid are padded by reflection, and words of the padding left out. Raises ShapeError and
    ParameterError, also for values that are not finite: their nearest word would be the first.
    """
    check_images(image_hu)
    if len(vocabulary) != len(autoencoder.quantiser.codebook):
        raise ParameterError(
            f"the codebook has {len(autoencoder.quantiser.codebook)} words and the vocabulary {len(vocabulary)}"
        )
    check_layers(layers, 3)
    rows, columns = (-(-n // autoencoder.factor) for n in image_hu.shape[-2:])
    x = fit(image_hu, autoencoder.multiple)
    indices = autoencoder.quantise(VQGAN_RANGE.to_model(x)).indices
    out: list[list[Word]] = [[] for _ in image_hu]
    for layer in layers:
        stride, offset = PYRAMID[layer - 1]
        for said, of_image in zip(out, indices[layer - 1].tolist(), strict=True):
            for i, line in enumerate(of_image):
                for j, index in enumerate(line):
                    row, column = offset + stride * i, offset + stride * j
                    if row < rows and column < columns:
                        said.append(Word(layer, row, column, vocabulary[index]))
    return out
