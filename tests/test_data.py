"""Data sets: values, splits that do not leak, scaling that can be undone, and pictures of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from adpm.errors import UserError
from adpm.families import Kind
from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.data import DATA_SETS, DataFacts, DataSet
from adpm.run.families import house
from adpm.run.report import image_grid, save_png


def build(name: str, **options) -> DataSet:
    return DATA_SETS[name].build(**options)


def test_digits_are_all_of_them_once():
    data, bunch = build("digits"), load_digits()
    assert data.levels == 17 and data.shape == (1, 8, 8)
    assert (len(data.split("train")), len(data.split("test"))) == (1438, 359)
    ours = torch.cat([data.split("train"), data.split("test")]).reshape(-1, 64).numpy().astype(int)
    theirs = bunch.images.reshape(-1, 64).astype(int)
    assert sorted(map(tuple, ours)) == sorted(map(tuple, theirs))
    test = [i for i in range(len(theirs)) if i % 5 == 4]
    assert np.array_equal(data.split("test").reshape(-1, 64).numpy(), theirs[test])
    assert np.array_equal(data.labels["test"].numpy(), bunch.target[test])


def test_levels_scale_exactly_and_back():
    data = build("digits")
    x = data.scaled(torch.arange(17, dtype=torch.uint8))
    assert torch.equal(x, -1 + torch.arange(17) / 8)
    assert torch.equal((data.to_unit(x) * 16).round(), torch.arange(17.0))


def test_samples_beyond_the_range_are_kept_as_its_ends():
    data = DataSet("toy", {}, levels=17, low=-1.0, high=3.0, labels={})
    samples = np.array([-1.7, -1.0, 1.0, 3.0, 3.2], dtype=np.float32)
    np.testing.assert_array_equal(data.encode(samples), np.array([0, 0, 128, 255, 255], dtype=np.uint8))


def test_patches_come_from_their_own_side_of_the_photographs():
    data = build("patches", size=32, stride=16)
    photographs = [np.asarray(p) for p in load_sample_images().images]
    border = photographs[0].shape[1] * 3 // 4
    assert data.levels == 256 and data.shape == (3, 32, 32)
    first = photographs[0][:32, :32].transpose(2, 0, 1)
    assert np.array_equal(data.split("train")[0].numpy(), first)
    crops = [
        photograph[top : top + 32, left : left + 32].transpose(2, 0, 1).tobytes()
        for photograph in photographs
        for top in range(0, 427 - 31, 16)
        for left in range(border, 640 - 31, 16)
    ]
    held_out = data.split("test").numpy()
    assert sorted(crops) == sorted(image.tobytes() for image in held_out)
    assert abs(held_out[:32].mean() / held_out.mean() - 1.0) < 0.2, "the first are of all of it, not of the sky"
    per_photograph = [((427 - 32) // 16 + 1) * ((width - 32) // 16 + 1) for width in (border, 640 - border)]
    assert (len(data.split("train")), len(data.split("test"))) == (2 * per_photograph[0], 2 * per_photograph[1])
    top, left = (427 - 32) // 16 * 16, (border - 32) // 16 * 16
    assert left + 32 <= border, "the last crop of a row ends before the held-out columns"
    last = photographs[0][top : top + 32, left : left + 32].transpose(2, 0, 1)
    assert np.array_equal(data.split("train")[per_photograph[0] - 1].numpy(), last)


def test_sizes_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="^`size` = 500 does not fit the photographs; 1 to 160 pixels do"):
        build("patches", size=500)
    monkeypatch.chdir(__file__.rsplit("/tests/", 1)[0])
    config = load_config("configs/patches.py")[0]
    config.data.size = 500
    with pytest.raises(UserError, match="^config.data.size = 500 does not fit the photographs"):
        Session.make(config, tmp_path, house(), trains=True)
    config = load_config("configs/digits.py")[0]
    config.data.size = 28
    with pytest.raises(UserError, match="config.data.size = 28 does not go with config.data.name = 'digits'"):
        Session.make(config, tmp_path, house())


def test_a_data_set_of_the_wrong_shape_is_refused(tmp_path):
    def flat(**options):
        return DataSet("flat", {"train": torch.zeros(4, 9), "test": torch.zeros(2, 9)}, 0, -1.0, 1.0, {})

    families = house({"data": {"flat": Kind(flat, "vectors", DataFacts())}})
    config = load_config("configs/toy.py")[0]
    config.data.name = "flat"
    with pytest.raises(UserError, match=r"shape \(9,\).*\(C, H, W\)"):
        Session.make(config, tmp_path, families)


def test_two_members_of_one_name_are_a_mistake_of_ours():
    with pytest.raises(ValueError, match=r"family data: \['digits'\] registered twice"):
        house({"data": {"digits": DATA_SETS["digits"]}})


def test_the_source_states_the_split_exactly(tmp_path, monkeypatch):
    monkeypatch.chdir(__file__.rsplit("/tests/", 1)[0])
    session = Session.make(load_config("configs/digits.py")[0], tmp_path, house())
    source = session.source("train")
    x = session.data.scaled(session.data.split("train")).double()
    assert torch.allclose(source.mean.double(), x.mean(0), atol=1e-6)
    assert source.variance == pytest.approx(float((x - x.mean(0)).square().mean()), rel=1e-9)


def test_grids_put_every_image_in_its_place(tmp_path):
    images = torch.rand(5, 1, 2, 3)
    grid = image_grid(images, columns=2)
    assert grid.shape == (1, 3 * 3 + 1, 2 * 4 + 1)
    assert torch.equal(grid[:, 1:3, 1:4], images[0]) and torch.equal(grid[:, 4:6, 5:8], images[3])
    assert torch.all(grid[:, 0] == 1) and torch.all(grid[:, 7:, 4:] == 1), "gaps and unused places are white"
    save_png(tmp_path / "grid.png", grid, min_side=40)
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (40, 36), "enlarged by a whole factor"
    assert picture[4, 4] == round(float(grid[0, 1, 1]) * 255)
