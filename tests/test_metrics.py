"""Distances: the formula against dense linear algebra, known energies, feature spaces, a classifier of digits."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.nn.checkpoint import read_header
from adpm.nn.classifier import DigitFeatures
from adpm.run.data import digits
from adpm.run.metrics import CLASSIFIER, FEATURES, FrechetDistance, energy_distance

ROOT = Path(__file__).parent.parent
PLACES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPE = (1, 2, 2)


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def formula(a: np.ndarray, b: np.ndarray) -> float:
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(ca @ cb).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root))


def image_sets(seed: int = 0) -> list[torch.Tensor]:
    """Two sets of images of SHAPE whose pixels are correlated."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((500, 4)) @ rng.standard_normal((4, 4))
    b = rng.standard_normal((300, 4)) @ rng.standard_normal((4, 4)) + 0.3
    return [torch.tensor(x).reshape(-1, *SHAPE) for x in (a, b)]


def pixel_distance(real, **options) -> FrechetDistance:
    return FrechetDistance(FEATURES["pixels"].build(SHAPE), real, **options)


def flat(images: torch.Tensor) -> np.ndarray:
    return images.flatten(1).double().numpy()


@pytest.mark.parametrize("device", PLACES)
def test_the_distance_is_the_formula_whatever_the_batches(device):
    real, generated = image_sets()
    for batch_size in (500, 7):
        distance = pixel_distance(real, batch_size=batch_size, device=device)
        assert distance(generated) == pytest.approx(formula(flat(real), flat(generated)), rel=1e-9)
        assert distance(real) == pytest.approx(0.0, abs=1e-9)


def test_every_call_is_about_its_own_images():
    """What was asked before, the floor included, leaves no trace: the reference's statistics are the same each time."""
    real, generated = image_sets()
    distance = pixel_distance(real)
    first, bottom = distance(generated), distance.floor(100, seed=0)
    other = image_sets(1)[1]
    assert distance(other) == pytest.approx(formula(flat(real), flat(other)), rel=1e-9)
    assert (distance(generated), distance.floor(100, seed=0)) == (first, bottom)


def test_sums_are_in_float64():
    """Float32 images far from the origin: a mean of 100 and standard deviations of 0.01."""
    real, generated = (100.0 + 0.01 * images.float() for images in image_sets())
    assert pixel_distance(real)(generated) == pytest.approx(formula(flat(real), flat(generated)), rel=1e-5)


def test_the_reference_may_come_in_batches():
    real, generated = image_sets()
    whole, parts = pixel_distance(real), pixel_distance(part for part in real.split(130))
    assert parts(generated) == whole(generated) and parts.floor(50, seed=3) == whole.floor(50, seed=3)


def test_the_floor_is_the_distance_of_real_images_drawn_with_replacement():
    """Independent draws: n of them score E[FD] ~ c/n, so that 16 times as many score about a sixteenth."""
    real, _ = image_sets()
    distance = pixel_distance(real)
    few, many = (np.mean([distance.floor(size, seed) for seed in range(60)]) for size in (50, 800))
    assert few / many == pytest.approx(16, rel=0.3)
    index = torch.randint(500, (50,), generator=torch.Generator().manual_seed(7))
    assert distance.floor(50, seed=7) == pytest.approx(formula(flat(real), flat(real[index])), rel=1e-9)


def test_one_image_has_no_covariance():
    real, generated = image_sets()
    with pytest.raises(UserError, match="at least two images on either side, not 1"):
        pixel_distance(real[:1])
    distance = pixel_distance(real)
    with pytest.raises(UserError, match="at least two images on either side, not 1"):
        distance(generated[:1])


def test_digits_give_what_torchmetrics_gives():
    """One reference for many questions, or a new metric for each: the same numbers, which it rounds to float32."""
    data = digits()
    real, test = data.scaled(data.split("train")), data.scaled(data.split("test"))
    features = FEATURES["digits"].build(data.shape)
    distance = FrechetDistance(features, real)
    for images in (test, -test, test):
        metric = FrechetInceptionDistance(feature=features)
        for part in real.split(512):
            metric.update(part, real=True)
        metric.update(images, real=False)
        assert distance(images) == pytest.approx(float(metric.compute()), rel=1e-7)
    with torch.no_grad():
        expected = formula(flat(features(real)), flat(features(test)))
    assert distance(test) == pytest.approx(expected, rel=1e-5)


class FakeInceptionV3(nn.Module):
    """What pytorch-fid's class of this name takes and gives; the features are the channels' means, repeated."""

    BLOCK_INDEX_BY_DIM = {64: 0, 192: 1, 768: 2, 2048: 3}

    def __init__(
        self, output_blocks=(3,), resize_input=True, normalize_input=True, requires_grad=False, use_fid_inception=True
    ):
        super().__init__()
        assert resize_input and normalize_input and use_fid_inception
        self.output_blocks = sorted(output_blocks)
        self.norm = nn.BatchNorm2d(3).requires_grad_(requires_grad)

    def forward(self, inp):
        assert not self.training, "batch statistics would depend on the batch"
        assert inp.shape[1:2] == (3,) and inp.min() >= 0 and inp.max() <= 1
        dims = {index: dim for dim, index in self.BLOCK_INDEX_BY_DIM.items()}
        means = self.norm(inp).mean((2, 3))
        outputs = [means.repeat(1, dims[i] // 3 + 1)[:, : dims[i]] for i in self.output_blocks]
        return [output[:, :, None, None] for output in outputs]


def put_pytorch_fid(monkeypatch, network) -> None:
    """`network` in the place of pytorch_fid.inception.InceptionV3."""
    package, module = ModuleType("pytorch_fid"), ModuleType("pytorch_fid.inception")
    module.InceptionV3 = network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_fid", package)
    monkeypatch.setitem(sys.modules, "pytorch_fid.inception", module)


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_gets_what_pytorch_fid_wants(monkeypatch, channels):
    """Images in [-1, 1] arrive in [0, 1] with three channels in order; 2048 features come back."""
    put_pytorch_fid(monkeypatch, FakeInceptionV3)
    features = FEATURES["inception"].build((channels, 4, 6))
    images = torch.linspace(-1, 1, 5 * channels * 24).reshape(5, channels, 4, 6)
    found = features(images)
    assert found.shape == (5, 2048) == (5, features.num_features) and not found.requires_grad
    means = (images.mean((2, 3)) + 1) / 2
    expected = means.expand(-1, 3) / (1 + 1e-5) ** 0.5  # a batch norm as it starts
    torch.testing.assert_close(found[:, :3], expected)


def test_a_distance_in_features_of_inception(monkeypatch):
    """Means alone differ, by 1/4 in every of the 2048 features."""
    put_pytorch_fid(monkeypatch, FakeInceptionV3)
    dark, bright = torch.full((4, 3, 2, 2), -0.5), torch.zeros(4, 3, 2, 2)
    distance = FrechetDistance(FEATURES["inception"].build((3, 2, 2)), dark)
    assert distance(bright) == pytest.approx(2048 * 0.25**2, rel=1e-4)


class OfflineInceptionV3(FakeInceptionV3):
    def __init__(self, **options):
        raise OSError("no route to host")


def missing(monkeypatch) -> str:
    monkeypatch.setitem(sys.modules, "pytorch_fid.inception", None)  # as if it were not installed
    return "import of pytorch_fid.inception halted"


def mismatched(monkeypatch) -> str:
    """A torchvision for another torch, which pytorch-fid imports."""

    def fail(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(sys.modules["pytorch_fid.inception"], "__getattr__", fail, raising=False)
    monkeypatch.delattr(sys.modules["pytorch_fid.inception"], "InceptionV3")
    return "operator torchvision::nms does not exist"


@pytest.mark.parametrize("cause", [missing, mismatched])
def test_what_inception_needs_is_said(monkeypatch, cause):
    put_pytorch_fid(monkeypatch, FakeInceptionV3)
    why = cause(monkeypatch)
    told = rf"`features` = 'inception' needs pytorch-fid, .*{why}.* pip install 'adpm\[fid\]' .*; or use 'pixels'\.$"
    with pytest.raises(UserError, match=told):
        FEATURES["inception"].build((3, 32, 32))


def test_weights_that_cannot_be_fetched_are_told(monkeypatch):
    put_pytorch_fid(monkeypatch, OfflineInceptionV3)
    with pytest.raises(
        UserError, match=r"`features` = 'inception': its weights could not be fetched \(no route to host"
    ):
        FEATURES["inception"].build((3, 32, 32))


def test_inception_wants_gray_or_colour():
    with pytest.raises(UserError, match=r"'inception' needs images of 1 or 3 channels, and the data are \(2, 8, 8\)"):
        FEATURES["inception"].build((2, 8, 8))


def test_pixels_are_features_of_any_data():
    features = FEATURES["pixels"].build((3, 4, 5))
    images = torch.rand(2, 3, 4, 5)
    assert features.num_features == 60 and torch.equal(features(images), images.reshape(2, 60))


def test_the_classifier_is_for_digits_only():
    with pytest.raises(UserError, match=r"`features` = 'digits' is a classifier .* are \(3, 32, 32\)"):
        FEATURES["digits"].build((3, 32, 32))


def test_the_classifier_is_as_good_as_it_says():
    data = digits()
    network = DigitFeatures()
    network.load_state_dict(read_weights(CLASSIFIER))
    network.eval()
    told = read_header(CLASSIFIER)["accuracy"]
    for split, images in data.splits.items():
        with torch.inference_mode():
            found = network.classify(data.scaled(images)).argmax(1)
        accuracy = float((found == data.labels[split]).double().mean())
        assert accuracy == pytest.approx(told[split], abs=2 / len(images)) and accuracy > 0.98
    assert f"{told['test']:.1%}" in (ROOT / "pretrained" / "README.md").read_text(), json.dumps(told)


def test_the_distance_sees_what_is_wrong_with_images():
    """Real digits score at the floor; noise, blur and a missing class score far above it, in this order of harm."""
    data = digits()
    real = data.scaled(data.split("train"))
    distance = FrechetDistance(FEATURES["digits"].build(data.shape), real)
    bottom = distance.floor(1000, seed=0)
    fresh = distance(data.scaled(data.split("test")))
    without_ones = distance(real[data.labels["train"] != 1])
    noisy = distance((real + 0.5 * torch.randn(real.shape)).clamp(-1, 1))
    assert 0 < bottom < fresh < noisy and bottom < without_ones < noisy


def test_the_energy_distance_of_two_normals_is_known():
    """E|X - Y| = s sqrt(2/pi) exp(-d^2/2s^2) + d erf(d/(s sqrt 2)) for X - Y ~ N(d, s^2); of one distribution: 0."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4000, 1, generator=generator, dtype=torch.float64)
    d, s = 1.0, math.sqrt(2.0)
    between = s * math.sqrt(2 / math.pi) * math.exp(-(d**2) / (2 * s**2)) + d * math.erf(d / (s * math.sqrt(2)))
    within = 2.0 / math.sqrt(math.pi)
    assert energy_distance(x, y + d) == pytest.approx(2 * between - 2 * within, abs=0.03)
    halves = [energy_distance(a, b) for a, b in zip(x.split(100), y.split(100), strict=True)]
    assert abs(np.mean(halves)) < 3 * np.std(halves) / math.sqrt(len(halves)) and min(halves) < 0 < max(halves)
    images = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]]])
    assert energy_distance(images, torch.zeros(2, 1, 2)) == pytest.approx(2 * 2.5 - 5.0 - 0.0)
