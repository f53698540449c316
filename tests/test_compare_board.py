"""The TensorBoard of a comparison, read back through the loader of TensorBoard's server with its default limits."""

from __future__ import annotations

import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.data_ingester import DEFAULT_SIZE_GUIDANCE, DEFAULT_TENSOR_SIZE_GUIDANCE
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from adpm.bound import BitsPerDim
from adpm.run.compare import board
from adpm.run.compare.method import Method
from adpm.run.compare.results import Bound, Results, Row

GAUSSIAN = "reverse_gaussian"
SMALL = Method("discrete", "small", "even", GAUSSIAN, 1.0)
LEAST = Method("discrete", "small", "least_cost", GAUSSIAN, 1.0)
LARGE = Method("discrete", "large", "even", GAUSSIAN, 1.0)
DDIM = Method("ve", "small", "even", GAUSSIAN, 0.0)
EULER = Method("ve", None, "even", "euler_maruyama", None)
METHODS = (SMALL, LEAST, LARGE, DDIM, EULER)
STEPS = "steps K=3, x = 1000 log-SNR"


def row_of(of: Method, steps: int, number: int) -> Row:
    """A row whose figures follow from its number; bits/dim fall with it, below zero. No bound for eta = 0."""
    k = np.arange(steps)
    terms = np.append(0.25 + 0.5 * k, 0.125)
    terms[0] -= number
    images = np.random.default_rng(number).random((7, 1, 8, 8))
    return Row(
        method=of,
        steps=steps,
        nfe=steps if of.rule else 2 * steps,
        distances=(10.0 * number, 10.0 * number + 4.0),
        times=1.0 + k,
        log_snr=2.013 - 3.0 * k,
        variance=0.25 * k,
        clipped=np.linspace(0.0, 0.5, steps),
        images=images,
        strip=images[:5, None].repeat(min(steps, 4), axis=1),
        bound=Bound(BitsPerDim(float(terms.sum()), 0.1), terms, np.full(9, terms.sum())) if of.eta else None,
        seconds=1.0,
    )


def results_of(methods: tuple[Method, ...], steps: tuple[int, ...] = (2, 3)) -> Results:
    rows = tuple(row_of(of, k, 1 + 2 * i + j) for i, of in enumerate(methods) for j, k in enumerate(steps))
    return Results(rows, {}, (3.0, 5.0), steps[-1], 100, (0, 1), "digits", "test", "optimal", "digits", 17)


class Server:
    """What TensorBoard's server knows of a folder."""

    def __init__(self, folder: Path) -> None:
        self.events = EventMultiplexer(
            size_guidance=DEFAULT_SIZE_GUIDANCE, tensor_size_guidance=DEFAULT_TENSOR_SIZE_GUIDANCE
        )
        self.events.AddRunsFromDirectory(str(folder)).Reload()
        self.provider = MultiplexerDataProvider(self.events, str(folder))

    def read(self, kind: str, plugin: str) -> dict[str, dict[str, Any]]:
        kinds = {"scalars": self.provider.read_scalars, "images": self.provider.read_blob_sequences}
        read = kinds.get(kind, self.provider.read_tensors)
        return read(RequestContext(), experiment_id="", plugin_name=plugin, downsample=1000)

    def scalars(self) -> dict[str, dict[str, dict[int, float]]]:
        found = self.read("scalars", "scalars")
        return {run: {tag: {p.step: p.value for p in data} for tag, data in of.items()} for run, of in found.items()}

    def images(self, run: str, tag: str) -> dict[int, Image.Image]:
        """The blobs after the first two, which are their width and height."""
        data = self.read("images", "images")[run][tag]
        blobs = {p.step: self.provider.read_blob(RequestContext(), blob_key=p.values[2].blob_key) for p in data}
        return {step: Image.open(BytesIO(blob)) for step, blob in blobs.items()}

    def text(self, run: str, tag: str) -> bytes:
        (event,) = self.events.Tensors(run, tag)
        return event.tensor_proto.string_val[0]

    def layout(self) -> dict[str, dict[str, str]]:
        found = layout_pb2.Layout.FromString(self.text("_overview", "custom_scalars__config__"))
        return {of.title: {chart.title: chart.multiline.tag[0] for chart in of.chart} for of in found.category}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    out = tmp_path_factory.mktemp("board")
    pictures = {"second": Figure(figsize=(2, 1), dpi=50), "first": Figure(figsize=(1, 1), dpi=50)}
    board.write_board(results_of(METHODS), pictures, out)
    return Server(out)


def float32(points: dict[int, float]) -> dict[int, float]:
    return {step: float(np.float32(value)) for step, value in points.items()}


def test_a_run_is_a_method_and_its_tags_are_those_of_the_others(server):
    found = server.scalars()
    assert set(found) == {method.name for method in METHODS} | {"_real_images"}
    names = ("quality/frechet_distance", "table K=2/frechet_distance", "table K=3/frechet_distance")
    assert all(set(names) <= set(found[method.name]) for method in METHODS)
    assert len({frozenset(found[method.name]) for method in (SMALL, LEAST, LARGE)}) == 1


def test_quality_stands_at_the_number_of_steps(server):
    found = server.scalars()
    for number, method in enumerate(METHODS):
        first = 10.0 * (1 + 2 * number) + 2.0
        assert found[method.name]["quality/frechet_distance"] == float32({2: first, 3: first + 10.0})
        assert found[method.name]["table K=3/frechet_distance"] == float32({3: first + 10.0})
    assert found["_real_images"]["quality/frechet_distance"] == {2: 4.0, 3: 4.0}


def test_bits_below_zero_are_all_there_and_the_best_is_at_zero(server):
    """Bits/dim are 1.125 - number at K = 2 and 2.375 - number at K = 3; LARGE, whose numbers are 5 and 6, is best."""
    found = server.scalars()
    for number, method in ((1, SMALL), (3, LEAST), (5, LARGE)):
        own = found[method.name]
        assert own["quality/bits_per_dim"] == float32({2: 1.125 - number, 3: 1.375 - number})
        assert own["quality/bits_above_best"] == float32({2: 5.0 - number, 3: 5.0 - number})
        assert own["table K=2/bits_per_dim"] == float32({2: 1.125 - number})
    assert not [tag for method in (DDIM, EULER) for tag in found[method.name] if "bits" in tag or "bound" in tag]
    assert not [tag for own in found.values() for tag in own if "log10" in tag]


def test_curves_run_from_noise_to_data(server):
    found, at = server.scalars()[SMALL.name], (-3987, -987, 2013)
    assert found[f"{STEPS}/reverse_variance"] == dict(zip(at, (0.5, 0.25, 0.0), strict=True))
    assert found[f"{STEPS}/bound_terms"] == dict(zip(at, (1.25, 0.75, 0.25 - 2.0), strict=True))
    assert found[f"{STEPS}/clipped_share"] == dict(zip(at, (0.5, 0.25, 0.0), strict=True))
    assert f"{STEPS.replace('3', '2')}/clipped_share" in found


def test_every_point_of_a_long_path_is_there(tmp_path):
    """1000 steps of the cosine schedule, some of them a hundredth of log-SNR apart and less."""
    log_snr = -2.0 * np.log(np.tan(0.5 * np.pi * np.linspace(0.005, 0.995, 1000)))
    assert len(set((100.0 * log_snr).round())) < 1000
    long = replace(row_of(SMALL, 1000, 1), log_snr=log_snr, variance=np.arange(1000.0))
    board.write_board(replace(results_of((SMALL,)), rows=(long,), shown=1000), {}, tmp_path)
    points = Server(tmp_path).scalars()[SMALL.name]["steps K=1000, x = 1000 log-SNR/reverse_variance"]
    assert list(points.values()) == list(range(999, -1, -1)) and list(points) == sorted(points)
    assert max(abs(step - 1000.0 * x) for step, x in zip(points, log_snr[::-1], strict=True)) <= 0.5
    assert board.places(np.array([1.0002, 1.0001, 0.0])) == [0, 1000, 1001]


def many(count: int) -> Results:
    """Methods of which the k-th from the end has the k-th best distance, and the k-th the k-th best bits/dim."""
    methods = tuple(Method("vp", f"r{k:02d}", "even", GAUSSIAN, 1.0) for k in range(count))
    found = results_of(methods, (3,))
    rows = tuple(
        replace(row, distances=(100.0 - k, 100.0 - k), bound=replace(row.bound, total=BitsPerDim(k - 5.0, 0.1)))
        for k, row in enumerate(found.rows)
        if row.bound is not None
    )
    return replace(found, rows=rows)


def test_the_first_view_shows_the_best_few_in_colours_of_their_own(tmp_path):
    found = many(15)
    board.write_board(found, {}, tmp_path)
    server = Server(tmp_path)
    layout = server.layout()
    assert list(layout) == ["methods 1 to 6", "methods 7 to 12", "methods 13 to 15"]
    runs = server.provider.list_runs(RequestContext(), experiment_id="")
    began = [run.run_name for run in sorted(runs, key=lambda run: run.start_time)]  # the palette has seven colours
    for group, first, last in (("methods 1 to 6", 0, 3), ("methods 7 to 12", 3, 6)):
        best = {f"vp-r{k:02d}-even-eta1" for k in (*range(first, last), *range(14 - first, 14 - last, -1))}
        for title, pattern in layout[group].items():
            shown = {run for run, of in server.scalars().items() if any(re.match(pattern, tag) for tag in of)}
            floor = {"_real_images"} if first == 0 and "Frechet" in title else set()
            assert shown == best | floor
            assert len({began.index(run) % 7 for run in shown}) == len(shown)
    assert set(layout["methods 13 to 15"]) == set(layout["methods 1 to 6"])


def test_charts_are_copies_of_the_tags_in_their_titles(server):
    (charts,) = server.layout().values()
    assert charts == {
        "Frechet distance against K": "^methods\\ 1\\ to\\ 5/frechet_distance$",
        "bits/dim above the best, against K": "^methods\\ 1\\ to\\ 5/bits_above_best$",
        "K = 3: reverse variance against 1000 log-SNR": "^methods\\ 1\\ to\\ 5/reverse_variance$",
        "K = 3: bound terms in bits/dim against 1000 log-SNR": "^methods\\ 1\\ to\\ 5/bound_terms$",
    }
    for own in server.scalars().values():
        for tag, points in own.items():
            group, _, name = tag.partition("/")
            if group == "methods 1 to 5":
                of = "quality" if name in ("frechet_distance", "bits_above_best") else STEPS
                assert points == own[f"{of}/{name}"]


def test_only_of_too_many_runs_the_link_chooses_some():
    assert board.view(many(38)) == "?smoothing=0#custom_scalars&_smoothingWeight=0"
    chosen = board.view(many(39)).partition("&regexInput=")[2].split("%7C")
    order = [f"vp-r{k:02d}-even-eta1" for k in (38, 0, 37, 1, 36, 2)]
    assert chosen == ["_overview", "_real_images", *order]


def test_the_best_come_first_and_what_was_not_run_at_the_shown_steps_last():
    found = results_of(METHODS)
    rows = tuple(row for row in found.rows if (row.method, row.steps) != (SMALL, 3))
    # distances rank LEAST, LARGE, DDIM, EULER; bits/dim LARGE, LEAST
    assert board.in_order(replace(found, rows=rows)) == [LEAST, LARGE, DDIM, EULER, SMALL]


def test_hparams_have_a_row_per_method_and_columns_that_have_values(server):
    trials = {}
    for method in METHODS:
        content = server.events.SummaryMetadata(method.name, metadata.SESSION_START_INFO_TAG).plugin_data.content
        found = metadata.parse_session_start_info_plugin_data(content)
        assert found.group_name == method.name
        trials[method] = tuple(found.hparams[name].string_value for name in ("formulation", "rule", "path", "eta"))
        assert found.hparams["solver"].string_value == method.solver
    assert trials[LEAST] == ("discrete", "small", "least_cost", "1")
    assert trials[DDIM] == ("ve", "small", "even", "0") and trials[EULER] == ("ve", "none", "even", "none")
    content = server.events.SummaryMetadata("_overview", metadata.EXPERIMENT_TAG).plugin_data.content
    found = metadata.parse_experiment_plugin_data(content)
    domains = {info.name: [v.string_value for v in info.domain_discrete.values] for info in found.hparam_infos}
    assert domains == {
        "formulation": ["discrete", "ve"],
        "rule": ["large", "none", "small"],
        "path": ["even", "least_cost"],
        "eta": ["0", "1", "none"],
        "solver": ["euler_maruyama", GAUSSIAN],
    }
    assert [(info.name.tag, info.display_name) for info in found.metric_infos] == [
        (f"table K={k}/{name}", f"{title}, K = {k}") for k in (3, 2) for name, title in board.METRICS.items()
    ]
    assert all(len(of) == 1 for own in server.scalars().values() for tag, of in own.items() if tag.startswith("table"))


def test_samples_stand_at_the_number_of_steps_and_strips_have_log_snr_below(server):
    for method in (LEAST, EULER):
        cell, gap = 4 * (8 + 1), 4
        grids = server.images(method.name, "samples/grid")
        assert {step: image.size for step, image in grids.items()} == dict.fromkeys(
            (2, 3), (6 * cell + gap, 2 * cell + gap)
        )
        assert list(server.images(method.name, "samples/x0_along_the_path")) == [3]
    pixel = np.asarray(server.images(SMALL.name, "samples/grid")[2].convert("L"))[5, 5]
    assert pixel == pytest.approx(255.0 * row_of(SMALL, 2, 1).images[0, 0, 0, 0], abs=1.0)


def test_the_overview_has_texts_and_pictures_in_order(server):
    tags = server.events.PluginRunToTagToContent("text")["_overview"]
    names = (
        "answer",
        "samples",
        "likelihood",
        "protocol",
        "frechet_distance",
        "bits_per_dim",
        "how to read this board",
    )
    assert list(tags) == [f"texts/{i} {name}" for i, name in enumerate(names, start=1)]
    assert server.text("_overview", "texts/1 answer").decode().startswith("## Who wins at K = 3")
    assert server.text("_overview", "texts/5 frechet_distance").decode().startswith("| formulation | rule |")
    for tag, width in (("overview/1 second", 100), ("overview/2 first", 50)):
        assert server.images("_overview", tag)[0].width == width
    guide = server.text("_overview", "texts/7 how to read this board").decode()
    explained = re.findall(r"^\| (\S+/\S+) \|", guide.replace("K=3, x = 1000 log-SNR", "K=..."), flags=re.M)
    explained += re.findall(r"^\| (\w+ \S+/\S+) \|", guide, flags=re.M)
    for tag in {tag for run, of in server.scalars().items() for tag in of}:
        group, _, name = tag.partition("/")
        group = {"steps": "steps K=...", "table": "table K=...", "methods": "methods ..."}.get(group.split()[0], group)
        assert f"{group}/{name}" in explained or f"{group}/..." in explained, tag


def test_the_second_board_replaces_the_first(tmp_path):
    before = results_of(METHODS)
    board.write_board(before, {}, tmp_path)
    (tmp_path / DDIM.name / "notes.txt").write_text("the user's own")
    for _ in range(2):
        board.write_board(replace(before, rows=before.rows[:2]), {}, tmp_path)
    files = sorted(str(path.relative_to(tmp_path)).split(".out")[0] for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["_overview/events", "_real_images/events", f"{SMALL.name}/events", f"{DDIM.name}/notes.txt"]
    assert not (tmp_path / LARGE.name).exists()


def test_a_comparison_without_a_finished_row_has_a_guide(tmp_path):
    board.write_board(results_of(()), {}, tmp_path)
    assert "texts/3 how to read this board" in Server(tmp_path).events.PluginRunToTagToContent("text")["_overview"]
