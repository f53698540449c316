"""The classifier of noisy images and guided-diffusion's blocks: sizes as published, attention and resizing by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adpm.errors import UserError
from adpm.nn.encoder import AttentionPool, Encoder, classes_in, renamed
from adpm.nn.iddpm import build
from adpm.nn.iddpm_layers import ResidualBlock

LEVELS = (1, 1, 2, 2, 4, 4)


def published(classes: int) -> Encoder:
    settings = {"width": 128, "channel_mult": LEVELS, "num_res_blocks": 2, "attention_downsample": (8, 16, 32)}
    with torch.device("meta"):
        return Encoder((3, 256, 256), classes, head_channels=64, **settings)


def small() -> Encoder:
    torch.manual_seed(0)
    settings = {"width": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "head_channels": 8, "dropout": 0.0}
    return Encoder((1, 8, 8), 3, attention_downsample=(2,), **settings).eval()


def numbers(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_published_classifier_has_its_size_and_features() -> None:
    """256x256_classifier.pt is a file of 54.1 million numbers; EGSDE's features are 512 maps of 8x8."""
    network = published(1000)
    assert numbers(network) == 54_096_360
    with torch.device("meta"):
        x, t = torch.zeros(2, 3, 256, 256), torch.zeros(2)
        assert network.features(x, t).shape == (2, 512, 8, 8) and network(x, t).shape == (2, 1000)


def test_the_published_network_of_dogs_has_its_size_and_names() -> None:
    """A way down and up by residual blocks, heads of 64 channels: 93.6 million numbers."""
    with torch.device("meta"):
        settings = {"model_channels": 128, "channel_mult": LEVELS, "num_res_blocks": 1, "attention_downsample": (16,)}
        network = build((3, 256, 256), head_channels=64, updown=True, learned_variance=True, **settings)
        assert network(torch.zeros(1, 3, 256, 256), torch.zeros(1)).shape == (1, 6, 256, 256)
    names = network.state_dict().keys()
    assert numbers(network) == 93_563_910
    assert "input_blocks.2.0.in_layers.2.weight" in names and "input_blocks.2.0.op.weight" not in names
    assert "output_blocks.1.1.in_layers.0.weight" in names  # doubles the side of the coarsest level
    assert [m.heads for m in network.modules() if hasattr(m, "heads")] == [8] * 4


def test_pooling_by_attention_is_the_one_by_loops() -> None:
    torch.manual_seed(1)
    pool, x = AttentionPool(2, 12, 3, 5).double(), torch.randn(2, 12, 2, 2, dtype=torch.float64)
    flat = x.flatten(2)
    tokens = torch.cat([flat.mean(2, keepdim=True), flat], 2) + pool.positional_embedding
    q, k, v = (pool.qkv_proj.weight[:, :, 0] @ tokens + pool.qkv_proj.bias[:, None]).chunk(3, 1)
    heads = []
    for head in range(3):
        own = slice(4 * head, 4 * head + 4)
        weight = torch.softmax(q[:, own, 0][:, None] @ k[:, own] / math.sqrt(4.0), 2)
        heads.append((weight @ v[:, own].mT)[:, 0])
    wanted = torch.cat(heads, 1) @ pool.c_proj.weight[:, :, 0].mT + pool.c_proj.bias
    torch.testing.assert_close(pool(x), wanted)


@pytest.mark.parametrize("resize", [torch.nn.AvgPool2d(2), torch.nn.Upsample(scale_factor=2)])
def test_a_block_resizes_before_its_first_convolution(resize: torch.nn.Module) -> None:
    torch.manual_seed(2)
    block = ResidualBlock(4, 4, 6, True, 0.0, resize).double()
    torch.nn.init.normal_(block.out_layers[3].weight)
    x, emb = torch.randn(2, 4, 4, 4, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    h = block.in_layers[2](resize(F.silu(block.in_layers[0](x))))
    scale, shift = block.emb_layers(emb)[:, :, None, None].chunk(2, 1)
    h = block.out_layers[3](F.silu(block.out_layers[0](h) * (1 + scale) + shift))
    torch.testing.assert_close(block(x, emb), resize(x) + h)
    assert block.state_dict().keys() == ResidualBlock(4, 4, 6, True, 0.0).state_dict().keys()


def test_logits_depend_on_the_time_and_are_read_off_the_features() -> None:
    network, x = small(), torch.randn(3, 1, 8, 8)
    torch.nn.init.normal_(network.middle_block[2].out_layers[3].weight)
    early, late = (network(x, torch.full((3,), t)) for t in (5.0, 900.0))
    assert early.shape == (3, 3) and not torch.allclose(early, late)
    torch.testing.assert_close(network.out(network.features(x, torch.full((3,), 5.0))), early)


def test_released_extractors_are_read_under_our_names() -> None:
    own = small().state_dict()
    released = {name.replace("out.", "I2Iout.", 1) if name.startswith("out.") else name: v for name, v in own.items()}
    assert released.keys() != own.keys() and renamed(released).keys() == own.keys() and classes_in(own) == 3
    with pytest.raises(UserError, match="no weights of a classifier of noisy images"):
        classes_in({"weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": 7}, "`width` = 7"),
        ({"head_channels": 5}, "`head_channels` = 5 must divide the 16 channels"),
        ({"attention_downsample": (4,)}, "the levels of this network are 1, 2"),
        ({"channel_mult": (1, 1, 1, 1, 1)}, "levels for sides divisible by 16"),
    ],
)
def test_numbers_that_no_network_has_are_refused(changes: dict[str, object], told: str) -> None:
    settings = {"width": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "head_channels": 8}
    with pytest.raises(UserError, match=told):
        Encoder((1, 8, 8), 3, **{**settings, **changes})


def test_images_of_another_size_are_refused() -> None:
    def call(x: Tensor) -> Tensor:
        return small()(x, torch.zeros(len(x)))

    with pytest.raises(UserError, match=r"built for images of shape \(1, 8, 8\)"):
        call(torch.zeros(1, 1, 4, 4))
