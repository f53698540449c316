"""`torchrun main.py ...`: the same files as one process makes, errors once, deaths survived."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import ROOT, at_work, finished, started, until

FEW = ("sampling.samples=14", "sampling.batch_size=4", "trajectory.steps=3", "moments.draws=8", "moments.times=6")
ONE_THREAD = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TIMES = ("events.out", "samples.csv", "cells.csv")
"""Files that say when they were made."""


def words(processes: int, config: str, mode: str, workdir: Path, *fields: str) -> list[Any]:
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    told = [f"--config.{field}" for field in fields]
    return [
        *launch,
        ROOT / "main.py",
        f"--config={ROOT}/configs/{config}",
        f"--mode={mode}",
        f"--workdir={workdir}",
        *told,
    ]


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(TIMES))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def ran(processes: int, config: str, mode: str, workdir: Path, *fields: str) -> str:
    """What it says; the workdir is named from beside it, so that files do not hold where they lie.

    A comparison names its configs from here.
    """
    workdir.parent.mkdir(parents=True, exist_ok=True)
    here, named = (ROOT, workdir) if mode == "compare" else (workdir.parent, Path(workdir.name))
    done = finished(*words(processes, config, mode, named, *fields), env=ONE_THREAD, cwd=here)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_gives_the_command_that_is_tested_here() -> None:
    line = "torchrun --nproc-per-node=2 main.py --config=configs/toy.py --mode=sample"
    assert line in (ROOT / "docs" / "scaling.md").read_text().splitlines()


def test_samples_are_the_same_for_any_number_of_processes(tmp_path: Path) -> None:
    """Moments, data term, plan, samples, pictures and protocol; one of the processes speaks."""
    told = [ran(n, "toy.py", "sample", tmp_path / str(n) / "run", *FEW) for n in (1, 2, 3)]
    one, two, three = (hashes(tmp_path / str(n)) for n in (1, 2, 3))
    assert one == two == three and sum("samples.npy" in name for name in one) == 1
    for text in told:
        lines = [line for line in text.splitlines() if " s (" not in line]
        assert lines == [line for line in told[0].splitlines() if " s (" not in line]


@pytest.mark.parametrize(
    ("config", "mode", "fields"),
    [
        (
            "toy_sde.py:vp",
            "likelihood",
            ("likelihood.images=12", "likelihood.batch_size=4", "likelihood.method=bound+flow"),
        ),
        ("toy.py", "estimate", ("moments.statistics=coordinates", "moments.draws=12")),
        ("toy.py", "evaluate", ("evaluate.floor=False",)),
        ("compare_toy.py:tiny", "compare", ()),
    ],
)
def test_other_modes_give_the_same_files(tmp_path: Path, config: str, mode: str, fields: tuple[str, ...]) -> None:
    for n in (1, 2):
        ran(n, config, mode, tmp_path / str(n) / "run", *(() if mode == "compare" else FEW), *fields)
    one, two = (hashes(tmp_path / str(n) / ("run/tables" if mode == "compare" else "")) for n in (1, 2))
    assert one.keys() == two.keys() and one
    assert [name for name in one if one[name] != two[name]] == []


GRADIENTS = """
import sys, torch
from pathlib import Path
from adpm.ranks import as_one_of, joined
from tests.trainings import Small, small_trainer
with as_one_of(joined()) as here:
    trainer = small_trainer(Path(sys.argv[1]) / "none", network=Small(dropout=0.0), grad_clip=0.0)
    told = [trainer.step() for _ in range(2)]
    gradients = torch.cat([p.grad.flatten() for p in trainer.parameters])
    trainer.close()
    torch.save({"gradients": gradients, "told": told}, Path(sys.argv[1]) / f"{here.size}-{here.number}.pt")
"""


def test_gradients_are_those_of_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    for n in (1, 2):
        launch = ["-m", "torch.distributed.run", f"--nproc-per-node={n}"] if n > 1 else []
        done = finished(*launch, script, tmp_path, env=ONE_THREAD)
        assert done.returncode == 0, done.stderr
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert torch.equal(first["gradients"], second["gradients"])
    largest = one["gradients"].abs().max()
    assert largest > 1e-3 and (one["gradients"] - first["gradients"]).abs().max() <= 1e-6 * largest.clamp(min=1.0)
    for before, now in zip(one["told"], first["told"], strict=True):
        assert now == pytest.approx(before, rel=1e-6)


def test_a_training_of_two_processes_stops_whole_and_goes_on(tmp_path: Path) -> None:
    """SIGTERM: every rank stops after the same iteration, with the state saved; then one process may go on."""
    fields = ("train.batch_size=16", "train.iterations=100000", "train.sample_every=0", "train.log_every=5")
    line = [str(w) for w in words(2, "toy.py:unet", "train", tmp_path / "run", *fields)]
    board = tmp_path / "run" / "tensorboard"
    with started(*line, env=ONE_THREAD, stdout=-1, stderr=-1) as job:
        until(lambda: list(board.rglob("events*")), job)
        until(lambda: sum(path.stat().st_size for path in board.rglob("events*")) > 2000, job)
        job.send_signal(signal.SIGTERM)
        out, err = job.communicate(timeout=600)
    assert "16 images each" not in out and "in 2 processes, 8 images each" in out
    assert out.count("stopped after iteration") == 1 and err.count("interrupted; run the same command again") == 1
    state = torch.load(tmp_path / "run" / "train_state.pt", weights_only=True)
    more = f"train.iterations={state['iteration'] + 2}"
    assert f"continuing at iteration {state['iteration']}" in ran(
        1, "toy.py:unet", "train", tmp_path / "run", *fields, more
    )


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    done = finished(*words(2, "toy.py", "sample", tmp_path / "run", "rule.name=nothing"), env=ONE_THREAD)
    assert done.returncode != 0 and done.stderr.count("error: config.rule.name = 'nothing'") == 1
    assert "exitcode  : 2" in done.stderr and not list(tmp_path.iterdir())


def test_a_process_that_dies_ends_the_job_and_the_next_start_goes_on(tmp_path: Path) -> None:
    fields = (*FEW, "sampling.samples=400", "sampling.batch_size=1", "trajectory.steps=25")
    line = words(2, "toy.py", "sample", tmp_path / "run", *fields)
    parts = tmp_path / "run" / "samples"
    with started(*line, env=ONE_THREAD, stdout=-1, stderr=-1) as job:
        until(lambda: list(parts.rglob("*.npz")), job)
        ranks = [pid for pid in at_work(job.pid) if b"main.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(max(ranks), signal.SIGKILL)
        assert job.wait(600) != 0
        until(lambda: not at_work(job.pid))
    assert not list(parts.rglob("*.npy")) and list(parts.rglob("*.npz"))
    ran(1, "toy.py", "sample", tmp_path / "run", *fields)
    ran(1, "toy.py", "sample", tmp_path / "other", *fields)
    one, other = (hashes(tmp_path / name) for name in ("run", "other"))
    assert one == other


def test_killed_runs_lose_nothing() -> None:
    """A few of the moments of `python -m benchmarks.kills`; how many there are depends on who gets which range."""
    done = finished("-m", "benchmarks.kills", "--modes", "sample", "--every=9", "--sizes=3", env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| sample")]
    one, two, full = ([int(cell) for cell in row[1:]] for row in rows)
    assert one[0] == 1 and two[0] == 2 and min(one[1], two[1]) > 4 and one[2:] == two[2:] == [0, 0]
    assert full == [3, 0, 0, 0, 0]
