"""Any checkpoint that this project knows: the file says the network, the data set the size of images.

    python main.py --config=configs/any.py --config.network.pretrained=FILE --config.data.folder=IMAGES --mode=sample

Images of other sizes are resized and cut by config.data.size; config.data.name=arrays takes them from an npz.

What no file says (schedule, label, prediction, range) is taken as published files of its kind have it, told, and set
by the usual fields, such as --config.process.name=cosine. `--mode=inspect` says what a file is.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from adpm.run.families import house
from configs import base

_OPEN = ("denoiser.predicts", "denoiser.label", "denoiser.time_shift", "denoiser.time_scale", "data.low", "data.high")
"""And all of the process."""


def get_config(variant: str = "") -> ConfigDict:
    config = base.get_config()
    config.data.name = "folder"
    config.network.name = "file"
    table = house().table
    table.unset(config, (*_OPEN, *(name for name in table.names if name.startswith("process."))))
    config.moments.batch_size = 128
    return base.with_variant(config, variant, {})
