"""What `--mode` can be. Each mode is a function of a Session; MODES maps names to them."""

from __future__ import annotations

from collections.abc import Callable

from adpm.run.assembly import Session
from adpm.run.modes.estimate import estimate
from adpm.run.modes.likelihood import likelihood
from adpm.run.modes.sample import sample
from adpm.run.modes.train import train

MODES: dict[str, Callable[[Session], None]] = {
    "train": train,
    "estimate": estimate,
    "sample": sample,
    "likelihood": likelihood,
}
