"""32x32 RGB crops of two photographs, 256 levels: natural images without a download.

Variants: cosine; sn, npr, relative, ocm (heads per pixel), spectral (one about the cosines of 8x8 blocks).
"""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import base
from configs.digits import PIXEL, head, spectral_head


def _cosine(config: ConfigDict) -> None:
    config.process.name = "cosine"
    config.network.pretrained = ""


def _spectral(config: ConfigDict) -> None:
    spectral_head("pretrained/patches_spectral.safetensors", basis="block_dct")(config)
    config.network.head_block = 8
    config.train.batch_size = 64


def _pixel(objective: str) -> Callable[[ConfigDict], None]:
    def change(config: ConfigDict) -> None:
        head(objective, f"pretrained/patches_{objective}.safetensors")(config)
        config.train.batch_size = 64

    return change


HEADS = {name: _pixel(name) for name in PIXEL} | {"spectral": _spectral}


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.evaluate.features = "pixels"
    config.data.name = "patches"
    config.network.pretrained = "pretrained/patches.safetensors"
    config.network.model_channels = 16
    config.network.channel_mult = (1, 2, 2)
    config.network.attention_downsample = (4,)
    config.train.iterations = 6_000
    config.train.batch_size = 32
    config.moments.batch_size = 64
    config.sampling.samples = 16
    config.sampling.batch_size = 16
    config.likelihood.batch_size = 64
    return base.with_variant(config, variant, {"cosine": _cosine, **HEADS})
