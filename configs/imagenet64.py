"""ImageNet 64x64 with Improved DDPM's network: cosine, N = 4000. Variants: sn, npr, learned, then a preset.

A preset is one of configs/published.py. Put the published batches into config.data.folder, and Improved DDPM's
unconditional checkpoint, whose second half of outputs is a variance that only `learned` uses, into
config.network.pretrained.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, published

HEADS = {"sn": "complex", "npr": "simple"}


CHECKPOINTS = ("", "sn", "npr")


def _learned(config: ConfigDict) -> None:
    config.rule.name = "learned"


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.name = "imagenet64"
    config.process.name = "cosine"
    config.process.steps = 4000
    config.network.model_channels = 128
    config.network.channel_mult = (1, 2, 3, 4)
    config.network.num_res_blocks = 3
    config.network.attention_downsample = (4, 8)
    config.network.num_heads = 4
    config.network.scale_shift = True
    config.network.learned_variance = True
    config.network.dropout = 0.0
    config.denoiser.time_shift = 1
    config.train.objective = "hybrid"
    published.training(config, iterations=1_500_000, learning_rate=1e-4)
    config.moments.batch_size = 64
    heads = {name: published.head(name, kind) for name, kind in HEADS.items()}
    return published.with_variant(config, variant, {"learned": _learned, **heads})
