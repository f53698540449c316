"""What TensorBoard and pictures show: every point once, whatever happened to the run, and figures with their scales."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.summary.writer import event_file_writer

from adpm.run.figures import deviation_figure, strip_figure
from adpm.run.interrupts import Stop
from adpm.run.modes.train import loop
from adpm.run.report import EVENTS, Report, markdown
from adpm.run.training import Trainer
from tests.boards import Run, board
from tests.processes import finished
from tests.trainings import small_trainer

# ---------------------------------------------------------------------------------------------- points


def test_curves_may_come_in_any_order(tmp_path: Path) -> None:
    """Sampling runs from large t to small; of falling steps, the data server would show the last point alone."""
    points = {1000: 0.5, 300: 0.25, 1: 2.0, 700: -1.0}
    with Report(tmp_path / "run") as report:
        report.curve("reverse/variance", points)
        report.curve("one", {7: 3.0})
    shown = board(tmp_path)["run"].scalars
    assert shown == {"one": [(7, 3.0)], "reverse/variance": [(1, 2.0), (300, 0.25), (700, -1.0), (1000, 0.5)]}


def test_a_thousand_points_are_all_shown(tmp_path: Path) -> None:
    with Report(tmp_path / "run") as report:
        report.curve("variance", {n: float(n) for n in range(1000, 0, -1)})
    assert board(tmp_path)["run"].scalars["variance"] == [(n, float(n)) for n in range(1, 1001)]


def test_a_mode_run_again_begins_anew(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with Report(tmp_path / "run") as report:
            report.curve("x", {5: value, 9: value})
    assert board(tmp_path)["run"].scalars == {"x": [(5, 2.0), (9, 2.0)]}


def written(folder: Path, steps: range, last: int = 0, rate: float = 1.0) -> None:
    """Points and pictures at every step, at odd ones of another tag, and the row of the HParams tab."""
    with Report(folder, last=last) as report:
        report.trial("run", {"rate": rate}, {"figure": rate})
        for step in steps:
            report.scalars({"loss": step / 2.0, **({"odd": float(step)} if step % 2 else {})}, step)
            report.picture("picture", torch.full((1, 2, 2), step / 20.0), step)


def test_a_run_that_goes_on_has_every_point_once(tmp_path: Path) -> None:
    """Also when it had gone further, went on twice, was cut off in a record, and has other options now."""
    written(tmp_path / "whole" / "run", range(1, 11), rate=0.5)
    parts = tmp_path / "parts" / "run"
    written(parts, range(1, 5))
    written(parts, range(3, 9), last=2, rate=0.7)
    (newest,) = (file for file in sorted(parts.glob(EVENTS))[1:])
    newest.write_bytes(newest.read_bytes()[:-7])
    written(parts, range(6, 11), last=5, rate=0.5)
    assert board(tmp_path / "parts") == board(tmp_path / "whole")
    assert board(tmp_path / "parts")["run"].trial == {"rate": 0.5}
    first = next(EventFileLoader(str(min(parts.glob(EVENTS)))).Load())
    assert first.file_version, "what a file of events begins with"
    written(parts, range(0), last=4, rate=0.5)
    assert [step for step, _ in board(tmp_path / "parts")["run"].scalars["loss"]] == [1, 2, 3, 4], "a shorter run"


def test_kept_events_are_read_before_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of files hold second, process and a counter: of one second, those of process 10 come before those of 9."""
    for process, steps, last in ((9, range(1, 4), 0), (10, range(3, 6), 2), (11, range(5, 7), 4)):
        with monkeypatch.context() as patch:
            patch.setattr(event_file_writer.time, "time", lambda: 1_700_000_000.5)
            patch.setattr(event_file_writer.os, "getpid", lambda process=process: process)
            written(tmp_path / "run", steps, last)
    assert [step for step, _ in board(tmp_path)["run"].scalars["loss"]] == [1, 2, 3, 4, 5, 6]


def test_files_that_are_no_events_do_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    written(folder, range(1, 4))
    (folder / "events.out.tfevents.0.broken").write_bytes(b"\x07" * 300)
    (folder / "events.out.tfevents.1.empty").touch()
    written(folder, range(3, 6), last=2)
    assert [step for step, _ in board(tmp_path)["run"].scalars["loss"]] == [1, 2, 3, 4, 5]


# ---------------------------------------------------------------------------------------------- a killed training


def trained(folder: Path, until: int | None = None) -> None:
    """30 iterations, with a point every 5 and a picture every 10; killed after `until` of them."""
    trainer = small_trainer(folder, log_every=5, test_every=10, sample_every=10, save_every=20)
    step = trainer.step

    def killed() -> dict[str, float]:
        if trainer.iteration == until:
            os.kill(os.getpid(), signal.SIGKILL)
        return step()

    trainer.step = killed  # type: ignore[method-assign]
    with Report(folder / "board" / "train", last=trainer.iteration) as report:
        loop(trainer, report, trainer.averaged, Stop())


def curves(folder: Path) -> Run:
    return board(folder / "board")["train"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("whole")
    trained(folder)
    return curves(folder)


@pytest.mark.parametrize("until", [7, 20, 26])
def test_curves_of_a_killed_training_are_those_of_a_whole_one(tmp_path: Path, until: int, whole: Run) -> None:
    """A kill loses what was not written, and no point before the state that the run goes on from is."""
    child = os.fork()
    if not child:
        try:
            trained(tmp_path / "parts", until)
        finally:
            os._exit(1)  # never back into the tests
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    trained(tmp_path / "parts")
    assert [step for step, _ in whole.scalars["train/loss"]] == [5, 10, 15, 20, 25, 30]
    assert (
        [step for step, _ in whole.scalars["test/loss"]]
        == [10, 20, 30]
        == [s for s, _ in whole.images["train/samples"]]
    )
    assert curves(tmp_path / "parts") == whole
    assert small_trainer(tmp_path / "parts").iteration == 30


def test_a_state_is_saved_after_what_was_reported_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a kill right after it would lose those points: the writer is a thread that lags behind."""
    done: list[object] = []
    for owner, name in ((Report, "scalars"), (Report, "flush"), (Trainer, "save")):
        whole_work = getattr(owner, name)

        def noted(self: object, *args: object, work: Any = whole_work, name: str = name) -> object:
            done.append(name)
            return work(self, *args)

        monkeypatch.setattr(owner, name, noted)
    trainer = small_trainer(tmp_path, iterations=4, log_every=1, test_every=2, save_every=2)
    with Report(tmp_path / "board") as report:
        loop(trainer, report, trainer.averaged, Stop())
    assert done == 2 * ["scalars", "scalars", "scalars", "flush", "save"]


def test_a_stopped_training_saves_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def one(number: int | None, seen: list[int]) -> None:
        trainer: Trainer = small_trainer(tmp_path, log_every=1)
        seen.append(trainer.iteration)
        stop = Stop()
        stop.signal = number
        with Report(tmp_path / "board" / "train", last=trainer.iteration) as report:
            loop(trainer, report, trainer.averaged, stop)

    seen: list[int] = []
    for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
        with pytest.raises(error):
            one(number, seen)
    one(None, seen)
    assert seen == [0, 1, 2] and "stopped after iteration 2; the state is saved in" in capsys.readouterr().out
    assert [step for step, _ in curves(tmp_path).scalars["train/loss"]] == list(range(1, 31))


# ---------------------------------------------------------------------------------------------- rows and tables


def test_a_trial_is_a_row_with_its_figures(tmp_path: Path) -> None:
    with Report(tmp_path / "small") as report:
        chosen = {"rule": "small", "steps": 25, "eta": 0.5, "clip": True, "corrector": None}
        report.trial("small", chosen, {"sample/frechet": 3.5})
    shown = board(tmp_path)["small"]
    assert shown.trial == {"rule": "small", "steps": 25.0, "eta": 0.5, "clip": True}
    assert shown.scalars == {"sample/frechet": [(0, 3.5)]}


def test_a_protocol_is_a_short_table() -> None:
    protocol = {
        "seed": 0,
        "rule": {"name": "analytic", "cap_levels": 1.0 / 3.0, "average": False},
        "moments": None,
        "note": "",
        "head": {},
        "path": [0.0, 1.0, 250.0, 333.25, 500.0, 750.0, 1000.0],
        "ends": [1, 1000],
        "norm": "|x|",
    }
    assert markdown(protocol).splitlines() == [
        "| | |",
        "|---|---|",
        "| seed | 0 |",
        "| rule.name | analytic |",
        "| rule.cap_levels | 0.333333 |",
        "| rule.average | False |",
        "| path | 0, 1, 250, 333.25, ..., 1000 (7) |",
        "| ends | 1, 1000 |",
        r"| norm | \|x\| |",
    ]


# ---------------------------------------------------------------------------------------------- strips


def drawn(figure: Figure) -> tuple[NDArray[np.float64], list[str]]:
    """The picture in a figure's first axes, as it is handed to the screen, and the words below its columns."""
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    return np.ma.filled(axes.images[0].get_array(), np.nan), [label.get_text() for label in axes.get_xticklabels()]


TIMES, LOG_SNR = np.array([1000.0, 0.5, 1e-3]), np.array([-10.06, 0.0, 9.21])


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_strip_names_its_columns(channels: int) -> None:
    images = np.arange(2 * 3 * channels * 4).reshape(2, 3, channels, 2, 2) / 100.0
    picture, labels = drawn(strip_figure(torch.from_numpy(images), TIMES, LOG_SNR))
    assert labels == ["1000\n-10.1", "0.5\n0.0", "0.001\n9.2"]
    assert picture.shape[:2] == (2 * 3 - 1, 3 * 3 - 1)
    shown = images if channels == 3 else images.mean(2, keepdims=True)
    for row in range(2):
        for column in range(3):
            tile = picture[3 * row : 3 * row + 2, 3 * column : 3 * column + 2].reshape(2, 2, -1)
            np.testing.assert_allclose(tile, np.moveaxis(shown[row, column], 0, -1))
    assert np.all(picture[2] == 1.0) and np.all(picture[:, 5] == 1.0), "white between images"


def test_deviations_have_one_scale_with_its_bar() -> None:
    """Equal brightness is equal deviation in all columns; channels count by their root mean square."""
    deviation = np.full((1, 3, 2, 2, 2), 0.01)
    deviation[0, 0], deviation[0, 1, 0], deviation[0, 1, 1] = 2.0, 0.3, 0.4
    figure = deviation_figure(deviation, TIMES, LOG_SNR)
    picture, labels = drawn(figure)
    assert labels[0] == "1000\n-10.1"
    np.testing.assert_allclose(picture[:, 0:2].squeeze(), 2.0)
    np.testing.assert_allclose(picture[:, 3:5].squeeze(), np.sqrt((0.09 + 0.16) / 2))
    np.testing.assert_allclose(picture[:, 6:8].squeeze(), 0.01)
    assert np.isnan(picture[:, 2]).all()
    norm = figure.axes[0].images[0].norm
    assert (norm.vmin, norm.vmax) == pytest.approx((0.01, 2.0)) and norm(np.sqrt(0.02)) == pytest.approx(0.5)
    assert figure.axes[1].get_ylabel() == "standard deviation of the step"


@pytest.mark.parametrize(("last", "ends"), [(0.0, (0.002, 2.0)), (1e-9, (0.002, 2.0)), (2.0, (0.0, 2.0))])
def test_deviations_of_nothing_do_not_stretch_the_scale(last: float, ends: tuple[float, float]) -> None:
    deviation = np.full((2, 3, 1, 2, 2), 2.0)
    deviation[:, -1] = last
    figure = deviation_figure(deviation, TIMES, LOG_SNR)
    drawn(figure)
    norm = figure.axes[0].images[0].norm
    assert (norm.vmin, norm.vmax) == pytest.approx(ends)
    drawn(deviation_figure(0.0 * deviation, TIMES, LOG_SNR))


FULL = """
import resource, signal, sys
import torch
from pathlib import Path
from adpm.run.report import Report
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    with Report(Path(sys.argv[1])) as report:
        report.picture("noise", torch.rand(1, 64, 64), 0)
except OSError as error:
    print(error.filename, error.strerror)
"""


def test_a_full_disk_is_told_by_its_folder_and_not_by_a_traceback(tmp_path: Path) -> None:
    """The events are written by a thread of their own."""
    done = finished("-c", FULL, tmp_path / "board")
    assert done.stdout == f"{tmp_path / 'board'} File too large\n" and "Traceback" not in done.stderr
