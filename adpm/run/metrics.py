"""Distances between sets of images: Frechet's in the feature space of a network (Heusel et al. 2017), and energy.

FD = ||m_a - m_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of the features' means and covariances, by torchmetrics. A
finite set of perfect samples does not score 0 but about `FrechetDistance.floor`. Distances in different features, or to
different references, are different figures.

A member of FEATURES makes a network from the shape (C, H, W) of the images: images [B, C, H, W] in [-1, 1] -> features
[B, num_features], in eval mode and without gradients. It may refuse the shape with a UserError.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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


def _metric(features: nn.Module) -> Any:
    """torchmetrics' distance: its sums are float64, and those of the reference survive a reset.

    Imported when it is needed, because it brings in whatever torchvision there is.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except Exception as error:
        raise UserError(
            f"Frechet distances need torchmetrics, which cannot be imported ({error}); if that is about torchvision, "
            "install the one that matches your torch, or none."
        ) from error
    return FrechetInceptionDistance(feature=features, reset_real_features=False)


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
        device: where the features and the distance are computed; the images may lie elsewhere.

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
        self._metric = _metric(features).to(device)
        self._add(self.real, real=True)

    @torch.inference_mode()
    def __call__(self, generated: Tensor | Iterable[Tensor]) -> float:
        """FD between images [n, C, H, W] in [-1, 1], or batches of such, and the reference."""
        self._metric.reset()
        for images in [generated] if isinstance(generated, Tensor) else generated:
            self._add(images, real=False)
        return float(self._metric.compute())

    def floor(self, size: int, seed: int) -> float:
        """FD between `size` real images drawn with replacement and all of them: what perfect samples would score."""
        index = torch.randint(len(self.real), (size,), generator=torch.Generator().manual_seed(seed))
        return self(self.real[index.to(self.real.device)])

    @torch.inference_mode()
    def _add(self, images: Tensor, real: bool) -> None:
        if len(images) < 2:
            raise UserError(f"a Frechet distance needs at least two images on either side, not {len(images)}.")
        for part in images.split(self._batch_size):
            if not torch.isfinite(part).all():  # the square root of such a covariance ends the process
                raise UserError("a Frechet distance needs images of finite numbers; some are NaN or infinite.")
            self._metric.update(part.to(self._device), real=real)


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
