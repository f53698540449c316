"""Optimal reverse covariances and time steps for diffusion models.

    import adpm
    model = adpm.Model(network, process=adpm.linear(1000), predicts="eps", data_range=(-1, 1))
    moments = model.measure(images)                                   # Var[x0 | x_t] with error bars
    plan = model.plan(moments, steps=10)                              # the 10 times that lose least
    samples = model.sample(plan, rule="analytic", n=64)
    bits = model.bits_per_dim(test_images, plan, rule="analytic", levels=256)
    model = adpm.load("configs/digits.py")                            # the same from a config, with weights and data

    symbol          identifier             paper
    alpha_t         process.alpha(t)       sqrt(alpha-bar_t) of DDPM and Analytic-DPM; alpha_t of VDM
    sigma_t         process.sigma(t)       sqrt(1 - alpha-bar_t), sqrt(beta-bar_t)
    gamma_t         exp(process.log_snr)   SNR alpha_t^2/sigma_t^2 (VDM). Not Analytic-DPM's Gamma, which is
    E||eps||^2/d    the "gamma" estimator  Gamma_n of Analytic-DPM; `ms_eps` files hold it
    s < t           s, t                   a reverse step goes from t to s
    beta_{t|s}      forward_variance       Var[x_t | x_s]
    lambda^2        lambda2                Var[x_s | x_t, x_0]; beta-tilde at eta = 1
    eta             eta                    1 = DDPM, 0 = DDIM
    x_0, eps        x0, eps                with a hat in formulas, without one in code, for predictions
    Var_t           MomentTable.variance   E tr Cov[x_0 | x_t] / d
    kappa_t         excess precision       1/Var_t - gamma_t
    K, t_0..t_K     path                   trajectory: t_0 = 0 is the data, t_K = N
    lambda_t        log_snr / 2            log(alpha_t/sigma_t) of DPM-Solver++, UniPC, SA-Solver; DEIS: -log rho
    B(h)            basis                  bh1, bh2 of UniPC
    tau             from eta               SA-Solver's noise; exp(-2 tau^2 h) = 1 - eta^2 (1 - gamma_t/gamma_s)
    l, s, b         linear, scale, bias    of EMS, DPM-Solver-v3's statistics per pixel

Imports run down this list: errors, families, reading, ranks, whole, provenance, pickles, progress, moving, process,
kernel, noise, parametrisation, denoiser, classes, guidance, energies, egsde, ideal, derivative, draws, gaussian_score,
mixture_fit, moments, target, ms_eps, basis, transforms, bases, shrinkage, scale, coordinates, coordinate_draws,
gaussian, observations, variance, shortest_path, prices, costs, planning, published_split, shortened, solver, inverse,
exponential, multistep, published_multistep, start, sampler, reference, fitting, fitted, trajectory, ems,
ems_integrals, dpm_solver_v3, neighbours, likelihood, cost_table, objective, members, ems_measure, drawing,
translation, bound, data_term, paths, jump, explained, plots, conventions, measured, subject, model, completion,
diffusers, nn, formats, run. `sde` and `covariance` import this package and not each other.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adpm.ems import EMS
    from adpm.errors import UserError
    from adpm.measured import Moments, Plan
    from adpm.model import Model
    from adpm.process import DiscreteProcess, cosine, linear, vp_integral
    from adpm.run.load import load

_PLACES = {
    "EMS": "adpm.ems",
    "Model": "adpm.model",
    "Moments": "adpm.measured",
    "Plan": "adpm.measured",
    "UserError": "adpm.errors",
    "DiscreteProcess": "adpm.process",
    "cosine": "adpm.process",
    "linear": "adpm.process",
    "vp_integral": "adpm.process",
    "load": "adpm.run.load",
}
"""Imported when they are asked for, so that `import adpm` costs nothing."""

__all__ = [
    "EMS",
    "DiscreteProcess",
    "Model",
    "Moments",
    "Plan",
    "UserError",
    "cosine",
    "linear",
    "load",
    "vp_integral",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'adpm' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
