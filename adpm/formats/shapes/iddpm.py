"""Improved DDPM's U-Net, read off its state dict. Heads of attention leave no trace: published networks have four."""

from __future__ import annotations

from typing import Any

from adpm.formats.shapes.shape import Shape, Sizes, equal, multiples, reader

_STEM, _TIME, _OUT = "input_blocks.0.0.weight", "time_embed.0.weight", "out.2.weight"
_HEADS = {"out2.3.weight": "complex", "out2.2.weight": "simple"}
"""The last convolution of a head -> its kind; that of a complex one is told first."""

_OPENAI = {"process": "cosine", "steps": 4000, "time_shift": 1}
"""What the networks with learned variance of Improved DDPM were trained on."""


def _read(sizes: Sizes) -> Shape:
    width, channels = sizes[_STEM][:2]
    levels, attends, scaled = _levels(sizes)
    outputs = sizes[_OUT][0]
    if outputs not in (channels, 2 * channels):
        raise ValueError(f"{outputs} outputs for {channels} channels")
    usual: dict[str, Any] = {"predicts": "eps", "label": "index", "low": -1.0}
    return Shape(
        "iddpm",
        "an Improved DDPM",
        channels,
        width,
        multiples([level[0] for level in levels], width),
        equal([len(level) for level in levels]),
        tuple(attends),
        lambda level, side: 2**level,
        "attention_downsample",
        outputs,
        next((kind for name, kind in _HEADS.items() if name in sizes), "none"),
        {"scale_shift": scaled, "learned_variance": outputs == 2 * channels},
        {"num_heads": 4},
        sizes["label_emb.weight"][0] if "label_emb.weight" in sizes else 0,
        usual | (_OPENAI if outputs == 2 * channels else {"process": "linear", "steps": 1000, "time_shift": 0}),
    )


def _levels(sizes: Sizes) -> tuple[list[list[int]], list[int], bool]:
    """(widths of the blocks of each level, levels with attention, whether time scales and shifts)."""
    levels: list[list[int]] = [[]]
    attends: dict[int, None] = {}
    scaled = False
    entry = 1
    while (place := f"input_blocks.{entry}") and (
        f"{place}.0.op.weight" in sizes or f"{place}.0.out_layers.3.weight" in sizes
    ):
        entry += 1
        if f"{place}.0.op.weight" in sizes:
            levels.append([])
            continue
        levels[-1].append(sizes[f"{place}.0.out_layers.3.weight"][0])
        scaled = sizes[f"{place}.0.emb_layers.1.weight"][0] == 2 * levels[-1][-1]
        if f"{place}.1.qkv.weight" in sizes:
            attends[len(levels) - 1] = None
    return levels, list(attends), scaled


READER = reader("Improved DDPM's", lambda sizes: {_STEM, _TIME, _OUT} <= sizes.keys(), _read)
