"""Every command of README and docs, and the README's Python, runs, here on a few images, steps or iterations."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adpm.run.cli import run
from adpm.run.compare.grid import Grid
from adpm.run.core import CORE
from adpm.run.modes import MODES
from configs import compare_base
from tests.test_compare_grid import TABLES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in (ROOT / "README.md", ROOT / "docs" / "results.md")}  # comparison.md repeats


def shell(text: str) -> list[str]:
    """The lines of its ```sh blocks."""
    return [line.strip() for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines() if line]


SHELL = shell(README)
LINES = [line for text in PAGES.values() for line in shell(text)]
COMMANDS = [line.split("  #")[0].strip() for line in LINES if line.startswith("python ")]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)

# What makes a command short, by a word in it; later words win. The commands themselves are the README's.
SHORTER = {
    "--mode=train": ["--config.train.iterations=2", "--config.train.batch_size=8"],
    "--mode=likelihood": ["--config.likelihood.images=8", "--config.likelihood.rtol=1e-2"],
    "--mode=sample": ["--config.sampling.samples=4"],
    "--mode=estimate": ["--config.moments.draws=12", "--config.moments.times=8"],
    "--mode=compare": [
        *["--config.grid.steps=(2,)", "--config.shown=2", "--config.grid.seeds=(0,)", "--config.grid.etas=(1.0,)"],
        *["--config.sampling.samples=6", "--config.likelihood.images=4", "--config.moments.times=8"],
        *["--config.moments.draws=6", "--config.grid.rules=('small', 'sn')"],
        "--config.grid.trajectories=('even',)",
    ],
    "benchmarks.digits_bits": ["--images=6"],
    "benchmarks.digits_sde": ["--samples=4", "--seeds=2", "--budgets=2", "--images=2", "--models=vp"],
    "benchmarks.compare_kills": ["--kills=1", "--config=configs/compare_toy.py:tiny"],
    "benchmarks.estimators": ["--draws=300", "--dense=4"],
    "benchmarks.langevin": ["--chains=20"],
    "benchmarks.heads_exact": ["--iterations=3", "--draws=100"],
    "benchmarks.digits_heads": [
        *["--samples=4", "--seeds=2", "--budgets=2", "--images=2"],
        *["--draws=6", "--rules=relative"],
    ],
    "benchmarks.head_step": ["--batch=8", "--steps=1", "--repeats=2"],
    "benchmarks.overhead": ["--batch=8", "--steps=2", "--repeats=2"],
    "benchmarks.planning": ["--quick"],
}


WITH_WORKDIR = (
    "main.py",
    "benchmarks.compare_kills",
    "benchmarks.digits_bits",
    "benchmarks.digits_sde",
    "benchmarks.digits_heads",
    "benchmarks.heads_exact",
)
FEW_DRAWS = ["--config.moments.draws=12", "--config.moments.times=12"]
# A head is trained on the shipped network; a network of its own can be a small one.
NARROW = ["--config.network.model_channels=8"]


def test_the_readme_has_commands_for_every_mode_and_a_quickstart():
    assert {f"--mode={mode}" for mode in MODES} <= {
        word for command in COMMANDS for word in command.split() if word.startswith("--mode=")
    }
    targets = [line.split()[1] for line in SHELL if line.startswith("make ")]
    assert targets == ["demo", "tour", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, tmp_path):
    words = shlex.split(command)
    extra = [option for word, options in SHORTER.items() if word in words for option in options]
    if any(name in command for name in ("digits.py:", "digits_sde.py:")):
        extra += FEW_DRAWS
    if "--mode=train" in words and not any(name in command for name in (":sn", "_sn", "npr", "relative")):
        extra += NARROW
    if any(w in words for w in WITH_WORKDIR):
        words = [w for w in words if not w.startswith("--workdir=")] + [f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, *words[1:], *extra], cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and "Traceback" not in done.stderr


def test_quickstart(tmp_path, monkeypatch, capsys):
    """The notebook's lines run as written and give what --mode=sample gives on the same noise."""
    monkeypatch.chdir(ROOT)
    code = PYTHON[-1].replace("runs/notebook", str(tmp_path / "notebook"))
    assert code != PYTHON[-1] and len([line for line in code.splitlines() if line and "import" not in line]) <= 10
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    workdir = f"--workdir={tmp_path / 'notebook'}"
    argv = ["main.py", "--config=configs/digits.py", "--mode=sample", workdir, "--config.sampling.samples=16"]
    assert run(argv, CORE, MODES) == 0
    (file,) = (tmp_path / "notebook" / "samples").rglob("samples.npz")
    assert np.abs(np.load(file)["samples"] - names["x"].numpy()).max() < 1e-4  # type: ignore[attr-defined]
    assert "25 network calls each" in capsys.readouterr().out


def test_the_grid_in_the_readme_can_be(tmp_path, monkeypatch):
    """Its lines make 24 methods: no head on VP, no eta = 0 with large."""
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {"config": compare_base.get_config(), "formulation": compare_base.formulation}
    exec(compile(PYTHON[0], "README.md", "exec"), names)
    assert len(PYTHON) == 2
    names["config"].shown = 10
    methods, skipped = Grid(names["config"], tmp_path, TABLES).plan
    assert len(methods) == 24 and len(skipped) == 8
    assert {item.method.rule for item in skipped} == {"large", "sn"}


def test_pictures_and_links_exist():
    for page in [*PAGES, *(ROOT / "docs").glob("*.md"), ROOT / "pretrained" / "README.md"]:
        text = page.read_text()
        targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
        missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
        assert not missing, f"{page.name}: {missing}"
