"""Continuous time from the command line: every mode, solver and preset, and the headline command on CIFAR-10."""

from __future__ import annotations

import io
import json
import math
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from adpm.errors import UserError
from adpm.run.assembly import Session
from adpm.run.cifar10 import ARCHIVE, TRAIN
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.config import load_config
from adpm.run.data import toy
from adpm.run.families import house
from sde.process import PROCESSES
from sde.solver import PRESETS, SOLVERS
from tests.cifar_archive import archive
from tests.goldens import DATA, golden_json

ROOT = Path(__file__).parent.parent
FEW = ("--config.moments.draws=60", "--config.moments.times=30")


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def go(workdir: Path, config: str, mode: str, *overrides: str) -> int:
    places = [f"--workdir={workdir}", f"--config.cache={workdir / 'cache'}"]
    return run(["main.py", f"--config=configs/{config}", f"--mode={mode}", *places, *overrides], MODES)


def samples_in(workdir: Path) -> np.ndarray:
    (file,) = workdir.glob("samples/*/samples.npy")
    return np.load(file).astype(np.float64)


@pytest.mark.parametrize("name", PROCESSES)
def test_samples_and_bound_in_an_exact_world(tmp_path, name):
    """Least-cost steps on each SDE: the samples' spread is the data's, the bound lies above the exact -log p."""
    assert (
        go(
            tmp_path,
            f"toy_sde.py:{name}",
            "sample",
            *FEW,
            "--config.sampling.samples=1000",
            "--config.trajectory.steps=40",
        )
        == 0
    )
    truth = toy().truth
    assert truth is not None
    x = samples_in(tmp_path).reshape(1000, -1)
    spread = ((x - truth.mean().numpy()) ** 2).mean(1)
    assert abs(spread.mean() - truth.variance()) < 4 * spread.std() / math.sqrt(1000) + 0.02 * truth.variance()
    assert go(tmp_path, f"toy_sde.py:{name}", "likelihood", *FEW, "--config.trajectory.steps=200") == 0
    (file,) = tmp_path.glob("likelihood/*/result.json")
    test = toy().split("test").double().flatten(1)
    log_p = torch.logsumexp(
        truth.weights.log()
        - 0.5 * (((test[:, None] - truth.means) ** 2 / truth.spectrum) + (2 * math.pi * truth.spectrum).log()).sum(2),
        dim=1,
    )
    exact = float(-log_p.mean() / (truth.dim * math.log(2)))
    assert -0.02 < json.loads(file.read_text())["bits_per_dim"] - exact < 0.15


@pytest.mark.parametrize("name", PROCESSES)
def test_the_flow_finds_the_exact_likelihood(tmp_path, name, capsys):
    """bits/dim by the ODE equal the exact -log2 p / d of the same images, to 4 standard errors of the difference."""
    probes = ("--config.likelihood.images=200", "--config.likelihood.batch_size=200", "--config.likelihood.probes=4")
    assert go(tmp_path, f"toy_sde.py:{name}", "likelihood", "--config.likelihood.method=flow", *probes) == 0
    (file,) = tmp_path.glob("likelihood/flow-*/result.json")
    result = json.loads(file.read_text())
    truth = toy().truth
    assert truth is not None
    x = toy().split("test")[:200].double().flatten(1)
    distance = ((x[:, None] - truth.means) ** 2 / truth.spectrum + (2 * math.pi * truth.spectrum).log()).sum(2)
    exact = float(-torch.logsumexp(truth.weights.log() - 0.5 * distance, 1).mean() / (truth.dim * math.log(2)))
    assert result["bits_per_dim"] == pytest.approx(exact, abs=0.03)
    assert "4 rademacher probe(s)" in capsys.readouterr().out


@pytest.mark.parametrize(("variant", "t_min"), [("vp", 0.02), ("ve", 0.1)])
def test_the_shipped_digits_models_by_bound_and_flow(tmp_path, variant, t_min):
    """On 17 levels (4.09 bits) both models know digits, and the flow in the bound's decoder is a little below it."""
    few = ("--config.likelihood.images=12", "--config.moments.draws=40", "--config.moments.times=20")
    path = ("--config.trajectory.steps=50", "--config.trajectory.data_term=True", "--config.likelihood.decoder=optimal")
    start = (f"--config.likelihood.t_min={t_min}", "--config.likelihood.dequantisation=diffusion")
    loose = ("--config.likelihood.method=bound+flow", "--config.likelihood.rtol=1e-3", "--config.likelihood.atol=1e-3")
    assert go(tmp_path, f"digits_sde.py:{variant}", "likelihood", *few, *path, *start, *loose) == 0
    (bound,), (flow,) = (
        [json.loads(file.read_text())["bits_per_dim"] for file in tmp_path.glob(f"likelihood/{name}-*/result.json")]
        for name in ("analytic", "flow")
    )
    assert 1.4 < flow < bound + 0.1 < 2.2


def test_bound_and_flow_side_by_side(tmp_path, capsys):
    """One call, two files, one line; on exact data the bound of many steps lies just above the flow's figure."""
    few = ("--config.likelihood.images=100", "--config.likelihood.batch_size=100", "--config.trajectory.steps=200")
    assert go(tmp_path, "toy_sde.py:vp", "likelihood", *FEW, *few, "--config.likelihood.method=bound+flow") == 0
    told = capsys.readouterr().out.splitlines()[-1]
    bound, flow = (
        json.loads(file.read_text())
        for file in (
            *tmp_path.glob("likelihood/analytic-*/result.json"),
            *tmp_path.glob("likelihood/flow-*/result.json"),
        )
    )
    assert told.startswith(f"bits/dim side by side: bound {bound['bits_per_dim']:.4f}")
    assert f"flow {flow['bits_per_dim']:.4f}" in told
    assert -0.05 < bound["bits_per_dim"] - flow["bits_per_dim"] < 0.15


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("method=bound+flaw", "'flaw' is unknown"),
        ("dequantisation=none", "config.likelihood.dequantisation = 'none' is unknown"),
        ("probe=normal", "config.likelihood.probe = 'normal' is unknown"),
        ("probes=0", "config.likelihood.probes = 0 must be a number of at least 1"),
        ("t_min=1.5", "config.likelihood.t_min = 1.5 must be a number above 0 and below 1"),
        ("rtol=0.0", "config.likelihood.rtol = 0.0 must be a number above 0"),
        ("dequantisation=diffusion", "t_min = 1e-05 lies below the first reference time (0.001)"),
    ],
)
def test_the_flow_refuses_before_the_bound_works(tmp_path, capsys, field, told):
    options = ("--config.likelihood.method=bound+flow", f"--config.likelihood.{field}")
    assert go(tmp_path, "toy_sde.py:vp", "likelihood", *FEW, *options) == 2
    captured = capsys.readouterr()
    assert told in captured.err and not captured.out


def test_figures_of_the_flow_do_not_mix(tmp_path):
    """Every choice that the figure depends on names another folder; what it does not depend on does not."""
    few = ("--config.likelihood.images=4", "--config.trajectory.steps=5", *FEW)
    start = ("--config.likelihood.dequantisation=diffusion", "--config.likelihood.t_min=0.05")

    def folders(*overrides: str, method: str = "flow") -> set[str]:
        assert (
            go(tmp_path, "toy_sde.py:vp", "likelihood", *few, f"--config.likelihood.method={method}", *overrides) == 0
        )
        return {path.name for path in tmp_path.glob("likelihood/flow-*")}

    count = len(folders())
    assert len(folders(method="bound+flow")) == count, "moments of the bound are none of the flow's business"
    assert len(folders("--config.rule.estimator=gamma")) == count and count == 1
    for number, change in enumerate(
        ([], ["--config.rule.estimator=gamma"], ["--config.likelihood.decoder=published"], ["--config.seed=1"]), 2
    ):
        assert len(folders(*start, *change)) == number


def test_the_flow_needs_an_sde(tmp_path, capsys):
    assert go(tmp_path, "toy.py", "likelihood", "--config.likelihood.method=flow") == 2
    assert "SDE" in capsys.readouterr().err


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_samples_the_data(tmp_path, solver, capsys):
    """200 samples of each solver: pixels spread like the data's."""
    path = "--config.trajectory.steps=2" if "adaptive" in solver else "--config.trajectory.steps=200"
    options = ("--config.trajectory.name=even", f"--config.sampling.solver={solver}", "--config.sampling.samples=200")
    assert go(tmp_path, "toy_sde.py:vp", "sample", path, *options, "--config.sampling.batch_size=200") == 0
    spread = samples_in(tmp_path).reshape(200, -1).var(0).mean()
    assert 0.8 < spread / toy().truth.variance() < 1.2  # type: ignore[union-attr]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", PROCESSES)
def test_presets_are_config_variants(tmp_path, name, preset):
    config = load_config("configs/toy_sde.py", f"{name}+{preset}")[0]
    assert (config.rule.name, config.sampling.eta) == (PRESETS[preset][name].rule, PRESETS[preset][name].eta)
    assert go(tmp_path, f"toy_sde.py:{name}+{preset}", "sample", "--config.sampling.samples=4") == 0


@pytest.mark.parametrize("file", ["toy_sde", "digits_sde", "cifar10_sde"])
@pytest.mark.parametrize("variant", ["ddim", "ancestral+ve", "vp+ancestral+ve", "vp+ddim+ancestral"])
def test_a_preset_comes_last_after_its_process(file, variant):
    with pytest.raises(UserError, match=r"is a preset for an SDE and comes last, after its process, such as 'vp\+"):
        load_config(f"configs/{file}.py", variant)[0]


def test_a_preset_has_its_own_rule():
    with pytest.raises(UserError, match=r"'ddim' is a preset and names the rule itself, .* the rule 'sn'; leave one"):
        load_config("configs/digits_sde.py", "vp_sn+ddim")[0]


def test_what_a_solver_has_no_use_for_is_said_and_left_out(tmp_path, capsys):
    """No moments for a rule that nobody asks; the protocol names what the samples depend on."""
    options = ("--config.trajectory.name=even", "--config.trajectory.steps=3", "--config.sampling.samples=2")
    for solver, unused in (("probability_flow_heun", {"rule", "eta"}), ("euler_maruyama", {"rule"})):
        work = tmp_path / solver
        assert go(work, "toy_sde.py:ve", "sample", *options, f"--config.sampling.solver={solver}") == 0
        told = capsys.readouterr().out
        assert (
            f"solver '{solver}' has no variance rule: its steps make no use of config.rule" in told
            and "no moments" not in told
        )
        assert ("config.sampling.eta" in told) == ("eta" in unused)
        (file,) = work.glob("samples/*/protocol.json")
        protocol = json.loads(file.read_text())
        named = {"rule": "rule.name", "eta": "sampling.eta"}
        assert {part for part, field in named.items() if field not in protocol["own"]} == unused
        assert protocol["moments"] is None and protocol["own"]["sampling.solver"] == solver
        assert file.parent.name.startswith(f"{solver}-even-K3")


def test_a_corrector_adds_its_calls(tmp_path, capsys):
    corrector = ("--config.sampling.corrector=langevin", "--config.sampling.corrector_steps=2")
    steps = ("--config.trajectory.name=even", "--config.trajectory.steps=6", "--config.sampling.samples=4")
    assert go(tmp_path, "toy_sde.py:ve", "sample", *steps, "--config.rule.name=small", *corrector) == 0
    assert "18 network calls each" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["--config.process.t_min=2.0"], "config.process.t_min = 2.0 must be a number above 0 and below 1"),
        (["--config.process.sigma_max=3.0"], "sigma_max = 3.0 does not go with config.process.name = 'vp'"),
        (["--config.process.grid=linear"], "'linear' is unknown"),
        (["--config.process.beta_max=-1.0"], "config.process.beta_max = -1.0 must be a number above 0"),
        (
            ["--config.process.beta_max=0.05"],
            "config.process.beta_min = 0.1 and config.process.beta_max = 0.05 must satisfy 0 < min <= max",
        ),
        (["--config.sampling.corrector=langewin"], "did you mean 'langevin'"),
        (
            ["--config.process.name=linear", "--config.sampling.solver=euler_maruyama"],
            "needs an SDE (vp, subvp, ve, rectified_flow)",
        ),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, overrides, told):
    assert go(tmp_path / "run", "toy_sde.py", "sample", *overrides) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1


def test_reference_times_of_an_sde_are_free(tmp_path, capsys):
    """A network in continuous time can be sampled on any grid: the workdir's weights serve all of them."""
    small = ("--config.network.model_channels=8", "--config.train.iterations=2", "--config.train.batch_size=4")
    assert go(tmp_path, "digits_sde.py:ve", "train", *small, "--config.network.pretrained=") == 0
    few = ("--config.moments.draws=6", "--config.moments.times=8", "--config.sampling.samples=2")
    for grid in ("uniform", "edm"):
        times = (f"--config.process.grid={grid}", "--config.process.t_min=0.001", "--config.process.steps=50")
        assert go(tmp_path, "digits_sde.py:ve", "sample", *small, *few, *times, "--config.trajectory.steps=5") == 0
    capsys.readouterr()
    assert go(tmp_path, "digits_sde.py:ve", "sample", *small, *few, "--config.process.sigma_max=20.0") == 2
    assert "process.sigma_max: 10.0 there, 20.0 now" in capsys.readouterr().err


def cifar_overrides(folder: Path, variant: str) -> list[str]:
    """What makes cifar10_sde fit the small published checkpoints in tests/data."""
    network = golden_json("formats/formats_manifest")[f"score_sde_{variant}"]["network"]
    attention = network["attention_resolutions"][0] * 32 // network["resolution"]  # the same level of a larger image
    return [
        f"--config.data.folder={folder}",
        f"--config.network.model_channels={network['model_channels']}",
        f"--config.network.channel_mult=({','.join(map(str, network['channel_mult']))},)",
        f"--config.network.num_res_blocks={network['num_res_blocks']}",
        f"--config.network.attention_resolutions=({attention},)",
        f"--config.network.pretrained={DATA / 'formats' / f'score_sde_{variant}.pth'}",
        "--config.moments.draws=6",
        "--config.moments.times=6",
        "--config.moments.implausible=True",  # random weights
        "--config.sampling.samples=2",
        "--config.trajectory.steps=3",
    ]


@pytest.mark.parametrize("variant", ["vp", "ve"])
def test_the_headline_command(tmp_path, variant, capsys):
    """cifar10_sde on a checkpoint in score_sde's own layout (random weights, small) and an archive in CIFAR-10's."""
    archive(tmp_path / "data")
    overrides = cifar_overrides(tmp_path / "data", variant)
    assert go(tmp_path / "run", f"cifar10_sde.py:{variant}", "sample", *overrides) == 0
    told = capsys.readouterr().out
    assert f"score_sde_{variant}.pth" in told and "3 network calls each" in told
    assert samples_in(tmp_path / "run").shape == (2, 3, 32, 32)


def test_the_reader_gives_every_pixel_its_place(tmp_path):
    archive(tmp_path / "data", images=2)
    config = load_config("configs/cifar10_sde.py", "ve")[0]
    config.data.folder = str(tmp_path / "data")
    config.network.model_channels = 8
    data = Session.make(config, tmp_path / "run", house(), trains=True).data
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (2, 3072), dtype=np.uint8)
    assert np.array_equal(data.split("train")[:2].numpy(), first.reshape(2, 3, 32, 32))
    assert data.labels["train"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and data.labels["test"].tolist() == [5, 5]
    assert (data.low, data.high, data.levels) == (0.0, 1.0, 256)
    assert float(data.scaled(torch.tensor([255], dtype=torch.uint8))) == 1.0


def test_a_missing_archive_and_missing_weights_say_what_to_do(tmp_path, capsys):
    folder = f"--config.data.folder={tmp_path / 'data'}"
    assert go(tmp_path / "run", "cifar10_sde.py", "sample", folder) == 2
    told = capsys.readouterr().err
    assert ARCHIVE in told and str(tmp_path / "data") in told and "--config.data.download=True" in told
    assert "config.network.pretrained" in told and told.count("\n") == 1, "both are missing, and one message says it"
    assert not list(tmp_path.iterdir()), "nothing is left of a run that could not begin"
    archive(tmp_path / "data")
    assert go(tmp_path / "run", "cifar10_sde.py", "sample", folder, "--config.network.model_channels=8") == 2
    told = capsys.readouterr().err
    assert str(tmp_path / "run" / "weights.safetensors") in told and "--mode=train" in told
    (tmp_path / "data" / ARCHIVE).write_bytes(b"not an archive")
    assert go(tmp_path / "run", "cifar10_sde.py", "train", folder) == 2
    assert "is not the published CIFAR-10 archive" in capsys.readouterr().err


def test_an_archive_that_runs_code_is_refused(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return print, ("code ran",)

    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / ARCHIVE, "w:gz") as file:
        stored = pickle.dumps({b"data": Evil()})
        member = tarfile.TarInfo(f"cifar-10-batches-py/{TRAIN[0]}")
        member.size = len(stored)
        file.addfile(member, io.BytesIO(stored))
    assert go(tmp_path / "run", "cifar10_sde.py", "train", f"--config.data.folder={tmp_path / 'data'}") == 2
    captured = capsys.readouterr()
    assert "code ran" not in captured.out and "builtins.print is not part of an array" in captured.err
