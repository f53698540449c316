"""Training: the loss it claims, a resume that continues bit for bit, and stops that lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adpm.errors import UserError
from adpm.ideal import IdealDenoiser
from adpm.objective import eps_matching
from adpm.process import PROCESSES
from adpm.run.assembly import Session
from adpm.run.cli import load_config, run
from adpm.run.core import CORE
from adpm.run.data import toy
from adpm.run.modes import MODES
from adpm.run.modes.train import make_trainer
from adpm.run.times import TIMES
from adpm.run.training import TrainOptions, batch_indices, stratified

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
    config = load_config("configs/toy.py", "unet")
    config.network.update(model_channels=8, num_heads=1, dropout=0.2)
    config.train.update(batch_size=16, warmup=5, iterations=12, **train)
    return Session(config, workdir, CORE)


def test_training_approaches_the_exact_denoiser(tmp_path):
    """On the toy mixture the loss must fall towards that of the exact denoiser, which nothing beats in expectation."""
    session = tiny_session(tmp_path, learning_rate=4e-3, schedule="constant", ema_decay=0.9)
    trainer = make_trainer(session)
    assert session.data.truth is not None
    ideal = IdealDenoiser(session.data.truth, session.process)
    x0 = session.data.split("test")[:512]
    generator = torch.Generator().manual_seed(1)
    eps = torch.randn(x0.shape, generator=generator)
    t = session.process.times[1 + np.arange(512) * 1000 // 512]
    exact = trainer.loss_of(ideal, x0, eps, t).mean().item()

    def now() -> float:
        trainer.network.eval()
        with torch.inference_mode():
            return trainer.loss_of(trainer.denoise, x0, eps, t).mean().item()

    start = now()
    for _ in range(300):
        trainer.step()
    end = now()
    assert 0.95 < start < 1.05, "a zero-initialised output predicts no noise: loss E eps^2 = 1"
    assert exact < end < exact + 0.35 * (start - exact), (start, end, exact)


def test_resume_is_bit_for_bit(tmp_path):
    """12 iterations in one go, and 5 + 7 with a new process state in between, give the same weights to the last bit."""
    whole = make_trainer(tiny_session(tmp_path / "whole"))
    for _ in range(12):
        whole.step()
    first = make_trainer(tiny_session(tmp_path / "parts"))
    for _ in range(5):
        first.step()
    first.save()
    torch.manual_seed(99)  # whatever happened in between
    second = make_trainer(tiny_session(tmp_path / "parts"))
    assert second.iteration == 5
    for _ in range(7):
        second.step()
    for a, b in ((whole.network, second.network), (whole.ema.module, second.ema.module)):
        assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert whole.step() == second.step()


def test_ema_is_the_running_average(tmp_path):
    """ema_k = decay ema_{k-1} + (1 - decay) weights_k after the first update, which copies."""
    trainer = make_trainer(tiny_session(tmp_path, ema_decay=0.7))
    trainer.step()
    expected = [p.detach().clone() for p in trainer.network.parameters()]
    for _ in range(3):
        trainer.step()
        expected = [0.7 * e + 0.3 * p.detach() for e, p in zip(expected, trainer.network.parameters(), strict=True)]
    for e, p in zip(expected, trainer.ema.module.parameters(), strict=True):
        assert torch.allclose(e, p, atol=1e-6)


def test_gradient_clipping_limits_the_step(tmp_path):
    """With SGD-like bookkeeping: the clipped gradients' norm is grad_clip whenever the raw norm exceeds it."""
    trainer = make_trainer(tiny_session(tmp_path, grad_clip=0.05))
    values = trainer.step()
    assert values["train/grad_norm"] > 0.05
    norms = torch.stack([p.grad.norm() for p in trainer.network.parameters() if p.grad is not None])
    assert norms.norm().item() == pytest.approx(0.05, rel=1e-3)


def test_rates():
    options = TrainOptions(**{**load_config("configs/base.py").train.to_dict(), "iterations": 1000, "warmup": 10})
    rates = np.array([options.rate(i) for i in range(1000)])
    assert rates[0] == pytest.approx(1e-4) and rates[9] == pytest.approx(1e-3, rel=1e-3)
    assert np.all(np.diff(rates[:10]) > 0) and np.all(np.diff(rates[10:]) < 0) and rates[-1] < 1e-8


def test_every_epoch_visits_every_image_once():
    visited = torch.cat([batch_indices(3, i, 7, 20) for i in range(20)])  # 7 epochs of 20
    for epoch in visited.split(20):
        assert sorted(epoch.tolist()) == list(range(20))
    assert not torch.equal(visited[:20], visited[20:40])


def test_times_are_uniform_and_stratified():
    process = PROCESSES["linear"](1000)
    steps = np.stack([TIMES["uniform"](process).draw(stratified(0, i, 50))[0] for i in range(2000)]).astype(int)
    assert steps.min() == 1 and steps.max() == 1000
    assert np.all(np.diff(np.sort(steps, axis=1), axis=1) <= 40), "one per stratum of 20"
    counts = np.bincount(steps.ravel(), minlength=1001)[1:]
    assert abs(counts - 100).max() < 6 * 10, "100 expected, Poisson-like spread 10"


def test_times_can_be_uniform_in_log_snr():
    """As many times in each half of the log-SNR range, to the width of a reference step."""
    process = PROCESSES["linear"](1000)
    log_snr = process.log_snr(TIMES["log_snr"](process).draw(stratified(0, 0, 5000))[0])
    ends = process.log_snr(process.times[[1, -1]])
    edges = np.linspace(ends[1], ends[0], 5)
    assert np.allclose(np.histogram(log_snr, edges)[0] / 5000, 0.25, atol=0.02)


def test_eps_matching_is_a_mean_over_elements():
    from adpm.denoiser import Prediction

    eps = torch.randn(3, 2, 4, 4)
    prediction = Prediction(eps, eps, eps + torch.tensor([1.0, 2.0, 3.0])[:, None, None, None])
    assert torch.allclose(eps_matching(prediction, eps, eps, np.ones(3)), torch.tensor([1.0, 4.0, 9.0]), rtol=1e-5)


def test_train_mode_leaves_weights_scalars_and_samples(tmp_path, capsys):
    assert run(arguments(tmp_path, 16), CORE, MODES) == 0
    told = capsys.readouterr().out
    assert "test loss" in told and "weights.safetensors" in told
    weights = load_file(tmp_path / "weights.safetensors")
    trainer_ema = torch.load(tmp_path / "train_state.pt", weights_only=True)["ema"]
    assert all(torch.equal(v, trainer_ema[f"module.{k}"]) for k, v in weights.items())
    seen = EventAccumulator(str(tmp_path / "tensorboard" / "train"))
    seen.Reload()
    assert [e.step for e in seen.Scalars("train/loss")] == [4, 8, 12, 16]
    assert [e.step for e in seen.Scalars("test/loss")] == [8, 16]
    assert [e.step for e in seen.Images("train/samples")] == [8, 16]
    few = ["--config.moments.draws=20", "--config.moments.times=12", "--config.sampling.samples=2", *TINY]
    sample = ["main.py", "--config=configs/toy.py:unet", "--mode=sample", f"--workdir={tmp_path}"]
    assert run([*sample, "--config.train.iterations=16", *few], CORE, MODES) == 0
    assert str(tmp_path / "weights.safetensors") in capsys.readouterr().out


def test_a_diverging_loss_stops_with_the_state_intact(tmp_path):
    trainer = make_trainer(tiny_session(tmp_path))
    trainer.step()
    trainer.save()
    before = (tmp_path / "train_state.pt").read_bytes()
    with torch.no_grad():
        next(iter(trainer.network.parameters())).fill_(float("nan"))
    with pytest.raises(UserError, match="loss is nan at iteration 1.*learning_rate"):
        trainer.step()
    assert (tmp_path / "train_state.pt").read_bytes() == before


def test_a_damaged_state_is_named(tmp_path):
    session = tiny_session(tmp_path)
    (tmp_path / "train_state.pt").write_bytes(b"not a state")
    with pytest.raises(UserError, match="train_state.pt' is not a training state"):
        make_trainer(session)


def test_ctrl_c_saves_and_continues(tmp_path, ctrl_c):
    """A real process, a real signal: exit code 130, the state saved, and the same command continues."""
    argv = arguments(tmp_path, 100_000, "--config.train.save_every=7", "--config.train.test_every=100000")
    process = subprocess.Popen(
        [sys.executable, *argv], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "train_state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the state is saved" in out and "run the same command again" in err and "Traceback" not in err
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))
    state = torch.load(tmp_path / "train_state.pt", weights_only=True)
    assert state["iteration"] >= 1
    options = {"iterations": 100_000, "save_every": 7, "test_every": 100_000}
    config = load_config("configs/toy.py", "unet")
    config.network.update(model_channels=8, num_heads=1)
    config.train.update(batch_size=16, warmup=5, log_every=4, sample_every=8, **options)
    assert make_trainer(Session(config, tmp_path, CORE)).iteration == state["iteration"]


def test_toy_data_have_the_truth_they_claim():
    data = toy()
    assert data.truth is not None
    x = data.split("train").double().flatten(1)
    error = x.std(0) / len(x) ** 0.5
    assert torch.all((x.mean(0) - data.truth.mean()).abs() < 4.5 * error)
    assert float((x - data.truth.mean()).square().mean()) == pytest.approx(data.truth.variance(), rel=0.05)
