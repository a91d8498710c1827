"""Files of the benchmark suite: what is in them is what denoises, in HU; what does not fit is refused by name."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from torch import nn

from ldctlib import checkpoints, methods
from ldctlib.errors import CheckpointError, ParameterError
from ldctlib.models.qae import QAE
from ldctlib.models.redcnn import REDCNN
from ldctlib.models.wgan_vgg import WGANVGG
from ldctlib.pipelines import published_benchmark
from ldctlib.pipelines.published_benchmark import normalised, published_network
from ldctlib.units import Range

NETWORKS = {
    "redcnn": lambda: REDCNN(final_relu=False),
    "dugan": lambda: REDCNN(final_relu=False),
    "qae": QAE,
    "wganvgg": WGANVGG,
}


def weights(trainer: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = NETWORKS[trainer]().state_dict()
    return {n: 0.03 * torch.randn(t.shape, generator=generator) for n, t in shapes.items()}


def written(path, trainer: str, state=None, **args):
    """A file as the suite writes it."""
    state = weights(trainer) if state is None else state
    args = Namespace(**dict(trainer=trainer, data_norm="meanstd", mbs=64, devices=[0]) | args)
    torch.save({"args": args, "iteration": 1000, "model_state_dict": state}, path)
    return path


def scan(*shape: int) -> torch.Tensor:
    return 40 + 300 * torch.randn(shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("trainer", NETWORKS)
def test_a_file_denoises_as_the_suite_does(trainer, tmp_path):
    """Stored value = HU + 1024; less 481.454, over 502.185; the network; and back."""
    network = NETWORKS[trainer]()
    network.load_state_dict(weights(trainer))
    x = scan(2, 1, 30, 27)
    with torch.no_grad():
        expected = network((x + 1024 - 481.454) / 502.185) * 502.185 + 481.454 - 1024
    path = written(tmp_path / "net.pt", trainer)
    loaded = published_network(path)
    # rounding of 1,000 HU in float32 by a few operations in another order
    torch.testing.assert_close(loaded.apply_hu(x), expected, rtol=0, atol=0.01)
    assert (expected - x).abs().max() > 1
    assert not any(p.requires_grad for p in loaded.network.parameters()) and not loaded.network.training
    method = {"wganvgg": "wgan_vgg"}.get(trainer, trainer)
    denoise = methods.load(method, path=path, preserve_mean_px=0)
    torch.testing.assert_close(denoise(x), expected, rtol=0, atol=0.01)
    assert not denoise.blends  # it was trained towards full-dose scans


def test_the_normalisation_is_the_file_s_or_the_caller_s(tmp_path):
    x = scan(1, 1, 21, 21)

    def denoised(hu_range=None, **args):
        return published_network(written(tmp_path / "net.pt", "qae", **args), hu_range=hu_range).apply_hu(x)

    own = denoised(mean=500.0, std=400.0)
    torch.testing.assert_close(own, denoised(normalised(500.0, 400.0), data_norm="minmax"))
    assert (own - denoised()).abs().max() > 1
    unit = Range(-1024.0, 2000.0, 0.0, 1.0)
    network = QAE()
    network.load_state_dict(weights("qae"))
    with torch.no_grad():
        expected = network((x + 1024) / 3024) * 3024 - 1024
    torch.testing.assert_close(denoised(unit, data_norm="minmax"), expected, rtol=0, atol=0.01)
    with pytest.raises(ParameterError, match="normalisation is minmax: give hu_range"):
        denoised(data_norm="minmax")
    with pytest.raises(ParameterError, match="above 0"):
        normalised(0.0, 0.0)


def test_normalisation_is_exact_at_its_landmarks():
    hu = normalised(481.454, 502.185)
    assert hu.to_model(481.454 - 1024) == pytest.approx(0, abs=1e-12)
    assert hu.to_model(481.454 - 1024 + 502.185) == pytest.approx(1)
    assert hu.scale == pytest.approx(1 / 502.185)


def test_a_bare_state_dict_says_nothing(tmp_path):
    path = tmp_path / "bare.pt"
    torch.save(weights("qae"), path)
    with pytest.raises(ParameterError, match="which network it holds: give layout"):
        published_network(path)
    with pytest.raises(ParameterError, match="normalisation is not stated"):
        published_network(path, layout="qae")
    options = dict(hu_range=normalised(481.454, 502.185))
    loaded = published_network(path, layout="qae", **options)
    torch.testing.assert_close(loaded.network.state_dict(), weights("qae"), check_stride=False)
    assert methods.load("qae", path=path, **options)(scan(1, 1, 8, 8)).shape == (1, 1, 8, 8)
    with pytest.raises(CheckpointError, match="does not fit WGANVGG: missing keys"):
        published_network(path, layout="wganvgg", **options)


def test_the_authors_generator_of_dugan(tmp_path):
    layout = dict(layout="dugan_authors", hu_range=Range(-300.0, 300.0, 0.0, 1.0))
    shapes = checkpoints.model_class("dugan")().state_dict()
    torch.save(shapes, tmp_path / "own.pt")
    out = published_network(tmp_path / "own.pt", **layout).apply_hu(scan(1, 1, 9, 9))
    assert out.min() >= -300 - 1e-3  # its last ReLU


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    path = tmp_path / "net.pt"
    state = weights("redcnn")

    def refused(match, trainer="redcnn", state=state, error=CheckpointError, **options):
        with pytest.raises(error, match=match):
            published_network(written(path, trainer, state), **options)

    refused("missing keys: conv3.bias$", state={n: t for n, t in state.items() if n != "conv3.bias"})
    refused("unexpected keys: extra$", state=state | {"extra": torch.zeros(1)})
    refused(r"wrong shapes: conv1.bias \(3,\) for \(96,\)", state=state | {"conv1.bias": torch.zeros(3)})
    refused("'resnet'; the layouts known are redcnn", trainer="resnet")
    refused("holds weights of 'redcnn', not of 'qae'", layout="qae")
    with pytest.raises(CheckpointError, match="holds weights of 'redcnn', not of 'qae'"):
        methods.load("qae", path=written(path, "redcnn"))
    with pytest.raises(CheckpointError, match="no state dict"):
        torch.save({"args": Namespace(trainer="redcnn"), "weights": state}, path)
        published_network(path)
    with pytest.raises(CheckpointError, match="there is no such file"):
        published_network(tmp_path / "nothing.pt")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cannot be read as weights only"):
        published_network(path)


class Unwelcome:
    def __reduce__(self):
        return (print, ("code from a file",))


def test_no_code_is_run(tmp_path, capsys):
    path = written(tmp_path / "net.pt", "redcnn", note=Unwelcome())
    with pytest.raises(CheckpointError, match="never unpickled"):
        published_network(path)
    assert "code from a file" not in capsys.readouterr().out


def test_a_data_parallel_file_and_a_range_of_a_checkpoint(tmp_path):
    state = {f"module.{n}": t for n, t in weights("wganvgg").items()}
    loaded = published_network(written(tmp_path / "net.pt", "wganvgg", state))
    assert isinstance(loaded.network, nn.Module) and set(loaded.network.state_dict()) == set(weights("wganvgg"))
    with pytest.raises(ParameterError, match="a checkpoint records its own"):
        methods.load("redcnn", hu_range=normalised(1.0, 1.0))
    assert published_benchmark.STORED_OF_ZERO_HU == 1024
