"""Ranks that compute together, passed to who needs them: a thin hold on torch.distributed.

A group is opened by whoever starts the ranks and handed on; nothing asks for a default one. Which library carries a
tensor (gloo, NCCL, HCCL) follows from the tensor's device, by the composite backend that the ranks were started with,
e.g. "cpu:gloo,npu:hccl". The network does not take a group yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 renamed the two.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Group:
    """This rank among `size`. Collectives return a new tensor and leave the given one as it is."""

    rank: int
    size: int
    device: torch.device
    process_group: dist.ProcessGroup

    @classmethod
    def of_all(cls, device: torch.device) -> Group:
        """All ranks that torch.distributed was started with."""
        world = dist.group.WORLD
        assert world is not None, "torch.distributed has not been started"
        return cls(dist.get_rank(world), dist.get_world_size(world), device, world)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        total = x.clone()
        dist.all_reduce(total, group=self.process_group)
        return total

    def all_gather(self, x_N: Tensor) -> Tensor:
        """Every rank's rows, in the order of ranks: [size * N, ..]."""
        whole = x_N.new_empty(self.size * x_N.shape[0], *x_N.shape[1:])
        _all_gather(whole, x_N.contiguous(), group=self.process_group)
        return whole

    def reduce_scatter(self, x_N: Tensor) -> Tensor:
        """This rank's share of the rows of the sum over ranks: [N / size, ..]."""
        share = x_N.new_empty(x_N.shape[0] // self.size, *x_N.shape[1:])
        _reduce_scatter(share, x_N.contiguous(), group=self.process_group)
        return share

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        copy = x.clone()
        dist.broadcast(copy, group=self.process_group, group_src=source)
        return copy

    def all_to_all(self, x_N: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """`send[r]` rows go to rank r, `receive[r]` come from it: [sum(receive), ..]."""
        arrived = x_N.new_empty(sum(receive), *x_N.shape[1:])
        dist.all_to_all_single(arrived, x_N.contiguous(), receive, send, group=self.process_group)
        return arrived

    def barrier(self) -> None:
        """Return when every rank has come here."""
        self.all_reduce(torch.zeros(1, device=self.device))
