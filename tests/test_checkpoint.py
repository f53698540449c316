"""Checkpoints: published layouts give the published outputs, ours come back whole, everything else is refused."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.nn.checkpoint import give_up, load_part, load_weights, read_header, save_weights, state_hash
from adpm.nn.iddpm import UNet
from benchmarks import loading
from tests.goldens import DATA, filled_state, golden, golden_json, unet_options

FORMATS = DATA / "formats"
HEAD = FORMATS / "plain_iddpm_head.pth"
TOLERANCE = 1e-5


def build(origin: str) -> UNet:
    return UNet(**unet_options(golden_json("formats/formats_manifest")[origin]["network"])).eval()


def check_output(path: Path, origin: str) -> UNet:
    """Read, load and run: the output stored for the origin's EMA weights."""
    network = build(origin)
    load_weights(network, read_weights(path), str(path))
    stored = golden("formats/formats_golden")
    x, t, y = (torch.as_tensor(stored[f"{origin}/{k}"]) for k in "xty")
    with torch.no_grad():
        found = network(x, t)
    assert (found - y).abs().max() < TOLERANCE * y.abs().max()
    return network


def ema_and_raw(origin: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The right weights of the fixtures, and the decoys that stand where raw training weights do."""
    network = build(origin)
    return filled_state(network, "ema/"), filled_state(network, "raw/")


@pytest.mark.parametrize(
    ("file", "origin"),
    [("plain_iddpm_head.pth", "plain_iddpm_head"), ("ema_0.9999_000010.pt", "improved_diffusion_ema")],
)
def test_published_files(file: str, origin: str) -> None:
    network = check_output(FORMATS / file, origin)
    state = read_weights(FORMATS / file)
    assert not any(tensor.requires_grad for tensor in state.values())  # Improved DDPM stores nn.Parameter
    ema, _ = ema_and_raw(origin)
    assert state.keys() == ema.keys() and all(torch.equal(state[name], ema[name]) for name in ema)
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("inner", ["eps_model", "model"])
def test_analytic_dpm_training_file(tmp_path: Path, inner: str) -> None:
    """One dict; the EMA weights are the ones to use. CIFAR10 files say eps_model, ImageNet64 ones model."""
    ema, raw = ema_and_raw("analytic_cifar10")
    path = tmp_path / "400000.ckpt.pth"
    stored = {
        "it": 400000,
        "best_val_loss": float("inf"),
        "models_states": {inner: raw},
        "optimizers_states": {"all": {"state": {0: {"step": 1, "exp_avg": raw["out.2.bias"]}}, "param_groups": []}},
        "lr_schedulers_states": {},
        "ema_models_states": {inner: ema},
    }
    torch.save(stored, path)
    check_output(path, "analytic_cifar10")


def test_extended_analytic_dpm_directory(tmp_path: Path) -> None:
    """A directory N.ckpt with one file per leaf; again EMA and raw weights lie side by side."""
    ema, raw = ema_and_raw("ead_train_dir")
    folder = tmp_path / "10.ckpt"
    for kind, weights in (("models_states", raw), ("ema_models_states", ema)):
        (folder / kind).mkdir(parents=True)
        torch.save(weights, folder / kind / "model.pth")
    torch.save(10, folder / "it.pth")
    check_output(folder, "ead_train_dir")


def test_our_files_come_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    first, second = check_output(HEAD, "plain_iddpm_head"), build("plain_iddpm_head")
    header = {"kind": "test", "steps": 3, "nested": {"ema": 0.999}}
    save_weights(path, first.state_dict(), header)
    state = read_weights(path)
    assert state.keys() == first.state_dict().keys()
    assert all(torch.equal(tensor, first.state_dict()[name]) for name, tensor in state.items())
    with safe_open(str(path), framework="pt") as file:
        assert json.loads(file.metadata()["adpm"]) == header
    assert state_hash(second.state_dict()) != state_hash(first.state_dict())
    load_weights(second, state, str(path))
    assert state_hash(second.state_dict()) == state_hash(first.state_dict())
    check_output(path, "plain_iddpm_head")


def test_hash_sees_names_shapes_and_values() -> None:
    def hashed(**tensors: Tensor) -> str:
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return state_hash(module.state_dict())

    value = torch.arange(6.0)
    assert hashed(a=value) == hashed(a=value.clone())
    different = [hashed(a=value), hashed(b=value), hashed(a=value.reshape(2, 3)), hashed(a=value + 1), hashed(a=-value)]
    assert len(set(different)) == len(different)
    long = torch.zeros(1000)
    assert len({hashed(a=long.index_fill(0, torch.tensor(i), 1.0)) for i in (0, 1, 500, 999)}) == 4, (
        "every value counts"
    )
    assert hashed(a=value, b=-value) == hashed(b=-value, a=value) != hashed(a=-value, b=value)


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("out2.2.weight"), "1 missing: out2.2.weight)"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 left over: extra)"),
        (
            lambda s: s.update({"out.2.bias": torch.zeros(6)}),
            "1 of another shape: out.2.bias (6,) instead of (3,))",
        ),
        (
            lambda s: (s.pop("out.0.bias"), s.update(a=torch.zeros(1), b=torch.zeros(1))),
            "1 missing: out.0.bias; 2 left over: a, b)",
        ),
        (lambda s: s.clear(), " missing: input_blocks.0.0.bias, input_blocks.0.0.weight, "),
    ],
)
def test_loading_is_strict_and_names_names(change: Change, told: str) -> None:
    """Nothing is loaded by halves: a refused state leaves the network as it was."""
    network = build("plain_iddpm_head")
    before, state = state_hash(network.state_dict()), read_weights(HEAD)
    change(state)
    with pytest.raises(UserError, match=r"weights 'here' do not fit the network \(.*" + re.escape(told)):
        load_weights(network, state, "here")
    assert state_hash(network.state_dict()) == before


def test_a_head_model_is_not_a_plain_model() -> None:
    """The published loader takes either silently; here the head's names are told."""
    plain, state = build("plain_iddpm"), read_weights(HEAD)
    with pytest.raises(UserError, match=r"4 left over: out2\.0\.bias, out2\.0\.weight, out2\.2\.bias"):
        load_weights(plain, state, "head")
    backbone = {name: tensor for name, tensor in state.items() if not name.startswith("out2.")}
    with pytest.raises(UserError, match=r"4 missing: out2\.0\.bias, out2\.0\.weight, out2\.2\.bias"):
        load_weights(build("plain_iddpm_head"), backbone, "plain")
    load_weights(plain, backbone, "plain")


def test_a_prefix_that_was_not_taken_off_is_refused() -> None:
    """A state that does not come from a file: `module.` must not load as nothing."""
    state = {f"module.{name}": tensor for name, tensor in read_weights(HEAD).items()}
    with pytest.raises(UserError, match=r"missing: .*left over: module\."):
        load_weights(build("plain_iddpm_head"), state, "ddp")


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("layout", ["bare", "state_dict", "model", "safetensors", "ema_models_states"])
def test_wrapped_and_prefixed_files_equal_the_plain_one(tmp_path: Path, prefix: str, layout: str) -> None:
    """Parallel and compiled modules, and what training codes put beside them."""
    state = prefixed(prefix, read_weights(HEAD))
    beside = {"optimizer": {"state": {0: {"step": 3}}, "param_groups": []}, "epoch": 7, "ema_decay": 0.999}
    stored = {
        "bare": state,
        "state_dict": {"state_dict": state, **beside},
        "model": {"model": state, **beside},
        "ema_models_states": {"ema_models_states": {"model": state}},
    }
    path = tmp_path / ("weights.safetensors" if layout == "safetensors" else "weights.pt")
    save_weights(path, state, {}) if layout == "safetensors" else torch.save(stored[layout], path)
    found, plain = read_weights(path), read_weights(HEAD)
    assert list(found) == (sorted(plain) if layout == "safetensors" else list(plain))
    check_output(path, "plain_iddpm_head")


def test_a_prefix_of_some_names_is_part_of_them(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"module.a": torch.ones(1), "b": torch.zeros(1)}, path)
    assert list(read_weights(path)) == ["module.a", "b"]


@pytest.mark.parametrize("names", [("state_dict", "ema_state_dict"), ("model", "model_ema"), ("model", "ema")])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_average_of_the_same_names_is_taken(tmp_path: Path, names: tuple[str, str], prefix: str) -> None:
    ema, raw = ema_and_raw("plain_iddpm_head")
    path = tmp_path / "weights.pt"
    torch.save({names[0]: prefixed(prefix, raw), names[1]: ema, "step": 3}, path)
    check_output(path, "plain_iddpm_head")


def test_an_average_that_cannot_be_told_apart_is_not_passed_over(tmp_path: Path) -> None:
    path, state = tmp_path / "weights.pt", read_weights(HEAD)
    torch.save({"state_dict": state, "ema_state_dict": {n.replace(".", ""): t for n, t in state.items()}}, path)
    with pytest.raises(UserError, match=r"weights\.pt' holds 'ema_state_dict' beside its weights, in a layout"):
        read_weights(path)
    torch.save({"state_dict": state, "ema": state, "ema_99": state}, path)
    with pytest.raises(UserError, match=r"weights\.pt' holds 'ema' beside its weights, in a layout"):
        read_weights(path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.complex64, torch.bool, torch.uint8])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_only_floating_point_is_weights(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    path, state = tmp_path / f"weights{suffix}", read_weights(HEAD)
    state["out.0.bias"] = state["out.0.bias"].to(dtype)
    save_weights(path, state, {}) if suffix == ".safetensors" else torch.save(state, path)
    told = (
        rf"weights{suffix}' holds {str(dtype).removeprefix('torch.')} in 'out\.0\.bias'; weights are dense tensors of"
    )
    with pytest.raises(UserError, match=told):
        read_weights(path)


def test_sparse_tensors_are_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.eye(3).to_sparse()}, path)
    with pytest.raises(UserError, match="holds sparse_coo in 'a'"):
        read_weights(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    path, network = tmp_path / "weights.pt", build("plain_iddpm_head")
    torch.save({name: tensor.to(dtype) for name, tensor in read_weights(HEAD).items()}, path)
    load_weights(network, read_weights(path), "there")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, read_weights(HEAD)[name].to(dtype).float())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<!DOCTYPE html>\n<html><body>404</body>", "an HTML page, perhaps of a download that failed"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d", r"a Git LFS pointer, .*\(git lfs pull\)"),
        (b"hello world", "text"),
        (b"", "empty"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    for suffix, kind in ((".pt", r"checkpoint: it is "), (".safetensors", r"safetensors file \(")):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"weights{suffix}' is not a whole {kind}{told}"):
            read_weights(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    os.mkfifo(path)
    assert read_header(path) == {}
    with pytest.raises(UserError, match=rf"weights file '.*weights{suffix}' is a named pipe, not a plain file"):
        read_weights(path)


def test_a_renamed_safetensors_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"a": torch.arange(3.0)}, {})
    with pytest.raises(UserError, match="it is a safetensors file under another name"):
        read_weights(path.rename(tmp_path / "weights.pt"))


def test_unused_buffer_of_published_files_is_ignored() -> None:
    network = build("plain_iddpm_head")
    load_weights(network, {**read_weights(HEAD), "sigmas": torch.zeros(1000)}, "with sigmas")
    assert torch.equal(network.state_dict()["out.2.bias"], read_weights(HEAD)["out.2.bias"])


def test_missing_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.pth", tmp_path / "nowhere.safetensors"):
        with pytest.raises(UserError, match=rf"weights file '.*{path.name}' does not exist"):
            read_weights(path)
    (tmp_path / "5.ckpt").mkdir()
    with pytest.raises(UserError, match=r"5\.ckpt/ema_models_states/model\.pth' does not exist"):
        read_weights(tmp_path / "5.ckpt")


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_truncated_safetensors_are_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"a": torch.arange(300.0), "b": torch.arange(200.0)}, {})
    whole = path.read_bytes()
    assert struct.unpack("<Q", whole[:8])[0] > 100
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"weights\.safetensors' is not a whole safetensors file"):
        read_weights(path)


@pytest.mark.parametrize("keep", [0, 0.5])
def test_truncated_pickles_are_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "weights.pth"
    whole = HEAD.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(UserError, match=r"weights\.pth' is not a whole checkpoint"):
        read_weights(path)


class Touch:
    """A pickle that writes a file when it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "weights.pth"
    torch.save({**read_weights(HEAD), "trap": Touch(victim)}, path)
    with pytest.raises(UserError, match=r"weights\.pth' cannot be read without running code stored in it; refused"):
        read_weights(path)
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists()  # the trap was a real one


@pytest.mark.parametrize(
    "stored",
    [
        [{"w": torch.zeros(1)}],
        {"it": 3},
        {"ema_models_states": {"other": {"w": torch.zeros(1)}}},
        {"ema_models_states": [{"w": torch.zeros(1)}]},
        torch.zeros(3),
    ],
    ids=["list", "numbers", "unknown inner key", "list inside", "tensor"],
)
def test_unknown_layouts_are_refused(tmp_path: Path, stored: object) -> None:
    path = tmp_path / "weights.pth"
    torch.save(stored, path)
    with pytest.raises(UserError, match=r"weights\.pth' is not in a layout this project reads"):
        read_weights(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_held_once(tmp_path: Path, suffix: str) -> None:
    """The network takes the file's own tensors, which are mapped; others of the file are not touched."""
    network, path = build("plain_iddpm_head"), tmp_path / f"weights{suffix}"
    state = read_weights(HEAD)
    save_weights(path, state, {}) if suffix == ".safetensors" else torch.save(state, path)
    mapped, trunk = read_weights(path), network.trunk_state().keys()
    before = {name: tensor.clone() for name, tensor in network.head().state_dict().items()}
    give_up(network, trunk)
    assert all(p.is_meta != network.in_head(name) for name, p in network.named_parameters())
    load_part(network, {name: mapped[name] for name in trunk}, "there", trunk, shared=True)
    assert all(p.data_ptr() == mapped[name].data_ptr() for name, p in network.named_parameters() if name in trunk)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.head().state_dict().items())
    with torch.no_grad():
        network.get_parameter("out.2.bias").add_(1.0)  # of this process alone
    assert torch.equal(read_weights(path)["out.2.bias"], state["out.2.bias"])


def test_loading_peaks_below_the_goal() -> None:
    """52 million parameters, in a process of its own."""
    weights, _, found = loading.measure("ours", 128)
    assert weights > 2e8 and 0.9 * weights < found["bytes"] < loading.GOAL * weights
