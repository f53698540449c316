"""A scheduler with its moments on disk: the same to the last bit, or refused in words."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import save

import adpm
from tests.unets import images, pipeline

from adpm.diffusers import AnalyticScheduler  # isort: skip  # after tests.unets, which quiets what diffusers warns of
from adpm.diffusers.kept import FILE  # isort: skip
from adpm.diffusers.measuring import Effort  # isort: skip
from diffusers import DDIMScheduler, DDPMPipeline  # isort: skip

CONFIG = "scheduler_config.json"
FEW = Effort(draws=24, times=12)


def made(**config: Any) -> AnalyticScheduler:
    chosen = {"rule": "analytic", "eta": 1.0, **config}
    return AnalyticScheduler.from_pipeline(pipeline(), images(), 4, effort=FEW, **chosen)


@pytest.fixture(scope="module")
def scheduler() -> AnalyticScheduler:
    return made(rule="spectral", trajectory_options={"cost": "axes"}, eta=0.7)


@pytest.fixture
def folder(scheduler, tmp_path) -> Path:
    scheduler.save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def drawn(scheduler: AnalyticScheduler, steps: int = 4) -> torch.Tensor:
    pipe = pipeline()
    pipe.scheduler = scheduler
    generator = torch.Generator().manual_seed(3)
    return pipe(batch_size=2, generator=generator, num_inference_steps=steps, output_type="pt").images


def test_it_comes_back_to_the_last_bit(scheduler, folder):
    """Moments, axes, the price of the last step, and paths: those that were planned, and new ones."""
    again = AnalyticScheduler.from_pretrained(folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted([CONFIG, FILE])
    assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
        k: v for k, v in scheduler.config.items() if k != "_use_default_values"
    }
    assert torch.equal(drawn(again), drawn(scheduler)) and torch.equal(drawn(again, 7), drawn(scheduler, 7))
    assert (again.known.data_nats == scheduler.known.data_nats).all()
    again.save_pretrained(folder)
    assert torch.equal(drawn(AnalyticScheduler.from_pretrained(folder), 7), drawn(scheduler, 7))


def test_it_is_written_as_all_files_of_the_project_are(scheduler, tmp_path, monkeypatch):
    """With the rights that the user gives to files; and a refusal of the system names the file."""
    mask = os.umask(0o027)
    try:
        scheduler.save_pretrained(tmp_path)
    finally:
        os.umask(mask)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o640
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space")))
    with pytest.raises(OSError, match=f"no space: '.*{FILE}'$"):
        scheduler.save_pretrained(tmp_path)


def test_a_planned_path_is_not_planned_again(folder, monkeypatch):
    again = AnalyticScheduler.from_pretrained(folder)
    monkeypatch.setattr("adpm.diffusers.nodes.find_path", lambda *_, **__: pytest.fail("planned again"))
    again.set_timesteps(4)
    again.register_to_config(eta=1.0)
    with pytest.raises(pytest.fail.Exception):
        again.set_timesteps(4)  # another path


def test_a_pipeline_takes_it_along(scheduler, tmp_path):
    """Saved with the pipeline and read with it, from the folder that it has there."""
    pipe = pipeline()
    pipe.scheduler = scheduler
    pipe.save_pretrained(tmp_path / "pipe")
    assert (tmp_path / "pipe" / "scheduler" / FILE).is_file()
    told = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert told["scheduler"] == ["adpm.diffusers", "AnalyticScheduler"]
    again = DDPMPipeline.from_pretrained(tmp_path / "pipe", unet=pipe.unet)
    again.set_progress_bar_config(disable=True)
    own = [
        p(num_inference_steps=4, generator=torch.Generator().manual_seed(3), output_type="pt") for p in (pipe, again)
    ]
    assert isinstance(again.scheduler, AnalyticScheduler) and torch.equal(own[0].images, own[1].images)
    alone = AnalyticScheduler.from_pretrained(tmp_path / "pipe", subfolder="scheduler")
    assert torch.equal(drawn(alone), drawn(scheduler))


def test_another_schedulers_folder_gives_its_config(tmp_path):
    DDIMScheduler(beta_end=0.03, prediction_type="sample").save_pretrained(tmp_path)
    again = AnalyticScheduler.from_pretrained(tmp_path, eta=0.3)
    assert (again.config.beta_end, again.config.prediction_type, again.config.eta) == (0.03, "sample", 0.3)
    assert again.known is None and again.config.clip_sample is True
    again, unused = AnalyticScheduler.from_pretrained(tmp_path, return_unused_kwargs=True, other=1)
    assert unused["other"] == 1


def test_without_moments_there_is_no_file(tmp_path):
    AnalyticScheduler(rule="small", trajectory="even").save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [CONFIG]
    again = AnalyticScheduler.from_pretrained(tmp_path)
    again.set_timesteps(5)
    assert again.num_inference_steps == 5


def changed(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))


def test_what_does_not_belong_together_is_refused(folder, tmp_path):
    whole, file = (folder / FILE).read_bytes(), folder / FILE
    other = made()
    other.save_pretrained(tmp_path / "other")
    html = b"<!doctype html><html>404</html>"
    for content, told in (
        (whole[:-100], "is not the one that was saved with the scheduler's config: it is damaged"),
        (whole[:5000] + b"x" + whole[5001:], "it is damaged, or of another saving; measure again"),
        (html, "(it is an HTML page, perhaps of a download that failed)"),
        (b"", "(it is empty)"),
        ((tmp_path / "other" / FILE).read_bytes(), "or of another saving"),
    ):
        file.write_bytes(content)
        with pytest.raises(adpm.UserError) as caught:
            AnalyticScheduler.from_pretrained(folder)
        assert told in str(caught.value)
    file.unlink()
    with pytest.raises(adpm.UserError, match=f"moments file '.*{FILE}' does not exist"):
        AnalyticScheduler.from_pretrained(folder)


def test_a_file_that_is_whole_but_none_of_ours_is_refused(folder):
    data = save({"times": torch.ones(3).numpy()}, metadata={"adpm": '{"words": {}, "paths": []}'})
    (folder / FILE).write_bytes(data)
    changed(folder, _moments=hashlib.sha256(data).hexdigest())
    with pytest.raises(adpm.UserError, match="is not a moments file of this project: 'n'"):
        AnalyticScheduler.from_pretrained(folder)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prediction_type": "v_prediction"}, "prediction_type: 'epsilon' there, 'v_prediction' now"),
        ({"beta_schedule": "scaled_linear"}, "betas: "),
        ({"clip_sample": True}, r"clip: None there, \[-1.0, 1.0\] now"),
    ],
)
def test_moments_under_a_config_that_was_changed_are_refused(folder, fields, told):
    changed(folder, **fields)
    with pytest.raises(adpm.UserError, match=f"these moments were measured under another config .*{told}"):
        AnalyticScheduler.from_pretrained(folder)


def test_a_save_that_is_killed_leaves_what_was_there(folder, scheduler, monkeypatch):
    """The moments file is written whole or not at all; and a new one with an old config is not taken for its own."""
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        made().save_pretrained(folder)
    monkeypatch.undo()
    assert sorted(p.name for p in folder.iterdir()) == sorted([CONFIG, FILE])
    assert torch.equal(drawn(AnalyticScheduler.from_pretrained(folder)), drawn(scheduler))
    monkeypatch.setattr(AnalyticScheduler, "to_json_file", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        made().save_pretrained(folder)
    with pytest.raises(adpm.UserError, match="or of another saving"):
        AnalyticScheduler.from_pretrained(folder)
