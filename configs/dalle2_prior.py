"""Vectors as the prior of DALL-E 2 draws them (Ramesh et al. 2022): 1000 steps of the cosine schedule, x0 predicted.

The published prior is a transformer on CLIP's image embeddings under a text; here a perceptron learns the vectors of
your file, without a condition. 64 steps with Analytic-DPM's variance, as published for it. Name the range of your
vectors: --config.data.file=FILE --config.data.low=A --config.data.high=B.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.name = "vectors"
    config.data.file = "data/vectors.npz"
    config.process.name = "cosine"
    config.process.steps = 1000
    config.network.name = "mlp"
    config.network.width = 512
    config.network.depth = 4
    config.network.dropout = 0.0
    config.denoiser.predicts = "x0"
    config.denoiser.label = "index"
    config.denoiser.clip = False
    config.train.objective = "x0"
    config.rule.name = "analytic"
    config.trajectory.name = "even"
    config.trajectory.steps = 64
    config.evaluate.features = "pixels"
    return base.with_variant(config, variant, {})
