"""Weights of the benchmark suite ``ldct-benchmark`` as networks from HU to HU.

Its files are ``{args: argparse.Namespace, iteration, model_state_dict}`` and hold generators alone. They were trained
on values as the files of TCIA's LDCT-and-Projection-data store them, HU + 1024, less their mean and over their standard
deviation; full-dose scans were the targets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ldctlib import checkpoints
from ldctlib.errors import CheckpointError, ParameterError
from ldctlib.pipelines.regression import RegressionNetwork
from ldctlib.units import Range

STORED_MEAN, STORED_STD = 481.454, 502.185
"""Of stored values over the suite's training patients."""

STORED_OF_ZERO_HU = 1024.0

LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "redcnn": ("redcnn", dict(final_relu=False)),
    "qae": ("qae", {}),
    "wganvgg": ("wgan_vgg", {}),
    "dugan": ("redcnn", dict(final_relu=False)),
    "dugan_authors": ("dugan", dict(final_relu=True)),
}
"""Networks by the suite's names, as keys of ``checkpoints.MODELS``: its DU-GAN has RED-CNN as generator. The last is
the generator of DU-GAN's authors."""


def normalised(mean: float, std: float) -> Range:
    """The range of a network that sees (stored value - mean) / std, which is a map of HU to the same numbers."""
    if not std > 0:
        raise ParameterError(f"the standard deviation of a normalisation is above 0, got {std}")
    middle = mean - STORED_OF_ZERO_HU
    return Range(middle - std, middle + std)


def published_network(
    path: str | Path, *, layout: str | None = None, hu_range: Range | None = None, device: str | torch.device = "cpu"
) -> RegressionNetwork:
    """A published generator, frozen, as :class:`RegressionNetwork`; ``apply_hu`` denoises. Its estimate is a full dose.

    path : a ``.pt`` file, read as weights only.
    layout : one of :data:`LAYOUTS`; by default what the file's args name as their ``trainer``.
    hu_range : what the network's numbers are in HU: :func:`normalised`, or an interval that was mapped to [0, 1]. By
        default as the file's args say: with ``data_norm`` "meanstd" by their ``mean`` and ``std``, or by the suite's.

    Raises CheckpointError with the names of all tensors that do not fit and for a file of another network,
    ParameterError for what neither the file nor the caller states.
    """
    state, said = checkpoints.read_published(path)
    args = said.get("args", {})
    trainer = args.get("trainer")
    if layout is None and trainer is None:
        raise ParameterError(f"{path}: does not say which network it holds: give layout, one of {', '.join(LAYOUTS)}")
    if layout is not None and trainer is not None and layout != trainer:
        raise CheckpointError(f"{path}: holds weights of {trainer!r}, not of {layout!r}")
    layout = layout or trainer
    if layout not in LAYOUTS:
        raise CheckpointError(f"{path}: holds weights of {layout!r}; the layouts known are {', '.join(LAYOUTS)}")
    if hu_range is None:
        if args.get("data_norm") != "meanstd":
            raise ParameterError(
                f"{path}: the normalisation is {args.get('data_norm', 'not stated')}: give hu_range, e.g. "
                "published_benchmark.normalised(mean, std) of stored values"
            )
        hu_range = normalised(float(args.get("mean", STORED_MEAN)), float(args.get("std", STORED_STD)))
    model, config = LAYOUTS[layout]
    network = checkpoints.model_class(model)(**config)
    checkpoints.place(network, state, where=path)
    network = network.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
    return RegressionNetwork(network, hu_range)
