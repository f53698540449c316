"""What a diffusers network and its scheduler's config are in this project's terms.

    beta_schedule, trained_betas    the betas of a `DiscreteProcess`, in float64
    prediction_type                 `predicts`: epsilon = eps, sample = x0, v_prediction = v
    clip_sample, clip_sample_range  `clip`, the range [-r, r] that x_0 is limited to
    timestep n - 1                  time n: diffusers counts steps from 0, and its networks receive that number

What a config says of nodes, variance and the last step (`timestep_spacing`, `steps_offset`, `variance_type`,
`set_alpha_to_one`) is about the samplers of diffusers. Nothing here imports that library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adpm.errors import UserError, lookup
from adpm.process import Array, DiscreteProcess, cosine_betas

Config = Mapping[str, Any]


def label_of(t: Array) -> Array:
    """What a network of diffusers receives at time n = 1..N: n - 1."""
    return np.asarray(t, dtype=np.float64) - 1.0


def _sigmoid(start: float, end: float, steps: int) -> Array:
    return start + (end - start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, steps)))


BETAS: dict[str, Callable[[float, float, int], Array]] = {
    "linear": np.linspace,
    "scaled_linear": lambda start, end, steps: np.linspace(start**0.5, end**0.5, steps) ** 2,
    "squaredcos_cap_v2": lambda start, end, steps: cosine_betas(steps),
    "sigmoid": _sigmoid,
}
"""`beta_schedule` -> (beta_start, beta_end, N) -> betas [N]."""

PREDICTS: dict[str, str] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""`prediction_type` -> what `adpm.denoiser.PREDICTIONS` calls it."""

REFUSED: dict[str, str] = {
    "rescale_betas_zero_snr": "its last time has no signal at all, and a log-SNR of minus infinity",
    "thresholding": "how far it limits x0 depends on the state; use `clip_sample`, or nothing",
}
"""Options of diffusers that would change what is sampled, and why there is no such thing here."""


def process_of(config: Config) -> DiscreteProcess:
    """The forward process of a scheduler's config.

    Raises:
        UserError: if it is not one of given betas, or has an option of `REFUSED`.
    """
    for name, why in REFUSED.items():
        if config.get(name):
            raise UserError(f"`{name}` = {config[name]} of the scheduler's config cannot be followed: {why}.")
    missing = [n for n in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule") if n not in config]
    if missing:
        raise UserError(
            f"the scheduler's config has no `{missing[0]}`; one whose process is given by betas is wanted, such as "
            "that of DDPMScheduler, DDIMScheduler or DPMSolverMultistepScheduler."
        )
    steps, trained = int(config["num_train_timesteps"]), config.get("trained_betas")
    if trained is None:
        make = lookup(BETAS, config["beta_schedule"], "`beta_schedule`")
        return DiscreteProcess(make(float(config["beta_start"]), float(config["beta_end"]), steps))
    betas = np.asarray(trained, dtype=np.float64)
    if betas.shape != (steps,):
        raise UserError(f"`trained_betas` has shape {betas.shape}, but `num_train_timesteps` is {steps}.")
    return DiscreteProcess(betas)


def predicts_of(config: Config) -> str:
    """What the network predicts, by the name that it has here."""
    return lookup(PREDICTS, config.get("prediction_type", "epsilon"), "`prediction_type`")


def clip_of(config: Config) -> tuple[float, float] | None:
    """The range that x_0 is limited to; None where the config has no `clip_sample`, or it is not set."""
    reach = float(config.get("clip_sample_range", 1.0))
    return (-reach, reach) if config.get("clip_sample") else None


def facts_of(config: Config) -> dict[str, Any]:
    """What moments of a network depend on that a config says: prediction, limits of x_0, and the betas as float32."""
    betas, clip = process_of(config).betas.astype("<f4").tobytes(), clip_of(config)
    return {
        "prediction_type": config.get("prediction_type", "epsilon"),
        "clip": None if clip is None else list(clip),
        "betas": hashlib.sha256(betas).hexdigest()[:16],
    }


class Network(nn.Module):
    """A network of diffusers as this project calls one: (x [B, ...], label [B]) -> [B, ...].

    Args:
        unet: called as unet(x, timestep, **conditions).sample, in its own dtype.
        conditions: what else it is given, such as `encoder_hidden_states`, `class_labels`: [1, ...], the same for all.
    """

    def __init__(self, unet: nn.Module, conditions: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.unet, self.conditions = unet, dict(conditions or {})
        for name, value in self.conditions.items():
            if value.ndim < 1 or len(value) != 1:
                raise UserError(
                    f"`conditions`['{name}'] has shape {tuple(value.shape)}; one for all images is wanted, [1, ...]."
                )

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        first = next(self.unet.parameters(), x)
        given = {name: v.to(first.device).expand(len(x), *v.shape[1:]) for name, v in self.conditions.items()}
        return torch.as_tensor(self.unet(x.to(first.dtype), label, **given).sample)


def settings_of(
    unet: nn.Module, scheduler: Any, conditions: Mapping[str, Tensor] | None = None, **settings: Any
) -> dict[str, Any]:
    """The arguments of a `Model` of a network of diffusers and the scheduler that it was trained with.

    Args:
        unet, conditions: see `Network`.
        scheduler: any whose `config` says betas; it is not called.
        settings: arguments of `Model` that say otherwise.
    """
    clip = clip_of(scheduler.config)
    return {
        "network": Network(unet, conditions),
        "process": process_of(scheduler.config),
        "predicts": predicts_of(scheduler.config),
        "label": label_of,
        "data_range": clip,
        "clip": clip is not None,
        **settings,
    }
