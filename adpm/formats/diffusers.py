"""Folders of diffusers: `config.json` beside `diffusion_pytorch_model.safetensors` or `.bin`; and pipelines of them.

A `UNet2DModel` whose config makes it the U-Net of DDPM (Ho et al. 2020) is given the names of our family `ddpm`. Its
tensors are the same but for attention: linear there, convolutions of 1x1 here. It has two spellings, `to_q` and, in
older uploads, `query`. A pipeline's scheduler says the schedule and what is predicted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adpm.conventions import PREDICTS, predicts_of, process_of
from adpm.errors import UserError
from adpm.families import Kind
from adpm.formats.checkpoint import Checkpoint, FormatFacts, Opened, State, as_state, is_state, unknown_layout
from adpm.formats.opening import opened
from adpm.formats.shapes.shape import WITH_HEAD as _WITH_HEAD
from adpm.formats.shapes.shape import Shape
from adpm.nn.diffusers_folder import CLASS, WEIGHTS, network_folder, read_config, uncalled
from adpm.reading import read_json

_CURRENT = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Deprecated spelling of a linear layer of attention -> the current one."""

_RESIDUAL = {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"} | {
    name: name for name in ("norm1", "conv1", "norm2", "conv2")
}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
"""Layers of a block in `ddpm` -> in diffusers."""

_DDPM: dict[str, Any] = {
    "act_fn": "silu",
    "add_attention": True,
    "attention_head_dim": None,
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 0,
    "downsample_type": "conv",
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}
"""Options of UNet2DModel, and the values that make it DDPM's."""

_DEFAULTS: dict[str, Any] = {
    "attention_head_dim": 8,
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-05,
}
"""What UNet2DModel takes where a config says nothing, as far as that is not DDPM's."""

SCHEDULER = Path("scheduler", "scheduler_config.json")
"""In a pipeline."""

_SETTLED: dict[str, Any] = {"label": "index", "time_shift": 1}
"""See `adpm.conventions.label_of`; the label's scale is known with the number of steps."""

_USUAL: dict[str, Any] = {"process": "linear", "steps": 1000, "predicts": "eps", "low": -1.0}

_BLOCKS = frozenset({"DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D", "UNetMidBlock2D"})


def current_names(state: State) -> dict[str, Tensor]:
    """A state dict of diffusers with the current spelling of attention."""

    def spelled(name: str) -> str:
        match = re.fullmatch(r"(.*\battentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
        return f"{match[1]}.{_CURRENT[match[2]]}.{match[3]}" if match else name

    return {spelled(name): tensor for name, tensor in state.items()}


def deviations(config: Mapping[str, Any]) -> list[str]:
    """Options of a UNet2DModel that are not DDPM's, as "name = value"."""
    found = {name: config.get(name, _DEFAULTS.get(name, right)) for name, right in _DDPM.items()}
    told = [f"{name} = {value!r}" for name, value in found.items() if value != _DDPM[name]]
    blocks = [*config.get("down_block_types", ()), *config.get("up_block_types", ())]
    return told + [f"a {block}" for block in dict.fromkeys(blocks) if block not in _BLOCKS]


def layer_names(levels: int, blocks: int) -> dict[str, str]:
    """Layers of the family `ddpm` -> of a UNet2DModel, which counts the way up from the coarsest level.

    Args:
        levels: of the network.
        blocks: at least as many as a level has on the way up.
    """
    out = {"temb.dense.0": "time_embedding.linear_1", "temb.dense.1": "time_embedding.linear_2"}
    out |= {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}
    places = [("mid.block_1", "mid_block.resnets.0"), ("mid.block_2", "mid_block.resnets.1")]
    attentions = [("mid.attn_1", "mid_block.attentions.0")]
    for level in range(levels):
        for way, number in (("down", level), ("up", levels - 1 - level)):
            theirs = f"{way}_blocks.{number}"
            out[f"{way}.{level}.{way}sample.conv"] = f"{theirs}.{way}samplers.0.conv"
            places += [(f"{way}.{level}.block.{i}", f"{theirs}.resnets.{i}") for i in range(blocks)]
            attentions += [(f"{way}.{level}.attn.{i}", f"{theirs}.attentions.{i}") for i in range(blocks)]
    for parts, pairs in ((_RESIDUAL, places), (_ATTENTION, attentions)):
        out |= {f"{a}.{ours}": f"{b}.{theirs}" for a, b in pairs for ours, theirs in parts.items()}
    return out


def to_ddpm(state: State, levels: int) -> dict[str, Tensor]:
    """A UNet2DModel's state dict, in current names, under those of `ddpm`; other names stay as they are."""
    back = {theirs: ours for ours, theirs in layer_names(levels, _blocks(state)).items()}
    return _renamed(state, back, lambda layer, weight: weight[:, :, None, None] if _linear(layer, back) else weight)


def from_ddpm(state: State, levels: int) -> dict[str, Tensor]:
    """The inverse of `to_ddpm`."""
    names = layer_names(levels, _blocks(state))
    back = {theirs: ours for ours, theirs in names.items()}

    def flat(layer: str, weight: Tensor) -> Tensor:
        return weight[:, :, 0, 0] if _linear(names.get(layer, ""), back) else weight

    return _renamed(state, names, flat)


def _linear(layer: str, known: Mapping[str, str]) -> bool:
    """Whether a layer of a UNet2DModel is one of attention's linear layers."""
    return layer in known and re.search(r"\.attentions\.\d+\.to_", layer) is not None


def _renamed(state: State, layers: Mapping[str, str], reshaped: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        out[f"{layers.get(layer, layer)}.{kind}"] = reshaped(layer, tensor) if tensor.ndim > 1 else tensor
    return out


def _blocks(state: State) -> int:
    """One more than the largest number of a block within a level, by either spelling."""
    found = (re.search(r"\.(?:resnets|block|attn)\.(\d+)\.", name) for name in state)
    return 1 + max((int(match[1]) for match in found if match), default=0)


def config_of(shape: Shape) -> dict[str, Any] | None:
    """The config of the UNet2DModel that a network of the family `ddpm` is; None for others."""
    grouped = shape.width % _DDPM["norm_num_groups"] == 0  # narrower networks have fewer groups here
    if shape.family not in _FAMILIES or shape.head in _WITH_HEAD or shape.classes or not grouped:
        return None
    down = ["AttnDownBlock2D" if level in shape.attends else "DownBlock2D" for level in range(len(shape.mult))]
    return {
        **_DDPM,
        "_class_name": CLASS,
        "block_out_channels": [mult * shape.width for mult in shape.mult],
        "down_block_types": down,
        "up_block_types": [block.replace("Down", "Up") for block in reversed(down)],
        "in_channels": shape.channels,
        "out_channels": shape.outputs,
        "layers_per_block": shape.blocks,
        "mid_block_type": "UNetMidBlock2D",
        "dropout": 0.0,
    }


_FAMILIES = frozenset({"ddpm"})


# Folders


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, state dict in current names) of a network.

    Raises:
        UserError: if a file is missing or damaged.
    """
    config = read_config(folder)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"'{folder}' holds no weights: {' or '.join(WEIGHTS)} is looked for there.")
    content = opened(file).content
    if not is_state(content):
        raise unknown_layout(file)
    return config, current_names(as_state(content))


def _convert(found: Opened) -> Checkpoint:
    folder = network_folder(found.path)
    assert folder is not None
    config, state = read_folder(folder)
    told: dict[str, Any] = {"side": _whole(config.get("sample_size")), "settled": _SETTLED, "usual": _USUAL}
    told |= _scheduler(folder)
    kind = config.get("_class_name")
    if kind != CLASS:
        return Checkpoint(state, unusable=f"it is a {kind} of diffusers, and only UNet2DModel is read", **told)
    if others := deviations(config):
        why = f"it is a UNet2DModel with {', '.join(others[:3])}, which is not DDPM's"
        return Checkpoint(state, unusable=why, kept_by="" if uncalled(config) else "diffusers", **told)
    return Checkpoint(to_ddpm(state, len(config["block_out_channels"])), native=state, **told)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _scheduler(folder: Path) -> dict[str, Any]:
    """What a scheduler beside the network says: schedule and prediction, or why these are not to be had here."""
    places = (folder / SCHEDULER.name, folder.parent / SCHEDULER)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return {}
    config = read_json(file)
    try:
        process, predicts = process_of(config), predicts_of(config)
    except UserError as error:
        return {"unfollowed": str(error)}
    schedule = torch.as_tensor(process.alpha(process.times[1:]) ** 2)
    return {"schedule": schedule, "predicts": predicts, "settled": {**_SETTLED, "time_scale": 1.0}}


def scheduler_of(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The config of the scheduler that goes with a checkpoint; None where schedule or prediction is not known to it."""
    name = next((theirs for theirs, ours in PREDICTS.items() if ours == checkpoint.predicts), None)
    if checkpoint.schedule is None or name is None:
        return None
    squared = checkpoint.schedule.double()
    betas = 1.0 - squared / torch.cat([torch.ones(1, dtype=torch.float64), squared[:-1]])
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": len(betas),
        "beta_start": float(betas[0]),
        "beta_end": float(betas[-1]),
        "beta_schedule": "linear",  # goes behind betas that are given
        "trained_betas": betas.tolist(),
        "prediction_type": name,
    }


FOLDER = Kind(
    _convert,
    "a folder of diffusers, config.json and weights",
    FormatFacts(lambda found: network_folder(found.path) is not None),
)
