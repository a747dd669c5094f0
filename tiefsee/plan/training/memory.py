"""What one rank keeps in its memory: weights, gradients, optimizer states, activations of micro-batches in flight.

Micro-batches in flight, in stages: 1F1B p, interleaved p + (p - 1) / v, zero-bubble p, DualPipe p + 1, of 1/p of the
network each (DeepSeek-V3's report, table 2; Megatron-LM, arXiv 2104.04473).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiefsee.plan.training.job import TrainJob
from tiefsee.plan.training.layout import Recompute, TrainLayout
from tiefsee.plan.training.optimizer import STATE_BYTES, WEIGHT_BYTES, shards
from tiefsee.plan.training.parameters import Parameters

# Context, libraries, buffers of collectives and of all-to-all, and what the allocator cannot use. Nothing else is held
# back: a card that is sold with 80 GB has 80 GiB, and those 7 % are what a careful run leaves free.
RESERVED_BYTES = 4e9


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank, the fullest of the pipeline."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    available: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers

    @property
    def missing(self) -> float:
        """Bytes by which it does not fit; 0 where it does."""
        return max(0.0, self.total - self.available)


def in_flight(layout: TrainLayout, micro_batches: int) -> float:
    """Micro-batches whose activations a rank keeps, as a share of the whole network's."""
    p, v = layout.pp, layout.virtual
    if layout.schedule == "dualpipe":
        return min(p + 1, micro_batches) / p
    if layout.schedule == "interleaved":
        return min(p + (p - 1) / v, micro_batches) / p
    return min(p, micro_batches) / p


def rank_memory(
    job: TrainJob, layout: TrainLayout, held: Sequence[Parameters], recompute: Recompute, micro_batches: int
) -> Memory:
    """`held`: parameters of each pipeline rank before ZeRO."""
    spec = job.spec
    fullest = max(held, key=lambda p: p.dense + p.experts)
    total = fullest.dense + fullest.experts
    dense_group, expert_group = shards(layout)
    own = fullest.dense / dense_group + fullest.experts / expert_group
    # With ZeRO-3 the weights of a layer in work are whole: two layers' worth, one gathered ahead.
    working = total / max(1, len(spec.layers) // layout.pp) * 2
    weights = WEIGHT_BYTES * (own + working if layout.zero == 3 else total)
    gradients = layout.gradient_bytes * (own + working / 2 if layout.zero >= 2 else total)
    optimizer = 0.0 if layout.offload else STATE_BYTES[job.optimizer] * own
    tokens = layout.micro_batch * job.sequence / layout.cp
    per_token = job.activation_bytes[recompute]
    activations = tokens / layout.tp * per_token * in_flight(layout, micro_batches)
    # One layer in work keeps everything; logits of the last stage, in BF16 and once in FP32.
    activations += tokens / layout.tp * job.activation_bytes["none"] / len(job.spec.layers)
    logits = tokens / layout.tp * spec.vocab_size * 6.0
    size = job.rank_chip.memory_bytes.value
    return Memory(weights, gradients, optimizer, activations, RESERVED_BYTES + logits, size)
