"""What covariances of the network's own derivative are worth, counted in calls, next to measured and trained ones.

Samples of the shipped digits model at eta = 1 on steps even in log-SNR: as many steps as the calls allow, 1 + 2 m of
them a step for m products with the Jacobian (`one_jvp`: 3), one in the last step of `lanczos`. Told are the Frechet
distances to the training digits, in a classifier's features and in pixels, means over seeds ± the standard error.

    python -m benchmarks.products [--calls 25 50] [--samples=1000] [--seeds=3] [--workdir=runs/products]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import adpm
from adpm.run.metrics import FEATURES, FrechetDistance
from benchmarks.protocol import describe

HEADED = "configs/digits.py:spectral"
METHODS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "analytic": ("configs/digits.py", {"rule": "analytic"}, 1, 1),
    "spectral": ("configs/digits.py", {"rule": "spectral"}, 1, 1),
    "spectral head": (HEADED, {"rule": "spectral_head"}, 1, 1),
    "one_jvp": ("configs/digits.py", {"rule": "one_jvp"}, 3, 3),
    "lanczos, 1 product": ("configs/digits.py", {"solver": "lanczos", "products": 1}, 3, 1),
    "lanczos, 3 products": ("configs/digits.py", {"solver": "lanczos", "products": 3}, 7, 1),
}
"""Name -> config, what is given to Model.sample, network calls of a step and of the last one."""


def steps_of(calls: int, each: int, last: int) -> int:
    """As many as there are calls for."""
    return 1 + (calls - last) // each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--calls", type=int, nargs="+", default=[25, 50])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=300, help="of the moments")
    parser.add_argument("--times", type=int, default=100, help="of the moments")
    parser.add_argument("--workdir", type=Path, default=Path("runs/products"))
    options = parser.parse_args()
    describe("Covariances by products with the network's Jacobian")
    models = {config: adpm.load(config, workdir=options.workdir / Path(config).name) for config, *_ in METHODS.values()}
    plain = models["configs/digits.py"]
    moments = plain.measure(draws=options.draws, times=options.times, basis="pca")
    train = torch.as_tensor(plain.images["train"])
    shape = tuple(train.shape[1:])
    judges = [FrechetDistance(FEATURES[name].build(shape), train) for name in ("digits", "pixels")]
    print(f"{options.samples} samples x {options.seeds} seeds; Frechet distance to the training digits\n")
    print("| covariance | calls | steps | features | pixels |\n" + "|---" * 5 + "|", flush=True)
    for calls in options.calls:
        for name, (config, given, each, last) in METHODS.items():
            model, steps = models[config], steps_of(calls, each, last)
            plan = model.plan(moments, steps=steps, trajectory="log_snr")
            common = {"n": options.samples, "batch_size": 500, "eta": 1.0, **given}
            drawn = [model.sample(plan, seed=seed, **common).clamp(-1.0, 1.0) for seed in range(options.seeds)]
            found = np.array([[judge(images) for judge in judges] for images in drawn])
            error = found.std(0, ddof=1) / np.sqrt(len(found))
            cells = [f"{mean:.2f} ± {off:.2f}" for mean, off in zip(found.mean(0), error, strict=True)]
            print(f"| {name} | {each * (steps - 1) + last} | {steps} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
