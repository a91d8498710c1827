"""The benchmark of generators: its cases, and scores of sets that are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldctlib.benchmark import synthesis
from ldctlib.benchmark.synthesis import Cases, SynthesisResult
from ldctlib.data.anatomy_masks import LIVER
from ldctlib.data.six_dose import DOSES
from ldctlib.errors import ParameterError


@pytest.fixture(scope="module")
def cases() -> Cases:
    return Cases.of_phantoms(2, seed=11, a_patient=6)


def test_every_patient_has_every_dose(cases):
    assert len(cases) == 12 and cases.images_hu.shape == cases.masks.shape == (12, 1, 256, 256)
    assert sorted(cases.doses[:6]) == sorted(DOSES) and len(set(cases.patients)) == 2


def test_scans_have_the_noise_that_their_map_tells(cases):
    """Measured in the liver; the map is that of the very noise. Texture adds some percent at full dose."""
    large = (cases.masks == LIVER).flatten(1).sum(1) > 1500
    ratio = synthesis.noise_ratio(cases.images_hu, cases, cases.masks)[large.numpy()]
    assert len(ratio) >= 4 and np.nanmax(abs(ratio - 1)) < 0.15


def test_scores_of_the_truth_and_of_nothing(cases, monkeypatch):
    """With a segmenter that knows the masks, an image scores as its mask does."""
    monkeypatch.setattr(synthesis, "segment", lambda images: cases.masks)
    monkeypatch.setattr(synthesis, "quality", lambda images: torch.full((len(images),), 2.0))
    of_cases = np.full(len(cases), 2.5)
    scores = synthesis.score_set(cases.images_hu, cases, quality_of_cases=of_cases)
    assert scores["Dice, liver"][0] == scores["Dice, five organs"][0] == 1 and scores["HD95, liver (mm)"][0] == 0
    assert scores["|Δ quality|"][0] == 0.5 and scores["noise / asked for"][0] == pytest.approx(1, abs=0.1)
    monkeypatch.setattr(synthesis, "segment", lambda images: torch.zeros_like(cases.masks))
    nothing = synthesis.score_set(cases.images_hu, cases, quality_of_cases=of_cases)
    assert nothing["Dice, liver"][0] == 0 and np.isnan(nothing["noise / asked for"][0])


def test_rows_of_generators_and_of_what_they_are_held_against(cases, monkeypatch):
    """A generator on pixels, which has no autoencoder to go through, that returns the scans themselves."""
    monkeypatch.setattr(synthesis, "segment", lambda images: cases.masks)
    monkeypatch.setattr(synthesis, "quality", lambda images: torch.full((len(images),), 2.0))
    asked = []

    def generate(masks, *, seeds, **told):
        asked.extend(seeds)
        assert torch.equal(masks, cases.masks[list(seeds)]) and told["noise_map_hu"].shape == masks.shape
        return cases.images_hu[list(seeds)]

    generate.pipeline = SimpleNamespace(spec=SimpleNamespace(autoencoder=None))
    monkeypatch.setattr(synthesis.generators, "load", lambda name, path: generate)
    result = synthesis.run(["perfect"], cases, others=cases, batch=5, sets=False)
    assert list(result.scores) == ["the cases' scans", "real, other patients", "perfect"]
    assert result.scores["perfect"] == result.scores["the cases' scans"] and asked == list(range(len(cases)))
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
