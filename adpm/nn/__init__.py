"""Network families and their checkpoints. NETWORKS: name -> builder from the image shape and config.network."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from adpm.nn import iddpm, score_sde

NETWORKS: dict[str, Callable[..., nn.Module]] = {"iddpm": iddpm.build, "score_sde": score_sde.build}
