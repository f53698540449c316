"""What the golden files in tests/data are made of: loading, error measure, closed-form networks, parameter filling.

A mixture x_0 ~ sum_k w_k N(m_k, v_k I) has E[eps | x_n] and E[eps^2 | x_n] in closed form. With A = alpha_n^2,
B = sigma_n^2, S_k = A v_k + B and responsibilities r_k(x) ~ w_k N(x; sqrt(A) m_k, S_k I),

    u_k = sqrt(B)/S_k (x - sqrt(A) m_k),   e1 = sum r_k u_k,   e2 = sum r_k (u_k^2 + A v_k/S_k)

The networks that the published samplers were run with predict eps_hat = e1 + delta cos(3x), a deliberate error, and a
second output that depends on the model type: see `HEADS`.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from adpm.denoiser import Denoise
from adpm.likelihood import first_posterior_variance
from adpm.moments import MomentTable
from adpm.ms_eps import table_of_gamma
from adpm.process import PROCESSES, Process
from adpm.variance import Analytic, Averaged, Bounded, Large, PosteriorRule, Rule, Small
from covariance.rules import Learned, NoiseResidual, SquaredNoise

DATA = Path(__file__).parent / "data"
RTOL = 1e-9
ATOL = 1e-11

Golden = dict[str, NDArray[Any]]


@cache
def golden(name: str) -> Golden:
    """The arrays of `tests/data/<name>.npz`; shared between tests, not to be written to."""
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


@cache
def golden_json(name: str) -> dict[str, Any]:
    """The content of `tests/data/<name>.json`."""
    return json.loads((DATA / f"{name}.json").read_text())


def rel(value: ArrayLike | Tensor, expected: ArrayLike | Tensor) -> float:
    """max |value - expected| / (|expected| + ATOL/RTOL).

    `rel(a, b) < RTOL` says |a - b| < RTOL |b| + ATOL everywhere; NaN compares false. Shapes must be equal.
    """
    a, b = np.asarray(value, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert a.shape == b.shape, f"shape {a.shape} instead of {b.shape}"
    return float(np.max(np.abs(a - b) / (np.abs(b) + ATOL / RTOL)))


@cache
def process(name: str) -> Process:
    """The process that the golden files call `<schedule>_<N>`."""
    schedule, steps = name.rsplit("_", 1)
    return PROCESSES[{"vpsde": "vp_integral"}.get(schedule, schedule)].build(int(steps))


def gamma_table(name: str, ms_eps: NDArray[np.float64]) -> MomentTable:
    """A stored ms_eps array [N+1] as a moment table of the process `name`."""
    return table_of_gamma(ms_eps, process(name), "golden")


def scalar_rule(kind: str, clip_covariance: bool, name: str, ms_eps: NDArray[np.float64] | None) -> Rule:
    """The state-independent rules under their published names; `ms_eps` is for "optimal"."""
    if kind == "big":
        return Large()
    rule: PosteriorRule = Small()
    if kind == "optimal":
        assert ms_eps is not None, "the optimal scalar variance needs ms_eps"
        rule = Analytic(gamma_table(name, ms_eps).variance("gamma", process(name)))
        if clip_covariance:
            rule = Bounded(rule, 1.0)
    return rule


def head_rule(typ: str, process: Process, clip_covariance: bool = False, average: bool = False) -> Rule:
    """The rules with a second output under their published names; the published average comes before the limits."""
    if typ == "eps_iddpm":
        return Learned(first_posterior_variance(process))
    rule: PosteriorRule = {"eps": SquaredNoise, "eps_eps2": SquaredNoise, "eps_epsc": NoiseResidual}[typ]()
    rule = Averaged(rule) if average else rule
    return Bounded(rule, 1.0) if clip_covariance else rule


def with_head(denoise: Denoise, head: Callable[[Tensor, float], Tensor]) -> Denoise:
    """`denoise` with head(x, t) as the second output."""
    return lambda x, t: replace(denoise(x, t), head=head(x, t))


def heuristic(denoise: Denoise) -> Denoise:
    """The published Var[eps | x_t] = 1 - eps^2 of networks without a head: an SN head that says 1."""
    return with_head(denoise, lambda x, t: torch.ones_like(x))


HEADS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], list[Tensor]]] = {
    "eps": lambda x, e1, e2, eps: [],
    "eps_eps2": lambda x, e1, e2, eps: [e2],
    "eps_epsc": lambda x, e1, e2, eps: [e2 - e1**2 + (e1 - eps) ** 2],
    "eps_iddpm": lambda x, e1, e2, eps: [0.9 * torch.sin(2 * x)],
}


class MixtureNetwork:
    """The closed-form network of a golden file, usable as the `network` of a Denoiser whose label is the step n.

    Args:
        stored: a golden file with gmm_w [K], gmm_m [K, d], gmm_v [K] and delta.
        process: gives alpha_n and sigma_n.
        typ: a key of HEADS: nothing, E[eps^2|x], E[(eps - eps_hat)^2|x], or 0.9 sin(2x) as second output.
    """

    def __init__(self, stored: Golden, process: Process, typ: str) -> None:
        self.w, self.m, self.v = (torch.as_tensor(stored[f"gmm_{k}"]) for k in "wmv")
        self.delta = float(stored["delta"])
        self.process, self._head = process, HEADS[typ]

    def moments(self, x: Tensor, n: float) -> tuple[Tensor, Tensor]:
        """E[eps | x_n = x] and E[eps^2 | x_n = x]."""
        a, b = float(self.process.alpha(n)) ** 2, float(self.process.sigma(n)) ** 2
        delta = x.flatten(1)[:, None] - a**0.5 * self.m  # [B, K, d]
        s = (a * self.v + b)[:, None]  # [K, 1]
        d = self.m.shape[1]
        log_weight = self.w.log() - 0.5 * delta.square().sum(2) / s[:, 0] - 0.5 * d * s[:, 0].log()
        r = torch.softmax(log_weight, dim=1)[:, :, None]
        u = b**0.5 / s * delta
        e2 = u.square() + (a * self.v)[:, None] / s
        return (r * u).sum(1).reshape(x.shape), (r * e2).sum(1).reshape(x.shape)

    def __call__(self, x: Tensor, label: Tensor) -> Tensor:
        assert (label == label[0]).all()
        e1, e2 = self.moments(x, float(label[0]))
        eps = e1 + self.delta * torch.cos(3 * x)
        return torch.cat([eps, *self._head(x, e1, e2, eps)], dim=1)


def uniform(key: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Numbers of mean 0 and variance 1 that depend on `key` alone: sqrt(3) (2u - 1), u from PCG64(CRC-32(key))."""
    words = np.random.PCG64(zlib.crc32(key.encode())).random_raw(int(np.prod(shape)))
    return ((2.0 * (words >> np.uint64(11)) * 2.0**-53 - 1.0) * 3.0**0.5).reshape(shape)


def filled(name: str, shape: tuple[int, ...], salt: str = "", gain: float = 1.0) -> Tensor:
    """A parameter's value: weights have variance gain^2 / fan-in, norm scales are 1 + 0.1 z, the rest 0.1 gain z."""
    z = uniform(salt + name, shape)
    if len(shape) > 1:
        value = gain * z / np.sqrt(np.prod(shape[1:]))
    else:
        value = 1.0 + 0.1 * z if name.endswith("weight") else gain * 0.1 * z
    return torch.as_tensor(value.astype(np.float32))


def filled_state(network: nn.Module, salt: str = "", gain: float = 1.0) -> dict[str, Tensor]:
    """A state dict for the network's parameters by the filling rule."""
    return {name: filled(name, tuple(p.shape), salt, gain) for name, p in network.named_parameters()}


def assert_waves(found: Tensor, stored: NDArray[Any], t: ArrayLike, frequencies: NDArray[np.float64]) -> None:
    """Sines and cosines of t f in float32 agree with stored ones as far as any two machines have to.

    exp, cos and sin differ by processor in the last bit: two units of it in the angle, 1.2e-4 at t f = 1000, and 5e-7.
    """
    angles = np.tile(np.asarray(t, dtype=np.float64)[:, None] * frequencies, 2)
    off = np.abs(found.numpy() - stored) - (5e-7 + 2.0**-23 * angles)
    assert found.shape == stored.shape and off.max() < 0, f"off by {off.max():.3g} more than rounding"


def state_sha256(state: dict[str, Tensor]) -> str:
    """SHA-256 over the little-endian float32 bytes in state-dict order."""
    sha = hashlib.sha256()
    for tensor in state.values():
        sha.update(tensor.numpy().astype("<f4").tobytes())
    return sha.hexdigest()


def manifest(name: str) -> dict[str, Any]:
    """What the golden output of a network was made with."""
    return golden_json("networks/golden_manifest")[name]


def worst(found: Tensor, expected: NDArray[Any] | Tensor) -> float:
    """Largest difference of any sample as a share of that sample's largest output."""
    y, e = found.flatten(1), torch.as_tensor(expected).flatten(1)
    assert found.shape == expected.shape
    return float(((y - e).abs().amax(1) / e.abs().amax(1)).max())


def check_names(tensors: Iterable[tuple[str, Tensor]], record: dict[str, Any]) -> None:
    """Are these the names and shapes, in this order, of a record of networks/tables.json?

    A record has the number of entries and the SHA-256 over their lines "name side side ...\\n". Where they differ, the
    lines found are printed, to be held against the published list.
    """
    lines = [" ".join([name, *map(str, tensor.shape)]) + "\n" for name, tensor in tensors]
    found = {"entries": len(lines), "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}
    assert found == {key: record[key] for key in found}, f"{found} instead of {record}, made of\n{''.join(lines)}"


def unet_options(network: dict[str, Any]) -> dict[str, Any]:
    """UNet's arguments from a manifest's `network` entry."""
    return {
        "in_channels": network["in_channels"],
        "out_channels": network["out_channels"],
        "model_channels": network["model_channels"],
        "channel_mult": network["channel_mult"],
        "num_res_blocks": network["num_res_blocks"],
        "attention_downsample": network["attention_downsample_factors"],
        "num_heads": network["num_heads"],
        "scale_shift": network["use_scale_shift_norm"],
        "dropout": network["dropout"],
        "head": network["head_mode"] or "none",
    }
