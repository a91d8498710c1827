"""The benchmark of generators: its cases, and scores of sets that are known."""

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
    reference = {"quality": np.full(len(cases), 2.5)}
    scores = synthesis.score_set(cases.images_hu, cases, reference=reference, distances=False)
    assert scores["Dice, liver"][0] == scores["Dice, five organs"][0] == 1 and scores["HD95, liver (mm)"][0] == 0
    assert scores["|Δ quality|"][0] == 0.5 and scores["noise / asked for"][0] == pytest.approx(1, abs=0.1)
    monkeypatch.setattr(synthesis, "segment", lambda images: torch.zeros_like(cases.masks))
    nothing = synthesis.score_set(cases.images_hu, cases, reference=reference, distances=False)
    assert nothing["Dice, liver"][0] == 0 and np.isnan(nothing["noise / asked for"][0])


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
