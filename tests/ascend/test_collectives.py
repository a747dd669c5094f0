"""Two ranks on two cards talk through torch_npu's own HCCL group, tensors of the host through gloo beside it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tests.fakecann import environment

# Runs in each of two processes; every line is a promise.
WORKER = """
import os
import torch
import torch.distributed as dist
from tiefsee.ops import open_device, operators_for
from tiefsee.ops.group import Group

rank = int(os.environ["RANK"])
device = open_device(f"npu:{rank}")
torch.npu.set_device(device)
dist.init_process_group("cpu:gloo,npu:hccl")
group = Group.of_all(device)
assert (group.rank, group.size) == (rank, 2)

def on(values, where=device, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype, device=where)

for where in (device, torch.device("cpu")):
    assert group.all_reduce(on([1.0 + rank, 10.0], where)).tolist() == [3.0, 20.0]
    assert group.all_gather(on([[rank, rank + 5]], where)).tolist() == [[0, 5], [1, 6]]
assert group.all_reduce(on([0.5, rank], dtype=torch.bfloat16)).tolist() == [1.0, 1.0]
assert group.reduce_scatter(on([[1.0 + rank], [10.0 + rank]])).tolist() == [[3.0 if rank == 0 else 21.0]]
assert group.broadcast(on([7.0 + rank]), source=1).tolist() == [8.0]
# Rank 0 sends 1 row to itself and 2 to the other, rank 1 sends 3 and 1: as tokens go to their experts.
rows = torch.arange(3 if rank == 0 else 4, device=device).float().unsqueeze(1) + 100 * rank
found = group.all_to_all(rows, *(([1, 2], [1, 3]) if rank == 0 else ([3, 1], [2, 1])))
assert found.flatten().tolist() == ([0, 100, 101, 102] if rank == 0 else [1, 2, 103])

# A linear layer whose rows of x and columns of the weight are split over the ranks gives the whole one's result.
generator = torch.Generator().manual_seed(0)
x, weight = torch.randn(5, 32, generator=generator), torch.randn(12, 32, generator=generator)
part = slice(16 * rank, 16 * rank + 16)
split = group.all_reduce(operators_for(device).linear(x[:, part].to(device), weight[:, part].contiguous().to(device)))
assert (split.cpu() - x @ weight.T).abs().max() < 1e-5

from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.device_mesh import init_device_mesh
whole = torch.arange(8.0).view(4, 2)
sharded = distribute_tensor(whole.to(device), init_device_mesh("npu", (2,)), [Shard(0)])
assert torch.equal(sharded.full_tensor().cpu(), whole)
group.barrier()
dist.destroy_process_group()
print("all held", flush=True)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.usefixtures("npu")
def test_two_ranks():
    if "FAKECANN_START" in os.environ:
        variables = environment(os.environ["FAKECANN_SOC"], devices=2, device_bytes=1_000_000_000)
    else:
        import torch

        if torch.npu.device_count() < 2:
            pytest.skip("needs two cards")
        variables = dict(os.environ)
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER], env={**variables, "RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=200) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [out.strip() for out, _ in said] == ["all held", "all held"], "\n".join(err[-2000:] for _, err in said)
