"""The network's second output, as every rule and objective here reads it."""

from __future__ import annotations

from torch import Tensor

from adpm.denoiser import Prediction
from adpm.errors import UserError


def second_output(prediction: Prediction | None) -> Tensor:
    """`Prediction.head`.

    Raises:
        UserError: if there is none, or not one value for each of the image's.
    """
    head = None if prediction is None else prediction.head
    if prediction is None or head is None:
        raise UserError(
            "the variance rule or the objective reads a network's second output, but there is none; set "
            "`network.head`, or `network.learned_variance` = True."
        )
    if head.shape != prediction.eps.shape:
        raise UserError(
            f"the network's second output has shape {tuple(head.shape)}; one of shape {tuple(prediction.eps.shape)}, "
            "the image's, is needed."
        )
    return head
