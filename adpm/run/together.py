"""Training by several ranks: each takes its part of every batch, and all take the same step."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adpm.errors import UserError
from adpm.progress import say
from adpm.ranks import ranks


class Together:
    """This rank among those that train one network; one that is alone has all of every batch.

    Gradients are the mean over ranks of those of the parts' mean losses: the mean loss's own, to rounding.

    Args:
        batch_size: of all of them together.
        device: of this one's network.

    Attributes:
        part: of a batch, that is this one's.
        salt: what its dropout differs by from the others'.

    Raises:
        UserError: for a batch that they cannot share evenly.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self._here, self._device = ranks(), device
        own, left = divmod(batch_size, self._here.size)
        if left:
            fitting = " or ".join(str(n * self._here.size) for n in (own, own + 1) if n)
            raise UserError(
                f"config.train.batch_size = {batch_size} cannot be shared evenly by {self._here.size} processes; use "
                f"{fitting}, or other processes."
            )
        self.own = own
        self.part = slice(self._here.number * own, (self._here.number + 1) * own)
        self.salt = self._here.number * 0x85EBCA6B

    def joined(self, network: nn.Module) -> nn.Module:
        """The network, its backward pass averaging gradients over ranks; itself where there is one."""
        if self._here.size == 1:
            return network
        on_gpu = self._device != torch.device("cpu")
        nccl = on_gpu and dist.is_nccl_available()
        if on_gpu and not nccl:
            say("this torch has no nccl: gradients are averaged by gloo, through the CPU, which is slow.")
        meeting = dist.PrefixStore("training", self._here.store)
        backend, here = "nccl" if nccl else "gloo", self._here
        dist.init_process_group(backend, store=meeting, rank=here.number, world_size=here.size)
        # every iteration does the same; a network may have parameters that its objective never reaches
        return DistributedDataParallel(network, static_graph=True)

    def all_of(self, part: Tensor) -> Tensor:
        """Values of a whole batch, [B], of each rank's own."""
        if self._here.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self._here.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def largest(self, number: int) -> int:
        """Of what the ranks say."""
        if self._here.size == 1:
            return number
        found = torch.tensor(number, device=self._device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
