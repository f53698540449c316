"""docs/diffusers.md: its Python runs, block after block, in a pipeline that knows the truth; few draws are taken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from tests.unets import SHAPE, images, pipeline

from adpm.diffusers import AnalyticScheduler, Effort  # isort: skip  # tests.unets quiets what diffusers warns of

PAGE = Path(__file__).parent.parent / "docs" / "diffusers.md"


def test_the_page_runs_as_written(tmp_path):
    names: dict[str, Any] = {"pipe": pipeline(), "images": images(), "folder": tmp_path, "few": Effort(24, 12)}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 5
    for block in blocks:
        few = block.replace("steps=10)", "steps=10, effort=few)").replace("draws=100, times=50", "draws=24, times=12")
        exec(compile(few, PAGE.name, "exec"), names)
    assert names["samples"].shape == (4, *SHAPE) and isinstance(names["pipe"].scheduler, AnalyticScheduler)
    assert names["scheduler"].config.eta == 0.3 and names["bits"].bits.shape == (11, 4)
    found = names["pipe"](num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert names["scheduler"].num_inference_steps == 5 and bool(found.isfinite().all())
