"""Heads trained beside an exact mean: the world, a small network, and its training by an objective of covariance/.

The training follows adpm/run/training.py (warm-up, cosine schedule, clipped gradients, an average of the weights), but
draws fresh data for every iteration and can be stopped by the time it took.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from adpm import ideal
from adpm.denoiser import Prediction, per_sample
from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.likelihood import Levels
from adpm.model import Model
from adpm.nn.checkpoint import read_header, save_weights
from adpm.nn.iddpm_layers import timestep_embedding
from adpm.noise import KeyedNoise
from adpm.objective import ObjectiveNeeds
from adpm.process import Array, Process
from adpm.run.store import differences
from adpm.run.times import TIMES, TimeSampler
from adpm.run.training import SCHEDULES, stratified
from adpm.scale import Scale
from adpm.whole import write_whole
from covariance.objective import OBJECTIVES

Head = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor, Tensor, Array, Prediction]


@dataclass(frozen=True)
class World:
    """Data with their exact denoiser, and Var_t as a user would measure it.

    Attributes:
        mixture, process: what the denoiser is exact for.
        average: Var_t as a function of time, from a moment table.
        scale: r_f in a basis, from the same draws; None where no head speaks of one.
    """

    mixture: ideal.Mixture
    process: Process
    average: Callable[[Array], Array]
    scale: Scale | None = None

    @property
    def exact(self) -> ideal.IdealDenoiser:
        return ideal.IdealDenoiser(self.mixture, self.process)

    def known_scale(self) -> Scale:
        assert self.scale is not None
        return self.scale

    def predict(self, head: Head, x: Tensor, t: Array) -> Prediction:
        """The exact prediction with the head's output beside it."""
        return self.headed(self.exact(x, t), head, x, t)

    def headed(self, exact: Prediction, head: Head, x: Tensor, t: Array) -> Prediction:
        """`predict`, where the exact prediction is at hand."""
        label = torch.as_tensor(self.process.log_snr(t), dtype=torch.float32)
        return replace(exact, head=head(x.float(), label.expand(len(x))).to(x.dtype))


def world_of(
    mixture: ideal.Mixture, process: Process, images: int, times: int, draws: int, seed: int, basis: str = ""
) -> World:
    """Var_t by the default estimator from `draws` pairs at each of `times` times, on `images` draws of the mixture.

    With a `basis`, r_f there, too.
    """
    model = Model.of(ideal.IdealDenoiser(mixture, process), process)
    moments = model.measure(mixture.sample(images, seed), draws, times, seed=seed, basis=basis)
    scale = moments.spectrum.scale(process) if moments.spectrum else None
    return World(mixture, process, moments.variance("residual"), scale)


class Block(nn.Module):
    """x + W2 silu(W1 (norm(x) (1 + scale) + shift)), scale and shift from the time embedding."""

    def __init__(self, width: int, c_emb: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(c_emb, 2 * width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.body[2].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.modulation(emb).chunk(2, dim=1)
        return x + self.body(self.norm(x) * (1 + scale) + shift)


class HeadNetwork(nn.Module):
    """(x_t [B, C, H, W], log-SNR [B]) -> h of x's shape: residual blocks over all pixels at once; starts at h = 0.

    No convolutions: what a class of 8x8 digits says about a pixel depends on where the pixel is.
    """

    def __init__(self, dim: int, width: int, blocks: int, c_emb: int = 64) -> None:
        super().__init__()
        self.c_emb = c_emb
        self.time = nn.Sequential(nn.Linear(c_emb, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb), nn.SiLU())
        self.stem = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(Block(width, c_emb) for _ in range(blocks))
        self.last = Block(width, c_emb)
        self.out = nn.Linear(width, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        emb = self.time(timestep_embedding(4.0 * log_snr, self.c_emb))
        h = self.stem(x.flatten(1))
        for block in (*self.blocks, self.last):
            h = block(h, emb)
        return self.out(nn.functional.silu(h)).reshape(x.shape)


@dataclass(frozen=True)
class Training:
    """How heads are trained; `minutes` are of one core's time, `iterations` = 0 is as many as fit.

    `options` are the objective's own; `pool` batches come again and again, 0: each is drawn once, which in a world of
    many components costs more than the network.
    """

    minutes: float
    iterations: int
    batch_size: int
    learning_rate: float
    times: str
    ema_decay: float
    width: int
    blocks: int
    seed: int
    warmup: int = 200
    grad_clip: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    pool: int = 0


def train(world: World, name: str, options: Training) -> tuple[nn.Module, int]:
    """The averaged head after training by the objective `name`, and its iterations."""
    torch.manual_seed(options.seed)
    network = HeadNetwork(world.mixture.dim, options.width, options.blocks)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay))
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=0.0)
    needs = ObjectiveNeeds(world.process, Levels(0, -1.0, 1.0), lambda: world.average, world.known_scale)
    objective = OBJECTIVES[name].build(needs, **options.options)
    times, begun = TIMES[options.times].build(world.process), time.process_time()
    kept: dict[int, Batch] = {}
    for i in itertools.count():
        done = max(spent(begun) / options.minutes, i / options.iterations if options.iterations else 0.0)
        if done >= 1.0:
            return average.module, i
        number = i % options.pool if options.pool else i
        x, x0, eps, t, exact = kept.get(number) or drawn(world, times, options, number)
        if options.pool:
            kept[number] = x, x0, eps, t, exact
        loss = objective(world.headed(exact, network, x, t), x0, eps, t).mean()
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1.0, (i + 1) / options.warmup) * SCHEDULES["cosine"].build()(done)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), options.grad_clip)
        optimizer.step()
        average.update_parameters(network)
    raise AssertionError("the count has no end")


def spent(begun: float) -> float:
    """Minutes of this process since `begun`, which other processes do not lengthen."""
    return (time.process_time() - begun) / 60


def drawn(world: World, times: TimeSampler, options: Training, number: int) -> Batch:
    """A batch of training, with the exact prediction at its states."""
    t = times.draw(stratified(options.seed, number, options.batch_size))[0]
    x, x0, eps, t = batch(world, t, options.seed, number)
    return x, x0, eps, t, world.exact(x, t)


def batch(world: World, t: Array, seed: int, iteration: int) -> tuple[Tensor, Tensor, Tensor, Array]:
    """x_t, x_0 and eps (float32) at times t [B]: fresh draws for every iteration."""
    x0 = world.mixture.sample(len(t), (seed << 32) + iteration + 1).float()
    eps = KeyedNoise(seed, "train")(iteration * len(t) + torch.arange(len(t)), 0, world.mixture.shape)
    return per_sample(world.process.alpha(t), x0) * x0 + per_sample(world.process.sigma(t), x0) * eps, x0, eps, t


def trained(world: World, name: str, options: Training, workdir: Path) -> tuple[Head, dict[str, Any]]:
    """The head of an earlier run in `workdir`, or a new one that is kept there; and what its file says about it.

    Raises:
        UserError: if the head there was trained otherwise (it may have taken another time).
    """
    path = workdir / f"{name}.safetensors"
    if not path.exists():
        network, done = train(world, name, options)
        header = {"objective": name, **asdict(options), "iterations": done, "weights": "ema"}
        write_whole(path, lambda p: save_weights(p, network.state_dict(), header))
    header, wanted = read_header(path), asdict(options)
    if told := differences(header, {key: wanted[key] for key in wanted.keys() - {"minutes", "iterations"}}):
        raise UserError(f"'{path}' holds a head trained otherwise ({told}); choose another --workdir.")
    network = HeadNetwork(world.mixture.dim, options.width, options.blocks)
    network.load_state_dict(read_weights(path))
    return network.eval(), header
