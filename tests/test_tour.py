"""The tour: its page says what its runs say, and its commands survive being stopped."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from docs.commands import Command, CommandFailed, read_record, run_all
from docs.tour import difference, shown, steps, take

ROOT = Path(__file__).parent.parent
TINY = (
    *("--config.train.iterations=4", "--config.train.batch_size=8"),
    *("--config.train.log_every=2", "--config.moments.draws=12", "--config.moments.times=12"),
    *("--config.likelihood.images=8", "--config.sampling.samples=4"),
)


FEW = (
    *("--config.grid.steps=(2,)", "--config.shown=2", "--config.grid.seeds=(0,)", "--config.grid.etas=(1.0,)"),
    *("--config.sampling.samples=6", "--config.likelihood.images=4", "--config.grid.trajectories=('even',)"),
    *("--config.moments.draws=12", "--config.moments.times=12"),
)


def results_of(workdir: Path) -> dict[str, dict]:
    """The result.json of every bound, by the name of its method."""
    files = (workdir / "discrete" / "likelihood").glob("*/result.json")
    return {file.parent.name.partition("-K10")[0]: json.loads(file.read_text()) for file in files}


def test_the_page_says_what_the_runs_say(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    workdir, page = tmp_path / "run", tmp_path / "tour.md"
    take(workdir, page, TINY, FEW)
    text = page.read_text()
    assert not re.search("[{}]", text), "placeholders are left"
    pictures = re.findall(r'\]\((tour/[^)]+)\)|src="([^"]+)"', text)
    assert len(pictures) == 9 and all((tmp_path / "".join(p)).stat().st_size > 0 for p in pictures)
    bounds = results_of(workdir)
    assert len(bounds) == 4
    for name, rows in {"small-even": 1, "analytic-even": 1, "analytic-least_cost": 2, "sn-least_cost": 1}.items():
        told = f"| {bounds[name]['bits_per_dim']:.2f} ± {bounds[name]['standard_error']:.2f} |"
        assert text.count(told) == rows, (name, told)
    for command in (c for step in steps(workdir, TINY, FEW) for c in step.commands):
        typed = "\n".join(shown(command)) + "\n"
        assert shlex.split(typed.replace("\\\n", ""))[1:] == shlex.split(command.line)
        told = text.split(typed)[1].split("```")[0]
        printed = (workdir / "commands" / f"{command.name}.txt").read_text()
        assert told.strip() and told.splitlines() == [x for x in printed.splitlines() if "TensorBoard:" not in x]
    verdict = (workdir / "tables" / "verdict.md").read_text()
    assert "| **all** |" in verdict and verdict.split("\n", 1)[1].split("\n## ")[0].strip() in text
    before = {p: p.stat().st_mtime_ns for p in (workdir / "commands").iterdir()}
    take(workdir, page, TINY, FEW)
    assert page.read_text() == text and before == {p: p.stat().st_mtime_ns for p in (workdir / "commands").iterdir()}


@pytest.mark.parametrize(
    ("new", "told"), [(3.0, "1.00 bits/dim lower"), (3.8, "not different"), (4.5, "0.50 bits/dim higher")]
)
def test_a_difference_is_told_by_its_sign_and_size(new, told):
    old = {"bits_per_dim": 4.0, "standard_error": 0.1}
    assert difference({"bits_per_dim": new, "standard_error": 0.1}, old).startswith(told)


@pytest.fixture
def script(tmp_path, monkeypatch, ctrl_c):
    """A main.py that does what its options say, in a folder of its own."""
    (tmp_path / "main.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "commands"


SCRIPT = """
import sys, time
for word in sys.argv[1:]:
    if word == "say":
        print("said")
    if word == "fail":
        sys.exit("error: a sentence about a field.")
    if word == "wait":
        try:
            print("waiting")
            time.sleep(0 if open("been", "a+").tell() else 60)
        except KeyboardInterrupt:
            open("been", "a").write("here")
            sys.exit(130)
"""


def test_finished_commands_are_not_run_again(script):
    commands = [Command("a", ("say",)), Command("b", ("say", "say"))]
    run_all(commands, script)
    written = (script / "b.json").stat().st_mtime_ns
    assert (script / "b.txt").read_text() == "said\nsaid\n"
    run_all(commands, script)
    assert (script / "b.json").stat().st_mtime_ns == written
    run_all([Command("b", ("say",))], script)
    assert (script / "b.txt").read_text() == "said\n", "another command of that name is another command"


def test_a_failure_stops_what_is_beside_it_and_says_why(script):
    long, failing = Command("long", ("wait",)), Command("failing", ("fail",))
    started = time.perf_counter()
    with pytest.raises(CommandFailed, match="(?s)main.py fail.*error: a sentence about a field") as failure:
        run_all([long, failing, Command("later", ("say",))], script)
    assert failure.value.code == 1 and time.perf_counter() - started < 30
    assert not (script / "later.txt").exists()
    record = read_record(script, long)
    assert record is not None and record.code == 130


def test_an_interrupted_command_goes_on(script):
    command = Command("long", ("say", "wait"))

    def stop() -> None:
        while not (script / "long.txt").exists() or "waiting" not in (script / "long.txt").read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop).start()
    with pytest.raises(KeyboardInterrupt):
        run_all([command], script)
    record = read_record(script, command)
    assert record is not None and record.code == 130
    run_all([command], script)
    again = read_record(script, command)
    assert again is not None and again.code == 0 and again.seconds > record.seconds
    assert (script / "long.txt").read_text() == "said\nwaiting\n" * 2, "what it printed before is kept"


def test_the_tour_ends_with_the_message_and_code_of_the_command_that_failed(tmp_path):
    (tmp_path / "main.py").write_text("import sys\nprint('error: why.', file=sys.stderr)\nsys.exit(2)\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "docs.tour"]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and "--mode=train" in done.stderr and done.stderr.endswith("error: why.\n")
    assert not (tmp_path / "docs").exists()
