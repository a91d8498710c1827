"""MAN's recipes: each finds what it needs, says what it used, and learns on codes that mean what they should.

The networks are tiny and the steps few; what is checked is what a training would get wrong in silence.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ldctlib import checkpoints, methods, recipes
from ldctlib.data.patches import NoisePatches
from ldctlib.errors import CheckpointError
from ldctlib.models.conditioned_unet import ConditionedUNet
from ldctlib.recipes import man, running
from ldctlib.units import Range

OTHER = Range(-360.0, 440.0)
REPOSITORY = Path(__file__).resolve().parent.parent

AUTOENCODER = dict(
    width=8, channel_mult=[1, 2], latent_channels=4, blocks=1, attention_at=[2], stem=2, shortcut=True, norm_groups=4
)
CONDITIONED = dict(
    unet=dict(
        in_channels=4,
        model_channels=8,
        channel_mult=[1, 2],
        num_res_blocks=1,
        attention_at=[2],
        num_heads=1,
        context_channels=4,
        context_dim=8,
        norm_groups=4,
    ),
    gain=5.0,
)
PIXEL_UNET = dict(
    in_channels=1,
    model_channels=8,
    channel_mult=[1, 2],
    num_res_blocks=1,
    attention_at=[],
    concat_channels=1,
    norm_groups=4,
)
BANKS = dict(patch=32, size=96, slices=4, photographs=2, noises=2)
FAMILY = ("autoencoder_simple", "autoencoder_perceptual", "man")

pytestmark = pytest.mark.usefixtures("one_thread")


def shrunk(name: str, profile: str) -> recipes.Recipe:
    """The workshop's recipe with networks, banks and numbers of steps that take no time."""
    r = getattr(man, name)(profile)
    config = {"autoencoder": AUTOENCODER, "conditioned_unet": CONDITIONED, "unet": PIXEL_UNET}[r.model]
    stages = tuple(
        replace(
            s,
            train=replace(
                s.train, steps=4, warmup_steps=0, batch_size=2, log_every=1, checkpoint_every=100, precision="float32"
            ),
            patches=replace(s.patches, **BANKS),
        )
        for s in r.stages
    )
    return replace(r, config=config, stages=stages)


@pytest.fixture(scope="module")
def tiny():
    """Every recipe of MAN's in its tiny form."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (*FAMILY, "man_simple", "ddpm"):
            patch.setitem(recipes.RECIPES, name, lambda profile, name=name: shrunk(name, profile))
        yield


def finish(name: str, out: Path, **options) -> list[tuple[str, int]]:
    profile = options.pop("profile", "workshop")
    logs = recipes.run(name, profile, out=out, device="cpu", progress=False, **options)
    return [(stage, log.step) for stage, log in logs]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """A folder with autoencoder_simple, autoencoder_perceptual, man and ddpm, trained one after another."""
    out = tmp_path_factory.mktemp("family")
    torch.set_num_threads(1)
    for name in (*FAMILY, "ddpm"):
        last = finish(name, out)[-1]
        assert last == (recipes.recipe(name, "workshop").stages[-1].name, 4)
    return out


# ---------------------------------------------------------------- one after another


def test_each_uses_what_was_trained_before_it(trained):
    loaded = {name: checkpoints.load(trained / f"{name}.safetensors") for name in (*FAMILY, "ddpm")}
    uses = {name: c.trained_on.get("uses", {}) for name, c in loaded.items()}
    assert uses["autoencoder_simple"] == uses["ddpm"] == {}
    assert uses["autoencoder_perceptual"] == {"autoencoder_simple": loaded["autoencoder_simple"].sha256}
    assert uses["man"] == {
        "autoencoder_perceptual": loaded["autoencoder_perceptual"].sha256,
        "nafnet": checkpoints.load(checkpoints.shipped("nafnet")).sha256,
    }
    for c in loaded.values():
        assert c.trained_on["profile"] == "workshop" and c.trained_on["steps"] == 8
    assert loaded["man"].schedule == man.NEAR_THE_ESTIMATE
    assert loaded["autoencoder_simple"].schedule is None
    assert loaded["man"].trained_on["condition"].startswith("simulated") and loaded["man"].trained_on["keep"] == 0.25
    assert loaded["ddpm"].range == man.DDPM_RANGE and loaded["autoencoder_simple"].range == recipes.HU_RANGE
    # what it sees has the noise of a full-dose scan
    assert loaded["autoencoder_simple"].trained_on["patches"]["full_sd_hu"] == list(man.FULL_DOSE_SD_HU)


def test_what_is_missing_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "__file__", str(tmp_path / "ldctlib" / "checkpoints.py"))  # nothing ships
    monkeypatch.delenv("LDCT_CHECKPOINTS", raising=False)
    with pytest.raises(CheckpointError, match="'autoencoder_perceptual'.*recipes autoencoder_perceptual"):
        finish("man", tmp_path / "out")
    with pytest.raises(CheckpointError, match="'autoencoder_simple'"):
        finish("autoencoder_perceptual", tmp_path / "out")  # its first stage, on pixels alone, does without


def test_latents_of_another_size_are_refused(trained, tmp_path, monkeypatch):
    """Such as the shipped autoencoder's under the paper's U-Net."""
    wide = replace(shrunk("man", "workshop"), config=CONDITIONED | dict(unet=CONDITIONED["unet"] | dict(in_channels=5)))
    monkeypatch.setitem(recipes.RECIPES, "man", lambda profile: wide)
    shutil.copy(trained / "autoencoder_perceptual.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match="4 channels and this U-Net takes 5.*autoencoder_perceptual"):
        finish("man", tmp_path)


@pytest.mark.parametrize("name", FAMILY[:2])
def test_scaled_codes_have_unit_variance(trained, name):
    c = checkpoints.load(trained / f"{name}.safetensors")
    model, r = checkpoints.build(c), recipes.recipe(name, "workshop")
    assert model.latent_scale == c.config["latent_scale"] != 1
    stage = r.stages[-1]
    fresh = NoisePatches(stage.patches)  # samples that the scale was not fitted to, of the same objects
    x = torch.stack([fresh[n]["full_hu"] for n in range(2000, 2128)])
    with torch.no_grad():
        z = model.scale(model.encode(c.range.to_model(x)).sample(torch.Generator().manual_seed(1)))
    # weights are stored in half precision; 64 and 128 patches of 4 slices and 2 photographs
    assert abs(float(z.std()) - 1) < 0.1


def test_stopped_and_continued_equals_uninterrupted(trained, tmp_path, monkeypatch):
    """A latent recipe draws codes, times and noises: each a function of the step alone."""
    shutil.copy(trained / "autoencoder_perceptual.safetensors", tmp_path)
    monkeypatch.setattr(running, "perf_counter", lambda: 0.0)  # so that it is the loop that runs out of time
    assert finish("man", tmp_path, max_seconds=1e-9) == [("stable", 1)]
    assert [step for _, step in finish("man", tmp_path, stage="stable")] == [2, 3, 4]
    assert finish("man", tmp_path, max_seconds=1e-9) == [("stable", 4), ("decay", 1)]
    assert checkpoints.load(tmp_path / "man.safetensors").trained_on["steps"] == 5
    assert finish("man", tmp_path)[-1] == ("decay", 4)
    whole, parts = (checkpoints.load(folder / "man.safetensors") for folder in (trained, tmp_path))
    assert all(torch.equal(whole.state_dict[k], parts.state_dict[k]) for k in whole.state_dict)
    assert whole.trained_on["steps"] == parts.trained_on["steps"] == 8


def test_a_stage_does_not_go_on_with_another_network(trained, tmp_path):
    shutil.copy(trained / "autoencoder_perceptual.safetensors", tmp_path)
    finish("man", tmp_path, stage="stable")
    shutil.copy(trained / "autoencoder_simple.safetensors", tmp_path / "autoencoder_perceptual.safetensors")
    with pytest.raises(CheckpointError, match="another autoencoder_perceptual than there is now"):
        finish("man", tmp_path, stage="decay")


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("steps", (40, 1000))
def test_weights_rise_over_the_first_half_of_the_stage(trained, steps):
    """Section 3.2: from 0 to the final weights; the batch's own numbers say where in the stage it lies."""
    r = recipes.recipe("autoencoder_perceptual", "workshop")
    pixels, ramp = (replace(s, train=replace(s.train, steps=steps, batch_size=2)) for s in r.stages)
    simple = checkpoints.load(trained / "autoencoder_simple.safetensors")
    model = checkpoints.build(trained / "autoencoder_perceptual.safetensors")
    x = 100 * torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def weights(stage, step):
        """Of KL and perceptual distance: what is left of the loss, by two evaluations that differ in one term."""
        loss = r.loss(r, stage, {"autoencoder_simple": simple})
        batch = {"full_hu": x, "clean_hu": 0.9 * x, "n": torch.tensor([step * 2, step * 2 + 1])}
        with torch.no_grad():
            terms = loss(model, batch, torch.Generator().manual_seed(1))
        rest = float(terms["loss"] - terms["mse"] - 0.5 * terms["l1"])
        return rest, float(terms["kl"]), float(terms.get("perceptual", 0.0))

    assert weights(pixels, 0)[0] == pytest.approx(0, abs=1e-7)  # the first stage: neither
    final_kl, final = ramp.objective["kl"], ramp.objective["perceptual"]
    for step, share in ((0, 0.0), (steps // 8, 0.25), (steps // 4, 0.5), (steps // 2, 1.0), (steps - 1, 1.0)):
        rest, kl, perceptual = weights(ramp, step)
        assert (perceptual == 0) == (share == 0)
        assert rest == pytest.approx(share * (final_kl * kl + final * perceptual), rel=1e-3, abs=1e-7)
        assert share == 0 or final * perceptual > 10 * 1e-7  # large enough to be told from rounding


def test_the_simple_autoencoder_has_a_fixed_kl_weight_and_no_features(trained):
    """And learns the noise-free image from one with a full dose's noise."""
    r = recipes.recipe("autoencoder_simple", "workshop")
    model = checkpoints.build(trained / "autoencoder_simple.safetensors")
    clean, noise = 100 * torch.randn(2, 2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = {"full_hu": clean + 0.2 * noise, "clean_hu": clean}
    for stage in r.stages:
        for step in (0, 3):
            numbered = batch | {"n": torch.tensor([2 * step, 2 * step + 1])}
            with torch.no_grad():
                terms = r.loss(r, stage, {})(model, numbered, torch.Generator().manual_seed(1))
                x_hat, _ = model(r.range.to_model(batch["full_hu"]), generator=torch.Generator().manual_seed(1))
            expected = terms["mse"] + 0.5 * terms["l1"] + 1e-6 * terms["kl"]
            assert "perceptual" not in terms and float(terms["loss"]) == pytest.approx(float(expected), rel=1e-6)
            error = float((x_hat - r.range.to_model(clean)).square().mean())
            assert float(terms["mse"]) == pytest.approx(error, rel=1e-6)


class Spy(ConditionedUNet):
    """A U-Net's place: remembers what it is given, answers with a number that is learnt."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.answer = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, z_t, t, code, centre):
        self.seen.append((z_t, t, code, centre))
        return z_t * 0 + self.answer


class Halver(torch.nn.Module):
    """An estimator that can be told from the image and from the truth."""

    def forward(self, x):
        return 0.5 * x


def latent_call(trained, monkeypatch, *, draws: int = 1, estimator: bool = True):
    """(z0, what the network saw, autoencoder, batch) of one call of the latent loss."""
    found = {}

    def loss_fn(schedule, bind, **options):
        def loss(model, batch, generator):
            z0, network = bind(model, batch, generator)
            found.update(z0=z0, options=options, schedule=schedule)
            return network(torch.zeros_like(z0), torch.ones(len(z0), dtype=torch.long)).mean()

        return loss

    monkeypatch.setattr(man.objective, "loss_fn", loss_fn)
    c = checkpoints.load(trained / "autoencoder_perceptual.safetensors")
    needed = {"autoencoder_perceptual": c}
    autoencoder = checkpoints.build(c)
    if estimator:
        needed["nafnet"] = replace(checkpoints.load(checkpoints.shipped("nafnet")), units=asdict(OTHER))
        networks = {"autoencoder": autoencoder, "nafnet": Halver()}
        monkeypatch.setattr(man.checkpoints, "build", lambda c: networks[c.model])
    r = recipes.recipe("man", "workshop")
    stage = replace(r.stages[0], objective={"draws": draws})
    generator = torch.Generator().manual_seed(3)
    clean = 60 * torch.randn(2, 1, 32, 32, generator=generator)
    images = {"clean_hu": clean, "ldct_hu": clean + 30 * torch.randn(clean.shape, generator=generator)}
    spy = Spy()
    value = r.loss(r, stage, needed)(spy, images, torch.Generator().manual_seed(9))
    assert len(spy.seen) == 1 and torch.isfinite(value)
    return found | {"spy": spy, "autoencoder": autoencoder, "checkpoint": c, "images": images}


@pytest.mark.parametrize("estimator", (False, True))
def test_latents_are_samples_of_the_clean_image_and_conditions_the_low_dose_means(trained, monkeypatch, estimator):
    call = latent_call(trained, monkeypatch, estimator=estimator)
    c, images, model = call["checkpoint"], call["images"], call["autoencoder"]
    low = images["ldct_hu"]
    with torch.no_grad():
        clean, ldct, first = (
            model.encode(c.range.to_model(x))
            for x in (images["clean_hu"], low, OTHER.from_model(0.5 * OTHER.to_model(low)))
        )
    noise = torch.randn(clean.mean.shape, generator=torch.Generator().manual_seed(9))
    scale, spread = c.config["latent_scale"], man.NEAR_THE_ESTIMATE["spread"]
    torch.testing.assert_close(call["z0"], scale * (clean.mean + clean.std * noise) / spread, rtol=1e-3, atol=1e-3)
    ((z_t, t, code, centre),) = call["spy"].seen
    torch.testing.assert_close(code, scale * ldct.mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(centre, scale * (first if estimator else ldct).mean, rtol=1e-3, atol=1e-4)
    # the network was called with z_t = 0, and sees its difference from the centre
    signal, _ = call["schedule"].scales(t, centre)
    torch.testing.assert_close(z_t, -signal * centre / spread, rtol=1e-3, atol=1e-3)
    # and not the identity leak: no condition is a code of the clean image
    assert all(float((x - scale * clean.mean).std()) > 100 * 1e-4 for x in (code, centre))
    assert call["schedule"].T == 1000 and call["options"] == {"prediction": "v"}


def test_codes_are_used_with_several_draws(trained, monkeypatch):
    one, three = (latent_call(trained, monkeypatch, draws=n) for n in (1, 3))
    torch.testing.assert_close(three["z0"], one["z0"].repeat(3, 1, 1, 1))
    for a, b in zip(one["spy"].seen[0][2:], three["spy"].seen[0][2:], strict=True):
        torch.testing.assert_close(b, a.repeat(3, 1, 1, 1))
    # so that an image's times lie a third of T apart, and not side by side
    t = man.objective.sample_times(man.schedule.named("cosine", 1000), 6, generator=torch.Generator().manual_seed(0))
    assert all(abs(int(t[i] - t[i + 2])) % 1000 in (333, 334, 666, 667) for i in range(4))


def test_what_makes_the_codes_is_not_trained_along(trained, monkeypatch):
    built = []

    def build(*arguments, **options):
        built.append(original(*arguments, **options))
        return built[-1]

    original = checkpoints.build
    monkeypatch.setattr(man.checkpoints, "build", build)
    r = recipes.recipe("man", "workshop")
    c = checkpoints.load(trained / "autoencoder_perceptual.safetensors")
    loss = r.loss(
        r, r.stages[0], {"autoencoder_perceptual": c, "nafnet": checkpoints.load(checkpoints.shipped("nafnet"))}
    )
    assert len(built) == 2
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in built]
    unet, dataset = recipes.new_model(r), NoisePatches(r.stages[0].patches)
    options = replace(r.stages[0].train, device="cpu", steps=2)
    for _ in running.train(unet, loss, dataset, options, progress=False):
        pass
    for network, kept in zip(built, before, strict=True):
        assert all(p.grad is None and not p.requires_grad for p in network.parameters())
        assert all(torch.equal(v, kept[k]) for k, v in network.state_dict().items())
    assert any(bool(p.detach().abs().sum()) for n, p in unet.named_parameters() if ".out." in n)  # it learnt


def test_the_prior_alone_is_told_nothing(trained, monkeypatch, tmp_path):
    """man_start: its network takes no condition, and sampling starts from the low-dose code."""
    small = dict(in_channels=4, model_channels=8, channel_mult=[1, 2], num_res_blocks=1, attention_at=[], norm_groups=4)
    prior = replace(shrunk("man_start", "workshop"), config=small)
    monkeypatch.setitem(recipes.RECIPES, "man_start", lambda profile: prior)
    shutil.copy(trained / "autoencoder_perceptual.safetensors", tmp_path)
    finish("man_start", tmp_path)
    c = checkpoints.load(tmp_path / "man_start.safetensors")
    assert list(c.trained_on["uses"]) == ["autoencoder_perceptual"] and c.trained_on["condition"].startswith("start")
    write_collection(tmp_path / "LDCT", pairs=True)
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    shutil.copy(trained / "autoencoder_perceptual.safetensors", pairs)
    finish("man_start", pairs, data=tmp_path / "LDCT")
    assert checkpoints.load(pairs / "man_start.safetensors").trained_on["condition"].startswith("start")
    network = checkpoints.build(c)
    assert network.concat_channels == 0 and not network.context_channels
    x = 60 * torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    out = methods.load("man", path=c.path, steps=3)(x)  # its own condition is the default
    assert out.shape == x.shape and torch.isfinite(out).all()


# ---------------------------------------------------------------- the paper's profile


def write_collection(folder: Path, *, pairs: bool = False, patients=6, slices=2, pixels=72) -> None:
    """LDCT-and-Projection-data's layout: DICOM slices of discs with noise."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    rng = np.random.default_rng(0)
    row, column = np.mgrid[:pixels, :pixels] - (pixels - 1) / 2
    for patient in range(1, 1 + patients):
        for dose, sd in (("Full", 10), ("Low", 20))[: 1 + pairs]:
            series = folder / f"L{patient:03d}" / "12-23-2021-NA-NA-50920" / f"1.000000-{dose} Dose Images-{patient}"
            series.mkdir(parents=True)
            uid = generate_uid()
            for k in range(slices):
                ds = Dataset()
                ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = CTImageStorage, generate_uid(), uid
                ds.Modality, ds.PatientID, ds.Rows, ds.Columns = "CT", f"L{patient:03d}", pixels, pixels
                ds.PixelSpacing, ds.ImageOrientationPatient = [0.7, 0.7], [1, 0, 0, 0, 1, 0]
                ds.ImagePositionPatient, ds.SliceThickness = [0, 0, 1.0 * k], "1"
                ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
                ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
                ds.RescaleSlope, ds.RescaleIntercept = "1", "-1024"
                disc = np.where(np.hypot(row, column) < 0.45 * pixels, 1064 + rng.normal(0, sd, row.shape), 24)
                ds.add_new("PixelData", "OW", disc.round().clip(0).astype("<u2").tobytes())
                ds.file_meta = FileMetaDataset()
                ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
                ds.save_as(series / f"1-{k + 1:03d}.dcm", enforce_file_format=True)


@pytest.mark.parametrize("pairs", (False, True))
def test_steps_are_counted_from_epochs_of_the_training_patients(tmp_path, monkeypatch, pairs):
    write_collection(tmp_path / "LDCT", pairs=pairs, patients=12, slices=9, pixels=24)
    seen = []

    def train(model, loss, dataset, config, **options):
        seen.append((config, dataset))
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "train", train)
    small = replace(man.autoencoder_simple("paper"), config=AUTOENCODER)
    monkeypatch.setitem(recipes.RECIPES, "autoencoder_simple", lambda profile: small)
    with pytest.raises(KeyboardInterrupt):
        finish("autoencoder_simple", tmp_path / "out", profile="paper", data=tmp_path / "LDCT")
    ((config, dataset),) = seen
    training = len(running.split(running.open_collection(tmp_path / "LDCT"))["train"])
    assert 0 < training < 12 and training * 9 // 16 > 1
    assert config.steps == 600 * (training * 9 // 16) and config.batch_size == 16
    assert type(dataset).__name__ == ("PairedPatches" if pairs else "NoisePatches")
    with pytest.raises(KeyboardInterrupt):  # without a collection an epoch means nothing
        finish("autoencoder_simple", tmp_path / "out", profile="paper")
    assert seen[1][0].steps == small.stages[0].train.steps


def test_dry_run_of_the_paper_profile_on_two_processes(tmp_path):
    """Two steps on scans in the real layout; then the latent model on what that made."""
    write_collection(tmp_path / "LDCT-and-Projection-data")
    made = tmp_path / "out" / "dry-run"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "TQDM_DISABLE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    for name in ("autoencoder_simple", "man"):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            "-m",
            "ldctlib.recipes",
            name,
            "--profile",
            "paper",
            "--dry-run",
            "--device",
            "cpu",
            "--data",
            str(tmp_path / "LDCT-and-Projection-data"),
            "--out",
            str(tmp_path / "out"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        steps = [line for line in done.stdout.splitlines() if line.startswith(f"{name} ")]
        assert len(steps) == 2 and "2/2" in steps[1], done.stdout  # one process prints
        c = checkpoints.load(made / f"{name}.safetensors")
        assert c.trained_on["profile"] == "paper (dry run)" and c.trained_on["steps"] == 2
        assert "LDCT-and-Projection-data" in c.trained_on["collection"]
        assert set(c.trained_on["cases"]) <= {f"L{n:03d}" for n in range(1, 7)}
        if name == "autoencoder_simple":
            # the paper's VGG-16 is a download of half a gigabyte: the simple autoencoder stands in its place
            shutil.copy(made / f"{name}.safetensors", made / "autoencoder_perceptual.safetensors")
            simple = c
    assert c.trained_on["uses"] == {"autoencoder_perceptual": simple.sha256}
    assert c.schedule == {"name": "cosine", "T": 1000, "prediction": "eps"} and c.trained_on["keep"] == 0.0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dry-run"]
