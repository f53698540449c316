"""Train the digits classifier whose features our Frechet distances use, and say how good it is.

    python -m benchmarks.train_classifier --out=pretrained/digits_classifier.safetensors

Cross-entropy on the training split (random shifts by up to one pixel), AdamW, cosine schedule; accuracy on the test
split.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from adpm.nn.checkpoint import save_weights
from adpm.nn.classifier import DigitFeatures
from adpm.run.data import DATA_SETS
from adpm.whole import write_whole
from benchmarks.protocol import describe


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each batch moved by up to one pixel, the background moving in."""
    dy, dx = torch.randint(0, 3, (2,), generator=generator).tolist()
    return F.pad(x, (1, 1, 1, 1), value=-1.0)[:, :, dy : dy + 8, dx : dx + 8]


def accuracy(network: DigitFeatures, x: Tensor, labels: Tensor) -> float:
    network.eval()
    with torch.inference_mode():
        return float((network.classify(x).argmax(1) == labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="train the digits classifier")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    describe(f"digits classifier, {options.epochs} epochs of 1438 images")
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    data = DATA_SETS["digits"].build()
    x, labels = data.scaled(data.split("train")), data.labels["train"]
    network = DigitFeatures()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = options.epochs * math.ceil(len(x) / 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(options.epochs):
        network.train()
        for index in torch.randperm(len(x), generator=generator).split(64):
            loss = F.cross_entropy(network.classify(shifted(x[index], generator)), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    test = data.scaled(data.split("test"))
    figures = {"train": accuracy(network, x, labels), "test": accuracy(network, test, data.labels["test"])}
    print(f"accuracy: {figures['train']:.2%} of the training split, {figures['test']:.2%} of the test split")
    header = {"network": "digits classifier", "epochs": options.epochs, "accuracy": figures}
    write_whole(options.out, lambda path: save_weights(path, network.state_dict(), header))
    print(f"weights: {options.out}")


if __name__ == "__main__":
    main()
