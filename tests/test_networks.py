"""The iddpm U-Net against the published network: outputs, parts, names and shapes of every full-size table.

Parameters are filled by a rule that depends on their names alone (tests/goldens.py), so a golden output also fixes the
state-dict keys. Errors are shares of each sample's output range; 1e-4 is what float32 back ends may differ by, and a
faithful network lands near 3e-6.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adpm.denoiser import index_label
from adpm.errors import UserError
from adpm.nn import NETWORKS
from adpm.nn.iddpm import Attention, UNet, timestep_embedding
from tests.goldens import DATA, filled_state, golden, golden_json, state_sha256, unet_options, uniform

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
TABLES = sorted(path.stem for path in (DATA / "networks").glob("table_iddpm_*.json"))
TOLERANCE = 1e-5


def manifest(name: str) -> dict[str, Any]:
    return golden_json("networks/golden_manifest")[name]


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


def worst(found: Tensor, expected: np.ndarray) -> float:
    """Largest difference of any sample as a share of that sample's largest output."""
    y, e = found.flatten(1), torch.as_tensor(expected).flatten(1)
    assert found.shape == expected.shape
    return float(((y - e).abs().amax(1) / e.abs().amax(1)).max())


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
    np.testing.assert_allclose(found, stored["emb_iddpm"], atol=5e-7)


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
    table = golden_json(f"networks/{name}")
    with torch.device("meta"):
        network = UNet(**unet_options(table["network"]))
    state = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert list(state) == list(table["state_dict"])
    assert state == table["state_dict"]
    assert len(state) == table["n_keys"]
    assert sum(p.numel() for p in network.parameters()) == table["n_parameters"]
    head = [key for key in state if key.startswith("out2.")]
    assert head == table.get("head_keys", [])
    assert sum(network.get_parameter(key).numel() for key in head) == table.get("n_head_parameters", 0)
    assert bool(head) == (table["network"]["head_mode"] is not None)


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
    network = NETWORKS["iddpm"]((1, 8, 12), learned_variance=True, **options)
    assert network(torch.zeros(2, 1, 8, 12), torch.zeros(2)).shape == (2, 2, 8, 12)
    with pytest.raises(UserError, match=r"sides divisible by 4, but the data are 8x10; use fewer levels"):
        NETWORKS["iddpm"]((1, 8, 10), **options)
    with pytest.raises(UserError, match=r"wants 1 channels and sides divisible by 4, got images of shape \(3, 8, 8\)"):
        network(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    with pytest.raises(UserError, match=r"network\.head = 'simpel' is unknown \(did you mean 'simple'\?\)"):
        NETWORKS["iddpm"]((1, 8, 8), head="simpel", **options)


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
