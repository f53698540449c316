"""score_sde's networks, read off their one list of layers; which level a layer belongs to follows from counting.

Of n residual blocks that do not resample, L levels with B blocks on the way down have L B there, two in the middle and
L (B + 1) on the way up; L - 1 blocks resample on either way, and these alone have a convolution around them at equal
width.
"""

from __future__ import annotations

from itertools import count, takewhile
from typing import Any

from adpm.formats.shapes.shape import Shape, Sizes, multiples, reader

_FIRST, _FREQUENCIES = ("all_modules.0.weight", "all_modules.1.weight"), "all_modules.0.W"


def _read(sizes: Sizes) -> Shape:
    fourier = _FREQUENCIES in sizes
    stem = 2 + fourier
    width, channels = sizes[f"all_modules.{stem}.weight"][:2]
    layers = [_sides(sizes, n) for n in takewhile(lambda n: any(p in sizes for p in _names(n)), count())]
    resampling = sum(1 for layer in layers if layer.get("resamples"))
    blocks = [n for n, layer in enumerate(layers) if layer and not layer.get("resamples") and "out" in layer]
    levels = resampling // 2 + 1
    per_level, rest = divmod(len(blocks) - 2 - levels, 2 * levels)
    if rest or per_level < 1 or resampling % 2:
        raise ValueError(f"{len(blocks)} blocks and {resampling} that resample make no levels")
    firsts = [blocks[level * per_level] for level in range(levels)]
    has_head, has_block = "conv_out2.weight" in sizes, "before_out2.Conv_0.weight" in sizes
    usual: dict[str, Any] = {"process": "vp", "t_min": 1e-5, "label": "time_999", "predicts": "eps", "low": -1.0}
    if fourier:
        usual = {"process": "ve", "t_min": 1e-5, "label": "sigma", "predicts": "score", "low": 0.0}
    return Shape(
        "score_sde",
        f"a score_sde {'VE' if fourier else 'VP'}",
        channels,
        width,
        multiples([layers[n]["out"] for n in firsts], width),
        per_level,
        tuple(level for level, n in enumerate(firsts) if f"all_modules.{n + 1}.NIN_0.W" in sizes),
        lambda level, side: side // 2**level,
        "attention_resolutions",
        channels,
        ("complex" if has_block else "simple") if has_head else "none",
        {"variant": "ve" if fourier else "vp"},
        usual=usual,
        fixed={"label": "sigma"} if fourier else {},
    )


def _names(n: int) -> tuple[str, ...]:
    """Entries of which every layer has one."""
    kinds = ("weight", "W", "GroupNorm_0.weight", "Conv2d_0.weight")
    return tuple(f"all_modules.{n}.{kind}" for kind in kinds)


def _sides(sizes: Sizes, n: int) -> dict[str, int]:
    """A residual block's width, and whether it resamples; nothing for other layers."""
    conv = sizes.get(f"all_modules.{n}.Conv_0.weight")
    if conv is None:
        return {}
    around = f"all_modules.{n}.Conv_2.weight" in sizes
    return {"out": conv[0], "resamples": int(around and conv[0] == conv[1])}


READER = reader(
    "score_sde's",
    lambda sizes: set(_FIRST) <= sizes.keys() or {_FREQUENCIES, _FIRST[1]} <= sizes.keys(),
    _read,
)
