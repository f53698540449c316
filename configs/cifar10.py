"""CIFAR-10 in discrete time with the networks of Analytic-DPM: 'CIFAR10 (LS)'. Variant cs: 'CIFAR10 (CS)'.

openai is Improved DDPM's own network of 6 outputs, on 4000 steps of the cosine schedule that it counts from 0.

sn and npr add Extended-Analytic-DPM's head, whose checkpoints hold trunk and head in one file: "npr", "cs+npr". Put the
published archive into config.data.folder (or set config.data.download), and a published checkpoint into
config.network.pretrained; or train.
"""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import base


def _cs(config: ConfigDict) -> None:
    config.process.name = "cosine"


def _head(objective: str) -> Callable[[ConfigDict], None]:
    def change(config: ConfigDict) -> None:
        config.network.head = "simple"
        config.rule.name = objective
        # a published file does not say which of the two its head is: this does
        config.train.objective = objective
        config.train.trunk_dropout = True

    return change


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
    # As published, for trunk and head. The checkpoints that Analytic-DPM reports on were chosen among those of this run
    # by the FID of 1000 samples: iteration 400,000 (LS) and 160,000 (CS).
    config.train.iterations = 500_000
    config.train.learning_rate = 1e-4
    config.train.warmup = 0
    config.train.schedule = "constant"
    config.train.grad_clip = 0.0
    config.train.ema_decay = 0.9999
    # ours
    config.train.save_every = 10_000
    config.train.test_every = 10_000
    config.train.sample_every = 50_000
    config.moments.batch_size = 128
    return base.with_variant(config, variant, {"cs": _cs, "sn": _head("sn"), "npr": _head("npr"), "openai": _openai})
