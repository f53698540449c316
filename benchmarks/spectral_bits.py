"""bits/dim by covariance and budget: the scalar, a variance per coordinate of a basis, and trained heads.

    python -m benchmarks.spectral_bits [--models linear vp ve] [--workdir=runs/spectral] [--steps 3 5 ...]
    python -m benchmarks.spectral_bits --models patches --images=128 --measured NPR "spectral head"

Heads have two kinds of least-cost paths: the scalar's, and, for those named in `--measured`, that of their own bound.

The network sees the test split once at every time of every path, with the noise of `--mode=likelihood`: all cells have
the same errors x_0 - x0_hat, so that their differences are paired, and each equals what that command gives.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adpm.denoiser import Denoise, Prediction, require_finite
from adpm.families import built
from adpm.gaussian import Covariance, Number
from adpm.kernel import Kernel, reverse_kernel
from adpm.likelihood import bits_per_dim, decoder_nats, keyed_noise, prior_nats
from adpm.nn.heads import Headed
from adpm.planning import planner
from adpm.process import Array
from adpm.progress import Arrays, Keep
from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.measure import variance_for
from adpm.run.paths import needs_of
from adpm.run.store import digest, record
from adpm.trajectory import Request, trajectory
from adpm.variance import Rule
from benchmarks.protocol import describe


@dataclass(frozen=True)
class Shipped:
    """A model, what is measured of it, and how far below the scalar's bits/dim its first basis should be.

    Attributes:
        config, variant: the model.
        heads: name -> variant with a head.
        bases: name -> `moments.basis`; the first one has the goals.
        goals: K -> bits/dim, both with least-cost steps.
    """

    config: str
    variant: str = ""
    heads: Mapping[str, str] = field(default_factory=dict)
    bases: Mapping[str, str] = field(default_factory=lambda: {"PCA": "pca", "pixel": "identity", "DCT": "dct"})
    goals: Mapping[int, float] = field(default_factory=lambda: {5: 0.18, 10: 0.08})


HEADS = {"SN": "sn", "NPR": "npr", "OCM": "ocm", "relative": "relative", "spectral head": "spectral"}
MODELS = {
    "linear": Shipped("configs/digits.py", "", HEADS),
    "vp": Shipped("configs/digits_sde.py", "vp", {name: f"vp_{HEADS[name]}" for name in HEADS if name != "OCM"}),
    "ve": Shipped("configs/digits_sde.py", "ve"),
    "patches": Shipped(
        "configs/patches.py",
        heads=HEADS,
        bases={"block DCT": "block_dct", "pixel": "identity", "DCT": "dct"},
        goals={10: 0.15},
    ),
}
SCALAR, EVEN, PLANNED, BORROWED = "scalar", "even", "least-cost", "least-cost of the scalar"
BUDGETS = (3, 5, 7, 10, 15, 25, 50, 100)


class Heads(nn.Module):
    """A trunk with the heads of several networks: its own output, then that of each head."""

    def __init__(self, trunk: Headed, heads: Mapping[str, nn.ModuleDict]) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, nn.ModuleDict(heads)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, emb = self.trunk.features(x, t)
        heads = [self.trunk.second_output(h, emb, head) for head in self.heads.values()]  # type: ignore[arg-type]
        return torch.cat([self.trunk.mean_output(h, t)[:, : self.trunk.in_channels], *heads], 1)


@dataclass(frozen=True)
class Remembered(Rule):
    """A head's rule, with what it knew of each image at each time."""

    rule: Rule
    known: Mapping[float, Tensor]

    def parameter(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        values = self.known[float(kernel.t)].double()
        blank = torch.zeros_like(values[:1])
        return replace(self.rule.parameter(kernel, Prediction(*[blank] * 4)), values=values, clipped=0.0)  # its axes

    def variance(self, kernel: Kernel, values: Number) -> Number:
        return self.rule.variance(kernel, values)


class Bench:
    """A shipped model: its rules, paths by (rule, kind) for each budget, and what it said of the test images there.

    The paths of the heads in `measured` are planned on their own bound, measured at every time.
    """

    def __init__(
        self,
        model: str,
        folder: Path,
        budgets: Sequence[int],
        images: int,
        measured: Sequence[str] = (),
        **moments: int,
    ) -> None:
        self.shipped = shipped = MODELS[model]

        def session(variant: str) -> Session:
            made, house = load_config(shipped.config, variant)
            made.moments.update(moments)
            return Session.make(made, folder / model, house)

        self.session, self.budgets = session(shipped.variant), budgets
        self.process, self.numbers = self.session.process, torch.arange(images or len(self.session.data.split("test")))
        self.x0 = self.session.images("test")(self.numbers).double()
        axes = {"rule.name": "spectral", "trajectory.cost": "axes"}
        in_basis = {name: self.session.again({**axes, "moments.basis": basis}) for name, basis in shipped.bases.items()}
        for own in in_basis.values():
            own.known("coordinates")  # the scalar's moments come with them
        self.heads = {name: session(of_head) for name, of_head in shipped.heads.items()}
        sessions = {SCALAR: self.session, **in_basis, **self.heads}
        self.rules = {name: own.rule(variance_for(own), own.process.times[:2]) for name, own in sessions.items()}
        even = [trajectory("even", Request(self.process, k)) for k in budgets]
        planned = {SCALAR: self._planned("kl", self.session)}
        planned |= {name: self._planned("axes", own) for name, own in in_basis.items()}
        planned |= {name: self._planned("measured", own) for name, own in self.heads.items() if name in measured}
        self.paths = {(name, EVEN): even for name in sessions} | {(name, PLANNED): p for name, p in planned.items()}
        self.paths |= {(name, BORROWED): planned[SCALAR] for name in self.heads}
        self.indices = np.unique(np.concatenate([path[1:] for paths in self.paths.values() for path in paths]))
        self._look()

    def _planned(self, cost: str, session: Session) -> list[Array]:
        costs = built(session.house.families["cost"], cost, "`cost`", needs_of(session, True))
        solved = planner(costs, max(self.budgets))
        return [solved.plan(k).path for k in self.budgets]

    def _look(self) -> None:
        """Evaluate the network at the times of all paths; kept in the workdir."""
        session, config, at = self.session, self.session.config, self.process.times[self.indices].tolist()
        about = [session.identity, {name: own.model.head for name, own in self.heads.items()}, config.seed]
        moments = [config.moments.draws, config.moments.times]
        key = digest([about, moments, config.likelihood.decoder, self.indices.tolist(), len(self.numbers)])
        loaded = {name: own.model.network for name, own in self.heads.items()}
        assert session.trunk.network is not None
        network = Heads(session.trunk.network, {name: own.head() for name, own in loaded.items() if own})
        denoise = session.denoiser(network.eval(), clip=config.denoiser.clip)

        def make(keep: Keep) -> Mapping[str, Array]:
            found = list(keep(len(at), 1, lambda items: self._seen(denoise, at[items.start]), "times"))
            return {name: np.stack([part[name] for part in found]) for name in found[0]}

        seen = record(session.workdir / f"seen-{key}.npz", make)
        self.seen = {name: dict(zip(at, torch.from_numpy(array), strict=True)) for name, array in seen.items()}
        self.rules |= {name: Remembered(self.rules[name], self.seen[name]) for name in self.heads}

    @torch.inference_mode()
    def _seen(self, denoise: Denoise, t: float) -> Arrays:
        """Errors of x_0 [n, ...], nats of a last step [n], and what each head's rule knows [n, ...]."""
        session, process, x0 = self.session, self.process, self.x0
        eps = keyed_noise(session.config.seed, process, self.numbers.to(x0.device), session.data.shape, x0.dtype)(t)
        found = require_finite(denoise(float(process.alpha(t)) * x0 + float(process.sigma(t)) * eps, t), t)
        kernel = reverse_kernel(process, t, 0.0)  # what a rule knows depends on t alone
        decoder = session.decoder(variance_for(session))(t)
        out = {"error": x0 - found.x0, "data": decoder_nats(x0, found.x0, decoder, session.levels)}
        for name, h in zip(self.heads, () if found.head is None else found.head.split(x0.shape[1], 1), strict=True):
            out[name] = torch.as_tensor(self.rules[name].parameter(kernel, replace(found, head=h)).values)
        return {name: tensor.float().cpu().numpy() for name, tensor in out.items()}

    def bits(self, rule: Rule, path: Array) -> Array:
        """The bound of each image, [n]."""
        times = self.process.times[path]
        nats = prior_nats(self.process, self.x0).cpu() + self.seen["data"][float(times[1])]
        for s, t in pairwise(times[1:]):
            kernel = reverse_kernel(self.process, t, s)
            delta = float(kernel.gain) * self.seen["error"][float(t)].double()
            nats += rule(kernel, None).kl_from_isotropic(float(kernel.lambda2), delta)
        return np.asarray(bits_per_dim(nats, self.x0[0].numel()))


def report(bench: Bench) -> None:
    """Two tables: bits/dim, and the differences to the scalar image by image."""
    rows = sorted(bench.paths, key=lambda row: row[1] != EVEN)
    bits = {row: np.array([bench.bits(bench.rules[row[0]], path) for path in bench.paths[row]]) for row in rows}
    less = {row: bits[row] - bits[SCALAR, EVEN if row[1] == EVEN else PLANNED] for row in rows if row[0] != SCALAR}
    for title, table in (("bits/dim", bits), ("bits/dim less the scalar's, steps of the same kind", less)):
        print(f"\n{title}\n\n| covariance | steps | " + " | ".join(f"K = {k}" for k in bench.budgets) + " |")
        print("|---" * (len(bench.budgets) + 2) + "|")
        for (name, kind), own in table.items():
            print(f"| {name} | {kind} | " + " | ".join(shown(cell) for cell in own) + " |")
    first, wanted = next(iter(bench.shipped.bases)), bench.shipped.goals
    gains = -less[first, PLANNED].mean(1)
    goals = [
        f"{gain:.3f} at K = {k} (goal {wanted[k]})" for k, gain in zip(bench.budgets, gains, strict=True) if k in wanted
    ]
    told = ", ".join(["below the scalar" if (gains > 0.0).all() else "not always below the scalar", *goals])
    print(f"\n{first}, both least-cost: {told}")
    print("lowest: " + ", ".join(lowest(bits, i, k) for i, k in enumerate(bench.budgets)), flush=True)


def lowest(bits: Mapping[tuple[str, str], Array], budget: int, k: int) -> str:
    """The lowest cell of a budget, and by how much it is below the best one of another covariance, image by image."""
    means = {row: own[budget].mean() for row, own in bits.items()}
    best = min(means, key=lambda row: means[row])
    second = min((row for row in means if row[0] != best[0]), key=lambda row: means[row])
    return f"K = {k} {best[0]}, {shown(bits[second][budget] - bits[best][budget])} below {second[0]}"


def shown(values: Array) -> str:
    """Mean over images, and its standard error."""
    digits = 3 if abs(values.mean()) < 10.0 else 1
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="bits/dim by covariance and budget")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["linear", "vp", "ve"])
    parser.add_argument("--workdir", type=Path, default=Path("runs/spectral"))
    parser.add_argument("--steps", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--images", type=int, default=0, help="of the test split; 0 = all")
    parser.add_argument("--measured", nargs="*", choices=HEADS, default=list(HEADS), help="heads with own paths")
    parser.add_argument("--draws", type=int, default=300, help="of the moments")
    parser.add_argument("--times", type=int, default=100, help="of the moments")
    args = parser.parse_args()
    describe("bits/dim of the test split by covariance and budget")
    print(f"Moments: {args.draws} draws at each of {args.times} times. Paths with the data term, optimal decoder.")
    for model in args.models:
        bench = Bench(model, args.workdir, args.steps, args.images, args.measured, draws=args.draws, times=args.times)
        print(f"\n### {model}: {len(bench.indices)} times")
        report(bench)


if __name__ == "__main__":
    main()
