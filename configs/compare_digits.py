"""Digits: the discrete process against the VP and VE SDEs, under every variance rule. Variants: quick, tour."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, compare_base
from configs.compare_base import formulation

HEADS = ("sn", "npr", "relative")


def _quick(config: ConfigDict) -> None:
    """Five minutes on two cores."""
    config.grid.steps = (5, 10, 25)
    config.sampling.samples = 200
    config.likelihood.images = 100
    config.moments.draws = 30


def _tour(config: ConfigDict) -> None:
    """On the models that `make tour` has trained: no shipped weights, and one head."""
    _quick(config)
    config.formulations = ConfigDict()
    config.formulations.discrete = formulation("configs/digits.py", {"sn": "configs/digits.py:sn"})
    config.formulations.vp = formulation("configs/digits_sde.py:vp")
    config.grid.rules = ("small", "large", "analytic", "sn")


def get_config(variant: str = "") -> ConfigDict:
    config = compare_base.get_config()
    config.formulations.discrete = formulation(
        "configs/digits.py", {name: f"configs/digits.py:{name}" for name in HEADS}
    )
    config.formulations.vp = formulation(
        "configs/digits_sde.py:vp", {name: f"configs/digits_sde.py:vp_{name}" for name in HEADS}
    )
    config.formulations.ve = formulation("configs/digits_sde.py:ve")
    config.grid.rules = ("small", "large", "analytic", *HEADS)
    config.grid.trajectories = ("even", "least_cost")
    config.grid.etas = (1.0, 0.0)
    config.grid.steps = (5, 10, 15, 25, 50)
    config.trajectory.cost = "measured"
    config.trajectory.data_term = True
    config.likelihood.decoder = "optimal"
    config.moments.draws = 100
    config.sampling.samples = 1000
    config.sampling.batch_size = 250
    return base.with_variant(config, variant, {"quick": _quick, "tour": _tour})
