"""Score networks, predictors, correctors and whole chains of the published codes, with their stored noise.

The published discretisations take coefficients from index k = floor(t (N-1)) of a table and the score at t itself.
Which of them are the reverse kernel, exactly or to which order, is what the tests here say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from adpm import ideal
from adpm.denoiser import Counted, Denoiser, Prediction, index_label, per_sample
from adpm.kernel import reverse_kernel
from adpm.noise import Noise
from adpm.parametrisation import x0_from_eps
from adpm.process import DiscreteProcess, Process, linear_betas
from adpm.sampler import walk
from adpm.solver import ReverseGaussian, Solver, Step
from adpm.variance import RULES, Large, Rule, Small
from sde.corrector import CORRECTORS, Langevin, noise_level
from sde.process import PROCESSES, SDE, VP
from sde.score import LABELS, score_of
from sde.solver import PRESETS, EulerMaruyama, ProbabilityFlowEuler
from tests.goldens import RTOL, MixtureNetwork, golden, rel
from tests.sde_worlds import FIRST, PUBLISHED, WORLDS, preset_kernel

Network = Callable[[Tensor, Tensor], Tensor]
Range = tuple[float, float] | None

ODE_LIKELIHOOD = "tests/test_sde_likelihood.py"
# file -> pattern of keys -> how many there are, and where they are checked
PLACES: dict[str, dict[str, tuple[int, str]]] = {
    "score_sde": {
        r"t|x|target_mean_var|snr|n_steps|noise_pred|noise_corr|pc_x_init_unit|pc_.*__noise": (13, "inputs"),
        r"(vp|subvp|ve)__(params|drift|diffusion|marginal_mean|marginal_std|prior_logp|disc_f|disc_G)"
        r"|vp__discrete_betas|ve__discrete_sigmas": (26, "test_sde_process"),
        r"(vp|subvp|ve)__score": (3, "test_scores"),
        r"(vp|subvp|ve)__rev_(drift|diffusion)_pf[01]": (12, "test_reverse_sde"),
        r"(vp|subvp|ve)__rev_[fG]_pf[01]": (12, "test_reverse_diffusion, ..._on_subvp_is_euler_maruyama"),
        r"(vp|subvp|ve)__reverse_diffusion_pf[01]__(x|mean)": (12, "the same"),
        r"(vp|subvp|ve)__euler_maruyama_pf0__(x|mean)": (6, "test_euler_maruyama"),
        r"(vp|ve)__ancestral_sampling_pf0__(x|mean)": (4, "test_ancestral_sampling"),
        r"(vp|ve)__(langevin|ald)__(x|mean)": (8, "test_correctors"),
        r"(vp|subvp|ve)__net_(label|score)_cont1|subvp__net_(label|score)_cont0": (8, "test_networks"),
        r"(vp|ve)__net_(label|score)_cont0": (4, "test_discrete_networks"),
        r"pc_.*__(sample|nfe_reported)": (10, "test_chains"),
        r"failures": (1, "test_what_the_published_code_refuses_works"),
        r"(vp|subvp|ve)__lik_.*|lik_x": (19, ODE_LIKELIHOOD),
    },
    "sde_vp_ext": {
        r"vp_.*|t|s|x|time_rows": (13, "test_sde_process"),
        r"nll.*": (117, ODE_LIKELIHOOD),
    },
}


@pytest.mark.parametrize("file", PLACES)
def test_every_entry_is_counted(file: str) -> None:
    counts: Counter[str] = Counter()
    for key in golden(file):
        places = [pattern for pattern in PLACES[file] if re.fullmatch(pattern, key)]
        assert len(places) == 1, key
        counts[places[0]] += 1
    assert counts == {pattern: count for pattern, (count, _) in PLACES[file].items()}


def stored_score(process: Process, x: Tensor, t: ArrayLike) -> Tensor:
    """The exact score that the published code was run with: data N(m, v I), -(x - alpha m) / (alpha^2 v + sigma^2)."""
    m, v = golden("score_sde")["target_mean_var"]
    alpha, sigma = (per_sample(c(np.asarray(t, dtype=np.float64)), x) for c in (process.alpha, process.sigma))
    return -(x - alpha * m) / (alpha**2 * v + sigma**2)


@dataclass(frozen=True)
class ScoreAt:
    """A denoiser that gives the score of `sde` at `time` (None: at the time asked for) to users of `process`."""

    sde: Process
    time: ArrayLike | None
    process: Process

    def __call__(self, x: Tensor, t: ArrayLike) -> Prediction:
        time = np.asarray(t, dtype=np.float64)
        alpha, sigma = per_sample(self.process.alpha(time), x), per_sample(self.process.sigma(time), x)
        eps = -sigma * stored_score(self.sde, x, t if self.time is None else self.time)
        return Prediction(x0_from_eps(x, eps, alpha, sigma), eps, eps)


def exact(sde: Process) -> ScoreAt:
    return ScoreAt(sde, None, sde)


@dataclass(frozen=True)
class Table:
    """What index k of the published tables stands for: a step of `process`, and the rule of ancestral sampling."""

    process: Process
    time: Callable[[int], float]
    ancestral: Rule
    steps: int

    def ends(self, t: float) -> tuple[float, float]:
        """The step of k = floor(t (N-1)); that of k = 0 goes to the data."""
        k = int(np.floor(t * (self.steps - 1)))
        return self.time(k), self.time(k - 1) if k > 0 else 0.0


TABLES: dict[str, Callable[[int], Table]] = {
    # step n = k + 1 of the linear schedule
    "vp": lambda n: Table(DiscreteProcess(linear_betas(n)), lambda k: float(k + 1), Large(), n),
    # time k/(N-1); sigma_0 = sigma_min and sigma_{-1} = 0
    "ve": lambda n: Table(WORLDS["ve"], lambda k: max(k / (n - 1), FIRST), Small(), n),
}


def rows() -> list[tuple[slice, float, Tensor, Tensor]]:
    """(row, t, x, noise) of the stored single steps."""
    stored = golden("score_sde")
    x, z = torch.as_tensor(stored["x"]), torch.as_tensor(stored["noise_pred"])
    return [(slice(i, i + 1), float(t), x[i : i + 1], z[i : i + 1]) for i, t in enumerate(stored["t"])]


def euler(sde: SDE, x: Tensor, t: float, z: Tensor, length: float, eta: float = 1.0) -> tuple[Tensor, Tensor]:
    """(mean, state) of an Euler-Maruyama step of any length, which may pass 0 as the published ones do.

    From a step to t/2: its displacement is proportional to its length, its noise to the root of it.
    """
    step = EulerMaruyama(sde, eta).step(exact(sde), x, t, t / 2, lambda draw=0: z)
    scale = length / (t / 2)
    mean = x + (step.mean - x) * scale
    return mean, mean + (step.x - step.mean) * scale**0.5


@pytest.mark.parametrize("name", PUBLISHED)
def test_scores(name: str) -> None:
    """The stored score; the ideal denoiser's, too, where its x - alpha x0_hat keeps enough digits."""
    stored, sde = golden("score_sde"), WORLDS[name]
    x, t = torch.as_tensor(stored["x"]), stored["t"]
    assert rel(score_of(exact(sde)(x, t), per_sample(sde.sigma(t), x)), stored[f"{name}__score"]) < RTOL
    late = t >= 0.1
    truth = ideal.IdealDenoiser(ideal.gaussian(*stored["target_mean_var"], x.shape[1:]), sde)(x[late], t[late])
    assert rel(score_of(truth, per_sample(sde.sigma(t[late]), x)), stored[f"{name}__score"][late]) < RTOL


@pytest.mark.parametrize("eta", [1, 0])
@pytest.mark.parametrize("name", PUBLISHED)
def test_reverse_sde(name: str, eta: int) -> None:
    """probability_flow = False is eta = 1, True is eta = 0."""
    stored, sde = golden("score_sde"), WORLDS[name]
    diffusion = np.broadcast_to(stored[f"{name}__rev_diffusion_pf{1 - eta}"], 7)
    solver = EulerMaruyama(sde, eta)
    for row, t, x, z in rows():
        assert rel(solver.drift(exact(sde)(x, t), x, t), stored[f"{name}__rev_drift_pf{1 - eta}"][row]) < RTOL
        step = solver.step(exact(sde), x, t, t / 2, lambda draw=0, z=z: z)
        assert rel((step.covariance.values / (t / 2)) ** 0.5, diffusion[row.start]) < RTOL


@pytest.mark.parametrize("name", PUBLISHED)
def test_euler_maruyama(name: str) -> None:
    stored = golden("score_sde")
    for row, t, x, z in rows():
        mean, state = euler(WORLDS[name], x, t, z, 1.0 / stored[f"{name}__params"][2])
        assert rel(mean, stored[f"{name}__euler_maruyama_pf0__mean"][row]) < RTOL
        assert rel(state, stored[f"{name}__euler_maruyama_pf0__x"][row]) < RTOL


def reverse_diffusion(process: Process, t: float, s: float, x: Tensor, score: Tensor, eta: int = 1) -> Tensor:
    """Song et al. 2021, appendix E: (2 - r) x + (1 + eta^2)/2 G^2 score, r = alpha_t/alpha_s, G^2 = Var[x_t | x_s]."""
    kernel = reverse_kernel(process, t, s)
    r, g2 = float(kernel.alpha_t / kernel.alpha_s), float(kernel.forward_variance)
    return (2.0 - r) * x + 0.5 * (1 + eta**2) * g2 * score


@pytest.mark.parametrize("eta", [1, 0])
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_reverse_diffusion(name: str, eta: int) -> None:
    """At eta = 1 the noise is that of `large`. The mean is the kernel's exactly on VE and to O(beta^2) on VP:

    kernel - published = (1 - r)^2/r x + beta (1 - r)/r score,    r = sqrt(1 - beta).
    """
    stored, sde, table = golden("score_sde"), WORLDS[name], TABLES[name](1000)
    assert stored[f"{name}__params"][2] == table.steps and PRESETS["reverse_diffusion"][name].rule == "large"
    for row, time, x, z in rows():
        t, s = table.ends(time)
        score = stored_score(sde, x, time)
        mean = reverse_diffusion(table.process, t, s, x, score, eta)
        solver = ReverseGaussian(table.process, Large())
        step = solver.step(ScoreAt(sde, time, table.process), x, t, s, lambda draw=0, z=z: z)
        assert rel(mean, stored[f"{name}__reverse_diffusion_pf{1 - eta}__mean"][row]) < RTOL
        assert rel(x - mean, stored[f"{name}__rev_f_pf{1 - eta}"][row]) < RTOL
        assert rel(eta * step.covariance.values**0.5, stored[f"{name}__rev_G_pf{1 - eta}"][row.start]) < RTOL
        state = step.covariance.draw(mean, eta * z)
        assert rel(state, stored[f"{name}__reverse_diffusion_pf{1 - eta}__x"][row]) < RTOL
        kernel = reverse_kernel(table.process, t, s)
        r, beta = float(kernel.alpha_t / kernel.alpha_s), float(kernel.forward_variance)
        excess = (1 - r) ** 2 / r * x + beta * (1 - r) / r * score
        assert rel(step.mean - excess, reverse_diffusion(table.process, t, s, x, score)) < 1e-12
        assert (r == 1.0) == (name == "ve")


@pytest.mark.parametrize("eta", [1, 0])
def test_reverse_diffusion_on_subvp_is_euler_maruyama(eta: int) -> None:
    stored, sde = golden("score_sde"), WORLDS["subvp"]
    length = 1.0 / stored["subvp__params"][2]
    for row, t, x, z in rows():
        mean, state = euler(sde, x, t, z, length, eta)
        assert rel(mean, stored[f"subvp__reverse_diffusion_pf{1 - eta}__mean"][row]) < RTOL
        assert rel(state, stored[f"subvp__reverse_diffusion_pf{1 - eta}__x"][row]) < RTOL
        assert rel(x - mean, stored[f"subvp__rev_f_pf{1 - eta}"][row]) < RTOL
        deviation = eta * float(sde.diffusion(t)) * length**0.5
        assert rel(deviation, stored[f"subvp__rev_G_pf{1 - eta}"][row.start]) < RTOL


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_ancestral_sampling(name: str) -> None:
    """The kernel at eta = 1, exactly: with `large` on VP, with `small` on VE. PRESETS say so."""
    stored, table, preset = golden("score_sde"), TABLES[name](1000), preset_kernel(name, "ancestral")
    assert type(preset.rule) is type(table.ancestral) and preset.eta == 1.0
    for row, time, x, z in rows():
        t, s = table.ends(time)
        solver = ReverseGaussian(table.process, preset.rule, preset.eta)
        step = solver.step(ScoreAt(WORLDS[name], time, table.process), x, t, s, lambda draw=0, z=z: z)
        assert rel(step.mean, stored[f"{name}__ancestral_sampling_pf0__mean"][row]) < RTOL
        state = step.covariance.draw(step.mean, z)  # the published code draws in the step to the data, too
        assert rel(state, stored[f"{name}__ancestral_sampling_pf0__x"][row]) < RTOL


@dataclass(frozen=True)
class Mixed(Process):
    """The published correctors' process: the factor 1 - beta_k from a table, sigma from the SDE."""

    table: Process
    sde: Process

    def alpha(self, t):
        return self.table.alpha(t)

    def sigma(self, t):
        return self.sde.sigma(t)

    def log_snr(self, t):
        raise NotImplementedError


@pytest.mark.parametrize(("published", "member"), [("langevin", "langevin_batch"), ("ald", "ald")])
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_correctors(name: str, published: str, member: str) -> None:
    """Seven states at seven times in one batch: the published norms are means over all of them."""
    stored, table = golden("score_sde"), TABLES[name](1000)
    x, t, noise = torch.as_tensor(stored["x"]), stored["t"], torch.as_tensor(stored["noise_corr"])
    ends = np.array([table.ends(time) for time in t]).T
    process, snr = Mixed(table.process, WORLDS[name]), float(stored["snr"])
    predictor = ReverseGaussian(process, Small())  # which has no part in it
    corrector = CORRECTORS[member].build(predictor, process, snr=snr, n_steps=int(stored["n_steps"])).corrector
    state, mean, _ = corrector.correct(exact(WORLDS[name]), x, t, (ends[0], ends[1]), lambda draw=0: noise[draw - 1])
    assert rel(mean, stored[f"{name}__{published}__mean"]) < RTOL
    assert rel(state, stored[f"{name}__{published}__x"]) < RTOL


CONVENTIONS = {"vp": ("eps", "time_999"), "subvp": ("eps", "time_999"), "ve": ("score", "sigma")}
"""What the published code takes a network's output and label for."""


def score_denoiser(network: Network, sde: SDE, predicts: str, label: str, clip: Range = None) -> Denoiser:
    return Denoiser(network, sde, predicts=predicts, time_label=LABELS[label].build(sde), clip=clip)


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks(name: str) -> None:
    """The label a network trained in continuous time receives, and the score made of its output cos(x).

    The published code knows sub-VP in continuous time only: asked for discrete steps, it does the same.
    """
    stored, sde = golden("score_sde"), WORLDS[name]
    x, t, labels = torch.as_tensor(stored["x"]), stored["t"], []

    def network(x: Tensor, label: Tensor) -> Tensor:
        labels.append(label)
        return torch.cos(x)

    prediction = score_denoiser(network, sde, *CONVENTIONS[name])(x, t)
    for kind in {"subvp": ("cont1", "cont0")}.get(name, ("cont1",)):
        assert rel(labels[0], stored[f"{name}__net_label_{kind}"]) < RTOL
        assert rel(score_of(prediction, per_sample(sde.sigma(t), x)), stored[f"{name}__net_score_{kind}"]) < RTOL


def test_discrete_networks() -> None:
    """Networks on discrete steps are adpm's: VP's label t (N-1) is n - 1, with sigma_n; VE's counts down."""
    stored = golden("score_sde")
    x, t = torch.as_tensor(stored["x"]), stored["t"]
    n = np.floor(t * 999) + 1
    assert rel(index_label(1, 1.0)(999 * t + 1), stored["vp__net_label_cont0"]) < RTOL
    linear = DiscreteProcess(linear_betas(1000))
    prediction = Denoiser(lambda x, label: torch.cos(x), linear, time_label=index_label(1, 1.0))(x, n)
    assert rel(score_of(prediction, per_sample(linear.sigma(n), x)), stored["vp__net_score_cont0"]) < RTOL
    assert np.rint(index_label(1, -999.0)(t)).tolist() == stored["ve__net_label_cont0"].tolist()
    prediction = Denoiser(lambda x, label: torch.cos(x), WORLDS["ve"], predicts="score")(x, t)
    assert rel(score_of(prediction, per_sample(WORLDS["ve"].sigma(t), x)), stored["ve__net_score_cont0"]) < RTOL


class ReverseDiffusion:
    """VP's published reverse diffusion as a solver: `large`'s noise, a mean that differs from the kernel's."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def step(self, denoise, x, t, s, noise, carry=None) -> Step:
        prediction = denoise(x, t)
        mean = reverse_diffusion(self.process, t, s, x, score_of(prediction, float(self.process.sigma(t))))
        covariance = Large()(reverse_kernel(self.process, t, s), None)
        return Step(t, s, covariance.draw(mean, noise()), prediction, mean, covariance)


@dataclass(frozen=True)
class Moment:
    """One of a chain's times: the denoiser gives scores at `time` to a step with the coefficients of the table."""

    sde: SDE
    table: Table
    time: float
    denoise: Counted
    noise: Noise


Advance = Callable[[Moment, Tensor], tuple[Tensor, Tensor]]
"""(moment, x) -> (state, mean) after the corrector and the predictor."""


def by(predictor: Callable[[Table], Solver], corrector: str = "") -> Advance:
    """A predictor with coefficients of the table, and a corrector before it."""

    def advance(at: Moment, x: Tensor) -> tuple[Tensor, Tensor]:
        solver = predictor(at.table)
        if corrector:
            snr = float(golden("score_sde")["snr"])
            solver = CORRECTORS[corrector].build(solver, at.table.process, snr=snr)
        step = solver.step(at.denoise, x, *at.table.ends(at.time), at.noise)
        return step.x, step.mean

    return advance


def by_euler(at: Moment, x: Tensor) -> tuple[Tensor, Tensor]:
    """Steps of length 1/N, while the times are 0.999/(N-1) apart."""
    at.denoise(x, at.table.ends(at.time)[0])  # only counts
    mean, state = euler(at.sde, x, at.time, at.noise(), 1.0 / at.table.steps)
    return state, mean


def by_ald(at: Moment, x: Tensor) -> tuple[Tensor, Tensor]:
    """The annealed corrector takes its sigma at t, not at k; it has no factor on VE."""
    corrector = Langevin(at.sde, float(golden("score_sde")["snr"]), unit=noise_level)
    x, _, _ = corrector.correct(ScoreAt(at.sde, at.time, at.sde), x, at.time, (at.time, at.time / 2), at.noise)
    at.denoise(x, at.table.ends(at.time)[0])  # only counts
    return by(lambda table: ReverseGaussian(table.process, table.ancestral))(at, x)


# chain -> steps, evaluations per step, what a step does
CHAINS: dict[str, tuple[int, int, Advance]] = {
    "vp_euler_maruyama_none": (50, 1, by_euler),
    "vp_reverse_diffusion_langevin": (50, 2, by(lambda table: ReverseDiffusion(table.process), "langevin_batch")),
    "vp_ancestral_sampling_none": (60, 1, by(lambda table: ReverseGaussian(table.process, table.ancestral))),
    "ve_reverse_diffusion_langevin": (
        40,
        2,
        by(lambda table: ReverseGaussian(table.process, Large()), "langevin_batch"),
    ),
    "ve_ancestral_sampling_ald": (40, 2, by_ald),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_chains(chain: str) -> None:
    """Whole predictor-corrector chains: the corrector comes first, and the last mean is returned.

    Evaluations are counted; the published number is N (n_steps + 1) even without a corrector.
    """
    steps, evaluations, advance = CHAINS[chain]
    stored, name, tag = golden("score_sde"), chain.split("_")[0], f"pc_{chain}_N{steps}__"
    table, sde = TABLES[name](steps), WORLDS[name]
    noise = torch.as_tensor(stored[f"{tag}noise"]).unflatten(0, (steps, -1)).flip(1)  # draw 0 is the predictor's
    x = torch.as_tensor(stored["pc_x_init_unit"]) * sde.prior_std
    calls = 0
    for i, time in enumerate(np.linspace(1.0, 1e-3, steps)):
        denoise = Counted(ScoreAt(sde, time, table.process))
        x, mean = advance(Moment(sde, table, time, denoise, lambda draw=0, i=i: noise[i, draw]), x)
        calls += denoise.calls
    assert rel(mean, stored[f"{tag}sample"]) < RTOL
    assert calls == steps * evaluations
    assert stored[f"{tag}nfe_reported"] == steps * 2


@pytest.mark.parametrize(("kind", "eta"), [("em_sde", 1.0), ("em_ode", 0.0)])
def test_euler_maruyama_chains_of_ext(kind: str, eta: float) -> None:
    """Through the sampling loop, the plain last step to 0 included."""
    stored = golden("sampling")
    beta_min, beta_max = stored["em_beta_min_max"]
    steps = int(stored["em_sample_steps"])
    process = VP(steps, beta_min=beta_min, beta_max=beta_max)
    network = MixtureNetwork({**stored, "delta": np.float64(0.0)}, process, "eps")
    denoise = Counted(Denoiser(network, process))
    noise = torch.as_tensor(stored[f"{kind}__noise"])
    solver = EulerMaruyama(process, eta, noise_removal=False)
    taken = list(walk(denoise, solver, process.times, torch.as_tensor(stored["x_init"]), lambda k: noise[k - 1]))
    assert denoise.calls == len(taken) == steps == len(noise) + 1
    assert rel(taken[-1].x, stored[f"{kind}__final"]) < RTOL


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_the_published_code_refuses_works(name: str) -> None:
    """9 combinations raise there. Here the flow by Euler, every corrector and every preset run on all three."""
    assert len(golden("score_sde")["failures"]) == 9
    sde, x = WORLDS[name], torch.full((2, 1, 2, 2), 0.2, dtype=torch.float64)
    solvers: list[Solver] = [ProbabilityFlowEuler(sde)]
    solvers += [kind.build(EulerMaruyama(sde), sde) for kind in CORRECTORS.values()]
    solvers += [preset_kernel(name, preset) for preset in PRESETS]
    for solver in solvers:
        assert torch.isfinite(solver.step(exact(sde), x, 0.5, 0.4, lambda draw=0: torch.ones_like(x)).x).all()


def test_presets_cover_every_process() -> None:
    for kinds in PRESETS.values():
        assert kinds.keys() == PROCESSES.keys()
        assert all(preset.rule in RULES and 0.0 <= preset.eta <= 1.0 for preset in kinds.values())


@pytest.mark.parametrize("clip", [(-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_clipped_scores(name: str, clip: tuple[float, float]) -> None:
    """The data range is a matter of clipping: x0 is limited to it, and the score is the one that goes with that x0."""
    sde, x, t = WORLDS[name], torch.linspace(-3, 3, 8, dtype=torch.float64).reshape(2, 1, 2, 2), 0.5
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    prediction = score_denoiser(lambda x, label: -x, sde, "score", "sigma", clip)(x, t)
    assert torch.allclose(prediction.eps_network, sigma * x)
    assert torch.allclose(prediction.x0, ((x - sigma**2 * x) / alpha).clamp(*clip))
    assert torch.allclose(score_of(prediction, sigma), (alpha * prediction.x0 - x) / sigma**2)
