"""Frechet distances between sets of images, in the feature space of a network (Heusel et al. 2017).

FD = ||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of the features' means and covariances, by torchmetrics. A
finite set of perfect samples does not score 0 but about `floor`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from adpm.nn.checkpoint import load_weights, read_weights
from adpm.nn.classifier import DigitFeatures

CLASSIFIER = Path("pretrained/digits_classifier.safetensors")


def digit_features(weights: Path = CLASSIFIER) -> nn.Module:
    """The shipped digits classifier's last hidden layer: images [B, 1, 8, 8] in [-1, 1] -> [B, 64]."""
    network = DigitFeatures()
    load_weights(network, read_weights(weights), str(weights))
    return network.eval().requires_grad_(False)


def frechet_distance(features: nn.Module, real: Tensor, generated: Tensor, batch_size: int = 512) -> float:
    """FD between two sets of images [n, C, H, W], each of at least two.

    Args:
        features: images -> [B, num_features]; has the attribute `num_features`.
    """
    metric = FrechetInceptionDistance(feature=features)  # its sums are float64
    with torch.inference_mode():
        for images, is_real in ((real, True), (generated, False)):
            for part in images.split(batch_size):
                metric.update(part, real=is_real)
        return float(metric.compute())


def floor(features: nn.Module, real: Tensor, size: int, seed: int) -> float:
    """FD between `size` real images drawn with replacement and all of them: what perfect samples would score."""
    index = torch.randint(len(real), (size,), generator=torch.Generator().manual_seed(seed))
    return frechet_distance(features, real, real[index])
