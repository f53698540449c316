"""The tour: train, measure and sample on digits by the project's own command line, and write the page about it.

    python -m docs.tour [--workdir=runs/tour] [--page=docs/tour.md] [--config.SECTION.FIELD=VALUE ...]

The prose is in tour.template.md. Its {placeholders} are filled from what the commands printed and from the files that
they left, never by hand. Fields of the config go to every command. A tour that was stopped goes on when it is started
again; one of other settings needs another workdir.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adpm.run.files import write_whole
from docs.commands import CORES, INTERRUPTED, Command, CommandFailed, read_record, run_all
from docs.figures import LEAST_DRAWN, cost_of_steps, loss_curves, what_moments_say

TEMPLATE = Path("docs/tour.template.md")
HIDDEN = re.compile("^TensorBoard:")  # lines of the output that the page leaves out
WIDTH = 110  # of a command in the page

SHORT = ("--config.train.ema_decay=0.995", "--config.train.test_every=500")
TRAINING = (*SHORT, "--config.train.iterations=2000", "--config.train.sample_every=0")
HEAD_TRAINING = (*SHORT, "--config.train.iterations=1500")


class Results:
    """What finished commands left: outputs, the files that these name, and the pictures of the page.

    Args:
        workdir: of the tour.
        pictures: folder of the page's pictures.
    """

    def __init__(self, workdir: Path, pictures: Path) -> None:
        self.workdir, self.pictures = workdir, pictures
        self.commands: list[Command] = []

    @property
    def records(self) -> Path:
        return self.workdir / "commands"

    def output(self, name: str) -> str:
        return (self.records / f"{name}.txt").read_text()

    def file(self, name: str, label: str) -> Path:
        """The file that a command's output names in its last line `label: FILE`."""
        return Path(re.findall(rf"^{label}: +(.+)$", self.output(name), re.M)[-1])

    def result(self, name: str) -> dict[str, Any]:
        """The result.json of a bound, and what its costliest step adds."""
        result = json.loads(self.file(name, "result").read_text())
        return {**result, "costliest": max(result["curve"]["bits_per_dim"])}

    def copy(self, source: Path, name: str) -> None:
        """Put a run's picture beside the page."""
        write_whole(self.pictures / name, lambda path: path.write_bytes(source.read_bytes()))

    def blocks(self) -> dict[str, str]:
        """Every command with its output as a Markdown block."""
        return {command.name: self._block(command) for command in self.commands}

    def _block(self, command: Command) -> str:
        lines = [line for line in self.output(command.name).splitlines() if not HIDDEN.match(line)]
        return "\n".join(["```console", *shown(command), *lines, "```"])

    def costs(self) -> dict[str, Any]:
        """The table of what every command cost, as Markdown rows, and the sum of CPU minutes."""
        rows, total = [], 0.0
        for command in self.commands:
            record = read_record(self.records, command)
            assert record is not None
            total += record.cpu_seconds
            rows.append(f"| {command.name} | {record.seconds:.0f} | {record.cpu_seconds:.0f} |")
        return {"rows": "\n".join(rows), "cpu_minutes": total / 60.0}


@dataclass(frozen=True)
class Step:
    """One step of the tour.

    Attributes:
        commands: independent ones, run side by side.
        report: draws the step's pictures; returns what the template asks for, by name.
    """

    commands: tuple[Command, ...]
    report: Callable[[Results], Mapping[str, Any]] = lambda results: {}


def steps(workdir: Path, more: Sequence[str], compared: Sequence[str] = ()) -> list[Step]:
    """The tour; `more` are options for every command on one model, `compared` for the comparison."""

    def command(name: str, config: str, mode: str, folder: str, *options: str) -> Command:
        where = f"--workdir={workdir / folder}"
        return Command(name, (f"--config=configs/{config}", f"--mode={mode}", where, *options, *more))

    def bound(name: str, config: str, *options: str) -> Command:
        return command(name, config, "likelihood", "discrete", "--config.trajectory.steps=10", *options)

    even = "--config.trajectory.name=even"
    training = (
        command("train-discrete", "digits.py", "train", "discrete", *TRAINING),
        command("train-vp", "digits_sde.py:vp", "train", "vp", *TRAINING),
    )
    bounds = (
        bound("bound-small", "digits.py", "--config.rule.name=small", even),
        bound("bound-even", "digits.py", even),
        bound("bound-least-cost", "digits.py"),
    )
    use_of_the_head = (
        bound("bound-head", "digits.py:sn"),
        command("sample-head", "digits.py:sn", "sample", "discrete"),
    )
    comparison = (
        "--config=configs/compare_digits.py:tour",
        "--mode=compare",
        f"--workdir={workdir}",
        f"--config.processes={CORES}",
    )
    return [
        Step(training, _train),
        Step((command("estimate", "digits.py", "estimate", "discrete"),), _estimate),
        Step(bounds, _plan),
        Step((command("sample", "digits.py", "sample", "discrete"),), _sample),
        Step((command("train-head", "digits.py:sn", "train", "discrete", *HEAD_TRAINING),)),
        Step(use_of_the_head, _head),
        Step((Command("compare", (*comparison, *compared)),), _compare),
    ]


def _train(results: Results) -> Mapping[str, Any]:
    folders = {name: results.workdir / name / "tensorboard" / "train" for name in ("discrete", "vp")}
    return {"test_loss": loss_curves(results.pictures / "loss.png", folders)}


def _estimate(results: Results) -> Mapping[str, Any]:
    picture = results.file("estimate", "figure")
    results.copy(picture, "moments.png")
    return {"moments": what_moments_say(picture.with_suffix(".npz"), results.commands[-1].options)}


def _plan(results: Results) -> Mapping[str, Any]:
    small, even, planned = (results.result(f"bound-{name}") for name in ("small", "even", "least-cost"))
    curves = {"small, even": small, "analytic, even": even, "analytic, least-cost": planned}
    cost_of_steps(results.pictures / "steps.png", {name: result["curve"] for name, result in curves.items()})
    told = {"variance": difference(even, small), "steps": difference(planned, even)}
    return {"small": small, "even": even, "planned": planned, "planning": told, "least_drawn": LEAST_DRAWN}


def _sample(results: Results) -> Mapping[str, Any]:
    grid = results.file("sample", "grid")
    results.copy(grid, "grid.png")
    results.copy(grid.with_name("strip.png"), "strip.png")
    path = json.loads(grid.with_name("protocol.json").read_text())["path"]  # of indices, 0 and the last included
    tenth = path[-1] // 10
    return {"path": {"steps": len(path) - 1, "tenth": tenth, "early": sum(0 < t <= tenth for t in path)}}


def _head(results: Results) -> Mapping[str, Any]:
    folder = results.file("sample-head", "grid").parent
    for name in ("strip", "deviation"):
        results.copy(folder / f"{name}.png", f"head_{name}.png")
    head = results.result("bound-head")
    outside = head["curve"]["clipped_share"]
    told = {
        "against_scalar": difference(head, results.result("bound-least-cost")),
        "outside_first": outside[-1],
        "outside_last": outside[0],
    }
    return {"head": {**head, **told}}


def _compare(results: Results) -> Mapping[str, Any]:
    for name in ("quality.png", "trajectories.png"):
        results.copy(results.workdir / "figures" / name, name)
    verdict = (results.workdir / "tables" / "verdict.md").read_text().strip()
    return {"verdict": re.sub("^## ", "### ", verdict, flags=re.M)}


def shown(command: Command) -> list[str]:
    """A command as one types it, broken where it would be too long for the page."""
    words = textwrap.wrap(
        f"$ {command.line}", WIDTH, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
    )
    return [f"{part} \\" for part in words[:-1]] + words[-1:]


def difference(new: Mapping[str, Any], old: Mapping[str, Any]) -> str:
    """How two bounds differ, in words; less than two standard errors, as if of independent images, is no difference."""
    gap = new["bits_per_dim"] - old["bits_per_dim"]
    if abs(gap) < 2.0 * (new["standard_error"] ** 2 + old["standard_error"] ** 2) ** 0.5:
        return "not different beyond two standard errors"
    return f"{abs(gap):.2f} bits/dim {'lower' if gap < 0 else 'higher'}"


def take(workdir: Path, page: Path, more: Sequence[str], compared: Sequence[str] = ()) -> None:
    """Run the steps that have not been run, then write the page.

    Raises:
        CommandFailed: when a command fails; nothing is written then.
    """
    results, values = Results(workdir, page.parent / "tour"), {}
    for step in steps(workdir, more, compared):
        run_all(step.commands, results.records)
        results.commands += step.commands
        values |= step.report(results)
    facts = {"run": results.blocks(), "cost": results.costs(), "workdir": workdir}
    text = TEMPLATE.read_text().format(**values, **facts, cores=CORES, torch=torch.__version__)
    write_whole(page, lambda path: path.write_text(text))
    print(f"page: {page}")


def main() -> int:
    parser = argparse.ArgumentParser(description="the tour of the project on digits", allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, default=Path("runs/tour"))
    parser.add_argument("--page", type=Path, default=Path("docs/tour.md"))
    options, more = parser.parse_known_args()
    for ending in (signal.SIGINT, signal.SIGTERM):  # a background job is born deaf to SIGINT, and so are its commands
        signal.signal(ending, signal.default_int_handler)
    try:
        take(options.workdir, options.page, more)
    except CommandFailed as failure:
        print(f"the tour stopped at\n{failure}", file=sys.stderr)
        return failure.code
    except KeyboardInterrupt:
        print("\ninterrupted; start the tour again to go on where it stopped.", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
