"""Every command of README and docs, and the README's Python, runs, here on a few images, steps or iterations.

They run in this process, by the functions that the command line calls, except three: what only a process of its own can
show is shown by these.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

import adpm
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.config import load_config
from adpm.run.house import House
from tests.processes import UNPAINTED, finished

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {
    path: path.read_text()
    for path in (
        ROOT / "README.md",
        *(
            ROOT / "docs" / name
            for name in (
                *(
                    "results.md",
                    "solvers.md",
                    "spectral.md",
                    "spectral_head.md",
                    "guidance.md",
                    "data.md",
                    "diffusers.md",
                ),
                *("checkpoints.md", "speed.md", "scaling.md"),
            )
        ),
    )
}  # comparison.md repeats


def shell(text: str) -> list[str]:
    """The lines of its ```sh blocks."""
    return [line.strip() for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines() if line]


SHELL = shell(README)
LINES = [line for text in PAGES.values() for line in shell(text)]
COMMANDS = [line.split("  #")[0].strip() for line in LINES if line.startswith("python ")]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)

# What makes a command short: options by a word in it, of which later ones win, and constants of a benchmark's module.
# The commands themselves are the README's.
SHORTER = {
    "--mode=train": ["--config.train.iterations=2", "--config.train.batch_size=8"],
    "--config=configs/digits.py:spectral": ["--config.moments.draws=12", "--config.moments.times=12"],
    "--config.likelihood.method=bound+flow": ["--config.likelihood.rtol=1e-2"],
    "--mode=likelihood": ["--config.likelihood.images=8"],
    "--mode=sample": ["--config.sampling.samples=4"],
    "--mode=translate": ["--config.translate.images=3", "--config.trajectory.steps=3"],
    "--mode=evaluate": ["--config.sampling.samples=6"],
    "--mode=estimate": ["--config.moments.draws=12", "--config.moments.times=8"],
    "--config.moments.statistics=ems": ["--config.moments.nodes=7", "--config.moments.ems_draws=6"],
    "--config.sampling.solver=dpm_solver_v3": ["--config.moments.nodes=7", "--config.moments.ems_draws=6"],
    "--mode=compare": [
        *["--config.grid.steps=(2,)", "--config.shown=2", "--config.grid.seeds=(0,)", "--config.grid.etas=(1.0,)"],
        *["--config.sampling.samples=6", "--config.likelihood.images=4", "--config.moments.times=8"],
        *["--config.moments.draws=6", "--config.grid.rules=('small', 'sn')"],
        *["--config.grid.trajectories=('even',)", "--config.processes=1"],
    ],
    "benchmarks.digits_bits": ["--images=6"],
    "benchmarks.compare_kills": [
        *["--kills=1", "--config=configs/compare_toy.py:tiny", "--config.grid.steps=(3,)", "--config.grid.seeds=(0,)"],
        *["--config.grid.rules=('small',)", "--config.grid.etas=(1.0,)", "--config.grid.trajectories=('even',)"],
    ],
    "--config.moments.statistics=trajectories": ["--config.moments.starts=20", "--config.moments.flow_nodes=8"],
    "--config.sampling.solver=fitted": ["--config.moments.starts=20", "--config.moments.flow_nodes=8"],
    "benchmarks.folder": ["--images=60", "--batch=4", "--steps=1", "--repeats=2"],
    "benchmarks.estimators": ["--draws=300", "--dense=4"],
    "benchmarks.integrators": ["--samples=40", "--seeds=1", "--steps=3", "--draws=12", "--times=12", "--starts=20"],
    "benchmarks.inverse": ["--problems=2", "--samples=4", "--steps=3", "--draws=20", "--times=12"],
    "benchmarks.translation": ["--images=4", "--steps", "3"],
    "benchmarks.jumps": ["--samples=20", "--seeds=2", "--steps=5", "--trajectories=even"],
    "benchmarks.langevin": ["--chains=20"],
    "benchmarks.heads_exact": ["--iterations=3", "--draws=100"],
    "benchmarks.head_step": ["--batch=8", "--steps=1", "--repeats=2"],
    "benchmarks.overhead": ["--batch=8", "--unet-batch=2", "--steps=2", "--repeats=2", "--tiny"],
    "benchmarks.patch_world": [
        *["--patches=300", "--components=2", "--times=12", "--draws=50", "--seeds=2", "--steps", "3", "5"],
    ],
    "benchmarks.patch_states": [
        *["--patches=300", "--components=2", "--times=12", "--states=40", "--seeds=2", "--iterations=3"],
        *["--steps", "3", "5"],
    ],
    "benchmarks.patch_samples": [
        *["--patches=300", "--components=3", "--times=12", "--states=20", "--seeds=2", "--iterations=3"],
        *["--samples=60", "--screen=30", "--trunks", "3", "1", "--steps=3"],
    ],
    "benchmarks.peers": [
        *["--steps=3", "--screen=40", "--samples=40", "--seeds=2", "--draws=20", "--times=12"],
        *["--workers=1", "--trajectories=even", "--only", "DDIM", "adpm UniPC", "adpm spectral, eta 0"],
    ],
    "benchmarks.products": ["--calls=8", "--samples=20", "--seeds=2", "--draws=12", "--times=12"],
    "--config=configs/patches.py": ["--config=configs/digits.py"],  # 22,374 images take minutes to compare
    "--config=configs/mnist.py": ["--config=configs/digits.py", "--data="],  # which come along
    "benchmarks.planning": ["--quick"],
    "benchmarks.processes": ["--pairs=0", "--samples=4000"],
    "--config.moments.target_error=0.05": ["--config.moments.target_error=0.5"],
    "benchmarks.step_profile": ["--batch=4", "--steps=2"],
    "benchmarks.scheduler": [
        *["--steps=3", "--samples=40", "--seeds=2", "--draws=20", "--times=12"],
        *["--only", "spectral, least-cost, eta 0.5"],
    ],
    "benchmarks.spectral_bits": [
        *["--models", "linear", "--images=6", "--draws=16", "--times=12", "--steps", "3", "5", "--measured"],
    ],
}


def _quick(path: str) -> tuple[ConfigDict, House]:
    """The Gaussian of the data for the network, which is called at all 1,000 times."""
    config, house = load_config(path)
    fields = {"denoiser.name": "gaussian", "denoiser.clip": False, "moments.draws": 12, "moments.times": 12}
    house.table.update(config, fields)
    return config, house


SMALLER: dict[str, dict[str, Any]] = {
    "benchmarks.digits_bits": {"BUDGETS": (3, 5, 25), "load_config": _quick},
    "benchmarks.integrators": {"PATHS": ("log_snr",)},
    "benchmarks.jumps": {"LANDINGS": (-4.0, 0.0)},
    "benchmarks.langevin": {"STEPS": 5},
    "benchmarks.compare_kills": {"MAIN": UNPAINTED},
    "benchmarks.translation": {"SHARES": (0.5,), "WEIGHTS": (0.5,), "RULES": ("small",)},
}

WITH_WORKDIR = (
    "main.py",
    "benchmarks.compare_kills",
    "benchmarks.digits_bits",
    "benchmarks.heads_exact",
    "benchmarks.integrators",
    "benchmarks.inverse",
    "benchmarks.jumps",
    "benchmarks.patch_samples",
    "benchmarks.patch_states",
    "benchmarks.peers",
    "benchmarks.products",
    "benchmarks.scheduler",
    "benchmarks.spectral_bits",
    "benchmarks.translation",
)
FEW_DRAWS = ["--config.moments.draws=12", "--config.moments.times=12"]
# A head is trained on the shipped network; a network of its own can be a small one.
NARROW = ["--config.network.model_channels=8"]


def test_the_readme_has_commands_for_every_mode_and_a_quickstart():
    assert {f"--mode={mode}" for mode in MODES} <= {
        word for command in COMMANDS for word in command.split() if word.startswith("--mode=")
    }
    targets = [line.split()[1] for line in SHELL if line.startswith("make ")]
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def shortened(command: str, folder: Path) -> list[str]:
    """The command's words without `python`, made short, its files in a folder of the test."""
    words = shlex.split(command)[1:]
    extra = [option for word, options in SHORTER.items() if word in words for option in options]
    if "--mode=train" not in words:
        extra += FEW_DRAWS * (words[0] == "main.py" and any(n in command for n in ("digits.py", "digits_sde.py:")))
    elif not any(name in command for name in (":sn", "_sn", "npr", "relative", "spectral")):
        extra += NARROW
    if any(w in words for w in WITH_WORKDIR):
        words = [w for w in words if not w.startswith("--workdir=")] + [f"--workdir={folder / 'run'}"]
    return [re.sub("^--figure=.*/", f"--figure={folder}/", word) for word in words] + extra


@pytest.fixture
def as_in_a_process(monkeypatch) -> Iterator[None]:
    """What a command changes for its whole process is as before after it: random numbers, environment, fonts."""
    numbers, legacy, environment = torch.get_rng_state(), np.random.get_state(), dict(os.environ)
    monkeypatch.chdir(ROOT)
    with matplotlib.rc_context():
        yield
    torch.set_rng_state(numbers)
    np.random.set_state(legacy)
    os.environ.clear()
    os.environ.update(environment)


def call(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int | None:
    """`python WORDS` without a new process."""
    if words[0] == "main.py":
        return run(words, MODES)
    assert words[0] == "-m"
    module = importlib.import_module(words[1])
    monkeypatch.setattr(sys, "argv", [module.__file__, *words[2:]])
    for name, value in SMALLER.get(words[1], {}).items():
        monkeypatch.setattr(module, name, value)
    return module.main()


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, tmp_path, monkeypatch, as_in_a_process, unpainted, capsys):
    assert not call(shortened(command, tmp_path), monkeypatch), capsys.readouterr().err
    told = capsys.readouterr()
    assert told.out.strip() and "Traceback" not in told.err


def demo() -> str:
    """The command behind `make demo`."""
    recipe = re.search(r"^demo:.*\n\t(.*)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe is not None
    return recipe[1].replace("$(BIN)/", "")


@pytest.mark.parametrize("command", [demo(), "python main.py --config=configs/toy.py --mode=describe"])
def test_command_in_a_process_of_its_own(command, tmp_path):
    assert command in COMMANDS
    done = finished(*shortened(command, tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and "Traceback" not in done.stderr


def test_the_notebook_runs_as_written(monkeypatch):
    """Its lines, with the digits model's network for the reader's own, and few of its images."""
    monkeypatch.chdir(ROOT)
    model = adpm.load("configs/digits.py")
    names: dict[str, Any] = {
        "network": model.denoise.network,
        "images": model.images["train"][:40],
        "test_images": model.images["test"][:3],
    }
    lines = [line for line in PYTHON[0].splitlines() if line.strip()]
    assert len(lines) <= 10 and lines[0] == "import adpm"
    exec(
        compile(PYTHON[0].replace("draws=300", "draws=12, times=12").replace("n=64", "n=2"), "README.md", "exec"), names
    )
    assert names["samples"].shape == (2, 1, 8, 8) and len(names["plan"].times) == 11
    assert names["bits"].bits.shape == (11, 3) and 0.0 < names["bits"].total.mean < 8.0


def test_the_member_of_the_readme_is_one(tmp_path, capsys):
    """Its lines at the head of a config file: half the data's variance at the start, and an option that is checked."""
    file = tmp_path / "mine.py"
    file.write_text(PYTHON[1] + "\n\nfrom configs import toy\n\nget_config = toy.get_config\n")
    argv = ["main.py", f"--config={file}", "--mode=sample", f"--workdir={tmp_path / 'run'}", "--config.rule.name=share"]
    few = ["--config.sampling.samples=4", "--config.trajectory.name=even", "--config.trajectory.steps=3"]
    assert run([*argv, *few], MODES) == 0
    assert run([*argv, *few, "--config.rule.share=2"], MODES) == 2
    assert "config.rule.share = 2.0 must be a number of at least 0 and of at most 1." in capsys.readouterr().err
    assert len(PYTHON) == 2


def test_the_tour_is_its_commands():
    """docs/tour.sh runs what docs/tour.md shows, in its order, and each begins as a command of the project."""
    shown = re.findall(r"^\$ (python main\.py(?:[^\n]*\\\n)*[^\n]*)$", (ROOT / "docs" / "tour.md").read_text(), re.M)
    script = (ROOT / "docs" / "tour.sh").read_text()
    assert len(shown) == 11 and script.endswith("\n".join(shown) + "\n")


@pytest.mark.parametrize("variant", ["digits.py", "digits_sde.py:vp", "digits.py:sn", "compare_digits.py:tour"])
def test_configs_of_the_tour_exist(variant, monkeypatch):
    monkeypatch.chdir(ROOT)
    path, _, name = variant.partition(":")
    assert load_config(f"configs/{path}", name)


def test_pictures_and_links_exist():
    for page in [*PAGES, *(ROOT / "docs").glob("*.md"), ROOT / "pretrained" / "README.md"]:
        text = page.read_text()
        targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
        missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
        assert not missing, f"{page.name}: {missing}"
