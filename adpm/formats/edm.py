"""EDM's pickles (Karras et al. 2022): a dict with the averaged network `ema`, an object within a preconditioning.

The networks `SongUNet` are those of score_sde in other clothes: with positional embedding and box filters DDPM++, with
Fourier embedding, residual input pyramid and the filter [1, 3, 3, 1] NCSN++. They are converted where what is around
them computes as score_sde does: within `VPPrecond` the network's output is eps, within `VEPrecond` it is sigma times
the score, and within `EDMPrecond` DDPM++ gives -v of the data divided by 0.5 (see `adpm.parametrisation`). Others
(NCSN++ within EDMPrecond, iDDPMPrecond, DhariwalUNet) are told apart and left.

Rows of q, k and v alternate in EDM's attention; score_sde has a matrix for each, stored (in, out).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from adpm.families import Kind
from adpm.formats.checkpoint import AS_STORED, EMA, RAW, Checkpoint, FormatFacts, Opened
from adpm.formats.records import Record

_PREDICTS = {"VPPrecond": ("positional", "eps"), "VEPrecond": ("fourier", "score"), "EDMPrecond": ("positional", "edm")}
"""Preconditionings that score_sde's networks have by themselves -> embedding and prediction of these networks."""

_SETTLED: dict[str, dict[str, Any]] = {"EDMPrecond": {"label": "edm", "low": -2.0, "high": 2.0, "process": "vp"}}
# VP's times from about EDM's smallest sigma, 0.002
_USUAL: dict[str, dict[str, Any]] = {"EDMPrecond": {"t_min": 1.6e-4}}
_HALF = {"EDMPrecond": 0.5}
"""Preconditioning -> its sigma_data, on which range and label stand."""

_NETWORK = "SongUNet"
_DEFAULTS: dict[str, Any] = {
    "label_dim": 0,
    "channel_mult_emb": 4,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
"""What makes a SongUNet DDPM++, which is what it is by default."""

_VARIANTS: dict[str, dict[str, Any]] = {
    "positional": _DEFAULTS,
    "fourier": {
        **_DEFAULTS,
        "embedding_type": "fourier",
        "channel_mult_noise": 2,
        "encoder_type": "residual",
        "resample_filter": [1, 3, 3, 1],
    },
}
_RESIDUAL = {
    "norm0": "GroupNorm_0",
    "conv0": "Conv_0",
    "affine": "Dense_0",
    "norm1": "GroupNorm_1",
    "conv1": "Conv_1",
    "skip": "Conv_2",
}
"""Layers of a block in EDM -> in score_sde."""

_FILTER = frozenset({"resample_filter"})

Layer = dict[str, Tensor]


def _network_of(stored: Any) -> tuple[Any, str]:
    """(the object, which weights those are): what EDM's training writes, or an object by itself."""
    if isinstance(stored, Mapping):
        return (stored["ema"], EMA) if "ema" in stored else (stored.get("net"), RAW)
    return stored, AS_STORED


def _convert(file: Opened) -> Checkpoint:
    whole, chosen = _network_of(file.content)
    network, side = whole.child("model"), whole.attributes.get("img_resolution")
    told: dict[str, Any] = {"chosen": chosen, "side": side if isinstance(side, int) else None}
    if network is None or (why := deviation(whole, network)):
        why = f"it is an object {whole.kind} without a network" if network is None else why
        return Checkpoint(dict(whole.tensors()), unusable=why, **told)
    more = network.child("map_augment") is not None
    remarks = ("its layer for augmentation labels is left out: no label is given when it samples",) if more else ()
    state = {f"all_modules.{i}.{name}": t for i, layer in enumerate(_layers(network)) for name, t in layer.items()}
    told |= {"predicts": _PREDICTS[whole.kind][1], "settled": _SETTLED.get(whole.kind, {})}
    told |= {"usual": _USUAL.get(whole.kind, {})}
    return Checkpoint(state, remarks=remarks, **told)


def deviation(whole: Record, network: Record) -> str:
    """Why a preconditioned network is none of score_sde's, in words; "" where it is one."""
    told = f"it is EDM's {network.kind} within {whole.kind}"
    if whole.kind not in _PREDICTS:
        return f"{told}, whose output is neither eps, x0 nor the score of this project's networks"
    spread = whole.attributes.get("sigma_data")
    if (due := _HALF.get(whole.kind)) is not None and spread != due:
        return f"{told} of sigma_data = {spread}, and only {due} is read"
    if network.kind != _NETWORK:
        return f"{told}, and only {_NETWORK} is one of score_sde's networks"
    given = network.attributes.get("_init_kwargs")
    options = {**_DEFAULTS, **(given if isinstance(given, Mapping) else {})}
    right = _VARIANTS[_PREDICTS[whole.kind][0]]
    others = [f"{name} = {options[name]!r}" for name in right if _plain(options[name]) != _plain(right[name])]
    return f"{told} with {', '.join(others)}, which is none of score_sde's networks" if others else ""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _layers(network: Record) -> Iterator[Layer]:
    """score_sde's layers in their order, which is that of EDM's modules; a block's attention is a layer of its own."""
    for name in ("map_noise", "map_layer0", "map_layer1"):
        layer = _tensors(network.child(name))
        if layer:  # sines have none
            yield {"W": layer["freqs"]} if "freqs" in layer else layer
    for way in ("enc", "dec"):
        for name, module in _children(network.child(way)):
            if module.child("conv0") is None:  # a convolution, a norm, a step of the input pyramid
                layer = _tensors(module)
                yield {f"Conv2d_0.{n}": t for n, t in layer.items()} if "residual" in name else layer
                continue
            parts = {theirs: _tensors(module.child(ours)) for ours, theirs in _RESIDUAL.items()}
            yield {f"{part}.{n}": t for part, layer in parts.items() for n, t in layer.items()}
            if module.child("qkv") is not None:
                yield _attention(module)


def _attention(module: Record) -> Layer:
    norm, qkv, proj = (_tensors(module.child(name)) for name in ("norm2", "qkv", "proj"))
    out = {f"GroupNorm_0.{n}": t for n, t in norm.items()}
    width = qkv["weight"].shape[0] // 3
    weights, biases = qkv["weight"].reshape(width, 3, -1), qkv["bias"].reshape(width, 3)
    for i in range(3):
        out |= {f"NIN_{i}.W": weights[:, i].T.contiguous(), f"NIN_{i}.b": biases[:, i].contiguous()}
    return out | {"NIN_3.W": proj["weight"][:, :, 0, 0].T.contiguous(), "NIN_3.b": proj["bias"]}


def _tensors(module: Record | None) -> Layer:
    """Without the filter of resampling, which score_sde's layers know."""
    return {} if module is None else {name: t for name, t in module.tensors() if name not in _FILTER}


def _children(module: Record | None) -> Iterator[tuple[str, Record]]:
    found = {} if module is None else module.modules
    yield from found.items()


PICKLE = Kind(
    _convert,
    "a pickle of EDM, the network an object",
    FormatFacts(lambda file: isinstance(_network_of(file.content)[0], Record)),
)
