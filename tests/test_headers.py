"""What files say about themselves is held against the config: fields left to a default, betas, and kinds of heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.nn.checkpoint import read_header, save_weights
from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.families import house
from adpm.run.modes.train import make_trainer, train
from adpm.run.weights import exact_digest, process_digest

ROOT = Path(__file__).parent.parent
SHIPPED = {"digits": ("digits", ""), "digits_vp": ("digits_sde", "vp"), "digits_ve": ("digits_sde", "ve")}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def session(workdir: Path, file: str, variant: str = "", trains: bool = False, **changes: object) -> Session:
    """A session of a config file; changes are "section__field=value"."""
    config = load_config(f"configs/{file}.py", variant)[0]
    for name, value in changes.items():
        section, _, key = name.partition("__")
        config[section][key] = value
    return Session.make(config, workdir, house(), trains)


TINY = {
    "network__model_channels": 8,
    "network__num_heads": 1,
    "train__batch_size": 16,
    "train__iterations": 2,
    "train__sample_every": 0,
    "process__steps": 30,
    "moments__draws": 12,
    "moments__times": 8,
}
HEAD = {"network__head": "simple", "train__objective": "npr", "rule__name": "npr"}


def tiny(workdir: Path, **changes: object) -> Session:
    return session(workdir, "toy", "unet", **{**TINY, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with a trunk of eps and a head of npr, both trained for two iterations."""
    workdir = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        train(tiny(workdir, trains=True))
        train(tiny(workdir, trains=True, **HEAD))
    return workdir


def elsewhere(trained: Path, **changes: object) -> dict[str, object]:
    """Changes for another workdir that names the trained files."""
    files = {
        f"network__{k}pretrained": str(trained / f"{v}.safetensors") for k, v in (("", "weights"), ("head_", "head"))
    }
    return {**HEAD, **files, **changes}


# ------------------------------------------------------------------------------------------------ unset fields


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_load(name, tmp_path):
    assert session(tmp_path, *SHIPPED[name]).model.source == f"pretrained/{name}.safetensors"


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("digits", {"data__low": 0.0}, r"data\.low: -1\.0 there, 0\.0 now"),
        ("digits", {"denoiser__label": "time_999"}, r"denoiser\.label: 'index' there, 'time_999' now"),
        ("digits", {"network__num_heads": 2}, r"network\.num_heads: 4 there, 2 now"),
        ("digits_vp", {"process__beta_max": 10.0}, r"process\.beta_max: 20\.0 there, 10\.0 now"),
        ("digits_vp", {"data__high": 2.0}, r"data\.high: 1\.0 there, 2\.0 now"),
        ("digits_ve", {"process__sigma_min": 0.05}, r"process\.sigma_min: 0\.01 there, 0\.05 now"),
    ],
)
def test_unset_there_and_set_now_is_a_difference(name, change, told, tmp_path):
    with pytest.raises(UserError, match=told):
        _ = session(tmp_path, *SHIPPED[name], **change).model


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("digits", {"data__low": -1.0, "network__num_heads": 4}),
        ("digits_vp", {"process__beta_max": 20.0, "process__t_min": 0.1, "process__steps": 50}),
        ("digits_ve", {"process__sigma_min": 0.01, "network__attention_resolutions": (4,)}),
    ],
)
def test_a_default_that_is_set_is_the_default(name, same, tmp_path):
    assert session(tmp_path, *SHIPPED[name], **same).model.network is not None


def test_set_there_and_unset_now_is_a_difference(tmp_path):
    changes = {"network__dropout": 0.0, "data__low": 0.0, **TINY}
    train(session(tmp_path / "a", "digits", trains=True, network__pretrained="", **changes))
    named = {**TINY, "network__pretrained": str(tmp_path / "a" / "weights.safetensors")}
    with pytest.raises(UserError, match=r"another model \(data\.low: 0\.0 there, -1\.0 now\)"):
        _ = session(tmp_path / "b", "digits", **named).model
    assert session(tmp_path / "b", "digits", data__low=0.0, **named).model.network is not None


def test_unset_fields_count_for_heads(tmp_path):
    """A trunk that says nothing of itself, and a head of the default range."""
    bare, head = tmp_path / "bare.safetensors", tmp_path / "a" / "head.safetensors"
    save_file(read_weights(Path("pretrained/digits.safetensors")), bare)
    small = {**HEAD, "train__batch_size": 4, "train__iterations": 1, "train__sample_every": 0}
    train(session(tmp_path / "a", "digits", trains=True, **small, network__pretrained=str(bare)))
    named = {**HEAD, "network__pretrained": str(bare), "network__head_pretrained": str(head)}
    assert session(tmp_path / "b", "digits", data__low=-1.0, **named).model.head is not None
    with pytest.raises(
        UserError, match=r"head '.*' was trained for another model \(data\.low: -1\.0 there, 0\.0 now\)"
    ):
        _ = session(tmp_path / "c", "digits", data__low=0.0, **named).model


# ------------------------------------------------------------------------------------------------ betas


def custom(tmp_path: Path, beta: float) -> dict[str, object]:
    betas = tmp_path / "betas.txt"
    np.savetxt(betas, np.full(30, beta), fmt="%.18g")
    return {"process__name": "custom", "process__betas_file": str(betas)}


def test_weights_know_their_betas(tmp_path):
    train(tiny(tmp_path, trains=True, **custom(tmp_path, 0.1)))
    assert tiny(tmp_path, **custom(tmp_path, 0.1)).model.network is not None
    with pytest.raises(UserError, match=r"weights '.*' were trained for another process of the same name"):
        _ = tiny(tmp_path, **custom(tmp_path, 0.2)).model
    weights = tmp_path / "weights.safetensors"
    header = read_header(weights)
    del header["process"]
    save_weights(weights, read_weights(weights), header)
    assert tiny(tmp_path, **custom(tmp_path, 0.2)).model.network is not None, "older files do not say"


def test_heads_that_name_the_exact_process_are_read(trained, tmp_path):
    """As files did at first; another one is refused."""
    made = tiny(tmp_path, **elsewhere(trained))
    exact, head = exact_digest(made.process), trained / "head.safetensors"
    for process, told in ((exact, None), ("0123456789ab", "head '.*' was trained for another process")):
        file = tmp_path / "head-of-old.safetensors"
        save_weights(file, read_weights(head), read_header(head) | {"process": process})
        old = tiny(tmp_path, **elsewhere(trained, network__head_pretrained=str(file)))
        if told is None:
            assert old.model.head is not None
        else:
            with pytest.raises(UserError, match=told):
                _ = old.model


def test_the_last_bits_of_a_schedule_do_not_matter(tmp_path):
    """They differ between machines; betas that differ by a tenth of a percent are others."""
    rounded = 0.1 * (1.0 + 4e-16)
    assert rounded != 0.1
    seen = [
        process_digest(tiny(tmp_path / str(i), trains=True, **custom(tmp_path, b)).process)
        for i, b in enumerate((0.1, rounded, 0.1001))
    ]
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize("head", [False, True])
def test_a_training_is_not_continued_on_other_betas(head, tmp_path):
    options = HEAD if head else {}
    if head:
        state = tiny(tmp_path, trains=True).network().state_dict()
        save_file(state, tmp_path / "weights.safetensors")
    trainer = make_trainer(tiny(tmp_path, trains=True, **options, **custom(tmp_path, 0.1)))
    trainer.step()
    trainer.save()
    assert make_trainer(tiny(tmp_path, trains=True, **options, **custom(tmp_path, 0.1))).iteration == 1
    changed = custom(tmp_path, 0.2)
    with pytest.raises(UserError, match=r"is of a training on something else \(process: "):
        make_trainer(tiny(tmp_path, trains=True, **options, **changed))
    older = torch.load(trainer.state_file, weights_only=True)
    del older["facts"]["process"]
    torch.save(older, trainer.state_file)
    assert make_trainer(tiny(tmp_path, trains=True, **options, **changed)).iteration == 1


# ------------------------------------------------------------------------------------------------ kinds of heads


@pytest.mark.parametrize("objective", ["eps", "sn", "npr"])
def test_the_rule_says_what_is_needed_and_the_file_what_there_is(objective, trained, tmp_path):
    changes = elsewhere(trained, train__objective=objective)
    made = tiny(tmp_path, **{**changes, "rule__name": "npr"})
    assert made.model.head["objective"] == "npr" and made.rule_facts.state_dependent
    with pytest.raises(UserError) as error:
        tiny(tmp_path, **{**changes, "rule__name": "sn"})
    head = trained / "head.safetensors"
    for part in (
        "config.rule.name = 'sn' needs",
        "= 'sn', got 'npr'",
        str(head),
        "name another in config.network.head_p",
    ):
        assert part in str(error.value)


def test_a_rule_is_refused_before_work(trained, tmp_path):
    with pytest.raises(UserError, match="got 'npr'"):
        tiny(tmp_path / "new", **elsewhere(trained, rule__name="sn"))
    assert not (tmp_path / "new").exists()


def test_a_head_that_is_not_there_is_told_when_it_is_looked_for(trained, tmp_path):
    changes = elsewhere(trained, network__head_pretrained="")
    for rule in ("sn", "npr"):
        with pytest.raises(UserError, match="no trained head was found"):
            _ = tiny(tmp_path / rule, **{**changes, "rule__name": rule}).model


def test_a_head_trained_meanwhile_is_seen(trained, tmp_path):
    """A session is made before the head is; the rule is held against what the file says then."""
    made = tiny(tmp_path, **elsewhere(trained, network__head_pretrained="", rule__name="sn"))
    train(made)
    with pytest.raises(UserError, match="'sn' needs a head .* got 'npr'"):
        _ = made.model


def test_heads_of_others_are_what_the_config_says(trained, tmp_path):
    bare = tmp_path / "bare.safetensors"
    save_file(read_weights(trained / "head.safetensors"), bare)
    changes = elsewhere(trained, network__head_pretrained=str(bare))
    assert tiny(tmp_path, **{**changes, "rule__name": "npr"}).model.head is not None
    with pytest.raises(UserError, match=r"got 'npr' \(by config\.train\.objective\); set that to what"):
        tiny(tmp_path, **{**changes, "rule__name": "sn"})


def test_advice_helps(trained, tmp_path):
    """The workdir's own head has precedence, so naming another would change nothing."""
    for name in ("weights", "head"):
        (tmp_path / f"{name}.safetensors").write_bytes((trained / f"{name}.safetensors").read_bytes())
    own = elsewhere(trained)
    for told, change in (("got 'npr'", {"rule__name": "sn"}), ("another model", {"network__head": "complex"})):
        with pytest.raises(UserError, match=f"{told}.*use another --workdir, or remove that file"):
            _ = tiny(tmp_path, **{**own, **change}).model
    named = tmp_path / "named"
    with pytest.raises(UserError, match=r"another model.*or name another in config\.network\.head_pretrained"):
        _ = tiny(named, **{**own, "network__head": "complex"}).model


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"network__head": "simple", "train__objective": "hybrid", "rule__name": "learned"},
            r"'hybrid' is about the network's own second output, and config\.network\.head = .*\(sn, npr, ocm, rel",
        ),
        (
            {"train__objective": "sn", "rule__name": "sn"},
            r"'sn' is about a head, and .*learned_variance = True.*head to simple or complex.*\(hybrid, vlb\)",
        ),
    ],
)
def test_one_second_output_is_not_read_as_another(changes, told, tmp_path):
    """A variance learned with the network and a head have the same shapes: objective and network say which it is."""
    with pytest.raises(UserError, match=told):
        tiny(tmp_path, trains=True, network__learned_variance=True, **changes)
    assert not list(tmp_path.iterdir())
