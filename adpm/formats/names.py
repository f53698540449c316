"""What training codes put before the names of a network's entries, and the schedule that they store among them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PREFIXES = ("module.", "_orig_mod.", "ema_model.", "model.", "denoise_fn.", "unet.")
"""Put before all names by parallel and compiled modules, by averages, by classes that hold network and schedule."""

_SCHEDULE = frozenset(
    "betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod "
    "log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance "
    "posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 p2_loss_weight loss_weight".split()
)
"""Buffers that follow from the schedule and are no part of a network."""

NOISE, FREQUENCIES = "sigmas", "all_modules.0.W"
"""score_sde's buffer of noise levels, in files of all its networks, and the frequencies by which NCSN++ sees sigma."""

_COUNTERS = frozenset({"initted", "step"})


def taken_apart(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the network's entries by its own names, buffers of the schedule).

    A prefix goes where all names have it; a raw network goes where `ema_model` lies beside it (as ema-pytorch has it).
    """
    found, schedule = dict(state), dict[str, Tensor]()
    averaged = {name: tensor for name, tensor in found.items() if name.startswith("ema_model.")}
    if averaged and all(n in averaged or n in _COUNTERS or n.startswith(("online_model.", "model.")) for n in found):
        found = averaged
    while True:
        inside = {name for name in found if name in _SCHEDULE and found[name].ndim == 1}
        schedule |= {name: found.pop(name) for name in inside}
        prefix = next((p for p in PREFIXES if found and all(name.startswith(p) for name in found)), "")
        if not prefix:
            return found, schedule
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def alphas_cumprod(schedule: Mapping[str, Tensor]) -> Tensor | None:
    """alpha_n^2 for n = 1..N from the buffers of a schedule, float64; None where none of them says it."""
    if "alphas_cumprod" in schedule:
        return schedule["alphas_cumprod"].double()
    return torch.cumprod(1.0 - schedule["betas"].double(), 0) if "betas" in schedule else None


def noise_levels(state: Mapping[str, Tensor]) -> tuple[float, float] | None:
    """Largest and smallest sigma that NCSN++ was made for; None for DDPM++, which has the buffer and no use for it."""
    if NOISE not in state or FREQUENCIES not in state:
        return None
    return float(state[NOISE].max()), float(state[NOISE].min())
