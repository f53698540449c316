"""ImageNet 64 in its published batches: unpacked once, mapped and not loaded, labels from 0."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from adpm.errors import UserError
from adpm.run import imagenet64
from adpm.run.data import DATA_SETS
from adpm.run.stored import in_batches
from tests.commands import ROOT, SMALL, go, refused
from tests.pictures import imagenet

NETWORK = ("network.model_channels=8", "network.channel_mult=(1,2)", "train.iterations=2", "train.batch_size=4")


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("packed", ["npz", "pickle"])
def test_batches_are_unpacked_once(tmp_path, packed, monkeypatch, capsys):
    batches = imagenet(tmp_path, packed=packed)
    data = DATA_SETS["imagenet64"].build(folder=str(tmp_path))
    assert data.shape == (3, 64, 64) and not (tmp_path / "unpacked").exists(), "its shape needs no reading"
    train = np.concatenate([batches[name] for name in imagenet64.TRAIN]).reshape(-1, 3, 64, 64)
    assert torch.equal(data.split("train")[:], torch.from_numpy(train))
    assert torch.equal(
        data.split("test")[torch.tensor([2, 0])], torch.from_numpy(batches["val_data"].reshape(-1, 3, 64, 64)[[2, 0]])
    )
    labels = [(7 * k + i) % 1000 for k in range(11) for i in range(3)]
    assert data.labels["train"].tolist() == labels[:30] and data.labels["test"].tolist() == labels[30:]
    assert "unpacking 10 batches of ImageNet 64, once" in capsys.readouterr().out
    for name in (*imagenet64.TRAIN, *imagenet64.TEST):
        (tmp_path / (f"{name}.npz" if packed == "npz" else name)).unlink()
    assert imagenet64.missing(tmp_path) == "", "what is unpacked is enough"
    again = DATA_SETS["imagenet64"].build(folder=str(tmp_path), workers=2)
    numbers = [torch.tensor([29, 0, 5]), torch.tensor([8])]
    found = list(in_batches(again.split("train"), numbers))
    assert all(np.array_equal(a, train[b.numpy()]) for a, b in zip(found, numbers, strict=True))
    (tmp_path / "unpacked" / "val_data-images.npy").write_bytes(b"text")
    with pytest.raises(UserError, match="val_data-images.npy' is damaged .*; remove it, and it is unpacked again"):
        DATA_SETS["imagenet64"].build(folder=str(tmp_path)).split("test")


def test_a_mapped_set_takes_no_memory_of_its_own(tmp_path):
    """128 MB of images; one batch of them is asked for."""
    place = tmp_path / "unpacked"
    place.mkdir()
    for k, name in enumerate((*imagenet64.TRAIN, *imagenet64.TEST)):
        mapped = np.lib.format.open_memmap(place / f"{name}-images.npy", "w+", np.uint8, (950, 3, 64, 64))
        mapped[5] = k
        np.save(place / f"{name}-labels.npy", np.zeros(950, np.int64))
    before = _memory()
    stored = imagenet64.images_of(tmp_path, "train", 0)
    assert len(pickle.dumps(stored)) < 10_000, "another process maps the files itself"
    found = pickle.loads(pickle.dumps(stored))[torch.arange(5, 9500, 950)]
    assert found[:, 0, 0, 0].tolist() == list(range(10)) and _memory() - before < 20e6


def _memory() -> int:
    """Bytes of this process that are not of mapped files."""
    resident, shared = (int(n) for n in Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def test_what_is_missing_or_no_batch_is_told(tmp_path, capsys):
    command = ("digits", "train", "network.pretrained=", "data.name=imagenet64", f"data.folder={tmp_path / 'images'}")
    assert "ImageNet 64 needs a folder of its batches" in refused(capsys, tmp_path / "run", *command)
    imagenet(tmp_path / "images")
    (tmp_path / "images" / "train_data_batch_7.npz").unlink()
    assert "lacks train_data_batch_7 of ImageNet 64" in refused(capsys, tmp_path / "run", *command)
    wrong = {
        "shape": ({"data": np.zeros((2, 3072), np.uint8), "labels": np.array([1, 1])}, r"not uint8 \[n, 12288\]"),
        "zero": ({"data": np.zeros((2, 12288), np.uint8), "labels": np.array([0, 1])}, "0 to 1, not 1 to 1000"),
        "few": ({"data": np.zeros((2, 12288), np.uint8), "labels": np.array([1])}, "for 2 images"),
        "none": ({"data": np.zeros((2, 12288), np.uint8)}, "labels"),
    }
    for arrays, told in wrong.values():
        np.savez(tmp_path / "images" / "train_data_batch_7.npz", **arrays)
        with pytest.raises(
            UserError, match=f"train_data_batch_7.npz' is no batch of ImageNet 64 as published: .*{told}"
        ):
            imagenet64.images_of(tmp_path / "images", "train", 0)
    (tmp_path / "images" / "train_data_batch_7.npz").unlink()
    for content in (pickle.dumps({"data": os.system}), pickle.dumps([1]), b"", b"\x80\x04]"):
        (tmp_path / "images" / "train_data_batch_7").write_bytes(content)
        with pytest.raises(UserError, match="train_data_batch_7' is no batch of ImageNet 64 as published"):
            imagenet64.images_of(tmp_path / "images", "train", 0)


def test_a_network_is_trained_on_it_and_samples(tmp_path):
    """Three levels and two iterations; the samples ask for no image."""
    imagenet(tmp_path / "images")
    fields = ("network.pretrained=", "data.name=imagenet64", f"data.folder={tmp_path / 'images'}", *NETWORK)
    assert go(tmp_path / "run", "digits", "train", *fields, "data.flips=True") == 0
    shutil.rmtree(tmp_path / "images" / "unpacked")
    assert go(tmp_path / "run", "digits", "sample", *fields, *SMALL) == 0
    assert not (tmp_path / "images" / "unpacked").exists()
