"""The settings of the published tables of Analytic-DPM and its extension, as the last of a config's variants.

published_ddpm, published_ddim: how samples for FID were drawn; published_nll: how bits/dim were measured; published_ot:
the same along the published dynamic programme. docs/published.md has the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from adpm.errors import lookup
from configs import base

Change = Callable[[ConfigDict], None]

CAPS: dict[str, dict[float, float]] = {
    "linear": {1.0: 2.0, 0.0: 1.0},
    "cosine": {1.0: 1.0, 0.0: 1.0},
    "vp_integral": {1.0: 2.0, 0.0: 1.0},
}
"""Schedule -> eta -> levels that the noise of the step before the last is capped at, `clip_pixel` as published."""


def _drawn(eta: float) -> Change:
    def change(config: ConfigDict) -> None:
        config.trajectory.name = "even"
        config.sampling.eta = eta
        config.sampling.samples = 50_000
        config.sampling.batch_size = 500
        config.rule.cap_levels = lookup(CAPS, config.process.name, "schedule of the published samples")[eta]
        config.denoiser.eps_after_clip = "rederive" if eta else "keep"

    return change


def _measured(trajectory: str) -> Change:
    def change(config: ConfigDict) -> None:
        config.trajectory.name = trajectory
        config.likelihood.decoder = "published_elbo"

    return change


PRESETS: dict[str, Change] = {
    "published_ddpm": _drawn(1.0),
    "published_ddim": _drawn(0.0),
    "published_nll": _measured("even"),
    "published_ot": _measured("published_split"),
}


def head(objective: str, kind: str) -> Change:
    """Extended-Analytic-DPM's head of a kind, simple or complex, trained by `objective`, and the rule of that name.

    Its checkpoints hold trunk and head in one file, which does not say which of the two objectives its head is of.
    """

    def change(config: ConfigDict) -> None:
        config.network.head = kind
        config.rule.name = objective
        config.train.objective = objective
        config.train.trunk_dropout = True
        training(config, iterations=500_000, learning_rate=1e-4)

    return change


def training(config: ConfigDict, iterations: int, learning_rate: float, batch_size: int = 128) -> None:
    """What most published trainings have in common: Adam at one rate, no limit of gradients, EMA 0.9999."""
    config.train.iterations = iterations
    config.train.learning_rate = learning_rate
    config.train.batch_size = batch_size
    config.train.warmup = 0
    config.train.schedule = "constant"
    config.train.grad_clip = 0.0
    config.train.ema_decay = 0.9999
    # ours
    config.train.save_every = 10_000
    config.train.test_every = 10_000
    config.train.sample_every = 50_000


def with_variant(config: ConfigDict, variant: str, variants: Mapping[str, Change]) -> ConfigDict:
    """`config` changed by the named variants, joined by '+', the presets of this file after its own."""
    return base.with_variant(config, variant, {**variants, **PRESETS})
