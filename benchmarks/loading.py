"""What loading a checkpoint takes in memory: the peak of a process of its own above what its imports took.

    python -m benchmarks.loading [--layout=state_dict] [--width=128]

A random network of Analytic-DPM's size for CIFAR-10 (52.5 million parameters at width 128) is saved in a layout: bare,
in our own file, or as Analytic-DPM's training file, which holds raw weights, average and two moments of an optimizer.
A new process builds the network and loads the average into it, as every mode does. Printed are the size of the
weights, the peak of resident memory less that before, their ratio, and seconds. The files are mapped: what is not used
is not read.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from adpm.formats import read_weights
from adpm.nn.checkpoint import give_up, load_part, save_weights, state_hash
from adpm.nn.iddpm import UNet, build
from benchmarks.protocol import describe

GOAL = 1.3
CHILD = "--of"


def network(width: int) -> UNet:
    """Of 'CIFAR10 (LS)', at width 128."""
    options = {"channel_mult": (1, 2, 2, 2), "num_res_blocks": 3, "attention_downsample": (2, 4)}
    return build((3, 32, 32), model_channels=width, **options)


def _training_file(path: Path, state: dict[str, Tensor]) -> None:
    moments = {i: {"exp_avg": t.clone(), "exp_avg_sq": t.clone()} for i, t in enumerate(state.values())}
    raw = {name: tensor + 1.0 for name, tensor in state.items()}
    stored = {"models_states": {"eps_model": raw}, "ema_models_states": {"eps_model": state}}
    torch.save({**stored, "optimizers_states": {"all": {"state": moments, "param_groups": []}}}, path)


LAYOUTS: dict[str, tuple[str, Callable[[Path, dict[str, Tensor]], None]]] = {
    "state_dict": ("weights.pth", lambda path, state: torch.save(state, path)),
    "ours": ("weights.safetensors", lambda path, state: save_weights(path, state, {})),
    "training_file": ("400000.ckpt.pth", _training_file),
}


def peak() -> float:
    """The largest resident memory of this process so far, bytes; Linux.

    getrusage's would do elsewhere, but on Linux a new process begins with its parent's.
    """
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(status.split("VmHWM:")[1].split()[0])


def child(path: Path, width: int) -> dict[str, float]:
    """Load, look at every weight, and say what it took."""
    before, started = peak(), time.perf_counter()
    made = network(width)
    names = set(made.state_dict())  # a view of its keys would hold the tensors
    give_up(made, names)
    load_part(made, read_weights(path), str(path), names, shared=True)
    state_hash(made.state_dict())
    return {"bytes": peak() - before, "seconds": time.perf_counter() - started}


def measure(layout: str, width: int) -> tuple[float, float, dict[str, float]]:
    """(bytes of the weights, bytes of the file, what the process said)."""
    name, save = LAYOUTS[layout]
    with tempfile.TemporaryDirectory() as folder:
        path, state = Path(folder) / name, network(width).state_dict()
        save(path, state)
        command = [sys.executable, "-m", "benchmarks.loading", f"{CHILD}={path}", f"--width={width}"]
        usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=usual)
        weights = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        return weights, path.stat().st_size, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layout", choices=LAYOUTS, action="append")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument(CHILD, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.of:
        print(json.dumps(child(args.of, args.width)))
        return
    describe("peak memory of loading a checkpoint")
    print("layout              weights       file       peak  peak/weights  seconds")
    for layout in args.layout or LAYOUTS:
        weights, size, found = measure(layout, args.width)
        cells = "".join(f"{value / 1e6:8.1f} MB" for value in (weights, size, found["bytes"]))
        print(f"{layout:<15}{cells}  {found['bytes'] / weights:12.2f}  {found['seconds']:7.2f}")
    print(f"\ngoal: below {GOAL}")


if __name__ == "__main__":
    main()
