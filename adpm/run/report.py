"""What a run tells its user: printed lines, TensorBoard, pictures, progress bars."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.text import summary_v2 as texts
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from adpm.run.files import write_whole

T = TypeVar("T")


def say(line: str) -> None:
    """One line to the user, above any progress bar."""
    tqdm.write(line, file=sys.stdout)


def progress(items: Iterable[T], *, total: int | None = None, initial: int = 0, what: str = "") -> tqdm[T]:
    """A progress bar with rate and time left; silent when the output is not a terminal."""
    return tqdm(items, total=total, initial=initial, desc=what, disable=not sys.stderr.isatty(), dynamic_ncols=True)


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


class Report:
    """TensorBoard events in one folder.

    Args:
        folder: where the events lie.
        purge_step: forget earlier events from this step on (a resumed run); None: forget all (a mode run again).
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        if purge_step is None:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def _add(self, summary: Summary) -> None:
        """What the writer itself has no function for, or one that adds runs or tags of its own."""
        self._writer._get_file_writer().add_summary(summary)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def picture(self, tag: str, unit_image: Tensor, step: int, factor: int = 4) -> None:
        enlarged = unit_image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        self._writer.add_image(tag, enlarged, step)

    def text(self, tag: str, text: str) -> None:
        self._add(texts.text_pb(tag, text))

    def figure(self, tag: str, figure: Figure, step: int = 0) -> None:
        self._writer.add_figure(tag, figure, step)

    def layout(self, categories: Mapping[str, Mapping[str, str]]) -> None:
        """The Custom Scalars tab: category -> chart -> regular expression of the tags that it shows, of all runs."""
        charts = {name: {title: ["Multiline", [tags]] for title, tags in of.items()} for name, of in categories.items()}
        self._writer.add_custom_scalars(charts)

    def experiment(self, choices: Mapping[str, Sequence[str]], metrics: Mapping[str, str]) -> None:
        """The HParams tab: columns with their values, and scalar tags with their titles. One run of a board has it."""
        columns = [hparams.HParam(name, hparams.Discrete(values)) for name, values in choices.items()]
        shown = [hparams.Metric(tag, display_name=title) for tag, title in metrics.items()]
        self._add(hparams.hparams_config_pb(columns, shown))

    def trial(self, name: str, chosen: Mapping[str, str]) -> None:
        """This run as a row of the HParams tab."""
        self._add(hparams.hparams_pb(dict(chosen), trial_id=name))

    def close(self) -> None:
        self._writer.close()
