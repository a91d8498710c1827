"""Images that are encoded once: order, files, and what makes a file another one."""

import pytest
import torch
from torch.utils.data import Dataset

from ldctlib.data.encoded import EncodedImages, encoded_once
from ldctlib.errors import ParameterError


class Numbers(Dataset):
    asked = 0

    def __getitem__(self, n):
        self.asked += 1
        return {"x": torch.full((1, 4), float(n))}


def doubled(batch):
    return {"y": (2 * batch["x"]).half(), "id": batch["x"][:, 0, 0].to(torch.uint8)}


def test_every_epoch_visits_each_image_once_in_its_own_order():
    data = EncodedImages({"id": torch.arange(7, dtype=torch.uint8)}, seed=3)
    epochs = [[int(data[7 * e + i]["id"]) for i in range(7)] for e in range(3)]
    assert all(sorted(order) == list(range(7)) for order in epochs) and epochs[0] != epochs[1]
    assert [int(data[n]["id"]) for n in (8, 2, 8)] == [epochs[1][1], epochs[0][2], epochs[1][1]]


def test_images_are_encoded_once_and_read_afterwards(tmp_path):
    samples = Numbers()
    first = encoded_once(samples, 10, doubled, identity={"a": 1}, folder=tmp_path, chunk=4)
    again = encoded_once(samples, 10, doubled, identity={"a": 1}, folder=tmp_path, chunk=4)
    assert samples.asked == 10
    assert first["y"][:, 0, 0].tolist() == [2.0 * n for n in range(10)]
    assert all(torch.equal(first[k], again[k]) and first[k].dtype == again[k].dtype for k in first)
    encoded_once(samples, 10, doubled, identity={"a": 2}, folder=tmp_path, chunk=4)
    assert samples.asked == 20


def test_tensors_have_one_length():
    with pytest.raises(ParameterError, match="one length"):
        EncodedImages({"a": torch.zeros(3), "b": torch.zeros(4)})
