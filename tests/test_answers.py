"""What a user is told: at once, in one sentence, with exit code 2 and nothing torn; a traceback never."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

from adpm.drawing import Sampler, draw
from adpm.run.assembly import Session
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.config import load_config
from adpm.run.measure import variance_for
from adpm.run.paths import path_for
from adpm.run.samples import samples_for
from tests.commands import ROOT, SMALL, go, refused

PLANNED = ("moments.draws=12", "moments.times=8", "trajectory.steps=4", "sampling.samples=4")
GAMMA = ("trajectory.name=even", "rule.estimator=gamma", "likelihood.decoder=published")


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


# What the system refuses


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may become larger; the system says so as it does of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


TINY = ("network.model_channels=8", "network.num_heads=1", "train.iterations=1", "train.batch_size=2")


@pytest.mark.parametrize(
    ("size", "command", "file"),
    [
        (100, ("toy", "sample", *SMALL), "run/config.json"),
        (2500, ("toy", "sample", *SMALL), "run/samples/"),
        (3000, ("toy", "estimate", *PLANNED[:2]), "cache/moments-"),
        (9000, ("toy:unet", "train", *TINY), "run/train_state.pt"),
    ],
)
def test_a_full_disk_is_a_sentence_with_the_path_and_nothing_is_torn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int, command: tuple[str, ...], file: str
) -> None:
    with small_disk(size):
        told = refused(capsys, tmp_path / "run", *command)
    assert told.startswith(f"error: '{tmp_path / file}") and told.endswith("': File too large.\n"), told
    assert not list(tmp_path.rglob("*.part")), "what was half written is gone"
    assert go(tmp_path / "run", *command) == 0, "and the same command goes on"


def test_a_folder_that_may_not_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder inside the workdir, which can itself be written; root may write anywhere, so the system is played."""
    make = tempfile.mkstemp

    def denied(prefix: str, suffix: str, dir: Path) -> tuple[int, str]:  # noqa: A002 - mkstemp's own name
        if "samples" in str(dir):
            raise PermissionError(13, "Permission denied", str(dir / "temporary"))
        return make(prefix=prefix, suffix=suffix, dir=dir)

    monkeypatch.setattr(tempfile, "mkstemp", denied)
    told = refused(capsys, tmp_path / "run", "toy", "sample", *SMALL)
    assert told.startswith(f"error: '{tmp_path / 'run' / 'samples'}") and told.endswith(".csv': Permission denied.\n")


LONG = "z" * 300


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        ("digits", (f"network.pretrained={LONG}",)),
        ("toy", (f"moments.file={LONG}",)),
        ("toy", (*GAMMA, f"moments.ms_eps={LONG}")),
        ("toy", ("process.name=custom", f"process.betas_file={LONG}")),
        ("toy", ("rule.name=analytic", "trajectory.name=least_cost", f"cache=/tmp/{LONG}")),
        ("cifar10", (f"data.folder={LONG}",)),
    ],
)
def test_names_that_are_too_long_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str, fields: tuple[str, ...]
) -> None:
    told = refused(capsys, tmp_path / "run", config, "sample", *fields)
    assert LONG in told and "File name too long" in told


def test_a_workdir_with_a_name_that_is_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, tmp_path / LONG, "toy", "sample", *SMALL)
    assert told.startswith("error: --workdir = ") and "cannot be written (File name too long)" in told


# Values out of range, devices, compilers, places


@pytest.mark.parametrize(
    ("config", "field", "told"),
    [
        ("toy_sde:vp", "process.beta_max=1e6", "config.process.beta_max = 1e+06 is too small or too large"),
        ("toy_sde:vp", "process.beta_max=inf", "config.process.beta_max = inf must be a number above 0 that is finite"),
        ("toy_sde:vp", "process.beta_max=1500.0", "the log-SNR is -708.638 at t = 0.972"),
        ("toy_sde:subvp", "process.t_min=1e-16", "config.process.t_min = 1e-16"),
        ("digits", "rule.cap_levels=1e300", "config.rule.cap_levels = 1e+300 must be a number"),
        ("digits", "network.channel_mult=(0,)", "config.network.channel_mult = (0,) must hold a whole number of at"),
        ("toy", "moments.ms_eps=\N{PILE OF POO}", "config.moments.ms_eps = '\N{PILE OF POO}' is no file"),
    ],
)
def test_values_out_of_range_are_refused_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str, field: str, told: str
) -> None:
    assert told in refused(capsys, tmp_path / "run", config, "sample", *SMALL[1:], field)
    assert not list(tmp_path.iterdir())


ONE_IMAGE = """
import numpy as np, torch
from adpm import ideal
from adpm.families import Kind
from adpm.run.data import DataFacts, DataSet
from configs import toy

def one():
    truth = ideal.diagonal_mixture(np.ones(1), np.full((1, 16), 0.5), np.full((1, 16), 1e-12), (1, 4, 4))
    x = torch.full((40, 1, 4, 4), 0.5)
    return DataSet("one", {"train": x, "test": x[:8]}, 0, -2.0, 2.0, {}, truth)

MEMBERS = {"data": {"one": Kind(one, "one image, again and again", DataFacts())}}

def get_config(variant=""):
    config = toy.get_config(variant)
    config.data.name = "one"
    return config
"""


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_one_constant_image_has_figures_and_no_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "one.py"
    file.write_text(ONE_IMAGE)
    few = ["--config.moments.draws=12", "--config.moments.times=8"]
    assert run(["main.py", f"--config={file}", "--mode=estimate", f"--workdir={tmp_path / 'run'}", *few], MODES) == 0
    told = capsys.readouterr().out
    assert "'residual': standard error 0.0% in the median, 0.0% at worst" in told and "nan" not in told.lower()


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("cuda:7", "config.device = 'cuda:7', but this torch sees "),
        ("cuda:x", "config.device = 'cuda:x' is unknown; known: auto, cpu, cuda, cuda:N"),
        ("cpu:1", "config.device = 'cpu:1' is unknown"),
    ],
)
def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str, told: str) -> None:
    assert told in refused(capsys, tmp_path / "run", "toy", "sample", *SMALL, f"device={device}")
    assert not list(tmp_path.iterdir())


def test_one_of_several_processes_that_cannot_meet_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = refused(capsys, tmp_path / "run", "toy", "sample", *SMALL)
    assert "start them by torchrun, or unset WORLD_SIZE" in told and not list(tmp_path.iterdir())
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert go(tmp_path / "run", "toy", "sample", *SMALL) == 0


def test_a_missing_compiler_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_compiler(network: object, **options: object) -> Callable[..., object]:
        def call(*args: object) -> object:
            raise InvalidCxxCompiler

        return call

    monkeypatch.setattr(torch, "compile", without_compiler)
    told = refused(capsys, tmp_path / "run", "digits", "sample", *SMALL, "compile=True")
    assert "config.compile = True, but the network could not be compiled here" in told and "C++ compiler" in told


def test_shipped_files_are_found_from_anywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert go(tmp_path / "run", "digits:npr", "sample", *SMALL[1:]) == 0
    assert f"{ROOT / 'pretrained' / 'digits.safetensors'}" in capsys.readouterr().out


# Sessions, caches, samples


def session(workdir: Path, config: str = "digits", **fields: object) -> Session:
    name, _, variant = config.partition(":")
    made, own = load_config(f"{ROOT}/configs/{name}.py", variant)
    own.table.update(made, {key.replace("__", "."): value for key, value in fields.items()})
    return Session.make(made, workdir, own)


def test_a_session_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    numpy_before, before = np.random.get_state()[1].tolist(), torch.random.get_rng_state()  # noqa: NPY002 - theirs
    made = session(tmp_path, "digits:npr", trajectory__name="even", trajectory__steps=2, sampling__samples=2)
    first, second = made.network().state_dict(), made.network().state_dict()
    _ = made.model
    samples_for(made)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002
    assert all(torch.equal(first[name], second[name]) for name in first), "it is a function of config.seed"


def test_moments_are_measured_once_for_all_workdirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A head does not change them, nor does a folder; a seed does."""
    few = ("moments.draws=6", "moments.times=6")
    for count, (config, fields) in enumerate((("digits", ()), ("digits:npr", ()), ("digits", ("seed=1",))), start=1):
        assert go(tmp_path / str(count), config, "estimate", *few, *fields) == 0
        assert ("measuring them" in capsys.readouterr().out) == (count != 2)
    assert len(list(tmp_path.glob("cache/moments-*.npz"))) == 2
    assert not list(tmp_path.glob("?/**/moments-*.npz"))


def test_samples_are_kept_as_levels_in_one_file(tmp_path: Path) -> None:
    """What is read back is what was drawn, to half of one of 256 levels; continuous data stay as they are."""
    made = session(tmp_path / "digits", trajectory__steps=3, sampling__samples=5, trajectory__name="even")
    made = made.again({"sampling.batch_size": 2, "rule.name": "small"})
    samples = samples_for(made)
    assert sorted(file.name for file in samples.folder.iterdir()) == [
        "protocol.json",
        "samples.csv",
        "samples.npy",
        "steps.npz",
    ]
    path, variance = path_for(made), variance_for(made)
    solver = made.solver(variance, path.times)
    sampler = Sampler(made.model.denoise, solver, made.process, path.times, made.data.shape, made.config.seed)
    drawn = draw(sampler, 5, 2)
    assert samples.kept[:].dtype == torch.uint8 and drawn.dtype == np.float32
    off = np.abs(samples.images().numpy() - drawn.clip(-1, 1)).max()
    assert 0.0 < off <= 1 / 255 + 1e-6
    toy = session(tmp_path / "toy", "toy", rule__name="small", trajectory__name="even", trajectory__steps=3)
    assert samples_for(toy).kept[:].dtype == torch.float32


def test_rates_of_the_vp_integral_are_fields(tmp_path: Path) -> None:
    """log alpha_N^2 = -(beta_min + beta_max)/2."""
    process = session(
        tmp_path, "toy", process__name="vp_integral", process__beta_min=0.2, process__beta_max=10.0
    ).process
    assert np.log(process.alpha(1000.0) ** 2) == pytest.approx(-5.1, rel=1e-12)
    assert np.log(process.alpha(500.0) ** 2) == pytest.approx(-(0.2 * 0.5 + 0.5 * 9.8 * 0.25), rel=1e-12)
