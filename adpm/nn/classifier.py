"""A small classifier of digits whose last hidden layer is the feature space of our Frechet distances."""

from __future__ import annotations

from torch import Tensor, nn

NUM_FEATURES = 64


class DigitFeatures(nn.Module):
    """Images [B, 1, 8, 8] in [-1, 1] -> features [B, 64]; `classify` adds the class logits [B, 10].

    Three 3x3 convolutions with group normalisation, averaged over 2x2 pixels in between, then one hidden layer.
    """

    num_features = NUM_FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_stage(1, 32),
            *_stage(32, 64),
            nn.AvgPool2d(2),
            *_stage(64, 64),
            nn.Dropout(0.25),
            nn.Flatten(),
            nn.Linear(64 * 16, NUM_FEATURES),
        )
        self.head = nn.Sequential(nn.SiLU(), nn.Dropout(0.25), nn.Linear(NUM_FEATURES, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x)

    def classify(self, x: Tensor) -> Tensor:
        """Class logits [B, 10]."""
        return self.head(self.trunk(x))


def _stage(c_in: int, c_out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(c_in, c_out, 3, padding=1), nn.GroupNorm(8, c_out), nn.SiLU()
