"""Fixtures that every test file shares."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from ldctlib.compat import torchvision_shim


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scans, named by the environment variable ``LDCT_REAL_DATA``; the test skips without it."""
    folder = os.environ.get("LDCT_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LDCT_REAL_DATA does not name a folder of real scans")
    return Path(folder)


@pytest.fixture
def one_thread():
    """Bit equality needs one order of summation, so one number of threads, here as in the subprocesses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def interruptible():
    """Python's own answer to Ctrl-C: a shell starts a background job with the interrupt ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory) -> Path:
    """A tiny AutoencoderKL, as a published one lies in a folder."""
    torchvision_shim()
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    sizes = dict(block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4)
    AutoencoderKL(**blocks, **sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A tiny CLIPModel with a byte-pair tokeniser, as a published one lies in a folder."""
    torchvision_shim()
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    out = tmp_path_factory.mktemp("tiny-clip")
    words = ["a", "ct", "of", "liver", "kidney", "lung"]
    letters = sorted(set("".join(words)))
    merges = [
        (left, right)
        for word in words[1:]
        for left, right in zip([word[:i] for i in range(1, len(word))], [*word[1:-1], f"{word[-1]}</w>"], strict=True)
    ]
    merges = list(dict.fromkeys(merges))
    pieces = [*letters, *(f"{c}</w>" for c in letters), *("".join(m) for m in merges)]
    vocab = {t: i for i, t in enumerate(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))}
    (out / "vocab.json").write_text(json.dumps(vocab))
    (out / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    CLIPTokenizer(str(out / "vocab.json"), str(out / "merges.txt")).save_pretrained(out)
    text = dict(vocab_size=len(vocab), hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    text |= dict(num_attention_heads=2, max_position_embeddings=16, projection_dim=32)
    text |= dict(bos_token_id=len(vocab) - 2, eos_token_id=len(vocab) - 1, pad_token_id=len(vocab) - 1)
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    vision |= dict(image_size=32, patch_size=16, projection_dim=32)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(out)
    return out
