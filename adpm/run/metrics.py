"""Distances between sets of images: Frechet's in the feature space of a network (Heusel et al. 2017), and energy.

FD = ||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of the features' means and covariances, in float64. A finite
set of perfect samples does not score 0 but about `FrechetDistance.floor`. Distances in different features, or to
different references, are different figures.

A member of FEATURES makes a network from the shape (C, H, W) of the images: images [B, C, H, W] in [-1, 1] -> features
[B, num_features], in eval mode and without gradients. It may refuse the shape with a UserError.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adpm.errors import UserError
from adpm.families import Kind
from adpm.formats import read_weights
from adpm.nn.checkpoint import load_weights
from adpm.nn.classifier import DigitFeatures

CLASSIFIER = Path(__file__).resolve().parents[2] / "pretrained" / "digits_classifier.safetensors"
DIGITS = (1, 8, 8)
NORMALISATION = "levels in [-1, 1]"
"""Of the images that every member of FEATURES is given."""

Shape = tuple[int, ...]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class FeatureFacts:
    """What is told with every distance in these features.

    Attributes:
        resize: what they do to the size of images.
        of: a short name of the network; figures in features of others are others.
    """

    resize: str
    of: str


def digit_features(shape: Shape) -> nn.Module:
    """The shipped digits classifier's last hidden layer, 64 features."""
    if shape != DIGITS:
        raise UserError(
            f"`features` = 'digits' is a classifier of images of shape {DIGITS}, and the data are "
            f"{shape}; use inception or pixels."
        )
    network = DigitFeatures()
    load_weights(network, read_weights(CLASSIFIER), str(CLASSIFIER))
    return network.eval().requires_grad_(False)


class Inception(nn.Module):
    """pytorch-fid's InceptionV3 on images in [-1, 1]: the 2048 features of its last pooling.

    Args:
        network: images [B, 3, H, W] in [0, 1] of any size -> a list of one tensor [B, 2048, 1, 1].
    """

    num_features = 2048

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        images = (x + 1.0) / 2.0
        (features,) = self.network(images.expand(-1, 3, -1, -1))  # one channel is repeated, three stay as they are
        return features.flatten(1)


def inception_features(shape: Shape) -> nn.Module:
    """pytorch-fid's Inception network, whose weights it fetches once; gray images get three equal channels."""
    told = "`features` = 'inception'"
    if shape[0] not in (1, 3):
        raise UserError(f"{told} needs images of 1 or 3 channels, and the data are {shape}; use pixels.")
    try:
        from pytorch_fid.inception import InceptionV3
    except Exception as error:  # a torchvision for another torch fails in its own ways
        raise UserError(
            f"{told} needs pytorch-fid, which cannot be imported ({error}): pip install 'adpm[fid]' (it brings "
            "torchvision, which must match your torch); or use 'pixels'."
        ) from error
    try:
        network = InceptionV3(
            output_blocks=[InceptionV3.BLOCK_INDEX_BY_DIM[Inception.num_features]],
            resize_input=True,
            normalize_input=True,
            requires_grad=False,
            use_fid_inception=True,
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{told}: its weights could not be fetched ({error}); try again online, or use 'pixels'."
        ) from error
    return Inception(network).eval()


class Pixels(nn.Module):
    """The images themselves."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def pixel_features(shape: Shape) -> nn.Module:
    """C H W features, for any data and without a network."""
    return Pixels(torch.Size(shape).numel())


@dataclass(frozen=True)
class Scatter:
    """Features of some images, as much as a Frechet distance needs of them; in float64.

    Attributes:
        count: images.
        mean: [F].
        scatter: sum of (f - mean)(f - mean)^T, [F, F].
    """

    count: int
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, features: Array) -> Scatter:
        """Of features [n, F]."""
        mean = features.mean(0)
        return cls(len(features), mean, (features - mean).T @ (features - mean))

    def __add__(self, other: Scatter) -> Scatter:
        """Of both sets of images together (Chan et al. 1983)."""
        count, apart = self.count + other.count, other.mean - self.mean
        between = np.outer(apart, apart) * (self.count * other.count / count)
        return Scatter(count, self.mean + apart * (other.count / count), self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Array:
        """[F, F], divisor count - 1."""
        return self.scatter / (self.count - 1)


def frechet(mean_a: Array, covariance_a: Array, mean_b: Array, covariance_b: Array) -> float:
    """||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric, so
    that sets of fewer images than features need no jitter.
    """
    values, vectors = np.linalg.eigh(covariance_a)
    root = vectors * np.sqrt(values.clip(0.0)) @ vectors.T
    shared = np.linalg.eigvalsh(root @ covariance_b @ root).clip(0.0)
    apart = np.square(mean_a - mean_b).sum()
    return float(apart + np.trace(covariance_a) + np.trace(covariance_b) - 2.0 * np.sqrt(shared).sum())


@torch.inference_mode()
def energy_distance(one: Tensor, other: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of images [n, ...] and [m, ...] as vectors (Szekely and Rizzo 2013).

    Unbiased: pairs of an image with itself are left out, so that two halves of one set score 0 on average, and
    sometimes less. It needs no features, and sees more than means and covariances.
    """
    x, y = (images.flatten(1).double() for images in (one, other))

    def total(a: Tensor, b: Tensor) -> float:
        return sum(float(torch.cdist(part, b).sum()) for part in a.split(1024))

    n, m = len(x), len(y)
    return 2.0 * total(x, y) / (n * m) - total(x, x) / (n * (n - 1)) - total(y, y) / (m * (m - 1))


class FrechetDistance:
    """Distances of any number of image sets to one reference, whose statistics are taken once.

    Args:
        features: a network as FEATURES makes them; moved to `device`.
        real: the reference, images [n, C, H, W] in [-1, 1] or batches of such; kept for `floor`.
        batch_size: images per call of the network.
        device: where the features are computed; the images may lie elsewhere.

    Raises:
        UserError: for fewer than two images.
    """

    def __init__(
        self,
        features: nn.Module,
        real: Tensor | Iterable[Tensor],
        batch_size: int = 512,
        device: torch.device | str = "cpu",
    ) -> None:
        self.real = real if isinstance(real, Tensor) else torch.cat(list(real))
        self._batch_size, self._device = batch_size, device
        self._features = features.to(device)
        self._real = self._scatter(self.real)

    def __call__(self, generated: Tensor | Iterable[Tensor]) -> float:
        """FD between images [n, C, H, W] in [-1, 1], or batches of such, and the reference."""
        batches = [generated] if isinstance(generated, Tensor) else generated
        ours = reduce(add, (self._scatter(images) for images in batches))
        return frechet(self._real.mean, self._real.covariance, ours.mean, ours.covariance)

    def floor(self, size: int, seed: int) -> float:
        """FD between `size` real images drawn with replacement and all of them: what perfect samples would score."""
        index = torch.randint(len(self.real), (size,), generator=torch.Generator().manual_seed(seed))
        return self(self.real[index.to(self.real.device)])

    @torch.inference_mode()
    def _scatter(self, images: Tensor) -> Scatter:
        if len(images) < 2:
            raise UserError(f"a Frechet distance needs at least two images on either side, not {len(images)}.")
        if not torch.isfinite(images).all():
            raise UserError("a Frechet distance needs images of finite numbers; some are NaN or infinite.")
        features = (self._features(part.to(self._device)) for part in images.split(self._batch_size))
        return reduce(add, (Scatter.of(found.cpu().double().numpy()) for found in features))


FEATURES: dict[str, Kind] = {
    "digits": Kind(
        digit_features,
        "the last hidden layer of our classifier of digits, 64 features",
        FeatureFacts("none", "the digits classifier"),
    ),
    "inception": Kind(
        inception_features,
        "pytorch-fid's Inception, 2048 features: FID (extra `fid`)",
        FeatureFacts("to 299 x 299, bilinear, by pytorch-fid", "pytorch-fid's InceptionV3"),
    ),
    "pixels": Kind(pixel_features, "the images themselves", FeatureFacts("none", "pixels")),
}
