"""What a comparison consists of: the product of its axes, less what cannot exist, each cell a session of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from safetensors import safe_open
from safetensors.torch import save_file

from adpm.errors import UserError
from adpm.run.compare.cells import Cells
from adpm.run.compare.fields import AXES, shared_names
from adpm.run.compare.grid import Grid
from adpm.run.compare.method import Method
from adpm.run.config import load_config
from adpm.run.families import house
from adpm.run.metrics import FrechetDistance
from tests.cifar_archive import archive
from tests.test_sde_modes import cifar_overrides

HOUSE = house()


def toy(formulations: tuple[str, ...] = ("discrete", "vp"), **grid: tuple) -> ConfigDict:
    config = load_config("configs/compare_toy.py", "tiny")[0]
    for name in set(config.formulations) - set(formulations):
        del config.formulations[name]
    config.grid.update(grid)
    return config


def names(grid: Grid) -> list[str]:
    return [method.name for method in grid.plan[0]]


def test_the_product_of_the_axes_once_each(tmp_path):
    """3 rules x 2 trajectories x 2 etas, less large with eta 0, in both formulations."""
    grid = Grid(toy(), tmp_path, house())
    methods, skipped = grid.plan
    assert len(set(names(grid))) == len(methods) == 2 * (3 * 2 * 2 - 2)
    assert all(steps == (3, 6) for steps in methods.values())
    assert {item.method.name for item in skipped} == {
        f"{formulation}-large-{path}-eta0" for formulation in ("discrete", "vp") for path in ("even", "least_cost")
    }
    assert all("'large' goes with config.sampling.eta = 1 only, got 0" in item.why for item in skipped)


def test_what_a_solver_makes_no_use_of_is_no_axis_for_it(tmp_path):
    """Euler-Maruyama has no rule, and the probability flow no eta either."""
    solvers = ("euler_maruyama", "probability_flow_euler")
    grid = Grid(toy(("vp",), solvers=solvers, trajectories=("even",), etas=(1.0, 0.5)), tmp_path, house())
    told = ["vp-euler_maruyama-even-eta1", "vp-euler_maruyama-even-eta0.5", "vp-probability_flow_euler-even"]
    assert names(grid) == told
    assert list(grid.plan[0])[-1] == Method("vp", None, "even", "probability_flow_euler", None)
    assert not any(grid.has_bound(method) for method in grid.plan[0])


def test_cells_that_cannot_exist_are_named_and_the_rest_stays(tmp_path):
    config = toy(("discrete", "ve"), solvers=("reverse_gaussian", "euler_maruyama"), rules=("small", "sn"), etas=(1.0,))
    config.grid.trajectories, config.grid.steps = ("even", "quadratic"), (3, 40)
    grid = Grid(config, tmp_path, house())
    why = {(item.method.name, item.steps): item.why for item in grid.plan[1]}
    assert "a discrete schedule has no drift" in why.pop(("discrete-euler_maruyama-even-eta1", (3, 40)))
    assert "SDE" in why.pop(("discrete-euler_maruyama-quadratic-eta1", (3, 40)))
    for name in ("discrete", "ve"):
        assert "steps = 40 at N = 1000 visits" in why.pop((f"{name}-small-quadratic-eta1", (40,)))
        for path in ("even", "quadratic"):
            assert "'sn' needs a head" in why.pop((f"{name}-sn-{path}-eta1", (3, 40)))
    assert "visits" in why.pop(("ve-euler_maruyama-quadratic-eta1", (40,)))
    assert not why
    assert {method.name: steps for method, steps in grid.plan[0].items()} == {
        "discrete-small-even-eta1": (3, 40),
        "discrete-small-quadratic-eta1": (3,),
        "ve-small-even-eta1": (3, 40),
        "ve-small-quadratic-eta1": (3,),
        "ve-euler_maruyama-even-eta1": (3, 40),
        "ve-euler_maruyama-quadratic-eta1": (3,),
    }


def test_a_solver_with_a_history_is_run_with_the_steps_that_it_can_do(tmp_path):
    """UniPC of order 3 has no path of 2 steps, and is there with 3."""
    grid = Grid(toy(("vp",), solvers=("unipc",), trajectories=("even",), steps=(2, 3)), tmp_path, house())
    assert list(grid.plan[0].values()) == [(3,)]
    (skipped,) = grid.plan[1]
    assert skipped.steps == (2,) and "config.sampling.order = 3 needs a path of at least as many steps" in skipped.why


def test_a_plan_that_cannot_be_priced_is_known_before_anything_is_measured(tmp_path):
    config = toy(("discrete",), etas=(1.0, 0.0), trajectories=("least_cost",), rules=("small", "analytic"))
    config.trajectory.cost = "measured"
    grid = Grid(config, tmp_path, house())
    assert names(grid) == ["discrete-small-least_cost-eta1", "discrete-analytic-least_cost-eta1"]
    assert all("no finite bound to plan on" in item.why for item in grid.plan[1])
    assert not list(tmp_path.rglob("*.npz"))


def test_a_formulation_without_weights_is_left_out_by_name(tmp_path):
    config = load_config("configs/compare_digits.py", "quick")[0]
    config.formulations.discrete.pretrained = "nowhere.safetensors"
    config.grid.rules, config.grid.trajectories, config.grid.etas = ("small", "sn"), ("even",), (1.0,)
    grid = Grid(config, tmp_path, house())
    assert names(grid) == ["ve-small-even-eta1", "vp-small-even-eta1", "vp-sn-even-eta1"]
    assert {item.method.name for item in grid.plan[1] if "'nowhere.safetensors' does not exist" in item.why} == {
        "discrete-small-even-eta1",
        "discrete-sn-even-eta1",
    }


def test_a_cell_is_the_formulations_config_with_the_shared_sections(tmp_path):
    config = toy(("vp",))
    config.moments.draws, config.rule.estimator, config.likelihood.decoder = 33, "gamma", "published"
    grid = Grid(config, tmp_path, house())
    method = Method("vp", "small", "even", "reverse_gaussian", 0.0)
    session = grid.session(method, 6, seed=1)
    alone = load_config("configs/toy_sde.py", "vp")[0]
    for name in ("data", "process", "network", "denoiser", "train"):
        assert session.config[name].to_dict() == alone[name].to_dict()
    assert session.config.moments.draws == 33
    assert session.config.rule.estimator == "residual"  # `small` and the published decoder read none
    analytic = grid.session(Method("vp", "analytic", "even", "reverse_gaussian", 0.0), 6)
    assert analytic.config.rule.estimator == "gamma"
    assert (session.config.rule.name, session.config.sampling.eta) == ("small", 0.0)
    assert (session.config.trajectory.name, session.config.trajectory.steps, session.config.seed) == ("even", 6, 1)
    assert session.workdir == tmp_path / "vp" and session.trunk is grid.root("vp", None).trunk


def test_heads_belong_to_their_rules(tmp_path):
    grid = Grid(load_config("configs/compare_digits.py")[0], tmp_path, house())
    for formulation in ("discrete", "vp"):
        root = grid.root(formulation, None)
        for rule in ("sn", "npr", "relative"):
            session = grid.session(Method(formulation, rule, "even", "reverse_gaussian", 1.0), 5)
            assert session.model.head["objective"] == rule
            assert session.trunk.weights == root.trunk.weights
        assert grid.session(Method(formulation, "small", "even", "reverse_gaussian", 1.0), 5).model.head is None


def _records(workdir, formulation, rule, **head):
    """The names of a rule's records, with its head's config or file changed."""
    config = load_config("configs/compare_digits.py", "quick")[0]
    config.formulations = {formulation: config.formulations[formulation]}
    config.formulations[formulation].heads.sn.update(head)
    config.grid.update(rules=("small", "sn"), trajectories=("even",), etas=(1.0,), steps=(10,))
    cells = Cells(Grid(config, workdir, house()))
    method = next(method for method in cells.grid.plan[0] if method.rule == rule)
    return {record.file.name for record in cells.of(method)}


def test_another_head_makes_other_cells_of_its_rule_and_no_others(tmp_path):
    with safe_open("pretrained/digits_sn.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        metadata = file.metadata()
    (scaled, *_) = (name for name in tensors if name.endswith("bias"))
    save_file({**tensors, scaled: tensors[scaled] + 0.125}, tmp_path / "other.safetensors", metadata)

    other = str(tmp_path / "other.safetensors")
    plain = _records(tmp_path, "discrete", "sn")
    assert plain and not plain & _records(tmp_path, "discrete", "sn", pretrained=other)
    assert _records(tmp_path, "discrete", "small") == _records(tmp_path, "discrete", "small", pretrained=other)


def test_other_reference_times_under_a_head_make_other_cells(tmp_path):
    """They are free for a head, and its config may choose others than the trunk's, whose moments are in the key."""
    file = tmp_path / "later.py"
    file.write_text(
        "from adpm.run.config import load_config\n\ndef get_config():\n"
        "    config = load_config('configs/digits_sde.py', 'vp_sn')[0]\n"
        "    config.process.t_min = 0.01\n    return config\n"
    )
    plain = _records(tmp_path, "vp", "sn")
    assert plain and not plain & _records(tmp_path, "vp", "sn", config=str(file))


def test_what_a_comparison_shares_is_what_its_cells_may_read():
    """Neither what the grid chooses, nor anything of the model, nor what only other modes read."""
    names_ = set(shared_names(house().table))
    assert {"moments.draws", "rule.estimator", "rule.average", "trajectory.cost", "sampling.corrector_snr"} <= names_
    assert {"likelihood.split", "likelihood.decoder", "sampling.samples", "device", "precision"} <= names_
    assert not names_ & {axis.sets for axis in AXES.values()}
    assert not {name for name in names_ if name.split(".")[0] in ("data", "process", "network", "denoiser", "train")}
    assert not names_ & {"likelihood.method", "likelihood.probes", "moments.file", "sampling.grid"}


WRONG = {
    "unknown rule": ({"rules": ("smal",)}, r"config\.grid\.rules = 'smal' is unknown \(did you mean 'small'\?\)"),
    "unknown path": ({"trajectories": ("evn",)}, r"config\.grid\.trajectories = 'evn' is unknown"),
    "unknown solver": ({"solvers": ("euler",)}, r"config\.grid\.solvers = 'euler' is unknown"),
    "empty axis": ({"rules": ()}, r"config\.grid\.rules is empty"),
    "twice": ({"steps": (3, 3)}, r"config\.grid\.steps = \(3, 3\) names something twice"),
    "no steps": ({"steps": (0, 3)}, r"config\.grid\.steps = \(0, 3\) must be whole numbers of at least 1"),
    "not shown": ({"steps": (4, 5)}, r"config\.shown = 3 must be one of config\.grid\.steps = \(4, 5\)"),
    "negative seed": ({"seeds": (-1,)}, r"config\.grid\.seeds = \(-1,\) must be whole numbers of at least 0"),
}


@pytest.mark.parametrize("fields, told", WRONG.values(), ids=WRONG)
def test_a_wrong_axis_is_told(fields, told, tmp_path):
    with pytest.raises(UserError, match=told):
        Grid(toy(**fields), tmp_path, house())


def test_other_wrong_fields_are_told(tmp_path):
    config = toy()
    config.formulations = ConfigDict()
    with pytest.raises(UserError, match=r"config\.formulations is empty"):
        Grid(config, tmp_path, house())
    config = toy()
    config.formulations["tables"] = config.formulations.vp
    with pytest.raises(UserError, match=re.escape("config.formulations: 'tables' is no name for a folder")):
        Grid(config, tmp_path, house())
    config = toy()
    config.distance.features = "pixel"
    with pytest.raises(UserError, match=r"config\.distance\.features = 'pixel' is unknown \(did you mean 'pixels'\?\)"):
        Grid(config, tmp_path, house())
    with pytest.raises(UserError, match="this config has no grid of models to compare"):
        Grid(load_config("configs/toy.py")[0], tmp_path, house())


def test_cifar10_names_what_is_missing(tmp_path):
    config = load_config("configs/compare_cifar10.py", "quick")[0]
    for name in config.formulations:  # wherever the tests run, the archive is not there
        config.formulations[name].config = _wrapped(tmp_path / f"{name}.py", config.formulations[name].config, {})
    methods, skipped = Grid(config, tmp_path, house()).plan
    without_head = [item for item in skipped if item.method.rule not in ("sn", "npr")]
    assert not methods and all("cifar-10-python.tar.gz" in item.why for item in without_head)
    assert {item.method.formulation for item in without_head} == {"discrete", "cosine", "vp", "subvp", "ve"}


def test_cifar10_with_weights_of_one_formulation(tmp_path, monkeypatch):
    """On small networks: the other formulation is left out, features are asked for before work, and pixels do."""
    # The distance itself takes 15 s in 3,072 dimensions.
    monkeypatch.setattr(FrechetDistance, "__call__", lambda *_: 1.0)
    archive(tmp_path / "data")
    config = load_config("configs/compare_cifar10.py", "quick")[0]
    for name in ("discrete", "cosine", "subvp"):
        del config.formulations[name]
    for name in ("vp", "ve"):
        fields = dict(
            option.removeprefix("--config.").split("=") for option in cifar_overrides(tmp_path / "data", name)
        )
        weights = fields.pop("network.pretrained")
        config.formulations[name].config = _wrapped(tmp_path / f"{name}.py", config.formulations[name].config, fields)
    config.formulations.vp.pretrained = weights.replace("_ve", "_vp")
    config.grid.update({"rules": ("analytic",), "trajectories": ("even",), "etas": (1.0,), "steps": (2,)})
    config.sampling.samples = config.likelihood.images = 3
    config.moments.draws, config.moments.times, config.shown = 6, 6, 2
    config.moments.implausible = True  # random weights
    grid = Grid(config, tmp_path / "run", house())
    assert names(grid) == ["vp-analytic-even-eta1"]
    assert [item.method.formulation for item in grid.plan[1] if "there are no weights" in item.why] == ["ve"]
    (method,) = grid.plan[0]
    with pytest.raises(UserError, match=r"config\.distance\.features = 'inception' needs pytorch-fid"):
        Cells(grid).missing(method)
    assert not list(tmp_path.rglob("*.npz"))
    config.distance.features = "pixels"
    cells = Cells(Grid(config, tmp_path / "run", house()))
    assert len(cells.missing(method)) == 2 and cells.measure(method) == [] and not cells.missing(method)


def _wrapped(file: Path, source: str, fields: dict[str, str]) -> str:
    """A config file that is another one with these fields."""
    path, _, variant = source.partition(":")
    lines = [f"    config.{name} = {_literal(value)}" for name, value in fields.items()]
    told = "\n".join(
        [
            "from adpm.run.config import load_config",
            "",
            "def get_config():",
            f"    config = load_config({path!r}, {variant!r})[0]",
            f"    config.data.folder = {str(file.parent / 'data')!r}",
            *lines,
            "    return config",
        ]
    )
    file.write_text(told)
    return str(file)


def _literal(value: str) -> str:
    return value if value[0] in "(0123456789" or value in ("True", "False") else repr(value)
