"""The toy mixture and its exact denoiser in continuous time. Variants: vp (the default), subvp, ve, then a preset."""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import base, toy
from sde.solver import PRESETS


def _process(name: str) -> Callable[[ConfigDict], None]:
    def change(config: ConfigDict) -> None:
        config.process.name = name

    return change


def _preset(name: str) -> Callable[[ConfigDict], None]:
    def change(config: ConfigDict) -> None:
        preset = PRESETS[name][config.process.name]
        config.rule.name = preset.rule
        config.sampling.eta = preset.eta
        config.trajectory.name = "even"

    return change


# score_sde's samplers that are the reverse kernel with a rule; named after the process: "ve+ancestral"
PRESET_VARIANTS = {name: _preset(name) for name in PRESETS}


def get_config(variant: str = "") -> ConfigDict:
    variants = {name: _process(name) for name in ("vp", "subvp", "ve")}
    return base.with_variant(toy.get_config(), variant or "vp", {**variants, **PRESET_VARIANTS})
