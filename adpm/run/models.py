"""Denoisers of a run: a network with weights, or the exact denoiser of data with known truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from adpm import ideal
from adpm.denoiser import Denoise, Denoiser
from adpm.draws import Source
from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.gaussian_score import fit_gaussian
from adpm.guidance import GuidedByClass
from adpm.ideal import IdealDenoiser
from adpm.mixture_fit import fit_mixture
from adpm.nn.heads import Headed
from adpm.process import Process
from adpm.scale import Scale
from adpm.start import mixture_fields, rank_field


@dataclass(frozen=True)
class Loaded:
    """A denoiser that is ready to be used.

    Attributes:
        denoise: the denoiser, clipping included.
        weights: hash of its weights, or what stands for it.
        source: where it came from, for people.
        network: the network in it, if there is one.
        head: what distinguishes its head from others: weights, objective, kind; None where there is no head. Moments
            do not depend on it.
        scale: r_f that its head is in units of, if that is about the coordinates of a basis.
        assumed: what no file says and nobody could check, for people; "" where everything was checked.
    """

    denoise: Denoise
    weights: str
    source: str
    network: Headed | None = None
    head: Mapping[str, Any] | None = None
    scale: Scale | None = None
    assumed: str = ""


@dataclass(frozen=True)
class DenoiserNeeds:
    """What a denoiser's builder may ask for.

    Attributes:
        process: the forward process.
        truth: the data's exact distribution, None where nobody knows it; read when asked.
        data: name of the data set.
        clip: whether x0 is to be limited.
        network: the network with its weights; loaded when asked.
        source: the training images; read when asked.
    """

    process: Process
    truth: Callable[[], ideal.Mixture | None]
    data: str
    clip: bool
    network: Callable[[], Loaded]
    source: Callable[[], Source]


class Outputs(NamedTuple):
    """What a network returns.

    Attributes:
        second: whether there is more than a prediction.
        head: whether that is a head: modules of its own on the last layer.
        in_basis: whether the head is about the coordinates of a basis, not about pixels; None: about either.
    """

    second: bool
    head: bool
    in_basis: bool | None


def outputs_of(network: Callable[[], Headed], shape: tuple[int, ...]) -> Outputs:
    """What a network would return; it is built without memory or arithmetic.

    Raises:
        UserError: if it cannot be built or called.
    """
    with torch.device("meta"):
        made = network()
        classes = [torch.zeros(1, dtype=torch.int64)] if made.num_classes else []
        try:
            out = made(torch.zeros(1, *shape), torch.zeros(1), *classes)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"config.network cannot be built: its layers do not fit each other ({error}).") from error
    return Outputs(out.shape[1] > shape[0], made.has_head, made.in_basis)


@dataclass(frozen=True)
class DenoiserFacts:
    """Attributes: trainable: whether there is a network in it, to train and to load."""

    trainable: bool


def _ideal(needs: DenoiserNeeds) -> Loaded:
    truth = needs.truth()
    if truth is None:
        raise UserError(f"config.denoiser.name = 'ideal' needs data with known truth, not '{needs.data}'; use toy.")
    return _exact(needs, truth, "ideal", "the exact denoiser")


def _gaussian(needs: DenoiserNeeds, rank: int = 0) -> Loaded:
    return _exact(needs, fit_gaussian(needs.source(), rank), "gaussian", "the Gaussian of the training images")


def _mixture(needs: DenoiserNeeds, **fit: Any) -> Loaded:
    told = "a Gaussian mixture fitted to the training images"
    return _exact(needs, fit_mixture(needs.source(), **fit), "gaussian_mixture", told)


def _exact(needs: DenoiserNeeds, mixture: ideal.Mixture, name: str, told: str) -> Loaded:
    if needs.clip:
        raise UserError(
            f"config.denoiser.name = '{name}' is exact and clips nothing; set config.denoiser.clip = False."
        )
    return Loaded(IdealDenoiser(mixture, needs.process), name, told)


def _network(needs: DenoiserNeeds, guidance: float = 1.0) -> Loaded:
    loaded = needs.network()
    if guidance == 1.0:
        return loaded
    assert isinstance(loaded.denoise, Denoiser)
    return replace(loaded, denoise=GuidedByClass(loaded.denoise, guidance))


DENOISERS: dict[str, Kind] = {
    "network": Kind(
        _network,
        "a network with trained weights",
        DenoiserFacts(trainable=True),
        {
            "guidance": Field(
                1.0, "towards the classes it is told, two calls a step: scale; 1 = none", low=0, of=("model",)
            )
        },
        reads=("denoiser.predicts", "denoiser.label"),
    ),
    "ideal": Kind(_ideal, "exact, for data with known truth: no network at all", DenoiserFacts(trainable=False)),
    "gaussian": Kind(
        _gaussian,
        "exact for the Gaussian with the mean and covariance of the training images",
        DenoiserFacts(trainable=False),
        rank_field(),
    ),
    "gaussian_mixture": Kind(
        _mixture,
        "exact for a Gaussian mixture fitted to the training images",
        DenoiserFacts(trainable=False),
        mixture_fields(),
    ),
}
