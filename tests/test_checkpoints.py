"""Checkpoints: exact round trips, and every kind of damage refused by name."""

from __future__ import annotations

import importlib
import os
import pickle
import random
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldctlib import checkpoints
from ldctlib.errors import CheckpointError
from ldctlib.models.redcnn import REDCNN
from ldctlib.units import Range

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = {"channels": 4, "final_relu": False}
UNITS = Range(-1024.0, 3072.0)
TRAINED_ON = {
    "collection": "phantom",
    "cases": ["p0", "p1"],
    "seed": 7,
    "steps": 20,
    "profile": "train",
    "code_revision": "abc",
}


def model() -> REDCNN:
    torch.manual_seed(11)
    return REDCNN(**CONFIG)


def write(path: Path, weights=None, **changes) -> Path:
    arguments = {
        "model": "redcnn",
        "config": CONFIG,
        "hu_range": UNITS,
        "trained_on": TRAINED_ON,
        "quality": {"psnr_db": 31.5},
    } | changes
    return checkpoints.save(path, model() if weights is None else weights, **arguments)


@pytest.fixture
def saved(tmp_path) -> Path:
    return write(tmp_path / "a.safetensors")


# ---------------------------------------------------------------- round trips


def test_round_trip_is_exact(saved):
    loaded, original = checkpoints.load(saved), model().state_dict()
    assert loaded.state_dict.keys() == original.keys()
    for name, tensor in loaded.state_dict.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, original[name].half().float())
    assert (loaded.model, loaded.config, loaded.range) == ("redcnn", CONFIG, UNITS)
    assert (loaded.trained_on, loaded.quality, loaded.pipeline) == (TRAINED_ON, {"psnr_db": 31.5}, None)


def test_full_precision_and_other_types_survive(tmp_path):
    state = {
        "strided": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).T,
        "double": torch.tensor([0.1], dtype=torch.float64),
        "count": torch.tensor(3),
    }
    state["shared"] = state["strided"]  # tied weights
    loaded = checkpoints.load(write(tmp_path / "b.safetensors", state, dtype=torch.float32)).state_dict
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    rounded = checkpoints.load(write(tmp_path / "c.safetensors", state)).state_dict
    assert torch.equal(rounded["double"], state["double"])  # a schedule must not be rounded


def test_build_gives_the_model(saved):
    built, reference = checkpoints.build(saved), model()
    reference.load_state_dict({n: t.half().float() for n, t in reference.state_dict().items()})
    x = torch.rand(1, 1, 25, 25, generator=torch.Generator().manual_seed(1))
    assert not built.training and torch.equal(built(x), reference(x))
    assert torch.equal(checkpoints.build(checkpoints.load(saved))(x), reference(x))


def test_update_quality_touches_nothing_else(saved):
    before = checkpoints.load(saved)
    checkpoints.update_quality(saved, {"ssim": 0.8})
    after = checkpoints.load(saved)
    assert after.quality == {"ssim": 0.8}
    assert (after.sha256, after.trained_on, after.hu_range) == (before.sha256, before.trained_on, before.hu_range)
    assert all(torch.equal(t, before.state_dict[n]) for n, t in after.state_dict.items())


def test_interrupted_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def killed(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(OSError, match="no space"):
        checkpoints.update_quality(saved, {"ssim": 0.8})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


# ---------------------------------------------------------------- damage


def test_every_damaged_copy_is_refused(saved, tmp_path):
    """Any single flipped bit and any lost tail must be noticed, in the header as in the tensors."""
    data, rng, copy = saved.read_bytes(), random.Random(2), tmp_path / "damaged.safetensors"
    header = int.from_bytes(data[:8], "little") + 8
    flips = [rng.randrange(8) for _ in range(4)] + [rng.randrange(header) for _ in range(150)]
    flips += [rng.randrange(header, len(data)) for _ in range(100)]
    for position in flips:
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.randrange(8)
        copy.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            checkpoints.load(copy)
    for length in [0, 5, 8, header - 1, header, len(data) - 1, *(rng.randrange(len(data)) for _ in range(40))]:
        copy.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="truncated|corrupted"):
            checkpoints.load(copy)
    copy.write_bytes(data)
    checkpoints.load(copy)  # the copy as such is fine


def test_foreign_files_are_named(tmp_path, saved):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(2)}, foreign)
    with pytest.raises(CheckpointError, match="not one of ldctlib"):
        checkpoints.load(foreign)
    save_file({"w": torch.zeros(2)}, foreign, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="format 'pt'"):
        checkpoints.load(foreign)
    torch.save(model().state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="load_published"):
        checkpoints.load(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoints.load(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.load(tmp_path)
    with pytest.raises(CheckpointError, match="has format"):
        checkpoints.read_tensors(saved, kind="something/9")


def test_keys_that_do_not_fit_are_named(tmp_path):
    state = model().state_dict()
    state["conv1.extra"] = torch.zeros(1)
    del state["tconv5.bias"]
    state["conv2.weight"] = torch.zeros(4, 4, 3, 3)
    expected = r"missing keys: tconv5.bias; unexpected keys: conv1.extra; wrong shapes: conv2.weight \(4, 4, 3, 3\)"
    with pytest.raises(CheckpointError, match=expected):
        checkpoints.build(write(tmp_path / "d.safetensors", state))


def test_config_and_fields_that_do_not_fit_are_named(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="does not take its config.*width"):
        checkpoints.build(write(tmp_path / "e.safetensors", config={"width": 3}))
    path = tmp_path / "f.safetensors"
    checkpoints.write_tensors(path, {}, kind=checkpoints.FORMAT, fields={"model": "redcnn"})
    with pytest.raises(CheckpointError, match="does not say config, hu_range"):
        checkpoints.load(path)
    saved = write(tmp_path / "g.safetensors", hu_range=None)
    with pytest.raises(CheckpointError, match="no HU range"):
        _ = checkpoints.load(saved).range
    monkeypatch.setattr(checkpoints, "MODELS", {"other": "x:y"})
    with pytest.raises(CheckpointError, match="'redcnn', and MODELS knows other"):
        checkpoints.build(saved)


def test_save_refuses_what_could_not_be_loaded(tmp_path):
    path = tmp_path / "h.safetensors"
    with pytest.raises(CheckpointError, match="MODELS knows"):
        write(path, model="alexnet")
    with pytest.raises(CheckpointError, match="output is one of"):
        write(path, output="noise")
    with pytest.raises(CheckpointError, match="does not say seed"):
        write(path, trained_on={k: v for k, v in TRAINED_ON.items() if k != "seed"})
    with pytest.raises(CheckpointError, match="'w' is not finite as torch.float16"):
        write(path, {"w": torch.tensor([1e6])})  # beyond 65504, the largest half
    with pytest.raises(CheckpointError, match="not plain JSON"):
        write(path, quality={"psnr_db": float("nan")})
    with pytest.raises(CheckpointError, match="not plain JSON"):
        write(path, config={"channels": torch.tensor(4)})
    assert not path.exists()


# ---------------------------------------------------------------- published files


def published(path: Path, state: dict) -> Path:
    torch.save({"args": Namespace(lr=1e-4, method="redcnn"), "iteration": 9, "model_state_dict": state}, path)
    return path


def test_published_file_loads(tmp_path):
    source, target = model(), REDCNN(**CONFIG)
    state = {f"module.{n.replace('tconv', 'deconv')}": t for n, t in source.state_dict().items()}

    def rename(key: str) -> str:
        return key.replace("deconv", "tconv")

    rest = checkpoints.load_published(published(tmp_path / "p.pt", state), target, rename=rename)
    assert rest == {"args": {"lr": 1e-4, "method": "redcnn"}, "iteration": 9}
    assert all(torch.equal(t, source.state_dict()[n]) for n, t in target.state_dict().items())

    torch.save(source.state_dict(), tmp_path / "bare.pt")
    target = REDCNN(**CONFIG)
    assert checkpoints.load_published(tmp_path / "bare.pt", target) == {}
    assert torch.equal(target.conv3.weight, source.conv3.weight)


def test_published_keys_that_do_not_fit_are_named(tmp_path):
    state = model().state_dict()
    state["convolution1.weight"] = state.pop("conv1.weight")
    expected = "missing keys: conv1.weight; unexpected keys: convolution1.weight"
    with pytest.raises(CheckpointError, match=expected):
        checkpoints.load_published(published(tmp_path / "q.pt", state), REDCNN(**CONFIG))
    with pytest.raises(CheckpointError, match="two keys become 'same'"):
        checkpoints.load_published(published(tmp_path / "r.pt", state), REDCNN(**CONFIG), rename=lambda key: "same")
    torch.save({"model_state_dict": {"a": "text"}}, tmp_path / "s.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        checkpoints.load_published(tmp_path / "s.pt", REDCNN(**CONFIG))


class Intruder:
    """Unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"model_state_dict": {}, "args": Intruder(trace)}, tmp_path / "evil.pt")
    (tmp_path / "evil.pickle").write_bytes(pickle.dumps(Intruder(trace), protocol=2))
    for name in ("evil.pt", "evil.pickle"):
        with pytest.raises(CheckpointError, match="never unpickled"):
            checkpoints.load_published(tmp_path / name, REDCNN(**CONFIG))
        with pytest.raises(CheckpointError):
            checkpoints.load(tmp_path / name)
    assert not trace.exists()
    pickle.loads((tmp_path / "evil.pickle").read_bytes())
    assert trace.exists()  # so the trap was live


# ---------------------------------------------------------------- what ships


def test_find_looks_where_it_is_told(tmp_path, monkeypatch, saved):
    monkeypatch.setenv("LDCT_CHECKPOINTS", str(tmp_path))
    assert checkpoints.find("a") == saved
    with pytest.raises(CheckpointError, match=r"no checkpoint 'unheard'.*LDCT_CHECKPOINTS"):
        checkpoints.find("unheard")


def test_a_shipped_checkpoint_is_loaded_by_its_name(tmp_path, monkeypatch, saved):
    monkeypatch.chdir(tmp_path)
    assert checkpoints.load("nafnet").path == checkpoints.find("nafnet")
    with pytest.raises(CheckpointError, match="no checkpoint 'nothing_like_it'"):
        checkpoints.load("nothing_like_it")
    (tmp_path / "nafnet").mkdir()  # such as results by method
    assert checkpoints.load("nafnet").path == checkpoints.find("nafnet")
    (tmp_path / "nafnet").rmdir()
    (tmp_path / "nafnet").write_bytes(saved.read_bytes())  # a file of that name goes first
    assert checkpoints.load("nafnet").path == Path("nafnet")


def test_find_by_hash_tells_namesakes_apart(tmp_path, monkeypatch):
    """A better network takes the name; what leans on the old one finds it by its hash, beside it or kept as name@…"""
    monkeypatch.setenv("LDCT_CHECKPOINTS", str(tmp_path / "shipped"))
    new = write(tmp_path / "own" / "net.safetensors", {"w": torch.ones(2)})
    kept = write(tmp_path / "shipped" / "net@old.safetensors", {"w": torch.zeros(2)})
    old, newer = (checkpoints.load(path).sha256 for path in (kept, new))
    assert checkpoints.find("net", folders=[tmp_path / "own"]) == new
    assert checkpoints.find("net", sha256=old, folders=[tmp_path / "own"]) == kept
    assert checkpoints.find("net", sha256=newer, folders=[tmp_path / "own"]) == new
    with pytest.raises(CheckpointError, match=r"none of .*is the net with the hash 000000000000….*net@0000"):
        checkpoints.find("net", sha256="0" * 64, folders=[tmp_path / "own"])


OLD = {
    "man": (
        dict(
            model="conditioned_unet",
            config={},
            schedule=dict(name="cosine", T=1000, prediction="v", centred=True, spread=0.1),
        ),
        dict(
            keep=0.25,
            uses={"autoencoder_perceptual": "a", "nafnet": "b"},
            condition="simulated: noise",
            stages={"stable": 7},
        ),
        dict(
            process=dict(schedule="cosine", T=1000, prediction="v", residual=True, residual_std=0.1),
            autoencoder="autoencoder_perceptual",
            estimator="nafnet",
            conditions={"concat": ["ldct", "estimate"]},
        ),
        "truth",
    ),
    "paper": (
        dict(model="unet", config=dict(context_channels=4), schedule=dict(name="cosine", T=1000, prediction="eps")),
        dict(keep=0.0, target="full dose", uses={"autoencoder_simple": "a"}, condition="paired: the low-dose scan"),
        dict(
            process=dict(schedule="cosine", T=1000, prediction="eps"),
            autoencoder="autoencoder_simple",
            estimator=None,
            conditions={"context": ["ldct"]},
        ),
        "full dose",
    ),
    "prior": (
        dict(model="unet", config=dict(concat_channels=0), schedule=dict(name="linear", T=1000, prediction="eps")),
        dict(keep=0.25, condition="start: none, the prior alone"),
        dict(
            process=dict(schedule="linear", T=1000, prediction="eps"), autoencoder=None, estimator=None, conditions={}
        ),
        "truth",
    ),
    "scans": (
        dict(model="redcnn", config=CONFIG, schedule=None),
        dict(keep=0.0, target="full-dose scan as if noise-free, simulated noise added"),
        None,
        "full dose",
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_headers_of_the_first_format_are_read(tmp_path, name):
    """What steered inference among the notes is a field now, and gone from the notes."""
    fields, notes, pipeline, output = OLD[name]
    units = dict(low=-1000.0, high=1000.0, model_low=-1.0, model_high=1.0)
    fields = fields | dict(units=units, trained_on=TRAINED_ON | notes, quality={"ssim": 0.8})
    path = tmp_path / f"{name}.safetensors"
    checkpoints.write_tensors(path, {"w": torch.ones(3)}, kind=checkpoints.OLD_FORMAT, fields=fields)
    for _ in range(2):
        read = checkpoints.load(path)
        assert (read.pipeline, read.output, read.recipe) == (pipeline, output, name)
        assert read.range == Range(-1000.0, 1000.0) and read.uses == notes.get("uses", {})
        assert not {"keep", "condition", "uses", "stages"} & set(read.trained_on)
        assert read.stages == [{"name": k, "steps": n} for k, n in notes.get("stages", {}).items()]
        checkpoints.update_quality(path, {"ssim": 0.8})  # writes today's header


@pytest.mark.parametrize("name", sorted(checkpoints.MODELS))
def test_registered_models_exist(name):
    module, _, attribute = checkpoints.MODELS[name].partition(":")
    assert issubclass(getattr(importlib.import_module(module), attribute), torch.nn.Module)


def test_shipped_files_are_whole_and_small():
    paths = sorted((REPOSITORY / "data" / "checkpoints").glob("*.safetensors"))
    if not paths:
        pytest.skip("no checkpoint ships yet")
    assert sum(path.stat().st_size for path in paths) < 110 * 2**20
    for path in paths:
        assert checkpoints.find(path.stem).stem == path.stem
        built = checkpoints.build(path)
        assert all(torch.isfinite(p).all() for p in built.parameters())


def test_code_revision_is_git_s():
    run = subprocess.run(["git", "-C", REPOSITORY, "rev-parse", "HEAD"], capture_output=True, text=True)
    revision = checkpoints.code_revision()
    if run.returncode == 0 and (REPOSITORY / ".git").exists():
        assert run.stdout.startswith(revision.removesuffix("+changes"))
    else:
        assert revision.startswith("version ")
