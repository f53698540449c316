"""Distances between sets of images against closed forms and torchmetrics, and what is kept of features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

import adpm.run.featured
from adpm.errors import UserError
from adpm.run.distances import MEASURES, FeatureStatistics, Sides, kernel_distance
from adpm.run.featured import ImageSet, published_statistics, statistics_of
from adpm.run.metrics import FEATURES, FrechetDistance, frechet

CPU = torch.device("cpu")


def sets(seed: int = 0, n: int = 400, m: int = 300, size: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((k, size)) @ rng.standard_normal((size, size)) + 0.2 * i for i, k in enumerate((n, m))]


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(0), np.cov(x.T)


def of(x: np.ndarray) -> FeatureStatistics:
    return FeatureStatistics(len(x), *moments(x), x.astype(np.float32))


def images(x: np.ndarray, key: str = "x") -> ImageSet:
    stored = torch.from_numpy(x.reshape(len(x), 1, 2, -1))
    return ImageSet(stored, torch.arange(len(x)), lambda part: part, {"images": key}, {})


def pixels(x: np.ndarray):
    return FEATURES["pixels"].build((1, 2, x.shape[1] // 2))


def test_frechet_is_its_formula():
    a, b = sets()
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet(*moments(a), *moments(b)) == pytest.approx(expected, rel=1e-10)
    assert frechet(*moments(a), *moments(a)) == pytest.approx(0.0, abs=1e-10)
    shift = np.array([3.0, 0.0, 4.0, 0.0])
    assert frechet(*moments(a), *moments(a + shift)) == pytest.approx(25.0, rel=1e-10)
    assert frechet(*moments(a), *moments(3.0 * (a - a.mean(0)) + a.mean(0))) == pytest.approx(
        4.0 * np.trace(np.cov(a.T)), rel=1e-9
    ), "(3 - 1)^2 tr C"


def test_frechet_is_torchmetrics():
    """Also where there are fewer images than features; of moments, and of images in batches."""
    for n, m, size in ((400, 300, 4), (30, 20, 64)):
        a, b = sets(0, n, m, size)
        real = torch.from_numpy(a.reshape(n, 1, 2, -1))
        ours = torch.from_numpy(b.reshape(m, 1, 2, -1))
        metric = FrechetInceptionDistance(feature=pixels(a))
        metric.update(real, real=True)
        metric.update(ours, real=False)
        theirs = pytest.approx(float(metric.compute()), rel=1e-6)
        assert frechet(*moments(b), *moments(a)) == theirs
        assert FrechetDistance(pixels(a), real, batch_size=7)(ours.split(10)) == theirs


def test_kernel_distance_is_torchmetrics_on_one_subset():
    a, b = sets(0, 50, 50, 8)
    metric = KernelInceptionDistance(feature=pixels(a), subsets=1, subset_size=50)
    for x, real in ((a, True), (b, False)):
        metric.update(torch.from_numpy(x.reshape(50, 1, 2, -1)).double(), real=real)
    theirs = float(metric.compute()[0])
    assert kernel_distance(a, b) == pytest.approx(theirs, rel=1e-5)


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    rng = np.random.default_rng(0)
    found = [kernel_distance(rng.standard_normal((40, 6)), rng.standard_normal((60, 6))) for _ in range(300)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found)) and min(found) < 0 < max(found)
    apart = kernel_distance(rng.standard_normal((40, 6)), 1.0 + rng.standard_normal((60, 6)))
    assert apart > 10 * np.std(found)


def test_subsets_depend_on_the_seed_alone():
    a, b = sets(0, 900, 600)  # subsets are of all that the smaller has
    sides = [Sides(of(a), of(b), lambda: pytest.fail("no images are wanted"), seed) for seed in (0, 0, 1)]
    first, again, other = (MEASURES["kernel"].build(side) for side in sides)
    assert first == again != other and set(first) == {"kernel", "kernel_deviation"}
    whole = kernel_distance(a, b)
    assert first["kernel"] == pytest.approx(whole, abs=4 * first["kernel_deviation"] / 10)


@pytest.mark.parametrize("size", [7, 100, 1000])
def test_statistics_are_those_of_all_features_however_they_are_merged(tmp_path, monkeypatch, size):
    (x, _), calls = sets(1, 500), []
    monkeypatch.setattr(adpm.run.featured, "_RANGE", size)
    monkeypatch.setattr(adpm.run.featured, "KEPT", 50)
    network = pixels(x)
    network.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        found = statistics_of(images(100.0 + x), network, {"features": "pixels"}, 64, CPU, tmp_path)
        np.testing.assert_allclose(found.mean, 100 + x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-9)
        np.testing.assert_allclose(found.features, 100 + x[5::10], rtol=1e-6)
        assert found.count == 500
    (file,) = tmp_path.iterdir()
    assert len(calls) == sum(-(-min(size, 500 - start) // 64) for start in range(0, 500, size)), "taken once"
    with np.load(file) as stored:
        assert json.loads(str(stored["provenance"])) == {"images": "x", "features": "pixels"}
    reference = published_statistics(file, 4)
    np.testing.assert_array_equal(reference.covariance, (found.covariance + found.covariance.T) / 2)


def test_work_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    (x, _), seen = sets(1, 500), []
    monkeypatch.setattr(adpm.run.featured, "_RANGE", 100)
    network = pixels(x)

    def killed(module, given, found):
        seen.append(len(found))
        if len(seen) == 3:
            raise KeyboardInterrupt

    hook = network.register_forward_hook(killed)
    with pytest.raises(KeyboardInterrupt):
        statistics_of(images(x), network, {}, 100, CPU, tmp_path)
    hook.remove()
    network.register_forward_hook(lambda module, given, found: seen.append(len(found)))
    found = statistics_of(images(x), network, {}, 100, CPU, tmp_path)
    assert len(seen) == 3 + 3
    np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-9)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"], "the parts are gone"


def test_numbers_that_are_none_are_refused(tmp_path):
    x, _ = sets(1, 10)
    with pytest.raises(UserError, match="at least two images on either side, not 1"):
        statistics_of(images(x[:1]), pixels(x), {}, 4, CPU, tmp_path)
    x[3, 1] = np.nan
    with pytest.raises(UserError, match="NaN or infinite"):
        statistics_of(images(x), pixels(x), {}, 4, CPU, tmp_path)


def test_published_statistics(tmp_path: Path):
    """pytorch-fid's file has mu and sigma; others of the field have more beside them."""
    a, b = sets()
    mean, covariance = moments(a)
    np.savez(tmp_path / "ours.npz", mu=mean, sigma=covariance)
    np.savez_compressed(tmp_path / "more.npz", mu=mean.astype(np.float32), sigma=covariance, mu_s=mean[:2])
    for name, close in (("ours", 1e-12), ("more", 1e-5)):
        found = published_statistics(tmp_path / f"{name}.npz", 4)
        expected = frechet(*moments(b), *moments(a))
        assert frechet(*moments(b), found.mean, found.covariance) == pytest.approx(expected, rel=close)
    wrong = {
        "no array 'sigma'": {"mu": mean},
        r"`mu` is \(3,\) and `sigma` \(4, 4\)": {"mu": mean[:3], "sigma": covariance},
        "NaN or infinite": {"mu": np.full(4, np.nan), "sigma": covariance},
        "not symmetric": {"mu": mean, "sigma": covariance + np.triu(np.ones((4, 4)), 1)},
    }
    for told, arrays in wrong.items():
        np.savez(tmp_path / "wrong.npz", **arrays)
        with pytest.raises(UserError, match=f"wrong.npz' holds no statistics of features: .*{told}"):
            published_statistics(tmp_path / "wrong.npz", 4)
    with pytest.raises(UserError, match="is of 4 features, and those that are measured here are 2048"):
        published_statistics(tmp_path / "ours.npz", 2048)
    with pytest.raises(UserError, match="reference '.*gone.npz' does not exist"):
        published_statistics(tmp_path / "gone.npz", 4)
