"""The benchmark of generators: its cases, and scores of sets that are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldctlib.benchmark import synthesis
from ldctlib.benchmark.synthesis import Cases, SynthesisResult
from ldctlib.data.six_dose import DOSES
from ldctlib.errors import ParameterError


@pytest.fixture(scope="module")
def cases() -> Cases:
    return Cases.of_phantoms(2, seed=11, a_patient=6)


def test_every_patient_has_every_dose(cases):
    assert len(cases) == 12 and cases.images_hu.shape == cases.masks.shape == (12, 1, 256, 256)
    assert sorted(cases.doses[:6]) == sorted(DOSES) and len(set(cases.patients)) == 2


def test_scans_have_the_noise_that_their_map_tells(cases):
    """Measured in the liver; the map is that of the very noise, and so is the spectrum."""
    ratio, distance = synthesis.noise_obedience(cases.images_hu - cases.noise_hu, cases.noise_hu, cases)
    assert np.isfinite(ratio).sum() >= 4 and np.nanmax(abs(ratio - 1)) < 0.06
    assert np.isfinite(distance).sum() == 2 and np.nanmax(distance) == 0  # one for each patient


def test_noise_of_another_strength_or_texture_is_told(cases):
    clean = cases.images_hu - cases.noise_hu
    twice, distance = synthesis.noise_obedience(clean, 2 * cases.noise_hu, cases)
    assert np.nanmax(abs(twice - 2)) < 0.12 and np.nanmax(distance) < 1e-6
    white = cases.noise_map_hu * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    ratio, distance = synthesis.noise_obedience(clean, white, cases)
    assert np.nanmax(abs(ratio - 1)) < 0.1 and np.nanmin(distance) > 0.3
    nowhere, distance = synthesis.noise_obedience(clean + 1000, cases.noise_hu, cases)
    assert np.isnan(nowhere).all() and np.isnan(distance).all()


def test_scores_of_the_truth_and_of_nothing(cases, monkeypatch):
    """With a segmenter that knows the masks, an image scores as its mask does."""
    monkeypatch.setattr(synthesis, "segment", lambda images: cases.masks)
    monkeypatch.setattr(synthesis, "quality", lambda images: torch.full((len(images),), 2.0))
    how = dict(quality_of_cases=np.full(len(cases), 2.5), noise_hu=cases.noise_hu)
    scores = synthesis.score_set(cases.images_hu, cases, **how)
    assert scores["Dice, liver"][0] == scores["Dice, five organs"][0] == 1 and scores["HD95, liver (mm)"][0] == 0
    assert scores["|Δ quality|"][0] == 0.5 and scores["noise / asked for"][0] == pytest.approx(1, abs=0.03)
    monkeypatch.setattr(synthesis, "segment", lambda images: torch.zeros_like(cases.masks))
    nothing = synthesis.score_set(cases.images_hu, cases, **how | dict(noise_hu=None))
    assert nothing["Dice, liver"][0] == 0 and "noise / asked for" not in nothing


def test_rows_of_generators_and_of_what_they_are_held_against(cases, monkeypatch):
    """A generator on pixels, which has no autoencoder to go through, that returns the scans themselves."""
    monkeypatch.setattr(synthesis, "segment", lambda images: cases.masks)
    monkeypatch.setattr(synthesis, "quality", lambda images: torch.full((len(images),), 2.0))
    asked = []

    def steps(masks, *, seeds, noise_map_hu, steps, guidance):
        asked.extend(seeds)
        assert torch.equal(masks, cases.masks[list(seeds)]) and noise_map_hu.shape == masks.shape
        yield SimpleNamespace(x0_hat=None)

    def decode(x0_hat, seeds, *, noise):
        return cases.images_hu[list(seeds)] - (0 if noise else cases.noise_hu[list(seeds)])

    spec = SimpleNamespace(autoencoder=None)
    generate = SimpleNamespace(steps=steps, decode=decode, pipeline=SimpleNamespace(spec=spec))
    monkeypatch.setattr(synthesis.generators, "load", lambda name, path: generate)
    result = synthesis.run(["perfect"], cases, others=cases, batch=5, sets=False)
    assert list(result.scores) == ["the cases' scans", "real, other patients", "perfect"]
    for metric, score in result.scores["the cases' scans"].items():
        assert result.scores["perfect"][metric] == pytest.approx(score, abs=1e-6, nan_ok=True), metric
    assert asked == list(range(len(cases)))
    row = result.scores["real, other patients"]
    assert list(row) == ["quality"] and row["quality"][0] == 2  # two patients have no interval


def test_a_result_is_written_and_read(tmp_path):
    result = SynthesisResult({"a": {"Dice": (0.5, 0.4, 0.6), "FD(vgg16)": (12.0, np.nan, np.nan)}}, {"n": "two images"})
    result.to_json(tmp_path / "r.json")
    again = SynthesisResult.from_json(tmp_path / "r.json")
    assert (
        again.to_markdown() == result.to_markdown() and "| a | 0.500 (0.400 … 0.600) | 12.00 |" in again.to_markdown()
    )
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(ParameterError, match="is no result of synthesis"):
        SynthesisResult.from_json(tmp_path / "r.json")
