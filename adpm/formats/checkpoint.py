"""What reading a checkpoint gives, whatever it lay in, and what is refused while it is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from adpm.errors import UserError

State = Mapping[str, Tensor]
"""Names of a network's entries -> tensors, in the file's order."""

EMA = "an average over training (EMA), stored beside the raw weights"
OURS = "the average (EMA) that this project keeps, or what was converted"
AS_STORED = "one set of weights; nothing says whether they are an average"
RAW = "raw training weights: the file holds no average"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, under the names that our networks have where one of them is meant.

    Attributes:
        state: the weights that are to be used.
        chosen: which of the stored weights they are, in words.
        schedule: alpha_n^2 for n = 1..N, where the file holds it; None: it does not.
        noise: largest and smallest sigma, where the file holds them.
        side: of the images, where the file says it.
        predicts: a prediction's name, where the file says it.
        settled: parameters of the rest that it settles.
        usual: parameters of the rest, not said, as published files of its kind have them.
        remarks: what else was found, in sentences.
        native: the weights under the names that they are stored by, for networks that keep these; {}: the same.
        unfollowed: what it says of schedule or prediction that is not to be had here, in words; "" where all is.
        unusable: why no network of ours computes what the stored one does, in words; "" where one may.
        kept_by: the family that runs such a one by the names in its file, and is told the rest by what lies beside it.
    """

    state: State
    chosen: str = AS_STORED
    schedule: Tensor | None = None
    noise: tuple[float, float] | None = None
    side: int | None = None
    predicts: str = ""
    settled: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    unfollowed: str = ""
    unusable: str = ""
    kept_by: str = ""
    native: State = field(default_factory=dict)

    def under(self, names: Collection[str]) -> State:
        """The weights under the names of a network: as stored where that is what it has, else converted."""
        return self.native if names and set(names) <= self.native.keys() else self.state


@dataclass(frozen=True)
class Opened:
    """A file or folder that has been opened, and is yet to be made sense of.

    Attributes:
        path: where it is.
        content: the object in the file; None for folders.
        metadata: of a safetensors file.
    """

    path: Path
    content: Any = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FormatFacts:
    """Attributes: recognises: whether something that was opened is in this format, by its outer layout alone."""

    recognises: Callable[[Opened], bool]


def is_state(content: object) -> TypeGuard[Mapping[Any, Tensor]]:
    """Whether an object is names -> tensors and nothing else."""
    return isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def as_state(content: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """With plain names and without gradients: Improved DDPM stores `nn.Parameter`s."""
    return {str(name): tensor.detach() for name, tensor in content.items()}


def unknown_layout(path: Path) -> UserError:
    """The refusal of what is no checkpoint in any layout."""
    return UserError(
        f"weights file '{path}' is not in a layout this project reads (a state dict, itself or under 'state_dict' "
        "or 'model', or a dict with EMA)."
    )
