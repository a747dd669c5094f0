"""The end of a step: gradients reduced, the optimizer's update, weights gathered.

AdamW is memory traffic. Muon (V4's hybrid: 8 + 2 Newton-Schulz iterations on each matrix of hidden layers) is
arithmetic besides: whole matrices are dealt out to the ranks that share a stage, each computes its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiefsee.hardware import Chip
from tiefsee.plan.names.formats import compute_format
from tiefsee.plan.training.efficiency import TrainEfficiency
from tiefsee.plan.training.exchange import ring
from tiefsee.plan.training.job import Optimizer
from tiefsee.plan.training.layout import TrainLayout
from tiefsee.plan.training.parameters import Parameters
from tiefsee.plan.training.times import exchange_seconds

WEIGHT_BYTES = 2.0  # BF16
# An FP32 master copy; moments in BF16 (V3, section 3.3.2). Muon keeps one moment.
STATE_BYTES = {"adamw": 4.0 + 2.0 + 2.0, "muon": 4.0 + 2.0}
NEWTON_ITERATIONS = 10


@dataclass(frozen=True, slots=True)
class Update:
    """Seconds at the end of a step: reduce and gather if nothing hid them, and the update itself."""

    reduce: float
    gather: float
    update: float


def shards(layout: TrainLayout) -> tuple[int, int]:
    """Over how many ranks the states of dense and of routed weights are spread by ZeRO. DualPipe holds each stage
    twice, on rank r and on rank pp - 1 - r."""
    twice = 2 if layout.schedule == "dualpipe" else 1
    if layout.zero == 0:
        return 1, 1
    return layout.dp * layout.cp * twice, layout.expert_dp * twice


def update_seconds(
    chip: Chip, held: Parameters, layout: TrainLayout, optimizer: Optimizer, e: TrainEfficiency
) -> Update:
    """`held`: what the rank holds before ZeRO."""
    dense_group, expert_group = shards(layout)
    # Ranks of a dense group are tp apart, copies of an expert ep; DualPipe's second copy adds a stage's distance.
    dense = ring(chip, dense_group if layout.zero else layout.dp * layout.cp, layout.tp, held.dense)
    experts = ring(chip, expert_group if layout.zero else layout.expert_dp, layout.ep, held.experts)
    per_byte = exchange_seconds(dense, e) + exchange_seconds(experts, e)
    own = held.dense / dense_group + held.experts / expert_group
    # Read gradient and states, write states and weight.
    state = STATE_BYTES[optimizer]
    traffic = own * (layout.gradient_bytes + 2 * state + WEIGHT_BYTES) / chip.memory_bytes_per_s.value / e.memory
    if layout.offload:
        traffic += 2 * own * state / e.host_bytes_per_s
    if optimizer == "muon":
        peak = chip.peak(compute_format(chip, "bf16")).value
        flops = held.newton_dense / max(1, dense_group) + held.newton_experts / max(1, expert_group)
        traffic += NEWTON_ITERATIONS * flops / peak / e.matmul
    return Update(per_byte * layout.gradient_bytes, per_byte * WEIGHT_BYTES if layout.zero else 0.0, traffic)
