"""Digits in continuous time. Variants: vp (the default), subvp, ve, then a preset ("ve+ancestral").

vp_sn, vp_npr, vp_relative, vp_spectral and vp_ocm add a head to the shipped weights of vp, the last to be trained.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ml_collections import ConfigDict

from configs import base, digits
from configs.toy_sde import with_preset


def vp(config: ConfigDict) -> None:
    config.process.name = "vp"
    config.process.t_min = 1e-5
    config.denoiser.label = "time_999"


def subvp(config: ConfigDict) -> None:
    vp(config)
    config.process.name = "subvp"


def ve(config: ConfigDict) -> None:
    config.process.name = "ve"
    config.process.t_min = 1e-5
    config.network.variant = "ve"
    config.denoiser.label = "sigma"
    config.denoiser.predicts = "score"
    config.data.low = 0.0


def _digits_vp(config: ConfigDict) -> None:
    vp(config)
    config.network.pretrained = "pretrained/digits_vp.safetensors"


def _digits_ve(config: ConfigDict) -> None:
    ve(config)
    config.process.sigma_max = 10.0  # about the largest distance between two digits in [0, 1]
    config.network.pretrained = "pretrained/digits_ve.safetensors"


def _vp_head(change_head: Callable[[str], Callable[[ConfigDict], None]], name: str) -> Callable[[ConfigDict], None]:
    def change(config: ConfigDict) -> None:
        _digits_vp(config)
        change_head(f"pretrained/digits_vp_{name}.safetensors")(config)

    return change


CHECKPOINTS = ("vp", "ve")
"""Variants of shipped networks."""


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.evaluate.features = "digits"
    config.network.name = "score_sde"
    config.network.attention_resolutions = (4,)
    config.network.dropout = 0.25
    config.train.iterations = 8_000
    heads = {f"vp_{name}": _vp_head(partial(digits.head, name), name) for name in ("sn", "npr", "relative")}
    heads |= {
        "vp_spectral": _vp_head(digits.spectral_head, "spectral"),
        "vp_ocm": _vp_head(lambda _: digits.head("ocm"), ""),
    }
    return with_preset(config, variant, {"vp": _digits_vp, "subvp": subvp, "ve": _digits_ve, **heads})
