"""CelebA 64x64 with DDIM's network, as Analytic-DPM has it. Variants: sn, npr, then a preset of configs/published.py.

Put the aligned faces (img_align_celeba and list_eval_partition.txt) into config.data.folder, a published checkpoint
into config.network.pretrained; or train.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, published

CHECKPOINTS = ("", "sn", "npr")


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.name = "celeba64"
    config.data.flips = True
    config.network.name = "ddpm"
    config.network.model_channels = 128
    config.network.channel_mult = (1, 2, 2, 2, 4)
    config.network.num_res_blocks = 2
    config.network.attention_resolutions = (16,)
    config.network.dropout = 0.1
    config.denoiser.time_shift = 1
    published.training(config, iterations=500_000, learning_rate=2e-4)
    config.moments.batch_size = 64
    variants = {name: published.head(name, "simple") for name in ("sn", "npr")}
    return published.with_variant(config, variant, variants)
