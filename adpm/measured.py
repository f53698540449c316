"""What the front door hands out: moments with their process, and a plan with the moments that it was made on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import numpy as np
from torch import Tensor

from adpm.coordinate_draws import Bases, Watch, spectrum_of
from adpm.coordinates import Spectrum
from adpm.denoiser import Denoise
from adpm.draws import Draws, Estimate, Source, measure
from adpm.ems import EMS
from adpm.errors import UserError
from adpm.fitting import Flow
from adpm.jump import after
from adpm.moments import MomentTable, stacked, unstacked
from adpm.paths import Path
from adpm.process import Array, Process
from adpm.progress import Arrays, Keep
from adpm.start import Start
from adpm.target import times_between, until


@dataclass(frozen=True)
class Moments:
    """Var[x_0 | x_t] per dimension with error bars, at measured times.

    Attributes:
        table: what was measured.
        process: whose times they are.
        spectrum: the same per coordinate of a basis, if that was measured.
    """

    table: MomentTable
    process: Process
    spectrum: Spectrum | None = None

    @property
    def times(self) -> Array:
        """[T], where it was measured."""
        return self.table.times

    def estimate(self, estimator: str = "residual") -> Estimate:
        """Values, standard errors and intervals at the measured times."""
        return self.table.posterior_variance(estimator, self.process)

    def variance(self, estimator: str = "residual") -> Callable[[Array], Array]:
        """Var[x_0 | x_t] as a function of time."""
        return self.table.variance(estimator, self.process)

    def plot(self) -> Any:
        """A matplotlib figure: Var[eps | x_t] by each estimator, and the excess precision."""
        from adpm.plots import moment_figure

        return moment_figure(self.table, self.process)

    def save(self, path: str | File) -> None:
        """Write one npz file, which `load` reads, and `config.moments.file` if its provenance is a config's."""
        spectrum = self.spectrum.arrays() if self.spectrum else {}
        with File(path).open("wb") as file:
            np.savez(file, **{**spectrum, **self.table.arrays()})

    @staticmethod
    def load(path: str | File, process: Process) -> Moments:
        """Moments from a file of `save`.

        Raises:
            UserError: if there is no such file.
        """
        table = MomentTable.load(File(path))
        return Moments(table, process, Spectrum.load(File(path)) if Spectrum.is_in(File(path)) else None)


def measured_moments(
    denoise: Denoise,
    process: Process,
    source: Source,
    times: Array,
    draws: int,
    *,
    seed: int,
    batch_size: int,
    keep: Keep,
    provenance: Mapping[str, Any] | None,
    bases: Bases | None = None,
    target_error: float = 0.0,
) -> Moments:
    """Moments at these times, each measured with `draws` draws, also along these bases; see `adpm.draws.measure`.

    With a target draws and times grow until the error is below it; see adpm/target.py.
    """
    if bases and target_error:
        raise UserError("`target_error` is of Var_t alone: measure moments per coordinate without it.")
    shape, about = tuple(source.mean.shape), dict(provenance or {})
    asked, known = list(times.tolist()), dict[float, Arrays]()

    def work(items: range) -> Arrays:
        (t,) = asked[items.start : items.stop]
        if t not in known:
            watcher = Watch(bases, process, source, t, draws) if bases else None
            watch = (lambda _: watcher) if watcher else None

            def measured(numbers: range) -> Draws:
                options = (seed, batch_size, watch, numbers.start)
                return next(measure(denoise, process, source, [t], numbers.stop, *options))[1]

            row = until(measured, draws, target_error)
            known[t] = {**stacked([row]), **(watcher.arrays() if watcher else {})}
        return known[t]

    while True:
        known.update(zip(asked, parts := list(keep(len(asked), 1, work, "moments")), strict=True))
        rows = {t: row for t, part in zip(asked, parts, strict=True) for row in unstacked(part)}
        table = MomentTable(np.array(sorted(rows)), tuple(rows[t] for t in sorted(rows)), source.variance, about, shape)
        more = times_between(table, process, target_error).tolist() if target_error else []
        if not more:
            break
        asked += more
    spectrum = spectrum_of(parts, times, process, bases, draws, shape, about) if bases else None
    return Moments(table, process, spectrum)


@dataclass(frozen=True)
class Plan:
    """A path of times with the moments that it was planned on.

    Attributes:
        path: the times, and what they cost.
        moments: for rules and decoders that need them; None where there were none.
        again: index of a reference time -> the path found anew up to there, for starts that jump.
    """

    path: Path
    moments: Moments | None = None
    again: Callable[[int], Path] | None = None

    @property
    def times(self) -> Array:
        """[K+1], increasing from 0."""
        return self.path.times

    @property
    def cost(self) -> float | None:
        """Nats per dimension; None for a trajectory that is not planned."""
        return self.path.cost

    def after(self, start: Start, process: Process) -> Array:
        """The times that are left to walk where a start jumps; see `adpm.jump.after`."""

        def again(last: int) -> Path:
            if self.again is None:
                raise UserError("this plan does not say how it was made: use `start_respend` = False, or model.plan.")
            return self.again(last)

        return after(start, process, self.path, again).times

    def __str__(self) -> str:
        return str(self.path)


def given_images(
    images: Tensor | None, own: Mapping[str, Tensor], split: str, data_range: tuple[float, float] | None
) -> Tensor:
    """Images that a call was given, else the model's own of a split, as floats.

    Raises:
        UserError: if there are none, or if they are integers.
    """
    images = own.get(split) if images is None else images
    if images is None:
        raise UserError(f"this model has no {split} images of its own; give `images` [n, ...] in the network's range.")
    if not images.is_floating_point():
        raise UserError(
            f"`images` are {images.dtype}; give floats in the network's range"
            + (f" {data_range}" if data_range else "")
            + ", for example images.float() / 127.5 - 1."
        )
    return images


def need(moments: Moments | None, who: str) -> Moments:
    """The moments, if there are any.

    Raises:
        UserError: saying who needs them.
    """
    if moments is None:
        raise UserError(f"{who} needs moments: moments = model.measure(images), then model.plan(moments, ...).")
    return moments


def need_spectrum(moments: Moments | None, who: str) -> Spectrum:
    """The moments per coordinate, if there are any.

    Raises:
        UserError: saying who needs them.
    """
    spectrum = need(moments, who).spectrum
    if spectrum is None:
        raise UserError(f"{who} needs moments per coordinate: moments = model.measure(images, basis='auto').")
    return spectrum


def known_statistics(name: str, statistics: EMS | Flow | None, moments: Moments | None, who: str) -> Any:
    """What a solver needs to know of the network, by the name that its facts have for it.

    Raises:
        UserError: saying who needs what is not there.
    """
    parts: dict[str, Callable[[], Any]] = {
        "moments": lambda: need(moments, who).table,
        "coordinates": lambda: need_spectrum(moments, who),
    }
    if name in parts:
        return parts[name]()
    kind, made = {"ems": (EMS, "measure_statistics"), "trajectories": (Flow, "measure_trajectories")}[name]
    if not isinstance(statistics, kind):
        raise UserError(f"{who} needs `statistics`: statistics = model.{made}(images).")
    return statistics


def known_shape(
    shape: tuple[int, ...] | None, moments: Moments | None, images: Mapping[str, Tensor]
) -> tuple[int, ...]:
    """The shape of a sample: the one given, else that of the data of moments or of images.

    Raises:
        UserError: where nothing says it.
    """
    known = [shape, None if moments is None else moments.table.shape]
    known += [tuple(split.shape[1:]) for split in images.values()]
    found = next((tuple(s) for s in known if s), None)
    if found is None:
        raise UserError("the shape of a sample is not known; give `shape`, such as (3, 32, 32).")
    return found
