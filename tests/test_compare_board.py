"""The TensorBoard of a comparison, read back from its event files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from adpm.run.compare import board
from adpm.run.compare.method import Method
from adpm.run.compare.results import Bound, Results, Row
from adpm.run.tables import BitsPerDim

EVEN, LEAST = "even, eta 1", "least_cost, eta 1"
DDIM, EULER = "even, eta 0", "even"
GROUP = "steps K=3, x = 100 log-SNR"


def method(formulation: str, rule: str, trajectory: str = "even", eta: float = 1.0) -> Method:
    return Method(formulation, rule, trajectory, "reverse_gaussian", eta)


SMALL, SMALL_LEAST = method("discrete", "small"), method("discrete", "small", "least_cost")
LARGE, VE_DDIM = method("discrete", "large"), method("ve", "small", eta=0.0)
VE_EULER = Method("ve", None, "even", "euler_maruyama", None)
METHODS = (SMALL, SMALL_LEAST, LARGE, VE_DDIM, VE_EULER)


def row_of(of: Method, steps: int, number: int) -> Row:
    """A row whose figures follow from its number; two network calls a step without a rule, no bound for eta = 0."""
    k = np.arange(steps)
    terms = np.append(0.25 + 0.5 * k, 0.125)
    total = BitsPerDim(float(terms.sum()), None if of is LARGE else 0.01 * number)
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
        bound=Bound(total, terms, np.full(9, total.mean)) if of.eta else None,
        seconds=1.0,
    )


def results_of(methods: tuple[Method, ...], steps: tuple[int, ...] = (2, 3)) -> Results:
    rows = tuple(row_of(of, k, 1 + 2 * i + j) for i, of in enumerate(methods) for j, k in enumerate(steps))
    return Results(rows, {}, (3.0, 5.0), 3, 100, (0, 1), "digits", "test", "optimal", "digits", 17)


def read(folder: Path) -> EventAccumulator:
    everything = EventAccumulator(str(folder), {"scalars": 0, "images": 0, "tensors": 0})
    return everything.Reload()


def scalars(run: EventAccumulator) -> dict[str, dict[int, float]]:
    return {tag: {event.step: event.value for event in run.Scalars(tag)} for tag in run.Tags()["scalars"]}


def float32(points: dict[int, float]) -> dict[int, float]:
    return {step: float(np.float32(value)) for step, value in points.items()}


def strings(run: EventAccumulator, tag: str) -> str:
    (event,) = run.Tensors(tag)
    return event.tensor_proto.string_val[0].decode()


def hparams(run: EventAccumulator, tag: str, parse: Callable[[bytes], Any]) -> Any:
    return parse(run.SummaryMetadata(tag).plugin_data.content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("board")
    pictures = {"second": Figure(figsize=(2, 1), dpi=50), "first": Figure(figsize=(1, 1), dpi=50)}
    texts = {"verdict": "**wins**", "table": "| a |\n|---|\n| 1 |"}
    board.write_board(results_of(METHODS), pictures, texts, out)
    return out


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, EventAccumulator]:
    return {path.name: read(path) for path in folder.iterdir()}


def test_a_run_is_a_formulation_and_a_rule(runs):
    own = {"discrete-small", "discrete-large", "ve-small", "ve-euler_maruyama"}
    assert set(runs) == own | {"_overview", "_real_images"}


@pytest.mark.parametrize(
    ("run", "of", "setting"),
    [
        ("discrete-small", SMALL, EVEN),
        ("discrete-small", SMALL_LEAST, LEAST),
        ("discrete-large", LARGE, EVEN),
        ("ve-small", VE_DDIM, DDIM),
        ("ve-euler_maruyama", VE_EULER, EULER),
    ],
)
def test_quality_stands_at_the_network_calls(runs, run, of, setting):
    rows = list(results_of(METHODS).of(of))
    found = scalars(runs[run])
    distances = {row.nfe: row.distance for row in rows}
    assert sorted(distances) == ([4, 6] if of is VE_EULER else [2, 3])
    assert found[f"quality/frechet_distance, {setting}"] == float32(distances)
    logs = {nfe: float(np.log10(distance)) for nfe, distance in distances.items()}
    assert found[f"quality/frechet_distance_log10, {setting}"] == pytest.approx(logs)
    assert found[f"quality, more/frechet_distance_spread, {setting}"] == float32({n: np.sqrt(8.0) for n in distances})
    assert found[f"quality, more/clipped_share, {setting}"] == float32({nfe: 0.25 for nfe in distances})
    for row in rows:
        assert found[f"table K={row.steps}/frechet_distance, {setting}"] == float32({row.nfe: row.distance})


def test_bits_per_dim_are_there_where_a_bound_is(runs):
    found = scalars(runs["discrete-small"])
    bits = {2: 0.25 + 0.75 + 0.125, 3: 0.25 + 0.75 + 1.25 + 0.125}
    for setting, first in ((EVEN, 1), (LEAST, 3)):
        assert found[f"quality/bits_per_dim, {setting}"] == float32(bits)
        assert found[f"quality/bits_per_dim_log10, {setting}"] == pytest.approx(
            {k: np.log10(b) for k, b in bits.items()}
        )
        assert found[f"quality, more/bits_per_dim_error, {setting}"] == float32(
            {2: 0.01 * first, 3: 0.01 * (first + 1)}
        )
        assert found[f"quality, more/bits_per_dim_prior, {setting}"] == {2: 0.125, 3: 0.125}
        assert found[f"table K=3/bits_per_dim, {setting}"] == float32({3: bits[3]})
    assert "quality, more/bits_per_dim_error, even, eta 1" not in scalars(runs["discrete-large"])  # of one image
    without = {**scalars(runs["ve-small"]), **scalars(runs["ve-euler_maruyama"])}
    assert not [tag for tag in without if "bits" in tag or "bound" in tag]


def test_curves_run_from_noise_to_data(runs):
    steps = [201, -99, -399]
    run, found = runs["discrete-small"], scalars(runs["discrete-small"])
    assert found[f"{GROUP}/reverse_variance, {EVEN}"] == dict(zip(steps, (0.0, 0.25, 0.5), strict=True))
    logs = dict(zip(steps[1:], np.log10([0.25, 0.5]), strict=True))
    assert found[f"{GROUP}/reverse_variance_log10, {EVEN}"] == pytest.approx(logs)
    terms = np.array([0.25, 0.75, 1.25])
    assert found[f"{GROUP}/bound_terms, {EVEN}"] == dict(zip(steps, terms, strict=True))
    logs = dict(zip(steps, np.log10(terms), strict=True))
    assert found[f"{GROUP}/bound_terms_log10, {EVEN}"] == pytest.approx(logs)
    assert found[f"{GROUP}/clipped_share, {EVEN}"] == dict(zip(steps, (0.0, 0.25, 0.5), strict=True))
    assert f"{GROUP.replace('3', '2')}/clipped_share, {LEAST}" in found
    for tag in run.Tags()["scalars"]:
        written = [event.step for event in run.Scalars(tag)]
        assert written == sorted(set(written)), "TensorBoard forgets points that are followed by a smaller step"


def test_real_images_are_beside_every_row(runs):
    found = scalars(runs["_real_images"])
    calls = {EVEN: (2, 3), LEAST: (2, 3), DDIM: (2, 3), EULER: (4, 6)}
    expected = {f"quality/frechet_distance, {of}": dict.fromkeys(nfe, 4.0) for of, nfe in calls.items()}
    logs = {f"quality/frechet_distance_log10, {of}": dict.fromkeys(nfe, np.log10(4.0)) for of, nfe in calls.items()}
    assert set(found) == {*expected, *logs}
    assert {tag: found[tag] for tag in expected} == expected
    assert all(found[tag] == pytest.approx(points) for tag, points in logs.items())


def test_samples_stand_at_the_network_calls_and_are_enlarged(runs):
    for run, setting, calls in (("discrete-small", LEAST, [2, 3]), ("ve-euler_maruyama", EULER, [4, 6])):
        grids = runs[run].Images(f"samples/grid, {setting}")
        strips = runs[run].Images(f"samples/x0_along_the_path, {setting}")
        assert [image.step for image in grids] == [image.step for image in strips] == calls
        cell, gap = 4 * (8 + 1), 4
        assert {(image.width, image.height) for image in grids} == {(6 * cell + gap, 2 * cell + gap)}  # seven images
        assert [(image.width, image.height) for image in strips] == [(k * cell + gap, 4 * cell + gap) for k in (2, 3)]


def layout(run: EventAccumulator) -> dict[str, dict[str, list[str]]]:
    (event,) = run.Tensors("custom_scalars__config__")
    found = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    return {of.title: {chart.title: list(chart.multiline.tag) for chart in of.chart} for of in found.category}


def test_every_chart_of_the_layout_shows_the_tag_of_its_title(runs):
    tags = {tag for run in runs.values() for tag in run.Tags()["scalars"]}
    shown = {}
    for category, charts in layout(runs["_overview"]).items():
        for setting, (pattern,) in charts.items():
            (tag,) = [tag for tag in tags if re.match(pattern, tag)]
            assert tag.endswith(f", {setting}") and "(" not in tag  # Custom Scalars takes brackets for a run's name
            shown.setdefault(category.split(" against")[0], set()).add(tag)
    assert shown == {
        "Frechet distance (log10: 1 is 10)": {
            f"quality/frechet_distance_log10, {of}" for of in (EVEN, LEAST, DDIM, EULER)
        },
        "bits/dim (log10: 1 is 10)": {f"quality/bits_per_dim_log10, {of}" for of in (EVEN, LEAST)},
        "K = 3: reverse variance (log10)": {
            f"{GROUP}/reverse_variance_log10, {of}" for of in (EVEN, LEAST, DDIM, EULER)
        },
        "K = 3: bound terms (log10 of bits/dim)": {f"{GROUP}/bound_terms_log10, {of}" for of in (EVEN, LEAST)},
        "K = 3: share clipped by the bounds": {f"{GROUP}/clipped_share, {of}" for of in (EVEN, LEAST, DDIM, EULER)},
    }


def test_trials_are_formulations_and_rules(runs):
    trials = {}
    for name, run in runs.items():
        if metadata.SESSION_START_INFO_TAG in run.Tags()["tensors"]:
            found = hparams(run, metadata.SESSION_START_INFO_TAG, metadata.parse_session_start_info_plugin_data)
            assert found.group_name == name
            trials[name] = {key: value.string_value for key, value in found.hparams.items()}
    gaussian = {"solver": "reverse_gaussian"}
    assert trials == {
        "discrete-small": {"formulation": "discrete", "rule": "small", **gaussian},
        "discrete-large": {"formulation": "discrete", "rule": "large", **gaussian},
        "ve-small": {"formulation": "ve", "rule": "small", **gaussian},
        "ve-euler_maruyama": {"formulation": "ve", "rule": "none", "solver": "euler_maruyama"},
    }


def test_metrics_are_tags_and_begin_with_the_shown_steps(runs):
    found = hparams(runs["_overview"], metadata.EXPERIMENT_TAG, metadata.parse_experiment_plugin_data)
    domains = {info.name: [v.string_value for v in info.domain_discrete.values] for info in found.hparam_infos}
    assert domains == {
        "formulation": ["discrete", "ve"],
        "rule": ["large", "none", "small"],
        "solver": ["euler_maruyama", "reverse_gaussian"],
    }
    metrics = {info.name.tag: info.display_name for info in found.metric_infos}
    assert list(metrics)[:6] == [
        *(f"table K=3/frechet_distance, {of}" for of in (EULER, DDIM, EVEN, LEAST)),
        *(f"table K=3/bits_per_dim, {of}" for of in (EVEN, LEAST)),
    ]
    assert len(metrics) == 12
    assert metrics[f"table K=2/bits_per_dim, {LEAST}"] == f"bits/dim, K = 2, {LEAST}"
    for tag in metrics:
        assert any(tag in run.Tags()["scalars"] for run in runs.values())
        assert all(len(run.Scalars(tag)) == 1 for run in runs.values() if tag in run.Tags()["scalars"])


def test_a_choice_that_nobody_has_is_no_column(tmp_path):
    board.write_board(results_of((SMALL, LARGE)), {}, {}, tmp_path)
    found = hparams(read(tmp_path / "_overview"), metadata.EXPERIMENT_TAG, metadata.parse_experiment_plugin_data)
    assert [info.name for info in found.hparam_infos] == ["rule"]


def test_texts_and_pictures_keep_their_order(runs):
    run = runs["_overview"]
    texts = [tag for tag in run.Tags()["tensors"] if tag.startswith("texts/")]
    assert texts == ["texts/1 verdict", "texts/2 table", "texts/3 how to read this board"]
    assert strings(run, texts[0]) == "**wins**" and strings(run, texts[1]) == "| a |\n|---|\n| 1 |"
    assert run.Tags()["images"] == ["overview/1 second", "overview/2 first"]
    assert [run.Images(tag)[0].width for tag in run.Tags()["images"]] == [100, 50]


def test_the_guide_explains_every_tag(runs):
    told = strings(runs["_overview"], "texts/3 how to read this board")
    explained = {name.replace("...", "3") for name in re.findall(r"^\| `(.*?)` \|", told, flags=re.MULTILINE)}
    tags = {tag for run in runs.values() for kind in ("scalars", "images") for tag in run.Tags()[kind]}
    for tag in {tag for tag in tags if "K=2" not in tag and not tag.startswith("overview/")}:
        group, _, name = tag.partition("/")
        short = f"{group.split(', x')[0]}/{name.split(', ')[0]}"
        assert short in explained or group in explained, tag
    assert all(f"`{of}`" in told for of in (EVEN, LEAST, DDIM, EULER))


def test_the_second_board_replaces_the_first(tmp_path):
    before = results_of(METHODS)
    board.write_board(before, {}, {"verdict": "old"}, tmp_path)
    (tmp_path / "ve-small" / "notes.txt").write_text("the user's own")
    fewer = Results(before.rows[:2], {}, (3.0, 5.0), 3, 100, (0, 1), "digits", "test", "optimal", "digits", 17)
    for _ in range(2):
        board.write_board(fewer, {}, {}, tmp_path)
    files = sorted(str(path.relative_to(tmp_path)).split(".out")[0] for path in tmp_path.rglob("*") if path.is_file())
    kept = ["_overview/events", "_real_images/events", "discrete-small/events"]
    assert files == [*kept, "ve-small/notes.txt"]
    assert not (tmp_path / "discrete-large").exists()
    assert not [tag for tag in read(tmp_path / "discrete-small").Tags()["scalars"] if "least_cost" in tag]
    assert read(tmp_path / "_overview").Tags()["tensors"][0] == "texts/1 how to read this board"


def test_a_comparison_without_a_finished_row_has_a_guide(tmp_path):
    board.write_board(results_of(()), {}, {}, tmp_path)
    assert "texts/1 how to read this board" in read(tmp_path / "_overview").Tags()["tensors"]
