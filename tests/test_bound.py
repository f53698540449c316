"""The bound and the samples of a set: their parts in order, and nothing of how they were cut into batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from adpm.bound import BitsPerDim, Bound, Terms, bound_of
from adpm.denoiser import Prediction
from adpm.drawing import STRIP_COLUMNS, Sampler, draw
from adpm.gaussian import Covariance, Diagonal
from adpm.ideal import IdealDenoiser, gaussian
from adpm.kernel import Kernel
from adpm.likelihood import Levels, keyed_noise, path_terms, prior_nats
from adpm.noise import KeyedNoise
from adpm.process import linear
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian
from adpm.variance import Bounded, PosteriorRule, Unit

SHAPE, D = (1, 2, 3), 6
PROCESS = linear(50)
WORLD = gaussian(0.3, 0.2, SHAPE)
DENOISE = IdealDenoiser(WORLD, PROCESS)
CONTINUOUS = Levels(0, 0.0, 0.0)
TIMES = PROCESS.times[[0, 3, 20, 50]]
IMAGES = WORLD.sample(7, 0)


class ByState(PosteriorRule):
    """A variance that is another in every state and pixel."""

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        assert prediction is not None
        return Diagonal(0.1 + prediction.x0.square())


def decoder(t: float) -> float:
    return 0.01 * t


def other(t: float) -> float:
    return 0.5 + t


def terms(first: Callable[[float], float] = decoder, second: Callable[[float], float] | None = None) -> Terms:
    rule = Bounded(ByState(), 0.15)
    return Terms(DENOISE, PROCESS, rule, first, CONTINUOUS, TIMES, other=second)


def bound(batch: int, seed: int = 5, made: Terms | None = None) -> Bound:
    return bound_of(made or terms(), lambda i: IMAGES[i], len(IMAGES), seed=seed, batch_size=batch)


# -- the bound --------------------------------------------------------------------------------------------------------


def test_a_figure_over_images_has_the_error_of_a_mean() -> None:
    found = BitsPerDim.of(np.array([1.0, 2.0, 6.0, 7.0]))
    assert found.mean == 4.0 and found.error == pytest.approx((26.0 / 3.0) ** 0.5 / 2.0)
    assert BitsPerDim.of(np.array([2.5])) == BitsPerDim(2.5, None)


def test_the_bound_of_a_set_is_made_of_its_images_terms() -> None:
    """Row j is the step from times[j + 1], row K the prior; image i has the noise of (seed, i) in any batch."""
    noise = keyed_noise(5, PROCESS, torch.arange(7), SHAPE, torch.float64)
    made = terms()
    down = list(path_terms(DENOISE, PROCESS, made.rule, decoder, CONTINUOUS, TIMES, IMAGES, noise))
    rows = torch.stack([*(term.nats for term in reversed(down)), prior_nats(PROCESS, IMAGES)])
    expected = (rows / (D * np.log(2.0))).numpy()
    shares = [float(term.clipped) for term in reversed(down)]
    assert 0.0 < shares[1] < 1.0, "so that the images of a batch differ"
    for batch in (7, 3):
        found = bound(batch)
        np.testing.assert_allclose(found.bits, expected, rtol=1e-10)
        np.testing.assert_allclose(found.clipped, shares, rtol=1e-10)
        assert found.total.mean == pytest.approx(expected.sum(0).mean())
        assert found.total.error == pytest.approx(expected.sum(0).std(ddof=1) / 7**0.5)
        assert found.with_other is None and (found.times == TIMES).all()
    assert (bound(7, seed=6).bits[:3] != found.bits[:3]).all()


def test_the_second_decoder_changes_the_data_term_alone() -> None:
    """One figure beside the other: the same draws, as if the bound had been taken with the second decoder."""
    found, wanted = bound(3, made=terms(decoder, other)), bound(3, made=terms(other))
    np.testing.assert_allclose(found.other, wanted.bits[0], rtol=1e-12)
    assert found.with_other is not None
    assert found.with_other.mean == pytest.approx(wanted.total.mean, rel=1e-12)
    assert found.with_other.error == pytest.approx(wanted.total.error, rel=1e-12)
    assert found.total == bound(3).total


# -- samples ----------------------------------------------------------------------------------------------------------

PATH = PROCESS.times[[0, 1, 2, 4, 6, 8, 10, 15, 20, 25, 30, 35, 40, 45, 50]]


def sampler(seed: int = 5) -> Sampler:
    return Sampler(DENOISE, ReverseGaussian(PROCESS, Unit()), PROCESS, PATH, SHAPE, seed)


def walked(seed: int = 5) -> list:
    noise = keyed(KeyedNoise(seed, "sample"), torch.arange(7), SHAPE)
    return list(sample(DENOISE, ReverseGaussian(PROCESS, Unit()), PROCESS, PATH, noise))


def test_samples_come_in_the_order_of_their_numbers_with_the_noise_of_these() -> None:
    expected = walked()[-1].x.numpy()
    for batch in (7, 3):
        np.testing.assert_allclose(draw(sampler(), 7, batch), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(draw(sampler(6), 7, 3), walked(6)[-1].x.numpy(), rtol=1e-6, atol=1e-6)


def test_pictures_along_the_path_are_x0_at_the_times_told() -> None:
    """More steps than columns: ten of fourteen, the first and the last among them."""
    first, steps = sampler()(range(7)), {step.t: step for step in walked()}
    assert first["shown"].shape == (STRIP_COLUMNS,) and first["shown"][[0, -1]].tolist() == [50.0, 1.0]
    for column, t in enumerate(first["shown"].tolist()):
        np.testing.assert_allclose(first["strip"][:, column], steps[t].prediction.x0.numpy(), rtol=1e-5, atol=1e-6)
        width = float(steps[t].covariance.values) ** 0.5
        np.testing.assert_allclose(first["deviation"][:, column], np.full((7, *SHAPE), width), rtol=1e-6)


def test_every_step_is_told_with_its_variance() -> None:
    first, steps = sampler()(range(3)), walked()
    assert first["t"].tolist() == PATH[:0:-1].tolist() and first["nfe"] == len(PATH) - 1
    np.testing.assert_allclose(first["variance"], [float(step.covariance.values) for step in steps], rtol=1e-12)
