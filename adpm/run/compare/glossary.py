"""The names that a comparison uses, for readers who know diffusion but not this project."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from adpm.run.compare.markdown import table
from adpm.run.compare.results import Formulation, Results

RULES: dict[str, str] = {
    "small": "Var[x0] = 0, as if x0 were known: DDPM's beta-tilde at eta 1, plain DDIM at eta 0",
    "unit": "Var[x0] = sigma_t^2 / (alpha_t^2 + sigma_t^2), as if the data were N(0, I)",
    "large": "the forward variance Var[x_t given x_s] as the step's: DDPM's beta; eta 1 only",
    "analytic": "Var[x0] = one number per time, measured on training images: Analytic-DPM (Bao et al. 2022)",
    "sn": "Var[x0] = (sigma_t/alpha_t)^2 (h - eps_hat^2) per pixel; a trained head h estimates E[eps^2 given x_t]: "
    "SN of Extended Analytic-DPM (Bao et al. 2022b)",
    "npr": "Var[x0] = (sigma_t/alpha_t)^2 h per pixel; a trained head h estimates E[(eps - eps_hat)^2 given x_t]: "
    "NPR of Extended Analytic-DPM (Bao et al. 2022b)",
    "relative": "ours: Var[x0] = analytic's variance times a trained factor q(x_t) per pixel",
    "learned": "log of the step's variance = f log(large) + (1 - f) log(small), f per pixel by the network: "
    "Improved DDPM (Nichol & Dhariwal 2021); eta 1 only",
}
TRAJECTORIES: dict[str, str] = {
    "even": 'evenly spaced times; published as "linear" (Bao et al. 2022)',
    "power2": 'even in 1 - (1 - t)^2, t in [0, 1], denser near the data; published as "power2"',
    "power3": 'even in 1 - (1 - t)^3, t in [0, 1], denser near the data; published as "power3"',
    "power4": 'even in 1 - (1 - t)^4, t in [0, 1], denser near the data; published as "power4"',
    "quadratic": 'times (u sqrt(0.8 N))^2 with u even in [0, 1]; published as "quad_ddim" (Song et al. 2021)',
    "stride": 'every floor(N/K)-th time from the first; published as "linear_ddim" (Song et al. 2021)',
    "log_snr": "even in log-SNR",
    "published_split": 'the dynamic programme of the Analytic-DPM code, "dp_seg" (Bao et al. 2022)',
    "least_cost": "the K times whose measured bound, or a model of it, is least: a shortest path, found for the "
    "likelihood and not for samples",
}
SOLVERS: dict[str, str] = {
    "reverse_gaussian": "x_s drawn from a Gaussian around the mean of DDPM (eta 1) or DDIM (eta 0), with the rule's "
    "variance lambda2 + gain^2 Var[x0]",
    "euler_maruyama": "Euler-Maruyama steps of the reverse SDE (eta 1; eta 0 is the probability flow), no rule",
    "probability_flow_euler": "Euler steps of the probability-flow ODE, no noise, no rule",
    "probability_flow_heun": "Heun steps of the probability-flow ODE, two network calls each, no noise, no rule",
    "probability_flow_adaptive": "the probability-flow ODE by Dormand-Prince with adaptive steps, no noise, no rule",
}
"""Name -> what it is, in one line."""

_ETA = (
    "share of the noise that is drawn anew, lambda2 = eta^2 Var[x_t given x_s] sigma_s^2 / sigma_t^2: 1 is DDPM, 0 is "
    "DDIM (lambda2 = 0), to which rules other than small still add gain^2 Var[x0]"
)
_LEAD = (
    "A method is a formulation, a rule, a trajectory and eta, in this order; K is its number of steps. "
    "x_t = alpha_t x0 + sigma_t eps and SNR = alpha_t^2 / sigma_t^2; a step goes from t to an earlier s. Its variance "
    "is lambda2 + gain^2 Var[x0] per dimension: lambda2 = Var[x_s given x_t and x0] is known, gain is the weight of x0 "
    "in the mean, and a rule (but for large and learned) is a guess of Var[x0], the variance of x0 given x_t."
)


def glossary(results: Results) -> str:
    """What the names in these results mean: two sentences and a table, in Markdown.

    Args:
        results: only names that occur in them are told; those of a grid's own making, formulations, by their process.
    """
    methods = results.methods
    lines = [("formulation", f"`{name}`", _of_process(found)) for name, found in results.formulations.items()]
    lines += _known("rule", RULES, (method.rule for method in methods))
    lines += _known("trajectory", TRAJECTORIES, (method.trajectory for method in methods))
    lines += _known("solver", SOLVERS, (method.solver for method in methods))
    etas = {f"{method.eta:g}" for method in methods if method.eta is not None}
    lines += [("eta", ", ".join(f"`{eta}`" for eta in sorted(etas, reverse=True)), _ETA)] if etas else []
    return f"{_LEAD}\n\n{table(['choice', 'name', 'what it is'], lines)}"


def _known(choice: str, meanings: Mapping[str, str], names: Iterable[str | None]) -> Iterator[tuple[str, str, str]]:
    """Lines of the names that have a meaning, in their family's order."""
    used = set(names)
    return ((choice, f"`{name}`", told) for name, told in meanings.items() if name in used)


def _of_process(found: Formulation) -> str:
    """A process by the first line of its documentation, and the range of its log-SNR."""
    process = found.process
    told = (inspect.getdoc(type(process)) or type(process).__name__).partition("\n")[0].rstrip(".")
    ends = process.log_snr(process.times[[1, -1]])
    low, high = float(np.min(ends)), float(np.max(ends))
    return f"a trained network and its forward process. {told}; log-SNR {high:.1f} to {low:.1f}"
