"""What can be wrong with a config by itself: unknown names, numbers out of range, files that are not there."""

from __future__ import annotations

import math
from pathlib import Path

from ml_collections import ConfigDict

from adpm.denoiser import EPS_AFTER_CLIP, PREDICTIONS
from adpm.errors import UserError, lookup
from adpm.moments import ESTIMATORS
from adpm.planning import BUDGETS, PLANNING_METHODS
from adpm.run.device import PRECISIONS
from adpm.run.tables import Tables
from adpm.run.times import TIMES
from adpm.run.training import SCHEDULES

# The least value of each number that has one.
LEAST = {
    "seed": 0,
    "moments.times": 0,
    "moments.draws": 6,
    "moments.batch_size": 1,
    "rule.cap_levels": 0.0,
    "rule.cap_steps": 1,
    "trajectory.steps": 1,
    "sampling.samples": 1,
    "sampling.batch_size": 1,
    "sampling.grid": 1,
    "likelihood.batch_size": 1,
    "likelihood.images": 0,
    "denoiser.time_scale": 0.0,
    "network.model_channels": 1,
    "network.num_res_blocks": 1,
}


def likelihood_methods(config: ConfigDict) -> list[str]:
    """The ways that bits/dim are to be measured, in order: config.likelihood.method joins them by '+'."""
    return str(config.likelihood.method).split("+")


def check_fields(config: ConfigDict, tables: Tables) -> None:
    """Refuse what no session could be made of.

    Raises:
        UserError: naming the field, its value and what would be right.
    """
    check_names(config, tables)
    check_numbers(config)
    check_files(config)


def check_names(config: ConfigDict, tables: Tables) -> None:
    """Every name is one of its family."""
    for table, section, name in (
        (tables.data_sets, "data", "name"),
        (tables.processes, "process", "name"),
        (tables.networks, "network", "name"),
        (tables.denoisers, "denoiser", "name"),
        (tables.labels, "denoiser", "label"),
        (PREDICTIONS, "denoiser", "predicts"),
        (EPS_AFTER_CLIP, "denoiser", "eps_after_clip"),
        (tables.objectives, "train", "objective"),
        (tables.rules, "rule", "name"),
        (ESTIMATORS, "rule", "estimator"),
        (tables.solvers, "sampling", "solver"),
        (tables.decoders, "likelihood", "decoder"),
        (tables.trajectories, "trajectory", "name"),
        (tables.costs, "trajectory", "cost"),
        (BUDGETS, "trajectory", "budget"),
        (PLANNING_METHODS, "trajectory", "method"),
        (SCHEDULES, "train", "schedule"),
        (TIMES, "train", "times"),
    ):
        lookup(table, config[section][name], f"config.{section}.{name}")
    for name in likelihood_methods(config):
        lookup(tables.likelihoods, name, "config.likelihood.method")
    lookup(PRECISIONS, config.precision, "config.precision")


def check_numbers(config: ConfigDict) -> None:
    """Every number lies in its range."""
    for name, least in LEAST.items():
        section, _, key = name.rpartition(".")
        value = (config[section] if section else config)[key]
        if not least <= value < math.inf:
            raise UserError(f"config.{name} = {value} must be a number of at least {least}.")
    if config.seed >= 2**31:
        raise UserError(f"config.seed = {config.seed} must be below 2^31.")
    if not 0.0 <= config.sampling.eta <= 1.0:
        raise UserError(f"config.sampling.eta = {config.sampling.eta} must lie in [0, 1]: 1 is DDPM, 0 is DDIM.")


def check_files(config: ConfigDict) -> None:
    """Named moments exist, and in one place only."""
    for name in ("file", "ms_eps"):
        if config.moments[name] and not Path(config.moments[name]).is_file():
            raise UserError(f"config.moments.{name} = '{config.moments[name]}' is no file.")
    if config.moments.file and config.moments.ms_eps:
        raise UserError("config.moments.file and config.moments.ms_eps both name moments; set one of them.")


def check_second_output(config: ConfigDict, tables: Tables, has_second_output: bool, has_head: bool) -> None:
    """The objective is about the kind of second output that the network has, if it is about one at all.

    A head takes the place of a learned variance, so only one of the two can be meant.
    """
    kind, told = tables.objectives[config.train.objective], f"config.train.objective = '{config.train.objective}'"
    if kind.learns_variance and has_head:
        heads = ", ".join(name for name, k in tables.objectives.items() if k.trains_head) or "none known"
        raise UserError(
            f"{told} is about the network's own second output, and config.network.head = '{config.network.head}' puts "
            f"a head in its place; set the head to none, or the objective to the head's ({heads})."
        )
    if kind.trains_head and has_second_output and not has_head:
        own = ", ".join(name for name, k in tables.objectives.items() if k.learns_variance) or "none known"
        raise UserError(
            f"{told} is about a head, and the network's second output is the one of config.network.learned_variance = "
            f"True; set config.network.head to simple or complex, or the objective to the variance's ({own})."
        )
