"""scikit-learn's handwritten digits: 8x8, 17 levels. Variants: cosine, x0."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def _cosine(config: ConfigDict) -> None:
    config.process.name = "cosine"
    config.network.pretrained = ""


def _x0(config: ConfigDict) -> None:
    config.denoiser.predicts = "x0"
    config.network.pretrained = ""


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.network.attention_downsample = (2,)
    config.network.pretrained = "pretrained/digits.safetensors"
    config.network.dropout = 0.25
    config.train.iterations = 10_000
    return base.with_variant(config, variant, {"cosine": _cosine, "x0": _x0})
