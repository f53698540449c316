"""Training files of Analytic-DPM and Extended-Analytic-DPM: raw and averaged weights by the names of their models.

Analytic-DPM writes one dict, `N.ckpt.pth`; in `ema_models_states` the network is `eps_model` (CIFAR-10) or `model`
(ImageNet 64). Extended-Analytic-DPM writes a folder `N.ckpt` with a file for each entry.
"""

from __future__ import annotations

from collections.abc import Mapping

from adpm.families import Kind
from adpm.formats.checkpoint import EMA, Checkpoint, FormatFacts, Opened, is_state, unknown_layout
from adpm.formats.opening import opened
from adpm.formats.plain import checkpoint_of

_AVERAGES = "ema_models_states"
_MODELS = ("eps_model", "model")


def _dict(file: Opened) -> Checkpoint:
    models = file.content[_AVERAGES]
    state = next((models[name] for name in _MODELS if name in models), None) if isinstance(models, Mapping) else None
    if not is_state(state):
        raise unknown_layout(file.path)
    return checkpoint_of(state, EMA)


def _folder(folder: Opened) -> Checkpoint:
    file = opened(folder.path / _AVERAGES / "model.pth")
    if not is_state(file.content):
        raise unknown_layout(file.path)
    return checkpoint_of(file.content, EMA)


DICT = Kind(
    _dict,
    "a training file of Analytic-DPM, a dict with ema_models_states",
    FormatFacts(lambda file: isinstance(file.content, Mapping) and _AVERAGES in file.content),
)
FOLDER = Kind(
    _folder,
    "a training folder of Extended-Analytic-DPM, weights in ema_models_states/model.pth",
    FormatFacts(lambda file: file.path.is_dir() and (file.path.suffix == ".ckpt" or (file.path / _AVERAGES).is_dir())),
)
