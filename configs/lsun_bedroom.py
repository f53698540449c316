"""LSUN bedrooms, 256x256, with DDPM's network as ported. Variants: sn, npr, then a preset of configs/published.py.

Put the images, extracted from LSUN's database, into config.data.folder, a published checkpoint into
config.network.pretrained.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, published

HEADS = {"sn": "complex", "npr": "simple"}


CHECKPOINTS = ("", "sn", "npr")


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.name = "lsun"
    config.network.name = "ddpm"
    config.network.model_channels = 128
    config.network.channel_mult = (1, 1, 2, 2, 4, 4)
    config.network.num_res_blocks = 2
    config.network.attention_resolutions = (16,)
    config.network.dropout = 0.0
    config.denoiser.time_shift = 1
    published.training(config, iterations=2_388_000, learning_rate=2e-5, batch_size=64)
    config.moments.batch_size = 8
    config.sampling.samples = 16
    config.sampling.batch_size = 8
    config.likelihood.batch_size = 8
    variants = {name: published.head(name, kind) for name, kind in HEADS.items()}
    return published.with_variant(config, variant, variants)
