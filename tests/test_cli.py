"""The command line: what it accepts, and that every mistake is one sentence on stderr, exit code 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adpm.run.cli import parse, run
from adpm.run.commands import MODES
from adpm.run.config import load_config
from tests.processes import finished

ROOT = Path(__file__).parent.parent
TOY = "--config=configs/toy.py"


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def refused(capsys, *argv) -> str:
    """Run, expect exit code 2, return the sentence."""
    assert run(["main.py", *argv], MODES) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    return captured.err


MISTAKES = {
    "no config": (["--mode=sample"], ["--config is missing"]),
    "missing config": (["--config=configs/digit.py", "--mode=sample"], ["configs/digit.py", "'configs/digits.py'"]),
    "folder as config": (["--config=configs", "--mode=sample"], ["'configs' is no file", "configs/digits.py"]),
    "bad variant": (["--config=configs/digits.py:cosin", "--mode=sample"], ["'cosin'", "did you mean 'cosine'"]),
    "no mode": ([TOY], ["--mode is missing", "likelihood"]),
    "bad mode": ([TOY, "--mode=sampl"], ["'sampl'", "did you mean 'sample'", "likelihood"]),
    "stray argument": ([TOY, "--mode=sample", "extra"], ["stray argument 'extra'"]),
    "flagfile": ([TOY, "--mode=sample", "--flagfile=x"], ["--flagfile is unknown"]),
    "two configs": ([TOY, TOY, "--mode=sample"], ["--config is given 2 times"]),
    "unknown flag": ([TOY, "--mode=sample", "--wrkdir=x"], ["--wrkdir", "did you mean 'workdir'"]),
    "unknown field": (
        [TOY, "--mode=sample", "--config.trajectory.stepz=3"],
        ["did you mean 'config.trajectory.steps'"],
    ),
    "unknown section": ([TOY, "--mode=sample", "--config.foo.bar=3"], ["--config.foo.bar is unknown"]),
    "section": ([TOY, "--mode=sample", "--config.trajectory=3"], ["is a section", "--config.trajectory."]),
    "not a number": ([TOY, "--mode=sample", "--config.trajectory.steps=abc"], ["'abc'", "int", "25"]),
    "not a bool": ([TOY, "--mode=sample", "--config.rule.bounds=maybe"], ["'maybe'", "bool"]),
    "empty number": ([TOY, "--mode=sample", "--config.train.learning_rate="], ["learning_rate", "float"]),
    "bad process": (
        [TOY, "--mode=sample", "--config.process.name=linea"],
        ["config.process.name = 'linea'", "'linear'"],
    ),
    "bad rule": ([TOY, "--mode=sample", "--config.rule.name=smal"], ["'smal'", "did you mean 'small'", "analytic"]),
    "bad estimator": ([TOY, "--mode=sample", "--config.rule.estimator=gama"], ["did you mean 'gamma'", "residual"]),
    "bad trajectory": ([TOY, "--mode=sample", "--config.trajectory.name=least"], ["'least'", "least_cost"]),
    "bad budget": ([TOY, "--mode=sample", "--config.trajectory.budget=about"], ["'about'", "at_most", "exactly"]),
    "bad cost": ([TOY, "--mode=sample", "--config.trajectory.cost=kll"], ["'kll'", "did you mean 'kl'"]),
    "bad method": ([TOY, "--mode=sample", "--config.trajectory.method=dens"], ["'dens'", "did you mean 'dense'"]),
    "bad decoder": ([TOY, "--mode=likelihood", "--config.likelihood.decoder=best"], ["'best'", "optimal", "published"]),
    "bad data": ([TOY, "--mode=sample", "--config.data.name=digit"], ["'digit'", "did you mean 'digits'"]),
    "bad split": ([TOY, "--mode=likelihood", "--config.likelihood.split=val"], ["'val'", "test, train"]),
    "bad objective": ([TOY, "--mode=train", "--config.train.objective=epsilon"], ["'epsilon'", "eps"]),
    "bad schedule": ([TOY, "--mode=train", "--config.train.schedule=cosin"], ["'cosin'", "did you mean 'cosine'"]),
    "bad device": ([TOY, "--mode=sample", "--config.device=gpu"], ["config.device = 'gpu'", "auto, cpu, cuda"]),
    "bad precision": ([TOY, "--mode=sample", "--config.precision=fp16"], ["'fp16'", "bfloat16, float32"]),
    "eta": (
        [TOY, "--mode=sample", "--config.sampling.eta=1.5"],
        ["config.sampling.eta = 1.5", "of at least 0 and of at most 1"],
    ),
    "large eta": (
        [TOY, "--mode=sample", "--config.rule.name=large", "--config.sampling.eta=0.5"],
        ["'large'", "eta = 1 only", "0.5"],
    ),
    "bound of DDIM": ([TOY, "--mode=likelihood", "--config.sampling.eta=0.0"], ["infinite", "eta = 0"]),
    "path longer than N": ([TOY, "--mode=sample", "--config.trajectory.steps=1001"], ["1001", "1000"]),
    "no steps": ([TOY, "--mode=sample", "--config.trajectory.steps=0"], ["at least 1"]),
    "no process steps": ([TOY, "--mode=sample", "--config.process.steps=0"], ["process.steps = 0"]),
    "invalid betas": ([TOY, "--mode=sample", "--config.process.steps=10"], ["must lie in (0, 1)"]),
    "few draws": ([TOY, "--mode=sample", "--config.moments.draws=2"], ["draws = 2", "at least 6"]),
    "few times": ([TOY, "--mode=estimate", "--config.moments.times=2"], ["times = 2", "at least 4"]),
    "cap without levels": ([TOY, "--mode=sample", "--config.rule.cap_levels=2.0"], ["levels"]),
    "digit size": (
        ["--config=configs/digits.py", "--mode=sample", "--config.data.size=16"],
        ["data.size = 16", "does not go with", "'digits'"],
    ),
    "patch size": (["--config=configs/patches.py", "--mode=train", "--config.data.size=400"], ["data.size = 400"]),
    "too many levels": (
        ["--config=configs/digits.py", "--mode=train", "--config.network.channel_mult=(1,1,1,1,1)"],
        ["channel_mult", "divisible by 16", "8x8"],
    ),
    "ideal without truth": (["--config=configs/digits.py", "--mode=sample", "--config.denoiser.name=ideal"], ["toy"]),
    "nothing to train": ([TOY, "--mode=train"], ["nothing to train", "network"]),
    "no weights": (["--config=configs/toy.py:unet", "--mode=sample"], ["there are no weights", "--mode=train"]),
    "missing moments": (
        [TOY, "--mode=sample", "--config.moments.file=no.npz"],
        ["'no.npz' is no file"],
    ),
    "missing ms_eps": (
        [TOY, "--mode=sample", "--config.moments.ms_eps=no.pth"],
        ["'no.pth' is no file"],
    ),
    "missing betas": (
        [TOY, "--mode=sample", "--config.process.name=custom", "--config.process.betas_file=no.npy"],
        ["'no.npy'", "does not exist"],
    ),
    "betas of another process": (
        [TOY, "--mode=sample", "--config.process.betas_file=betas.npy"],
        ["betas_file = 'betas.npy'", "does not go with", "'linear'"],
    ),
    "batch": ([TOY, "--mode=sample", "--config.sampling.batch_size=0"], ["sampling.batch_size = 0"]),
    "ema": (
        [TOY, "--mode=sample", "--config.train.ema_decay=1.0"],
        ["config.train.ema_decay = 1.0", "at least 0 and below 1"],
    ),
    "quadratic repeats": (
        [TOY, "--mode=sample", "--config.trajectory.name=quadratic", "--config.trajectory.steps=40"],
        ["quadratic", "40"],
    ),
    "one step through t = 1": (
        [TOY, "--mode=sample", "--config.trajectory.steps=1", "--config.trajectory.data_term=False"],
        ["config.trajectory.steps = 1", "steps >= 2", "config.trajectory.data_term = True"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name, capsys, tmp_path):
    argv, fragments = MISTAKES[name]
    sentence = refused(capsys, *argv, f"--workdir={tmp_path / 'run'}")
    for fragment in fragments:
        assert fragment in sentence, sentence
    left = [p.name for p in (tmp_path / "run").glob("*")] if (tmp_path / "run").exists() else []
    assert set(left) <= {"config.json"} and not (tmp_path / "cache").exists(), "nothing is measured for it"


NUMBERS = {
    "config.train.grad_clip=-1.0": "grad_clip = -1.0",
    "config.train.learning_rate=inf": "learning_rate = inf must be a number above 0 that is finite",
    "config.train.warmup=-5": "warmup = -5",
    "config.train.weight_decay=-1.0": "weight_decay = -1.0",
    "config.rule.cap_levels=nan": "cap_levels = nan",
    "config.rule.cap_levels=-2.0": "cap_levels = -2.0",
    "config.rule.cap_steps=0": "cap_steps = 0",
    "config.sampling.grid=0": "sampling.grid = 0",
    "config.seed=-1": "config.seed = -1",
    "config.network.num_heads=3": "config.network.num_heads = 3 must divide the 64 channels",
    "config.network.num_heads=0": "config.network.num_heads = 0 must be a number of at least 1",
    "config.network.model_channels=33": "config.network",
    "config.network.dropout=1.5": "config.network.dropout = 1.5 must be a number of at least 0 and below 1",
    "config.network.channel_mult=(1,'a')": "config.network.channel_mult = (1, 'a') must hold",
    "config.network.num_res_blocks=0": "num_res_blocks = 0",
}


@pytest.mark.parametrize("override", NUMBERS)
def test_numbers_out_of_range_are_refused_before_work(override, capsys, tmp_path):
    sentence = refused(
        capsys, "--config=configs/digits.py", "--mode=train", f"--workdir={tmp_path / 'run'}", f"--{override}"
    )
    assert NUMBERS[override] in sentence and not (tmp_path / "run").exists()


def test_a_failed_command_does_not_claim_the_workdir(capsys, tmp_path):
    argv = ["--config=configs/toy.py:unet", f"--workdir={tmp_path}"]
    assert "no weights" in refused(capsys, *argv, "--mode=sample", "--config.network.model_channels=8")
    train = [
        "--mode=train",
        "--config.train.iterations=1",
        "--config.train.batch_size=2",
        "--config.network.num_heads=1",
    ]
    assert run(["main.py", *argv, *train], MODES) == 0


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("--config.process.name=cosine", "process.name: 'linear' there, 'cosine' now"),
        ("--config.denoiser.predicts=x0", "denoiser.predicts: 'eps' there, 'x0' now"),
        ("--config.denoiser.time_shift=1", "denoiser.time_shift: 0 there, 1 now"),
        ("--config.network.num_heads=2", "network.num_heads: 4 there, 2 now"),
    ],
)
def test_weights_of_another_model_are_refused(override, told, capsys, tmp_path):
    argv = ["--config=configs/digits.py", "--mode=sample", f"--workdir={tmp_path}", override]
    assert told in refused(capsys, *argv)
    assert not list(tmp_path.iterdir())


def test_moments_of_a_network_that_computes_something_else_are_refused(capsys, tmp_path):
    """The number of heads changes the function and not the weights; weights of others do not say it."""
    few = ["--config.moments.draws=6", "--config.moments.times=8"]
    bare = tmp_path / "bare.safetensors"
    save_file(load_file("pretrained/digits.safetensors"), bare)
    argv = ["main.py", "--config=configs/digits.py", f"--config.network.pretrained={bare}", *few]
    assert run([*argv, "--mode=estimate", f"--workdir={tmp_path / 'a'}"], MODES) == 0
    (file,) = (tmp_path / "cache").glob("moments-*.npz")
    capsys.readouterr()
    other = [
        "--mode=sample",
        f"--workdir={tmp_path / 'b'}",
        f"--config.moments.file={file}",
        "--config.network.num_heads=2",
    ]
    assert "num_heads" in refused(capsys, *argv[1:], *other)


def test_a_path_that_no_bound_can_use_is_refused_first(capsys, tmp_path):
    argv = [TOY, "--mode=likelihood", f"--workdir={tmp_path / 'run'}", "--config.trajectory.name=quadratic"]
    assert "starts at t = 801" in refused(capsys, *argv)
    assert not (tmp_path / "run" / "likelihood").exists() and not (tmp_path / "cache").exists()


def test_a_process_of_one_step(tmp_path):
    np.savetxt(tmp_path / "betas.txt", [0.5])
    betas = ["--config.process.name=custom", f"--config.process.betas_file={tmp_path / 'betas.txt'}"]
    argv = ["main.py", TOY, "--mode=likelihood", f"--workdir={tmp_path / 'run'}", "--config.process.steps=1", *betas]
    assert run([*argv, "--config.trajectory.steps=1"], MODES) == 0


def test_betas_files_of_the_wrong_shape(capsys, tmp_path):
    np.save(tmp_path / "betas.npy", np.full((2, 5), 0.1))
    betas = ["--config.process.name=custom", f"--config.process.betas_file={tmp_path / 'betas.npy'}"]
    assert "shape (2, 5)" in refused(capsys, TOY, "--mode=sample", f"--workdir={tmp_path}", *betas)


def test_ctrl_c_while_python_is_still_importing():
    """The interrupt comes while torch is being imported, made certain by an import hook."""
    code = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "import main\n"
        "sys.exit(main.main())\n"
    )
    done = finished("-c", code)
    assert done.returncode == 130 and "interrupted" in done.stderr and "Traceback" not in done.stderr


def test_device_cuda_without_a_gpu(capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "no GPU" in refused(capsys, TOY, "--mode=sample", "--config.device=cuda", f"--workdir={tmp_path}")


def test_config_files_that_fail(capsys, tmp_path):
    cases = {
        "raise ValueError('broken')": "ValueError: broken",
        "x = 1": "no function get_config",
        "def (": "SyntaxError",
        "def get_config(): return {}['a']": "KeyError: 'a'",
        "def get_config(): return None": "must return a ConfigDict, got NoneType",
    }
    for text, told in cases.items():
        (tmp_path / "bad.py").write_text(text)
        assert told in refused(capsys, f"--config={tmp_path / 'bad.py'}", "--mode=sample")


def test_unwritable_workdir(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(capsys, TOY, "--mode=sample", f"--workdir={tmp_path / 'file' / 'run'}")


def test_workdir_of_another_config(capsys, tmp_path):
    few = ["--config.moments.draws=6", "--config.moments.times=8", "--config.sampling.samples=2"]
    argv = [TOY, "--mode=sample", f"--workdir={tmp_path / 'run'}", *few]
    assert run(["main.py", *argv], MODES) == 0
    capsys.readouterr()
    sentence = refused(capsys, *argv, "--config.process.steps=900", "--config.process.name=cosine")
    assert "belongs to another config" in sentence and "process.name: 'linear' there, 'cosine' now" in sentence
    assert "process.steps: 1000 there, 900 now" in sentence
    # what is no part of what a network computes may change from call to call, and nothing is mistaken for another's
    for count, override in enumerate(("--config.rule.name=small", "--config.data.seed=7"), start=2):
        assert run(["main.py", *argv, override], MODES) == 0
        assert len(list((tmp_path / "run" / "samples").iterdir())) == count


def test_damaged_workdir_config(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert "is not the JSON of a config" in refused(capsys, TOY, "--mode=sample", f"--workdir={tmp_path}")


def test_overrides_reach_the_config_and_it_is_locked():
    argv = ["main.py", "--config", "configs/digits.py:cosine+x0", "--mode", "sample", "--config.trajectory.steps", "7"]
    argv += ["--config.network.channel_mult=(1,2,2)", "--config.compile", "--config.sampling.eta=0"]
    job, mode = parse(argv, MODES)
    config = job.config
    assert (config.process.name, config.denoiser.predicts, config.trajectory.steps) == ("cosine", "x0", 7)
    assert (config.network.channel_mult, config.compile, config.sampling.eta) == ((1, 2, 2), True, 0.0)
    assert (job.workdir, mode) == (Path("runs/digits-cosine+x0"), "sample")
    assert parse([*argv, "--workdir=here"], MODES)[0].workdir == Path("here")
    with pytest.raises(AttributeError):
        config.sampling.etta = 1.0


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_states_known_fields_only(path):
    if path.stem in ("__init__", "base", "compare_base", "published"):
        pytest.skip("not a config of its own")
    family = "compare_base" if path.stem.startswith("compare_") else "base"
    base, config = load_config(str(ROOT / "configs" / f"{family}.py"))[0], load_config(str(path))[0]

    def keys(section, prefix=""):
        return {prefix + k for k in section} | {
            name
            for k, v in section.items()
            if hasattr(v, "keys") and k != "formulations"  # whose names are a config's own
            for name in keys(v, f"{prefix}{k}.")
        }

    assert keys(config) == keys(base)


def test_help_lists_the_modes(capsys):
    assert run(["main.py", "--help"], MODES) == 0
    shown = capsys.readouterr().out
    assert all(mode in shown for mode in MODES)


def test_custom_betas(capsys, tmp_path):
    np.save(tmp_path / "betas.npy", np.linspace(1e-4, 0.4, 12))
    few = ["--config.moments.draws=20", "--config.moments.times=0", "--config.sampling.samples=2"]
    betas = ["--config.process.name=custom", f"--config.process.betas_file={tmp_path / 'betas.npy'}"]
    argv = ["main.py", TOY, "--mode=sample", f"--workdir={tmp_path / 'run'}", "--config.trajectory.steps=12", *few]
    assert run([*argv, *betas, "--config.process.steps=0"], MODES) == 0
    capsys.readouterr()
    assert "holds 12 betas" in refused(capsys, *argv[1:], *betas, "--config.process.steps=13")


def test_the_process_exits_with_2_and_no_traceback():
    """The one check through a real process: main.py hands the code on."""
    done = finished("main.py", TOY, "--mode=sampel")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --mode = 'sampel'") and done.stderr.count("\n") == 1
