"""Ranks on two cards: collectives through torch_npu's own HCCL group (of the host's tensors through gloo, beside it),
and models that two cards share, against the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.ascend.models import save_checkpoint
from tests.fakecann import environment

# Runs in each of two processes; every line is a promise.
COLLECTIVES = """
import sys
import torch
from tiefsee.ops import open_device, operators_for
from tiefsee.ops.group import Group

rank = int(sys.argv[2])
device = open_device(f"npu:{rank}")
group = Group.open(rank, 2, device, sys.argv[1])
assert (group.rank, group.size) == (rank, 2)

def on(values, where=device, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype, device=where)

for where in (device, torch.device("cpu")):
    assert group.all_reduce(on([1.0 + rank, 10.0], where)).tolist() == [3.0, 20.0]
    assert group.all_gather(on([[rank, rank + 5]], where)).tolist() == [[0, 5], [1, 6]]
    columns = on([[1.0, 2.0], [3.0, 4.0]] if rank == 0 else [[5.0], [6.0]], where)
    assert group.join_columns(columns, [2, 1]).tolist() == [[1, 2, 5], [3, 4, 6]]
assert group.all_reduce(on([0.5, rank], dtype=torch.bfloat16)).tolist() == [1.0, 1.0]
assert group.reduce_scatter(on([[1.0 + rank], [10.0 + rank]])).tolist() == [[3.0 if rank == 0 else 21.0]]
assert group.broadcast(on([7.0 + rank]), source=1).tolist() == [8.0]
# Rank 0 sends 1 row to itself and 2 to the other, rank 1 sends 3 and 1: as tokens go to their experts.
rows = torch.arange(3 if rank == 0 else 4, device=device).float().unsqueeze(1) + 100 * rank
found = group.all_to_all(rows, *(([1, 2], [1, 3]) if rank == 0 else ([3, 1], [2, 1])))
assert found.flatten().tolist() == ([0, 100, 101, 102] if rank == 0 else [1, 2, 103])

from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.device_mesh import init_device_mesh
whole = torch.arange(8.0).view(4, 2)
sharded = distribute_tensor(whole.to(device), init_device_mesh("npu", (2,)), [Shard(0)])
assert torch.equal(sharded.full_tensor().cpu(), whole)
group.close()
print("all held", flush=True)
"""

# Runs in the leader of two ranks: npu:0 here, npu:1 in its follower. In BF16 each rank's part is rounded before the
# parts are summed: that is no further from float32 than one rank is, but for chance.
SHARED = """
import sys
from tests.ascend.rounded import RoundedOperators
from tests.ascend.test_engine import open_on_cpu
from tests.tiny import prompt, relative_error
from tiefsee import LLM, Sampling

folder, dtype = sys.argv[1:]
greedy = Sampling(temperature=0, max_tokens=8, ignore_eos=True)
exact = open_on_cpu(folder, dtype="float32")
alone = open_on_cpu(folder, RoundedOperators()) if dtype == "bfloat16" else exact

def median_error(logits, needed):
    return float(((logits - needed).norm(dim=-1) / needed.norm(dim=-1)).median())

with LLM(folder, device="npu", tp=2, max_context=1024, max_step_tokens=300) as shared:
    network = shared.core.runner.network
    assert str(network.device) == "npu:0" and network.group.size == 2
    assert len(network.layers[1].ffn.experts.w1) < network.spec.layers[1].ffn.n_routed_experts
    for chunk, prompts in ((300, [prompt(1), prompt(70), prompt(257)]), (7, [prompt(40)])):
        of_all = (llm.logits(prompts, chunk=chunk) for llm in (shared, alone, exact))
        for found, one, needed in zip(*of_all, strict=True):
            if dtype == "float32":
                assert relative_error(found, needed) < 1e-4
            else:
                assert median_error(found, needed) < 1.5 * median_error(one, needed)
    shared.core.draft_length.choose = lambda num_requests: shared.core.plan.max_draft
    answers = [llm.generate([prompt(20), prompt(5)], greedy) for llm in (shared, alone)]
    if dtype == "float32":
        assert [a.token_ids for a in answers[0]] == [a.token_ids for a in answers[1]]
    assert (shared.core.counters.drafted_tokens > 0) == (shared.core.plan.max_draft > 0)
print("all held", flush=True)
"""


@pytest.fixture(scope="module")
def two_cards(npu):
    """The environment of a process that sees two cards."""
    if "FAKECANN_START" in os.environ:
        return environment(os.environ["FAKECANN_SOC"], devices=2, device_bytes=1_000_000_000)
    import torch

    if torch.npu.device_count() < 2:
        pytest.skip("needs two cards")
    return dict(os.environ)


def start(script, *arguments, variables):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], env=variables, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def check(processes):
    try:
        said = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [out.strip() for out, _ in said] == ["all held"] * len(said), "\n".join(err[-3000:] for _, err in said)


def test_collectives(two_cards, tmp_path):
    check([start(COLLECTIVES, tmp_path / "store", rank, variables=two_cards) for rank in range(2)])


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("v2", "float32"), ("v3", "bfloat16"), ("v3.2", "float32"), ("v4", "float32"), ("v4", "bfloat16")],
)
def test_two_cards_share_a_model(two_cards, tmp_path, family, dtype):
    folder = save_checkpoint(family, dtype, tmp_path / family)
    check([start(SHARED, folder, dtype, variables=two_cards)])
