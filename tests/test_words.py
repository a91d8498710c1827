"""The words of an image: those of the quantiser, at their places, without those of padding."""

from __future__ import annotations

import pytest
import torch

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.models.vqgan import VQGAN, VQGAN_RANGE
from ldctlib.pipelines.words import Word, words

pytestmark = pytest.mark.usefixtures("one_thread")
VOCABULARY = [f"word {i}" for i in range(40)]


@pytest.fixture(scope="module")
def autoencoder() -> VQGAN:
    torch.manual_seed(0)
    size = dict(width=8, channel_mult=(1, 1), z_channels=8, codebook_size=40, embed_dim=8, norm_groups=2)
    return VQGAN(**size, unshuffle=2).requires_grad_(False).eval()


def image(height: int, width: int) -> torch.Tensor:
    return 300 * torch.randn(2, 1, height, width, generator=torch.Generator().manual_seed(1))


def test_words_are_those_of_the_codebook_at_their_places(autoencoder):
    x = image(64, 128)  # a grid of 16 x 32
    found = words(autoencoder, VOCABULARY, x, layers=(1, 2, 3))
    quantised = autoencoder.quantise(VQGAN_RANGE.to_model(x))
    assert [len([w for w in found[0] if w.layer == layer]) for layer in (1, 2, 3)] == [2, 32, 512]
    assert found[1][1] == Word(1, 7, 23, VOCABULARY[quantised.indices[0][1, 0, 1]])
    third = {(w.row, w.column): w.word for w in found[0] if w.layer == 3}
    assert third[5, 9] == VOCABULARY[quantised.indices[2][0, 5, 9]]
    assert {(w.row % 4, w.column % 4) for w in found[0] if w.layer == 2} == {(3, 3)}


def test_words_of_padding_are_left_out(autoencoder):
    found = words(autoencoder, VOCABULARY, image(60, 72))[0]  # 15 x 18 positions of a grid of 16 x 32
    assert {(w.row, w.column) for w in found if w.layer == 1} == {(7, 7)}
    assert max(w.row for w in found) == 11 and max(w.column for w in found) == 15


def test_refusals(autoencoder):
    with pytest.raises(ParameterError, match="40 words and the vocabulary 39"):
        words(autoencoder, VOCABULARY[:-1], image(64, 64))
    for layers in ((0,), (), 1, "1"):
        with pytest.raises(ParameterError, match=r"some of \(1, 2, 3\)"):
            words(autoencoder, VOCABULARY, image(64, 64), layers=layers)
    broken = image(64, 64)
    broken[1, 0, 3, 3] = torch.nan
    with pytest.raises(ParameterError, match="not finite"):
        words(autoencoder, VOCABULARY, broken)
    with pytest.raises(ShapeError, match="B, 1, H, W"):
        words(autoencoder, VOCABULARY, broken[0, 0])
