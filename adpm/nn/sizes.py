"""What network families ask of their numbers before they are built, and of the images that they are given."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from adpm.errors import UserError


def require_sizes(
    model_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    dropout: float,
    least: int = 2,
    name: str = "model_channels",
) -> None:
    """Refuse numbers that no network has.

    Args:
        model_channels: the time embedding's width, so even and at least `least`.
        channel_mult: widths of the levels in its units, at least 1 each.
        num_res_blocks: at least 1.
        dropout: in [0, 1).
        name: of the first parameter, for messages.

    Raises:
        UserError: naming the parameter.
    """
    if not (_whole(model_channels) and model_channels >= least and model_channels % 2 == 0):
        raise UserError(f"`{name}` = {model_channels!r} must be an even number of at least {least}.")
    if not (channel_mult and all(_whole(mult) and mult >= 1 for mult in channel_mult)):
        raise UserError(f"`channel_mult` = {tuple(channel_mult)!r} must hold a whole number of at least 1 per level.")
    if not (_whole(num_res_blocks) and num_res_blocks >= 1):
        raise UserError(f"`num_res_blocks` = {num_res_blocks!r} must be a whole number of at least 1.")
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"`dropout` = {dropout!r} must lie in [0, 1).")


def require_levels(name: str, asked: Sequence[int], levels: Sequence[int]) -> None:
    """Refuse places of attention that are no level of the network, which would select nothing.

    Args:
        name: of the parameter.
        asked: its values.
        levels: those that the network has, finest first.

    Raises:
        UserError: naming the first value that is not among them.
    """
    for value in asked:
        if value not in levels:
            known = ", ".join(str(level) for level in levels)
            raise UserError(f"`{name}` = {tuple(asked)!r} has {value!r}, but the levels of this network are {known}.")


def require_side(image_size: int, channel_mult: Sequence[int]) -> None:
    """Refuse a side that cannot be halved once per level.

    Raises:
        UserError: naming what would divide it.
    """
    multiple = 2 ** (len(channel_mult) - 1)
    if image_size % multiple:
        raise UserError(
            f"`channel_mult` has levels for sides divisible by {multiple}, "
            f"but the data are {image_size}x{image_size}; use fewer levels."
        )


def square(shape: Sequence[int], family: str) -> tuple[int, int]:
    """Channels and side of square images (C, H, H).

    Raises:
        UserError: naming the family that needs them.
    """
    channels, height, width = shape
    if height != width:
        raise UserError(f"the network '{family}' needs square images, but the data are {height}x{width}.")
    return channels, height


def require_images(x: Tensor, channels: int, side: int) -> None:
    """Refuse images of another shape than a network is built for.

    Raises:
        UserError: naming both shapes.
    """
    shape = (channels, side, side)
    if x.shape[1:] != shape:
        raise UserError(f"the network is built for images of shape {shape}, got {tuple(x.shape[1:])}.")


def require_heads(num_heads: int, widths: Sequence[int]) -> None:
    """Refuse a number of attention heads that does not divide the widths they are to share.

    Raises:
        UserError: naming the first such width.
    """
    if not (_whole(num_heads) and num_heads >= 1):
        raise UserError(f"`num_heads` = {num_heads!r} must be a whole number of at least 1.")
    for width in widths:
        if width % num_heads:
            raise UserError(f"`num_heads` = {num_heads} must divide the {width} channels that attention works on.")


def require_head_channels(head_channels: int, widths: Sequence[int]) -> None:
    """Refuse heads of attention that do not divide the widths they are to share.

    Raises:
        UserError: naming the first such width.
    """
    for width in widths:
        if width % head_channels:
            told = f"`head_channels` = {head_channels} must divide the {width} channels"
            raise UserError(f"{told} that attention works on.")


def require_classes(num_classes: int, null_class: bool) -> None:
    """Refuse numbers of classes that there are not, and a null class beside none.

    Raises:
        UserError: naming the parameter.
    """
    if not (_whole(num_classes) and num_classes >= 0):
        raise UserError(f"`num_classes` = {num_classes!r} must be a whole number, 0 for a network that is told none.")
    if null_class and not num_classes:
        raise UserError("`null_class` = True goes with classes: set `num_classes` to how many there are.")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
