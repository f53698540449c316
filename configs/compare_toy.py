"""The toy mixture with its exact denoiser, in discrete and continuous time: a comparison without weights."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, compare_base
from configs.compare_base import formulation


def _tiny(config: ConfigDict) -> None:
    """Seconds: a few cells of every kind."""
    config.grid.steps = (3, 6)
    config.grid.rules = ("small", "large", "analytic")
    config.shown = 3
    config.sampling.samples = 60
    config.sampling.batch_size = 30
    config.likelihood.images = 40
    config.moments.draws = 20
    config.moments.times = 20


def get_config(variant: str = "") -> ConfigDict:
    config = compare_base.get_config()
    config.formulations.discrete = formulation("configs/toy.py")
    for name in ("vp", "subvp", "ve"):
        config.formulations[name] = formulation(f"configs/toy_sde.py:{name}")
    config.grid.rules = ("small", "unit", "large", "analytic")
    config.grid.trajectories = ("even", "least_cost")
    config.grid.etas = (1.0, 0.0)
    config.distance.features = "pixels"
    config.distance.splits = ("test",)
    config.likelihood.decoder = "optimal"
    config.sampling.samples = 500
    config.sampling.batch_size = 500
    config.moments.batch_size = 1000
    return base.with_variant(config, variant, {"tiny": _tiny})
