"""Frechet distances: the formula against dense linear algebra, and a classifier that knows digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from adpm.nn.checkpoint import read_header, read_weights
from adpm.nn.classifier import DigitFeatures
from adpm.run.data import digits
from adpm.run.metrics import CLASSIFIER, digit_features, floor, frechet_distance

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


class Flat(nn.Module):
    num_features = 4

    def forward(self, x):
        return x.flatten(1)


def formula(a: np.ndarray, b: np.ndarray) -> float:
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(ca @ cb).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root))


def test_the_distance_is_the_formula_whatever_the_batches():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((500, 4)) @ rng.standard_normal((4, 4))
    b = rng.standard_normal((300, 4)) @ rng.standard_normal((4, 4)) + 0.3
    images = [torch.tensor(x).reshape(-1, 1, 2, 2) for x in (a, b)]
    for batch_size in (500, 7):
        assert frechet_distance(Flat(), *images, batch_size=batch_size) == pytest.approx(formula(a, b), rel=1e-6)
    assert frechet_distance(Flat(), images[0], images[0]) == pytest.approx(0.0, abs=1e-6)


def test_the_classifier_is_as_good_as_it_says():
    data = digits()
    network = DigitFeatures()
    network.load_state_dict(read_weights(CLASSIFIER))
    network.eval()
    with torch.inference_mode():
        found = network.classify(data.scaled(data.split("test"))).argmax(1)
    accuracy = float((found == data.labels["test"]).double().mean())
    told = read_header(CLASSIFIER)["accuracy"]["test"]
    assert accuracy == pytest.approx(told, abs=2 / 359) and accuracy > 0.98
    assert f"{told:.1%}" in (ROOT / "pretrained" / "README.md").read_text(), json.dumps(told)


def test_the_distance_sees_what_is_wrong_with_images():
    """Real digits score at the floor; noise, blur and a missing class score far above it, in this order of harm."""
    data = digits()
    real = data.scaled(data.split("train"))
    features = digit_features()
    bottom = floor(features, real, 1000, seed=0)
    fresh = frechet_distance(features, real, data.scaled(data.split("test")))
    without_ones = frechet_distance(features, real, real[data.labels["train"] != 1])
    noisy = frechet_distance(features, real, (real + 0.5 * torch.randn(real.shape)).clamp(-1, 1))
    assert 0 < bottom < fresh < noisy and bottom < without_ones < noisy
