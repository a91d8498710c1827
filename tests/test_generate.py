"""From a file with a mask to a synthetic series that says so."""

import numpy as np
import pytest
import torch

from ldctlib import __main__ as main_module
from ldctlib import checkpoints, recipes
from ldctlib.data.anatomy_masks import LIVER
from ldctlib.data.dicom_read import read_series
from ldctlib.data.dicom_write import write_synthetic
from ldctlib.data.nifti import read_nifti
from ldctlib.errors import ParameterError
from ldctlib.files import only_one
from ldctlib.generators import series
from tests.test_synthesis import place_autoencoder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a tiny autoencoder and an F that was trained for ten steps; CLIP is the shipped one."""
    folder = tmp_path_factory.mktemp("generators")
    place_autoencoder(folder)
    for name in ("na_natural", "na_diff_f"):
        for _ in recipes.run(name, "workshop", out=folder, progress=False, device="cpu"):
            pass
    return folder


@pytest.fixture
def mask_file(tmp_path):
    nib = pytest.importorskip("nibabel")
    mask = np.zeros((96, 128, 2), np.uint8)
    mask[10:80, 20:110] = 1
    mask[20:50, 30:70] = LIVER
    file = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(mask, np.diag([3.0, 3.0, 5.0, 1.0])), file)
    return file


def test_a_synthetic_series_says_so_and_reads_back(tmp_path):
    import pydicom

    values = torch.linspace(-160, 240, 2 * 16 * 12).view(2, 16, 12)
    files = write_synthetic(values, tmp_path / "out", pixel_mm=1.4, slice_mm=5.0, description="a test, dose 0.1")
    scan = read_series(tmp_path / "out")
    assert (scan.values - values).abs().max() <= 0.5 and scan.spacing_mm == (5.0, 1.4, 1.4)
    header = pydicom.dcmread(files[0])
    assert header.PatientID == "SYNTHETIC" and header.ImageType[3] == "SYNTHETIC"
    assert "SYNTHETIC" in header.SeriesDescription and "dose 0.1" in header.DerivationDescription
    assert "not by a scanner" in header.ImageComments and "DerivationCodeSequence" not in header
    assert (
        header.SOPClassUID == pydicom.uid.CTImageStorage
        and len({pydicom.dcmread(f).SOPInstanceUID for f in files}) == 2
    )


def test_a_mask_becomes_a_series(trained, mask_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LDCT_CHECKPOINTS", str(trained))
    out = tmp_path / "synthetic"
    words = f"generate --mask {mask_file} --dose 0.1 --out {out} --steps 2 --seed 3".split()
    assert main_module.main(words) == 0 and "2 files" in capsys.readouterr().out
    scan = read_series(out)
    assert tuple(scan.values.shape) == (2, 256, 256) and scan.spacing_mm == (5.0, 1.5, 1.5)
    assert -160.5 <= float(scan.values.min()) and float(scan.values.max()) <= 240.5
    again = tmp_path / "again"
    series.generate_series(mask_file, again, dose=0.1, steps=2, seed=3, file_format="nifti")
    (file,) = again.iterdir()
    assert (read_nifti(file).values - scan.values).abs().max() <= 0.51  # the same seed, not rounded
    assert main_module.main(words) == 2 and "not an empty folder" in capsys.readouterr().err
    with only_one(tmp_path / ".third.lock", "third"):
        assert main_module.main([*words, "--out", str(tmp_path / "third")]) == 2
        assert "another process is at" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != mask_file.name) == ["again", "synthetic"]


def test_masks_keep_their_shape_on_the_grid():
    mask = torch.zeros(1, 100, 200, dtype=torch.uint8)
    mask[:, 50:, :100] = LIVER
    on, pixel_mm = series.on_grid(mask, (5.0, 2.0, 2.0))
    assert on.shape == (1, 1, 256, 256) and pixel_mm == pytest.approx(2.0 * 200 / 256)
    # the lower half of the middle two quarters, on the left
    assert float((on == LIVER).float().mean()) == pytest.approx(1 / 8, abs=0.01)
    assert bool((on[..., 129:190, :127] == LIVER).all()) and not bool((on[..., :120, :] == LIVER).any())


@pytest.mark.parametrize(
    ("spacing", "said"),
    [(None, "no pixel spacing"), ((5.0, 1.0, 1.2), "must be square"), ((5.0, 0.5, 0.5), "field of view of")],
)
def test_masks_that_do_not_fit_are_refused(spacing, said):
    with pytest.raises(ParameterError, match=said):
        series.on_grid(torch.zeros(1, 200, 200, dtype=torch.uint8), spacing)


@pytest.mark.parametrize(
    ("name", "says"), [("na_diff_d", "na_diff_d, dose ignored, seed"), ("na_diff_b", "b, dose 0.1, mask ignored, seed")]
)
def test_a_series_does_not_name_what_its_model_ignores(trained, mask_file, tmp_path, monkeypatch, name, says):
    import pydicom

    loaded = series.load("na_diff_f", path=str(trained / "na_diff_f.safetensors"))
    sees = ("anatomy",) if name == "na_diff_d" else ("noise",)
    monkeypatch.setattr(type(loaded), "conditions", sees)
    monkeypatch.setattr(type(loaded), "__call__", lambda self, part, **options: torch.zeros(part.shape))
    monkeypatch.setattr(series, "load", lambda *_, **__: loaded)
    (first, _) = series.generate_series(mask_file, tmp_path / "out", name=name, dose=0.1)
    header = pydicom.dcmread(first)
    for tag in ("SeriesDescription", "DerivationDescription", "ImageComments"):
        assert says in str(header[tag].value) and ("dose 0.1" in str(header[tag].value)) == (name == "na_diff_b")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("--pixel-mm 0", "pixel_mm is a size"),
        ("--dose 0.01", "from 0.05 to 1"),
        ("--dose nan", "from 0.05 to 1"),
        ("--device gpu", "is not a device"),
        ("--device cuda:99", "CUDA devices here"),
    ],
)
def test_the_command_refuses_by_name(mask_file, tmp_path, capsys, wrong, says):
    words = f"generate --mask {mask_file} --out {tmp_path / 'o'} {wrong}".split()
    assert main_module.main(words) == 2 and says in capsys.readouterr().err


def test_doses_and_names_that_there_are_not(mask_file, tmp_path):
    with pytest.raises(ParameterError, match="fraction of full dose"):
        series.generate_series(mask_file, tmp_path / "o", dose=10)
    with pytest.raises(ParameterError, match="no generator is named 'na_diff_g'"):
        series.generate_series(mask_file, tmp_path / "o", name="na_diff_g")
    assert not (tmp_path / "o").exists()
    assert checkpoints.find("clip").is_file()
