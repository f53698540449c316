"""Network families and their checkpoints. NETWORKS: name -> builder from the image shape and config.network."""

from __future__ import annotations

from collections.abc import Callable

from adpm.nn import iddpm, score_sde
from adpm.nn.heads import Headed

NETWORKS: dict[str, Callable[..., Headed]] = {"iddpm": iddpm.build, "score_sde": score_sde.build}
