"""One door to ``transformers.CLIPModel``: a vocabulary's token table, and how well each word fits a CT image.

Radford et al. 2021 (CLIP); PubMedCLIP is Eslami et al. 2021. LEDA takes its codebook and its candidate words from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldctlib.compat import torchvision_shim
from ldctlib.errors import ParameterError, ShapeError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the RGB images that the published models were trained on."""

PROMPTS_AT_ONCE = 512


class Clip(nn.Module):
    """A CLIPModel with a vocabulary: every token has an entry in the table and a prompt, "A CT of" + the token.

    clip : the model's configuration, ``CLIPConfig.to_dict()`` or as much of it as differs from the default; or a
        ``transformers.CLIPModel``.
    words : (V,) the tokens as words; ``prompts`` (V, L) their prompts as token ids.
    eligible : which of them may describe an image; None for all.
    windows : (low, high) in HU of the three channels, or of all three.
    """

    def __init__(
        self,
        clip: Mapping[str, Any] | nn.Module,
        words: Sequence[str],
        prompts: Sequence[Sequence[int]] | Tensor,
        *,
        eligible: Sequence[bool] | None = None,
        windows: Sequence[Sequence[float]] = ((-160.0, 240.0),),
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ):
        super().__init__()
        self.model = clip if isinstance(clip, nn.Module) else _clip_model(clip)
        self.words = tuple(words)
        n_tokens = self.token_table().shape[0]
        prompts = torch.as_tensor(prompts, dtype=torch.long)
        if len(self.words) != n_tokens or len(prompts) != n_tokens:
            raise ParameterError(
                f"a vocabulary has a word and a prompt for each of the {n_tokens} tokens; "
                f"got {len(self.words)} words and {len(prompts)} prompts"
            )
        if len(windows) not in (1, 3):
            raise ParameterError(f"windows are one (low, high) in HU or three, got {list(windows)}")
        self.image_size = self.model.config.vision_config.image_size
        self.logit_bias = nn.Parameter(torch.zeros(()))
        """Of a training that asks of every word whether it holds; CLIP's own logits have none."""
        low, high = torch.tensor([list(w) for w in windows], dtype=torch.float32).expand(3, 2).T.reshape(2, 3, 1, 1)
        constants = dict(low=low.clone(), high=high.clone(), prompts=prompts)
        constants |= dict(mean=torch.tensor(mean).reshape(3, 1, 1), std=torch.tensor(std).reshape(3, 1, 1))
        constants["eligible"] = torch.ones(n_tokens, dtype=torch.bool) if eligible is None else torch.tensor(eligible)
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        self._words: tuple[Any, Tensor] | None = None  # features of all prompts and the weights' version

    def token_table(self) -> Tensor:
        """The language model's token embeddings, (V, C)."""
        return self.model.text_model.embeddings.token_embedding.weight

    def pixel_values(self, images_hu: Tensor) -> Tensor:
        """(B, 1, H, W) in HU -> (B, 3, S, S): windowed, resized and normalised as the model's images were."""
        if images_hu.ndim != 4 or images_hu.shape[1] != 1:
            raise ShapeError(f"CLIP's images are (B, 1, H, W) in HU, got {tuple(images_hu.shape)}")
        x = ((images_hu.float() - self.low) / (self.high - self.low)).clamp(0, 1)
        if x.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        return (x - self.mean) / self.std

    def encode_image(self, images_hu: Tensor) -> Tensor:
        """(B, 1, H, W) in HU -> unit vectors (B, D)."""
        out = self.model.get_image_features(pixel_values=self.pixel_values(images_hu))
        return F.normalize(_projected(out), dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids (N, L) -> unit vectors (N, D)."""
        return F.normalize(_projected(self.model.get_text_features(input_ids=ids)), dim=-1)

    def encode_words(self) -> Tensor:
        """The features of every token's prompt, (V, D); kept until the weights change, where no gradient is asked."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.model.text_model.parameters()):
            return self.encode_text(self.prompts)
        version = tuple((p._version, p.data_ptr()) for p in self.model.text_model.parameters())
        if self._words is None or self._words[0] != version:
            parts = [self.encode_text(part) for part in self.prompts.split(PROMPTS_AT_ONCE)]
            self._words = version, torch.cat(parts)
        return self._words[1]

    def similarity(self, images_hu: Tensor) -> Tensor:
        """Cosine similarity of each image with each token's prompt, (B, V)."""
        return self.encode_image(images_hu) @ self.encode_words().T


def _clip_model(config: Mapping[str, Any]) -> nn.Module:
    torchvision_shim()
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(**config))


def _projected(out) -> Tensor:
    """transformers 5 gives an object, 4 a tensor."""
    return out if isinstance(out, Tensor) else out.pooler_output
