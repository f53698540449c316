"""The ddpm U-Net against the published network: outputs, parts, names and shapes of every full-size network, laws.

As in tests/test_networks.py, parameters are filled by a rule that depends on their names alone, and errors are shares
of each sample's output range.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.nn import NETWORKS
from adpm.nn.checkpoint import load_weights
from adpm.nn.ddpm import Attention, Downsample, UNet, timestep_embedding
from tests.goldens import (
    DATA,
    assert_waves,
    check_names,
    filled_state,
    golden,
    golden_json,
    manifest,
    state_sha256,
    uniform,
    worst,
)

SMALL = ("ddpm_s_plain", "ddpm_s_head_simple", "ddpm_s_head_complex", "ddpm_s_eps")
FULL = ("ddpm_full_celeba64_head_simple", "ddpm_full_lsun256_head_simple")
TABLES = [name for name in golden_json("networks/tables") if name.startswith("ddpm_")]
TOLERANCE = 1e-5


def options(network: dict[str, Any]) -> dict[str, Any]:
    """UNet's arguments from a manifest's `network` entry."""
    same = ("in_channels", "model_channels", "channel_mult", "num_res_blocks", "attention_resolutions", "dropout")
    assert network["out_channels"] == network["in_channels"] == network["head_out_channels"]
    return {
        **{name: network[name] for name in same},
        "image_size": network["resolution"],
        "head": network["head_mode"] or "none",
    }


def golden_network(name: str) -> UNet:
    """The network of a manifest entry with its parameters filled; the sum over their bytes is checked."""
    about = manifest(name)
    network = UNet(**options(about["network"])).eval()
    state = filled_state(network, about["salt"], about["gain"])
    assert sum(p.numel() for p in network.parameters()) == about["n_parameters"]
    assert list(state) == list(network.state_dict())  # no buffers, and the order that the hash is over
    assert state_sha256(state) == about["weights_sha256"]
    load_weights(network, state, name)
    return network


def inputs(name: str) -> tuple[Tensor, Tensor]:
    """x and t; an x too large to be stored is made by its rule, which is checked on the others."""
    about, stored = manifest(name), golden(f"networks/{name}")
    shape = stored["x"].shape if "x" in stored else tuple(about["input_shape"])
    x = about["input_scale"] * uniform(about["input_key"], shape)
    if "x" in stored:
        np.testing.assert_allclose(stored["x"], x, rtol=1e-6)
    return torch.as_tensor(x.astype(np.float32)), torch.as_tensor(stored["t"])


def check_outputs(name: str) -> None:
    first, last = manifest(name).get("output_crop_hw", (0, None))
    with torch.no_grad():
        y = golden_network(name)(*inputs(name))
    assert worst(y[:, :, first:last, first:last], golden(f"networks/{name}")["y"]) < TOLERANCE


def test_every_stored_golden_is_tested() -> None:
    stored = {path.stem for path in (DATA / "networks").glob("ddpm_*.npz")}
    named = {name for name in golden_json("networks/golden_manifest") if name.startswith("ddpm_")}
    assert stored == {*SMALL, *FULL} == named


@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name: str) -> None:
    check_outputs(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size_networks(name: str) -> None:
    check_outputs(name)


def written(path: Path, layout: str, state: dict[str, Tensor]) -> Path:
    """A file as DDIM's authors, or those who ported DDPM, wrote them: before and after torch's files were archives."""
    if layout == "ddim_list":
        raw = {f"module.{name}": tensor + 1.0 for name, tensor in state.items()}
        torch.save([raw, {"state": {}, "param_groups": []}, 3, 1000, state], path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=not layout.endswith("legacy"))
    return path


@pytest.mark.parametrize("layout", ["plain_ddpm", "plain_ddpm_head", "plain_ddpm_legacy", "ddim_list"])
def test_published_layouts(tmp_path: Path, layout: str) -> None:
    """From a file of the layout to the output that its published counterpart has: of the average, where both are."""
    about, stored = golden_json("formats/formats_manifest")[layout], golden("formats/formats_golden")
    network = UNet(**options(about["network"])).eval()
    file = written(tmp_path / "file", layout, filled_state(network, about["expected_weights_salt"]))
    load_weights(network, read_weights(file), str(file))
    x, t, y = (torch.as_tensor(stored[f"{layout}/{k}"]) for k in "xty")
    with torch.no_grad():
        assert worst(network(x, t), y) < TOLERANCE


def test_samples_do_not_see_each_other() -> None:
    network, (x, t) = golden_network("ddpm_s_plain"), inputs("ddpm_s_plain")
    with torch.no_grad():
        alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
    assert worst(alone, golden("networks/ddpm_s_plain")["y"]) < TOLERANCE


# ---------------------------------------------------------------------------------------------------------- its parts


def test_time_embedding() -> None:
    """[sin, cos], frequencies 10000^(-i/(half - 1)), fractional times included."""
    stored = golden("networks/units")
    found = timestep_embedding(torch.as_tensor(stored["t"]), 64)
    assert_waves(found, stored["emb_ddpm"], stored["t"], 10000.0 ** (-np.arange(32) / 31))


def test_attention_block() -> None:
    stored = golden("networks/units")
    block = Attention(32)
    block.load_state_dict(filled_state(block, "unit_ddpm_attn/"))
    with torch.no_grad():
        found = block(torch.as_tensor(stored["x"]))
    assert worst(found, stored["ddpm_attention"]) < TOLERANCE


def test_halving_pads_right_and_below() -> None:
    """The kernel's last row and column see the zeros; its first ones, images alone."""
    layer, x = Downsample(1), torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.nn.init.zeros_(layer.conv.bias)
    for tap, expected in (((0, 0), [[0, 2], [8, 10]]), ((2, 2), [[10, 0], [0, 0]]), ((2, 0), [[8, 10], [0, 0]])):
        kernel = torch.zeros(1, 1, 3, 3)
        kernel[0, 0, tap[0], tap[1]] = 1.0
        layer.conv.weight.data = kernel
        with torch.no_grad():
            assert layer(x)[0, 0].tolist() == expected


# -------------------------------------------------------------------------------------------------- names and building


def test_every_full_size_table_is_here() -> None:
    assert len(TABLES) == 7


@pytest.mark.parametrize("name", TABLES)
def test_names_and_shapes(name: str) -> None:
    """Key for key the state dict of published checkpoints; built without memory for the values."""
    table = golden_json("networks/tables")[name]
    with torch.device("meta"):
        network = UNet(**options(table["network"]))
    check_names(network.state_dict().items(), table)
    assert sum(p.numel() for p in network.parameters()) == table["parameters"]
    head = network.head().state_dict()
    assert bool(head) == ("head" in table) == network.has_head == (table["network"]["head_mode"] is not None)
    if head:
        check_names(((key, value) for key, value in network.state_dict().items() if key in head), table["head"])
        assert sum(value.numel() for value in head.values()) == table["head"]["parameters"]
    assert network.trunk_state().keys() == network.state_dict().keys() - head.keys()


PUBLISHED = {
    "cifar10": (32, {"channel_mult": (1, 2, 2, 2)}),
    "celeba64": (64, {"channel_mult": (1, 2, 2, 2, 4)}),
    "lsun256": (256, {"channel_mult": (1, 1, 2, 2, 4, 4), "dropout": 0.0}),
}


@pytest.mark.parametrize("head", ["none", "simple", "complex"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_by_their_fields(name: str, head: str) -> None:
    """What a config says builds the network of the table, and its shapes go through."""
    side, changes = PUBLISHED[name]
    fields = {"model_channels": 128, "num_res_blocks": 2, "attention_resolutions": (16,), "dropout": 0.1, **changes}
    with torch.device("meta"):
        network = NETWORKS["ddpm"].build((3, side, side), head=head, **fields)
        y = network(torch.zeros(2, 3, side, side), torch.zeros(2))
    assert y.shape == (2, 3 if head == "none" else 6, side, side)
    table = golden_json("networks/tables").get(f"ddpm_{name}" + ("" if head == "none" else f"_head_{head}"))
    if table is not None:  # nobody has published heads for CIFAR10
        check_names(network.state_dict().items(), table)


def digits_network(**changes: Any) -> UNet:
    """A network of our own size: one channel, 8x8, two levels."""
    sizes = {"model_channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,)}
    return NETWORKS["ddpm"].build((1, 8, 8), **{**sizes, **changes})


@pytest.mark.parametrize("head", ["none", "simple", "complex"])
@pytest.mark.parametrize("channels", [8, 12, 48])
def test_gradients_reach_all_parameters(channels: int, head: str) -> None:
    """At any width, group counts that do not divide it included. Softmax is blind to a bias of the keys."""
    network = digits_network(model_channels=channels, head=head)
    load_weights(network, filled_state(network), "filled")
    y = network(torch.rand(3, 1, 8, 8), torch.tensor([0.0, 250.5, 999.0]))
    assert y.shape == (3, 1 if head == "none" else 2, 8, 8)
    y.square().sum().backward()
    for name, p in network.named_parameters():
        if not name.endswith(".k.bias"):
            assert p.grad is not None and torch.isfinite(p.grad).all() and (p.grad != 0).any(), name


def test_heads_read_the_features() -> None:
    """`features` is all that the outputs need, and the backbone does not change under a head."""
    network, (x, t) = golden_network("ddpm_s_head_complex"), inputs("ddpm_s_head_complex")
    plain = UNet(**{**options(manifest("ddpm_s_head_complex")["network"]), "head": "none"}).eval()
    load_weights(plain, network.trunk_state(), "backbone")
    with torch.no_grad():
        y, (hidden, emb) = network(x, t), network.features(x, t)
        assert hidden.shape == (3, 32, 16, 16) and emb.shape == (3, 128)
        assert torch.equal(y[:, 3:], network.head_output(hidden, emb, network.head()))
        assert torch.equal(y[:, :3], plain(x, t))


def test_dropout_acts_in_training_only() -> None:
    network = digits_network(dropout=0.5)
    load_weights(network, filled_state(network), "filled")
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        assert not torch.equal(network(x, t), network(x, t))
        network.eval()
        assert torch.equal(network(x, t), network(x, t))


def test_bfloat16_and_compilation() -> None:
    """bfloat16 is near to its 8 bits; the compiler sees the whole network as one graph."""
    network, (x, t) = golden_network("ddpm_s_head_complex"), inputs("ddpm_s_head_complex")
    with torch.no_grad():
        y = network(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            assert 1e-5 < worst(network(x, t).float(), y) < 0.05
        graph = torch.compile(network, backend="eager", fullgraph=True)
        assert worst(graph(x, t), y) < TOLERANCE


def test_what_cannot_be_built_or_run_is_refused() -> None:
    network = digits_network()
    with pytest.raises(UserError, match=r"is built for images of shape \(1, 8, 8\), got \(1, 16, 16\)"):
        network(torch.zeros(2, 1, 16, 16), torch.zeros(2))
    with pytest.raises(UserError, match=r"sides divisible by 4, but the data are 6x6; use fewer levels"):
        NETWORKS["ddpm"].build((1, 6, 6), model_channels=8, channel_mult=(1, 2, 2), num_res_blocks=1)
    with pytest.raises(UserError, match=r"the network 'ddpm' needs square images, but the data are 8x16"):
        NETWORKS["ddpm"].build((1, 8, 16), model_channels=8, channel_mult=(1, 2), num_res_blocks=1)
    with pytest.raises(UserError, match=r"`head` = 'simpel' is unknown \(did you mean 'simple'\?\)"):
        digits_network(head="simpel")
    with pytest.raises(UserError, match=r"`attention_resolutions` = \(16, 4\) has 16, but the levels .* are 8, 4\."):
        digits_network(attention_resolutions=(16, 4))
    with pytest.raises(UserError, match=r"`model_channels` = 2 must be an even number of at least 4"):
        digits_network(model_channels=2)
