"""The door to CLIPModel: preprocessing, words, a published model in a folder, captions and their losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ldctlib import checkpoints
from ldctlib.data import captions, vocabulary
from ldctlib.data.captions import CaptionConfig, CaptionedSlices, Facts, word_truth
from ldctlib.errors import CheckpointError, ParameterError, ShapeError
from ldctlib.losses.contrastive import caption_truth, contrast, symmetric_contrast, word_loss
from ldctlib.models.clip import CLIP_MEAN, CLIP_STD, Clip
from ldctlib.phantom.organs import ORGANS
from ldctlib.pipelines.published_clip import published_clip
from ldctlib.recipes.clip import network

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = network(width=32, layers=1, image_size=32, patch=16, text_width=32, text_layers=1)


def image(seed: int = 0, size: int = 40) -> torch.Tensor:
    return 300 * torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the vocabulary


def test_the_vocabulary_is_one_token_a_word():
    assert 200 <= len(vocabulary.WORDS) <= 400
    assert len(set(vocabulary.TOKENS)) == len(vocabulary.TOKENS)
    assert not set(vocabulary.DISTRACTORS) & (set(vocabulary.ORGAN_WORDS) | set(vocabulary.GENERAL_WORDS))
    ids = vocabulary.encode((*vocabulary.PROMPT, "liver"))
    assert [vocabulary.TOKENS[i] for i in ids[:6]] == ["<start>", "a", "ct", "of", "liver", "<end>"]
    assert vocabulary.TOKEN_ID["<end>"] != 2  # transformers takes a model with that end for one of its old, faulty ones
    assert len(ids) == vocabulary.MAX_TOKENS and set(ids[6:]) == {vocabulary.TOKEN_ID["<pad>"]}
    longest = CaptionConfig().caption_words[1]
    assert len(vocabulary.PROMPT) + longest + 2 <= vocabulary.MAX_TOKENS


def test_labels_of_words_are_organs_of_a_phantom():
    named = {label for labels in (vocabulary.ORGAN_WORDS | vocabulary.FINDING_WORDS).values() for label in labels}
    assert named <= set(ORGANS), sorted(named - set(ORGANS))


def test_words_of_a_slice_are_those_of_its_labels():
    labels = np.zeros((40, 40), np.uint8)
    labels[:20] = ORGANS.index("liver")
    labels[20, :3] = ORGANS.index("spleen")  # 12 mm² at 2 mm: too little to say
    facts = Facts("abdomen", "portal venous", 60.0)
    truth = dict(zip(vocabulary.WORDS, word_truth(labels, 2.0, facts).tolist(), strict=True))
    assert truth["liver"] == truth["hepatic"] == truth["ct"] == truth["belly"] == truth["venous"] == truth["noisy"] == 1
    assert truth["spleen"] == truth["splenic"] == -1
    assert all(truth[w] == 0 for w in ("kidney", "metastasis", "chest", "arterial", "clean", "guitar"))
    nothing = word_truth(np.zeros((8, 8), np.uint8), 1.0, facts)  # without an organ that shows contrast
    assert nothing[vocabulary.WORDS.index("venous")] == -1


def test_a_captioned_image_is_a_function_of_its_number():
    config = CaptionConfig(size=32, draw_size=64, n_slices=16, n_noises=2, refresh=8)
    samples = CaptionedSlices(config)
    first, later = samples[3], samples[9]  # of two banks
    again = CaptionedSlices(config)[3]
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["image_hu"], later["image_hu"])
    for n in range(24):
        sample = samples[n]
        assert sample["image_hu"].shape == (1, 32, 32) and sample["image_hu"].dtype == torch.float32
        assert bool((sample["truth"][sample["caption_words"]] == 1).all())  # a caption says nothing untrue
        words = [vocabulary.TOKENS[i] for i in sample["caption"] if i >= len(vocabulary.SPECIAL)]
        assert tuple(words[:3]) == vocabulary.PROMPT
        assert set(words[3:]) == {vocabulary.WORDS[i] for i in sample["caption_words"].nonzero()[:, 0]}
    assert {drawn.anatomy for drawn in samples._slices} == set(config.anatomies)
    with pytest.raises(ParameterError, match="no folder of scans"):
        config.open(object())


# ---------------------------------------------------------------- losses


def test_losses_equal_their_definitions():
    rng = torch.Generator().manual_seed(0)
    logits, truth = torch.randn(4, 6, generator=rng), torch.randint(-1, 2, (4, 6), generator=rng)
    p = torch.sigmoid(logits.double())
    expected = -0.5 * (torch.log(p[truth == 1]).mean() + torch.log(1 - p[truth == 0]).mean())
    assert word_loss(logits, truth).item() == pytest.approx(expected.item(), rel=1e-5)
    changed = torch.where(truth == -1, 50.0, logits)  # what is unknown takes no part
    assert word_loss(changed, truth) == word_loss(logits, truth)
    weights = torch.tensor([1.0, 0, 1, 1, 0, 1])
    assert word_loss(logits, truth, weights) == word_loss(logits[:, weights > 0], truth[:, weights > 0])
    # with one true caption an image it is CLIP's own loss
    square = torch.randn(5, 5, generator=rng)
    clip = 0.5 * (F.cross_entropy(square, torch.arange(5)) + F.cross_entropy(square.T, torch.arange(5)))
    assert symmetric_contrast(square, torch.eye(5)).item() == pytest.approx(clip.item(), rel=1e-5)
    # an unknown pair is as if it were not there, and a row without a false entry says nothing
    known = torch.eye(5)
    known[0, 3] = -1
    other = square.clone()
    other[0, 3] = 9.0
    assert contrast(square, known) == contrast(other, known)
    all_true = torch.cat([known, torch.ones(1, 5)])
    assert contrast(torch.cat([square, other[:1]]), all_true) == contrast(square, known)


def test_a_caption_holds_if_all_its_words_do():
    truth = torch.tensor([[1, 1, 0], [1, -1, 1]])
    mentioned = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]]).bool()
    assert caption_truth(truth, mentioned).tolist() == [[1, 1, 0, 0], [1, -1, -1, 1]]


# ---------------------------------------------------------------- the model


def test_images_are_windowed_resized_and_normalised():
    clip = TINY.build(0)
    x = torch.tensor([-160.0, 40.0, 240.0, 900.0]).reshape(1, 1, 1, 4).expand(1, 1, 32, 4).repeat_interleave(8, 3)
    values = clip.pixel_values(x)
    assert values.shape == (1, 3, 32, 32)
    soft = values[0, 0, 0, ::8] * clip.std[0, 0, 0] + clip.mean[0, 0, 0]
    assert soft.tolist() == pytest.approx([0, 0.5, 1, 1], abs=1e-6)
    one = Clip(clip.model, clip.words, clip.prompts)  # CLIP's own: one window, three equal channels
    values = one.pixel_values(x) * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]
    assert torch.allclose(values[:, :1].expand(-1, 3, -1, -1), values, atol=1e-6)
    with pytest.raises(ShapeError, match="HU"):
        clip.pixel_values(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ParameterError, match="one .* or three"):
        Clip(clip.model, clip.words, clip.prompts, windows=[[0, 1], [0, 1]])
    with pytest.raises(ParameterError, match="a word and a prompt"):
        Clip(clip.model, clip.words[:-1], clip.prompts)


def test_similarities_are_cosines_of_the_two_towers():
    clip = TINY.build(0).requires_grad_(False).eval()
    x = image()
    similarity = clip.similarity(x)
    ids = torch.tensor(vocabulary.encode((*vocabulary.PROMPT, "spleen")))[None]
    text = clip.model.text_projection(clip.model.text_model(input_ids=ids).pooler_output)
    vision = clip.model.visual_projection(clip.model.vision_model(pixel_values=clip.pixel_values(x)).pooler_output)
    column = vocabulary.TOKEN_ID["spleen"]
    assert torch.allclose(similarity[:, column], F.cosine_similarity(vision, text), atol=1e-5)
    assert similarity.shape == (2, len(vocabulary.TOKENS))
    kept = clip.encode_words()
    assert clip.encode_words() is kept
    clip.model.text_projection.weight.mul_(1.0)  # another tensor's version is not the text model's
    clip.model.text_model.embeddings.token_embedding.weight.mul_(1.5)
    assert clip.encode_words() is not kept


def test_a_checkpoint_keeps_the_words(tmp_path):
    clip = TINY.build(1)
    provenance = dict(collection="-", cases="-", seed=0, steps=0, profile="test", code_revision="-")
    path = checkpoints.save(
        tmp_path / "clip.safetensors", clip, model="clip", config=TINY.config, hu_range=None, trained_on=provenance
    )
    loaded = checkpoints.build(checkpoints.load(path))
    assert loaded.words == vocabulary.TOKENS and loaded.prompts.equal(clip.prompts)
    assert torch.allclose(loaded.similarity(image()), clip.similarity(image()), atol=2e-3)  # fp16


# ---------------------------------------------------------------- published models


def test_a_published_model_is_read_from_its_folder(clip_folder):
    from transformers import AutoTokenizer

    clip = published_clip(clip_folder)
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    liver = tokenizer.get_vocab()["liver</w>"]
    assert clip.words[liver] == "liver" and bool(clip.eligible[liver])
    assert not clip.eligible[tokenizer.get_vocab()["<|endoftext|>"]]
    ids = tokenizer("A CT of liver", return_tensors="pt")["input_ids"]
    x = image()
    expected = F.cosine_similarity(clip.encode_image(x), clip.encode_text(ids))
    assert torch.allclose(clip.similarity(x)[:, liver], expected, atol=1e-5)
    released = published_clip(clip_folder, recipe="released")
    assert released.words[liver] == "liver</w>" and bool(released.eligible.all())
    assert released.pixel_values(x).min() == 0 and released.pixel_values(x).max() == 1
    assert not any(p.requires_grad for p in clip.parameters())


def test_a_missing_model_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="no CLIPModel"):
        published_clip(tmp_path)
    with pytest.raises(ParameterError, match="recipe is one of"):
        published_clip(tmp_path, recipe="mine")


def test_captions_take_only_what_they_name():
    assert set(captions.INDEX) == set(vocabulary.WORDS)
