"""Weights of exponential integrators: predictions at several times as one polynomial, integrated without error.

With lambda = log(alpha/sigma), half the log-SNR, h = lambda_s - lambda_t and u = (lambda - lambda_t)/h, a reverse step
whose noise has the strength tau is (Lu et al. 2022, Zhang & Chen 2023, Xue et al. 2023)

    x_s = r x_t - W z int_0^1 exp((1-u) z) m(u) du + noise

    m      W          z                  r
    x0     alpha_s    -(1 + tau^2) h     sigma_s/sigma_t exp(-tau^2 h)
    eps    sigma_s    h                  alpha_s/alpha_t                   without noise, tau = 0

m(u) = m_t gives the reverse kernel's own step, DDIM without noise. A polynomial through m_t and
m_1..m_n at u_1..u_n adds

    -W sum_j c_j (m_j - m_t),    sum_j c_j u_j^k = I_k(z) = z int_0^1 exp((1-u) z) u^k du,    k = 1..n

so that a method is a rule (z, [u_1..u_n]) -> [c_1..c_n]. Past times have u < 0, the time stepped to has u = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import hyp1f1

from adpm.families import Kind
from adpm.process import Array

Weights = Callable[[float, Array], Array]
"""(z, nodes u [n]) -> c [n]."""


def moments(z: float, count: int) -> Array:
    """I_1..I_count at z; z/(k+1) 1F1(1; k+2; z) loses no digits, however small or large z is."""
    k = np.arange(1, count + 1)
    return z / (k + 1) * hyp1f1(1, k + 2, z)


def _matching(nodes: Array, wanted: ArrayLike) -> Array:
    """The c with sum_j c_j u_j^k = wanted_k, k = 1..n."""
    powers = np.arange(1, len(nodes) + 1)[:, None]
    return np.linalg.solve(nodes**powers, np.asarray(wanted))


def exact(z: float, nodes: Array) -> Array:
    """The polynomial through all nodes, in lambda."""
    return _matching(nodes, moments(z, len(nodes)))


def half_second_derivative(z: float, nodes: Array) -> Array:
    """`exact` for two nodes with I_2 halved: DPM-Solver++(3M) as it was released, of order 2."""
    return _matching(nodes, moments(z, len(nodes)) * [1.0, 0.5])


def halved(basis: Callable[[float], float]) -> Weights:
    """B(z)/2 for I_1 where there is one node, to which I_1 is equal up to z^3; `exact` for more (Zhao et al. 2023)."""

    def weights(z: float, nodes: Array) -> Array:
        return _matching(nodes, [0.5 * basis(z)]) if len(nodes) == 1 else exact(z, nodes)

    return weights


def by_count(members: Sequence[Weights]) -> Weights:
    """members[n - 1] for n nodes."""
    return lambda z, nodes: members[len(nodes) - 1](z, nodes)


def adams_rho(z: float, nodes: Array) -> Array:
    """The polynomial in rho = sigma/alpha instead of lambda, for eps: d(x/alpha) = eps d rho (Zhang & Chen 2023)."""
    in_rho = np.expm1(-z * nodes) / np.expm1(-z)
    return np.expm1(z) * _matching(in_rho, 1.0 / np.arange(2, len(nodes) + 2))


def adams_even(z: float, nodes: Array) -> Array:
    """Adams-Bashforth's weights for steps of one length, whatever their lengths are, for eps."""
    even = -np.arange(1.0, len(nodes) + 1.0)
    return np.expm1(z) * _matching(even, 1.0 / np.arange(2, len(nodes) + 2))


UNIPC_BASES: dict[str, Kind] = {
    "bh1": Kind(lambda: lambda z: z, "B(z) = z"),
    "bh2": Kind(lambda: np.expm1, "B(z) = exp(z) - 1"),
}

DPMPP_SECONDS: dict[str, Kind] = {
    "midpoint": Kind(lambda: halved(np.expm1), "the slope times (exp(z) - 1)/2"),
    "taylor": Kind(lambda: exact, "the slope integrated exactly"),
}

DPMPP_THIRDS: dict[str, Kind] = {  # the facts are the order of convergence
    "corrected": Kind(lambda: exact, "the second derivative in full, order 3", 3),
    "released": Kind(lambda: half_second_derivative, "half of the second derivative, as in released code, order 2", 2),
}

DEIS_VARIABLES: dict[str, Kind] = {
    "log_rho": Kind(lambda: exact, "eps as a polynomial in log(sigma/alpha), the log-SNR, as in released code"),
    "rho": Kind(lambda: adams_rho, "eps as a polynomial in sigma/alpha, the paper's rho-AB"),
}
