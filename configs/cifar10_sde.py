"""CIFAR-10 in continuous time with score_sde's networks (4 blocks per level). Variants: vp (the default), subvp, ve.

vp_sn and vp_npr add Extended-Analytic-DPM's head to vp; "discrete" after one of the three is how it draws from them, at
1,000 times: 'CIFAR10 (VP SDE)'. A preset comes last, one of sde/solver.py or, with discrete, of configs/published.py.
Put the published archive into config.data.folder (or set config.data.download), and a published checkpoint into
config.network.pretrained; or train.
"""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import base, published
from configs.digits_sde import subvp, ve, vp
from configs.toy_sde import with_preset

CHECKPOINTS = ("vp", "subvp", "ve", "vp_sn", "vp_npr")
"""Variants of networks that people have files of."""


def _vp_head(objective: str) -> Callable[[ConfigDict], None]:
    def change(config: ConfigDict) -> None:
        vp(config)
        published.head(objective, "simple")(config)

    return change


def _discrete(config: ConfigDict) -> None:
    config.process.name = "vp_integral"
    config.process.t_min = None
    config.denoiser.label = "index"
    config.denoiser.time_scale = 0.999


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.name = "cifar10"
    config.network.name = "score_sde"
    config.network.model_channels = 128
    config.network.channel_mult = (1, 2, 2, 2)
    config.network.num_res_blocks = 4
    config.network.attention_resolutions = (16,)
    published.training(config, iterations=950_000, learning_rate=2e-4)
    config.train.warmup = 5000
    config.train.grad_clip = 1.0
    config.moments.batch_size = 128
    heads = {f"vp_{name}": _vp_head(name) for name in ("sn", "npr")}
    own = {"vp": vp, "subvp": subvp, "ve": ve, **heads, "discrete": _discrete}
    return with_preset(config, variant, {**own, **published.PRESETS})
