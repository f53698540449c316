"""What network a state dict is of: each family in a file of its own."""

from __future__ import annotations

from adpm.families import Kind
from adpm.formats.checkpoint import State
from adpm.formats.shapes import ddpm, iddpm, score_sde
from adpm.formats.shapes.shape import Shape

READERS: dict[str, Kind] = {"iddpm": iddpm.READER, "ddpm": ddpm.READER, "score_sde": score_sde.READER}


def shape_of(state: State) -> Shape | None:
    """The network that a state dict is of; None where its names or shapes are those of none of these families."""
    sizes = {name: tensor.shape for name, tensor in state.items()}
    kind = next((kind for kind in READERS.values() if kind.facts.recognises(sizes)), None)
    if kind is None:
        return None
    try:
        shape: Shape = kind.build(sizes)
    except (KeyError, ValueError, IndexError):  # names like the family's, and not all of them
        return None
    return shape
