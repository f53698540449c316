"""Folders of images: every image once and in order, splits, classes, the same for any workers, nothing read in vain."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

import adpm
from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.run import pictures, stored
from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.data import DATA_SETS
from adpm.run.families import house
from adpm.run.folders import PARTITION, Files, files
from adpm.run.listing import listing, spread
from adpm.run.modes.train import make_trainer
from adpm.run.store import digest
from adpm.run.stored import in_batches
from tests.commands import ROOT, go, refused
from tests.pictures import folder, save, smooth

SMALL = ("network.model_channels=8", "network.channel_mult=(1,2)", "train.iterations=4", "train.batch_size=4")


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def build(name: str = "folder", **options):
    return DATA_SETS[name].build(**options)


def test_a_listing_has_every_image_once_in_one_order(tmp_path):
    for name in ("b/2.png", "b/10.JPG", "a/x/1.webp", "0.jpeg", "ü.png", "a/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * len(name))
    for name in (".hidden.png", "notes.txt", "b/Thumbs.db"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "c.png").write_bytes(b"")
    (tmp_path / "a" / "again").symlink_to(tmp_path)  # a circle
    found = listing(tmp_path)
    paths = [str(found.path(i).relative_to(tmp_path)) for i in range(len(found))]
    assert paths == ["0.jpeg", "ü.png", "a/0.png", "a/x/1.webp", "b/10.JPG", "b/2.png"]
    assert found.sizes.tolist() == [len(path) for path in paths] and found.top_names == ("a", "b")
    assert found.tops.tolist() == [-1, -1, 0, 0, 1, 1]
    before = found.digest()
    assert listing(tmp_path).digest() == before
    (tmp_path / "b" / "2.png").rename(tmp_path / "b" / "3.png")
    renamed = listing(tmp_path).digest()
    (tmp_path / "0.jpeg").write_bytes(b"")
    assert len({before, renamed, listing(tmp_path).digest()}) == 3


def test_images_are_those_of_the_files_in_order(tmp_path):
    arrays = folder(tmp_path, 20)
    data = build(folder=str(tmp_path))
    assert data.shape == (3, 8, 8) and data.levels == 256 and data.labels == {}
    test = spread(20, 4)
    assert np.flatnonzero(test).tolist() == [2, 7, 12, 17]
    channels_first = torch.from_numpy(arrays.transpose(0, 3, 1, 2).copy())
    assert torch.equal(data.split("train")[:], channels_first[~test])
    assert torch.equal(data.split("test")[torch.tensor([3, 0, 3])], channels_first[test][[3, 0, 3]])
    assert (len(data.split("train")), len(build(folder=str(tmp_path), held_out=7).split("test"))) == (16, 7)
    with pytest.raises(UserError, match="`held_out` = 25 leaves 0 of 20 images to train on"):
        build(folder=str(tmp_path), held_out=25)
    assert torch.allclose(data.scaled(data.split("test")[:1]), -1 + channels_first[2:3] / 127.5, atol=1e-6)


def test_folders_are_classes(tmp_path):
    folder(tmp_path, 20, classes=2)
    data = build(folder=str(tmp_path))
    assert data.labels["test"].tolist() == [0, 0, 1, 1]
    assert data.labels["train"].tolist() == [0] * 8 + [1] * 8
    save(tmp_path / "loose.png", smooth(0, 8, 8))
    assert build(folder=str(tmp_path)).labels == {}, "one image has no class"


def test_train_and_val_are_splits_with_the_classes_of_train(tmp_path):
    folder(tmp_path / "train", 6, classes=3)
    folder(tmp_path / "val", 4, classes=2)
    data = build(folder=str(tmp_path))
    assert (len(data.split("train")), len(data.split("test"))) == (6, 4)
    assert data.labels["train"].tolist() == [0, 0, 1, 1, 2, 2] and data.labels["test"].tolist() == [0, 0, 1, 1]
    assert torch.equal(data.split("test")[2:3], torch.from_numpy(smooth(1, 8, 8).transpose(2, 0, 1).copy())[None])
    with pytest.raises(UserError, match="`held_out` = 2 is for a folder without splits; here the folders 'train' and"):
        build(folder=str(tmp_path), held_out=2)
    (tmp_path / "val" / "b").rename(tmp_path / "val" / "other")
    assert build(folder=str(tmp_path)).labels.keys() == {"train"}, "a class that train does not have"


def test_faces_have_their_published_partition(tmp_path):
    parts = {f"{i:06d}.jpg": i % 3 for i in range(1, 8)}
    for i, name in enumerate(parts):
        save(tmp_path / "img_align_celeba" / name, smooth(i, 218, 178), quality=95)
    (tmp_path / PARTITION).write_text("".join(f"{name} {part}\n" for name, part in parts.items()))
    data = build("celeba64", folder=str(tmp_path), size=64)
    assert data.shape == (3, 64, 64)
    found = {split: [images.found.name(int(n)) for n in images.numbers] for split, images in data.splits.items()}
    assert found == {
        "train": ["000003.jpg", "000006.jpg"],
        "valid": ["000001.jpg", "000004.jpg", "000007.jpg"],
        "test": ["000002.jpg", "000005.jpg"],
    }
    face = pictures.Reading(3, True, (218, 178), 64, "face").read(tmp_path / "img_align_celeba" / "000002.jpg")
    assert np.array_equal(data.split("test")[:1][0], face)
    (tmp_path / PARTITION).write_text("000001.jpg 0\n")
    with pytest.raises(UserError, match=f"{PARTITION}' does not say what '000002.jpg' is for"):
        build("celeba64", folder=str(tmp_path), size=64)
    (tmp_path / PARTITION).unlink()
    assert build("celeba64", folder=str(tmp_path), size=64).splits.keys() == {"train", "test"}


def test_scenes_are_resized_and_cut(tmp_path):
    for i in range(5):
        save(tmp_path / f"{i}.webp", smooth(i, 20, 31))
    data = build("lsun", folder=str(tmp_path), size=10)
    how = pictures.Reading(3, True, (20, 31), 10)
    assert data.name == "lsun" and np.array_equal(data.split("test")[:1][0], how.read(tmp_path / "2.webp"))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_same_for_any_number_of_workers(tmp_path, workers):
    arrays = folder(tmp_path, 12)
    stored = files(tmp_path, workers=workers)
    state = torch.random.get_rng_state()
    batches = [torch.tensor(numbers) for numbers in ([3, 1], [0], [11, 11, 2], [5], [7, 6], [4, 10])]
    found = list(in_batches(stored, batches))
    assert all(np.array_equal(a, arrays[b.numpy()].transpose(0, 3, 1, 2)) for a, b in zip(found, batches, strict=True))
    assert torch.equal(state, torch.random.get_rng_state()), "torch's own generator is where it was"
    (tmp_path / "0004.png").write_bytes(b"text")
    with pytest.raises(UserError, match=r"^image '.*0004.png' is no PNG, JPEG or WebP file"):
        list(in_batches(stored, batches))


def test_a_worker_that_the_system_ends_is_told(tmp_path, monkeypatch):
    folder(tmp_path, 4)
    monkeypatch.setattr(Files, "read", lambda self, numbers: os._exit(9))
    with pytest.raises(UserError, match=r"ended by the system, .* fewer by config.data.workers \(now 1\)"):
        list(in_batches(files(tmp_path, workers=1), [torch.tensor([0])]))


def test_training_is_that_on_the_same_images_in_memory(tmp_path):
    """Bit for bit, with two workers, and when it was stopped and went on."""
    arrays = folder(tmp_path / "images", 20)
    test = spread(20, 4)
    np.savez(tmp_path / "train.npz", images=arrays[~test])
    np.savez(tmp_path / "test.npz", images=arrays[test])
    of_folder = ("data.name=folder", f"data.folder={tmp_path / 'images'}", "data.workers=2")
    of_arrays = ("data.name=arrays", f"data.file={tmp_path / 'train.npz'}", f"data.test_file={tmp_path / 'test.npz'}")
    for name, fields in {"files": of_folder, "memory": of_arrays}.items():
        assert go(tmp_path / name, "digits", "train", "network.pretrained=", *SMALL, *fields) == 0
    constant = ("digits", "train", "network.pretrained=", *SMALL, *of_folder, "train.schedule=constant")
    for iterations in (2, 4):
        assert go(tmp_path / "parts", *constant, f"train.iterations={iterations}") == 0
    assert go(tmp_path / "whole", *constant) == 0
    runs = ("files", "memory", "parts", "whole")
    tensors = {name: read_weights(tmp_path / name / "weights.safetensors") for name in runs}
    for one, other in (("files", "memory"), ("parts", "whole")):
        assert all(torch.equal(value, tensors[other][key]) for key, value in tensors[one].items())


def session(tmp_path: Path, images: Path, **fields) -> Session:
    config, _ = load_config("configs/digits.py")
    house().table.update(
        config, {"network.pretrained": "", "data.name": "folder", "data.folder": str(images), **fields}
    )
    return Session.make(config, tmp_path / "run", house(), trains=True)


def test_a_check_before_saving_starts_no_workers_anew(tmp_path, monkeypatch):
    """It asks for the next iteration's images, which that iteration then takes; one permutation serves an epoch."""
    folder(tmp_path / "images", 20)
    begun, made = [], stored.DataLoader
    monkeypatch.setattr(stored, "DataLoader", lambda *args, **rest: begun.append(1) or made(*args, **rest))
    fields = {"train.batch_size": 4, "network.model_channels": 8, "data.workers": 1}
    with closing(make_trainer(session(tmp_path / "a", tmp_path / "images", **fields))) as trainer:
        for _ in range(3):
            trainer.step()
            trainer.check()
            again = trainer._examples(trainer.iteration)
            assert all(
                torch.equal(a, b) for a, b in zip(again[:2], trainer._examples(trainer.iteration)[:2], strict=True)
            )
    assert len(begun) == 1


def test_half_of_the_training_images_are_mirrored(tmp_path):
    """A trained network sees both, drawn anew; nothing but training does."""
    folder(tmp_path / "images", 20)
    fields = {"train.batch_size": 64, "network.model_channels": 8, "network.channel_mult": (1, 2)}
    plain, flipped = (session(tmp_path / n, tmp_path / "images", **fields, **{"data.flips": n == "b"}) for n in "ab")
    shares = []
    with closing(make_trainer(plain)) as one, closing(make_trainer(flipped)) as other:
        for i in range(8):
            a, b = one._examples(i), other._examples(i)
            same = (a[0] == b[0]).flatten(1).all(1)
            mirrored = (a[0].flip(-1) == b[0]).flatten(1).all(1)
            assert torch.all(same ^ mirrored) and torch.equal(a[1], b[1])
            shares.append(mirrored.double().mean())
    assert abs(np.mean(shares) - 0.5) < 0.1 and len(set(map(float, shares))) > 1
    assert torch.equal(plain.data.split("test")[:], flipped.data.split("test")[:])


def test_mean_and_variance_are_taken_once(tmp_path, monkeypatch, capsys):
    arrays = folder(tmp_path / "images", 20)[~spread(20, 4)]
    x = torch.from_numpy(arrays.transpose(0, 3, 1, 2) / 127.5 - 1)
    first = session(tmp_path, tmp_path / "images").source("train")
    assert "reading all 16 train images" in capsys.readouterr().out
    assert torch.allclose(first.mean.double(), x.mean(0), atol=1e-6)
    assert first.variance == pytest.approx(float((x - x.mean(0)).square().mean()), rel=1e-6)
    monkeypatch.setattr(Files, "read", lambda self, numbers: pytest.fail("read again"))
    again = session(tmp_path, tmp_path / "images").source("train")
    assert torch.equal(again.mean, first.mean) and again.variance == first.variance and again.size == 16
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    mirrored = session(tmp_path, tmp_path / "images", **{"data.low": 0.0}).source("train")
    assert mirrored.variance == pytest.approx(first.variance / 4, rel=1e-5), "another range is another record"


def test_nothing_is_read_where_shape_and_range_are_enough(tmp_path, monkeypatch):
    """Samples of a trained network need no image but the first, whose size says the shape."""
    folder(tmp_path / "images", 20)
    fields = ("data.name=folder", f"data.folder={tmp_path / 'images'}")
    assert go(tmp_path / "run", "digits", "train", "network.pretrained=", *SMALL, *fields) == 0
    monkeypatch.setattr(Files, "read", lambda self, numbers: pytest.fail("read"))
    few = ("rule.name=small", "trajectory.name=even", "trajectory.steps=2", "sampling.samples=2")
    assert go(tmp_path / "run", "digits", "sample", "network.pretrained=", *SMALL, *fields, *few) == 0


def test_a_model_from_a_config_reads_images_when_asked(tmp_path):
    arrays = folder(tmp_path / "images", 20)
    model = adpm.load(
        "configs/toy.py",
        tmp_path / "run",
        data__name="folder",
        data__folder=str(tmp_path / "images"),
        denoiser__name="gaussian",
    )
    moments = model.measure(draws=8, times=4)
    x = arrays[~spread(20, 4)].transpose(0, 3, 1, 2) / 127.5 - 1
    assert moments.table.data_variance == pytest.approx(float(x.var(0).mean()), rel=1e-5)


def test_what_is_wrong_with_a_folder_is_said_before_any_work(tmp_path, capsys):
    base = ("digits", "train", "network.pretrained=", "data.name=folder")
    places = {name: tmp_path / name for name in ("empty", "texts", "mixed", "torn")}
    for place in places.values():
        place.mkdir()
    (places["texts"] / "a.txt").write_text("a")
    save(places["mixed"] / "a.png", smooth(0, 8, 8))
    save(places["mixed"] / "b.png", smooth(0, 9, 8))
    (places["torn"] / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    told = {
        "": "data set 'folder' needs config.data.folder, a folder of images",
        str(tmp_path / "gone"): f"folder '{tmp_path / 'gone'}' does not exist (config.data.folder)",
        str(places["texts"] / "a.txt"): "is no folder (config.data.folder)",
        str(places["empty"]): "holds no images (.png, .jpg, .jpeg, .webp); it is empty",
        str(places["texts"]): "holds no images (.png, .jpg, .jpeg, .webp); it has 1 other files, such as 'a.txt'",
        str(places["torn"]): "a.png' ",
    }
    for place, words in told.items():
        assert words in refused(capsys, tmp_path / "run", *base, f"data.folder={place}")
        assert not (tmp_path / "run").exists()
    mixed = (*base, *SMALL, f"data.folder={places['mixed']}", "data.held_out=1")
    told_mixed = refused(capsys, tmp_path / "run", *mixed)
    assert "b.png' cannot be used: it is 8 x 9, and the first image is 8 x 8: config.data.size" in told_mixed
    one = f"data.folder={places['mixed']}"
    assert "config.data.channels = 2 must be 1 or 3" in refused(capsys, tmp_path, *base, one, "data.channels=2")
    assert "config.data.crop = 'face' goes with" in refused(capsys, tmp_path, *base, one, "data.crop=face")
    wrong = refused(capsys, tmp_path, *base, one, "data.size=8", "data.crop=center")
    assert "config.data.crop = 'center' is unknown (did you mean 'centre'?)" in wrong


def test_keys_follow_the_list_of_files_and_not_its_place(tmp_path):
    for name in "ab":
        folder(tmp_path / name, 10)
    folder(tmp_path / "c", 11)
    found = [digest(session(tmp_path, tmp_path / name).data.content) for name in "abc"]
    assert found[0] == found[1] != found[2]
