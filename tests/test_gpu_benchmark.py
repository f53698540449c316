"""benchmarks/gpu.py where there is no GPU: its rehearsal, what it would build, and that its checks can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adpm.errors import UserError
from adpm.noise import KeyedNoise
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian
from adpm.variance import Unit
from benchmarks import gpu, gpu_bench, models
from benchmarks.published_loop import fresh, published_loop
from tests.goldens import golden_json

KEYS = {"figure", "value", "unit", "device", "precision", "compiled", "channels_last", "graphs", "torch", "command"}
CPU = torch.device("cpu")


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def nothing_compiles(monkeypatch):
    def refuse(*_: object, **__: object):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", refuse)


def test_the_rehearsal_checks_everything_that_a_cpu_can(tmp_path, capsys, nothing_compiles):
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    output = tmp_path / "new" / "gpu.jsonl"
    assert gpu.main(["--rehearse", f"--output={output}"]) == 0
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == (threads, tf32)
    assert capsys.readouterr().out == output.read_text()
    lines = lines_of(output)
    assert all(line.keys() >= KEYS for line in lines)
    assert {line["command"] for line in lines} == {f"python -m benchmarks.gpu --rehearse --output={output}"}
    checked = [line for line in lines if "ok" in line]
    assert all(line["ok"] and 0 <= line["value"] <= line["limit"] for line in checked)
    cases = {(line["figure"], line["precision"], line["channels_last"]) for line in checked}
    layouts = [(p, last) for p in ("float32", "bfloat16") for last in (False, True)]
    names = [f"{name}: {what}" for name in models.SHIPPED for what in ("calls", "samples, K = 2")] + ["cifar10: calls"]
    names += ["digits: Frechet distance of 24 samples, K = 2, less the published loop's"]
    assert cases == {(name, *layout) for name in names for layout in layouts} | {("keyed noise", "float32", False)}
    far = [line for line in checked if "Frechet" in line["figure"]]
    assert len(far) == 4 and far[0]["value"] < 1e-4 < 0.01 < far[0]["limit"], "the same loop, rounded otherwise"
    checked = [line for line in checked if line not in far]
    same = [line["value"] for line in checked if line["precision"] == "float32" and not line["channels_last"]]
    assert max(same) < 1e-5, "the same on the CPU is the same, but for kernels chosen by the batch: 2 of 3 images"
    assert all(line["value"] > 1e-4 for line in checked if line["precision"] == "bfloat16")
    speeds = [line["value"] for line in lines if line["unit"] == "images/s"]
    assert len(speeds) == 9 and min(speeds) > 0, "two for each of four cases, and the published loop"
    ratios = [line["value"] for line in lines if "over the published loop in float32" in line["figure"]]
    assert len(ratios) == 4 and min(ratios) > 0
    reasons = {(line["compiled"], line["skipped"]) for line in lines if "skipped" in line}
    assert (True, "no compiler works here (RuntimeError)") in reasons
    assert {(recorded, "recordings are replayed on GPUs") for recorded in (False, True)} <= reasons
    assert (False, "TF32 is a mode of GPUs") in reasons and (False, "counted on GPUs only") in reasons


def bench(tmp_path) -> gpu.Bench:
    return gpu.Bench(CPU, gpu.Report(tmp_path / "gpu.jsonl", CPU, "test"), gpu.TINY)


def test_where_a_convolution_compiles_it_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **_: lambda x, label: network(x, label) + 1.0)
    with torch.inference_mode():
        assert gpu.without_compiler(bench(tmp_path)) == ""
    (line,) = lines_of(tmp_path / "gpu.jsonl")
    assert line["value"] == pytest.approx(1.0) and line["compiled"] and not line["ok"]


def test_a_device_that_is_off_is_found(tmp_path, monkeypatch):
    """By as much as it is off: here the "device" adds 0.01 to what the network says, and eps is -sigma times that."""
    here = bench(tmp_path)
    comparison = gpu.Comparison(here, models.shipped("digits_ve"))
    run = gpu_bench.runnable
    monkeypatch.setattr(
        gpu_bench, "runnable", lambda *args, **more: lambda x, label: run(*args, **more)(x, label) + 0.01
    )
    with torch.inference_mode():
        comparison.take(gpu.PLAIN)
    calls, samples = lines_of(tmp_path / "gpu.jsonl")
    assert calls["value"] == pytest.approx(0.01 * 10.0, rel=1e-3), "sigma is 10 at the last time"
    assert not calls["ok"] and samples["value"] > 1e-4 and not here.report.ok


@torch.inference_mode()
def test_the_published_loop_is_ours_with_the_variance_of_unit_data():
    """From the same noise the same samples, so that speeds and distances are of one thing."""
    model, shape = models.shipped("digits"), (6, 1, 8, 8)
    noise, times = keyed(KeyedNoise(3, "benchmark"), torch.arange(6), shape[1:]), model.times(7)
    found = published_loop(model, model.network, times, shape, noise)
    solver = ReverseGaussian(model.process, Unit())
    *_, last = sample(model.denoiser(model.network), solver, model.process, times, noise)
    assert torch.allclose(found, last.x, atol=2e-4) and found.std() > 0.3
    assert not torch.equal(fresh(shape, CPU)(0), fresh(shape, CPU)(0))


def test_a_value_that_is_not_a_number_fails(tmp_path):
    report = bench(tmp_path).report
    report.check("f", torch.tensor([0.0, torch.nan]), torch.zeros(2), 1.0, gpu.PLAIN)
    assert not report.ok


def test_exit_code_1_when_a_check_fails(tmp_path, monkeypatch):
    def fails(here: gpu.Bench, rehearse: bool, compile_until: float) -> None:
        here.report.check("f", torch.ones(1), torch.zeros(1), 0.5, gpu.PLAIN)
        here.report.check("g", torch.ones(1), torch.ones(1), 0.5, gpu.PLAIN)

    monkeypatch.setattr(gpu, "run", fails)
    assert gpu.main(["--rehearse", f"--output={tmp_path / 'gpu.jsonl'}"]) == 1
    assert [line["ok"] for line in lines_of(tmp_path / "gpu.jsonl")] == [False, True]


def test_without_a_gpu_it_is_refused(tmp_path, monkeypatch, capsys):
    def none(name: str) -> torch.device:
        if name == "cuda":
            raise UserError("this torch sees no GPU.")
        return CPU

    monkeypatch.setattr(gpu, "resolve_device", none)
    for device, told in (("auto", "rehearse with --rehearse"), ("cuda", "this torch sees no GPU.")):
        with pytest.raises(SystemExit) as stop:
            gpu.main([f"--device={device}", f"--output={tmp_path / 'gpu.jsonl'}"])
        assert stop.value.code == 2 and told in capsys.readouterr().err
    assert not (tmp_path / "gpu.jsonl").exists()


def test_the_median_is_of_an_idle_device(monkeypatch):
    """Every reading of the clock comes right after the device is idle; the first repeat warms up."""
    clock, events = iter([0.0, 100.0, 0.0, 5.0, 0.0, 3.0, 0.0, 4.0]), []

    def read() -> float:
        events.append("clock")
        return next(clock)

    monkeypatch.setattr(gpu.time, "perf_counter", read)
    seconds = gpu.median_seconds(lambda: events.append("work"), 3, lambda: events.append("idle"))
    assert seconds == 4.0 and events == ["idle", "clock", "work", "idle", "clock"] * 4


def test_the_large_network_is_the_published_one():
    with torch.device("meta"):
        network = models.iddpm.build((3, 32, 32), **models.CIFAR10)
    assert (
        sum(p.numel() for p in network.parameters())
        == golden_json("networks/tables")["iddpm_cifar10_eps"]["parameters"]
    )


def test_shipped_models_are_read_as_they_were_trained():
    """eps_hat is near eps where there is little else in x_t; a wrong label or range would not leave it so."""
    for name in models.SHIPPED:
        model = models.shipped(name)
        noise = keyed(KeyedNoise(2, "benchmark"), torch.arange(64), model.shape)
        t = model.process.times[model.process.nearest_index(-6.0)]
        with torch.inference_mode():
            said = model.denoiser(model.network)(model.noisy(noise(0), noise(1), t), t)
        assert (said.eps_network - noise(1)).square().mean() < 0.02, name
        assert (said.head is None) == (name != "digits_npr")
