"""Notebook parameters: what is allowed passes, everything else is refused with a remedy."""

from __future__ import annotations

import errno
import json
import math
import os

import pytest
import torch

from ldctlib import files, notebook
from ldctlib.errors import ParameterError, WriteError
from ldctlib.profiles import PROFILES


def test_defaults_make_the_output_folder(tmp_path):
    settings = notebook.parameters("01_data_and_dose", out=tmp_path / "a" / "b", doses=[0.1, 0.25])
    assert settings.out.is_dir()
    assert settings.profile.name == "workshop" and settings.data == "phantom"
    assert settings.more == {"doses": [0.1, 0.25]}
    assert settings.pick(workshop=1, train=2, paper=3) == 1
    assert str(tmp_path) not in str(settings)  # a committed notebook prints it


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"profile": "workshp"}, "did you mean 'workshop'"),
        ({"profile": "fast"}, "workshop, train, paper"),
        ({"data": "phantm"}, "did you mean 'phantom'"),
        ({"data": "no/such/folder"}, "does not exist"),
        ({"data": "natural"}, "phantom, sample, or the path"),
        ({"data": ""}, "does not exist"),
        ({"data": "phantom", "profile": "paper"}, "the path of a folder of scans"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": True}, "seed=True"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"device": "gpu"}, "auto, cpu, cuda"),
        ({"device": "cuda:99"}, "PyTorch sees"),
        ({"device": 3.5}, "allowed: auto"),
        ({"data": 3}, "data='3' does not exist"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path, wrong, says):
    with pytest.raises(ParameterError, match=says):
        notebook.parameters("nb", out=tmp_path, **wrong)


@pytest.mark.parametrize("value", [0, -128, 200, "256", 256.0, True, None])
def test_a_multiple_is_a_whole_number_of_a_kind(value):
    with pytest.raises(ParameterError, match="side=.*whole number: 128, 256, 384"):
        notebook.check_multiple("side", value, 128)
    notebook.check_multiple("side", 384, 128)
    with pytest.raises(ParameterError, match="patients=2 .*4, 6, 8"):
        notebook.check_multiple("patients", 2, 2, least=4)


def test_a_file_in_the_way_of_out(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ParameterError, match="cannot be made a folder"):
        notebook.parameters("nb", out=tmp_path / "taken")


def test_a_folder_of_scans_is_data_in_every_profile(tmp_path):
    for name in PROFILES:
        assert notebook.parameters("nb", profile=name, data=str(tmp_path), out=tmp_path).data == tmp_path


def test_pick_wants_every_profile(tmp_path):
    with pytest.raises(ParameterError, match="one value for each"):
        notebook.parameters("nb", out=tmp_path).pick(workshop=1)


def test_generators_repeat_and_differ_by_stream_and_seed(tmp_path):
    def draw(seed: int, stream: int) -> float:
        settings = notebook.parameters("nb", out=tmp_path, seed=seed)
        return torch.rand(1, generator=settings.generator(stream)).item()

    assert draw(1, 0) == draw(1, 0)
    assert len({draw(seed, stream) for seed in range(3) for stream in range(3)}) == 9


def test_metrics_are_plain_json_and_replace_the_old_ones(tmp_path):
    settings = notebook.parameters("nb", out=tmp_path)
    settings.write_metrics({"old": 1})
    settings.write_metrics({"psnr": torch.tensor(24.5), "by": {"dose": [torch.tensor(1)]}})
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["metrics"] == {"psnr": 24.5, "by": {"dose": [1]}} and record["notebook"] == "nb"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]  # no part file is left


def test_metrics_that_are_not_finite_stay_readable(tmp_path):
    settings = notebook.parameters("nb", out=tmp_path)
    settings.write_metrics({"lpips": math.nan, "psnr": math.inf, "reason": "no trunk"})
    strict = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert strict["metrics"] == {"lpips": None, "psnr": "inf", "reason": "no trunk"}


def test_a_new_path_is_never_one_that_exists(tmp_path):
    settings = notebook.parameters("nb", out=tmp_path)
    for name in ("derived", "derived-2", "derived-3"):
        path = settings.new_path("derived")
        assert path == tmp_path / name
        path.mkdir()
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    assert settings.new_path("scan.nii.gz").name == "scan-2.nii.gz"


def test_a_misspelt_injected_name_is_found_in_the_kernels_record(tmp_path, monkeypatch):
    IPython = pytest.importorskip("IPython")

    class Shell:
        user_ns = {"In": ["", "seed = 0", "# Parameters\nsede = 3\n", "n_of_the_notebook = 5"]}

    monkeypatch.setattr(IPython, "get_ipython", lambda: Shell)
    with pytest.raises(ParameterError, match=r"no parameter 'sede' \(did you mean 'seed'\?\)"):
        notebook.parameters("nb", out=tmp_path)
    Shell.user_ns["In"][2] = "# Parameters\nseed = 3\n"
    assert notebook.parameters("nb", out=tmp_path, seed=3).seed == 3


def test_a_folder_may_be_named_by_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2016").mkdir()
    assert notebook.parameters("08_your_own_scans", out="o", data=2016).data.resolve() == tmp_path / "2016"
    with pytest.raises(ParameterError, match="data='2017' does not exist"):
        notebook.parameters("08_your_own_scans", out="o", data=2017)


@pytest.mark.parametrize("writer", ["file", "folder"])
def test_what_the_system_refuses_is_named_and_leaves_nothing(tmp_path, writer):
    (tmp_path / "file").write_text("x")
    whole = files.whole_file if writer == "file" else files.whole_folder
    with pytest.raises(WriteError, match="a cannot be written: Not a directory"), whole(tmp_path / "file" / "b" / "a"):
        pass
    with pytest.raises(WriteError, match="c cannot be written: No space left"), whole(tmp_path / "new" / "deep" / "c"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "new" / "deep" / "c"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]
    with whole(tmp_path / "new" / "deep" / "c"):
        pass
    assert (tmp_path / "new" / "deep" / "c").exists() and len(list(tmp_path.rglob("*"))) == 4
