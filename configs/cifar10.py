"""CIFAR-10 in discrete time with the networks of Analytic-DPM: 'CIFAR10 (LS)'. Variant cs: 'CIFAR10 (CS)'.

openai is Improved DDPM's own network of 6 outputs, on 4000 steps of the cosine schedule that it counts from 0.

sn and npr add Extended-Analytic-DPM's head: "npr", "cs+npr"; a preset of configs/published.py comes last. Put the
published archive into config.data.folder (or set config.data.download), and a published checkpoint into
config.network.pretrained; or train.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, published


def _cs(config: ConfigDict) -> None:
    config.process.name = "cosine"


def _openai(config: ConfigDict) -> None:
    config.process.name = "cosine"
    config.process.steps = 4000
    config.denoiser.time_shift = 1
    config.network.learned_variance = True
    config.rule.name = "learned"
    config.train.objective = "hybrid"


CHECKPOINTS = ("", "cs", "sn", "npr", "cs+sn", "cs+npr", "openai")
"""Variants of networks that people have files of; a file does not say its schedule, nor how its head was trained."""


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.name = "cifar10"
    config.network.model_channels = 128
    config.network.channel_mult = (1, 2, 2, 2)
    config.network.num_res_blocks = 3
    config.network.attention_downsample = (2, 4)
    config.network.num_heads = 4
    config.network.scale_shift = True
    config.network.dropout = 0.3
    # The checkpoints that Analytic-DPM reports on were chosen among those of this run by the FID of 1000 samples:
    # iteration 400,000 (LS) and 160,000 (CS).
    published.training(config, iterations=500_000, learning_rate=1e-4)
    config.moments.batch_size = 128
    heads = {name: published.head(name, "simple") for name in ("sn", "npr")}
    return published.with_variant(config, variant, {"cs": _cs, **heads, "openai": _openai})
