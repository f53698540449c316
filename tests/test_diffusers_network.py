"""Folders of diffusers' UNet2DModel as networks: published outputs, both spellings of attention, heads, refusals."""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.formats.diffusers import current_names
from adpm.nn import NETWORKS
from adpm.nn.checkpoint import load_weights, save_weights
from adpm.nn.ddpm import UNet
from adpm.nn.diffusers_unet import UNet2D
from adpm.run.assembly import Session
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.config import load_config
from tests.goldens import check_names, filled_state, golden, golden_json, manifest, state_sha256, uniform, worst

diffusers = pytest.importorskip("diffusers")
TOLERANCE = 1e-5
BEFORE = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
SMALL = {**manifest("hf_folder")["network"], "sample_size": 8, "in_channels": 1, "out_channels": 1}


def folder(where: Path, config: dict[str, Any]) -> Path:
    """A network's folder without weights."""
    where.mkdir(parents=True, exist_ok=True)
    (where / "config.json").write_text(json.dumps(config))
    return where


def built(where: Path, config: dict[str, Any], **options: Any) -> UNet2D:
    size = config["sample_size"]
    shape = (config["in_channels"], size, size)
    return NETWORKS["diffusers"].build(shape, pretrained=str(folder(where, config)), **options).eval()


def deprecated(name: str) -> str:
    """The name that older files have: attention was spelled otherwise."""
    return re.sub(r"(?<=\d\.)(to_q|to_k|to_v|to_out\.0)(?=\.(weight|bias)$)", lambda match: BEFORE[match[1]], name)


# ------------------------------------------------------------------------------------------------------------- outputs


def check_outputs(name: str, tmp_path: Path) -> None:
    about, stored = manifest(name), golden(f"networks/{name}")
    network = built(tmp_path, about["network"])
    state = filled_state(network, about["salt"], about["gain"])
    assert list(state) == list(network.state_dict())
    assert sum(tensor.numel() for tensor in state.values()) == about["n_parameters"]
    assert state_sha256(state) == about["weights_sha256"]
    load_weights(network, state, name)
    np.testing.assert_allclose(stored["x"], uniform(about["input_key"], stored["x"].shape), rtol=1e-6)
    with torch.no_grad():
        found = network(torch.as_tensor(stored["x"]), torch.as_tensor(stored["t"]))
    assert worst(found, stored["y"]) < TOLERANCE


def test_small_network(tmp_path: Path) -> None:
    check_outputs("hf_s", tmp_path)


@pytest.mark.slow
def test_full_size_network(tmp_path: Path) -> None:
    check_outputs("hf_full_ddpm_cifar10", tmp_path)


@pytest.mark.parametrize("where", ["", "unet"])
@pytest.mark.parametrize(
    ("file", "old"), [("safetensors", False), ("safetensors", True), ("bin", False), ("bin", True)]
)
def test_folders_with_their_weights(tmp_path: Path, file: str, old: bool, where: str) -> None:
    """A network's folder or a pipeline's, either file, either spelling: the output of the published folder."""
    about, stored = manifest("hf_folder"), golden("networks/hf_folder")
    inside = folder(tmp_path / where, about["network"])
    network = NETWORKS["diffusers"].build((3, 8, 8), pretrained=str(tmp_path)).eval()
    state = {deprecated(k) if old else k: v for k, v in filled_state(network, about["salt"]).items()}
    assert any(".query." in name for name in state) == old
    path = inside / f"diffusion_pytorch_model.{file}"
    (save_file if file == "safetensors" else torch.save)(state, path)
    load_weights(network, read_weights(tmp_path, network.state_dict()), str(tmp_path))
    with torch.no_grad():
        found = network(torch.as_tensor(stored["x"]), torch.as_tensor(stored["t"]))
    assert worst(found, stored["y"]) < TOLERANCE


def test_names_and_shapes_of_the_published_network(tmp_path: Path) -> None:
    """google/ddpm-cifar10-32, name for name, as diffusers spells it now and as it did; without memory for values."""
    table = golden_json("networks/tables")["hf_ddpm_cifar10"]
    with torch.device("meta"):
        network = built(tmp_path, table["network"])
        assert network(torch.zeros(2, 3, 32, 32), torch.zeros(2)).shape == (2, 3, 32, 32)
    state = network.state_dict()
    check_names(state.items(), table)
    assert sum(p.numel() for p in network.parameters()) == table["parameters"]
    before = {deprecated(name): tensor for name, tensor in state.items()}
    check_names(before.items(), table["deprecated"])
    assert list(current_names(before)) == list(state) == list(current_names(state))


def test_other_networks_keep_their_names() -> None:
    """Attention of other families has such words, too: only diffusers' is renamed."""
    names = ["mid.attn_1.q.weight", "query.weight", "a.attentions.0.query.scale", "attention.0.key.bias"]
    assert list(current_names(dict.fromkeys(names, torch.zeros(1)))) == names


def test_it_is_the_network_ddpm_under_other_names(tmp_path: Path) -> None:
    """UNet2DModel with DDPM's options computes what our ddpm does: values moved over name by name."""
    config = {**SMALL, "block_out_channels": [8, 16], "norm_num_groups": 8}
    config |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
    theirs = built(tmp_path, config)
    ours = UNet(
        in_channels=1,
        image_size=8,
        model_channels=8,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
    ).eval()
    state = {name: tensor for name, tensor in filled_state(theirs).items()}
    load_weights(theirs, state, "filled")
    moved = {name: state[_hf(name, 2)].reshape(p.shape) for name, p in ours.named_parameters()}
    assert len(moved) == len(state)
    load_weights(ours, moved, "moved")
    for block in ours.modules():  # 16 channels have 16 groups with us, and 8 in the folder
        if isinstance(block, torch.nn.GroupNorm):
            block.num_groups = 8
    x, t = torch.rand(3, 1, 8, 8), torch.tensor([0.0, 12.5, 999.0])
    with torch.no_grad():
        assert worst(ours(x, t), theirs(x, t)) < TOLERANCE


def _hf(name: str, levels: int) -> str:
    """diffusers' name of a parameter of DDPM's U-Net."""
    name = re.sub(r"^temb\.dense\.(\d)", lambda m: f"time_embedding.linear_{int(m[1]) + 1}", name)
    name = re.sub(r"^down\.(\d)\.", r"down_blocks.\1.", name)
    name = re.sub(r"^up\.(\d)\.", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.", name)
    name = re.sub(r"^mid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}", name)
    name = name.replace("mid.attn_1", "mid_block.attentions.0").replace("norm_out", "conv_norm_out")
    name = re.sub(r"\.block\.(\d)", r".resnets.\1", name)
    name = re.sub(r"\.attn\.(\d)", r".attentions.\1", name)
    name = re.sub(r"(attentions\.\d)\.norm\.", r"\1.group_norm.", name)
    name = re.sub(r"(attentions\.\d)\.([qkv])\.", r"\1.to_\2.", name).replace("proj_out", "to_out.0")
    name = name.replace("temb_proj", "time_emb_proj").replace("nin_shortcut", "conv_shortcut")
    return re.sub(r"\.(down|up)sample\.conv", r".\1samplers.0.conv", name)


# ----------------------------------------------------------------------------------------------- heads, classes, parts


@pytest.mark.parametrize("head", ["none", "simple", "complex"])
def test_it_is_diffusers_own_network_with_a_head(tmp_path: Path, head: str) -> None:
    """The first output is the class's own, to the bit; a head reads the layer before its last norm."""
    config = {**SMALL, "num_class_embeds": 4}
    network = built(tmp_path, config, head=head)
    load_weights(network, filled_state(network), "filled")
    reference = diffusers.UNet2DModel.from_config(config).eval()
    reference.load_state_dict(network.trunk_state())
    x, t, classes = torch.rand(3, 1, 8, 8), torch.tensor([0.0, 12.5, 999.0]), torch.tensor([3, 0, 1])
    with torch.no_grad():
        found = network(x, t, classes)
        assert torch.equal(found[:, :1], reference(x, t, classes).sample)
        assert network.has_head == (head != "none") and found.shape[1] == 1 + network.has_head
        if network.has_head:
            hidden, emb = network.features(x, t, classes)
            assert emb.shape == (3, 128)
            assert torch.equal(found[:, 1:], network.head_output(hidden, emb, network.head()))
            assert found[:, 1:].std() > 0.01
    with pytest.raises(UserError, match=r"told which of its 4 classes"):
        network(x, t)


def test_a_fresh_head_says_nothing_and_copies_are_apart(tmp_path: Path) -> None:
    import copy

    network = built(tmp_path, SMALL, head="complex")
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        assert not network(x, t)[:, 1:].any()
        other = copy.deepcopy(network)
        for p in network.parameters():
            p.zero_()
        assert not network(x, t).any() and other(x, t)[:, :1].any()
    network.double()
    assert network(x.double(), t).dtype == torch.float64


def test_gradients_reach_all_parameters(tmp_path: Path) -> None:
    network = built(tmp_path, SMALL, head="simple")
    load_weights(network, filled_state(network), "filled")
    network(torch.rand(2, 1, 8, 8), torch.tensor([3.0, 700.5])).square().sum().backward()
    for name, p in network.named_parameters():
        if not name.endswith("to_k.bias"):  # softmax is blind to it
            assert p.grad is not None and (p.grad != 0).any(), name


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"_class_name": "UNet2DConditionModel"}, r"of the class UNet2DConditionModel; UNet2DModel is read here"),
        ({"time_embedding_type": "fourier"}, r"says time_embedding_type = 'fourier'; networks with 'positional'"),
        ({"class_embed_type": "timestep"}, r"says class_embed_type = 'timestep'"),
        ({"down_block_types": ["SkipDownBlock2D"]}, r"has blocks SkipDownBlock2D, which this project does not read"),
        ({"in_channels": 3}, r"for images of shape \(3, 8, 8\), but the data are \(1, 8, 8\)"),
        ({"sample_size": [16, 8]}, r"for images of shape \(1, 16, 8\), but the data are \(1, 8, 8\)"),
    ],
)
def test_what_it_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    where = folder(tmp_path, {**SMALL, **changes})
    with pytest.raises(UserError, match=told):
        NETWORKS["diffusers"].build((1, 8, 8), pretrained=str(where))


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    build = NETWORKS["diffusers"].build
    with pytest.raises(UserError, match=r"is what its folder says: name one with a config\.json in `pretrained`"):
        build((1, 8, 8))
    with pytest.raises(UserError, match=r"is no folder of a diffusers network: it has no config\.json"):
        build((1, 8, 8), pretrained=str(tmp_path))
    folder(tmp_path, SMALL)
    with pytest.raises(UserError, match=r"holds no weights: diffusion_pytorch_model\.safetensors or "):
        read_weights(tmp_path)
    for text, told in (("{", "is no JSON object"), ("[1]", r"is no JSON object \(it holds a list\)")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=told):
            build((1, 8, 8), pretrained=str(tmp_path))


def test_the_package_is_asked_for_in_words(tmp_path: Path, monkeypatch: Any) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "diffusers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs the package of that name, which is not installed: pip install"):
        NETWORKS["diffusers"].build((1, 8, 8), pretrained=str(folder(tmp_path, SMALL)))


# --------------------------------------------------------------------------------------------------------------- a run


def test_a_folder_goes_through_the_modes(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Moments, a head on it, samples: the folder named once. Another data set is refused before any work."""
    monkeypatch.chdir(Path(__file__).parent.parent)
    where = folder(tmp_path / "model", SMALL)
    state = filled_state(built(where, SMALL), gain=0.5)
    save_file(state, where / "diffusion_pytorch_model.safetensors")
    fields = {
        "network.name": "diffusers",
        "network.pretrained": str(where),
        "process.steps": "40",
        "denoiser.time_shift": "1",
        "moments.draws": "12",
        "moments.times": "5",
        "moments.implausible": "True",
        "trajectory.steps": "4",
        "sampling.samples": "6",
        "likelihood.images": "8",
    }
    places = [f"--workdir={tmp_path / 'run'}", f"--config.cache={tmp_path / 'cache'}"]
    given = [f"--config.{name}={value}" for name, value in fields.items()]
    base = ["main.py", "--config=configs/base.py", *places, *given]
    assert run([*base, "--mode=estimate", "--config.denoiser.time_shift=0"], MODES) == 2
    told = "receive 'index' as time with config.denoiser.time_shift = 1, but here time_shift = 0"
    assert told in capsys.readouterr().err  # diffusers counts steps from 0
    for mode in ("estimate", "sample", "likelihood"):
        assert run([*base, f"--mode={mode}"], MODES) == 0, capsys.readouterr().err
    head = ["--config.network.head=simple", "--config.train.objective=npr", "--config.rule.name=npr"]
    short = ["--config.train.iterations=2", "--config.train.batch_size=4", "--config.train.sample_every=0"]
    for mode in ("train", "sample"):
        assert run([*base, *head, *short, f"--mode={mode}"], MODES) == 0, capsys.readouterr().err
    tuned = [f"--workdir={tmp_path / 'tuned'}", *given, *short]
    assert run(["main.py", "--config=configs/base.py", "--mode=train", *tuned], MODES) == 0, capsys.readouterr().err
    assert read_weights(tmp_path / "tuned" / "weights.safetensors").keys() == state.keys()
    capsys.readouterr()
    nothing = ["main.py", "--config=configs/base.py", f"--workdir={tmp_path / 'none'}", *given, *head, "--mode=sample"]
    assert run(nothing, MODES) == 2
    assert "no trained head was found" in capsys.readouterr().err
    assert run([*base, "--mode=sample", "--config.data.name=patches"], MODES) == 2
    assert "for images of shape (1, 8, 8), but the data are (3, 32, 32)" in capsys.readouterr().err


def test_weights_of_one_s_own_have_the_folder_s_names(tmp_path: Path) -> None:
    network = built(tmp_path, SMALL)
    save_weights(tmp_path / "weights.safetensors", network.state_dict(), {})
    state: dict[str, Tensor] = read_weights(tmp_path / "weights.safetensors")
    assert state.keys() == diffusers.UNet2DModel.from_config(SMALL).state_dict().keys()


def test_classes_of_a_folder_are_known_before_it_is_built(tmp_path: Path) -> None:
    made, own = load_config("configs/base.py")
    where = folder(tmp_path, {**SMALL, "num_class_embeds": 5})
    own.table.update(made, {"network.name": "diffusers", "network.pretrained": str(where), "process.steps": 40})
    with pytest.raises(UserError, match=r"is told 5 classes .*, but the train labels of data set 'digits' run"):
        Session.make(made, tmp_path / "run", own, trains=True)
