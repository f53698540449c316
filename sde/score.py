"""Score networks as denoisers.

A network trained in continuous time approximates score(x, t) = grad log q(x_t), and

    score = -E[eps | x_t] / sigma_t,    eps = -sigma_t score,    x_0 = (x + sigma_t^2 score) / alpha_t

so it is a `Denoiser` like any other, once two things are said: what its output means (`predicts`) and what number it
receives as time (a member of LABELS). The conventions of Song et al. 2021 (score_sde):

    VP, sub-VP   output is noise-like, score = -output / sigma_t      label 999 t
    VE           output is the score itself (the network has divided by sigma_t)   label sigma_t

and of networks trained by flow matching, with time running from the data to noise:

    rectified flow   output is the velocity eps - x0                      label t, or 1000 t as in diffusers

Networks on discrete steps take `adpm.denoiser.index_label`: score_sde's VP with n = 1..N is shift 1, its VE on times
k/(N-1) is shift 1, scale -(N-1). The data range ([-1, 1], for the published VE networks [0, 1]) is what `clip` says.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from adpm.denoiser import Prediction
from adpm.families import Kind


def score_of(prediction: Prediction, sigma: float | Tensor) -> Tensor:
    """score = -eps / sigma_t, with the eps that goes with the clipped x0."""
    return -prediction.eps / sigma


LOG2 = float(np.log(2.0))

LABELS: dict[str, Kind] = {
    "time": Kind(lambda process: lambda t: t, "t itself"),
    "time_1000": Kind(lambda process: lambda t: 1000.0 * t, "1000 t, diffusers' flow-matching networks"),
    "time_999": Kind(lambda process: lambda t: 999.0 * t, "999 t, score_sde's VP networks"),
    "edm": Kind(
        lambda process: lambda t: -0.25 * (0.5 * process.log_snr(t) + LOG2),
        "log(sigma/alpha/2)/4, EDM's networks on data divided by 0.5",
    ),
    "sigma": Kind(lambda process: process.sigma, "sigma_t, score_sde's VE networks"),
}
