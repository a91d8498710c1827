"""Published CLIP models, such as PubMedCLIP, by their hub's name or from a folder: every token as a word."""

from __future__ import annotations

from pathlib import Path

from ldctlib.compat import torchvision_shim
from ldctlib.errors import CheckpointError, MissingDependency, ParameterError
from ldctlib.models.clip import CLIP_MEAN, CLIP_STD, Clip

PUBMEDCLIP = "flaviagiammarino/pubmed-clip-vit-base-patch32"
RECIPES = ("paper", "released")


def published_clip(source: str | Path = PUBMEDCLIP, *, recipe: str = "paper") -> Clip:
    """A published CLIPModel with its tokeniser, frozen.

    source : a name on the hub, which ``transformers`` downloads at first use, or a folder that
        ``CLIPModel.save_pretrained`` and the tokeniser's ``save_pretrained`` have written.
    recipe : "paper" takes tokens as words, without the mark of a word's end and without special tokens among the
        words that may describe an image, and normalises images as CLIP does. "released" is LEDA's code: keys as they
        stand in the vocabulary, special tokens kept, images from 0 to 1.

    Raises CheckpointError if there is no such model, or it cannot be downloaded.
    """
    if recipe not in RECIPES:
        raise ParameterError(f"recipe is one of {', '.join(RECIPES)}; got {recipe!r}")
    torchvision_shim()
    try:
        from transformers import AutoTokenizer, CLIPModel
    except ImportError as error:
        raise MissingDependency("a published CLIP needs the package transformers: pip install transformers") from error
    try:
        model = CLIPModel.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source}: no CLIPModel with a tokeniser could be read ({str(error).splitlines()[0]}). Give a folder that "
            f"holds config.json, weights and a tokeniser, or a name on the hub with a connection to it"
        ) from error
    n_tokens = model.config.text_config.vocab_size
    keys = {i: key for key, i in tokenizer.get_vocab().items()}
    keys = [keys.get(i, f"<unused {i}>") for i in range(n_tokens)]
    special = set(tokenizer.all_special_tokens)
    released = recipe == "released"
    words = keys if released else [key.replace("</w>", "") for key in keys]
    prompts = tokenizer(
        [f"A CT of {word}" for word in words],
        padding=True,
        truncation=True,
        max_length=model.config.text_config.max_position_embeddings,
        return_tensors="pt",
    )["input_ids"]
    spelt = [key not in special and not key.startswith("<unused") for key in keys]
    look = dict(mean=(0.0,) * 3, std=(1.0,) * 3) if released else dict(mean=CLIP_MEAN, std=CLIP_STD)
    clip = Clip(model, words, prompts, eligible=None if released else spelt, **look)
    return clip.requires_grad_(False).eval()
