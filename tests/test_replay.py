"""Batches that are filled up, and calls that are recorded: the same numbers as without.

No CUDA graph is made here. What stands for one keeps its memory as that does: fixed inputs, and one result that every
replay overwrites.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from adpm.errors import UserError
from adpm.nn import iddpm
from adpm.run.machine import check_machine
from adpm.run.replay import Call, filled
from adpm.run.work import runnable
from tests.commands import SMALL, go, refused
from tests.test_device import Small

CPU = torch.device("cpu")


class Recorder:
    """Counts recordings and replays; a recording is a call whose result has a fixed place."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.replays = 0

    def __call__(self, call: Call, given: tuple[Tensor | None, ...]) -> Call:
        self.shapes.append(tuple(given[0].shape))
        static = [None if a is None else a.clone() for a in given]
        out = call(*static)

        def replay(*new: Tensor | None) -> Tensor:
            self.replays += 1
            for there, a in zip(static, new, strict=True):
                if there is not None:
                    there.copy_(a)
            out.copy_(call(*static))
            return out

        return replay


def network() -> nn.Module:
    torch.manual_seed(0)
    made = iddpm.build((2, 8, 8), model_channels=8, channel_mult=(1, 2), num_res_blocks=1, num_heads=2).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made


@torch.inference_mode()
@pytest.mark.parametrize("channels_last", [False, True])
def test_recorded_and_filled_calls_say_what_plain_ones_do(channels_last: bool):
    """Batches of sizes 8 and 5, in turn and with other numbers; what came before stays what it was."""
    recorder, made = Recorder(), network()
    plain = runnable(made, "float32", False, CPU)
    inputs = [(torch.randn(n, 2, 8, 8), 100.0 * torch.rand(n)) for n in (8, 5, 1, 8, 3, 11)]
    wanted = [plain(*given) for given in inputs]
    fast = runnable(made, "float32", False, CPU, channels_last=channels_last, record=recorder, sizes=(4, 8))
    found = [fast(*given) for given in inputs]
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert recorder.shapes == [(8, 2, 8, 8), (4, 2, 8, 8), (11, 2, 8, 8)] and recorder.replays == 6


@torch.inference_mode()
def test_batches_are_filled_with_copies_and_cut_again():
    seen = []

    def call(x: Tensor, label: Tensor, *classes: Tensor | None) -> Tensor:
        seen.append((x.clone(), label.clone(), classes))
        return x + label[:, None]

    x, label, classes = torch.randn(3, 2), torch.arange(3.0), torch.tensor([4, 5, 6])
    assert torch.equal(filled(call, (8, 5))(x, label, classes), x + label[:, None])
    (there, labels, (told,)) = seen[0]
    assert len(there) == 5 and torch.equal(there[:3], x) and torch.equal(there[3:], x[2:].expand(2, 2))
    assert labels.tolist() == [0, 1, 2, 2, 2] and told.tolist() == [4, 5, 6, 6, 6]
    assert filled(call, (5,))(x, label, None).shape == x.shape and seen[1][2] == (None,)
    filled(call, (2,))(x, label)
    assert len(seen[2][0]) == 3, "larger batches are left alone"


def test_what_may_be_differentiated_is_called_as_it_is():
    """In training, and in forward derivatives, which no recording can have."""
    recorder, made = Recorder(), Small()
    fast = runnable(made, "float32", False, CPU, record=recorder, sizes=(4,))
    x, label = torch.randn(3, 1, 8, 8), torch.ones(3)
    fast(x, label).sum().backward()
    assert made.convolution.weight.grad is not None
    with torch.no_grad():
        _, slope = torch.func.jvp(lambda z: fast(z, label), (x,), (torch.ones_like(x),))
    wanted = runnable(made, "float32", False, CPU)(torch.ones_like(x), label)
    bias = runnable(made, "float32", False, CPU)(torch.zeros_like(x), label)
    torch.testing.assert_close(slope, wanted - bias, rtol=1e-5, atol=1e-6)
    assert not recorder.shapes


def test_recordings_follow_weights_that_are_trained_on():
    """A recording reads weights where they lie."""
    made, recorder = Small(), Recorder()
    fast = runnable(made, "float32", False, CPU, record=recorder)
    x, label = torch.randn(2, 1, 8, 8), torch.ones(2)
    with torch.no_grad():
        before = fast(x, label)
        made.convolution.bias.add_(1.0)
        torch.testing.assert_close(fast(x, label), before + torch.sigmoid(label / 1000)[:, None, None, None])
    assert len(recorder.shapes) == 1


@torch.inference_mode()
def test_compiled_calls_of_few_shapes_are_compiled_once_a_shape():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    made = Small().eval()
    fast, plain = runnable(made, "float32", True, CPU, sizes=(6,)), runnable(made, "float32", False, CPU)
    for n in (6, 5, 1, 3):
        x, label = torch.randn(n, 1, 8, 8), torch.full((n,), 300.0)
        torch.testing.assert_close(fast(x, label), plain(x, label), rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_weights_and_images_have_their_channels_last():
    seen = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return self.convolution(x)

    made = Spy()
    runnable(made, "float32", False, CPU, channels_last=True)(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    assert seen == [True] and made.convolution.weight.is_contiguous(memory_format=torch.channels_last)


def test_how_a_network_is_called_is_no_part_of_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples that were drawn with one layout are there for the other."""
    fields = ("rule.name=small", "trajectory.name=even", "trajectory.steps=3", "sampling.samples=5")
    assert go(tmp_path, "digits", "sample", *fields, "sampling.batch_size=4", "channels_last=True") == 0
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.npz")}
    assert kept and go(tmp_path, "digits", "sample", *fields, "sampling.batch_size=4") == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.npz")} == kept


def test_what_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, tmp_path, "digits", "sample", *SMALL, "graphs=True", "device=cpu")
    assert "config.graphs = True replays recordings on a GPU" in told
    config = ConfigDict({"graphs": False, "channels_last": True, "device": "cpu"})
    with pytest.raises(UserError, match=r"config.channels_last = True is for images.*\(7,\)"):
        check_machine(config, (7,))
    check_machine(config, (3, 8, 8))
