"""scikit-learn's handwritten digits: 8x8, 17 levels.

Variants: cosine, x0; sn, npr, relative, ocm, spectral (a head on the shipped weights); learned (Improved DDPM's
variance).
"""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import base


def _cosine(config: ConfigDict) -> None:
    config.process.name = "cosine"
    config.network.pretrained = ""


def _x0(config: ConfigDict) -> None:
    config.denoiser.predicts = "x0"
    config.network.pretrained = ""


def head(objective: str, pretrained: str = "") -> Callable[[ConfigDict], None]:
    """A head trained by `objective`, and the variance rule of that name."""

    def change(config: ConfigDict) -> None:
        config.network.head = "complex"
        config.network.head_pretrained = pretrained
        config.rule.name = objective
        config.train.objective = objective
        config.train.iterations = 3000
        config.train.ema_decay = 0.995  # a head settles faster than a network

    return change


def spectral_head(pretrained: str = "", basis: str = "pca") -> Callable[[ConfigDict], None]:
    """A head about the coordinates of a basis."""
    trained = head("spectral_head", pretrained)

    def change(config: ConfigDict) -> None:
        trained(config)
        config.network.head = "coordinates"
        config.moments.basis = basis
        config.train.times = "log_snr"

    return change


PIXEL = ("sn", "npr", "relative", "ocm")
HEADS = {name: head(name, f"pretrained/digits_{name}.safetensors") for name in PIXEL} | {
    "spectral": spectral_head("pretrained/digits_spectral.safetensors"),
}


def _learned(config: ConfigDict) -> None:
    config.network.learned_variance = True
    config.network.pretrained = "pretrained/digits_learned.safetensors"
    config.rule.name = "learned"
    config.train.objective = "hybrid"
    config.train.iterations = 6_000


CHECKPOINTS = ("", "learned")
"""Variants of shipped networks."""


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.evaluate.features = "digits"
    config.network.attention_downsample = (2,)
    config.network.pretrained = "pretrained/digits.safetensors"
    config.network.dropout = 0.25
    config.train.iterations = 10_000
    return base.with_variant(config, variant, {"cosine": _cosine, "x0": _x0, "learned": _learned, **HEADS})
