"""Completions: samples of x_0 given an observation of it, from a model and its moments.

moments = model.measure(images, basis="pca")
seen = Observation(Mask(kept), masked, std=0.05)
samples = complete(model, model.plan(moments, steps=25), seen, n=64, rule="spectral")
"""

from __future__ import annotations

import torch
from torch import Tensor

from adpm.drawing import Sampler, draw
from adpm.errors import UserError
from adpm.inverse import Conditioned, ConditionedGaussian
from adpm.measured import Plan, known_shape
from adpm.model import Model
from adpm.observations import Observation
from adpm.variance import Rule


def complete(
    model: Model,
    plan: Plan,
    observation: Observation,
    n: int = 64,
    *,
    rule: str | Rule = "analytic",
    jacobian: bool = True,
    clip: tuple[float, float] | None = None,
    eta: float = 1.0,
    shape: tuple[int, ...] | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> Tensor:
    """n samples [n, ...] of x_0 given one observation; sample i depends on (seed, i) alone.

    Args:
        model: of x_0; its network is not told classes.
        plan: from `model.plan`.
        observation: of one image, values [1, ...].
        n: how many.
        rule: models Cov[x_0 | x_t], in the likelihood and in the steps; a name or a rule.
        jacobian, clip: see `adpm.inverse.Conditioned`; of natural images `rule="spectral"` wants jacobian=False.
        eta: 1 = DDPM, 0 = DDIM.
        shape: of x_0; that of the data that moments were measured on unless given.
        seed: of the noise.
        batch_size: samples per network call.

    Raises:
        UserError: for several observations, or as `Conditioned` raises.
    """
    if len(observation.values) != 1:
        raise UserError(f"an `observation` of one image has values [1, ...], got {tuple(observation.values.shape)}.")
    known = model.rule(rule, plan.moments)
    denoise = Conditioned(model.denoise, model.process, observation, known, jacobian=jacobian, clip=clip)
    solver = ConditionedGaussian(model.process, known, observation, eta)
    like = known_shape(shape, plan.moments, model.images)
    sampler = Sampler(denoise, solver, model.process, plan.times, like, seed, model.device)
    return torch.as_tensor(draw(sampler, n, batch_size))
