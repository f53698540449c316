"""CIFAR-10: discrete linear and cosine schedules against the VP, sub-VP and VE SDEs, by FID. Variants: quick.

Every formulation wants its weights: --config.formulations.discrete.pretrained=FILE, and so on; those without are named
and left out. A head's own file is config.formulations.discrete.heads.sn.pretrained; empty: it is in the weights' file.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, compare_base
from configs.compare_base import formulation

HEADS = ("sn", "npr")


def _quick(config: ConfigDict) -> None:
    """A first look: the distance of 5,000 samples is biased upwards, by as much for every method."""
    config.grid.steps = (10, 25)
    config.grid.seeds = (0,)
    config.sampling.samples = 5_000
    config.likelihood.images = 1_000


def get_config(variant: str = "") -> ConfigDict:
    config = compare_base.get_config()
    config.formulations.discrete = formulation("configs/cifar10.py", {n: f"configs/cifar10.py:{n}" for n in HEADS})
    config.formulations.cosine = formulation("configs/cifar10.py:cs", {n: f"configs/cifar10.py:cs+{n}" for n in HEADS})
    for name in ("vp", "subvp", "ve"):
        config.formulations[name] = formulation(f"configs/cifar10_sde.py:{name}")
    config.grid.rules = ("small", "large", "analytic", *HEADS)
    config.grid.trajectories = ("even", "least_cost")
    config.grid.etas = (1.0, 0.0)
    config.grid.steps = (10, 25, 50, 100, 200)
    config.distance.features = "inception"
    config.distance.splits = ("train",)
    config.sampling.samples = 50_000
    config.sampling.batch_size = 500
    config.moments.batch_size = 128
    config.likelihood.batch_size = 128
    return base.with_variant(config, variant, {"quick": _quick})
