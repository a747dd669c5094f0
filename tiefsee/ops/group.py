"""Ranks that compute together, passed to who needs them: a thin hold on torch.distributed.

A group is opened by whoever starts the ranks and handed on; nothing asks for a default one. Which library carries a
tensor (gloo, NCCL, HCCL) follows from the tensor's device, by the composite backend that the ranks were started with,
e.g. "cpu:gloo,npu:hccl".
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tiefsee.errors import ConfigError, DeviceError
from tiefsee.spec.model import ModelSpec
from tiefsee.spec.split import WHOLE, Split, split_of

# torch 2.13 renamed the two.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True)
class Group:
    """This rank among `size`. Collectives return a new tensor and leave the given one as it is; a rank that is alone
    gets the given one back. They have no backward: a network that trains is on one rank."""

    rank: int = 0
    size: int = 1
    process_group: dist.ProcessGroup | None = None

    @classmethod
    def of_all(cls) -> Group:
        """All ranks that torch.distributed was started with."""
        world = dist.group.WORLD
        assert world is not None, "torch.distributed has not been started"
        return cls(dist.get_rank(world), dist.get_world_size(world), world)

    @classmethod
    def open(cls, rank: int, size: int, device: torch.device, meeting: str) -> Group:
        """Meet the other ranks, which open theirs with the same file `meeting`: of tensors on the device, and on the
        CPU. Raises DeviceError where this process has such a group already: torch.distributed knows one."""
        if dist.is_initialized():
            raise DeviceError(
                "this process is one of several ranks already, and torch.distributed knows one group of them; close "
                "the other engine first, or open this one in a process of its own"
            )
        torch.get_device_module(device).set_device(device)
        own = dist.get_default_backend_for_device(device)
        backend = own if own == "gloo" else f"cpu:gloo,{device.type}:{own}"
        with _loopback():
            dist.init_process_group(backend, store=dist.FileStore(meeting, size), rank=rank, world_size=size)
        return cls.of_all()

    def close(self) -> None:
        """Leave the group; it is of no use to anybody then."""
        if self.process_group is not None and dist.is_initialized():
            dist.destroy_process_group(self.process_group)

    def abort(self) -> None:
        """End what waits for other ranks, where the library can: gloo finds out by itself."""
        if self.process_group is not None:
            with suppress(RuntimeError):
                self.process_group.abort()

    def split(self, spec: ModelSpec) -> Split:
        """What this rank holds of a model. Raises ConfigError where the model cannot be dealt out to so many."""
        return split_of(spec, self.rank, self.size) if self.size > 1 else WHOLE

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        if self.size == 1:
            return x
        total = self._own(x).clone()
        dist.all_reduce(total, group=self.process_group)
        return total

    def all_gather(self, x_N: Tensor) -> Tensor:
        """Every rank's rows, in the order of ranks: [size * N, ..]."""
        if self.size == 1:
            return x_N
        whole = x_N.new_empty(self.size * x_N.shape[0], *x_N.shape[1:])
        _all_gather(whole, self._own(x_N).contiguous(), group=self.process_group)
        return whole

    def join_columns(self, x_TN: Tensor, widths: Sequence[int]) -> Tensor:
        """Every rank's columns, in the order of ranks; `widths` says how many each has: [T, sum(widths)]."""
        if self.size == 1:
            return x_TN
        padded = nn.functional.pad(x_TN, (0, max(widths) - widths[self.rank]))
        parts = self.all_gather(padded).unflatten(0, (self.size, -1))
        return torch.cat([part[:, :width] for part, width in zip(parts, widths, strict=True)], dim=1)

    def reduce_scatter(self, x_N: Tensor) -> Tensor:
        """This rank's share of the rows of the sum over ranks: [N / size, ..]."""
        if self.size == 1:
            return x_N
        share = x_N.new_empty(x_N.shape[0] // self.size, *x_N.shape[1:])
        _reduce_scatter(share, self._own(x_N).contiguous(), group=self.process_group)
        return share

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """What rank `source` has; others give a tensor of that shape and dtype."""
        if self.size == 1:
            return x
        copy = self._own(x).clone()
        dist.broadcast(copy, group=self.process_group, group_src=source)
        return copy

    def all_to_all(self, x_N: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """`send[r]` rows go to rank r, `receive[r]` come from it: [sum(receive), ..]."""
        if self.size == 1:
            return x_N
        arrived = x_N.new_empty(sum(receive), *x_N.shape[1:])
        dist.all_to_all_single(arrived, self._own(x_N).contiguous(), receive, send, group=self.process_group)
        return arrived

    def _own(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise ConfigError("collectives between ranks have no backward; train a network on one rank")
        return x


ALONE = Group()


@contextmanager
def _loopback() -> Iterator[None]:
    """Let gloo talk over the loopback interface, unless the user has named another: all ranks are on this machine, and
    by itself it takes the address of the host's name, where there may be none and where others may listen."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if not names or GLOO_INTERFACE in os.environ:
        yield
        return
    os.environ[GLOO_INTERFACE] = names[0]
    try:
        yield
    finally:
        del os.environ[GLOO_INTERFACE]
