"""The optimal covariance and planned times as a scheduler of diffusers: docs/diffusers.md.

    pipe.scheduler = AnalyticScheduler.from_pipeline(pipe, images, steps=10)
    samples = pipe(num_inference_steps=10)

It wants the extra `diffusers`; nothing else of this project does.
"""

from __future__ import annotations

try:
    import diffusers as _installed  # noqa: F401
except ImportError as error:
    raise ImportError("adpm.diffusers needs the extra `diffusers`: pip install 'adpm[diffusers]'.") from error

from diffusers import SchedulerMixin

from adpm.diffusers.measuring import Effort
from adpm.diffusers.scheduler import AnalyticScheduler

__all__ = ["AnalyticScheduler", "Effort", "SchedulerMixin"]
"""The last, because pipelines that are loaded look here for how the first is."""
