"""What can be wrong with a config's choices together: missing files, rules without their head, and the like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adpm.denoiser import EPS_AFTER_CLIP
from adpm.errors import UserError
from adpm.families import Families, Family
from adpm.run.heads import SecondOutput
from adpm.variance import RuleFacts


def check_files(config: Any) -> None:
    """Named moments and statistics exist, moments in one place only."""
    for name in ("file", "ms_eps", *(name for name in config.moments if name.endswith("_file"))):
        if config.moments[name] and not Path(config.moments[name]).is_file():
            raise UserError(f"config.moments.{name} = '{config.moments[name]}' is no file.")
    if config.moments.file and config.moments.ms_eps:
        raise UserError("config.moments.file and config.moments.ms_eps both name moments; set one of them.")


def check_head_file(network: Any, has_head: bool) -> None:
    """A file of a head goes with a network that has one."""
    if network.head_pretrained and not has_head:
        raise UserError(
            f"config.network.head_pretrained = '{network.head_pretrained}' goes with a head, but "
            f"config.network.head = '{network.get('head')}'; unset one of them."
        )


def check_method(config: Any, families: Families, levels: int, second: SecondOutput | None) -> None:
    """Refuse a rule, cap or solver that cannot work with this model, before anything is written."""
    rule, name = families["rule"][config.rule.name].facts or RuleFacts(), config.rule.name
    if config.rule.cap_levels and not levels:
        raise UserError(f"config.rule.cap_levels = {config.rule.cap_levels} needs data with levels; set it to 0.")
    if rule.only_eta is not None and config.sampling.eta != rule.only_eta:
        raise UserError(
            f"config.rule.name = '{name}' goes with config.sampling.eta = {rule.only_eta:g} only, "
            f"got {config.sampling.eta}."
        )
    if rule.trained_with:
        _check_trained(name, rule.trained_with, second)


def _check_trained(rule: str, objectives: tuple[str, ...], got: SecondOutput | None) -> None:
    """The rule says what the second output has to be; a head's file, or the config for files of others, what it is."""
    if got is not None and (got.objective is None or got.objective in objectives):
        return
    wanted = " or ".join(f"'{objective}'" for objective in objectives)
    found = "but there is no network with a second output (config.network)"
    if got is not None:
        found = f"got '{got.objective}' ({got.said_by}); {got.advice}"
    raise UserError(
        f"config.rule.name = '{rule}' needs a head trained with config.train.objective = {wanted}, {found}."
    )


def check_second_output(
    config: Any, families: Families, has_second_output: bool, has_head: bool, in_basis: bool | None
) -> None:
    """The objective is about the kind of second output that the network has, if it is about one at all.

    A head takes the place of a learned variance, so only one of the two can be meant; and a head is about pixels or
    about the coordinates of a basis.
    """
    objectives = families["objective"]
    facts, told = objectives[config.train.objective].facts, f"config.train.objective = '{config.train.objective}'"
    if facts.learns_variance and has_head:
        heads = named(objectives, "trains_head")
        raise UserError(
            f"{told} is about the network's own second output, and config.network.head = '{config.network.head}' puts "
            f"a head in its place; set the head to none, or the objective to the head's ({heads})."
        )
    if facts.trains_head and has_head and in_basis is not None and in_basis != facts.basis_head:
        about, other = ("the coordinates of a basis", "pixels")[:: 1 if facts.basis_head else -1]
        raise UserError(
            f"{told} trains a head about {about}, and config.network.head = '{config.network.head}' is about {other}; "
            f"set the head to {'coordinates' if facts.basis_head else 'simple or complex'}, or the objective to one of "
            f"{named(objectives, 'pixel_head' if facts.basis_head else 'basis_head')}."
        )
    if facts.trains_head and has_second_output and not has_head:
        own = named(objectives, "learns_variance")
        raise UserError(
            f"{told} is about a head, and the network's second output is the one of config.network.learned_variance = "
            f"True; set config.network.head to simple or complex, or the objective to the variance's ({own})."
        )


def named(family: Family, fact: str) -> str:
    """The members of which a fact holds."""
    return ", ".join(name for name, kind in family.items() if getattr(kind.facts, fact)) or "none known"


def check_costs(config: Any, cost: str, facts: Any, rule: RuleFacts, data_term: bool) -> None:
    """Refuse what single steps cannot be priced with.

    Raises:
        UserError: naming the field.
    """
    if not facts.of_rule:
        return
    told = f"config.trajectory.cost = '{cost}'"
    if (rule.state_dependent or rule.per_axis) and not facts.of_states:
        why, best = ("depends on the state", "'measured'") if rule.state_dependent else ("has many", "'axes'")
        raise UserError(
            f"{told} needs one variance per step, and config.rule.name = '{config.rule.name}' {why}; "
            f"use {best}, or 'kl' (of the best scalar)."
        )
    if config.sampling.eta == 0.0:
        raise UserError(
            f"{told} has no finite bound to plan on at config.sampling.eta = 0; use a value in (0, 1], or cost = 'kl'."
        )
    if config.rule.cap_levels and (data_term or config.rule.cap_steps > 1):
        raise UserError(
            f"{told} prices steps one by one, but config.rule.cap_levels = {config.rule.cap_levels:g} caps the last "
            "steps of a whole path; set it to 0, or config.rule.cap_steps = 1 without config.trajectory.data_term, or "
            "cost = 'kl'."
        )
    section: Mapping[str, Any] = config.denoiser
    if section["clip"] and not EPS_AFTER_CLIP[section["eps_after_clip"]].facts.consistent:
        raise UserError(
            f"{told} prices the bound with eps re-derived from a clipped x0, but config.denoiser.eps_after_clip = "
            f"'{section['eps_after_clip']}'; use 'rederive', or cost = 'kl'."
        )
