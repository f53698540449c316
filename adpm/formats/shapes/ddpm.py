"""DDPM's U-Net in the layout of pytorch_diffusion, read off its state dict."""

from __future__ import annotations

from itertools import count, takewhile

from adpm.formats.shapes.shape import Shape, Sizes, equal, multiples, reader

_STEM, _TIME, _OUT = "conv_in.weight", "temb.dense.0.weight", "conv_out.weight"


def _read(sizes: Sizes) -> Shape:
    width, channels = sizes[_STEM][:2]
    levels = [_blocks(sizes, level) for level in takewhile(lambda n: _block(n, 0) in sizes, count())]
    head = "none"
    if "conv_out2.weight" in sizes:
        head = "complex" if "before_out.conv1.weight" in sizes else "simple"
    return Shape(
        "ddpm",
        "a DDPM",
        channels,
        width,
        multiples([blocks[0] for blocks in levels], width),
        equal([len(blocks) for blocks in levels]),
        tuple(n for n in range(len(levels)) if f"down.{n}.attn.0.q.weight" in sizes),
        lambda level, side: side // 2**level,
        "attention_resolutions",
        sizes[_OUT][0],
        head,
        usual={"process": "linear", "steps": 1000, "time_shift": 1, "predicts": "eps", "label": "index", "low": -1.0},
    )


def _block(level: int, block: int) -> str:
    return f"down.{level}.block.{block}.conv1.weight"


def _blocks(sizes: Sizes, level: int) -> list[int]:
    """Widths of a level's blocks."""
    return [sizes[_block(level, i)][0] for i in takewhile(lambda i: _block(level, i) in sizes, count())]


READER = reader("DDPM's", lambda sizes: {_STEM, _TIME, _OUT} <= sizes.keys(), _read)
