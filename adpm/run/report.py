"""What a run shows its user: TensorBoard, pictures, tables."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.text import summary_v2 as texts
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from adpm.provenance import leaves
from adpm.ranks import alone, ranks
from adpm.whole import named, write_whole

EVENTS = "events.out.tfevents.*"
_KEPT = "events.out.tfevents.0000000000.kept"
"""Events of earlier processes. Files are read in the order of their names, which begin with the second they are of."""


def image_grid(unit_images: Tensor, columns: int = 0, gap: int = 1) -> Tensor:
    """Images [n, C, H, W] in [0, 1] side by side on white: [C, rows (H + gap) + gap, columns (W + gap) + gap]."""
    n, c, h, w = unit_images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    grid = torch.ones(c, rows * (h + gap) + gap, columns * (w + gap) + gap)
    for i, image in enumerate(unit_images):
        top, left = (i // columns) * (h + gap) + gap, (i % columns) * (w + gap) + gap
        grid[:, top : top + h, left : left + w] = image
    return grid


def save_png(path: Path, unit_image: Tensor, min_side: int = 512) -> None:
    """A [C, H, W] picture in [0, 1] as PNG, small ones enlarged by a whole factor so that pixels stay sharp."""
    array = (unit_image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    factor = max(1, math.ceil(min_side / max(array.shape[1:])))
    array = np.repeat(np.repeat(array, factor, 1), factor, 2)
    picture = Image.fromarray(array[0] if len(array) == 1 else array[:3].transpose(1, 2, 0))
    write_whole(path, lambda p: picture.save(p, format="PNG"))


def markdown(rows: Mapping[str, Any], shown: int = 6) -> str:
    """A table of names and values in Markdown: sections as dotted names, what is unset or empty left out.

    Args:
        rows: name -> value, or a mapping again.
        shown: longer lists are told by their first entries, the last one and their length.
    """
    cells = {name: _cell(value, shown) for name, value in leaves(rows).items()}
    lines = [f"| {name} | {cell} |" for name, cell in cells.items() if cell]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any, shown: int) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        items = [_cell(item, shown) for item in value]
        few = items if len(items) <= shown else [*items[: shown - 2], "...", items[-1]]
        return ", ".join(few) + (f" ({len(items)})" if len(items) > shown else "")
    return str(value).replace("|", "\\|").replace("\n", " ")


def _keep(folder: Path, last: int) -> None:
    """Leave of the events in a folder those of steps 1 to `last`, each once; step 0 is what a run says when it begins.

    They are rewritten, because not every reader minds a note in a later file that earlier ones went too far.
    """
    old = sorted(folder.glob(EVENTS))
    kept: dict[tuple[int, str], bytes] = {}
    for path in old if last else ():
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            tags = "".join(value.tag for value in event.summary.value)
            if event.HasField("file_version") or (0 < event.step <= last and tags):
                kept[event.step, tags] = record

    def write(path: Path) -> None:
        with path.open("wb") as file:
            for record in kept.values():
                RecordWriter(file).write(record)

    if kept:
        write_whole(folder / _KEPT, write)
    for path in old:
        if not (kept and path.name == _KEPT):
            path.unlink()


class Report:
    """TensorBoard events in one folder, to be closed; a context that closes itself. Of several ranks the first writes.

    Args:
        folder: where the events lie.
        last: earlier events up to this step are kept (a run that goes on), later ones forgotten; 0: all are (a mode
            run again).
    """

    def __init__(self, folder: Path, last: int = 0) -> None:
        self._folder, self._hook = folder, threading.excepthook
        self._writer: SummaryWriter | None = None
        if ranks().first:
            with alone():
                _keep(folder, last)
            self._writer = SummaryWriter(str(folder), purge_step=last + 1 if last else 0)  # for a board that is open
            threading.excepthook = self._unless_refused

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unless_refused(self, what: threading.ExceptHookArgs) -> None:
        """What the system refuses the writer's thread is raised by the next call; its traceback is not for people."""
        if not issubclass(what.exc_type, OSError):
            self._hook(what)

    def _write(self, kind: str, *what: Any) -> None:
        """A method of the writer, where there is one.

        Raises:
            OSError: naming the folder, where the system refuses.
        """
        if self._writer is not None:
            with named(self._folder):
                getattr(self._writer, kind)(*what)

    def _add(self, summary: Summary) -> None:
        """What the writer itself has no function for, or one that adds runs or tags of its own."""
        if self._writer is not None:
            self._writer._get_file_writer().add_summary(summary)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point of each tag. A tag's steps must rise: TensorBoard forgets the points from a lower step on."""
        for tag, value in values.items():
            self._write("add_scalar", tag, value, step)

    def curve(self, tag: str, points: Mapping[int, float]) -> None:
        """All points of a tag, step -> value, in whatever order."""
        for step in sorted(points):
            self.scalars({tag: points[step]}, step)

    def picture(self, tag: str, unit_image: Tensor, step: int, factor: int = 4) -> None:
        enlarged = unit_image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        self._write("add_image", tag, enlarged, step)

    def text(self, tag: str, text: str) -> None:
        self._add(texts.text_pb(tag, text))

    def figure(self, tag: str, figure: Figure, step: int = 0) -> None:
        self._write("add_figure", tag, figure, step)

    def layout(self, categories: Mapping[str, Mapping[str, str]]) -> None:
        """The Custom Scalars tab: category -> chart -> regular expression of the tags that it shows, of all runs."""
        charts = {name: {title: ["Multiline", [tags]] for title, tags in of.items()} for name, of in categories.items()}
        self._write("add_custom_scalars", charts)

    def experiment(self, choices: Mapping[str, Sequence[str]], metrics: Mapping[str, str]) -> None:
        """The HParams tab: columns with their values, and scalar tags with their titles. One run of a board has it."""
        columns = [hparams.HParam(name, hparams.Discrete(values)) for name, values in choices.items()]
        shown = [hparams.Metric(tag, display_name=title) for tag, title in metrics.items()]
        self._add(hparams.hparams_config_pb(columns, shown))

    def trial(
        self, name: str, chosen: Mapping[str, str | float | bool | None], figures: Mapping[str, float] | None = None
    ) -> None:
        """This run as a row of the HParams tab.

        Args:
            name: of the row.
            chosen: its columns; what is None is left out.
            figures: what came of it, as scalars; other scalars of the run are columns, too.
        """
        self._add(hparams.hparams_pb({key: v for key, v in chosen.items() if v is not None}, trial_id=name))
        self.scalars(figures or {}, 0)

    def flush(self) -> None:
        """Write everything so far, so that it outlives a kill."""
        self._write("flush")

    def close(self) -> None:
        try:
            self._write("close")
        finally:
            threading.excepthook = self._hook
