"""Images that were encoded once: a training on latents and condition vectors need not encode them at every step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldctlib import checkpoints
from ldctlib.data.stream import Endless
from ldctlib.errors import CheckpointError, ParameterError

FORMAT = "ldctlib encoded images 1"


class EncodedImages(Endless):
    """``dataset[n]`` -> one encoded image as float32: an endless stream that visits each once an epoch, in an order
    that follows from (seed, epoch).

    tensors : names -> (N, …), kept in float16 or uint8.
    """

    def __init__(self, tensors: Mapping[str, Tensor], seed: int = 0):
        counts = {len(t) for t in tensors.values()}
        if len(counts) != 1 or 0 in counts:
            raise ParameterError(f"encoded images have one tensor a name, all of one length; got {sorted(counts)}")
        self.tensors, self.seed, self.count = dict(tensors), seed, counts.pop()
        self._epoch: tuple[int, np.ndarray] | None = None

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        epoch, place = divmod(n, self.count)
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([self.seed, 0xE4C0, epoch]).permutation(self.count)
            self._epoch = epoch, order
        i = int(self._epoch[1][place])
        return {name: t[i].float() for name, t in self.tensors.items()}


def encoded_once(
    samples: Dataset,
    count: int,
    encode: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    *,
    identity: Mapping[str, Any],
    folder: str | Path | None = None,
    chunk: int = 32,
) -> dict[str, Tensor]:
    """The first ``count`` samples, encoded in chunks; read from ``folder`` where they were written before.

    encode : a batch of samples -> names to tensors (B, …), of the types to keep.
    identity : what the result depends on, as plain JSON: the file is named after its hash.
    """
    name = sha256(json.dumps([identity, count, chunk], sort_keys=True).encode()).hexdigest()[:16]
    path = None if folder is None else Path(folder) / f"encoded-{name}.safetensors"
    if path is not None and path.is_file():
        tensors, fields = checkpoints.read_tensors(path, kind=FORMAT)
        if fields["identity"] != json.loads(json.dumps(identity)):
            raise CheckpointError(f"{path}: holds images of another kind: remove it")
        return tensors
    parts: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for first in range(0, count, chunk):
            drawn = [samples[n] for n in range(first, min(first + chunk, count))]
            parts.append(encode({key: torch.stack([d[key] for d in drawn]) for key in drawn[0]}))
    tensors = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.write_tensors(path, tensors, kind=FORMAT, fields={"identity": dict(identity)})
    return tensors
