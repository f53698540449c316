"""MNIST, 28x28, 256 levels, from a file of yours: an npz with `images`, or the published IDX file."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.evaluate.features = "pixels"
    config.data.name = "arrays"
    config.data.file = "data/mnist.npz"
    config.data.held_out = 2000
    config.network.pretrained = "pretrained/mnist.safetensors"
    config.network.model_channels = 16
    config.network.channel_mult = (1, 2, 2)
    config.network.attention_downsample = (4,)
    config.train.iterations = 6_000
    config.train.batch_size = 64
    config.moments.batch_size = 64
    config.sampling.batch_size = 64
    config.likelihood.batch_size = 64
    return base.with_variant(config, variant, {})
