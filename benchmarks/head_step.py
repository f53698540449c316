"""What one training step of a head costs beyond a pass of its frozen trunk, on the shipped digits model.

    python -m benchmarks.head_step

Interleaved repeats of (a) a forward pass of the trunk without gradients and the head's own forward and backward pass,
and (b) a whole training step: data, times, keyed noise, denoiser, objective, clipping, optimizer and average; the ratio
of each pair, and their median.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.families import house
from adpm.run.modes.train import make_trainer
from benchmarks.protocol import describe, interleaved

GOAL = 1.15


def bare_step(session: Session, batch: int) -> Callable[[], None]:
    """One pass of the trunk, both outputs, and the gradients of the head's parameters."""
    network = session.trunk.network
    assert network is not None
    head = network.head()
    x, label = torch.randn(batch, *session.data.shape), torch.full((batch,), 500.0)

    def bare() -> None:
        with torch.no_grad():
            h, emb = network.features(x, label)
            network.mean_output(h, label)
        for p in head.parameters():
            p.grad = None
        network.head_output(h, emb, head).square().mean().backward()

    return bare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="steps timed together")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--objective", default="npr")
    parser.add_argument("--head", default="complex")
    options = parser.parse_args()
    describe(
        f"head training: {options.head} head, {options.objective}, batch {options.batch}, "
        f"{options.repeats} interleaved pairs of {options.steps} steps"
    )
    config = load_config("configs/digits.py")[0]
    config.network.head = options.head
    config.train.update(objective=options.objective, batch_size=options.batch, sample_every=0)
    with tempfile.TemporaryDirectory() as folder:
        session = Session.make(config, Path(folder), house())
        trainer = make_trainer(session)
        bare = bare_step(session, options.batch)

        def steps(work: Callable[[], object]) -> Callable[[], None]:
            def run() -> None:
                for _ in range(options.steps):
                    work()

            return run

        ratios, seconds = interleaved(steps(bare), steps(trainer.step), options.repeats)
    median = 1e3 * statistics.median(seconds) / options.steps
    print(f"trunk forward, head forward and backward: {median:.1f} ms (median)")
    print(
        f"whole step / that: {statistics.median(ratios):.4f} median, {min(ratios):.4f} to {max(ratios):.4f} "
        f"(goal: at most {GOAL})"
    )


if __name__ == "__main__":
    main()
