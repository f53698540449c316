"""EDM's networks and their pickles, written anew for tests: the same names, attributes and arithmetic, small.

A pickle holds calls of `torch_utils.persistence._reconstruct_persistent_obj` with a class's name, its source and its
attributes. The source here would touch a file if anybody ran it.
"""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PLACES = ("torch_utils", "torch_utils.persistence")


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> object:
    exec(meta["module_src"], {})
    raise AssertionError("the source stored in a pickle was run")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@contextmanager
def _importable() -> Iterator[None]:
    """EDM's module by its name, as long as a pickle is written."""
    for place in _PLACES:
        sys.modules[place] = ModuleType(place)
    sys.modules[_PLACES[1]]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for place in _PLACES:
            del sys.modules[place]


class Persistent(nn.Module):
    """A module that is pickled with its source."""

    source = ""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._init_args, self._init_kwargs = (), options

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": type(self).__name__}
        return _reconstruct_persistent_obj, ({**meta, "state": self.__dict__},)


class Linear(Persistent):
    def __init__(self, c_in: int, c_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in) / math.sqrt(c_in))
        self.bias = nn.Parameter(0.1 * torch.randn(c_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv2d(Persistent):
    """A convolution after (or, fused on the way down, before) resampling by a separable filter."""

    def __init__(self, c_in: int, c_out: int, kernel: int, way: int = 0, taps: list[int] | None = None) -> None:
        super().__init__()
        self.way, self.fused = way, kernel == 3 and c_out != c_in and way < 0 and c_in <= 3
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel) / math.sqrt(c_in * kernel**2))
        self.bias = nn.Parameter(0.1 * torch.randn(c_out))
        f = torch.tensor(taps or [1, 1], dtype=torch.float32)
        self.register_buffer("resample_filter", (f.outer(f) / f.sum() ** 2)[None, None] if way else None)

    def forward(self, x: Tensor) -> Tensor:
        pad = self.weight.shape[-1] // 2
        if not self.way:
            return F.conv2d(x, self.weight, self.bias, padding=pad)
        f, channels = self.resample_filter, x.shape[1]
        around = (f.shape[-1] - 1) // 2
        if self.way > 0:
            x = F.conv_transpose2d(x, 4 * f.tile(channels, 1, 1, 1), groups=channels, stride=2, padding=around)
        else:
            x = F.conv2d(x, f.tile(channels, 1, 1, 1), groups=channels, stride=2, padding=around)
        return F.conv2d(x, self.weight, self.bias, padding=pad)


class PyramidDown(Conv2d):
    """The fused order: the convolution at full size on a wider border, then the filter with stride."""

    def forward(self, x: Tensor) -> Tensor:
        f, channels = self.resample_filter, self.weight.shape[0]
        x = F.conv2d(x, self.weight, padding=1 + (f.shape[-1] - 1) // 2)
        return F.conv2d(x, f.tile(channels, 1, 1, 1), self.bias, groups=channels, stride=2)


PyramidDown.__name__ = "Conv2d"


class GroupNorm(Persistent):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_groups, self.eps = min(32, channels // 4), 1e-6
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(channels))
        self.bias = nn.Parameter(0.1 * torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class UNetBlock(Persistent):
    def __init__(
        self, c_in: int, c_out: int, c_emb: int, way: int = 0, attends: bool = False, taps: Any = None
    ) -> None:
        super().__init__()
        self.out_channels, self.skip, self.qkv = c_out, None, None
        self.norm0, self.conv0 = GroupNorm(c_in), Conv2d(c_in, c_out, 3, way, taps)
        self.affine, self.norm1, self.conv1 = Linear(c_emb, c_out), GroupNorm(c_out), Conv2d(c_out, c_out, 3)
        if way or c_in != c_out:
            self.skip = Conv2d(c_in, c_out, 1, way, taps)
        if attends:
            self.norm2 = GroupNorm(c_out)
            self.qkv, self.proj = Conv2d(c_out, 3 * c_out, 1), Conv2d(c_out, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x))) + self.affine(emb)[:, :, None, None]
        h = self.conv1(F.silu(self.norm1(h)))
        x = (h + (self.skip(x) if self.skip is not None else x)) * math.sqrt(0.5)
        if self.qkv is None:
            return x
        b, c, *_ = x.shape
        q, k, v = self.qkv(self.norm2(x)).reshape(b, c, 3, -1).unbind(2)
        attention = (q.mT @ k / math.sqrt(c)).softmax(2)
        return (self.proj((v @ attention.mT).reshape(x.shape)) + x) * math.sqrt(0.5)


class PositionalEmbedding(Persistent):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.half = channels // 2

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * 1e-4 ** (torch.arange(self.half) / (self.half - 1))
        return torch.cat([angles.cos(), angles.sin()], 1)


class FourierEmbedding(Persistent):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * 2 * math.pi * self.freqs
        return torch.cat([angles.cos(), angles.sin()], 1)


class SongUNet(Persistent):
    """Two levels, one block each, attention on the finer; DDPM++, or NCSN++ if `fourier`."""

    def __init__(self, side: int, channels: int, width: int, fourier: bool, **options: Any) -> None:
        super().__init__(img_resolution=side, in_channels=channels, out_channels=channels, **options)
        taps, noise, emb, wide = [1, 3, 3, 1] if fourier else [1, 1], width * (1 + fourier), 4 * width, 2 * width
        self.map_noise = FourierEmbedding(noise) if fourier else PositionalEmbedding(noise)
        self.map_label, self.map_augment = None, Linear(9, noise, bias=False)
        self.map_layer0, self.map_layer1 = Linear(noise, emb), Linear(emb, emb)
        small, enc, dec = side // 2, nn.ModuleDict(), nn.ModuleDict()
        enc[f"{side}x{side}_conv"] = Conv2d(channels, width, 3)
        enc[f"{side}x{side}_block0"] = UNetBlock(width, width, emb, attends=True)
        enc[f"{small}x{small}_down"] = UNetBlock(width, width, emb, way=-1, taps=taps)
        if fourier:
            enc[f"{small}x{small}_aux_residual"] = PyramidDown(channels, width, 3, way=-1, taps=taps)
        enc[f"{small}x{small}_block0"] = UNetBlock(width, wide, emb)
        dec[f"{small}x{small}_in0"] = UNetBlock(wide, wide, emb, attends=True)
        dec[f"{small}x{small}_in1"] = UNetBlock(wide, wide, emb)
        dec[f"{small}x{small}_block0"] = UNetBlock(wide + wide, wide, emb)
        dec[f"{small}x{small}_block1"] = UNetBlock(wide + width, wide, emb)
        dec[f"{side}x{side}_up"] = UNetBlock(wide, wide, emb, way=1, taps=taps)
        dec[f"{side}x{side}_block0"] = UNetBlock(wide + width, width, emb)
        dec[f"{side}x{side}_block1"] = UNetBlock(width + width, width, emb, attends=True)
        dec[f"{side}x{side}_aux_norm"] = GroupNorm(width)
        dec[f"{side}x{side}_aux_conv"] = Conv2d(width, channels, 3)
        self.enc, self.dec = enc, dec

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        cosines, sines = self.map_noise(noise).chunk(2, 1)
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(torch.cat([sines, cosines], 1)))))
        skips, pyramid = [], x
        for name, layer in self.enc.items():
            if "residual" in name:
                pyramid = x = skips[-1] = (x + layer(pyramid)) / math.sqrt(2)
                continue
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if "aux" in name:
                x = layer(F.silu(x)) if "conv" in name else layer(x)
                continue
            x = torch.cat([x, skips.pop()], 1) if "block" in name else x
            x = layer(x, emb)
        return x


class VPPrecond(Persistent):
    """D(x; sigma) = x - sigma F(x / sqrt(sigma^2 + 1); 999 t)."""

    def __init__(self, model: nn.Module, side: int) -> None:
        super().__init__()
        self.img_resolution, self.label_dim, self.model = side, 0, model


class VEPrecond(VPPrecond):
    """D(x; sigma) = x + sigma F(x; log(sigma / 2))."""


class EDMPrecond(VPPrecond):
    """D(x; sigma) = c_skip x + c_out F(c_in x; log(sigma) / 4)."""

    def __init__(self, model: nn.Module, side: int, spread: float = 0.5) -> None:
        super().__init__(model, side)
        self.sigma_data = spread

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        whole = sigma**2 + self.sigma_data**2
        noise = torch.full((len(x),), math.log(sigma) / 4)
        out: Tensor = self.model(x / math.sqrt(whole), noise)
        return self.sigma_data**2 / whole * x + sigma * self.sigma_data / math.sqrt(whole) * out


class iDDPMPrecond(VPPrecond):  # noqa: N801 - EDM's name
    """Around networks of Improved DDPM."""


def write(path: Path, content: object, source: str = "raise SystemExit('ran')") -> Path:
    """A pickle with this source in the place of the modules'."""
    Persistent.source = source
    with _importable():
        path.write_bytes(pickle.dumps(content))
    return path


class Trap:
    """An object that touches a file when it is unpickled as pickle does it."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.victim,)
