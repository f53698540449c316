"""Translation: the start at source images, repetitions, the mode from end to end, and what is refused before work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from adpm import ideal
from adpm.egsde import LowPass, Noised
from adpm.energies import Steered
from adpm.errors import UserError
from adpm.noise import KeyedNoise
from adpm.process import linear
from adpm.run.assembly import Session
from adpm.run.classifiers import FILE, NoisyClassifier, classifier_file
from adpm.run.config import load_config
from adpm.run.families import house
from adpm.run.translations import translations_for
from adpm.sampler import keyed, walk
from adpm.solver import ReverseGaussian
from adpm.translation import FromImages, Translator, start_index
from adpm.variance import Unit
from benchmarks.translation import TARGET, Judge
from tests.commands import go, refused, the_file

PROCESS, SHAPE = linear(1000), (1, 2, 2)
DATA = ideal.gaussian(0.3, [0.02, 0.1, 0.3, 0.5], SHAPE)
EXACT = ideal.IdealDenoiser(DATA, PROCESS)
TIMES = PROCESS.times[[0, 1, 100, 300, 500]]
SOURCES = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0))


def translator(**changes: object) -> Translator:
    return Translator(EXACT, ReverseGaussian(PROCESS, Unit()), PROCESS, TIMES, **changes)


def faithful(source: Noised) -> list[tuple[LowPass, float]]:
    return [(LowPass(source, 1), 0.8)]


def images(arrays: dict[str, np.ndarray]) -> Tensor:
    return torch.as_tensor(arrays["samples"])


@pytest.mark.parametrize(("share", "index"), [(0.5, 500), (1.0, 1000), (1e-4, 1), (0.3004, 300)])
def test_the_share_is_of_the_reference_times(share: float, index: int) -> None:
    assert start_index(PROCESS, share) == index


def test_without_energies_it_is_sdedit() -> None:
    """alpha x0 + sigma e, walked back: written out, bit for bit; weights of 0 are none."""
    numbers = torch.arange(6)
    noise = keyed(KeyedNoise(3, "sample"), numbers, SHAPE)
    begin = float(PROCESS.alpha(500)) * SOURCES + float(PROCESS.sigma(500)) * noise(0)
    *_, end = walk(EXACT, ReverseGaussian(PROCESS, Unit()), TIMES, begin, noise)
    found = translator(seed=3).translate(SOURCES, numbers)
    assert torch.equal(images(found), end.x) and int(found["nfe"]) == 4
    none = translator(seed=3, energies=lambda source: [(LowPass(source, 1), 0.0)]).translate(SOURCES, numbers)
    assert torch.equal(images(none), end.x)


def test_energies_see_the_draw_that_the_walk_begins_with() -> None:
    """By hand: one e for the start and for every x_src, and the source in the repetitions stays what it was."""
    numbers, begin = torch.arange(6), SOURCES
    for number, stream in enumerate(("sample", "repetition 1", "repetition 2"), start=1):
        noise = keyed(KeyedNoise(0, stream), numbers, SHAPE)
        source = Noised(PROCESS, SOURCES, noise(0))
        steered = Steered(EXACT, PROCESS, faithful(source))
        *_, end = walk(steered, ReverseGaussian(PROCESS, Unit()), TIMES, Noised(PROCESS, begin, noise(0))(500.0), noise)
        begin = end.x
        found = translator(energies=faithful, repeats=number).translate(SOURCES, numbers)
        torch.testing.assert_close(images(found), end.x)
        assert int(found["nfe"]) == 4 * number


def test_an_image_is_the_same_in_any_batch() -> None:
    whole = translator(energies=faithful, repeats=2).translate(SOURCES, torch.arange(6))
    part = translator(energies=faithful, repeats=2).translate(SOURCES[4:], torch.arange(4, 6))
    torch.testing.assert_close(images(whole)[4:], images(part))


def test_of_gaussian_data_means_lie_between_source_and_data() -> None:
    """The more weight, the nearer to the source, while a step's 2 w (alpha_s/alpha_t) Var[x_t | x_s] is below 1."""
    source, numbers = torch.full((1, *SHAPE), 2.0), torch.arange(2000)
    off = []
    for weight in (0.0, 0.2, 0.5, 0.9):
        made = translator(energies=lambda s, w=weight: [(LowPass(s, 1), w)])
        mean = images(made.translate(source.expand(2000, *SHAPE), numbers)).mean(0)
        off.append(float((mean - source[0]).norm()))
    assert off[0] > off[1] > off[2] > off[3] > 0.0


def test_sources_of_another_size_and_no_repetition_are_refused() -> None:
    with pytest.raises(UserError, match=r"the source images have shape \(6, 1, 2, 2\), and the images that"):
        FromImages(PROCESS, SOURCES)(500.0, torch.zeros(6, 1, 4, 4))
    with pytest.raises(UserError, match="`repeats` = 0 must be at least 1"):
        translator(repeats=0).translate(SOURCES, torch.arange(6))
    with pytest.raises(UserError, match="`share` = 1.5 of the reference times must lie above 0"):
        start_index(PROCESS, 1.5)


# The mode

FEW = ("trajectory.steps=3", "rule.name=small", "translate.images=5", "sampling.batch_size=2")


def test_digits_are_translated_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images, grid, strip and protocol; NFE counts what the energies ask; a second time everything is read."""
    assert go(tmp_path, "digits_translate", "translate", *FEW) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "5 images noised to t = 500" in told and "12 network calls each" in told
    folder = the_file(tmp_path / "translations", "low_pass+features+target-small-even-K3-eta1-*")
    there = {path.name for path in folder.iterdir()}
    made = {"translations.npy", "translations.csv", "steps.npz"}
    assert there == {"grid.png", "strip.png", "protocol.json", "images", *made}
    assert len(list((folder / "images").glob("*.png"))) == 5
    protocol = json.loads((folder / "protocol.json").read_text())
    assert protocol["translation"]["translate.features_weight"] == 5.0 and protocol["path"] == [0, 1, 250, 500]
    assert protocol["classifier"] and protocol["sources"] == "test 3"
    assert list((tmp_path / "tensorboard" / "translate").rglob("events*"))
    kept, written = folder / "translations.npy", (folder / "translations.npy").stat().st_mtime_ns
    assert go(tmp_path, "digits_translate", "translate", *FEW) == 0
    assert kept.stat().st_mtime_ns == written
    assert go(tmp_path, "digits_translate", "translate", *FEW, "translate.target_weight=1.0") == 0
    assert len(list((tmp_path / "translations").iterdir())) == 2


def test_sdedit_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of 256 levels as sources of a model of such images; another size is refused."""
    rng = np.random.default_rng(0)
    for name, side in (("same", 8), ("other", 6)):
        (tmp_path / name).mkdir()
        for number in range(10):
            picture = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
            picture.save(tmp_path / name / f"{number}.png")
    fields = (
        "data.size=8",
        "denoiser.name=gaussian",
        "denoiser.clip=False",
        "rule.name=small",
        "trajectory.name=even",
        "trajectory.steps=3",
        "translate.source=folder",
    )
    same, run = f"translate.source_folder={tmp_path / 'same'}", tmp_path / "run"
    assert go(run, "patches", "translate", *fields, same, "translate.images=0") == 0, capsys.readouterr().err
    assert "10 images noised to t = 500" in (told := capsys.readouterr().out) and "not guided (SDEdit)" in told
    other = f"translate.source_folder={tmp_path / 'other'}"
    told = refused(capsys, run, "patches", "translate", *fields, other)
    assert "config.translate.source_folder" in told and "(3, 6, 6), and the model makes images of (3, 8, 8)" in told


def test_a_classifier_is_trained_and_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two iterations and two more go on from the state; a classifier of another process is refused."""
    few = ("train.batch_size=8", "classifier.width=8", "classifier.head_channels=8")
    assert go(tmp_path, "digits_translate:classifier", "train", *few, "train.iterations=2") == 0
    assert go(tmp_path, "digits_translate:classifier", "train", *few, "train.iterations=4") == 0
    assert "continuing at iteration 2 of 4" in capsys.readouterr().out and (tmp_path / FILE).is_file()
    made = ("classifier.width=8", "classifier.head_channels=8", *FEW)
    assert go(tmp_path, "digits_translate", "translate", *made) == 0
    told = refused(capsys, tmp_path, "digits_translate", "translate", *FEW)
    assert "was trained for another config (classifier.head_channels: 8 there, 16 now" in told
    config, _ = load_config("configs/digits_translate.py")
    config.classifier.pretrained = "gone.safetensors"
    with pytest.raises(UserError, match="config.classifier.pretrained = 'gone.safetensors' does not exist; train one"):
        classifier_file(Session.make(config, tmp_path / "none", house()))


def test_features_make_digits_more_real_and_the_low_pass_more_faithful(tmp_path: Path) -> None:
    """E4, threes into eights from M/N = 0.3: by features that the guidance does not know, and L2 to the source."""
    config, families = load_config("configs/digits_translate.py")
    found, judge = [], None
    for features, low_pass in ((0.0, 0.0), (5.0, 0.0), (5.0, 2.0)):
        weights = {"translate.features_weight": features, "translate.low_pass_weight": low_pass}
        more = {"translate.target_weight": 1.0, "translate.share": 0.3, "translate.source_split": "train"}
        short = {"rule.name": "small", "trajectory.steps": 10, "translate.images": 64, "sampling.batch_size": 64}
        families.table.update(config, {**weights, **more, **short})
        session = Session.make(config, tmp_path, families)
        data = session.data
        judge = judge or Judge(data.scaled(data.split("train"))[data.labels["train"] == TARGET])
        made = translations_for(session)
        off, _, frechet, _ = judge.figures(data.decode(made.kept), made.sources)
        found.append((off, frechet))
    plain, real, faithful = found
    assert real[1] < faithful[1] < plain[1] and real[0] > faithful[0] > plain[0]


@pytest.mark.parametrize(("classes", "least"), [((3, 8), 0.86), ((0, 7), 0.91)])
def test_the_shipped_classifier_tells_noisy_digits_apart(
    classes: tuple[int, int], least: float, tmp_path: Path
) -> None:
    """E4: over t = 20..500, more than nine of ten where the noise leaves so many; of threes and eights it does not.

    Beside it, what the nearest training digits say: p(class | x_t) of a Gaussian of 0.3 around each of them.
    """
    config, families = load_config("configs/digits_translate.py")
    session = Session.make(config, tmp_path, families)
    data, process = session.data, session.process
    shown = {split: data.scaled(data.split(split)).double() for split in ("train", "test")}
    of = {split: [shown[split][data.labels[split] == number] for number in classes] for split in shown}
    x0 = torch.cat(of["test"]).repeat(4, 1, 1, 1)
    truth = torch.cat([torch.full((len(part),), k) for k, part in enumerate(of["test"])]).repeat(4)
    logits, right = NoisyClassifier(session, classifier_file(session)).logits, []
    generator = torch.Generator().manual_seed(0)
    for t in range(20, 501, 40):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        x = alpha * x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        width = sigma**2 + (0.3 * alpha) ** 2
        near = [-torch.cdist(x.flatten(1), alpha * part.flatten(1)).square() / (2.0 * width) for part in of["train"]]
        known = torch.stack([part.logsumexp(1) - np.log(part.shape[1]) for part in near], 1)
        with torch.inference_mode():
            said = logits(x.float(), float(t))[:, classes]
        right.append([float((guess.argmax(1) == truth).double().mean()) for guess in (said, known)])
    ours, nearest = np.mean(right, 0)
    assert ours > least and abs(ours - nearest) < 0.04
    assert (nearest < 0.9) == (classes == (3, 8)), "no classifier reads off threes and eights what is not there"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (("translate.low_pass_weight=-1",), "config.translate.low_pass_weight = -1.0 must be a number of at least 0"),
        (("translate.target_class=10",), "config.translate.target_class = 10 must lie in 0..9"),
        (("translate.low_pass_factor=3",), "config.translate.low_pass_factor = 3 of a low pass must divide"),
        (("translate.source_class=77",), "config.translate.source_class = 77 is the class of no test image"),
        (("translate.energies=low_pass_cosine+features+target",), "these images have one channel; use 'low_pass'"),
        (("translate.share=0",), "config.translate.share = 0.0 must be a number above 0"),
        (("translate.energies=low_pas",), "config.translate.energies = 'low_pas' is unknown (did you mean"),
        (("sampling.start=gaussian",), "config.sampling.start = 'gaussian' is for samples"),
        (("translate.source=folder",), "config.translate.source_class = 3 does not go with"),
        (("classifier.pretrained=",), "config.classifier.pretrained = ''; train one: --mode=train"),
    ],
)
def test_bad_input_is_told_before_work(
    fields: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, tmp_path, "digits_translate", "translate", *FEW, *fields)
    assert not (tmp_path / "translations").exists()


@pytest.mark.parametrize("variant", ["cat2dog", "wild2dog", "male2female"])
def test_the_published_settings_are_there_and_say_what_is_missing(
    variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """M = 500 of 1000, ls = 500, li = 2, one repetition, the small variance."""
    config, table = load_config("configs/egsde.py", variant)[0], house().table
    energies = [table.options(config, "translate.energies", name) for name in ("low_pass", "features")]
    assert [(e.get("low_pass_weight"), e.get("low_pass_factor"), e.get("features_weight")) for e in energies] == [
        (2.0, 32, None),
        (None, None, 500.0),
    ]
    assert (config.trajectory.steps, config.translate.share, config.translate.repeats) == (500, 0.5, 1)
    assert config.process.name == "linear" and config.denoiser.time_shift == 1 and config.rule.name == "small"
    told = refused(capsys, tmp_path, f"egsde:{variant}", "translate")
    assert "config.data.folder" in told and f"config.network.pretrained = '{config.network.pretrained}'" in told
