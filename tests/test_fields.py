"""The table of fields: what each field is part of, in full, and what follows from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adpm.errors import UserError
from adpm.paths import Path as Steps
from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.families import house
from adpm.run.measure import _cost_key, data_row_key, moments_key
from adpm.run.paths import bound_key, sampler_key
from adpm.run.store import digest
from sde.mode import flow_key

HOUSE = house()
TABLE = HOUSE.table

# A config in which nearly everything is read: an SDE, planned on its own bound, corrected, evaluated in both ways.
FULL: dict[str, Any] = {
    "trajectory.cost": "measured",
    "sampling.corrector": "langevin",
    "likelihood.method": "bound+flow",
    "likelihood.dequantisation": "diffusion",
    "likelihood.t_min": 0.01,
    "process.steps": 40,
}
MODEL = {"moments", "data_row", "costs", "samples", "bound", "flow"}
FIGURES = {"samples", "bound", "flow"}

# field -> another value -> every key that it changes, and no other.
CHANGES: dict[str, tuple[Any, set[str]]] = {
    "seed": (1, MODEL | {"training", "head"}),
    "device": ("cpu", set()),
    "precision": ("bfloat16", MODEL),
    "compile": (True, set()),
    "channels_last": (True, set()),
    "cache": ("elsewhere", set()),
    "data.size": (5, MODEL | {"training"}),
    "data.seed": (1, MODEL | {"training"}),
    "process.name": ("subvp", MODEL | {"weights", "training"}),
    "process.steps": (50, MODEL),
    "process.t_min": (2e-3, MODEL),
    "process.grid": ("log_snr", MODEL),
    "process.beta_min": (0.2, MODEL | {"weights", "training"}),
    "process.beta_max": (10.0, MODEL | {"weights", "training"}),
    "network.name": ("score_sde", MODEL | {"weights", "training", "head"}),
    "network.model_channels": (8, MODEL | {"weights", "training", "head"}),
    "network.channel_mult": ((1, 1), MODEL | {"weights", "training", "head"}),
    "network.num_res_blocks": (2, MODEL | {"weights", "training", "head"}),
    "network.dropout": (0.0, {"training", "head"}),
    "network.num_heads": (2, MODEL | {"weights", "training", "head"}),
    "network.scale_shift": (False, MODEL | {"weights", "training", "head"}),
    "network.pretrained": ("no.safetensors", set()),
    "train.objective": ("vlb", {"training", "head"}),
    "train.times": ("log_snr", {"training", "head"}),
    "train.iterations": (7, set()),
    "train.batch_size": (7, set()),
    "train.learning_rate": (0.1, set()),
    "train.ema_decay": (0.5, set()),
    "train.save_every": (7, set()),
    "moments.times": (30, {"moments", "data_row"} | {"costs", "samples", "bound", "flow"}),
    "moments.draws": (40, {"moments", "data_row"} | {"costs", "samples", "bound", "flow"}),
    "moments.target_error": (0.3, {"moments", "data_row"} | {"costs", "samples", "bound", "flow"}),
    "moments.batch_size": (7, set()),
    "moments.write_ms_eps": (True, set()),
    "moments.implausible": (True, set()),
    "rule.name": ("unit", {"costs", "samples", "bound"}),
    "rule.estimator": ("data", {"data_row", "costs", "samples", "bound", "flow"}),
    "rule.bounds": (False, {"costs", "samples", "bound"}),
    "trajectory.steps": (7, set()),
    "trajectory.name": ("even", set()),
    "trajectory.budget": ("at_most", set()),
    "trajectory.method": ("dense", set()),
    "sampling.solver": ("euler_maruyama", {"samples"}),
    "sampling.corrector": ("ald", {"samples"}),
    "sampling.corrector_snr": (0.1, {"samples"}),
    "sampling.corrector_steps": (2, {"samples"}),
    "sampling.corrector_first": (False, {"samples"}),
    "sampling.start": ("gaussian", {"samples"}),
    "sampling.eta": (0.5, {"costs", "samples", "bound"}),
    "sampling.samples": (7, set()),
    "sampling.batch_size": (7, set()),
    "sampling.grid": (7, set()),
    "likelihood.split": ("train", {"bound", "flow"}),
    "likelihood.images": (7, set()),
    "likelihood.batch_size": (7, {"flow"}),
    "likelihood.decoder": ("published", {"data_row", "costs", "bound", "flow"}),
    "likelihood.dequantisation": ("uniform", {"flow"}),
    "likelihood.probe": ("gaussian", {"flow"}),
    "likelihood.probes": (2, {"flow"}),
    "likelihood.t_min": (0.02, {"flow"}),
    "likelihood.rtol": (1e-3, {"flow"}),
    "likelihood.atol": (1e-3, {"flow"}),
    "likelihood.max_nfe": (7, set()),
}


def session(workdir: Path, fields: dict[str, Any]) -> Session:
    config, _ = load_config("configs/toy_sde.py", "vp")
    TABLE.update(config, {**FULL, **fields})
    return Session.make(config, workdir, HOUSE)


def keys(made: Session) -> dict[str, str]:
    """What everything that is kept is named by, on one path."""
    path = Steps(np.array([0, 1, 40]), made.process.times[[0, 1, -1]])
    return {
        "weights": digest(TABLE.part(made.config, "weights")),
        "training": digest(TABLE.part(made.config, "training")),
        "head": digest(TABLE.part(made.config, "head")),
        "moments": moments_key(made),
        "data_row": digest(data_row_key(made)),
        "costs": digest(_cost_key(made, True)),
        "samples": digest(sampler_key(made, path)),
        "bound": digest(bound_key(made, path)),
        "flow": digest(flow_key(made)),
    }


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return keys(session(tmp_path_factory.mktemp("base"), {}))


@pytest.mark.parametrize("name", CHANGES)
def test_a_field_changes_these_keys_and_no_others(name, before, tmp_path):
    value, expected = CHANGES[name]
    after = keys(session(tmp_path, {name: value}))
    assert {key for key in before if before[key] != after[key]} == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("denoiser.label", "time_999"),
        ("denoiser.predicts", "x0"),
        ("denoiser.time_shift", 1),
        ("denoiser.time_scale", 2.0),
        ("process.steps", 50),  # the label "index" is in units of 1000/N
    ],
)
def test_what_a_network_is_called_with_is_part_of_it_and_of_its_figures(name, value):
    """An exact denoiser has no label: there, these fields are refused."""
    parts = []
    for fields in ({}, {name: value}):
        config, _ = load_config("configs/toy_sde.py", "vp")
        TABLE.update(config, {**FULL, "denoiser.name": "network", **fields})
        parts.append({product: TABLE.part(config, product) for product in ("weights", "training", "model", "head")})
    changed = {product for product in parts[0] if parts[0][product] != parts[1][product]}
    assert changed == {"model", "weights", "training"}


def test_limits_of_x0_are_part_of_figures_and_of_heads_and_of_no_weights():
    parts = []
    for clip in (False, True):
        config, _ = load_config("configs/toy_sde.py", "vp")
        TABLE.update(config, {**FULL, "denoiser.name": "network", "denoiser.clip": clip})
        parts.append({product: TABLE.part(config, product) for product in ("weights", "training", "model", "head")})
    assert {product for product in parts[0] if parts[0][product] != parts[1][product]} == {"model", "head"}


def test_every_field_that_is_read_there_is_in_the_list(tmp_path):
    """But for the data set and the denoiser, whose members bring others along, and what only some members have.

    Classes go with networks that are told them: tests/test_classes.py. Recordings are refused without a GPU.
    """
    read = {item.name for item in TABLE.walk(session(tmp_path, {}).config, [n for n in TABLE.names if "." not in n])}
    for section in TABLE.sections:
        read |= {n for n in TABLE.starting(*TABLE_PRODUCTS) if n.startswith(f"{section}.")}
    unlisted = read - CHANGES.keys()
    assert unlisted <= {"data.name", "denoiser.name", "denoiser.clip", "sampling.classes", "graphs"}, unlisted


TABLE_PRODUCTS = ("weights", "training", "head", "model", "moments", "costs", "samples", "bound", "flow", "cell")


def test_what_nobody_reads_is_refused(tmp_path):
    for config, fields, told in (
        (
            "toy",
            {"trajectory.name": "even", "trajectory.data_term": False},
            "trajectory.name = 'even', which takes: none",
        ),
        (
            "toy",
            {"denoiser.label": "time_999"},
            "denoiser.name = 'ideal', which takes: none; it is an option of network",
        ),
        ("toy", {"trajectory.name": "even", "trajectory.cost": "bound"}, "trajectory.name = 'even'"),
        ("toy", {"trajectory.name": "even", "trajectory.budget": "at_most"}, "an option of least_cost"),
        ("toy", {"trajectory.log_snr_max": 4.0}, "an option of log_snr"),
        ("toy", {"trajectory.cost": "bound", "trajectory.projection": False}, "trajectory.cost = 'bound'"),
        ("toy", {"sampling.corrector_snr": 0.1}, "sampling.corrector = None"),
        ("toy", {"rule.name": "small", "rule.bounds": False}, "rule.name = 'small'"),
        ("toy", {"rule.cap_steps": 2}, "rule.cap_levels = 0.0"),
        ("toy", {"likelihood.probes": 2}, "likelihood.method = 'bound'"),
        ("toy", {"process.beta_min": 1.0}, "process.name = 'linear', which takes: steps"),
        ("digits", {"data.size": 4}, "data.name = 'digits', which takes: low, high"),
        ("digits", {"network.variant": "ve"}, "network.name = 'iddpm'"),
        ("digits", {"train.trunk_dropout": True}, "train.objective = 'eps'"),
    ):
        made, _ = load_config(f"configs/{config}.py")
        for name, value in fields.items():
            section, _, key = name.partition(".")
            made[section][key] = value
        with pytest.raises(UserError) as caught:
            TABLE.check(made)
        name = list(fields)[-1]
        assert f"config.{name} = {fields[name]!r} does not go with config." in str(caught.value)
        assert told in str(caught.value)


def test_an_estimator_with_a_rule_that_has_none_is_for_the_decoder(tmp_path):
    """rule small reads no estimator, but the optimal decoder does; with another decoder it is refused."""
    made, _ = load_config("configs/toy.py")
    made.rule.name, made.rule.estimator = "small", "data"
    TABLE.check(made)
    made.likelihood.decoder = "published"
    with pytest.raises(UserError, match=r"config.rule.estimator = 'data' does not go with config.rule.name = 'small'"):
        TABLE.check(made)


def test_defaults_are_those_of_the_members():
    config = TABLE.config()
    assert config.process.steps == 1000 and config.network.model_channels == 32 and config.sampling.eta == 1.0
    assert config.data.size is None and config.process.t_min is None  # members differ
    for name, value in (("patches", 32), ("toy", 4)):
        config.data.name = name
        assert TABLE.options(config, "data.name")["size"] == value
    config.process.name = "ve"
    assert TABLE.options(config, "process.name")["t_min"] == 1e-5


def test_every_number_is_held_to_its_range():
    for name in TABLE.names:
        found = TABLE.field(name)
        for bound, step in ((found.low, -1), (found.above, 0), (found.high, 1), (found.below, 0)):
            if bound is not None:
                with pytest.raises(UserError, match=rf"config\.{name} = .* must be a number"):
                    found.check(f"config.{name}", bound + step)
        if isinstance(found.default, float):
            for value in (np.nan, np.inf):
                with pytest.raises(UserError, match="must be a number"):
                    found.check(name, value)


def test_parameters_are_told_as_the_fields_that_they_are():
    told = TABLE.translated
    assert told("`t_min` = 3", "process") == "config.process.t_min = 3"
    assert told("`t_min` = 3", "likelihood") == "config.likelihood.t_min = 3"
    assert told("`t_min` = 3") == "`t_min` = 3"  # two have it
    assert told("set `rule.bounds` = True or `eta` = 1") == "set config.rule.bounds = True or config.sampling.eta = 1"
    assert told("`snr` = 0", "sampling") == "config.sampling.corrector_snr = 0"
    assert told("`steps` = 0", "trajectory") == "config.trajectory.steps = 0"
    assert told("`nothing` = 0") == "`nothing` = 0"


def test_the_description_tells_every_field_once():
    lines = TABLE.describe().splitlines()
    for name in TABLE.names:
        section, _, key = name.rpartition(".")
        start = lines.index(f"config.{section}" if section else "config")
        block = lines[start + 1 : next((i for i in range(start + 1, len(lines)) if not lines[i].strip()), len(lines))]
        assert sum(line.startswith(f"  {key} = ") for line in block) == 1, name


def test_the_betas_in_a_file_are_part_of_all_figures(tmp_path):
    """Its name is that of another schedule after it was written again."""
    config, _ = load_config("configs/toy.py")
    found = []
    for last in (0.02, 0.03):
        np.save(tmp_path / "betas.npy", np.linspace(1e-4, last, 1000))
        TABLE.update(config, {"process.name": "custom", "process.betas_file": str(tmp_path / "betas.npy")})
        made = Session.make(config, tmp_path / "run", HOUSE)
        path = Steps(np.array([0, 1, 1000]), made.process.times[[0, 1, -1]])
        found.append({moments_key(made), digest(data_row_key(made)), digest(sampler_key(made, path))})
    assert not found[0] & found[1]


def test_a_head_is_part_of_what_is_made_with_it(tmp_path):
    found = []
    for head in ({"weights": "one"}, {"weights": "other"}):
        made = session(tmp_path, {})
        made.__dict__["model"] = replace(made.trunk, head=head)
        found.append(keys(made))
    assert {key for key in found[0] if found[0][key] != found[1][key]} == {"costs", "samples", "bound"}


def test_a_decoder_that_needs_moments_brings_them_into_the_keys(tmp_path):
    """With a rule that needs none; moments of other draws are other moments."""
    changed = {}
    for decoder in ("optimal", "published"):
        fields = {"rule.name": "small", "likelihood.decoder": decoder}
        a, b = (keys(session(tmp_path / decoder, {**fields, **more})) for more in ({}, {"moments.times": 7}))
        changed[decoder] = {key for key in a if a[key] != b[key]}
    assert changed["optimal"] - changed["published"] == {"costs", "bound", "flow"}


def test_rules_of_a_session_are_told_what_no_variance_of_a_state_exceeds(tmp_path, monkeypatch):
    """((b - a)/2)^2 of the data's range."""
    told = []
    small = HOUSE.families["rule"]["small"]
    spy = replace(small, build=lambda needs: told.append(needs.state_bound) or small.build(needs))
    monkeypatch.setitem(HOUSE.families["rule"], "small", spy)
    made = session(tmp_path, {"rule.name": "small"})
    made.rule(lambda estimator: lambda t: t, made.process.times[:2])
    assert (made.data.low, made.data.high) == (-2.0, 2.0) and set(told) == {4.0}
