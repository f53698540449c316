"""The iddpm U-Net against the published network: outputs, parts, names and shapes of every full-size network.

Parameters are filled by a rule that depends on their names alone (tests/goldens.py), so a golden output also fixes the
state-dict keys. Errors are shares of each sample's output range; 1e-4 is what float32 back ends may differ by, and a
faithful network lands near 3e-6.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adpm.denoiser import index_label
from adpm.errors import UserError
from adpm.nn import NETWORKS
from adpm.nn.iddpm import UNet
from adpm.nn.iddpm_layers import Attention, timestep_embedding
from sde.score import LABELS
from tests.goldens import (
    DATA,
    assert_waves,
    check_names,
    filled_state,
    golden,
    golden_json,
    manifest,
    state_sha256,
    unet_options,
    uniform,
    worst,
)

SMALL = (
    "iddpm_s_plain3",
    "iddpm_s_plain6",
    "iddpm_s_out3of6",
    "iddpm_s_head_simple3",
    "iddpm_s_head_complex3",
    "iddpm_s_head_simple6",
    "iddpm_s_head_complex6",
    "iddpm_s_noscaleshift",
    "iddpm_s_eps",
)
FULL = ("iddpm_full_cifar10_eps", "iddpm_full_cifar10_head_simple", "iddpm_full_imagenet64_head_complex")
TABLES = [name for name in golden_json("networks/tables") if name.startswith("iddpm_")]
TOLERANCE = 1e-5


def golden_network(name: str) -> UNet:
    """The network of a manifest entry with its parameters filled; the sum over their bytes is checked."""
    about = manifest(name)
    network = UNet(**unet_options(about["network"])).eval()
    state = filled_state(network, about["salt"], about["gain"])
    assert sum(p.numel() for p in network.parameters()) == about["n_parameters"]
    assert list(state) == list(network.state_dict())  # no buffers, and the order that the hash is over
    assert state_sha256(state) == about["weights_sha256"]
    network.load_state_dict(state)
    return network


def check_outputs(name: str) -> None:
    about, stored = manifest(name), golden(f"networks/{name}")
    x = torch.as_tensor(stored["x"])
    np.testing.assert_allclose(x, about["input_scale"] * uniform(about["input_key"], tuple(x.shape)), rtol=1e-6)
    with torch.no_grad():
        y = golden_network(name)(x, torch.as_tensor(stored["t"]))
    if about["network"]["keep_first_3_of_6"]:
        y = y[:, :3]
    assert worst(y, stored["y"]) < TOLERANCE


def test_every_stored_golden_is_tested() -> None:
    stored = {path.stem for path in (DATA / "networks").glob("iddpm_*.npz")}
    assert stored == {*SMALL, *FULL} == {name for name in golden_json("networks/golden_manifest") if "iddpm" in name}


@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name: str) -> None:
    check_outputs(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size_networks(name: str) -> None:
    check_outputs(name)


def test_samples_do_not_see_each_other() -> None:
    network, stored = golden_network("iddpm_s_plain3"), golden("networks/iddpm_s_plain3")
    x, t = torch.as_tensor(stored["x"]), torch.as_tensor(stored["t"])
    with torch.no_grad():
        alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
    assert worst(alone, stored["y"]) < TOLERANCE


def test_time_embedding() -> None:
    """[cos, sin], frequencies 10000^(-i/half), fractional times included."""
    stored = golden("networks/units")
    found = timestep_embedding(torch.as_tensor(stored["t"]), 64)
    assert_waves(found, stored["emb_iddpm"], stored["t"], 10000.0 ** (-np.arange(32) / 32))


def test_attention_block() -> None:
    stored = golden("networks/units")
    block = Attention(32, 4)
    block.load_state_dict(filled_state(block, "unit_iddpm_attn/"))
    with torch.no_grad():
        found = block(torch.as_tensor(stored["x"]), torch.zeros(2, 1))
    assert worst(found, stored["iddpm_attention"]) < TOLERANCE


def test_filling_rule() -> None:
    """The rule itself, on the values published with it."""
    probe = nn.Module()
    probe.time_embed = nn.Sequential(nn.Linear(32, 128))
    state = filled_state(probe)
    expected = [0.06615250557661057, -0.22766369581222534, -0.01235850341618061]
    np.testing.assert_array_equal(state["time_embed.0.weight"].flatten()[:3], np.float32(expected))
    head = nn.Module()
    head.out2 = nn.Sequential(nn.Identity(), nn.Identity(), nn.Conv2d(1, 3, 1))
    expected = [-0.03609954193234444, -0.11589431762695312, 0.09979651868343353]
    np.testing.assert_array_equal(filled_state(head)["out2.2.bias"], np.float32(expected))


def test_every_full_size_table_is_here() -> None:
    assert len(TABLES) == 7


@pytest.mark.parametrize("name", TABLES)
def test_names_and_shapes(name: str) -> None:
    """Key for key the state dict of published checkpoints; built without memory for the values."""
    table = golden_json("networks/tables")[name]
    with torch.device("meta"):
        network = UNet(**unet_options(table["network"]))
    state = network.state_dict()
    check_names(state.items(), table)
    assert sum(p.numel() for p in network.parameters()) == table["parameters"]
    head = {key: value for key, value in state.items() if key.startswith("out2.")}
    assert bool(head) == ("head" in table) == (table["network"]["head_mode"] is not None)
    if head:
        check_names(head.items(), table["head"])
        assert sum(value.numel() for value in head.values()) == table["head"]["parameters"]


def test_a_list_of_other_names_is_printed() -> None:
    """A changed name, shape or order is told with all that was found."""
    state = {"a.weight": torch.zeros(3, 2), "a.bias": torch.zeros(3)}
    record = {"entries": 2, "sha256": hashlib.sha256(b"a.weight 3 2\na.bias 3\n").hexdigest()}
    check_names(state.items(), record)
    for other in (
        {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(3)},
        {"a.weight": torch.zeros(3, 2), "b.bias": torch.zeros(3)},
        dict(reversed(state.items())),
        {"a.weight": torch.zeros(3, 2)},
    ):
        with pytest.raises(
            AssertionError, match=rf"(?s)made of\n.*a\.weight {' '.join(map(str, other['a.weight'].shape))}\n"
        ):
            check_names(other.items(), record)


@pytest.mark.parametrize("head", ["none", "simple", "complex"])
def test_a_fresh_network_predicts_zero(head: str) -> None:
    """The final convolutions of both outputs start at zero, and nothing else hides behind them."""
    torch.manual_seed(0)
    network = UNet(**{**unet_options(manifest("iddpm_s_head_simple6")["network"]), "head": head})
    x = torch.randn(2, 3, 8, 8)
    assert not network(x, torch.tensor([3.0, 700.0])).any()
    hidden, _ = network.features(x, torch.tensor([3.0, 700.0]))
    assert hidden.std() > 0.1


def test_building_for_a_data_shape() -> None:
    options = {
        "model_channels": 32,
        "channel_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "attention_downsample": [4],
        "num_heads": 2,
    }
    network = NETWORKS["iddpm"].build((1, 8, 12), learned_variance=True, **options)
    assert network(torch.zeros(2, 1, 8, 12), torch.zeros(2)).shape == (2, 2, 8, 12)
    with pytest.raises(UserError, match=r"sides divisible by 4, but the data are 8x10; use fewer levels"):
        NETWORKS["iddpm"].build((1, 8, 10), **options)
    with pytest.raises(UserError, match=r"wants 1 channels and sides divisible by 4, got images of shape \(3, 8, 8\)"):
        network(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    with pytest.raises(UserError, match=r"`attention_downsample` = \(4, 8\) has 8, but the levels .* are 1, 2, 4\."):
        NETWORKS["iddpm"].build((1, 8, 8), **{**options, "attention_downsample": (4, 8)})
    with pytest.raises(UserError, match=r"`head` = 'simpel' is unknown \(did you mean 'simple'\?\)"):
        NETWORKS["iddpm"].build((1, 8, 8), head="simpel", **options)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"channel_mult": (0,)}, r"`channel_mult` = \(0,\) must hold a whole number of at least 1 per level"),
        ({"channel_mult": ()}, r"`channel_mult` = \(\) must hold"),
        ({"channel_mult": (1, "a")}, r"`channel_mult` = \(1, 'a'\) must hold"),
        ({"channel_mult": (1, 1.5)}, r"`channel_mult` = \(1, 1\.5\) must hold"),
        ({"model_channels": 33}, r"`model_channels` = 33 must be an even number of at least 2"),
        ({"model_channels": 0}, r"`model_channels` = 0 must be an even number"),
        ({"num_res_blocks": 0}, r"`num_res_blocks` = 0 must be a whole number of at least 1"),
        ({"dropout": 1.0}, r"`dropout` = 1\.0 must lie in \[0, 1\)"),
        ({"dropout": float("nan")}, r"`dropout` = nan must lie"),
        ({"num_heads": 0}, r"`num_heads` = 0 must be a whole number of at least 1"),
        ({"num_heads": 3}, r"`num_heads` = 3 must divide the 16 channels that attention works on"),
        ({"num_heads": 16, "attention_downsample": (1,)}, r"`num_heads` = 16 must divide the 8 channels"),
    ],
)
def test_numbers_that_no_network_has_are_refused(change: dict[str, Any], told: str) -> None:
    options = {"model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, **change}
    with pytest.raises(UserError, match=told):
        NETWORKS["iddpm"].build((1, 8, 8), **options)


def test_heads_divide_what_they_share_and_nothing_else() -> None:
    """Level 1 has no attention, so that its 8 channels need not be divided by 16 heads."""
    network = NETWORKS["iddpm"].build((1, 8, 8), model_channels=8, channel_mult=(1, 2), num_res_blocks=1, num_heads=16)
    assert network(torch.zeros(1, 1, 8, 8), torch.zeros(1)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("origin", "shift", "scale"),
    [
        ("cifar10_LS_or_CS", 0, 1.0),
        ("imagenet64_cosine4000", 1, 1000 / 4000),
        ("celeba64_lsun", 1, 1.0),
        ("vpsde_1000_ct2dt", 0, 999 / 1000),
    ],
)
def test_published_time_labels(origin: str, shift: int, scale: float) -> None:
    """Step number -> what the network receives."""
    stored = golden_json("networks/time_maps")[origin]
    found = index_label(shift, scale)(np.array(stored["inputs"], dtype=np.float64))
    np.testing.assert_allclose(found, stored["network_time_float32"], rtol=2e-7)


def test_published_time_labels_of_continuous_time() -> None:
    stored = golden_json("networks/time_maps")["vpsde_ct"]
    found = LABELS["time_999"].build(None)(np.array(stored["inputs"], dtype=np.float64))
    np.testing.assert_allclose(found, stored["network_time_float32"], rtol=2e-7)


def test_dropout_acts_in_training_only() -> None:
    network = UNet(**{**unet_options(manifest("iddpm_s_plain3")["network"]), "dropout": 0.5})
    network.load_state_dict(filled_state(network))
    x, t = torch.rand(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        assert not torch.equal(network(x, t), network(x, t))
        network.eval()
        assert torch.equal(network(x, t), network(x, t))
