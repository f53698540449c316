"""CIFAR-10 in continuous time with score_sde's networks (4 blocks per level). Variants: vp (the default), subvp, ve.

Put the published archive into config.data.folder (or set config.data.download), and score_sde's checkpoint into
config.network.pretrained; or train.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base
from configs.digits_sde import subvp, ve, vp
from configs.toy_sde import with_preset

CHECKPOINTS = ("vp", "subvp", "ve")
"""Variants of networks that people have files of."""


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.name = "cifar10"
    config.network.name = "score_sde"
    config.network.model_channels = 128
    config.network.channel_mult = (1, 2, 2, 2)
    config.network.num_res_blocks = 4
    config.network.attention_resolutions = (16,)
    config.train.iterations = 950_000
    config.train.learning_rate = 2e-4
    config.train.warmup = 5000
    config.train.schedule = "constant"
    config.train.ema_decay = 0.9999
    config.train.save_every = 10_000
    config.train.test_every = 10_000
    config.train.sample_every = 50_000
    config.moments.batch_size = 128
    return with_preset(config, variant, {"vp": vp, "subvp": subvp, "ve": ve})
