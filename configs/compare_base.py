"""Every field of a comparison with its default; configs/compare_*.py fill in formulations and grid.

A cell of the grid is a formulation's own config with the sections below in the place of its own. configs/base.py
explains their fields; what the grid chooses (rule, trajectory, solver, eta, steps, seed) is missing in them.
"""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from configs import base

SHARED = ("device", "precision", "compile", "moments", "rule", "trajectory", "sampling", "likelihood")
CHOSEN = {
    "rule": ("name",),
    "trajectory": ("name", "steps"),
    "sampling": ("solver", "eta", "grid"),
    "moments": ("file", "ms_eps", "write_ms_eps"),
    "likelihood": ("method", "dequantisation", "probe", "probes", "t_min", "rtol", "atol", "max_nfe"),
}


def get_config() -> ConfigDict:
    whole = base.get_config()
    config = ConfigDict({name: whole[name] for name in SHARED})
    for section, fields in CHOSEN.items():
        for field in fields:
            del config[section][field]
    config.formulations = ConfigDict()  # name -> formulation(...); the name is its folder in the workdir

    # The grid is the product of these; cells that cannot exist as configured are named and not run.
    config.grid = ConfigDict()
    config.grid.rules = ("small", "large", "analytic")  # config.rule.name; left out for solvers without a rule
    config.grid.trajectories = ("even",)  # config.trajectory.name
    config.grid.solvers = ("reverse_gaussian",)  # config.sampling.solver
    config.grid.etas = (1.0,)  # config.sampling.eta; left out for solvers without eta
    config.grid.steps = (5, 10, 25, 50, 100)  # config.trajectory.steps
    config.grid.seeds = (0, 1)  # of the samples; moments, paths and bits/dim are those of the first

    config.distance = ConfigDict()
    config.distance.features = "digits"  # digits | inception (FID; needs the extra `fid`) | pixels
    config.distance.splits = ("train", "test")  # of the data that samples are compared with

    config.shown = 10  # the number of steps that summaries, pictures and the explanation are about
    config.processes = 0  # that work side by side, one thread each; 0 = one per core, or one with a GPU
    return config


def formulation(config: str, heads: Mapping[str, str] | None = None) -> ConfigDict:
    """A model to compare.

    Args:
        config: its config, "FILE.py[:VARIANT]".
        heads: rule -> a config of the same trunk with the head that the rule reads.
    """
    out = ConfigDict()
    out.config = config
    out.pretrained = ""  # weights in the place of the config's own
    out.heads = ConfigDict()
    for rule, source in (heads or {}).items():
        out.heads[rule] = ConfigDict()
        out.heads[rule].config = source
        out.heads[rule].pretrained = ""  # the head's file in the place of the config's own
    return out
