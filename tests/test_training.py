"""Training: the loss it claims, a resume that continues bit for bit, and stops that lose nothing."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adpm.denoiser import Denoise, Prediction
from adpm.ideal import IdealDenoiser
from adpm.objective import eps_matching
from adpm.run.assembly import Session
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.config import load_config
from adpm.run.data import toy
from adpm.run.families import house
from adpm.run.modes.train import make_trainer
from adpm.run.order import batch_indices
from adpm.run.training import Trainer
from tests.boards import board
from tests.processes import HANG, started, until
from tests.trainings import options, small_trainer, steps

ROOT = Path(__file__).parent.parent
TINY = (
    "--config.network.model_channels=8",
    "--config.network.num_heads=1",
    "--config.train.batch_size=16",
    "--config.train.warmup=5",
    "--config.train.log_every=4",
    "--config.train.test_every=8",
    "--config.train.sample_every=8",
    "--config.train.save_every=4",
)


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def arguments(workdir: Path, iterations: int, *more: str) -> list[str]:
    return [
        "main.py",
        "--config=configs/toy.py:unet",
        "--mode=train",
        f"--workdir={workdir}",
        f"--config.train.iterations={iterations}",
        *TINY,
        *more,
    ]


def tiny_session(workdir: Path, **train) -> Session:
    config = load_config("configs/toy.py", "unet")[0]
    config.network.update(model_channels=8, num_heads=1, dropout=0.2)
    config.train.update(batch_size=16, warmup=5, iterations=12, **train)
    return Session.make(config, workdir, house(), trains=True)


def test_training_approaches_the_exact_denoiser(tmp_path):
    """On the toy mixture the loss must fall towards that of the exact denoiser, which nothing beats in expectation."""
    session = tiny_session(tmp_path, learning_rate=4e-3, schedule="constant", ema_decay=0.9999)
    trainer = make_trainer(session)
    assert session.data.truth is not None
    ideal = IdealDenoiser(session.data.truth, session.process)
    x0 = session.data.split("test")[:512]
    generator = torch.Generator().manual_seed(1)
    eps = torch.randn(x0.shape, generator=generator)
    t = session.process.times[1 + np.arange(512) * 1000 // 512]
    exact = trainer.loss_of(ideal, x0, eps, t).mean().item()

    def now(denoise: Denoise) -> float:
        trainer.network.eval()
        trainer.ema.module.eval()
        with torch.inference_mode():
            return trainer.loss_of(denoise, x0, eps, t).mean().item()

    start = now(trainer.denoise)
    steps(trainer, 300)
    end, average = now(trainer.denoise), now(trainer.averaged)
    assert 0.95 < start < 1.05, "a zero-initialised output predicts no noise: loss E eps^2 = 1"
    assert exact < end < exact + 0.35 * (start - exact), (start, end, exact)
    assert exact < average < end + 0.05, "without warm-up, 97 % of the average would be the initial weights"


def test_resume_is_bit_for_bit(tmp_path):
    """12 iterations in one go, and 5 + 7 with a new process state in between, give the same weights to the last bit."""
    whole = make_trainer(tiny_session(tmp_path / "whole"))
    steps(whole, 12)
    first = steps(make_trainer(tiny_session(tmp_path / "parts")), 5)
    first.save()
    torch.manual_seed(99)  # whatever happened in between
    second = make_trainer(tiny_session(tmp_path / "parts"))
    assert second.iteration == 5 and second.changed == ""
    steps(second, 7)
    for a, b in ((whole.network, second.network), (whole.ema.module, second.ema.module)):
        assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert whole.step() == second.step()


def test_the_average_is_that_of_the_rule(tmp_path):
    """ema_k = d_k ema_{k-1} + (1 - d_k) weights_k from the initial weights, d_k = min(0.7, (1 + k) / (10 + k))."""
    trainer = small_trainer(tmp_path, ema_decay=0.7)
    expected = [p.detach().clone() for p in trainer.network.parameters()]
    for k in range(25):  # from k = 21 on the decay is 0.7
        trainer.step()
        decay = min(0.7, (1 + k) / (10 + k))
        weights = [p.detach() for p in trainer.network.parameters()]
        expected = [decay * e + (1 - decay) * p for e, p in zip(expected, weights, strict=True)]
    for e, p in zip(expected, trainer.ema.module.parameters(), strict=True):
        assert torch.allclose(e, p, atol=1e-6)


def test_the_initial_weights_fade(tmp_path):
    """Their share of the average is the product of the decays: of weights that are 1 and then 0, what is left."""
    trainer = small_trainer(tmp_path, ema_decay=0.9999)
    with torch.no_grad():
        for p in trainer.ema.module.parameters():
            p.fill_(1.0)
    share = 1.0
    for k in range(5):
        trainer.iteration = k
        with torch.no_grad():
            for p in trainer.network.parameters():
                p.zero_()
        trainer.ema.update_parameters(trainer.network)
        share *= (1 + k) / (10 + k)
        for p in trainer.ema.module.parameters():
            assert torch.allclose(p, torch.full_like(p, share), rtol=1e-5)
    decays = options(ema_decay=0.9999).decay
    assert np.prod([decays(k) for k in range(300)]) < 1e-15
    assert decays(89_989) < 0.9999 == decays(89_991) == decays(10**7)


def test_gradient_clipping_limits_the_step(tmp_path):
    """With SGD-like bookkeeping: the clipped gradients' norm is grad_clip whenever the raw norm exceeds it."""
    trainer = make_trainer(tiny_session(tmp_path, grad_clip=0.05))
    values = trainer.step()
    assert values["train/grad_norm"] > 0.05
    norms = torch.stack([p.grad.norm() for p in trainer.network.parameters() if p.grad is not None])
    assert norms.norm().item() == pytest.approx(0.05, rel=1e-3)


def test_rates():
    made = options(iterations=1000, warmup=10)
    rates = np.array([made.rate(i) for i in range(1000)])
    assert rates[0] == pytest.approx(1e-4) and rates[9] == pytest.approx(1e-3, rel=1e-3)
    assert np.all(np.diff(rates[:10]) > 0) and np.all(np.diff(rates[10:]) < 0) and rates[-1] < 1e-8


def test_every_epoch_visits_every_image_once():
    visited = torch.cat([batch_indices(3, i, 7, 20) for i in range(20)])  # 7 epochs of 20
    for epoch in visited.split(20):
        assert sorted(epoch.tolist()) == list(range(20))
    assert not torch.equal(visited[:20], visited[20:40])


def test_eps_matching_is_a_mean_over_elements():
    eps = torch.randn(3, 2, 4, 4)
    prediction = Prediction(eps, eps, eps + torch.tensor([1.0, 2.0, 3.0])[:, None, None, None])
    assert torch.allclose(eps_matching(prediction, eps, eps, np.ones(3)), torch.tensor([1.0, 4.0, 9.0]), rtol=1e-5)


def test_train_mode_leaves_weights_scalars_and_samples(tmp_path, capsys):
    assert run(arguments(tmp_path, 16), MODES) == 0
    told = capsys.readouterr().out
    assert "test loss" in told and "weights.safetensors" in told
    weights = load_file(tmp_path / "weights.safetensors")
    trainer_ema = torch.load(tmp_path / "train_state.pt", weights_only=True)["ema"]
    assert all(torch.equal(v, trainer_ema[f"module.{k}"]) for k, v in weights.items())
    seen = board(tmp_path / "tensorboard")["train"]
    assert [step for step, _ in seen.scalars["train/loss"]] == [4, 8, 12, 16]
    assert [step for step, _ in seen.scalars["test/loss"]] == [8, 16]
    assert [step for step, _ in seen.images["train/samples"]] == [8, 16]
    assert seen.trial["objective"] == "eps" and seen.trial["learning_rate"] == 1e-3
    assert run(arguments(tmp_path, 16), MODES) == 0
    assert board(tmp_path / "tensorboard")["train"] == seen, "a finished training leaves its board alone"
    few = ["--config.moments.draws=20", "--config.moments.times=12", "--config.sampling.samples=2", *TINY]
    sample = ["main.py", "--config=configs/toy.py:unet", "--mode=sample", f"--workdir={tmp_path}"]
    assert run([*sample, "--config.train.iterations=16", *few], MODES) == 0
    assert str(tmp_path / "weights.safetensors") in capsys.readouterr().out


def test_ctrl_c_saves_and_continues(tmp_path, ctrl_c):
    """A real process, a real signal: exit code 130, the state saved, and the same command continues."""
    argv = arguments(tmp_path, 100_000, "--config.train.save_every=7", "--config.train.test_every=100000")
    with started(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until((tmp_path / "train_state.pt").exists, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANG)
    assert process.returncode == 130, err
    assert "the state is saved" in out and "run the same command again" in err and "Traceback" not in err
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))
    state = torch.load(tmp_path / "train_state.pt", weights_only=True)
    assert state["iteration"] >= 1
    options = {"iterations": 100_000, "save_every": 7, "test_every": 100_000}
    config = load_config("configs/toy.py", "unet")[0]
    config.network.update(model_channels=8, num_heads=1)
    config.train.update(batch_size=16, warmup=5, log_every=4, sample_every=8, **options)
    assert make_trainer(Session.make(config, tmp_path, house(), trains=True)).iteration == state["iteration"]


def test_sigterm_is_told_apart(tmp_path, monkeypatch, capsys):
    """The end that a batch system sets: the state is saved as for Ctrl-C, and the exit code is 128 + 15."""
    step = Trainer.step

    def stopped(trainer: Trainer) -> dict[str, float]:
        if trainer.iteration == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", stopped)
    assert run(arguments(tmp_path, 16), MODES) == 143
    assert "stopped after iteration 3; the state is saved" in capsys.readouterr().out
    assert torch.load(tmp_path / "train_state.pt", weights_only=True)["iteration"] == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_toy_data_have_the_truth_they_claim():
    data = toy()
    assert data.truth is not None
    x = data.split("train").double().flatten(1)
    error = x.std(0) / len(x) ** 0.5
    assert torch.all((x.mean(0) - data.truth.mean()).abs() < 4.5 * error)
    assert float((x - data.truth.mean()).square().mean()) == pytest.approx(data.truth.variance(), rel=0.05)
