"""The score_sde networks against the published ones: outputs, parts, names, initial values, checkpoints, laws.

As in tests/test_networks.py, parameters are filled by a rule that depends on their names alone, and errors are shares
of each sample's output range: outputs of one VE batch differ in scale by 1/sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.nn import NETWORKS
from adpm.nn.checkpoint import load_weights, save_weights, state_hash
from adpm.nn.fir import FirDown, FirUp
from adpm.nn.score_sde import VARIANTS, NCSNpp
from adpm.nn.score_sde_layers import Attention, FourierFeatures, PyramidDown, timestep_embedding
from adpm.pickles import safe_load
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

SMALL = ("sde_s_plain", "sde_s_head", "sde_s_eps", "sde_s_ve")
FULL = ("sde_full_cifar10_head", "sde_full_cifar10_ve")
TABLES = {name: table for name, table in golden_json("networks/tables").items() if name.startswith("score_sde_")}
FORMATS = DATA / "formats"
PUBLISHED = {"vp": FORMATS / "score_sde_vp.pth", "ve": FORMATS / "score_sde_ve.pth"}
TOLERANCE = 1e-5
FREQUENCIES = "all_modules.0.W"


def options(network: dict[str, Any]) -> dict[str, Any]:
    """NCSNpp's arguments from a manifest's `network` entry."""
    same = ("in_channels", "model_channels", "channel_mult", "num_res_blocks", "attention_resolutions", "dropout")
    return {
        **{name: network[name] for name in same},
        "image_size": network["resolution"],
        "variant": "ve" if network["ve_ncsnpp_variant"] else "vp",
        "head": "simple" if network["has_head"] else "none",
    }


def golden_network(name: str) -> NCSNpp:
    """The network of a manifest entry with its parameters filled; the sum over their bytes is checked."""
    about = manifest(name)
    network = NCSNpp(**options(about["network"])).eval()
    state = filled_state(network, about["salt"], about["gain"])
    assert sum(p.numel() for p in network.parameters()) == about["n_parameters"]
    assert ["sigmas", *state] == list(network.state_dict())  # the one buffer, and the order that the hash is over
    assert state_sha256(state) == about["weights_sha256"]
    load_weights(network, state, name)
    return network


def stored_inputs(name: str) -> tuple[Tensor, Tensor]:
    stored = golden(f"networks/{name}")
    return torch.as_tensor(stored["x"]), torch.as_tensor(stored["t"])


def check_outputs(name: str) -> None:
    about, (x, t) = manifest(name), stored_inputs(name)
    expected = about["input_scale"] * uniform(about["input_key"], tuple(x.shape))
    if about["input_affine"]:  # VE images are in [0, 1]
        assert about["input_affine"] == "0.5+0.25*x"
        expected = 0.5 + 0.25 * expected
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        y = golden_network(name)(x, t)
    assert worst(y, golden(f"networks/{name}")["y"]) < TOLERANCE


def test_every_stored_golden_is_tested() -> None:
    stored = {path.stem for path in (DATA / "networks").glob("sde_*.npz")}
    assert stored == {*SMALL, *FULL} == {name for name in golden_json("networks/golden_manifest") if "sde" in name}


@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name: str) -> None:
    check_outputs(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size_networks(name: str) -> None:
    check_outputs(name)


@pytest.mark.parametrize("name", ["sde_s_head", "sde_s_ve"])
def test_samples_do_not_see_each_other(name: str) -> None:
    network, (x, t) = golden_network(name), stored_inputs(name)
    with torch.no_grad():
        alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
    assert worst(alone, golden(f"networks/{name}")["y"]) < TOLERANCE


# ---------------------------------------------------------------------------------------------------------- its parts


def test_time_embedding() -> None:
    """[sin, cos], frequencies 10000^(-i/(half - 1)), fractional times included."""
    stored = golden("networks/units")
    found = timestep_embedding(torch.as_tensor(stored["t"]), 64)
    assert_waves(found, stored["emb_score_sde"], stored["t"], 10000.0 ** (-np.arange(32) / 31))


def test_fourier_features() -> None:
    features = FourierFeatures(8)
    features.load_state_dict(filled_state(features, "unit_fourier/"))
    found = features(torch.tensor([0.01, 0.7, 50.0]))
    np.testing.assert_allclose(found, golden("networks/units")["fourier_of_log_sigma"], atol=1e-6)


@pytest.mark.parametrize(
    ("part", "salt", "key"),
    [
        (Attention(32), "unit_sde_attn/", "score_sde_attention"),
        (PyramidDown(32, 32), "unit_fir_convdown/", "fir_conv_down"),
        (FirUp(), "", "fir_up"),
        (FirDown(), "", "fir_down"),
        (VARIANTS["vp"].up(), "", "naive_up"),
        (VARIANTS["vp"].down(), "", "naive_down"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_blocks(part: nn.Module, salt: str, key: str) -> None:
    stored = golden("networks/units")
    part.load_state_dict(filled_state(part, salt))
    with torch.no_grad():
        found = part(torch.as_tensor(stored["x"]))
    assert worst(found, stored[key]) < TOLERANCE


def test_low_pass_resampling_keeps_what_is_constant() -> None:
    """Away from the zeros outside, a constant stays what it is, and up then down gives back a linear ramp."""
    assert torch.equal(FirUp()(torch.ones(1, 2, 6, 6))[..., 1:-1, 1:-1], torch.ones(1, 2, 10, 10))
    assert torch.equal(FirDown()(torch.ones(1, 2, 8, 8))[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    torch.testing.assert_close(FirDown()(FirUp()(ramp))[..., 2:-2, 2:-2], ramp[..., 2:-2, 2:-2])


# ----------------------------------------------------------------------------------------- names, shapes, first values


def full_size(table: dict[str, Any]) -> NCSNpp:
    """Built without memory for the values."""
    with torch.device("meta"):
        return NCSNpp(**options(table["network"]))


def test_every_full_size_table_is_here() -> None:
    assert len(TABLES) == 5 and sum("averaged" in table for table in TABLES.values()) == 4


@pytest.mark.parametrize("name", TABLES)
def test_names_and_shapes(name: str) -> None:
    """Key for key the state dict of published checkpoints."""
    table = TABLES[name]
    network = full_size(table)
    state = network.state_dict()
    check_names(state.items(), table)
    assert table["buffers"] == {"sigmas": {"shape": list(state["sigmas"].shape), "dtype": str(state["sigmas"].dtype)}}
    assert sum(p.numel() for p in network.parameters()) == table["parameters"]
    head = {key: value for key, value in state.items() if "out2" in key}
    assert bool(head) == ("head" in table) == table["network"]["has_head"]
    if head:
        check_names(head.items(), table["head"])
        assert sum(value.numel() for value in head.values()) == table["head"]["parameters"]


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if "averaged" in table])
def test_order_of_the_nameless_averages(name: str, tmp_path: Path) -> None:
    """score_sde averages what it trains, in this order; the reader gives every tensor of the list its name."""
    table = TABLES[name]
    network = full_size(table)
    trained = {key: p for key, p in network.named_parameters() if p.requires_grad}
    check_names(trained.items(), table["averaged"])
    assert sum(p.numel() for p in trained.values()) == table["averaged"]["parameters"]
    raw = {f"module.{key}": torch.tensor([-1.0]) for key in network.state_dict()}
    shadow = [torch.tensor([float(k)]) for k in range(len(trained))]
    path = tmp_path / "checkpoint_26.pth"
    torch.save({"model": raw, "ema": {"shadow_params": shadow}, "step": 1300000}, path)
    state = {key: int(tensor) for key, tensor in read_weights(path).items()}
    assert [key for key in state if state[key] >= 0] == sorted(trained, key=lambda key: state[key]) == list(trained)
    assert [key for key in state if state[key] < 0] == table["not_averaged"]


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_first_values(variant: str) -> None:
    """Uniform with variance scale / mean(fan-in, fan-out); scale 0.1 in attention, 1e-10 where a branch ends."""
    torch.manual_seed(0)
    head = "simple" if variant == "vp" else "none"
    network = digits_network(variant, model_channels=32, head=head)
    last = f"all_modules.{len(network.all_modules) - 1}.weight"
    assert network.get_parameter(last).shape[0] == 1
    for name, p in network.named_parameters():
        if name == FREQUENCIES and variant == "ve":
            assert 8.0 < p.std() < 24.0
        elif p.dim() == 1:
            is_norm_scale = name.endswith("weight")
            assert torch.equal(p, torch.ones_like(p) if is_norm_scale else torch.zeros_like(p)), name
        else:
            scale = 0.1 if any(f"NIN_{i}" in name for i in range(3)) else 1.0
            if any(part in name for part in ("Conv_1.", "NIN_3", "conv_out2", last)):
                scale = 1e-10
            fans = (p.shape[0] + p.shape[1]) / 2 * math.prod(p.shape[2:])
            assert p.std().item() == pytest.approx(math.sqrt(scale / fans), rel=0.1), name
            assert p.abs().max() <= math.sqrt(3 * scale / fans)
    x = torch.rand(4, 1, 8, 8)
    y = network(x, torch.full((4,), 0.9))
    assert y.abs().max() < 1e-3
    hidden, _ = network.features(x, torch.full((4,), 0.9))
    assert hidden.std() > 0.01


# ---------------------------------------------------------------------------------------------------------------- laws


def digits_network(variant: str, **changes: Any) -> NCSNpp:
    """A network of our own size: one channel, 8x8, two levels."""
    network_options = {
        "model_channels": 16,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "variant": variant,
        "dropout": 0.1,
        **changes,
    }
    return NETWORKS["score_sde"].build((1, 8, 8), **network_options)


@pytest.mark.parametrize(("variant", "head"), [("vp", "none"), ("vp", "simple"), ("ve", "none")])
@pytest.mark.parametrize("channels", [8, 12, 18])
def test_gradients_reach_all_that_is_trained(variant: str, head: str, channels: int) -> None:
    """At any width, group counts that do not divide it included. Softmax is blind to a bias of the keys."""
    torch.manual_seed(0)
    network = digits_network(variant, model_channels=channels, head=head)
    load_weights(network, filled_state(network), "filled")
    y = network(torch.rand(3, 1, 8, 8), torch.tensor([0.3, 2.0, 30.0]))
    assert y.shape == (3, 2 if head == "simple" else 1, 8, 8)
    y.square().sum().backward()
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == ([FREQUENCIES] if variant == "ve" else [])
    for name, p in network.named_parameters():
        if name not in frozen and not name.endswith("NIN_1.b"):
            assert p.grad is not None and torch.isfinite(p.grad).all() and (p.grad != 0).any(), name


def test_ve_output_scales_with_the_inverse_of_sigma() -> None:
    """With its frequencies at zero the network cannot see sigma, and only the division by it is left."""
    network = golden_network("sde_s_ve")
    network.get_parameter(FREQUENCIES).data.zero_()
    x, sigma = torch.rand(1, 3, 16, 16).expand(5, 3, 16, 16), torch.tensor([0.01, 0.3, 1.0, 7.5, 50.0])
    with torch.no_grad():
        scores = network(x, sigma)
    assert worst(scores * sigma[:, None, None, None], scores[2:3].expand_as(scores)) < TOLERANCE


def test_ve_sees_images_centred() -> None:
    """x in [0, 1] is 2x - 1 inside: 0.5 is zero, and the first convolution gives its bias."""
    network, seen = golden_network("sde_s_ve"), []
    first = network.all_modules[3]
    first.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        network.features(torch.full((1, 3, 16, 16), 0.5), torch.ones(1))
        network.features(torch.ones(1, 3, 16, 16), torch.ones(1))
    assert not seen[0][0].any() and torch.equal(seen[1][0], torch.ones(1, 3, 16, 16))
    assert torch.equal(seen[0][1], first.bias[None, :, None, None].expand_as(seen[0][1]))


def test_heads_read_the_features() -> None:
    """`features` is all that the outputs need, and the backbone does not change under a head."""
    network, (x, t) = golden_network("sde_s_head"), stored_inputs("sde_s_head")
    plain = NCSNpp(**{**options(manifest("sde_s_head")["network"]), "head": "none"}).eval()
    load_weights(plain, {n: v for n, v in network.state_dict().items() if "out2" not in n}, "backbone")
    with torch.no_grad():
        y, (hidden, emb) = network(x, t), network.features(x, t)
        assert hidden.shape == (3, 32, 16, 16) and emb.shape == (3, 128)
        assert torch.equal(y[:, 3:], network.conv_out2(torch.nn.functional.silu(network.gn_out2(hidden))))
        assert torch.equal(y[:, :3], plain(x, t))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_dropout_acts_in_training_only(variant: str) -> None:
    network = digits_network(variant, dropout=0.5)
    load_weights(network, filled_state(network), "filled")
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([0.3, 2.0])
    with torch.no_grad():
        assert not torch.equal(network(x, t), network(x, t))
        network.eval()
        assert torch.equal(network(x, t), network(x, t))


@pytest.mark.parametrize("name", ["sde_s_head", "sde_s_ve"])
def test_bfloat16_and_compilation(name: str) -> None:
    """bfloat16 is near to its 8 bits; the compiler sees the whole network as one graph."""
    network, (x, t) = golden_network(name), stored_inputs(name)
    with torch.no_grad():
        y = network(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            assert 1e-5 < worst(network(x, t).float(), y) < 0.05
        graph = torch.compile(network, backend="eager", fullgraph=True)
        assert worst(graph(x, t), y) < TOLERANCE


def test_what_cannot_be_built_or_run_is_refused() -> None:
    network = digits_network("vp")
    with pytest.raises(UserError, match=r"is built for images of shape \(1, 8, 8\), got \(1, 16, 16\)"):
        network(torch.zeros(2, 1, 16, 16), torch.zeros(2))
    with pytest.raises(UserError, match=r"is built for images of shape \(1, 8, 8\), got \(3, 8, 8\)"):
        network(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    with pytest.raises(UserError, match=r"sides divisible by 4, but the data are 6x6; use fewer levels"):
        NETWORKS["score_sde"].build((1, 6, 6), model_channels=8, channel_mult=(1, 2, 2), num_res_blocks=1)
    with pytest.raises(UserError, match=r"needs square images, but the data are 8x16"):
        NETWORKS["score_sde"].build((1, 8, 16), model_channels=8, channel_mult=(1, 2), num_res_blocks=1)
    with pytest.raises(UserError, match=r"`variant` = 'vpp' is unknown \(did you mean 'vp'\?\)"):
        digits_network("vpp")
    with pytest.raises(UserError, match=r"`head` = 'simpel' is unknown \(did you mean 'simple'\?\)"):
        digits_network("ve", head="simpel")
    with pytest.raises(UserError, match=r"`attention_resolutions` = \(16, 4\) has 16, but the levels .* are 8, 4\."):
        digits_network("vp", attention_resolutions=(16, 4))
    with pytest.raises(UserError, match=r"`channel_mult` = \(1, 0\) must hold a whole number of at least 1 per level"):
        digits_network("ve", channel_mult=(1, 0))
    with pytest.raises(UserError, match=r"`model_channels` = 2 must be an even number of at least 4"):
        digits_network("vp", model_channels=2)


# --------------------------------------------------------------------------------------------------------- checkpoints


def format_network(origin: str) -> NCSNpp:
    return NCSNpp(**options(golden_json("formats/formats_manifest")[origin]["network"])).eval()


@pytest.mark.parametrize("origin", ["plain_sde", "plain_sde_head", "score_sde_vp", "score_sde_ve"])
def test_published_files(origin: str, tmp_path: Path) -> None:
    """The EMA weights come out under their names and give the stored outputs, also by way of our own file."""
    network, again, ours = format_network(origin), format_network(origin), tmp_path / "weights.safetensors"
    path = FORMATS / f"{origin}.pth"
    load_weights(network, read_weights(path), str(path))
    expected = filled_state(network, "ema/")
    if network.variant.fourier:  # never trained, so not among the averages
        expected[FREQUENCIES] = filled_state(network, "raw/")[FREQUENCIES]
    assert all(torch.equal(p, expected[name]) for name, p in network.named_parameters())
    save_weights(ours, network.state_dict(), {})
    load_weights(again, read_weights(ours), str(ours))
    assert state_hash(again.state_dict()) == state_hash(network.state_dict())
    stored = golden("formats/formats_golden")
    with torch.no_grad():
        y = again(torch.as_tensor(stored[f"{origin}/x"]), torch.as_tensor(stored[f"{origin}/t"]))
    assert worst(y, stored[f"{origin}/y"]) < TOLERANCE


def test_unused_noise_levels_are_the_published_ones_and_optional() -> None:
    state, network = read_weights(PUBLISHED["vp"]), format_network("score_sde_vp")
    torch.testing.assert_close(network.sigmas, state["sigmas"], rtol=1e-13, atol=0)
    load_weights(network, state, "with")
    hashed = state_hash(network.state_dict())
    del state["sigmas"]
    load_weights(network, state, "without")
    load_weights(network, {**state, "sigmas": torch.zeros(7)}, "with others")
    assert network.sigmas[0] == pytest.approx(50.0) and state_hash(network.state_dict()) == hashed


def test_vp_and_ve_files_do_not_fit_each_other() -> None:
    with pytest.raises(UserError, match=r"do not fit the network \(.*of another shape"):
        load_weights(format_network("score_sde_ve"), read_weights(PUBLISHED["vp"]), "vp")


def test_reading_runs_no_code(tmp_path: Path) -> None:
    """Numpy scalars (the optimizer's learning rate) are let in, under the names of numpy 1 and 2; nothing else is."""
    with pytest.raises(Exception, match=r"numpy\.core\.multiarray\.scalar"):
        torch.load(PUBLISHED["vp"], weights_only=True)
    stored = published_content("vp")
    path = tmp_path / "checkpoint_1.pth"
    torch.save({**stored, "optimizer": {"lr": np.float64(2e-4)}}, path)
    assert read_weights(path).keys() == read_weights(PUBLISHED["vp"]).keys()
    torch.save({**stored, "optimizer": {"lr": Path.touch}}, path)
    with pytest.raises(UserError, match=r"checkpoint_1\.pth' cannot be read without running code stored in it"):
        read_weights(path)


def published_content(variant: str) -> dict[str, Any]:
    return safe_load(PUBLISHED[variant])


Change = Callable[[dict[str, Any], list[Tensor]], Any]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s, ema: ema.pop(), r"holds 155 EMA tensors for 156 trained parameters"),
        (lambda s, ema: ema.insert(0, s["model"][f"module.{FREQUENCIES}"]), r"holds 157 EMA tensors for 156 trained"),
        (
            lambda s, ema: ema.append(ema.pop(0)),
            r"holds an EMA tensor of shape \(32,\) where all_modules\.1\.weight \(32, 16\) is due",
        ),
        (lambda s, ema: s["model"].pop("module.all_modules.1.bias"), r"holds 156 EMA tensors for 155 trained"),
        (lambda s, ema: s["ema"].pop("shadow_params"), "is not in a layout this project reads"),
        (lambda s, ema: s["ema"].update(shadow_params="none"), "is not in a layout this project reads"),
        (lambda s, ema: ema.__setitem__(3, 0.5), "is not in a layout this project reads"),
        (lambda s, ema: s.update(model=[]), "is not in a layout this project reads"),
        (lambda s, ema: s.update(ema=None), "is not in a layout this project reads"),
    ],
)
def test_lists_that_do_not_belong_are_refused(tmp_path: Path, change: Change, told: str) -> None:
    """VE, where a zip over all parameters would shift every tensor by one."""
    stored, path = published_content("ve"), tmp_path / "checkpoint_1.pth"
    change(stored, stored["ema"]["shadow_params"])
    torch.save(stored, path)
    with pytest.raises(UserError, match=r"weights file '.*checkpoint_1\.pth' " + told):
        read_weights(path)
