"""Boards as TensorBoard shows them: read by its server's own loaders, with the sizes that it keeps by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.data_ingester import DEFAULT_SIZE_GUIDANCE, DEFAULT_TENSOR_SIZE_GUIDANCE
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.data.provider import DataProvider
from tensorboard.data.server_ingester import NoDataServerError, SubprocessServerDataIngester, get_server_binary
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data
from tensorboard.util.grpc_util import ChannelCredsType

Curves = dict[str, list[tuple[int, Any]]]
"""Tag -> steps with their values, in the order in which they are shown."""


@dataclass(frozen=True)
class Run:
    """What TensorBoard shows of a run.

    Attributes:
        scalars, images: an image's value is the bytes of its PNG.
        trial: the run's row of the HParams tab; {} when it has none.
    """

    scalars: Curves
    images: Curves
    trial: dict[str, Any]


def board(folder: Path) -> dict[str, Run]:
    """All runs in a folder.

    TensorBoard has two loaders, the data server and, where that one is not there, Python; they must agree.
    """
    found = _read(_by_python(folder))
    try:
        with _by_server(folder) as provider:
            assert _read(provider) == found
    except NoDataServerError:
        pass
    return found


def _by_python(folder: Path) -> DataProvider:
    multiplexer = EventMultiplexer(
        size_guidance=DEFAULT_SIZE_GUIDANCE, tensor_size_guidance=DEFAULT_TENSOR_SIZE_GUIDANCE
    )
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return MultiplexerDataProvider(multiplexer, str(folder))


@contextmanager
def _by_server(folder: Path) -> Iterator[DataProvider]:
    """The data server, a process of its own that ends with the context."""
    ingester = SubprocessServerDataIngester(
        get_server_binary(), str(folder), reload_interval=0, channel_creds_type=ChannelCredsType.LOCAL
    )
    ingester.start()
    try:
        yield ingester.data_provider
    finally:
        ingester._stdin_handle.close()


def _read(provider: DataProvider) -> dict[str, Run]:
    where = {"ctx": RequestContext(), "experiment_id": ""}

    def curves(read: Callable[..., Any], plugin: str, value: Callable[[Any], Any]) -> dict[str, Curves]:
        found = read(**where, plugin_name=plugin, downsample=10**6)
        return {run: {tag: [(p.step, value(p)) for p in of[tag]] for tag in sorted(of)} for run, of in found.items()}

    scalars = curves(provider.read_scalars, "scalars", lambda point: point.value)
    images = curves(
        provider.read_blob_sequences,
        "images",
        lambda point: provider.read_blob(ctx=where["ctx"], blob_key=point.values[2].blob_key),  # after width and height
    )
    trials = {}
    for run, tags in provider.list_tensors(**where, plugin_name="hparams").items():
        if SESSION_START_INFO_TAG in tags:
            row = parse_session_start_info_plugin_data(tags[SESSION_START_INFO_TAG].plugin_content).hparams
            trials[run] = {name: getattr(value, value.WhichOneof("kind")) for name, value in row.items()}
    return {
        run: Run(scalars.get(run, {}), images.get(run, {}), trials.get(run, {}))
        for run in sorted(scalars.keys() | images.keys() | trials.keys())
    }
