"""Network + process -> Prediction: the time label, what the network predicts (parametrisation.py), clipping.

Clipping limits x0 to the data range; the eps that goes with it is then either re-derived from the clipped x0 (the
published DDPM does) or kept as the network gave it (the published DDIM does).

Clipping turns an infinite output into an image. So a prediction says whether the raw output was finite:
`require_finite` asks at once, which waits for the device, `Watched` keeps the answers of a loop until its end.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from adpm.errors import UserError
from adpm.families import Field, Kind, built
from adpm.moving import moved
from adpm.parametrisation import PREDICTIONS, Interpretation, eps_from_x0, require_alpha, x0_from_eps
from adpm.process import Array, Process


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says about x_t; every tensor has the shape of x_t.

    Attributes:
        x0, eps: the pair that the kernel uses, after clipping.
        eps_network: the noise prediction before any clipping; gamma and SN statistics are about this one.
        head: the network's second output, None when it has none.
        x0_network: x0 before any clipping; None: only eps_network says what it was, see `unclipped_x0`.
        finite: [B] bool, False where the network made numbers that are not finite of finite ones, whatever became of
            them; None: not asked.
    """

    x0: Tensor
    eps: Tensor
    eps_network: Tensor
    head: Tensor | None = None
    finite: Tensor | None = None
    x0_network: Tensor | None = None


AT_ONCE = frozenset({"cpu"})
"""Types of devices that finish a call before the next one begins."""


class Denoise(Protocol):
    """Anything that predicts: x [B, ...] at time t (one for the batch, or [B]) -> Prediction."""

    def __call__(self, x: Tensor, t: ArrayLike) -> Prediction: ...


@runtime_checkable
class Raw(Protocol):
    """A denoiser whose noise prediction can be had between reference times, and differentiated there."""

    def label(self, t: Array) -> Array:
        """The number that the network receives at real times."""

    def raw(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, label: float | Tensor) -> Tensor:
        """`eps_network` for x [B, ...] at these numbers, each one or a tensor [1]; nothing is clipped."""


def require_finite(prediction: Prediction, t: ArrayLike) -> Prediction:
    """The prediction, if the network's raw output was finite; waits for the device.

    Raises:
        UserError: naming the time of the first example for which it was not.
    """
    _require(prediction.finite, t)
    return prediction


def _require(finite: Tensor | None, t: ArrayLike) -> None:
    if finite is not None and not finite.is_meta and not finite.all():  # a meta tensor holds nothing to read
        first = int(finite.cpu().numpy().argmin())
        time = np.broadcast_to(np.asarray(t, dtype=np.float64), finite.shape)[first]
        raise UserError(f"the network returned numbers that are not finite at t = {time:g}; check its weights.")


class Watched:
    """A denoiser for a loop that may not wait for the device: `check`, after the last call, raises what is wrong.

    On a CPU there is nothing to wait for, and each call raises at once.
    """

    def __init__(self, denoise: Denoise) -> None:
        self._denoise = denoise
        self._unread: list[tuple[Tensor, ArrayLike]] = []

    def __call__(self, x: Tensor, t: ArrayLike) -> Prediction:
        prediction = self._denoise(x, t)
        if prediction.finite is not None:
            self._unread.append((prediction.finite, t))
            if prediction.finite.device.type in AT_ONCE:
                self.check()
        return prediction

    def check(self) -> None:
        """Read what the calls so far have left.

        Raises:
            UserError: as `require_finite`, for the first call that went wrong.
        """
        unread, self._unread = self._unread, []
        for finite, t in unread:
            _require(finite, t)


def per_sample(value: Array, like: Tensor) -> float | Tensor:
    """A float64 coefficient at the tensor's door: a number stays a number, [B] becomes [B, 1, ...] in x's dtype."""
    if value.ndim == 0:
        return float(value)
    return moved(value, like.device, like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def unclipped_x0(prediction: Prediction, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """x0 before any clipping: the network's own, which is precise where alpha is small, else the one of eps_network."""
    if prediction.x0_network is not None:
        return prediction.x0_network
    return x0_from_eps(x, prediction.eps_network, alpha, sigma)


def check_range(clip: tuple[float, float] | None) -> None:
    """Refuse a range of the data that is none."""
    if clip is not None and not -math.inf < clip[0] < clip[1] < math.inf:
        raise UserError(f"`clip` = {clip} must be a range (a, b) of the data with a < b, and finite.")


TimeLabel = Callable[[Array], Array]


def index_label(shift: float, scale: float) -> TimeLabel:
    """n -> (n - shift) * scale, the number a network trained on discrete steps receives.

    Self-trained CIFAR10 models of Analytic-DPM take n (shift 0, scale 1000/N = 1); CelebA, LSUN and ImageNet64 take
    n - 1 (shift 1), the last with scale 1000/4000; a score-SDE VP network on N steps takes 999 n/N (scale 999/N).
    """
    return lambda t: (t - shift) * scale


class Denoiser:
    """A network as a denoiser.

    Args:
        network: (x [B, C, H, W], label [B]) -> [B, C (+ head), H, W]; both arguments come in x's dtype.
        process: the forward process the network was trained for.
        predicts: "eps", "x0", "score", "v", "flow" or "edm", a key of PREDICTIONS.
        time_label: time -> the number the network receives.
        clip: data range (a, b) that x0 is limited to, or None.
        eps_after_clip: "rederive" or "keep", a key of EPS_AFTER_CLIP.

    Raises:
        UserError: for an unknown name, a range that is none, or a prediction that says nothing of x0 where the process
            ends.
    """

    def __init__(
        self,
        network: nn.Module | Callable[..., Tensor],
        process: Process,
        *,
        predicts: str = "eps",
        time_label: TimeLabel | None = None,
        clip: tuple[float, float] | None = None,
        eps_after_clip: str = "rederive",
    ) -> None:
        check_range(clip)
        self.network, self.process, self.clip, self.eps_after_clip = network, process, clip, eps_after_clip
        self._interpret: Interpretation = built(PREDICTIONS, predicts, "`predicts`")
        if PREDICTIONS[predicts].facts.divides_by_alpha:
            others = ", ".join(name for name, kind in PREDICTIONS.items() if not kind.facts.divides_by_alpha)
            require_alpha(process, f"x0 of `predicts` = '{predicts}'", f"take a network that predicts one of {others}")
        self._eps_after_clip = built(EPS_AFTER_CLIP, eps_after_clip, "`eps_after_clip`")
        self._time_label = time_label or index_label(0, 1.0)
        self._classes: tuple[Tensor | None, ...] = ()

    def __call__(self, x: Tensor, t: ArrayLike) -> Prediction:
        time = np.asarray(t, dtype=np.float64)
        alpha, sigma = per_sample(self.process.alpha(time), x), per_sample(self.process.sigma(time), x)
        out = self._output(x, moved(self.label(time), x.device, x.dtype))
        channels = x.shape[1]
        head = out[:, channels:] if out.shape[1] > channels else None
        x0, eps = self._interpret(x, out[:, :channels], alpha, sigma)
        found = clipped(x, x0, eps, head, alpha, sigma, self.clip, self._eps_after_clip)
        return replace(found, finite=_all_finite(out) | ~_all_finite(x))

    def given(self, classes: Tensor | None) -> Denoiser:
        """This denoiser with its network, of (x, label, classes), told the classes of a batch: see adpm/classes.py."""
        told = copy.copy(self)
        told._classes = (classes,)
        return told

    def label(self, t: Array) -> Array:
        """The number that the network receives at a time."""
        return self._time_label(t)

    def raw(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, label: float | Tensor) -> Tensor:
        """See `Raw`."""
        out = self._output(x, moved(label, x.device, x.dtype))
        return self._interpret(x, out[:, : x.shape[1]], alpha, sigma)[1]

    def _output(self, x: Tensor, label: Tensor) -> Tensor:
        out = self.network(x, label.expand(len(x)), *self._classes).to(x.dtype)
        if out.shape[1] < x.shape[1] or out.shape[2:] != x.shape[2:]:
            raise UserError(f"the network returned shape {tuple(out.shape)} for images of shape {tuple(x.shape)}.")
        return out


def _all_finite(x: Tensor) -> Tensor:
    """Of each example, [B]."""
    return x.isfinite().flatten(1).all(1)


def clipped(
    x: Tensor,
    x0: Tensor,
    eps: Tensor,
    head: Tensor | None,
    alpha: float | Tensor,
    sigma: float | Tensor,
    clip: tuple[float, float] | None,
    eps_after_clip: Callable[..., Tensor],
) -> Prediction:
    """The prediction whose x0 is limited to `clip`, with the eps that goes with it."""
    if clip is None:
        return Prediction(x0, eps, eps, head, x0_network=x0)
    limited = x0.clamp(*clip)
    return Prediction(limited, eps_after_clip(x, limited, eps, alpha, sigma), eps, head, x0_network=x0)


class Counted:
    """A denoiser that counts its calls: the number of function evaluations (NFE) is read off it.

    One that calls networks several times says so by an attribute `evaluations`.
    """

    def __init__(self, denoise: Denoise) -> None:
        self._denoise, self._each = denoise, int(getattr(denoise, "evaluations", 1))
        self.calls = 0

    def __call__(self, x: Tensor, t: ArrayLike) -> Prediction:
        self.calls += self._each
        return self._denoise(x, t)


@dataclass(frozen=True)
class EpsAfterClip:
    """What an eps that goes with a clipped x0 keeps.

    Attributes:
        consistent: whether x = alpha x0 + sigma eps still holds, so that a step's error is a multiple of x0's.
    """

    consistent: bool


def _kept(x: Tensor, x0: Tensor, eps: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    return eps


def _rederived(x: Tensor, x0: Tensor, eps: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    return eps_from_x0(x, x0, alpha, sigma)


LABELS: dict[str, Kind] = {
    "index": Kind(
        lambda process, time_shift=0, time_scale=0.0: index_label(time_shift, time_scale or 1000.0 / process.steps),
        "(n - time_shift) time_scale at step n: what networks on discrete steps receive",
        fields={
            "time_shift": Field(0, "1: the network counts steps from 0"),
            "time_scale": Field(0.0, "units of the label per step; 0 = 1000/N", low=0),
        },
        reads=("process.steps",),
    ),
}

EPS_AFTER_CLIP: dict[str, Kind] = {
    "rederive": Kind(lambda: _rederived, "eps from the clipped x0, as the published DDPM", EpsAfterClip(True)),
    "keep": Kind(lambda: _kept, "the network's own eps, as the published DDIM", EpsAfterClip(False)),
}
