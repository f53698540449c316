"""The toy mixture and its exact denoiser in continuous time. Variants: vp (default), subvp, ve, rectified_flow, preset.

A preset is one of score_sde's samplers that are the reverse kernel with a rule: it sets rule, eta and path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from adpm.errors import UserError
from configs import base, toy
from sde.solver import PRESETS


def _process(name: str) -> Callable[[ConfigDict], None]:
    def change(config: ConfigDict) -> None:
        config.process.name = name

    return change


def _preset(name: str) -> Callable[[ConfigDict], None]:
    def change(config: ConfigDict) -> None:
        if config.process.name not in PRESETS[name]:
            raise UserError(_order(name))
        if config.network.head != "none":
            raise UserError(
                f"config variant '{name}' is a preset and names the rule itself, but the variant before it has a head "
                f"with the rule '{config.rule.name}'; leave one of the two out."
            )
        preset = PRESETS[name][config.process.name]
        config.rule.name = preset.rule
        config.sampling.eta = preset.eta
        config.trajectory.name = "even"

    return change


def _order(name: str) -> str:
    return f"config variant '{name}' is a preset for an SDE and comes last, after its process, such as 'vp+{name}'."


def with_preset(config: ConfigDict, variant: str, variants: Mapping[str, Callable[[ConfigDict], None]]) -> ConfigDict:
    """`config` changed by the named variants (vp when none is), a preset the last of them: "ve+ancestral".

    Raises:
        UserError: for a preset without a process before it, with anything after it, or on a head, which has its rule.
    """
    for name in variant.split("+")[:-1]:
        if name in PRESETS:
            raise UserError(_order(name))
    presets = {name: _preset(name) for name in PRESETS}
    return base.with_variant(config, variant or "vp", {**variants, **presets})


def get_config(variant: str = "") -> ConfigDict:
    variants = {name: _process(name) for name in ("vp", "subvp", "ve", "rectified_flow")}
    return with_preset(toy.get_config(), variant, variants)
