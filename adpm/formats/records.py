"""Pickles of whole objects, such as EDM's networks, read as inert records: nothing in them is imported or run.

EDM pickles an object as a call of `torch_utils.persistence._reconstruct_persistent_obj` with a dict of class name,
source code and attributes. Its tensors are calls of torch's rebuilding functions on storages, which are files of
torch.save in themselves. The unpickler here knows these names, containers and numpy's arrays, and has functions of its
own in their place. Objects become `Record`s. Whatever else a pickle names is refused before it is looked up.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adpm.pickles import numpy_names, safe_load

LARGEST = 2**31
"""Bytes of a pickle that is read into memory; the largest that EDM published has 1.2e9."""


class Record:
    """An object of a pickle: what it was, and its attributes.

    Attributes:
        kind: name of its class.
        attributes: by name.
    """

    def __init__(self, kind: str, attributes: Mapping[str, Any]) -> None:
        self.kind, self.attributes = kind, dict(attributes)

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers by the names that a state dict of the module would have, in its order."""
        for group in ("_parameters", "_buffers"):
            for name, tensor in self._of(group).items():
                if isinstance(tensor, Tensor):
                    yield f"{prefix}{name}", tensor
        for name, module in self.modules.items():
            yield from module.tensors(f"{prefix}{name}.")

    @property
    def modules(self) -> dict[str, Record]:
        """The modules of this one by name."""
        return {str(name): module for name, module in self._of("_modules").items() if isinstance(module, Record)}

    def child(self, name: str) -> Record | None:
        """A module of this one; None where there is none."""
        return self.modules.get(name)

    def _of(self, group: str) -> Mapping[str, Any]:
        found = self.attributes.get(group)
        return found if isinstance(found, Mapping) else {}


def read_records(path: Path) -> Any:
    """The object in a pickle, its objects as records.

    Raises:
        pickle.UnpicklingError: if the pickle names anything that is not known here, at any depth.
        Exception: in pickle's many ways, if the file is not whole.
    """
    if path.stat().st_size > LARGEST:
        raise pickle.UnpicklingError(f"it has more than {LARGEST} bytes")
    with path.open("rb") as file:
        return _Unpickler(file).load()


class _Unpickler(pickle.Unpickler):
    """Names are looked up in a table that is made anew for every file: what a pickle does to its entries ends there."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self._known = _known()

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("torch.nn.modules.") and "." not in name:  # containers, which EDM does not wrap
            return _inert(name)
        try:
            return self._known[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to data outside itself")


def _inert(kind: str) -> type:
    """A class to take the place of another: making one takes no arguments into account, its state is kept."""

    def made(cls: type, *arguments: object, **more: object) -> Any:
        out: Any = object.__new__(cls)
        Record.__init__(out, kind, {})
        return out

    def filled(self: Record, state: Any) -> None:
        if isinstance(state, Mapping):
            self.attributes.update(state)

    return type(kind, (Record,), {"__new__": made, "__init__": lambda self, *a: None, "__setstate__": filled})


def _known() -> dict[str, Callable[..., Any]]:
    """Full name in a pickle -> what stands in for it."""

    def record(meta: Any) -> Record:
        if not (isinstance(meta, Mapping) and isinstance(meta.get("state"), Mapping)):
            raise pickle.UnpicklingError("it has a persistent object without attributes")
        return Record(str(meta.get("class_name")), meta["state"])

    def storage(content: Any) -> Any:
        if not isinstance(content, bytes):
            raise pickle.UnpicklingError("it has a storage that is no bytes")
        return safe_load(io.BytesIO(content))

    def tensor(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Tensor:
        return torch._utils._rebuild_tensor(storage, offset, size, stride)

    def dictionary(*items: Any) -> dict[Any, Any]:
        return OrderedDict(*items)

    def group(*items: Any) -> set[Any]:
        return set(*items)

    return {
        "torch_utils.persistence._reconstruct_persistent_obj": record,
        "torch.storage._load_from_bytes": storage,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": lambda data, *more: data,
        "collections.OrderedDict": _mapping(),
        "dnnlib.util.EasyDict": _mapping(),
        "builtins.set": group,
        "builtins.dict": dictionary,
        **{f"torch.{name}": dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)},
        **numpy_names(),
    }


def _mapping() -> type:
    """A dict that keeps no attributes, and takes a class's place."""
    return type("Dictionary", (OrderedDict,), {"__setstate__": lambda self, state: None})
