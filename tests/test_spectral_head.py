"""The spectral head in exact worlds: a fresh one is rule spectral, an exact one the posterior along a basis, its
objective the bound of a step; how it is laid out, kept in files, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adpm import ideal
from adpm.basis import Matrix, Pixels
from adpm.cost_table import measure_column
from adpm.denoiser import Prediction
from adpm.errors import UserError
from adpm.kernel import reverse_kernel
from adpm.likelihood import Levels, NoiseAt, path_terms
from adpm.model import Model
from adpm.nn import NETWORKS
from adpm.nn.checkpoint import read_header, save_weights
from adpm.nn.coordinate_head import CoordinateHead
from adpm.process import PROCESSES, Process
from adpm.run.families import house
from adpm.run.modes.train import train
from adpm.scale import Scale
from adpm.transforms import BlockCosine, Cosine
from adpm.variance import Spectral
from benchmarks.head_training import World
from benchmarks.patch_states import bits, covariances, curves_of, head_curve, matrices
from benchmarks.patch_world import SIDE, even_process
from covariance.rules import SpectralHead
from covariance.spectral import spectral_head
from sde.process import PROCESSES as SDES
from tests.goldens import with_head
from tests.test_head_rules import inverse_factor
from tests.test_heads import tiny

SHAPE, D = (1, 3, 2), 6
DISCRETE = PROCESSES["linear"].build(200)
WORLDS: dict[str, Process] = {"linear": DISCRETE} | {name: SDES[name].build() for name in ("vp", "subvp", "ve")}
AXES = Matrix(torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0])
FAMILIES = house().families


def mixture() -> ideal.Mixture:
    """Three components, correlated, of unlike variances."""
    rng = np.random.default_rng(3)
    axes = np.linalg.qr(rng.standard_normal((3, D, D)))[0]
    spread = axes @ (np.geomspace(0.3, 1e-3, D) * axes).transpose(0, 2, 1)
    return ideal.full_mixture([0.3, 0.5, 0.2], rng.uniform(-0.8, 0.8, (3, D)), spread, SHAPE)


MIXED = mixture()


def scale_of(process: Process, basis=AXES) -> Scale:
    """Any r_f will do for exact heads."""
    ends = process.log_snr(process.times[[1, -1]])
    return Scale(ends, np.geomspace(1e-3, 0.5, 2 * D).reshape(2, D), basis, "own", SHAPE)


def at(process: Process, fraction: float) -> float:
    return float(process.times[round(fraction * process.steps)])


def states(process: Process, t: float, n: int = 5) -> tuple[Tensor, Tensor]:
    """x_0 and x_t."""
    x0, noise = (
        MIXED.sample(n, 2),
        torch.randn(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    )
    return x0, float(process.alpha(t)) * x0 + float(process.sigma(t)) * noise


def along_axes(process: Process, x: Tensor, t: float) -> Tensor:
    """The diagonal of Q Cov[x_0 | x_t] Q^T, of x's shape."""
    c = covariances(MIXED, x, float(process.alpha(t)), float(process.sigma(t)))
    return (AXES.columns.mT @ c @ AXES.columns).diagonal(dim1=1, dim2=2).reshape(x.shape)


def exact_head(process: Process, scale: Scale):
    """(x, t) -> the head with which the rule has the posterior's variances."""

    def head(x: Tensor, t: float) -> Tensor:
        r = torch.from_numpy(scale.laid_out(scale(process.log_snr(np.asarray(t)))))
        return inverse_factor(along_axes(process, x, t) / r)

    return head


# -- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("world", WORLDS)
def test_exact_heads_give_the_posterior_variance_along_the_axes(world: str, fraction: float) -> None:
    """And the covariances they are compared with have the diagonal that the exact denoiser has."""
    process, t = WORLDS[world], at(WORLDS[world], fraction)
    scale, exact = scale_of(process), ideal.IdealDenoiser(MIXED, process)
    _, x = states(process, t)
    kernel = reverse_kernel(process, t, at(process, 0.02))
    found = SpectralHead(lambda: scale, process)(kernel, with_head(exact, exact_head(process, scale))(x, t))
    wanted = float(kernel.lambda2) + float(kernel.gain) ** 2 * along_axes(process, x, t)
    np.testing.assert_allclose(found.values, wanted, rtol=1e-10)
    e = torch.randn_like(x)
    np.testing.assert_allclose(found.forth(e).flatten(1), e.flatten(1) @ AXES.columns, rtol=1e-10)
    own = covariances(MIXED, x, float(process.alpha(t)), float(process.sigma(t))).diagonal(dim1=1, dim2=2)
    np.testing.assert_allclose(own.reshape(x.shape), exact.variance(x, t), rtol=1e-9)


def test_a_fresh_head_is_rule_spectral_in_variances_bits_and_samples() -> None:
    exact, images = ideal.IdealDenoiser(MIXED, DISCRETE), MIXED.sample(400, 0)
    fresh = with_head(exact, lambda x, t: torch.zeros_like(x))
    plain, headed = (Model.of(denoise, DISCRETE, families=FAMILIES) for denoise in (exact, fresh))
    moments, both = plain.measure(images, 60, 12, basis="pca"), ((plain, "spectral"), (headed, "spectral_head"))
    for t, s in ((40.0, 30.0), (200.0, 3.0)):
        kernel, prediction = reverse_kernel(DISCRETE, t, s, 0.7), fresh(states(DISCRETE, t)[1], t)
        found, wanted = (
            m.rule(n, moments)(kernel, prediction) for m, n in ((headed, "spectral_head"), (plain, "spectral"))
        )
        np.testing.assert_allclose(found.values, np.broadcast_to(wanted.values, found.values.shape), rtol=1e-14)
    plan = plain.plan(moments, 6, images=images[:50])
    bounds = [
        m.bits_per_dim(images[:20], plan, rule=r).total.mean
        for m, r in ((plain, "spectral"), (headed, "spectral_head"))
    ]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-12)
    for eta in (0.0, 0.5, 1.0):
        drawn = [m.sample(plan, name, 5, eta=eta) for m, name in both]
        torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-6, atol=1e-6)


def test_a_measured_plan_costs_what_walking_it_costs() -> None:
    """Elements are few enough to be groups of their own."""
    scale, exact = scale_of(DISCRETE), ideal.IdealDenoiser(MIXED, DISCRETE)
    rule, denoise = SpectralHead(lambda: scale, DISCRETE), with_head(exact, exact_head(DISCRETE, scale))
    x0, path, levels = MIXED.sample(8, 5), np.array([0, 20, 90, 200]), Levels(0, -1.0, 1.0)

    def noise(t: float) -> Tensor:
        return torch.randn(8, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(int(t)))

    given: NoiseAt = noise
    times = DISCRETE.times[path]
    columns = {i: measure_column(denoise, DISCRETE, rule, lambda t: 0.1, levels, i, [(x0, given)]) for i in path[1:]}
    planned = sum(columns[t][s] for s, t in zip(path[:-1], path[1:], strict=True))
    terms = path_terms(denoise, DISCRETE, rule, lambda t: 0.1, levels, times, x0, given)
    assert planned == pytest.approx(sum(float(term.nats.mean()) / D for term in terms), rel=1e-9)


# -- the objective ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("world", ["vp", "subvp", "ve"])
def test_the_objective_is_the_bound_of_a_step_less_rule_spectrals(world: str, step: float) -> None:
    """KL(q(x_s | x_t, x_0) || rule) for the s that is `step` nearer in log-SNR, less its mean where E e_f^2 = r_f."""
    process, t = WORLDS[world], at(WORLDS[world], 0.7)
    s = float(process.time_of(process.log_snr(np.asarray(t)) + step))
    scale, kernel = scale_of(process), reverse_kernel(process, t, s)
    x0, x = states(process, t)
    head = torch.randn(*x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    prediction = replace(ideal.IdealDenoiser(MIXED, process)(x, t), head=head)
    loss = spectral_head(scale, process, step)(prediction, x0, x, np.full(len(x), t))
    nats = SpectralHead(lambda: scale, process)(kernel, prediction).kl_from_isotropic(
        float(kernel.lambda2), float(kernel.gain) * (x0 - prediction.x0)
    )
    r = scale(process.log_snr(np.asarray(t)))
    wanted = nats / D - 0.5 * np.log1p(float(kernel.gain**2 / kernel.lambda2) * r).mean()
    np.testing.assert_allclose(loss, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("step", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("world", WORLDS)
def test_the_minimum_is_the_conditional_variance(world: str, step: float) -> None:
    """The loss is linear in e_f^2, so its mean given x_t is its value at e_f = sqrt(Var[f | x_t])."""
    process, t = WORLDS[world], at(WORLDS[world], 0.5)
    scale, exact = scale_of(process), ideal.IdealDenoiser(MIXED, process)
    _, x = states(process, t)
    objective, times = spectral_head(scale, process, step), np.full(len(x), t)
    prediction = exact(x, t)
    x0 = prediction.x0 + AXES.inverse(along_axes(process, x, t).sqrt())
    best = exact_head(process, scale)(x, t).requires_grad_(True)
    loss = objective(replace(prediction, head=best), x0, x, times)
    loss.sum().backward()
    assert best.grad is not None
    for shift in (-0.3, 0.3):
        assert (objective(replace(prediction, head=best.detach() + shift), x0, x, times) > loss.detach()).all()
    off = (best.detach() + 0.3).requires_grad_(True)
    objective(replace(prediction, head=off), x0, x, times).sum().backward()
    assert best.grad.abs().max() < 1e-9 * off.grad.abs().max()


def test_a_long_step_weighs_all_alike_and_a_short_one_what_it_sees() -> None:
    """Twice e_f^2: in the limit the loss rises by 1/2 mean 1, else by 1/2 mean u/(1 + u), u = D r_f."""
    process, t = WORLDS["vp"], at(WORLDS["vp"], 0.7)
    scale, log_snr = scale_of(process, Pixels()), process.log_snr(np.asarray(t))
    r, zero = scale(log_snr), torch.zeros(1, *SHAPE, dtype=torch.float64)
    x0 = torch.from_numpy(scale.laid_out(np.sqrt(2.0 * r)))
    prediction = Prediction(zero, zero, zero, zero)
    seen = np.exp(log_snr) * np.expm1(2.0) * r
    for step, weight in ((0.0, np.ones(D)), (2.0, seen / (1.0 + seen))):
        loss = float(spectral_head(scale, process, step)(prediction, x0, zero, np.array([t])))
        assert loss == pytest.approx(0.5 * weight.mean(), rel=1e-9)


def test_other_data_are_refused() -> None:
    zero = torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    with pytest.raises(UserError, match=r"of data of shape \(1, 3, 2\), not of \(1, 2, 3\)"):
        spectral_head(scale_of(DISCRETE), DISCRETE, 2.0)(Prediction(*[zero] * 4), zero, zero, np.array([5.0]))


# -- the scale --------------------------------------------------------------------------------------------------------


def test_a_scale_is_the_curve_it_was_made_from_and_survives_its_arrays() -> None:
    found = Model.of(ideal.IdealDenoiser(MIXED, DISCRETE), DISCRETE).measure(MIXED.sample(200, 0), 40, 9, basis="pca")
    assert found.spectrum is not None
    scale, t = found.spectrum.scale(DISCRETE), np.array([1.0, 17.0, 60.0, 200.0])
    np.testing.assert_array_equal(scale(DISCRETE.log_snr(t)), found.spectrum.curve(DISCRETE)(t))
    again = Scale.of(scale.arrays())
    np.testing.assert_allclose(again(DISCRETE.log_snr(t)), scale(DISCRETE.log_snr(t)), rtol=1e-6)
    assert again.name == "pca" and again.shape == SHAPE and torch.equal(again.basis.columns, scale.basis.columns)
    with pytest.raises(UserError, match="known for log-SNR"):
        scale(np.array([40.0]))
    for name, bad in (("variance", -scale.variance), ("log_snr", scale.log_snr[::-1]), ("shape", np.array([1, 2, 2]))):
        with pytest.raises(UserError):
            Scale.of({**scale.arrays(), name: bad})


# -- the network ------------------------------------------------------------------------------------------------------


def test_coordinates_of_a_block_stand_where_its_pixels_do() -> None:
    """What the last layer says of a block is where BlockCosine puts the block's coordinates."""
    head = CoordinateHead(8, 16, (2, 8, 12), block=4)
    with torch.no_grad():
        head.out.bias.copy_(torch.arange(32.0))
        said = head(torch.randn(3, 8, 8, 12), torch.randn(3, 16))
    block = torch.arange(32.0).reshape(2, 4, 4)
    assert torch.equal(said, block.repeat(1, 2, 3).expand(3, -1, -1, -1))
    first = torch.zeros(1, 2, 8, 12)
    first[0, 1, 4:8, 8:12] = 1.0  # the mean of a block of the second channel is its coordinate (0, 0)
    assert (BlockCosine(4).forward(first).abs() > 1e-5).nonzero().tolist() == [[0, 1, 4, 8]]


def test_blocks_see_their_own_features() -> None:
    head = CoordinateHead(8, 16, (1, 8, 8), block=4)
    head.norm = torch.nn.Identity()  # which mixes positions
    torch.nn.init.normal_(head.out.weight)
    h, emb = torch.randn(1, 8, 8, 8), torch.randn(1, 16)
    changed = h.clone()
    changed[:, :, :4, 4:] += 1.0
    with torch.no_grad():
        moved = (head(h, emb) != head(changed, emb))[0, 0]
    assert moved[:4, 4:].all() and not moved[4:].any() and not moved[:, :4].any()


@pytest.mark.parametrize("name", ["iddpm", "ddpm", "score_sde"])
def test_the_head_is_small_and_says_nothing_at_first(name: str) -> None:
    """A few percent of the digits network's parameters, and no change of the trunk's first weights."""
    options = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
    torch.manual_seed(0)
    bare = NETWORKS[name].build((1, 8, 8), **options)
    torch.manual_seed(0)
    made = NETWORKS[name].build((1, 8, 8), head="coordinates", **options)
    assert made.has_head and made.in_basis and not bare.in_basis
    assert all(torch.equal(made.trunk_state()[k], v) for k, v in bare.state_dict().items())
    own, whole = (sum(p.numel() for p in part.parameters()) for part in (made.head(), bare))
    assert own < 0.09 * whole
    with torch.no_grad():
        assert made(torch.randn(2, 1, 8, 8), torch.tensor([1.0, 2.0]))[:, 1:].abs().max() == 0.0


def test_blocks_that_do_not_fit_are_refused() -> None:
    options = {"model_channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "num_heads": 1}
    with pytest.raises(UserError, match=r"`head_block` = 3 must divide the sides of images of shape \(1, 8, 8\)"):
        NETWORKS["iddpm"].build((1, 8, 8), head="coordinates", head_block=3, **options)
    with pytest.raises(UserError, match=r"`head_block` = 4 goes with `head` = coordinates, not with 'simple'"):
        NETWORKS["iddpm"].build((1, 8, 8), head="simple", head_block=4, **options)


# -- runs and files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(Path(__file__).parent.parent)
    train(tiny(tmp_path, objective="spectral_head", train__iterations=2, trains=True, moments__basis="dct"))
    return tmp_path


def test_a_head_brings_the_variances_that_it_is_in_units_of(trained: Path) -> None:
    """Whatever the moments of the run are."""
    session = tiny(trained, objective="spectral_head", moments__draws=40, moments__implausible=True)
    scale, model = session.known("coordinates"), session.model
    assert model.scale is not None and model.scale.name == "dct" and model.head["objective"] == "spectral_head"
    own = tiny(trained, objective="spectral_head", moments__basis="dct").known("coordinates")
    first = own.scale(session.process)
    np.testing.assert_allclose(model.scale.variance, first.variance, rtol=1e-6)
    assert abs(scale.scale(session.process).variance / first.variance - 1.0).max() > 1e-3
    kernel = reverse_kernel(session.process, 3.0, 2.0)
    rule = session.rule(lambda _: lambda t: t, session.process.times[:2])
    zero = torch.zeros(1, *session.data.shape, dtype=torch.float64)
    wanted = Spectral(
        lambda: tiny(trained, objective="spectral_head", moments__basis="dct").known("coordinates"), session.process
    )
    np.testing.assert_allclose(rule(kernel, Prediction(*[zero] * 4)).values, wanted(kernel, None).values, rtol=1e-6)


def test_another_basis_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match=r"is about the basis 'dct', and config\.moments\.basis = 'haar'; set that to"):
        _ = tiny(trained, objective="spectral_head", moments__basis="haar").model


def test_a_head_without_its_variances_is_refused(trained: Path) -> None:
    file = trained / "head.safetensors"
    header, state = read_header(file), load_file(file)
    save_weights(file, {k: v for k, v in state.items() if not k.startswith("scale.variance")}, header)
    with pytest.raises(UserError, match="is damaged: what it is in units of are no variances"):
        _ = tiny(trained, objective="spectral_head").model
    del header["scale"]
    save_weights(file, {k: v for k, v in state.items() if not k.startswith("scale.")}, header)
    session = tiny(trained, objective="spectral_head")
    rule = session.rule(lambda _: lambda t: t, session.process.times[:2])
    zero = torch.zeros(1, *session.data.shape)
    with pytest.raises(UserError, match="does not say which variances it is in units of; train it again"):
        rule(reverse_kernel(session.process, 3.0, 2.0), Prediction(*[zero] * 4))


def test_another_trunk_or_process_is_refused(trained: Path) -> None:
    state = load_file(trained / "weights.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in state.items()}, trained / "weights.safetensors")
    with pytest.raises(UserError, match="was trained on another trunk"):
        _ = tiny(trained, objective="spectral_head").model
    (trained / "config.json").unlink()  # which binds the workdir
    with pytest.raises(UserError, match=r"head '.*' was trained for another model \(process\.name: 'linear' there"):
        _ = tiny(trained, objective="spectral_head", process__name="cosine").model


@pytest.mark.parametrize(
    ("objective", "head", "told"),
    [
        ("spectral_head", "simple", r"'spectral_head' trains a head about the coordinates of a basis, .*'simple' is "
         r"about pixels; set the head to coordinates, or the objective to one of sn, npr, ocm, relative"),
        ("npr", "coordinates", r"'npr' trains a head about pixels, .*'coordinates' is about the coordinates of a "
         r"basis; set the head to simple or complex, or the objective to one of spectral_head"),
    ],
)  # fmt: skip
def test_heads_about_pixels_and_about_coordinates_do_not_mix(objective, head, told, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    with pytest.raises(UserError, match=told):
        tiny(tmp_path, weights=False, trains=True, objective=objective, network__head=head)


# -- the benchmark ----------------------------------------------------------------------------------------------------


def test_covariances_that_know_the_state_are_in_order_and_exact_heads_reach_theirs() -> None:
    """scalar >= pixel, DCT >= full at every budget, per state below its mean; a head of zeros is DCT."""
    process, rng = even_process(12), np.random.default_rng(1)
    axes = np.linalg.qr(rng.standard_normal((2, SIDE**2, SIDE**2)))[0]
    spread = axes @ (np.geomspace(0.3, 1e-3, SIDE**2) * axes).transpose(0, 2, 1)
    data = ideal.full_mixture([0.4, 0.6], 0.3 * rng.standard_normal((2, SIDE**2)), spread, (1, SIDE, SIDE))
    curves = curves_of(matrices(data, process, 40, 0))
    told = {name: bits(process, curve, (3, 6)) for name, curve in curves.items()}
    for name in ("pixel", "DCT"):
        assert (told["scalar per state"] > told[f"{name} per state"]).all()
        assert (told[f"{name} per state"] > told["full per state"]).all()
    for name in ("scalar", "DCT"):
        assert (told[name] > told[f"{name} per state"]).all()
    exact = curves["DCT per state"][0]
    scale = Scale(
        process.log_snr(process.times[1:]),
        exact.mean(1),
        Cosine(),
        "dct",
        data.shape,
    )
    world = World(data, process, lambda t: t, scale)
    blank = bits(process, head_curve(world, lambda x, log_snr: torch.zeros_like(x), exact, 0), (3, 6))
    np.testing.assert_allclose(blank, told["DCT"], rtol=1e-6)
    log_snr = process.log_snr(process.times[1:])

    def head(x: Tensor, at_: Tensor) -> Tensor:
        k = int(np.argmin(np.abs(log_snr - float(at_[0]))))
        return inverse_factor(torch.from_numpy(exact[k] / exact[k].mean(0))).reshape(x.shape)

    np.testing.assert_allclose(
        bits(process, head_curve(world, head, exact, 0), (3, 6)), told["DCT per state"], rtol=1e-6
    )
