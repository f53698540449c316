"""What planning is measured on: which images, which noise, and what the measured curves say between their times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adpm.cost_table import measure_column
from adpm.data_term import data_row, measure_data_row, planning_images, statistics_of
from adpm.denoiser import Prediction
from adpm.draws import COLUMNS, Draws
from adpm.ideal import IdealDenoiser, gaussian
from adpm.likelihood import Levels, keyed_noise, measure_statistics
from adpm.members import MEMBERS
from adpm.moments import MomentTable
from adpm.paths import find_path, gamma_of, measure_cost_table, moment_needs
from adpm.process import linear
from adpm.variance import Unit

SHAPE, D = (1, 2, 3), 6
PROCESS = linear(40)
WORLD = gaussian(0.3, 0.2, SHAPE)
DENOISE = IdealDenoiser(WORLD, PROCESS)
CONTINUOUS = Levels(0, 0.0, 0.0)
IMAGES = WORLD.sample(9, 0)
NUMBERS = torch.tensor([7, 1, 4, 8, 0])


def decoder(t: float) -> float:
    return 0.01 * t


def images(index: Tensor) -> Tensor:
    return IMAGES[index]


def table_of(variance: np.ndarray, times: np.ndarray) -> MomentTable:
    """Moments without Monte-Carlo error for Var_t, with standard errors of 1 % and more."""
    means = np.zeros((len(times), len(COLUMNS)))
    means[:, 0], means[:, 1] = variance, 1.0 - np.exp(PROCESS.log_snr(times)) * variance
    scatter = [np.eye(len(COLUMNS)) * (0.01 * v * k) ** 2 * 100 * 99 for k, v in enumerate(variance, start=1)]
    return MomentTable(times, tuple(Draws(100, m, s) for m, s in zip(means, scatter, strict=True)), 0.2, {})


VARIANCE = 1.0 / (5.0 + np.exp(PROCESS.log_snr(PROCESS.times[1:])))


def test_planning_images_are_of_the_whole_split_and_of_the_seed() -> None:
    first = planning_images(200, 40, 0)
    assert len(first.unique()) == 40 and first.max() >= 150 and first.min() < 50
    assert sorted(planning_images(30, 99, 0).tolist()) == list(range(30))
    assert not torch.equal(first, planning_images(200, 40, 1)) and torch.equal(first, planning_images(200, 40, 0))


def test_a_data_row_is_the_mean_of_its_images_and_has_noise_of_its_own() -> None:
    """Nats per dimension; noise of (seed, image) and of no other purpose: the bound's is another."""
    times = PROCESS.times[1:]
    found = measure_data_row(DENOISE, PROCESS, decoder, CONTINUOUS, images, NUMBERS, times, seed=3, batch_size=2)
    assert (found["times"] == PROCESS.times[1:]).all()
    for stream, same in (("data term", True), ("likelihood", False)):
        noise = keyed_noise(3, PROCESS, NUMBERS, SHAPE, torch.float64, stream)
        rows = measure_statistics(DENOISE, PROCESS, decoder, CONTINUOUS, PROCESS.times[1:], IMAGES[NUMBERS], noise)
        nats = np.array([data.mean() / D for _, _, data in rows])
        assert np.allclose(found["nats"], nats, rtol=1e-10) == same


def test_statistics_are_those_of_the_numbered_images_whatever_the_batches() -> None:
    times = PROCESS.times[[1, 5, 40]]
    noise = keyed_noise(3, PROCESS, NUMBERS, SHAPE, torch.float64)
    rows = list(measure_statistics(DENOISE, PROCESS, decoder, CONTINUOUS, times, IMAGES[NUMBERS], noise))
    for batch in (5, 2):
        found = statistics_of(
            DENOISE, PROCESS, decoder, CONTINUOUS, images, NUMBERS, times, seed=3, batch_size=batch
        )  # fmt: skip
        np.testing.assert_allclose(found.squared, [row[1] for row in rows], rtol=1e-10)
        np.testing.assert_allclose(found.data, [row[2] for row in rows], rtol=1e-10)
        assert found.dim == D


def test_a_data_row_is_interpolated_in_log_snr() -> None:
    """A line in log-SNR stays one, between the measured times too; no path starts at the data."""
    times = PROCESS.times[[1, 2, 9, 14, 40]]
    row = data_row(PROCESS, {"times": times, "nats": 2.0 - 0.3 * PROCESS.log_snr(times)})
    assert row[0] == np.inf
    np.testing.assert_allclose(row[1:], 2.0 - 0.3 * PROCESS.log_snr(PROCESS.times[1:]), rtol=1e-10)


def test_gamma_at_every_time_is_the_eps_that_the_variance_leaves() -> None:
    """E||eps_network||^2 / d = 1 - gamma_t Var_t, here from all times."""
    found = gamma_of(table_of(VARIANCE, PROCESS.times[1:]), PROCESS)
    assert found[0] == 0.0
    np.testing.assert_allclose(found[1:], 1.0 - np.exp(PROCESS.log_snr(PROCESS.times[1:])) * VARIANCE, rtol=1e-10)


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("priced", [True, False])
def test_a_cost_table_is_its_columns_with_noise_of_its_own(priced: bool, eta: float) -> None:
    last = decoder if priced else None
    table = measure_cost_table(
        DENOISE, PROCESS, Unit(), last, CONTINUOUS, images, NUMBERS, eta=eta, seed=3, batch_size=2
    )  # fmt: skip
    for stream, same in (("table", True), ("likelihood", False)):
        noise = keyed_noise(3, PROCESS, NUMBERS, SHAPE, torch.float64, stream)
        for t in (1, 7, 40):
            column = measure_column(
                DENOISE, PROCESS, Unit(), decoder, CONTINUOUS, t, [(IMAGES[NUMBERS], noise)], eta
            )  # fmt: skip
            first = column[:1] if priced else [0.0 if t == 1 else np.inf]
            if t > 1:
                assert np.allclose(table[1:t, t], column[1:], rtol=1e-9) == same
            assert np.isinf(table[t:, t]).all()
            assert np.allclose(table[0, t], first, rtol=1e-9) == (same or not priced)


def test_planning_needs_are_the_residual_and_its_standard_errors() -> None:
    times = PROCESS.times[1:]
    table = table_of(VARIANCE, times)
    needs = moment_needs(
        lambda: table, PROCESS, data_row=lambda: None, rule=Unit, spectrum=None, costs=lambda: np.zeros(0), eta=1.0
    )  # fmt: skip
    np.testing.assert_allclose(needs.variance()[1:], VARIANCE, rtol=1e-10)
    np.testing.assert_allclose(needs.errors()[1:], table.standard_error("residual", PROCESS)(times), rtol=1e-10)
    assert needs.variance()[0] == needs.errors()[0] == 0.0


@pytest.mark.parametrize("asked", [True, False])
def test_a_path_prices_the_last_step_if_it_is_asked_to(asked: bool) -> None:
    """A data term that is least at the 9th time draws the path there; without one it goes through the first."""
    said: list[bool] = []
    row = np.array([np.inf, *(0.1 * (PROCESS.times[1:] - 9.0) ** 2)])

    def needs(data_term: bool) -> Any:
        said.append(data_term)
        table = table_of(VARIANCE, PROCESS.times[1:])
        return moment_needs(
            lambda: table, PROCESS, data_row=lambda: row if data_term else None, rule=Unit,
            spectrum=None, costs=lambda: np.zeros(0), eta=1.0,
        )  # fmt: skip

    path = find_path(MEMBERS, "least_cost", PROCESS, 4, needs, data_term=asked)
    assert said == [asked] and path.steps == 4 and path.times[-1] == 40.0
    assert path.times[1] == (9.0 if asked else 1.0) and path.cost == path.plan.raw


def test_noise_of_measurements_is_apart_from_the_bounds() -> None:
    """What a path is planned on must not be what it is then judged by: the draws of the same image differ."""
    seen: list[Tensor] = []

    def spy(x: Tensor, t: Any) -> Prediction:
        seen.append(x)
        return Prediction(x, x, x)

    def nothing(index: Tensor) -> Tensor:
        return torch.zeros(len(index), *SHAPE, dtype=torch.float64)

    args = (spy, PROCESS, decoder, CONTINUOUS, nothing, NUMBERS)
    measure_data_row(*args, PROCESS.times[1:], seed=3, batch_size=9)
    statistics_of(*args, PROCESS.times[1:], seed=3, batch_size=9)
    row, bound = torch.stack(seen[:40]), torch.stack(seen[40:])
    assert row.shape == bound.shape == (40, 5, *SHAPE) and (row != bound).all()
