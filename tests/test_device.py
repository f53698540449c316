"""Device, precision and compilation are config fields: each runs on CPU and says the same thing, to its precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from adpm.denoiser import Denoiser
from adpm.likelihood import Levels, keyed_noise, path_terms
from adpm.nn import iddpm
from adpm.noise import KeyedNoise
from adpm.process import PROCESSES
from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.families import house
from adpm.run.work import resolve_device, runnable
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian
from adpm.variance import Unit

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def output(tmp_path, **fields) -> torch.Tensor:
    """eps of a small random network at one batch, in the given precision."""
    config = load_config("configs/toy.py", "unet")[0]
    config.network.update(model_channels=8, num_heads=1)
    config.update(fields)
    session = Session.make(config, tmp_path, house(), trains=True)
    network = session.network().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():  # a zero-initialised output would hide every difference
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    x = torch.randn(5, 1, 4, 4, generator=generator)
    with torch.inference_mode():
        return session.denoiser(network, clip=False)(x, 300.0).eps_network


def test_bfloat16_agrees_to_its_precision(tmp_path):
    full, half = output(tmp_path), output(tmp_path, precision="bfloat16")
    assert half.dtype == torch.float32
    error = (full - half).abs().max() / full.abs().max()
    assert 1e-5 < error < 0.05, "bfloat16 has 8 bits: near, but not the same numbers"


class Small(nn.Module):
    """One convolution with a time gate: enough for the compiler to have work, little enough to compile in seconds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.convolution(x) * torch.sigmoid(t / 1000)[:, None, None, None]


def test_compiled_calls_agree():
    network, x, t = Small(), torch.randn(3, 1, 8, 8), torch.tensor([1.0, 500.0, 1000.0])
    with torch.inference_mode():
        plain = runnable(network, "float32", False, torch.device("cpu"))(x, t)
        compiled = runnable(network, "float32", True, torch.device("cpu"))(x, t)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1, "nothing was compiled"
    assert torch.allclose(plain, compiled, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compiled_unet_agrees(tmp_path):
    plain, compiled = output(tmp_path), output(tmp_path, compile=True)
    assert torch.allclose(plain, compiled, rtol=1e-4, atol=1e-5)


def test_the_network_gets_float32_whatever_the_state():
    seen = []

    class Spy(nn.Module):
        def forward(self, x, t):
            seen.append((x.dtype, t.dtype))
            return x

    forward = runnable(Spy(), "float32", False, torch.device("cpu"))
    forward(torch.zeros(2, 1, 2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    assert seen == [(torch.float32, torch.float32)]


@pytest.mark.parametrize(("precision", "rounded"), [("float32", False), ("tf32", True)])
def test_convolutions_are_rounded_only_where_asked(precision, rounded):
    """What torch does on a GPU by default is TF32; the setting is the network's alone."""
    seen, before = [], torch.backends.cudnn.allow_tf32

    class Spy(nn.Module):
        def forward(self, x, t):
            seen.append(torch.backends.cudnn.allow_tf32)
            return x

    for outside in (True, False):
        torch.backends.cudnn.allow_tf32 = outside
        runnable(Spy(), precision, False, torch.device("cpu"))(torch.zeros(2, 1, 2, 2), torch.zeros(2))
        assert torch.backends.cudnn.allow_tf32 == outside
    torch.backends.cudnn.allow_tf32 = before
    assert seen == [rounded, rounded]


def test_auto_finds_what_there_is():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu").type == "cpu"


def test_the_loop_stays_on_its_device():
    """On the meta device, which every machine has and which refuses to be mixed with the CPU."""
    process = PROCESSES["linear"].build(1000)
    with torch.device("meta"):
        network = iddpm.build((1, 8, 8), model_channels=8, channel_mult=(1, 2), num_res_blocks=1, num_heads=2)
    forward = runnable(network, "float32", False, torch.device("meta"))
    denoise = Denoiser(forward, process, clip=(-1.0, 1.0))
    noise = keyed(KeyedNoise(0, "sample"), torch.arange(4, device="meta"), (1, 8, 8))
    solver = ReverseGaussian(process, Unit())
    with torch.inference_mode():
        steps = list(sample(denoise, solver, process, process.times[[0, 1, 300, 1000]], noise))
    assert [step.x.device.type for step in steps] == ["meta"] * 3
    x0 = torch.zeros(4, 1, 8, 8, device="meta", dtype=torch.float64)
    levels, decoder = Levels(17, -1.0, 1.0), lambda t: 0.1
    draws = keyed_noise(0, process, torch.arange(4, device="meta"), (1, 8, 8), x0.dtype)
    times = process.times[[0, 1, 300, 1000]]
    terms = list(path_terms(denoise, process, Unit(), decoder, levels, times, x0, draws))
    assert [term.nats.device.type for term in terms] == ["meta"] * 3
