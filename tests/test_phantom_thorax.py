"""The random thorax: tissues against their HU, sides, findings, coherence in z, grids, the population."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy import ndimage

from ldctlib.phantom.organs import ID, OF_ABDOMEN, ONLY_OF_THORAX, ORGANS
from ldctlib.phantom.patient import Patient
from ldctlib.phantom.thorax.findings import SHARES, Findings
from ldctlib.phantom.thorax.tissues import COMMON, PHASES
from ldctlib.phantom.thorax.wall import ThoraxWall


@lru_cache(maxsize=64)
def patient(seed: int) -> Patient:
    return Patient.random(seed, anatomy="thorax")


@lru_cache(maxsize=128)
def drawn(seed: int, z_mm: float, size: int = 512, thickness_mm: float = 1.0):
    return patient(seed).slice(z_mm, size=size, thickness_mm=thickness_mm)


def maps(s) -> tuple[np.ndarray, np.ndarray]:
    return s.hu[0, 0].numpy(), s.labels[0, 0].numpy()


def first_with(has, seeds=(2, 5, 6, 19, 31)) -> int:
    """The first of a few patients of whom ``has`` (body → bool) holds."""
    return next(seed for seed in seeds if has(patient(seed).body))


def test_labels_of_the_abdomen_keep_their_ids():
    assert ORGANS == OF_ABDOMEN + ONLY_OF_THORAX and len(set(ORGANS)) == len(ORGANS) < 256
    assert (ID["background"], ID["lung"], ID["liver"], ID["aorta"], ID["diaphragm"]) == (0, 10, 11, 24, 38)


def test_slices_are_determined_by_seed_and_position():
    first = Patient.random(7, anatomy="thorax").slice(-40.0, size=256)
    again = Patient.random(7, anatomy="thorax")
    again.slice(30.0, size=64)  # what was drawn before must not matter
    second = again.slice(-40.0, size=256)
    assert torch.equal(first.hu, second.hu) and torch.equal(first.labels, second.labels)
    assert (first.hu - drawn(8, -40.0, 256).hu).abs().mean() > 20


def test_slice_keeps_the_contract():
    s = drawn(3, -40.0)
    assert s.hu.shape == s.labels.shape == (1, 1, 512, 512)
    assert s.hu.dtype == torch.float32 and s.labels.dtype == torch.uint8
    assert s.pixel_mm * 512 == pytest.approx(patient(3).body.field_of_view_mm)
    assert s.organs == tuple(ORGANS[i] for i in s.labels.unique().tolist() if i)
    for end in patient(3).z_range_mm:
        hu, labels = maps(patient(3).slice(end, size=128))
        assert (hu[labels == 0] < -300).all()  # at most half of a border's pixel
        edge = np.concatenate([labels[0], labels[:, 0], labels[:, -1]])
        assert set(edge) <= {0, ID["table"]}  # all of the body lies in the field of view


# What is drawn at the patient's own HU; as in the abdomen, 3 HU and 1.5 standard deviations of the texture.
UNIFORM = {
    "muscle": "muscle",
    "subcutaneous fat": "fat",
    "mediastinal fat": "fat",
    "visceral fat": "fat",
    "spinal canal": "canal",
    "disc": "disc",
    "airway": "air",
    "aorta": "aorta",
    "pulmonary artery": "pulmonary artery",
    "pulmonary vein": "pulmonary vein",
    "superior vena cava": "superior cava",
    "vena cava": "cava",
    "left ventricle": "left heart",
    "left atrium": "left heart",
    "right ventricle": "right heart",
    "right atrium": "right heart",
    "myocardium": "myocardium",
    "liver": "liver",
    "spleen": "spleen",
    "gas": "gas",
    "stomach content": "content",
    "thyroid": "thyroid",
    "lymph node": "node",
    "pleural effusion": "effusion",
    "pericardial effusion": "pericardial fluid",
    "consolidation": "consolidation",
    "atelectasis": "atelectasis",
    "pneumothorax": "pneumothorax",
}


@pytest.mark.parametrize("seed", [2, 5, 9, 19])
def test_labels_agree_with_hu(seed):
    body, seen = patient(seed).body, set()
    for z in (-130.0, -75.0, -50.0, -15.0, 88.0):
        hu, labels = maps(drawn(seed, z))
        for organ, tissue in UNIFORM.items():
            inner = ndimage.binary_erosion(labels == ID[organ], iterations=3)
            if inner.sum() < 100:
                continue
            seen.add(organ)
            tolerance = 3 + 1.5 * float(body.texture_hu[ID[organ]])
            assert np.median(hu[inner]) == pytest.approx(body.hu[tissue], abs=tolerance), (organ, z)
    assert len(seen) >= 14


def test_hu_lie_in_the_ranges_of_their_phase():
    for seed in range(8):
        body = patient(seed).body
        for tissue, (low, high) in {**COMMON, **PHASES[body.phase]}.items():
            assert low <= body.hu[tissue] <= high
    for organ in ("pulmonary artery", "superior cava"):  # contrast arrives by the veins of the arm
        assert min(PHASES["pulmonary"][organ]) > max(PHASES["pulmonary"]["aorta"])
    assert min(PHASES["arterial"]["aorta"]) > max(PHASES["portal venous"]["aorta"])


def test_dependent_lung_is_denser():
    gaps = []
    for seed in (0, 2, 3, 8):
        hu, labels = maps(drawn(seed, 0.0, 256))
        lung = ndimage.binary_erosion(labels == ID["lung"], iterations=2)
        assert -910 < np.median(hu[lung]) < -780
        rows = np.nonzero(lung)[0]
        low, high = np.percentile(rows, (20, 80))
        where = np.arange(256)[:, None] * np.ones(256)
        gaps.append(np.median(hu[lung & (where > high)]) - np.median(hu[lung & (where < low)]))
    assert min(gaps) > 5 and 15 < np.mean(gaps) < 80


def test_each_organ_lies_on_its_side():
    left = {"left ventricle": 1, "spleen": 1, "stomach": 1, "liver": -1, "superior vena cava": -1, "right atrium": -1}
    for seed in range(4):
        for z in (-135.0, -75.0, 5.0):
            _, labels = maps(drawn(seed, z, 128))
            middle = np.nonzero(labels == ID["spinal canal"])[1].mean()
            for organ, side in left.items():
                columns = np.nonzero(labels == ID[organ])[1]
                if columns.size > 20:
                    assert side * (columns.mean() - middle) > 0, (organ, seed, z)
            behind = np.nonzero(labels == ID["vertebra"])[0]
            front = np.nonzero(np.isin(labels, [ID["sternum"], ID["cartilage"]]))[0]
            assert not behind.size or not front.size or front.mean() < behind.mean()


def test_the_trachea_forks_into_two_bronchi():
    for seed in range(4):
        canvas_count = []
        for z in (60.0, -14.0):
            _, labels = maps(drawn(seed, z, 256))
            parts, n = ndimage.label(labels == ID["airway"])
            sizes = np.bincount(parts.ravel())[1:] * drawn(seed, z, 256).pixel_mm ** 2
            canvas_count.append(int((sizes > 60).sum()))  # mm²: a segment's bronchus has less
        assert canvas_count == [1, 2], seed


def test_neighbouring_slices_agree_and_distant_ones_do_not():
    ranks = []
    for seed in (1, 2, 3):
        base = drawn(seed, -40.0, 256, 3.0)
        body = base.labels > 0

        def agree(dz, seed=seed, base=base, body=body):
            a, b = (s.hu.clamp(-1000, 240)[body].numpy() for s in (base, drawn(seed, -40.0 + dz, 256, 3.0)))
            return np.corrcoef(a, b)[0, 1]

        ranks.append([agree(dz) for dz in (1.0, 6.0, 40.0)])
    near, middle, far = np.mean(ranks, axis=0)
    assert near > 0.98 and near > middle > far and far < 0.9


@pytest.mark.parametrize(("seed", "z"), [(6, -45.0), (2, 60.0), (10, -120.0)])
def test_a_finer_grid_shows_the_same_patient(seed, z):
    coarse, fine = drawn(seed, z), drawn(seed, z, 1024)
    gap = coarse.hu - torch.nn.functional.avg_pool2d(fine.hu, 2)
    inside = coarse.labels > 0
    # As in the abdomen; but the steps are larger, lung against tissue, and so are errors of edges.
    assert gap[inside].mean().abs() < 0.7
    assert gap[inside].abs().median() < 0.5
    soft = inside & (coarse.hu > -200)
    window = coarse.hu.clamp(-160, 240) - torch.nn.functional.avg_pool2d(fine.hu, 2).clamp(-160, 240)
    assert window[soft].square().mean().sqrt() < 12


@pytest.mark.parametrize(("seed", "z"), [(6, -45.0), (3, 70.0), (4, -120.0)])
def test_a_smaller_field_of_view_is_a_crop(seed, z):
    whole = drawn(seed, z)
    crop = patient(seed).slice(z, size=128, pixel_mm=whole.pixel_mm)
    assert (crop.hu - whole.hu[..., 192:320, 192:320]).abs().max() < 0.5  # float32 coordinates
    assert (crop.labels == whole.labels[..., 192:320, 192:320]).float().mean() > 0.999


def test_a_population_shows_every_organ():
    count, seeds = dict.fromkeys(ORGANS, 0), (*range(10), 19, 31)
    for seed in seeds:
        slices = (drawn(seed, z, 128) for z in (-135.0, -105.0, -75.0, -50.0, -20.0, 5.0, 50.0, 90.0))
        for organ in set().union(*(s.organs for s in slices)):
            count[organ] += 1
    missing = [organ for organ in ONLY_OF_THORAX if count[organ] == 0]
    assert not missing
    always = "lung, airway, pulmonary artery, pulmonary vein, superior vena cava, left ventricle, left atrium, aorta, "
    always += "rib, sternum, scapula, clavicle, humerus, oesophagus, liver, spleen, stomach, muscle, skin, vertebra"
    assert [organ for organ in always.split(", ") if count[organ] < 11] == []
    assert {patient(s).body.phase for s in seeds} == set(PHASES)


def test_half_of_the_patients_are_women():
    walls = [ThoraxWall(np.random.default_rng(seed)) for seed in range(64)]
    women = np.array([wall.female for wall in walls])
    assert 0.25 < women.mean() < 0.75  # four standard errors
    size = np.array([wall.cage for wall in walls])
    assert size[women].mean() < size[~women].mean() and size.std() > 5
    assert 330 <= min(w.field_of_view_mm for w in walls) and max(w.field_of_view_mm for w in walls) <= 480


def test_each_finding_has_its_share_of_patients():
    """Drawn 250 times into one patient's lungs; four standard errors of a share."""
    body, n = patient(0).body, 250
    many = [Findings(np.random.default_rng(seed), body.wall, body.lungs, body.hu) for seed in range(n)]
    for name, share in SHARES.items():
        assert sum(name in f.names for f in many) / n == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5)
    radii = [float(np.mean(axes)) for f in many for _, axes, *_ in f.nodules]
    assert 1.7 <= min(radii) < 2.5 and 10 < max(radii) <= 14.4  # 4 to 25 mm across, and 15 % either way
    sides = [sorted(f.effusions) for f in many if f.effusions]
    assert {tuple(s) for s in sides} == {(-1,), (1,), (-1, 1)}
    assert all(body.lungs.room(c[None])[0] > 0 for f in many for c, *_ in f.nodules)


def label_at(seed: int, point) -> str:
    """The label at a point (mm) of a patient."""
    canvas = patient(seed).slice(float(point[2]), size=256)
    j, i = (round(float(v) / canvas.pixel_mm + 127.5) for v in (point[1], point[0]))
    return ORGANS[canvas.labels[0, 0, j, i]]


def test_nodules_and_masses_lie_where_they_are_said_to():
    hit = []
    for seed in range(10):
        f = patient(seed).body.findings
        for centre, *_, glass, _ in f.nodules:
            hit.append(label_at(seed, centre) == ("ground-glass nodule" if glass else "nodule"))
        if f.mass is not None:
            hit.append(label_at(seed, f.mass[0]) == "lung mass")
    # the room that is known of a lung is rough: a few lie under the mediastinum's fat
    assert len(hit) > 10 and np.mean(hit) > 0.85


@pytest.mark.parametrize(("finding", "z"), [("consolidation", None), ("emphysema", 40.0), ("pleural effusion", -95.0),
                                            ("atelectasis", -80.0), ("pneumothorax", 20.0)])  # fmt: skip
def test_a_slice_shows_each_finding(finding, z):
    seed = first_with(lambda body: finding in body.findings.names)
    z = float(patient(seed).body.findings.areas[0][0][2]) if z is None else z
    hu, labels = maps(drawn(seed, z))
    there = labels == ID[finding]
    assert there.sum() * drawn(seed, z).pixel_mm ** 2 > 60  # mm²
    low, high = {"emphysema": (-1000, -900), "pneumothorax": (-1010, -950), "pleural effusion": (-5, 25)}.get(
        finding, (-20, 140)
    )
    assert low < np.median(hu[ndimage.binary_erosion(there)]) < high
    if finding == "pleural effusion":  # it gathers behind
        assert np.nonzero(there)[0].mean() > np.nonzero(labels == ID["lung"])[0].mean()
    if finding == "pneumothorax":  # air rises
        assert np.nonzero(there)[0].mean() < np.nonzero(labels == ID["lung"])[0].mean()


def test_pericardial_effusion_and_nodes_are_shown():
    seed = first_with(lambda body: body.mediastinum.heart.effusion_mm > 0)
    _, labels = maps(drawn(seed, -70.0, 256))
    assert (labels == ID["pericardial effusion"]).sum() > 100
    seed = first_with(lambda body: body.mediastinum.nodes)
    centre, *_ = patient(seed).body.mediastinum.nodes[0]
    _, labels = maps(patient(seed).slice(float(centre[2]), size=256))
    assert (labels == ID["lymph node"]).any()
