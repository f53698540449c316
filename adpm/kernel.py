"""The reverse Gaussian between s < t: numbers in, numbers out.

For a process q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I), SNR gamma_t = alpha_t^2 / sigma_t^2 and eta in [0, 1],

    forward_variance = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2  = Var[x_t | x_s]
    lambda2          = eta^2 forward_variance sigma_s^2/sigma_t^2 = Var[x_s | x_t, x_0]
    mean             = alpha_s x0_hat + eps_scale eps_hat,  eps_scale = sqrt(sigma_s^2 - lambda2)
    gain             = alpha_s - alpha_t eps_scale / sigma_t
    covariance       = lambda2 I + gain^2 Cov[x_0 | x_t]

eta = 1 is DDPM (Ho et al. 2020), eta = 0 is DDIM (Song et al. 2021); with the exact mean and Cov[x_0 | x_t] these
are the first two moments of q(x_s | x_t), which is Analytic-DPM's optimum (Bao et al. 2022, Theorem 1 and Lemma 9).
At eta = 1, gain^2 / lambda2 = gamma_s - gamma_t.

Differences of near-equal numbers never appear: with d = log gamma_t - log gamma_s < 0 and u = -expm1(d),
forward_variance = sigma_t^2 u and gain = -alpha_s expm1(d/2 + log1p(-eta^2 u)/2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from adpm.errors import UserError
from adpm.process import Array, Process


@dataclass(frozen=True)
class Kernel:
    """Coefficients of one reverse step t -> s, or of many at once: every field is float64 and broadcasts."""

    t: Array
    s: Array
    eta: float
    alpha_s: Array
    sigma_s: Array
    alpha_t: Array
    sigma_t: Array
    forward_variance: Array
    lambda2: Array
    eps_scale: Array
    gain: Array
    snr_drop: Array
    """gamma_s - gamma_t > 0; +inf when s = 0."""


def step_nats(kernel: Kernel, w: Array | float, variance: Array | float) -> Array:
    """Expected bound term of a step with scalar variance w, nats per dimension.

    1/2 [ lambda2/w - 1 - log(lambda2/w) + gain^2 Var / w ],  Var = E||x_0 - x0_hat(x_t)||^2 / d; eps has to be
    re-derived from the x_0 that the kernel uses. log1p, because lambda2/w is within rounding of 1 at early steps.
    """
    excess = (kernel.lambda2 - w) / w
    return 0.5 * (excess - np.log1p(excess) + kernel.gain**2 * variance / w)


def reverse_kernel(process: Process, t: ArrayLike, s: ArrayLike, eta: float = 1.0) -> Kernel:
    """The kernel from t to s < t.

    Args:
        process: the forward process.
        t, s: times, scalars or arrays that broadcast, 0 <= s < t.
        eta: 1 = Markov (DDPM), 0 = deterministic given x_0 (DDIM).

    Raises:
        UserError: if eta lies outside [0, 1] or some s is not below its t.
    """
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"`eta` = {eta} must lie in [0, 1]: 1 is DDPM, 0 is DDIM.")
    t_, s_ = np.broadcast_arrays(np.asarray(t, dtype=np.float64), np.asarray(s, dtype=np.float64))
    wrong = s_ >= t_
    if np.any(wrong):
        raise UserError(
            f"a reverse step goes from t to an earlier s < t, got t = {t_[wrong][0]:g} and s = {s_[wrong][0]:g}; "
            "a path must increase strictly."
        )
    alpha_s, sigma_s = process.alpha(s_), process.sigma(s_)
    alpha_t, sigma_t = process.alpha(t_), process.sigma(t_)
    log_snr_s, log_snr_t = process.log_snr(s_), process.log_snr(t_)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        drop = log_snr_t - log_snr_s
        u = -np.expm1(drop)
        forward_variance = sigma_t**2 * u
        lambda2 = eta**2 * u * sigma_s**2
        # sigma_s^2 - lambda2 = sigma_s^2 (1 - eta^2 u); at eta = 1: sigma_s^2 exp(drop), no subtraction.
        log_keep = drop if eta == 1.0 else np.log1p(-(eta**2) * u)
        eps_scale = sigma_s * np.exp(0.5 * log_keep)
        gain = -alpha_s * np.expm1(0.5 * (drop + log_keep))
        snr_drop = np.exp(log_snr_s) * u
    return Kernel(t_, s_, eta, alpha_s, sigma_s, alpha_t, sigma_t, forward_variance, lambda2, eps_scale, gain, snr_drop)
