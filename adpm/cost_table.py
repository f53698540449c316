"""What every step s < t costs with a given variance rule, measured with one network call per image and time.

With C the covariance of a step, its expected bound term is, in nats per dimension, the mean over images and axes of

    F[s, t] = 1/2 [lambda2/w - 1 - log(lambda2/w) + gain^2 e / w],     w = C's variance,  e = (x_0 - x0_hat(x_t))^2

along C's axes, for a denoiser with x = alpha x0_hat + sigma eps_hat (eps re-derived where x0 was clipped). A rule's
parameter p and e are known at t, and w = rule.variance(kernel, p) is quick for any s, so a time costs one network call
per image and N evaluations of F per group of elements (pixels of images) of nearly equal p. A group stands for its
elements by mean p, mean e and the mean p weighted by e, at which e/w is taken: what is left out is of second order in
the group's width. Groups are even in rank and in log w together, so that one of G holds at most a 2/G-th of the
elements and of the range of log w. Rules that do not look at the state have one group. adpm/planning.py plans on the
table (Watson et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adpm.denoiser import Denoise, require_finite
from adpm.errors import UserError
from adpm.kernel import reverse_kernel, step_nats
from adpm.likelihood import Decoder, Levels, NoiseAt, decoder_nats
from adpm.process import Array, Process
from adpm.variance import Rule

GROUPS = 256


@dataclass(frozen=True)
class Groups:
    """Elements of about the same parameter; all fields are [G], float64.

    Attributes:
        share: share of the elements; sums to 1.
        parameter: mean of the rule's parameter.
        squared: mean of (x_0 - x0_hat)^2.
        weighted: mean of the rule's parameter, weighted by (x_0 - x0_hat)^2.
    """

    share: Array
    parameter: Array
    squared: Array
    weighted: Array


def _mean_like(x: Tensor, like: Tensor) -> Tensor:
    """`x` averaged over the dimensions in which `like`, of as many dimensions, is constant."""
    return x.sum_to_size(like.shape) * (like.numel() / x.numel())


def _cells(parameter: Tensor, log_width: Tensor, cells: int) -> Tensor:
    """The cell 0..cells-1 of each element [n]: cells are even in (rank + relative log width) / 2."""
    rank = torch.empty_like(parameter)
    rank[parameter.argsort()] = torch.arange(len(parameter), dtype=rank.dtype, device=rank.device) / len(parameter)
    low, high = log_width.min(), log_width.max()
    position = (rank + (log_width - low) / (high - low).clamp_min(torch.finfo(rank.dtype).tiny)) / 2
    return (position * cells).long().clamp_max(cells - 1)


def group(parameter: Tensor, squared: Tensor, log_width: Tensor, groups: int = GROUPS) -> Groups:
    """At most `groups` groups of elements [n]; with as few elements, each is its own.

    Args:
        parameter: [n], float64.
        squared: [n], float64.
        log_width: [n], log of the step's variance where it depends on the parameter most; rises with it.
        groups: their largest number.
    """
    n = len(parameter)
    cell = torch.arange(n, device=parameter.device) if n <= groups else _cells(parameter, log_width, groups)

    def total(values: Tensor) -> Array:
        zeros = torch.zeros(min(n, groups), dtype=torch.float64, device=cell.device)
        return zeros.index_add(0, cell, values).cpu().numpy()

    count = total(torch.ones_like(parameter))
    some = count > 0
    count = count[some]
    mean, error, product = (total(v)[some] / count for v in (parameter, squared, parameter * squared))
    weighted = np.divide(product, error, out=mean.copy(), where=error > 0)
    return Groups(count / n, mean, error, weighted)


def _log_width(process: Process, rule: Rule, at: int, values: Tensor, eta: float) -> Tensor:
    """Mean log variance of the two longest steps from times[at], where the parameter counts most.

    Two, because a cap on the noise of the last steps can make the longest one the same for all.

    Raises:
        UserError: if a variance is not positive.
    """
    t, logs = process.times[at], []
    for s in process.times[1 : min(3, at)]:
        width = torch.as_tensor(rule.variance(reverse_kernel(process, t, s, eta), values), dtype=torch.float64)
        if not (width > 0).all():
            raise UserError(
                f"the variance rule gives {width.min():.6g} in the step {t:g} -> {s:g}, not above 0; "
                "set `rule.bounds` = True."
            )
        logs.append(width.expand_as(values).log())
    return torch.stack(logs).mean(0)


def expected_steps(process: Process, rule: Rule, at: int, eta: float, groups: Groups) -> Array:
    """F[s, t] for t = times[at] and s = times[1..at-1], [at - 1], nats per dimension."""
    kernel = reverse_kernel(process, process.times[at], process.times[1:at], eta)
    width, at_error = (
        np.asarray(rule.variance(kernel, p[:, None]), dtype=np.float64) for p in (groups.parameter, groups.weighted)
    )
    nats = step_nats(kernel, width, groups.squared[:, None] * (width / at_error))
    return groups.share @ np.broadcast_to(nats, (len(groups.share), at - 1))


def measure_column(
    denoise: Denoise,
    process: Process,
    rule: Rule,
    decoder: Decoder | None,
    levels: Levels,
    at: int,
    batches: Iterable[tuple[Tensor, NoiseAt]],
    eta: float = 1.0,
    groups: int = GROUPS,
) -> Array:
    """F[s, t] for t = times[at] and s = times[0..at-1], [at], nats per dimension, a mean over images.

    Args:
        denoise, process, rule, eta: the reverse process; eta in (0, 1].
        decoder: variance of the last step, whose cost F[0, t] is the data term; None: +inf.
        levels: levels of the data.
        at: index of t, 1..N.
        batches: images x_0 [B, C, H, W] and their noise; each is one network call.
        groups: groups per batch.

    Raises:
        UserError: at eta = 0, where the bound is infinite, if the rule gives a variance that is not positive, or if the
            network returned numbers that are not finite.
    """
    if eta == 0.0:
        raise UserError("`eta` = 0 has no finite likelihood bound to measure; use a value in (0, 1].")
    t = float(process.times[at])
    total, images = np.zeros(at), 0
    for x0, noise in batches:
        x = float(process.alpha(t)) * x0 + float(process.sigma(t)) * noise(t)
        prediction = require_finite(denoise(x, t), t)
        dim = x0[0].numel()
        data = decoder_nats(x0, prediction.x0, decoder(t), levels).double().sum() / dim if decoder else torch.inf
        total[0] += float(data)
        if at > 1:
            known = rule.parameter(reverse_kernel(process, t, process.times[1], eta), prediction)
            squared = known.forth(x0 - prediction.x0).double().square()
            values = torch.as_tensor(known.values, dtype=torch.float64, device=squared.device)
            values = values.reshape([1] * (squared.ndim - values.ndim) + list(values.shape))
            squared, values = _mean_like(squared, values).flatten(), values.flatten()
            summary = group(values, squared, _log_width(process, rule, at, values, eta), groups)
            total[1:] += len(x0) * expected_steps(process, rule, at, eta, summary)
        images += len(x0)
    return total / images
