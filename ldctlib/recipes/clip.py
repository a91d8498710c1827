"""The small CLIP that stands in for PubMedCLIP, trained on phantom slices with captions of anatomical words."""

from __future__ import annotations

from typing import Any

import torch

from ldctlib.data import vocabulary as v
from ldctlib.data.captions import CaptionConfig
from ldctlib.losses.contrastive import caption_truth, contrast, symmetric_contrast, word_loss
from ldctlib.recipes.recipe import Context, Network, Recipe, Stage
from ldctlib.training import TrainConfig

WINDOWS = [[-160.0, 240.0], [-1350.0, 150.0], [-500.0, 1300.0]]
"""Soft tissue, lung and bone, a channel each; PubMedCLIP sees soft tissue three times."""


def network(*, width: int, layers: int, image_size: int, patch: int, text_width: int, text_layers: int) -> Network:
    """A CLIPModel of this size with the vocabulary of whole words."""
    ids = {k: v.TOKEN_ID[f"<{name}>"] for k, name in (("pad", "pad"), ("bos", "start"), ("eos", "end"))}
    text = dict(vocab_size=len(v.TOKENS), hidden_size=text_width, intermediate_size=4 * text_width)
    text |= dict(num_hidden_layers=text_layers, num_attention_heads=text_width // 32)
    text |= dict(max_position_embeddings=v.MAX_TOKENS, projection_dim=text_width)
    text |= {f"{k}_token_id": i for k, i in ids.items()}
    vision = dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers)
    vision |= dict(num_attention_heads=width // 32, image_size=image_size, patch_size=patch, projection_dim=text_width)
    clip: dict[str, Any] = dict(text_config=text, vision_config=vision, projection_dim=text_width)
    config = dict(
        clip=clip,
        words=list(v.TOKENS),
        prompts=[v.encode((*v.PROMPT, word))[: len(v.PROMPT) + 3] for word in v.TOKENS],
        eligible=[token in v.WORDS for token in v.TOKENS],
        windows=WINDOWS,
        mean=[0.17, 0.53, 0.12],
        std=[0.27, 0.33, 0.14],
    )
    return Network("clip", config)


WORD_WEIGHT = 0.5
CONSTANT_WEIGHT = 0.1
"""Of a word that holds for every image or for none, beside 1: with equal weights a model that ignores the image is a
place where the training stays."""


def updates(context: Context):
    """Words and captions: which hold for which image."""
    constant = {*v.GENERAL_WORDS, *v.DISTRACTORS}
    weights = torch.tensor([CONSTANT_WEIGHT if word in constant else 1.0 for word in v.WORDS], device=context.device)

    def loss(model, batch, generator, step):
        images, words = model.encode_image(batch["image_hu"]), model.encode_words()[model.eligible]
        captions = model.encode_text(batch["caption"])
        scale, truth = model.model.logit_scale.exp().clamp(max=100.0), batch["truth"]
        of_words = scale * images @ words.T
        terms = {
            "words": word_loss(of_words + model.logit_bias, truth, weights),
            # which of the images a word is about: how often it holds does not help here
            "contrast": contrast(of_words.T, truth.T),
            "captions": symmetric_contrast(scale * images @ captions.T, caption_truth(truth, batch["caption_words"])),
        }
        return terms | {"loss": terms["contrast"] + 0.25 * terms["captions"] + WORD_WEIGHT * terms["words"]}

    return loss


def clip(net: Network, steps: tuple[int, int], batch_size: int, warmup: int, log_every: int, **data) -> Recipe:
    """Steps of the stages "stable" and "decay"."""
    train: dict[str, Any] = dict(batch_size=batch_size, lr=5e-4, betas=(0.9, 0.98), weight_decay=0.05, clip_norm=1.0)
    train |= dict(log_every=log_every, precision="auto", checkpoint_every=200)
    stages = (
        Stage(
            "stable",
            TrainConfig(steps=steps[0], warmup_steps=warmup, schedule="constant", seed=31, **train),
            CaptionConfig(seed=301, **data),
        ),
        Stage("decay", TrainConfig(steps=steps[1], seed=32, **train), CaptionConfig(seed=1301, **data)),
    )
    return Recipe({"clip": net}, stages, updates, paper="Radford et al. 2021; Zhai et al. 2023", budget_mib=8.0)


SMALL = network(width=192, layers=6, image_size=192, patch=16, text_width=128, text_layers=2)
TINY: dict[str, Any] = dict(draw_size=192, n_slices=16, n_noises=4)
CLIP = {
    "workshop": clip(SMALL, (20, 10), 8, 5, 5, **TINY),
    "train": clip(SMALL, (600, 300), 32, 100, 50),
    "paper": clip(SMALL, (20_000, 10_000), 64, 500, 100),
}
"""PubMedCLIP itself is not trained again: the paper's profile of LEDA takes it as published."""
