"""Heads: on every network, trained on a frozen trunk, kept in files of their own, refused where they do not belong."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adpm.errors import UserError
from adpm.nn import NETWORKS
from adpm.nn.checkpoint import read_header, save_weights, state_hash
from adpm.run.assembly import Session
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.config import load_config
from adpm.run.families import house
from adpm.run.measure import moments_key
from adpm.run.modes.train import make_trainer, train
from adpm.run.paths import path_for, sampler_key
from adpm.run.training import stratified
from adpm.run.weights import process_digest
from covariance.heads import FrozenTrunk
from tests.goldens import filled_state

ROOT = Path(__file__).parent.parent
HOUSE = house()
OBJECTIVES = sorted(name for name, kind in HOUSE.families["objective"].items() if kind.facts.trains_head)
FAMILIES = {
    "iddpm": {"name": "iddpm", "num_heads": 1},
    "ddpm": {"name": "ddpm"},
    "vp": {"name": "score_sde", "variant": "vp"},
    "ve": {"name": "score_sde", "variant": "ve"},
}
HEAD_KEYS = {
    ("iddpm", "simple"): ("out2.0", "out2.2"),
    ("iddpm", "complex"): ("out2.0.in_layers.0", "out2.1", "out2.3"),
    ("ddpm", "simple"): ("norm_out2", "conv_out2"),
    ("ddpm", "complex"): ("before_out.norm1", "norm_out2", "conv_out2"),
    ("vp", "simple"): ("gn_out2", "conv_out2"),
    ("ve", "complex"): ("before_out2.Conv_0", "gn_out2", "conv_out2"),
}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def network(family: str, head: str, dropout: float = 0.0):
    options = {k: v for k, v in FAMILIES[family].items() if k != "name"}
    build = NETWORKS[FAMILIES[family]["name"]].build
    made = build(
        (1, 8, 8), model_channels=8, channel_mult=(1, 2), num_res_blocks=1, dropout=dropout, head=head, **options
    )
    made.load_state_dict(made.state_dict() | filled_state(made))
    return made


def tiny(
    workdir: Path, *, weights: bool = True, objective: str = "npr", salt: str = "", trains: bool = False, **changes
) -> Session:
    """A session on the toy mixture with a filled trunk in its workdir; changes are "section__field=value"."""
    config = load_config("configs/toy.py", "unet")[0]
    basis_head = HOUSE.families["objective"][objective].facts.basis_head
    config.network.update(model_channels=8, num_heads=1, dropout=0.3, head="coordinates" if basis_head else "simple")
    config.train.update(batch_size=16, warmup=2, iterations=12, sample_every=0, objective=objective)
    config.moments.update(draws=12, times=8)
    config.cache = str(workdir / "cache")
    for name, value in changes.items():
        section, _, key = name.partition("__")
        config[section][key] = value
    with_head = config.network.head != "none" and config.denoiser.name == "network"
    if with_head and objective in HOUSE.families["rule"] and "rule__name" not in changes:
        config.rule.name = objective  # a model has its head where the rule reads it
    if weights and not (workdir / "weights.safetensors").exists():
        session = Session.make(config, workdir, HOUSE, trains=True)
        save_weights(workdir / "weights.safetensors", trunk_of(session, salt), {})
    return Session.make(config, workdir, HOUSE, trains)


def trunk_of(session: Session, salt: str = "") -> dict[str, torch.Tensor]:
    made = session.network()
    return {name: tensor for name, tensor in filled_state(made, salt).items() if not made.in_head(name)}


def write_head(workdir: Path, iterations: int = 2, **options) -> Path:
    train(tiny(workdir, train__iterations=iterations, trains=True, **options))
    return workdir / "head.safetensors"


# ------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("head", ["simple", "complex"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_network_takes_every_head(family, head):
    """The head comes second, its names are its own, and the first output is that of the network without it."""
    both, plain = network(family, head), network(family, "none")
    both.eval(), plain.eval()
    assert both.has_head and not plain.has_head and not plain.head()
    assert both.trunk_state().keys() == plain.state_dict().keys()
    names = [name for name in both.state_dict() if both.in_head(name)]
    assert (
        names == list(both.head().state_dict()) and set(names) == both.state_dict().keys() - plain.state_dict().keys()
    )
    for part in HEAD_KEYS.get((family, head), ()):
        assert f"{part}.weight" in names
    x, t = torch.rand(3, 1, 8, 8), torch.tensor([0.5, 3.0, 9.0])
    with torch.no_grad():
        y = both(x, t)
        assert y.shape == (3, 2, 8, 8) and torch.equal(y[:, :1], plain(x, t))
        assert y[:, 1:].std() > 0
        if family == "ve":  # the score is divided by sigma, the head is what its convolution says
            scaled = network(family, head).eval()
            h, emb = scaled.features(x, t)
            assert torch.equal(y[:, 1:], scaled.head_output(h, emb, scaled.head()))


@pytest.mark.parametrize("head", ["simple", "complex"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_head_says_nothing(family, head):
    options = {k: v for k, v in FAMILIES[family].items() if k != "name"}
    made = NETWORKS[FAMILIES[family]["name"]].build(
        (1, 8, 8), model_channels=8, channel_mult=(1,), num_res_blocks=1, head=head, **options
    )
    with torch.no_grad():
        assert made(torch.randn(2, 1, 8, 8), torch.tensor([1.0, 2.0]))[:, 1:].abs().max() < 1e-3


# ------------------------------------------------------------------------------------------------ the frozen trunk


@pytest.mark.parametrize("head", ["simple", "complex"])
@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_trunk_trains_the_head_alone(family, head):
    """The same outputs as the whole network, one pass of the trunk, and gradients for the head's parameters only."""
    whole = network(family, head, dropout=0.5).requires_grad_(False)
    frozen = FrozenTrunk(whole)
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([0.5, 3.0])
    calls = []
    features = whole.features
    whole.features = lambda *args: calls.append(torch.is_grad_enabled()) or features(*args)
    y = frozen.eval()(x, t)
    assert calls == [False]
    assert torch.equal(y, whole(x, t))
    y[:, 1:].sum().backward()
    wanted = whole.head().state_dict().keys()
    assert (
        {name.removeprefix("head.") for name, _ in frozen.named_parameters()}
        == wanted
        == frozen.head.state_dict().keys()
    )
    assert {name for name, p in whole.named_parameters() if p.grad is not None} == wanted


def test_trunk_dropout_is_off_unless_asked_for():
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([0.5, 3.0])
    still, noisy = (
        FrozenTrunk(network("vp", "simple", 0.5)).train(),
        FrozenTrunk(network("vp", "simple", 0.5), True).train(),
    )
    assert torch.equal(still(x, t), still(x, t)) and not torch.equal(noisy(x, t), noisy(x, t))
    assert torch.equal(noisy.eval()(x, t), still.eval()(x, t))
    block = FrozenTrunk(network("vp", "complex", 0.5)).train()
    assert not torch.equal(block(x, t)[:, 1:], block(x, t)[:, 1:]), "the head's own dropout is on"


def test_a_trunk_with_a_learned_variance_shows_its_mean_alone():
    """The head takes the place of the trunk's own second output, here as in the whole network."""
    made = NETWORKS["iddpm"].build(
        (1, 8, 8), model_channels=8, channel_mult=(1,), num_res_blocks=1, num_heads=1, head="simple",
        learned_variance=True,
    )  # fmt: skip
    made.load_state_dict(made.state_dict() | filled_state(made))
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([0.5, 3.0])
    with torch.no_grad():
        found, wanted = FrozenTrunk(made).eval()(x, t), made.eval()(x, t)
    assert found.shape == (2, 2, 8, 8) and torch.equal(found, wanted)


def test_the_trunk_goes_where_the_head_goes():
    frozen = FrozenTrunk(network("iddpm", "simple")).double()
    assert {p.dtype for p in (*frozen._trunk[0].parameters(), *frozen.parameters())} == {torch.float64}


def test_a_copy_shares_the_trunk_and_owns_its_head():
    frozen = FrozenTrunk(network("iddpm", "simple"))
    other = copy.deepcopy(frozen)
    assert other._trunk[0] is frozen._trunk[0] and not list(frozen._trunk[0].parameters()) == []
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    x, t = torch.rand(2, 1, 8, 8), torch.tensor([0.5, 3.0])
    mine, theirs = frozen.eval()(x, t), other.eval()(x, t)
    assert torch.equal(mine[:, :1], theirs[:, :1]) and not torch.allclose(mine[:, 1:], theirs[:, 1:])
    assert torch.equal(mine, frozen._trunk[0](x, t))


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_leaves_the_trunk_bit_for_bit(objective, tmp_path):
    """Ten steps with weight decay and dropout, and an average: the head moves, no bit of the trunk does."""
    session = tiny(
        tmp_path, objective=objective, train__weight_decay=0.1, train__trunk_dropout=True, train__ema_decay=0.5
    )
    trainer = make_trainer(session)
    whole = session.trunk.network
    trunk, head = ({k: v.clone() for k, v in s.items()} for s in (whole.trunk_state(), whole.head().state_dict()))
    for _ in range(10):
        values = trainer.step()
    assert all(torch.equal(v, trunk[k]) for k, v in whole.trunk_state().items())
    assert all(not torch.equal(v, head[k]) for k, v in whole.head().state_dict().items())
    assert np.isfinite(values["train/loss"]) and values["train/grad_norm"] > 0
    count = sum(p.numel() for p in whole.head().parameters())
    for module in (trainer.network, trainer.ema.module):
        assert sum(p.numel() for p in module.parameters()) == count
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in held) == count
    trainer.save()
    state = torch.load(tmp_path / "train_head_state.pt", weights_only=True)
    assert {k.removeprefix("head.") for k in state["network"]} == head.keys()


@pytest.mark.parametrize("options", [{"objective": "npr"}, {"objective": "relative"}, {"objective": "vlb"}])
def test_resume_is_bit_for_bit(options, tmp_path):
    """12 iterations in one go, and 5 + 7, give the same parameters; vlb with its sampler's history."""
    if options["objective"] == "vlb":
        options = {
            **options,
            "weights": False,
            "trains": True,
            "network__head": "none",
            "network__learned_variance": True,
            "train__times": "loss_aware",
            "process__steps": 20,
            "process__name": "cosine",
        }
    whole = make_trainer(tiny(tmp_path / "whole", **options))
    first = make_trainer(tiny(tmp_path / "parts", **options))
    if options["objective"] == "vlb":  # 12 x 16 losses do not fill 20 x 10: begin with a full history
        for trainer in (whole, first):
            t = np.tile(trainer.process.times[1:], 10)
            trainer.times.update(t, 1.0 + np.sin(np.arange(len(t))))
            assert trainer.times.warm
    for _ in range(12):
        whole.step()
    for _ in range(5):
        first.step()
    first.save()
    torch.manual_seed(99)
    second = make_trainer(tiny(tmp_path / "parts", **options))
    assert second.iteration == 5
    for _ in range(7):
        second.step()
    for a, b in ((whole.network, second.network), (whole.ema.module, second.ema.module)):
        assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert whole.step() == second.step()


def test_heads_learn(tmp_path):
    """On the shipped digits model a relative head starts at the analytic scalar, loss E r^2/Var_t = 1, and beats it."""
    config = load_config("configs/digits.py")[0]
    config.network.head, config.train.objective = "complex", "relative"
    config.moments.update(draws=40, times=12)
    config.train.update(batch_size=64, warmup=5, schedule="constant", learning_rate=3e-3, sample_every=0)
    trainer = make_trainer(Session.make(config, tmp_path, HOUSE, trains=True))
    losses = [trainer.step()["train/loss"] for _ in range(80)]
    assert np.mean(losses[:5]) == pytest.approx(1.0, abs=0.15)
    assert np.mean(losses[-10:]) < 0.8, losses[-10:]


def test_losses_are_weighted_and_fed_back_unweighted(tmp_path):
    """The step's loss is the mean of weight * loss; the sampler hears the losses themselves."""
    learned = {"network__head": "none", "network__learned_variance": True, "weights": False, "trains": True}
    trainer = make_trainer(tiny(tmp_path, objective="vlb", train__times="loss_aware", **learned))
    draw, heard, weights = trainer.times.draw, [], np.linspace(0.5, 2.0, 16)
    trainer.times.draw = lambda u: (draw(u)[0], weights)
    trainer.times.update = lambda t, losses: heard.append((t, losses))
    values = trainer.step()
    ((t, losses),) = heard
    assert np.array_equal(t, draw(stratified(0, 0, 16))[0])
    assert values["train/loss"] == pytest.approx((weights * losses).mean(), rel=1e-5) != losses.mean()


def test_a_state_of_another_trunk_is_refused(tmp_path):
    trainer = make_trainer(tiny(tmp_path))
    trainer.step()
    trainer.save()
    save_weights(tmp_path / "weights.safetensors", trunk_of(tiny(tmp_path), "other/"), {})
    with pytest.raises(UserError, match=r"head_state\.pt' is of a training on something else \(trunk: .*remove it"):
        make_trainer(tiny(tmp_path))


def test_a_state_of_other_moments_is_refused(tmp_path):
    """A relative head is in units of Var_t, so it goes on with the same one; an SN head does not ask."""
    for objective, matters in (("relative", True), ("sn", False)):
        trainer = make_trainer(tiny(tmp_path / objective, objective=objective))
        trainer.step()
        trainer.save()
        other = tiny(tmp_path / objective, objective=objective, moments__draws=14)
        if matters:
            with pytest.raises(UserError, match=r"something else \(moments: "):
                make_trainer(other)
        else:
            assert make_trainer(other).iteration == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"network__head": "none"}, r"'npr' trains a head; set config\.network\.head to simple or complex"),
        (
            {"objective": "eps"},
            r"'eps' does not train a head, but .*head = 'simple'.*\(sn, npr, ocm, relative, spectral_head\)",
        ),
        ({"objective": "hybrid", "network__head": "none"}, r"set config\.network\.learned_variance = True"),
        ({"train__times": "loss_aware"}, r"'loss_aware' goes with .*\(vlb\), not with 'npr'"),
        (
            {
                "objective": "hybrid",
                "network__head": "none",
                "network__learned_variance": True,
                "train__times": "loss_aware",
            },
            r"'loss_aware' goes with .*\(vlb\), not with 'hybrid'",
        ),
        (
            {"objective": "eps", "network__head": "none", "train__trunk_dropout": True},
            r"trunk_dropout = True does not go with config\.train\.objective = 'eps'.*of sn, .*, spectral_head",
        ),
        ({"denoiser__name": "ideal"}, r"'ideal' has nothing to train"),
    ],
)
def test_what_does_not_go_together_is_refused_before_work(changes, told, tmp_path):
    with pytest.raises(UserError, match=told):
        make_trainer(tiny(tmp_path, **changes))
    assert not (tmp_path / "config.json").exists()


def test_the_bound_on_an_sde_is_refused_before_work(tmp_path):
    config = load_config("configs/digits_sde.py", "vp")[0]
    config.network.update(name="iddpm", attention_resolutions=None, learned_variance=True)
    config.train.objective = "hybrid"
    with pytest.raises(
        UserError, match="bound the steps of a discrete process, .* use config.process.name = linear, cosine"
    ):
        make_trainer(Session.make(config, tmp_path, HOUSE, trains=True))
    assert not (tmp_path / "config.json").exists()


def test_a_head_without_a_trunk_says_what_to_train(tmp_path):
    with pytest.raises(UserError, match=r"weights\.safetensors'; .*objective = 'npr' trains a head on trained weights"):
        make_trainer(tiny(tmp_path, weights=False))


# ------------------------------------------------------------------------------------------------ files


def test_train_mode_leaves_a_head_file(tmp_path, capsys):
    """Only the head's tensors, the average's; a header that says what it is of; scalars in a folder of their own."""
    path = write_head(tmp_path, 4, train__log_every=2, train__test_every=4)
    told = capsys.readouterr().out
    assert str(path) in told and "test loss" in told
    session = tiny(tmp_path)
    whole = session.model.network
    stored, header = load_file(path), read_header(path)
    assert stored.keys() == whole.head().state_dict().keys()
    state = torch.load(tmp_path / "train_head_state.pt", weights_only=True)
    assert all(torch.equal(v, state["ema"][f"module.head.{k}"]) for k, v in stored.items())
    assert header["objective"] == "npr" and header["iterations"] == 4 and header["torch"] == torch.__version__
    assert header["trunk"] == state_hash(whole.trunk_state()) == session.model.weights == session.identity["weights"]
    assert header["process"] == process_digest(session.process) and header["config"]["train"]["objective"] == "npr"
    assert all(torch.equal(v, stored[k]) for k, v in whole.head().state_dict().items())
    assert str(path) in session.model.source
    seen = EventAccumulator(str(tmp_path / "tensorboard" / "train_head"))
    seen.Reload()
    assert [e.step for e in seen.Scalars("train/loss")] == [2, 4] and [e.step for e in seen.Scalars("test/loss")] == [4]


def test_heads_share_their_trunks_moments_and_not_their_samples(tmp_path):
    """The moments' key does not see a head; the protocol of samples tells every head from another, and from none."""
    write_head(tmp_path)
    plain = tiny(tmp_path, network__head="none", objective="eps")
    first = tiny(tmp_path)
    other = tiny(tmp_path / "other", network__pretrained=str(tmp_path / "weights.safetensors"), weights=False)
    write_head(tmp_path / "other", 3, network__pretrained=str(tmp_path / "weights.safetensors"), weights=False)
    keys, heads, rest = set(), [], []
    for session in (plain, first, other):
        session = session.again({"trajectory.name": "even", "trajectory.steps": 4})
        keys.add(moments_key(session))
        key = sampler_key(session, path_for(session))
        heads.append(key.pop("head"))
        rest.append({k: v for k, v in key.items() if k not in ("own", "moments")})
    assert len(keys) == 1
    assert rest[0] == rest[1] == rest[2] and heads[0] is None
    assert heads[1]["weights"] != heads[2]["weights"]
    assert heads[1]["objective"] == "npr" and heads[1]["kind"] == "simple"


def test_relative_training_and_sampling_use_one_moments_file(tmp_path, capsys):
    write_head(tmp_path, objective="relative")
    assert "measuring them" in capsys.readouterr().out
    (file,) = tmp_path.glob("cache/moments-*.npz")
    places = [f"--workdir={tmp_path}", f"--config.cache={tmp_path / 'cache'}"]
    argv = ["main.py", "--config=configs/toy.py:unet", "--mode=sample", *places]
    tiny_ = ["--config.network.model_channels=8", "--config.network.num_heads=1", "--config.network.dropout=0.3"]
    few = ["--config.moments.draws=12", "--config.moments.times=8", "--config.sampling.samples=2"]
    head = ["--config.network.head=simple", "--config.rule.name=relative", "--config.trajectory.steps=4"]
    assert run([*argv, *tiny_, *few, *head], MODES) == 0
    assert "measuring them" not in capsys.readouterr().out and list(tmp_path.glob("cache/moments-*.npz")) == [file]
    (folder,) = (tmp_path / "samples").iterdir()
    assert json.loads((folder / "protocol.json").read_text())["head"]["objective"] == "relative"


def test_an_untrained_head_names_the_places(tmp_path):
    session = tiny(tmp_path)
    _ = session.trunk
    with pytest.raises(UserError) as error:
        _ = session.model
    for part in ("head = 'simple'", str(tmp_path / "head.safetensors"), "head_pretrained = ''", "--mode=train"):
        assert part in str(error.value)
    named = tiny(tmp_path, network__head_pretrained="nowhere.safetensors")
    with pytest.raises(UserError, match=r"head_pretrained = 'nowhere\.safetensors' does not exist; train it"):
        _ = named.model


def test_a_named_head_is_used_until_the_workdir_has_its_own(tmp_path):
    path = write_head(tmp_path / "a")
    other = {"network__pretrained": str(tmp_path / "a" / "weights.safetensors"), "weights": False}
    session = tiny(tmp_path / "b", network__head_pretrained=str(path), **other)
    named = session.model.head
    assert str(path) in session.model.source
    write_head(tmp_path / "b", 5, **other)
    own = tiny(tmp_path / "b", network__head_pretrained=str(path), **other).model
    assert own.head["weights"] != named["weights"] and str(tmp_path / "b" / "head.safetensors") in own.source


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_published_files_hold_backbone_and_head(suffix, tmp_path):
    """One file of others, no header: the head is taken from it, as it is; so is a head with a backbone around it."""
    session = tiny(tmp_path, weights=False, trains=True)
    state = filled_state(session.network())
    file = tmp_path / f"published.{suffix}"
    torch.save(state, file) if suffix == "pth" else save_file(state, file)
    model = tiny(tmp_path, weights=False, network__pretrained=str(file)).model
    assert all(torch.equal(v, state[k]) for k, v in model.network.state_dict().items())
    assert model.head["objective"] is None and model.source == str(file)
    save_weights(tmp_path / "trunk.safetensors", trunk_of(session), {})
    apart = {"network__pretrained": str(tmp_path / "trunk.safetensors"), "network__head_pretrained": str(file)}
    assert tiny(tmp_path / "b", weights=False, **apart).model.head["weights"] == model.head["weights"]
    with pytest.raises(UserError, match=r"network\.head: 'simple' there, 'none' now"):
        _ = tiny(tmp_path, weights=False, network__pretrained=str(file), network__head="none").model
    with pytest.raises(UserError, match=r"do not fit the network \(14 missing: out2\.0\.emb_layers"):
        _ = tiny(tmp_path, weights=False, network__pretrained=str(file), network__head="complex").model


REFUSED = {
    "schedule": ({"process__name": "cosine"}, r"another model \(process\.name: 'linear' there, 'cosine' now\)"),
    "time label": ({"denoiser__time_shift": 1}, r"another model \(denoiser\.time_shift: 0 there, 1 now\)"),
    "size": ({"network__head": "complex"}, r"another model \(network\.head: 'simple' there, 'complex' now\)"),
    "trunk": ({"salt": "other/"}, r"trained on another trunk \(weights [0-9a-f]{16} there, [0-9a-f]{16} in"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_heads_of_others_are_refused(case, tmp_path):
    """Heads of two trunks have the same names and shapes: the header tells them apart."""
    path = write_head(tmp_path / "a")
    changes, told = REFUSED[case]
    session = tiny(tmp_path / "b", network__head_pretrained=str(path), **changes)
    _ = session.trunk
    with pytest.raises(UserError, match=rf"head '.*head\.safetensors' was trained .*{told}|head '.*' was {told}"):
        _ = session.model


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"denoiser__clip": True}, r"denoiser\.clip: False there, True now"),
        ({"rule__estimator": "gamma"}, r"rule\.estimator: 'residual' there, 'gamma' now"),
    ],
)
def test_a_relative_head_depends_on_what_its_variance_is_about(change, told, tmp_path):
    path = write_head(tmp_path / "a", objective="relative")
    with pytest.raises(UserError, match=told):
        _ = tiny(tmp_path / "b", network__head_pretrained=str(path), objective="relative", **change).model
    npr = write_head(tmp_path / "c")
    assert tiny(tmp_path / "d", network__head_pretrained=str(npr), **change).model.head is not None


def test_betas_of_the_same_name_are_another_process(tmp_path):
    """A file of betas keeps its name when its contents change; the head's header has the process itself."""
    betas = tmp_path / "betas.txt"
    np.savetxt(betas, np.full(20, 0.1))
    custom = {"process__name": "custom", "process__steps": 0, "process__betas_file": str(betas)}
    path = write_head(tmp_path / "a", **custom)
    np.savetxt(betas, np.full(20, 0.2))
    with pytest.raises(UserError, match="was trained for another process"):
        _ = tiny(tmp_path / "b", network__head_pretrained=str(path), **custom).model


def test_head_pretrained_needs_a_head(tmp_path):
    with pytest.raises(UserError, match=r"head_pretrained = 'x' goes with a head, but config\.network\.head = 'none'"):
        tiny(tmp_path, network__head="none", network__head_pretrained="x")


def test_weights_with_a_learned_variance_say_what_made_it(tmp_path):
    """hybrid's second output is a variance; a network trained by another objective has the same names and shapes."""
    learned = {"network__head": "none", "network__learned_variance": True, "weights": False}
    path = write_head(tmp_path, 1, objective="hybrid", **learned).with_name("weights.safetensors")
    with safe_open(str(path), framework="pt") as file:
        assert file.get_tensor("out.2.weight").shape[0] == 2
    assert tiny(tmp_path, objective="hybrid", **learned).model.head is None
    with pytest.raises(UserError, match=r"train\.objective: 'hybrid' there, 'eps' now"):
        _ = tiny(tmp_path, objective="eps", **learned).model


def test_a_workdir_holds_one_head_beside_its_trunk(tmp_path):
    """The trunk's workdir takes a head, whatever the trunk was trained with; a second kind of head does not fit."""
    train(tiny(tmp_path, weights=False, trains=True, objective="eps", network__head="none", train__iterations=1))
    write_head(tmp_path)
    assert tiny(tmp_path, network__head="none", objective="eps", train__iterations=1).model.head is None
    with pytest.raises(UserError, match=r"another config \(head: train\.objective: 'npr' there, 'sn' now\)"):
        make_trainer(tiny(tmp_path, objective="sn", train__iterations=2, rule__name="analytic"))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_heads_in_continuous_time(objective, tmp_path, capsys):
    """The variants of digits_sde on a trunk in the same workdir; an SDE's reference times are free for a head, too."""

    def session(folder: str = "own", head: str = "", trains: bool = False, **process) -> Session:
        variant = {"spectral_head": "spectral"}.get(objective, objective)
        config = load_config("configs/digits_sde.py", f"vp_{variant}")[0]
        config.network.update(model_channels=8, pretrained=str(tmp_path / "trunk.safetensors"), head_pretrained=head)
        config.moments.update(draws=12, times=8)
        config.train.update(batch_size=8, iterations=3, warmup=1)
        config.process.update(process)
        config.cache = str(tmp_path / "cache")
        return Session.make(config, tmp_path / folder, HOUSE, trains)

    save_file(trunk_of(session(trains=True)), tmp_path / "trunk.safetensors")
    train(session(trains=True))
    head = tmp_path / "own" / "head.safetensors"
    assert read_header(head)["process"] is None
    assert session(steps=50).model.head["objective"] == objective
    assert session("second", str(head), t_min=0.1).model.head["objective"] == objective
    with pytest.raises(UserError, match=r"head '.*' was trained for another model \(process\.beta_max: 20\.0 there"):
        _ = session("third", str(head), beta_max=10.0).model
