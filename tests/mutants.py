"""What share of deliberate faults do the tests notice?  `make mutants`, or `python -m tests.mutants --help`.

A fault replaces a piece of one line. Those of a package are listed in tests/faults/PACKAGE.txt:

    [*] test_a test_b               wider: test files that are asked when a fault passes its own
    [adpm/kernel.py] test_kernel    the file that the faults below are put into, and the tests that should notice
    - eta**2 * u                    a piece of that file, found there exactly once
    + eta * u                       what is put in its place

Each worker has a copy of the working tree and puts one fault at a time into it. A fault is killed if a test fails or
does not end. The exit code is 0 if the share of the killed is at least GOAL, 1 below that, and 2 if a fault does not
apply, does not compile, or has no tests, or if tests fail without one: then it is the lists that need mending.
"""

from __future__ import annotations

import argparse
import compileall
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pool
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import NamedTuple

ROOT, GOAL = Path(__file__).resolve().parent.parent, 0.95
PYTEST = (sys.executable, *"-m pytest -xq --tb=no -p no:cacheprovider --hypothesis-seed=0 -m".split(), "not slow")
LIMIT = 600.0  # seconds, for one fault; nothing hangs so long but by a fault
KILLED, SURVIVED, ERROR = "killed", "SURVIVED", "ERROR"


class Fault(NamedTuple):
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    wider: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.old}  ->  {self.new or '(nothing)'}"


def read(path: Path) -> list[Fault]:
    """The faults of one list."""
    faults, wider, file, tests, old = [], (), "", (), ""
    for line in path.read_text(encoding="utf-8").splitlines():
        mark, _, rest = line.partition(" ")
        named = tuple(f"tests/{name}.py" for name in rest.split())
        if mark == "[*]":
            wider = named
        elif mark.startswith("["):
            file, tests = mark.strip("[]"), named
        elif mark == "-":
            old = rest.strip()
        elif mark == "+":
            faults.append(Fault(file, old, rest.strip(), tests, tuple(test for test in wider if test not in tests)))
    return faults


def git(*arguments: str) -> list[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def into_a_copy(folder: str) -> None:
    """Go into a copy of the working tree: what git tracks, and what it does not ignore."""
    copy = Path(tempfile.mkdtemp(dir=folder))
    for name in git("-c", "core.quotepath=off", "ls-files", "--cached", "--others", "--exclude-standard"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    os.chdir(copy)
    for package in ("adpm", "sde", "covariance", "configs", "benchmarks"):
        # by contents: a fault may have the length and time of what it replaces
        compileall.compile_dir(package, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)


def outcome(arguments: Sequence[str], limit: float | None) -> tuple[str, str]:
    """(KILLED, by what), (SURVIVED, "") or (ERROR, why): what pytest with these arguments says about the copy."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": os.getcwd()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([*PYTEST, *arguments], env=env, start_new_session=True, **pipes)
    try:
        out, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return KILLED, f"no end in {limit:g} s"
    finally:
        with suppress(ProcessLookupError):  # whatever the tests have started ends with them
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    by = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", out, re.MULTILINE)
    if process.returncode in (1, 2) and by:  # 2: a test file could not be imported
        return KILLED, by[1]
    return (SURVIVED, "") if process.returncode == 0 else (ERROR, out.strip()[-300:])


def judged(fault: Fault) -> tuple[str, str]:
    """What the tests say about the copy with the fault, which is then taken out again."""
    path = Path(fault.file)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text.count(fault.old) != 1:
        return ERROR, f"the piece is found {text.count(fault.old)} times"
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    try:
        compile(path.read_text(encoding="utf-8"), fault.file, "exec")
        said = outcome(fault.tests, LIMIT)
        return outcome(fault.wider, LIMIT) if said[0] == SURVIVED and fault.wider else said
    except SyntaxError as error:
        return ERROR, f"does not compile: {error}"
    finally:
        path.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Put deliberate faults into copies of the code, and ask the tests.")
    parser.add_argument("--workers", type=int, default=1, help="copies that are tested at the same time")
    parser.add_argument("--only", default="", help="a regular expression to be found in 'file: old  ->  new'")
    parser.add_argument("--list", action="store_true", help="show the faults and stop")
    options, start, verdicts = parser.parse_args(), time.monotonic(), []
    faults = [fault for path in sorted((ROOT / "tests/faults").glob("*.txt")) for fault in read(path)]
    faults = [fault for fault in faults if re.search(options.only, str(fault))]
    if options.list or not faults:
        return print(*faults, f"{len(faults)} faults", sep="\n") or 0
    with tempfile.TemporaryDirectory() as folder, Pool(options.workers, into_a_copy, [folder]) as pool:
        named = sorted({test for fault in faults for test in (*fault.tests, *fault.wider)})
        together = ["-n", str(options.workers), "--dist", "worksteal"]
        if (said := pool.apply(outcome, ([*together, *named], None)))[0] != SURVIVED:
            print("without a fault:", *said)
            return 2
        for fault, (verdict, detail) in zip(faults, pool.imap(judged, faults), strict=True):
            verdicts.append(verdict)
            print(f"{verdict:9}{fault}  [{detail}]", flush=True)
    killed, errors = verdicts.count(KILLED), verdicts.count(ERROR)
    commit = git("rev-parse", "--short", "HEAD")[0] + (" with changes" if git("status", "--porcelain") else "")
    print(
        f"{killed} of {len(faults)} faults killed ({killed / len(faults):.1%}, goal {GOAL:.0%}), {errors} errors; "
        f"commit {commit}, {options.workers} worker(s), {time.monotonic() - start:.0f} s"
    )
    return 2 if errors else int(killed < GOAL * len(faults))


if __name__ == "__main__":
    sys.exit(main())
