"""What a training hands to network and objective: new draws in every iteration, and the right split for the test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adpm.denoiser import Denoise
from adpm.objective import eps_matching
from adpm.run.dataset import DataSet
from adpm.run.modes.train import held_out_loss
from adpm.run.training import Trainer
from tests.trainings import PROCESS, Small, denoiser, small_trainer, steps


class Spy:
    """What a training hands to the denoiser and to the objective, call by call."""

    def __init__(self) -> None:
        self.x: list[torch.Tensor] = []
        self.x0: list[torch.Tensor] = []
        self.eps: list[torch.Tensor] = []
        self.t: list[np.ndarray] = []
        self.networks: list[tuple[Small, bool]] = []
        self.masks: list[torch.Tensor] = []

    def denoiser(self, network: Small) -> Denoise:
        network.drop.register_forward_hook(lambda module, given, out: self.masks.append(out == 0.0))
        plain = denoiser(network)

        def denoise(x, t):
            self.x.append(x)
            self.networks.append((network, network.training))
            return plain(x, t)

        return denoise

    def objective(self, prediction, x0, eps, t):
        self.x0.append(x0)
        self.eps.append(eps)
        self.t.append(t)
        return eps_matching(prediction, x0, eps, t)

    def trainer(self, folder: Path, **changes) -> Trainer:
        """Training images are 1, 2, ..., 64 everywhere, test images -1, ..., -24."""
        images = {"train": 1.0 + torch.arange(64.0), "test": -1.0 - torch.arange(24.0)}
        data = DataSet("spied", {k: v.reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4) for k, v in images.items()}, 0, 0, 1, {})
        return small_trainer(folder, data=data, denoiser=self.denoiser, loss=self.objective, **changes)


def test_every_iteration_has_its_own_draws(tmp_path):
    """Images of the training split, times, noise and dropout masks: new in each iteration, the same for a seed."""
    spies = {}
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        spies[name] = Spy()
        steps(spies[name].trainer(tmp_path / name, seed=seed), 4)
    spy = spies["first"]
    assert all(training for _, training in spy.networks)
    for x, x0, eps, t in zip(spy.x, spy.x0, spy.eps, spy.t, strict=True):
        alpha, sigma = (torch.as_tensor(f(t)).float()[:, None, None, None] for f in (PROCESS.alpha, PROCESS.sigma))
        assert torch.allclose(x, alpha * x0 + sigma * eps, rtol=1e-5, atol=1e-4)
    images = torch.cat(spy.x0)[:, 0, 0, 0].tolist()
    assert sorted(images) == list(range(1, 65)) != images, "4 x 16 images: one epoch, shuffled"
    noise = torch.cat(spy.eps).flatten(1)
    assert len(torch.unique(noise, dim=0)) == 64 and abs(float((noise @ noise.T / 16).fill_diagonal_(0).max())) < 1.2
    assert len({tuple(t) for t in spy.t}) == 4
    assert not any(torch.equal(a, b) for i, a in enumerate(spy.masks) for b in spy.masks[:i])
    assert np.mean([float(mask.float().mean()) for mask in spy.masks]) == pytest.approx(0.2, abs=0.04)
    for name, same in (("again", True), ("other", False)):
        for field in ("x0", "eps", "t", "masks"):
            pairs = zip(getattr(spy, field), getattr(spies[name], field), strict=True)
            assert all(np.array_equal(a, b) == same for a, b in pairs), (name, field)


def test_training_leaves_the_global_generator_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    steps(small_trainer(tmp_path), 2)
    assert torch.equal(torch.rand(3), expected)


def test_the_test_loss_is_the_averages_on_the_test_split(tmp_path):
    """Every test image at four times, by the average without dropout; an average that says c has loss E (eps - c)^2."""
    spy = Spy()
    trainer = spy.trainer(tmp_path)
    with torch.no_grad():
        trainer.ema.module.second.weight.zero_()
        trainer.ema.module.second.bias.fill_(0.3)
        trainer.network.second.bias.fill_(7.0)
    loss = held_out_loss(trainer)
    assert all(network is trainer.ema.module and not training for network, training in spy.networks)
    images = torch.cat(spy.x0)[:, 0, 0, 0]
    assert sorted(images.tolist()) == sorted(4 * [float(-i) for i in range(1, 25)])
    assert loss == pytest.approx(float((torch.cat(spy.eps) - 0.3).square().mean()), rel=1e-5)
    times = np.concatenate(spy.t).reshape(4, 24)
    assert (
        all(len(set(image)) == 4 for image in times.T) and len(torch.unique(torch.cat(spy.eps).flatten(1), dim=0)) == 96
    )
    assert held_out_loss(trainer) == loss
