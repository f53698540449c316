"""Images in one file: the values in it, whichever way they are stored, and what is said of files that hold none."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import adpm
from adpm.errors import UserError
from adpm.run.arrays import missing, read_idx, read_images
from adpm.run.data import DATA_SETS
from tests.commands import go, refused

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 5), dtype=np.uint8)
LABELS = np.arange(20, dtype=np.uint8) % 10
SMALL = ("network.model_channels=8", "network.channel_mult=(1,2)", "train.iterations=2", "train.batch_size=4")


def idx(array: np.ndarray, code: int = 8) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def stored(tmp_path):
    """The same images in all ways."""
    np.savez(tmp_path / "both.npz", images=IMAGES, labels=LABELS)
    np.save(tmp_path / "plain.npy", IMAGES[..., None])
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS)))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "labelled"),
    [
        ("both.npz", True),
        ("plain.npy", False),
        ("train-images-idx3-ubyte", True),
        ("train-images-idx3-ubyte.gz", True),
    ],
)
def test_every_format_holds_the_same_images(stored, name, labelled):
    images, labels = read_images(stored / name)
    assert torch.equal(images, torch.from_numpy(IMAGES)[:, None])
    assert (labels is not None) == labelled and (not labelled or labels.tolist() == LABELS.tolist())
    images += 1  # a copy of its own


def test_the_last_images_are_for_test_unless_they_have_a_file(stored):
    build = DATA_SETS["arrays"].build
    fifth, three = build(file=str(stored / "both.npz")), build(file=str(stored / "both.npz"), held_out=3)
    assert (len(fifth.split("train")), len(fifth.split("test"))) == (16, 4)
    assert torch.equal(three.split("test")[:, 0], torch.from_numpy(IMAGES[17:])) and three.levels == 256
    assert three.labels["test"].tolist() == LABELS[17:].tolist() and three.shape == (1, 6, 5)
    own = build(file=str(stored / "both.npz"), test_file=str(stored / "plain.npy"))
    assert len(own.split("train")) == len(own.split("test")) == 20 and own.labels == {}
    assert len({fifth.digest, three.digest, own.digest}) == 2, "the same images have the same digest"
    colour = np.random.default_rng(1).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    np.save(stored / "colour.npy", colour)
    assert torch.equal(read_images(stored / "colour.npy")[0][1, 2], torch.from_numpy(colour[1, :, :, 2]))


def test_files_that_hold_no_images_are_told(stored):
    wrong = {
        "short": (idx(IMAGES)[:-1], "claims"),
        "long": (idx(IMAGES) + b"x", "more"),
        "real": (idx(IMAGES, code=13), "unsigned bytes"),
        "page": (b"<!DOCTYPE html><html>", "HTML page"),
        "empty": (b"", "empty"),
        "torn.gz": (gzip.compress(idx(IMAGES))[:-30], "torn.gz"),
        "many": (struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2), "claims"),
    }
    for name, (content, told) in wrong.items():
        (stored / name).write_bytes(content)
        with pytest.raises(UserError, match=told) as caught:
            read_images(stored / name)
        assert name in str(caught.value)
    for array, told in ((IMAGES.astype(np.float32), "uint8"), (IMAGES[0], "n, H, W"), (IMAGES[:, :, :, None], None)):
        np.save(stored / "x.npy", array)
        if told:
            with pytest.raises(UserError, match=told):
                read_images(stored / "x.npy")
    np.savez(stored / "other.npz", pictures=IMAGES)
    with pytest.raises(UserError, match="it has the arrays pictures, not `images`"):
        read_images(stored / "other.npz")
    np.savez(stored / "few.npz", images=IMAGES, labels=LABELS[:3])
    with pytest.raises(UserError, match="labels"):
        read_images(stored / "few.npz")
    assert "data.file" in missing("") and "nowhere" in missing("nowhere") and missing(str(stored / "x.npy")) == ""


def test_splits_that_leave_nothing_and_shapes_that_differ_are_refused(stored):
    build = DATA_SETS["arrays"].build
    with pytest.raises(UserError, match="`held_out` = 20 leaves 0 of 20 images"):
        build(file=str(stored / "both.npz"), held_out=20)
    np.save(stored / "wide.npy", np.zeros((3, 6, 7), np.uint8))
    with pytest.raises(UserError, match="`test_file` = .*wide.npy' has images of shape"):
        build(file=str(stored / "both.npz"), test_file=str(stored / "wide.npy"))


def test_idx_has_any_number_of_dimensions(stored):
    (stored / "labels").write_bytes(idx(LABELS))
    assert np.array_equal(read_idx(stored / "labels"), LABELS)


def test_a_workdir_belongs_to_the_images_and_not_to_their_place(tmp_path, capsys):
    images = np.repeat(IMAGES[:, :4, :4], 2, axis=1).repeat(2, axis=2)
    np.savez(tmp_path / "a.npz", images=images)
    np.savez(tmp_path / "b.npz", images=images)
    np.savez(tmp_path / "c.npz", images=255 - images)
    config = ("digits", "train", "network.pretrained=", "data.name=arrays", *SMALL)
    for name in ("a", "b"):
        assert go(tmp_path / "run", *config, f"data.file={tmp_path / name}.npz") == 0
    told = refused(capsys, tmp_path / "run", *config, f"data.file={tmp_path / 'c'}.npz")
    assert "images" in told
    told = refused(capsys, tmp_path / "other", "digits", "sample", "data.name=arrays")
    assert "config.data.file" in told


def test_shipped_mnist_weights_remove_noise(tmp_path: Path) -> None:
    """On blurred strokes, which are no MNIST: less than a third of the noise is left at log-SNR 2."""
    pictures = np.zeros((40, 28, 28), dtype=np.uint8)
    for i in range(40):
        pictures[i, 5 + i % 6 : 23, 12 + i % 5 : 15 + i % 5] = 255
    np.savez(tmp_path / "strokes.npz", images=pictures)
    model = adpm.load("configs/mnist.py", tmp_path / "run", data__file=str(tmp_path / "strokes.npz"), data__held_out=8)
    x0, t = model.images["train"], 150.0
    alpha, sigma = float(model.process.alpha(t)), float(model.process.sigma(t))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = model.denoise(alpha * x0 + sigma * noise, t).x0
    assert float((found - x0).square().mean()) < 0.1 * (sigma / alpha) ** 2
