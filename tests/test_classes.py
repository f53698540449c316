"""Class-conditional networks: told the right class of every image and sample, in worlds where that can be seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import adpm
from adpm import ideal
from adpm.classes import CLASSES, ClassNeeds, Told, at
from adpm.data_term import measure_data_row
from adpm.denoiser import Denoiser, Prediction
from adpm.errors import UserError
from adpm.explained import unexplained
from adpm.ideal import IdealDenoiser
from adpm.likelihood import Levels
from adpm.nn import NETWORKS
from adpm.nn.checkpoint import load_weights, save_weights
from adpm.paths import measure_cost_table
from adpm.process import PROCESSES
from adpm.run.assembly import Session
from adpm.run.classes import TrainingClasses, of_images
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.config import load_config
from adpm.run.modes.train import held_out_loss, make_trainer, preview
from adpm.variance import Unit
from sde.mode import _batch
from tests.goldens import filled_state

ROOT = Path(__file__).parent.parent
SHAPE = (1, 2, 2)
LINEAR = PROCESSES["linear"].build(200)
VARIANCES = (0.04, 0.5)
CONTINUOUS = Levels(0, -1.0, 1.0)
WORLDS = [ideal.gaussian([m] * 4, v, SHAPE) for m, v in zip((-0.6, 0.5), VARIANCES, strict=True)]
"""p(x_0 | y): one Gaussian per class."""


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


class Exact:
    """E[x_0 | x_t, y] of the two classes; of no class, the even mixture's."""

    def __init__(self, process: Any = LINEAR, classes: Tensor | None = None) -> None:
        self.process, self.classes = process, classes
        self.own = [IdealDenoiser(world, process) for world in WORLDS]
        means, spread = (torch.stack([getattr(w, name)[0] for w in WORLDS]) for name in ("means", "spectrum"))
        self.mixture = IdealDenoiser(ideal.diagonal_mixture([0.5, 0.5], means, spread, SHAPE), process)

    def given(self, classes: Tensor | None) -> Exact:
        made = Exact(self.process)
        made.classes, made.own = classes, self.own
        return made

    def _of(self, call: Callable[[IdealDenoiser], Tensor]) -> Tensor:
        if self.classes is None:
            return call(self.mixture)
        first, second = (call(own) for own in self.own)
        return torch.where((self.classes == 0).reshape(-1, 1, 1, 1), first, second)

    def __call__(self, x: Tensor, t: Any) -> Prediction:
        x0, eps = (self._of(lambda own, name=name: getattr(own(x, t), name)) for name in ("x0", "eps"))
        return Prediction(x0, eps, eps)

    def label(self, t: Any) -> Any:
        return t

    def raw(self, x: Tensor, alpha: Any, sigma: Any, label: Any) -> Tensor:
        return self._of(lambda own: own.raw(x, alpha, sigma, label))


MANY = (torch.arange(3000) * 7 % 5 < 2).long()  # two of five are of class 1
DRAWN = torch.where(MANY.reshape(-1, 1, 1, 1) == 0, *(world.sample(3000, 7) for world in WORLDS)).float()
LABELS, IMAGES = MANY[:60], DRAWN[:60]


def model(process: Any = LINEAR) -> adpm.Model:
    return adpm.Model.of(Exact(process), process, data_range=(-9.0, 9.0))


# ---------------------------------------------------------------------------------------------------------- the library


def test_moments_are_those_within_classes() -> None:
    """Var[x_0 | x_t, y] of a Gaussian is v sigma^2/(alpha^2 v + sigma^2), in every state; batches change nothing."""
    told = model().told(LABELS)
    found = model().told(MANY).measure(DRAWN, draws=3000, times=12, batch_size=500)
    table, times = found.estimate("residual"), found.times
    alpha2, sigma2 = LINEAR.alpha(times) ** 2, LINEAR.sigma(times) ** 2
    within = [v * sigma2 / (alpha2 * v + sigma2) for v in VARIANCES]
    expected = 0.6 * within[0] + 0.4 * within[1]
    assert np.all(np.abs(table.values - expected) < 4.5 * table.errors)
    assert np.median(table.errors / expected) < 0.03
    unconditional = model().measure(DRAWN, draws=3000, times=12).estimate("residual")
    assert np.max(unconditional.values / expected) > 1.3  # what not knowing the class costs
    again = told.measure(IMAGES, draws=60, times=5, batch_size=7)
    whole = told.measure(IMAGES, draws=60, times=5, batch_size=60)
    np.testing.assert_allclose(again.estimate().values, whole.estimate().values, rtol=1e-9)


def test_samples_are_of_their_classes_whatever_the_batches() -> None:
    told = model().told(LABELS)
    plan = told.plan(trajectory="even", steps=50)
    x = told.sample(plan, "unit", 600, shape=SHAPE, batch_size=600)
    labels = LABELS[torch.arange(600) % 60]
    for k, world in enumerate(WORLDS):
        own = x[labels == k].double().flatten(1).mean(1)
        spread = 0.5 * VARIANCES[k] ** 0.5  # of a mean over 4 pixels
        assert abs(float(own.mean()) - float(world.means[0, 0])) < 4.5 * max(spread, float(own.std())) / len(own) ** 0.5
        assert float(own.std()) < 1.7 * spread
    assert (x - told.sample(plan, "unit", 600, shape=SHAPE, batch_size=77)).abs().max() < 1e-5
    only = model().told(torch.ones(1)).sample(plan, "unit", 60, shape=SHAPE)
    torch.testing.assert_close(only[LABELS == 1], x[:60][LABELS == 1])  # by number, whatever the others are


def test_bounds_are_of_each_image_in_its_class() -> None:
    """Image by image, the bound of its class's own model."""
    plan = model().plan(trajectory="even", steps=6)
    told = model().told(LABELS).bits_per_dim(IMAGES, plan, "unit", decoder="published", levels=0, batch_size=13)
    for k, world in enumerate(WORLDS):
        own = adpm.Model.of(IdealDenoiser(world, LINEAR), LINEAR, data_range=(-9.0, 9.0))
        alone = own.bits_per_dim(IMAGES, plan, "unit", decoder="published", levels=0)
        np.testing.assert_allclose(told.bits[:, LABELS == k], alone.bits[:, LABELS == k], rtol=1e-9, atol=1e-12)


def test_statistics_of_one_class_are_those_of_its_model() -> None:
    """EMS of DPM-Solver-v3, and trajectories with the steps fitted to them."""
    world = WORLDS[1]
    own = adpm.Model.of(IdealDenoiser(world, LINEAR), LINEAR, data_range=(-9.0, 9.0))
    told = model().told(torch.ones(1))
    options = {"nodes": 5, "draws": 40, "seed": 3, "batch_size": 16, "derivative": "difference"}
    first, second = (m.measure_statistics(IMAGES, **options) for m in (told, own))
    for name in ("linear", "scale", "bias"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-6, atol=1e-8)
    flows = [m.measure_trajectories(IMAGES, starts=24, nodes=8, batch_size=7) for m in (told, own)]
    torch.testing.assert_close(flows[0].reference.states, flows[1].reference.states)
    plan = own.plan(trajectory="even", steps=3)
    drawn = [
        m.sample(plan, solver="fitted", n=8, shape=SHAPE, statistics=flow, bands=1)
        for m, flow in zip((told, own), flows, strict=True)
    ]
    torch.testing.assert_close(*drawn, rtol=1e-4, atol=1e-4)


class Spy:
    """A denoiser that sees the class in the image, whose pixels are 10^6 times it, and checks what it is told."""

    def __init__(self, process: Any, classes: Tensor | None = None) -> None:
        self.process, self.classes, self.seen = process, classes, [] if classes is None else None

    def given(self, classes: Tensor | None) -> Spy:
        assert classes is not None
        self.seen.extend(classes.tolist())
        return Spy(self.process, classes)

    def _check(self, x: Tensor, alpha: Any) -> None:
        there = (x.flatten(1).mean(1) / torch.as_tensor(alpha).reshape(-1) / 1e6).round()
        assert torch.equal(there.long(), self.classes), "another image's class"

    def __call__(self, x: Tensor, t: Any) -> Prediction:
        self._check(x, self.process.alpha(np.asarray(t)))
        return Prediction(0.5 * x, 0.5 * x, 0.5 * x)

    def label(self, t: Any) -> Any:
        return t

    def raw(self, x: Tensor, alpha: Any, sigma: Any, label: Any) -> Tensor:
        if not torch._C._functorch.is_gradtrackingtensor(x) and torch.as_tensor(alpha).ndim == 0:
            self._check(x, alpha)
        return 0.5 * x


def visible(labels: Tensor) -> Tensor:
    return 1e6 * labels.float().reshape(-1, 1, 1, 1).expand(-1, *SHAPE).contiguous()


@pytest.mark.parametrize("what", "moments coordinates statistics unexplained data costs bound".split())
def test_every_measurement_tells_each_image_its_class(what: str) -> None:
    labels = torch.arange(23) * 5 % 7
    process = PROCESSES["linear"].build(40)
    spy, images = Spy(process), visible(labels)
    front = adpm.Model.of(spy, process, data_range=(-9.0, 9e6)).told(labels)
    source, numbers = front.source_of(images), torch.tensor([4, 1, 17, 22, 9])
    where = (front.denoise, process)
    if what == "moments":
        front.measure(images, draws=30, times=4, batch_size=8)
    elif what == "coordinates":
        front.measure(images, draws=30, times=4, batch_size=8, basis="dct")
    elif what == "statistics":
        front.measure_statistics(images, nodes=4, draws=30, batch_size=8, derivative="difference")
    elif what == "unexplained":
        unexplained(front.denoise, IdealDenoiser(WORLDS[0], process), process, source, [3.0], 30, 1, 8)
    elif what == "data":
        options = {"seed": 1, "batch_size": 2}
        measure_data_row(*where, lambda t: 1.0, CONTINUOUS, source.images, numbers, process.times[1:], **options)
    elif what == "costs":
        options = {"eta": 1.0, "seed": 1, "batch_size": 2}
        measure_cost_table(*where, Unit(), lambda t: 1.0, CONTINUOUS, source.images, numbers, **options)
    else:
        plan = front.plan(trajectory="even", steps=4)
        front.bits_per_dim(images, plan, "unit", decoder="published", levels=0, batch_size=5)
    assert spy.seen and set(spy.seen) <= set(labels.tolist()) and len(set(spy.seen)) > 1


def test_a_network_is_told_by_position_and_the_last_word_counts() -> None:
    seen: list[Any] = []

    def network(x: Tensor, t: Tensor, *classes: Tensor | None) -> Tensor:
        seen.append(classes)
        return x

    denoise, x = Denoiser(network, LINEAR), torch.zeros(2, *SHAPE)
    a, b = torch.tensor([0, 1]), torch.tensor([1, 1])
    told = denoise.given(a)
    for asked in (denoise, told, told.given(b), denoise.given(None), Told(denoise, lambda numbers: numbers)):
        at(asked, a)(x, 5.0)
    assert seen[0] == () and seen[1][0] is a and seen[3] == (None,) and seen[4][0] is a
    assert len(seen[2]) == 1 and seen[2][0] is b
    denoise.given(b).raw(x, 0.9, 0.1, 5.0)
    assert seen[5][0] is b


def test_what_is_not_told_is_refused() -> None:
    with pytest.raises(UserError, match=r"IdealDenoiser is told no classes"):
        adpm.Model.of(IdealDenoiser(WORLDS[0], LINEAR), LINEAR).told(LABELS)
    with pytest.raises(UserError, match=r"by their numbers"):
        model().told(LABELS).denoise(torch.zeros(1, *SHAPE), 3.0)


# ------------------------------------------------------------------------------------------------------- which classes


def test_drawn_classes_are_even_and_depend_on_seed_and_number_alone() -> None:
    drawn = CLASSES["drawn"].build(ClassNeeds(10, False, 3))
    numbers = torch.arange(20_000)
    found = drawn(numbers)
    counts = torch.bincount(found, minlength=10).double()
    assert len(counts) == 10 and ((counts - 2000).square() / 2000).sum() < 27.9  # chi^2 with 9, one in a thousand
    assert torch.equal(drawn(numbers[123:130]), found[123:130])
    assert not torch.equal(CLASSES["drawn"].build(ClassNeeds(10, False, 4))(numbers), found)
    pairs = torch.bincount(10 * found[:-1] + found[1:], minlength=100).double()
    assert ((pairs - 199.99).square() / 199.99).sum() < 149  # neighbours know nothing of each other


def test_fixed_classes() -> None:
    needs = ClassNeeds(10, False, 0)
    assert CLASSES["one"].build(needs, class_index=7)(torch.arange(3)).tolist() == [7, 7, 7]
    assert CLASSES["none"].build(ClassNeeds(10, True, 0))(torch.arange(3)) is None
    with pytest.raises(UserError, match=r"`class_index` = 10 must lie in 0\.\.9"):
        CLASSES["one"].build(needs, class_index=10)
    with pytest.raises(UserError, match=r"`classes` = 'none' needs a network that knows .*`null_class` = True"):
        CLASSES["none"].build(needs)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_training_drops_a_share_of_the_classes(share: float) -> None:
    labels = torch.arange(100) % 10
    classes = TrainingClasses({"train": labels}, null=10, dropout=share, seed=2)
    images, numbers = torch.arange(20_000) % 100, torch.arange(20_000)
    found = classes.of_examples(images, numbers)
    dropped = found == 10
    assert abs(float(dropped.double().mean()) - share) <= 4 * (share * (1 - share) / 20_000) ** 0.5
    assert torch.equal(found[~dropped], labels[images][~dropped])
    assert torch.equal(classes.of_examples(images[50:60], numbers[50:60]), found[50:60])
    known = TrainingClasses({"train": labels}, null=None, dropout=0.0, seed=2)
    assert torch.equal(known.of_examples(images, numbers), labels[images])


# ---------------------------------------------------------------------------------------------------------- the network


def iddpm(**changes: Any) -> Any:
    options = {"model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "num_heads": 1, **changes}
    made = NETWORKS["iddpm"].build((1, 8, 8), **options)
    load_weights(made, filled_state(made), "filled")
    return made.eval()


@pytest.mark.parametrize("head", ["none", "complex"])
def test_a_class_moves_the_time_embedding(head: str) -> None:
    """emb = time_embed(t) + label_emb[y]: as if the last bias of time_embed were another for each class."""
    network, plain = iddpm(num_classes=3, null_class=True, head=head), iddpm(head=head)
    names = list(network.state_dict())
    assert names.index("label_emb.weight") == 4 and network.label_emb.weight.shape == (4, 32)
    x, t = torch.rand(4, 1, 8, 8), torch.tensor([0.0, 3.5, 400.0, 999.0])
    bias = plain.time_embed[2].bias.detach().clone()
    classes = torch.tensor([2, 0, 1, 2])
    with torch.no_grad():
        told, nothing = network(x, t, classes), network(x, t, None)
        assert torch.equal(nothing, network(x, t))
        for i in range(4):
            for row, expected in ((int(classes[i]), told), (3, nothing)):  # the last row is for no class
                plain.time_embed[2].bias.copy_(bias + network.label_emb.weight[row])
                torch.testing.assert_close(plain(x[i : i + 1], t[i : i + 1]), expected[i : i + 1], rtol=1e-4, atol=1e-5)
    assert (told - nothing).abs().max() > 1e-2


def test_networks_refuse_what_they_cannot_know() -> None:
    x, t, three = torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(UserError, match=r"its `num_classes` = 3 classes .*give a class to each image"):
        iddpm(num_classes=3)(x, t)
    with pytest.raises(UserError, match=r"`classes` of shape \(3,\) must hold one class for each of 2 images"):
        iddpm(num_classes=3)(x, t, three)
    with pytest.raises(UserError, match=r"this network is told no classes"):
        iddpm()(x, t, three[:2])
    with pytest.raises(UserError, match=r"`null_class` = True goes with classes"):
        iddpm(null_class=True)
    with pytest.raises(UserError, match=r"`num_classes` = 1\.5 must be a whole number"):
        iddpm(num_classes=1.5)


# --------------------------------------------------------------------------------------------------------------- a run


TINY = {
    "network.model_channels": 8,
    "network.num_heads": 1,
    "network.attention_downsample": (),
    "network.pretrained": "",
    "network.num_classes": 10,
    "network.null_class": True,
    "train.iterations": 3,
    "train.batch_size": 16,
    "train.sample_every": 3,
    "process.steps": 40,
    "moments.draws": 12,
    "moments.times": 5,
    "moments.implausible": True,
    "trajectory.name": "even",
    "trajectory.steps": 4,
    "sampling.samples": 12,
    "likelihood.images": 20,
}


def session(workdir: Path, config: str = "configs/digits.py", trains: bool = False, **changes: Any) -> Session:
    made, own = load_config(config)
    fields = {**TINY, **{name.replace("__", "."): value for name, value in changes.items()}}
    own.table.update(made, {**fields, "cache": str(workdir / "cache")})
    return Session.make(made, workdir, own, trains)


def flags(workdir: Path, mode: str, **changes: Any) -> list[str]:
    fields = {**TINY, "cache": str(workdir / "cache"), **{k.replace("__", "."): v for k, v in changes.items()}}
    told = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["main.py", "--config=configs/digits.py", f"--mode={mode}", f"--workdir={workdir}", *told]


def samples(workdir: Path) -> dict[str, np.ndarray]:
    """Samples by what the protocol says of their classes."""
    out = {}
    for folder in (workdir / "samples").iterdir():
        own = json.loads((folder / "protocol.json").read_text())["own"]
        out[f"{own['sampling.classes']}{own.get('sampling.class_index', '')}"] = np.load(folder / "samples.npy")
    return out


def test_a_conditional_network_goes_through_every_mode(tmp_path: Path, capsys: Any) -> None:
    """Trained, estimated, sampled with drawn, fixed and no classes, and its bound taken."""
    assert run(flags(tmp_path, "train"), MODES) == 0
    trained = {
        "network__pretrained": tmp_path / "weights.safetensors",
        "denoiser__guidance": 2.0,
        "rule__name": "small",
    }
    assert run(flags(tmp_path / "with header", "sample", **trained), MODES) == 0, capsys.readouterr().err
    made = session(tmp_path)
    filled = filled_state(made.network())  # weights that listen to their class
    save_weights(tmp_path / "weights.safetensors", filled, {})
    for mode in ("estimate", "likelihood", "sample"):
        assert run(flags(tmp_path, mode), MODES) == 0, capsys.readouterr().err
    for changes in (
        {"sampling__classes": "one", "sampling__class_index": 3},
        {"sampling__classes": "one", "sampling__class_index": 4},
        {"sampling__classes": "none"},
    ):
        assert run(flags(tmp_path, "sample", **changes), MODES) == 0, capsys.readouterr().err
    found = samples(tmp_path)
    assert set(found) == {"drawn", "one3", "one4", "none"}
    drawn = CLASSES["drawn"].build(ClassNeeds(10, True, 0))(torch.arange(12))
    for k in (3, 4):
        same = (drawn == k).numpy()
        assert (np.abs(found["drawn"][same].astype(int) - found[f"one{k}"][same]) <= 1).all()
    assert not np.array_equal(found["one3"], found["one4"]) and not np.array_equal(found["one3"], found["none"])
    assert run(flags(tmp_path, "sample", sampling__batch_size=5), MODES) == 0
    again = samples(tmp_path)["drawn"]
    assert np.abs(again.astype(int) - found["drawn"]).max() <= 1
    capsys.readouterr()
    assert (
        run(
            flags(
                tmp_path / "guided",
                "sample",
                denoiser__guidance=3.0,
                network__pretrained=tmp_path / "weights.safetensors",
            ),
            MODES,
        )
        == 0
    )
    assert "8 network calls each" in capsys.readouterr().out
    assert not np.array_equal(samples(tmp_path / "guided")["drawn"], found["drawn"])


def test_the_flow_is_of_each_image_in_its_class(tmp_path: Path) -> None:
    """Both where it starts, at the bound's decoder, and on its way."""
    fields = {"process__name": "vp", "likelihood__method": "flow", "likelihood__dequantisation": "diffusion"}
    fields |= {"likelihood__t_min": 0.1, "likelihood__rtol": 1e-2, "likelihood__atol": 1e-2}
    made = session(tmp_path, trains=True, **fields)
    save_weights(tmp_path / "weights.safetensors", filled_state(made.network()), {})
    made = session(tmp_path, **fields)
    labels, denoise = made.data.labels["test"], made.trunk.denoise
    batch = (lambda t: 0.01, range(3, 7))
    found = _batch(made, of_images(made, denoise, "test"), *batch)["nats"]
    one, other = (_batch(made, denoise.given(y), *batch)["nats"] for y in (labels[3:7], labels[:4]))
    np.testing.assert_array_equal(found, one)
    assert np.abs(found - other).max() > 0.1


def test_training_is_told_the_labels_of_its_images(tmp_path: Path, monkeypatch: Any) -> None:
    """With the images in place of the classes: what the network is told is what its image shows."""
    made = session(tmp_path, trains=True, train__class_dropout=0.25)
    trainer = make_trainer(made)
    x0, _, _, _, classes = trainer._examples(1)
    data = made.data
    where = (data.scaled(data.splits["train"])[None] == x0[:, None].cpu()).flatten(2).all(2)  # [B, n]
    assert where.any(1).all()
    labels = data.labels["train"][where.double().argmax(1)]
    assert classes is not None and ((classes == labels) | (classes == 10)).all() and (classes == 10).any()
    seen: list[Tensor] = []
    real = trainer.loss_of
    monkeypatch.setattr(trainer, "loss_of", lambda *args: seen.append(args[-1]) or real(*args))
    held_out_loss(trainer)
    assert torch.equal(torch.cat(seen), data.labels["test"].repeat(4))
    with pytest.raises(UserError, match="knows no other way"):
        strict = session(tmp_path / "b", trains=True, network__null_class=False)
        preview(make_trainer(strict), strict.denoiser(make_trainer(strict).ema.module, clip=True))


def test_a_head_learns_on_a_conditional_trunk(tmp_path: Path) -> None:
    made = session(tmp_path, trains=True)
    save_weights(tmp_path / "weights.safetensors", filled_state(made.network()), {})
    head = {"network__head": "simple", "train__objective": "npr", "rule__name": "npr", "train__sample_every": 0}
    trainer = make_trainer(session(tmp_path, trains=True, **head))
    losses = [trainer.step()["train/loss"] for _ in range(3)]
    assert np.isfinite(losses).all() and trainer.classes is not None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"network__num_classes": 9},
            r"is told 9 classes .*, but the train labels of .* run from 0 to 9",
        ),
        (
            {"network__num_classes": 0, "network__null_class": False, "sampling__classes": "one"},
            r"config\.sampling\.classes = 'one' goes with a network that is told classes",
        ),
        (
            {"sampling__classes": "one", "sampling__class_index": 10},
            r"config\.sampling\.class_index = 10 must lie in 0\.\.9",
        ),
        (
            {"network__null_class": False, "sampling__classes": "none"},
            r"config\.sampling\.classes = 'none' needs .*config\.network\.null_class = True",
        ),
        ({"network__num_classes": 0}, r"config\.network\.null_class = True goes with classes"),
        (
            {"network__null_class": False, "denoiser__guidance": 2.0},
            r"config\.denoiser\.guidance = 2 goes away from no class, which the network does not know",
        ),
        ({"network__null_class": False, "train__class_dropout": 0.5}, r"class_dropout = 0\.5 does not go with"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    made, own = load_config("configs/digits.py")
    fields = {**TINY, **{name.replace("__", "."): value for name, value in changes.items()}}
    for name, value in fields.items():
        section, _, key = name.partition(".")
        with made.unlocked(), made.ignore_type():
            made[section][key] = value
    with pytest.raises(UserError, match=told):
        Session.make(made, tmp_path, own, trains=True)


def test_data_without_labels_are_for_samples_alone(tmp_path: Path) -> None:
    """What needs no moments can be drawn; what is measured on images, or trained on them, says what is missing."""
    fields = {"data__name": "toy", "data__size": 8, "rule__name": "unit"}
    made = session(tmp_path, trains=True, **fields)
    save_weights(tmp_path / "weights.safetensors", filled_state(made.network()), {})
    made = session(tmp_path, **fields)
    for asks in (lambda: made.front, lambda: make_trainer(session(tmp_path / "b", trains=True, **fields))):
        with pytest.raises(UserError, match=r"is told 10 classes .* data set 'toy' has no train labels"):
            asks()
    from adpm.run.samples import samples_for

    assert len(samples_for(made).kept) == 12
