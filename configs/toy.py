"""A Gaussian mixture with known truth, and its exact denoiser: every mode but train runs in seconds, without weights.

Variants: unet (a small trained network instead of the exact denoiser), cosine.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def _unet(config: ConfigDict) -> None:
    config.denoiser.name = "network"


def _cosine(config: ConfigDict) -> None:
    config.process.name = "cosine"


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.evaluate.features = "pixels"
    config.data.name = "toy"
    config.denoiser.name = "ideal"
    config.denoiser.clip = False
    config.likelihood.decoder = "optimal"
    config.network.model_channels = 16
    config.network.channel_mult = (1,)
    config.train.iterations = 2000
    return base.with_variant(config, variant, {"unet": _unet, "cosine": _cosine})
