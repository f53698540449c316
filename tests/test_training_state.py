"""Saved states of a training: the same bytes, whole and finite or not at all, and what goes on from them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adpm.errors import UserError
from adpm.nn.checkpoint import state_hash
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.modes.train import export
from adpm.run.state import torch_save_bytes
from adpm.run.trainees import Trainee
from adpm.run.training import Trainer
from tests.trainings import Small, small_trainer, steps

ROOT = Path(__file__).parent.parent
FILE = "train_state.pt"


def saved(folder: Path, number: int = 3, **changes: Any) -> Trainer:
    trainer = steps(small_trainer(folder, **changes), number)
    trainer.save()
    return trainer


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The state in a folder after a change, which may return something else to write."""
    state = torch.load(folder / FILE, weights_only=True)
    changed = change(state)
    torch.save(state if changed is None else changed, folder / FILE)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in (*trainer.network.parameters(), *trainer.ema.module.parameters())]


# ---------------------------------------------------------------------------------------------- the same bytes


def test_the_same_training_makes_the_same_bytes(tmp_path):
    saved(tmp_path / "one", 5)
    saved(tmp_path / "of another name", 5)
    saved(tmp_path / "parts", 2)
    assert steps(small_trainer(tmp_path / "parts"), 3).save() is None
    bytes_ = {folder.name: (folder / FILE).read_bytes() for folder in tmp_path.iterdir()}
    assert len(bytes_) == 3 and len(set(bytes_.values())) == 1
    saved(tmp_path / "longer", 6)
    assert (tmp_path / "longer" / FILE).read_bytes() not in bytes_.values()


def test_bytes_are_a_torch_file(tmp_path):
    value = np.linspace(0.0, 1.0, 7, dtype=np.float32)
    (tmp_path / "a").write_bytes(torch_save_bytes({"x": torch.from_numpy(value)}))
    assert np.array_equal(torch.load(tmp_path / "a", weights_only=True)["x"].numpy(), value)


# ---------------------------------------------------------------------------------------------- damaged files


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """state[path[0]][path[1]]... = value; a function as value changes what is there."""

    def change(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value(state[path[-1]]) if callable(value) else value

    return change


def lost(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


def nan(tensor: torch.Tensor) -> torch.Tensor:
    return torch.full_like(tensor, float("nan"))


ADAM = ("optimizer", "state", 1)
DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "iteration below 0": (put("iteration", value=-1), "iteration is -1, and the average has seen 4"),
    "iteration beyond all": (put("iteration", value=2**70), f"iteration is {2**70}, and"),
    "iteration of another state": (put("iteration", value=7), "iteration is 7, and the average has seen 4"),
    "broken iteration": (put("iteration", value=1.7), "iteration is 1.7"),
    "iteration true": (put("iteration", value=True), "iteration is True"),
    "iteration in words": (put("iteration", value="3"), "iteration is '3'"),
    "no iteration": (lost("iteration"), "iteration is missing"),
    "no network": (lost("network"), "network is missing"),
    "network a list": (put("network", value=[1]), "network is a list"),
    "a weight less": (lost("network", "first.bias"), "network: first.bias is missing"),
    "a weight more": (put("network", "third.bias", value=torch.ones(1)), "network: third.bias is left over"),
    "other shapes": (put("network", "first.bias", value=torch.ones(7)), "first.bias has shape (7,) and type"),
    "other types": (put("network", "first.bias", value=torch.Tensor.double), "type torch.float64, not (32,) and torch"),
    "no tensor": (put("network", "first.bias", value=0.5), "network: first.bias is 0.5"),
    "sparse": (put("network", "first.bias", value=torch.Tensor.to_sparse), ""),
    "infinite weight": (put("network", "first.bias", value=lambda b: b / 0.0), "first.bias is not finite"),
    "nan in the average": (put("ema", "module.second.weight", value=nan), "ema: module.second.weight is not finite"),
    "an optimizer of other shapes": (put(*ADAM, "exp_avg", value=torch.ones(2, 2)), "parameter 1: exp_avg has shape"),
    "an optimizer with nan": (put(*ADAM, "exp_avg_sq", value=nan), "optimizer, parameter 1: exp_avg_sq is not finite"),
    "an optimizer without moments": (lost(*ADAM, "exp_avg"), "optimizer, parameter 1: exp_avg is missing"),
    "an optimizer of more": (put("optimizer", "state", 9, value={}), "optimizer, parameter 9: there is none"),
    "an optimizer that forgot": (put("optimizer", "state", value={}), "optimizer: its state does not go with 3"),
    "an optimizer of no kind": (put("optimizer", value={}), "optimizer: its state does not go with 3"),
    "a step below 0": (put(*ADAM, "step", value=torch.tensor(-1.0)), "parameter 1: step is -1 of 3 iterations"),
    "options a number": (put("options", value=3), "options is 3"),
    "times of another sampler": (put("times", value={"losses": 1}), "times: counts is missing"),
    "counts below 0": (put("times", "counts", value=lambda n: n - 5), "times: counts are negative"),
    "a list": (lambda state: [state], "it holds a list"),
    "a tensor": (lambda state: torch.ones(3), "it holds a Tensor"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_state_is_named_and_not_trained_on(tmp_path, name):
    change, told = DAMAGED[name]
    saved(tmp_path, times="loss_aware")
    rewritten(tmp_path, change)
    damaged = (tmp_path / FILE).read_bytes()
    network = Small()
    before = state_hash(network.state_dict())
    with pytest.raises(UserError) as error:
        small_trainer(tmp_path, network=network, times="loss_aware")
    message = str(error.value)
    assert message.startswith(f"'{tmp_path / FILE}' is not a training state of this config (")
    assert told in message and message.endswith("); remove it.") and "\n" not in message
    assert (tmp_path / FILE).read_bytes() == damaged and state_hash(network.state_dict()) == before


@pytest.mark.parametrize("content", [b"", b"not a state", b"PK\x03\x04"], ids=["empty", "text", "torn zip"])
def test_what_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"train_state\.pt' is not a training state of .*\(it cannot be read: "):
        small_trainer(tmp_path)


def test_a_torn_state_is_named(tmp_path):
    saved(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="it cannot be read"):
        small_trainer(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_only_plain_files_are_read(tmp_path, make):
    make(tmp_path / FILE)
    with pytest.raises(UserError, match="is not a training state of this config .it is no plain file.; remove it"):
        small_trainer(tmp_path)


def test_older_states_go_on(tmp_path):
    """They know neither options nor seed nor start, and their average did not count the weights it began with."""
    new = saved(tmp_path)

    def older(state: dict[str, Any]) -> dict[str, Any]:
        state["ema"]["n_averaged"] -= 1
        return {name: state[name] for name in ("iteration", "network", "ema", "optimizer")}

    rewritten(tmp_path, older)
    old = small_trainer(tmp_path)
    assert old.iteration == 3 and old.changed == ""
    assert steps(new, 4).step() == steps(old, 4).step()
    assert all(torch.equal(a, b) for a, b in zip(weights(new), weights(old), strict=True))


# ---------------------------------------------------------------------------------------------- divergence


def poison(value: float, where: Callable[[Trainer], torch.Tensor]) -> Callable[[Trainer], None]:
    def act(trainer: Trainer) -> None:
        with torch.no_grad():
            where(trainer).view(-1)[-1] = value

    return act


POISONED: dict[str, tuple[Callable[[Trainer], None], str]] = {
    "weight": (poison(float("nan"), lambda t: t.network.second.bias), "the largest weight is nan at iteration 4"),
    "average": (poison(float("-inf"), lambda t: t.ema.module.first.bias), "the largest averaged weight is inf"),
    "optimizer": (
        poison(float("nan"), lambda t: t.optimizer.state[t.network.first.bias]["exp_avg"]),
        "the largest number of the optimizer is nan",
    ),
    "loss": (poison(1e30, lambda t: t.network.second.bias), "the loss is inf at iteration 4"),
    "loss of the average": (poison(1e30, lambda t: t.ema.module.second.bias), "the loss of the average is inf"),
}


@pytest.mark.parametrize("name", POISONED)
def test_nothing_that_is_not_finite_is_saved_or_exported(tmp_path, name):
    act, told = POISONED[name]
    trainer = saved(tmp_path)
    good = (tmp_path / FILE).read_bytes()
    trainer.step()
    act(trainer)
    trainee = Trainee(
        trainer.network, trainer.objective, trainer.options, False, "train", tmp_path / "weights.safetensors",
        lambda module: module.state_dict(), lambda iterations: {},
    )  # fmt: skip
    for work in (trainer.save, lambda: export(trainee, trainer)):
        with pytest.raises(UserError, match=told) as error:
            work()
        assert "lower config.train.learning_rate (now 0.001)" in str(error.value)
        assert "train_state.pt' is the last good state" in str(error.value)
    assert (tmp_path / FILE).read_bytes() == good and [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_diverged_training_goes_on_with_a_lower_rate(tmp_path):
    """The loss of the step with the huge rate is finite, and so are its weights; what they predict is not."""
    saved(tmp_path)
    good = (tmp_path / FILE).read_bytes()
    wild = small_trainer(tmp_path, learning_rate=1e20, schedule="constant")
    assert wild.changed == "train.learning_rate: 0.001 there, 1e+20 now; train.schedule: 'cosine' there, 'constant' now"
    assert np.isfinite(wild.step()["train/loss"])
    with pytest.raises(UserError, match=r"the loss is (inf|nan) at iteration 4; lower .*\(now 1e\+20\)"):
        wild.save()
    assert (tmp_path / FILE).read_bytes() == good
    with pytest.raises(UserError, match=r"the training loss is (inf|nan) at iteration 4"):
        wild.step()
    tame = steps(small_trainer(tmp_path, learning_rate=1e-4), 2)
    tame.save()
    assert small_trainer(tmp_path).iteration == 5


def test_the_mode_leaves_no_weights_of_a_diverged_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    options = {"iterations": 1, "warmup": 0, "learning_rate": 1e20, "save_every": 1, "batch_size": 8}
    flags = [f"--config.train.{name}={value}" for name, value in options.items()]
    small = ["--config.network.model_channels=8", "--config.network.num_heads=1"]
    argv = ["main.py", "--config=configs/toy.py:unet", "--mode=train", f"--workdir={tmp_path}", *flags, *small]
    assert run(argv, MODES) == 2
    told = capsys.readouterr()
    assert (
        "at iteration 1; lower config.train.learning_rate (now 1e+20)" in told.err and "Nothing was saved" in told.err
    )
    assert not list(tmp_path.glob("*.pt")) and not list(tmp_path.glob("*.safetensors")) and "weights" not in told.out


# ---------------------------------------------------------------------------------------------- going on


def test_a_training_goes_on_with_other_options(tmp_path):
    """What changed is told; schedule and decay of weights are those of now."""
    saved(tmp_path, iterations=3)
    changes = {"iterations": 9, "learning_rate": 2e-3, "weight_decay": 0.1, "batch_size": 8, "ema_decay": 0.5}
    longer = small_trainer(tmp_path, **changes, log_every=7)
    assert longer.iteration == 3
    for told in ("iterations: 3 there, 9 now", "batch_size: 16 there, 8 now", "log_every: 100 there, 7 now"):
        assert f"train.{told}" in longer.changed
    assert "schedule" not in longer.changed
    assert longer.step()["train/learning_rate"] == 2e-3 * 0.5 * (1 + np.cos(np.pi * 3 / 9))
    (group,) = longer.optimizer.param_groups
    assert group["weight_decay"] == 0.1 and longer.options.decay(1000) == 0.5
    assert len(longer._examples(4)[0]) == 8


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"facts": {"trunk": "abc"}}, "trunk: '123' there, 'abc' now"),
        ({"start": Small(1).state_dict()}, "start: None there, '"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_training_does_not(tmp_path, changes, told):
    saved(tmp_path, facts={"trunk": "123"})
    with pytest.raises(UserError) as error:
        small_trainer(tmp_path, **{"facts": {"trunk": "123"}, **changes})
    assert f"'{tmp_path / FILE}' is of a training on something else ({told}" in str(error.value)


def test_training_starts_from_given_weights(tmp_path):
    """Fine-tuning: weights and average begin there; a saved state has precedence."""
    start = Small(seed=5).state_dict()
    trainer = small_trainer(tmp_path, start=start)
    for module in (trainer.network, trainer.ema.module):
        assert state_hash(module.state_dict()) == state_hash(start) != state_hash(Small().state_dict())
    first = [p.clone() for p in trainer.ema.module.parameters()]
    trainer.step()
    for average, begun, now in zip(trainer.ema.module.parameters(), first, trainer.network.parameters(), strict=True):
        assert torch.allclose(average, 0.1 * begun + 0.9 * now.detach(), atol=1e-6)
    trainer.save()
    again = small_trainer(tmp_path, start=start)
    assert again.iteration == 1
    assert all(torch.equal(a, b) for a, b in zip(weights(trainer), weights(again), strict=True))


def test_a_start_that_does_not_fit_is_refused(tmp_path):
    start = {name: tensor for name, tensor in Small().state_dict().items() if name != "first.bias"}
    with pytest.raises(UserError, match=r"1 missing: first\.bias"):
        small_trainer(tmp_path, start=start)
