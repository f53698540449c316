"""The published multistep methods: which weights, for which prediction.

dpmpp, dpmpp_sde    DPM-Solver++ multistep (Lu et al. 2022); with noise, "2M SDE"
unipc               UniPC (Zhao et al. 2023): each state is corrected with the prediction made at it
sa                  SA-Solver (Xue et al. 2023): the same with noise, for a part of the path if wanted
deis                DEIS, tAB with the log-SNR or sigma/alpha as its time (Zhang & Chen 2023)
ipndm               iPNDM (Zhang & Chen 2023, after Liu et al. 2022)
"""

from __future__ import annotations

import math

from adpm.errors import UserError
from adpm.exponential import (
    DEIS_VARIABLES,
    DPMPP_SECONDS,
    DPMPP_THIRDS,
    UNIPC_BASES,
    adams_even,
    by_count,
    exact,
    halved,
)
from adpm.families import Field, Kind, built
from adpm.multistep import FINAL_ORDERS, INTERPOLATED, NOISE, Multistep, Scheme
from adpm.process import Array, Process
from adpm.solver import SolverFacts


def _refuse_idle(option: str, value: str | None, order: int, least: int) -> None:
    if value is not None and order < least:
        raise UserError(f"`{option}` = '{value}' is about steps of order {least}, but `order` = {order}; unset it.")


def dpmpp(
    process: Process,
    times: Array,
    eta: float = 0.0,
    order: int = 2,
    variant: str | None = None,
    third: str | None = None,
    final_order: str = "short",
) -> Multistep:
    """DPM-Solver++ multistep, with x0 interpolated (Lu et al. 2022, algorithm 2; order 1 is DDIM).

    With eta = 1, order 1 is the reverse kernel with rule `small`, order 2 is "2M SDE".

    Args:
        process, times, eta: see Multistep.
        order: 1, 2 or 3.
        variant: of steps of order 2, "midpoint" (released default) or "taylor".
        third: of steps of order 3, "corrected" or "released".
        final_order: a key of FINAL_ORDERS.

    Raises:
        UserError: for an option that does nothing at this order, or as Multistep.
    """
    _refuse_idle("variant", variant, order, 2)
    _refuse_idle("third", third, order, 3)
    second = built(DPMPP_SECONDS, variant or "midpoint", "`variant`")
    weights = by_count([second, built(DPMPP_THIRDS, third or "corrected", "`third`")])
    final = built(FINAL_ORDERS, final_order, "`final_order`")
    converges = min(order, DPMPP_THIRDS[third or "corrected"].facts)
    return Multistep(process, times, Scheme(order, converges, weights, final=final), eta)


def unipc(
    process: Process,
    times: Array,
    order: int = 3,
    basis: str = "bh2",
    interpolates: str = "x0",
    final_order: str = "always",
) -> Multistep:
    """UniPC (Zhao et al. 2023): a predictor of this order, corrected to one order more.

    The prediction at the predicted state serves for the corrector and for all later steps: one network call a step.

    Args:
        process, times: see Multistep.
        order: 1, 2 or 3.
        basis: B(z), "bh1" or "bh2"; matters where a step has one node: order 2's predictor, order 1's corrector.
        interpolates: "x0" or "eps".
        final_order: a key of FINAL_ORDERS.
    """
    weights = halved(built(UNIPC_BASES, basis, "`basis`"))
    of = built(INTERPOLATED, interpolates, "`interpolates`")
    final = built(FINAL_ORDERS, final_order, "`final_order`")
    return Multistep(process, times, Scheme(order, order + 1, weights, weights, of, final))


def sa(
    process: Process,
    times: Array,
    eta: float = 1.0,
    order: int = 3,
    corrects: bool = True,
    noise_low: float | None = None,
    noise_high: float | None = None,
    final_order: str = "short",
) -> Multistep:
    """SA-Solver (Xue et al. 2023, algorithm 1): stochastic Adams predictor and corrector for x0, exact in lambda.

    Args:
        process, times, eta: see Multistep.
        order: predictions in the predictor, 1 to 4; the corrector has one more.
        corrects: whether there is a corrector.
        noise_low, noise_high: noise is added in steps that start at a sigma/alpha between; None: no limit.
        final_order: a key of FINAL_ORDERS.

    Raises:
        UserError: if there is nothing between, or as Multistep.
    """
    noisy = (0.0 if noise_low is None else noise_low, math.inf if noise_high is None else noise_high)
    if eta == 0.0 and noisy != (0.0, math.inf):
        raise UserError("`noise_low` and `noise_high` are about noise, and there is none with `eta` = 0; unset them.")
    if noisy[0] >= noisy[1]:
        raise UserError(f"`noise_low` = {noise_low} must lie below `noise_high` = {noise_high}.")
    final = built(FINAL_ORDERS, final_order, "`final_order`")
    scheme = Scheme(order, order + corrects, exact, exact if corrects else None, final=final)
    return Multistep(process, times, scheme, eta, noisy)


def deis(
    process: Process, times: Array, order: int = 3, variable: str = "log_rho", final_order: str = "short"
) -> Multistep:
    """DEIS, tAB (Zhang & Chen 2023) with eps a polynomial in log(sigma/alpha) or sigma/alpha.

    Args:
        process, times: see Multistep.
        order: 1 to 4; the paper's tAB of degree order - 1.
        variable: "log_rho" or "rho".
        final_order: a key of FINAL_ORDERS.
    """
    weights = built(DEIS_VARIABLES, variable, "`variable`")
    final = built(FINAL_ORDERS, final_order, "`final_order`")
    return Multistep(process, times, Scheme(order, order, weights, None, NOISE, final))


def ipndm(process: Process, times: Array, order: int = 4) -> Multistep:
    """iPNDM (Zhang & Chen 2023): DDIM with Adams-Bashforth's mean of the last noise predictions.

    The weights are those of equal steps: the order is the one asked for in steps even in sigma/alpha, in others at
    most 2.

    Args:
        process, times: see Multistep.
        order: 1 to 4.
    """
    return Multistep(process, times, Scheme(order, min(order, 2), adams_even, None, NOISE))


def _order(default: int, most: int) -> Field:
    told = "most predictions that a step is made of; unset = 2 (dpmpp), 3 (unipc, sa, deis), 4 (ipndm)"
    return Field(default, told, low=1, high=most)


def _final(default: str) -> Field:
    told = "how the order falls at the end; unset = always (unipc), short (the others)"
    return Field(default, told, choices="final_order")


_DPMPP = {
    "order": _order(2, 3),
    "variant": Field(None, "steps of order 2; unset = midpoint", type=str, choices="dpmpp_second"),
    "third": Field(None, "steps of order 3; unset = corrected", type=str, choices="dpmpp_third"),
    "final_order": _final("short"),
}

SOLVERS: dict[str, Kind] = {
    "dpmpp": Kind(
        dpmpp, "DPM-Solver++ multistep, order 1 is DDIM (Lu et al. 2022)", SolverFacts(uses_path=True), _DPMPP
    ),
    "dpmpp_sde": Kind(
        dpmpp,
        "DPM-Solver++ multistep with noise: order 1 is DDPM at eta 1, order 2 is 2M SDE (Lu et al. 2022)",
        SolverFacts(uses_eta=True, uses_path=True),
        _DPMPP,
        reads=("sampling.eta",),
    ),
    "unipc": Kind(
        unipc,
        "UniPC: each state corrected with the prediction made at it (Zhao et al. 2023)",
        SolverFacts(uses_path=True),
        {
            "order": _order(3, 3),
            "basis": Field("bh2", "B(z) of steps with one node", choices="unipc_basis"),
            "interpolates": Field("x0", "what the polynomial goes through", choices="interpolated"),
            "final_order": _final("always"),
        },
    ),
    "sa": Kind(
        sa,
        "SA-Solver: stochastic Adams predictor and corrector (Xue et al. 2023)",
        SolverFacts(uses_eta=True, uses_path=True),
        {
            "order": _order(3, 4),
            "corrects": Field(True, "correct each state with the prediction made at it"),
            "noise_low": Field(None, "sigma/alpha below which steps add no noise; unset = 0", type=float, low=0),
            "noise_high": Field(None, "sigma/alpha above which steps add no noise; unset = none", type=float, above=0),
            "final_order": _final("short"),
        },
        reads=("sampling.eta",),
    ),
    "deis": Kind(
        deis,
        "DEIS, an exponential integrator of the noise (Zhang & Chen 2023)",
        SolverFacts(uses_path=True),
        {
            "order": _order(3, 4),
            "variable": Field("log_rho", "what the polynomial is in", choices="deis_variable"),
            "final_order": _final("short"),
        },
    ),
    "ipndm": Kind(
        ipndm,
        "iPNDM: DDIM with Adams-Bashforth's mean of the noise (Zhang & Chen 2023)",
        SolverFacts(uses_path=True),
        {"order": _order(4, 4)},
    ),
}
"""Builders take (process, times=, eta= where the facts say so, own options)."""
